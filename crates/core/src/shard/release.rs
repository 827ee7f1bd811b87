//! What waits for its entry to be committed before it leaves the shard.

use super::{Answer, Effect, Settings};
use crate::entry::{Cause, Entry};
use crate::ids::{Colour, Index, Seq, ShardId, TaskId, Time};
use crate::record::{Kind, RecordKey};
use crate::state::{Message, State};
use std::collections::{BTreeMap, VecDeque};

/// Messages that one delivery holds at most when a channel is sent again.
const RESEND_BATCH: usize = 1024;

/// The queue of what may leave later, in the order of its entries.
#[derive(Default)]
pub(super) struct Release {
    held: VecDeque<(Index, Held)>,
    channels: BTreeMap<ShardId, Sending>,
    /// By sender, the last message whose reception is committed.
    received: BTreeMap<ShardId, Seq>,
    /// Senders that have not been told yet.
    acks: BTreeMap<ShardId, Seq>,
    ack_at: Option<Time>,
    resend_at: Option<Time>,
}

enum Held {
    Answer(Answer),
    Message(ShardId),
    Received(ShardId, Seq),
    Task(TaskId),
    Marker(Colour),
}

/// How far the messages of a channel have left.
#[derive(Default)]
struct Sending {
    released: Seq,
    progress: Time,
}

impl Release {
    /// Notes what leaves with an entry.
    pub(super) fn hold(&mut self, entry: &Entry, shard: ShardId) {
        match entry.cause {
            Cause::Message { from, seq } if from != shard => {
                self.held.push_back((entry.index, Held::Received(from, seq)));
            }
            Cause::DeadLetter { cause: crate::record::Waiting::Message { from, seq } } if from != shard => {
                self.held.push_back((entry.index, Held::Received(from, seq)));
            }
            _ => {}
        }
        for write in &entry.writes {
            if write.key.kind() == Kind::Task && write.value.is_some() {
                let id = TaskId(write.key.number().expect("a task's key is its id"));
                self.held.push_back((entry.index, Held::Task(id)));
            }
        }
        for send in &entry.sends {
            if send.to != shard {
                self.held.push_back((entry.index, Held::Message(send.to)));
            }
        }
    }

    pub(super) fn hold_answer(&mut self, answer: Answer) {
        // A retry of an old request waits behind the newest entry, so the order of the queue holds.
        self.held.push_back((answer.index, Held::Answer(answer)));
    }

    pub(super) fn hold_marker(&mut self, index: Index, colour: Colour) {
        self.held.push_back((index, Held::Marker(colour)));
    }

    /// Lets go what the commit index has reached.
    pub(super) fn commit(
        &mut self,
        commit: Index,
        state: &State,
        now: Time,
        settings: &Settings,
        out: &mut Vec<Effect>,
    ) {
        let mut deliveries: BTreeMap<ShardId, Vec<Message>> = BTreeMap::new();
        while self.held.front().is_some_and(|(index, _)| *index <= commit) {
            let (_, held) = self.held.pop_front().expect("looked at above");
            match held {
                Held::Answer(answer) => out.push(Effect::Answer(answer)),
                Held::Message(to) => {
                    let channel = self.channels.entry(to).or_default();
                    let next = channel.released.next();
                    if let Some(message) = message(state, to, next) {
                        channel.released = next;
                        deliveries.entry(to).or_default().push(message.clone());
                        self.resend_at.get_or_insert(now.plus_millis(settings.resend_after));
                    }
                }
                Held::Received(from, seq) => {
                    self.received.insert(from, seq);
                    self.acks.insert(from, seq);
                    self.ack_at.get_or_insert(now.plus_millis(settings.ack_delay));
                }
                Held::Task(id) => {
                    if let Some(task) = state.record(&RecordKey::task(id)) {
                        out.push(Effect::RunTask { id, task });
                    }
                }
                Held::Marker(colour) => out.push(Effect::MarkerCommitted(colour)),
            }
        }
        for (to, messages) in deliveries {
            out.push(Effect::Deliver { to, messages, again: false });
        }
    }

    /// A new primary sends all that its outboxes hold, and knows all of the log as received.
    pub(super) fn resend_all(
        &mut self,
        state: &State,
        now: Time,
        settings: &Settings,
        out: &mut Vec<Effect>,
    ) {
        self.received = state.received().clone();
        for (&to, outbox) in state.outboxes() {
            let released = Seq(outbox.next.0 - 1);
            self.channels.insert(to, Sending { released, progress: now });
            if to == state.shard() {
                continue;
            }
            let mut messages = outbox.messages.iter().cloned().peekable();
            while messages.peek().is_some() {
                let messages = messages.by_ref().take(RESEND_BATCH).collect();
                out.push(Effect::Deliver { to, messages, again: true });
                self.resend_at.get_or_insert(now.plus_millis(settings.resend_after));
            }
        }
    }

    /// A message came that is received already: its sender has missed an acknowledgement.
    pub(super) fn ack_again(&mut self, from: ShardId, now: Time, settings: &Settings) {
        if let Some(&seq) = self.received.get(&from) {
            self.acks.insert(from, seq);
            self.ack_at.get_or_insert(now.plus_millis(settings.ack_delay));
        }
    }

    pub(super) fn progress(&mut self, to: ShardId, now: Time) {
        self.channels.entry(to).or_default().progress = now;
    }

    pub(super) fn tick(&mut self, state: &State, now: Time, settings: &Settings, out: &mut Vec<Effect>) {
        if self.ack_at.is_some_and(|at| at <= now) {
            self.ack_at = None;
            let colour = state.position().colour;
            for (to, upto) in std::mem::take(&mut self.acks) {
                out.push(Effect::Ack { to, upto, colour });
            }
        }
        if self.resend_at.is_some_and(|at| at <= now) {
            self.resend_at = None;
            for (&to, outbox) in state.outboxes().iter().filter(|(to, _)| **to != state.shard()) {
                let channel = self.channels.entry(to).or_default();
                if outbox.messages.front().is_none_or(|first| first.seq > channel.released) {
                    continue;
                }
                self.resend_at = Some(now.plus_millis(settings.resend_after));
                if channel.progress.plus_millis(settings.resend_after) <= now {
                    channel.progress = now;
                    let released = outbox.messages.iter().take_while(|m| m.seq <= channel.released);
                    let messages = released.take(RESEND_BATCH).cloned().collect();
                    out.push(Effect::Deliver { to, messages, again: false });
                }
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        [self.ack_at, self.resend_at].into_iter().flatten().min()
    }

    pub(super) fn check(&self, commit: Index) -> Result<(), String> {
        let mut last = Index(0);
        for (index, _) in &self.held {
            if *index <= commit || *index < last {
                return Err(format!("the release queue holds {index} after {last} at commit {commit}"));
            }
            last = *index;
        }
        Ok(())
    }
}

fn message(state: &State, to: ShardId, seq: Seq) -> Option<&Message> {
    let messages = &state.outboxes().get(&to)?.messages;
    let first = messages.front()?.seq;
    messages.get(usize::try_from(seq.0.checked_sub(first.0)?).ok()?)
}
