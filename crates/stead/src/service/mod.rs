//! Typed services: what a user writes, and how it becomes the untyped code that a node runs.
//!
//! [`process`](Process) and [`task`](Task) are what users implement; [`context`](Context) and [`cut`](Cut) what their code
//! sees. [`registry`](Registry) runs all of it as the core's handler and the node's program; [`codec`] turns values into bytes,
//! [`schema`](Schemas) describes them, and [`kv`] is the service that is built in.
//!
//! One concept in several files, which use each other: the only circle of modules in this crate.

pub mod codec;
mod context;
mod cut;
pub mod kv;
mod process;
mod registry;
mod schema;
mod task;

pub use context::{Caller, Context, EffectError, QueryContext, TaskState};
pub use cut::{Cut, CutError, DeadLetter, DeadLetterCause};
pub use process::{Never, NoQuery, Process, ProcessKey};
pub use registry::{RegisteredTwice, Registry, Runner};
#[cfg(feature = "schemars")]
pub use schema::Json;
pub use schema::Schemas;
pub use task::{Progress, RetryPolicy, StepContext, Task};
