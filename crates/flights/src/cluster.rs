//! Runs the application on several nodes while they are killed, paused and cut off, and checks all of its guarantees.

use crate::audit::Compared;
use crate::callers::{Book, Caller, Callers, DEADLINE, Reads, misgiven, worst_wait_ms};
use crate::error::ConductError;
use crate::life::LifeError;
use crate::offline;
use crate::passengers::Verdict;
use crate::protocol::Counts;
use crate::reader::{Flights, OnMalformed};
use crate::runs;
use crate::services::{
    Aircraft, Airport, Carrier, DESKS, Desk, FEEDER, FeedRequest, Feeder, Passengers, Position, Source,
    desk_of,
};
use crate::totals::{AircraftTotals, Difference, Totals};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use stead_local::{LocalCluster, Options};

/// Replicas of each shard.
const REPLICAS: u8 = 3;

/// Time for which a killed node is down, and a paused one is stopped or a cut one alone: longer than a failover takes, so that another
/// node leads when it comes back.
const FAULT_TIME: Duration = Duration::from_millis(1_500);

/// Pause between two faults.
const CALM: Duration = Duration::from_millis(500);

/// Interval at which the cluster is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Entries by which a replica may be behind in a cluster that is whole: they are on their way.
const LAG_MAX: u64 = 1_000;

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

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// A node is killed with SIGKILL, and started again.
    Kill,
    /// A node is stopped with SIGSTOP, and continues when others have replaced it.
    Pause,
    /// A node is cut off from all others, and joins them again.
    Cut,
}

/// A fault that was done to the cluster, and what followed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// Its kind.
    pub kind: FaultKind,
    /// The node.
    pub node: u32,
    /// The shards that the node led.
    pub led: usize,
    /// The shards of these that another node led afterwards.
    pub moved: usize,
    /// The longest time from the notice of the failure until another node led one of them, in milliseconds.
    pub failover_ms: f64,
    /// The time from the fault until the cluster was whole again, in milliseconds.
    pub healed_ms: f64,
    /// The longest wait of a request that was under way in that time, in milliseconds.
    pub worst_wait_ms: f64,
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

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Number of nodes.
    pub nodes: u16,
    /// Number of shards.
    pub shards: usize,
    /// Rows that were fed.
    pub rows: u64,
    /// The totals according to the processes.
    pub totals: Totals,
    /// The difference to the expected totals.
    pub difference: Difference,
    /// The clients' requests, compared with the final state.
    pub requests: Verdict,
    /// Requests that were made.
    pub begun: u64,
    /// Requests that were not answered within [`DEADLINE`], and the reason of the last one.
    pub unanswered: (u64, Option<String>),
    /// Boarding numbers that were given to two passengers, or to none.
    pub misgiven: u64,
    /// The median time of a request, in milliseconds.
    pub usual_wait_ms: f64,
    /// The clients' reads.
    pub reads: Reads,
    /// The handler runs, compared with the logs.
    pub compared: Compared,
    /// The faults.
    pub faults: Vec<Fault>,
}

impl Outcome {
    /// Returns the number of lost requests and rows.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.difference.missing + self.requests.lost
    }

    /// Returns the number of requests and rows that were applied twice.
    #[must_use]
    pub fn doubled(&self) -> u64 {
        self.difference.extra + self.requests.doubled + self.compared.doubled
    }

    /// Returns whether all totals equal those of the straightforward computation.
    #[must_use]
    pub fn totals_match(&self) -> bool {
        self.difference.is_none()
    }

    /// Returns the share of requests that were answered in time.
    #[must_use]
    pub fn accepted_share(&self) -> f64 {
        share(self.begun - self.unanswered.0, self.begun)
    }

    /// Returns the share of answers that the final state confirms.
    #[must_use]
    pub fn right_share(&self) -> f64 {
        let wrong = self.requests.lost + self.requests.doubled + self.misgiven;
        share(self.requests.answers.saturating_sub(wrong), self.requests.answers)
    }

    /// Returns the reasons for which the run proves nothing, or the opposite. Empty if all is as promised.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let mut violations = Vec::new();
        let mut check = |holds: bool, what: String| {
            if !holds {
                violations.push(what);
            }
        };
        check(self.lost() == 0, format!("{} lost", self.lost()));
        check(self.doubled() == 0, format!("{} applied twice", self.doubled()));
        check(self.totals_match(), "the totals differ".to_owned());
        check(self.compared.holds(), format!("handler runs: {:?}", self.compared));
        let (unanswered, reason) = &self.unanswered;
        let reason = reason.as_deref().unwrap_or("no reason");
        let seconds = DEADLINE.as_secs();
        check(*unanswered == 0, format!("{unanswered} requests had no answer within {seconds} s: {reason}"));
        check(
            self.misgiven == 0,
            format!("{} boarding numbers were given twice, or left out", self.misgiven),
        );
        check(self.requests.answered > 0, "no request was answered".to_owned());
        check(self.reads.hold(), format!("reads: {:?}", self.reads));
        for fault in &self.faults {
            let Fault { kind, node, led, moved, .. } = fault;
            let what =
                format!("{kind:?} of node {node}: other nodes led {moved} of its {led} shards afterwards");
            check(*led > 0 && moved == led, what);
        }
        violations
    }
}

fn share(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 }
}

/// The cluster as one of its nodes sees it.
#[derive(Debug, Deserialize)]
struct View {
    leader: Option<u32>,
    is_balancing: bool,
    nodes: Vec<NodeView>,
    shards: Vec<ShardView>,
    failovers: Vec<FailoverView>,
}

#[derive(Debug, Deserialize)]
struct NodeView {
    state: String,
    votes: bool,
}

#[derive(Debug, Deserialize)]
struct ShardView {
    shard: u32,
    is_active: bool,
    primary: Option<u32>,
    members: Vec<u32>,
    lags: Vec<LagView>,
}

#[derive(Debug, Deserialize)]
struct LagView {
    entries: u64,
}

#[derive(Debug, Deserialize)]
struct FailoverView {
    shard: u32,
    epoch: u64,
    from: Option<u32>,
    duration_us: Option<u64>,
}

impl View {
    /// Whether all nodes work, and each shard has all of its replicas, which hold all but what is on its way.
    fn is_whole(&self, nodes: usize) -> bool {
        let replicas = nodes.min(usize::from(REPLICAS));
        let is_well = |node: &NodeView| node.votes && node.state == "up";
        let is_stored = |shard: &ShardView| shard.lags.iter().all(|lag| lag.entries <= LAG_MAX);
        self.leader.is_some()
            && !self.is_balancing
            && self.nodes.len() == nodes
            && self.nodes.iter().all(is_well)
            && self.shards.iter().all(|shard| {
                let others = shard.lags.len() + 1;
                shard.is_active && shard.members.len() == replicas && others == replicas && is_stored(shard)
            })
    }

    fn led_by(&self, node: u32) -> BTreeSet<u32> {
        self.shards.iter().filter(|shard| shard.primary == Some(node)).map(|shard| shard.shard).collect()
    }
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
    let counts = Counts {
        aircraft: expected.aircraft.count,
        airport: expected.airports.len() as u64,
        carrier: expected.carriers.len() as u64,
    };
    let mut difference = totals.difference(&expected);
    difference.sums += u64::from(processes != counts);
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
        let mut totals = Totals::default();
        let carriers: Vec<_> = expected.carriers.keys().copied().collect();
        for (code, carrier) in self.read::<Carrier>(&carriers)? {
            if carrier.flights > 0 {
                totals.carriers.insert(code, carrier);
            }
        }
        let airports: Vec<_> = expected.airports.keys().copied().collect();
        for (code, airport) in self.read::<Airport>(&airports)? {
            if airport.departures + airport.arrivals > 0 {
                totals.airports.insert(code, airport);
            }
        }
        let tails: BTreeSet<_> = flights.rows.iter().filter_map(|row| row.tail).collect();
        let tails: Vec<_> = tails.into_iter().collect();
        for (_, Aircraft { legs, distance_miles }) in self.read::<Aircraft>(&tails)? {
            let all = totals.aircraft;
            totals.aircraft = AircraftTotals {
                count: all.count + u64::from(legs > 0),
                legs: all.legs + legs,
                distance_miles: all.distance_miles + distance_miles,
            };
        }
        Ok(totals)
    }

    /// Reads processes, with some threads.
    fn read<P>(&self, keys: &[P::Key]) -> Result<Vec<(P::Key, P::Answer)>, ConductError>
    where
        P: stead::Process<Query = ()>,
        P::Key: Clone + Send + Sync,
        P::Answer: Send,
    {
        let chunk = keys.len().div_ceil(READERS).max(1);
        let parts: Vec<Result<Vec<_>, String>> = std::thread::scope(|scope| {
            let threads: Vec<_> = keys
                .chunks(chunk)
                .map(|keys| {
                    let mut caller = self.main.clone();
                    scope.spawn(move || {
                        keys.iter().map(|key| Ok((key.clone(), caller.query::<P>(key)?))).collect()
                    })
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
