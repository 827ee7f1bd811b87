//! The state that a node keeps for clients and operators is bounded, and so is every answer.

use crate::patience::await_until;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::sync::Arc;
use stead::{
    CallError, Caller, CheckpointOptions, Context, DeadLetterCursor, Limited, Never, Node, Process,
    QueryContext, RawError, Refusal, ServiceOptions,
};
use stead_store::sim_disk::SimDisk;

#[derive(Default, Serialize, Deserialize)]
struct Hoard;

#[derive(Serialize, Deserialize)]
enum Ask {
    /// Answers with this many bytes.
    Bytes(usize),
    /// Sends itself this many messages of this many bytes, at which it panics.
    Poison(usize, usize),
    Panic(Vec<u8>),
}

impl Process for Hoard {
    const SERVICE: &'static str = "hoard";
    type Key = u8;
    type Request = Ask;
    type Reply = String;
    type Error = Never;
    type Query = ();
    type Answer = ();
    fn handle(&mut self, ctx: &mut Context<'_, Self>, ask: Ask) -> Result<String, Never> {
        match ask {
            Ask::Bytes(bytes) => return Ok("x".repeat(bytes)),
            Ask::Poison(messages, bytes) => {
                for _ in 0..messages {
                    ctx.send::<Self>(&ctx.key().clone(), Ask::Panic(vec![7; bytes]));
                }
            }
            Ask::Panic(_) => assert!(matches!(ctx.caller(), Caller::Client { .. }), "as requested"),
        }
        Ok(String::new())
    }
    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<(), Never> {
        Ok(())
    }
}

#[test]
fn the_log_of_a_process_comes_in_pages_of_bytes_and_who_follows_it_reads_only_what_is_new() {
    let disk = SimDisk::new(1);
    let options = ServiceOptions::default().shards(1);
    let node = Node::builder("unused").service::<Hoard>(options).threads(1).segment_bytes(4 << 20);
    let none = CheckpointOptions { interval: None, ..CheckpointOptions::default() };
    let node = node.checkpoints(none).disk(Arc::new(disk.clone())).open().unwrap();
    let client = node.blocking_client();
    for _ in 0..10 {
        client.call::<Hoard>(&1, Ask::Bytes(300 << 10)).unwrap();
    }
    let (mut pages, mut from) = (Vec::new(), 0);
    loop {
        let page = node.process_log("hoard", "1", from, 1000).unwrap();
        if page.entries.is_empty() {
            break;
        }
        pages.push(page.entries.len());
        from = page.next;
    }
    assert_eq!(pages, [4, 4, 2], "a page ends after 1 MiB");
    let cost = |from: u64| {
        let before = disk.operations();
        let page = node.process_log("hoard", "1", from, 1000).unwrap();
        (page, disk.operations() - before)
    };
    client.call::<Hoard>(&1, Ask::Bytes(1)).unwrap();
    let (page, again) = cost(from);
    assert_eq!(page.entries.len(), 1);
    let before = disk.operations();
    node.read_log(0, 0, |_| ControlFlow::Continue(())).unwrap();
    let whole = disk.operations() - before;
    client.call::<Hoard>(&1, Ask::Bytes(1)).unwrap();
    let (page, following) = cost(page.next);
    assert_eq!(page.entries.len(), 1);
    assert!(following.max(again) * 2 <= whole, "{again}, then {following} operations; {whole} for all");
}

#[test]
fn checkpoints_are_listed_without_reading_each_manifest_again() {
    let disk = SimDisk::new(2);
    let node = Node::builder("unused").service::<Hoard>(ServiceOptions::default().shards(1)).threads(1);
    let options = CheckpointOptions { interval: None, keep: 20, ..CheckpointOptions::default() };
    let node = node.checkpoints(options).disk(Arc::new(disk.clone())).open().unwrap();
    for _ in 0..10 {
        node.checkpoint_blocking().unwrap();
    }
    let cost = || {
        let before = disk.operations();
        let listed = node.checkpoints().unwrap();
        (listed, disk.operations() - before)
    };
    let (first, whole) = cost();
    let (second, again) = cost();
    assert_eq!((first.len(), &first), (10, &second));
    assert!(again * 2 < whole, "{again} operations, after {whole}");
    // A new checkpoint and a deleted one show.
    let number = node.checkpoint_blocking().unwrap().number;
    node.delete_checkpoint(first[0].number).unwrap();
    let (third, _) = cost();
    let numbers: Vec<u64> = third.iter().map(|listed| listed.number).collect();
    assert_eq!(numbers, (first[1].number..=number).collect::<Vec<_>>());
}

fn open(dir: &std::path::Path) -> Node {
    let options = ServiceOptions::default()
        .shards(1)
        .attempts_max(1)
        .kept_bytes_max(4 << 20)
        .dead_letter_bytes_max(1 << 20);
    Node::builder(dir).service::<Hoard>(options).threads(1).segment_bytes(16 << 20).open().unwrap()
}

#[test]
fn large_replies_to_fresh_keys_are_kept_up_to_the_bound_over_restarts_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = open(dir.path());
    let ask = |node: &Node, key: u32| {
        node.blocking_client().call_idempotent::<Hoard>(&1, &key.to_be_bytes(), Ask::Bytes(100 << 10))
    };
    let first = (0..800).find_map(|key| ask(&node, key).err().map(|error| (key, error)));
    for _ in 0..2 {
        let (_, error) = first.as_ref().unwrap();
        let CallError::Raw(RawError::Refused(refusal)) = error else { panic!("{error}") };
        assert!(
            matches!(refusal, Refusal::LimitReached { what: Limited::RepliesOfPrincipal, .. }),
            "{refusal}"
        );
        let kept = node.status().shards[0].kept_bytes;
        assert!((2 << 20..(2 << 20) + (200 << 10)).contains(&kept), "{kept}");
        assert!(ask(&node, 0).is_ok(), "what is kept is answered");
        assert!(ask(&node, 10_000).is_err());
        node.kill();
        node = open(dir.path());
    }
}

#[test]
fn dead_letters_come_in_pages_and_stop_clients_when_they_are_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let client = node.blocking_client();
    client.call::<Hoard>(&1, Ask::Poison(25, 10)).unwrap();
    client.call::<Hoard>(&1, Ask::Poison(8, 300 << 10)).unwrap();
    // The answer to a call does not wait for the messages that it sent.
    await_until("all messages are given up", || {
        node.status().shards.first().is_some_and(|shard| shard.dead_letters == 33)
    });
    let refused = client.call::<Hoard>(&1, Ask::Bytes(1)).unwrap_err();
    let CallError::Raw(RawError::Refused(Refusal::LimitReached { what: Limited::DeadLetters, .. })) = refused
    else {
        panic!("{refused}");
    };
    let (mut found, mut pages, mut after) = (Vec::new(), Vec::new(), None::<DeadLetterCursor>);
    loop {
        let page = node.dead_letters("hoard", after, 10).unwrap();
        pages.push(page.dead_letters.len());
        found.extend(page.dead_letters.into_iter().map(|letter| letter.index));
        let Some(next) = page.next else { break };
        after = Some(next.to_string().parse().unwrap());
    }
    assert_eq!(pages, [10, 10, 9, 4], "a page ends at ten, or after 1 MiB");
    assert!(found.is_sorted() && found.len() == 33);
    assert!(node.status().shards[0].dead_letters_bytes > 8 * (300 << 10));
    for index in found {
        client.drop_dead_letter(0, index).unwrap();
    }
    assert_eq!(node.status().shards[0].dead_letters_bytes, 0);
    client.call::<Hoard>(&1, Ask::Bytes(1)).unwrap();
}
