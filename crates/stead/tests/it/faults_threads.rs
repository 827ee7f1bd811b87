//! Threads of a node that wait for each other: none of them may wait forever.

use crate::patience::{PATIENCE, await_until};
use crate::services::builder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::task::{Context as Wakes, Waker};
use std::thread;
use std::time::Duration;
use stead::{
    CallError, CheckpointFailure, CheckpointOptions, Client, Context, Never, Node, Process, QueryContext,
    RawError, Refusal, ServiceOptions,
};
use stead_store::sim_disk::SimDisk;

/// Length of the log's segments on a small disk.
const SEGMENT_BYTES: u64 = 64 << 10;

/// A service with a large state in few records, so that a test creates it quickly.
#[derive(Default, Serialize, Deserialize)]
struct Bulk {
    text: String,
}

#[derive(Serialize, Deserialize)]
enum Ask {
    Fill(usize),
    Text(String),
    /// Holds the shard at a gate.
    Wait(String),
    Send {
        to: String,
        bytes: usize,
    },
    /// Adds this many small records.
    Cells(u32),
    /// As `Wait`, followed by a panic whose payload panics again.
    Burst(String),
    /// Drops the node's last handle.
    Drop,
}

static LAST: Mutex<Option<Node>> = Mutex::new(None);

/// A panic payload that panics again when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

impl Process for Bulk {
    const SERVICE: &'static str = "bulk";
    type Key = String;
    type Request = Ask;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = usize;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Ask) -> Result<(), Never> {
        match request {
            Ask::Fill(bytes) => self.text = "x".repeat(bytes),
            Ask::Wait(gate) => Gate::named(&gate).pass(),
            Ask::Send { to, bytes } => ctx.send::<Self>(&to, Ask::Text("x".repeat(bytes))),
            Ask::Text(text) => self.text = text,
            Ask::Cells(count) => {
                let first = ctx.random().u64(..).to_be_bytes();
                for cell in 0..count {
                    ctx.put_cell(&[first.as_slice(), &cell.to_be_bytes()].concat(), &0);
                }
            }
            Ask::Burst(gate) => {
                Gate::named(&gate).pass();
                std::panic::panic_any(Bomb);
            }
            Ask::Drop => drop(LAST.lock().unwrap().take()),
        }
        Ok(())
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<usize, Never> {
        Ok(self.text.len())
    }
}

/// A gate at which a handler waits until the test opens it.
#[derive(Default)]
struct Gate {
    /// Whether a handler has arrived, and whether the gate is open.
    state: Mutex<(bool, bool)>,
    news: Condvar,
}

static GATES: Mutex<BTreeMap<String, Arc<Gate>>> = Mutex::new(BTreeMap::new());

impl Gate {
    fn named(name: &str) -> Arc<Self> {
        Arc::clone(GATES.lock().unwrap().entry(name.to_owned()).or_default())
    }

    fn pass(&self) {
        self.state.lock().unwrap().0 = true;
        self.news.notify_all();
        self.wait(|(_, open)| *open);
    }

    fn await_arrival(&self) {
        self.wait(|(arrived, _)| *arrived);
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.news.notify_all();
    }

    fn wait(&self, until: impl Fn(&(bool, bool)) -> bool) {
        let state = self.state.lock().unwrap();
        let waited = self.news.wait_timeout_while(state, PATIENCE, |state| !until(state)).unwrap();
        assert!(!waited.1.timed_out());
    }
}

/// Runs a function that must end.
fn ends(what: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        what();
        done.send(()).unwrap();
    });
    ended.recv_timeout(PATIENCE).unwrap();
}

type Calls<'a> = Vec<Pin<Box<dyn Future<Output = Result<(), CallError<Never>>> + 'a>>>;

/// Begins calls without waiting for them.
fn begin<'a>(client: &'a Client, key: &'a String, asks: impl IntoIterator<Item = Ask>) -> Calls<'a> {
    let mut calls: Calls<'a> = Vec::new();
    for ask in asks {
        let mut call = Box::pin(client.call::<Bulk>(key, ask));
        assert!(call.as_mut().poll(&mut Wakes::from_waker(Waker::noop())).is_pending());
        calls.push(call);
    }
    calls
}

fn end<T>(call: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(call)
}

/// A node on a small simulated disk, one worker and one shard.
fn small(disk: &SimDisk) -> Node {
    builder(Path::new("unused"))
        .service::<Bulk>(ServiceOptions::default().shards(1))
        .threads(1)
        .segment_bytes(SEGMENT_BYTES)
        .checkpoints(CheckpointOptions {
            interval: None,
            // Longer than any pause of a loaded machine; a checkpoint that waits forever is still found.
            timeout: Duration::from_secs(60),
            ..Default::default()
        })
        .disk(Arc::new(disk.clone()))
        .open()
        .unwrap()
}

fn wait_at(node: &Node, gate: &'static str) -> (Arc<Gate>, thread::JoinHandle<Result<(), CallError<Never>>>) {
    let client = node.blocking_client();
    let call = thread::spawn(move || client.call::<Bulk>(&gate.to_owned(), Ask::Wait(gate.to_owned())));
    let gate = Gate::named(gate);
    gate.await_arrival();
    (gate, call)
}

/// Returns a key on another shard.
fn not_beside(node: &Node, key: &str) -> String {
    let service = node.topology().service_id("bulk").unwrap();
    let shard = |key: &str| node.topology().shard_of(service, key);
    (0..).map(|n| n.to_string()).find(|other| shard(other) != shard(key)).unwrap()
}

fn fill(node: &Node, key: &str, bytes: usize) -> Result<(), CallError<Never>> {
    node.blocking_client().call::<Bulk>(&key.to_owned(), Ask::Fill(bytes))
}

#[test]
fn a_checkpoint_of_more_state_than_may_wait_completes_on_an_idle_node() {
    let options = CheckpointOptions {
        interval: None,
        // The first shard's parts are still being written when the worker has handed over too much.
        bytes_per_second: 80 << 20,
        timeout: Duration::from_secs(20),
        ..Default::default()
    };
    let node = builder(Path::new("unused"))
        .service::<Bulk>(ServiceOptions::default().shards(3))
        .threads(1)
        .segment_bytes(48 << 20)
        .checkpoints(options)
        .disk(Arc::new(SimDisk::new(1)))
        .open()
        .unwrap();
    let service = node.topology().service_id("bulk").unwrap();
    let first = node.topology().service(service).first.0;
    for (shard, bytes) in (first..).zip([4 << 20, 17 << 20, 1 << 20]) {
        let mut keys = (0..).map(|n| n.to_string());
        let key = keys.find(|key| node.topology().shard_of(service, key).0 == shard).unwrap();
        node.blocking_client().call::<Bulk>(&key, Ask::Fill(bytes)).unwrap();
    }
    let report = end(node.checkpoint_unchecked()).unwrap();
    assert!(report.bytes_total > 22 << 20, "{report:?}");
}

#[test]
fn a_checkpoint_is_taken_although_a_shard_learns_late_of_it_and_of_one_that_was_given_up() {
    let disk = SimDisk::new(1);
    let node = builder(Path::new("unused"))
        .service::<Bulk>(ServiceOptions::default().shards(2))
        .threads(2)
        .segment_bytes(4 << 20)
        .checkpoints(CheckpointOptions { interval: None, ..Default::default() })
        .disk(Arc::new(disk.clone()))
        .open()
        .unwrap();
    // The snapshot of the held shard takes many turns of its worker.
    for _ in 0..60 {
        node.blocking_client().call::<Bulk>(&"late".to_owned(), Ask::Cells(200)).unwrap();
    }
    node.checkpoint_blocking().unwrap();
    for round in 0..2 {
        fill(&node, &not_beside(&node, "late"), (1 << 20) + round).unwrap();
        for _ in 0..60 {
            node.blocking_client().call::<Bulk>(&"late".to_owned(), Ask::Cells(200)).unwrap();
        }
        let name = ["given up", "given up again"][round];
        let client = node.blocking_client();
        let call = thread::spawn(move || client.call::<Bulk>(&"late".to_owned(), Ask::Wait(name.to_owned())));
        let gate = Gate::named(name);
        gate.await_arrival();
        disk.set_capacity(Some(0));
        let failed = node.checkpoint_blocking().unwrap_err();
        let CheckpointFailure::GivenUp { number, .. } = failed else { panic!("{failed}") };
        disk.set_capacity(None);
        let next = node.clone();
        let next = thread::spawn(move || next.checkpoint_blocking());
        await_until("the next one runs", || node.status().checkpoint_running == Some(number + 1));
        gate.open();
        call.join().unwrap().unwrap();
        ends(move || assert_eq!(next.join().unwrap().unwrap().number, number + 1));
    }
}

#[test]
fn checkpoints_that_are_given_up_leave_one_tombstone_and_their_numbers_stay_used() {
    let disk = SimDisk::new(1);
    let open = |timeout| {
        builder(Path::new("unused"))
            .service::<Bulk>(ServiceOptions::default().shards(1))
            .segment_bytes(4 << 20)
            .checkpoints(CheckpointOptions { interval: None, timeout, ..Default::default() })
            .disk(Arc::new(disk.clone()))
            .open()
            .unwrap()
    };
    let decided = || {
        let files = disk.files().into_iter();
        files.filter(|path| path.starts_with("checkpoints/manifests/")).collect::<Vec<_>>()
    };
    let node = open(Duration::from_millis(100));
    let client = node.blocking_client();
    let call =
        thread::spawn(move || client.call::<Bulk>(&"late".to_owned(), Ask::Wait("tombstones".to_owned())));
    let gate = Gate::named("tombstones");
    gate.await_arrival();
    let mut last = 0;
    for _ in 0..5 {
        let CheckpointFailure::GivenUp { number, .. } = node.checkpoint_blocking().unwrap_err() else {
            panic!("the only shard is held")
        };
        assert!(number > last);
        last = number;
    }
    gate.open();
    call.join().unwrap().unwrap();
    node.shutdown();
    assert_eq!(decided(), [format!("checkpoints/manifests/{last:020}.json")]);
    let node = open(Duration::from_secs(60));
    assert_eq!(node.checkpoint_blocking().unwrap().number, last + 1);
    node.shutdown();
    assert_eq!(decided(), [format!("checkpoints/manifests/{:020}.json", last + 1)]);
}

#[test]
fn failing_checkpoints_leave_a_full_log_its_last_room() {
    let disk = SimDisk::new(1);
    let node = small(&disk);
    for key in 0..10 {
        fill(&node, &key.to_string(), 20 << 10).unwrap();
    }
    fill(&node, "small", 1).unwrap();
    // A log that had to wait for its next segment now would refuse even the first checkpoint.
    await_until("the next segment is ready", || node.status().log.reserve >= SEGMENT_BYTES / 2);
    // Space for a checkpoint's beginning, but not for its end, and not for a segment of the log.
    disk.set_capacity(Some(disk.used() + (20 << 10)));
    await_until("the log is full", || fill(&node, "small", 1).is_err());
    let small = || node.blocking_client().query::<Bulk>(&"small".to_owned(), ()).unwrap();
    let refused = (0..100).find_map(|_| match node.checkpoint_blocking().unwrap_err() {
        CheckpointFailure::GivenUp { reason, .. } => {
            assert!(!reason.contains("it took over"), "{reason}");
            // Answered once the marker is in the log: markers of many checkpoints would share a batch.
            assert_eq!(small(), 1);
            None
        }
        refused => Some(refused),
    });
    assert_eq!(refused, Some(CheckpointFailure::Full));
    assert_eq!(small(), 1);
    disk.set_capacity(None);
    await_until("writes resume", || fill(&node, "small", 2).is_ok());
    node.checkpoint_blocking().unwrap();
}

#[test]
fn a_node_whose_log_waits_for_room_can_be_shut_down() {
    let disk = SimDisk::new(1);
    let node = small(&disk);
    let client = node.client();
    let (gate, key) = (Gate::named("room"), "a".to_owned());
    let asks = (0..30).map(|n| Ask::Fill((20 << 10) + n));
    let mut calls = begin(&client, &key, std::iter::once(Ask::Wait("room".to_owned())).chain(asks));
    gate.await_arrival();
    disk.set_capacity(Some(disk.used()));
    // Together they are far over the log's prepared space.
    gate.open();
    await_until("the log is full", || node.status().full);
    ends(move || node.shutdown());
    let last = end(calls.pop().unwrap()).unwrap_err();
    let CallError::Raw(RawError::NodeFailed(reason)) = last else { panic!("{last}") };
    assert!(reason.contains("no room"), "{reason}");
}

#[test]
fn a_node_that_writes_a_checkpoint_slowly_can_be_shut_down() {
    let options = CheckpointOptions { interval: None, bytes_per_second: 4 << 10, ..Default::default() };
    let node = builder(Path::new("unused"))
        .service::<Bulk>(ServiceOptions::default().shards(1))
        .segment_bytes(4 << 20)
        .checkpoints(options)
        .disk(Arc::new(SimDisk::new(1)))
        .open()
        .unwrap();
    fill(&node, "a", 1 << 20).unwrap();
    let other = node.clone();
    // At its pace it takes minutes.
    let slow = thread::spawn(move || end(other.checkpoint_unchecked()));
    await_until("a checkpoint runs", || node.status().checkpoint_running.is_some());
    ends(move || node.shutdown());
    let taken = slow.join().unwrap();
    assert!(matches!(taken, Ok(_) | Err(CheckpointFailure::Stopped(_))), "{taken:?}");
}

#[test]
fn a_node_whose_last_handle_a_handler_drops_ends_whole() {
    let disk = SimDisk::new(1);
    let node = small(&disk);
    let client = node.blocking_client().with_timeout(PATIENCE * 2);
    *LAST.lock().unwrap() = Some(node);
    ends(move || {
        // The thread that the handler was on, which holds the call, must end, too.
        let ended = client.call::<Bulk>(&"a".to_owned(), Ask::Drop);
        assert_eq!(ended, Err(CallError::Raw(RawError::Stopped)));
    });
    drop(small(&disk));
}

#[test]
fn a_second_shutdown_waits_for_the_first() {
    let disk = SimDisk::new(1);
    let node = small(&disk);
    let (gate, call) = wait_at(&node, "twice");
    let begun = Arc::new(AtomicUsize::new(0));
    let ends: Vec<_> = (0..3)
        .map(|_| {
            let (done, ended) = mpsc::channel();
            let (node, begun) = (node.clone(), Arc::clone(&begun));
            thread::spawn(move || {
                begun.fetch_add(1, Ordering::SeqCst);
                node.shutdown();
                done.send(()).unwrap();
            });
            ended
        })
        .collect();
    await_until("all shutdowns have begun", || !node.is_ready() && begun.load(Ordering::SeqCst) == 3);
    // The others may get where they must not.
    (0..10).for_each(|_| thread::yield_now());
    assert!(ends.iter().all(|ended| ended.try_recv().is_err()));
    gate.open();
    for ended in ends {
        ended.recv_timeout(PATIENCE).unwrap();
    }
    assert_eq!(call.join().unwrap(), Ok(()), "what was taken on is answered");
    drop(node);
    drop(small(&disk));
}

#[test]
fn calls_in_the_inbox_of_a_worker_that_panicked_are_reported() {
    let node = small(&SimDisk::new(1));
    let (client, gate, key) = (node.client(), Gate::named("burst"), "a".to_owned());
    let calls = begin(&client, &key, [Ask::Burst("burst".to_owned())]);
    gate.await_arrival();
    let waiting = begin(&client, &key, (0..3).map(Ask::Fill));
    gate.open();
    assert!(end(node.failed()).contains("stead-worker-0 panicked"));
    for call in waiting {
        assert!(matches!(end(call), Err(CallError::Raw(RawError::NodeFailed(_)))));
    }
    drop(calls);
}

#[test]
fn a_shard_that_stays_overloaded_says_so_and_not_that_time_is_over() {
    let node = builder(Path::new("unused"))
        .service::<Bulk>(ServiceOptions::default().shards(2).outbox_bytes_max(1 << 20))
        .threads(2)
        .disk(Arc::new(SimDisk::new(1)))
        .segment_bytes(8 << 20)
        .open()
        .unwrap();
    let (gate, held) = wait_at(&node, "overload");
    let (client, key) = (node.blocking_client(), not_beside(&node, "overload"));
    client.call::<Bulk>(&key, Ask::Send { to: "overload".to_owned(), bytes: 2 << 20 }).unwrap();
    // It is tried once more, and has no time for further attempts.
    let refused = client.with_timeout(Duration::from_millis(80)).call::<Bulk>(&key, Ask::Fill(1));
    let Err(CallError::Raw(RawError::Refused(Refusal::Overloaded { retry_after }))) = refused else {
        panic!("{refused:?}")
    };
    assert!(!retry_after.is_zero());
    gate.open();
    held.join().unwrap().unwrap();
    client.call::<Bulk>(&key, Ask::Fill(1)).unwrap();
}

#[test]
fn a_blocking_call_ends_at_its_timeout_though_a_handler_holds_the_worker() {
    let node = small(&SimDisk::new(1));
    let (gate, held) = wait_at(&node, "timeout");
    let timeout = Duration::from_millis(20);
    let client = node.blocking_client().with_timeout(timeout);
    let late = CallError::Raw(RawError::TimedOut { after: timeout });
    assert_eq!(client.call::<Bulk>(&"a".to_owned(), Ask::Fill(1)), Err(late.clone()));
    assert_eq!(client.query::<Bulk>(&"a".to_owned(), ()), Err(late));
    gate.open();
    held.join().unwrap().unwrap();
    // No client waited for it any more when its turn came.
    assert_eq!(node.blocking_client().query::<Bulk>(&"a".to_owned(), ()), Ok(0));
}

#[test]
fn a_timeout_is_reported_and_the_shard_goes_on() {
    let node = small(&SimDisk::new(1));
    let (gate, held) = wait_at(&node, "overdue");
    let (timeout, key) = (Duration::from_millis(1), "a".to_owned());
    let late = node.client().with_timeout(timeout);
    let calls = begin(&late, &key, [Ask::Fill(1)]);
    // Over before the worker gets to look at it.
    let client = node.blocking_client();
    assert!(client.with_timeout(timeout).query::<Bulk>(&key, ()).is_err());
    gate.open();
    held.join().unwrap().unwrap();
    for call in calls {
        assert_eq!(end(call), Err(CallError::Raw(RawError::TimedOut { after: timeout })));
    }
    client.call::<Bulk>(&key, Ask::Fill(2)).unwrap();
    assert_eq!(client.query::<Bulk>(&key, ()), Ok(2));
}

/// Set in a child.
const CHILD: &str = "FAULTS_THREADS_CHILD";

/// A life of the test below: its log fails while a handler runs forever.
#[test]
#[ignore = "run as a child process"]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let disk = SimDisk::new(1);
    let node = builder(Path::new("unused"))
        .service::<Bulk>(ServiceOptions::default().shards(2))
        .threads(2)
        .handler_timeout(Duration::from_millis(100))
        .disk(Arc::new(disk.clone()))
        .open()
        .unwrap();
    let other = not_beside(&node, "held");
    let _gate = wait_at(&node, "held");
    disk.fail_syncs(1);
    await_until("the log fails", || fill(&node, &other, 1).is_err());
    println!("the node failed first");
    node.shutdown();
}

#[test]
fn a_handler_that_runs_for_ever_ends_a_failed_node_too() {
    let output = Command::new("timeout")
        .args(["10", "sh", "-c", "ulimit -c 0; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "faults_threads::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("the node failed first"), "{text}");
    assert!(text.contains("has run for over 100 ms (handler_timeout)"), "{}: {text}", output.status);
}
