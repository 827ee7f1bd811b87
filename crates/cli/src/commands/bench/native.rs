//! Answered requests of clients in another process, over the native protocol, every entry synced: each client on its own
//! connection, and many that share two.

use super::callers::{drive, runtime};
use super::figures::{Report, quantile};
use super::http::child;
use super::load::Answers;
use super::room::Room;
use super::{BenchArgs, failed};
use crate::failure::{Exit, Failure};
use crate::output;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use stead::{BlockingClient, Client, ConnectError, Context, Never, NoQuery, Node, Process, ServiceOptions};

const WORKLOAD: &str = "native";
const PROCESSES: u32 = 100_000;
const SHARDS: u32 = 64;
/// Bytes of a request's value.
const VALUE_BYTES: usize = 256;
/// Connections that many clients share.
const SHARED: u32 = 2;

/// A value, which each request replaces.
#[derive(Default, Serialize, Deserialize)]
struct Note {
    value: String,
}

/// The next value.
#[derive(Serialize, Deserialize)]
struct Write(String);

impl Process for Note {
    const SERVICE: &'static str = "note";
    type Key = u32;
    type Request = Write;
    type Reply = ();
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, _: &mut Context<'_, Self>, Write(value): Write) -> Result<(), Never> {
        self.value = value;
        Ok(())
    }
}

pub(super) fn run(args: &BenchArgs, report: &mut Report) -> Result<(), Failure> {
    let room = Room::new(args)?;
    let node = Node::builder(room.path())
        .service::<Note>(ServiceOptions::default().shards(SHARDS))
        .listen_native(([127, 0, 0, 1], 0).into())
        .open()
        .map_err(|error| failed("open a node")(&error))?;
    let address = node.native_address().map(|address| address.to_string()).unwrap_or_default();
    let load = |callers: u32, connections: u32, seconds: u64| -> Result<Answers, Failure> {
        let numbers = [callers.to_string(), connections.to_string(), seconds.to_string()];
        let [callers, connections, seconds] = numbers.each_ref().map(String::as_str);
        let options =
            ["--address", &address, "--callers", callers, "--connections", connections, "--seconds", seconds];
        child(&[&["native-load"][..], &options[..]].concat())
    };
    load(64, SHARED, args.seconds.min(2))?;
    for (callers, connections) in [(1, 1), (64, 64), (256, 256), (64, SHARED), (256, SHARED)] {
        let (mut rates, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            let answers = load(callers, connections, args.seconds)?;
            rates.push(answers.answered as f64 / answers.seconds);
            p50.push(answers.p50_ms);
            p99.push(answers.p99_ms);
        }
        let of = match (callers, connections) {
            (1, _) => "1 client".to_owned(),
            _ if callers == connections => format!("{callers} clients on their own connections"),
            _ => format!("{callers} clients over {connections} connections"),
        };
        report.add(WORKLOAD, format!("answered, {of}"), "1/s", &rates, None);
        report.add(WORKLOAD, format!("p50, {of}"), "ms", &p50, None);
        report.add(WORKLOAD, format!("p99, {of}"), "ms", &p99, None);
    }
    node.shutdown();
    Ok(())
}

/// Loads a node from this process.
pub(super) fn run_child(args: &BenchArgs) -> Result<(), Failure> {
    let address = args.address.ok_or_else(|| Failure::new(Exit::Usage, "--address is missing"))?.to_string();
    let connected = |error: ConnectError| failed("connect to the node")(&error);
    let time = args.round();
    let (seconds, mut micros) = if args.connections < args.callers {
        let runtime = runtime()?;
        let clients: Result<Vec<_>, _> =
            (0..args.connections).map(|_| runtime.block_on(Client::connect([&address]))).collect();
        let clients = Arc::new(clients.map_err(connected)?);
        let calls = drive(args.callers, time, move || {
            let clients = Arc::clone(&clients);
            async move {
                let client = &clients[fastrand::usize(..clients.len())];
                client.call::<Note>(&fastrand::u32(..PROCESSES), Write(value())).await
            }
        })?;
        (calls.seconds, calls.micros)
    } else {
        let clients: Result<Vec<_>, _> =
            (0..args.callers).map(|_| BlockingClient::connect([&address])).collect();
        let clients = clients.map_err(connected)?;
        let start = Instant::now();
        let threads: Vec<_> =
            clients.into_iter().map(|client| thread::spawn(move || one(&client, time))).collect();
        let mut micros = Vec::new();
        for thread in threads {
            let called = thread.join().map_err(|_| failed("call the node")(&"a thread panicked"))?;
            micros.append(&mut called.map_err(|error| failed("call the node")(&error))?);
        }
        (start.elapsed().as_secs_f64(), micros)
    };
    micros.sort_unstable();
    let ms = |share| quantile(&micros, share) / 1e3;
    let answered = micros.len() as u64;
    output::json(&Answers { seconds, answered, refused: 0, p50_ms: ms(0.5), p99_ms: ms(0.99) })
}

/// Lets one blocking client call for `time`; returns the latencies in microseconds.
fn one(client: &BlockingClient, time: Duration) -> Result<Vec<u32>, stead::CallError<Never>> {
    let start = Instant::now();
    let (mut micros, mut begun) = (Vec::new(), start);
    while begun - start < time {
        client.call::<Note>(&fastrand::u32(..PROCESSES), Write(value()))?;
        let ended = Instant::now();
        micros.push((ended - begun).as_micros() as u32);
        begun = ended;
    }
    Ok(micros)
}

fn value() -> String {
    "v".repeat(VALUE_BYTES)
}
