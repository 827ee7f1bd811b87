//! `stead node`, `stead service` and `stead failover`: a cluster, at any of its nodes.

use crate::client::{ServerArgs, name, segment};
use crate::failure::Failure;
use crate::output::{self, Table};
use crate::when;
use clap::{Args, Subcommand};
use serde_json::Value;

/// List and remove the nodes of a cluster
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stead node list\n  stead node remove 3")]
pub(crate) struct NodeArgs {
    #[command(subcommand)]
    action: NodeAction,
}

#[derive(Debug, Subcommand)]
enum NodeAction {
    /// List the nodes: their addresses, starts and replicas
    #[command(after_help = "Example:\n  stead node list\n  stead node list --json | jq '.[].http'")]
    List {
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Remove a node, once its replicas have moved to others
    #[command(after_help = "Example:\n  stead node remove 3")]
    Remove {
        /// Number of the node
        node: u32,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// List the services of a cluster, and set their dials
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  stead service list\n  stead service set kv --replicas 3\n  stead service show kv"
)]
pub(crate) struct ServiceArgs {
    #[command(subcommand)]
    action: ServiceAction,
}

#[derive(Debug, Subcommand)]
enum ServiceAction {
    /// List the services with their dials
    #[command(after_help = "Example:\n  stead service list")]
    List {
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show the shards of a service: the nodes that lead them, and those of their replicas
    #[command(after_help = "Example:\n  stead service show kv")]
    Show {
        /// Name of the service
        #[arg(value_parser = name)]
        service: String,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Set the dial of a service: its shards follow while they serve
    #[command(
        after_help = "Example:\n  stead service set kv --replicas 3\n  stead service set kv --replicas 3 --acks 1\n  \
        stead service set kv --durability interval\n\n\
        With as many acks as replicas no entry is lost while one replica is left, and one node that is down stops the service\n\
        until it is replaced. With fewer than half of them an answer may be lost with the node that gave it. With another\n\
        durability than always an answer may be lost if the power of too many nodes is cut at once; stead failover shows that."
    )]
    Set {
        /// Name of the service
        #[arg(value_parser = name)]
        service: String,
        /// Replicas of each shard, on different nodes
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
        replicas: Option<u8>,
        /// Replicas that store an entry before its client is answered; 0 for more than half of them
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=32))]
        acks: Option<u8>,
        /// When a replica syncs an entry to its disk: always before it acknowledges it, at an interval of 100 ms, or never by itself
        #[arg(long, value_name = "WHEN", value_parser = ["always", "interval", "never"])]
        durability: Option<String>,
        /// Greatest age of a stale answer, and greatest lag of an asynchronous service's backups, in milliseconds
        #[arg(long, value_name = "MS")]
        max_lag_ms: Option<u32>,
        /// Span of the leases of an asynchronous service's primaries, in milliseconds
        #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=3_600_000))]
        lease_ms: Option<u32>,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// Move the primary of a shard to another node, or show the last failovers
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stead failover 3\n  stead failover 3 --to 2\n  stead failover")]
pub(crate) struct FailoverArgs {
    /// Number of the shard; without it the last failovers are listed
    shard: Option<u32>,
    /// Number of the node that is to lead [default: the best one]
    #[arg(long, value_name = "NODE", requires = "shard")]
    to: Option<u32>,
    /// Go on if too few members are left: what these do not have is lost
    #[arg(long, requires = "shard")]
    force: bool,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run_node(args: &NodeArgs, json: bool) -> Result<(), Failure> {
    match &args.action {
        NodeAction::List { server } => {
            let cluster = cluster(server)?;
            if json {
                return output::json(&cluster["nodes"]);
            }
            nodes(&cluster)
        }
        NodeAction::Remove { node, server } => {
            let answer = server.server().delete(&format!("/v1/cluster/nodes/{node}"))?.body;
            if json {
                return output::json(&answer);
            }
            output::line(&format!(
                "node {node} leaves once its replicas have moved; stead node list shows it"
            ))
        }
    }
}

pub(crate) fn run_service(args: &ServiceArgs, json: bool) -> Result<(), Failure> {
    match &args.action {
        ServiceAction::List { server } => {
            let cluster = cluster(server)?;
            if json {
                return output::json(&cluster["services"]);
            }
            dials(rows(&cluster["services"]))
        }
        ServiceAction::Show { service, server } => show(&cluster(server)?, service, json),
        ServiceAction::Set { service, replicas, acks, durability, max_lag_ms, lease_ms, server } => {
            let wide = |value: &Option<u8>| value.map(u32::from);
            let parameters = [
                ("replicas", wide(replicas)),
                ("acks", wide(acks)),
                ("max_lag_ms", *max_lag_ms),
                ("lease_ms", *lease_ms),
            ];
            let parameters =
                parameters.iter().filter_map(|(name, value)| Some(format!("{name}={}", (*value)?)));
            let durability = durability.iter().map(|name| format!("durability={name}"));
            let query = Vec::from_iter(parameters.chain(durability)).join("&");
            let path = format!("/v1/cluster/services/{}/dial?{query}", segment(service));
            let dial = server.server().post(&path, "", &[])?.body;
            if json {
                return output::json(&dial);
            }
            dials(&[dial])
        }
    }
}

pub(crate) fn run_failover(args: &FailoverArgs, json: bool) -> Result<(), Failure> {
    let Some(shard) = args.shard else {
        let cluster = cluster(&args.server)?;
        return if json { output::json(&cluster["failovers"]) } else { failovers(&cluster["failovers"]) };
    };
    let to = args.to.map_or_else(String::new, |to| format!("&to={to}"));
    let path = format!("/v1/cluster/shards/{shard}/failover?force={}{to}", args.force);
    let answer = args.server.server().post(&path, "", &[])?.body;
    if json {
        return output::json(&answer);
    }
    output::line(&format!("node {} leads shard {shard}", answer["node"]))
}

fn nodes(cluster: &Value) -> Result<(), Failure> {
    let mut table = Table::new([
        "node",
        "state",
        "since",
        "starts",
        "control",
        "primaries",
        "replicas",
        "cluster",
        "http",
    ]);
    for node in rows(&cluster["nodes"]) {
        let control = if node["node"] == cluster["leader"] {
            "leads"
        } else if node["votes"] == true {
            "votes"
        } else {
            "follows"
        };
        let since = node["since_ms"].as_u64();
        table.row([
            word(&node["node"]),
            word(&node["state"]),
            since.map_or_else(|| "-".to_owned(), |since| when::date(since.saturating_mul(1_000))),
            word(&node["lives"]),
            control.to_owned(),
            word(&node["primaries"]),
            word(&node["replicas"]),
            word(&node["cluster"]),
            word(&node["http"]),
        ]);
    }
    table.print()
}

/// Prints the condition of a cluster: its nodes, its shards, what is wrong with it, and the last failover.
pub(super) fn print(cluster: &Value, with_shards: bool) -> Result<(), Failure> {
    nodes(cluster)?;
    output::line("")?;
    let mut table = Table::new(["service", "shards", "with a primary", "replicas", "acks", "behind at most"]);
    for dial in rows(&cluster["services"]) {
        let own = || rows(&cluster["shards"]).iter().filter(|shard| shard["service"] == dial["service"]);
        let led = own().filter(|shard| shard["is_active"] == true && !shard["primary"].is_null()).count();
        let members = own().map(|shard| rows(&shard["members"]).len());
        let replicas = match (members.clone().min(), members.max()) {
            (Some(least), Some(most)) if least < most => format!("{least} to {most}"),
            (Some(least), _) => least.to_string(),
            (None, _) => "-".to_owned(),
        };
        let lag =
            own().flat_map(|shard| rows(&shard["lags"])).filter_map(|lag| lag["entries"].as_u64()).max();
        let acks = if dial["acks"].is_null() { "majority".to_owned() } else { word(&dial["acks"]) };
        table.row([
            word(&dial["service"]),
            word(&dial["shards"]),
            led.to_string(),
            replicas,
            acks,
            lag.map_or_else(|| "-".to_owned(), |lag| output::count(lag, "entry", "entries")),
        ]);
    }
    table.print()?;
    if with_shards {
        output::line("")?;
        shards(rows(&cluster["shards"]).iter())?;
    }
    output::line("")?;
    let problems = rows(&cluster["problems"]);
    if problems.is_empty() {
        output::line("problems     none")?;
    }
    for problem in problems {
        output::line(&format!("problem      {}", word(&problem["what"])))?;
        output::line(&format!("  next       {}", word(&problem["next"])))?;
    }
    let Some(last) = rows(&cluster["failovers"]).last() else { return Ok(()) };
    let lost = if last["may_have_lost"] == true { "answers may be lost" } else { "nothing lost" };
    output::line(&format!(
        "failover     the last of {}: shard {} from node {} to {} in {}, {lost}: {}; all: stead failover",
        rows(&cluster["failovers"]).len(),
        last["shard"],
        word(&last["from"]),
        last["to"],
        took(last),
        word(&last["cause"])
    ))
}

fn took(failover: &Value) -> String {
    let took = failover["duration_us"].as_u64();
    took.map_or_else(|| "not over".to_owned(), |took| format!("{:.1} ms", took as f64 / 1e3))
}

fn cluster(server: &ServerArgs) -> Result<Value, Failure> {
    Ok(server.server().get("/v1/cluster")?.body)
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Returns a value as a cell: `-` if there is none.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(word).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn dials(services: &[Value]) -> Result<(), Failure> {
    let mut table = Table::new(["service", "shards", "replicas", "acks", "durability", "max lag", "lease"]);
    for service in services {
        let acks = if service["acks"].is_null() { "majority".to_owned() } else { word(&service["acks"]) };
        table.row([
            word(&service["service"]),
            word(&service["shards"]),
            word(&service["replicas"]),
            acks,
            word(&service["durability"]),
            format!("{} ms", service["max_lag_ms"]),
            format!("{} ms", service["lease_ms"]),
        ]);
    }
    table.print()
}

fn show(cluster: &Value, service: &str, json: bool) -> Result<(), Failure> {
    let dial = rows(&cluster["services"]).iter().find(|dial| dial["service"] == service);
    let shards: Vec<&Value> =
        rows(&cluster["shards"]).iter().filter(|shard| shard["service"] == service).collect();
    let Some(dial) = dial else {
        let unknown = format!("there is no service {service:?}");
        return Err(
            Failure::new(crate::failure::Exit::Failed, unknown).hint("list them with: stead service list")
        );
    };
    if json {
        return output::json(&serde_json::json!({ "dial": dial, "shards": shards }));
    }
    dials(std::slice::from_ref(dial))?;
    self::shards(shards.into_iter())
}

fn shards<'a>(shards: impl Iterator<Item = &'a Value>) -> Result<(), Failure> {
    let mut table =
        Table::new(["shard", "service", "epoch", "primary", "members", "learners", "behind", "state"]);
    for shard in shards {
        let state = if shard["is_active"] == true { "active" } else { "fails over" };
        let lags = rows(&shard["lags"]).iter();
        let lags = lags.map(|lag| format!("{}: {}", lag["node"], lag["entries"])).collect::<Vec<_>>();
        table.row([
            word(&shard["shard"]),
            word(&shard["service"]),
            word(&shard["epoch"]),
            word(&shard["primary"]),
            word(&shard["members"]),
            word(&shard["learners"]),
            if lags.is_empty() { "-".to_owned() } else { lags.join(", ") },
            state.to_owned(),
        ]);
    }
    table.print()
}

fn failovers(failovers: &Value) -> Result<(), Failure> {
    let mut table = Table::new(["noticed", "shard", "epoch", "from", "to", "took", "lost", "cause"]);
    for failover in rows(failovers) {
        let lost = if failover["may_have_lost"] == true { "maybe" } else { "nothing" };
        let noticed = failover["noticed_ms"].as_u64().unwrap_or_default();
        table.row([
            when::date(noticed.saturating_mul(1_000)),
            word(&failover["shard"]),
            word(&failover["epoch"]),
            word(&failover["from"]),
            word(&failover["to"]),
            took(failover),
            lost.to_owned(),
            word(&failover["cause"]),
        ]);
    }
    table.print()
}
