//! The bytes that wait in a node are bounded, however few calls cause them.

use crate::faults::{Faults, FaultyDisk};
use crate::patience::{PATIENCE, await_some, await_until};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use stead::{
    CallError, CheckpointOptions, Context, MemoryStatus, Never, Node, NodeBuilder, Process, Progress,
    QueryContext, RawError, Refusal, ServiceOptions, StepContext, Task,
};

const MIB: usize = 1 << 20;

/// A process with a text that each message replaces as a whole.
#[derive(Default, Serialize, Deserialize)]
struct Board {
    text: String,
    messages: u32,
}

#[derive(Serialize, Deserialize)]
enum Ask {
    /// Send this many messages to this many boards; each writes this many bytes.
    Spread {
        messages: u32,
        boards: u32,
        bytes: usize,
    },
    /// Send a board this text.
    Send {
        to: u32,
        text: String,
    },
    Text(String),
    /// Start this many tasks.
    Tasks(u32),
    Rewrite(usize),
    /// Wait until [`GATE`] is open.
    Wait,
}

/// Makes a MiB in one step.
#[derive(Serialize, Deserialize)]
struct Make(String);

/// Steps that were run.
static STEPS: AtomicU32 = AtomicU32::new(0);

impl Task for Make {
    const NAME: &'static str = "make";
    type Owner = Board;
    fn step(&mut self, _: &StepContext<'_>) -> Progress {
        self.0 = "m".repeat(MIB);
        STEPS.fetch_add(1, Ordering::SeqCst);
        Progress::Done
    }
    fn finish(self) -> Ask {
        Ask::Text(self.0)
    }
}

/// The gate at which handlers wait, and whether it is open.
static GATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

impl Process for Board {
    const SERVICE: &'static str = "board";
    type Key = u32;
    type Request = Ask;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = (u32, String);

    fn handle(&mut self, ctx: &mut Context<'_, Self>, ask: Ask) -> Result<(), Never> {
        match ask {
            Ask::Spread { messages, boards, bytes } => {
                for number in 0..messages {
                    ctx.send::<Self>(&(1 + number % boards), Ask::Rewrite(bytes));
                }
                return Ok(());
            }
            Ask::Send { to, text } => {
                ctx.send::<Self>(&to, Ask::Text(text));
                return Ok(());
            }
            Ask::Tasks(tasks) => {
                for _ in 0..tasks {
                    ctx.start_task(Make(String::new()));
                }
                return Ok(());
            }
            Ask::Text(text) => self.text = text,
            Ask::Rewrite(bytes) => {
                if self.text.len() != bytes {
                    self.text = "x".repeat(bytes);
                }
                let at = self.messages as usize % bytes;
                self.text.replace_range(at..=at, "y");
            }
            Ask::Wait => {
                let open = GATE.0.lock().unwrap();
                drop(GATE.1.wait_timeout_while(open, PATIENCE, |open| !*open).unwrap());
            }
        }
        self.messages += 1;
        Ok(())
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<(u32, String), Never> {
        Ok((self.messages, self.text.clone()))
    }
}

fn builder(dir: &Path, faults: &Arc<Faults>) -> NodeBuilder {
    Node::builder(dir)
        .service::<Board>(ServiceOptions::default().shards(8))
        .task::<Make>()
        .task_threads(4)
        .threads(2)
        .checkpoints(CheckpointOptions { interval: None, ..Default::default() })
        .disk(FaultyDisk::open(dir, faults))
}

/// Opens a node with very low limits.
fn narrow(dir: &Path, faults: &Arc<Faults>) -> Node {
    builder(dir, faults).memory_bytes_max(MIB as u64).uncommitted_bytes_max(MIB as u64).open().unwrap()
}

/// Returns another key whose process is on another shard, or on the same one.
fn key(node: &Node, of: u32, is_beside: bool) -> u32 {
    let topology = node.topology();
    let service = topology.service_id("board").unwrap();
    let shard = |key: u32| topology.shard_of(service, &key.to_string());
    (of + 1..).find(|key| (shard(*key) == shard(of)) == is_beside).unwrap()
}

/// Begins a call without waiting for it.
fn begin(node: &Node, key: u32, ask: Ask) -> std::thread::JoinHandle<Result<(), CallError<Never>>> {
    let client = node.blocking_client().with_timeout(PATIENCE);
    std::thread::spawn(move || client.call::<Board>(&key, ask))
}

fn await_memory(node: &Node, until: impl Fn(&MemoryStatus) -> bool) -> MemoryStatus {
    await_some("the memory in use", || Some(node.status().memory).filter(&until))
}

fn is_overloaded<T: std::fmt::Debug>(result: &Result<T, CallError<Never>>) -> bool {
    matches!(result, Err(CallError::Raw(RawError::Refused(Refusal::Overloaded { .. }))))
}

/// Waits until a process has handled this many calls; its node may be overloaded meanwhile.
fn await_handled(client: &stead::BlockingClient, key: u32, count: u32) {
    await_until(&format!("{count} handled calls of {key}"), || {
        client.query::<Board>(&key, ()).is_ok_and(|(handled, _)| handled >= count)
    });
}

fn await_nothing(node: &Node) {
    await_memory(node, |m| m.uncommitted_bytes + m.outbox_bytes + m.request_bytes == 0);
}

#[test]
fn what_the_log_is_behind_with_stops_clients_and_a_call_over_the_limit_is_taken_and_answered() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::default();
    let node = narrow(dir.path(), &faults);
    let client = node.blocking_client();
    for _ in 0..3 {
        // A call that alone exceeds the limit is accepted each time: the earlier ones leave nothing behind.
        client.call::<Board>(&1, Ask::Text("x".repeat(2 * MIB))).unwrap();
    }
    let hanging = faults.hang();
    let taken = begin(&node, 1, Ask::Text("y".repeat(2 * MIB)));
    let waiting = await_memory(&node, |memory| memory.uncommitted_bytes > 2 * MIB as u64);
    assert_eq!((waiting.bytes_max, waiting.uncommitted_bytes_max), (MIB as u64, MIB as u64));
    assert!(waiting.request_bytes > 2 * MIB as u64, "the call waits: {waiting:?}");
    let metrics = node.metrics();
    assert_eq!(metrics.request_bytes, waiting.request_bytes);
    assert!(is_overloaded(&client.call::<Board>(&2, Ask::Rewrite(1))));
    assert!(is_overloaded(&client.query::<Board>(&2, ())));
    let refused = |result: Result<(), RawError>| {
        assert!(matches!(result, Err(RawError::Refused(Refusal::Overloaded { .. }))), "{result:?}");
    };
    refused(client.drop_dead_letter(0, 1));
    refused(client.retry_dead_letter(0, 1).map(drop));
    refused(node.delete_process("board", "2").map(drop));
    drop(hanging);
    taken.join().unwrap().unwrap();
    client.call::<Board>(&2, Ask::Rewrite(1)).unwrap();
    assert_eq!(client.query::<Board>(&1, ()).unwrap().0, 4);
    await_nothing(&node);
}

#[test]
fn messages_over_the_limits_all_arrive_though_each_entry_is_larger_than_what_may_wait() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::default();
    let node = narrow(dir.path(), &faults);
    let client = node.blocking_client().with_timeout(PATIENCE);
    client.call::<Board>(&0, Ask::Spread { messages: 24, boards: 3, bytes: 2 * MIB }).unwrap();
    // Text that is larger than the limit of all that may wait, in an outbox too.
    await_until("the call is taken", || {
        let sent = client.call::<Board>(&0, Ask::Send { to: 5, text: "z".repeat(3 * MIB) });
        assert!(sent.is_ok() || is_overloaded(&sent));
        sent.is_ok()
    });
    await_nothing(&node);
    for board in 1..=3 {
        assert_eq!(client.query::<Board>(&board, ()).unwrap().0, 8);
    }
    assert_eq!(client.query::<Board>(&5, ()).unwrap().1.len(), 3 * MIB);
}

#[test]
fn messages_that_wait_for_their_receiver_stop_clients_but_not_queries_and_all_drains() {
    let dir = tempfile::tempdir().unwrap();
    let node = narrow(dir.path(), &Arc::default());
    let client = node.blocking_client();
    let held = key(&node, 0, false);
    let beside = key(&node, held, true);
    let free = (0..).find(|key| node_worker(&node, *key) != node_worker(&node, held)).unwrap();
    let waits = begin(&node, held, Ask::Wait);
    await_until("the shard is held", || {
        client.with_timeout(Duration::from_millis(20)).query::<Board>(&beside, ()).is_err()
    });
    client.call::<Board>(&free, Ask::Send { to: beside, text: "x".repeat(MIB) }).unwrap();
    await_memory(&node, |memory| memory.outbox_bytes > MIB as u64);
    assert!(is_overloaded(&client.call::<Board>(&free, Ask::Rewrite(1))));
    assert_eq!(client.query::<Board>(&free, ()).unwrap().0, 0);
    // Calls that wait for the shard count too, until queries are refused as well.
    await_memory(&node, |memory| memory.request_bytes < 100_000);
    let calls: Vec<_> = (0..4)
        .map(|_| {
            let client = node.blocking_client().with_timeout(PATIENCE);
            let text = "q".repeat(MIB);
            std::thread::spawn(move || query_raw(&client, &beside.to_string(), text.into_bytes()))
        })
        .collect();
    await_memory(&node, |memory| memory.request_bytes > MIB as u64);
    let refused = client.query::<Board>(&free, ());
    assert!(is_overloaded(&refused), "{refused:?}");
    // One that came later would be taken.
    await_until("the others are refused", || calls.iter().filter(|call| call.is_finished()).count() == 3);
    *GATE.0.lock().unwrap() = true;
    GATE.1.notify_all();
    waits.join().unwrap().unwrap();
    let answers = calls.into_iter().map(|call| call.join().unwrap());
    let overloaded =
        answers.filter(|answer| matches!(answer, Err(RawError::Refused(Refusal::Overloaded { .. })))).count();
    assert_eq!(overloaded, 3, "one of them is taken, whatever its size, and the others are refused at once");
    await_nothing(&node);
    assert_eq!(client.query::<Board>(&beside, ()).unwrap().1.len(), MIB);
    client.call::<Board>(&free, Ask::Rewrite(1)).unwrap();
}

#[test]
fn steps_wait_while_what_they_made_waits_and_all_of_them_end() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::default();
    let node = narrow(dir.path(), &faults);
    let client = node.blocking_client().with_timeout(PATIENCE);
    // The call is in the log before its tasks run.
    client.call::<Board>(&0, Ask::Tasks(40)).unwrap();
    let hanging = faults.hang();
    await_memory(&node, |memory| memory.uncommitted_bytes + memory.outbox_bytes > MIB as u64);
    // Each thread completes its current step, and begins no other.
    let before = STEPS.load(Ordering::SeqCst);
    for _ in 0..500 {
        let waiting = node.status().memory;
        assert!(waiting.uncommitted_bytes + waiting.outbox_bytes < 12 * MIB as u64, "{waiting:?}");
    }
    let after = STEPS.load(Ordering::SeqCst);
    assert!(after <= before + 4, "{before} steps were run, then {after}");
    drop(hanging);
    await_handled(&client, 0, 40);
    assert_eq!(STEPS.load(Ordering::SeqCst), 40);
    await_nothing(&node);
}

/// Returns the worker of a process's shard.
fn node_worker(node: &Node, key: u32) -> u32 {
    let topology = node.topology();
    topology.shard_of(topology.service_id("board").unwrap(), &key.to_string()).0 % 2
}

/// Sends a query with an invalid payload of a given size.
fn query_raw(client: &stead::BlockingClient, key: &str, payload: Vec<u8>) -> Result<(), RawError> {
    let call = stead::RawCall {
        service: "board",
        key,
        payload,
        principal: "local",
        idempotency_key: None,
        seen: None,
        timeout: PATIENCE,
    };
    client.query_raw(call).map(drop)
}

/// Number of messages that a child sends, and bytes that may wait for the log.
const FLOOD: &str = "MEMORY_FLOOD";

/// Returns the largest resident size of this process so far, in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
#[ignore = "run as a child process, whose memory is its own"]
fn child() {
    let Ok(flood) = std::env::var(FLOOD) else { return };
    let (messages, limit) = flood.split_once(' ').unwrap();
    let (messages, limit): (u32, u64) = (messages.parse().unwrap(), limit.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::default();
    let node = builder(dir.path(), &faults).uncommitted_bytes_max(limit).open().unwrap();
    let client = node.blocking_client().with_timeout(PATIENCE);
    let boards = 16;
    client.call::<Board>(&0, Ask::Spread { messages, boards, bytes: MIB / 4 }).unwrap();
    // The log makes no progress until as much as possible waits for it: the worst case of a slow disk.
    let hanging = faults.hang();
    let waiting = await_memory(&node, |memory| memory.uncommitted_bytes >= limit);
    drop(hanging);
    for board in 1..=boards {
        await_handled(&client, board, messages / boards);
    }
    println!("waited for the log: {} MiB; peak: {} MiB", waiting.uncommitted_bytes >> 20, peak_mib());
    node.shutdown();
}

/// Runs the child; returns the peak of its memory in MiB.
fn peak_of(messages: u32, limit: usize) -> u64 {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(FLOOD, format!("{messages} {limit}"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    let (_, peak) = said.split_once("; peak: ").unwrap();
    peak.split_once(' ').unwrap().0.parse().unwrap()
}

/// The messages write 192 MiB. With all of it in memory at once, the peak was over twice as much.
#[test]
#[cfg(target_os = "linux")]
fn one_call_that_makes_messages_write_much_takes_little_memory_though_the_log_is_slow() {
    let peak = peak_of(768, 16 * MIB);
    assert!(peak < 128, "{peak} MiB");
}

/// As above with the standard limits: 2 GiB.
#[test]
#[cfg(target_os = "linux")]
#[ignore = "writes 2 GiB: minutes in a debug build"]
fn eight_thousand_messages_of_a_quarter_of_a_mib_stay_below_600_mib() {
    let peak = peak_of(8000, 256 * MIB);
    assert!(peak < 600, "{peak} MiB");
}
