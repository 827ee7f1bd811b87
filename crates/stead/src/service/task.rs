//! Tasks: expensive work in steps, off the shard's thread; the result of each step is an entry.

use super::process::Process;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stead_core::ids::TaskId;
use stead_core::record::TaskRecord;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Work that takes too long for a handler. The value is its state between two steps.
///
/// Each step runs on a thread of the node's pool; its result is logged before the next one begins, so that a kill
/// repeats one step at most. A step may run again after a kill: its effects outside of its state happen at least once.
pub trait Task: Serialize + DeserializeOwned + Send + 'static {
    /// The name under which the work is stored: 1 to 128 bytes, unique within a node.
    const NAME: &'static str;
    /// The process that starts it and gets its result.
    type Owner: Process;

    /// Performs part of the work: long enough to be worth an entry, short enough to be repeated; 10 ms to 1 s is good.
    fn step(&mut self, ctx: &StepContext<'_>) -> Progress;

    /// Returns the policy for repeating a step that ends with [`Progress::Retry`].
    fn retry() -> RetryPolicy {
        RetryPolicy::default()
    }

    /// Called after the last step: returns the request that brings the result to the process that started the task.
    fn finish(self) -> <Self::Owner as Process>::Request;
}

/// The progress of a task after a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// There is more to do; this share of the whole, 0.0 to 1.0, is done.
    Continue(f64),
    /// That was the last step.
    Done,
    /// The step failed, for this reason, and may succeed later: it runs again, from the state before it, according to
    /// [`Task::retry`]. Meanwhile it holds no thread.
    Retry(String),
}

/// The policy for repeating a failed step: after a delay that doubles with each failure. A random part of up to a
/// quarter is subtracted from each delay, so that tasks that failed together do not repeat together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The first delay: 100 ms by default.
    pub delay_min: Duration,
    /// The longest delay: 60 s by default.
    pub delay_max: Duration,
    /// Maximum number of repetitions of one step: 10 by default. After that the task becomes a dead letter with the
    /// reason of the last failure; an operator can retry it from there. 0 means never, `u32::MAX` without an end.
    pub retries_max: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { delay_min: Duration::from_millis(100), delay_max: Duration::from_secs(60), retries_max: 10 }
    }
}

impl RetryPolicy {
    /// Returns a policy that repeats without an end.
    #[must_use]
    pub fn for_ever() -> Self {
        Self { retries_max: u32::MAX, ..Self::default() }
    }

    /// Returns the delay of a step after this many failures, at least 1; `None` if it is given up. The same step of the
    /// same task waits equally long on every machine.
    #[must_use]
    pub fn delay(&self, task: TaskId, step: u64, failures: u32) -> Option<Duration> {
        if self.retries_max != u32::MAX && failures > self.retries_max {
            return None;
        }
        let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let delay = self.delay_min.saturating_mul(doubled).min(self.delay_max);
        let hash = xxh3_64_with_seed(&step.to_le_bytes(), task.0 ^ u64::from(failures).rotate_left(32));
        let share = f64::from(hash as u32) / f64::from(u32::MAX);
        Some(delay.mul_f64(1.0 - share / 4.0))
    }
}

impl Progress {
    /// Returns the share in millionths, limited to its range.
    pub(crate) fn millionths(share: f64) -> u32 {
        // `clamp` keeps a NaN, which the cast converts to 0.
        (share.clamp(0.0, 1.0) * 1e6) as u32
    }
}

/// The context of a step.
#[derive(Debug)]
pub struct StepContext<'a> {
    pub(crate) id: TaskId,
    pub(crate) step: u64,
    pub(crate) owner: &'a str,
    pub(crate) retries: u32,
    pub(crate) stopping: &'a AtomicBool,
}

impl<'a> StepContext<'a> {
    /// Creates the context of the next step of a task, for a program that runs steps itself, such as a test kit. The
    /// step sees `stopping` as [`Self::is_stopping`].
    #[must_use]
    pub fn new(id: TaskId, task: &'a TaskRecord, stopping: &'a AtomicBool) -> Self {
        let retries = task.retry.as_ref().map_or(0, |retry| retry.count);
        Self { id, step: task.step.0, owner: &task.process, retries, stopping }
    }
}

impl StepContext<'_> {
    /// Returns the task; together with [`Self::step`] a stable name for effects outside of the system.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Returns the number of the step, counted from 0.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Returns the number of times that this step has ended with [`Progress::Retry`] before: 0 in its first run.
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// Returns the key of the process that started the task.
    #[must_use]
    pub fn owner(&self) -> &str {
        self.owner
    }

    /// Whether the node is shutting down: a shutdown waits for a step only for a limited time, so it should end early.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_their_bound_and_differ_by_task() {
        let policy = RetryPolicy {
            delay_min: Duration::from_secs(1),
            delay_max: Duration::from_secs(10),
            retries_max: 6,
        };
        for (failures, full) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (6, 10)] {
            for task in 0..100 {
                let delay = policy.delay(TaskId(task), 3, failures).unwrap();
                let full = Duration::from_secs(full);
                assert!(delay <= full && delay >= full.mul_f64(0.75), "{task} {failures}: {delay:?}");
            }
            let of = |task| policy.delay(TaskId(task), 3, failures);
            assert_eq!(of(1), of(1));
            assert_ne!(of(1), of(2));
        }
        assert_eq!(policy.delay(TaskId(1), 3, 7), None);
        let later = RetryPolicy::for_ever().delay(TaskId(1), 0, u32::MAX).unwrap();
        assert!(later >= Duration::from_secs(45) && later <= Duration::from_secs(60), "{later:?}");
    }
}
