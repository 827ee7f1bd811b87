//! Kills applications on Stead at random moments, or cuts the power of the disk that they write to, and compares their
//! state with their answers.
//!
//!     stead-chaos kills --app bank --kills 500
//!     stead-chaos kills --app innocents --kills 20 --life-max-ms 3000
//!     stead-chaos power --cuts 100            (as root: it mounts a file system of its own)
//!     stead-chaos cluster --seconds 1800      (several nodes, whose links are cut, too)

#![deny(unsafe_code)]

/// Prints a line. Goes on if its reader is gone: the run ends its processes, and the exit code still says whether all held.
macro_rules! print_line {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        drop(writeln!(std::io::stdout(), $($line)*));
    }};
}

#[path = "../../stead/examples/bank/bank.rs"]
mod account;
mod bank;
mod cluster;
mod flights;
mod innocents;
mod ledger;
mod power;

use clap::{Args, Parser, Subcommand, ValueEnum};
use power::{PowerCut, Skipped};
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use stead_flights::conductor::{Executioner, Sigkill};

/// Kill applications on Stead, and check that nothing is lost or doubled
#[derive(Debug, Parser)]
#[command(
    name = "stead-chaos",
    after_help = "Example:\n  stead-chaos kills --app bank --kills 500\n  stead-chaos power --cuts 100 --seed 7\n  stead-chaos cluster --seconds 1800"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Kill the application with SIGKILL at random moments, recovery included
    #[command(after_help = "Example:\n  stead-chaos kills --app flights --kills 500 --seed 7")]
    Kills {
        /// Number of kills
        #[arg(long, default_value_t = 500, value_name = "N")]
        kills: u32,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Cut the power: shut the file system down without flushing its log, and mount it again
    #[command(
        after_help = "Example:\n  stead-chaos power --cuts 100\n\nNeeds root, loop devices and ext4; without them it prints the reason and does nothing."
    )]
    Power {
        /// Number of power cuts
        #[arg(long, default_value_t = 100, value_name = "N")]
        cuts: u32,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Kill, pause and cut off the nodes of a cluster while clients call it, and check the history of each register and the bank
    #[command(
        after_help = "Example:\n  stead-chaos cluster --seconds 1800\n  stead-chaos cluster --nodes 5 --seed 7 --json\n\nOne node has a file system of its own, whose power is cut and which is filled: that needs root, loop devices and ext4."
    )]
    Cluster {
        #[command(flatten)]
        run: cluster::ClusterArgs,
    },
    /// Run a node of the cluster
    #[command(hide = true)]
    Node {
        #[command(flatten)]
        node: Box<cluster::node::NodeArgs>,
    },
    /// Run the bank, which reads its commands from standard input
    #[command(hide = true)]
    BankChild,
    /// Run the flights application, which reads its commands from standard input
    #[command(hide = true)]
    FlightsChild,
    /// Run messages and tasks beside one that ends the process
    #[command(hide = true)]
    InnocentsChild,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Application to kill
    #[arg(long, value_enum, default_value_t = App::Bank)]
    app: App,
    /// Seed of all random choices; by default a new one, which is printed
    #[arg(long)]
    seed: Option<u64>,
    /// Longest time until a kill, counted from when the application is ready, or, for one in four, from its start
    #[arg(long, default_value_t = 500, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    life_max_ms: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum App {
    /// Transfers between accounts
    Bank,
    /// Flights through aircraft, airports and carriers
    Flights,
    /// 1,000 messages and 100 tasks beside a message that ends the process: nothing else may be given up
    Innocents,
}

/// Settings of a run.
struct Run<'a> {
    /// File of this program.
    program: PathBuf,
    /// Directory of the run's files.
    dir: &'a Path,
    /// Directory of the application's data.
    data_dir: &'a Path,
    kills: u32,
    seed: u64,
    life_max: Duration,
}

impl Run<'_> {
    fn command(&self, child: &str) -> Vec<OsString> {
        vec![self.program.clone().into(), child.into()]
    }
}

fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Kills { kills, run } => kill(kills, &run),
        Command::Power { cuts, run } => cut_power(cuts, &run),
        Command::Cluster { run } => cluster::run(&run),
        Command::Node { node } => cluster::node::serve(&node).map(|()| true).map_err(Into::into),
        Command::BankChild => bank::serve().map(|()| true).map_err(Into::into),
        Command::FlightsChild => stead_flights::child::run().map(|()| true).map_err(Into::into),
        Command::InnocentsChild => innocents::serve().map(|()| true).map_err(Into::into),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn kill(kills: u32, args: &RunArgs) -> Result<bool, Box<dyn Error>> {
    let dir = tempfile::Builder::new().prefix("stead-chaos-").tempdir()?;
    let data_dir = dir.path().to_owned();
    let held = run(args, kills, dir.path(), &data_dir, &mut Sigkill);
    keep_unless(dir, held)
}

fn cut_power(cuts: u32, args: &RunArgs) -> Result<bool, Box<dyn Error>> {
    let dir = tempfile::Builder::new().prefix("stead-chaos-").tempdir()?;
    let mut power = match PowerCut::new(dir.path()) {
        Ok(power) => power,
        Err(Skipped { reason }) => {
            print_line!("skipped: power cuts are not possible here: {reason}");
            return Ok(true);
        }
    };
    let mount = power.mount_point().to_owned();
    let held = run(args, cuts, dir.path(), &mount, &mut power);
    drop(power);
    keep_unless(dir, held)
}

/// Keeps the files of a failed run as evidence.
fn keep_unless(dir: tempfile::TempDir, held: Result<bool, Box<dyn Error>>) -> Result<bool, Box<dyn Error>> {
    if !matches!(held, Ok(true)) {
        eprintln!("the files of the run are kept in {}", dir.keep().display());
    }
    held
}

fn run(
    args: &RunArgs,
    kills: u32,
    dir: &Path,
    data_dir: &Path,
    executioner: &mut dyn Executioner,
) -> Result<bool, Box<dyn Error>> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let life_max = Duration::from_millis(args.life_max_ms);
    let run = Run { program: std::env::current_exe()?, dir, data_dir, kills, seed, life_max };
    print_line!("{:?}: {kills} times, lives of up to {} ms, --seed {seed}", args.app, args.life_max_ms);
    let begun = Instant::now();
    let held = match args.app {
        App::Bank => bank::run(&run, executioner)?,
        App::Flights => flights::run(&run, executioner)?,
        App::Innocents => innocents::run(&run, executioner)?,
    };
    print_line!(
        "{} after {:.0} s",
        if held { "holds" } else { "does NOT hold" },
        begun.elapsed().as_secs_f64()
    );
    Ok(held)
}
