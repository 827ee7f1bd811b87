//! Suspicion after a life of the process that did not shut down cleanly: a waiting cause may have ended it.
//!
//! Before such a cause begins, an attempt at it is logged, and its own entry removes that. So a log has attempts at
//! exactly those causes that had begun when the process ended: these causes are *met*. The first time, causes begin in
//! groups, and their attempts do not count: if the process ends, they only become met. A met cause begins alone on its
//! node, in a turn that [`Trials`](crate::trials::Trials) gives, and that attempt counts. So only a cause that has
//! begun is charged, and only if no other suspect had begun beside it.

use super::queue::{Attempt, Job, Work};
use super::{Effect, Effects, Shard};
use crate::entry::{Cause, Write};
use crate::handler::Handler;
use crate::ids::{Index, StepRun, TaskId, Time};
use crate::key::Key;
use crate::record::{AttemptRecord, Pending, RecordKey, TaskHead, TaskRecord, encode_value};
use crate::trials::TrialKind;
use std::collections::VecDeque;

/// Maximum number of causes that one attempt entry names.
const ATTEMPT_BATCH: usize = 64;

/// The suspicions of a shard, and its turns to try causes.
pub(super) struct Suspicion {
    /// The last life may not have shut down cleanly: causes that it has met are tried alone.
    pub(super) is_on: bool,
    /// Causes of which the log has no attempts may have ended it, too.
    pub(super) is_wide: bool,
    /// The entry with which this life began.
    pub(super) began: Index,
    /// Time until which requests are suspected: their clients may repeat the one that ended the process. Met tasks wait
    /// until then, so that no suspected request begins beside them.
    pub(super) until: Time,
    /// Only met causes may begin, and only in this shard's turn.
    pub(super) held: bool,
    /// Met messages and timers, while all other work is held.
    pub(super) met: VecDeque<Job>,
    pub(super) handlers: Turn,
    /// Met tasks.
    pub(super) tasks: VecDeque<TaskId>,
    pub(super) steps: Turn,
    /// The task whose turn it is, and whether its attempt is logged.
    pub(super) task: Option<TaskId>,
    charged: bool,
}

impl Suspicion {
    /// Whether a trial is not over.
    pub(super) fn is_busy(&self) -> bool {
        self.held || self.handlers.tried.is_some() || self.steps.tried.is_some()
    }
}

/// A shard's turn for a kind of trial.
#[derive(Default)]
pub(super) struct Turn {
    wanted: bool,
    pub(super) is_ours: bool,
    /// The trial is over once this entry is committed.
    pub(super) tried: Option<Index>,
}

impl Suspicion {
    pub(super) fn new() -> Self {
        Self {
            is_on: true,
            is_wide: true,
            began: Index(0),
            until: Time(0),
            held: false,
            met: VecDeque::new(),
            handlers: Turn::default(),
            tasks: VecDeque::new(),
            steps: Turn::default(),
            task: None,
            charged: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.met.len() + self.tasks.len()
    }

    /// Returns the time at which met tasks may be tried, if there are any.
    pub(super) fn deadline(&self) -> Option<Time> {
        (!self.held && !self.tasks.is_empty() && !self.steps.wanted).then_some(self.until)
    }
}

impl Shard {
    /// Whether the last life of the process ended while a message or timer had begun: then all shards of the node are held
    /// until these are tried.
    #[must_use]
    pub fn has_met(&self) -> bool {
        self.suspicion.is_on && self.state.has_begun_handlers()
    }

    /// Holds all work except met causes, until [`Input::Open`](super::Input::Open). Must be called before the start.
    pub fn hold(&mut self) {
        self.suspicion.held = true;
    }

    /// Handles that another shard needs the turn of this one for a handler. The step continues, but is no longer alone.
    pub(super) fn yield_turn(&mut self, out: &mut Vec<Effect>) {
        if !self.suspicion.steps.is_ours || self.suspicion.steps.tried.is_some() {
            return;
        }
        if let Some(id) = self.suspicion.task.take() {
            let task = self.state.record::<TaskRecord>(&RecordKey::task(id));
            if let Some(task) = task.filter(|_| self.suspicion.charged) {
                let pending = Pending::Task { id, step: task.step };
                self.log_attempt(&pending, self.attempts(&pending).saturating_sub(1), out);
            }
        }
        self.suspicion.steps.tried = Some(self.state.position().index);
        self.end_turns(out);
    }

    /// Moves met tasks that were charged more than once to the end: kills from outside that always come so soon after
    /// the start that nothing completes are not the fault of the first task.
    pub(super) fn order_met_tasks(&mut self) {
        let mut tasks = Vec::from(std::mem::take(&mut self.suspicion.tasks));
        tasks.sort_by_cached_key(|id| {
            let task = self.state.record::<TaskHead>(&RecordKey::task(*id));
            task.map_or(0, |task| self.attempts(&Pending::Task { id: *id, step: task.step }).max(1))
        });
        self.suspicion.tasks = tasks.into();
    }

    pub(super) fn handle_turn(&mut self, kind: TrialKind) {
        match kind {
            TrialKind::Handlers => self.suspicion.handlers.is_ours = true,
            TrialKind::Steps => self.suspicion.steps.is_ours = true,
        }
    }

    /// Whether a cause has begun in a life that ended, or in this one.
    pub(super) fn has_begun(&self, pending: &Pending) -> bool {
        self.state.attempts() > 0
            && self.state.records().get(RecordKey::attempt(pending).as_bytes()).is_some()
    }

    /// Whether the cause of a work has begun in a life that ended, or in this one.
    pub(super) fn has_begun_work(&self, work: &Work) -> bool {
        self.pending_of(work).is_some_and(|pending| self.has_begun(&pending))
    }

    pub(super) fn want_turn(&mut self, kind: TrialKind, out: &mut Vec<Effect>) {
        let turn = match kind {
            TrialKind::Handlers => &mut self.suspicion.handlers,
            TrialKind::Steps => &mut self.suspicion.steps,
        };
        if !std::mem::replace(&mut turn.wanted, true) {
            out.push(Effect::WantsTurn(kind));
        }
    }

    /// Ends turns whose trial is committed.
    pub(super) fn end_turns(&mut self, out: &mut Vec<Effect>) {
        let commit = self.commit();
        let Suspicion { held, handlers, steps, task, .. } = &mut self.suspicion;
        if handlers.tried.is_some_and(|tried| tried <= commit) {
            handlers.tried = None;
            if !*held {
                *handlers = Turn::default();
                out.push(Effect::EndsTurn(TrialKind::Handlers));
            }
        }
        if steps.tried.is_some_and(|tried| tried <= commit) {
            (*steps, *task) = (Turn::default(), None);
            out.push(Effect::EndsTurn(TrialKind::Steps));
        }
    }

    /// Continues with a met message or timer; returns false if nothing can be done now.
    pub(super) fn try_met(&mut self, handler: &mut dyn Handler, out: &mut Vec<Effect>) -> bool {
        let turn = &self.suspicion.handlers;
        if !turn.is_ours || turn.tried.is_some() || self.blocked() {
            return false;
        }
        if !self.state.has_begun_handlers() {
            self.suspicion.handlers = Turn::default();
            out.push(Effect::EndsTurn(TrialKind::Handlers));
            return false;
        }
        let Some(job) = self.suspicion.met.front() else { return false };
        let Some(pending) = self.pending_of(&job.work) else {
            let dropped = self.suspicion.met.pop_front();
            if dropped.is_some_and(|job| matches!(job.work, Work::Timer(_))) {
                self.jobs.timers.queued -= 1;
            }
            return true;
        };
        if let Attempt::Logged(index) = job.attempt {
            if index > self.commit() {
                return false;
            }
            let job = self.suspicion.met.pop_front().expect("looked at above");
            self.run_work(job.work, handler, out);
        } else {
            let count = self.attempts(&pending);
            if count < self.settings.attempts_max {
                let index = self.log_attempt(&pending, count + 1, out);
                self.suspicion.met[0].attempt = Attempt::Logged(index);
                return false;
            }
            let job = self.suspicion.met.pop_front().expect("looked at above");
            self.give_up_poison(pending, job.work, out);
        }
        self.suspicion.handlers.tried = Some(self.state.position().index);
        self.end_turns(out);
        true
    }

    /// Begins a met task, if there is one and it may begin.
    pub(super) fn try_met_task(&mut self, out: &mut Vec<Effect>) {
        let Suspicion { held, tasks, steps, task, until, .. } = &self.suspicion;
        let is_starting = self.jobs.starting.is_some();
        if *held || is_starting || task.is_some() || steps.tried.is_some() || self.blocked() {
            return;
        }
        if !steps.is_ours {
            if !tasks.is_empty() && *until <= self.clock.steady() {
                self.want_turn(TrialKind::Steps, out);
            }
            return;
        }
        while let Some(id) = self.suspicion.tasks.pop_front() {
            let Some(record) = self.state.record::<TaskRecord>(&RecordKey::task(id)) else { continue };
            let pending = Pending::Task { id, step: record.step };
            if self.attempts(&pending) >= self.settings.attempts_max {
                self.give_up_poison(pending, Work::Resume(id), out);
                break;
            }
            (self.suspicion.task, self.suspicion.charged) = (Some(id), false);
            let run = self.jobs.step_runs.begin(id);
            out.push(Effect::RunStep { id, run, task: record, asks: true, alone: true });
            return;
        }
        self.suspicion.steps.tried = Some(self.state.position().index);
        self.end_turns(out);
    }

    /// Handles that a thread is about to run a step that asked first: an attempt is logged before it runs.
    pub(super) fn begin_step(&mut self, id: TaskId, run: StepRun, out: &mut Vec<Effect>) {
        let task = self.state.record::<TaskRecord>(&RecordKey::task(id));
        let Some(task) = task.filter(|_| self.jobs.step_runs.is_outstanding(id, run)) else {
            out.push(Effect::StepAllowed { id, run, allowed: false });
            return;
        };
        if !self.jobs.step_runs.note_begun(id) {
            return;
        }
        let pending = Pending::Task { id, step: task.step };
        // A step that failed and runs again in the same turn is not charged twice.
        let alone = self.suspicion.task == Some(id) && !std::mem::replace(&mut self.suspicion.charged, true);
        let index = self.log_attempt(&pending, self.attempts(&pending) + u32::from(alone), out);
        self.release.hold_step(index, id, run);
    }

    /// Notes that the step of a task ended, or is no longer needed.
    pub(super) fn note_tried_task(&mut self, id: TaskId) {
        if self.suspicion.task == Some(id) {
            self.suspicion.steps.tried = Some(self.state.position().index);
        }
    }

    pub(super) fn log_attempt(&mut self, pending: &Pending, count: u32, out: &mut Vec<Effect>) -> Index {
        let writes = vec![self.attempt(pending, count)];
        self.append(Cause::Attempt, Key::none(), Effects::of(writes), out)
    }
    /// Whether a trial is running, beside which nothing may begin.
    pub(super) fn is_trying(&self) -> bool {
        self.suspicion.held || self.suspicion.handlers.tried.is_some()
    }

    /// Ends a turn that has come too late: its cause is handled, or forgotten.
    pub(super) fn leave_turn(&mut self, out: &mut Vec<Effect>) {
        let turn = &self.suspicion.handlers;
        if !turn.is_ours || turn.tried.is_some() {
            return;
        }
        let needs = |job: &Job| matches!(job.attempt, Attempt::Alone(_)) || self.is_met(job);
        if !self.jobs.queue.front().is_some_and(needs) {
            self.suspicion.handlers = Turn::default();
            out.push(Effect::EndsTurn(TrialKind::Handlers));
        }
    }

    /// Whether a job that waits for its attempt has to begin alone.
    pub(super) fn is_met(&self, job: &Job) -> bool {
        job.attempt == Attempt::ToLog && self.has_begun_work(&job.work)
    }

    /// Logs that the first jobs are about to begin: either a group of causes that are not met, which counts for none of
    /// them, or one met cause, for which it counts.
    pub(super) fn log_attempts(&mut self, out: &mut Vec<Effect>) {
        let mut writes = Vec::new();
        let index = self.state.position().index.next();
        for at in 0..self.jobs.queue.len().min(ATTEMPT_BATCH) {
            let job = &self.jobs.queue[at];
            if job.attempt != Attempt::ToLog {
                break;
            }
            let Some(pending) = self.pending_of(&job.work) else {
                self.jobs.queue[at].attempt = Attempt::Fresh;
                break;
            };
            if !self.has_begun(&pending) {
                writes.push(self.attempt(&pending, 0));
                self.jobs.queue[at].attempt = Attempt::Logged(index);
                continue;
            }
            if at > 0 {
                break;
            }
            let count = self.attempts(&pending);
            if count == AttemptRecord::GIVEN_UP {
                // A request with the same content was given up meanwhile: this one is refused without an attempt.
                self.jobs.queue[at].attempt = Attempt::Fresh;
                break;
            }
            if count >= self.settings.attempts_max {
                let job = self.jobs.pop().expect("it is the first");
                self.give_up_poison(pending, job.work, out);
                self.suspicion.handlers.tried = Some(self.state.position().index);
                self.end_turns(out);
                return;
            }
            writes.push(self.attempt(&pending, count + 1));
            self.jobs.queue[at].attempt = Attempt::Alone(index);
            break;
        }
        if !writes.is_empty() {
            self.append(Cause::Attempt, Key::none(), Effects::of(writes), out);
        }
    }

    /// Returns the number of attempts at a cause according to the log.
    pub(super) fn attempts(&self, pending: &Pending) -> u32 {
        let key = RecordKey::attempt(pending);
        self.state
            .record::<AttemptRecord>(&key)
            .map_or(0, |record| record.charged(self.settings.attempts_max))
    }

    pub(super) fn attempt(&self, pending: &Pending, count: u32) -> Write {
        // A client may never repeat its request.
        let expires = matches!(pending, Pending::Request { .. } | Pending::Call { .. })
            .then(|| self.clock.served().plus(self.settings.idempotency_ttl));
        let value = encode_value(&AttemptRecord { count, expires, alone: Some(count) });
        Write { key: RecordKey::attempt(pending), value: Some(value) }
    }
}
