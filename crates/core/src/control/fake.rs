//! A cluster of nodes that do at once what the controller asks for.

use super::command::{Command, Outcome, Refusal};
use super::controller::Controller;
use super::dial::{Acks, Dial, Durability};
use super::facts::{Fact, Hello, NodeReport, PeerReport, Request, ShardReport};
use super::failover::Cause;
use super::node::{DiskState, StartId};
use super::placement::create_service;
use super::settings::Settings;
use super::shard::Stage;
use super::{Cluster, ControlState};
use crate::clock::Now;
use crate::ids::{ClusterId, Epoch, Incarnation, Life, Micros, NodeId, ReplicaId, ShardId, Time};
use crate::replication::epoch::SealAnswer;
use crate::replication::table::{EpochTable, LogPoint};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const A: NodeId = NodeId(1);
pub(super) const B: NodeId = NodeId(2);
pub(super) const C: NodeId = NodeId(3);
pub(super) const D: NodeId = NodeId(4);

#[derive(Clone, Debug, Default)]
pub(super) struct FakeReplica {
    pub(super) promised: Epoch,
    pub(super) table: EpochTable,
    pub(super) active: Epoch,
    pub(super) leads: Option<Epoch>,
    pub(super) learners: Vec<ReplicaId>,
    pub(super) max_lag: Micros,
}

#[derive(Clone, Debug)]
pub(super) struct FakeNode {
    pub(super) life: Life,
    pub(super) start: StartId,
    pub(super) is_up: bool,
    /// Its disk hangs: it answers no seal.
    pub(super) stalled: Micros,
    /// The states of its replicas are being folded.
    pub(super) is_folding: bool,
    /// The time at which leases that it granted are over.
    pub(super) granted: Time,
    pub(super) replicas: BTreeMap<(ShardId, ReplicaId), FakeReplica>,
    /// The number of the first shards that it knows; `None` for all.
    pub(super) known: Option<u32>,
}

pub(super) struct Fake {
    pub(super) state: ControlState,
    pub(super) controller: Controller,
    pub(super) now: Now,
    pub(super) nodes: BTreeMap<NodeId, FakeNode>,
    /// Commands are lost.
    pub(super) is_mute: bool,
    pub(super) seal_frames: Vec<(NodeId, usize)>,
    pub(super) commands: Vec<Command>,
    pub(super) refusals: Vec<Refusal>,
}

impl Fake {
    pub(super) fn new(nodes: u32) -> Self {
        let now = Now::at(Time(10_000_000));
        let mut state = ControlState::default();
        state.apply(Command::Found {
            cluster: Cluster { id: ClusterId(1), incarnation: Incarnation(1) },
            secret: None,
        });
        let mut fake = Self {
            state,
            controller: Controller::new(now, Settings::default()),
            now,
            nodes: BTreeMap::new(),
            is_mute: false,
            seal_frames: Vec::new(),
            commands: Vec::new(),
            refusals: Vec::new(),
        };
        (1..=nodes).for_each(|_| fake.join());
        fake.state.apply(Command::SetBalancing { is_balancing: false });
        fake
    }

    /// A new node introduces itself, and joins.
    pub(super) fn join(&mut self) {
        let node = self.state.next_node();
        let start = StartId(u128::from(node.0));
        let addresses = vec![format!("n{node}:1")];
        let (disk, earlier) = (DiskState::Whole, Vec::new());
        let hello = Hello { node: None, life: Life(1), start, disk, addresses, earlier };
        let (life, replicas) = (Life(1), BTreeMap::new());
        let new = FakeNode {
            life,
            start,
            is_up: true,
            stalled: Micros(0),
            is_folding: false,
            granted: Time(0),
            replicas,
            known: None,
        };
        self.nodes.insert(node, new);
        self.controller.handle(self.now, Fact::Hello(hello));
        self.run(50);
        assert!(self.state.nodes().contains_key(&node), "node {node} joined");
    }

    pub(super) fn create(&mut self, shards: u32, dial: Dial) {
        let command = create_service(&self.state, self.controller.health(), "bank".to_owned(), dial, shards);
        assert_eq!(self.state.apply(command), Outcome::Done);
        self.run(200);
        assert!(self.is_settled());
        self.forget();
    }

    pub(super) fn forget(&mut self) {
        (self.seal_frames, self.commands, self.refusals) = (Vec::new(), Vec::new(), Vec::new());
    }

    pub(super) fn is_settled(&self) -> bool {
        self.state.shards().all(|(_, shard)| shard.is_settled())
    }

    pub(super) fn run(&mut self, millis: u64) {
        for _ in 0..millis / 10 {
            self.now = Now::at(self.now.steady.plus_millis(10));
            self.watch();
            if (self.now.steady.0 / 10_000).is_multiple_of(5) {
                self.report();
            }
            let mut out = Vec::new();
            self.controller.decide(self.now, &self.state, &mut out);
            out.into_iter().for_each(|request| self.perform(request));
        }
    }

    /// Runs until this holds, and returns the milliseconds.
    pub(super) fn run_until(&mut self, holds: impl Fn(&Self) -> bool) -> u64 {
        for millis in (0..60_000).step_by(10) {
            if holds(self) {
                return millis;
            }
            self.run(10);
        }
        let problems: Vec<_> = self.controller.problems().collect();
        panic!(
            "it does not come: {:?} {problems:?} {:?}",
            self.state.shards().collect::<Vec<_>>(),
            self.commands
        );
    }

    /// The node of a shard's primary.
    pub(super) fn leader(&self, shard: u32) -> NodeId {
        self.state.shard(ShardId(shard)).unwrap().primary_node().unwrap()
    }

    /// Nodes create the replicas that the state places on them.
    pub(super) fn watch(&mut self) {
        for (id, shard) in self.state.shards() {
            for (replica, placed) in shard.replicas() {
                let is_there = placed.stage != Stage::Released && !self.state.is_lost(placed);
                if let Some(node) = self.nodes.get_mut(&placed.node).filter(|node| is_there && node.is_up) {
                    node.replicas.entry((id, *replica)).or_default();
                }
            }
        }
    }

    pub(super) fn report(&mut self) {
        let nodes: Vec<NodeId> =
            self.nodes.iter().filter(|(_, node)| node.is_up).map(|(id, _)| *id).collect();
        for &id in &nodes {
            let node = &self.nodes[&id];
            let peers = self.nodes.iter().filter(|(peer, _)| **peer != id).map(|(peer, other)| PeerReport {
                node: *peer,
                silent: Micros(0),
                is_closed: !other.is_up,
            });
            let shards = node.replicas.iter().map(|((shard, replica), fake)| ShardReport {
                shard: *shard,
                replica: *replica,
                promised: fake.promised,
                active: fake.active,
                leads: fake.leads,
                learners: fake.learners.clone(),
                caught_up: fake.learners.clone(),
                max_lag: fake.leads.map(|_| fake.max_lag),
            });
            let report = NodeReport {
                node: id,
                start: node.start,
                stalled: node.stalled,
                peers: peers.collect(),
                shards: shards.collect(),
                shards_known: node.known,
            };
            self.controller.handle(self.now, Fact::Report(report));
        }
    }

    pub(super) fn perform(&mut self, request: Request) {
        match request {
            Request::Propose(command) if !self.is_mute => {
                // Each comes twice.
                for _ in 0..2 {
                    match self.state.apply(command.clone()) {
                        Outcome::Refused(refusal) => self.refusals.push(refusal),
                        Outcome::Shards(results) => self.refusals.extend(results.into_iter().flatten()),
                        Outcome::Done => {}
                    }
                    self.state.check().unwrap();
                }
                self.commands.push(command);
            }
            Request::Propose(_) | Request::Ask(_) => {}
            Request::Seal { node, seals } => {
                self.seal_frames.push((node, seals.len()));
                let Some(fake) = self.nodes.get_mut(&node).filter(|node| node.is_up) else { return };
                for (shard, replica, seal) in seals {
                    let Some(sealed) = fake.replicas.get_mut(&(shard, replica)) else { continue };
                    if fake.stalled > Micros(0) {
                        continue;
                    }
                    if sealed.promised > seal.epoch {
                        let promised = sealed.promised;
                        self.controller.handle(self.now, Fact::Superseded { shard, promised });
                        continue;
                    }
                    (sealed.promised, sealed.leads) = (seal.epoch, None);
                    if seal.lease > Micros(0) && fake.granted > self.now.steady {
                        continue;
                    }
                    let (table, active, epoch) = (sealed.table.clone(), sealed.active, seal.epoch);
                    let (life, is_folding) = (fake.life, fake.is_folding);
                    let answer = SealAnswer { replica, life, epoch, table, active, is_folding };
                    self.controller.handle(self.now, Fact::Sealed(shard, answer));
                }
            }
            Request::Lead { node, shard, record, learners, max_lag } => {
                let (epoch, primary) = (record.config.epoch(), record.config.primary());
                let fake = self.nodes.get_mut(&node).filter(|node| node.is_up && node.life == record.life);
                let Some(leader) = fake.and_then(|node| node.replicas.get_mut(&(shard, primary))) else {
                    return;
                };
                if leader.promised > epoch {
                    return;
                }
                leader.learners.clone_from(&learners);
                leader.max_lag = max_lag;
                if leader.leads == Some(epoch) {
                    return;
                }
                assert!(leader.table.has(record.base), "a primary has its base: {leader:?} {record:?}");
                leader.table.truncate(record.base.index);
                leader.table.push(LogPoint { epoch, index: record.base.index.next() });
                (leader.promised, leader.leads) = (epoch, Some(epoch));
                let table = leader.table.clone();
                let mut stored = 0;
                for fake in self.nodes.values_mut().filter(|node| node.is_up && node.stalled == Micros(0)) {
                    for ((_, replica), other) in fake.replicas.iter_mut().filter(|((at, _), _)| *at == shard)
                    {
                        let is_member = record.config.members().contains(replica);
                        if (is_member || learners.contains(replica)) && other.promised <= epoch {
                            (other.table, other.promised) = (table.clone(), epoch);
                            stored += usize::from(is_member);
                        }
                    }
                }
                if stored >= record.config.commit_quorum() {
                    let leader =
                        self.nodes.get_mut(&node).unwrap().replicas.get_mut(&(shard, primary)).unwrap();
                    leader.active = epoch;
                }
            }
            Request::Delete { node, shard, replica } => {
                let Some(fake) = self.nodes.get_mut(&node).filter(|node| node.is_up) else { return };
                fake.replicas.remove(&(shard, replica));
                self.controller.handle(self.now, Fact::Deleted(shard, replica));
            }
        }
    }

    pub(super) fn kill(&mut self, node: NodeId) {
        let fake = self.nodes.get_mut(&node).unwrap();
        fake.is_up = false;
        for replica in fake.replicas.values_mut() {
            replica.leads = None;
        }
        self.controller.handle(self.now, Fact::Closed(node));
        self.report();
    }

    pub(super) fn restart(&mut self, node: NodeId, disk: DiskState) {
        let fake = self.nodes.get_mut(&node).unwrap();
        (fake.is_up, fake.life) = (true, fake.life.next());
        for replica in fake.replicas.values_mut() {
            replica.leads = None;
        }
        if disk == DiskState::Lost {
            fake.replicas.clear();
        }
        let earlier = vec![fake.start];
        fake.start = StartId(u128::from(fake.life.0) << 64 | u128::from(node.0));
        let start = fake.start;
        let addresses = vec!["a:1".to_owned()];
        let hello = Hello { node: Some(node), life: fake.life, start, disk, addresses, earlier };
        self.controller.handle(self.now, Fact::Hello(hello));
    }

    pub(super) fn primaries(&self) -> BTreeMap<NodeId, usize> {
        let mut primaries = BTreeMap::new();
        for (_, shard) in self.state.shards() {
            *primaries.entry(shard.primary_node().unwrap()).or_default() += 1;
        }
        primaries
    }

    /// The nodes of the members of a shard's newest epoch.
    pub(super) fn members(&self, shard: u32) -> BTreeSet<NodeId> {
        let shard = self.state.shard(ShardId(shard)).unwrap();
        shard.history().newest().config.members().iter().map(|id| shard.replicas()[id].node).collect()
    }

    pub(super) fn causes(&self) -> BTreeSet<Cause> {
        self.state.failovers().iter().map(|failover| failover.cause).collect()
    }

    pub(super) fn all_led_but_by(&self, node: NodeId) -> bool {
        self.is_settled() && !self.primaries().contains_key(&node)
    }
}

pub(super) fn dial(replicas: u8, acks: Acks) -> Dial {
    Dial { replicas, acks, ..Dial::default() }
}

pub(super) const THREE: Dial = Dial {
    replicas: 3,
    acks: Acks::Majority,
    durability: Durability::Always,
    max_lag: Micros::from_secs(10),
    lease: Micros::from_millis(500),
};
