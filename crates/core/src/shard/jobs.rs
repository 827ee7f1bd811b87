//! Work that waits in the system: messages, timers and steps of tasks, in the order in which they came.

use super::dead_letters::{Buried, cut};
use super::{Effect, Effects, Failure, Messages, Refusal, Request, Run, Shard, StepOutcome};
use crate::entry::{Cause, Entry, Reply, Send, Write};
use crate::handler::{Caller, Handler};
use crate::ids::{Blob, Index, Key, Seq, ShardId, TaskId, Time, TimerId};
use crate::record::{
    AttemptRecord, Kind, RecordKey, Retry, StepRetry, TaskRecord, TimerRecord, Waiting, encode_value,
};
use crate::room;
use crate::shard_map::ShardMap;
use crate::state::{Message, State};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Jobs handled for one input at most, so that a process that messages itself can't hold its shard.
const RUN_BATCH: usize = 4096;
/// Causes that one attempt entry names at most.
const ATTEMPT_BATCH: usize = 64;
/// Suspected requests that wait at most; those over it are told to come back.
const SUSPECTS_MAX: usize = 4096;
/// Requests that are known to have left this life of the process standing, at most.
const SURVIVED_MAX: usize = 4096;

#[derive(Default)]
pub(super) struct Jobs {
    queue: VecDeque<Job>,
    /// By sender, the last message that is received or in the queue.
    queued: ShardMap<Seq>,
    timers: BTreeSet<TimerId>,
    pub(super) failures: BTreeMap<Waiting, u32>,
    pub(super) runs: Runs,
    /// Requests that were refused after an attempt at them was logged: this life of the process goes on, so that a
    /// retry is no further attempt.
    survived: BTreeSet<[u8; 16]>,
    /// Requests in the queue, and the bytes of their payloads.
    suspects: BTreeSet<[u8; 16]>,
    suspect_bytes: usize,
}

/// The runs of steps whose outcome is waited for. Each run has a number of its own in a life of the process, so that an
/// outcome that comes twice, or after its task was buried and retried, is known as such.
#[derive(Default)]
pub(super) struct Runs {
    last: u32,
    outstanding: BTreeMap<TaskId, u32>,
    /// Steps that failed and wait for their time. One whose task is gone meanwhile is known when its time comes.
    later: BTreeSet<(Time, TaskId)>,
}

impl Runs {
    pub(super) fn begin(&mut self, id: TaskId) -> u32 {
        self.last = self.last.wrapping_add(1);
        self.outstanding.insert(id, self.last);
        self.last
    }

    /// Runs a task's next step, now or once a step that failed may be tried again.
    pub(super) fn set_out(&mut self, id: TaskId, task: TaskRecord, now: Time, out: &mut Vec<Effect>) {
        match &task.retry {
            Some(retry) if retry.at > now => drop(self.later.insert((retry.at, id))),
            _ => out.push(Effect::RunTask { id, run: self.begin(id), task }),
        }
    }

    /// Whether the outcome of this run was waited for; it is not any more.
    fn end(&mut self, id: TaskId, run: u32) -> bool {
        let is_outstanding = self.outstanding.get(&id) == Some(&run);
        if is_outstanding {
            self.outstanding.remove(&id);
        }
        is_outstanding
    }
}

struct Job {
    work: Work,
    attempt: Attempt,
}

/// Whether a crash may have met the job before, so that an attempt has to be logged first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Fresh,
    ToLog,
    /// It may be handled once this entry is committed.
    Logged(Index),
}

enum Work {
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
    /// A request that may be what ended the process.
    Request(Box<Request>, [u8; 16]),
}

impl Jobs {
    pub(super) fn new(state: &State) -> Self {
        Self { queued: state.received().clone(), ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Queues what the state holds when an epoch becomes active: a crash may have met each of it before.
    pub(super) fn start(&mut self, state: &State, suspicious: bool, now: Time) {
        let attempt = if suspicious { Attempt::ToLog } else { Attempt::Fresh };
        let again = |work| Job { work, attempt };
        let from = state.shard();
        if let Some(outbox) = state.outboxes().get(from) {
            for message in &outbox.messages {
                self.queued.insert(from, message.seq);
                self.queue.push_back(again(Work::Local(message.seq)));
            }
        }
        for &(_, id) in state.timers().iter().take_while(|(at, _)| *at <= now) {
            self.timers.insert(id);
            self.queue.push_back(again(Work::Timer(id)));
        }
        for &id in state.tasks() {
            let task: Option<TaskRecord> = state.record(&RecordKey::task(id));
            match task.and_then(|task| task.retry) {
                Some(retry) if retry.at > now => drop(self.runs.later.insert((retry.at, id))),
                _ => self.queue.push_back(again(Work::Resume(id))),
            }
        }
    }

    /// A shard's messages to itself wait for nothing: one log holds both ends.
    pub(super) fn note_local(&mut self, entry: &Entry, shard: ShardId) {
        for _ in entry.sends.iter().filter(|send| send.to == shard) {
            let seq = self.queued.get_or_default(shard);
            *seq = seq.next();
            self.queue.push_back(Job { work: Work::Local(*seq), attempt: Attempt::Fresh });
        }
    }

    /// Whether one more request may wait: not one that waits already, and not more than fit.
    pub(super) fn takes_suspect(&self, identity: &[u8; 16], bytes_max: usize) -> bool {
        self.suspects.len() < SUSPECTS_MAX
            && self.suspect_bytes <= bytes_max
            && !self.suspects.contains(identity)
    }

    pub(super) fn push_suspect(&mut self, request: Request, identity: [u8; 16]) {
        self.suspects.insert(identity);
        self.suspect_bytes += request.payload.len();
        self.queue
            .push_back(Job { work: Work::Request(Box::new(request), identity), attempt: Attempt::ToLog });
    }

    fn pop(&mut self) -> Option<Job> {
        let job = self.queue.pop_front()?;
        if let Work::Request(request, identity) = &job.work {
            self.suspects.remove(identity);
            self.suspect_bytes -= request.payload.len();
        }
        Some(job)
    }

    pub(super) fn survived(&self, identity: &[u8; 16]) -> bool {
        self.survived.contains(identity)
    }

    fn note_survived(&mut self, identity: [u8; 16]) {
        // One that is forgotten is suspected again, no more.
        if self.survived.len() >= SURVIVED_MAX {
            self.survived.pop_first();
        }
        self.survived.insert(identity);
    }

    pub(super) fn push_step(&mut self, id: TaskId, step: u64, run: u32, outcome: StepOutcome) {
        self.queue.push_back(Job { work: Work::Step { id, step, run, outcome }, attempt: Attempt::Fresh });
    }

    /// Nobody counts on with the failures of a task that is gone, or waits for its step.
    pub(super) fn note_ended_tasks(&mut self, entry: &Entry) {
        if self.failures.is_empty() && self.runs.outstanding.is_empty() {
            return;
        }
        for write in entry.writes.iter().filter(|write| write.value.is_none()) {
            if write.key.kind() == Kind::Task
                && let Some(ended) = write.key.number().map(TaskId)
            {
                self.runs.outstanding.remove(&ended);
                self.failures
                    .retain(|waiting, _| !matches!(waiting, Waiting::Task { id, .. } if *id == ended));
            }
        }
    }

    pub(super) fn check(&self, state: &State) -> Result<(), String> {
        let gone =
            |waiting: &&Waiting| matches!(waiting, Waiting::Task { id, .. } if !state.tasks().contains(id));
        match self.failures.keys().find(gone) {
            Some(waiting) => Err(format!("the failures of {waiting:?} are counted, which is gone")),
            None => Ok(()),
        }
    }

    pub(super) fn push_due_timers(&mut self, state: &State, now: Time) {
        for &(_, id) in state.timers().iter().take_while(|(at, _)| *at <= now).take(RUN_BATCH) {
            if self.timers.insert(id) {
                self.queue.push_back(Job { work: Work::Timer(id), attempt: Attempt::Fresh });
            }
        }
    }

    /// Runs the steps that waited until now to be tried again.
    pub(super) fn run_due_steps(&mut self, state: &State, now: Time, out: &mut Vec<Effect>) {
        for _ in 0..RUN_BATCH {
            let Some(&(at, id)) = self.runs.later.first().filter(|(at, _)| *at <= now) else { return };
            self.runs.later.pop_first();
            // Its task may have been cancelled, or be another one by now.
            let task = state.record::<TaskRecord>(&RecordKey::task(id));
            let waits = |task: &TaskRecord| task.retry.as_ref().is_some_and(|retry| retry.at == at);
            if let Some(task) = task.filter(waits) {
                self.runs.set_out(id, task, now, out);
            }
        }
    }

    pub(super) fn next_retry(&self) -> Option<Time> {
        self.runs.later.first().map(|(at, _)| *at)
    }

    pub(super) fn next_timer(&self, state: &State) -> Option<Time> {
        state.timers().iter().find(|(_, id)| !self.timers.contains(id)).map(|(at, _)| *at)
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
                if !again && self.jobs.queue.is_empty() && self.is_active() && !self.blocked() {
                    self.run_message(from, &message, handler, out);
                } else {
                    let attempt = if again { Attempt::ToLog } else { Attempt::Fresh };
                    self.jobs.queue.push_back(Job { work: Work::Message { from, message }, attempt });
                }
            } else if message.seq <= *queued {
                self.release.ack_again(from, self.clock.steady(), &self.settings);
            }
            // A message after a gap is dropped: its sender sends again what is not acknowledged.
        }
        self.run_jobs(handler, out);
    }

    pub(super) fn job_is_ready(&self) -> bool {
        !self.blocked()
            && self.jobs.queue.front().is_some_and(|job| match job.attempt {
                Attempt::Logged(index) => index <= self.commit(),
                _ => true,
            })
    }

    /// Handles what waits, in its order, as far as it may be handled now.
    pub(super) fn run_jobs(&mut self, handler: &mut dyn Handler, out: &mut Vec<Effect>) {
        if !self.is_active() {
            return;
        }
        for _ in 0..RUN_BATCH {
            if !self.job_is_ready() {
                return;
            }
            if self.jobs.queue[0].attempt == Attempt::ToLog {
                self.log_attempts(out);
                continue;
            }
            let job = self.jobs.pop().expect("ready means that there is one");
            room::give_back(&mut self.jobs.queue);
            match job.work {
                Work::Message { from, message } => self.run_message(from, &message, handler, out),
                Work::Local(seq) => self.run_local(seq, handler, out),
                Work::Timer(id) => self.run_timer(id, handler, out),
                Work::Step { id, step, run, outcome } => {
                    self.run_step((id, step, run), outcome, handler, out)
                }
                Work::Request(request, identity) => {
                    self.run_request(&request, handler, out);
                    if self.attempts(&Waiting::Request { identity }) > 0 {
                        self.jobs.note_survived(identity);
                    }
                }
                Work::Resume(id) => {
                    if let Some(task) = self.state.record(&RecordKey::task(id)) {
                        self.jobs.runs.set_out(id, task, self.clock.time(), out);
                    }
                }
            }
        }
    }

    /// Logs that the first jobs are about to be tried again. One that was tried before is tried alone, so that only
    /// what a crash really met is given up.
    fn log_attempts(&mut self, out: &mut Vec<Effect>) {
        let mut writes = Vec::new();
        let mut over = None;
        let index = self.state.position().index.next();
        // Where the first attempt is the last, those that only shared its entry would be given up with it.
        let batch = if self.settings.attempts_max == 1 { 1 } else { ATTEMPT_BATCH };
        for at in 0..self.jobs.queue.len().min(batch) {
            let job = &self.jobs.queue[at];
            if job.attempt != Attempt::ToLog {
                break;
            }
            let Some(waiting) = self.waiting_of(&job.work) else {
                self.jobs.queue[at].attempt = Attempt::Fresh;
                break;
            };
            let count = self.attempts(&waiting);
            if at > 0 && count > 0 {
                break;
            }
            if count >= self.settings.attempts_max {
                over = Some(waiting);
                break;
            }
            writes.push(self.attempt(&waiting, count + 1));
            self.jobs.queue[at].attempt = Attempt::Logged(index);
            if count > 0 {
                break;
            }
        }
        if let Some(waiting) = over {
            let job = self.jobs.pop().expect("only the first job can be over");
            if let Work::Timer(id) = job.work {
                self.jobs.timers.remove(&id);
            }
            let reason =
                format!("the process ended {} times while it was handled", self.settings.attempts_max);
            // Giving it up is a reception too: the marker comes first.
            match &job.work {
                Work::Message { message, .. } => self.mark(message.colour, out),
                Work::Request(request, _) => self.mark(request.colour, out),
                _ => {}
            }
            if let Some(buried) = self.buried(&job.work) {
                self.bury(waiting, reason, buried, out);
            }
            if let Work::Request(request, _) = job.work {
                let attempts = self.settings.attempts_max;
                self.answer(request.token, Err(Refusal::Poisoned { attempts }), out);
            }
        } else if !writes.is_empty() {
            self.append(Cause::Attempt, Key::none(), Effects::of(writes), out);
        }
    }

    /// How often a cause was tried by the log.
    pub(super) fn attempts(&self, waiting: &Waiting) -> u32 {
        let key = RecordKey::attempt(waiting);
        self.state.record::<AttemptRecord>(&key).map_or(0, |record| record.count)
    }

    pub(super) fn attempt(&self, waiting: &Waiting, count: u32) -> Write {
        // A client may never bring its request again.
        let expires = matches!(waiting, Waiting::Request { .. })
            .then(|| self.clock.served().plus_millis(self.settings.idempotency_ttl));
        let value = encode_value(&AttemptRecord { count, expires });
        Write { key: RecordKey::attempt(waiting), value: Some(value) }
    }

    fn waiting_of(&self, work: &Work) -> Option<Waiting> {
        match work {
            Work::Message { from, message } => Some(Waiting::Message { from: *from, seq: message.seq }),
            Work::Local(seq) => Some(Waiting::Message { from: self.state.shard(), seq: *seq }),
            Work::Request(_, identity) => Some(Waiting::Request { identity: *identity }),
            // It may have been cancelled while it waited: then there is nothing to try. One that sends a message runs no user
            // code that could have ended the process.
            Work::Timer(id) => {
                let timer: TimerRecord = self.state.record(&RecordKey::timer(*id))?;
                timer.send.is_none().then_some(Waiting::Timer { id: *id })
            }
            Work::Step { id, step, .. } => Some(Waiting::Task { id: *id, step: *step }),
            Work::Resume(id) => {
                let task: TaskRecord = self.state.record(&RecordKey::task(*id))?;
                Some(Waiting::Task { id: *id, step: task.step })
            }
        }
    }

    /// What a job that waits would have given to whom; `None` if it is gone meanwhile.
    fn buried(&self, work: &Work) -> Option<Buried> {
        Some(match work {
            Work::Message { from, message } => self.buried_message(*from, message),
            Work::Local(seq) => self.buried_message(self.state.shard(), &self.local_message(*seq)?),
            Work::Request(request, _) => Buried {
                process: request.process.clone(),
                sender: Key::none(),
                payload: request.payload.clone(),
                retry: Retry::Never,
            },
            Work::Timer(id) => {
                let TimerRecord { process, payload, .. } = self.state.record(&RecordKey::timer(*id))?;
                Buried { sender: process.clone(), process, payload, retry: Retry::Timer }
            }
            Work::Step { id, .. } | Work::Resume(id) => {
                Buried::step(self.state.record(&RecordKey::task(*id))?)
            }
        })
    }

    fn buried_message(&self, from: ShardId, message: &Message) -> Buried {
        let Message { process, sender, payload, .. } = message.clone();
        let service = self.topology.service_of(from);
        let retry = service.map_or(Retry::Never, |service| Retry::Message { service });
        Buried { process, sender, payload, retry }
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
        // The marker comes first, so that no cut holds a receive without its send.
        self.mark(message.colour, out);
        let Some(service) = self.topology.service_of(from) else { return };
        let waiting = Waiting::Message { from, seq: message.seq };
        let caller = Caller::Process { service, key: &message.sender };
        let Message { process, payload, sender, .. } = message;
        let cause = Cause::Message { from, seq: message.seq };
        let run = Run { cause, process, caller, payload, kept: Vec::new() };
        self.run(waiting, &run, sender, Retry::Message { service }, handler, out);
    }

    fn run_timer(&mut self, id: TimerId, handler: &mut dyn Handler, out: &mut Vec<Effect>) {
        self.jobs.timers.remove(&id);
        // It may have been cancelled while it waited.
        let Some(timer) = self.state.record::<TimerRecord>(&RecordKey::timer(id)) else { return };
        if timer.send.is_some() {
            return self.send_delayed(id, timer, out);
        }
        let TimerRecord { process, payload, .. } = &timer;
        let caller = Caller::Timer { id };
        let run = Run { cause: Cause::Timer { id }, process, caller, payload, kept: Vec::new() };
        self.run(Waiting::Timer { id }, &run, process, Retry::Timer, handler, out);
    }

    /// The time of a message has come: it leaves with the entry of its timer.
    fn send_delayed(&mut self, id: TimerId, timer: TimerRecord, out: &mut Vec<Effect>) {
        let TimerRecord { process: sender, payload, send, .. } = timer;
        let Some(receiver) = send else { return };
        let max = self.settings.entry_bytes_max;
        if payload.len() > max {
            let reason = format!("the message of {} bytes can't be sent any more", payload.len());
            let buried =
                Buried { process: receiver.process, sender: sender.clone(), payload, retry: Retry::Never };
            return self.bury(Waiting::Timer { id }, reason, buried, out);
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
        // What another run than the outstanding one made came twice, or late.
        if !self.jobs.runs.end(id, run) {
            return;
        }
        let waiting = Waiting::Task { id, step };
        match outcome {
            StepOutcome::Continue { state: made, .. } | StepOutcome::Done(made)
                if made.len() > self.settings.entry_bytes_max =>
            {
                let (len, max) = (made.len(), self.settings.entry_bytes_max);
                let reason = format!(
                    "the step made {len} bytes, over the limit of {max} bytes of one log entry; make the task's state smaller"
                );
                self.bury(waiting, reason, Buried::step(task), out);
            }
            StepOutcome::Continue { state, progress } => {
                let process = task.process.clone();
                let next = TaskRecord { step: step + 1, state, progress, retry: None, ..task };
                let writes = vec![Write { key, value: Some(encode_value(&next)) }];
                self.jobs.failures.remove(&waiting);
                self.append(Cause::Task { id, step }, process, Effects::of(writes), out);
            }
            StepOutcome::Done(result) => {
                let kept = vec![Write { key, value: None }];
                let caller = Caller::Task { id };
                let process = &task.process;
                let run = Run { cause: Cause::Task { id, step }, process, caller, payload: &result, kept };
                self.run(waiting, &run, process, Retry::Result, handler, out);
            }
            StepOutcome::Retry { after, reason } => {
                let process = task.process.clone();
                let count = task.retry.as_ref().map_or(0, |retry| retry.count).saturating_add(1);
                let retry =
                    StepRetry { count, at: self.clock.time().plus_micros(after), reason: cut(reason) };
                let next = TaskRecord { retry: Some(retry), ..task };
                let writes = vec![Write { key, value: Some(encode_value(&next)) }];
                self.jobs.failures.remove(&waiting);
                self.append(Cause::Task { id, step }, process, Effects::of(writes), out);
            }
            StepOutcome::GivenUp(reason) => self.bury(waiting, reason, Buried::step(task), out),
            StepOutcome::Failed(reason) => {
                if self.fails(waiting) {
                    self.bury(waiting, reason, Buried::step(task), out);
                } else {
                    let run = self.jobs.runs.begin(id);
                    out.push(Effect::RunTask { id, run, task });
                }
            }
        }
    }

    /// Handles a waiting cause: it ends with an entry, or is tried again, or is given up.
    fn run(
        &mut self,
        waiting: Waiting,
        run: &Run<'_>,
        sender: &Key,
        retry: Retry,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) {
        if let Err(reason) = self.try_run(waiting, run, handler, out) {
            let (process, payload) = (run.process.clone(), Blob::from(run.payload));
            self.bury(waiting, reason, Buried { process, sender: sender.clone(), payload, retry }, out);
        }
    }

    /// Handles a waiting cause as often as it may be; gives why it failed the last time.
    pub(super) fn try_run(
        &mut self,
        waiting: Waiting,
        run: &Run<'_>,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) -> Result<(Index, Reply), String> {
        let ended = loop {
            match self.execute(run, handler, out) {
                Ok(done) => break Ok(done),
                Err(Failure::Panicked(_)) if !self.fails(waiting) => {}
                Err(Failure::Panicked(why)) => break Err(format!("the handler panicked: {why}")),
                Err(Failure::Refused(misuse)) => break Err(misuse.to_string()),
            }
        };
        if !self.jobs.failures.is_empty() {
            self.jobs.failures.remove(&waiting);
        }
        ended
    }

    /// Counts a failure of a waiting cause; true if it was the last one allowed.
    fn fails(&mut self, waiting: Waiting) -> bool {
        let failures = self.jobs.failures.entry(waiting).or_default();
        *failures += 1;
        *failures >= self.settings.attempts_max
    }
}
