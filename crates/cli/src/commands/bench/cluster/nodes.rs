//! Three nodes of this program as child processes on loopback.

use super::super::failed;
use crate::client::ServerArgs;
use crate::failure::Failure;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Time for a start, or for a change of all shards.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Interval at which the state of the cluster is asked for.
const LOOK: Duration = Duration::from_millis(20);
const SERVICE: &str = "kv";

/// The processes that run, which end with this program.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills all nodes; none starts afterwards.
pub(in super::super) fn kill_all() {
    let running = running();
    for pid in &*running {
        // One that has ended needs no signal.
        let _ = kill_process(*pid, Signal::KILL);
    }
    // A thread that would start another one waits until this program has ended.
    std::mem::forget(running);
}

/// A node.
struct Node {
    data: PathBuf,
    child: Child,
    http: String,
    native: String,
    cluster: String,
}

/// Three nodes, which are killed when this is dropped.
pub(super) struct Nodes {
    nodes: Vec<Node>,
    shards: String,
    threads: String,
}

/// A shard as the cluster reports it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) shard: u32,
    /// The position of its primary's node.
    pub(super) primary: usize,
}

impl Nodes {
    /// Starts them, and waits until each shard has three replicas.
    pub(super) fn start(dir: &Path, shards: u32, threads: u32) -> Result<Self, Failure> {
        let mut nodes = Self { nodes: Vec::new(), shards: shards.to_string(), threads: threads.to_string() };
        for number in 1..=3 {
            let any = || "127.0.0.1:0".to_owned();
            let join = nodes.nodes.first().map(|first| first.cluster.clone());
            let node = nodes.run(&dir.join(format!("n{number}")), [any(), any(), any()], join)?;
            nodes.nodes.push(node);
        }
        nodes.set_dial("replicas=3&acks=2")?;
        nodes.settled(2)?;
        Ok(nodes)
    }

    fn run(&self, data: &Path, addresses: [String; 3], join: Option<String>) -> Result<Node, Failure> {
        let [http, native, cluster] = addresses;
        let mut command = Command::new(stead_gateway::program::path());
        command
            .args(["start", "--json", "--supervise=false", "--log-level", "error", "--data"])
            .arg(data)
            .args(["--listen", &http, "--listen-native", &native, "--listen-cluster", &cluster])
            .env("STEAD_CFG_SERVICES_KV_SHARDS", &self.shards)
            .env("STEAD_CFG_THREADS", &self.threads)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(
                File::create(data.with_extension("log")).map_err(|error| failed("start a node")(&error))?,
            );
        if let Some(join) = join {
            command.args(["--join", &join]);
        }
        let mut child = {
            let mut running = running();
            let child = command.spawn().map_err(|error| failed("start a node")(&error))?;
            running.extend(pid(&child));
            child
        };
        let mut line = String::new();
        let stdout = child.stdout.take().map(BufReader::new);
        let mut stdout = stdout.ok_or_else(|| failed("start a node")(&"it has no output"))?;
        stdout.read_line(&mut line).map_err(|error| failed("read a node's output")(&error))?;
        // It prints nothing more, but must never find the pipe closed.
        thread::spawn(move || drop(stdout.read_to_end(&mut Vec::new())));
        let ready: Value = serde_json::from_str(&line).unwrap_or_default();
        let address = |name: &str| ready[name].as_str().map(str::to_owned);
        let addresses = (address("address"), address("native"), address("cluster"));
        let (Some(http), Some(native), Some(cluster)) = addresses else {
            end(&mut child);
            let said = std::fs::read_to_string(data.with_extension("log")).unwrap_or_default();
            return Err(failed("start a node")(&said.trim()));
        };
        Ok(Node { data: data.to_owned(), child, http, native, cluster })
    }

    /// Returns the addresses for native clients.
    pub(super) fn native(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.native.clone()).collect()
    }

    /// Returns the addresses for HTTP.
    pub(super) fn http(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.http.clone()).collect()
    }

    /// Returns the process of a node.
    pub(super) fn pid(&self, node: usize) -> u32 {
        self.nodes[node].child.id()
    }

    pub(super) fn set_dial(&self, dial: &str) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            // A node that has just joined may not know the service's dial yet.
            match server(&self.nodes[0].http).post(
                &format!("/v1/cluster/services/{SERVICE}/dial?{dial}"),
                "",
                &[],
            ) {
                Ok(_) => return Ok(()),
                Err(failure) if begun.elapsed() > WAIT_MAX => return Err(failure),
                Err(_) => thread::sleep(LOOK),
            }
        }
    }

    /// Waits until each shard has three replicas, an active epoch, and so many acks.
    pub(super) fn settled(&self, acks: u64) -> Result<Vec<Place>, Failure> {
        let begun = Instant::now();
        loop {
            let status = server(&self.nodes[0].http).get("/v1/cluster").map(|answer| answer.body);
            let status = status.unwrap_or_default();
            if let Some(places) = self.places(&status, acks) {
                return Ok(places);
            }
            if begun.elapsed() > WAIT_MAX {
                return Err(failed("bring the cluster to rest")(&status));
            }
            thread::sleep(LOOK);
        }
    }

    fn places(&self, status: &Value, acks: u64) -> Option<Vec<Place>> {
        let rows = |name: &str| status[name].as_array().cloned().unwrap_or_default();
        let nodes = rows("nodes");
        if nodes.len() < self.nodes.len()
            || nodes.iter().any(|node| node["is_connected"] != true)
            || status["is_balancing"] != false
        {
            return None;
        }
        let places = rows("shards").into_iter().filter(|shard| shard["service"] == SERVICE).map(|shard| {
            let is_settled = shard["is_active"] == true
                && shard["members"].as_array().map(Vec::len) == Some(self.nodes.len())
                && shard["acks"] == acks;
            let primary = nodes.iter().find(|node| node["node"] == shard["primary"])?;
            let primary = self.nodes.iter().position(|node| primary["http"] == *node.http)?;
            let shard = u32::try_from(shard["shard"].as_u64()?).ok()?;
            is_settled.then_some(Place { shard, primary })
        });
        places.collect()
    }

    /// Returns the position of the node whose control plane leads, as another node than that sees it.
    pub(super) fn leader(&self) -> Option<usize> {
        let status = server(&self.nodes[0].http).get("/v1/cluster").ok()?.body;
        let nodes = status["nodes"].as_array()?;
        let leader = nodes.iter().find(|node| node["node"] == status["leader"])?;
        self.nodes.iter().position(|node| leader["http"] == *node.http)
    }

    /// Sends a node SIGKILL, and returns the time right before it.
    pub(super) fn kill(&mut self, node: usize) -> Instant {
        let at = Instant::now();
        end(&mut self.nodes[node].child);
        at
    }

    /// Starts a node again over its data, at its addresses.
    pub(super) fn restart(&mut self, node: usize) -> Result<(), Failure> {
        let Node { data, http, native, cluster, .. } = &self.nodes[node];
        let addresses = [http.clone(), native.clone(), cluster.clone()];
        self.nodes[node] = self.run(&data.clone(), addresses, None)?;
        Ok(())
    }

    /// Stops a node, and returns the time right before it.
    pub(super) fn pause(&self, node: usize) -> Result<Instant, Failure> {
        let at = Instant::now();
        self.signal(node, Signal::STOP)?;
        Ok(at)
    }

    /// Lets a stopped node go on.
    pub(super) fn resume(&self, node: usize) -> Result<(), Failure> {
        self.signal(node, Signal::CONT)
    }

    fn signal(&self, node: usize, signal: Signal) -> Result<(), Failure> {
        let pid = pid(&self.nodes[node].child).ok_or_else(|| failed("signal a node")(&"it has no number"))?;
        kill_process(pid, signal).map_err(|error| failed("signal a node")(&error))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            end(&mut node.child);
        }
    }
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}

/// Kills a process, and waits for its end.
fn end(child: &mut Child) {
    // A thread that ends all of them must not find the number of one that is reaped, which may be another process's.
    let mut running = running();
    let _ = child.kill();
    let _ = child.wait();
    let pid = pid(child);
    running.retain(|other| Some(*other) != pid);
}

fn server(address: &str) -> crate::client::Server {
    ServerArgs { addr: address.to_owned(), timeout_ms: 10_000 }.server()
}
