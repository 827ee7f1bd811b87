//! Clients of a node, in the same process or over the network: async under any executor, and blocking.

mod blocking;
mod calls;
mod parking;
mod remote;
mod sessions;

pub use blocking::BlockingClient;
pub use calls::{Client, Queried, RawCall, RawReply, Retried, payload};
pub(crate) use parking::{block_on, block_on_until};
pub(crate) use remote::misfit;

use std::time::Duration;

/// The default timeout of a call: 10 s.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
