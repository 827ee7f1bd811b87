//! Runs the application on several nodes while they are killed, paused and cut off, and checks all of its guarantees.

mod outcome;
mod view;

use crate::audit::Compared;
use crate::callers::{Book, Caller, Callers, misgiven, worst_wait_ms};
use crate::code::Code;
use crate::error::ConductError;
use crate::life::LifeError;
use crate::offline;
use crate::protocol::Counts;
use crate::reader::{Flights, OnMalformed};
use crate::runs;
use crate::services::{
    Aircraft, Airport, Carrier, DESKS, Desk, FEEDER, FeedRequest, Feeder, Passengers, Position, Source,
    desk_of,
};
use crate::totals::Totals;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use stead_local::{LocalCluster, Options};
use view::{ShardView, View};

pub use outcome::{Fault, FaultKind, Outcome};

/// Replicas of each shard.
const REPLICAS: u8 = 3;

/// Time for which a killed node is down, and a paused one is stopped or a cut one alone: longer than a failover takes, so that another
/// node leads when it comes back.
const FAULT_TIME: Duration = Duration::from_millis(1_500);

/// Pause between two faults.
const CALM: Duration = Duration::from_millis(500);

/// Interval at which the cluster is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Threads that read the totals.
const READERS: usize = 8;

/// Consecutive looks without any change that show that no message is in flight.
const REST_LOOKS: u32 = 3;

/// Time in which a node has to stop.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Prepares this process to run the application as a node of a cluster: with the flights to feed, and a file in `runs` for the records
/// of its handler runs.
///
/// # Errors
/// The reason, as text for people.
pub fn prepare(runs: &Path, input: Option<&Path>, on_malformed: OnMalformed) -> Result<(), String> {
    let flights = match input {
        Some(path) => Flights::open(path, on_malformed).map_err(|error| error.to_string())?,
        None => Flights::bundled(),
    };
    Source::install(flights).map_err(|_| "a source is installed already".to_owned())?;
    let name = format!("runs-{}-{:016x}", std::process::id(), fastrand::u64(..));
    let path = runs.join(name);
    runs::record_to(&path).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// Settings of a run.
pub struct Plan<'a> {
    /// The program of a node, and the first of its arguments, those of `stead start` follow. It calls [`prepare`] with the directory
    /// [`Plan::runs`], and [`register`](crate::child::register).
    pub program: PathBuf,
    /// These arguments.
    pub command: Vec<OsString>,
    /// Directory for the files of the run; it must be new.
    pub dir: PathBuf,
    /// Number of nodes.
    pub nodes: u16,
    /// Rows a second.
    pub rate: f64,
    /// Seed of all random choices of the clients.
    pub seed: u64,
    /// The faults, one after the other.
    pub faults: Vec<FaultKind>,
    /// Longest wait for the next event.
    pub patience: Duration,
    /// Asks a node over HTTP: a GET of a path, whose answer is JSON.
    pub get: &'a dyn Fn(SocketAddr, &str) -> Result<Value, String>,
    /// As [`Plan::get`], a POST without a body.
    pub post: &'a dyn Fn(SocketAddr, &str) -> Result<Value, String>,
    /// Set to end the run early.
    pub stop: Arc<AtomicBool>,
}

impl Plan<'_> {
    /// Returns the directory for the records of handler runs in the directory of a run.
    #[must_use]
    pub fn runs(dir: &Path) -> PathBuf {
        dir.join("runs")
    }
}

/// An event of a run.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// All nodes run, and each shard has its replicas.
    Whole,
    /// The feeder's position.
    Fed(Position),
    /// A fault begins: its kind, its node, and the shards that this leads.
    Fault(FaultKind, u32, usize),
    /// The fault is over, and the cluster whole again.
    Healed(&'a Fault),
    /// All rows are fed: the messages in flight arrive, and the totals are compared.
    Comparing,
}

/// Runs the application on these flights, which must be those that the nodes feed from.
///
/// # Errors
/// [`ConductError`] if it cannot be run; a wrong result is not an error but an [`Outcome`] with violations.
pub fn conduct(
    plan: &Plan<'_>,
    flights: &Flights,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome, ConductError> {
    let io = |source| ConductError::Io { what: "creating a directory", source };
    std::fs::create_dir(Plan::runs(&plan.dir)).map_err(io)?;
    let options = Options { command: plan.command.clone(), links: true, ..Options::default() };
    let cluster = LocalCluster::start(&plan.program, plan.nodes, &plan.dir.join("nodes"), options)?;
    let source = Source::new(flights.clone());
    let mut run = Conductor { plan, watch, main: Caller::new(&cluster.native(), 0), cluster };
    run.replicate()?;
    let shards = run.await_whole()?.shards.len();
    (run.watch)(Event::Whole);

    let rows = flights.rows.len() as u64;
    let callers = Callers::start(&run.cluster.native(), plan.seed);
    run.ask_feeder(FeedRequest::Start {
        fingerprint: source.fingerprint().to_owned(),
        rows,
        rate: plan.rate,
    })?;
    let mut faults = Vec::new();
    for kind in &plan.faults {
        run.pass(CALM)?;
        faults.push(run.fault(*kind, &callers)?);
    }
    run.await_fed(rows)?;
    let Book { clients, waits, unanswered, reason, reads } = callers.finish();
    (run.watch)(Event::Comparing);
    let processes = run.await_rest()?;
    let expected = Totals::of(&flights.rows);
    let totals = run.totals(flights, &expected)?;
    let passengers = run.passengers()?;
    let mut difference = totals.difference(&expected);
    difference.sums += u64::from(processes != Counts::of(&expected));
    for (fault, (from, until)) in &mut faults {
        fault.worst_wait_ms = worst_wait_ms(&waits, *from, *until);
    }
    let mut times: Vec<f64> =
        waits.iter().map(|wait| wait.until.duration_since(wait.from).as_secs_f64() * 1e3).collect();
    times.sort_by(f64::total_cmp);
    Ok(Outcome {
        nodes: plan.nodes,
        shards,
        rows,
        totals,
        difference,
        requests: clients.verdict(&passengers),
        begun: waits.len() as u64,
        unanswered: (unanswered, reason),
        misgiven: misgiven(&passengers),
        usual_wait_ms: times.get(times.len() / 2).copied().unwrap_or(0.0),
        reads,
        compared: run.evidence()?,
        faults: faults.into_iter().map(|(fault, _)| fault).collect(),
    })
}

struct Conductor<'a> {
    plan: &'a Plan<'a>,
    watch: &'a mut dyn FnMut(Event<'_>),
    main: Caller,
    cluster: LocalCluster,
}

impl Conductor<'_> {
    fn check_stop(&self) -> Result<(), ConductError> {
        if self.plan.stop.load(Ordering::Relaxed) { Err(LifeError::Stopped.into()) } else { Ok(()) }
    }

    /// Gives each shard its replicas, once all nodes have joined.
    fn replicate(&self) -> Result<(), ConductError> {
        let first = self.cluster.addresses(0).http;
        for service in ["feeder", "aircraft", "airport", "carrier", "desk"] {
            let path = format!("/v1/cluster/services/{service}/dial?replicas={REPLICAS}");
            (self.plan.post)(first, &path).map_err(|reason| ConductError::Failed { reason })?;
        }
        Ok(())
    }

    /// Looks at the cluster from a node.
    fn view(&self, node: usize) -> Result<View, String> {
        let view = (self.plan.get)(self.cluster.addresses(node).http, "/v1/cluster")?;
        serde_json::from_value(view).map_err(|error| error.to_string())
    }

    /// Waits until all nodes say that the cluster is whole.
    fn await_whole(&mut self) -> Result<View, ConductError> {
        self.await_view(|run| {
            let views = (0..run.cluster.len()).map(|node| run.view(node)).collect::<Result<Vec<_>, _>>()?;
            let is_whole = views.iter().all(|view| view.is_whole(run.cluster.len()));
            // A node that was away may know less.
            let newest =
                views.into_iter().max_by_key(|view| view.failovers.len()).ok_or("there is no node")?;
            if is_whole { Ok(newest) } else { Err(format!("{newest:?}")) }
        })
    }

    /// Waits until other nodes lead all of these shards of a node.
    fn await_replaced(&mut self, node: u32, led: &BTreeSet<u32>) -> Result<View, ConductError> {
        let other = if node == 1 { 1 } else { 0 };
        self.await_view(|run| {
            let view = run.view(other)?;
            let is_replaced =
                |shard: &ShardView| shard.is_active && shard.primary.is_some_and(|primary| primary != node);
            let mut its = view.shards.iter().filter(|shard| led.contains(&shard.shard));
            if its.all(is_replaced) { Ok(view) } else { Err(format!("{view:?}")) }
        })
    }

    fn await_view(&mut self, look: impl Fn(&Self) -> Result<View, String>) -> Result<View, ConductError> {
        let until = Instant::now() + self.plan.patience;
        loop {
            self.check_stop()?;
            match look(self) {
                Ok(view) => return Ok(view),
                Err(reason) if Instant::now() >= until => {
                    return Err(ConductError::NotWhole { waited: self.plan.patience, reason });
                }
                Err(_) => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// Lets time pass.
    fn pass(&mut self, time: Duration) -> Result<(), ConductError> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.check_stop()?;
            self.show_position();
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    fn show_position(&mut self) -> Option<Position> {
        let position = self.main.query::<Feeder>(&FEEDER.to_owned()).ok()?;
        (self.watch)(Event::Fed(position));
        Some(position)
    }

    fn ask_feeder(&mut self, request: FeedRequest) -> Result<Position, ConductError> {
        let key = FEEDER.to_owned();
        let call =
            |client: &stead::BlockingClient| client.call_idempotent::<Feeder>(&key, b"feed", request.clone());
        self.main.call(call).map_err(|reason| ConductError::Failed { reason })
    }

    /// Does something to the node that leads most shards, undoes it, and waits until the cluster is whole again.
    fn fault(
        &mut self,
        kind: FaultKind,
        callers: &Callers,
    ) -> Result<(Fault, (Instant, Instant)), ConductError> {
        let before = self.await_whole()?;
        let numbers = 1..=u32::from(self.plan.nodes);
        let node = numbers.max_by_key(|node| before.led_by(*node).len()).expect("there is a node");
        let led = before.led_by(node);
        let at = node as usize - 1;
        (self.watch)(Event::Fault(kind, node, led.len()));
        let from = Instant::now();
        match kind {
            FaultKind::Kill => self.cluster.kill(at)?,
            FaultKind::Pause => self.cluster.pause(at)?,
            FaultKind::Cut => self.cluster.cut(at),
        }
        self.pass(FAULT_TIME)?;
        self.await_replaced(node, &led)?;
        match kind {
            FaultKind::Kill => self.cluster.restart(at)?,
            FaultKind::Pause => self.cluster.resume(at)?,
            FaultKind::Cut => self.cluster.heal(at),
        }
        let after = self.await_whole()?;
        let until = Instant::now();
        let known: BTreeSet<_> = before.failovers.iter().map(|past| (past.shard, past.epoch)).collect();
        let news = after.failovers.iter().filter(|news| {
            news.from == Some(node) && led.contains(&news.shard) && !known.contains(&(news.shard, news.epoch))
        });
        let moved: BTreeSet<u32> = news.clone().map(|news| news.shard).collect();
        let failover_us = news.filter_map(|news| news.duration_us).max().unwrap_or(0);
        let fault = Fault {
            kind,
            node,
            led: led.len(),
            moved: moved.len(),
            failover_ms: failover_us as f64 / 1e3,
            healed_ms: until.duration_since(from).as_secs_f64() * 1e3,
            worst_wait_ms: callers.worst_wait_ms(from, until),
        };
        (self.watch)(Event::Healed(&fault));
        Ok((fault, (from, until)))
    }

    fn await_fed(&mut self, rows: u64) -> Result<(), ConductError> {
        let (mut row, mut since) = (0, Instant::now());
        loop {
            self.check_stop()?;
            if let Some(position) = self.show_position() {
                if position.next_row >= rows {
                    return Ok(());
                }
                if position.next_row != row {
                    (row, since) = (position.next_row, Instant::now());
                }
            }
            if since.elapsed() > self.plan.patience {
                return Err(ConductError::Stuck { row, waited: self.plan.patience });
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until no message is in flight, and counts the processes.
    fn await_rest(&self) -> Result<Counts, ConductError> {
        let until = Instant::now() + self.plan.patience;
        let (mut before, mut looks) = (None, 0);
        loop {
            self.check_stop()?;
            let mut shards = Vec::new();
            for node in self.cluster.http() {
                let status = (self.plan.get)(node, "/v1/status");
                let status = status.map_err(|reason| ConductError::Failed { reason })?;
                shards.extend(status["shards"].as_array().cloned().unwrap_or_default());
            }
            // A backup has no part in the work.
            shards.retain(|shard| shard["active"] == true);
            let sum = |member: &str| -> u64 {
                shards.iter().map(|shard| shard[member].as_u64().unwrap_or_default()).sum()
            };
            let moving = sum("outbox_messages") + sum("waiting");
            let quiet = moving == 0 && before == Some(sum("index"));
            (looks, before) = (if quiet { looks + 1 } else { 0 }, Some(sum("index")));
            let records = |service: &str| -> u64 {
                let own = shards.iter().filter(|shard| shard["service"] == service);
                own.map(|shard| shard["records"].as_u64().unwrap_or_default()).sum()
            };
            if looks == REST_LOOKS {
                return Ok(Counts {
                    aircraft: records("aircraft"),
                    airport: records("airport"),
                    carrier: records("carrier"),
                });
            }
            if Instant::now() > until {
                let waited = self.plan.patience.as_secs();
                let reason = format!("{moving} messages are still in flight after {waited} s");
                return Err(ConductError::Failed { reason });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Reads the totals of all processes that should be there.
    fn totals(&self, flights: &Flights, expected: &Totals) -> Result<Totals, ConductError> {
        Ok(Totals::of_processes(
            self.read::<Carrier>(expected.carriers.keys())?,
            self.read::<Airport>(expected.airports.keys())?,
            self.read::<Aircraft>(&flights.tails())?,
        ))
    }

    /// Reads processes, with some threads.
    fn read<'a, P>(
        &self,
        keys: impl IntoIterator<Item = &'a Code>,
    ) -> Result<Vec<(Code, P::Answer)>, ConductError>
    where
        P: stead::Process<Key = Code, Query = (), Answer: Send>,
    {
        let keys: Vec<Code> = keys.into_iter().copied().collect();
        let chunk = keys.len().div_ceil(READERS).max(1);
        let parts: Vec<Result<Vec<_>, String>> = std::thread::scope(|scope| {
            let threads: Vec<_> = keys
                .chunks(chunk)
                .map(|keys| {
                    let mut caller = self.main.clone();
                    scope.spawn(move || keys.iter().map(|key| Ok((*key, caller.query::<P>(key)?))).collect())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a reader does not panic")).collect()
        });
        let parts: Result<Vec<Vec<_>>, String> = parts.into_iter().collect();
        Ok(parts.map_err(|reason| ConductError::Failed { reason })?.into_iter().flatten().collect())
    }

    fn passengers(&mut self) -> Result<Passengers, ConductError> {
        let mut all = Passengers::new();
        for desk in 0..DESKS {
            let of_desk = self.main.query::<Desk>(&desk_of(desk));
            all.extend(of_desk.map_err(|reason| ConductError::Failed { reason })?);
        }
        Ok(all)
    }

    /// Stops the nodes, and compares the records of their handler runs with what their logs hold.
    fn evidence(&mut self) -> Result<Compared, ConductError> {
        let mut kept = HashSet::new();
        for node in 0..self.cluster.len() {
            self.cluster.stop(node, STOP_MAX)?;
        }
        for node in 0..self.cluster.len() {
            kept.extend(offline::kept(self.cluster.data(node))?);
        }
        let io = |source| ConductError::Io { what: "reading the records of handler runs", source };
        let mut all = Vec::new();
        for file in std::fs::read_dir(Plan::runs(&self.plan.dir)).map_err(io)? {
            all.extend(runs::read(&file.map_err(io)?.path()).map_err(io)?);
        }
        Ok(Compared::of(&all, &kept))
    }
}
