//! The queue of work that waits in the system, in the order of its arrival; and, of the timers, steps and requests, those that
//! are in it.
//!
//! Knows no handler and appends nothing: `jobs.rs` handles what is in it, `starting.rs` fills it at the start of an epoch.

use super::Effect;
use super::StepOutcome;
use crate::calls::Request;
use crate::channel::Message;
use crate::entry::Entry;
use crate::ids::{Index, Seq, ShardId, StepNumber, StepRun, TaskId, Time, TimerId};
use crate::record::{Kind, Pending, RecordKey, TaskHead, TaskRecord, TimerRecord, decode_value};
use crate::shard_map::ShardMap;
use crate::state::State;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

/// Maximum number of suspected requests that wait; further ones are refused as overload.
const SUSPECTS_MAX: usize = 4096;
/// Maximum number of requests that are remembered as survived by this life of the process.
const SURVIVED_MAX: usize = 4096;

#[derive(Default)]
pub(super) struct Jobs {
    pub(super) queue: VecDeque<Job>,
    /// By sender, the last message that is received or in the queue.
    pub(super) queued: ShardMap<Seq>,
    pub(super) timers: Due,
    pub(super) failures: BTreeMap<Pending, u32>,
    pub(super) step_runs: StepRuns,
    /// Requests that this life of the process has survived, so that a retry is no further attempt.
    survived: BTreeSet<Pending>,
    /// Requests in the queue, and the bytes of their payloads.
    suspects: BTreeSet<Pending>,
    suspected: usize,
    suspect_bytes: usize,
    /// Work with which the epoch began and that is not in the queue yet.
    pub(super) starting: Option<Starting>,
    /// Bytes of the outcomes of steps in the queue.
    pub(super) outcome_bytes: usize,
}

/// Progress of a shard through the work with which its epoch began.
pub(super) struct Starting {
    /// The attempts up to this one are still to be deleted.
    pub(super) attempts: Option<RecordKey>,
    /// Whether messages of the shard to itself, in its outbox after the last queued one, are still to be queued.
    pub(super) has_locals: bool,
    /// The last message that may have been running when the last life of the process ended.
    pub(super) locals_met: Seq,
    /// The tasks from this one on are still to be queued.
    pub(super) tasks: Option<TaskId>,
    /// Tasks that entries of this epoch have written: their steps need not be begun again.
    pub(super) written: BTreeSet<TaskId>,
}

/// The timers in the queue: all up to one, except those that were set later for an earlier time.
#[derive(Default)]
pub(super) struct Due {
    upto: (Time, TimerId),
    late: BTreeSet<(Time, TimerId)>,
    /// Number of timers in the queue.
    pub(super) queued: usize,
}

impl Due {
    /// Returns the first timer that is not in the queue.
    pub(super) fn next(&self, state: &State) -> Option<(Time, TimerId)> {
        let beyond = state.timers().range((Bound::Excluded(self.upto), Bound::Unbounded)).next();
        self.late.first().into_iter().chain(beyond).min().copied()
    }

    /// Takes the first timer that is due at `now` and not in the queue.
    pub(super) fn take(&mut self, state: &State, now: Time) -> Option<TimerId> {
        let timer = self.next(state).filter(|(at, _)| *at <= now)?;
        self.late.remove(&timer);
        self.upto = self.upto.max(timer);
        self.queued += 1;
        Some(timer.1)
    }
}

/// Runs of steps whose outcome is pending. Each run has a unique number in a life of the process, so that an outcome
/// that comes twice, or after its task was given up and retried, is recognised.
#[derive(Default)]
pub(super) struct StepRuns {
    last: StepRun,
    /// The number of the run, and whether it has begun after it asked.
    outstanding: BTreeMap<TaskId, (StepRun, bool)>,
    /// Steps that failed and wait for their retry.
    pub(super) later: BTreeSet<(Time, TaskId)>,
}

impl StepRuns {
    pub(super) fn last(&self) -> StepRun {
        self.last
    }

    pub(super) fn set_last(&mut self, last: StepRun) {
        self.last = last;
    }

    pub(super) fn begin(&mut self, id: TaskId) -> StepRun {
        self.last = StepRun(self.last.0.wrapping_add(1));
        self.outstanding.insert(id, (self.last, false));
        self.last
    }

    /// Runs a task's next step, now or, after a failure, at its retry time; `asks` if the step may have been running
    /// when the process ended.
    pub(super) fn set_out(
        &mut self,
        id: TaskId,
        task: TaskRecord,
        asks: bool,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        match &task.retry {
            Some(retry) if retry.at > now => drop(self.later.insert((retry.at, id))),
            _ => out.push(Effect::RunStep { id, run: self.begin(id), task, asks, alone: false }),
        }
    }

    pub(super) fn is_outstanding_task(&self, id: TaskId) -> bool {
        self.outstanding.contains_key(&id)
    }

    pub(super) fn is_outstanding(&self, id: TaskId, run: StepRun) -> bool {
        self.outstanding.get(&id).is_some_and(|(number, _)| *number == run)
    }

    /// Notes that an outstanding run begins; returns false if that is known.
    pub(super) fn note_begun(&mut self, id: TaskId) -> bool {
        self.outstanding.get_mut(&id).is_some_and(|(_, begun)| !std::mem::replace(begun, true))
    }

    /// Ends a run; returns whether its outcome was pending.
    pub(super) fn end(&mut self, id: TaskId, run: StepRun) -> bool {
        let is_outstanding = self.is_outstanding(id, run);
        if is_outstanding {
            self.outstanding.remove(&id);
        }
        is_outstanding
    }
}

pub(super) struct Job {
    pub(super) work: Work,
    pub(super) attempt: Attempt,
}

/// State of the attempt at a job that may have been running when the process crashed, and must be logged first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    Fresh,
    ToLog,
    /// It may be handled once this entry is committed.
    Logged(Index),
    /// Likewise, alone: the shard has its turn for it.
    Alone(Index),
}

pub(super) enum Work {
    Message {
        from: ShardId,
        message: Message,
    },
    /// The message at the front of the channel from the shard to itself.
    Local(Seq),
    Timer(TimerId),
    Step {
        id: TaskId,
        step: StepNumber,
        run: StepRun,
        outcome: StepOutcome,
    },
    /// Begin a task's step again after a start.
    Resume(TaskId),
    /// A thread is about to run a step that may have been running when the process ended.
    Begin(TaskId, StepRun),
    /// A request that may have ended the process.
    Request(Box<Request>, Pending),
}

impl Jobs {
    pub(super) fn new(state: &State) -> Self {
        Self { queued: state.received().clone(), ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Queues a shard's messages to itself, which need no acknowledgement: one log holds both ends.
    pub(super) fn note_local(&mut self, entry: &Entry, shard: ShardId) {
        if self.starting.as_ref().is_some_and(|starting| starting.has_locals) {
            // Older ones are not in the queue yet; these follow them from the outbox.
            return;
        }
        for _ in entry.sends.iter().filter(|send| send.to == shard) {
            let seq = self.queued.get_or_default(shard);
            *seq = seq.next();
            self.queue.push_back(Job { work: Work::Local(*seq), attempt: Attempt::Fresh });
        }
    }

    /// Updates the queue for the timers of an entry. A timer may be set for a time that has passed, before others in
    /// the queue.
    pub(super) fn note_timers(&mut self, entry: &Entry, before: &State) {
        for write in entry.writes.iter().filter(|write| write.key.kind() == Kind::Timer) {
            let id = TimerId(write.key.number().expect("a timer's key is its id"));
            match &write.value {
                Some(value) => {
                    let record: TimerRecord = decode_value(value).expect("this shard wrote it");
                    if (record.at, id) <= self.timers.upto {
                        self.timers.late.insert((record.at, id));
                    }
                }
                None if self.timers.late.is_empty() => {}
                None => {
                    if let Some(record) = before.record::<TimerRecord>(&write.key) {
                        self.timers.late.remove(&(record.at, id));
                    }
                }
            }
        }
    }

    /// Whether one more request may wait: it must not wait already, and must be within the limits.
    pub(super) fn takes_suspect(&self, suspect: &Pending, bytes_max: usize) -> bool {
        // Requests without an identity may have the same content, and are nevertheless distinct.
        let waits = matches!(suspect, Pending::Request { .. }) && self.suspects.contains(suspect);
        self.suspected < SUSPECTS_MAX && self.suspect_bytes <= bytes_max && !waits
    }

    pub(super) fn push_suspect(&mut self, request: Request, suspect: Pending) {
        self.suspects.insert(suspect);
        self.suspected += 1;
        self.suspect_bytes += request.payload.len();
        self.queue
            .push_back(Job { work: Work::Request(Box::new(request), suspect), attempt: Attempt::ToLog });
    }

    pub(super) fn pop(&mut self) -> Option<Job> {
        let job = self.queue.pop_front()?;
        if let Work::Step { outcome, .. } = &job.work {
            self.outcome_bytes -= outcome.bytes();
        }
        if let Work::Request(request, suspect) = &job.work {
            self.suspects.remove(suspect);
            self.suspected -= 1;
            self.suspect_bytes -= request.payload.len();
        }
        Some(job)
    }

    pub(super) fn survived(&self, suspect: &Pending) -> bool {
        self.survived.contains(suspect)
    }

    pub(super) fn note_survived(&mut self, suspect: Pending) {
        // A forgotten one is merely suspected again.
        if self.survived.len() >= SURVIVED_MAX {
            self.survived.pop_first();
        }
        self.survived.insert(suspect);
    }

    pub(super) fn push(&mut self, job: Job) {
        self.queue.push_back(job);
    }

    pub(super) fn push_begin(&mut self, id: TaskId, run: StepRun) {
        self.queue.push_back(Job { work: Work::Begin(id, run), attempt: Attempt::Fresh });
    }

    pub(super) fn push_step(&mut self, id: TaskId, step: StepNumber, run: StepRun, outcome: StepOutcome) {
        self.outcome_bytes += outcome.bytes();
        self.queue.push_back(Job { work: Work::Step { id, step, run, outcome }, attempt: Attempt::Fresh });
    }

    /// Updates the runs for the tasks that an entry writes or ends: drops the failure count and the pending run of a
    /// deleted task.
    pub(super) fn note_tasks(&mut self, entry: &Entry, before: &State) {
        let is_idle = self.failures.is_empty()
            && self.step_runs.outstanding.is_empty()
            && self.step_runs.later.is_empty();
        if is_idle && self.starting.is_none() {
            return;
        }
        for write in entry.writes.iter().filter(|write| write.key.kind() == Kind::Task) {
            let Some(id) = write.key.number().map(TaskId) else { continue };
            if write.value.is_some() {
                if let Some(starting) = &mut self.starting {
                    starting.written.insert(id);
                }
                continue;
            }
            self.step_runs.outstanding.remove(&id);
            if let Some(retry) = before.record::<TaskHead>(&write.key).and_then(|task| task.retry) {
                self.step_runs.later.remove(&(retry.at, id));
            }
            let steps =
                Pending::Task { id, step: StepNumber(0) }..=Pending::Task { id, step: StepNumber(u64::MAX) };
            while let Some((failed, _)) = self.failures.range(steps.clone()).next() {
                let failed = *failed;
                self.failures.remove(&failed);
            }
        }
    }

    pub(super) fn check(&self, state: &State) -> Result<(), String> {
        let gone =
            |pending: &&Pending| matches!(pending, Pending::Task { id, .. } if !state.tasks().contains(id));
        match self.failures.keys().find(gone) {
            Some(pending) => Err(format!("the failures of {pending:?} are counted, which is gone")),
            None => Ok(()),
        }
    }

    pub(super) fn next_retry(&self) -> Option<Time> {
        self.step_runs.later.first().map(|(at, _)| *at)
    }
}
