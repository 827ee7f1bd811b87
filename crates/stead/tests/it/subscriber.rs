//! A program's own subscriber that blocks or panics: no thread of a node may wait for it, or end because of it.
//!
//! In a process of its own, because a subscriber can be set only once.

use crate::patience::{PATIENCE, await_until};
use crate::services::builder;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use stead::kv::{Kv, Request};
use stead::{CheckpointOptions, ServiceOptions};
use stead_store::sim_disk::SimDisk;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Behaviour of the subscriber in a child.
const DOES: &str = "SUBSCRIBER_DOES";

/// A subscriber that runs a function at each event, with the number of events so far.
pub(crate) struct OnEvent {
    pub(crate) run: fn(&AtomicUsize),
    pub(crate) met: Arc<AtomicUsize>,
}

impl Subscriber for OnEvent {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        (self.run)(&self.met);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn block(met: &AtomicUsize) {
    met.fetch_add(1, Ordering::SeqCst);
    let (gate, never) = (Mutex::new(()), Condvar::new());
    let closed = gate.lock().unwrap();
    drop(never.wait(closed));
}

fn panic(met: &AtomicUsize) {
    met.fetch_add(1, Ordering::SeqCst);
    panic!("the subscriber panics");
}

fn put(client: &stead::BlockingClient, key: &str, bytes: usize) -> bool {
    let value = "x".repeat(bytes).into();
    client.call::<Kv>(&key.to_owned(), Request::Put { value }).is_ok()
}

/// A life that reports much: its disk fills, checkpoints are given up, space is freed, and its log fails.
#[test]
#[ignore = "run as a child process"]
fn life() {
    let Ok(does) = std::env::var(DOES) else { return };
    let met = Arc::new(AtomicUsize::new(0));
    let run = if does == "panics" { panic } else { block };
    tracing::subscriber::set_global_default(OnEvent { run, met: Arc::clone(&met) }).unwrap();
    let disk = SimDisk::new(1);
    let node = builder(Path::new("unused"))
        .service::<Kv>(ServiceOptions::default().shards(2))
        .threads(2)
        .segment_bytes(64 << 10)
        .checkpoints(CheckpointOptions { interval: None, ..Default::default() })
        .disk(Arc::new(disk.clone()))
        .open()
        .unwrap();
    let client = node.blocking_client().with_timeout(Duration::from_millis(200));
    disk.set_capacity(Some(disk.used()));
    await_until("the disk is full", || !put(&client, "a", 8 << 10));
    node.checkpoint_blocking().unwrap_err();
    disk.set_capacity(None);
    await_until("there is room again", || put(&client, "a", 1));
    node.checkpoint_blocking().unwrap();
    await_until("the subscriber gets an event", || met.load(Ordering::SeqCst) > 0);
    disk.fail_syncs(1);
    await_until("the log fails", || !put(&client, "a", 1));
    assert!(!node.status().failure.unwrap().is_empty());
    node.shutdown();
    println!("it has lived");
}

#[test]
fn a_subscriber_that_blocks_or_panics_neither_holds_nor_ends_a_node() {
    let lives = ["blocks", "panics"].map(|does| {
        let mut life = Command::new("timeout");
        life.arg(PATIENCE.as_secs().to_string()).arg(std::env::current_exe().unwrap());
        life.args(["--exact", "subscriber::life", "--ignored", "--nocapture", "--test-threads=1"]);
        let life =
            life.env(DOES, does).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        (does, life.spawn().unwrap())
    });
    for (does, life) in lives {
        let output = life.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.contains("it has lived"),
            "{does}: {}: {said}",
            output.status
        );
    }
}
