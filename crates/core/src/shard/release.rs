//! What waits for its entry to be committed before it leaves the shard.

use super::jobs::Runs;
use super::{Answer, Effect, Messages, Settings};
use crate::clock::Clock;
use crate::entry::{Cause, Entry};
use crate::ids::{Colour, Index, Seq, ShardId, TaskId, Time};
use crate::record::{Kind, RecordKey, Waiting};
use crate::room;
use crate::shard_map::ShardMap;
use crate::state::{Message, State};
use std::collections::VecDeque;

/// Messages that one delivery holds at most when a channel is sent again.
const RESEND_BATCH: usize = 1024;

/// The queues of what may leave later, each in the order of its entries.
#[derive(Default)]
pub(super) struct Release {
    held: VecDeque<(Index, Held)>,
    /// Bytes of the answers in `held`.
    answer_bytes: usize,
    /// Apart from the others, for it is by far the longest.
    moved: VecDeque<(Index, Moved)>,
    channels: ShardMap<Sending>,
    receiving: ShardMap<Receiving>,
    /// Senders that have not been told yet.
    acks: Vec<ShardId>,
    ack_at: Option<Time>,
    resend_at: Option<Time>,
}

enum Held {
    Answer(Answer),
    Task(TaskId),
    Step(TaskId, u32),
    Marker(Colour),
}

#[derive(Clone, Copy)]
enum Moved {
    Sent(ShardId),
    Received(ShardId, Seq),
}

/// How far the messages of a channel have left.
#[derive(Default)]
struct Sending {
    released: Seq,
    /// Messages that a commit has just let go.
    ready: usize,
    progress: Time,
}

/// How far the reception of a channel's messages is committed.
#[derive(Default)]
struct Receiving {
    committed: Seq,
    ack_due: bool,
}

impl Release {
    /// Notes what leaves with an entry.
    pub(super) fn hold(&mut self, entry: &Entry, shard: ShardId) {
        let index = entry.index;
        match entry.cause {
            Cause::Message { from, seq } | Cause::DeadLetter { cause: Waiting::Message { from, seq } }
                if from != shard =>
            {
                self.moved.push_back((index, Moved::Received(from, seq)));
            }
            _ => {}
        }
        for write in &entry.writes {
            if write.key.kind() == Kind::Task && write.value.is_some() {
                let id = TaskId(write.key.number().expect("a task's key is its id"));
                self.held.push_back((index, Held::Task(id)));
            }
        }
        for send in entry.sends.iter().filter(|send| send.to != shard) {
            self.moved.push_back((index, Moved::Sent(send.to)));
        }
    }

    pub(super) fn hold_answer(&mut self, answer: Answer) {
        self.answer_bytes += answer.bytes();
        // A retry of an old request waits behind the newest entry, so the order of the queue holds.
        self.held.push_back((answer.index, Held::Answer(answer)));
    }

    /// Bytes of the answers that wait for their entry.
    pub(super) fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    pub(super) fn hold_step(&mut self, index: Index, id: TaskId, run: u32) {
        self.held.push_back((index, Held::Step(id, run)));
    }

    pub(super) fn hold_marker(&mut self, index: Index, colour: Colour) {
        self.held.push_back((index, Held::Marker(colour)));
    }

    /// Whether something waits that may leave.
    pub(super) fn is_behind(&self, commit: Index) -> bool {
        let held = self.held.front().map(|(index, _)| *index);
        let moved = self.moved.front().map(|(index, _)| *index);
        held.into_iter().chain(moved).any(|index| index <= commit)
    }

    /// Lets go up to `room` of what the commit index has reached; gives how much that was.
    #[expect(clippy::too_many_arguments, reason = "the parts of the shard, which holds this one as well")]
    pub(super) fn commit(
        &mut self,
        commit: Index,
        state: &State,
        clock: &Clock,
        settings: &Settings,
        runs: &mut Runs,
        room: usize,
        out: &mut Vec<Effect>,
    ) -> usize {
        let now = clock.steady();
        let mut left = room;
        while left > 0
            && let Some((_, held)) = self.held.pop_front_if(|(index, _)| *index <= commit)
        {
            left -= 1;
            match held {
                Held::Answer(answer) => {
                    self.answer_bytes -= answer.bytes();
                    out.push(Effect::Answer(answer));
                }
                Held::Task(id) => {
                    if let Some(task) = state.record(&RecordKey::task(id)) {
                        runs.set_out(id, task, false, clock.time(), out);
                    }
                }
                Held::Step(id, run) => out.push(Effect::StepAllowed { id, run, allowed: true }),
                Held::Marker(colour) => out.push(Effect::MarkerCommitted(colour)),
            }
        }
        let mut ready = Vec::new();
        while left > 0
            && let Some((_, moved)) = self.moved.pop_front_if(|(index, _)| *index <= commit)
        {
            left -= 1;
            match moved {
                Moved::Sent(to) => {
                    let channel = self.channels.get_or_default(to);
                    if channel.ready == 0 {
                        ready.push(to);
                    }
                    channel.ready += 1;
                }
                Moved::Received(from, seq) => {
                    self.receiving.get_or_default(from).committed = seq;
                    self.ack(from, now, settings);
                }
            }
        }
        room::give_back(&mut self.held);
        room::give_back(&mut self.moved);
        for to in ready {
            let channel = self.channels.get_or_default(to);
            let first = channel.released.next();
            channel.released = Seq(channel.released.0 + channel.ready as u64);
            let messages =
                messages_from(state, to, first).take(std::mem::take(&mut channel.ready)).cloned().collect();
            out.push(Effect::Deliver { to, messages, again: false });
            self.resend_at.get_or_insert(now.plus_millis(settings.resend_after));
        }
        room - left
    }

    fn ack(&mut self, from: ShardId, now: Time, settings: &Settings) {
        let receiving = self.receiving.get_or_default(from);
        if !receiving.ack_due {
            receiving.ack_due = true;
            self.acks.push(from);
            self.ack_at.get_or_insert(now.plus_millis(settings.ack_delay));
        }
    }

    /// A new primary sends all that its outboxes hold, and knows all of the log as received.
    pub(super) fn resend_all(
        &mut self,
        state: &State,
        again: bool,
        now: Time,
        settings: &Settings,
        out: &mut Vec<Effect>,
    ) {
        for (from, &committed) in state.received().iter() {
            self.receiving.get_or_default(from).committed = committed;
        }
        for (to, outbox) in state.outboxes().iter() {
            let released = Seq(outbox.next.0 - 1);
            self.channels.insert(to, Sending { released, ready: 0, progress: now });
            if to == state.shard() {
                continue;
            }
            let mut messages = outbox.messages.iter().cloned().peekable();
            while messages.peek().is_some() {
                let messages = messages.by_ref().take(RESEND_BATCH).collect();
                out.push(Effect::Deliver { to, messages, again });
                self.resend_at.get_or_insert(now.plus_millis(settings.resend_after));
            }
        }
    }

    /// A message came that is received already: its sender has missed an acknowledgement.
    pub(super) fn ack_again(&mut self, from: ShardId, now: Time, settings: &Settings) {
        if self.receiving.get_or_default(from).committed > Seq(0) {
            self.ack(from, now, settings);
        }
    }

    pub(super) fn progress(&mut self, to: ShardId, now: Time) {
        self.channels.get_or_default(to).progress = now;
    }

    /// Sends what is due, as far as one input may; gives how much that was.
    pub(super) fn tick(
        &mut self,
        state: &State,
        now: Time,
        settings: &Settings,
        out: &mut Vec<Effect>,
    ) -> usize {
        let mut work = 0;
        if self.ack_at.is_some_and(|at| at <= now) {
            self.ack_at = None;
            let colour = state.position().colour;
            for to in std::mem::take(&mut self.acks) {
                let receiving = self.receiving.get_or_default(to);
                receiving.ack_due = false;
                out.push(Effect::Ack { to, upto: receiving.committed, colour });
            }
        }
        if self.resend_at.is_some_and(|at| at <= now) {
            self.resend_at = None;
            for (to, outbox) in state.outboxes().iter().filter(|(to, _)| *to != state.shard()) {
                let channel = self.channels.get_or_default(to);
                if outbox.messages.front().is_none_or(|first| first.seq > channel.released) {
                    continue;
                }
                self.resend_at.get_or_insert(now.plus_millis(settings.resend_after));
                if channel.progress.plus_millis(settings.resend_after) <= now {
                    if work >= RESEND_BATCH {
                        self.resend_at = Some(now);
                        break;
                    }
                    channel.progress = now;
                    let released = outbox.messages.iter().take_while(|m| m.seq <= channel.released);
                    let messages: Messages = released.take(RESEND_BATCH).cloned().collect();
                    work += messages.len();
                    // Its receiver may have ended over them.
                    out.push(Effect::Deliver { to, messages, again: true });
                }
            }
        }
        work
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        [self.ack_at, self.resend_at].into_iter().flatten().min()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        in_order(self.held.iter().map(|(index, _)| *index))?;
        in_order(self.moved.iter().map(|(index, _)| *index))
    }
}

fn in_order(queue: impl Iterator<Item = Index>) -> Result<(), String> {
    let mut last = Index(0);
    for index in queue {
        if index < last {
            return Err(format!("the release queue holds {index} after {last}"));
        }
        last = index;
    }
    Ok(())
}

fn messages_from(state: &State, to: ShardId, first: Seq) -> impl Iterator<Item = &Message> {
    let messages = state.outboxes().get(to).map(|outbox| &outbox.messages);
    let skip = messages.and_then(|m| m.front()).map_or(0, |front| first.0.saturating_sub(front.seq.0));
    messages.into_iter().flatten().skip(skip as usize)
}
