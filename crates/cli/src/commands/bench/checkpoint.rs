//! Cost of checkpoints of a large state: throughput and latency with and without, and bytes written.

use super::block::{self, Block, Request};
use super::callers::{Calls, drive, runtime};
use super::figures::{Goal, Report, quantile};
use super::messages::wait;
use super::room::Room;
use super::{BenchArgs, failed, usage};
use crate::failure::Failure;
use std::collections::HashSet;
use std::time::{Duration, Instant};
use stead::{CallError, CheckpointOptions, Never, Node, ServiceOptions};

const WORKLOAD: &str = "checkpoint";
const SHARDS: u32 = 64;
/// Body of a process that stores 1,000 bytes, with its names, version and counter.
pub(super) const BODY: u32 = 975;
/// Checkpoints taken to measure the written bytes.
const CHECKPOINTS: u32 = 20;
/// Between two checkpoints, one process of this many changes.
const CHANGED: u32 = 100;
/// Callers that change processes during the measurement.
const CALLERS: u32 = 256;
const EACH_SECOND: Option<Duration> = Some(Duration::from_secs(1));
/// Shortest interval between checkpoints: the next one begins at once.
const AT_ONCE: Option<Duration> = Some(Duration::from_millis(10));

pub(super) fn run(args: &BenchArgs, report: &mut Report) -> Result<(), Failure> {
    let room = Room::new(args)?;
    let node = Node::builder(room.path())
        .service::<Block>(ServiceOptions::default().shards(SHARDS).outbox_bytes_max(1 << 30))
        .checkpoints(CheckpointOptions { interval: None, ..CheckpointOptions::default() })
        .open()
        .map_err(|error| failed("open a node")(&error))?;
    block::populate(&node, args.processes, BODY)?;
    let state_bytes: u64 = node.status().shards.iter().map(|shard| shard.records_bytes).sum();
    report.add(WORKLOAD, "state", "MB", &[state_bytes as f64 / 1e6], None);

    let begun = Instant::now();
    one(&node)?;
    report.add(WORKLOAD, "first checkpoint, of everything", "s", &[begun.elapsed().as_secs_f64()], None);
    // Runs first, so that it counts no merge that the load of the other measurement causes.
    bytes(args, &node, state_bytes, report)?;
    side_by_side(args, &node, report)?;
    node.shutdown();
    Ok(())
}

/// Takes one checkpoint without the services' checks, which would read the whole state.
pub(super) fn one(node: &Node) -> Result<(), Failure> {
    quiet(node)?;
    let before = node.metrics().checkpoints;
    node.set_checkpoint_interval(AT_ONCE).expect("no shard has other replicas");
    wait("a checkpoint", || {
        node.status().checkpoint_running.is_some() || node.metrics().checkpoints > before
    })?;
    quiet(node)?;
    wait("a checkpoint", || node.metrics().checkpoints > before)
}

/// Stops further checkpoints, and waits for the end of the running one.
fn quiet(node: &Node) -> Result<(), Failure> {
    node.set_checkpoint_interval(None).expect("no shard has other replicas");
    wait("the end of a checkpoint", || node.status().checkpoint_running.is_none())
}

fn side_by_side(args: &BenchArgs, node: &Node, report: &mut Report) -> Result<(), Failure> {
    let (mut without, mut with, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    let (mut p999_without, mut p999_with, mut more) = (Vec::new(), Vec::new(), Vec::new());
    let (mut cost_without, mut cost_with) = (Vec::new(), Vec::new());
    let mut checkpoints = 0;
    load(args, node, Duration::from_secs(2).min(args.round()))?;
    for _ in 0..args.rounds {
        quiet(node)?;
        let used = usage::process_seconds();
        let calm = load(args, node, args.round())?;
        cost_without.push((usage::process_seconds() - used) * 1e6 / calm.micros.len() as f64);
        // Changes of the round without checkpoints do not count for the round with one each second.
        one(node)?;
        let before = node.metrics().checkpoints;
        node.set_checkpoint_interval(EACH_SECOND).expect("no shard has other replicas");
        let used = usage::process_seconds();
        let busy = load(args, node, args.round())?;
        cost_with.push((usage::process_seconds() - used) * 1e6 / busy.micros.len() as f64);
        quiet(node)?;
        checkpoints += node.metrics().checkpoints - before;
        without.push(calm.rate());
        with.push(busy.rate());
        shares.push(busy.rate() / calm.rate() * 100.0);
        let millis = |calls: &Calls| quantile(&calls.micros, 0.999) / 1e3;
        p999_without.push(millis(&calm));
        p999_with.push(millis(&busy));
        more.push(millis(&busy) - millis(&calm));
    }
    report.add(WORKLOAD, "answered without checkpoints", "1/s", &without, None);
    report.add(WORKLOAD, "answered with one each second", "1/s", &with, None);
    report.add(WORKLOAD, "throughput with, of that without", "%", &shares, Some(Goal::AtLeast(90.0)));
    report.add(WORKLOAD, "processor time of an answer without", "us", &cost_without, None);
    report.add(WORKLOAD, "processor time of an answer with", "us", &cost_with, None);
    report.add(WORKLOAD, "p99.9 without", "ms", &p999_without, None);
    report.add(WORKLOAD, "p99.9 with", "ms", &p999_with, None);
    report.add(WORKLOAD, "p99.9 more with than without", "ms", &more, Some(Goal::AtMost(5.0)));
    report.add(WORKLOAD, "checkpoints completed meanwhile", "", &[checkpoints as f64], None);
    let stall = node.metrics().checkpoint_stall_micros as f64 / 1e3;
    report.add(WORKLOAD, "longest hold of a worker", "ms", &[stall], None);
    Ok(())
}

/// Runs callers that change random processes.
fn load(args: &BenchArgs, node: &Node, time: Duration) -> Result<Calls, Failure> {
    let (client, processes) = (node.client(), args.processes);
    drive(CALLERS, time, move || {
        let client = client.clone();
        async move { client.call::<Block>(&fastrand::u32(..processes), Request::Touch { bytes: BODY }).await }
    })
}

/// Measures the bytes that checkpoints and compaction write when a share of the processes changes before each.
fn bytes(args: &BenchArgs, node: &Node, state_bytes: u64, report: &mut Report) -> Result<(), Failure> {
    let settled = settled_bytes(node)?;
    let mut durations = Vec::new();
    for _ in 0..CHECKPOINTS {
        change(args, node)?;
        let begun = Instant::now();
        one(node)?;
        durations.push(begun.elapsed().as_secs_f64());
    }
    let written = settled_bytes(node)? - settled;
    let share = written as f64 / f64::from(CHECKPOINTS) / state_bytes as f64 * 100.0;
    report.add(WORKLOAD, "checkpoint after 1 % changed", "s", &durations, None);
    report.add(
        WORKLOAD,
        format!("written for each of {CHECKPOINTS}, with compaction, of the state"),
        "%",
        &[share],
        Some(Goal::AtMost(3.0)),
    );
    Ok(())
}

/// Changes one random process of each [`CHANGED`], once.
fn change(args: &BenchArgs, node: &Node) -> Result<(), Failure> {
    let mut keys = HashSet::new();
    while keys.len() < (args.processes / CHANGED) as usize {
        keys.insert(fastrand::u32(..args.processes));
    }
    let keys: Vec<u32> = keys.into_iter().collect();
    let runtime = runtime()?;
    let callers: Vec<_> = keys
        .chunks(keys.len().div_ceil(CALLERS as usize).max(1))
        .map(|keys| {
            let (client, keys) = (node.client(), keys.to_vec());
            runtime.spawn(async move {
                for key in keys {
                    client.call::<Block>(&key, Request::Touch { bytes: BODY }).await?;
                }
                Ok::<(), CallError<Never>>(())
            })
        })
        .collect();
    runtime.block_on(async {
        for caller in callers {
            let ended = caller.await.map_err(|error| failed("change processes")(&error))?;
            ended.map_err(|error| failed("change a process")(&error))?;
        }
        Ok(())
    })
}

/// Returns the bytes written for checkpoints once compaction has ended.
fn settled_bytes(node: &Node) -> Result<u64, Failure> {
    let mut last = (node.metrics().checkpoint_bytes, Instant::now());
    wait("the end of the compaction", || {
        let now = node.metrics().checkpoint_bytes;
        if now != last.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(1)
    })?;
    Ok(last.0)
}
