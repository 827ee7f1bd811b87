//! The cluster as one of its nodes sees it.

use super::REPLICAS;
use serde::Deserialize;
use std::collections::BTreeSet;

/// Entries by which a replica may be behind in a cluster that is whole: they are on their way.
const LAG_MAX: u64 = 1_000;

/// The cluster as one of its nodes sees it.
#[derive(Debug, Deserialize)]
pub(super) struct View {
    leader: Option<u32>,
    is_balancing: bool,
    nodes: Vec<NodeView>,
    pub(super) shards: Vec<ShardView>,
    pub(super) failovers: Vec<FailoverView>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NodeView {
    state: String,
    votes: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct ShardView {
    pub(super) shard: u32,
    pub(super) is_active: bool,
    pub(super) primary: Option<u32>,
    members: Vec<u32>,
    lags: Vec<LagView>,
}

#[derive(Debug, Deserialize)]
pub(super) struct LagView {
    entries: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct FailoverView {
    pub(super) shard: u32,
    pub(super) epoch: u64,
    pub(super) from: Option<u32>,
    pub(super) duration_us: Option<u64>,
}

impl View {
    /// Whether all nodes work, and each shard has all of its replicas, which hold all but what is on its way.
    pub(super) fn is_whole(&self, nodes: usize) -> bool {
        let replicas = nodes.min(usize::from(REPLICAS));
        let is_well = |node: &NodeView| node.votes && node.state == "up";
        let is_stored = |shard: &ShardView| shard.lags.iter().all(|lag| lag.entries <= LAG_MAX);
        self.leader.is_some()
            && !self.is_balancing
            && self.nodes.len() == nodes
            && self.nodes.iter().all(is_well)
            && self.shards.iter().all(|shard| {
                let others = shard.lags.len() + 1;
                shard.is_active && shard.members.len() == replicas && others == replicas && is_stored(shard)
            })
    }

    pub(super) fn led_by(&self, node: u32) -> BTreeSet<u32> {
        self.shards.iter().filter(|shard| shard.primary == Some(node)).map(|shard| shard.shard).collect()
    }
}
