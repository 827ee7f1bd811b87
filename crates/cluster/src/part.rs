//! The control part of a node: a part that is stepped. It carries the plane's requests, introduces the node, reports on its replicas,
//! and performs the orders of the controller, which runs here while this node's plane leads.

use crate::address::Addresses;
use crate::host::Host;
use crate::links::{Arrived, Links, Purpose, Return, Sender};
use crate::look::{Judgement, Led, Look, Looks};
use crate::message::{Ask, Counted, Joined, PARTS_MAX, decode_answer, encode_answer};
use crate::transport::PlaneQueue;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use stead_control::{Change, ControlPlane, Driver, Role, Status, VOTERS_MAX};
use stead_core::clock::Now;
use stead_core::control::ControlState;
use stead_core::control::directory::Directory;
use stead_core::control::facts::{Fact, Hello, NodeReport, Request, ShardReport};
use stead_core::control::failover::{Cause, Failover};
use stead_core::ids::{Epoch, Micros, NodeId, ShardId, Time};
use stead_net::network::Network;
use stead_node::{AskedStatus, Bell};

/// The time between two reports, and between two introductions of a node that is not registered.
const REPORT: Micros = Micros::from_millis(50);
/// The time between two reports on all replicas.
const REPORT_ALL: Micros = Micros::from_secs(1);
/// The time between two looks at the nodes of the plane.
const TIDY: Micros = Micros::from_millis(200);
/// The time between two looks for the answers of the workers, while someone waits for what this node knows.
const LOOK_AGAIN: Micros = Micros::from_millis(1);
/// The time after which this node answers without those of its shards that a handler holds.
const LOOK_WAIT: Micros = Micros::from_millis(200);
/// Those who wait for what this node knows at most.
const LOOKING_MAX: usize = 64;
/// The time in which a change of the plane's nodes is made.
const CHANGE_WAIT: Duration = Duration::from_secs(5);

/// The reason for which a node ends once another process has its place.
const SUPERSEDED: &str = "another process has started as this node; end one of them";
/// The reason for which a node ends that is no part of its cluster any more.
const REMOVED: &str = "the cluster has removed this node; join it as a new one, with an empty directory";

/// State that the part shares with the thread that opens the node, and with the plane's.
pub(crate) struct Common {
    pub(crate) plane: OnceLock<Arc<ControlPlane>>,
    pub(crate) host: OnceLock<Arc<dyn Host>>,
    /// Rung for anything but news of the host.
    pub(crate) bell: Arc<Bell>,
    /// Answers of the plane to other nodes.
    pub(crate) answers: Mutex<Vec<(Return, Vec<u8>)>>,
    /// Facts of operators at this node.
    pub(crate) facts: Mutex<Vec<Fact>>,
    /// Operators at this node who want to know what all nodes know.
    pub(crate) looks: Mutex<Vec<Looks>>,
    /// The failovers that this node has seen, with those of the history that it found, by cause.
    pub(crate) failovers: Mutex<BTreeMap<Cause, u64>>,
    /// The last failures of connections, until there is a host.
    pub(crate) failures: Mutex<Vec<String>>,
    pub(crate) stops: std::sync::atomic::AtomicBool,
    /// Whether another node has answered that the cluster has removed this one.
    pub(crate) is_removed: std::sync::atomic::AtomicBool,
    /// Whether a change of the plane's nodes is under way.
    changing: std::sync::atomic::AtomicBool,
}

impl Common {
    pub(crate) fn new(bell: Arc<Bell>) -> Self {
        Self {
            plane: OnceLock::new(),
            host: OnceLock::new(),
            bell,
            answers: Mutex::default(),
            facts: Mutex::default(),
            looks: Mutex::default(),
            failovers: Mutex::default(),
            failures: Mutex::default(),
            stops: false.into(),
            is_removed: false.into(),
            changing: false.into(),
        }
    }
}

/// The control part of a node.
pub(crate) struct ClusterPart<N: Network> {
    links: Links<N>,
    queue: Arc<PlaneQueue>,
    common: Arc<Common>,
    driver: Driver,
    /// The introduction of this node, which has its number.
    hello: Hello,
    node: NodeId,
    directory: Directory,
    /// The number of applied entries in the state that was followed last.
    followed: Option<u64>,
    /// The version of the directory that the host follows.
    given: u64,
    is_registered: bool,
    /// Whether the node has ended because another process has its place, or the cluster has removed it, as other nodes say.
    has_failed: bool,
    /// The newest reports on the replicas of this node.
    reports: BTreeMap<ShardId, ShardReport>,
    changed: BTreeSet<ShardId>,
    /// The leader and its term that got the last report on all replicas.
    informed: Option<(NodeId, u64)>,
    report_due: Time,
    report_all_due: Time,
    tidy_due: Time,
    arrived: Vec<Arrived>,
    orders: Vec<Request>,
    /// The time of the first turn, by the wall clock.
    begun: Option<Time>,
    /// Those who wait for what this node knows.
    looking: Vec<Looking>,
    /// The last failover that was counted.
    counted: Option<(ShardId, Epoch)>,
}

/// One who waits for what this node knows, until its workers have answered.
struct Looking {
    to: LookTo,
    /// `None` if its workers are not asked.
    asked: Option<AskedStatus>,
    until: Time,
}

enum LookTo {
    Here(Looks),
    Node(Return),
}

impl<N: Network> ClusterPart<N> {
    pub(crate) fn new(
        links: Links<N>,
        queue: Arc<PlaneQueue>,
        common: Arc<Common>,
        driver: Driver,
        (node, hello): (NodeId, Hello),
    ) -> Self {
        Self {
            links,
            queue,
            common,
            driver,
            hello,
            node,
            directory: Directory::default(),
            followed: None,
            given: 0,
            is_registered: false,
            has_failed: false,
            reports: BTreeMap::new(),
            changed: BTreeSet::new(),
            informed: None,
            report_due: Time(0),
            report_all_due: Time(0),
            tidy_due: Time(0),
            arrived: Vec::new(),
            orders: Vec::new(),
            begun: None,
            looking: Vec::new(),
            counted: None,
        }
    }

    pub(crate) const fn network_mut(&mut self) -> &mut N {
        self.links.network_mut()
    }

    pub(crate) const fn common(&self) -> &Arc<Common> {
        &self.common
    }

    /// Performs what is due, without waiting. Returns the time of the next turn, unless a bell is rung before.
    pub(crate) fn turn(&mut self, now: Now) -> io::Result<Time> {
        let mut due = self.links.turn(now.steady, now.wall, &mut self.arrived)?;
        let Some(plane) = self.common.plane.get().cloned() else {
            self.arrived.clear();
            return Ok(due);
        };
        let status = plane.status();
        let mut arrived = std::mem::take(&mut self.arrived);
        for news in arrived.drain(..) {
            self.handle(now, &plane, news);
        }
        self.arrived = arrived;
        self.follow(&plane, &status);
        self.links.seek(status.leader.is_none());
        // It may not learn from the state that another process has taken its place: no other node gives it the newest.
        if self.is_registered
            && !self.has_failed
            && let Some(refusal) = self.links.superseded()
        {
            let reason = format!("{SUPERSEDED}: {refusal}");
            // A node that is still being opened is ended in a later turn.
            self.has_failed = self.common.host.get().is_some();
            self.fail(reason);
        }
        if self.common.host.get().is_none() {
            let mut failures = self.common.failures.lock().unwrap_or_else(PoisonError::into_inner);
            *failures = self.links.failures();
        }
        self.introduce_and_report(now, &status);
        self.driver.step(now, &plane, &mut self.orders);
        let orders = std::mem::take(&mut self.orders);
        self.give_orders(now.steady, orders);
        if status.role == Role::Leader {
            self.tidy(now.steady, &plane, &status);
        }
        self.look(now);
        self.count_failovers(&plane.newest().state);
        self.carry(now.steady);
        self.links.flush(now.steady);
        if !self.looking.is_empty() {
            due = due.min(now.steady.plus(LOOK_AGAIN));
        }
        if let Some(controller) = self.driver.controller() {
            due = due.min(controller.wakes_at());
        }
        Ok(due.min(self.report_due))
    }

    fn handle(&mut self, now: Now, plane: &ControlPlane, arrived: Arrived) {
        match arrived {
            Arrived::Ask(sender, to, bytes) => match Ask::decode(&bytes) {
                Ok(ask) => self.answer(now, plane, sender, to, ask),
                Err(error) => self.links.refuse(to, &error.to_string(), now.steady),
            },
            Arrived::Answer(_, Purpose::Plane(answer), bytes) => answer.complete(bytes.to_vec()),
            Arrived::Answer(node, Purpose::Facts, bytes) => {
                let counted = decode_answer::<Counted>(&bytes);
                let is_leader = counted.as_ref().is_ok_and(|counted| counted.is_leader);
                if !is_leader && self.informed.is_some_and(|(leader, _)| leader == node) {
                    self.informed = None;
                }
                if counted.is_ok_and(|counted| counted.is_removed) {
                    self.end_as_removed();
                }
            }
            Arrived::Answer(_, Purpose::Introduction, bytes) => {
                if decode_answer::<Joined>(&bytes).is_ok_and(|joined| joined == Joined::Removed) {
                    self.end_as_removed();
                }
            }
            Arrived::Answer(_, Purpose::Orders, _) => {}
            Arrived::Answer(_, Purpose::Look(looks), bytes) => {
                if let Ok(look) = decode_answer::<Look>(&bytes) {
                    // The operator may be gone.
                    let _ = looks.send(look);
                }
            }
        }
    }

    fn answer(&mut self, now: Now, plane: &ControlPlane, sender: Sender, to: Return, ask: Ask) {
        match (ask, sender) {
            (Ask::Plane(request), Sender::Node(from)) => {
                let common = Arc::clone(&self.common);
                plane.receive(from, request, move |answer| {
                    common.answers.lock().unwrap_or_else(PoisonError::into_inner).push((to, answer));
                    common.bell.ring();
                });
            }
            (Ask::Facts(facts), Sender::Node(from)) => {
                let is_of = |fact: &Fact| match fact {
                    Fact::Hello(hello) => hello.node == Some(from),
                    Fact::Report(report) => report.node == from,
                    _ => true,
                };
                if !facts.iter().all(is_of) {
                    return self.links.refuse(to, &format!("node {from} reports as another one"), now.steady);
                }
                let mut is_leader = true;
                for fact in facts {
                    is_leader &= self.driver.handle(now, fact);
                }
                let is_removed = is_removed(&plane.newest().state, from);
                self.links.answer(to, encode_answer(&Counted { is_leader, is_removed }), now.steady);
            }
            (Ask::Orders(orders), Sender::Node(_)) => {
                for order in orders {
                    self.obey(order);
                }
                self.links.answer(to, Vec::new(), now.steady);
            }
            (Ask::Look, Sender::Node(_)) => self.begin_look(now.steady, LookTo::Node(to)),
            (Ask::Join(hello), sender) => {
                let joined = self.join(now, plane, sender, hello);
                self.links.answer(to, encode_answer(&joined), now.steady);
            }
            (_, Sender::Stranger) => {
                self.links.refuse(to, "a client asked what only nodes may", now.steady);
            }
        }
    }

    /// Lets a node join, or gives the leader the introduction of one that it does not reach. The node repeats its request until it is
    /// registered.
    fn join(&mut self, now: Now, plane: &ControlPlane, sender: Sender, hello: Hello) -> Joined {
        let newest = plane.newest();
        let state = &newest.state;
        let Some(cluster) = state.cluster() else { return Joined::NotYet };
        if let Some((node, _)) = state.nodes().iter().find(|(_, record)| record.start == hello.start) {
            let services = state.topology().services().iter();
            let services = services.map(|service| (service.name.clone(), service.shards));
            return Joined::done(cluster.id, cluster.incarnation, *node, services.collect());
        }
        let has_number = sender == Sender::Stranger && hello.node.is_some();
        if has_number || Addresses::of_texts(&hello.addresses).is_none() {
            return Joined::Refused("a node that joins has no number, and names its addresses".to_owned());
        }
        if hello.node.is_some_and(|node| is_removed(state, node)) {
            return Joined::Removed;
        }
        if hello.node.is_none() && state.nodes().len() >= ControlState::NODES_MAX {
            return Joined::Refused(format!("the cluster has {} nodes already", ControlState::NODES_MAX));
        }
        if !self.driver.handle(now, Fact::Hello(hello.clone()))
            && let Some(leader) = plane.leader().filter(|leader| *leader != self.node)
        {
            self.links.ask(leader, Ask::Join(hello).encode(), Purpose::Orders, now.steady);
        }
        Joined::NotYet
    }

    /// Follows the newest state: the addresses of nodes, and the routes of shards.
    fn follow(&mut self, plane: &ControlPlane, status: &Status) {
        // The state has a new address before the plane does.
        for (node, address) in &status.addresses {
            if !self.directory.nodes().contains_key(node)
                && let Ok(address) = address.parse()
            {
                self.links.set_address(*node, address);
            }
        }
        let newest = plane.newest();
        if self.followed != Some(newest.applied) {
            self.followed = Some(newest.applied);
            self.directory.follow(&newest.state);
            let own = newest.state.nodes().get(&self.node);
            let was_registered = self.is_registered;
            self.is_registered = own.is_some_and(|record| record.start == self.hello.start);
            if was_registered && !self.is_registered {
                match own {
                    Some(_) => self.fail(SUPERSEDED.to_owned()),
                    None => self.end_as_removed(),
                }
            }
            for (node, route) in self.directory.nodes() {
                if let Some(addresses) = Addresses::of_texts(&route.addresses) {
                    self.links.set_address(*node, addresses.cluster);
                }
            }
            let (nodes, plane_nodes) = (self.directory.nodes(), &status.addresses);
            self.links.keep_only(|node| {
                nodes.contains_key(&node) || plane_nodes.iter().any(|(other, _)| *other == node)
            });
        }
        let Some(host) = self.common.host.get() else { return };
        if self.given < self.directory.version() || self.given == 0 {
            if self.directory.nodes_changed_since(self.given) {
                let peers = self.directory.nodes().iter().filter_map(|(node, route)| {
                    Some((*node, Addresses::of_texts(&route.addresses)?.peers)).filter(|_| *node != self.node)
                });
                host.set_peers(peers.collect());
                let clients = self.directory.nodes().iter().filter_map(|(node, route)| {
                    Some((*node, Addresses::of_texts(&route.addresses)?.clients?))
                });
                host.set_clients(clients.collect());
            }
            host.follow(&mut self.directory.shards_changed_since(self.given));
            self.given = self.directory.version();
        }
    }

    /// Ends this node, because the cluster has removed it.
    fn end_as_removed(&mut self) {
        self.common.is_removed.store(true, std::sync::atomic::Ordering::Release);
        if let Some(host) = self.common.host.get()
            && !std::mem::replace(&mut self.has_failed, true)
        {
            host.fail(REMOVED.to_owned());
        }
    }

    fn fail(&self, reason: String) {
        match self.common.host.get() {
            Some(host) => host.fail(reason),
            None => tracing::error!("{reason}"),
        }
    }

    /// Introduces this node until it is registered; then reports on it.
    fn introduce_and_report(&mut self, now: Now, status: &Status) {
        let mut facts =
            std::mem::take(&mut *self.common.facts.lock().unwrap_or_else(PoisonError::into_inner));
        let host = self.common.host.get();
        if let Some(host) = host {
            let news = host.take_news();
            facts.extend(news.facts);
            for report in news.reports {
                self.changed.insert(report.shard);
                self.reports.insert(report.shard, report);
            }
        }
        let is_due = now.steady >= self.report_due;
        let leader = status.leader.map(|leader| (leader, status.term));
        let is_new = leader.is_some() && self.informed != leader;
        if self.is_registered {
            if let Some(host) = host
                && (is_due || is_new || !self.changed.is_empty())
            {
                let is_all = is_new || now.steady >= self.report_all_due;
                if is_all {
                    self.report_all_due = now.steady.plus(REPORT_ALL);
                }
                let wanted = |report: &&ShardReport| is_all || self.changed.contains(&report.shard);
                let shards = self.reports.values().filter(wanted).cloned().collect();
                facts.push(Fact::Report(NodeReport {
                    node: self.node,
                    start: self.hello.start,
                    stalled: host.stalled(),
                    peers: host.peers(),
                    shards,
                    shards_known: Some(host.shards()),
                }));
            }
        } else if is_due && leader.is_some() {
            facts.push(Fact::Hello(self.hello.clone()));
        }
        if is_due && leader.is_none() {
            // The leader may not reach this node, because it knows another address, or none: others give it the news. Or the cluster
            // has removed this node, and sends it nothing more.
            for node in self.links.open_nodes() {
                let ask = Ask::Join(self.hello.clone()).encode();
                self.links.ask(node, ask, Purpose::Introduction, now.steady);
            }
        }
        if is_due {
            self.report_due = now.steady.plus(REPORT);
        }
        let has_report = facts.iter().any(|fact| matches!(fact, Fact::Report(_)));
        if has_report && leader.is_some() {
            self.changed.clear();
            self.informed = leader;
        }
        self.give_facts(now, status, facts);
    }

    /// Gives facts to the controller. Without a leader they are dropped: what matters comes again.
    fn give_facts(&mut self, now: Now, status: &Status, facts: Vec<Fact>) {
        if facts.is_empty() {
            return;
        }
        match status.leader {
            Some(leader) if leader == self.node => {
                for fact in facts {
                    if !self.driver.handle(now, fact) {
                        self.informed = None;
                    }
                }
            }
            Some(leader) => {
                for facts in facts.chunks(PARTS_MAX) {
                    self.links.ask(leader, Ask::Facts(facts.to_vec()).encode(), Purpose::Facts, now.steady);
                }
            }
            None => {}
        }
    }

    /// Gives the orders of the controller to the nodes that they are for.
    fn give_orders(&mut self, now: Time, orders: Vec<Request>) {
        let mut by_node: BTreeMap<NodeId, Vec<Request>> = BTreeMap::new();
        for order in orders {
            let node = match &order {
                Request::Ask(_) | Request::Propose(_) => self.node,
                Request::Seal { node, .. } | Request::Lead { node, .. } | Request::Delete { node, .. } => {
                    *node
                }
            };
            if node == self.node {
                self.obey(order);
            } else {
                by_node.entry(node).or_default().push(order);
            }
        }
        for (node, orders) in by_node {
            for orders in orders.chunks(PARTS_MAX) {
                self.links.ask(node, Ask::Orders(orders.to_vec()).encode(), Purpose::Orders, now);
            }
        }
    }

    /// Performs an order for this node. It comes again if this node cannot perform it yet.
    fn obey(&mut self, order: Request) {
        let Some(host) = self.common.host.get() else { return };
        match order {
            Request::Seal { node, seals } if node == self.node => {
                for (shard, replica, seal) in seals {
                    host.seal(shard, replica, seal);
                }
            }
            Request::Lead { node, shard, record, learners, max_lag } if node == self.node => {
                host.lead(shard, record, learners, max_lag);
            }
            Request::Delete { node, shard, replica } if node == self.node => host.delete(shard, replica),
            Request::Ask(node) => host.ask_peer(node),
            // Of another node, or what only the leader's own controller may ask for.
            Request::Seal { .. } | Request::Lead { .. } | Request::Delete { .. } | Request::Propose(_) => {}
        }
    }

    /// At the leader: places nodes in the plane that are not in it, and makes voters of an odd number of them.
    fn tidy(&mut self, now: Time, plane: &Arc<ControlPlane>, status: &Status) {
        use std::sync::atomic::Ordering;
        if now < self.tidy_due || self.common.changing.load(Ordering::Acquire) {
            return;
        }
        self.tidy_due = now.plus(TIDY);
        let newest = plane.newest();
        let Some(change) = next_change(&newest.state, status, |node| self.links.is_open(node)) else {
            return;
        };
        self.common.changing.store(true, Ordering::Release);
        let (plane, common) = (Arc::clone(plane), Arc::clone(&self.common));
        let run = move || {
            if let Err(error) = plane.change(change, CHANGE_WAIT) {
                tracing::debug!("{error}");
            }
            common.changing.store(false, Ordering::Release);
            common.bell.ring();
        };
        let thread = std::thread::Builder::new().name("stead-change".to_owned()).spawn(run);
        if thread.is_err() {
            self.common.changing.store(false, Ordering::Release);
        }
    }

    /// Begins to ask this node's workers. While it does not serve yet, or too many wait, it answers without its shards at once: a
    /// request that has no answer keeps its place in the connection.
    fn begin_look(&mut self, now: Time, to: LookTo) {
        let host = self.common.host.get().filter(|_| self.looking.len() < LOOKING_MAX);
        let asked = host.map(|host| host.ask_status());
        self.looking.push(Looking { to, asked, until: now.plus(LOOK_WAIT) });
    }

    /// Asks all nodes for what they know, for the operators who wait for that, and answers those who have asked this one.
    fn look(&mut self, now: Now) {
        let begun = *self.begun.get_or_insert(now.wall);
        let wanted = std::mem::take(&mut *self.common.looks.lock().unwrap_or_else(PoisonError::into_inner));
        for looks in wanted {
            for node in self.directory.nodes().keys() {
                if self.links.is_open(*node) {
                    self.links.ask(*node, Ask::Look.encode(), Purpose::Look(looks.clone()), now.steady);
                }
            }
            self.begin_look(now.steady, LookTo::Here(looks));
        }
        self.looking.retain_mut(|Looking { to, asked, until }| {
            let shards = match asked.as_mut().map(AskedStatus::take) {
                Some(Some(shards)) => shards,
                Some(None) if now.steady < *until => return true,
                Some(None) | None => Vec::new(),
            };
            let nodes = self.directory.nodes().keys().copied();
            let judgement = Judgement::of(&self.driver, now, nodes);
            let led = shards.iter().filter_map(Led::of).collect();
            let shards = self.common.host.get().map(|host| host.shards());
            let look = Look { node: self.node, begun, judgement, led, shards };
            match to {
                // The operator may be gone.
                LookTo::Here(looks) => drop(looks.send(look)),
                LookTo::Node(to) => self.links.answer(*to, encode_answer(&look), now.steady),
            }
            false
        });
    }

    /// Counts the failovers that have begun since the last turn.
    fn count_failovers(&mut self, state: &ControlState) {
        let name = |failover: &Failover| (failover.shard, failover.epoch);
        let newest = state.failovers().back().map(name);
        if newest == self.counted {
            return;
        }
        let is_new = |failover: &&Failover| Some(name(failover)) != self.counted;
        let mut counts = self.common.failovers.lock().unwrap_or_else(PoisonError::into_inner);
        for failover in state.failovers().iter().rev().take_while(is_new) {
            *counts.entry(failover.cause).or_default() += 1;
        }
        self.counted = newest;
    }

    /// Sends the requests and the answers of the plane.
    fn carry(&mut self, now: Time) {
        for request in self.queue.take() {
            if let Some(address) = request.address
                && !self.directory.nodes().contains_key(&request.to)
            {
                self.links.set_address(request.to, address);
            }
            self.links.ask(
                request.to,
                Ask::Plane(request.request).encode(),
                Purpose::Plane(request.answer),
                now,
            );
        }
        let answers =
            std::mem::take(&mut *self.common.answers.lock().unwrap_or_else(PoisonError::into_inner));
        for (to, answer) in answers {
            self.links.answer(to, answer, now);
        }
    }
}

/// Whether a node has been removed: it had a number. A state that is old does not say so too early, because no number is used again.
pub(crate) fn is_removed(state: &ControlState, node: NodeId) -> bool {
    node < state.next_node() && !state.nodes().contains_key(&node)
}

/// Returns the next change of the plane's nodes: each node of the cluster is one of them, and the largest odd number of them that is
/// allowed votes. Only a node that takes part becomes a voter: one that never came back could not be outvoted, as long as there are
/// few others.
fn next_change(state: &ControlState, status: &Status, is_open: impl Fn(NodeId) -> bool) -> Option<Change> {
    for (node, record) in state.nodes() {
        let address = record.addresses.first()?;
        let known = status.addresses.iter().find(|(other, _)| other == node);
        if known.is_none_or(|(_, known)| known != address) {
            return Some(Change::Place { node: *node, address: address.clone() });
        }
    }
    if let Some((node, _)) = status.addresses.iter().find(|(node, _)| !state.nodes().contains_key(node)) {
        return (!state.nodes().is_empty()).then_some(Change::Remove { node: *node });
    }
    let nodes = state.nodes().len().min(VOTERS_MAX);
    let wanted = nodes - usize::from(nodes.is_multiple_of(2));
    if status.voters.len() < wanted {
        let is_candidate = |(node, entries): &&(NodeId, u64)| {
            let is_known = state.nodes().contains_key(node) && !status.voters.contains(node);
            is_known && *entries > 0 && is_open(*node)
        };
        let candidates = status.stored.iter().filter(is_candidate);
        let (learner, _) = candidates.max_by_key(|(node, entries)| (*entries, Reverse(*node)))?;
        return Some(Change::Promote { node: *learner });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_core::control::node::StartId;
    use stead_core::control::{Cluster, Command, Outcome};
    use stead_core::ids::{ClusterId, Incarnation, Life};

    #[test]
    fn only_a_node_that_is_connected_and_follows_becomes_a_voter() {
        let address = |node: u32| format!("127.0.0.1:{node}");
        let mut state = ControlState::default();
        let cluster = Cluster { id: ClusterId(1), incarnation: Incarnation(1) };
        assert_eq!(state.apply(Command::Found { cluster, secret: None }), Outcome::Done);
        for node in 1..=4 {
            let (start, addresses) = (StartId(node.into()), vec![address(node)]);
            let join = Command::Join { node: NodeId(node), life: Life(1), start, addresses };
            assert_eq!(state.apply(join), Outcome::Done);
        }
        let [one, two, three, four] = [1, 2, 3, 4].map(NodeId);
        let mut status = Status {
            node: one,
            role: Role::Leader,
            leader: Some(one),
            term: 1,
            voters: vec![one],
            learners: vec![two, three, four],
            addresses: [one, two, three, four].map(|node| (node, address(node.0))).into(),
            is_changing: false,
            entries: 9,
            applied: 9,
            snapshot: 0,
            stored: vec![(two, 0), (three, 5), (four, 9)],
            failure: None,
            is_stopped: false,
        };
        let next =
            |status: &Status, open: &[NodeId]| next_change(&state, status, |node| open.contains(&node));
        assert_eq!(next(&status, &[two, three, four]), Some(Change::Promote { node: four }));
        assert_eq!(next(&status, &[two, three]), Some(Change::Promote { node: three }));
        assert_eq!(next(&status, &[two]), None, "it has never stored anything");
        status.voters = vec![one, three, four];
        assert_eq!(next(&status, &[two, three, four]), None, "an odd number votes");
        status.addresses[1].1 = "127.0.0.1:7".to_owned();
        let place = Change::Place { node: two, address: address(2) };
        assert_eq!(next(&status, &[]), Some(place), "it has another address now");
    }
}
