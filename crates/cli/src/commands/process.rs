//! `stead process`: list, show and delete processes.

use crate::client::{Server, ServerArgs, name, segment};
use crate::failure::{Exit, Failure};
use crate::output::{self, Table};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};

/// List, show and delete the processes of a service
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  stead process list kv --prefix user/\n  stead process show kv greeting\n  stead process delete kv greeting"
)]
pub(crate) struct ProcessArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the processes of a service: their keys, shards, sizes, timers and tasks
    #[command(
        after_help = "Example:\n  stead process list kv\n  stead process list kv --prefix user/ --limit 0 --json\n\n\
        The table is sorted by key. --json prints one object a line, in no order."
    )]
    List {
        /// Service of the processes
        #[arg(value_parser = name)]
        service: String,
        /// Only those whose keys begin with this
        #[arg(long, default_value = "", value_name = "TEXT")]
        prefix: String,
        /// List at most this many processes; 0 lists all
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show a process: its shard, state, sizes, timers and tasks
    #[command(after_help = "Example:\n  stead process show kv greeting\n\n\
        A key has a shard also before its process exists.")]
    Show {
        /// Service of the process
        #[arg(value_parser = name)]
        service: String,
        /// Key of the process
        #[arg(value_parser = name)]
        key: String,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Delete a process, or all whose keys begin with a prefix: state, cells, timers and tasks
    #[command(
        group = ArgGroup::new("which").required(true),
        after_help = "Example:\n  stead process delete kv greeting\n  stead process delete kv --prefix user/\n\n\
        The deletion is an entry of the log. Replies that are kept for retries stay, and a message that comes later\n\
        begins the process again."
    )]
    Delete {
        /// Service of the process
        #[arg(value_parser = name)]
        service: String,
        /// Key of the process
        #[arg(group = "which", value_parser = name)]
        key: Option<String>,
        /// Delete all processes whose keys begin with this; an empty text means all of the service
        #[arg(long, group = "which", value_name = "TEXT")]
        prefix: Option<String>,
        #[command(flatten)]
        server: ServerArgs,
    },
}

pub(crate) fn run(args: &ProcessArgs, json: bool) -> Result<(), Failure> {
    match &args.action {
        Action::List { service, prefix, limit, server } => {
            list(&server.server(), service, prefix, *limit, json)
        }
        Action::Show { service, key, server } => show(&server.server(), service, key, json),
        Action::Delete { service, key, prefix, server } => {
            let server = server.server();
            match (key, prefix) {
                (Some(key), _) => delete(&server, service, key, json),
                (None, prefix) => delete_all(&server, service, prefix.as_deref().unwrap_or_default(), json),
            }
        }
    }
}

/// The fields that a row of the list shows.
const COLUMNS: [&str; 7] = ["key", "shard", "bytes", "cells", "cells_bytes", "timers", "tasks"];
/// Processes requested at a time.
const PAGE: usize = 1000;

/// Passes the pages of a listing to `visit` until it returns false or there are no more.
fn pages(
    server: &Server,
    service: &str,
    prefix: &str,
    mut visit: impl FnMut(Vec<Value>) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let first = format!("/v1/processes/{}?limit={PAGE}&prefix={}", segment(service), segment(prefix));
    let mut path = first.clone();
    loop {
        let mut page = server.get(&path)?.body;
        let Value::Array(processes) = page["processes"].take() else {
            return Err(Failure::new(Exit::Failed, "cannot read the server's list of processes"));
        };
        output::note_unanswered(&page);
        let more = visit(processes)?;
        match page["next"].as_str() {
            Some(next) if more => path = format!("{first}&after={}", segment(next)),
            _ => {
                output::note_not_here(&page);
                return Ok(());
            }
        }
    }
}

fn list(server: &Server, service: &str, prefix: &str, limit: usize, json: bool) -> Result<(), Failure> {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let mut shown = 0;
    let mut all = Vec::new();
    let mut is_cut = false;
    pages(server, service, prefix, |processes| {
        for process in processes {
            if shown == limit {
                is_cut = true;
                return Ok(false);
            }
            shown += 1;
            if json { output::json(&process)? } else { all.push(process) }
        }
        Ok(true)
    })?;
    if json {
        return Ok(());
    }
    all.sort_by(|a, b| a["key"].as_str().cmp(&b["key"].as_str()));
    let mut table = Table::new(COLUMNS.map(|name| match name {
        "cells_bytes" => "bytes of cells",
        name => name,
    }));
    for process in &all {
        table.row(COLUMNS.map(|name| output::fact(name, &process[name])));
    }
    table.print()?;
    if is_cut {
        output::note(format_args!("stead: there are more than {limit}; --limit 0 lists all, --prefix some"));
    }
    Ok(())
}

fn show(server: &Server, service: &str, key: &str, json: bool) -> Result<(), Failure> {
    let process = server.get(&path(service, key))?.body;
    if json {
        return output::json(&process);
    }
    let number = |name: &str| output::fact(name, &process[name]);
    output::line(&format!("process  {service}/{key}"))?;
    output::line(&format!("shard    {}", process["shard"]))?;
    if process["exists"] != true {
        return output::line("exists   no: its first call or message creates it");
    }
    let version = process["version"]
        .as_u64()
        .map_or_else(|| "none".to_owned(), |version| format!("{}, version {version}", number("bytes")));
    output::line(&format!("state    {version}"))?;
    output::line(&format!("cells    {}, {}", process["cells"], number("cells_bytes")))?;
    output::line(&format!("timers   {}", process["timers"]))?;
    output::line(&format!("tasks    {}", process["tasks"]))?;
    let rows = |name: &str| process[name].as_array().cloned().unwrap_or_default();
    let timers = rows("timer_list");
    if !timers.is_empty() {
        let mut table = Table::new(["timer", "fires in", "for", "brings"]);
        for timer in timers {
            let at = timer["at"].as_u64().unwrap_or(0);
            let to = timer["to"].as_str().unwrap_or("itself").to_owned();
            table.row([timer["id"].to_string(), fires_in(at), to, timer["payload"].to_string()]);
        }
        output::line("")?;
        table.print()?;
    }
    let tasks = rows("task_list");
    if !tasks.is_empty() {
        let mut table = Table::new(["task", "name", "step", "done"]);
        for task in tasks {
            let done = task["progress"].as_f64().unwrap_or(0.0) * 100.0;
            let name = task["name"].as_str().unwrap_or_default().to_owned();
            table.row([task["id"].to_string(), name, task["step"].to_string(), format!("{done:.1} %")]);
        }
        output::line("")?;
        table.print()?;
    }
    if process["version"].is_null() {
        return Ok(());
    }
    output::line("")?;
    match &process["state"] {
        Value::Null => output::line("null"),
        state => output::line(&format!("{state:#}")),
    }
}

/// Formats the time that is left until a time in microseconds since the Unix epoch.
fn fires_in(at: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let left = u128::from(at).saturating_sub(now.as_micros());
    match left / 1_000_000 {
        0 if left == 0 => "now".to_owned(),
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn delete(server: &Server, service: &str, key: &str, json: bool) -> Result<(), Failure> {
    let deleted = server.delete(&path(service, key))?.body;
    if json {
        return output::json(&json!({ "deleted": deleted }));
    }
    output::line(&format!(
        "{service}/{key} is deleted: {}",
        output::count(deleted["records"].as_u64().unwrap_or(0), "record", "records")
    ))
}

fn delete_all(server: &Server, service: &str, prefix: &str, json: bool) -> Result<(), Failure> {
    let mut count = 0;
    pages(server, service, prefix, |processes| {
        for process in processes {
            let key = process["key"].as_str().unwrap_or_default();
            match server.delete(&path(service, key)) {
                Ok(_) => count += 1,
                // Another command deleted it meanwhile.
                Err(failure) if failure.is("unknown-process") => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(true)
    })?;
    if json {
        return output::json(
            &json!({ "deleted": { "service": service, "prefix": prefix, "processes": count } }),
        );
    }
    output::line(&format!("deleted {} of {service}", output::count(count, "process", "processes")))
}

fn path(service: &str, key: &str) -> String {
    format!("/v1/processes/{}/{}", segment(service), segment(key))
}
