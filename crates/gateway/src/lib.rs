//! A node on the network: the HTTP/JSON gateway, and a server program around a node.
//!
//! [`serve`] makes a program of a node in one line, as `stead start` is one: HTTP, signals, a supervisor that starts the
//! server again when it dies, events on standard error. [`http`] is the gateway alone, for a program with a tokio runtime
//! of its own.
//!
//! ```no_run
//! use stead::kv::Kv;
//! use stead::{Node, ServiceOptions};
//!
//! fn main() -> Result<(), stead_gateway::ServerError> {
//!     stead_gateway::serve(Node::builder("data").service::<Kv>(ServiceOptions::default()))
//! }
//! ```
//!
//! Knows nothing of shards, entries or files but through [`stead`]. HTTP, OpenAPI, signals and the subscriber of events
//! live here and nowhere else.

#![forbid(unsafe_code)]

pub mod http;
pub mod program;
mod serve;
pub mod signals;

pub use serve::{Ready, Serve, ServerError, serve};
pub use tracing::Level;
