//! Snapshots of shards: this node's own ones, behind which its log is trimmed, and those on their way to replicas that lack entries which
//! no log has any more. `part.rs` is the part that writes and carries them: `writing.rs` writes what the workers take of their replicas,
//! `sending.rs` and `receiving.rs` are the ends of a transfer. Work for it is left at `desk.rs`, by the workers and by the connections to
//! other nodes.
//!
//! A transfer sends a durable snapshot of the primary, its own one or that from which it began: all of it is committed, so a transfer waits
//! for no member of the shard. It is sent in chunks, of which one is on its way at a time. The receiver writes the chunks aside, and gives
//! the snapshot to its replica once all of it is durable and checked. A transfer is of one epoch: it ends with the life of either node, and
//! when its primary leads no more.

pub(crate) mod desk;
pub(crate) mod part;
mod receiving;
mod sending;
mod writing;
