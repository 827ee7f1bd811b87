//! A cluster of simulated nodes: each runs the code that ships on a disk and clocks of its own. Between them are a network with faults, a
//! modelled control plane, and clients that call any of them. The seed decides all.

mod bug;
mod clients;
mod env;
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

use crate::profile::one_in;
use crate::violation::Violation;
use clients::{Ask, Clients};
use env::{Line, SERVICE};
use fastrand::Rng;
use model::{Followed, Model};
use network::{DELAY, Network};
use node::{INCARNATION, Machine, Skew, at_of, node_id};
use plane::Plane;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use stead_core::calls::{Answer, Identity};
use stead_core::control::facts::{Fact, Hello, NodeReport, PeerReport, Request};
use stead_core::control::node::DiskState;
use stead_core::ids::{Micros, ShardId};
use stead_core::replication::table::LogPoint;
use stead_core::shard_replica::Input;
use stead_core::topology::Topology;
use stead_node::{NoAnswer, PartId, PeerMessage, ReplyTo};
use stead_store::sim_disk::SimDisk;

/// The interval of the control plane's steps and of the nodes' reports, in microseconds.
const CONTROL: u64 = 5_000;
/// The greatest time between two faults, in microseconds.
const FAULTS: u64 = 150_000;
/// The time after which a client sends its call to another node.
const RETRY: u64 = 60_000;
/// The time within which a healed cluster comes to rest.
const REST_MAX: u64 = 20_000_000;

type Outcome = Result<(), Violation>;

/// An event, which happens at a time.
enum Event {
    /// A part of a node's life gets a turn.
    Turn(usize, u64, PartId),
    /// A node begins a life.
    Up(usize),
    /// A planned power cut has not come by itself.
    PowerCut(usize, u64),
    Message(usize, PeerMessage),
    Control,
    Fact(Fact),
    Order(Request),
    Client(usize),
    /// A try arrives at a node.
    Call(usize, u64, Ask),
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
    plane: Plane,
    /// Links that have lost frames of replicas since they were last connected.
    broken: BTreeSet<(usize, usize)>,
    clients: Clients,
    model: Model,
    followed: BTreeMap<(usize, ShardId), Followed>,
    /// The bases up to which logs were trimmed.
    trimmed: BTreeSet<(usize, ShardId, LogPoint)>,
    is_calm: bool,
    marks: ClusterMarks,
    tracing: bool,
}

impl Cluster {
    fn new(seed: u64, size: usize, bug: Option<ClusterBug>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let shards = rng.usize(1..=4);
        let replicas = rng.usize(1..=size);
        let acks = rng.usize(replicas / 2 + 1..=replicas);
        let mut topology = Topology::new(INCARNATION);
        topology.ensure(SERVICE, shards as u32).expect("the only service");
        let plane = Plane::new(size, shards, replicas, acks);
        let machines = (0..size).map(|at| {
            let replicated = plane.replicas_of(node_id(at));
            let skew =
                Skew { steady: rng.u64(..1 << 40), wall: rng.u64(..20_000_000), drift: rng.u64(..500) };
            Machine {
                id: node_id(at),
                disk: SimDisk::new(rng.u64(..)),
                skew,
                not_here: topology.shards().filter(|shard| !replicated.contains_key(shard)).collect(),
                replicated,
                starts: 0,
                life: None,
                paused_until: 0,
            }
        });
        let machines = machines.collect();
        let network = Network::new(&mut rng);
        let count = rng.usize(1..=6);
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
            plane,
            broken: BTreeSet::new(),
            clients: Clients::new(count),
            followed: BTreeMap::new(),
            trimmed: BTreeSet::new(),
            is_calm: false,
            marks: ClusterMarks::default(),
            tracing: false,
        };
        for at in 0..size {
            cluster.at(0, Event::Up(at));
        }
        cluster.at(CONTROL, Event::Control);
        cluster.at(FAULTS, Event::Fault);
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
            Event::Message(to, message) => self.arrive(to, message),
            Event::Control => self.control(),
            Event::Fact(fact) => {
                self.plane.handle(self.now, fact);
                Ok(())
            }
            Event::Order(request) => self.obey(request),
            Event::Client(client) => {
                self.client_acts(client);
                Ok(())
            }
            Event::Call(to, call, ask) => self.call(to, call, ask),
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
            if self.machines[at].disk.is_crashed() || self.machines[at].life.is_none() {
                self.fall(at);
                self.at(1, Event::Up(at));
            } else {
                self.machines[at].disk.restart();
                self.heed(at);
            }
        }
        let until = self.now + REST_MAX;
        while !(self.clients.are_idle() && self.model.is_at_rest()) {
            self.step()?;
            if self.now > until {
                let rests = self.model.is_at_rest();
                let what = format!(
                    "{} s after everything was healed, calls wait ({}) or messages ({}); {}",
                    REST_MAX / 1_000_000,
                    !self.clients.are_idle(),
                    !rests,
                    self.plane.describe(),
                );
                return Err(Violation::new(17, what));
            }
        }
        Ok(())
    }

    fn links(&self, at: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        (0..self.machines.len()).filter(move |peer| *peer != at).map(move |peer| (at.min(peer), at.max(peer)))
    }

    /// A node begins a life.
    fn up(&mut self, at: usize) -> Outcome {
        if self.machines[at].life.is_some() {
            return Ok(());
        }
        let seed = self.rng.u64(..);
        // The control plane knows each node from its first life on, whose number is durable: a life that is counted again counts as one
        // on a lost disk.
        let is_first = self.machines[at].starts == 0;
        if !self.is_calm && one_in(&mut self.rng, 12) && !is_first {
            let operations = self.random(60);
            self.machines[at].disk.crash_after(operations);
        }
        let machine = &mut self.machines[at];
        let started = machine.start(&self.topology, self.now, seed, self.bug);
        if machine.disk.is_crashed() {
            self.marks.hit(ClusterMark::CrashInRecovery);
            drop(started);
            self.fall(at);
            self.comes_back(at);
            return Ok(());
        }
        machine.disk.restart();
        let (running, seen) =
            started.map_err(|error| Violation::new(2, format!("node {} does not start: {error}", at + 1)))?;
        machine.life = Some(running);
        self.note(|| format!("node {} starts", at + 1));
        self.followed.retain(|(of, _), _| *of != at);
        self.broken.extend(self.links(at));
        self.take_seen(at, seen)?;
        self.begin(at)
    }

    /// A node's process ends, or has with its machine.
    fn fall(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let life = machine.life.take();
        machine.disk.kill_process();
        let skew = machine.skew.at(self.now);
        // Its calls end without an answer that any client could hear.
        let ((), _) = env::play(skew, self.bug, || drop(life));
        self.machines[at].disk.restart();
        self.note(|| format!("node {} falls", at + 1));
    }

    fn comes_back(&mut self, at: usize) {
        let pause = self.random(300_000);
        self.at(pause, Event::Up(at));
    }

    fn power_cut(&mut self, at: usize, start: u64) -> Outcome {
        let machine = &self.machines[at];
        if machine.starts == start && machine.life.is_some() && !self.is_calm {
            machine.disk.crash();
            self.marks.hit(ClusterMark::PowerCut);
            self.fall(at);
            self.comes_back(at);
        }
        Ok(())
    }

    /// Draws a fault.
    fn fault(&mut self) -> Outcome {
        if self.is_calm {
            return Ok(());
        }
        let pause = self.random(FAULTS);
        self.at(pause, Event::Fault);
        let at = self.rng.usize(..self.machines.len());
        let is_up = self.machines[at].life.is_some();
        match self.rng.u8(..8) {
            0 if is_up => {
                self.marks.hit(ClusterMark::Killed);
                self.fall(at);
                self.comes_back(at);
            }
            1 if is_up => {
                let operations = self.random(30);
                let machine = &self.machines[at];
                machine.disk.crash_after(operations);
                let start = machine.starts;
                self.at(50_000, Event::PowerCut(at, start));
            }
            2 if is_up => {
                self.marks.hit(ClusterMark::Paused);
                self.machines[at].paused_until = self.now + self.rng.u64(10_000..500_000);
            }
            3..6 => {
                let size = self.machines.len();
                self.network.draw_cut(size, &mut self.rng);
            }
            6 if is_up => self.trim(at),
            _ => {}
        }
        Ok(())
    }

    /// A node trims its logs.
    fn trim(&mut self, at: usize) {
        // A crash of the disk is found by the next turn.
        let Ok(trimmed) = self.machines[at].trim() else { return };
        let Some(running) = &self.machines[at].life else { return };
        for (shard, base) in trimmed {
            self.marks.hit(ClusterMark::Trimmed);
            self.trimmed.insert((at, shard, base));
            running.parts.shared.push_replica(shard, Input::Trimmed(base));
        }
        self.heed(at);
    }

    /// A message of another node arrives.
    fn arrive(&mut self, to: usize, mut message: PeerMessage) -> Outcome {
        let Some(running) = &self.machines[to].life else {
            if is_awaited(&message) {
                self.broken.extend(self.links(to));
            }
            return Ok(());
        };
        if let (Some(ClusterBug::ShiftedSequence), PeerMessage::Deliver { messages, .. }) =
            (self.bug, &mut message)
            && one_in(&mut self.rng, 4)
        {
            messages.iter_mut().for_each(|message| message.seq = message.seq.next());
        }
        running.parts.shared.from_peer(message);
        self.heed(to);
        Ok(())
    }

    /// Sends what a node left for another one.
    fn send(&mut self, from: usize, to: usize, message: PeerMessage) {
        let delays = self.network.send(from, to, &mut self.rng);
        if delays.is_empty() && is_awaited(&message) {
            self.broken.insert((from.min(to), from.max(to)));
        }
        for delay in delays {
            self.at(delay, Event::Message(to, message.clone()));
        }
    }

    /// The control plane decides, and the nodes report to it and follow its state.
    fn control(&mut self) -> Outcome {
        self.at(CONTROL, Event::Control);
        for at in 0..self.machines.len() {
            if self.now >= self.machines[at].paused_until && !self.is_deaf(at) {
                self.report(at);
                self.follow_routes(at);
            }
        }
        self.connect();
        let (now, size) = (self.now, self.machines.len());
        for request in self.plane.step(now, size, &mut self.rng)? {
            self.note(|| format!("the control plane: {request:?}"));
            if self.is_calm || !one_in(&mut self.rng, 10) {
                let delay = self.random(DELAY * 4);
                self.at(delay, Event::Order(request));
            }
        }
        Ok(())
    }

    /// Whether a node does not reach the control plane: it shares the fate of the links to the first node.
    fn is_deaf(&self, at: usize) -> bool {
        at != 0 && (self.network.is_cut(at, 0) || self.network.is_cut(0, at))
    }

    /// A node reports, and introduces itself as long as its start is not registered.
    fn report(&mut self, at: usize) {
        let machine = &self.machines[at];
        let Some(running) = &machine.life else { return };
        let (node, start, life) = (machine.id, running.start, running.life());
        let mut facts = Vec::new();
        if self.plane.state.nodes().get(&node).is_some_and(|record| record.start != start) {
            let addresses = vec![format!("n{node}:1")];
            facts.push(Fact::Hello(Hello {
                node: Some(node),
                life,
                start,
                disk: DiskState::Whole,
                addresses,
            }));
        }
        let others = (0..self.machines.len()).filter(|other| *other != at);
        let peers = others.map(|other| PeerReport {
            node: node_id(other),
            silent: Micros(0),
            is_closed: self.machines[other].life.is_none() || self.network.is_cut(other, at),
        });
        let shards = running.reports.values().cloned().collect();
        let report = NodeReport { node, start, stalled: Micros(0), peers: peers.collect(), shards };
        facts.push(Fact::Report(report));
        facts.into_iter().for_each(|fact| self.send_fact(fact));
    }

    fn send_fact(&mut self, fact: Fact) {
        if self.is_calm || !one_in(&mut self.rng, 10) {
            let delay = self.random(DELAY * 4);
            self.at(delay, Event::Fact(fact));
        }
    }

    fn follow_routes(&mut self, at: usize) {
        let Some(running) = &mut self.machines[at].life else { return };
        let directory = &self.plane.directory;
        if running.routed < directory.version() {
            running.parts.shared.follow_routes(directory.shards_changed_since(running.routed));
            running.routed = directory.version();
            self.heed(at);
        }
    }

    /// Connects links anew that have lost frames.
    fn connect(&mut self) {
        let whole = |link: &&(usize, usize)| {
            !self.network.is_cut(link.0, link.1) && !self.network.is_cut(link.1, link.0)
        };
        let whole: Vec<(usize, usize)> = self.broken.iter().filter(whole).copied().collect();
        for (a, b) in whole {
            if self.machines[a].life.is_none() || self.machines[b].life.is_none() {
                continue;
            }
            self.broken.remove(&(a, b));
            for (at, peer) in [(a, b), (b, a)] {
                let Some(running) = &self.machines[at].life else { continue };
                for (shard, id) in &self.machines[peer].replicated {
                    if self.machines[at].replicated.contains_key(shard) {
                        running.parts.shared.push_replica(*shard, Input::Connected(*id));
                    }
                }
                self.heed(at);
            }
        }
    }

    /// A node gets an order of the control plane.
    fn obey(&mut self, request: Request) -> Outcome {
        let (node, inputs) = match request {
            Request::Propose(_) => unreachable!("the plane keeps its proposals"),
            Request::Ask(node) => {
                if self.machines[at_of(node)].life.is_none() && self.rng.bool() {
                    self.send_fact(Fact::Refused(node));
                }
                return Ok(());
            }
            Request::Seal { node, seals } => {
                let inputs = seals.into_iter().map(|(shard, _, seal)| (shard, Input::Seal(seal)));
                (node, inputs.collect::<Vec<_>>())
            }
            Request::Lead { node, shard, record, learners, max_lag } => {
                (node, vec![(shard, Input::Lead { record, learners, max_lag })])
            }
            Request::Delete { node, .. } => {
                let what = format!("node {node} is to delete a replica, and no member is ever replaced");
                return Err(Violation::new(0, what));
            }
        };
        let at = at_of(node);
        let Some(running) = self.machines[at].life.as_ref().filter(|_| !self.is_deaf(at)) else {
            return Ok(());
        };
        for (shard, input) in inputs {
            running.parts.shared.push_replica(shard, input);
        }
        self.heed(at);
        Ok(())
    }

    /// A client begins a call, unless it has one.
    fn client_acts(&mut self, client: usize) {
        let think = self.random(20_000);
        self.at(think, Event::Client(client));
        if !self.is_calm && self.clients.begin(client, &self.topology, &mut self.rng) {
            self.send_call(client, false);
        }
    }

    /// Sends a client's call to the node that leads, as far as the control plane knows, or to any.
    fn send_call(&mut self, client: usize, is_retry: bool) {
        let Some((call, mut ask)) = self.clients.next_try(client) else { return };
        if let (Some(ClusterBug::RetryWithoutIdentity), true, Ask::Request { request, .. }) =
            (self.bug, is_retry, &mut ask)
        {
            request.identity = Identity::None;
        }
        let primary = self.plane.directory.shard(ask.shard()).and_then(|route| route.primary_node());
        let to = match primary {
            Some(node) if !one_in(&mut self.rng, 5) => at_of(node),
            _ => self.rng.usize(..self.machines.len()),
        };
        let retry = RETRY + self.random(RETRY);
        self.at(retry, Event::Retry(client, call));
        if self.is_calm || !one_in(&mut self.rng, 20) {
            let delay = self.random(DELAY);
            if !self.is_calm && one_in(&mut self.rng, 20) {
                let later = self.random(DELAY * 100);
                self.at(later, Event::Call(to, call, ask.clone()));
            }
            self.at(delay, Event::Call(to, call, ask));
        }
    }

    fn call(&mut self, to: usize, call: u64, ask: Ask) -> Outcome {
        let machine = &self.machines[to];
        let Some(running) = &machine.life else { return Ok(()) };
        let (steady, wall) = machine.skew.at(self.now);
        let timeout = Duration::from_secs(10);
        let reply_to = ReplyTo {
            caller: Line { call, is_answered: false },
            deadline: steady.plus(timeout.into()),
            timeout,
        };
        let shared = &running.parts.shared;
        let (taken, seen) = env::play((steady, wall), self.bug, || match ask {
            Ask::Open { shard, session } => {
                shared.open_session(shard, session, "alice".into(), Some(reply_to))
            }
            Ask::Request { shard, request } => shared.request(shard, request, reply_to),
        });
        drop(seen);
        if let Err(error) = taken {
            self.at(DELAY, Event::Heard(call, Err(error)));
        }
        self.heed(to);
        Ok(())
    }

    fn hear(&mut self, call: u64, result: Result<Answer, NoAnswer>) -> Outcome {
        let client = self.clients.client_of(call);
        let is_answer = result.as_ref().is_ok_and(|answer| answer.result.is_ok());
        let asks_again = !self.is_calm && one_in(&mut self.rng, 6);
        self.note(|| format!("call {call} hears {result:?}"));
        let is_over = self.clients.hear(call, result, &self.model, asks_again)?;
        if let (Some(client), false, true) = (client, is_over, is_answer) {
            // A session is open now, or the client asks once more.
            self.send_call(client, true);
        }
        Ok(())
    }
}

/// Whether the loss of a message is made good by a new connection.
fn is_awaited(message: &PeerMessage) -> bool {
    matches!(message, PeerMessage::Frame(..) | PeerMessage::Chunk(..))
}
