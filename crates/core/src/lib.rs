//! Stead's protocol: the work of a shard on each input.
//!
//! Pure: events go in, effects come out. Never reads a clock (time arrives with each input), never draws a random number,
//! never waits, never touches a file or a socket. The same code runs in production and in the simulator.
//!
//! - [`shard::Shard`] is the protocol: it handles an [`shard::Input`] and gives [`shard::Effect`]s.
//! - [`state::State`] is what a shard knows: the fold of its [`entry::Entry`]s, held as [`records::Records`].
//! - [`calls`] is what clients and shards ask of a process, and what they are answered.
//! - [`handler::Handler`] is the user's code as the core sees it; it works on a [`handler::Txn`].
//! - [`capture::Capture`] is what a query may read: a process as it was at one entry, which holds no shard.
//! - [`commit_tracker::CommitTracker`] decides what is committed.
//! - [`replay::Replay`] finds the entries of a log that survive, and folds them.
//! - [`log_room::LogRoom`] decides what the owner of the log does next, and when it is full.
//! - [`start`] plans a life of a node from what it finds; [`shutdown::Shutdown`] decides in which order it ends.
//! - [`trials::Trials`] gives turns to shards that try what a death of the process may have met.
//! - [`checkpointing::driver::Driver`] takes checkpoints, and decides what becomes unnecessary by them.

#![forbid(unsafe_code)]

pub mod blob;
pub mod calls;
pub mod capture;
pub mod channel;
pub mod checkpointing;
pub mod clock;
pub mod commit_tracker;
pub mod entry;
pub mod handler;
pub mod ids;
pub mod key;
pub mod log_room;
mod ordered;
mod outgoing;
pub mod placement;
pub mod record;
pub mod records;
pub mod replay;
pub mod reply;
pub mod shard;
pub mod shard_map;
pub mod shrink;
pub mod shutdown;
mod slab;
pub mod start;
pub mod state;
pub mod topology;
pub mod trials;
mod writes;
