//! The choice of nodes: replicas of a shard on different nodes, and all of them, and the primaries among them, spread evenly.

use super::ControlState;
use super::command::{Command, ShardStart};
use super::dial::Dial;
use super::health::Health;
use super::shard::{ShardRecord, Stage};
use crate::ids::{NodeId, ReplicaId, ShardId};
use std::collections::BTreeMap;

/// The load of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// Shards that it leads.
    pub primaries: u32,
    /// Replicas, learners included.
    pub replicas: u32,
}

/// The loads of the nodes that may take replicas: those that have not failed, and are not to leave.
#[derive(Clone, Debug, Default)]
pub struct Loads {
    loads: BTreeMap<NodeId, Load>,
    /// Nodes that may take replicas, with the number of the first shards that each knows, if it has reported it.
    takers: BTreeMap<NodeId, Option<u32>>,
}

impl Loads {
    /// Counts what the nodes carry.
    #[must_use]
    pub fn new(state: &ControlState, health: &Health) -> Self {
        let takers =
            state.nodes().iter().filter(|(node, record)| !record.is_leaving && health.is_well(**node));
        let takers = takers.map(|(node, _)| (*node, health.shards_known(*node))).collect();
        let mut loads = Self { loads: BTreeMap::new(), takers };
        for (_, shard) in state.shards() {
            for placed in shard.replicas().values() {
                if state.is_usable(placed) {
                    loads.loads.entry(placed.node).or_default().replicas += 1;
                }
            }
            if let Some(node) = shard.primary_node() {
                loads.loads.entry(node).or_default().primaries += 1;
            }
        }
        loads
    }

    /// Returns the load of a node.
    #[must_use]
    pub fn of(&self, node: NodeId) -> Load {
        self.loads.get(&node).copied().unwrap_or_default()
    }

    /// Whether a node knows a shard.
    fn knows(&self, node: NodeId, shard: ShardId) -> bool {
        self.takers.get(&node).copied().flatten().is_some_and(|known| shard.0 < known)
    }

    /// Whether all nodes that may take replicas have reported which shards they know: until then a step may be missing.
    pub(super) fn are_complete(&self) -> bool {
        self.takers.values().all(Option::is_some)
    }

    /// Returns the node with the fewest replicas that may take one of a shard. On one that does not know the shard, the replica would
    /// wait for the node's next start.
    #[must_use]
    pub fn spare(&self, state: &ControlState, id: ShardId, shard: &ShardRecord) -> Option<NodeId> {
        let is_free = |node: &&NodeId| {
            self.knows(**node, id)
                && !shard.replicas().values().any(|placed| placed.node == **node && !state.is_gone(placed))
        };
        self.takers.keys().filter(is_free).min_by_key(|node| (self.of(**node).replicas, **node)).copied()
    }

    /// Counts a replica that is placed on a node.
    pub fn place(&mut self, node: NodeId) {
        self.loads.entry(node).or_default().replicas += 1;
    }

    /// Counts that a primary moves.
    pub fn move_primary(&mut self, from: Option<NodeId>, to: NodeId) {
        if let Some(load) = from.and_then(|from| self.loads.get_mut(&from)) {
            load.primaries = load.primaries.saturating_sub(1);
        }
        self.loads.entry(to).or_default().primaries += 1;
    }

    /// Returns the node with the most of something, and those that have less by two or more, the one with the fewest first: one may
    /// be moved.
    fn uneven(&self, count: impl Fn(Load) -> u32) -> Option<(NodeId, Vec<NodeId>)> {
        let of = |node: NodeId| count(self.of(node));
        let most = *self.takers.keys().max_by_key(|node| (of(**node), std::cmp::Reverse(**node)))?;
        let less = self.takers.keys().copied().filter(|node| of(most) >= of(*node) + 2);
        let mut less: Vec<NodeId> = less.collect();
        less.sort_by_key(|node| (of(*node), *node));
        Some((most, less))
    }
}

/// A step that makes the nodes' loads more even.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A replica of the shard is placed on the node: once it has caught up, it takes the place of one on the fullest node.
    Place(ShardId, NodeId),
    /// The shard is led by another replica.
    Lead(ShardId, ReplicaId),
}

/// Chooses the next step that makes the loads more even; `None` if there is none. `may_lead` says whether it makes sense to try to
/// move a shard's primary.
#[must_use]
pub fn next_step(state: &ControlState, loads: &Loads, may_lead: impl Fn(ShardId) -> bool) -> Option<Step> {
    let on = |shard: &ShardRecord, node: NodeId| {
        let mut here =
            shard.replicas().iter().filter(|(_, placed)| placed.node == node && !state.is_lost(placed));
        here.next().map(|(id, placed)| (*id, placed.stage))
    };
    let (most, less) = loads.uneven(|load| load.replicas)?;
    for node in less {
        let moves = state.shards().filter(|(id, shard)| {
            let is_member = on(shard, most).is_some_and(|(_, stage)| stage == Stage::Member);
            is_member && on(shard, node).is_none() && loads.knows(node, *id)
        });
        // One that is not the primary is replaced without a failover.
        let found = moves.min_by_key(|(id, shard)| (shard.primary_node() == Some(most), *id));
        if let Some((shard, _)) = found {
            return Some(Step::Place(shard, node));
        }
    }
    let (most, less) = loads.uneven(|load| load.primaries)?;
    let least = *less.first()?;
    let mut led = state.shards().filter(|(_, shard)| shard.primary_node() == Some(most));
    led.find_map(|(id, shard)| {
        let members = shard.history().newest().config.members();
        let (replica, _) = on(shard, least).filter(|(replica, _)| members.contains(replica))?;
        may_lead(id).then_some(Step::Lead(id, replica))
    })
}

/// Makes the command that creates a service: each shard begins with its replicas spread over the nodes, and led by the one on the
/// node that leads the fewest. With fewer nodes that are well than replicas, it begins with fewer, and gets the others later.
#[must_use]
pub fn create_service(
    state: &ControlState,
    health: &Health,
    name: String,
    dial: Dial,
    shards: u32,
) -> Command {
    let mut loads = Loads::new(state, health);
    let start = |_| {
        let mut nodes: Vec<NodeId> = loads.takers.keys().copied().collect();
        nodes.sort_by_key(|node| (loads.of(*node).replicas, loads.of(*node).primaries, *node));
        nodes.truncate(usize::from(dial.replicas));
        if let Some(at) = (0..nodes.len()).min_by_key(|at| (loads.of(nodes[*at]).primaries, *at)) {
            nodes.swap(0, at);
            loads.move_primary(None, nodes[0]);
        }
        nodes.iter().for_each(|node| loads.place(*node));
        ShardStart::New { nodes }
    };
    Command::CreateService { name, dial, shards: (0..shards).map(start).collect() }
}
