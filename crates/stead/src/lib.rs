//! Stead runs stateful services so that they outlive the process and the machine that they run on.
//!
//! A [`Process`] is a struct and a handler. The effects of a handler (its new state, the messages it sends, its timers,
//! its answer) are one entry of a log, written before anything leaves the shard. After a kill at any moment the node
//! continues where it was: each answered request was applied exactly once, each message arrives exactly once, and
//! logged work is never repeated.
//!
//! A complete service:
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use stead::{Context, Never, Node, Process, QueryContext, ServiceOptions};
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Counter { total: i64 }
//!
//! #[derive(Serialize, Deserialize)]
//! enum Request { Add(i64), Move { amount: i64, to: String } }
//!
//! #[derive(Serialize, Deserialize)]
//! enum Query { Total }
//!
//! impl Process for Counter {
//!     const SERVICE: &'static str = "counter";
//!     type Key = String;
//!     type Request = Request;
//!     type Reply = i64;
//!     type Error = Never;
//!     type Query = Query;
//!     type Answer = i64;
//!     fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<i64, Never> {
//!         match request {
//!             Request::Add(amount) => self.total += amount,
//!             Request::Move { amount, to } => {
//!                 self.total -= amount;
//!                 ctx.send::<Counter>(&to, Request::Add(amount));
//!             }
//!         }
//!         Ok(self.total)
//!     }
//!     fn query(&self, _: &QueryContext<'_, Self>, Query::Total: Query) -> Result<i64, Never> { Ok(self.total) }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?; let dir = dir.path();
//! let node = Node::builder(dir).service::<Counter>(ServiceOptions::default()).open()?;
//! let client = node.blocking_client();
//! assert_eq!(client.call::<Counter>(&"a".to_string(), Request::Add(5))?, 5);
//! assert_eq!(client.call::<Counter>(&"a".to_string(), Request::Move { amount: 2, to: "b".to_string() })?, 3);
//! # node.shutdown(); Ok(()) }
//! ```

#![forbid(unsafe_code)]

pub mod client;
pub mod config;
pub mod descriptors;
mod embedded;
mod error;
mod log_view;
mod node;
pub mod offline;
mod service;

pub use client::{BlockingClient, Client, Queried, RawCall, RawReply, Retried};
pub use config::Config;
pub use error::{CallError, ConnectError, OpenError, RawError};
pub use log_view::LogPage;
pub use node::{
    BackupStatus, CheckStatus, CheckpointFailure, CheckpointInfo, CheckpointOptions, CheckpointReport,
    ClockStatus, CopyReport, CopyStatus, DeadLetterCursor, DeadLetterInfo, DeadLetterPage, FailedCheck,
    LogStatus, MemoryStatus, Metrics, NoCursor, Node, NodeBuilder, NotReady, ProcessCursor, ProcessDetail,
    ProcessInfo, ProcessPage, RecoveryReport, ServiceMetrics, ServiceOptions, ServiceStatus, ShardNotHere,
    ShardStatus, ShardUnanswered, SkippedCheck, Status, StuckQuery, TaskStatus, TimerStatus,
};
pub use offline::{RestoreOptions, RestoreReport, copy_checkpoint, restore};
#[cfg(feature = "schemars")]
pub use schemars;
#[cfg(feature = "schemars")]
pub use service::Json;
pub use service::{
    Caller, Context, Cut, CutError, DeadLetter, DeadLetterCause, EffectError, Never, NoQuery, Process,
    ProcessKey, Progress, QueryContext, RegisteredTwice, Registry, RetryPolicy, Runner, Schemas, StepContext,
    Task, TaskState, codec, kv,
};
pub use stead_cluster::{
    ClusterStatus, DialChange, EnterError, FailoverReport, Loss, Membership, NodeState, NodeStatus,
    OperateError, Problem, ReplicaLag, ServiceDial, ShardPlaces,
};
pub use stead_core::calls::Misuse;
pub use stead_core::calls::{Limited, Lost, Read, Refusal};
pub use stead_core::control::dial::{Acks, Durability};
pub use stead_core::handler::Limit;
pub use stead_core::ids::{Colour, Epoch, Index, Micros, TaskId, Time, TimerId};
pub use stead_core::placement::Place;
pub use stead_core::replication::freshness::TooStale;
pub use stead_core::replication::table::LogPoint;
pub use stead_core::topology::Topology;
pub use stead_net::network::AddressError;
#[doc(inline)]
pub use stead_node::{events, stderr};
pub use stead_store::checkpoint::checks::CheckOutcome;
pub use stead_store::checkpoint::verify::Report as VerifyReport;

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
