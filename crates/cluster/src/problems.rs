//! The problems of a cluster, and the next step of its operator for each, derived from its status.

use crate::status::{ClusterStatus, NodeState, Problem, ServiceDial, ShardPlaces};

/// Shards that a problem names at most.
const NAMED_MAX: usize = 8;

fn problem(what: String, next: impl Into<String>) -> Problem {
    Problem { what, next: next.into() }
}

/// Returns what is wrong, the most urgent problem first.
pub(crate) fn problems(status: &ClusterStatus) -> Vec<Problem> {
    let mut problems = Vec::new();
    if status.leader.is_none() {
        let voters = status.nodes.iter().filter(|node| node.votes);
        let reached = voters.clone().filter(|node| node.is_connected).count();
        problems.push(problem(
            format!(
                "the control plane has no leader: {reached} of {} voters can be reached from node {}, and more than half are needed \
                 for a failover or a change",
                voters.count(),
                status.node
            ),
            "start the nodes that are down, with their data directories and addresses: stead start --data DIR --listen-cluster IP:PORT",
        ));
    }
    shards(status, &mut problems);
    nodes(status, &mut problems);
    for dial in &status.services {
        replicas(status, dial, &mut problems);
    }
    problems
}

/// Shards that do not serve.
fn shards(status: &ClusterStatus, problems: &mut Vec<Problem>) {
    let stuck = || status.shards.iter().filter(|shard| shard.stuck.is_some());
    for shard in stuck().take(NAMED_MAX) {
        let reason = shard.stuck.as_deref().unwrap_or_default();
        let ShardPlaces { shard, service, .. } = shard;
        problems.push(problem(
            format!("the failover of shard {shard} of {service} waits: {reason}"),
            format!(
                "start the nodes of its members; if their disks are lost, go on without what only they had: stead failover {shard} --force"
            ),
        ));
    }
    let more: Vec<u32> = stuck().skip(NAMED_MAX).map(|shard| shard.shard).collect();
    if !more.is_empty() {
        problems.push(problem(
            named("another failover waits, of shard", "other failovers wait, of shards", &more),
            "start the nodes of their members; each shard's reason is in its field `stuck`: stead status --json",
        ));
    }
    let waits: Vec<u32> = status
        .shards
        .iter()
        .filter(|shard| shard.stuck.is_none() && !shard.is_led())
        .map(|shard| shard.shard)
        .collect();
    if !waits.is_empty() {
        problems.push(problem(
            format!("{} under way", named("a failover of shard", "failovers of shards", &waits)),
            "wait for a second, and look again: stead status",
        ));
    }
}

/// Nodes that do not work.
fn nodes(status: &ClusterStatus, problems: &mut Vec<Problem>) {
    for node in &status.nodes {
        let address = node.cluster.map_or_else(|| "IP:PORT".to_owned(), |address| address.to_string());
        let start = format!("start it again: stead start --data DIR --listen-cluster {address}");
        match node.state {
            NodeState::Failed => {
                let cause = node.cause.unwrap_or("unknown").replace('_', " ");
                problems.push(problem(format!("node {} has failed: {cause}", node.node), start));
            }
            NodeState::Unknown => {
                let what = format!("node {} cannot be reached from node {}", node.node, status.node);
                problems.push(problem(what, start));
            }
            NodeState::Up | NodeState::Leaving if !node.is_connected => problems.push(problem(
                format!("node {} has no connection to node {}, which works", status.node, node.node),
                "check the network between the two",
            )),
            NodeState::Leaving => problems.push(problem(
                format!("node {} leaves, and has {} replicas left", node.node, node.replicas),
                "wait until it has none and is gone: stead node list",
            )),
            NodeState::Up => {}
        }
        if !node.unknown_services.is_empty() {
            let services = node.unknown_services.join(", ");
            problems.push(problem(
                format!(
                    "node {} gets no replica of {services}, which a newer program has added since it was started",
                    node.node
                ),
                format!(
                    "start node {} again with the program that has {services}: stead start --data DIR --listen-cluster {address}",
                    node.node
                ),
            ));
        }
    }
}

/// Shards with fewer replicas than their service wants, or than a failure needs.
fn replicas(status: &ClusterStatus, dial: &ServiceDial, problems: &mut Vec<Problem>) {
    let own = || status.shards.iter().filter(|shard| shard.service == dial.service);
    let wanted = usize::from(dial.replicas);
    let few: Vec<u32> = own().filter(|shard| shard.members.len() < wanted).map(|shard| shard.shard).collect();
    if !few.is_empty() {
        let next = if status.nodes.len() < wanted {
            "add nodes: stead start --data DIR --listen-cluster IP:PORT --join IP:PORT".to_owned()
        } else {
            format!("wait until they have caught up: stead service show {}", dial.service)
        };
        let shards = named("shard", "shards", &few);
        let what = format!("{} has fewer than {wanted} replicas at {shards}", dial.service);
        problems.push(problem(what, next));
    }
    let nodes = status.nodes.iter().filter(|node| node.state != NodeState::Leaving).count();
    if wanted == 1 && nodes > 1 {
        problems.push(problem(
            format!("each shard of {} is on one node only: it stops with that node", dial.service),
            format!("stead service set {} --replicas {}", dial.service, nodes.min(3)),
        ));
    }
}

/// Names shards: all of them, or the first ones and how many more there are.
fn named(one: &str, many: &str, shards: &[u32]) -> String {
    let first: Vec<String> = shards.iter().take(NAMED_MAX).map(u32::to_string).collect();
    let first = first.join(", ");
    match shards.len() {
        1 => format!("{one} {first}"),
        count if count > NAMED_MAX => format!("{many} {first} and {} more", count - NAMED_MAX),
        _ => format!("{many} {first}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{NodeStatus, ShardPlaces};

    fn node(node: u32) -> NodeStatus {
        NodeStatus {
            node,
            state: NodeState::Up,
            cause: None,
            since_ms: None,
            lives: 1,
            cluster: Some(([127, 0, 0, 1], 7_430).into()),
            clients: None,
            http: None,
            votes: true,
            is_connected: true,
            is_leaving: false,
            primaries: 0,
            replicas: 0,
            unknown_services: Vec::new(),
        }
    }

    fn shard(shard: u32) -> ShardPlaces {
        ShardPlaces {
            shard,
            service: "kv".to_owned(),
            epoch: 4,
            is_active: true,
            primary: Some(1),
            members: vec![1, 2, 3],
            learners: Vec::new(),
            acks: 2,
            last: None,
            lags: Vec::new(),
            stuck: None,
        }
    }

    fn well() -> ClusterStatus {
        let dial = ServiceDial {
            service: "kv".to_owned(),
            first_shard: 0,
            shards: 12,
            replicas: 3,
            acks: None,
            durability: "always",
            max_lag_ms: 1,
            lease_ms: 1,
        };
        ClusterStatus {
            cluster: String::new(),
            node: 1,
            leader: Some(1),
            problems: Vec::new(),
            is_balancing: false,
            nodes: (1..=3).map(node).collect(),
            services: vec![dial],
            shards: (0..12).map(shard).collect(),
            failovers: Vec::new(),
        }
    }

    fn found(change: impl FnOnce(&mut ClusterStatus)) -> Vec<(String, String)> {
        let mut status = well();
        change(&mut status);
        problems(&status).into_iter().map(|Problem { what, next }| (what, next)).collect()
    }

    #[test]
    fn nothing_is_wrong_with_a_cluster_that_is_well() {
        assert_eq!(found(|_| ()), []);
    }

    #[test]
    fn each_problem_has_its_next_step() {
        let failed = found(|status| {
            (status.nodes[2].state, status.nodes[2].cause) = (NodeState::Failed, Some("cut_off"));
        });
        let start = "start it again: stead start --data DIR --listen-cluster 127.0.0.1:7430";
        assert_eq!(failed, [("node 3 has failed: cut off".to_owned(), start.to_owned())]);

        let stuck = found(|status| status.shards[4].stuck = Some("1 of 2 are sealed".to_owned()));
        assert_eq!(stuck.len(), 1);
        assert_eq!(stuck[0].0, "the failover of shard 4 of kv waits: 1 of 2 are sealed");
        assert!(stuck[0].1.ends_with("stead failover 4 --force"), "{stuck:?}");

        let many = found(|status| {
            for shard in &mut status.shards {
                shard.stuck = Some("1 of 2 are sealed".to_owned());
            }
        });
        assert_eq!(many.len(), NAMED_MAX + 1);
        assert_eq!(many[NAMED_MAX].0, "other failovers wait, of shards 8, 9, 10, 11");

        let waits = found(|status| status.shards.iter_mut().for_each(|shard| shard.is_active = false));
        assert_eq!(waits[0].0, "failovers of shards 0, 1, 2, 3, 4, 5, 6, 7 and 4 more under way");

        let alone = found(|status| {
            status.services[0].replicas = 1;
            status.nodes.truncate(2);
        });
        assert_eq!(alone[0].1, "stead service set kv --replicas 2");

        let old = found(|status| status.nodes[1].unknown_services = vec!["bank".to_owned()]);
        assert_eq!(old.len(), 1);
        let what = "node 2 gets no replica of bank, which a newer program has added since it was started";
        assert_eq!(old[0].0, what);
        assert!(
            old[0].1.starts_with("start node 2 again with the program that has bank: stead start"),
            "{old:?}"
        );

        let few = found(|status| status.shards[7].members.truncate(2));
        assert_eq!(few[0].0, "kv has fewer than 3 replicas at shard 7");

        let leaderless = found(|status| {
            status.leader = None;
            status.nodes[1].is_connected = false;
            status.nodes[1].state = NodeState::Unknown;
        });
        assert!(leaderless[0].0.contains("2 of 3 voters"), "{leaderless:?}");
        assert_eq!(leaderless[1].0, "node 2 cannot be reached from node 1");
    }
}
