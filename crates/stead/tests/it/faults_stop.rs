//! A stop during a step of a task that does not end.

use crate::patience::{PATIENCE, await_some};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};
use stead::{Context, Never, Node, Process, Progress, QueryContext, ServiceOptions, StepContext, Task};

/// The progress of a test's steps.
struct Gate {
    state: Mutex<GateState>,
    news: Condvar,
}

#[derive(Default)]
struct GateState {
    begun: Vec<u64>,
    is_open: bool,
}

static GATE: Gate =
    Gate { state: Mutex::new(GateState { begun: Vec::new(), is_open: false }), news: Condvar::new() };

impl Gate {
    /// Notes a run of a step and waits until the gate is open.
    fn pass(&self, step: u64) {
        let mut state = self.state.lock().unwrap();
        state.begun.push(step);
        self.news.notify_all();
        let _open = self.news.wait_while(state, |state| !state.is_open).unwrap();
    }

    fn await_begun(&self, steps: &[u64]) {
        let state = self.state.lock().unwrap();
        let (state, timeout) =
            self.news.wait_timeout_while(state, PATIENCE, |state| state.begun != steps).unwrap();
        assert!(!timeout.timed_out(), "{:?}", state.begun);
    }

    fn open(&self) {
        self.state.lock().unwrap().is_open = true;
        self.news.notify_all();
    }
}

#[derive(Serialize, Deserialize)]
struct Stuck {
    done: u64,
}

impl Task for Stuck {
    const NAME: &'static str = "stuck";
    type Owner = Waiter;

    fn step(&mut self, ctx: &StepContext<'_>) -> Progress {
        GATE.pass(ctx.step());
        self.done += 1;
        Progress::Done
    }

    fn finish(self) -> Request {
        Request::Finished(self.done)
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Waiter {
    results: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
enum Request {
    Start,
    Finished(u64),
}

impl Process for Waiter {
    const SERVICE: &'static str = "waiter";
    type Key = String;
    type Request = Request;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = Vec<u64>;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<(), Never> {
        match request {
            Request::Start => drop(ctx.start_task(Stuck { done: 0 })),
            Request::Finished(done) => self.results.push(done),
        }
        Ok(())
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<Vec<u64>, Never> {
        Ok(self.results.clone())
    }
}

fn open(dir: &Path) -> Node {
    let builder = Node::builder(dir).service::<Waiter>(ServiceOptions::default().shards(1)).task::<Stuck>();
    builder.task_threads(1).shutdown_timeout(Duration::from_millis(50)).segment_bytes(1 << 20).open().unwrap()
}

#[test]
fn a_shutdown_leaves_a_step_that_does_not_end_and_the_next_start_repeats_it() {
    let dir = tempfile::tempdir().unwrap();
    let key = "a".to_owned();
    let node = open(dir.path());
    node.blocking_client().call::<Waiter>(&key, Request::Start).unwrap();
    GATE.await_begun(&[0]);
    let begun = Instant::now();
    node.shutdown();
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    // A clean shutdown charges no attempt: more of them than attempts give nothing up.
    for runs in 2..=8 {
        let node = open(dir.path());
        GATE.await_begun(&vec![0; runs]);
        drop(node);
    }
    let node = open(dir.path());
    GATE.open();
    let results = await_some("the step is repeated", || {
        Some(node.blocking_client().query::<Waiter>(&key, ()).unwrap()).filter(|results| !results.is_empty())
    });
    // The outcomes of the abandoned runs are dropped.
    assert_eq!(results, [1]);
    assert!(node.dead_letters("waiter", None, 1000).unwrap().dead_letters.is_empty());
}
