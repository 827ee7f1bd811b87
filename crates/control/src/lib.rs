//! Stead's consensus group: a few nodes agree on the order of commands, and each folds them into the same state.
//!
//! A [`Plane`] is a node's member of the group. It proposes commands to the leader, whichever node that is, and shows the
//! newest committed state. What a command means is up to a [`Machine`], which for Stead is core's `ControlState`. The
//! consensus library is openraft; none of its types leaves this crate.
//!
//! - The vote, the log and the snapshot are in the data directory, written through [`stead_store::disk::Disk`]: see
//!   docs/storage-format.md.
//! - Requests to other nodes go through a [`Transport`], as bytes.
//! - A [`Driver`] decides on the node whose plane leads, as core's `Controller` does.
//! - A plane has one thread. A node on its own is a group of one voter, which wakes only when it is called.
//!
//! Does not know: shards, epochs, sockets, how the nodes find each other.

#![forbid(unsafe_code)]

mod board;
mod control_state;
mod driver;
mod encoding;
mod error;
mod fault;
mod frame;
mod log;
mod machine;
mod member;
mod network;
mod pace;
mod plane;
mod proposal;
mod settings;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;
mod transport;
mod types;
mod wire;

pub use board::{Role, Status, Watch};
pub use control_state::ControlPlane;
pub use driver::Driver;
pub use encoding::ADDRESS_BYTES_MAX;
pub use error::{ChangeError, ProposeError, ReadError, StartError};
pub use fault::StorageFault;
pub use log::Identity;
pub use machine::{Committed, Machine};
pub use member::VOTERS_MAX;
pub use plane::{Begin, DIR, Options, Plane};
pub use proposal::{COMMAND_BYTES_MAX, Proposal};
pub use settings::Settings;
pub use snapshot::SNAPSHOT_BYTES_MAX;
pub use transport::{Answer, Transport};
pub use wire::Change;
