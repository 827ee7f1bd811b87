//! The calls of a worker that wait for another node, or for one to lead their shard. Decides when each goes out, and whether it may again;
//! the worker carries it. Never reads a clock.

use crate::reply::ReplyTo;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::ids::{Micros, NodeId, ShardId, Time};
use stead_net::forward::Outcome;
use stead_net::native;

/// Maximum number of calls of a node that wait for other nodes: 16,384.
const CALLS_MAX: usize = 16_384;
/// Maximum number of their bytes: 64 MiB.
const BYTES_MAX: usize = 64 << 20;
/// Pauses between two attempts at a node that does not lead: each is twice as long as the one before.
const PAUSE_MIN: Micros = Micros::from_millis(5);
const PAUSE_MAX: Micros = Micros::from_millis(100);

/// News of forwarded calls, and of the nodes that have them.
pub(crate) enum News {
    /// The end of a call, by its number.
    Answered(u64, Outcome),
    /// A call did not leave for a node: there is no connection to it, or it reads too slowly.
    Unsent(NodeId, u64),
    /// Messages flow to a node.
    Opened(NodeId),
    /// Messages on their way to a node, or from it, may be lost.
    Closed(NodeId),
}

/// A call for a shard that another node leads, or did.
pub(crate) struct Forwarded<C> {
    pub(crate) shard: ShardId,
    /// The encoded request.
    pub(crate) ask: Bytes,
    /// Whether it has the effect of one if it is sent twice.
    pub(crate) repeats: bool,
    pub(crate) reply_to: ReplyTo<C>,
    /// Its bytes in the account of memory.
    pub(crate) bytes: usize,
    /// Whether it may have been applied, or may still be.
    pub(crate) in_doubt: bool,
    /// The pause before its last attempt.
    pause: Micros,
}

impl<C> Forwarded<C> {
    /// Returns a call that was not sent yet. `ask` and `repeats` are those of [`ask_of`](super::ask_of).
    pub(crate) fn new(
        shard: ShardId,
        (ask, repeats): (Bytes, bool),
        reply_to: ReplyTo<C>,
        bytes: usize,
        in_doubt: bool,
    ) -> Self {
        Self { shard, ask, repeats, reply_to, bytes, in_doubt, pause: Micros(0) }
    }

    /// Returns the encoded request as it goes to a shard now.
    pub(crate) fn ask_now(&self) -> Bytes {
        if self.in_doubt { native::repeated(&self.ask) } else { self.ask.clone() }
    }
}

struct Held<C> {
    call: Forwarded<C>,
    /// The node that has it, if one does.
    sent: Option<NodeId>,
    due: Time,
}

/// The calls of a worker that wait for other nodes, by a number that each gets anew whenever it changes hands: what comes late for an
/// earlier attempt is for no call.
pub(crate) struct Desk<C> {
    calls: BTreeMap<u64, Held<C>>,
    /// When each is looked at again: at its deadline at the latest.
    due: BTreeSet<(Time, u64)>,
    last: u64,
    bytes: usize,
    calls_max: usize,
    bytes_max: usize,
    /// The nodes to which nothing can be sent.
    down: BTreeSet<NodeId>,
}

impl<C> Desk<C> {
    /// Returns the desk of one of so many workers.
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            calls: BTreeMap::new(),
            due: BTreeSet::new(),
            last: 0,
            bytes: 0,
            calls_max: (CALLS_MAX / workers.max(1)).max(1),
            bytes_max: BYTES_MAX / workers.max(1),
            down: BTreeSet::new(),
        }
    }

    /// Whether another call may wait. Space for one is space for any: a single call that exceeds the limit must not be refused for ever.
    pub(crate) fn has_room(&self) -> bool {
        self.calls.len() < self.calls_max && self.bytes < self.bytes_max
    }

    /// Whether nothing can be sent to a node now.
    pub(crate) fn is_down(&self, node: NodeId) -> bool {
        self.down.contains(&node)
    }

    /// Returns the time at which the next call is due.
    pub(crate) fn due(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }

    fn insert(&mut self, call: Forwarded<C>, sent: Option<NodeId>, due: Time) -> u64 {
        self.last += 1;
        let due = due.min(call.reply_to.deadline);
        self.bytes += call.ask.len();
        self.due.insert((due, self.last));
        self.calls.insert(self.last, Held { call, sent, due });
        self.last
    }

    fn remove(&mut self, number: u64) -> Option<Held<C>> {
        let held = self.calls.remove(&number)?;
        self.due.remove(&(held.due, number));
        self.bytes -= held.call.ask.len();
        Some(held)
    }

    /// Keeps a call that leaves for a node; returns the number of this attempt.
    pub(crate) fn send(&mut self, call: Forwarded<C>, node: NodeId) -> u64 {
        self.insert(call, Some(node), Time(u64::MAX))
    }

    /// Keeps a call until news let it go on, or its time is over.
    pub(crate) fn hold(&mut self, call: Forwarded<C>) {
        self.insert(call, None, Time(u64::MAX));
    }

    /// Keeps a call for a pause, after an attempt at a node that does not lead.
    pub(crate) fn pause(&mut self, mut call: Forwarded<C>, now: Time) {
        call.pause = Micros(call.pause.0 * 2).max(PAUSE_MIN).min(PAUSE_MAX);
        let due = now.plus(call.pause);
        self.insert(call, None, due);
    }

    /// Takes the call of an attempt, if it still counts.
    pub(crate) fn take(&mut self, number: u64) -> Option<Forwarded<C>> {
        self.remove(number).map(|held| held.call)
    }

    /// Takes the next call that is due.
    pub(crate) fn take_due(&mut self, now: Time) -> Option<Forwarded<C>> {
        let (_, number) = *self.due.first().filter(|(at, _)| *at <= now)?;
        let Held { mut call, sent, .. } = self.remove(number)?;
        call.in_doubt |= sent.is_some();
        Some(call)
    }

    /// Notes that nothing can be sent to a node.
    pub(crate) fn note_down(&mut self, node: NodeId) {
        self.down.insert(node);
    }

    /// Notes that messages flow to a node; the calls that wait go on.
    pub(crate) fn note_up(&mut self, node: NodeId, now: Time) {
        self.down.remove(&node);
        self.wake(now, |_| true);
    }

    /// Makes calls due that wait, of the shards for which `goes_on` returns true.
    pub(crate) fn wake(&mut self, now: Time, goes_on: impl Fn(ShardId) -> bool) {
        for (number, held) in &mut self.calls {
            if held.sent.is_none() && held.due > now && goes_on(held.call.shard) {
                self.due.remove(&(held.due, *number));
                held.due = now;
                held.call.pause = Micros(0);
                self.due.insert((now, *number));
            }
        }
    }

    /// Takes back the calls that nodes have and for which `is_lost` returns true. Those that may be repeated are due now; returns those
    /// that may not.
    pub(crate) fn take_back(
        &mut self,
        now: Time,
        is_lost: impl Fn(&Forwarded<C>, NodeId) -> bool,
    ) -> Vec<Forwarded<C>> {
        let is_lost = |held: &Held<C>| held.sent.is_some_and(|node| is_lost(&held.call, node));
        let numbers = self.calls.iter().filter(|(_, held)| is_lost(held)).map(|(number, _)| *number);
        let mut ends = Vec::new();
        for number in numbers.collect::<Vec<u64>>() {
            let mut call = self.remove(number).expect("it was found above").call;
            call.in_doubt = true;
            if call.repeats {
                self.insert(call, None, now);
            } else {
                ends.push(call);
            }
        }
        ends
    }

    /// Takes all calls.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Forwarded<C>> {
        self.due.clear();
        self.bytes = 0;
        std::mem::take(&mut self.calls).into_values().map(|held| held.call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use stead_core::blob::Blob;
    use stead_core::ids::Colour;
    use stead_core::key::Key;

    fn call(shard: u32, repeats: bool, bytes: usize, deadline: Time) -> Forwarded<()> {
        let reply_to = ReplyTo { caller: (), deadline, timeout: Duration::ZERO };
        Forwarded::new(ShardId(shard), (Bytes::from(vec![0; bytes]), repeats), reply_to, 0, false)
    }

    const LATE: Time = Time(1_000_000);

    #[test]
    fn calls_wait_up_to_a_number_and_to_a_number_of_bytes() {
        let mut desk = Desk::new(CALLS_MAX / 2);
        assert!(desk.has_room());
        desk.hold(call(1, true, 1, LATE));
        let number = desk.send(call(1, true, 1, LATE), NodeId(1));
        assert!(!desk.has_room());
        assert!(desk.take(number).is_some() && desk.take(number).is_none());
        assert!(desk.has_room());
        desk.hold(call(1, true, BYTES_MAX, LATE));
        desk.drain().for_each(drop);
        assert!(desk.has_room());
        desk.hold(call(1, true, BYTES_MAX, LATE));
        assert!(!desk.has_room(), "one may exceed the limit, and no other");
    }

    #[test]
    fn a_pause_is_twice_as_long_as_the_one_before_and_no_call_outlives_its_deadline() {
        let mut desk = Desk::new(1);
        desk.pause(call(1, true, 1, LATE), Time(0));
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let due = desk.due().unwrap();
            assert!(desk.take_due(Time(due.0 - 1)).is_none());
            let call = desk.take_due(due).unwrap();
            assert!(!call.in_doubt);
            pauses.push(call.pause.0);
            desk.pause(call, due);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 100, 100].map(|millis| millis * 1000));
        let call = desk.take_due(LATE).unwrap();
        desk.pause(call, Time(LATE.0 - 1));
        assert_eq!(desk.due(), Some(LATE));
        let call = desk.take_due(LATE).unwrap();
        desk.send(call, NodeId(1));
        assert!(desk.take_due(LATE).unwrap().in_doubt, "it was sent");
        assert_eq!(desk.due(), None);
    }

    #[test]
    fn what_is_taken_back_is_in_doubt_and_goes_on_in_its_order_if_it_may_be_repeated() {
        let mut desk = Desk::new(1);
        for (shard, repeats, node) in [(1, true, 7), (2, false, 7), (3, true, 8), (4, true, 7)] {
            desk.send(call(shard, repeats, 1, LATE), NodeId(node));
        }
        let ends = desk.take_back(Time(5), |_, node| node == NodeId(7));
        assert_eq!(
            ends.iter().map(|call| (call.shard, call.in_doubt)).collect::<Vec<_>>(),
            [(ShardId(2), true)]
        );
        let mut due = Vec::new();
        while let Some(call) = desk.take_due(Time(5)) {
            due.push((call.shard, call.in_doubt));
        }
        assert_eq!(due, [(ShardId(1), true), (ShardId(4), true)]);
        assert_eq!(desk.due(), Some(LATE), "the third is at another node");
    }

    #[test]
    fn a_call_in_doubt_does_not_say_that_it_is_sent_for_the_first_time() {
        let ask = |is_first| native::Ask::Request {
            shard: ShardId(1),
            process: Key::new("a").unwrap(),
            payload: Blob::empty(),
            principal: "alice",
            identity: native::Identified::None,
            colour: Colour(0),
            seen: None,
            is_first,
        };
        let mut desk = Desk::new(1);
        let first = Forwarded { ask: ask(Some(true)).encode(), ..call(1, true, 0, LATE) };
        assert_eq!(first.ask_now(), first.ask, "no node has had it");
        desk.send(first, NodeId(7));
        desk.take_back(Time(5), |_, _| true);
        assert_eq!(desk.take_due(Time(5)).unwrap().ask_now(), ask(None).encode());
    }

    #[test]
    fn news_of_a_node_let_calls_go_on_that_wait() {
        let mut desk = Desk::new(1);
        desk.note_down(NodeId(7));
        desk.hold(call(1, true, 1, LATE));
        desk.pause(call(2, true, 1, LATE), Time(0));
        desk.wake(Time(1), |shard| shard == ShardId(2));
        assert_eq!(desk.take_due(Time(1)).map(|call| call.shard), Some(ShardId(2)));
        assert!(desk.is_down(NodeId(7)) && desk.take_due(Time(1)).is_none());
        desk.note_up(NodeId(7), Time(2));
        assert!(!desk.is_down(NodeId(7)));
        assert_eq!(desk.take_due(Time(2)).map(|call| call.shard), Some(ShardId(1)));
    }
}
