//! The nodes and the control plane: what they report to it, and its orders.

use super::network::DELAY;
use super::node::{at_of, node_id};
use super::{CONTROL, Cluster, ClusterBug, ClusterMark, Event, Outcome};
use crate::profile::one_in;
use std::collections::BTreeSet;
use stead_core::control::facts::{Fact, Hello, NodeReport, PeerReport, Request};
use stead_core::control::node::DiskState;
use stead_core::control::shard::ShardRecord;
use stead_core::ids::{Micros, ReplicaId, ShardId};
use stead_core::replication::epoch::EpochRecord;
use stead_core::replication::table::Losses;
use stead_core::shard_replica::Input;

/// A node whose replicas have no news reports once in so many steps of the control plane.
const QUIET: u64 = 4;

impl Cluster {
    /// The control plane decides, and the nodes report to it and follow its state.
    pub(super) fn control(&mut self) -> Outcome {
        self.at(CONTROL, Event::Control);
        self.looks += 1;
        for at in 0..self.machines.len() {
            if self.now < self.machines[at].paused_until || self.is_deaf(at) {
                continue;
            }
            self.introduce(at)?;
            let is_due = (self.looks + at as u64).is_multiple_of(QUIET);
            if is_due || self.machines[at].life.as_ref().is_some_and(|running| running.changed) {
                self.report(at);
            }
            self.follow_routes(at);
        }
        self.connect();
        let now = self.now;
        let requests = self.plane.step(now, &mut self.rng, &self.void, &mut self.marks)?;
        for (shard, mut record, goes_without) in std::mem::take(&mut self.plane.begun) {
            if self.bug == Some(ClusterBug::LossUnannounced) {
                record.losses = Losses::default();
            }
            self.model.note_record(shard, &record);
            if goes_without {
                self.marks.hit(ClusterMark::WentOnInDoubt);
                if self.model.take_back(shard, record.base.index)? {
                    self.marks.hit(ClusterMark::CommittedLost);
                }
            }
        }
        let max_lag = self.plane.state.dials()[0].max_lag;
        self.model.judge.max_lag = self.model.judge.max_lag.max(max_lag);
        for request in requests {
            self.note(|| format!("the control plane: {request:?}"));
            if self.is_calm || !one_in(&mut self.rng, 10) {
                let delay = self.random(DELAY * 4);
                self.at(delay, Event::Order(request));
            }
        }
        Ok(())
    }

    /// Whether a node does not reach the control plane: it shares the fate of the links to the first node.
    pub(super) fn is_deaf(&self, at: usize) -> bool {
        at != 0 && (self.network.is_cut(at, 0) || self.network.is_cut(0, at))
    }

    /// A node that enters introduces itself, until its start is registered: then it begins.
    fn introduce(&mut self, at: usize) -> Outcome {
        let machine = &self.machines[at];
        let Some(entering) = &machine.entering else { return Ok(()) };
        if self.plane.is_registered(machine.id, entering.start) {
            return self.begin_registered(at);
        }
        let is_doubted = entering.may_lack() && self.bug != Some(ClusterBug::DoubtForgotten);
        let disk = if is_doubted { DiskState::Doubtful } else { DiskState::Whole };
        if is_doubted {
            self.marks.hit(ClusterMark::Doubted);
        }
        let hello = Hello {
            node: Some(machine.id),
            life: entering.life,
            start: entering.start,
            disk,
            addresses: vec![format!("n{}:1", machine.id)],
            earlier: entering.earlier(),
        };
        self.send_fact(Fact::Hello(hello));
        Ok(())
    }

    /// A node reports.
    fn report(&mut self, at: usize) {
        let size = self.machines.len();
        let Some(running) = &mut self.machines[at].life else { return };
        running.changed = false;
        let peers = (0..size).filter(|peer| *peer != at).map(|peer| PeerReport {
            node: node_id(peer),
            silent: Micros(0),
            is_closed: self.links.is_broken(at, peer),
        });
        let peers = peers.collect();
        let shards = running.reports.values().cloned().collect();
        let (node, start, stalled) = (node_id(at), running.start, Micros(0));
        let report = NodeReport { node, start, stalled, peers, shards, shards_known: None };
        self.send_fact(Fact::Report(report));
    }

    pub(super) fn send_fact(&mut self, fact: Fact) {
        if self.is_calm || !one_in(&mut self.rng, 10) {
            let delay = self.random(DELAY * 4);
            self.at(delay, Event::Fact(fact));
        }
    }

    pub(super) fn follow_routes(&mut self, at: usize) {
        let Some(running) = &mut self.machines[at].life else { return };
        let directory = &self.plane.directory;
        if running.routed < directory.version() {
            running.parts.shared.follow_routes(directory.shards_changed_since(running.routed));
            running.routed = directory.version();
            self.heed(at);
        }
    }

    /// A node gets an order of the control plane.
    pub(super) fn obey(&mut self, request: Request) -> Outcome {
        let node = match &request {
            Request::Propose(_) => unreachable!("the plane keeps its proposals"),
            Request::Ask(node) => {
                if !self.machines[at_of(*node)].is_up() && self.rng.bool() {
                    self.send_fact(Fact::Refused(*node));
                }
                return Ok(());
            }
            Request::Seal { node, .. } | Request::Lead { node, .. } | Request::Delete { node, .. } => *node,
        };
        let at = at_of(node);
        if let (Some(ClusterBug::RestartedPrimary), Request::Lead { .. }) = (self.bug, &request)
            && self.machines[at].life.is_some()
            && one_in(&mut self.rng, 4)
        {
            // It shows only if the log has none of the epoch's entries, but another replica does.
            self.cut_power_within(at, 4);
        }
        let Some(running) = self.machines[at].life.as_ref().filter(|_| !self.is_deaf(at)) else {
            return Ok(());
        };
        let shared = &running.parts.shared;
        match request {
            Request::Seal { seals, .. } => {
                for (shard, replica, mut seal) in seals {
                    if let Some(bug) = self.bug {
                        bug.spoil_seal(&mut seal);
                    }
                    shared.push_replica_of(shard, replica, Input::Seal(seal));
                }
            }
            Request::Lead { shard, mut record, learners, max_lag, .. } => {
                if let Some(bug) = self.bug {
                    bug.spoil_record(&mut record, running.life());
                }
                let primary = record.config.primary();
                shared.push_replica_of(shard, primary, Input::Lead { record, learners, max_lag });
            }
            Request::Delete { shard, replica, .. } => shared.delete_replica(shard, replica),
            Request::Propose(_) | Request::Ask(_) => unreachable!("they are handled above"),
        }
        self.heed(at);
        Ok(())
    }

    /// Whether no shard depends on the disk of a node.
    pub(super) fn is_spare(&self, at: usize) -> bool {
        let mut void = self.void.clone();
        void.extend(self.replicas_on(at));
        self.plane.state.shards().all(|(shard, record)| can_end(&void, shard, record))
    }

    /// Returns the replicas whose data are on a node, or may be.
    pub(super) fn replicas_on(&self, at: usize) -> Vec<(ShardId, ReplicaId)> {
        let id = self.machines[at].id;
        let of = self.plane.state.shards().flat_map(|(shard, record)| {
            let here = record.replicas().iter().filter(|(_, placed)| placed.node == id);
            here.map(move |(replica, _)| (shard, *replica)).collect::<Vec<_>>()
        });
        of.collect()
    }
}

/// Whether enough members of each of a shard's epochs have their data for it to be ended. `void` are the replicas that have lost theirs.
pub(super) fn can_end(void: &BTreeSet<(ShardId, ReplicaId)>, shard: ShardId, record: &ShardRecord) -> bool {
    let history = record.history();
    let is_left =
        |member: &&ReplicaId| !void.contains(&(shard, **member)) && !history.void().contains(member);
    history.records().iter().all(|EpochRecord { config, .. }| {
        let left = config.members().iter().filter(is_left);
        left.count() > config.members().len() - config.commit_quorum()
    })
}
