//! Several planes in one process, and a network between them that can be cut.

use crate::ledger::Ledger;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use stead_control::{
    Answer, Begin, Change, Identity, Options, Plane, Proposal, ProposeError, Settings, StartError, Status,
    Transport,
};
use stead_core::ids::{ClusterId, Incarnation, NodeId};
use stead_store::sim_disk::SimDisk;

/// Longer than anything takes on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) const SETTINGS: Settings = Settings {
    heartbeat: Duration::from_millis(20),
    election_min: Duration::from_millis(60),
    snapshot_entries: 1024,
    snapshot_bytes: 8 << 20,
    log_bytes_max: 64 << 20,
};

#[derive(Default)]
pub(crate) struct Net {
    planes: Mutex<BTreeMap<u32, Weak<Plane<Ledger>>>>,
    /// Pairs of nodes without a connection.
    cuts: Mutex<BTreeSet<(u32, u32)>>,
    /// The number of next answers to proposals that are lost.
    pub(crate) lost_answers: AtomicU32,
}

impl Net {
    pub(crate) fn cut(&self, one: u32, other: u32) {
        self.cuts.lock().unwrap().extend([(one, other), (other, one)]);
    }

    pub(crate) fn heal(&self) {
        self.cuts.lock().unwrap().clear();
    }

    /// Returns the plane of a node that runs.
    pub(crate) fn plane(&self, node: u32) -> Option<Arc<Plane<Ledger>>> {
        self.planes.lock().unwrap().get(&node).and_then(Weak::upgrade)
    }

    fn is_cut(&self, from: u32, to: u32) -> bool {
        self.cuts.lock().unwrap().contains(&(from, to))
    }
}

struct Port {
    from: u32,
    net: Arc<Net>,
}

/// Whether a request is a proposal: its kind is behind the version and the head of a pair.
fn is_proposal(request: &[u8]) -> bool {
    request.get(2) == Some(&3)
}

impl Transport for Port {
    fn request(&self, to: NodeId, address: &str, request: Vec<u8>, answer: Answer) {
        assert_eq!(address, format!("node-{to}"));
        let (from, net) = (self.from, Arc::clone(&self.net));
        if net.is_cut(from, to.0) {
            return;
        }
        let Some(plane) = net.plane(to.0) else { return };
        let may_be_lost = is_proposal(&request);
        plane.receive(NodeId(from), request, move |bytes| {
            let lose = |left: u32| left.checked_sub(1);
            let is_lost = may_be_lost
                && net.lost_answers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lose).is_ok();
            if !is_lost && !net.is_cut(to.0, from) {
                answer.complete(bytes);
            }
        });
        drop_elsewhere(plane);
    }
}

/// Drops a plane that may be the last handle, which waits for the plane's thread, on another thread.
fn drop_elsewhere(plane: Arc<Plane<Ledger>>) {
    if Arc::strong_count(&plane) == 1 {
        std::thread::spawn(move || drop(plane));
    }
}

pub(crate) fn identity(node: u32) -> Identity {
    Identity { cluster: ClusterId(42), incarnation: Incarnation(1), node: NodeId(node) }
}

pub(crate) fn found() -> Begin {
    Begin::Found { address: "node-1".to_owned() }
}

pub(crate) fn options(node: u32, begin: Begin, settings: Settings) -> Options<Ledger> {
    let (identity, initial) = (identity(node), Ledger::default());
    Options { identity, begin, initial, settings, on_change: Box::new(|| ()) }
}

/// Returns the transport of a node without others.
pub(crate) fn nowhere() -> Arc<dyn Transport> {
    Arc::new(Port { from: 1, net: Arc::default() })
}

/// Starts a plane that is alone.
pub(crate) fn alone(disk: &SimDisk, begin: Begin) -> Result<Plane<Ledger>, StartError> {
    Plane::start(options(1, begin, SETTINGS), Arc::new(disk.clone()), nowhere())
}

/// Proposes a command until it is applied, and returns its outcome.
pub(crate) fn propose(plane: &Plane<Ledger>, command: &str) -> u64 {
    insist(plane, &plane.proposal(&command.to_owned()))
}

pub(crate) fn insist(plane: &Plane<Ledger>, proposal: &Proposal) -> u64 {
    for _ in 0..60 {
        match plane.propose(proposal, Duration::from_secs(1)) {
            Ok(outcome) => return outcome,
            Err(ProposeError::Unknown | ProposeError::NoLeader) => {}
            Err(error) => panic!("{proposal:?}: {error}"),
        }
    }
    panic!("{proposal:?} is not applied after a minute")
}

pub(crate) struct Cluster {
    pub(crate) net: Arc<Net>,
    pub(crate) disks: BTreeMap<u32, SimDisk>,
    pub(crate) planes: BTreeMap<u32, Arc<Plane<Ledger>>>,
    pub(crate) settings: Settings,
}

impl Cluster {
    /// Founds a group on node 1, which grows to `voters`.
    pub(crate) fn new(voters: u32, settings: Settings) -> Self {
        let net = Arc::default();
        let mut cluster = Self { net, disks: BTreeMap::new(), planes: BTreeMap::new(), settings };
        cluster.start(1, found());
        for node in 2..=voters {
            cluster.start(node, Begin::Join);
            cluster.place(node);
            cluster.promote(node);
        }
        cluster
    }

    pub(crate) fn start(&mut self, node: u32, begin: Begin) {
        let disk = self.disks.entry(node).or_insert_with(|| SimDisk::new(u64::from(node))).clone();
        let port = Port { from: node, net: Arc::clone(&self.net) };
        let plane = Plane::start(options(node, begin, self.settings), Arc::new(disk), Arc::new(port));
        let plane = Arc::new(plane.unwrap());
        self.net.planes.lock().unwrap().insert(node, Arc::downgrade(&plane));
        self.planes.insert(node, plane);
    }

    /// Ends a node's process.
    pub(crate) fn stop(&mut self, node: u32) {
        self.net.planes.lock().unwrap().remove(&node);
        self.planes.remove(&node).unwrap().shutdown();
        self.disks[&node].kill_process();
    }

    pub(crate) fn any(&self) -> &Plane<Ledger> {
        self.planes.values().next().unwrap()
    }

    pub(crate) fn place(&self, node: u32) {
        self.any()
            .change(Change::Place { node: NodeId(node), address: format!("node-{node}") }, LONG)
            .unwrap();
    }

    pub(crate) fn promote(&self, node: u32) {
        self.any().change(Change::Promote { node: NodeId(node) }, LONG).unwrap();
    }

    /// Waits until all of these nodes agree on a leader among them, and returns it.
    pub(crate) fn leader_of(&self, nodes: &[u32]) -> u32 {
        let deadline = std::time::Instant::now() + LONG;
        loop {
            assert!(std::time::Instant::now() < deadline, "{nodes:?} agree on no leader");
            let leaders: BTreeSet<_> = nodes.iter().map(|node| self.planes[node].leader()).collect();
            if let (1, Some(Some(leader))) = (leaders.len(), leaders.first())
                && nodes.contains(&leader.0)
            {
                return leader.0;
            }
            let first = &self.planes[&nodes[0]];
            let _ = first.wait_status(Duration::from_millis(5), |_| false);
        }
    }

    /// Waits until a node has applied at least as many entries as the reader, and checks that all hold the same commands.
    pub(crate) fn converge(&self) -> Vec<String> {
        let commands = self.any().read(LONG).unwrap();
        for (node, plane) in &self.planes {
            let mut watch = plane.watch();
            let mut newest = watch.newer().unwrap();
            while newest.applied < commands.applied {
                newest = watch.wait(LONG).unwrap_or_else(|| panic!("node {node} stays behind"));
            }
            let len = commands.state.commands.len();
            assert_eq!(newest.state.commands[..len], commands.state.commands, "node {node}");
        }
        commands.state.commands.clone()
    }

    pub(crate) fn wait(&self, node: u32, wanted: impl Fn(&Status) -> bool) -> Status {
        let plane = &self.planes[&node];
        plane.wait_status(LONG, wanted).unwrap_or_else(|| panic!("node {node} stays {:?}", plane.status()))
    }
}
