//! `stead status`: how a server is.

use super::cluster;
use crate::client::ServerArgs;
use crate::failure::Failure;
use crate::output::{self, Table};
use clap::Args;
use serde_json::Value;

/// Show a cluster, what is wrong with it and the next step, and a server's services, shards, log, tasks and checkpoints
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stead status\n  stead status --json | jq '.services'")]
pub(crate) struct StatusArgs {
    /// Show every shard
    #[arg(long)]
    shards: bool,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(args: &StatusArgs, json: bool) -> Result<(), Failure> {
    let server = args.server.server();
    let mut status = server.get("/v1/status")?.body;
    let cluster = match server.get("/v1/cluster") {
        Ok(cluster) => Some(cluster.body),
        Err(failure) if failure.is("not-in-cluster") => None,
        Err(failure) => return Err(failure),
    };
    if json {
        if let Some(cluster) = cluster {
            status["cluster"] = cluster;
        }
        return output::json(&status);
    }
    if let Some(cluster) = &cluster {
        cluster::print(cluster, args.shards)?;
        output::line(&format!("\nNode {}", cluster["node"]))?;
    }
    print(&status, args.shards)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The figures of a shard that are shown as sums over the shards of a service.
const SUMS: [&str; 6] = ["records", "records_bytes", "outbox_messages", "waiting", "dead_letters", "commit"];

fn print(status: &Value, shards: bool) -> Result<(), Failure> {
    let checkpoint = match &status["checkpoint"] {
        Value::Null => "none yet".to_owned(),
        number => number.to_string(),
    };
    output::line(&format!("lives        {}, incarnation {}", status["lives"], status["incarnation"]))?;
    output::line(&format!("uptime       {}", output::fact("uptime", &status["uptime"])))?;
    output::line(&format!(
        "log          {} in {}",
        output::bytes(number(&status["log"]["bytes"])),
        output::count(number(&status["log"]["segments"]), "segment", "segments")
    ))?;
    let memory = |member: &str| output::bytes(number(&status["memory"][member]));
    output::line(&format!(
        "waiting      {} for the log of {}, {} in outboxes, {} of calls, {} of queries; {} in all",
        memory("uncommitted_bytes"),
        memory("uncommitted_bytes_max"),
        memory("outbox_bytes"),
        memory("request_bytes"),
        memory("query_bytes"),
        memory("bytes_max")
    ))?;
    output::line(&format!("checkpoint   {checkpoint}"))?;
    let check = &status["checkpoint_check"];
    if let Some(number) = check["number"].as_u64() {
        let failed = rows(&check["failed_checks"]);
        let found = if failed.is_empty() { "hold".to_owned() } else { format!("{} failed", failed.len()) };
        output::line(&format!("checks       {found} at checkpoint {number}"))?;
        for check in failed {
            output::line(&format!("check failed {}: {}", word(&check["service"]), word(&check["reason"])))?;
        }
    }
    let copies = &status["checkpoint_copies"];
    if let Some(to) = copies["to"].as_str() {
        let newest =
            copies["newest"].as_u64().map_or_else(|| "none yet".to_owned(), |number| number.to_string());
        output::line(&format!("copied       {newest}, to {to}"))?;
        if let Some(failure) = copies["failure"].as_str() {
            output::line(&format!("copy failed  {failure}"))?;
        }
    }
    if status["full"] == Value::Bool(true) {
        output::line("disk         full: writes are refused until there is room")?;
    }
    // Less is that of a restart or of a clock that is being set.
    if let Some(ahead) = status["clock"]["ahead_micros"].as_i64().filter(|ahead| ahead.abs() > 10_000_000) {
        let (seconds, doubted) = (ahead.abs() / 1_000_000, status["clock"]["doubted"] == true);
        output::line(&match (ahead > 0, doubted) {
            (true, true) => format!(
                "clock        {seconds} s ahead: wrong, or the node was down for so long; timers wait"
            ),
            (true, false) => {
                format!("clock        {seconds} s ahead: timers run faster until they have caught up")
            }
            (false, _) => {
                format!("clock        {seconds} s behind: timers run slower until it has caught up")
            }
        })?;
    }
    for query in rows(&status["stuck_queries"]) {
        output::line(&format!(
            "stuck query  of {}/{}, for {}: it was given up and still runs",
            word(&query["service"]),
            word(&query["process"]),
            output::fact("running", &query["running"])
        ))?;
    }
    if let Some(shards) = output::shards_not_here(status) {
        output::line(&format!("not here     {shards}: no figure includes them"))?;
    }
    if let Some(failure) = status["failure"].as_str() {
        output::line(&format!("failed       {failure}"))?;
    }
    output::line("")?;
    let mut table = Table::new([
        "service",
        "shards",
        "active",
        "records",
        "bytes",
        "in flight",
        "waiting",
        "dead letters",
        "entries",
    ]);
    for service in rows(&status["services"]) {
        let of = |shard: &&Value| shard["service"] == service["name"];
        let mut sums = [0; SUMS.len()];
        for shard in rows(&status["shards"]).iter().filter(of) {
            for (sum, member) in sums.iter_mut().zip(SUMS) {
                *sum += number(&shard[member]);
            }
        }
        let active =
            rows(&status["shards"]).iter().filter(of).filter(|shard| shard["active"] == true).count();
        let [records, bytes, messages, waiting, dead, entries] = sums;
        table.row([
            word(&service["name"]),
            service["shards"].to_string(),
            active.to_string(),
            records.to_string(),
            output::bytes(bytes),
            messages.to_string(),
            waiting.to_string(),
            dead.to_string(),
            entries.to_string(),
        ]);
    }
    table.print()?;
    if shards {
        print_shards(status)?;
    }
    print_tasks(status)
}

fn print_shards(status: &Value) -> Result<(), Failure> {
    let mut table = Table::new([
        "shard",
        "service",
        "epoch",
        "index",
        "commit",
        "colour",
        "records",
        "bytes",
        "in flight",
    ]);
    for shard in rows(&status["shards"]) {
        table.row([
            shard["shard"].to_string(),
            word(&shard["service"]),
            shard["epoch"].to_string(),
            shard["index"].to_string(),
            shard["commit"].to_string(),
            shard["colour"].to_string(),
            shard["records"].to_string(),
            output::bytes(number(&shard["records_bytes"])),
            shard["outbox_messages"].to_string(),
        ]);
    }
    output::line("")?;
    table.print()
}

fn print_tasks(status: &Value) -> Result<(), Failure> {
    let mut table = Table::new(["task", "of", "step", "done", "retries", "last failure"]);
    let mut some = false;
    for shard in rows(&status["shards"]) {
        for task in rows(&shard["tasks"]) {
            some = true;
            table.row([
                word(&task["name"]),
                format!("{}/{}", word(&shard["service"]), word(&task["process"])),
                task["step"].to_string(),
                format!("{:.1} %", task["progress"].as_f64().unwrap_or(0.0) * 100.0),
                number(&task["retries"]).to_string(),
                task["failure"].as_str().unwrap_or("-").to_owned(),
            ]);
        }
    }
    if some {
        output::line("")?;
        table.print()?;
    }
    Ok(())
}
