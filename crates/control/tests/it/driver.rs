//! Three planes, each with a driver, and three nodes that do what they are ordered.

use crate::cluster::{LONG, SETTINGS, found, identity};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use stead_control::{Answer, Begin, Change, ControlPlane, Driver, Options, Plane, Role, Transport};
use stead_core::clock::Now;
use stead_core::control::command::ShardStart;
use stead_core::control::dial::Dial;
use stead_core::control::facts::{Fact, Hello, NodeReport, PeerReport, Request, ShardReport};
use stead_core::control::failover::Cause;
use stead_core::control::node::{DiskState, StartId};
use stead_core::control::{Cluster, Command, ControlState, Outcome, settings};
use stead_core::ids::{Epoch, Life, Micros, NodeId, ReplicaId, ShardId, Time};
use stead_core::replication::epoch::SealAnswer;
use stead_core::replication::table::{EpochTable, LogPoint};
use stead_store::sim_disk::SimDisk;

const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
const SHARD: ShardId = ShardId(0);

type Planes = Mutex<BTreeMap<NodeId, Weak<ControlPlane>>>;

struct Port {
    from: NodeId,
    planes: Arc<Planes>,
}

impl Transport for Port {
    fn request(&self, to: NodeId, _address: &str, request: Vec<u8>, answer: Answer) {
        let plane = self.planes.lock().unwrap().get(&to).and_then(Weak::upgrade);
        if let Some(plane) = plane {
            plane.receive(self.from, request, move |bytes| answer.complete(bytes));
            // The last handle waits for the plane's thread, which may be this one.
            std::thread::spawn(move || drop(plane));
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Replica {
    promised: Epoch,
    table: EpochTable,
    active: Epoch,
    leads: Option<Epoch>,
}

struct Node {
    plane: Arc<ControlPlane>,
    driver: Driver,
    replicas: BTreeMap<ReplicaId, Replica>,
    /// The time since which it is silent.
    silent: Option<Time>,
}

struct World {
    nodes: BTreeMap<NodeId, Node>,
    now: Now,
}

fn hello(node: NodeId) -> Hello {
    let start = StartId(u128::from(node.0));
    let (disk, addresses, earlier) = (DiskState::Whole, vec![format!("{node}:1")], Vec::new());
    Hello { node: None, life: Life(1), start, disk, addresses, earlier }
}

impl World {
    fn new() -> Self {
        let planes = Arc::new(Planes::default());
        let mut world = Self { nodes: BTreeMap::new(), now: Now::at(Time(10_000_000)) };
        for id in NODES {
            let options = Options {
                identity: identity(id.0),
                begin: if id == NODES[0] { found() } else { Begin::Join },
                initial: ControlState::default(),
                settings: SETTINGS,
                on_change: Box::new(|| ()),
            };
            let port = Arc::new(Port { from: id, planes: Arc::clone(&planes) });
            let plane = Arc::new(Plane::start(options, Arc::new(SimDisk::new(1)), port).unwrap());
            planes.lock().unwrap().insert(id, Arc::downgrade(&plane));
            let driver = Driver::new(settings::Settings::default());
            world.nodes.insert(id, Node { plane, driver, replicas: BTreeMap::new(), silent: None });
            let first = &world.nodes[&NODES[0]].plane;
            if id == NODES[0] {
                let cluster = Cluster { id: identity(1).cluster, incarnation: identity(1).incarnation };
                let command = Command::Found { cluster, secret: None };
                assert_eq!(first.propose(&first.proposal(&command), LONG), Ok(Outcome::Done));
            } else {
                first.change(Change::Place { node: id, address: format!("node-{id}") }, LONG).unwrap();
                first.change(Change::Promote { node: id }, LONG).unwrap();
            }
        }
        for id in NODES {
            world.until(|world| {
                world.pass(&Fact::Hello(hello(id)));
                world.state().nodes().contains_key(&id)
            });
        }
        world
    }

    /// The newest state at any node that is not silent.
    fn state(&self) -> Arc<ControlState> {
        let up = self.nodes.values().filter(|node| node.silent.is_none());
        up.map(|node| node.plane.newest()).max_by_key(|newest| newest.applied).unwrap().state
    }

    fn leader(&self) -> Option<NodeId> {
        let leads = |node: &Node| node.silent.is_none() && node.driver.controller().is_some();
        self.nodes.iter().find(|(_, node)| leads(node)).map(|(id, _)| *id)
    }

    /// Gives a fact to all drivers: only the leader's takes it.
    fn pass(&mut self, fact: &Fact) {
        for node in self.nodes.values_mut().filter(|node| node.silent.is_none()) {
            node.driver.handle(self.now, fact.clone());
        }
    }

    fn until(&mut self, holds: impl Fn(&mut Self) -> bool) {
        for _ in 0..20_000 {
            if holds(self) {
                return;
            }
            self.step();
        }
        panic!("it does not come: {:?}", self.state());
    }

    /// Ten milliseconds of the nodes' time, and at least as much of the planes' as they need to go on.
    fn step(&mut self) {
        self.now = Now::at(self.now.steady.plus_millis(10));
        if (self.now.steady.0 / 10_000).is_multiple_of(5) {
            let reports: Vec<_> = NODES.iter().filter_map(|id| self.report(*id)).collect();
            reports.into_iter().for_each(|report| self.pass(&Fact::Report(report)));
        }
        let mut orders = Vec::new();
        for node in self.nodes.values_mut().filter(|node| node.silent.is_none()) {
            node.driver.step(self.now, &node.plane, &mut orders);
        }
        orders.into_iter().for_each(|order| self.perform(order));
        let up = self.nodes.values().find(|node| node.silent.is_none()).unwrap();
        let _ = up.plane.wait_status(Duration::from_millis(1), |_| false);
    }

    fn report(&mut self, id: NodeId) -> Option<NodeReport> {
        let state = self.state();
        let now = self.now.steady;
        let peers = self.nodes.iter().filter(|(peer, _)| **peer != id).map(|(peer, other)| PeerReport {
            node: *peer,
            silent: other.silent.map_or(Micros(0), |since| now.since(since)),
            is_closed: false,
        });
        let peers = peers.collect();
        let node = self.nodes.get_mut(&id).filter(|node| node.silent.is_none())?;
        let placed = state.shard(SHARD).into_iter().flat_map(|shard| shard.replicas());
        for (replica, _) in placed.filter(|(_, placed)| placed.node == id) {
            node.replicas.entry(*replica).or_default();
        }
        let shards = node.replicas.iter().map(|(replica, held)| ShardReport {
            shard: SHARD,
            replica: *replica,
            promised: held.promised,
            active: held.active,
            leads: held.leads,
            learners: Vec::new(),
            caught_up: Vec::new(),
            max_lag: None,
        });
        let shards = shards.collect();
        let (start, stalled) = (StartId(u128::from(id.0)), Micros(0));
        Some(NodeReport { node: id, start, stalled, peers, shards, shards_known: None })
    }

    fn perform(&mut self, order: Request) {
        match order {
            Request::Seal { node, seals } => {
                let Some(node) = self.nodes.get_mut(&node).filter(|node| node.silent.is_none()) else {
                    return;
                };
                let mut answers = Vec::new();
                for (shard, replica, seal) in seals {
                    let Some(held) = node.replicas.get_mut(&replica) else { continue };
                    assert!(held.promised <= seal.epoch, "no other leader seals here");
                    (held.promised, held.leads) = (seal.epoch, None);
                    let (table, active) = (held.table.clone(), held.active);
                    let (epoch, life, is_folding) = (seal.epoch, Life(1), false);
                    let answer = SealAnswer { replica, life, epoch, table, active, is_folding };
                    answers.push(Fact::Sealed(shard, answer));
                }
                answers.iter().for_each(|fact| self.pass(fact));
            }
            Request::Lead { node, record, .. } => {
                let (epoch, primary) = (record.config.epoch(), record.config.primary());
                if self.nodes[&node].silent.is_some() {
                    return;
                }
                // The others store its start entry at once.
                let mut stored = 0;
                for node in self.nodes.values_mut().filter(|node| node.silent.is_none()) {
                    for (replica, held) in &mut node.replicas {
                        if held.promised > epoch || held.active == epoch {
                            continue;
                        }
                        held.table.truncate(record.base.index);
                        held.table.push(LogPoint { epoch, index: record.base.index.next() });
                        (held.promised, held.active) = (epoch, epoch);
                        held.leads = (*replica == primary).then_some(epoch);
                        stored += 1;
                    }
                }
                assert!(stored == 0 || stored >= record.config.commit_quorum());
            }
            Request::Ask(_) | Request::Delete { .. } => {}
            Request::Propose(command) => panic!("{command:?} is no order"),
        }
    }
}

/// The node of the shard's primary, and the newest epoch, once that is recorded as active.
fn settled(state: &ControlState) -> Option<(NodeId, Epoch)> {
    let shard = state.shard(SHARD).filter(|shard| shard.is_settled())?;
    Some((shard.primary_node()?, shard.history().newest().config.epoch()))
}

/// Creates a service of three replicas whose primary is on the consensus's leader or not, and ends the primary's node.
fn takes_over(with_leader: bool) {
    let mut world = World::new();
    let leader = world.leader().unwrap();
    let primary = if with_leader { leader } else { *NODES.iter().find(|node| **node != leader).unwrap() };
    let mut nodes = NODES.to_vec();
    nodes.sort_by_key(|node| *node != primary);
    let dial = Dial { replicas: 3, ..Dial::default() };
    let command =
        Command::CreateService { name: "bank".to_owned(), dial, shards: vec![ShardStart::New { nodes }] };
    let plane = &world.nodes[&primary].plane;
    assert_eq!(plane.propose(&plane.proposal(&command), LONG), Ok(Outcome::Done));
    world.until(|world| settled(&world.state()) == Some((primary, Epoch(1))));

    let now = world.now.steady;
    let node = world.nodes.get_mut(&primary).unwrap();
    node.silent = Some(now);
    if with_leader {
        node.plane.shutdown();
    }
    world.until(|world| settled(&world.state()).is_some_and(|(_, epoch)| epoch > Epoch(1)));
    let (successor, epoch) = settled(&world.state()).unwrap();
    assert_ne!(successor, primary);
    let leads = |replica: &Replica| replica.leads == Some(epoch);
    assert!(world.nodes[&successor].replicas.values().any(leads), "it got the order to lead");
    let failovers: Vec<_> = world.state().failovers().iter().map(|failover| failover.cause).collect();
    // A new leader of the consensus learns first that the others do not hear it.
    assert!(matches!(failovers[..], [Cause::Silent | Cause::CutOff]), "{failovers:?}");
    if with_leader {
        assert_ne!(world.leader(), Some(leader));
    }
}

#[test]
fn a_silent_primary_is_replaced_by_a_committed_takeover() {
    takes_over(false);
}

#[test]
fn a_primary_on_the_leader_of_the_consensus_is_replaced_by_the_next_leader() {
    takes_over(true);
}

#[test]
fn a_node_that_does_not_lead_takes_no_facts_and_gives_no_orders() {
    let mut world = World::new();
    let leader = world.leader().unwrap();
    let now = world.now;
    for (id, node) in &mut world.nodes {
        let mut orders = Vec::new();
        node.driver.step(now, &node.plane, &mut orders);
        let taken = node.driver.handle(now, Fact::Closed(NodeId(1)));
        assert_eq!((taken, node.plane.status().role == Role::Leader), (*id == leader, *id == leader));
        assert_eq!(orders, []);
    }
}
