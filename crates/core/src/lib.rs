//! Stead's protocol: the work of a shard on each input.
//!
//! Pure: events go in, effects come out. Never reads a clock (time arrives with each input), never draws a random number,
//! never waits, never touches a file or a socket. The same code runs in production and in the simulator.
//!
//! - [`shard::Shard`] is the protocol: it handles an [`shard::Input`] and gives [`shard::Effect`]s.
//! - [`state::State`] is a shard's state: the fold of its [`entry::Entry`]s, kept as [`records::Records`].
//! - [`calls`] has the calls of clients and shards to processes, with their answers and refusals.
//! - [`handler::Handler`] is the user's code as the core sees it; it works on a [`handler::Txn`].
//! - [`capture::Capture`] is the view of a query: a process as it was at one entry, apart from its shard.
//! - [`look::Look`] is what an operator asks of a shard's state: processes and dead letters, a piece at a time.
//! - [`commit_tracker::CommitTracker`] decides what is committed.
//! - [`replication`] decides what replicas promise and acknowledge, and when an epoch may follow another.
//! - [`shard_replica::ShardReplica`] is a replica of a shard on a node: its log, its state, and the shard while it leads.
//! - [`control`] is what a cluster agrees on: its nodes, services, epochs and replicas.
//! - [`replay::Replay`] finds the entries of a log that survive, and folds them.
//! - [`log_room::LogRoom`] decides what the owner of the log does next, and when it is full.
//! - [`start`] plans a life of a node from its stored data; [`shutdown::Shutdown`] decides in which order its parts end.
//! - [`trials::Trials`] gives turns to the shards that try causes which may have ended the process.
//! - [`checkpointing::driver::Driver`] takes checkpoints, and decides what becomes unnecessary by them.

#![forbid(unsafe_code)]

pub mod blob;
pub mod calls;
pub mod capture;
pub mod channel;
pub mod checkpointing;
pub mod clock;
pub mod commit_tracker;
pub mod control;
pub mod durability;
pub mod entry;
pub mod handler;
pub mod ids;
pub mod key;
pub mod log_room;
pub mod look;
mod ordered;
mod outgoing;
pub mod placement;
pub mod record;
pub mod records;
pub mod replay;
pub mod replication;
pub mod reply;
pub mod shard;
pub mod shard_map;
pub mod shard_replica;
pub mod shrink;
pub mod shutdown;
pub mod start;
pub mod state;
pub mod topology;
pub mod trials;
mod writes;
