//! A query holds no shard and ends no process, whatever its code does: its client is answered by its deadline.

use crate::patience::{PATIENCE, await_until};
use crate::services::builder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, mpsc};
use std::thread;
use std::time::Duration;
use stead::kv::{self, Kv};
use stead::{
    CallError, Client, Context, Never, Node, NodeBuilder, Process, QueryContext, RawError, Refusal,
    ServiceOptions,
};

/// Time in which an expected event must come.
/// Queries of a service that may be stuck, and threads that one service's queries get; both are in docs/limits.md.
const STUCK_MAX: usize = 4;
const THREADS: usize = 6;

/// By key of a process, which no two tests share: number of queries that have begun to wait, and whether they may
/// continue.
static GATES: Mutex<BTreeMap<String, (usize, bool)>> = Mutex::new(BTreeMap::new());
static CHANGED: Condvar = Condvar::new();

/// Blocks until the gate of a key is open.
fn pass(key: &str) {
    let mut gates = GATES.lock().unwrap();
    gates.entry(key.to_owned()).or_default().0 += 1;
    CHANGED.notify_all();
    drop(CHANGED.wait_while(gates, |gates| !gates[key].1).unwrap());
}

/// Waits until this many queries have reached the gate of a key.
fn await_begun(key: &str, count: usize) {
    let gates = GATES.lock().unwrap();
    let begun =
        |gates: &mut BTreeMap<String, (usize, bool)>| gates.get(key).is_none_or(|gate| gate.0 < count);
    let (_gates, waited) = CHANGED.wait_timeout_while(gates, PATIENCE, begun).unwrap();
    assert!(!waited.timed_out(), "{count} queries of {key} did not begin");
}

fn open_gate(key: &str) {
    GATES.lock().unwrap().entry(key.to_owned()).or_default().1 = true;
    CHANGED.notify_all();
}

/// Answers queries late, or never.
#[derive(Default, Serialize, Deserialize)]
struct Slow {
    calls: u64,
    pad: String,
}

#[derive(Serialize, Deserialize)]
enum Ask {
    Count,
    Fill {
        cells: u32,
        value: u64,
    },
    /// Makes the whole-value state this many bytes larger.
    Pad {
        bytes: usize,
    },
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum Look {
    Calls,
    /// Waits at the gate of the process first.
    Wait,
    /// The sum of all cells and calls, read on both sides of the gate.
    Sums,
}

impl Process for Slow {
    const SERVICE: &'static str = "slow";
    type Key = String;
    type Request = Ask;
    type Reply = u64;
    type Error = Never;
    type Query = Look;
    type Answer = (u64, u64);

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Ask) -> Result<u64, Never> {
        self.calls += 1;
        match request {
            Ask::Count => {}
            Ask::Fill { cells, value } => {
                (0..cells).for_each(|cell| ctx.put_cell(&cell.to_be_bytes(), &value));
            }
            Ask::Pad { bytes } => self.pad = "x".repeat(bytes),
        }
        Ok(self.calls)
    }

    fn query(&self, ctx: &QueryContext<'_, Self>, look: Look) -> Result<(u64, u64), Never> {
        let sum = || ctx.scan_cells::<u64>(b"", b"", usize::MAX).into_iter().map(|(_, value)| value).sum();
        Ok(match look {
            Look::Calls => (self.calls, 0),
            Look::Wait => {
                pass(ctx.key());
                (self.calls, 0)
            }
            Look::Sums => {
                let before = sum();
                pass(ctx.key());
                (before, sum())
            }
        })
    }
}

/// A service beside it.
#[derive(Default, Serialize, Deserialize)]
struct Quick;

/// The node that a query of `Quick` ends, from its own thread.
static ENDS: Mutex<Option<Node>> = Mutex::new(None);

impl Process for Quick {
    const SERVICE: &'static str = "quick";
    type Key = String;
    type Request = ();
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = String;

    fn handle(&mut self, _: &mut Context<'_, Self>, (): ()) -> Result<(), Never> {
        Ok(())
    }

    fn query(&self, ctx: &QueryContext<'_, Self>, (): ()) -> Result<String, Never> {
        if ctx.key() == "ends" {
            let node = ENDS.lock().unwrap().take().unwrap();
            pass("ends");
            node.shutdown();
        }
        Ok(ctx.key().clone())
    }
}

/// Opens a node with all processes of a service on one shard, and all shards on one worker.
fn node(dir: &tempfile::TempDir, set: impl FnOnce(NodeBuilder) -> NodeBuilder) -> Node {
    let one = ServiceOptions::default().shards(1);
    let builder = builder(dir.path()).threads(1).service::<Slow>(one.clone());
    set(builder.service::<Quick>(one.clone()).service::<Kv>(one)).open().unwrap()
}

/// Queries like async code: only the node's own timers apply.
fn query(client: &Client, key: &str, look: Look) -> Result<(u64, u64), RawError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    match runtime.block_on(client.query::<Slow>(&key.to_owned(), look)) {
        Ok(answer) => Ok(answer),
        Err(CallError::Raw(error)) => Err(error),
        Err(CallError::Process(never)) => match never {},
    }
}

/// Queries on a thread of its own.
fn begin(client: &Client, key: &str, look: Look) -> thread::JoinHandle<Result<(u64, u64), RawError>> {
    let (client, key) = (client.clone(), key.to_owned());
    thread::spawn(move || query(&client, &key, look))
}

#[test]
fn a_query_that_never_ends_is_given_up_at_the_deadline_and_holds_no_shard() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir, |builder| builder.shutdown_timeout(Duration::from_millis(100)));
    let (client, calls) = (node.client().with_timeout(PATIENCE), node.blocking_client());
    let key = "never".to_owned();
    calls.call::<Slow>(&key, Ask::Count).unwrap();
    let hung = begin(&client.with_timeout(Duration::from_millis(200)), &key, Look::Wait);
    await_begun(&key, 1);
    // The same shard, and the same process, still answer.
    assert_eq!(calls.call::<Slow>(&key, Ask::Count).unwrap(), 2);
    assert_eq!(query(&client, &key, Look::Calls), Ok((2, 0)));
    let after = Duration::from_millis(200);
    assert_eq!(hung.join().unwrap(), Err(RawError::TimedOut { after }));
    assert_eq!(node.metrics().queries_given_up, 1);
    // A query whose client still waits is stopped neither by the deadline nor by the end of the node.
    let left = begin(&client, &key, Look::Wait);
    await_begun(&key, 2);
    let (done, ended) = mpsc::channel();
    let stopped = node.clone();
    thread::spawn(move || {
        stopped.shutdown();
        let _ = done.send(());
    });
    ended.recv_timeout(PATIENCE).expect("a shutdown waits for no query for ever");
    assert_eq!(left.join().unwrap(), Err(RawError::Stopped));
    drop((client, calls, node));
    let node = self::node(&dir, |builder| builder);
    assert_eq!(query(&node.client(), &key, Look::Calls), Ok((2, 0)));
    open_gate(&key);
}

#[test]
fn queries_over_the_time_limit_are_given_up_and_refused_once_too_many_are_stuck() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir, |builder| builder.handler_timeout(Duration::from_millis(50)));
    let (client, calls) = (node.client().with_timeout(PATIENCE), node.blocking_client());
    let keys: Vec<String> = (0..STUCK_MAX).map(|n| format!("stuck{n}")).collect();
    for (n, key) in keys.iter().enumerate() {
        let error = query(&client, key, Look::Wait).unwrap_err();
        let process = format!("slow/{key}");
        assert_eq!(
            error,
            RawError::Refused(Refusal::QueryGivenUp { process, limit: Duration::from_millis(50) })
        );
        await_until("it is counted as stuck", || node.metrics().queries_stuck == n as u64 + 1);
    }
    let error = query(&client, "other", Look::Calls).unwrap_err();
    let (service, process) = ("slow".to_owned(), "slow/stuck0".to_owned());
    assert_eq!(error, RawError::Refused(Refusal::QueriesStuck { service, stuck: STUCK_MAX, process }));
    let stuck = node.status().stuck_queries;
    assert_eq!(stuck.iter().map(|query| &query.process).collect::<Vec<_>>(), keys.iter().collect::<Vec<_>>());
    assert!(stuck.iter().all(|query| query.service == "slow" && query.running >= Duration::from_millis(50)));
    // All else continues: requests of the service, queries of others.
    assert_eq!(calls.call::<Slow>(&"other".to_owned(), Ask::Count).unwrap(), 1);
    assert_eq!(calls.query::<Quick>(&"q".to_owned(), ()).unwrap(), "q");
    assert_eq!(calls.query::<Kv>(&"k".to_owned(), kv::Query::Get).unwrap(), None);
    // Once they end, queries of the service run again.
    keys.iter().for_each(|key| open_gate(key));
    await_until("they have ended", || node.metrics().queries_stuck == 0);
    assert_eq!(query(&client, "other", Look::Calls), Ok((1, 0)));
    assert_eq!(node.status().stuck_queries, []);
    assert_eq!(node.metrics().query_bytes, 0);
}

#[test]
fn queries_wait_for_a_thread_and_keep_their_deadlines_while_requests_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir, |builder| builder);
    let (client, calls) = (node.client().with_timeout(PATIENCE), node.blocking_client());
    let key = "crowd".to_owned();
    calls.call::<Slow>(&key, Ask::Count).unwrap();
    let running: Vec<_> = (0..THREADS).map(|_| begin(&client, &key, Look::Wait)).collect();
    await_begun(&key, THREADS);
    let waiting = begin(&client, &key, Look::Wait);
    await_until("it waits", || node.metrics().queries_waiting == 1);
    assert!(node.metrics().query_bytes > 0);
    let after = Duration::from_millis(50);
    let short = query(&client.with_timeout(after), &key, Look::Calls);
    assert_eq!(short, Err(RawError::TimedOut { after }), "no thread has time for it");
    // Stead's own brief queries and all requests need no thread of the queries.
    assert_eq!(calls.call::<Slow>(&key, Ask::Count).unwrap(), 2);
    assert_eq!(calls.query::<Kv>(&"k".to_owned(), kv::Query::Get).unwrap(), None);
    open_gate(&key);
    for query in running.into_iter().chain([waiting]) {
        assert_eq!(query.join().unwrap(), Ok((1, 0)), "as the process was when it was asked");
    }
    await_until("nothing is left", || node.metrics().query_bytes == 0);
}

#[test]
fn a_query_sees_all_cells_as_they_were_while_they_change() {
    const CELLS: u32 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir, |builder| builder);
    let (client, calls) = (node.client().with_timeout(PATIENCE), node.blocking_client());
    let key = "cells".to_owned();
    calls.call::<Slow>(&key, Ask::Fill { cells: CELLS, value: 1 }).unwrap();
    let sums = begin(&client, &key, Look::Sums);
    await_begun(&key, 1);
    calls.call::<Slow>(&key, Ask::Fill { cells: CELLS + 10, value: 7 }).unwrap();
    open_gate(&key);
    let sum = u64::from(CELLS);
    assert_eq!(sums.join().unwrap(), Ok((sum, sum)));
    let sum = 7 * (u64::from(CELLS) + 10);
    assert_eq!(query(&client, &key, Look::Sums), Ok((sum, sum)));
}

#[test]
fn stuck_queries_of_large_states_take_no_memory_from_other_queries() {
    let dir = tempfile::tempdir().unwrap();
    let limit = Duration::from_millis(50);
    let node = node(&dir, |builder| builder.handler_timeout(limit).memory_bytes_max(1 << 20));
    let (client, calls) = (node.client().with_timeout(PATIENCE), node.blocking_client());
    let key = "large".to_owned();
    calls.call::<Slow>(&key, Ask::Pad { bytes: 100_000 }).unwrap();
    // More than the quarter of the memory that queries may use.
    for stuck in 1..STUCK_MAX {
        query(&client, &key, Look::Wait).unwrap_err();
        await_until("it is counted as stuck", || node.metrics().queries_stuck == stuck as u64);
    }
    assert_eq!(node.metrics().query_bytes, 0);
    assert!(node.metrics().stuck_query_bytes > 256 << 10);
    assert_eq!(calls.query::<Quick>(&"q".to_owned(), ()).unwrap(), "q");
    assert_eq!(query(&client, "small", Look::Calls), Ok((0, 0)));
    open_gate(&key);
    await_until("nothing is left", || node.metrics().stuck_query_bytes == 0);
}

#[test]
fn slow_queries_of_one_service_leave_threads_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir, |builder| builder.handler_timeout(2 * PATIENCE));
    let (client, calls) = (node.client().with_timeout(PATIENCE), node.blocking_client());
    let key = "hogs".to_owned();
    let slow: Vec<_> = (0..16).map(|_| begin(&client, &key, Look::Wait)).collect();
    await_begun(&key, THREADS);
    await_until("the others wait", || node.metrics().queries_waiting == 16 - THREADS as u64);
    for _ in 0..20 {
        assert_eq!(calls.query::<Quick>(&"q".to_owned(), ()).unwrap(), "q");
    }
    assert_eq!(GATES.lock().unwrap()[&key].0, THREADS);
    open_gate(&key);
    for query in slow {
        assert_eq!(query.join().unwrap(), Ok((0, 0)));
    }
}

#[test]
fn cancelled_queries_give_up_their_threads_and_others_wait_for_them_unrefused() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir, |builder| builder.handler_timeout(2 * PATIENCE));
    let client = node.client().with_timeout(PATIENCE);
    let key = "cancelled".to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for begun in 1..=STUCK_MAX {
            let mut asked = Box::pin(client.query::<Slow>(&key, Look::Wait));
            tokio::select! {
                biased;
                _ = &mut asked => panic!("the gate is closed"),
                () = std::future::ready(()) => await_begun(&key, begun),
            }
            drop(asked);
        }
    });
    await_until("their threads are replaced", || node.metrics().queries_stuck == STUCK_MAX as u64);
    assert_eq!(node.metrics().queries_given_up, 0, "no client was answered");
    // They have not run for the maximum time: new queries wait.
    let waiting = begin(&client, "patient", Look::Calls);
    await_until("it waits", || node.metrics().queries_waiting == 1);
    open_gate(&key);
    assert_eq!(waiting.join().unwrap(), Ok((0, 0)));
}

#[test]
fn a_shutdown_without_time_left_still_answers_queries_that_were_taken() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir, |builder| builder.shutdown_timeout(Duration::ZERO));
    let (client, calls) = (node.client().with_timeout(PATIENCE), node.blocking_client());
    let key = "last".to_owned();
    let last = begin(&client, &key, Look::Wait);
    await_begun(&key, 1);
    let ending = node.clone();
    let ended = thread::spawn(move || ending.shutdown());
    await_until("the node takes no calls", || calls.call::<Slow>(&key, Ask::Count).is_err());
    open_gate(&key);
    assert_eq!(last.join().unwrap(), Ok((0, 0)));
    ended.join().unwrap();
}

#[test]
fn a_query_that_ends_its_node_does_not_wait_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir, |builder| builder.shutdown_timeout(2 * PATIENCE));
    *ENDS.lock().unwrap() = Some(node.clone());
    let calls = node.blocking_client();
    let asked = thread::spawn(move || calls.query::<Quick>(&"ends".to_owned(), ()));
    await_begun("ends", 1);
    // Another thread shuts the node down meanwhile, and waits for the query.
    let (done, ended) = mpsc::channel();
    let calls = node.blocking_client();
    thread::spawn(move || {
        node.shutdown();
        let _ = done.send(());
    });
    await_until("the node takes no calls", || calls.call::<Quick>(&"q".to_owned(), ()).is_err());
    open_gate("ends");
    ended.recv_timeout(PATIENCE).expect("neither waits for the other");
    assert_eq!(asked.join().unwrap().unwrap(), "ends");
}
