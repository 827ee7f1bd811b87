//! The control plane: the state machine and the decisions that ship, over a modelled consensus. Commands commit after a while, in any
//! order, twice or never; leaders change, and a deposed one goes on for a while by what it knew; sometimes the whole plane is away.

use super::node::NONE;
use super::{CONTROL, LEASE, Message, SETTINGS, SHARD, World};
use crate::bugs::Bug;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::clock::Now;
use stead_core::commit_tracker::EpochConfig;
use stead_core::control::command::{ShardChange, ShardCommand, ShardStart};
use stead_core::control::controller::Controller;
use stead_core::control::detector::TimeoutBounds;
use stead_core::control::dial::{Acks, Dial};
use stead_core::control::facts::{Fact, Hello, NodeReport, PeerReport, Request, ShardReport};
use stead_core::control::failover::Cause;
use stead_core::control::health::HealthSettings;
use stead_core::control::node::DiskState;
use stead_core::control::settings::Settings;
use stead_core::control::shard::{ShardRecord, Stage};
use stead_core::control::{Cluster, Command, ControlState, Outcome};
use stead_core::ids::{ClusterId, Incarnation, Life, Micros, NodeId, ReplicaId, ServiceId, Time};
use stead_core::replication::epoch::SealAnswer;
use stead_core::replication::history::Takeover;

const fn millis(millis: u64) -> Micros {
    Micros::from_millis(millis)
}

const PLANE: Settings = Settings {
    health: HealthSettings {
        timeout: TimeoutBounds { min: millis(60), max: millis(150) },
        stall_max: millis(500),
        ask: millis(20),
        pause: millis(100),
    },
    tick: millis(1),
    send_again: millis(15),
    propose_again: millis(40),
    wait: millis(15),
    force_wait: millis(1_000),
    doubt_wait: millis(1_000),
    lead: millis(100),
    replace_after: millis(150),
    doubt: millis(20),
    learners_max: 4,
    balance: millis(50),
};

pub(super) fn node_id(at: usize) -> NodeId {
    NodeId(at as u32 + 1)
}

fn at_of(node: NodeId) -> usize {
    node.0 as usize - 1
}

/// The consensus and its leaders.
pub(super) struct Plane {
    pub(super) state: ControlState,
    controller: Controller,
    /// A leader that was deposed, and the state that it knows.
    deposed: Option<(Controller, ControlState)>,
    proposals: Vec<Command>,
    /// Until then there is no leader.
    away: Time,
    /// The answers to the seals of a script, and the replicas that lack what they acknowledged.
    pub(super) seals: BTreeMap<ReplicaId, SealAnswer>,
    pub(super) void: BTreeSet<ReplicaId>,
}

impl Plane {
    /// Creates a plane of so many nodes, with a shard on the first ones.
    pub(super) fn new(now: Time, size: usize, members: usize, acks: usize) -> Self {
        let mut state = ControlState::default();
        let cluster = Cluster { id: ClusterId(1), incarnation: Incarnation(1) };
        let mut commands = vec![Command::Found { cluster, secret: None }];
        for node in (0..size).map(node_id) {
            let (life, start) = (Life(1), super::node::start_id(node.0 as u64));
            commands.push(Command::Join { node, life, start, addresses: vec![format!("n{node}:1")] });
        }
        let shards = vec![ShardStart::New { nodes: (0..members).map(node_id).collect() }];
        let name = "list".to_owned();
        commands.push(Command::SetBalancing { is_balancing: false });
        commands.push(Command::CreateService { name, dial: dial(members, acks), shards });
        for command in commands {
            assert_eq!(state.apply(command), Outcome::Done);
        }
        Self {
            state,
            controller: Controller::new(Now::at(now), PLANE),
            deposed: None,
            proposals: Vec::new(),
            away: Time(0),
            seals: BTreeMap::new(),
            void: BTreeSet::new(),
        }
    }

    pub(super) fn shard(&self) -> &ShardRecord {
        self.state.shard(SHARD).unwrap()
    }

    pub(super) fn describe(&self) -> String {
        let problems: Vec<_> = self.controller.problems().collect();
        let failed: Vec<_> =
            self.state.nodes().keys().map(|node| self.controller.health().failed(*node)).collect();
        format!("{problems:?} {failed:?} {:?} {:?}", self.state.nodes(), self.shard())
    }

    /// Everything is there again, and is not lost any more.
    pub(super) fn heal(&mut self) {
        (self.deposed, self.away) = (None, Time(0));
        self.proposals.clear();
    }
}

fn dial(replicas: usize, acks: usize) -> Dial {
    Dial {
        replicas: replicas as u8,
        acks: Acks::Count(acks as u8),
        lease: LEASE,
        max_lag: SETTINGS.max_lag,
        ..Dial::default()
    }
}

impl World {
    pub(super) fn order_lead(&mut self) {
        let record = Box::new(self.history.newest().clone());
        self.send(CONTROL, record.config.primary(), Message::Lead { record, learners: Vec::new() });
    }

    /// One step of the plane.
    pub(super) fn control(&mut self) -> Result<(), String> {
        for at in 0..self.nodes.len() {
            if self.nodes[at].is_up && self.deaf != Some(at) {
                self.watch(at);
                if self.chance(30) {
                    self.report(at);
                }
            }
        }
        if self.is_scripted || self.now < self.plane.away {
            return Ok(());
        }
        if !self.is_calm {
            self.trouble();
        }
        while !self.plane.proposals.is_empty() && (self.is_calm || self.chance(60)) {
            let which = self.rng.usize(..self.plane.proposals.len());
            let command = self.plane.proposals.swap_remove(which);
            self.apply(command)?;
        }
        let (mut out, now) = (Vec::new(), Now::at(self.now));
        let Plane { state, controller, deposed, .. } = &mut self.plane;
        controller.decide(now, state, &mut out);
        if let Some((controller, state)) = deposed {
            controller.decide(now, state, &mut out);
        }
        for request in out {
            if super::is_traced() {
                println!("{} plane {}", self.now.0, super::short(&format!("{request:?}")));
            }
            self.request_of_plane(request);
        }
        Ok(())
    }

    /// The faults of a plane, and the wishes of its operators.
    fn trouble(&mut self) {
        let now = Now::at(self.now);
        match self.rng.u32(0..200) {
            0 => self.plane.away = self.now.plus_millis(self.rng.u64(10..200)),
            1..5 => {
                self.marks.leaders += 1;
                let next = Controller::new(now, PLANE);
                let old = std::mem::replace(&mut self.plane.controller, next);
                self.plane.deposed = self.rng.bool().then(|| (old, self.plane.state.clone()));
            }
            5..9 => self.plane.deposed = None,
            9..15 => {
                let to = self.rng.bool().then(|| node_id(self.rng.usize(0..self.nodes.len())));
                let fact = Fact::Failover { shard: SHARD, to, is_forced: false };
                self.plane.controller.handle(now, fact);
            }
            15..21 => {
                let replicas = self.rng.usize(1..=self.nodes.len());
                let acks = self.rng.usize(1..=replicas);
                self.set_dial(replicas, acks);
            }
            _ => {}
        }
    }

    pub(super) fn set_dial(&mut self, replicas: usize, acks: usize) {
        let (service, expected) = (ServiceId(0), self.plane.state.dials()[0]);
        self.plane.proposals.push(Command::SetDial { service, expected, dial: dial(replicas, acks) });
    }

    pub(super) fn fail_over(&mut self, to: Option<usize>) {
        let fact = Fact::Failover { shard: SHARD, to: to.map(node_id), is_forced: false };
        self.plane.controller.handle(Now::at(self.now), fact);
    }

    /// Whether a command does not commit: it begins an epoch that could not end any more without an operator, for disks were replaced
    /// since it was decided.
    fn is_lost(&self, command: &Command) -> bool {
        let Command::Shards(changes) = command else { return false };
        changes.iter().any(|command| match &command.change {
            ShardChange::TakeOver { takeover, .. } => !self.can_end(&takeover.config, NONE),
            _ => false,
        })
    }

    fn apply(&mut self, command: Command) -> Result<(), String> {
        if self.bug == Some(Bug::NewestEpochOnly) {
            let epoch = self.history.newest().config.epoch();
            let change = ShardChange::Active { epoch, at: self.now };
            self.plane.state.apply(Command::Shards(vec![ShardCommand { shard: SHARD, change }]));
        }
        if self.is_lost(&command) {
            return Ok(());
        }
        let (before, was_settled) = (self.history.newest().clone(), self.plane.shard().is_settled());
        self.plane.state.apply(command);
        self.plane.state.check().map_err(|violation| violation.to_string())?;
        self.history = self.plane.shard().history().clone();
        let newest = self.history.newest();
        if newest.config.epoch() != before.config.epoch() {
            self.marks.epochs += 1;
            self.marks.inactive += u64::from(!was_settled);
            let joined = newest.config.members().iter().filter(|id| !before.config.members().contains(id));
            self.marks.joined += joined.count() as u64;
        }
        Ok(())
    }

    fn request_of_plane(&mut self, request: Request) {
        match request {
            Request::Propose(command) => {
                if self.is_calm || !self.chance(10) {
                    if self.chance(10) {
                        self.plane.proposals.push(command.clone());
                    }
                    self.plane.proposals.push(command);
                }
            }
            Request::Ask(node) => {
                if !self.nodes[at_of(node)].is_up && self.rng.bool() {
                    self.send(NONE, CONTROL, Message::Fact(Fact::Refused(node)));
                }
            }
            Request::Seal { seals, .. } => {
                for (_, replica, seal) in seals {
                    self.send(CONTROL, replica, Message::Seal(seal));
                }
            }
            Request::Lead { record, learners, .. } => {
                self.send(CONTROL, record.config.primary(), Message::Lead { record, learners });
            }
            Request::Delete { replica, .. } => self.send(CONTROL, replica, Message::Delete(replica)),
        }
    }

    /// A fact comes to the plane.
    pub(super) fn handle_fact(&mut self, fact: &Fact) {
        let now = Now::at(self.now);
        if let (true, Fact::Sealed(_, answer)) = (self.is_scripted, fact) {
            self.plane.seals.insert(answer.replica, answer.clone());
        }
        if let Fact::Void(_, replica) = fact {
            self.plane.void.insert(*replica);
        }
        if self.now < self.plane.away {
            return;
        }
        let mut facts = vec![fact.clone()];
        if let (Some(Bug::ForgedSeal), Fact::Sealed(shard, answer)) = (self.bug, fact) {
            let others = self.history.newest().config.members().iter();
            let others = others.filter(|member| **member != answer.replica);
            facts.extend(
                others.map(|&replica| Fact::Sealed(*shard, SealAnswer { replica, ..answer.clone() })),
            );
        }
        for fact in facts {
            if let Some((controller, _)) = &mut self.plane.deposed {
                controller.handle(now, fact.clone());
            }
            self.plane.controller.handle(now, fact);
        }
    }

    /// A node sees the state: it learns which replica is on it.
    fn watch(&mut self, at: usize) {
        let state = &self.plane.state;
        let (node, record) = (&mut self.nodes[at], &state.nodes()[&node_id(at)]);
        if record.start != node.start || node.id != NONE {
            return;
        }
        node.disk = DiskState::Whole;
        let here = self.plane.shard().replicas().iter().find(|(_, placed)| {
            placed.node == node_id(at) && placed.stage != Stage::Released && !state.is_lost(placed)
        });
        if let Some((&id, _)) = here {
            node.id = id;
            self.recover(at);
        }
    }

    /// A node reports, and introduces itself as long as its start is not registered.
    pub(super) fn report(&mut self, at: usize) {
        let node = &self.nodes[at];
        if self.plane.state.nodes()[&node_id(at)].start != node.start {
            let hello = Hello {
                node: Some(node_id(at)),
                life: node.life,
                start: node.start,
                disk: node.disk,
                addresses: vec!["a:1".to_owned()],
                earlier: Vec::new(),
            };
            self.send(NONE, CONTROL, Message::Fact(Fact::Hello(hello)));
        }
        let node = &self.nodes[at];
        let others = (0..self.nodes.len()).filter(|other| *other != at);
        let peers = others.map(|other| PeerReport {
            node: node_id(other),
            silent: Micros(0),
            is_closed: !self.nodes[other].is_up || self.cut.contains(&(at.min(other), at.max(other))),
        });
        let shard = node.replica.as_ref().map(|replica| {
            let leads = replica.replica().leads();
            let learners: Vec<(ReplicaId, bool)> = replica.learners().collect();
            ShardReport {
                shard: SHARD,
                replica: node.id,
                promised: replica.replica().promised(),
                active: replica.replica().active(),
                leads,
                caught_up: learners.iter().filter(|(_, is_close)| *is_close).map(|(id, _)| *id).collect(),
                learners: learners.into_iter().map(|(id, _)| id).collect(),
                max_lag: leads.map(|_| replica.max_lag()),
            }
        });
        let report = NodeReport {
            node: node_id(at),
            start: node.start,
            stalled: Micros(0),
            peers: peers.collect(),
            shards: shard.into_iter().collect(),
            shards_known: None,
        };
        self.send(NONE, CONTROL, Message::Fact(Fact::Report(report)));
    }

    /// Begins an epoch in a script, if the answers to seals allow it.
    pub(super) fn take_over(&mut self, config: EpochConfig, seals: Vec<SealAnswer>) {
        let (_, lease) = self.plane.state.dials()[0].acks_and_lease(config.members().len());
        let expected = self.history.newest().config.epoch();
        let life = seals.iter().find(|seal| seal.replica == config.primary()).unwrap().life;
        let takeover = Takeover { expected, config, life, lease, seals };
        let (cause, noticed, is_forced) = (Cause::Operator, self.now, false);
        let change = ShardChange::TakeOver { takeover, cause, noticed, is_forced };
        self.apply(Command::Shards(vec![ShardCommand { shard: SHARD, change }])).unwrap();
        self.order_lead();
    }
}
