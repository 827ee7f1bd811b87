//! Snapshots of shards on their way to replicas that lack entries that no log has any more: `part.rs` is the part that carries them,
//! `sending.rs` and `receiving.rs` are its ends. Work for it is left at `desk.rs`: by the workers, which take the snapshots of the
//! shards that they lead, and by the connections to other nodes.
//!
//! A snapshot is written to a file at its sender, which is short work for the shard; the file is sent in chunks, of which one is on its
//! way at a time, and is removed at the end. The receiver writes the chunks aside, and gives the snapshot to its replica once all of it
//! is durable and checked. A transfer is of one epoch: it ends with the life of either node, and when its primary leads no more.

pub(crate) mod desk;
pub(crate) mod part;
mod receiving;
mod sending;
