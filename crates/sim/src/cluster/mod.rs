//! A cluster of simulated nodes: each runs the code that ships on a disk and clocks of its own. Between them are a network with faults, a
//! modelled control plane, and clients that call any of them. The seed decides all.

mod bug;
mod calls;
mod clients;
mod control;
mod env;
mod faults;
mod judge;
mod links;
mod marks;
mod model;
mod network;
mod node;
mod plane;
mod run;
mod turns;

pub use bug::ClusterBug;
pub use marks::{ClusterMark, ClusterMarks};
pub use run::{ClusterConfig, ClusterFailure, ClusterReport, run_cluster};

use crate::violation::Violation;
use clients::{Ask, Clients};
use env::SERVICE;
use fastrand::Rng;
use links::Links;
use model::{Followed, Model};
use network::Network;
use node::{INCARNATION, Machine, Skew, node_id};
use plane::{Dials, Plane};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use stead_core::calls::Answer;
use stead_core::control::facts::{Fact, Request};
use stead_core::ids::{ReplicaId, ShardId};
use stead_core::topology::Topology;
use stead_node::{NoAnswer, PartId, PeerMessage};
use stead_store::sim_disk::SimDisk;

/// The interval of the control plane's steps, in microseconds.
const CONTROL: u64 = 5_000;
/// The bounds of the greatest time between two faults, of which a seed draws one, in microseconds.
const FAULTS: std::ops::Range<u64> = 20_000..150_000;
/// The time within which a healed cluster comes to rest.
const REST_MAX: u64 = 20_000_000;
/// The number of events in which it does.
const REST_EVENTS_MAX: u64 = 300_000;

type Outcome = Result<(), Violation>;

/// An event, which happens at a time.
enum Event {
    /// A part of a node's life gets a turn.
    Turn(usize, u64, PartId),
    /// A node begins a life.
    Up(usize),
    /// A planned power cut has not come by itself.
    PowerCut(usize, u64),
    /// A message of the first node to the second one.
    Message(usize, usize, PeerMessage),
    /// A node hears that its connection to another one is broken.
    Closed(usize, usize),
    Control,
    Fact(Fact),
    Order(Request),
    Client(usize),
    /// A try arrives at a node; its client waits for so long.
    Call(usize, u64, Ask, u64),
    Heard(u64, Result<Answer, NoAnswer>),
    /// A client sends its call again unless it was answered.
    Retry(usize, u64),
    Fault,
}

/// The cluster and all around it.
struct Cluster {
    rng: Rng,
    bug: Option<ClusterBug>,
    now: u64,
    order: u64,
    events: BTreeMap<(u64, u64), Event>,
    happened: u64,
    topology: Arc<Topology>,
    machines: Vec<Machine>,
    network: Network,
    links: Links,
    plane: Plane,
    /// The number of the control plane's steps.
    looks: u64,
    /// The greatest time between two calls of a client, and between two faults.
    think: u64,
    faults: u64,
    clients: Clients,
    model: Model,
    followed: BTreeMap<(usize, ShardId), Followed>,
    /// The replicas whose data are gone with their disks.
    void: BTreeSet<(ShardId, ReplicaId)>,
    is_calm: bool,
    marks: ClusterMarks,
    tracing: bool,
}

impl Cluster {
    fn new(seed: u64, size: usize, bug: Option<ClusterBug>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let shards = rng.usize(1..=4);
        let (are_asynchronous, change) = (rng.bool(), rng.bool());
        // Not drawn: runs of other seeds stay what they were.
        let are_relaxed = seed % 4 == 3;
        let mut dials = Dials {
            are_asynchronous,
            are_strictest: false,
            are_loosest: false,
            change,
            are_relaxed,
            lease_max: 200,
        };
        if let Some(bug) = bug {
            bug.bend(&mut dials);
        }
        let dial = dials.draw(size, &mut rng);
        let mut topology = Topology::new(INCARNATION);
        topology.ensure(SERVICE, shards as u32).expect("the only service");
        let plane = Plane::new(size, shards, dial, dials);
        let machines = (0..size).map(|at| {
            let skew =
                Skew { steady: rng.u64(..1 << 40), wall: rng.u64(..20_000_000), drift: rng.u64(..500) };
            Machine::new(node_id(at), SimDisk::new(rng.u64(..)), skew, 1 << rng.u32(13..18))
        });
        let machines = machines.collect();
        let network = Network::new(&mut rng);
        let (count, think, faults) = (rng.usize(1..=12), rng.u64(1_000..20_000), rng.u64(FAULTS));
        // What deletes a list that may be lost is not modelled.
        let may_delete = !(dials.are_asynchronous || dials.are_relaxed);
        // A short run then has a whole failover.
        let faults = if bug.is_some_and(ClusterBug::cuts_off) { FAULTS.start } else { faults };
        let mut cluster = Self {
            rng,
            bug,
            now: 0,
            order: 0,
            events: BTreeMap::new(),
            happened: 0,
            model: Model::new(topology.shards()),
            topology: Arc::new(topology),
            machines,
            network,
            links: Links::default(),
            plane,
            looks: 0,
            think,
            faults,
            clients: Clients::new(count, may_delete),
            followed: BTreeMap::new(),
            void: BTreeSet::new(),
            is_calm: false,
            marks: ClusterMarks::default(),
            tracing: false,
        };
        for at in 0..size {
            cluster.at(0, Event::Up(at));
        }
        cluster.at(CONTROL, Event::Control);
        cluster.at(faults, Event::Fault);
        for client in 0..count {
            let delay = cluster.random(50_000);
            cluster.at(delay, Event::Client(client));
        }
        cluster
    }

    fn random(&mut self, max: u64) -> u64 {
        1 + self.rng.u64(..max)
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.order += 1;
        self.events.insert((self.now + delay, self.order), event);
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if self.tracing {
            eprintln!("{:>10} {}", self.now, what());
        }
    }

    /// Lets the next event happen.
    fn step(&mut self) -> Outcome {
        let ((at, _), event) = self.events.pop_first().expect("the control plane always has a next step");
        self.now = at;
        self.happened += 1;
        match event {
            Event::Turn(at, start, part) => self.turn_if_due(at, start, part),
            Event::Up(at) => self.up(at),
            Event::PowerCut(at, start) => self.power_cut(at, start),
            Event::Message(from, to, message) => self.arrive(from, to, message),
            Event::Closed(at, peer) => {
                self.closed(at, peer);
                Ok(())
            }
            Event::Control => self.control(),
            Event::Fact(fact) => {
                self.plane.handle(self.now, fact, &mut self.marks);
                Ok(())
            }
            Event::Order(request) => self.obey(request),
            Event::Client(client) => {
                self.client_acts(client);
                Ok(())
            }
            Event::Call(to, call, ask, patience) => self.call(to, call, ask, patience),
            Event::Heard(call, result) => self.hear(call, result),
            Event::Retry(client, call) => {
                if self.clients.client_of(call).is_some() {
                    self.send_call(client, true);
                }
                Ok(())
            }
            Event::Fault => self.fault(),
        }
    }

    /// Ends all faults, and lets the cluster come to rest.
    fn heal(&mut self) -> Outcome {
        self.is_calm = true;
        self.network.heal();
        self.plane.heal();
        for at in 0..self.machines.len() {
            self.machines[at].paused_until = 0;
            if self.machines[at].disk.is_crashed() || !self.machines[at].is_up() {
                self.fall(at)?;
                self.at(1, Event::Up(at));
            } else {
                self.machines[at].disk.restart();
                self.heed(at);
            }
        }
        // Some bugs let replicas ask each other the same for ever.
        let events = if self.bug.is_some() { REST_EVENTS_MAX / 10 } else { REST_EVENTS_MAX };
        let (until, last) = (self.now + REST_MAX, self.happened + events);
        while !(self.clients.are_idle() && self.model.is_at_rest() && self.model.are_answers_settled()) {
            self.step()?;
            if self.now > until || self.happened > last {
                let what = format!(
                    "{} ms after everything was healed, calls wait ({}), messages ({}) or answers ({}); {}",
                    (self.now + REST_MAX - until) / 1_000,
                    !self.clients.are_idle(),
                    !self.model.is_at_rest(),
                    !self.model.are_answers_settled(),
                    self.plane.describe(),
                );
                return Err(Violation::new(17, what));
            }
        }
        Ok(())
    }
}
