//! The nodes of a local cluster.

use crate::child::NodeProcess;
use crate::error::{LocalError, system};
use crate::links::{Door, Links};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Bytes of a node's standard error that an error repeats.
const SAID_MAX: u64 = 2_000;

/// The time from the end of a process's output to its own.
const END_MAX: Duration = Duration::from_secs(5);

/// The file with the addresses of the nodes, in the directory of the cluster.
const ADDRESSES: &str = "addresses.json";

/// Settings of a local cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The first arguments of the program, before the options of `stead start`. Default: `start --supervise=false --json`.
    pub command: Vec<OsString>,
    /// Arguments that follow. Default: none.
    pub arguments: Vec<OsString>,
    /// The address for HTTP of the first node; the others have the ports that follow. Default: free ones.
    pub http: Option<SocketAddr>,
    /// Whether the links between the nodes can be cut and delayed: then they go through proxies of this process, which costs time.
    /// Default: no.
    pub links: bool,
    /// The time in which a node has to be ready. Default: 60 s.
    pub ready_time_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            command: ["start", "--supervise=false", "--json"].map(OsString::from).into(),
            arguments: Vec::new(),
            http: None,
            links: false,
            ready_time_max: Duration::from_secs(60),
        }
    }
}

/// The addresses of a node, which it keeps over restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeAddresses {
    /// For clients over HTTP.
    pub http: SocketAddr,
    /// For clients by the native protocol.
    pub native: SocketAddr,
    /// For other nodes.
    pub cluster: SocketAddr,
}

#[derive(Debug)]
struct Node {
    data: PathBuf,
    log: PathBuf,
    addresses: NodeAddresses,
    /// The addresses at which other nodes reach it in the place of `cluster` and `peers`, if links can be cut.
    advertised: Option<[SocketAddr; 2]>,
    /// The address for the messages of shards.
    peers: SocketAddr,
    /// Open while it runs.
    doors: Vec<Door>,
    /// `None` while it does not run.
    process: Option<NodeProcess>,
    is_paused: bool,
}

/// A cluster of child processes on this machine. Dropping it kills them.
///
/// Nodes are counted from 0 here; the cluster numbers them from 1.
#[derive(Debug)]
pub struct LocalCluster {
    program: PathBuf,
    options: Options,
    nodes: Vec<Node>,
    /// After the nodes, which end first.
    links: Links,
}

impl LocalCluster {
    /// Starts a cluster, and waits until each node is ready. The node with the number 2 has its data in `n2` below the directory, and
    /// its standard error in `n2.log`. A cluster that ran there before starts again, with its addresses.
    ///
    /// # Errors
    /// [`LocalError`]; the nodes are killed then.
    ///
    /// # Panics
    /// Without a node, or with more than 200.
    pub fn start(program: &Path, nodes: u16, data: &Path, options: Options) -> Result<Self, LocalError> {
        assert!((1..=200).contains(&nodes), "a local cluster has 1 to 200 nodes");
        std::fs::create_dir_all(data).map_err(system("create the directory of the cluster"))?;
        let mut all = Vec::with_capacity(usize::from(nodes));
        for (at, found) in (0..nodes).zip(addresses(nodes, data)?) {
            let name = format!("n{}", at + 1);
            let [http, native, cluster, peers, cluster_door, peers_door] = found;
            let mut addresses = NodeAddresses { http, native, cluster };
            if let Some(first) = options.http {
                addresses.http = SocketAddr::new(first.ip(), first.port().saturating_add(at));
            }
            let log = data.join(format!("{name}.log"));
            let advertised = options.links.then_some([cluster_door, peers_door]);
            let data = data.join(name);
            let (doors, process, is_paused) = (Vec::new(), None, false);
            all.push(Node { data, log, addresses, advertised, peers, doors, process, is_paused });
        }
        let (program, links) = (program.to_owned(), Links::default());
        let mut cluster = Self { program, options, nodes: all, links };
        // A cluster that ran before needs more than half of its nodes to start; a new node gets the number that follows.
        let has_data = |node: &Node| node.data.join("stead.json").exists();
        let (known, fresh): (Vec<_>, Vec<_>) =
            (0..cluster.nodes.len()).partition(|at| has_data(&cluster.nodes[*at]));
        for at in known {
            cluster.spawn(at)?;
        }
        cluster.wait_until_ready(cluster.options.ready_time_max)?;
        for at in fresh {
            cluster.restart(at)?;
        }
        Ok(cluster)
    }

    /// Returns the number of nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns false: a cluster has at least one node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns the addresses of a node.
    ///
    /// # Panics
    /// If there is no such node; so do all methods that take a node.
    #[must_use]
    pub fn addresses(&self, node: usize) -> NodeAddresses {
        self.nodes[node].addresses
    }

    /// Returns the addresses of all nodes for native clients.
    #[must_use]
    pub fn native(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.addresses.native).collect()
    }

    /// Returns the addresses of all nodes for clients over HTTP.
    #[must_use]
    pub fn http(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.addresses.http).collect()
    }

    /// Returns the process id of a node; `None` if it was killed or stopped.
    #[must_use]
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes[node].process.as_ref().map(NodeProcess::pid)
    }

    /// Returns the data directory of a node.
    #[must_use]
    pub fn data(&self, node: usize) -> &Path {
        &self.nodes[node].data
    }

    /// Returns the file with the standard error of a node.
    #[must_use]
    pub fn log(&self, node: usize) -> &Path {
        &self.nodes[node].log
    }

    /// Returns whether a node was paused, and not resumed.
    #[must_use]
    pub fn is_paused(&self, node: usize) -> bool {
        self.nodes[node].is_paused
    }

    /// Kills a node with SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// Those of the system.
    pub fn kill(&mut self, node: usize) -> Result<(), LocalError> {
        if let Some(process) = self.nodes[node].take_process() {
            process.signal(Signal::KILL)?;
        }
        Ok(())
    }

    /// Stops a node in order, by SIGTERM, and returns its exit status; `None` if it did not run. One that takes longer than this time is
    /// killed.
    ///
    /// # Errors
    /// Those of the system.
    pub fn stop(&mut self, node: usize, at_most: Duration) -> Result<Option<ExitStatus>, LocalError> {
        self.resume(node)?;
        let Some(mut process) = self.nodes[node].take_process() else { return Ok(None) };
        process.signal(Signal::TERM)?;
        if process.wait(at_most)?.is_none() {
            process.signal(Signal::KILL)?;
        }
        process.wait(END_MAX)
    }

    /// Starts a node that does not run, with its data and addresses, without waiting for it: see [`Self::wait_until_ready`].
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&mut self, node: usize) -> Result<(), LocalError> {
        if self.nodes[node].process.is_some() {
            return Ok(());
        }
        let founder = &self.nodes[0];
        let founder = founder.advertised.map_or(founder.addresses.cluster, |[cluster, _]| cluster);
        let Node { data, log, addresses, advertised, peers, .. } = &self.nodes[node];
        let NodeAddresses { http, native, cluster } = addresses;
        let mut arguments = self.options.command.clone();
        arguments.extend(["--until-stdin-ends".into(), "--data".into(), data.into()]);
        let mut options =
            vec![("--listen", http), ("--listen-native", native), ("--listen-cluster", cluster)];
        options.push(("--listen-peers", peers));
        if node > 0 {
            options.push(("--join", &founder));
        }
        let mut doors = Vec::new();
        if let Some([cluster_door, peers_door]) = advertised {
            options.extend([("--advertise-cluster", cluster_door), ("--advertise-peers", peers_door)]);
            for (door, target) in [(cluster_door, cluster), (peers_door, peers)] {
                doors.push(self.links.open_door(*door, number(node).into(), *target)?);
            }
        }
        for (option, address) in options {
            arguments.extend([option.into(), address.to_string().into()]);
        }
        arguments.extend(self.options.arguments.iter().cloned());
        let process = NodeProcess::start(&self.program, &arguments, log)?;
        let node = &mut self.nodes[node];
        (node.process, node.doors) = (Some(process), doors);
        Ok(())
    }

    /// Starts a node that does not run, with its data and addresses, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Self::wait_until_ready`].
    pub fn restart(&mut self, node: usize) -> Result<(), LocalError> {
        self.spawn(node)?;
        let wait = self.options.ready_time_max;
        self.await_ready(node, wait, Instant::now() + wait)
    }

    /// Waits until each node that runs has reported that it is ready since its start.
    ///
    /// # Errors
    /// [`LocalError::NotReady`] after that time, [`LocalError::Ended`] if one has ended.
    pub fn wait_until_ready(&mut self, at_most: Duration) -> Result<(), LocalError> {
        let until = Instant::now() + at_most;
        (0..self.nodes.len()).try_for_each(|node| self.await_ready(node, at_most, until))
    }

    fn await_ready(&mut self, at: usize, waited: Duration, until: Instant) -> Result<(), LocalError> {
        let Node { process: Some(process), data, .. } = &mut self.nodes[at] else { return Ok(()) };
        let node = number(at);
        if let Some(found) = process.wait_ready(until) {
            let found = found.filter(|found| *found != u32::from(node));
            return found
                .map_or(Ok(()), |found| Err(LocalError::OtherNumber { node, found, data: data.clone() }));
        }
        if Instant::now() < until {
            // It has closed its output, so that it ends soon.
            process.wait(END_MAX)?;
        }
        self.check_node(at)?;
        let (log, said) = (self.nodes[at].log.clone(), self.nodes[at].said());
        Err(LocalError::NotReady { node, waited, log, said })
    }

    /// Checks that no node has ended without being asked to.
    ///
    /// # Errors
    /// [`LocalError::Ended`], once; the node does not run from then on.
    pub fn check(&mut self) -> Result<(), LocalError> {
        (0..self.nodes.len()).try_for_each(|node| self.check_node(node))
    }

    fn check_node(&mut self, at: usize) -> Result<(), LocalError> {
        let node = &mut self.nodes[at];
        let Some(process) = &mut node.process else { return Ok(()) };
        let Some(status) = process.ended()? else { return Ok(()) };
        node.take_process();
        let (log, said) = (node.log.clone(), node.said());
        Err(LocalError::Ended { node: number(at), status: status.to_string(), log, said })
    }

    /// Pauses a node with SIGSTOP. It lives, and does nothing.
    ///
    /// # Errors
    /// Those of the system.
    pub fn pause(&mut self, node: usize) -> Result<(), LocalError> {
        let node = &mut self.nodes[node];
        let Some(process) = &node.process else { return Ok(()) };
        process.signal(Signal::STOP)?;
        node.is_paused = true;
        Ok(())
    }

    /// Lets a paused node go on, with SIGCONT.
    ///
    /// # Errors
    /// Those of the system.
    pub fn resume(&mut self, node: usize) -> Result<(), LocalError> {
        let node = &mut self.nodes[node];
        if let Some(process) = &node.process
            && std::mem::take(&mut node.is_paused)
        {
            process.signal(Signal::CONT)?;
        }
        Ok(())
    }

    /// Cuts a node off from the others: nothing passes between them, and no connection closes. Its clients still reach it.
    ///
    /// # Panics
    /// If the links cannot be cut: see [`Options::links`].
    pub fn cut(&self, node: usize) {
        self.for_links(node, |links, from, to| links.set_cut(from, to, true));
    }

    /// Cuts one direction between two nodes: what `from` sends does not arrive at `to`.
    ///
    /// # Panics
    /// As [`Self::cut`].
    pub fn cut_link(&self, from: usize, to: usize) {
        self.expect_links();
        self.links.set_cut(number(from).into(), number(to).into(), true);
    }

    /// Closes the connections between a node and the others.
    ///
    /// # Panics
    /// As [`Self::cut`].
    pub fn close_links(&self, node: usize) {
        self.expect_links();
        self.links.close(number(node).into());
    }

    /// Heals all that is cut between a node and the others: what was sent arrives.
    ///
    /// # Panics
    /// As [`Self::cut`].
    pub fn heal(&self, node: usize) {
        self.for_links(node, |links, from, to| links.set_cut(from, to, false));
    }

    /// Delays what passes between a node and the others by this time, up to twice as long.
    ///
    /// # Panics
    /// As [`Self::cut`].
    pub fn delay(&self, node: usize, delay: Duration) {
        self.for_links(node, |links, from, to| links.set_delay(from, to, delay));
    }

    fn expect_links(&self) {
        assert!(self.options.links, "the cluster was started without links that can be cut");
    }

    /// Calls a function for each direction between a node and another one.
    fn for_links(&self, node: usize, mut call: impl FnMut(&Links, u32, u32)) {
        self.expect_links();
        let own = number(node).into();
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let other = number(other).into();
            call(&self.links, own, other);
            call(&self.links, other, own);
        }
    }
}

impl Node {
    fn take_process(&mut self) -> Option<NodeProcess> {
        self.is_paused = false;
        let process = self.process.take();
        // From then on connections to it are refused.
        self.doors.clear();
        process
    }

    /// Returns the end of its standard error.
    fn said(&self) -> String {
        let tail = || -> std::io::Result<Vec<u8>> {
            let mut log = File::open(&self.log)?;
            let len = log.metadata()?.len();
            log.seek(SeekFrom::Start(len.saturating_sub(SAID_MAX)))?;
            let mut tail = Vec::new();
            log.take(SAID_MAX).read_to_end(&mut tail)?;
            Ok(tail)
        };
        match String::from_utf8_lossy(&tail().unwrap_or_default()).trim() {
            "" => "(it is empty)".to_owned(),
            text => text.to_owned(),
        }
    }
}

/// Returns the number that the cluster gives a node.
fn number(at: usize) -> u16 {
    u16::try_from(at + 1).expect("a local cluster has at most 200 nodes")
}

/// The addresses of a node: for HTTP, native clients, the control plane, shards, and the doors of the last two.
type Addresses = [SocketAddr; 6];

/// Returns the addresses of all nodes. Those of an earlier run in the directory stay: the nodes know each other by them.
fn addresses(nodes: u16, data: &Path) -> Result<Vec<Addresses>, LocalError> {
    let file = data.join(ADDRESSES);
    let mut all: Vec<Addresses> = match std::fs::read(&file) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| system("read the addresses of the nodes")(error.into()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(system("read the addresses of the nodes")(error)),
    };
    let network = match all.first().map(|[http, ..]| http.ip()) {
        Some(IpAddr::V4(ip)) => (ip.octets()[1], ip.octets()[2]),
        _ => (fastrand::u8(1..=254), fastrand::u8(..)),
    };
    let known = all.len();
    for at in u16::try_from(known).unwrap_or(nodes)..nodes {
        all.push(free_addresses(network, at)?);
    }
    if all.len() > known {
        let bytes = serde_json::to_vec(&all).expect("addresses have JSON");
        // A process that is killed leaves the old file or the new one, never a part of it.
        let new = file.with_extension("new");
        std::fs::write(&new, bytes)
            .and_then(|()| std::fs::rename(&new, &file))
            .map_err(system("write the addresses of the nodes"))?;
    }
    all.truncate(usize::from(nodes));
    Ok(all)
}

/// Returns free ports for a node. Each node has a loopback address of its own, so that no other program's connection takes one of
/// the ports while the node does not run.
fn free_addresses((a, b): (u8, u8), at: u16) -> Result<Addresses, LocalError> {
    let last = u8::try_from(at + 1).expect("a local cluster has at most 200 nodes");
    let ip = IpAddr::V4(Ipv4Addr::new(127, a, b, last));
    let find = || -> std::io::Result<Vec<SocketAddr>> {
        // All are held before one is let go, so that they differ.
        let held: Vec<_> =
            (0..6).map(|_| TcpListener::bind(SocketAddr::new(ip, 0))).collect::<Result<_, _>>()?;
        held.iter().map(TcpListener::local_addr).collect()
    };
    let found = find().map_err(system("find free ports on the loopback interface"))?;
    Ok(found.try_into().expect("as many as were asked for"))
}
