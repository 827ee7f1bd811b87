//! `stead demo`: feeds real flights through services that are killed again and again, and compares the totals.

use crate::failure::{Exit, Failure};
use crate::{output, stop};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use stead_flights::ConductError;
use stead_flights::conductor::{Event, Kills, Outcome, Plan, Sigkill, conduct};
use stead_flights::life::LifeError;
use stead_flights::protocol::{Checkpoint, Recovery};
use stead_flights::{Flights, OnMalformed, ReadError, Totals};
use tempfile::TempDir;

/// Time that all rows take without `--rate`, in seconds.
const PACE_SECONDS: f64 = 20.0;

/// Malformed rows that are listed individually.
const MALFORMED_LISTED: usize = 20;

/// The hidden subcommand with which the demo starts itself as the application that it kills.
const CHILD: &str = "demo-child";

/// Feed real flights through services, kill their nodes, and compare every total
///
/// Runs the flights application on three nodes, as child processes, on a bundled file of 27,004 real flights. Kills nodes with
/// SIGKILL, stops one with SIGSTOP and cuts one off from the others, while clients keep calling; then compares every total
/// with a simple computation. With --nodes 1 it runs one process, takes a checkpoint every second, kills the process at random
/// moments, and restores a checkpoint once. Exits with 0 only if nothing was lost, doubled or computed again, and each request
/// was answered.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  stead demo\n  stead demo --nodes 1 --kills 10 --seed 7\n  stead demo --input flights.csv.gz --malformed skip --json"
)]
pub(crate) struct DemoArgs {
    /// Number of nodes: 1, or 3 to 7
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = parse_nodes)]
    pub(super) nodes: u16,
    /// Read another file with the same columns, plain or gzip
    #[arg(long, value_name = "FILE")]
    pub(super) input: Option<PathBuf>,
    /// Handling of malformed rows in that file
    #[arg(long, value_enum, default_value_t = Malformed::Refuse, value_name = "WHAT")]
    pub(super) malformed: Malformed,
    /// Rows a second; by default all rows in about 20 s
    #[arg(long, value_name = "ROWS", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Number of kills with SIGKILL: 0 to 100 [default: 2, or 5 of one node]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=100))]
    pub(super) kills: Option<u32>,
    /// Seed that decides when to kill one node, and what clients ask; by default a new one, which is printed
    #[arg(long, value_name = "SEED")]
    pub(super) seed: Option<u64>,
}

impl DemoArgs {
    /// Whether it runs on several nodes.
    pub(super) fn is_of_cluster(&self) -> bool {
        self.nodes > 1
    }

    /// Returns the rows a second.
    pub(super) fn rate_of(&self, flights: &Flights) -> f64 {
        self.rate.unwrap_or(flights.rows.len() as f64 / PACE_SECONDS)
    }
}

/// Kills of one node without `--kills`.
const KILLS_OF_ONE: u32 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Malformed {
    /// Exit with an error that names the line and the reason
    Refuse,
    /// Report the line and skip the row
    Skip,
}

impl From<Malformed> for OnMalformed {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Refuse => Self::Refuse,
            Malformed::Skip => Self::Skip,
        }
    }
}

/// The result that `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    rows: u64,
    messages: u64,
    kills: u32,
    lost: u64,
    doubled: u64,
    recomputed: u64,
    replayed: u64,
    totals_match: bool,
    checkpoints: &'a [Checkpoint],
    recoveries: &'a [Recovery],
    #[serde(flatten)]
    totals: &'a Totals,
}

pub(crate) fn run(args: &DemoArgs, json: bool) -> Result<(), Failure> {
    let flights = read(args)?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let rate = args.rate_of(&flights);
    output::note(format_args!(
        "stead: {} flights at {rate:.0} a second, {} kills, --seed {seed}",
        flights.rows.len(),
        args.kills.unwrap_or(KILLS_OF_ONE)
    ));
    let dir = new_dir()?;
    let plan = plan(args, dir.path(), seed, rate, stop::listen()?);
    let outcome = match watch(&plan, &flights) {
        Ok(outcome) => outcome,
        Err(error) => return Err(ended_early(error, dir)),
    };
    if json {
        print_json(&outcome)?
    } else {
        print_outcome(&outcome)?
    }
    if outcome.holds() {
        return Ok(());
    }
    Err(violated(seed, dir))
}

/// Runs the application that the demo kills.
pub(crate) fn run_child() -> Result<(), Failure> {
    stead_flights::child::run()
        .map_err(|reason| Failure::new(Exit::Failed, "the flights application failed").cause(reason))
}

/// Creates the directory of a demo's files.
pub(super) fn new_dir() -> Result<TempDir, Failure> {
    let created = tempfile::Builder::new().prefix("stead-demo-").tempdir();
    created.map_err(|error| Failure::new(Exit::Failed, "cannot create a temporary directory").cause(error))
}

/// Returns the failure of a demo that has no outcome, whose processes are dead.
pub(super) fn ended_early(error: ConductError, dir: TempDir) -> Failure {
    match error {
        ConductError::Life(LifeError::Stopped) => {
            Failure::new(Exit::Stopped, "the demo was stopped before its end")
        }
        error => Failure::new(Exit::Failed, "the demo failed before its end")
            .cause(error)
            .hint(format!("its files are kept in {}", dir.keep().display())),
    }
}

/// Returns the failure of a demo whose outcome was printed.
pub(super) fn violated(seed: u64, dir: TempDir) -> Failure {
    Failure::new(Exit::Failed, "the demo found a violated guarantee")
        .hint(format!("try again with --seed {seed}; the files are kept in {}", dir.keep().display()))
        .reported()
}

fn parse_nodes(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(nodes @ (1 | 3..=7)) => Ok(nodes),
        Ok(2) => {
            Err("of 2 nodes neither can replace the other, for most of them have to agree; use 1, or 3 to 7"
                .to_owned())
        }
        _ => Err("it must be 1, or 3 to 7".to_owned()),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (1.0..=1e6).contains(&rate) => Ok(rate),
        _ => Err("it must be a number from 1 to 1000000".to_owned()),
    }
}

/// Reads the flights that the demo feeds.
pub(super) fn read(args: &DemoArgs) -> Result<Flights, Failure> {
    let Some(path) = &args.input else { return Ok(Flights::bundled()) };
    let flights = Flights::open(path, args.malformed.into()).map_err(|error| {
        let failure = Failure::new(Exit::Failed, format!("cannot use {}", path.display()));
        match error {
            ReadError::Malformed(row) => {
                failure.cause(row).hint("correct the row, or skip it: --malformed skip")
            }
            error => failure.cause(error),
        }
    })?;
    for row in flights.malformed.iter().take(MALFORMED_LISTED) {
        output::note(format_args!("stead: skipped {row}"));
    }
    if let more @ 1.. = flights.malformed.len().saturating_sub(MALFORMED_LISTED) {
        output::note(format_args!("stead: skipped {more} more malformed rows"));
    }
    Ok(flights)
}

fn plan(args: &DemoArgs, dir: &Path, seed: u64, rate: f64, stop: Arc<AtomicBool>) -> Plan {
    Plan {
        command: vec![stead_gateway::program::path().into(), CHILD.into()],
        dir: dir.to_owned(),
        data_dir: None,
        input: args.input.clone(),
        skip_malformed: matches!(args.malformed, Malformed::Skip),
        rate,
        seed,
        kills: Kills::Spread(args.kills.unwrap_or(KILLS_OF_ONE)),
        restore: true,
        checkpoint_every: Duration::from_secs(1),
        patience: Plan::PATIENCE,
        stop,
    }
}

/// Returns a progress bar of the rows, which shows only on a terminal.
pub(super) fn progress(flights: &Flights) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} {bar:32} {human_pos}/{human_len} rows  {elapsed}  {msg}")
            .expect("the template is a constant")
            .progress_chars("=> ");
    let bar = ProgressBar::new(flights.rows.len() as u64).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Runs the plan, with a progress bar if there is a terminal.
fn watch(plan: &Plan, flights: &Flights) -> Result<Outcome, ConductError> {
    let bar = progress(flights);
    let mut checkpoints = 0;
    let outcome = conduct(plan, flights, &mut Sigkill, &mut |event| match event {
        Event::Fed(position) => bar.set_position(position.next_row),
        Event::Killed(kill) => bar.println(format!("kill {kill}: SIGKILL at row {}", bar.position())),
        Event::Recovered(recovery) => bar.println(format!(
            "        it answers again after {:.0} ms{}, {} log entries read",
            recovery.ready_ms,
            if recovery.restored { ", from the restored checkpoint" } else { "" },
            recovery.entries
        )),
        Event::Checkpoint(_) => {
            checkpoints += 1;
            bar.set_message(format!("{checkpoints} checkpoints"));
        }
        Event::CheckpointFailed(reason) => bar.println(format!("a checkpoint failed: {reason}")),
        Event::Restored(number) => {
            bar.println(format!("        restored checkpoint {number} into a new data directory"))
        }
        Event::Comparing => bar.set_message("comparing totals"),
    });
    bar.finish_and_clear();
    outcome
}

fn print_json(outcome: &Outcome) -> Result<(), Failure> {
    output::json(&Report {
        rows: outcome.rows,
        messages: outcome.totals.messages(),
        kills: outcome.kills,
        lost: outcome.lost(),
        doubled: outcome.doubled(),
        recomputed: outcome.again.recomputed,
        replayed: outcome.rows_replayed,
        totals_match: outcome.totals_match(),
        checkpoints: &outcome.checkpoints,
        recoveries: &outcome.recoveries,
        totals: &outcome.totals,
    })
}

/// Prints the events, then what they prove.
fn print_outcome(outcome: &Outcome) -> Result<(), Failure> {
    let say =
        |name: &str, value: u64, note: &str| output::line(format!("{name:18} {value:>9}  {note}").trim_end());
    let (requests, again, totals) = (outcome.requests, outcome.again, &outcome.totals);
    output::line("What happened")?;
    say("rows", outcome.rows, "real flights, fed one by one")?;
    say("messages", totals.messages(), "between processes")?;
    let answered = format!("of an outside client, answered; {} different ones", requests.answered);
    say("requests", requests.answers, &answered)?;
    say("kills", u64::from(outcome.kills), "by SIGKILL, at random moments")?;
    let ready = range(outcome.recoveries.iter().map(|recovery| recovery.ready_ms), millis);
    let node = range(outcome.recoveries.iter().map(|recovery| recovery.node_ms), millis);
    let note = format!("{ready} from the start of the program to its first answer, reading state {node}");
    say("recoveries", outcome.recoveries.len() as u64, &note)?;
    let sizes = range(outcome.checkpoints.iter().map(|checkpoint| checkpoint.bytes as f64), |bytes| {
        output::bytes(bytes as u64)
    });
    let times = range(outcome.checkpoints.iter().map(|checkpoint| checkpoint.ms), millis);
    say("checkpoints", outcome.checkpoints.len() as u64, &format!("each {sizes} in {times}"))?;
    if outcome.checkpoints_failed > 0 {
        say("not completed", outcome.checkpoints_failed, "checkpoints that failed; the work went on")?;
    }
    if let Some(number) = outcome.restored {
        let note = format!(
            "the checkpoint that was restored once; the {} rows and {} requests after it were sent again",
            outcome.rows_replayed, requests.replayed
        );
        say("restored", number, &note)?;
    }

    output::line("")?;
    output::line("What it proves")?;
    say("lost", outcome.lost(), "rows and answered requests without their effect")?;
    say("applied twice", outcome.doubled(), "rows and requests with their effect twice")?;
    let runs = again.runs.saturating_sub(again.replayed);
    let computed = format!("of {runs} handler runs repeated what was on disk already");
    say("computed again", again.recomputed, &computed)?;
    let (word, what) = compared_totals(totals, outcome.totals_match());
    output::line(&format!("{:18} {word:>9}  {what}", "totals"))
}

/// Says in a word and in a line whether totals are as expected.
pub(super) fn compared_totals(totals: &Totals, do_match: bool) -> (&'static str, String) {
    let (word, what) = match do_match {
        true => ("match", "equal to a straightforward computation"),
        false => ("differ", "NOT what they should be"),
    };
    let Totals { carriers, airports, aircraft } = totals;
    let (carriers, airports, aircraft) = (carriers.len(), airports.len(), aircraft.count);
    (word, format!("of {carriers} carriers, {airports} airports, {aircraft} aircraft: {what}"))
}

fn millis(ms: f64) -> String {
    format!("{ms:.1} ms")
}

/// Formats the least, the greatest and the median.
fn range(values: impl Iterator<Item = f64>, show: impl Fn(f64) -> String) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(least), Some(median), Some(most)) => {
            format!("{} to {} (median {})", show(*least), show(*most), show(*median))
        }
        _ => "-".to_owned(),
    }
}
