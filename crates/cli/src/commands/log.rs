//! `stead log`: the entries of a shard, readable.

use crate::client::ServerArgs;
use crate::failure::{Exit, Failure};
use crate::output;
use clap::Args;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use stead::offline::{LogEntry, LogReply, LogSend, LogWrite, read_log};

/// Show the entries of a shard's log
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stead log 3\n  stead log 3 --from 1200 --limit 10 --json\n\n\
    Of a data directory that no server runs on:\n  stead log 3 --data ./data")]
pub(crate) struct LogArgs {
    /// Number of the shard, as `stead status --shards` shows it
    shard: u32,
    /// First index; without it, the oldest entry that is kept
    #[arg(long, default_value_t = 0, value_name = "INDEX")]
    from: u64,
    /// Most entries
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Read this data directory instead of asking a server
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(args: &LogArgs, json: bool) -> Result<(), Failure> {
    let entries = match &args.data {
        Some(data) => offline(args, data)?,
        None => online(args)?,
    };
    if entries.is_empty() && !json {
        let (shard, from) = (args.shard, args.from);
        output::note(format_args!("stead: the log of shard {shard} has no entries from index {from} on"));
    }
    for entry in &entries {
        if json { output::json(entry)? } else { output::line(&readable(entry))? }
    }
    Ok(())
}

fn online(args: &LogArgs) -> Result<Vec<LogEntry>, Failure> {
    let path = format!("/v1/log/{}?from={}&limit={}", args.shard, args.from, args.limit);
    let answer = args.server.server().get(&path)?.body;
    serde_json::from_value(answer)
        .map_err(|error| Failure::new(Exit::Failed, "the server's log entries can't be read").cause(error))
}

fn offline(args: &LogArgs, data: &Path) -> Result<Vec<LogEntry>, Failure> {
    let mut entries = Vec::new();
    let visit = |entry| {
        entries.push(entry);
        if entries.len() < usize::from(args.limit) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    read_log(data, args.shard, args.from, visit).map_err(super::checkpoint::offline_failure)?;
    Ok(entries)
}

/// An entry in one line, its effects in lines of their own below it.
fn readable(entry: &LogEntry) -> String {
    let mut text = format!("{:>8}  epoch {}  {}", entry.index, entry.epoch, entry.cause);
    if !entry.process.is_empty() {
        text.push_str(&format!("  -> {}", entry.process));
    }
    for LogWrite { record, bytes, state } in &entry.writes {
        text.push_str(&match (bytes, state) {
            (None, _) => format!("\n          deletes {record}"),
            (Some(_), Some(state)) => format!("\n          puts {record} = {state}"),
            (Some(bytes), None) => format!("\n          puts {record}, {bytes} bytes"),
        });
    }
    for LogSend { shard, process, payload } in &entry.sends {
        let payload = payload.as_ref().map_or_else(|| "(no JSON)".to_owned(), ToString::to_string);
        text.push_str(&format!("\n          sends to {process} in shard {shard}: {payload}"));
    }
    let (name, reply) = match &entry.reply {
        Some(LogReply::Ok(reply)) => ("replies", reply),
        Some(LogReply::Error(reply)) => ("replies with the error", reply),
        None => return text,
    };
    let reply = reply.as_ref().map_or_else(|| "(no JSON)".to_owned(), ToString::to_string);
    text.push_str(&format!("\n          {name} {reply}"));
    text
}
