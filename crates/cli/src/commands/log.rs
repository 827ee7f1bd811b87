//! `stead log`: shows the entries of a shard or of one process as text.

use crate::client::{Server, ServerArgs, segment};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::when;
use clap::{ArgGroup, Args};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use stead::offline::{LogEntry, LogPage, LogReply, LogSend, LogWrite, read_log, read_process_log};

/// Show the log entries of a shard or of one process
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("of").args(["shard", "process"]).required(true))]
#[command(after_help = "Example:\n  stead log 3\n  stead log 3 --from 1200 --limit 10 --json\n\n\
    What one process handles, as it comes:\n  stead log --process kv/greeting --follow\n\n\
    Of a data directory that no server runs on:\n  stead log 3 --data ./data\n\n\
    --json prints one object a line.")]
pub(crate) struct LogArgs {
    /// Number of the shard, as `stead status --shards` and `stead process show` show it
    shard: Option<u32>,
    /// Show the entries of this process instead
    #[arg(long, value_name = "SERVICE/KEY", value_parser = process_name)]
    process: Option<(String, String)>,
    /// First index; by default the oldest entry
    #[arg(long, default_value_t = 0, value_name = "INDEX")]
    from: u64,
    /// Show at most this many entries; with --follow, at most this many per request
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Keep showing new entries until Ctrl-C
    #[arg(long, conflicts_with = "data")]
    follow: bool,
    /// Read this data directory instead of asking a server
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
}

fn process_name(text: &str) -> Result<(String, String), String> {
    let (service, key) = text.split_once('/').ok_or("it must be SERVICE/KEY, as in kv/greeting")?;
    if service.is_empty() || key.is_empty() {
        return Err("the service or the key is empty; it must be SERVICE/KEY, as in kv/greeting".to_owned());
    }
    Ok((service.to_owned(), key.to_owned()))
}

/// Selects the entries to show.
enum Of<'a> {
    Shard(u32),
    Process(&'a str, &'a str),
}

pub(crate) fn run(args: &LogArgs, json: bool) -> Result<(), Failure> {
    let of = match (&args.process, args.shard) {
        (Some((service, key)), _) => Of::Process(service, key),
        (None, shard) => Of::Shard(shard.unwrap_or_default()),
    };
    let page = first(&of, args)?;
    if page.entries.is_empty() && !json && !args.follow {
        let whose = match of {
            Of::Shard(shard) => format!("the log of shard {shard} has no entries"),
            Of::Process(service, key) => format!("the log has no entries of {service}/{key}"),
        };
        output::note(format_args!("stead: {whose} from index {} on", args.from));
    }
    let is_read = show(&page.entries, json)?;
    if args.follow && is_read {
        follow(&args.server.server(), &of, page.next, args.limit, json)
    } else {
        Ok(())
    }
}

/// Fetches the first entries, over as many pages as needed.
fn first(of: &Of<'_>, args: &LogArgs) -> Result<LogPage, Failure> {
    let server = args.server.server();
    let mut page = LogPage { entries: Vec::new(), next: args.from };
    loop {
        let left = args.limit - page.entries.len() as u16;
        let more = match &args.data {
            Some(data) => offline(of, data, page.next, left)?,
            None => online(&server, of, page.next, left)?,
        };
        page.next = more.next;
        let is_last = more.entries.is_empty();
        page.entries.extend(more.entries);
        if is_last || page.entries.len() >= usize::from(args.limit) {
            return Ok(page);
        }
    }
}

/// Prints entries; returns false if the reader of the output is gone.
fn show(entries: &[LogEntry], json: bool) -> Result<bool, Failure> {
    for entry in entries {
        let text = if json { output::json_text(entry)? } else { readable(entry) };
        if !output::line_is_read(&text)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The shortest time between two requests for new entries.
const PAUSE: Duration = Duration::from_millis(200);
/// Factor of a request's duration to pause after it: the server reads its log for each request.
const PAUSE_TO_REQUEST: u32 = 4;

fn follow(server: &Server, of: &Of<'_>, mut from: u64, limit: u16, json: bool) -> Result<(), Failure> {
    loop {
        let asked = Instant::now();
        let page = online(server, of, from, limit)?;
        if !show(&page.entries, json)? {
            return Ok(());
        }
        from = page.next;
        let is_behind = page.entries.len() == usize::from(limit);
        let pause = if is_behind { Duration::ZERO } else { PAUSE.max(asked.elapsed() * PAUSE_TO_REQUEST) };
        // Also looks while there are no entries, when no write would discover that the reader is gone.
        if !output::wait_while_read(pause)? {
            return Ok(());
        }
    }
}

fn online(server: &Server, of: &Of<'_>, from: u64, limit: u16) -> Result<LogPage, Failure> {
    let unreadable = |error: serde_json::Error| {
        Failure::new(Exit::Failed, "cannot read the server's log entries").cause(error)
    };
    match of {
        Of::Shard(shard) => {
            let answer = server.get(&format!("/v1/log/{shard}?from={from}&limit={limit}"))?.body;
            Ok(page_of(serde_json::from_value(answer).map_err(unreadable)?, from))
        }
        Of::Process(service, key) => {
            let process = format!("/v1/processes/{}/{}", segment(service), segment(key));
            let answer = server.get(&format!("{process}/log?from={from}&limit={limit}"))?.body;
            serde_json::from_value(answer).map_err(unreadable)
        }
    }
}

fn offline(of: &Of<'_>, data: &Path, from: u64, limit: u16) -> Result<LogPage, Failure> {
    let limit = usize::from(limit);
    match of {
        Of::Shard(shard) => {
            let mut entries = Vec::new();
            let visit = |entry| {
                entries.push(entry);
                if entries.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            read_log(data, *shard, from, visit).map_err(super::checkpoint::offline_failure)?;
            Ok(page_of(entries, from))
        }
        Of::Process(service, key) => {
            read_process_log(data, service, key, from, limit).map_err(super::checkpoint::offline_failure)
        }
    }
}

fn page_of(entries: Vec<LogEntry>, from: u64) -> LogPage {
    let next = entries.last().map_or(from, |entry| entry.index + 1);
    LogPage { entries, next }
}

/// Formats an entry as one line, with its effects on lines of their own below.
fn readable(entry: &LogEntry) -> String {
    let mut text =
        format!("{:>8}  {}  epoch {}  {}", entry.index, when::date(entry.time), entry.epoch, entry.cause);
    if !entry.process.is_empty() {
        text.push_str(&format!("  -> {}", entry.process));
    }
    for LogWrite { record, bytes, state } in &entry.writes {
        text.push_str(&match (bytes, state) {
            (None, _) => format!("\n          deletes {record}"),
            (Some(_), Some(state)) => format!("\n          puts {record} = {state}"),
            (Some(bytes), None) => format!("\n          puts {record}, {}", output::bytes(*bytes)),
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
