//! `stead dead-letter`: list, retry and delete dead letters.

use crate::client::{ServerArgs, segment};
use crate::failure::Failure;
use crate::output::{self, Table};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// List, retry and delete dead letters: what no handler could take
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
        /// The service; all of them if none is named
        service: Option<String>,
        /// How many at most
        #[arg(long, default_value_t = 1000)]
        limit: usize,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Hand a dead letter to its process again
    #[command(after_help = "Example:\n  stead dead-letter retry 3 1042\n\n\
        It is handled once: the log entry that handles it removes it. A failed step of a task runs again from the state\n\
        before it. What fails again stays a dead letter, with the new reason. A client's request can't be retried, for its\n\
        client was told that it is given up.")]
    Retry {
        #[command(flatten)]
        letter: Letter,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Drop a dead letter unhandled; what it held is lost
    #[command(after_help = "Example:\n  stead dead-letter delete 3 1042")]
    Delete {
        #[command(flatten)]
        letter: Letter,
        #[command(flatten)]
        server: ServerArgs,
    },
}

#[derive(Debug, Args)]
struct Letter {
    /// The shard that holds it
    shard: u32,
    /// Its number there
    index: u64,
}

pub(crate) fn run(args: &DeadLetterArgs, json: bool) -> Result<(), Failure> {
    match &args.action {
        Action::List { service, limit, server } => list(service.as_deref(), *limit, server, json),
        Action::Retry { letter: Letter { shard, index }, server } => {
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
        Action::Delete { letter: Letter { shard, index }, server } => {
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
    let services = match service {
        Some(service) => vec![service.to_owned()],
        None => {
            let services = server.get("/v1/services")?.body;
            let name = |service: &Value| service["name"].as_str().map(str::to_owned);
            services.as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(name).collect()
        }
    };
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
            let path = format!("/v1/dead-letters/{}?limit={}{after}", segment(&service), left.min(1000));
            let page = server.get(&path)?.body;
            letters.extend(page["dead_letters"].as_array().into_iter().flatten().cloned());
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
    }
    if more {
        output::note(format!("only the first {limit} are listed; there may be more, which --limit shows"));
    }
    if json {
        return output::json(&letters);
    }
    let mut table = Table::new(["shard", "index", "process", "cause", "reason"]);
    for letter in &letters {
        table.row(
            ["shard", "index", "process", "cause", "reason"].map(|name| output::fact(name, &letter[name])),
        );
    }
    table.print()
}
