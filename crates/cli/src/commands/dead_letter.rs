//! `stead dead-letter`: list, retry and delete dead letters.

use crate::client::{Server, ServerArgs, segment};
use crate::failure::Failure;
use crate::output::{self, Table};
use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// List, retry and delete dead letters: messages, requests, timers and steps that were given up
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stead dead-letter list\n  stead dead-letter retry 3 1042")]
pub(crate) struct DeadLetterArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the dead letters of a service, or of all
    #[command(after_help = "Example:\n  stead dead-letter list\n  stead dead-letter list kv --json")]
    List {
        /// The service; by default all of them
        service: Option<String>,
        /// List at most this many; 0 lists all
        #[arg(long, default_value_t = 1000, value_name = "N")]
        limit: usize,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Retry a dead letter, or all that match
    #[command(after_help = "Example:\n  stead dead-letter retry 3 1042\n  \
        stead dead-letter retry --all --service orders --reason 'no stock'\n\n\
        It is handled once: the log entry that handles it removes it. A failed step of a task runs again from the state\n\
        before it. What fails again stays a dead letter, with the new reason. A client's request cannot be\n\
        retried, because its client was informed that it was given up.\n\n\
        --all retries one after the other, and can be interrupted: letters retried by then stay retried.")]
    Retry {
        #[command(flatten)]
        letter: Letter,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Delete a dead letter, or all that match, unhandled; their payloads are lost
    #[command(after_help = "Example:\n  stead dead-letter delete 3 1042\n  \
        stead dead-letter delete --all --reason 'no such customer'\n\n\
        --all can be interrupted: letters deleted by then stay deleted.")]
    Delete {
        #[command(flatten)]
        letter: Letter,
        #[command(flatten)]
        server: ServerArgs,
    },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("one_or_all").args(["shard", "all"]).required(true))]
struct Letter {
    /// Shard that holds it
    #[arg(requires = "index")]
    shard: Option<u32>,
    /// Its index in that shard
    index: Option<u64>,
    /// All dead letters instead of one
    #[arg(long, conflicts_with = "index")]
    all: bool,
    /// With --all: only those of this service
    #[arg(long, requires = "all", conflicts_with = "shard", value_name = "SERVICE")]
    service: Option<String>,
    /// With --all: only those whose reason contains this text
    #[arg(long, requires = "all", conflicts_with = "shard", value_name = "TEXT")]
    reason: Option<String>,
}

/// Decision on many dead letters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Decision {
    Retry,
    Delete,
}

/// The outcome of a command for all dead letters, in dead letters.
#[derive(Default, Serialize)]
struct Counts {
    /// Those that match.
    matched: u64,
    /// Handled or deleted.
    done: u64,
    /// Retried, and failed again: they stay dead letters.
    failed: u64,
    /// Of a kind that can only be deleted.
    #[serde(rename = "final")]
    only_deleted: u64,
    /// Handled or deleted by another command meanwhile.
    gone: u64,
}

fn all(decision: Decision, letter: &Letter, server: &ServerArgs, json: bool) -> Result<(), Failure> {
    let server = server.server();
    let mut counts = Counts::default();
    let ended = decide_all(decision, letter, &server, &mut counts);
    if json {
        let mut report = json!(counts);
        if let (Err(failure), Value::Object(report)) = (&ended, &mut report)
            && let Value::Object(failure) = failure.to_json()
        {
            report.extend(failure);
        }
        output::json(&report)?;
    } else if ended.is_ok() || counts.matched > 0 {
        let Counts { matched, done, failed, only_deleted, gone } = &counts;
        let did = if decision == Decision::Retry { "retried" } else { "deleted" };
        output::line(&format!("{done} of {matched} dead letters {did}"))?;
        for (count, what) in [
            (failed, "failed again and stay"),
            (only_deleted, "are requests of clients, which can only be deleted"),
            (gone, "were gone meanwhile"),
        ] {
            if *count > 0 {
                output::line(&format!("{count} {what}"))?;
            }
        }
    }
    ended.map_err(|failure| if json { failure.reported() } else { failure })
}

/// Retries or deletes each dead letter that matches, once; ones that appear meanwhile may be included.
fn decide_all(
    decision: Decision,
    letter: &Letter,
    server: &Server,
    counts: &mut Counts,
) -> Result<(), Failure> {
    let mut met = BTreeSet::new();
    for service in services(server, letter.service.as_deref())? {
        let mut after = String::new();
        loop {
            let path = format!("/v1/dead-letters/{}?limit={PAGE}{after}", segment(&service));
            let page = server.get(&path)?.body;
            for one in page["dead_letters"].as_array().into_iter().flatten() {
                let (shard, index) = (one["shard"].as_u64(), one["index"].as_u64());
                let (Some(shard), Some(index)) = (shard, index) else { continue };
                let reason = one["reason"].as_str().unwrap_or_default();
                let fits = letter.reason.as_deref().is_none_or(|text| reason.contains(text));
                // A retry that fails may come back under another number, later in the same listing.
                if fits && met.insert((shard, index)) {
                    counts.matched += 1;
                    decide(decision, server, shard, index, counts)?;
                }
            }
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={}", segment(next));
        }
    }
    Ok(())
}

fn decide(
    decision: Decision,
    server: &Server,
    shard: u64,
    index: u64,
    counts: &mut Counts,
) -> Result<(), Failure> {
    let path = format!("/v1/dead-letters/{shard}/{index}");
    let until = Instant::now() + OVERLOADED_MAX;
    let answer = loop {
        let answer = match decision {
            Decision::Retry => server.post(&format!("{path}/retry"), "", &[]),
            Decision::Delete => server.delete(&path),
        };
        // The node may be busy with the letters that were retried just now.
        match answer {
            Err(failure) if failure.is("overloaded") && Instant::now() < until => {
                std::thread::sleep(OVERLOADED_WAIT);
            }
            answer => break answer,
        }
    };
    match answer {
        Ok(_) => counts.done += 1,
        Err(failure) if failure.is("dead-letter-failed") => counts.failed += 1,
        Err(failure) if failure.is("dead-letter-final") => counts.only_deleted += 1,
        Err(failure) if failure.is("unknown-dead-letter") => counts.gone += 1,
        Err(failure) => return Err(failure),
    }
    Ok(())
}

/// Time for which one dead letter is tried again while the node is overloaded.
const OVERLOADED_MAX: Duration = Duration::from_secs(60);
/// Pause between two attempts at an overloaded node.
const OVERLOADED_WAIT: Duration = Duration::from_millis(200);
/// Dead letters requested at a time.
const PAGE: usize = 1000;

fn services(server: &Server, one: Option<&str>) -> Result<Vec<String>, Failure> {
    if let Some(service) = one {
        return Ok(vec![service.to_owned()]);
    }
    let services = server.get("/v1/services")?.body;
    let name = |service: &Value| service["name"].as_str().map(str::to_owned);
    Ok(services.as_array().into_iter().flatten().filter_map(name).collect())
}

pub(crate) fn run(args: &DeadLetterArgs, json: bool) -> Result<(), Failure> {
    match &args.action {
        Action::List { service, limit, server } => list(service.as_deref(), *limit, server, json),
        Action::Retry { letter, server } if letter.all => all(Decision::Retry, letter, server, json),
        Action::Delete { letter, server } if letter.all => all(Decision::Delete, letter, server, json),
        Action::Retry { letter, server } => {
            let (shard, index) = (letter.shard.unwrap_or_default(), letter.index.unwrap_or_default());
            let path = format!("/v1/dead-letters/{shard}/{index}/retry");
            let report = server.server().post(&path, "", &[])?.body;
            if json {
                return output::json(&report);
            }
            output::line(&match &report["error"] {
                Value::Null => format!("dead letter {index} of shard {shard} is retried"),
                error => format!(
                    "dead letter {index} of shard {shard} is retried; the service answered with the error {error}"
                ),
            })
        }
        Action::Delete { letter, server } => {
            let (shard, index) = (letter.shard.unwrap_or_default(), letter.index.unwrap_or_default());
            server.server().delete(&format!("/v1/dead-letters/{shard}/{index}"))?;
            if json {
                return output::json(&json!({ "deleted": { "shard": shard, "index": index } }));
            }
            output::line(&format!("dead letter {index} of shard {shard} is deleted"))
        }
    }
}

fn list(service: Option<&str>, limit: usize, server: &ServerArgs, json: bool) -> Result<(), Failure> {
    let server = server.server();
    let services = services(&server, service)?;
    let limit = if limit == 0 { usize::MAX } else { limit };
    let mut letters = Vec::new();
    let mut more = false;
    for service in services {
        let mut after = String::new();
        loop {
            let left = limit - letters.len();
            if left == 0 {
                more = true;
                break;
            }
            let path = format!("/v1/dead-letters/{}?limit={}{after}", segment(&service), left.min(PAGE));
            let page = server.get(&path)?.body;
            output::note_unanswered(&page);
            letters.extend(page["dead_letters"].as_array().into_iter().flatten().cloned());
            let Some(next) = page["next"].as_str() else {
                output::note_not_here(&page);
                break;
            };
            after = format!("&after={next}");
        }
    }
    if more {
        output::note(format!(
            "stead: only the first {limit} are listed; there may be more, which --limit 0 lists"
        ));
    }
    if json {
        return output::json(&letters);
    }
    let mut table = Table::new(["shard", "index", "time", "process", "cause", "reason"]);
    for letter in &letters {
        table.row(
            ["shard", "index", "time", "process", "cause", "reason"]
                .map(|name| output::fact(name, &letter[name])),
        );
    }
    table.print()
}
