//! The queue of steps: those that wait, that were asked about, and that run.

use crate::bell::Bell;
use crate::roster::PartId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use stead_core::ids::{ShardId, StepRun, TaskId};
use stead_core::record::TaskRecord;

/// A step of a task that is due.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) shard: ShardId,
    pub(crate) id: TaskId,
    pub(crate) run: StepRun,
    pub(crate) task: TaskRecord,
    /// It may have been running when the process ended: its shard logs an attempt before it runs.
    pub(crate) asks: bool,
    /// It is tried in its shard's turn, for which others wait.
    pub(crate) alone: bool,
}

impl Step {
    pub(super) fn key(&self) -> (ShardId, TaskId, StepRun) {
        (self.shard, self.id, self.run)
    }

    /// Names the step, its task and its process, for people.
    fn name(&self) -> String {
        let TaskRecord { step, name, process, .. } = &self.task;
        format!("step {step} of task {name} of {process}")
    }
}

/// The next work of a part.
#[derive(Debug)]
pub(super) enum Next {
    Take(Step),
    /// No step waits: the part's bell is rung when one does.
    Sleep,
    /// A step waits, but the node has no memory for its outcome.
    Crowded,
    Ended,
}

/// The steps that wait, that were asked about, and that run.
#[derive(Debug, Default)]
pub(super) struct StepDesk {
    waiting: VecDeque<Step>,
    /// Parts that sleep, and look for a step when they are rung.
    idle: BTreeSet<usize>,
    /// Steps whose shard was asked whether they may run: the part that has it, and the answer.
    pub(super) asked: BTreeMap<(ShardId, TaskId, StepRun), (usize, Option<bool>)>,
    /// The names of the steps that were taken, by the numbers of their parts.
    pub(super) running: BTreeMap<usize, String>,
    is_stopped: bool,
}

impl StepDesk {
    /// Adds a step behind those that wait; before them if it is tried alone, so that its turn is soon over. Returns the part
    /// to ring.
    pub(super) fn push(&mut self, step: Step) -> Option<usize> {
        if self.is_stopped {
            return None;
        }
        if step.alone {
            self.waiting.push_front(step);
        } else {
            self.waiting.push_back(step);
        }
        self.idle.pop_first()
    }

    /// Returns the next step for a part that has none. Without memory for its outcome, only a step that is tried alone
    /// begins, because others wait for its turn.
    pub(super) fn next(&mut self, part: usize, is_crowded: bool) -> Next {
        self.idle.remove(&part);
        if self.is_stopped {
            return Next::Ended;
        }
        if let Some(step) = self.waiting.pop_front_if(|step| step.alone || !is_crowded) {
            self.running.insert(part, step.name());
            return Next::Take(step);
        }
        if !self.waiting.is_empty() {
            // The part looks again by its own clock: the next step rings a part that sleeps.
            return Next::Crowded;
        }
        self.idle.insert(part);
        Next::Sleep
    }

    /// Notes that a part asks the shard of its step.
    pub(super) fn ask(&mut self, part: usize, step: &Step) {
        self.asked.insert(step.key(), (part, None));
    }

    /// Notes the answer of a step's shard. Returns the part to ring; `None` if no part waits for the answer any more.
    pub(super) fn answer(&mut self, key: (ShardId, TaskId, StepRun), allowed: bool) -> Option<usize> {
        let (part, answer) = self.asked.get_mut(&key)?;
        *answer = Some(allowed);
        Some(*part)
    }

    /// Takes the answer to a step that was asked about; no step may begin once the node stops.
    pub(super) fn take_answer(&mut self, step: &Step) -> Option<bool> {
        let answer = if self.is_stopped { Some(false) } else { self.asked.get(&step.key())?.1 };
        if answer.is_some() {
            self.asked.remove(&step.key());
        }
        answer
    }

    /// Drops the steps of a shard that have not begun. Returns the parts to ring.
    pub(super) fn drop_shard(&mut self, shard: ShardId) -> Vec<usize> {
        self.waiting.retain(|step| step.shard != shard);
        let asked = self.asked.iter_mut().filter(|((of, ..), _)| *of == shard);
        asked
            .map(|(_, (part, answer))| {
                *answer = Some(false);
                *part
            })
            .collect()
    }

    /// Lets no further step begin. Steps that wait stay in the log.
    pub(super) fn stop(&mut self) {
        self.is_stopped = true;
        self.waiting.clear();
    }
}

/// The state that the parts that run steps share.
pub(crate) struct StepQueue {
    desk: Mutex<StepDesk>,
    /// By part.
    bells: Vec<Bell>,
    pub(crate) stopping: AtomicBool,
}

impl StepQueue {
    /// Creates an empty queue for this many parts.
    pub(crate) fn new(parts: usize) -> Self {
        Self {
            desk: Mutex::default(),
            bells: (0..parts).map(|_| Bell::default()).collect(),
            stopping: AtomicBool::new(false),
        }
    }

    pub(super) fn desk(&self) -> MutexGuard<'_, StepDesk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, part: Option<usize>) {
        if let Some(part) = part {
            self.bells[part].ring();
        }
    }

    /// Adds a step.
    pub(crate) fn push(&self, step: Step) {
        let part = self.desk().push(step);
        self.ring(part);
    }

    /// Passes the answer of a shard to the part that asked.
    pub(crate) fn answer(&self, shard: ShardId, id: TaskId, run: StepRun, allowed: bool) {
        let part = self.desk().answer((shard, id, run), allowed);
        self.ring(part);
    }

    /// Drops the steps of a shard that have not begun.
    pub(crate) fn drop_shard(&self, shard: ShardId) {
        let parts = self.desk().drop_shard(shard);
        parts.into_iter().for_each(|part| self.ring(Some(part)));
    }

    /// Lets no further step begin. Steps that wait stay in the log.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.desk().stop();
        self.bells.iter().for_each(Bell::ring);
    }

    /// Returns the names of the steps that run, by the numbers of their parts, except for that of the part by which the node is
    /// ended.
    pub(crate) fn running(&self, by: Option<PartId>) -> Vec<(usize, String)> {
        let desk = self.desk();
        let others = desk.running.iter().filter(|(part, _)| Some(PartId::Step(**part)) != by);
        others.map(|(part, name)| (*part, name.clone())).collect()
    }

    /// Returns the bell of a part.
    pub(super) fn bell(&self, part: usize) -> &Bell {
        &self.bells[part]
    }

    /// Removes the step of a part from those that run.
    pub(super) fn end(&self, part: usize) {
        self.desk().running.remove(&part);
    }
}

/// Removes a part's step from those that run when it is dropped, also if its code panics.
pub(super) struct Ending<'a>(pub(super) &'a StepQueue, pub(super) usize);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end(self.1);
    }
}
