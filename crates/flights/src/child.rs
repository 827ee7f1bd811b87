//! The application as a process of the operating system, which a conductor controls over standard input and output.
//!
//! It ends when its standard input ends, so it never outlives its parent.

use crate::code::Code;
use crate::pool::{Clerks, Ticker, report};
use crate::protocol::{Answer, Ask, Checkpoint, Counts, Open, Question, Recovery, Report};
use crate::reader::{Flights, OnMalformed};
use crate::runs;
use crate::services::{
    Aircraft, Airport, Carrier, CheckIn, DESKS, Desk, FEEDER, FeedRequest, Feeder, Passengers, Position,
    Source, desk_of,
};
use crate::totals::Totals;
use std::fmt::Display;
use std::io::{self, BufRead};
use std::time::{Duration, Instant};
use stead::{BlockingClient, CheckpointOptions, Node, NodeBuilder, Process, ServiceOptions, Status};

/// Passengers that are served at a time.
const CLERKS: usize = 8;

/// Longest time from the last row until no message is in flight.
const REST_MAX: Duration = Duration::from_secs(50);

/// Consecutive looks without any change that show that no message is in flight.
const REST_LOOKS: u32 = 3;

/// Bytes of a segment of the log: the log is short, and small segments are quick to create and read.
const SEGMENT_BYTES: u64 = 4 << 20;

/// Registers the services of the application.
#[must_use]
pub fn register(builder: NodeBuilder) -> NodeBuilder {
    let options = |shards| ServiceOptions::default().shards(shards);
    builder
        .segment_bytes(SEGMENT_BYTES)
        .service::<Feeder>(options(1))
        .service::<Aircraft>(options(8))
        .service::<Airport>(options(4))
        .service::<Carrier>(options(2))
        .service::<Desk>(options(2))
}

/// Runs the application until its standard input ends or it receives [`Question::Stop`].
///
/// # Errors
/// The reason, as text for people.
pub fn run() -> Result<(), String> {
    let mut lines = io::stdin().lock().lines();
    let open = match lines.next() {
        Some(line) => line.map_err(|error| format!("cannot read standard input: {error}"))?,
        None => return Ok(()),
    };
    let open: Open = serde_json::from_str(&open)
        .map_err(|error| format!("the first line is not a valid Open: {error}"))?;
    let on_malformed = if open.skip_malformed { OnMalformed::Skip } else { OnMalformed::Refuse };
    let flights = match &open.input {
        Some(path) => Flights::open(path, on_malformed).map_err(|error| error.to_string())?,
        None => Flights::bundled(),
    };
    Source::install(flights).map_err(|_| "a source is installed already".to_owned())?;
    runs::record_to(&open.runs).map_err(|error| format!("cannot write {}: {error}", open.runs.display()))?;

    let checkpoints = CheckpointOptions { interval: None, ..CheckpointOptions::default() };
    let node = register(Node::builder(&open.data))
        .checkpoints(checkpoints)
        .open()
        .map_err(|error| error.to_string())?;
    report(&Report::Ready(recovery(&node)));

    let clerks = {
        let client = node.blocking_client();
        Clerks::start(CLERKS, move |(id, passenger)| check_in(&client, id, passenger))
    };
    let checkpoints = {
        let node = node.clone();
        Ticker::start(Duration::from_millis(open.checkpoint_every_ms), move || take_checkpoint(&node))
    };
    let served = serve(&node, lines, &clerks);
    drop((clerks, checkpoints));
    node.shutdown();
    served
}

fn serve(
    node: &Node,
    lines: impl Iterator<Item = io::Result<String>>,
    clerks: &Clerks<(u64, u64)>,
) -> Result<(), String> {
    let client = node.blocking_client();
    for line in lines {
        let line = line.map_err(|error| format!("cannot read standard input: {error}"))?;
        let Ask { id, what } = serde_json::from_str(&line)
            .map_err(|error| format!("a line is not a valid question: {error}"))?;
        let answer = match what {
            Question::Feed { rows, rate } => feed(&client, rows, rate).map(|_| Answer::Done),
            Question::Finish => ask_feeder(&client, FeedRequest::Finish).map(|_| Answer::Done),
            Question::Position => position(&client).map(Answer::Position),
            Question::CheckIn { passenger } => {
                clerks.serve((id, passenger));
                continue;
            }
            Question::Passengers => passengers(&client).map(Answer::Passengers),
            Question::Totals => totals(node, &client),
            Question::Stop => return Ok(()),
        };
        report(&match answer {
            Ok(answer) => Report::Answered { id, answer },
            Err(reason) => Report::Failed { id: Some(id), reason },
        });
    }
    Ok(())
}

fn recovery(node: &Node) -> Recovery {
    let report = node.recovery();
    Recovery {
        ready_ms: 0.0,
        node_ms: report.duration.as_secs_f64() * 1e3,
        checkpoint: report.checkpoint,
        entries: report.entries_replayed,
        state_bytes: report.state_bytes,
        restored: false,
    }
}

fn check_in(client: &BlockingClient, id: u64, passenger: u64) {
    let key = format!("passenger-{passenger}");
    let booked = client.call_idempotent::<Desk>(&desk_of(passenger), key.as_bytes(), CheckIn { passenger });
    report(&match booked {
        Ok(booked) => Report::Answered { id, answer: Answer::Number(booked.number) },
        Err(error) => Report::Failed { id: Some(id), reason: error.to_string() },
    });
}

fn take_checkpoint(node: &Node) {
    report(&Report::CheckpointBegins);
    report(&match node.checkpoint_blocking() {
        Ok(report) => Report::Checkpoint(Checkpoint {
            number: report.number,
            bytes: report.bytes_written,
            ms: report.duration.as_secs_f64() * 1e3,
            stall_ms: report.stall_max.as_secs_f64() * 1e3,
            in_flight: report.in_flight,
            failed_checks: report.failed_checks.into_iter().map(|check| check.reason).collect(),
        }),
        Err(error) => Report::CheckpointFailed { reason: error.to_string() },
    });
}

fn ask_feeder(client: &BlockingClient, request: FeedRequest) -> Result<Position, String> {
    client.call::<Feeder>(&FEEDER.to_owned(), request).map_err(reason)
}

fn feed(client: &BlockingClient, rows: u64, rate: f64) -> Result<Position, String> {
    let source = Source::installed().expect("run() installs one");
    ask_feeder(client, FeedRequest::Start { fingerprint: source.fingerprint().to_owned(), rows, rate })
}

fn position(client: &BlockingClient) -> Result<Position, String> {
    client.query::<Feeder>(&FEEDER.to_owned(), ()).map_err(reason)
}

fn passengers(client: &BlockingClient) -> Result<Passengers, String> {
    let mut all = Passengers::new();
    for desk in 0..DESKS {
        all.extend(client.query::<Desk>(&desk_of(desk), ()).map_err(reason)?);
    }
    Ok(all)
}

fn totals(node: &Node, client: &BlockingClient) -> Result<Answer, String> {
    let status = rest(node, client)?;
    let flights = Source::installed().expect("run() installs one").flights();
    let expected = Totals::of(&flights.rows);
    let totals = Totals::of_processes(
        read::<Carrier>(client, expected.carriers.keys())?,
        read::<Airport>(client, expected.airports.keys())?,
        read::<Aircraft>(client, &flights.tails())?,
    );
    let processes = Counts {
        aircraft: records(&status, "aircraft"),
        airport: records(&status, "airport"),
        carrier: records(&status, "carrier"),
    };
    Ok(Answer::Totals { fed: position(client)?.next_row, totals, processes })
}

/// Reads processes.
fn read<'a, P: Process<Key = Code, Query = ()>>(
    client: &BlockingClient,
    keys: impl IntoIterator<Item = &'a Code>,
) -> Result<Vec<(Code, P::Answer)>, String> {
    keys.into_iter().map(|key| Ok((*key, client.query::<P>(key, ()).map_err(reason)?))).collect()
}

/// Waits until all rows are fed and no message is in flight.
fn rest(node: &Node, client: &BlockingClient) -> Result<Status, String> {
    let until = Instant::now() + REST_MAX;
    let mut before = None;
    let mut looks = 0;
    loop {
        let Position { next_row, rows } = position(client)?;
        let status = node.status();
        let moving: u64 = status.shards.iter().map(|shard| shard.outbox_messages + shard.waiting).sum();
        let entries: u64 = status.shards.iter().map(|shard| shard.index).sum();
        // Shards are looked at one after the other: only several looks without a change show that nothing is in flight.
        let quiet = next_row >= rows && moving == 0 && before == Some(entries);
        looks = if quiet { looks + 1 } else { 0 };
        before = Some(entries);
        if looks == REST_LOOKS {
            return Ok(status);
        }
        if Instant::now() > until {
            return Err(format!("{moving} messages are still in flight after {} s", REST_MAX.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the records of a service: without messages in flight, sessions and timers, each is a process.
fn records(status: &Status, service: &str) -> u64 {
    status.shards.iter().filter(|shard| shard.service == service).map(|shard| shard.records).sum()
}

fn reason(error: impl Display) -> String {
    error.to_string()
}
