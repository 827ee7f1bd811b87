//! Three nodes of this program as child processes on loopback.

use super::super::failed;
use crate::client::{Server, ServerArgs};
use crate::failure::Failure;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use stead_local::{LocalCluster, LocalError, Options};

/// Number of nodes.
const NODES: u16 = 3;
/// Time for a change of all shards.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Interval at which the state of the cluster is asked for.
const LOOK: Duration = Duration::from_millis(20);
const SERVICE: &str = "kv";

/// Three nodes, which are killed when this is dropped.
pub(super) struct Nodes(LocalCluster);

/// A shard as the cluster reports it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) shard: u32,
    /// The position of its primary's node.
    pub(super) primary: usize,
}

impl Nodes {
    /// Starts them, and waits until each shard has three replicas. `links` is whether nodes can be cut off.
    pub(super) fn start(dir: &Path, shards: u32, threads: u32, links: bool) -> Result<Self, Failure> {
        let config = dir.join("bench.toml");
        let text = format!("threads = {threads}\n[services.{SERVICE}]\nshards = {shards}\n");
        let written = std::fs::create_dir(dir).and_then(|()| std::fs::write(&config, text));
        written.map_err(|error| failed("write the configuration of the nodes")(&error))?;
        let arguments = vec!["--log-level".into(), "error".into(), "--config".into(), config.into()];
        let options = Options { arguments, links, ..Options::default() };
        let nodes = LocalCluster::start(&stead_gateway::program::path(), NODES, dir, options);
        let nodes = Self(nodes.map_err(local("start the nodes"))?);
        nodes.set_dial("replicas=3&acks=2")?;
        nodes.settled(2)?;
        Ok(nodes)
    }

    /// Returns their number.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the addresses for native clients.
    pub(super) fn native(&self) -> Vec<String> {
        self.0.native().iter().map(ToString::to_string).collect()
    }

    /// Returns the addresses for HTTP.
    pub(super) fn http(&self) -> Vec<String> {
        self.0.http().iter().map(ToString::to_string).collect()
    }

    /// Returns the numbers of the processes.
    pub(super) fn pids(&self) -> Vec<u32> {
        (0..self.0.len()).filter_map(|node| self.0.pid(node)).collect()
    }

    fn server(&self, node: usize) -> Server {
        ServerArgs { addr: self.0.addresses(node).http.to_string(), timeout_ms: 10_000 }.server()
    }

    pub(super) fn set_dial(&self, dial: &str) -> Result<(), Failure> {
        let (begun, path) = (Instant::now(), format!("/v1/cluster/services/{SERVICE}/dial?{dial}"));
        loop {
            match self.server(0).post(&path, "", &[]) {
                Ok(_) => return Ok(()),
                Err(failure) if begun.elapsed() > WAIT_MAX => return Err(failure),
                // A node that has just joined may not know the service's dial yet.
                Err(_) => thread::sleep(LOOK),
            }
        }
    }

    /// Waits until each shard has three replicas, an active epoch, and so many acks, and no replica lags.
    pub(super) fn settled(&self, acks: u64) -> Result<Vec<Place>, Failure> {
        let begun = Instant::now();
        loop {
            let status = self.server(0).get("/v1/cluster").map(|answer| answer.body).unwrap_or_default();
            if let Some(places) = places(&status, acks) {
                return Ok(places);
            }
            if begun.elapsed() > WAIT_MAX {
                return Err(failed("bring the cluster to rest")(&status));
            }
            thread::sleep(LOOK);
        }
    }

    /// Lets each node lead as many shards as the others, and waits until all is as in [`Self::settled`]. A node that has returned leads
    /// nothing by itself.
    pub(super) fn spread(&self, acks: u64) -> Result<Vec<Place>, Failure> {
        for (at, Place { shard, primary }) in self.settled(acks)?.into_iter().enumerate() {
            let node = at % self.len();
            if node != primary {
                let path = format!("/v1/cluster/shards/{shard}/failover?force=false&to={}", node + 1);
                self.server(0).post(&path, "", &[])?;
            }
        }
        self.settled(acks)
    }

    /// Returns another node than this one.
    pub(super) fn beside(&self, node: usize) -> usize {
        (node + 1) % self.len()
    }

    /// Returns the shards that a node leads, as another one sees it.
    pub(super) fn led_by(&self, node: usize) -> Result<BTreeSet<u32>, Failure> {
        let status = self.server(self.beside(node)).get("/v1/cluster")?.body;
        let shards = status["shards"].as_array().into_iter().flatten();
        let led =
            shards.filter(|shard| shard["service"] == SERVICE && position(&shard["primary"]) == Some(node));
        Ok(led.filter_map(|shard| u32::try_from(shard["shard"].as_u64()?).ok()).collect())
    }

    /// Returns the position of the node that leads the control plane, as a node sees it.
    pub(super) fn leader_seen_by(&self, node: usize) -> Option<usize> {
        position(&self.server(node).get("/v1/cluster").ok()?.body["leader"])
    }

    /// Sends a node SIGKILL, waits for its end, and returns the time right before it.
    pub(super) fn kill(&mut self, node: usize) -> Result<Instant, Failure> {
        let at = Instant::now();
        self.0.kill(node).map_err(local("kill a node"))?;
        Ok(at)
    }

    /// Starts a node again over its data, at its addresses.
    pub(super) fn restart(&mut self, node: usize) -> Result<(), Failure> {
        self.0.restart(node).map_err(local("start a node again"))
    }

    /// Stops a node, and returns the time right after it.
    pub(super) fn pause(&mut self, node: usize) -> Result<Instant, Failure> {
        self.0.pause(node).map_err(local("stop a node"))?;
        Ok(Instant::now())
    }

    /// Cuts a node off from the others, and returns the time right before it.
    pub(super) fn cut(&self, node: usize) -> Instant {
        let at = Instant::now();
        self.0.cut(node);
        at
    }

    /// Connects a node with the others again.
    pub(super) fn heal(&self, node: usize) {
        self.0.heal(node);
    }

    /// Lets a stopped node go on.
    pub(super) fn resume(&mut self, node: usize) -> Result<(), Failure> {
        self.0.resume(node).map_err(local("let a node go on"))
    }
}

fn local(what: &'static str) -> impl FnOnce(LocalError) -> Failure {
    move |error| failed(what)(&error)
}

/// Returns the position of the node with a number.
fn position(number: &Value) -> Option<usize> {
    usize::try_from(number.as_u64()?).ok()?.checked_sub(1)
}

fn places(status: &Value, acks: u64) -> Option<Vec<Place>> {
    let (nodes, shards) = (status["nodes"].as_array()?, status["shards"].as_array()?);
    let are_all = nodes.len() == usize::from(NODES) && nodes.iter().all(|node| node["is_connected"] == true);
    if !are_all || status["is_balancing"] != false {
        return None;
    }
    let places = shards.iter().filter(|shard| shard["service"] == SERVICE).map(|shard| {
        let lags = shard["lags"].as_array();
        let is_settled = shard["is_active"] == true
            && lags.is_some_and(|lags| {
                lags.len() + 1 == usize::from(NODES) && lags.iter().all(|lag| lag["entries"] == 0)
            })
            && shard["members"].as_array().map(Vec::len) == Some(usize::from(NODES))
            && shard["acks"] == acks;
        let primary = position(&shard["primary"])?;
        let shard = u32::try_from(shard["shard"].as_u64()?).ok()?;
        is_settled.then_some(Place { shard, primary })
    });
    places.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_at_rest_once_each_shard_has_its_members_and_acks() {
        let status = |active: bool, members: &[u32], acks: u64, lag: u64| {
            let node = serde_json::json!({ "is_connected": true });
            let shard = serde_json::json!({
                "service": SERVICE, "shard": 4, "is_active": active, "members": members, "acks": acks, "primary": 3,
                "lags": [{ "node": 1, "entries": lag }, { "node": 2, "entries": 0 }]
            });
            let nodes = [&node, &node, &node];
            places(&serde_json::json!({ "nodes": nodes, "shards": [shard], "is_balancing": false }), 2)
        };
        let found = status(true, &[1, 2, 3], 2, 0).unwrap();
        assert_eq!((found[0].shard, found[0].primary), (4, 2));
        let (all, two) = ([1, 2, 3], [1, 2]);
        for waits in [
            status(false, &all, 2, 0),
            status(true, &two, 2, 0),
            status(true, &all, 1, 0),
            status(true, &all, 2, 1),
        ] {
            assert!(waits.is_none());
        }
    }
}
