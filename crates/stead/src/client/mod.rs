//! Clients of a node, in the same process or over the network: async under any executor, and blocking.

mod blocking;
mod calls;
mod remote;
mod sessions;

pub use blocking::BlockingClient;
pub(crate) use blocking::block_on;
pub use calls::{Client, RawCall, RawReply, Retried, payload};

use std::time::Duration;

/// The default timeout of a call: 10 s.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
