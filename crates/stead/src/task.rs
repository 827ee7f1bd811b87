//! Expensive work: in steps, off the shard's thread, each step's result an entry.

use crate::process::Process;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::atomic::{AtomicBool, Ordering};
use stead_core::ids::TaskId;

/// Work that takes too long for a handler. The value is its state between two steps.
///
/// Each step runs on a thread of the node's pool; what it leaves is logged before the next one begins, so that a kill
/// repeats one step at most. A step may run again after a kill: what it does outside of its state is at least once.
pub trait Task: Serialize + DeserializeOwned + Send + 'static {
    /// The name under which the work is stored: 1 to 128 bytes, unique within a node.
    const NAME: &'static str;
    /// The process that starts it and gets its result.
    type Owner: Process;

    /// Does a part of the work: long enough to be worth an entry, short enough to be repeated; 10 ms to 1 s is good.
    fn step(&mut self, ctx: &StepContext<'_>) -> Progress;

    /// After the last step: the request that brings the result to the process that started the task.
    fn finish(self) -> <Self::Owner as Process>::Request;
}

/// How far a task has come after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress {
    /// There is more to do; this share of the whole, 0.0 to 1.0, is done.
    Continue(f64),
    /// That was the last step.
    Done,
}

impl Progress {
    /// The share in millionths, forced into its range.
    pub(crate) fn millionths(share: f64) -> u32 {
        // `clamp` keeps a NaN, and the cast makes 0 of it.
        (share.clamp(0.0, 1.0) * 1e6) as u32
    }
}

/// What a step can know of where it runs.
#[derive(Debug)]
pub struct StepContext<'a> {
    pub(crate) id: TaskId,
    pub(crate) step: u64,
    pub(crate) owner: &'a str,
    pub(crate) stopping: &'a AtomicBool,
}

impl StepContext<'_> {
    /// The task; together with [`Self::step`] a stable name for effects outside of the system.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// The number of the step, counted from 0.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The key of the process that started the task.
    #[must_use]
    pub fn owner(&self) -> &str {
        self.owner
    }

    /// The node is shutting down: a step that ends early now is not waited for in vain.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
