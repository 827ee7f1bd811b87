//! A service with replicas on three nodes, which run as child processes, loaded from another process over the native protocol:
//! writes at each position of the dial, reads of each kind, HTTP beside it, and the time that a failover takes.

mod failover;
mod nodes;

use super::figures::{DialRow, Goal, Report, median};
use super::http::child;
use super::load::Answers;
use super::native::{SHARED, clients};
use super::native_load::{Operation, VALUE_BYTES, load};
use super::room::Room;
use super::usage::process_seconds_of;
use super::{BenchArgs, failed};
use crate::failure::{Exit, Failure};
use crate::output;
use nodes::Nodes;
use std::path::Path;
use std::thread;

const WORKLOAD: &str = "cluster";
/// Shards of `kv`, the same number as in `stead start`.
const SHARDS: u32 = 16;
/// The end of the names of figures of a service of one shard.
const ONE_SHARD: &str = ", one shard";
/// Callers over shared connections that show what the nodes can do without a system call for each request.
const MANY: u32 = 1024;
/// Clients that read stale answers beside a load of writes.
const READERS: u32 = 8;

/// Medians of a load.
#[derive(Clone, Copy, Debug, Default)]
struct Medians {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    stale_p50_ms: f64,
    stale_p99_ms: f64,
}

/// The loaded cluster.
struct Target<'a> {
    args: &'a BenchArgs,
    addresses: String,
    /// The processes of the nodes, if they are this program's.
    pids: Vec<u32>,
}

pub(super) fn run(args: &BenchArgs, report: &mut Report) -> Result<(), Failure> {
    if !args.connect.is_empty() {
        let target = Target { args, addresses: args.connect.join(","), pids: Vec::new() };
        load(&target.addresses, Operation::Write, (64, SHARED), args.seconds.min(2))?;
        target.writes(report, "")?;
        return target.reads(report);
    }
    let room = Room::new(args)?;
    one_shard(args, &room.path().join("one"), report)?;
    let mut nodes = Nodes::start(&room.path().join("all"), SHARDS, args.node_threads, false)?;
    let target = Target { args, addresses: nodes.native().join(","), pids: nodes.pids() };
    load(&target.addresses, Operation::Write, (64, SHARED), args.seconds.min(2))?;
    let majority = target.writes(report, "")?;
    target.reads(report)?;
    target.http(report, &nodes.http().join(","))?;
    let stale = target.staleness(report, "")?;
    report.dial(row("2 of 3 (majority)", &majority, stale, "none"));

    nodes.set_dial("acks=3")?;
    nodes.settled(3)?;
    let all = target.some_writes(report, ", W = 3")?;
    let stale = target.staleness(report, ", W = 3")?;
    report.dial(row("3 of 3", &all, stale, "none"));

    nodes.set_dial("acks=1")?;
    nodes.settled(1)?;
    let one = target.some_writes(report, ", W = 1")?;
    let stale = target.staleness(report, ", W = 1")?;
    report.dial(row("1 of 3 (asynchronous)", &one, stale, "the age of the backups' state, at most max_lag"));
    compare_asynchronous(report, "", &one, &majority);
    failover::asynchronous(args, &mut nodes, report)?;

    nodes.set_dial("acks=2")?;
    nodes.settled(2)?;
    failover::synchronous(args, &mut nodes, report)?;
    drop(nodes);
    let mut nodes = Nodes::start(&room.path().join("cut"), SHARDS, args.node_threads, true)?;
    failover::cut_off(args, &mut nodes, report)
}

/// Measures a service of one shard, whose clients all call one primary, as those of a system that has a single log do. In the others the
/// nodes share the primaries, and so each client has a connection to each node.
fn one_shard(args: &BenchArgs, dir: &Path, report: &mut Report) -> Result<(), Failure> {
    let nodes = Nodes::start(dir, 1, args.node_threads, false)?;
    let target = Target { args, addresses: nodes.native().join(","), pids: nodes.pids() };
    load(&target.addresses, Operation::Write, (64, SHARED), args.seconds.min(2))?;
    let majority = target.writes(report, ONE_SHARD)?;
    for clients in [(1, 1), (64, 64), (256, 256), (256, SHARED)] {
        target.measure(report, Operation::Linearizable, clients, ONE_SHARD)?;
    }
    nodes.set_dial("acks=1")?;
    nodes.settled(1)?;
    let one = target.some_writes(report, ", one shard, W = 1")?;
    compare_asynchronous(report, ONE_SHARD, &one, &majority);
    Ok(())
}

/// Compares the writes of an asynchronous service to those of a synchronous one.
fn compare_asynchronous(report: &mut Report, of: &str, one: &[Medians; 3], majority: &[Medians; 3]) {
    let latency = one[0].p50_ms / majority[0].p50_ms;
    let name = format!("p50 of 1 client, W = 1 over majority{of}");
    report.add(WORKLOAD, name, "", &[latency], Some(Goal::AtMost(0.6)));
    let rate = one[2].rate / majority[2].rate;
    let name = format!("rate of 256 clients, W = 1 over majority{of}");
    report.add(WORKLOAD, name, "", &[rate], Some(Goal::AtLeast(1.0)));
}

/// The clients of the loads, each with the number of its connections: the first three have their own.
const CLIENTS: [(u32, u32); 6] = [(1, 1), (64, 64), (256, 256), (64, SHARED), (256, SHARED), (MANY, SHARED)];

fn row(acks: &'static str, writes: &[Medians; 3], stale: Medians, loss: &'static str) -> DialRow {
    let [one, middle, most] = writes;
    DialRow {
        acks,
        p50_ms_1: one.p50_ms,
        rate_1: one.rate,
        rate_64: middle.rate,
        rate_256: most.rate,
        p99_ms_256: most.p99_ms,
        staleness_ms_p50: stale.stale_p50_ms,
        staleness_ms_p99: stale.stale_p99_ms,
        loss,
    }
}

impl Target<'_> {
    /// Measures writes with all clients, and returns the medians of those on their own connections.
    fn writes(&self, report: &mut Report, dial: &str) -> Result<[Medians; 3], Failure> {
        let mut own = [Medians::default(); 3];
        for (at, (callers, connections)) in CLIENTS.into_iter().enumerate() {
            let medians = self.measure(report, Operation::Write, (callers, connections), dial)?;
            if let Some(own) = own.get_mut(at) {
                *own = medians;
            }
        }
        Ok(own)
    }

    /// The same with clients on their own connections only.
    fn some_writes(&self, report: &mut Report, dial: &str) -> Result<[Medians; 3], Failure> {
        let mut own = [Medians::default(); 3];
        for (own, clients) in own.iter_mut().zip(CLIENTS) {
            *own = self.measure(report, Operation::Write, clients, dial)?;
        }
        Ok(own)
    }

    fn reads(&self, report: &mut Report) -> Result<(), Failure> {
        for operation in [Operation::Linearizable, Operation::Primary, Operation::Stale] {
            for clients in [(1, 1), (64, 64), (256, 256), (256, SHARED)] {
                self.measure(report, operation, clients, "")?;
            }
        }
        Ok(())
    }

    fn measure(
        &self,
        report: &mut Report,
        operation: Operation,
        (callers, connections): (u32, u32),
        dial: &str,
    ) -> Result<Medians, Failure> {
        let (mut rates, mut p50, mut p99, mut used) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let seconds = || self.pids.iter().map(|pid| process_seconds_of(*pid)).sum::<f64>();
        for _ in 0..self.args.rounds {
            let before = seconds();
            let loaded = load(&self.addresses, operation, (callers, connections), self.args.seconds)?;
            used.push((seconds() - before) * 1e6 / loaded.answered as f64);
            rates.push(loaded.answered as f64 / loaded.seconds);
            p50.push(loaded.p50_ms);
            p99.push(loaded.p99_ms);
        }
        let name = match operation {
            Operation::Write => "writes",
            Operation::Linearizable => "linearizable reads",
            Operation::Primary => "reads at the primary",
            Operation::Stale => "stale reads",
        };
        let of = format!("{name}{dial}, {}", clients(callers, connections));
        output::note(format_args!("stead: {of}: {:.0} a second", middle(&rates)));
        report.add(WORKLOAD, &of, "1/s", &rates, None);
        report.add(WORKLOAD, format!("p50, {of}"), "ms", &p50, None);
        report.add(WORKLOAD, format!("p99, {of}"), "ms", &p99, None);
        if !self.pids.is_empty() {
            report.add(WORKLOAD, format!("processor time of all nodes, {of}"), "us", &used, None);
        }
        Ok(Medians { rate: middle(&rates), p50_ms: middle(&p50), p99_ms: middle(&p99), ..Medians::default() })
    }

    /// Measures the ages that stale reads show beside a load of writes.
    fn staleness(&self, report: &mut Report, dial: &str) -> Result<Medians, Failure> {
        let (mut p50, mut p99, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.args.rounds {
            let seconds = self.args.seconds;
            let (read, written) = thread::scope(|scope| {
                let writes = scope.spawn(|| load(&self.addresses, Operation::Write, (64, 64), seconds));
                let reads = load(&self.addresses, Operation::Stale, (READERS, READERS), seconds);
                (reads, writes.join())
            });
            written.map_err(|_| failed("load the cluster")(&"a thread panicked"))??;
            let read = read?;
            p50.push(read.stale_p50_ms.unwrap_or_default());
            p99.push(read.stale_p99_ms.unwrap_or_default());
            refused.push(read.refused as f64 / (read.answered + read.refused).max(1) as f64);
        }
        let of = format!("staleness beside 64 clients that write{dial}");
        report.add(WORKLOAD, format!("p50, {of}"), "ms", &p50, None);
        report.add(WORKLOAD, format!("p99, {of}"), "ms", &p99, None);
        report.add(WORKLOAD, format!("stale reads refused as too old{dial}"), "", &refused, None);
        let (stale_p50_ms, stale_p99_ms) = (middle(&p50), middle(&p99));
        Ok(Medians { stale_p50_ms, stale_p99_ms, ..Medians::default() })
    }

    fn http(&self, report: &mut Report, addresses: &str) -> Result<(), Failure> {
        for connections in [1, 64, 256] {
            let (mut rates, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..self.args.rounds {
                let numbers =
                    [connections.to_string(), self.args.seconds.to_string(), VALUE_BYTES.to_string()];
                let [connections, seconds, bytes] = numbers.each_ref().map(String::as_str);
                let answers: Answers = child(&[
                    "http-load",
                    "--address",
                    addresses,
                    "--connections",
                    connections,
                    "--seconds",
                    seconds,
                    "--value-bytes",
                    bytes,
                ])?;
                if answers.refused > 0 {
                    let refused = format!("{} calls over HTTP were refused", answers.refused);
                    return Err(Failure::new(Exit::Failed, refused));
                }
                rates.push(answers.answered as f64 / answers.seconds);
                p50.push(answers.p50_ms);
                p99.push(answers.p99_ms);
            }
            let of = format!("writes over HTTP, {connections} connections");
            report.add(WORKLOAD, &of, "1/s", &rates, None);
            report.add(WORKLOAD, format!("p50, {of}"), "ms", &p50, None);
            report.add(WORKLOAD, format!("p99, {of}"), "ms", &p99, None);
        }
        Ok(())
    }
}

fn middle(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    median(&sorted)
}
