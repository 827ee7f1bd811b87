//! Dead letters: causes that were given up, and an operator's decisions on them.
//!
//! A retry is not logged before it runs: if it ends the process, the dead letter is still there, and is not retried
//! unless an operator requests it again.

use super::queue::Work;
use super::{DeadLetterAction, Effect, Effects, Invocation, Shard};
use crate::blob::Blob;
use crate::calls::{Caller, Refusal};
use crate::channel::Message;
use crate::entry::{Cause, Write};
use crate::handler::Handler;
use crate::ids::{CallToken, Index, ShardId, TaskId, id_of_entry};
use crate::key::Key;
use crate::record::{
    AttemptRecord, DeadLetter, Pending, RecordKey, Retry, StepRetry, TaskRecord, TimerRecord, encode_value,
};
use crate::reply::Reply;

/// Maximum number of bytes of a dead letter's reason.
const REASON_MAX: usize = StepRetry::REASON_MAX;

/// The fields that a dead letter takes from its job.
pub(super) struct DeadLetterDraft {
    pub(super) process: Key,
    pub(super) sender: Key,
    pub(super) payload: Blob,
    pub(super) retry: Retry,
}

impl DeadLetterDraft {
    /// Creates the draft for a step of a task, which a retry runs again from the state before it.
    pub(super) fn step(task: TaskRecord) -> Self {
        let TaskRecord { process, name, state, progress, .. } = task;
        Self { sender: process.clone(), process, payload: state, retry: Retry::Step { name, progress } }
    }
}

impl Shard {
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

    /// Gives a waiting cause up: it becomes a dead letter.
    pub(super) fn give_up(
        &mut self,
        cause: Pending,
        reason: String,
        job: DeadLetterDraft,
        out: &mut Vec<Effect>,
    ) {
        self.jobs.failures.remove(&cause);
        let DeadLetterDraft { process, sender, mut payload, mut retry } = job;
        let mut reason = cut(reason);
        let (len, max) = (payload.len(), self.settings.entry_bytes_max);
        // The payload was accepted when larger entries fitted into the log. An entry that is too large for the log
        // would end every life.
        if len > max {
            reason += &format!(
                "; its payload of {len} bytes is dropped, over the limit of {max} bytes of one log entry"
            );
            (payload, retry) = (Blob::empty(), Retry::Never);
        }
        let (time, retry) = (self.clock.time(), Some(retry));
        let letter = DeadLetter { cause, process: process.clone(), payload, sender, reason, time, retry };
        let key = RecordKey::dead_letter(self.state.position().index.next());
        let mut writes = vec![Write { key, value: Some(encode_value(&letter)) }];
        if let Pending::Request { .. } | Pending::Call { .. } = cause {
            // A retry of it is refused.
            writes.push(self.attempt(&cause, AttemptRecord::GIVEN_UP));
        }
        self.append(Cause::DeadLetter { cause }, process, Effects::of(writes), out);
    }

    /// Performs an operator's decision on a dead letter.
    pub(super) fn handle_dead_letter(
        &mut self,
        token: CallToken,
        letter: Index,
        action: DeadLetterAction,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) {
        let done = self.decide(letter, action, handler, out);
        self.answer(token, done, out);
    }

    fn decide(
        &mut self,
        index: Index,
        action: DeadLetterAction,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) -> Result<(Index, Reply), Refusal> {
        self.admit("")?;
        let letter: DeadLetter =
            self.state.record(&RecordKey::dead_letter(index)).ok_or(Refusal::NoDeadLetter(index))?;
        match action {
            DeadLetterAction::Retry => self.retry(index, letter, handler, out),
            DeadLetterAction::Drop => {
                let cause = Cause::Drop { letter: index };
                let index = self.append(cause, letter.process, Effects::default(), out);
                Ok((index, Reply::Ok(Blob::empty())))
            }
        }
    }

    fn retry(
        &mut self,
        index: Index,
        letter: DeadLetter,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) -> Result<(Index, Reply), Refusal> {
        let DeadLetter { process, payload, sender, .. } = &letter;
        let caller = match (self.how(&letter), letter.cause) {
            (Retry::Message { service }, _) => Caller::Process { service, key: sender },
            (Retry::Timer, Pending::Timer { id }) => Caller::Timer { id },
            (Retry::Result, Pending::Task { id, .. }) => Caller::Task { id },
            (Retry::Step { name, progress }, Pending::Task { id, step }) => {
                let (process, state) = (process.clone(), payload.clone());
                let task = TaskRecord { process, name, step, state, progress, retry: None };
                return Ok((self.resume_task(index, id, task, out), Reply::Ok(Blob::empty())));
            }
            (_, cause) => return Err(Refusal::NoRetry { letter: index, why: why_never(&cause, payload) }),
        };
        let cause = Cause::Retry { letter: index };
        let invocation = Invocation { cause, process, caller, payload, kept: Vec::new() };
        let pending = Pending::DeadLetter { letter: index };
        self.execute_with_retries(pending, &invocation, handler, out).map_err(|reason| {
            let reason = cut(reason);
            let letter = DeadLetter { reason: reason.clone(), time: self.clock.time(), ..letter };
            let value = Some(encode_value(&letter));
            let writes = vec![Write { key: RecordKey::dead_letter(index), value }];
            self.append(Cause::DeadLetter { cause: pending }, letter.process, Effects::of(writes), out);
            Refusal::FailedAgain { letter: index, reason }
        })
    }

    /// Returns the way to retry a dead letter; for one of an older version, as far as its cause determines it.
    fn how(&self, letter: &DeadLetter) -> Retry {
        match (&letter.retry, letter.cause) {
            (Some(retry), _) => retry.clone(),
            (None, Pending::Message { from, .. }) => {
                self.topology.service_of(from).map_or(Retry::Never, |service| Retry::Message { service })
            }
            (None, Pending::Timer { .. }) => Retry::Timer,
            (None, _) => Retry::Never,
        }
    }

    /// Appends an entry that restores the task; the step runs once it is committed.
    fn resume_task(&mut self, letter: Index, id: TaskId, task: TaskRecord, out: &mut Vec<Effect>) -> Index {
        let taken = |id| self.state.records().get(RecordKey::task(id).as_bytes()).is_some();
        // After a restore onto other shards another task may have its id; this entry draws no other id.
        let id = if taken(id) { TaskId(id_of_entry(self.state.position().index.next(), 0)) } else { id };
        let process = task.process.clone();
        let writes = vec![Write { key: RecordKey::task(id), value: Some(encode_value(&task)) }];
        self.append(Cause::Retry { letter }, process, Effects::of(writes), out)
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
}

fn why_never(cause: &Pending, payload: &[u8]) -> &'static str {
    match cause {
        Pending::Request { .. } | Pending::Call { .. } => {
            "its client was informed that it was given up, and may have acted on that"
        }
        _ if payload.is_empty() => "its payload was too large to be kept",
        _ => "an older version recorded it without all that a retry needs",
    }
}

/// Cuts the text of a panic, which may be of any length.
pub(super) fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_MAX));
    reason
}
