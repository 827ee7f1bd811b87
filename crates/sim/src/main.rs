//! `stead-sim`: runs seeds, and checks that planted bugs are caught.

#![forbid(unsafe_code)]
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use stead_sim::{
    Bug, ClusterBug, ClusterConfig, ClusterFailure, ClusterMarks, Config, Failure, Marks, run, run_cluster,
};

#[derive(Parser)]
#[command(name = "stead-sim", about = "Deterministic simulator of a Stead node")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run seeds and look for violations; the last line of a failure repeats it.
    Run {
        /// Number of seeds: 100 by default, unlimited if a time is given.
        #[arg(long)]
        seeds: Option<u64>,
        /// Events of each run before the faults end.
        #[arg(long, default_value_t = 2000)]
        events: u64,
        /// The first seed; drawn from the clock by default.
        #[arg(long)]
        seed: Option<u64>,
        /// Run clusters of this many nodes, 1 to 7, instead of one node with all that it can do.
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=7))]
        nodes: Option<u8>,
        /// A bug to plant, by its name; one of a cluster with `--nodes`.
        #[arg(long)]
        bug: Option<String>,
        /// Stop after this many seconds, even if seeds are left.
        #[arg(long)]
        time: Option<u64>,
        /// Print every event on stderr.
        #[arg(long)]
        trace: bool,
        /// Continue after a failure.
        #[arg(long)]
        keep_going: bool,
    },
    /// Plant every bug in turn, of one node and of clusters of three, and print the number of seeds until the check of an invariant
    /// that it breaks has caught it, and in how many of them another check has found something. The line of a bug ends with the
    /// command that repeats it.
    Bugs {
        /// Maximum number of seeds for one bug.
        #[arg(long, default_value_t = 400)]
        seeds: u64,
        /// The first seed; drawn from the clock by default.
        #[arg(long)]
        seed: Option<u64>,
    },
}

/// Returns the bug of this name, or ends the program with the names that there are.
fn parse_bug<B: Copy>(name: &str, all: &[B], name_of: impl Fn(B) -> &'static str) -> B {
    all.iter().copied().find(|bug| name_of(*bug) == name).unwrap_or_else(|| {
        let names = all.iter().map(|bug| name_of(*bug)).collect::<Vec<_>>().join(", ");
        let what = format!("no bug {name}; there are {names}");
        Args::command().error(ErrorKind::InvalidValue, what).exit()
    })
}

fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    fastrand::Rng::with_seed(now.as_nanos() as u64).u64(..1 << 48)
}

/// Prints a line; returns false if the reader of standard output is gone. The exit code still says whether all seeds held.
fn print(line: impl Display) -> bool {
    writeln!(io::stdout(), "{line}").is_ok()
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Run { seeds, events, seed, nodes, bug, time, trace, keep_going } => {
            // A panic of the simulated node is a finding, printed with its seed; its backtrace is for a debugger.
            let label = bug.as_ref().map(|bug| format!("planted bug {bug}: ")).unwrap_or_default();
            std::panic::set_hook(Box::new(move |info| eprintln!("{label}{info}")));
            let seed = seed.unwrap_or_else(fresh_seed);
            let seeds = seeds.unwrap_or(if time.is_some() { u64::MAX } else { 100 });
            let limits = Limits { seeds, time: time.map(Duration::from_secs), keep_going };
            match nodes {
                Some(nodes) => {
                    let bug = bug.map(|bug| parse_bug(&bug, &ClusterBug::ALL, ClusterBug::name));
                    run_clusters(ClusterConfig { seed, nodes: nodes.into(), events, bug, trace }, limits)
                }
                None => {
                    let bug = bug.map(|bug| parse_bug(&bug, Bug::ALL, Bug::name));
                    run_seeds(Config { seed, events, bug, trace }, limits)
                }
            }
        }
        Command::Bugs { seeds, seed } => run_bugs(seed.unwrap_or_else(fresh_seed), seeds),
    }
}

/// The end of a series of runs.
struct Limits {
    seeds: u64,
    time: Option<Duration>,
    keep_going: bool,
}

/// Runs the seeds from `first` on, and prints the failures; returns the numbers of seeds that ran and that failed.
fn run_from<F: Display>(
    first: u64,
    Limits { seeds, time, keep_going }: Limits,
    mut run: impl FnMut(u64) -> Result<(), F>,
) -> (u64, u64) {
    let begun = Instant::now();
    let (mut done, mut failed) = (0u64, 0u64);
    for seed in first..first.saturating_add(seeds) {
        if time.is_some_and(|time| begun.elapsed() >= time) {
            break;
        }
        done += 1;
        if let Err(failure) = run(seed) {
            failed += 1;
            if !print(failure) || !keep_going {
                break;
            }
        }
    }
    (done, failed)
}

fn run_clusters(config: ClusterConfig, limits: Limits) -> ExitCode {
    let (first, begun) = (config.seed, Instant::now());
    let (mut marks, mut hash) = (ClusterMarks::default(), 0u128);
    let (mut events, mut entries, mut answered) = (0, 0, 0);
    let (done, failed) = run_from(first, limits, |seed| {
        let report = run_cluster(ClusterConfig { seed, ..config })?;
        marks.add(&report.marks);
        events += report.events;
        entries += report.entries;
        answered += report.answered;
        hash = hash.rotate_left(1) ^ report.hash;
        Ok::<_, Box<ClusterFailure>>(())
    });
    print(marks);
    print(format_args!(
        "{done} seeds from {first} of {} nodes: {failed} failed; {events} events, {entries} entries, {answered} answers, {:.1} s, \
         hash {hash:032x}",
        config.nodes,
        begun.elapsed().as_secs_f64()
    ));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_seeds(config: Config, limits: Limits) -> ExitCode {
    let (first, begun) = (config.seed, Instant::now());
    let (mut marks, mut hash) = (Marks::default(), 0u128);
    let (mut events, mut entries, mut answered, mut lives, mut cuts) = (0, 0, 0, 0, 0);
    let (done, failed) = run_from(first, limits, |seed| {
        let report = run(Config { seed, ..config })?;
        marks.add(&report.marks);
        events += report.events;
        entries += report.entries;
        answered += report.answered;
        lives += report.lives;
        cuts += report.cuts;
        hash = hash.rotate_left(1) ^ report.hash;
        Ok::<_, Box<Failure>>(())
    });
    print(marks);
    print(format_args!(
        "{done} seeds from {first}: {failed} failed; {events} events, {entries} entries, {answered} answers, {lives} lives, \
         {cuts} cuts, {:.1} s, hash {hash:032x}",
        begun.elapsed().as_secs_f64()
    ));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_bugs(first: u64, seeds: u64) -> ExitCode {
    // Some bugs end in a panic: the table shows its message.
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = 0;
    print(format_args!("{:<25} {:>15} {:>6} {:>6}  found as", "bug", "breaks", "seeds", "others"));
    for &bug in Bug::ALL {
        let is_read = plant(bug.name(), bug.breaks(), (first, seeds), &mut missed, |seed| {
            let failure = run(Config { seed, events: BUG_EVENTS, bug: Some(bug), trace: false }).err()?;
            Some((bug.is_shown_by(&failure.violation), failure.to_string()))
        });
        if !is_read {
            return ExitCode::FAILURE;
        }
    }
    for bug in ClusterBug::ALL {
        let config = ClusterConfig { seed: 0, nodes: 3, events: BUG_EVENTS, bug: Some(bug), trace: false };
        let is_read = plant(bug.name(), bug.breaks(), (first, seeds), &mut missed, |seed| {
            let failure = run_cluster(ClusterConfig { seed, ..config }).err()?;
            Some((bug.is_shown_by(&failure.violation), failure.to_string()))
        });
        if !is_read {
            return ExitCode::FAILURE;
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Events of a run with a planted bug before its faults end.
const BUG_EVENTS: u64 = 2000;

/// Runs seeds with a planted bug until the check of an invariant that it breaks finds it, and prints the result. `run` returns the
/// failure of a seed, and whether it shows the bug: a violation of another invariant shows nothing about the check of this one.
/// Returns false if the reader of standard output is gone.
fn plant(
    name: &str,
    breaks: &[u8],
    (first, seeds): (u64, u64),
    missed: &mut u32,
    mut run: impl FnMut(u64) -> Option<(bool, String)>,
) -> bool {
    let breaks = breaks.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
    let mut others = 0;
    let found = (0..seeds).find_map(|n| {
        let (is_it, failure) = run(first.wrapping_add(n))?;
        others += u64::from(!is_it);
        // The message of a panic may have its backtrace.
        is_it.then(|| (n + 1, failure.lines().next().unwrap_or_default().to_owned()))
    });
    match found {
        Some((n, failure)) => print(format_args!("{name:<25} {breaks:>15} {n:>6} {others:>6}  {failure}")),
        None => {
            *missed += 1;
            print(format_args!(
                "{name:<25} {breaks:>15} {seeds:>6} {others:>6}  NOT CAUGHT from seed {first}"
            ))
        }
    }
}
