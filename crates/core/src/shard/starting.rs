//! The work with which an epoch begins: the state's own messages, timers and tasks are queued, and attempts of a life
//! that shut down cleanly are deleted. A state may have hundreds of thousands of each, so this is spread over several
//! inputs.

use super::queue::{Attempt, Job, Starting, Work};
use super::{Effect, Effects, Shard};
use crate::entry::{Cause, Write};
use crate::ids::{Seq, TaskId};
use crate::key::Key;
use crate::record::{AttemptRecord, RecordKey, TaskHead};
use std::collections::BTreeSet;

/// Maximum number of attempts that one entry deletes.
const FORGIVE_BATCH: usize = 256;

impl Shard {
    /// Begins with the state at the activation of an epoch: all of its work may have been running when the process
    /// crashed.
    pub(super) fn begin_starting(&mut self) {
        let shard = self.state.shard();
        let next = self.state.outboxes().get(shard).map_or(Seq(1), |outbox| outbox.next);
        let attempts = self.state.attempt_keys().last().filter(|_| !self.suspicion.is_on);
        self.jobs.starting = Some(Starting {
            attempts: attempts.cloned(),
            has_locals: true,
            locals_met: Seq(next.0 - 1),
            tasks: Some(TaskId(0)),
            written: BTreeSet::new(),
        });
        self.push_due_timers();
    }

    /// Continues, within the limit of one input.
    pub(super) fn go_on_starting(&mut self, out: &mut Vec<Effect>) {
        let until = self.work + self.settings.work_max;
        while let Some(starting) = &mut self.jobs.starting {
            if let Some(upto) = starting.attempts.take() {
                let next = self.forgive(upto, out);
                if let Some(starting) = &mut self.jobs.starting {
                    starting.attempts = next;
                }
            } else if starting.has_locals {
                let upto = starting.locals_met;
                self.queue_local(upto);
            } else if let Some(from) = starting.tasks.take() {
                self.begin_task(from);
            } else {
                self.jobs.starting = None;
                self.order_met_tasks();
            }
            if self.work >= until {
                return;
            }
        }
    }

    /// After a clean shutdown no cause has ended the process: logged attempts are deleted, except those of requests
    /// that were given up. The last ones are deleted first, so that a crash in between leaves no met message behind one
    /// that is not met. Returns the last one that is left for the next time.
    fn forgive(&mut self, upto: RecordKey, out: &mut Vec<Effect>) -> Option<RecordKey> {
        let batch = FORGIVE_BATCH.min(self.settings.work_max);
        let mut keys: Vec<RecordKey> =
            self.state.attempt_keys().range(..=upto).rev().take(batch + 1).cloned().collect();
        let next = if keys.len() > batch { keys.pop() } else { None };
        self.work += keys.len();
        let given_up = |key: &RecordKey| {
            let record: Option<AttemptRecord> = self.state.record(key);
            record.is_some_and(|record| record.charged(self.settings.attempts_max) == AttemptRecord::GIVEN_UP)
        };
        let writes: Vec<Write> =
            keys.into_iter().filter(|key| !given_up(key)).map(|key| Write { key, value: None }).collect();
        if !writes.is_empty() {
            self.append(Cause::Attempt, Key::none(), Effects::of(writes), out);
        }
        next
    }

    /// Queues the next message of the shard to itself; `met` is the last one that may have been running at a crash.
    fn queue_local(&mut self, met: Seq) {
        self.work += 1;
        let shard = self.state.shard();
        let seq = self.jobs.queued.get(shard).copied().unwrap_or_default().next();
        if self.state.outboxes().get(shard).is_some_and(|outbox| seq < outbox.next) {
            self.jobs.queued.insert(shard, seq);
            self.enqueue(Work::Local(seq), seq <= met);
        } else if let Some(starting) = &mut self.jobs.starting {
            starting.has_locals = false;
        }
    }

    /// Begins a step again that a start has found.
    fn begin_task(&mut self, from: TaskId) {
        self.work += 1;
        let Some(id) = self.state.tasks().range(from..).next().copied() else { return };
        let Some(starting) = &mut self.jobs.starting else { return };
        starting.tasks = id.0.checked_add(1).map(TaskId);
        if starting.written.contains(&id) {
            return;
        }
        let task: Option<TaskHead> = self.state.record(&RecordKey::task(id));
        match task.and_then(|task| task.retry) {
            Some(retry) if retry.at > self.clock.time() => {
                self.jobs.step_runs.later.insert((retry.at, id));
            }
            _ => self.resume(id),
        }
    }

    /// Queues a step that may have been running when the process ended, or is known to have been.
    pub(super) fn resume(&mut self, id: TaskId) {
        let work = Work::Resume(id);
        if self.suspicion.is_on && self.has_begun_work(&work) {
            self.suspicion.tasks.push_back(id);
        } else {
            self.jobs.push(Job { work, attempt: Attempt::Fresh });
        }
    }
}
