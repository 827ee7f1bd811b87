//! Answered requests of callers in the same process, every entry synced: many async callers, and one blocking caller.

use super::callers::{Calls, drive};
use super::figures::{Goal, Report, median, quantile};
use super::room::Room;
use super::{BenchArgs, failed, machine};
use crate::failure::Failure;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use stead::{Client, Context, Never, NoQuery, Node, Process, ServiceOptions};

const WORKLOAD: &str = "requests";
const PROCESSES: u32 = 100_000;
const SHARDS: u32 = 64;

/// A process that counts its requests.
#[derive(Default, Serialize, Deserialize)]
struct Tally {
    total: u64,
}

/// Add to a tally.
#[derive(Serialize, Deserialize)]
struct Add(u64);

impl Process for Tally {
    const SERVICE: &'static str = "tally";
    type Key = u32;
    type Request = Add;
    type Reply = u64;
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, _: &mut Context<'_, Self>, Add(more): Add) -> Result<u64, Never> {
        self.total += more;
        Ok(self.total)
    }
}

pub(super) fn run(args: &BenchArgs, report: &mut Report) -> Result<(), Failure> {
    let room = Room::new(args)?;
    let node = Node::builder(room.path())
        .service::<Tally>(ServiceOptions::default().shards(SHARDS))
        .open()
        .map_err(|error| failed("open a node")(&error))?;
    let client = node.client();
    let warm_up = Duration::from_secs(2).min(args.round());
    many(&client, args.callers, warm_up)?;

    let (mut rates, mut p50, mut p999) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        let calls = many(&client, args.callers, args.round())?;
        rates.push(calls.rate());
        p50.push(quantile(&calls.micros, 0.5) / 1e3);
        p999.push(quantile(&calls.micros, 0.999) / 1e3);
    }
    let callers = args.callers;
    report.add(
        WORKLOAD,
        format!("answered, {callers} callers"),
        "1/s",
        &rates,
        Some(Goal::AtLeast(200_000.0)),
    );
    report.add(WORKLOAD, format!("p50, {callers} callers"), "ms", &p50, None);
    report.add(WORKLOAD, format!("p99.9, {callers} callers"), "ms", &p999, None);

    let (mut alone, mut over, mut fsyncs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        let mut fsync = machine::fsync_millis(room.path(), 4096, args.round() / 4)?;
        fsync.sort_by(f64::total_cmp);
        let fsync = median(&fsync);
        let micros = one(&node, args.round())?;
        let p50 = quantile(&micros, 0.5) / 1e3;
        fsyncs.push(fsync);
        alone.push(p50);
        over.push((p50 - fsync) * 1e3);
    }
    node.shutdown();
    report.add(WORKLOAD, "p50, 1 caller", "ms", &alone, None);
    report.add(WORKLOAD, "fsync of 4 KiB, in between", "ms", &fsyncs, None);
    report.add(WORKLOAD, "1 caller over one fsync", "us", &over, Some(Goal::AtMost(150.0)));
    Ok(())
}

/// Runs async callers of random processes.
fn many(client: &Client, callers: u32, time: Duration) -> Result<Calls, Failure> {
    let client = client.clone();
    drive(callers, time, move || {
        let client = client.clone();
        async move { client.call::<Tally>(&fastrand::u32(..PROCESSES), Add(1)).await.map(|_| ()) }
    })
}

/// Runs one blocking caller; returns its sorted latencies in microseconds.
fn one(node: &Node, time: Duration) -> Result<Vec<u32>, Failure> {
    let client = node.blocking_client();
    let start = Instant::now();
    let mut micros = Vec::new();
    while start.elapsed() < time {
        let begun = Instant::now();
        client
            .call::<Tally>(&fastrand::u32(..PROCESSES), Add(1))
            .map_err(|error| failed("call a process")(&error))?;
        micros.push(begun.elapsed().as_micros() as u32);
    }
    micros.sort_unstable();
    Ok(micros)
}
