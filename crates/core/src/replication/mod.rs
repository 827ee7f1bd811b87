//! Replication of a shard's log: what a replica promises and acknowledges, and how an epoch follows another.
//!
//! Each rule of the protocol is named where it is kept. No entry is looked at here: logs are described by
//! [`table::EpochTable`]s, and frames by the epochs and indexes of their entries.
//!
//! - [`replica::Replica`] is a replica of one shard in any role: it takes appends, seals, leads.
//! - [`history::History`] is what the control plane has recorded of a shard, and judges whether a new epoch may begin.
//! - [`stream::Stream`] is what a primary sends to one peer.
//! - [`rounds::Rounds`] are a primary's questions to its members: they keep its lease, and let its [`reads::Reads`] be answered.
//! - [`backlog::Backlog`] refuses the writes of an asynchronous service whose backups lag.
//! - [`lease::Grants`] are a member's leases, and [`freshness::Freshness`] is the age of its state.

pub mod backlog;
mod encoding;
pub mod epoch;
pub mod freshness;
pub mod history;
pub mod lease;
pub mod reads;
pub mod replica;
pub mod rounds;
pub mod stream;
pub mod table;
