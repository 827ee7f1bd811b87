//! The pool of threads that run the steps of tasks.

use super::Shared;
use super::watchdog::Probe;
use crate::task::StepContext;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use stead_core::ids::{ShardId, TaskId};
use stead_core::record::TaskRecord;
use stead_core::shard::Input;

/// A step of a task that is due.
pub(crate) struct Step {
    pub(crate) shard: ShardId,
    pub(crate) id: TaskId,
    pub(crate) run: u32,
    pub(crate) task: TaskRecord,
}

/// Steps that wait for a thread.
#[derive(Default)]
pub(crate) struct TaskQueue {
    steps: Mutex<VecDeque<Step>>,
    news: Condvar,
    pub(crate) stopping: AtomicBool,
}

impl TaskQueue {
    pub(crate) fn push(&self, step: Step) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push_back(step);
        self.news.notify_one();
    }

    /// Steps that wait stay in the log; those that run are waited for.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.news.notify_all();
    }

    /// Runs steps on this thread until the node stops.
    pub(crate) fn run(&self, shared: &Shared, probe: &Probe) {
        while let Some(step) = self.take() {
            let Step { shard, id, run, task } = step;
            let ctx = StepContext { id, step: task.step, owner: &task.process, stopping: &self.stopping };
            let service = shared.topology.service_of(shard).expect("each shard is of a service");
            probe.enter_step(id, service, &task.process);
            let outcome = shared.registry.step(&task.name, &task.state, &ctx);
            probe.leave();
            shared.counters.task_steps.add(1);
            let input = Input::TaskStep { id, step: task.step, run, outcome };
            shared.inboxes[shared.worker_of(shard)].push_inputs(&mut vec![(shard, input)]);
        }
    }

    fn take(&self) -> Option<Step> {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.stopping.load(Ordering::SeqCst) {
                return None;
            }
            match steps.pop_front() {
                Some(step) => return Some(step),
                None => steps = self.news.wait(steps).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}
