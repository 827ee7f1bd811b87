//! Handlers and steps of tasks that end the process: it is restarted each time, until the cause is given up and all
//! else continues.
//!
//! The process is this test binary, run again with [`DIR`] set.

use crate::patience::{await_some, await_until};
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use stead::{Context, Never, Node, Process, Progress, QueryContext, ServiceOptions, StepContext, Task};

/// The data directory of a child.
const DIR: &str = "FAULTS_CHILD_DIR";
/// The fault of a child's patient.
const FAULT: &str = "FAULTS_CHILD_FAULT";
/// Whether a client itself requests the fault, or a message of another process.
const BY_CLIENT: &str = "FAULTS_CHILD_BY_CLIENT";
const ATTEMPTS: u32 = 2;
const DEPOSITS: u64 = 5;

#[derive(Default, Serialize, Deserialize)]
struct Patient {
    calls: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Ask {
    Count,
    /// Sends the fault to one process and a `Count` after it to another, on the same channel.
    Harm {
        sick: String,
        well: String,
        fault: Box<Ask>,
    },
    /// Starts a task whose step suffers the fault.
    Task(Box<Ask>),
    Panic,
    Overflow,
    Loop,
    Allocate,
}

#[derive(Serialize, Deserialize)]
struct Calls;

impl Process for Patient {
    const SERVICE: &'static str = "patient";
    type Key = String;
    type Request = Ask;
    type Reply = u64;
    type Error = Never;
    type Query = Calls;
    type Answer = u64;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Ask) -> Result<u64, Never> {
        self.calls += 1;
        match request {
            Ask::Task(fault) => {
                ctx.start_task(Sick(*fault));
            }
            Ask::Count => {}
            Ask::Harm { sick, well, fault } => {
                ctx.send::<Self>(&sick, *fault);
                ctx.send::<Self>(&well, Ask::Count);
            }
            fault => self.calls += suffer(&fault),
        }
        Ok(self.calls)
    }

    fn query(&self, _: &QueryContext<'_, Self>, Calls: Calls) -> Result<u64, Never> {
        Ok(self.calls)
    }
}

fn suffer(fault: &Ask) -> u64 {
    match fault {
        Ask::Overflow => deeper(u64::MAX),
        Ask::Loop => loop {
            black_box(fault);
        },
        Ask::Allocate => {
            let mut kept: Vec<Vec<u8>> = Vec::new();
            loop {
                kept.push(Vec::with_capacity(64 << 20));
                black_box(&kept);
            }
        }
        _ => panic!("as asked"),
    }
}

/// A task whose second step suffers a fault.
#[derive(Serialize, Deserialize)]
struct Sick(Ask);

impl Task for Sick {
    const NAME: &'static str = "sick";
    type Owner = Patient;

    fn step(&mut self, ctx: &StepContext<'_>) -> Progress {
        if ctx.step() > 0 {
            suffer(&self.0);
        }
        Progress::Continue(0.5)
    }

    fn finish(self) -> Ask {
        Ask::Count
    }
}

fn deeper(levels: u64) -> u64 {
    let frame = black_box([levels; 64]);
    if levels == 0 { 0 } else { deeper(levels - 1) + black_box(frame)[7] }
}

fn open(dir: &Path) -> Node {
    Node::builder(dir)
        .service::<Patient>(ServiceOptions::default().shards(2).attempts_max(ATTEMPTS))
        .task::<Sick>()
        .threads(2)
        .task_threads(1)
        .segment_bytes(256 << 10)
        .handler_timeout(Duration::from_millis(60))
        .suspect_for(Duration::from_millis(200))
        .task_step_timeout(Duration::from_millis(80))
        .checkpoints(stead::CheckpointOptions { interval: None, ..Default::default() })
        .open()
        .unwrap()
}

/// Returns a key on the given one of the two shards.
fn key_on(node: &Node, shard: u32, name: &str) -> String {
    let service = node.topology().service_id("patient").unwrap();
    let mut keys = (0..).map(|n| format!("{name}-{n}"));
    keys.find(|key| node.topology().shard_of(service, key).0 == shard).unwrap()
}

/// One life: the first one requests the fault, each waits until it is given up, and then checks that all else works.
#[test]
#[ignore = "a life of the tests below, which run it as a child process"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let node = open(Path::new(&dir));
    let client = node.blocking_client().with_timeout(Duration::from_secs(5));
    let (sender, sick, well) =
        (key_on(&node, 0, "sender"), key_on(&node, 1, "sick"), key_on(&node, 1, "well"));
    let fault: Ask = serde_json::from_str(&std::env::var(FAULT).unwrap()).unwrap();
    if std::env::var_os(BY_CLIENT).is_some() {
        // In each life the client repeats its unanswered request.
        let refused = client.call_idempotent::<Patient>(&sick, b"once", fault).unwrap_err();
        println!("given up: {refused}");
        let calls = client.query::<Patient>(&sick, Calls).unwrap();
        assert_eq!(client.call::<Patient>(&sick, Ask::Count).unwrap(), calls + 1, "others are taken");
        node.shutdown();
        return;
    }
    // A task belongs to its process, and the request that started it was handled.
    let (from, calls) = if matches!(fault, Ask::Task(_)) { (&sick, 1) } else { (&sender, 0) };
    if node.recovery().created {
        for _ in 0..DEPOSITS {
            client.call::<Patient>(&well, Ask::Count).unwrap();
        }
        let harm = Ask::Harm { sick: sick.clone(), well: well.clone(), fault: Box::new(fault.clone()) };
        // The process may end before the answer is read: the message is in flight anyway.
        let _ = client.call::<Patient>(&sender, harm);
    }
    let letter =
        await_some("a dead letter", || node.dead_letters("patient", None, 1000).unwrap().dead_letters.pop());
    assert_eq!((&letter.process, &letter.sender), (&sick, from));
    assert!(letter.payload.is_some());
    println!("given up: {}", letter.reason);
    // The messages behind it on its channel are handled, and so are later requests to its shard.
    await_until("they are handled", || client.query::<Patient>(&well, Calls).unwrap() > DEPOSITS);
    assert_eq!(
        client.query::<Patient>(&sick, Calls).unwrap(),
        calls,
        "a cause that was given up leaves no trace"
    );
    assert_eq!(client.query::<Patient>(&sender, Calls).unwrap(), 1);
    let calls = client.query::<Patient>(&well, Calls).unwrap();
    assert_eq!(client.call::<Patient>(&well, Ask::Count).unwrap(), calls + 1);
    node.shutdown();
}

fn live(dir: &Path, fault: &Ask, by_client: bool) -> Output {
    // No core files, and a limit for an endless allocation.
    let limited = "ulimit -c 0; ulimit -v 4000000; exec \"$0\" \"$@\"";
    Command::new("sh")
        .args(["-c", limited])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "faults_handler::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(FAULT, serde_json::to_string(fault).unwrap())
        .envs(by_client.then_some((BY_CLIENT, "")))
        .output()
        .unwrap()
}

/// Restarts the child each time a signal ends it; returns the number of such ends, and its output.
fn lives(fault: &Ask, by_client: bool) -> (u32, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for deaths in 0..=ATTEMPTS + 3 {
        let output = live(dir.path(), fault, by_client);
        text += &String::from_utf8_lossy(&output.stdout);
        text += &String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            // It stays given up.
            assert!(live(dir.path(), fault, by_client).status.success());
            return (deaths, text);
        }
        assert!(output.status.signal().is_some(), "{}: {text}", output.status);
    }
    panic!("the cause was never given up: {text}");
}

/// The first life suspects nothing, the second handles the message in a group, and each later one handles it alone.
fn ends_the_process(fault: &Ask, last_words: &str) {
    let (deaths, text) = lives(fault, false);
    assert_eq!(deaths, ATTEMPTS + 2, "{text}");
    assert!(text.contains(last_words), "{text}");
    assert!(text.contains("given up: the process ended 2 times while it was handled alone"), "{text}");
}

#[test]
fn a_message_whose_handler_panics_is_given_up_without_a_restart() {
    let (deaths, text) = lives(&Ask::Panic, false);
    assert_eq!(deaths, 0, "{text}");
    assert!(text.contains("given up: the handler panicked: as asked (at "), "{text}");
}

#[test]
fn a_handler_that_overflows_its_stack_is_given_up_and_the_rest_goes_on() {
    ends_the_process(&Ask::Overflow, "has overflowed its stack");
}

#[test]
fn a_handler_that_loops_for_ever_is_given_up_and_the_rest_goes_on() {
    ends_the_process(
        &Ask::Loop,
        "handling a message of another process, has run for over 60 ms (handler_timeout)",
    );
}

#[test]
fn a_handler_that_allocates_without_end_is_given_up_and_the_rest_goes_on() {
    ends_the_process(&Ask::Allocate, "memory allocation of 67108864 bytes failed");
}

#[test]
fn a_request_of_a_client_that_ends_the_process_each_time_is_refused_in_the_end() {
    let (deaths, text) = lives(&Ask::Overflow, true);
    assert_eq!(deaths, ATTEMPTS + 2, "{text}");
    assert!(text.contains("has overflowed its stack"), "{text}");
    assert!(text.contains("given up: the process ended 2 times while it handled this request"), "{text}");
}

#[test]
fn a_step_that_panics_is_given_up_without_a_restart() {
    let (deaths, text) = lives(&Ask::Task(Box::new(Ask::Panic)), false);
    assert_eq!(deaths, 0, "{text}");
    assert!(text.contains("given up: task sick panicked: as asked (at "), "{text}");
}

#[test]
fn a_step_that_overflows_its_stack_is_given_up_and_the_rest_goes_on() {
    ends_the_process(&Ask::Task(Box::new(Ask::Overflow)), "has overflowed its stack");
}

#[test]
fn a_step_that_loops_for_ever_is_given_up_and_the_rest_goes_on() {
    ends_the_process(&Ask::Task(Box::new(Ask::Loop)), "has run for over 80 ms (task_step_timeout)");
}

#[test]
fn a_step_that_allocates_without_end_is_given_up_and_the_rest_goes_on() {
    ends_the_process(&Ask::Task(Box::new(Ask::Allocate)), "memory allocation of 67108864 bytes failed");
}
