//! The load on nodes by the native protocol. It runs in a child process, so that its work is not measured as the nodes'.

use super::figures::quantile;
use super::http::child;
use super::{BenchArgs, failed};
use crate::failure::{Exit, Failure};
use crate::output;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use stead::kv::{Kv, Query, Request};
use stead::{BlockingClient, CallError, Client, ConnectError, Never, RawError, Read, Refusal};
use tokio::task::LocalSet;

/// Keys that are written and read.
const KEYS: u32 = 100_000;
/// Bytes of a value.
pub(super) const VALUE_BYTES: usize = 256;

/// A request of the load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Operation {
    /// Puts a value.
    #[default]
    Write,
    /// Reads what was answered before.
    Linearizable,
    /// Reads at the primary, under its lease.
    Primary,
    /// Reads at any replica.
    Stale,
}

impl Operation {
    const fn read(self) -> Option<Read> {
        match self {
            Self::Write => None,
            Self::Linearizable => Some(Read::Linearizable),
            Self::Primary => Some(Read::Primary),
            Self::Stale => Some(Read::Stale { max_lag: None }),
        }
    }

    /// Returns its name as an argument of the command line.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Linearizable => "linearizable",
            Self::Primary => "primary",
            Self::Stale => "stale",
        }
    }
}

/// Results of a load.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Loaded {
    pub(super) seconds: f64,
    pub(super) answered: u64,
    /// Stale reads that were refused, because the replica was too old.
    pub(super) refused: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// The ages of the states that stale reads saw.
    pub(super) stale_p50_ms: Option<f64>,
    pub(super) stale_p99_ms: Option<f64>,
}

/// The calls of one caller.
#[derive(Default)]
struct Calls {
    /// The latency of each that was answered.
    micros: Vec<u32>,
    /// The staleness of each that has one.
    stale: Vec<u32>,
    refused: u64,
}

impl Calls {
    fn note(&mut self, begun: Instant, outcome: Outcome) -> Result<(), CallError<Never>> {
        match outcome {
            Ok(staleness) => {
                self.micros.push(micros(begun.elapsed()));
                self.stale.extend(staleness.map(micros));
            }
            Err(CallError::Raw(RawError::Refused(Refusal::TooStale(_)))) => self.refused += 1,
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The staleness of an answer, if it has one.
type Outcome = Result<Option<Duration>, CallError<Never>>;

/// Loads nodes from a child process. A comma separates their addresses.
pub(super) fn load(
    addresses: &str,
    operation: Operation,
    (callers, connections): (u32, u32),
    seconds: u64,
) -> Result<Loaded, Failure> {
    let numbers = [callers.to_string(), connections.to_string(), seconds.to_string()];
    let [callers, connections, seconds] = numbers.each_ref().map(String::as_str);
    child(&[
        "native-load",
        "--address",
        addresses,
        "--operation",
        operation.name(),
        "--callers",
        callers,
        "--connections",
        connections,
        "--seconds",
        seconds,
    ])
}

/// Loads nodes from this process.
pub(super) fn run_child(args: &BenchArgs) -> Result<(), Failure> {
    if args.address.is_empty() {
        return Err(Failure::new(Exit::Usage, "--address is missing"));
    }
    let connected = |error: ConnectError| failed("connect to a node")(&error);
    let (time, operation) = (args.round(), args.operation);
    // Clients begin at different nodes, and know all.
    let addresses = |client: u32| {
        let mut addresses: Vec<String> = args.address.iter().map(ToString::to_string).collect();
        let first = client as usize % addresses.len();
        addresses.rotate_left(first);
        addresses
    };
    let connect = |client: u32| BlockingClient::connect(addresses(client)).map_err(connected);
    let clients = (0..args.connections.min(args.callers)).map(connect).collect::<Result<Vec<_>, _>>()?;
    let first = clients.first().ok_or_else(|| Failure::new(Exit::Usage, "--connections is 0"))?;
    let start = Instant::now();
    let mut all = Vec::new();
    if args.callers == 1 {
        let mut calls = Calls::default();
        while start.elapsed() < time {
            let begun = Instant::now();
            calls
                .note(begun, call_blocking(first, operation))
                .map_err(|error| failed("call a node")(&error))?;
        }
        all.push(calls);
    } else {
        // One thread has all callers and all connections, as the load generators of other systems do.
        let callers = LocalSet::new();
        let callers_of = |caller: u32| {
            let client = clients[caller as usize % clients.len()].client();
            callers.spawn_local(async move {
                let mut calls = Calls::default();
                while start.elapsed() < time {
                    let begun = Instant::now();
                    let outcome = call(&client, operation).await;
                    calls.note(begun, outcome)?;
                }
                Ok::<_, CallError<Never>>(calls)
            })
        };
        let handles: Vec<_> = (0..args.callers).map(callers_of).collect();
        first.run(callers.run_until(async {
            for caller in handles {
                let calls = caller.await.map_err(|error| failed("call a node")(&error))?;
                all.push(calls.map_err(|error| failed("call a node")(&error))?);
            }
            Ok::<(), Failure>(())
        }))?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let (mut micros, mut stale, mut refused) = (Vec::new(), Vec::new(), 0);
    for mut calls in all {
        micros.append(&mut calls.micros);
        stale.append(&mut calls.stale);
        refused += calls.refused;
    }
    micros.sort_unstable();
    stale.sort_unstable();
    let ms = |share| quantile(&micros, share) / 1e3;
    let stale_ms = |share| (!stale.is_empty()).then(|| quantile(&stale, share) / 1e3);
    output::json(&Loaded {
        seconds,
        answered: micros.len() as u64,
        refused,
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        stale_p50_ms: stale_ms(0.5),
        stale_p99_ms: stale_ms(0.99),
    })
}

async fn call(client: &Client, operation: Operation) -> Outcome {
    match operation.read() {
        None => client.call::<Kv>(&key(), put()).await.map(|_| None),
        Some(read) => client.query_with::<Kv>(&key(), Query::Get, read).await.map(|got| got.staleness),
    }
}

fn call_blocking(client: &BlockingClient, operation: Operation) -> Outcome {
    match operation.read() {
        None => client.call::<Kv>(&key(), put()).map(|_| None),
        Some(read) => client.query_with::<Kv>(&key(), Query::Get, read).map(|got| got.staleness),
    }
}

fn key() -> String {
    format!("k{}", fastrand::u32(..KEYS))
}

fn put() -> Request {
    Request::Put { value: "v".repeat(VALUE_BYTES).into() }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
