//! Checkpoints over a running node: checks, retention, restore, the readable log.

use crate::services::{Account, Ask, Look, await_answer, builder, key};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use stead::offline::{self, LogReply, RestoreOptions};
use stead::{CheckpointFailure, Registry};

#[test]
fn a_check_that_does_not_hold_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(7)).unwrap();
    let report = node.checkpoint_blocking().unwrap();
    assert_eq!(report.failed_checks.len(), 1);
    assert_eq!(report.failed_checks[0].reason, "the balances and what is in flight make 7");
    assert!(!node.verify(report.number).unwrap().holds());
    assert!(matches!(node.verify(99), Err(CheckpointFailure::Store(_))));
}

#[test]
fn old_checkpoints_go_and_the_newest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    for round in 1..=6 {
        node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(100)).unwrap();
        assert_eq!(node.checkpoint_blocking().unwrap().number, round);
    }
    assert!(matches!(node.delete_checkpoint(6), Err(CheckpointFailure::Store(_))));
    node.delete_checkpoint(5).unwrap();
    node.shutdown();
    let numbers = offline::checkpoints(&dir.path().display().to_string()).unwrap();
    let numbers: Vec<u64> = numbers.into_iter().map(|checkpoint| checkpoint.number).collect();
    assert!(numbers.contains(&6) && !numbers.contains(&5) && !numbers.contains(&1), "{numbers:?}");
}

#[test]
fn a_checkpoint_is_restored_into_another_directory_with_other_shards() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = builder(dir.path()).open().unwrap();
    let client = node.blocking_client();
    for account in 0..20 {
        client.call::<Account>(&format!("{account}"), Ask::Deposit(100)).unwrap();
    }
    let number = node.checkpoint_blocking().unwrap().number;
    client.call::<Account>(&key("0"), Ask::Deposit(100)).unwrap();
    node.kill();
    let options = RestoreOptions {
        from: dir.path().display().to_string(),
        number: Some(number),
        into: other.path().to_owned(),
        shards: BTreeMap::from([("account".to_owned(), 7)]),
    };
    let report = stead::restore(&options, |_| {}).unwrap();
    assert_eq!((report.number, report.incarnation), (number, 2));
    let again = stead::restore(&options, |_| {}).unwrap_err();
    assert!(again.to_string().contains("empty directory"), "{again}");
    let node = stead::Node::builder(other.path())
        .service::<Account>(stead::ServiceOptions::default())
        .segment_bytes(1 << 20)
        .open()
        .unwrap();
    assert_eq!(node.topology().shard_count(), 7);
    for account in 0..20 {
        await_answer(&node, &format!("{account}"), 100);
    }
    node.blocking_client().call::<Account>(&key("0"), Ask::Move { amount: 50, to: key("1") }).unwrap();
    await_answer(&node, "1", 150);
    assert!(node.checkpoint_blocking().unwrap().number > number);
    // The original is as it was.
    let node = builder(dir.path()).open().unwrap();
    assert_eq!(node.blocking_client().query::<Account>(&key("0"), Look::Balance).unwrap(), 200);
}

#[test]
fn verify_and_the_log_can_be_read_at_rest() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(100)).unwrap();
    node.checkpoint_blocking().unwrap();
    let shard = node.status().shards.iter().find(|shard| shard.index > 2).unwrap().shard;
    node.shutdown();
    let mut registry = Registry::new();
    registry.service::<Account>().unwrap();
    assert!(offline::verify(&dir.path().display().to_string(), 1, &registry).unwrap().holds());
    let mut entries = Vec::new();
    let all = |entry| {
        entries.push(entry);
        ControlFlow::Continue(())
    };
    offline::read_log(dir.path(), shard, 1, all).unwrap();
    let deposit = entries.iter().find(|entry| entry.process == "a").unwrap();
    assert_eq!(deposit.reply, Some(LogReply::Ok(Some(100.into()))));
    assert_eq!(deposit.writes[0].state.as_ref().unwrap()["balance"], 100);
    let mut seen = 0;
    let one = |_| {
        seen += 1;
        ControlFlow::Break(())
    };
    offline::read_log(dir.path(), shard, 1, one).unwrap();
    assert_eq!(seen, 1);
    assert!(offline::read_log(dir.path(), 99, 1, |_| ControlFlow::Break(())).is_err());
}
