//! How many messages between processes, and how many answered calls, a node handles in a second on this machine.
//!
//! `cargo bench -p stead --bench messages -- [messages|calls|caller] [seconds]`

use mimalloc::MiMalloc;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use stead::{CheckpointOptions, Context, Never, NoQuery, Node, Process, ServiceOptions};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

static HANDLED: AtomicU64 = AtomicU64::new(0);
const PROCESSES: u64 = 100_000;

/// A process of 100 bytes that passes each message on to another one.
#[derive(Serialize, Deserialize)]
struct Hopper {
    hops: u64,
    padding: String,
}

impl Default for Hopper {
    fn default() -> Self {
        Self { hops: 0, padding: "x".repeat(80) }
    }
}

#[derive(Serialize, Deserialize)]
enum Ask {
    Hop,
    Count,
    Seed { from: u64, to: u64 },
}

impl Process for Hopper {
    const SERVICE: &'static str = "hopper";
    type Key = u64;
    type Request = Ask;
    type Reply = u64;
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Ask) -> Result<u64, Never> {
        match request {
            Ask::Hop => {
                self.hops += 1;
                HANDLED.fetch_add(1, Ordering::Relaxed);
                let next = ctx.random().u64(0..PROCESSES);
                ctx.send::<Self>(&next, Ask::Hop);
            }
            Ask::Count => self.hops += 1,
            Ask::Seed { from, to } => (from..to).for_each(|key| ctx.send::<Self>(&key, Ask::Hop)),
        }
        Ok(self.hops)
    }
}

fn open(dir: &std::path::Path) -> Node {
    Node::builder(dir)
        .service::<Hopper>(ServiceOptions::default().shards(64))
        .threads(2)
        .checkpoints(CheckpointOptions { interval: Some(Duration::from_secs(1)), ..Default::default() })
        .open()
        .expect("the bench's directory can be opened")
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let what = args.next().unwrap_or_else(|| "all".to_owned());
    let seconds: u64 = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(5);
    if what == "messages" || what == "all" {
        messages(seconds);
    }
    if what == "calls" || what == "all" {
        calls(256, seconds);
    }
    if what == "caller" || what == "all" {
        calls(1, seconds);
    }
}

fn messages(seconds: u64) {
    let dir = tempfile::tempdir_in(".").expect("a directory for the data");
    let node = open(dir.path());
    let client = node.blocking_client();
    for from in (0..PROCESSES).step_by(10_000) {
        client
            .call::<Hopper>(&from, Ask::Seed { from, to: from + 10_000 })
            .expect("the bench's node answers");
    }
    let mut last = (HANDLED.load(Ordering::Relaxed), Instant::now(), node.metrics());
    for _ in 0..seconds {
        std::thread::sleep(Duration::from_secs(1));
        let now = (HANDLED.load(Ordering::Relaxed), Instant::now(), node.metrics());
        let took = (now.1 - last.1).as_secs_f64();
        let rate = |count: u64| (count as f64 / took).round();
        let syncs = now.2.log_syncs - last.2.log_syncs;
        println!(
            "messages/s {:>9}  entries/s {:>9}  log MB/s {:>6.1}  syncs/s {syncs:>5}  sync mean {:>5} us  checkpoints {}  stall {} us",
            rate(now.0 - last.0),
            rate(now.2.entries - last.2.entries),
            (now.2.entry_bytes - last.2.entry_bytes) as f64 / 1e6 / took,
            (now.2.log_sync_micros - last.2.log_sync_micros) / syncs.max(1),
            now.2.checkpoints,
            now.2.checkpoint_stall_micros,
        );
        last = now;
    }
    node.kill();
}

fn calls(callers: usize, seconds: u64) {
    let dir = tempfile::tempdir_in(".").expect("a directory for the data");
    let node = open(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let until = Instant::now() + Duration::from_secs(seconds);
    let begun = Instant::now();
    let latencies = local.block_on(&runtime, async {
        let tasks: Vec<_> = (0..callers)
            .map(|_| {
                let client = node.client();
                tokio::task::spawn_local(async move {
                    let mut latencies = Vec::new();
                    while Instant::now() < until {
                        let begun = Instant::now();
                        let key = fastrand::u64(0..PROCESSES);
                        client.call::<Hopper>(&key, Ask::Count).await.expect("the bench's node answers");
                        latencies.push(begun.elapsed());
                    }
                    latencies
                })
            })
            .collect();
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await.expect("no caller panics"));
        }
        latencies
    });
    let took = begun.elapsed().as_secs_f64();
    let mut sorted = latencies;
    sorted.sort_unstable();
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize].as_micros();
    let metrics = node.metrics();
    println!(
        "{callers} callers: answers/s {:>8.0}  p50 {} us  p99 {} us  p99.9 {} us  syncs/s {:.0}  sync mean {} us",
        sorted.len() as f64 / took,
        at(0.5),
        at(0.99),
        at(0.999),
        metrics.log_syncs as f64 / took,
        metrics.log_sync_micros / metrics.log_syncs.max(1),
    );
    node.kill();
}
