//! `stead demo` on several nodes: they are killed, paused and cut off while clients keep calling.

use super::demo::{DemoArgs, Malformed, compared_totals, ended_early, new_dir, progress, read, violated};
use super::start::{self, StartArgs};
use crate::client::{Answer, ServerArgs};
use crate::failure::{Exit, Failure};
use crate::{output, stop};
use clap::Args;
use serde::Serialize;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use stead_flights::callers::{DEADLINE, Reads};
use stead_flights::child::register;
use stead_flights::cluster::{Event, Fault, FaultKind, Outcome, Plan, conduct, prepare};
use stead_flights::{ConductError, Flights, Totals};

/// The hidden subcommand with which the demo starts itself as a node.
const NODE: &str = "demo-node";

/// Kills without `--kills`.
const KILLS: u32 = 2;

/// Longest wait for the next event.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time in which a node has to answer the demo's own requests, in milliseconds.
const ASK_MS: u64 = 10_000;

/// Run a node of the demo
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Directory for the records of handler runs
    #[arg(long, value_name = "DIR")]
    runs: PathBuf,
    /// File to feed from
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Handling of malformed rows in that file
    #[arg(long, value_enum, default_value_t = Malformed::Refuse, value_name = "WHAT")]
    malformed: Malformed,
    #[command(flatten)]
    start: StartArgs,
}

/// The result that `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    nodes: u16,
    shards: usize,
    rows: u64,
    messages: u64,
    kills: usize,
    faults: &'a [Fault],
    requests: u64,
    unanswered: u64,
    accepted_share: f64,
    right_share: f64,
    usual_wait_ms: f64,
    reads: &'a Reads,
    lost: u64,
    doubled: u64,
    recomputed: u64,
    replayed: u64,
    totals_match: bool,
    /// A cluster takes none yet.
    checkpoints: [u8; 0],
    /// Nodes recover beside the others.
    recoveries: [u8; 0],
    violations: &'a [String],
    #[serde(flatten)]
    totals: &'a Totals,
}

/// Runs a node that the demo kills.
pub(crate) fn run_node(args: &NodeArgs, json: bool) -> Result<(), Failure> {
    prepare(&args.runs, args.input.as_deref(), args.malformed.into())
        .map_err(|reason| Failure::new(Exit::Failed, "the flights application failed").cause(reason))?;
    start::serve(&args.start, json, register)
}

pub(crate) fn run(args: &DemoArgs, json: bool) -> Result<(), Failure> {
    let flights = read(args)?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let rate = args.rate_of(&flights);
    let kills = args.kills.unwrap_or(KILLS);
    output::note(format_args!(
        "stead: {} flights at {rate:.0} a second on {} nodes, --seed {seed}",
        flights.rows.len(),
        args.nodes
    ));
    let dir = new_dir()?;
    let (command, stop) = (command(args, dir.path()), stop::listen()?);
    let outcome = match watch(args, dir.path(), command, (kills, seed, rate), stop, &flights) {
        Ok(outcome) => outcome,
        Err(error) => return Err(ended_early(error, dir)),
    };
    let violations = outcome.violations();
    if json {
        print_json(&outcome, &violations)?;
    } else {
        print_outcome(&outcome)?;
    }
    if violations.is_empty() {
        return Ok(());
    }
    Err(violated(seed, dir).cause(violations.join("; ")))
}

/// Returns the first arguments of a node.
fn command(args: &DemoArgs, dir: &Path) -> Vec<OsString> {
    let mut command = vec![NODE.into(), "--json".into(), "--supervise=false".into()];
    command.extend(["--log-level".into(), "warn".into(), "--runs".into(), Plan::runs(dir).into()]);
    if let Some(input) = &args.input {
        command.extend(["--input".into(), input.into()]);
    }
    if args.malformed == Malformed::Skip {
        command.extend(["--malformed".into(), "skip".into()]);
    }
    command
}

/// Runs the demo, with a progress bar if there is a terminal.
fn watch(
    args: &DemoArgs,
    dir: &Path,
    command: Vec<OsString>,
    (kills, seed, rate): (u32, u64, f64),
    stop: Arc<AtomicBool>,
    flights: &Flights,
) -> Result<Outcome, ConductError> {
    let server = |address: SocketAddr| ServerArgs { addr: address.to_string(), timeout_ms: ASK_MS }.server();
    let body = |answer: Result<Answer, Failure>| {
        answer.map(|answer| answer.body).map_err(|failure| failure.to_string())
    };
    let get = |address: SocketAddr, path: &str| body(server(address).get(path));
    let post = |address: SocketAddr, path: &str| body(server(address).post(path, "", &[]));
    let mut faults = vec![FaultKind::Kill; kills as usize];
    faults.extend([FaultKind::Pause, FaultKind::Cut]);
    let plan = Plan {
        program: stead_gateway::program::path(),
        command,
        dir: dir.to_owned(),
        nodes: args.nodes,
        rate,
        seed,
        faults,
        patience: PATIENCE,
        get: &get,
        post: &post,
        stop,
    };
    let bar = progress(flights);
    let outcome = conduct(&plan, flights, &mut |event| match event {
        Event::Whole => bar.println(format!("{} nodes run, and each shard has its replicas", args.nodes)),
        Event::Fed(position) => bar.set_position(position.next_row),
        Event::Fault(kind, node, led) => {
            bar.set_message(format!("{} node {node}, which leads {led} shards", doing(kind)))
        }
        Event::Healed(fault) => bar.println(line_of(fault)),
        Event::Comparing => bar.set_message("comparing totals"),
    });
    bar.finish_and_clear();
    outcome
}

fn doing(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Kill => "killing",
        FaultKind::Pause => "stopping",
        FaultKind::Cut => "cutting off",
    }
}

/// Describes a fault in one line.
fn line_of(fault: &Fault) -> String {
    let &Fault { kind, node, led, failover_ms, worst_wait_ms, .. } = fault;
    let what = match kind {
        FaultKind::Kill => "killed by SIGKILL, started again",
        FaultKind::Pause => "stopped by SIGSTOP, came back late",
        FaultKind::Cut => "cut off from the others for a while",
    };
    format!(
        "node {node}  {what:36} others led its {led} shards after {failover_ms:.0} ms; a client waited {worst_wait_ms:.0} ms at worst"
    )
}

fn print_json(outcome: &Outcome, violations: &[String]) -> Result<(), Failure> {
    output::json(&Report {
        nodes: outcome.nodes,
        shards: outcome.shards,
        rows: outcome.rows,
        messages: outcome.totals.messages(),
        kills: outcome.faults.iter().filter(|fault| fault.kind == FaultKind::Kill).count(),
        faults: &outcome.faults,
        requests: outcome.begun,
        unanswered: outcome.unanswered.0,
        accepted_share: outcome.accepted_share(),
        right_share: outcome.right_share(),
        usual_wait_ms: outcome.usual_wait_ms,
        reads: &outcome.reads,
        lost: outcome.lost(),
        doubled: outcome.doubled(),
        recomputed: outcome.compared.recomputed,
        replayed: 0,
        totals_match: outcome.totals_match(),
        checkpoints: [],
        recoveries: [],
        violations,
        totals: &outcome.totals,
    })
}

fn percent(share: f64) -> String {
    // 99.999 % is not all.
    if share >= 1.0 { "100 %".to_owned() } else { format!("{:.2} %", (share * 1e4).floor() / 1e2) }
}

/// Prints what was done to the cluster, what clients saw, and what that proves.
fn print_outcome(outcome: &Outcome) -> Result<(), Failure> {
    let say = |name: &str, value: &str, note: &str| {
        output::line(format!("  {name:16} {value:>9}  {note}").trim_end())
    };
    let Outcome { nodes, shards, rows, totals, requests, reads, compared, .. } = outcome;
    output::line(&format!(
        "A cluster of {nodes} nodes: {shards} shards with 3 replicas each; an answered request is on the disks of 2 of them"
    ))?;
    output::line("\nWhat was done to it, while flights and clients went on")?;
    for fault in &outcome.faults {
        output::line(&format!("  {}", line_of(fault)))?;
    }
    output::line("\nWhat clients saw")?;
    let note = format!(
        "of different passengers, and retries; the usual wait was {:.1} ms; there are clients at each node, also at one that is lost",
        outcome.usual_wait_ms
    );
    say("requests", &outcome.begun.to_string(), &note)?;
    say(
        "accepted",
        &percent(outcome.accepted_share()),
        &format!("answered within {} s", DEADLINE.as_secs()),
    )?;
    say(
        "answered rightly",
        &percent(outcome.right_share()),
        "the services hold in the end what each answer said",
    )?;
    let note = format!(
        "answers of any replica, each with its age, up to {:.0} ms; {} lacked more than they said",
        reads.age_max_ms,
        reads.understated + reads.untold
    );
    say("stale reads", &reads.stale.to_string(), &note)?;
    let note = format!("answers; {} showed less than an earlier one", reads.went_back);
    say("current reads", &reads.current.to_string(), &note)?;

    output::line("\nWhat it proves")?;
    say(
        "requests lost",
        &outcome.lost().to_string(),
        &format!("of {} answers, and {rows} flights", requests.answers),
    )?;
    say(
        "applied twice",
        &outcome.doubled().to_string(),
        &format!("of these, and of {} messages between processes", totals.messages()),
    )?;
    let note = format!(
        "of {} handler runs repeated what the logs held; {} were replaced before they were stored",
        compared.runs, compared.unkept
    );
    say("computed again", &compared.recomputed.to_string(), &note)?;
    let (word, what) = compared_totals(totals, outcome.totals_match());
    say("totals", word, &what)
}
