//! The knowledge of a client of the nodes that lead the shards, and when it asks for news. Never reads a clock.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use stead_core::ids::{Epoch, Micros, ShardId, Time};
use stead_net::connection::RequestId;
use stead_net::native::Primary;
use stead_net::network::ConnectionId;

/// Interval at which a node is asked for the nodes of the cluster and what they lead.
const INTERVAL: Micros = Micros::from_secs(10);
/// Time after the last request before the next one if there is a reason to ask; it doubles with each that brings nothing new.
const PAUSE_MIN: Micros = Micros::from_millis(100);
/// The longest of these times.
const PAUSE_MAX: Micros = Micros::from_millis(500);

/// The shards that a node no longer leads, with its address.
pub(super) type Moved = BTreeMap<ShardId, SocketAddr>;

/// The primaries of the shards, as far as nodes have named them. They may have changed.
pub(super) struct Routes {
    nodes: Vec<SocketAddr>,
    /// By shard.
    primaries: Vec<Option<Primary>>,
    /// The request for news, while it has no answer.
    asked: Option<(ConnectionId, RequestId)>,
    asked_at: Time,
    pause: Micros,
    due: Time,
}

impl Routes {
    pub(super) fn new(now: Time) -> Self {
        Self {
            nodes: Vec::new(),
            primaries: Vec::new(),
            asked: None,
            asked_at: Time(0),
            pause: PAUSE_MIN,
            due: now,
        }
    }

    /// Returns the address of the node that leads a shard.
    pub(super) fn primary_of(&self, shard: ShardId) -> Option<SocketAddr> {
        let primary = self.primaries.get(shard.0 as usize)?.as_ref()?;
        self.nodes.get(primary.node as usize).copied()
    }

    /// Returns the time at which a node is to be asked.
    pub(super) fn due(&self) -> Time {
        self.due
    }

    /// Asks as soon as a node can be asked.
    pub(super) fn ask_at(&mut self, now: Time) {
        self.due = now;
    }

    /// Asks soon, because something has changed, or may have.
    pub(super) fn hurry(&mut self, now: Time) {
        self.due = self.due.min(self.asked_at.plus(self.pause).max(now));
    }

    /// Returns the request for news that has no answer.
    pub(super) fn asked(&self) -> Option<(ConnectionId, RequestId)> {
        self.asked
    }

    /// Notes that a node was asked.
    pub(super) fn note_asked(&mut self, connection: ConnectionId, request: RequestId, now: Time) {
        self.asked = Some((connection, request));
        self.asked_at = now;
        self.due = now.plus(INTERVAL);
        self.pause = Micros(self.pause.0 * 2).min(PAUSE_MAX);
    }

    /// Notes that news have come unasked.
    pub(super) fn note_learned(&mut self, now: Time) {
        self.asked_at = now;
        self.due = now.plus(INTERVAL);
    }

    /// Waits for its answer no longer.
    pub(super) fn forget_asked(&mut self) {
        self.asked = None;
    }

    /// Whether it has waited for its answer for so long.
    pub(super) fn is_unanswered(&self, time: Micros, now: Time) -> bool {
        self.asked.is_some() && self.asked_at.plus(time) <= now
    }

    /// Handles the epoch of an answer of a shard: a later one than that of its primary has another primary.
    pub(super) fn saw(&mut self, shard: ShardId, epoch: Epoch, now: Time) {
        match self.primaries.get(shard.0 as usize) {
            // A node that has no routes names none.
            None => {}
            Some(Some(primary)) if primary.epoch >= epoch => {}
            Some(_) => self.hurry(now),
        }
    }

    /// Forgets the primary of a shard, which leads it no longer.
    pub(super) fn forget(&mut self, shard: ShardId, now: Time) {
        if let Some(primary) = self.primaries.get_mut(shard.0 as usize) {
            *primary = None;
            self.hurry(now);
        }
    }

    /// Takes what a node knows. What it does not know yet, this keeps. Returns the shards that nodes no longer lead.
    pub(super) fn take(&mut self, nodes: Vec<SocketAddr>, primaries: Vec<Option<Primary>>) -> Moved {
        let mut moved = Moved::new();
        let mut taken = Vec::with_capacity(primaries.len());
        for (shard, mut primary) in (0..).map(ShardId).zip(primaries) {
            let known = self.primaries.get(shard.0 as usize).copied().flatten();
            let address = self.primary_of(shard);
            if let (Some(known), Some(address)) = (known, address) {
                let new_address = primary.and_then(|primary| nodes.get(primary.node as usize).copied());
                if primary.is_some_and(|primary| primary.epoch < known.epoch) {
                    let node = nodes.iter().position(|node| *node == address);
                    let node = node.and_then(|node| u32::try_from(node).ok());
                    primary = node.map(|node| Primary { node, ..known });
                } else if new_address.is_some_and(|new| new != address) {
                    moved.insert(shard, address);
                }
            }
            taken.push(primary);
        }
        if !moved.is_empty() || self.nodes != nodes {
            self.pause = PAUSE_MIN;
        }
        (self.nodes, self.primaries) = (nodes, taken);
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn led(node: u32, epoch: u64) -> Option<Primary> {
        Some(Primary { node, epoch: Epoch(epoch) })
    }

    #[test]
    fn the_newest_primary_of_each_shard_counts() {
        let mut routes = Routes::new(Time(0));
        assert_eq!(routes.primary_of(ShardId(0)), None);
        let nodes = vec![address(1), address(2)];
        assert!(routes.take(nodes.clone(), vec![led(0, 4), led(1, 4), led(0, 4)]).is_empty());
        assert_eq!(routes.primary_of(ShardId(1)), Some(address(2)));
        assert_eq!(routes.primary_of(ShardId(3)), None);
        // The first shard has moved; the node that answers does not know yet of the second one's epoch, and names them otherwise.
        let moved = routes.take(vec![address(2), address(1)], vec![led(0, 5), led(1, 3), led(1, 5)]);
        assert_eq!(moved, Moved::from([(ShardId(0), address(1))]));
        let primaries = [0, 1, 2].map(|shard| routes.primary_of(ShardId(shard)));
        assert_eq!(primaries, [Some(address(2)), Some(address(2)), Some(address(1))]);
    }

    #[test]
    fn a_later_epoch_is_a_reason_to_ask_and_the_pause_grows_until_something_is_new() {
        let mut routes = Routes::new(Time(0));
        let (connection, request) = (ConnectionId(1), RequestId(1));
        routes.note_asked(connection, request, Time(0));
        routes.saw(ShardId(0), Epoch(9), Time(1));
        assert_eq!(routes.due(), Time(0).plus(INTERVAL), "a node alone has no routes");
        routes.take(vec![address(1)], vec![led(0, 4)]);
        routes.saw(ShardId(0), Epoch(4), Time(1));
        assert_eq!(routes.due(), Time(0).plus(INTERVAL));
        let mut now = Time(0);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            routes.note_asked(connection, request, now);
            routes.saw(ShardId(0), Epoch(5), now);
            pauses.push(routes.due().since(now).0 / 1000);
            now = routes.due();
        }
        assert_eq!(pauses, [200, 400, 500, 500, 500, 500]);
        routes.take(vec![address(1), address(2)], vec![led(1, 5)]);
        routes.forget(ShardId(0), now);
        assert_eq!(routes.due(), now, "the last request is long ago");
        assert_eq!(routes.primary_of(ShardId(0)), None);
    }
}
