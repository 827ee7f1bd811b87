//! A cluster of real processes under faults, while clients call it.
//!
//! The clients know all nodes, by the native protocol and over HTTP. The history of each register has to be linearizable, the bank
//! has to keep its money, and what was answered has to be there at the end. A run consists of episodes, each with a cluster of its own.

mod clients;
mod faults;
mod linearizable;
pub(crate) mod node;
mod registers;
mod transfers;

use crate::keep_unless;
use crate::power::Skipped;
use clap::Args;
use clients::{Client, Http, Reasons};
use faults::{Disk, Faults};
use registers::Registers;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use stead_local::{LocalCluster, Options};
use transfers::Transfers;

/// Longest episode: the log of a cluster grows for as long as it runs.
const EPISODE_MAX: Duration = Duration::from_secs(60);
/// Clients of each kind, native and HTTP, that use registers, and that make transfers.
const REGISTER_CLIENTS: usize = 4;
const TRANSFER_CLIENTS: usize = 2;
/// Time in which nodes have to get ready, and a cluster whole.
const READY_MAX: Duration = Duration::from_secs(90);
/// Pause between two searches of histories.
const SEARCH_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(3..=7))]
    nodes: u16,
    /// Time for which faults are made
    #[arg(long, default_value_t = 120, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Seed of all random choices; by default a new one, which is printed
    #[arg(long)]
    seed: Option<u64>,
    /// Print one JSON document at the end
    #[arg(long)]
    json: bool,
}

/// The outcome of an episode.
#[derive(Debug, Default, Serialize)]
struct Episode {
    seed: u64,
    holds: bool,
    faults: BTreeMap<&'static str, u64>,
    registers: registers::Report,
    transfers: transfers::Report,
    /// The reason for which it ended early.
    failure: Option<String>,
    /// The reasons for which requests had no answer, or had to be repeated over HTTP.
    reasons: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct Run {
    nodes: u16,
    seed: u64,
    holds: bool,
    /// The reason for which no power was cut and no disk filled.
    skipped: Option<String>,
    episodes: Vec<Episode>,
}

/// Runs a cluster under faults, and returns whether every guarantee holds.
pub(crate) fn run(args: &ClusterArgs) -> Result<bool, Box<dyn Error>> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let say = |line: String| {
        if !args.json {
            print_line!("{line}");
        }
    };
    say(format!("cluster of {} nodes for {} s, --seed {seed}", args.nodes, args.seconds));
    let mut run = Run { nodes: args.nodes, seed, holds: true, skipped: None, episodes: Vec::new() };
    let mut left = Duration::from_secs(args.seconds);
    while !left.is_zero() && run.holds {
        let time = left.min(EPISODE_MAX);
        left -= time;
        let dir = tempfile::Builder::new().prefix("stead-chaos-").tempdir()?;
        let seed = seed.wrapping_add(run.episodes.len() as u64);
        let (episode, skipped) = episode(args.nodes, seed, dir.path(), time);
        if let Some(skipped) = skipped.filter(|_| run.skipped.is_none()) {
            say(format!("skipped: power cuts and full disks are not possible here: {skipped}"));
            run.skipped = Some(skipped);
        }
        say(describe(&episode));
        if !episode.holds {
            std::fs::write(dir.path().join("episode.json"), serde_json::to_vec_pretty(&episode)?)?;
        }
        run.holds = keep_unless(dir, Ok(episode.holds))?;
        run.episodes.push(episode);
    }
    if args.json {
        print_line!("{}", serde_json::to_string(&run)?);
    } else {
        print_line!("{}", if run.holds { "holds" } else { "does NOT hold" });
    }
    Ok(run.holds)
}

fn describe(episode: &Episode) -> String {
    let faults: Vec<_> = episode.faults.iter().map(|(kind, times)| format!("{kind} {times}")).collect();
    let (registers, transfers) = (&episode.registers, &episode.transfers);
    let mut text = format!(
        "seed {}: {}; {} registers, {} operations, {} without an answer, longest {} ms; {} transfers, {} refused",
        episode.seed,
        faults.join(", "),
        registers.registers,
        registers.operations,
        registers.unknown,
        registers.longest_ms,
        transfers.answered,
        transfers.refused,
    );
    text.push_str(&format!(
        "; contradicted {}, wrong accounts {}, balances {} of {}",
        transfers.contradicted, transfers.wrong, transfers.balances, transfers.paid_in
    ));
    for violation in &registers.violations {
        text.push_str(&format!("\nregister {}: {}", violation.key, violation.what));
    }
    for failure in [&episode.failure, &transfers.failure].into_iter().flatten() {
        text.push_str(&format!("\n{failure}"));
    }
    if !episode.holds {
        for (reason, times) in &episode.reasons {
            text.push_str(&format!("\n{times} times: {reason}"));
        }
    }
    text
}

/// Runs one cluster. Returns as well why there is no disk whose power can be cut.
fn episode(nodes: u16, seed: u64, dir: &Path, time: Duration) -> (Episode, Option<String>) {
    let mut episode = Episode { seed, ..Episode::default() };
    let data = dir.join("nodes");
    let last = data.join(format!("n{nodes}"));
    let disk = std::fs::create_dir(&data)
        .map_err(|error| Skipped { reason: error.to_string() })
        .and_then(|()| Disk::new(dir, &last));
    let (mut disk, skipped) = match disk {
        Ok(disk) => (Some(disk), None),
        Err(Skipped { reason }) => (None, Some(reason)),
    };
    let reasons = Reasons::default();
    if let Err(error) = live(&mut episode, nodes, &data, disk.as_mut(), time, &reasons) {
        episode.failure = Some(error.to_string());
    }
    episode.reasons = reasons.take();
    let registers = &episode.registers;
    episode.holds = episode.failure.is_none()
        && registers.violations.is_empty()
        && registers.operations > registers.unknown
        && episode.transfers.holds();
    (episode, skipped)
}

fn live(
    episode: &mut Episode,
    nodes: u16,
    data: &Path,
    disk: Option<&mut Disk>,
    time: Duration,
    reasons: &Reasons,
) -> Result<(), Box<dyn Error>> {
    let options = Options {
        command: vec!["node".into()],
        links: true,
        ready_time_max: READY_MAX,
        ..Options::default()
    };
    let mut cluster = LocalCluster::start(&std::env::current_exe()?, nodes, data, options)?;
    let (native, http) = (cluster.native(), cluster.http());
    replicate(&mut Http::new(&http, 0), nodes, reasons)?;

    let mut own = [Client::native(&native)?, Client::http(&http, 0)];
    let (registers, transfers) = (Registers::new(), Transfers::new());
    transfers.finish(&mut own, reasons)?;
    let stops = AtomicBool::new(false);
    let mut rng = fastrand::Rng::with_seed(episode.seed);
    let mut report = registers::Report::default();
    let mut clients = Vec::new();
    for at in 0..REGISTER_CLIENTS + TRANSFER_CLIENTS {
        // Some share a connection.
        clients.push(if at % 2 == 0 { own[0].clone() } else { Client::native(&native)? });
        clients.push(Client::http(&http, at % usize::from(nodes)));
    }
    let faulted = thread::scope(|scope| {
        for (at, mut client) in clients.into_iter().enumerate() {
            let (registers, transfers, stops, seed) = (&registers, &transfers, &stops, rng.u64(..));
            scope.spawn(move || match at < 2 * REGISTER_CLIENTS {
                true => registers.run(&mut client, seed, stops, reasons),
                false => transfers.run(&mut client, seed, stops, reasons),
            });
        }
        let (registers, report, stops) = (&registers, &mut report, &stops);
        let mut client = own[0].clone();
        scope.spawn(move || {
            while !stops.load(Ordering::Relaxed) {
                registers.check(&mut client, false, report, reasons);
                thread::sleep(SEARCH_EVERY);
            }
        });
        let mut faults = Faults::new(&mut cluster, disk, rng.u64(..));
        let faulted = faults.run(time, READY_MAX);
        episode.faults = std::mem::take(&mut faults.counts);
        stops.store(true, Ordering::Relaxed);
        faulted
    });
    let until = Instant::now() + READY_MAX;
    while registers.is_left() && Instant::now() < until {
        registers.check(&mut own[0], true, &mut report, reasons);
    }
    registers.check_kept(&mut own[0], &mut report, reasons);
    let is_left = registers.is_left();
    episode.registers = report;
    episode.transfers = transfers.check(&mut own, reasons);
    faulted?;
    if is_left {
        return Err("registers cannot be read after all was healed".into());
    }
    Ok(())
}

/// Gives each shard its replicas, and waits until the cluster is whole.
fn replicate(http: &mut Http, nodes: u16, reasons: &Reasons) -> Result<(), Box<dyn Error>> {
    for (service, replicas) in [("kv", 3), ("account", nodes)] {
        let path = format!("/v1/cluster/services/{service}/dial?replicas={replicas}");
        let set = http.post(&path, &Value::Null, &[], READY_MAX, reasons);
        set.ok_or_else(|| format!("the dial of {service} cannot be set"))?
            .map_err(|error| format!("the dial of {service} is refused: {error}"))?;
    }
    let until = Instant::now() + READY_MAX;
    loop {
        let status = http.get("/v1/cluster");
        if status.as_ref().is_ok_and(|status| is_whole(status, nodes)) {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(format!("the cluster is not whole: {status:?}").into());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn is_whole(status: &Value, nodes: u16) -> bool {
    let all = |list: &str, holds: &dyn Fn(&Value) -> bool| {
        status[list].as_array().is_some_and(|all| !all.is_empty() && all.iter().all(holds))
    };
    let replicas = |shard: &Value| if shard["service"] == "kv" { 3 } else { usize::from(nodes) };
    let voters =
        status["nodes"].as_array().map_or(0, |all| all.iter().filter(|node| node["votes"] == true).count());
    let wanted = usize::from(nodes.min(5)) - usize::from(nodes.min(5).is_multiple_of(2));
    voters == wanted
        && status["is_balancing"] == false
        && all("shards", &|shard| {
            shard["is_active"] == true
                && shard["members"].as_array().is_some_and(|all| all.len() == replicas(shard))
        })
}
