//! The time without a primary: nodes are killed or stopped while clients call their shards.

use super::super::figures::{Goal, Report};
use super::super::{BenchArgs, failed};
use super::WORKLOAD;
use super::nodes::Nodes;
use crate::failure::Failure;
use crate::output;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use stead::Client;
use stead::client::{RawCall, payload};
use stead::kv::{Kv, Query, Request};
use tokio::runtime::{Builder, Runtime};

/// Callers beside those that are measured.
const LOAD: usize = 16;
/// The time in which callers call before a fault.
const BEFORE: Duration = Duration::from_millis(300);
/// Time for the first success on each shard.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// Faults of each kind but SIGKILL.
const OTHERS: u32 = 5;
/// The lease of a service whose dial does not set it, in milliseconds.
const LEASE_MS: f64 = 500.0;
/// A failover that took longer, in milliseconds, is reported with the leaders of the control plane: one that dies takes longer.
const SLOW_MS: f64 = 300.0;
/// The time for which a node is stopped or cut off after its shards have answered.
const LONGER: Duration = Duration::from_secs(1);

/// A way to lose a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// SIGKILL, while the control plane's leader lives.
    Kill,
    /// SIGKILL of the control plane's leader.
    KillLeader,
    /// SIGSTOP.
    Stop,
    /// Nothing passes between it and the other nodes, and no connection closes. Its clients still reach it.
    Cut,
}

/// The times until shards of a lost node answered.
#[derive(Default)]
struct Times {
    first: Vec<f64>,
    last: Vec<f64>,
    /// Of clients that were connected to the lost node.
    moved: Vec<f64>,
}

/// Faults of one kind.
struct Series {
    fault: Fault,
    name: &'static str,
    /// W of the service meanwhile.
    acks: u64,
    times: u32,
    /// The most milliseconds until a first success, in the median and at worst.
    goals: [f64; 2],
}

/// Loses nodes of a synchronous service.
pub(super) fn synchronous(args: &BenchArgs, nodes: &mut Nodes, report: &mut Report) -> Result<(), Failure> {
    let series = |fault, name, times, goals| Series { fault, name, acks: 2, times, goals };
    let leader_too = "SIGKILL of the control plane's leader too";
    let all = [
        series(Fault::Kill, "SIGKILL", args.kills, [100.0, 300.0]),
        series(Fault::KillLeader, leader_too, args.kills.div_ceil(4), [1000.0; 2]),
        series(Fault::Stop, "SIGSTOP", OTHERS.min(args.kills), [1000.0; 2]),
    ];
    all.into_iter().try_for_each(|series| measure(&series, nodes, report))
}

/// Loses nodes of an asynchronous service, whose next primary waits for the last one's lease to end.
pub(super) fn asynchronous(args: &BenchArgs, nodes: &mut Nodes, report: &mut Report) -> Result<(), Failure> {
    let (name, times) = ("SIGKILL, W = 1,", OTHERS.min(args.kills));
    let goals = [100.0 + LEASE_MS, 300.0 + LEASE_MS];
    measure(&Series { fault: Fault::Kill, name, acks: 1, times, goals }, nodes, report)
}

/// Cuts nodes of a synchronous service off from the others. Their links go through proxies.
pub(super) fn cut_off(args: &BenchArgs, nodes: &mut Nodes, report: &mut Report) -> Result<(), Failure> {
    let times = OTHERS.min(args.kills);
    let series = Series { fault: Fault::Cut, name: "a cut", acks: 2, times, goals: [1000.0; 2] };
    measure(&series, nodes, report)
}

fn measure(series: &Series, nodes: &mut Nodes, report: &mut Report) -> Result<(), Failure> {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| failed("make a runtime")(&error))?;
    let mut all = Times::default();
    for _ in 0..series.times {
        one(&runtime, nodes, series, &mut all)?;
    }
    if all.first.is_empty() {
        return Ok(());
    }
    output::note(format_args!("stead: {}: {} measured", series.name, all.first.len()));
    let of = |what: &str| format!("{what} after {}", series.name);
    let most = all.first.iter().copied().fold(0.0, f64::max);
    let [median, worst] = series.goals.map(|most| Some(Goal::AtMost(most)));
    report.add(WORKLOAD, of("first success on its shards"), "ms", &all.first, median);
    report.add(WORKLOAD, of("first success on its shards, at worst,"), "ms", &[most], worst);
    report.add(WORKLOAD, of("all of its shards answered"), "ms", &all.last, None);
    report.add(WORKLOAD, of("all answered a client that was connected to it"), "ms", &all.moved, None);
    Ok(())
}

/// Loses a node, and brings it back.
fn one(runtime: &Runtime, nodes: &mut Nodes, series: &Series, times: &mut Times) -> Result<(), Failure> {
    let (fault, places) = (series.fault, nodes.spread(series.acks)?);
    let leader = nodes.leader_seen_by(0);
    let leads = |node: usize| places.iter().filter(|place| place.primary == node).count();
    let candidates = (0..nodes.len()).filter(|node| match fault {
        Fault::Kill | Fault::Stop | Fault::Cut => Some(*node) != leader,
        Fault::KillLeader => Some(*node) == leader,
    });
    let Some(victim) = candidates.filter(|node| leads(*node) > 0).max_by_key(|node| leads(*node)) else {
        return Ok(());
    };
    let led: BTreeSet<u32> =
        places.iter().filter(|place| place.primary == victim).map(|place| place.shard).collect();
    let calls = Calls::begin(runtime, nodes, victim, &led, places.len())?;
    std::thread::sleep(BEFORE);
    let (led_before, leader_before) = (nodes.led_by(victim)?, nodes.leader_seen_by(nodes.beside(victim)));
    let at = match fault {
        Fault::Kill | Fault::KillLeader => nodes.kill(victim)?,
        Fault::Stop => nodes.pause(victim)?,
        Fault::Cut => nodes.cut(victim),
    };
    let answered = calls.until_all(at);
    let (led_after, leader_after) = (nodes.led_by(victim), nodes.leader_seen_by(nodes.beside(victim)));
    if matches!(fault, Fault::Stop | Fault::Cut) {
        std::thread::sleep(LONGER);
    }
    calls.stop.store(true, Ordering::Relaxed);
    match fault {
        Fault::Kill | Fault::KillLeader => nodes.restart(victim)?,
        Fault::Stop => nodes.resume(victim)?,
        Fault::Cut => nodes.heal(victim),
    }
    let answered = answered?;
    // A node that does not lead what it did, or was answering when it was stopped, says nothing of a failover.
    if led_before != led || !led_after?.is_disjoint(&led) {
        output::note(format_args!("stead: a fault was not measured: no other node had to lead the shards"));
        return Ok(());
    }
    let of = |is_moved: bool| {
        answered
            .iter()
            .filter(move |((_, moved), _)| *moved == is_moved)
            .map(|(_, time)| time.as_secs_f64() * 1e3)
    };
    let first = of(false).fold(f64::INFINITY, f64::min);
    if first > SLOW_MS && fault == Fault::Kill && series.acks > 1 {
        let (before, at, after) = (number(leader), number(leader_before), number(leader_after));
        output::note(format_args!(
            "stead: {first:.0} ms after SIGKILL of node {}; leader of the control plane: {before} 0.3 s before, {at} at the fault, \
             {after} after",
            victim + 1
        ));
    }
    times.first.push(first);
    times.last.push(of(false).fold(0.0, f64::max));
    times.moved.push(of(true).fold(0.0, f64::max));
    Ok(())
}

/// Returns the number of a node at a position.
fn number(node: Option<usize>) -> String {
    node.map_or_else(|| "none".to_owned(), |node| (node + 1).to_string())
}

/// The last success of each shard of the victim, by clients that were connected to another node and to the victim: when its call
/// began, and ended.
type Successes = BTreeMap<(u32, bool), Vec<(Instant, Instant)>>;

/// Clients that call while a node is lost.
struct Calls {
    stop: Arc<AtomicBool>,
    successes: Arc<Mutex<Successes>>,
    /// The first failure of a call.
    failed: Arc<Mutex<Option<String>>>,
    expected: usize,
}

impl Calls {
    /// Begins to call the shards that the victim leads, of so many.
    fn begin(
        runtime: &Runtime,
        nodes: &Nodes,
        victim: usize,
        led: &BTreeSet<u32>,
        shards: usize,
    ) -> Result<Self, Failure> {
        let mut addresses = nodes.native();
        addresses.rotate_left(victim);
        let connect = |addresses: &[String]| {
            let client = runtime.block_on(Client::connect(addresses));
            client.map_err(|error| failed("connect to the cluster")(&error))
        };
        let moved = connect(&addresses)?;
        addresses.rotate_left(1);
        let steady = connect(&addresses)?;
        let keys = runtime.block_on(keys(&steady, shards))?;
        let calls = Self {
            stop: Arc::default(),
            successes: Arc::default(),
            failed: Arc::default(),
            expected: 2 * led.len(),
        };
        for shard in led {
            for (client, is_moved) in [(&steady, false), (&moved, true)] {
                let key = keys.get(shard).cloned().unwrap_or_default();
                runtime.spawn(calls.call(client.clone(), Some((*shard, is_moved)), move || key.clone()));
            }
        }
        for _ in 0..LOAD {
            let key = || format!("k{}", fastrand::u32(..100_000));
            runtime.spawn(calls.call(steady.clone(), None, key));
        }
        Ok(calls)
    }

    /// Calls one after the other until the stop.
    fn call<K: Fn() -> String + Send + 'static>(
        &self,
        client: Client,
        of: Option<(u32, bool)>,
        key: K,
    ) -> impl Future<Output = ()> + Send + use<K> {
        let (stop, successes) = (Arc::clone(&self.stop), Arc::clone(&self.successes));
        let failed = Arc::clone(&self.failed);
        let client = client.with_timeout(WAIT_MAX);
        async move {
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let called = client.call::<Kv>(&key(), Request::Put { value: "v".repeat(256).into() }).await;
                match (called, of) {
                    (Ok(_), Some(of)) => {
                        let mut successes = successes.lock().unwrap_or_else(PoisonError::into_inner);
                        successes.entry(of).or_default().push((begun, Instant::now()));
                    }
                    (Ok(_), None) => {}
                    (Err(error), _) => {
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        failed.get_or_insert(error.to_string());
                    }
                }
            }
        }
    }

    /// Waits for a success of each shard whose call began after a fault, and returns the time until it.
    fn until_all(&self, fault: Instant) -> Result<BTreeMap<(u32, bool), Duration>, Failure> {
        loop {
            let successes = self.successes.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let first = |calls: Vec<(Instant, Instant)>| {
                calls.into_iter().find(|(begun, _)| *begun >= fault).map(|(_, ended)| ended - fault)
            };
            let times: BTreeMap<_, _> =
                successes.into_iter().filter_map(|(of, calls)| Some((of, first(calls)?))).collect();
            if times.len() == self.expected {
                return Ok(times);
            }
            if fault.elapsed() > WAIT_MAX {
                let failure = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let reason = failure.unwrap_or_else(|| "calls have not ended".to_owned());
                return Err(failed("call the shards of a lost node")(&reason));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Returns a key of each shard.
async fn keys(client: &Client, shards: usize) -> Result<BTreeMap<u32, String>, Failure> {
    let mut keys = BTreeMap::new();
    for number in 0.. {
        if keys.len() == shards {
            break;
        }
        let key = format!("k{number}");
        let payload = payload(&Query::Get).map_err(|error| failed("write a query")(&error))?;
        let call = RawCall {
            service: "kv",
            key: &key,
            payload,
            principal: "local",
            idempotency_key: None,
            seen: None,
            timeout: WAIT_MAX,
        };
        let answer = client.query_raw(call).await.map_err(|error| failed("query a shard")(&error))?;
        keys.entry(answer.shard.0).or_insert(key);
    }
    Ok(keys)
}
