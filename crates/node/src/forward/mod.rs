//! Calls that came to this node for shards that another one leads: any node serves any client.
//!
//! A worker keeps such a call at its [`desk`] until it has an answer or its time is over. It goes to the node of the primary as the request
//! that a native client would send ([`asks`]), in a frame with all else for that node, and the answer comes back the same way
//! ([`Forwarder`]). A node does not forward what another one forwarded to it.
//!
//! A call goes out again as soon as the connection to its node closes, that node no longer leads, or the control plane names another
//! primary: with the client's identity, by which a shard recognises what it has applied. A call without one is not repeated once it may
//! have been applied; its client gets [`NoAnswer::Deposed`](crate::NoAnswer::Deposed).

mod asks;
mod caller;
mod desk;

pub(crate) use asks::{ask_of, command_of, result_of};
pub(crate) use caller::Forwarder;
pub(crate) use desk::{Desk, Forwarded, News};
