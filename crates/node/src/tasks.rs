//! The pool of threads that run the steps of tasks.

use crate::env::{Env, Program, StepCall};
use crate::memory::Memory;
use crate::shared::Shared;
use crate::watchdog::Probe;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};
use stead_core::ids::{ShardId, TaskId};
use stead_core::record::TaskRecord;
use stead_core::shard::Input;

/// The interval at which a thread looks whether the node has memory for the outcome of a step.
const CROWDED_LOOK: Duration = Duration::from_millis(5);

/// A step of a task that is due.
pub(crate) struct Step {
    pub(crate) shard: ShardId,
    pub(crate) id: TaskId,
    pub(crate) run: u32,
    pub(crate) task: TaskRecord,
    /// A death of the process may have met it: its shard logs an attempt before it runs.
    pub(crate) asks: bool,
    /// It is tried in its shard's turn, which others wait for.
    pub(crate) alone: bool,
}

/// Steps that wait for a thread, and those that run.
#[derive(Default)]
pub(crate) struct TaskQueue {
    steps: Mutex<Steps>,
    news: Condvar,
    /// A step has ended.
    ended: Condvar,
    /// A shard has answered a step that asked.
    answered: Condvar,
    pub(crate) stopping: AtomicBool,
}

#[derive(Default)]
struct Steps {
    waiting: VecDeque<Step>,
    running: Vec<Running>,
    /// Whether steps that asked may run, until their threads have seen it.
    answers: BTreeMap<(ShardId, TaskId, u32), bool>,
}

/// A step that a thread is at.
struct Running {
    thread: ThreadId,
    /// For a person: which task of which process.
    name: String,
}

/// Takes a step off the list of those that run, also if its thread panics.
struct Listed<'a>(&'a TaskQueue);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let here = thread::current().id();
        self.0.steps().running.retain(|running| running.thread != here);
        self.0.ended.notify_all();
    }
}

impl Steps {
    /// The next step that may begin: without memory for its outcome only one that is tried alone, for others wait for its
    /// turn.
    fn next(&mut self, memory: &Memory) -> Option<Step> {
        self.waiting.pop_front_if(|step| step.alone || !memory.is_over())
    }
}

impl TaskQueue {
    fn steps(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes on a step, to run after those that wait; before them if it is tried alone, so that its turn is soon over.
    pub(crate) fn push(&self, step: Step) {
        let mut steps = self.steps();
        if step.alone {
            steps.waiting.push_front(step);
        } else {
            steps.waiting.push_back(step);
        }
        drop(steps);
        self.news.notify_one();
    }

    /// From now on no step begins. Steps that wait stay in the log.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.steps().waiting.clear();
        self.news.notify_all();
        self.answered.notify_all();
    }

    /// A shard answers a step that asked.
    pub(crate) fn answer(&self, shard: ShardId, id: TaskId, run: u32, allowed: bool) {
        self.steps().answers.insert((shard, id, run), allowed);
        self.answered.notify_all();
    }

    /// Asks a step's shard whether the step may run.
    fn is_allowed<E: Env>(&self, shared: &Shared<E>, step: &Step) -> bool {
        let Step { shard, id, run, .. } = *step;
        let input = Input::StepBegins { id, run };
        shared.inboxes[shared.worker_of(shard)].push_inputs(&mut vec![(shard, input)]);
        let mut steps = self.steps();
        loop {
            if let Some(allowed) = steps.answers.remove(&(shard, id, run)) {
                return allowed;
            }
            if self.stopping.load(Ordering::SeqCst) {
                return false;
            }
            steps = self.answered.wait(steps).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the steps that run, but for one on this thread. Returns the names of those that still run at the deadline;
    /// these are waited for no more.
    pub(crate) fn await_end(&self, deadline: Instant) -> Vec<String> {
        let here = thread::current().id();
        let mut steps = self.steps();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let names = steps.running.iter().filter(|running| running.thread != here);
            let names: Vec<String> = names.map(|running| running.name.clone()).collect();
            if names.is_empty() || left.is_zero() {
                steps.running.retain(|running| running.thread == here);
                return names;
            }
            steps = self.ended.wait_timeout(steps, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Runs steps on this thread until the node stops.
    pub(crate) fn run<E: Env>(&self, shared: &Shared<E>, probe: &Probe) {
        while let Some(step) = self.take(&shared.memory) {
            let _listed = Listed(self);
            if step.asks && !self.is_allowed(shared, &step) {
                continue;
            }
            let Step { shard, id, run, task, .. } = step;
            let call = StepCall {
                name: &task.name,
                state: &task.state,
                id,
                step: task.step,
                owner: &task.process,
                retries: task.retry.as_ref().map_or(0, |retry| retry.count),
                stopping: &self.stopping,
            };
            let service = shared.topology.service_of(shard).expect("each shard is of a service");
            probe.enter_step(id, service, &task.process);
            let outcome = shared.program.step(&call);
            probe.leave();
            shared.counters.services[usize::from(service.0)].task_steps.add(1);
            shared.memory.change([0, outcome.bytes() as i64, 0]);
            let input = Input::TaskStep { id, step: task.step, run, outcome };
            shared.inboxes[shared.worker_of(shard)].push_inputs(&mut vec![(shard, input)]);
        }
    }

    fn take(&self, memory: &Memory) -> Option<Step> {
        let mut steps = self.steps();
        loop {
            if self.stopping.load(Ordering::SeqCst) {
                return None;
            }
            if let Some(step) = steps.next(memory) {
                let TaskRecord { step: number, name, process, .. } = &step.task;
                let name = format!("step {number} of task {name} of {process}");
                steps.running.push(Running { thread: thread::current().id(), name });
                return Some(step);
            }
            steps = if steps.waiting.is_empty() {
                self.news.wait(steps).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.news.wait_timeout(steps, CROWDED_LOOK).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryLimits;
    use stead_core::ids::{Blob, Key};

    #[test]
    fn without_memory_only_a_step_that_is_tried_alone_begins_however_many_wait() {
        let (queue, memory) = (TaskQueue::default(), Memory::new(MemoryLimits::default()));
        let step = |id, alone| Step {
            shard: ShardId(0),
            id: TaskId(id),
            run: 1,
            task: TaskRecord {
                process: Key::none(),
                name: "task".into(),
                step: 0,
                state: Blob::empty(),
                progress: 0,
                retry: None,
            },
            asks: true,
            alone,
        };
        for (id, alone) in [(1, false), (2, false), (3, true)] {
            queue.push(step(id, alone));
        }
        let next = || queue.steps().next(&memory).map(|step| step.id);
        memory.change([0, i64::MAX, 0]);
        assert_eq!((next(), next()), (Some(TaskId(3)), None));
        memory.change([0, -i64::MAX, 0]);
        assert_eq!((next(), next(), next()), (Some(TaskId(1)), Some(TaskId(2)), None));
    }
}
