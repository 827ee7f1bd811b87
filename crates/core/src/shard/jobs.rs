//! Queues and handles work that waits in the system: messages, timers and steps of tasks.

use super::dead_letters::{DeadLetterDraft, cut};
use super::queue::{Attempt, Job, Work};
use super::{Effect, Effects, Failure, Invocation, Messages, Shard, StepOutcome};
use crate::blob::Blob;
use crate::calls::Caller;
use crate::channel::Message;
use crate::entry::{Cause, Send, Write};
use crate::handler::Handler;
use crate::ids::{Index, Seq, ShardId, StepNumber, StepRun, TaskId, Time, TimerId};
use crate::key::Key;
use crate::record::{
    AttemptRecord, Pending, RecordKey, Retry, StepRetry, TaskHead, TaskRecord, TimerRecord, encode_value,
};
use crate::reply::Reply;
use crate::shrink;
use crate::trials::TrialKind;

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
            let first = self.jobs.step_runs.later.first().copied();
            let Some((at, id)) = first.filter(|(at, _)| *at <= self.clock.time()) else { return };
            self.jobs.step_runs.later.pop_first();
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
        if self.suspicion.held && self.has_begun_work(&work) {
            self.suspicion.met.push_back(Job { work, attempt: Attempt::ToLog });
            return;
        }
        let is_suspect =
            again && self.suspicion.is_on && (self.suspicion.is_wide || self.has_begun_work(&work));
        let attempt = if is_suspect { Attempt::ToLog } else { Attempt::Fresh };
        self.jobs.queue.push_back(Job { work, attempt });
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
                self.handle_step_outcome((id, step, run), outcome, handler, out);
                // A step that failed and runs again keeps the turn.
                if !self.jobs.step_runs.is_outstanding_task(id) {
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
                    self.jobs.step_runs.set_out(id, task, self.suspicion.is_wide, self.clock.time(), out);
                }
            }
            Work::Begin(id, run) => self.begin_step(id, run, out),
        }
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

    pub(super) fn local_message(&self, seq: Seq) -> Option<Message> {
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
        let invocation = Invocation { cause, process, caller, payload, kept: Vec::new() };
        self.execute_or_give_up(pending, &invocation, sender, Retry::Message { service }, handler, out);
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
        let invocation =
            Invocation { cause: Cause::Timer { id }, process, caller, payload, kept: Vec::new() };
        self.execute_or_give_up(Pending::Timer { id }, &invocation, process, Retry::Timer, handler, out);
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

    fn handle_step_outcome(
        &mut self,
        (id, step, run): (TaskId, StepNumber, StepRun),
        outcome: StepOutcome,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) {
        let key = RecordKey::task(id);
        let Some(task) = self.state.record::<TaskRecord>(&key).filter(|task| task.step == step) else {
            return;
        };
        // The outcome of another run than the outstanding one came twice, or late.
        if !self.jobs.step_runs.end(id, run) {
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
                let next = TaskRecord { step: step.next(), state, progress, retry: None, ..task };
                let writes = vec![Write { key, value: Some(encode_value(&next)) }];
                self.jobs.failures.remove(&pending);
                self.append(Cause::Task { id, step }, process, Effects::of(writes), out);
            }
            StepOutcome::Done(result) => {
                let kept = vec![Write { key, value: None }];
                let caller = Caller::Task { id };
                let process = &task.process;
                let invocation =
                    Invocation { cause: Cause::Task { id, step }, process, caller, payload: &result, kept };
                self.execute_or_give_up(pending, &invocation, process, Retry::Result, handler, out);
            }
            StepOutcome::Retry { after, reason } => {
                let process = task.process.clone();
                let count = task.retry.as_ref().map_or(0, |retry| retry.count).saturating_add(1);
                let retry = StepRetry { count, at: self.clock.time().plus(after), reason: cut(reason) };
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
                    let run = self.jobs.step_runs.begin(id);
                    let alone = self.suspicion.task == Some(id);
                    let asks = alone || self.suspicion.is_wide;
                    out.push(Effect::RunStep { id, run, task, asks, alone });
                }
            }
        }
    }

    /// Handles a waiting cause: it ends with an entry, is tried again, or is given up.
    fn execute_or_give_up(
        &mut self,
        pending: Pending,
        invocation: &Invocation<'_>,
        sender: &Key,
        retry: Retry,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) {
        if let Err(reason) = self.execute_with_retries(pending, invocation, handler, out) {
            let (process, payload) = (invocation.process.clone(), Blob::from(invocation.payload));
            self.give_up(
                pending,
                reason,
                DeadLetterDraft { process, sender: sender.clone(), payload, retry },
                out,
            );
        }
    }

    /// Handles a waiting cause up to the maximum number of times; returns the reason of the last failure.
    pub(super) fn execute_with_retries(
        &mut self,
        pending: Pending,
        invocation: &Invocation<'_>,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) -> Result<(Index, Reply), String> {
        let ended = loop {
            match self.execute(invocation, handler, out) {
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
