//! No shard delays the others of its worker, and a stop ends whatever the processes do.

use crate::patience::{PATIENCE, await_until};
use crate::services::builder;
use serde::{Deserialize, Serialize};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use stead::{Context, Never, Node, Process, QueryContext, ServiceOptions};

/// Sends messages to itself or to others.
#[derive(Default, Serialize, Deserialize)]
struct Busy {
    handled: u64,
}

#[derive(Clone, Serialize, Deserialize)]
enum Ask {
    /// Send yourself messages forever.
    Spin,
    /// Send this many messages that each take a millisecond.
    Burst {
        to: String,
        count: u32,
    },
    Millisecond,
}

impl Process for Busy {
    const SERVICE: &'static str = "busy";
    type Key = String;
    type Request = Ask;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = u64;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Ask) -> Result<(), Never> {
        self.handled += 1;
        match request {
            Ask::Spin => ctx.send::<Self>(&ctx.key().clone(), Ask::Spin),
            Ask::Burst { to, count } => (0..count).for_each(|_| ctx.send::<Self>(&to, Ask::Millisecond)),
            Ask::Millisecond => thread::sleep(Duration::from_millis(1)),
        }
        Ok(())
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<u64, Never> {
        Ok(self.handled)
    }
}

fn open(dir: &tempfile::TempDir) -> Node {
    let options = ServiceOptions::default().shards(2);
    builder(dir.path()).threads(1).service::<Busy>(options).open().unwrap()
}

#[test]
fn a_stop_ends_while_a_process_messages_itself() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(&dir);
    let client = node.blocking_client();
    client.call::<Busy>(&"a".to_owned(), Ask::Spin).unwrap();
    await_until("messages are handled", || client.query::<Busy>(&"a".to_owned(), ()).unwrap() >= 100);
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        node.shutdown();
        let _ = done.send(());
    });
    ended.recv_timeout(PATIENCE).expect("the stop takes no new work");
    // Unhandled messages are in the log, and are handled now.
    let node = open(&dir);
    let client = node.blocking_client();
    let handled = client.query::<Busy>(&"a".to_owned(), ()).unwrap();
    assert!(handled >= 100, "{handled}");
    await_until("more are handled", || client.query::<Busy>(&"a".to_owned(), ()).unwrap() > handled);
    node.kill();
}

#[test]
fn a_large_delivery_lets_the_worker_look_at_its_other_shards() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(&dir);
    let client = node.blocking_client();
    let topology = node.topology();
    let service = topology.service_id("busy").unwrap();
    let keys: Vec<String> = (0..100).map(|i| format!("k{i}")).collect();
    let shard = |key: &String| topology.shard_of(service, key);
    let from = &keys[0];
    let to = keys.iter().find(|key| shard(key) != shard(from)).unwrap();
    client.call::<Busy>(from, Ask::Burst { to: to.clone(), count: 400 }).unwrap();
    let mut seen = Vec::new();
    await_until("all messages are handled", || {
        seen.push(client.query::<Busy>(to, ()).unwrap());
        client.query::<Busy>(from, ()).unwrap();
        seen.last() == Some(&400)
    });
    assert!(seen.iter().any(|handled| (1..400).contains(handled)), "it was asked in between: {seen:?}");
    let hold = Duration::from_micros(node.metrics().worker_hold_micros);
    assert!(hold < Duration::from_millis(200), "the worker was held for {hold:?}");
}
