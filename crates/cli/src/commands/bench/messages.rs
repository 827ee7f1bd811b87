//! Messages from process to process: exactly once, every entry synced, a checkpoint each second.

use super::callers::runtime;
use super::figures::{Goal, Report};
use super::hop::{Hop, PROCESSES, Query, Request, STOPPED, counted};
use super::room::Room;
use super::{BenchArgs, failed, usage};
use crate::failure::{Exit, Failure};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use stead::{CheckpointOptions, Client, Node, ServiceOptions};

const WORKLOAD: &str = "messages";
const SHARDS: u32 = 64;
/// Processes that send the first messages.
const BEGINNERS: u32 = 256;
/// Messages of each process before the first round: every process then has its state, and the log its segments.
const WARM_UP: u64 = 20;
/// Longest wait for the warm-up, and for the last messages to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn run(args: &BenchArgs, report: &mut Report) -> Result<(), Failure> {
    let room = Room::new(args)?;
    let node = Node::builder(room.path())
        .service::<Hop>(ServiceOptions::default().shards(SHARDS).outbox_bytes_max(1 << 30))
        .checkpoints(CheckpointOptions {
            interval: Some(Duration::from_secs(1)),
            ..CheckpointOptions::default()
        })
        .open()
        .map_err(|error| failed("open a node")(&error))?;
    STOPPED.store(false, Ordering::Relaxed);
    let before = counted();
    let client = node.blocking_client();
    for beginner in 0..BEGINNERS {
        let messages = (args.in_flight + beginner) / BEGINNERS;
        client.call::<Hop>(&beginner, Request::Begin(messages)).map_err(|error| failed("begin")(&error))?;
    }
    wait("the warm-up", || counted() - before >= WARM_UP * u64::from(PROCESSES))?;

    let mut rates = Vec::new();
    let mut entries_each_sync = Vec::new();
    let mut syncs = Vec::new();
    let mut log_rates = Vec::new();
    let mut processor = Vec::new();
    let mut by_thread = std::collections::BTreeMap::<String, Vec<f64>>::new();
    for _ in 0..args.rounds {
        let (start, count, metrics, threads) = (Instant::now(), counted(), node.metrics(), usage::threads());
        std::thread::sleep(args.round());
        let (count_end, metrics_end) = (counted(), node.metrics());
        let seconds = start.elapsed().as_secs_f64();
        let received = (count_end - count) as f64;
        let log_syncs = (metrics_end.log_syncs - metrics.log_syncs) as f64;
        rates.push(received / seconds);
        entries_each_sync.push((metrics_end.entries - metrics.entries) as f64 / log_syncs);
        syncs.push((metrics_end.log_sync_micros - metrics.log_sync_micros) as f64 / log_syncs / 1e3);
        log_rates.push((metrics_end.entry_bytes - metrics.entry_bytes) as f64 / seconds / 1e6);
        let used = usage::nanos_each(&threads, &usage::threads(), received);
        processor.push(used.values().sum());
        for (name, nanos) in used.into_iter().filter(|(_, nanos)| *nanos >= 10.0) {
            by_thread.entry(name).or_default().push(nanos);
        }
    }
    STOPPED.store(true, Ordering::Relaxed);
    let checkpoints = node.metrics().checkpoints;
    wait("the last messages", || node.status().shards.iter().all(|shard| shard.outbox_messages == 0))?;
    let handled = counted() - before;
    let received = received(&node.client())?;
    if handled != received {
        return Err(Failure::new(
            Exit::Failed,
            format!("{handled} messages were handled, and the processes have received {received}"),
        ));
    }
    node.shutdown();

    report.add(WORKLOAD, "messages received", "1/s", &rates, Some(Goal::AtLeast(1e6)));
    report.add(WORKLOAD, "processor time of a message", "ns", &processor, None);
    for (name, nanos) in by_thread {
        report.add(WORKLOAD, format!("  of it {name}"), "ns", &nanos, None);
    }
    report.add(WORKLOAD, "entries in a sync", "", &entries_each_sync, None);
    report.add(WORKLOAD, "time of a write and its sync", "ms", &syncs, None);
    report.add(WORKLOAD, "entries' bytes logged", "MB/s", &log_rates, None);
    report.add(WORKLOAD, "checkpoints completed", "", &[checkpoints as f64], None);
    Ok(())
}

/// Waits until another thread has made the condition true.
pub(super) fn wait(what: &str, mut is_done: impl FnMut() -> bool) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    while !is_done() {
        if Instant::now() > until {
            return Err(Failure::new(
                Exit::Failed,
                format!("the measurement failed: {what} took more than {} s", PATIENCE.as_secs()),
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Sums what all processes have received, according to their committed state.
fn received(client: &Client) -> Result<u64, Failure> {
    const AT_A_TIME: u32 = 64;
    let runtime = runtime()?;
    let askers: Vec<_> = (0..AT_A_TIME)
        .map(|first| {
            let client = client.clone();
            runtime.spawn(async move {
                let mut sum = 0;
                for key in (first..PROCESSES).step_by(AT_A_TIME as usize) {
                    sum += u64::from(client.query::<Hop>(&key, Query::Received).await?);
                }
                Ok::<u64, stead::CallError<stead::Never>>(sum)
            })
        })
        .collect();
    runtime.block_on(async {
        let mut sum = 0;
        for asker in askers {
            let part = asker.await.map_err(|error| failed("ask")(&error))?;
            sum += part.map_err(|error| failed("ask a process")(&error))?;
        }
        Ok(sum)
    })
}
