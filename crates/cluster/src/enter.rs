//! Entering a cluster: before the data are recovered, the control plane has to know this start, and this node its replicas.
//!
//! In order: the data directory is owned, and made with the cluster's identity if it is new; its life is counted; the plane begins,
//! and the thread that carries it; the start is registered. What the control plane has placed on this node is recovered then, by the
//! node itself, to which [`Entered::attach`] gives the orders of the control plane from then on.

use crate::address::Addresses;
use crate::adopt::LogEnds;
use crate::error::EnterError;
use crate::host::Host;
use crate::join::join;
use crate::links::Links;
use crate::look::Look;
use crate::message::Joined;
use crate::part::{ClusterPart, Common, is_removed};
use crate::transport::PlaneQueue;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use stead_control::{Begin, ControlPlane, Driver, Identity, ProposeError, Settings, Transport};
use stead_core::clock::Now;
use stead_core::control::command::ShardStart;
use stead_core::control::dial::Dial;
use stead_core::control::facts::{Fact, Hello, PeerReport};
use stead_core::control::node::{DiskState, StartId};
use stead_core::control::settings;
use stead_core::control::{Cluster, Command, ControlState, Outcome, Refusal, Secret};
use stead_core::ids::{ClusterId, Incarnation, Life, NodeId, ReplicaId, ShardId};
use stead_net::frame::Origin;
use stead_net::handshake::{CLOCK_DIFFERENCE_MAX, Limits, Local, Role, VERSIONS};
use stead_net::network::Tcp;
use stead_node::{Bell, Clock, Env, Shared};
use stead_store::checkpoint::load::Loaders;
use stead_store::data_dir::{DataDir, DataDirError, Meta, ServiceMeta};
use stead_store::disk::Disk;
use stead_store::wal::WalOptions;

/// The time for one step of the control plane before it is tried again.
const STEP: Duration = Duration::from_millis(500);

/// A service of the program, as it begins if the cluster does not have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewService {
    /// Its name.
    pub name: String,
    /// The number of its shards.
    pub shards: u32,
    /// Its dial.
    pub dial: Dial,
}

/// The arguments of an entry.
pub struct ClusterOptions {
    /// The socket at which the control plane of other nodes reaches this one.
    pub listener: TcpListener,
    /// The addresses of this node.
    pub addresses: Addresses,
    /// The nodes to ask for a place, if the data directory is empty: none to found a cluster. Otherwise they are tried as long as this
    /// node knows no leader, because the addresses that it knows may have changed.
    pub join: Vec<SocketAddr>,
    /// The services of the program.
    pub services: Vec<NewService>,
    /// The time after which the entry is given up.
    pub wait: Duration,
    /// The options with which the data are read of a node that ran without a cluster so far, and founds one.
    pub recovery: (WalOptions, Loaders),
}

/// A node that has entered its cluster, and is still to recover its data.
pub struct Entered {
    /// The data directory.
    pub dir: DataDir,
    /// Whether it was empty.
    pub created: bool,
    /// The replicas that are placed on this node.
    pub replicas: BTreeMap<ShardId, ReplicaId>,
    /// The membership.
    pub membership: Membership,
}

/// The part of a node in its cluster, from its entry to its end.
pub struct Membership {
    common: Arc<Common>,
    plane: Arc<ControlPlane>,
    node: NodeId,
    address: SocketAddr,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Membership {
    /// Returns this node's number.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Returns the address at which other nodes reach this one's control plane.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns this node's member of the control plane.
    #[must_use]
    pub const fn plane(&self) -> &Arc<ControlPlane> {
        &self.plane
    }

    /// Returns the secret that the nodes of the cluster share; `None` of a cluster that an older version founded.
    #[must_use]
    pub fn secret(&self) -> Option<[u8; 32]> {
        self.plane.newest().state.secret().map(|Secret(secret)| secret)
    }

    /// Lets the control plane give orders to a node, and hear its reports. To be called once.
    pub fn attach<E: Env>(&self, node: Arc<Shared<E>>) {
        let host: Arc<dyn Host> = node;
        if self.common.host.set(host).is_ok() {
            self.common.bell.ring();
        }
    }

    /// Returns this node's view of the others.
    pub(crate) fn peers(&self) -> Vec<PeerReport> {
        self.common.host.get().map(|host| host.peers()).unwrap_or_default()
    }

    /// Asks all nodes for what they know. Returns the answers of those that gave one within the time.
    pub(crate) fn look(&self, wait: Duration) -> Vec<Look> {
        let (to, from) = mpsc::channel();
        self.common.looks.lock().unwrap_or_else(PoisonError::into_inner).push(to);
        self.common.bell.ring();
        let until = Instant::now() + wait;
        let next = || from.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
        std::iter::from_fn(next).collect()
    }

    /// Returns the number of failovers and other changes of a primary by cause: those that this node has seen since its start, and those
    /// of the history that it found then.
    #[must_use]
    pub fn failovers_seen(&self) -> BTreeMap<&'static str, u64> {
        let seen = self.common.failovers.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().map(|(cause, count)| (cause.name(), *count)).collect()
    }

    /// Gives a fact of an operator to the controller.
    pub(crate) fn report(&self, fact: Fact) {
        self.common.facts.lock().unwrap_or_else(PoisonError::into_inner).push(fact);
        self.common.bell.ring();
    }

    /// Waits for a newer state, for a time at most.
    pub(crate) fn wait_changed(&self, wait: Duration) {
        let applied = self.plane.newest().applied;
        let _ = self.plane.wait_status(wait, |status| status.applied > applied);
    }

    /// Ends the membership in this life, after the node has ended. Other nodes see that its connections close.
    pub fn end(&self) {
        self.common.stops.store(true, Ordering::Release);
        self.common.bell.ring();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic was reported by its hook.
            let _ = thread.join();
        }
        self.plane.shutdown();
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.end();
    }
}

/// Enters a cluster with the data directory of a disk, or founds one. `goes_on` is asked from time to time whether to.
///
/// # Errors
/// [`EnterError`]. A data directory that was created stays, and enters at the next attempt.
pub fn enter(
    disk: Arc<dyn Disk>,
    clock: &Arc<dyn Clock>,
    options: ClusterOptions,
    goes_on: &dyn Fn() -> bool,
) -> Result<Entered, EnterError> {
    let start = StartId(fresh_id());
    let (mut dir, created) = open_directory(disk, clock, &options, start, goes_on)?;
    if dir.meta().log_created && !dir.meta().has_control && !options.join.is_empty() {
        return Err(EnterError::NotOfCluster);
    }
    dir.begin_start(start)?;
    let membership = begin(&mut dir, clock, &options, start)?;
    let (until, mut ends) = (clock.steady().plus(options.wait.into()), None);
    loop {
        match membership.step(&dir, &options, start, &mut ends)? {
            None => {
                let newest = membership.plane.newest();
                let replicas = newest.state.replicas_on(membership.node);
                let boot = dir.boot();
                // Before the data change: from now on an older copy of the directory lacks this start.
                dir.update(|meta| {
                    meta.services = ServiceMeta::all_of(newest.state.topology());
                    meta.starts = vec![start];
                    // The control plane knows what an earlier boot may have taken.
                    meta.unsynced = meta.unsynced.map(|_| boot);
                })?;
                return Ok(Entered { dir, created, replicas, membership });
            }
            Some(_) if !goes_on() => return Err(EnterError::Stopped),
            Some(reason) if clock.steady() >= until => {
                let failures = &membership.common.failures;
                let failures = std::mem::take(&mut *failures.lock().unwrap_or_else(PoisonError::into_inner));
                return Err(EnterError::NotRegistered { node: membership.node, reason, failures });
            }
            Some(_) => {}
        }
    }
}

/// Opens the data directory. One that is empty is made, with the identity of the cluster that this node joins or founds.
fn open_directory(
    disk: Arc<dyn Disk>,
    clock: &Arc<dyn Clock>,
    options: &ClusterOptions,
    start: StartId,
    goes_on: &dyn Fn() -> bool,
) -> Result<(DataDir, bool), EnterError> {
    let is_empty = matches!(DataDir::inspect(&*disk), Err(DataDirError::Empty));
    let log_id = fastrand::u64(..);
    let mut fresh = Meta::new(ClusterId(fresh_id()), Incarnation(1), NodeId::FIRST, log_id);
    if is_empty && !options.join.is_empty() {
        let hello = Hello {
            node: None,
            life: Life(1),
            start,
            disk: DiskState::Whole,
            addresses: options.addresses.to_texts(),
            earlier: Vec::new(),
        };
        let joined = join(&options.join, &hello, &**clock, options.wait.into(), goes_on)?;
        if let Joined::Done { cluster, incarnation, node, services } = joined {
            let cluster = ClusterId(u128::from_be_bytes(cluster.into()));
            fresh = Meta::new(cluster, Incarnation(incarnation), node, log_id);
            let mut first = 0;
            for (name, shards) in services {
                fresh.services.push(ServiceMeta { name, first: ShardId(first), shards });
                first += shards;
            }
        }
    }
    Ok(DataDir::open(disk, || fresh)?)
}

fn fresh_id() -> u128 {
    u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..))
}

fn draw_secret() -> std::io::Result<Secret> {
    let mut secret = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    Ok(Secret(secret))
}

/// Begins the plane, and the thread that carries it.
fn begin(
    dir: &mut DataDir,
    clock: &Arc<dyn Clock>,
    options: &ClusterOptions,
    start: StartId,
) -> Result<Membership, EnterError> {
    let meta = dir.meta().clone();
    let (node, life) = (meta.node, Life(meta.lives));
    let local = Local {
        versions: VERSIONS,
        cluster: Some(meta.cluster),
        role: Role::Peer { node, directory: meta.log_id, process: start.0 as u64 },
        origin: Origin { incarnation: meta.incarnation, life },
        limits: Limits::default(),
        client_limits: Limits::of_clients(),
        clock_difference_max: CLOCK_DIFFERENCE_MAX,
    };
    let listener = options.listener.try_clone().map_err(EnterError::System)?;
    let tcp = Tcp::accepting(listener).map_err(EnterError::System)?;
    let bell = Arc::new(Bell::default());
    let queue = Arc::new(PlaneQueue::new(Arc::clone(&bell)));
    let common = Arc::new(Common::new(Arc::clone(&bell)));
    let hello = Hello {
        node: Some(node),
        life,
        start,
        disk: if dir.may_lack() { DiskState::Doubtful } else { DiskState::Whole },
        addresses: options.addresses.to_texts(),
        earlier: meta.earlier_starts().to_vec(),
    };
    let links = Links::new(tcp, local, node, &options.join);
    let driver = Driver::new(settings::Settings::default());
    let part = ClusterPart::new(links, Arc::clone(&queue), Arc::clone(&common), driver, (node, hello));
    let founds = node == NodeId::FIRST && options.join.is_empty();
    let plane = ControlPlane::start_in(
        stead_control::Options {
            identity: Identity::of(&meta),
            begin: if founds {
                Begin::Found { address: options.addresses.cluster.to_string() }
            } else {
                Begin::Join
            },
            initial: ControlState::default(),
            settings: Settings::default(),
            on_change: Box::new(move || bell.ring()),
        },
        dir,
        queue as Arc<dyn Transport>,
    )?;
    let plane = Arc::new(plane);
    // It was made above, and is set once.
    let _ = common.plane.set(Arc::clone(&plane));
    let clock = Arc::clone(clock);
    let thread = std::thread::Builder::new().name("stead-cluster".to_owned());
    let thread = thread.spawn(move || run(part, &*clock)).map_err(EnterError::System)?;
    let address = options.addresses.cluster;
    Ok(Membership { common, plane, node, address, thread: Mutex::new(Some(thread)) })
}

/// Gives the part its turns until it is to stop.
fn run(mut part: ClusterPart<Tcp>, clock: &dyn Clock) {
    let common = Arc::clone(part.common());
    common.bell.attach_to(part.network_mut().wake());
    let mut is_attached = false;
    while !common.stops.load(Ordering::Acquire) {
        common.bell.take_ring();
        let host = common.host.get();
        if let Some(host) = host {
            if !is_attached {
                host.bell().attach_to(part.network_mut().wake());
                is_attached = true;
            }
            host.bell().take_ring();
        }
        let now = Now { steady: clock.steady(), wall: clock.wall() };
        let due = match part.turn(now) {
            Ok(due) => due,
            Err(error) => {
                let reason = format!("the connections of the control plane cannot be served: {error}");
                match host {
                    Some(host) => host.fail(reason),
                    None => tracing::error!("{reason}"),
                }
                return;
            }
        };
        if due <= now.steady {
            continue;
        }
        let network = part.network_mut();
        common.bell.sleep(now.steady, Some(due), 0, |time| {
            let mut wait = |time| {
                // An error shows in the next turn, too.
                let _ = network.wait(time);
            };
            match host {
                Some(host) => host.bell().sleep(now.steady, Some(due), 0, wait),
                None => wait(time),
            }
        });
    }
}

impl Membership {
    /// Takes one step of the entry. Returns the obstacle; `None` if there is none any more.
    fn step(
        &self,
        dir: &DataDir,
        options: &ClusterOptions,
        start: StartId,
        ends: &mut Option<LogEnds>,
    ) -> Result<Option<&'static str>, EnterError> {
        let meta = dir.meta();
        let newest = self.plane.newest();
        let state = &newest.state;
        let status = self.plane.status();
        if status.is_stopped {
            return Err(ProposeError::Stopped(status.failure).into());
        }
        if is_removed(state, self.node) || self.common.is_removed.load(Ordering::Acquire) {
            return Err(EnterError::Removed(self.node));
        }
        if status.leader.is_none() {
            let _ = self.plane.wait_status(STEP, |status| status.leader.is_some());
            return Ok(Some("fewer than half of its voters run and can be reached"));
        }
        if state.cluster().is_none() {
            if status.leader == Some(self.node) && self.node == NodeId::FIRST {
                let cluster = Cluster { id: meta.cluster, incarnation: meta.incarnation };
                let secret = Some(draw_secret().map_err(EnterError::Secret)?);
                self.propose(Command::Found { cluster, secret })?;
            } else {
                self.wait_changed(Duration::from_millis(50));
            }
            return Ok(Some("the cluster is not founded yet"));
        }
        let Some(record) = state.nodes().get(&self.node) else {
            if self.node == NodeId::FIRST && state.nodes().is_empty() {
                let (life, addresses) = (Life(meta.lives), options.addresses.to_texts());
                self.propose(Command::Join { node: self.node, life, start, addresses })?;
                return Ok(Some("the first node has not joined yet"));
            }
            self.wait_changed(Duration::from_millis(50));
            return Ok(Some("the control plane does not know the node yet"));
        };
        if record.start != start {
            self.wait_changed(Duration::from_millis(50));
            return Ok(Some("its leader has not heard of this start, or still hears of another one"));
        }
        let is_missing = |name: &str| state.topology().service_id(name).is_none();
        // The control plane knows each service of a node's data, but for those that the first node had before it founded the cluster.
        let adopted = meta.services.iter().find(|service| is_missing(&service.name));
        if let Some(service) = adopted.filter(|_| self.node == NodeId::FIRST) {
            let ends = match ends {
                Some(ends) => ends,
                None => {
                    let (wal, loaders) = options.recovery.clone();
                    ends.insert(LogEnds::read(dir, wal, loaders)?)
                }
            };
            let known = options.services.iter().find(|known| known.name == service.name);
            let dial = known.map_or_else(Dial::default, |known| known.dial);
            self.create(&service.name, dial, ends.starts(service, self.node))?;
            return Ok(Some("a service of the data is not adopted yet"));
        }
        let new = options.services.iter().find(|service| is_missing(&service.name));
        let Some(service) = new else { return Ok(None) };
        let start = || ShardStart::New { nodes: vec![self.node] };
        self.create(&service.name, service.dial, (0..service.shards).map(|_| start()).collect())?;
        Ok(Some("a service of the program is not created yet"))
    }

    /// Proposes to create a service, unless another node does meanwhile.
    fn create(&self, name: &str, dial: Dial, shards: Vec<ShardStart>) -> Result<(), EnterError> {
        let outcome = self.propose(Command::CreateService { name: name.to_owned(), dial, shards })?;
        match outcome {
            Some(Outcome::Refused(refusal))
                if !matches!(refusal, Refusal::Outdated | Refusal::Service { .. }) =>
            {
                Err(EnterError::Command(refusal))
            }
            _ => Ok(()),
        }
    }

    /// Proposes a command. Returns `None` if its outcome is not known yet.
    fn propose(&self, command: Command) -> Result<Option<Outcome>, EnterError> {
        match self.plane.propose(&self.plane.proposal(&command), STEP) {
            Ok(outcome) => Ok(Some(outcome)),
            Err(ProposeError::NoLeader | ProposeError::Unknown | ProposeError::Expired) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
