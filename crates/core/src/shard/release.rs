//! Effects that wait until their entry is committed, or may be answered early, before they leave the shard.

use super::queue::StepRuns;
use super::{Effect, Messages, Settings, Shard};
use crate::calls::Answer;
use crate::capture::Reading;
use crate::clock::Clock;
use crate::entry::{Cause, Entry};
use crate::ids::{Colour, Index, Seq, ShardId, StepRun, TaskId, Time};
use crate::record::{Kind, Pending, RecordKey, TaskRecord};
use crate::shard_map::ShardMap;
use crate::shrink;
use crate::state::State;
use std::collections::VecDeque;

/// Maximum number of messages of one delivery when a channel is sent again.
const RESEND_BATCH: usize = 1024;

/// Queues of effects, each in the order of their entries.
#[derive(Default)]
pub(super) struct Release {
    held: VecDeque<(Index, Held)>,
    /// Answers and queries that may leave before their entry is committed, under a lease.
    early: VecDeque<(Index, Held)>,
    /// Bytes of the answers in both.
    answer_bytes: usize,
    /// Separate from the others, because it is by far the longest.
    moved: VecDeque<(Index, Moved)>,
    channels: ShardMap<Sending>,
    /// Channels with messages with which the epoch began and that have not left again yet.
    backlog: VecDeque<ShardId>,
    receiving: ShardMap<Receiving>,
    /// Senders that still need an acknowledgement.
    acks: Vec<ShardId>,
    ack_at: Option<Time>,
    resend_at: Option<Time>,
    /// The colour up to the commit index: the number of a marker that may be lost must not leave the shard.
    colour: Colour,
    /// Bytes for which the queries in both count: see [`Reading::weight`].
    query_bytes: usize,
}

enum Held {
    Answer(Answer),
    Query(Box<Reading>),
    Task(TaskId),
    Step(TaskId, StepRun),
    Marker(Colour),
}

#[derive(Clone, Copy)]
enum Moved {
    Sent(ShardId),
    Received(ShardId, Seq),
}

/// Progress of a channel's messages leaving the shard.
#[derive(Default)]
struct Sending {
    released: Seq,
    /// Number of messages after it that may leave.
    ready: u64,
    is_in_backlog: bool,
    /// The last message that may have been running when the process crashed.
    met: Seq,
    /// When the first message without an acknowledgement was sent or, if that is later, its channel last made progress.
    progress: Time,
}

/// Progress of committing the reception of a channel's messages.
#[derive(Default)]
struct Receiving {
    committed: Seq,
    ack_due: bool,
}

impl Sending {
    /// Lets up to `max` of the ready messages leave as one delivery; returns their number. If it is 0, none could
    /// leave.
    fn deliver(&mut self, state: &State, to: ShardId, max: usize, now: Time, out: &mut Vec<Effect>) -> usize {
        let last = Seq(self.released.0 + self.ready);
        let messages = state.outboxes().get(to).map(|outbox| &outbox.messages);
        let front = messages.and_then(|messages| messages.front()).map(|front| front.seq);
        // Some may have been acknowledged and trimmed: the receiver has them from the previous life.
        let first = self.released.next().max(front.unwrap_or(last.next()));
        let (Some(messages), Some(front), true) = (messages, front, first <= last) else {
            (self.released, self.ready) = (last, 0);
            return 0;
        };
        if front > self.released {
            self.progress = now;
        }
        let again = first <= self.met;
        let end = last.0.min(first.0.saturating_add(max as u64 - 1));
        let end = if again { end.min(self.met.0) } else { end };
        let places = (first.0 - front.0) as usize..=(end - front.0) as usize;
        let messages: Messages = messages.range(places).cloned().collect();
        (self.released, self.ready) = (Seq(end), last.0 - end);
        let count = messages.len();
        out.push(Effect::Deliver { to, messages, again });
        count
    }
}

impl Release {
    /// Creates the queues; `colour` is that of the log at the start.
    pub(super) fn new(colour: Colour) -> Self {
        Self { colour, ..Self::default() }
    }

    /// Returns the committed colour, for effects without an entry of their own.
    pub(super) fn colour(&self) -> Colour {
        self.colour
    }

    /// Queues the effects of an entry.
    pub(super) fn hold(&mut self, entry: &Entry, shard: ShardId) {
        let index = entry.index;
        match entry.cause {
            Cause::Message { from, seq } | Cause::DeadLetter { cause: Pending::Message { from, seq } }
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

    pub(super) fn hold_answer(&mut self, answer: Answer, is_early: bool) {
        self.answer_bytes += answer.bytes();
        // A retry of an old request waits behind the newest entry, so the order of the queue is kept.
        self.queue(is_early).push_back((answer.index, Held::Answer(answer)));
    }

    fn queue(&mut self, is_early: bool) -> &mut VecDeque<(Index, Held)> {
        if is_early { &mut self.early } else { &mut self.held }
    }

    /// Returns the bytes of the answers that wait for their entry.
    pub(super) fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    pub(super) fn hold_query(&mut self, reading: Box<Reading>, is_early: bool) {
        self.query_bytes += reading.weight();
        self.queue(is_early).push_back((reading.index, Held::Query(reading)));
    }

    pub(super) fn query_bytes(&self) -> usize {
        self.query_bytes
    }

    pub(super) fn hold_step(&mut self, index: Index, id: TaskId, run: StepRun) {
        self.held.push_back((index, Held::Step(id, run)));
    }

    pub(super) fn hold_marker(&mut self, index: Index, colour: Colour) {
        self.held.push_back((index, Held::Marker(colour)));
    }

    /// Whether waiting effects may leave. `early` is the index up to which answers may, under a lease.
    pub(super) fn is_behind(&self, commit: Index, early: Option<Index>) -> bool {
        let held = self.held.front().map(|(index, _)| *index);
        let moved = self.moved.front().map(|(index, _)| *index);
        !self.backlog.is_empty()
            || early.is_some_and(|upto| self.has_early(upto))
            || held.into_iter().chain(moved).any(|index| index <= commit)
    }

    /// Whether an effect waits until its entry is committed, other than the answers that may leave before.
    pub(super) fn waits_for_commit(&self) -> bool {
        !self.held.is_empty() || !self.moved.is_empty()
    }

    /// Whether answers wait for a lease that saw no more than the entries up to an index.
    pub(super) fn has_early(&self, upto: Index) -> bool {
        self.early.front().is_some_and(|(index, _)| *index <= upto)
    }

    /// Releases up to `room` effects that the commit index has reached, and answers that `early` has; returns their number.
    #[expect(clippy::too_many_arguments, reason = "the parts of the shard, which holds this one as well")]
    pub(super) fn commit(
        &mut self,
        commit: Index,
        early: Option<Index>,
        state: &State,
        clock: &Clock,
        settings: &Settings,
        step_runs: &mut StepRuns,
        room: usize,
        out: &mut Vec<Effect>,
    ) -> usize {
        let now = clock.steady();
        let mut left = room;
        while left > 0
            && let Some((_, held)) = early
                .and_then(|upto| self.early.pop_front_if(|(index, _)| *index <= upto))
                .or_else(|| self.held.pop_front_if(|(index, _)| *index <= commit))
        {
            left -= 1;
            match held {
                Held::Answer(answer) => {
                    self.answer_bytes -= answer.bytes();
                    out.push(Effect::Answer(answer));
                }
                Held::Query(reading) => {
                    self.query_bytes -= reading.weight();
                    out.push(Effect::Query(reading));
                }
                Held::Task(id) => {
                    if let Some(task) = state.record::<TaskRecord>(&RecordKey::task(id)) {
                        left = left.saturating_sub(task.state.len() / Shard::WORK_BYTES);
                        step_runs.set_out(id, task, false, clock.time(), out);
                    }
                }
                Held::Step(id, run) => out.push(Effect::StepAllowed { id, run, allowed: true }),
                Held::Marker(colour) => {
                    self.colour = colour;
                    out.push(Effect::MarkerCommitted(colour));
                }
            }
        }
        while left > 0
            && let Some(&to) = self.backlog.front()
        {
            let channel = self.channels.get_or_default(to);
            channel.progress = now;
            left -= channel.deliver(state, to, left.min(RESEND_BATCH), now, out).max(1);
            if channel.ready == 0 {
                channel.is_in_backlog = false;
                self.backlog.pop_front();
            }
            self.resend_at.get_or_insert(now.plus(settings.resend_after));
        }
        let mut ready = Vec::new();
        while left > 0
            && let Some((_, moved)) = self.moved.pop_front_if(|(index, _)| *index <= commit)
        {
            left -= 1;
            match moved {
                Moved::Sent(to) => {
                    let channel = self.channels.get_or_default(to);
                    if channel.ready == 0 && !channel.is_in_backlog {
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
        shrink::release_spare(&mut self.early);
        shrink::release_spare(&mut self.held);
        shrink::release_spare(&mut self.moved);
        for to in ready {
            let channel = self.channels.get_or_default(to);
            while channel.ready > 0 {
                channel.deliver(state, to, usize::MAX, now, out);
            }
            self.resend_at.get_or_insert(now.plus(settings.resend_after));
        }
        room - left
    }

    fn ack(&mut self, from: ShardId, now: Time, settings: &Settings) {
        let receiving = self.receiving.get_or_default(from);
        if !receiving.ack_due {
            receiving.ack_due = true;
            self.acks.push(from);
            self.ack_at.get_or_insert(now.plus(settings.ack_delay));
        }
    }

    /// Makes a new primary send all messages in its outboxes, and treat all of the log as received. The messages leave
    /// with the next commits; `again` if they may have been running when the process crashed.
    pub(super) fn resend_all(&mut self, state: &State, again: bool, now: Time) {
        for (from, &committed) in state.received().iter() {
            self.receiving.get_or_default(from).committed = committed;
        }
        for (to, outbox) in state.outboxes().iter() {
            let last = Seq(outbox.next.0 - 1);
            let ready = if to == state.shard() { 0 } else { outbox.messages.len() as u64 };
            let met = if again { last } else { Seq(0) };
            let released = Seq(last.0 - ready);
            let is_in_backlog = ready > 0;
            self.channels.insert(to, Sending { released, ready, is_in_backlog, met, progress: now });
            if is_in_backlog {
                self.backlog.push_back(to);
            }
        }
    }

    /// Acknowledges a message that was received before: its sender has missed the acknowledgement.
    pub(super) fn ack_again(&mut self, from: ShardId, now: Time, settings: &Settings) {
        if self.receiving.get_or_default(from).committed > Seq(0) {
            self.ack(from, now, settings);
        }
    }

    pub(super) fn progress(&mut self, to: ShardId, now: Time) {
        self.channels.get_or_default(to).progress = now;
    }

    /// Sends what is due, within the limit of one input; returns the number of effects.
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
            let colour = self.colour;
            for to in std::mem::take(&mut self.acks) {
                let receiving = self.receiving.get_or_default(to);
                receiving.ack_due = false;
                out.push(Effect::Ack { to, upto: receiving.committed, colour });
            }
        }
        if self.resend_at.is_some_and(|at| at <= now) {
            self.resend_at = None;
            // All channels are looked at, so not for each of them at its own time.
            let soon = now.plus(settings.ack_delay);
            for (to, outbox) in state.outboxes().iter().filter(|(to, _)| *to != state.shard()) {
                let channel = self.channels.get_or_default(to);
                if outbox.messages.front().is_none_or(|first| first.seq > channel.released) {
                    continue;
                }
                if channel.progress.plus(settings.resend_after) <= now {
                    if work >= RESEND_BATCH {
                        self.resend_at = Some(now);
                        break;
                    }
                    channel.progress = now;
                    let released = outbox.messages.iter().take_while(|m| m.seq <= channel.released);
                    let messages: Messages = released.take(RESEND_BATCH).cloned().collect();
                    work += messages.len();
                    // Its receiver's process may have ended while handling them.
                    out.push(Effect::Deliver { to, messages, again: true });
                }
                let at = channel.progress.plus(settings.resend_after).max(soon);
                self.resend_at = Some(self.resend_at.map_or(at, |next| next.min(at)));
            }
        }
        work
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        [self.ack_at, self.resend_at].into_iter().flatten().min()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        in_order(self.early.iter().map(|(index, _)| *index))?;
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
