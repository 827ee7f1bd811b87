//! The number of task steps that run at once.

use crate::patience::PATIENCE;
use crate::subscriber::OnEvent;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use stead::{
    CheckpointOptions, Context, Never, NoQuery, Node, NodeBuilder, OpenError, Process, Progress,
    ServiceOptions, StepContext, Task,
};

#[derive(Clone, Copy, Default)]
struct Crowd {
    running: usize,
    most: usize,
    /// Steps that may end.
    released: usize,
    ended: usize,
}

/// The steps of each test, by its name.
static CROWDS: Mutex<BTreeMap<String, Crowd>> = Mutex::new(BTreeMap::new());
static NEWS: Condvar = Condvar::new();

fn change(name: &str, change: impl FnOnce(&mut Crowd)) {
    change(CROWDS.lock().unwrap().entry(name.to_owned()).or_default());
    NEWS.notify_all();
}

/// Waits until the condition holds, makes a change before another thread sees it, and returns the state before.
fn change_once(name: &str, so: impl Fn(&Crowd) -> bool, change: impl FnOnce(&mut Crowd)) -> Crowd {
    let crowds = CROWDS.lock().unwrap();
    let waits = |crowds: &mut BTreeMap<String, Crowd>| !crowds.get(name).is_some_and(&so);
    let (mut crowds, timeout) = NEWS.wait_timeout_while(crowds, PATIENCE, waits).unwrap();
    let crowd = crowds[name];
    if !timeout.timed_out() {
        change(crowds.entry(name.to_owned()).or_default());
    }
    // A step that is never released must not poison the lock of the other tests.
    drop(crowds);
    assert!(!timeout.timed_out(), "{name}: {} run", crowd.running);
    NEWS.notify_all();
    crowd
}

/// Waits until the condition holds, and returns the state at that time.
fn wait_until(name: &str, so: impl Fn(&Crowd) -> bool) -> Crowd {
    change_once(name, so, |_| {})
}

#[derive(Default, Serialize, Deserialize)]
struct Owner;

impl Process for Owner {
    const SERVICE: &'static str = "owner";
    type Key = u32;
    type Request = Option<String>;
    type Reply = ();
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, ctx: &mut Context<'_, Self>, crowd: Option<String>) -> Result<(), Never> {
        if let Some(crowd) = crowd {
            ctx.start_task(Waits { crowd });
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Waits {
    crowd: String,
}

impl Task for Waits {
    const NAME: &'static str = "waits";
    type Owner = Owner;

    fn step(&mut self, _: &StepContext<'_>) -> Progress {
        change(&self.crowd, |crowd| {
            crowd.running += 1;
            crowd.most = crowd.most.max(crowd.running);
        });
        // At once: two steps that saw one release would both end.
        let end = |crowd: &mut Crowd| {
            crowd.running -= 1;
            crowd.ended += 1;
        };
        change_once(&self.crowd, |crowd| crowd.released > crowd.ended, end);
        Progress::Done
    }

    fn finish(self) -> Option<String> {
        None
    }
}

fn builder(dir: &std::path::Path) -> NodeBuilder {
    Node::builder(dir)
        .service::<Owner>(ServiceOptions::default().shards(2))
        .task::<Waits>()
        .threads(1)
        .segment_bytes(1 << 20)
        .checkpoints(CheckpointOptions { interval: None, ..CheckpointOptions::default() })
}

/// Starts more tasks than threads: `threads` of their steps run at once, and never more.
fn run_at_once(name: &str, threads: usize, builder: impl FnOnce(NodeBuilder) -> NodeBuilder) {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(self::builder(dir.path())).open().unwrap();
    let tasks = threads + 4;
    for task in 0..tasks {
        node.blocking_client().call::<Owner>(&(task as u32), Some(name.to_owned())).unwrap();
    }
    wait_until(name, |crowd| crowd.running == threads);
    // Each one that ends makes room for the next.
    for released in 1..=tasks {
        change(name, |crowd| crowd.released = released);
        let left = tasks - released;
        wait_until(name, |crowd| crowd.ended == released && crowd.running == left.min(threads));
    }
    assert_eq!(wait_until(name, |crowd| crowd.running == 0).most, threads);
    node.shutdown();
}

#[test]
fn as_many_steps_run_at_once_as_there_are_threads() {
    run_at_once("three", 3, |builder| builder.task_threads(3));
}

#[test]
fn sixteen_steps_run_at_once_by_default() {
    run_at_once("default", 16, |builder| builder);
}

#[test]
fn the_configuration_decides_over_the_program() {
    let config = stead::Config::from_toml("task_threads = 2", "test").unwrap();
    run_at_once("configured", 2, |builder| builder.task_threads(3).config(config));
}

#[test]
fn a_step_that_is_abandoned_is_reported_once_before_the_node_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    node.blocking_client().call::<Owner>(&0, Some("abandoned".to_owned())).unwrap();
    wait_until("abandoned", |crowd| crowd.running == 1);
    // A slow subscriber, for which the node's end has to wait.
    let run = |met: &AtomicUsize| {
        std::thread::sleep(Duration::from_millis(50));
        met.fetch_add(1, Ordering::SeqCst);
    };
    let met = Arc::default();
    tracing::subscriber::with_default(OnEvent { run, met: Arc::clone(&met) }, || {
        node.shutdown_within(Duration::ZERO);
        drop(node);
    });
    assert_eq!(met.load(Ordering::SeqCst), 1);
    change("abandoned", |crowd| crowd.released = 1);
}

#[test]
fn a_number_out_of_range_is_refused() {
    for threads in [0, 257] {
        let dir = tempfile::tempdir().unwrap();
        let refused = builder(dir.path()).task_threads(threads).open().err().unwrap();
        assert!(matches!(refused, OpenError::Config(_)), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("task_threads") && text.contains("1 to 256"), "{text}");
    }
}
