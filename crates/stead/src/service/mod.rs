//! Typed services: the code of a user, and its conversion to the untyped code that a node runs.
//!
//! Users implement [`process`](Process) and [`task`](Task); [`context`](Context) and [`cut`](Cut) are the interfaces of
//! their code. [`registry`](Registry) runs it as the core's handler and the node's program; [`codec`] encodes values,
//! [`schema`](Schemas) describes them, and [`kv`] is the built-in service.
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
