//! The control plane of a cluster: the state machine and the decisions that ship, over a modelled consensus. Commands are committed late,
//! in any order, twice or never; leaders change, and a deposed one goes on for a while by what it knew; sometimes there is none.

use super::control::can_end;
use super::env::SERVICE;
use super::marks::{ClusterMark, ClusterMarks};
use super::node::{CLUSTER, INCARNATION, node_id, start_id};
use crate::profile::one_in;
use crate::violation::Violation;
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::clock::Now;
use stead_core::control::command::{ShardChange, ShardCommand, ShardStart};
use stead_core::control::controller::Controller;
use stead_core::control::detector::TimeoutBounds;
use stead_core::control::dial::{Acks, Dial, Durability};
use stead_core::control::directory::Directory;
use stead_core::control::facts::{Fact, Request};
use stead_core::control::health::HealthSettings;
use stead_core::control::node::StartId;
use stead_core::control::settings::Settings;
use stead_core::control::shard::ShardRecord;
use stead_core::control::{Cluster, Command, ControlState, Outcome};
use stead_core::ids::{Life, Micros, NodeId, ReplicaId, ServiceId, ShardId, Time};
use stead_core::replication::epoch::EpochRecord;

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
    doubt_wait: millis(200),
    lead: millis(100),
    replace_after: millis(250),
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
    dials: Dials,
    size: usize,
    /// The shards whose newest epoch began because something failed.
    failed_over: BTreeSet<ShardId>,
    /// The records of epochs that have begun since they were taken, and whether they began with replicas in doubt.
    pub(super) begun: Vec<(ShardId, EpochRecord, bool)>,
    /// Print commands and their outcomes on stderr.
    pub(super) tracing: bool,
}

/// The bounds of a run's dials, and whether these change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dials {
    /// W may be below S.
    pub(super) are_asynchronous: bool,
    /// Each shard has a replica on each node, and all store an entry before its client is answered.
    pub(super) are_strictest: bool,
    /// Each shard has a replica on each node, and a client is answered once one stores its entry.
    pub(super) are_loosest: bool,
    pub(super) change: bool,
    /// Replicas may acknowledge before they sync.
    pub(super) are_relaxed: bool,
    /// The longest lease, in milliseconds.
    pub(super) lease_max: u64,
}

impl Dials {
    /// Draws a dial for so many nodes.
    pub(super) fn draw(self, size: usize, rng: &mut Rng) -> Dial {
        let replicas = rng.usize(1..=size);
        let least = if self.are_asynchronous { 1 } else { replicas / 2 + 1 };
        let acks = rng.usize(least..=replicas);
        let relaxed = if self.are_relaxed { rng.usize(..4) } else { 0 };
        let (replicas, acks) = match self {
            Self { are_strictest: true, .. } => (size, size),
            Self { are_loosest: true, .. } => (size, 1),
            _ => (replicas, acks),
        };
        Dial {
            replicas: replicas as u8,
            acks: Acks::Count(acks as u8),
            lease: millis(rng.u64(20..self.lease_max)),
            max_lag: millis(rng.u64(50..1_000)),
            durability: [Durability::Always, Durability::Interval, Durability::Never, Durability::Never]
                [relaxed],
        }
    }
}

fn time(now: u64) -> Now {
    Now::at(Time(1_000_000 + now))
}

impl Plane {
    /// Creates a plane of so many nodes, with shards by a dial, each on the nodes from its number on.
    pub(super) fn new(size: usize, shards: usize, dial: Dial, dials: Dials) -> Self {
        let mut state = ControlState::default();
        let mut commands =
            vec![Command::Found { cluster: Cluster { id: CLUSTER, incarnation: INCARNATION }, secret: None }];
        for node in (0..size).map(node_id) {
            let addresses = vec![format!("n{node}:1")];
            commands.push(Command::Join { node, life: Life(1), start: start_id(node, 1), addresses });
        }
        commands.push(Command::SetBalancing { is_balancing: false });
        let nodes =
            |shard: usize| (0..usize::from(dial.replicas)).map(|at| node_id((shard + at) % size)).collect();
        let shards = (0..shards).map(|shard| ShardStart::New { nodes: nodes(shard) }).collect();
        commands.push(Command::CreateService { name: SERVICE.to_owned(), dial, shards });
        for command in commands {
            assert_eq!(state.apply(command), Outcome::Done, "the first commands are valid");
        }
        let begun = state.shards().map(|(shard, record)| (shard, record.history().newest().clone(), false));
        let begun = begun.collect();
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
            dials,
            size,
            failed_over: BTreeSet::new(),
            begun,
            tracing: false,
        }
    }

    /// Whether a start of a node is registered.
    pub(super) fn is_registered(&self, node: NodeId, start: StartId) -> bool {
        self.state.nodes().get(&node).is_some_and(|record| record.start == start)
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
    pub(super) fn handle(&mut self, now: u64, fact: Fact, marks: &mut ClusterMarks) {
        if now < self.away {
            return;
        }
        if let Fact::Superseded { .. } = fact {
            marks.hit(ClusterMark::SealRace);
        }
        if let Some((controller, _)) = &mut self.deposed {
            controller.handle(time(now), fact.clone());
        }
        self.controller.handle(time(now), fact);
    }

    /// Commits some commands, and lets the leaders decide. Returns their requests but for proposals. `void` are the replicas whose data
    /// are gone.
    pub(super) fn step(
        &mut self,
        now: u64,
        rng: &mut Rng,
        void: &BTreeSet<(ShardId, ReplicaId)>,
        marks: &mut ClusterMarks,
    ) -> Result<Vec<Request>, Violation> {
        if now < self.away {
            return Ok(Vec::new());
        }
        if !self.is_calm {
            self.trouble(now, rng, marks);
        }
        while !self.proposals.is_empty() && (self.is_calm || rng.u8(..10) < 6) {
            let which = rng.usize(..self.proposals.len());
            let command = self.proposals.swap_remove(which);
            self.apply(command, void, marks)?;
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
    fn trouble(&mut self, now: u64, rng: &mut Rng, marks: &mut ClusterMarks) {
        match rng.u32(..1_000) {
            0..2 => self.away = now + rng.u64(10_000..200_000),
            2..12 => {
                marks.hit(ClusterMark::Leader);
                let old = std::mem::replace(&mut self.controller, Controller::new(time(now), SETTINGS));
                self.deposed = rng.bool().then(|| (old, self.state.clone()));
            }
            12..22 => self.deposed = None,
            22..28 => {
                let shard = ShardId(rng.u32(..self.state.topology().shard_count()));
                let to = rng.bool().then(|| node_id(rng.usize(..self.size)));
                self.controller.handle(time(now), Fact::Failover { shard, to, is_forced: false });
            }
            28..36 if self.dials.change => {
                let dial = self.dials.draw(self.size, rng);
                let (service, expected) = (ServiceId(0), self.state.dials()[0]);
                self.proposals.push(Command::SetDial { service, expected, dial });
            }
            36..38 => self.proposals.push(Command::SetBalancing { is_balancing: rng.bool() }),
            _ => {}
        }
    }

    /// Whether a command does not commit: it begins an epoch, and this one or an older one could not end any more without an operator,
    /// for disks were replaced since it was decided.
    fn is_lost(&self, command: &Command, void: &BTreeSet<(ShardId, ReplicaId)>) -> bool {
        let Command::Shards(changes) = command else { return false };
        let begins = |change: &&ShardCommand| matches!(change.change, ShardChange::TakeOver { .. });
        let begun: Vec<ShardId> = changes.iter().filter(begins).map(|change| change.shard).collect();
        if begun.is_empty() {
            return false;
        }
        let mut after = self.state.clone();
        after.apply(command.clone());
        begun.into_iter().any(|shard| after.shard(shard).is_some_and(|record| !can_end(void, shard, record)))
    }

    fn apply(
        &mut self,
        command: Command,
        void: &BTreeSet<(ShardId, ReplicaId)>,
        marks: &mut ClusterMarks,
    ) -> Result<(), Violation> {
        if self.is_lost(&command, void) {
            return Ok(());
        }
        let newest = |(shard, record): (ShardId, &ShardRecord)| {
            (shard, record.history().newest().config.clone(), record.is_settled())
        };
        let before: Vec<_> = self.state.shards().map(newest).collect();
        let causes: BTreeMap<ShardId, bool> = match &command {
            Command::Shards(changes) => {
                let cause = |command: &ShardCommand| match &command.change {
                    ShardChange::TakeOver { cause, .. } => Some((command.shard, cause.is_failure())),
                    _ => None,
                };
                changes.iter().filter_map(cause).collect()
            }
            _ => BTreeMap::new(),
        };
        let dial = self.state.dials()[0];
        let text = self.tracing.then(|| format!("{command:?}"));
        let outcome = self.state.apply(command);
        if let Some(command) = text {
            eprintln!("           {outcome:?}: {command}");
        }
        self.state.check().map_err(|violation| Violation::new(0, violation.to_string()))?;
        if self.state.dials()[0] != dial {
            marks.hit(ClusterMark::DialChanged);
        }
        for ((shard, old, was_settled), (_, new, _)) in
            before.into_iter().zip(self.state.shards().map(newest))
        {
            if new.epoch() == old.epoch() {
                continue;
            }
            marks.hit(ClusterMark::Epoch);
            let history = self.state.shard(shard).map(ShardRecord::history);
            self.begun.extend(history.map(|history| {
                let newest = history.newest();
                (shard, newest.clone(), history.forced() == newest.config.epoch())
            }));
            if !was_settled {
                marks.hit(ClusterMark::NeverActive);
            }
            if new.members().iter().any(|member| !old.members().contains(member)) {
                marks.hit(ClusterMark::Joined);
            }
            if !causes.get(&shard).copied().unwrap_or_default() {
                self.failed_over.remove(&shard);
            } else if !self.failed_over.insert(shard) && !was_settled {
                marks.hit(ClusterMark::FailedTwice);
            }
        }
        self.directory.follow(&self.state);
        Ok(())
    }
}
