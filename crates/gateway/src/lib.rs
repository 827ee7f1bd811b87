//! Connects a node to the network: the HTTP/JSON gateway, and a server program around a node.
//!
//! [`serve`] turns a node into a server program in one line, like `stead start`: HTTP, signals, a supervisor that
//! restarts the server after a crash, events on standard error. [`http`] is the gateway alone, for a program with a
//! tokio runtime of its own.
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
//! Knows shards, entries and files only through [`stead`]. HTTP, OpenAPI, signals and the subscriber of events live
//! here and nowhere else.

#![forbid(unsafe_code)]

pub mod http;
pub mod program;
mod serve;
pub mod signals;

pub use serve::{Ready, Serve, ServerError, log_events, serve};
pub use tracing::Level;
