//! The control plane of a cluster: the state machine and the decisions that ship, over a modelled consensus. Commands are committed late,
//! in any order, twice or never; leaders change, and a deposed one goes on for a while by what it knew; sometimes there is none.

use super::env::SERVICE;
use super::node::{CLUSTER, INCARNATION, node_id};
use crate::profile::one_in;
use crate::violation::Violation;
use fastrand::Rng;
use std::collections::BTreeMap;
use stead_core::clock::Now;
use stead_core::control::command::ShardStart;
use stead_core::control::controller::Controller;
use stead_core::control::detector::TimeoutBounds;
use stead_core::control::dial::{Acks, Dial};
use stead_core::control::directory::Directory;
use stead_core::control::facts::{Fact, Request};
use stead_core::control::health::HealthSettings;
use stead_core::control::node::StartId;
use stead_core::control::settings::Settings;
use stead_core::control::{Cluster, Command, ControlState, Outcome};
use stead_core::ids::{Epoch, Life, Micros, NodeId, ReplicaId, ShardId, Time};

const fn millis(millis: u64) -> Micros {
    Micros::from_millis(millis)
}

const SETTINGS: Settings = Settings {
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
    force_wait: Micros::from_secs(3_600),
    lead: millis(100),
    // The nodes of a life know their replicas when it begins: members are not replaced.
    replace_after: Micros::from_secs(3_600),
    doubt: millis(20),
    learners_max: 4,
    balance: millis(50),
};

/// The consensus and its leaders.
pub(super) struct Plane {
    pub(super) state: ControlState,
    controller: Controller,
    /// A leader that was deposed, and the state that it knows.
    deposed: Option<(Controller, ControlState)>,
    proposals: Vec<Command>,
    /// Until then there is no leader.
    away: u64,
    pub(super) directory: Directory,
    is_calm: bool,
    pub(super) epochs: u64,
    /// Epochs that began before the one before was active.
    pub(super) inactive: u64,
    pub(super) leaders: u64,
}

fn time(now: u64) -> Now {
    Now::at(Time(1_000_000 + now))
}

impl Plane {
    /// Creates a plane of so many nodes, with shards of so many replicas, each on the nodes from its number on.
    pub(super) fn new(size: usize, shards: usize, replicas: usize, acks: usize) -> Self {
        let mut state = ControlState::default();
        let mut commands =
            vec![Command::Found { cluster: Cluster { id: CLUSTER, incarnation: INCARNATION } }];
        for node in (0..size).map(node_id) {
            let addresses = vec![format!("n{node}:1")];
            commands.push(Command::Join {
                node,
                life: Life(1),
                start: StartId(u128::from(node.0) << 64 | 1),
                addresses,
            });
        }
        commands.push(Command::SetBalancing { is_balancing: false });
        let nodes = |shard: usize| (0..replicas).map(|at| node_id((shard + at) % size)).collect();
        let shards = (0..shards).map(|shard| ShardStart::New { nodes: nodes(shard) }).collect();
        let dial = Dial { replicas: replicas as u8, acks: Acks::Count(acks as u8), ..Dial::default() };
        commands.push(Command::CreateService { name: SERVICE.to_owned(), dial, shards });
        for command in commands {
            assert_eq!(state.apply(command), Outcome::Done, "the first commands are valid");
        }
        let mut directory = Directory::default();
        directory.follow(&state);
        Self {
            state,
            controller: Controller::new(time(0), SETTINGS),
            deposed: None,
            proposals: Vec::new(),
            away: 0,
            directory,
            is_calm: false,
            epochs: 0,
            inactive: 0,
            leaders: 0,
        }
    }

    /// Returns the replicas of each node.
    pub(super) fn replicas_of(&self, node: NodeId) -> BTreeMap<ShardId, ReplicaId> {
        let of = |(shard, record): (ShardId, &stead_core::control::shard::ShardRecord)| {
            let here = record.replicas().iter().find(|(_, placed)| placed.node == node);
            here.map(|(id, _)| (shard, *id))
        };
        self.state.shards().filter_map(of).collect()
    }

    /// Returns the shards that wait and why, and the nodes that count as failed.
    pub(super) fn describe(&self) -> String {
        let problems: Vec<_> = self.controller.problems().collect();
        let failed = self.state.nodes().keys().filter_map(|node| self.controller.health().failed(*node));
        format!("{problems:?} {:?}", failed.collect::<Vec<_>>())
    }

    /// Everything is there again, and nothing is lost any more.
    pub(super) fn heal(&mut self) {
        self.is_calm = true;
        (self.deposed, self.away) = (None, 0);
    }

    /// A fact arrives.
    pub(super) fn handle(&mut self, now: u64, fact: Fact) {
        if now < self.away {
            return;
        }
        if let Some((controller, _)) = &mut self.deposed {
            controller.handle(time(now), fact.clone());
        }
        self.controller.handle(time(now), fact);
    }

    /// Commits some commands, and lets the leaders decide. Returns their requests but for proposals.
    pub(super) fn step(&mut self, now: u64, size: usize, rng: &mut Rng) -> Result<Vec<Request>, Violation> {
        if now < self.away {
            return Ok(Vec::new());
        }
        if !self.is_calm {
            self.trouble(now, size, rng);
        }
        while !self.proposals.is_empty() && (self.is_calm || rng.u8(..10) < 6) {
            let which = rng.usize(..self.proposals.len());
            let command = self.proposals.swap_remove(which);
            self.apply(command)?;
        }
        let mut requests = Vec::new();
        self.controller.decide(time(now), &self.state, &mut requests);
        if let Some((controller, state)) = &mut self.deposed {
            controller.decide(time(now), state, &mut requests);
        }
        let is_calm = self.is_calm;
        requests.retain(|request| {
            let Request::Propose(command) = request else { return true };
            let copies =
                if is_calm { 1 } else { usize::from(!one_in(rng, 10)) + usize::from(one_in(rng, 10)) };
            self.proposals.extend((0..copies).map(|_| command.clone()));
            false
        });
        Ok(requests)
    }

    /// The faults of the plane, and the wishes of operators.
    fn trouble(&mut self, now: u64, size: usize, rng: &mut Rng) {
        match rng.u32(..1_000) {
            0..2 => self.away = now + rng.u64(10_000..200_000),
            2..12 => {
                self.leaders += 1;
                let old = std::mem::replace(&mut self.controller, Controller::new(time(now), SETTINGS));
                self.deposed = rng.bool().then(|| (old, self.state.clone()));
            }
            12..22 => self.deposed = None,
            22..28 => {
                let shard = ShardId(rng.u32(..self.state.topology().shard_count()));
                let to = rng.bool().then(|| node_id(rng.usize(..size)));
                self.controller.handle(time(now), Fact::Failover { shard, to, is_forced: false });
            }
            _ => {}
        }
    }

    fn apply(&mut self, command: Command) -> Result<(), Violation> {
        let epochs = |state: &ControlState| -> Vec<(Epoch, bool)> {
            let newest = |(_, record): (ShardId, &stead_core::control::shard::ShardRecord)| {
                (record.history().newest().config.epoch(), record.is_settled())
            };
            state.shards().map(newest).collect()
        };
        let before = epochs(&self.state);
        self.state.apply(command);
        self.state.check().map_err(|violation| Violation::new(0, violation.to_string()))?;
        for ((before, was_settled), (after, _)) in before.into_iter().zip(epochs(&self.state)) {
            if after != before {
                self.epochs += 1;
                self.inactive += u64::from(!was_settled);
            }
        }
        self.directory.follow(&self.state);
        Ok(())
    }
}
