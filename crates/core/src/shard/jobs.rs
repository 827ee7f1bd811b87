//! Work that waits in the system: messages, timers and steps of tasks, in the order of their arrival.

use super::dead_letters::{DeadLetterDraft, cut};
use super::starting::Starting;
use super::suspicion::Turn;
use super::{Effect, Effects, Failure, Messages, Refusal, Request, Run, Shard, StepOutcome};
use crate::blob::Blob;
use crate::calls::Caller;
use crate::channel::Message;
use crate::entry::{Cause, Entry, Send, Write};
use crate::handler::Handler;
use crate::ids::{Index, Seq, ShardId, TaskId, Time, TimerId};
use crate::key::Key;
use crate::record::{
    AttemptRecord, Kind, Pending, RecordKey, Retry, StepRetry, TaskHead, TaskRecord, TimerRecord,
    decode_value, encode_value,
};
use crate::reply::Reply;
use crate::shard_map::ShardMap;
use crate::shrink;
use crate::state::State;
use crate::trials::TrialKind;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

/// Maximum number of causes that one attempt entry names.
const ATTEMPT_BATCH: usize = 64;
/// Maximum number of suspected requests that wait; further ones are refused as overload.
const SUSPECTS_MAX: usize = 4096;
/// Maximum number of requests that are remembered as survived by this life of the process.
const SURVIVED_MAX: usize = 4096;

#[derive(Default)]
pub(super) struct Jobs {
    queue: VecDeque<Job>,
    /// By sender, the last message that is received or in the queue.
    pub(super) queued: ShardMap<Seq>,
    pub(super) timers: Due,
    pub(super) failures: BTreeMap<Pending, u32>,
    pub(super) runs: Runs,
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
    fn next(&self, state: &State) -> Option<(Time, TimerId)> {
        let beyond = state.timers().range((Bound::Excluded(self.upto), Bound::Unbounded)).next();
        self.late.first().into_iter().chain(beyond).min().copied()
    }

    /// Takes the first timer that is due at `now` and not in the queue.
    fn take(&mut self, state: &State, now: Time) -> Option<TimerId> {
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
pub(super) struct Runs {
    last: u32,
    /// The number of the run, and whether it has begun after it asked.
    outstanding: BTreeMap<TaskId, (u32, bool)>,
    /// Steps that failed and wait for their retry.
    pub(super) later: BTreeSet<(Time, TaskId)>,
}

impl Runs {
    pub(super) fn begin(&mut self, id: TaskId) -> u32 {
        self.last = self.last.wrapping_add(1);
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
            _ => out.push(Effect::RunTask { id, run: self.begin(id), task, asks, alone: false }),
        }
    }

    pub(super) fn is_outstanding_task(&self, id: TaskId) -> bool {
        self.outstanding.contains_key(&id)
    }

    pub(super) fn is_outstanding(&self, id: TaskId, run: u32) -> bool {
        self.outstanding.get(&id).is_some_and(|(number, _)| *number == run)
    }

    /// Notes that an outstanding run begins; returns false if that is known.
    pub(super) fn note_begun(&mut self, id: TaskId) -> bool {
        self.outstanding.get_mut(&id).is_some_and(|(_, begun)| !std::mem::replace(begun, true))
    }

    /// Ends a run; returns whether its outcome was pending.
    fn end(&mut self, id: TaskId, run: u32) -> bool {
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
        step: u64,
        run: u32,
        outcome: StepOutcome,
    },
    /// Begin a task's step again after a start.
    Resume(TaskId),
    /// A thread is about to run a step that may have been running when the process ended.
    Begin(TaskId, u32),
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

    fn pop(&mut self) -> Option<Job> {
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

    fn note_survived(&mut self, suspect: Pending) {
        // A forgotten one is merely suspected again.
        if self.survived.len() >= SURVIVED_MAX {
            self.survived.pop_first();
        }
        self.survived.insert(suspect);
    }

    pub(super) fn push(&mut self, job: Job) {
        self.queue.push_back(job);
    }

    pub(super) fn push_begin(&mut self, id: TaskId, run: u32) {
        self.queue.push_back(Job { work: Work::Begin(id, run), attempt: Attempt::Fresh });
    }

    pub(super) fn push_step(&mut self, id: TaskId, step: u64, run: u32, outcome: StepOutcome) {
        self.outcome_bytes += outcome.bytes();
        self.queue.push_back(Job { work: Work::Step { id, step, run, outcome }, attempt: Attempt::Fresh });
    }

    /// Updates the runs for the tasks that an entry writes or ends: drops the failure count and the pending run of a
    /// deleted task.
    pub(super) fn note_tasks(&mut self, entry: &Entry, before: &State) {
        let is_idle =
            self.failures.is_empty() && self.runs.outstanding.is_empty() && self.runs.later.is_empty();
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
            self.runs.outstanding.remove(&id);
            if let Some(retry) = before.record::<TaskHead>(&write.key).and_then(|task| task.retry) {
                self.runs.later.remove(&(retry.at, id));
            }
            let steps = Pending::Task { id, step: 0 }..=Pending::Task { id, step: u64::MAX };
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
        self.runs.later.first().map(|(at, _)| *at)
    }
}

impl Shard {
    pub(super) fn handle_deliver(
        &mut self,
        from: ShardId,
        messages: Messages,
        again: bool,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) {
        for message in messages {
            let queued = self.jobs.queued.get_or_default(from);
            if message.seq == queued.next() {
                *queued = message.seq;
                let is_first = self.jobs.queue.is_empty() && self.jobs.starting.is_none();
                let at_once = !again && is_first && self.is_active();
                if at_once && !self.blocked() && !self.is_trying() && self.goes_on(handler) {
                    self.run_message(from, &message, handler, out);
                } else {
                    self.work += 1;
                    self.enqueue(Work::Message { from, message }, again);
                }
            } else if message.seq <= *queued {
                self.release.ack_again(from, self.clock.steady(), &self.settings);
            }
            // A message after a gap is dropped: its sender repeats unacknowledged messages.
        }
        self.run_jobs(handler, out);
    }

    /// Runs the steps whose retry time has come.
    pub(super) fn run_due_steps(&mut self) {
        for _ in 0..self.settings.work_max {
            let first = self.jobs.runs.later.first().copied();
            let Some((at, id)) = first.filter(|(at, _)| *at <= self.clock.time()) else { return };
            self.jobs.runs.later.pop_first();
            self.work += 1;
            // The task may have been cancelled, and its id be another task's by now.
            let task = self.state.record::<TaskHead>(&RecordKey::task(id));
            if task.and_then(|task| task.retry).is_some_and(|retry| retry.at == at) {
                self.resume(id);
            }
        }
    }

    /// Queues timers that are due. Beyond the work limit of one input they stay where they are.
    pub(super) fn push_due_timers(&mut self) {
        let now = self.clock.time();
        let mut room = self.settings.work_max;
        while room > 0
            && self.timers_have_room()
            && let Some(id) = self.jobs.timers.take(&self.state, now)
        {
            room -= 1;
            // However late it is due: the shard's time may have begun before the crash during which it ran.
            self.enqueue(Work::Timer(id), id.place() < self.suspicion.began);
        }
        self.work += (self.settings.work_max - room) / Self::LOOKS_AT_ONCE;
    }

    /// Returns the time at which the next timer is to be queued.
    pub(super) fn next_timer(&self) -> Option<Time> {
        self.timers_have_room().then(|| self.jobs.timers.next(&self.state)).flatten().map(|(at, _)| at)
    }

    /// Whether timers may be queued. While all work is held none leaves the queue, and a met one may be behind them.
    fn timers_have_room(&self) -> bool {
        self.suspicion.held || self.jobs.timers.queued < self.settings.work_max
    }

    /// Queues a message or a timer; `again` if it may have been running when the last life of the process ended.
    pub(super) fn enqueue(&mut self, work: Work, again: bool) {
        let held = self.suspicion.held;
        if held && self.pending_of(&work).is_some_and(|pending| self.has_begun(&pending)) {
            self.suspicion.met.push_back(Job { work, attempt: Attempt::ToLog });
            return;
        }
        let attempt = if again && self.suspicion.is_on { Attempt::ToLog } else { Attempt::Fresh };
        self.jobs.queue.push_back(Job { work, attempt });
    }

    /// Whether a trial is running, beside which nothing may begin.
    fn is_trying(&self) -> bool {
        self.suspicion.held || self.suspicion.handlers.tried.is_some()
    }

    /// Whether this input may run the handler once more.
    fn goes_on(&self, handler: &dyn Handler) -> bool {
        self.work < self.settings.work_max && !handler.is_spent()
    }

    pub(super) fn job_is_ready(&self) -> bool {
        !self.blocked()
            && !self.is_trying()
            && self.jobs.queue.front().is_some_and(|job| match job.attempt {
                Attempt::Logged(index) | Attempt::Alone(index) => index <= self.commit(),
                Attempt::ToLog => self.suspicion.handlers.is_ours || !self.is_met(job),
                Attempt::Fresh => true,
            })
    }

    /// Ends a turn that has come too late: its cause is handled, or forgotten.
    fn leave_turn(&mut self, out: &mut Vec<Effect>) {
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
    fn is_met(&self, job: &Job) -> bool {
        job.attempt == Attempt::ToLog
            && self.pending_of(&job.work).is_some_and(|pending| self.has_begun(&pending))
    }

    /// Handles waiting work in order, as far as it may be handled now.
    pub(super) fn run_jobs(&mut self, handler: &mut dyn Handler, out: &mut Vec<Effect>) {
        if !self.is_active() {
            return;
        }
        self.go_on_starting(out);
        self.end_turns(out);
        self.try_met_task(out);
        self.is_cut = false;
        loop {
            if !self.goes_on(handler) {
                self.is_cut = true;
                return;
            }
            self.work += 1;
            if self.suspicion.held {
                if !self.try_met(handler, out) {
                    return;
                }
                continue;
            }
            self.leave_turn(out);
            if !self.job_is_ready() {
                if self.jobs.queue.front().is_some_and(|job| self.is_met(job)) {
                    self.want_turn(TrialKind::Handlers, out);
                }
                return;
            }
            if self.jobs.queue[0].attempt == Attempt::ToLog {
                self.log_attempts(out);
                continue;
            }
            let job = self.jobs.pop().expect("ready means that there is one");
            shrink::release_spare(&mut self.jobs.queue);
            self.run_work(job.work, handler, out);
            if let Attempt::Alone(_) = job.attempt {
                self.suspicion.handlers.tried = Some(self.state.position().index);
                self.end_turns(out);
            }
        }
    }

    pub(super) fn run_work(&mut self, work: Work, handler: &mut dyn Handler, out: &mut Vec<Effect>) {
        match work {
            Work::Message { from, message } => self.run_message(from, &message, handler, out),
            Work::Local(seq) => self.run_local(seq, handler, out),
            Work::Timer(id) => self.run_timer(id, handler, out),
            Work::Step { id, step, run, outcome } => {
                self.run_step((id, step, run), outcome, handler, out);
                // A step that failed and runs again keeps the turn.
                if !self.jobs.runs.is_outstanding_task(id) {
                    self.note_tried_task(id);
                    self.end_turns(out);
                }
            }
            Work::Request(request, suspect) => {
                let has_run = self.run_request(&request, handler, out);
                if has_run {
                    self.jobs.note_survived(suspect);
                }
                let count = self.attempts(&suspect);
                if !self.has_begun(&suspect) || count == AttemptRecord::GIVEN_UP {
                    return;
                }
                if has_run || count == 0 {
                    // It was refused, so no entry of its own removes the attempt: it has ended nothing.
                    let writes = vec![Write { key: RecordKey::attempt(&suspect), value: None }];
                    self.append(Cause::Attempt, Key::none(), Effects::of(writes), out);
                } else {
                    // The handler was not reached: this attempt does not count.
                    self.log_attempt(&suspect, count - 1, out);
                }
            }
            Work::Resume(id) => {
                if let Some(task) = self.state.record::<TaskRecord>(&RecordKey::task(id)) {
                    self.work += task.state.len() / Self::WORK_BYTES;
                    self.jobs.runs.set_out(id, task, self.suspicion.is_on, self.clock.time(), out);
                }
            }
            Work::Begin(id, run) => self.begin_step(id, run, out),
        }
    }

    /// Logs that the first jobs are about to begin: either a group of causes that are not met, which counts for none of
    /// them, or one met cause, for which it counts.
    fn log_attempts(&mut self, out: &mut Vec<Effect>) {
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

    /// Gives up a cause that has ended the process the maximum number of times.
    pub(super) fn give_up_poison(&mut self, pending: Pending, work: Work, out: &mut Vec<Effect>) {
        if let Work::Timer(_) = work {
            self.jobs.timers.queued -= 1;
        }
        let attempts = self.settings.attempts_max;
        let reason = format!("the process ended {attempts} times while it was handled alone");
        // Giving a message up is a reception too: the marker comes first.
        match &work {
            Work::Message { message, .. } => self.mark(message.colour, out),
            Work::Request(request, _) => self.mark(request.colour, out),
            _ => {}
        }
        if let Some(draft) = self.draft_of(&work) {
            self.give_up(pending, reason, draft, out);
        }
        if let Work::Request(request, _) = work {
            self.answer(request.token, Err(Refusal::Poisoned { attempts }), out);
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
            .then(|| self.clock.served().plus_millis(self.settings.idempotency_ttl));
        let value = encode_value(&AttemptRecord { count, expires, alone: Some(count) });
        Write { key: RecordKey::attempt(pending), value: Some(value) }
    }

    pub(super) fn pending_of(&self, work: &Work) -> Option<Pending> {
        match work {
            Work::Message { from, message } => Some(Pending::Message { from: *from, seq: message.seq }),
            Work::Local(seq) => Some(Pending::Message { from: self.state.shard(), seq: *seq }),
            Work::Request(_, suspect) => Some(*suspect),
            Work::Begin(..) => None,
            // It may have been cancelled while it waited: then there is nothing to try. One that sends a message runs no user
            // code that could have ended the process.
            Work::Timer(id) => {
                let timer: TimerRecord = self.state.record(&RecordKey::timer(*id))?;
                timer.send.is_none().then_some(Pending::Timer { id: *id })
            }
            Work::Step { id, step, .. } => Some(Pending::Task { id: *id, step: *step }),
            Work::Resume(id) => {
                let task: TaskHead = self.state.record(&RecordKey::task(*id))?;
                Some(Pending::Task { id: *id, step: task.step })
            }
        }
    }

    /// Returns the dead letter's fields for a waiting job; `None` if the job is gone.
    fn draft_of(&self, work: &Work) -> Option<DeadLetterDraft> {
        Some(match work {
            Work::Message { from, message } => self.draft_of_message(*from, message),
            Work::Local(seq) => self.draft_of_message(self.state.shard(), &self.local_message(*seq)?),
            Work::Request(request, _) => DeadLetterDraft {
                process: request.process.clone(),
                sender: Key::none(),
                payload: request.payload.clone(),
                retry: Retry::Never,
            },
            Work::Timer(id) => {
                let TimerRecord { process, payload, .. } = self.state.record(&RecordKey::timer(*id))?;
                DeadLetterDraft { sender: process.clone(), process, payload, retry: Retry::Timer }
            }
            Work::Step { id, .. } | Work::Resume(id) | Work::Begin(id, _) => {
                DeadLetterDraft::step(self.state.record(&RecordKey::task(*id))?)
            }
        })
    }

    fn draft_of_message(&self, from: ShardId, message: &Message) -> DeadLetterDraft {
        let Message { process, sender, payload, .. } = message.clone();
        let service = self.topology.service_of(from);
        let retry = service.map_or(Retry::Never, |service| Retry::Message { service });
        DeadLetterDraft { process, sender, payload, retry }
    }

    fn local_message(&self, seq: Seq) -> Option<Message> {
        let outbox = self.state.outboxes().get(self.state.shard())?;
        outbox.messages.front().filter(|first| first.seq == seq).cloned()
    }

    fn run_local(&mut self, seq: Seq, handler: &mut dyn Handler, out: &mut Vec<Effect>) {
        if let Some(message) = self.local_message(seq) {
            self.run_message(self.state.shard(), &message, handler, out);
        }
    }

    fn run_message(
        &mut self,
        from: ShardId,
        message: &Message,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) {
        // The marker comes first, so that no cut has a receive without its send.
        self.mark(message.colour, out);
        let Some(service) = self.topology.service_of(from) else { return };
        let pending = Pending::Message { from, seq: message.seq };
        let caller = Caller::Process { service, key: &message.sender };
        let Message { process, payload, sender, .. } = message;
        let cause = Cause::Message { from, seq: message.seq };
        let run = Run { cause, process, caller, payload, kept: Vec::new() };
        self.run(pending, &run, sender, Retry::Message { service }, handler, out);
    }

    fn run_timer(&mut self, id: TimerId, handler: &mut dyn Handler, out: &mut Vec<Effect>) {
        self.jobs.timers.queued -= 1;
        // It may have been cancelled while it waited.
        let Some(timer) = self.state.record::<TimerRecord>(&RecordKey::timer(id)) else { return };
        if timer.send.is_some() {
            return self.send_delayed(id, timer, out);
        }
        let TimerRecord { process, payload, .. } = &timer;
        let caller = Caller::Timer { id };
        let run = Run { cause: Cause::Timer { id }, process, caller, payload, kept: Vec::new() };
        self.run(Pending::Timer { id }, &run, process, Retry::Timer, handler, out);
    }

    /// Sends a message with a delay whose time has come: it leaves with the entry of its timer.
    fn send_delayed(&mut self, id: TimerId, timer: TimerRecord, out: &mut Vec<Effect>) {
        let TimerRecord { process: sender, payload, send, .. } = timer;
        let Some(receiver) = send else { return };
        let max = self.settings.entry_bytes_max;
        if payload.len() > max {
            let reason = format!("cannot send the message to {} any more", receiver.process);
            let draft = DeadLetterDraft { process: sender.clone(), sender, payload, retry: Retry::Never };
            return self.give_up(Pending::Timer { id }, reason, draft, out);
        }
        let to = self.topology.shard_of(receiver.service, &receiver.process);
        let sends = vec![Send { to, process: receiver.process, payload }];
        self.append(Cause::Timer { id }, sender, Effects { sends, ..Effects::default() }, out);
    }

    fn run_step(
        &mut self,
        (id, step, run): (TaskId, u64, u32),
        outcome: StepOutcome,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) {
        let key = RecordKey::task(id);
        let Some(task) = self.state.record::<TaskRecord>(&key).filter(|task| task.step == step) else {
            return;
        };
        // The outcome of another run than the outstanding one came twice, or late.
        if !self.jobs.runs.end(id, run) {
            return;
        }
        let pending = Pending::Task { id, step };
        match outcome {
            StepOutcome::Continue { state: made, .. } | StepOutcome::Done(made)
                if made.len() > self.settings.entry_bytes_max =>
            {
                let (len, max) = (made.len(), self.settings.entry_bytes_max);
                let reason = format!(
                    "the step made {len} bytes, over the limit of {max} bytes of one log entry; make the task's state smaller"
                );
                self.give_up(pending, reason, DeadLetterDraft::step(task), out);
            }
            StepOutcome::Continue { state, progress } => {
                let process = task.process.clone();
                let next = TaskRecord { step: step + 1, state, progress, retry: None, ..task };
                let writes = vec![Write { key, value: Some(encode_value(&next)) }];
                self.jobs.failures.remove(&pending);
                self.append(Cause::Task { id, step }, process, Effects::of(writes), out);
            }
            StepOutcome::Done(result) => {
                let kept = vec![Write { key, value: None }];
                let caller = Caller::Task { id };
                let process = &task.process;
                let run = Run { cause: Cause::Task { id, step }, process, caller, payload: &result, kept };
                self.run(pending, &run, process, Retry::Result, handler, out);
            }
            StepOutcome::Retry { after, reason } => {
                let process = task.process.clone();
                let count = task.retry.as_ref().map_or(0, |retry| retry.count).saturating_add(1);
                let retry =
                    StepRetry { count, at: self.clock.time().plus_micros(after), reason: cut(reason) };
                let next = TaskRecord { retry: Some(retry), ..task };
                let writes = vec![Write { key, value: Some(encode_value(&next)) }];
                self.jobs.failures.remove(&pending);
                self.append(Cause::Task { id, step }, process, Effects::of(writes), out);
            }
            StepOutcome::GivenUp(reason) => self.give_up(pending, reason, DeadLetterDraft::step(task), out),
            StepOutcome::Failed(reason) => {
                if self.fails(pending) {
                    self.give_up(pending, reason, DeadLetterDraft::step(task), out);
                } else {
                    let run = self.jobs.runs.begin(id);
                    let (asks, alone) = (self.suspicion.is_on, self.suspicion.task == Some(id));
                    out.push(Effect::RunTask { id, run, task, asks, alone });
                }
            }
        }
    }

    /// Handles a waiting cause: it ends with an entry, is tried again, or is given up.
    fn run(
        &mut self,
        pending: Pending,
        run: &Run<'_>,
        sender: &Key,
        retry: Retry,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) {
        if let Err(reason) = self.try_run(pending, run, handler, out) {
            let (process, payload) = (run.process.clone(), Blob::from(run.payload));
            self.give_up(
                pending,
                reason,
                DeadLetterDraft { process, sender: sender.clone(), payload, retry },
                out,
            );
        }
    }

    /// Handles a waiting cause up to the maximum number of times; returns the reason of the last failure.
    pub(super) fn try_run(
        &mut self,
        pending: Pending,
        run: &Run<'_>,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) -> Result<(Index, Reply), String> {
        let ended = loop {
            match self.execute(run, handler, out) {
                Ok(done) => break Ok(done),
                Err(Failure::Panicked(_)) if !self.fails(pending) => {}
                Err(Failure::Panicked(why)) => break Err(format!("the handler panicked: {why}")),
                Err(Failure::Refused(misuse)) => break Err(misuse.to_string()),
            }
        };
        if !self.jobs.failures.is_empty() {
            self.jobs.failures.remove(&pending);
        }
        ended
    }

    /// Counts a failure of a waiting cause; returns true if it was the last one allowed.
    fn fails(&mut self, pending: Pending) -> bool {
        let failures = self.jobs.failures.entry(pending).or_default();
        *failures += 1;
        *failures >= self.settings.attempts_max
    }
}
