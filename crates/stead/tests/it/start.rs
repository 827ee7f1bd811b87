//! Starts, stops and kills.

use crate::services::{Account, Ask, Look, Overdrawn, await_answer, builder, key};
use stead::{CallError, RawError, Refusal};

#[test]
fn what_was_answered_is_there_after_a_shutdown_and_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = 0;
    for round in 0..6 {
        let node = builder(dir.path()).open().unwrap();
        let client = node.blocking_client();
        assert_eq!(client.query::<Account>(&key("a"), Look::Balance).unwrap(), expected);
        for _ in 0..10 {
            expected += 10;
            assert_eq!(client.call::<Account>(&key("a"), Ask::Deposit(10)).unwrap(), expected);
        }
        if round % 2 == 0 {
            node.kill();
        } else {
            node.shutdown();
        }
        let error = client.call::<Account>(&key("a"), Ask::Deposit(10)).unwrap_err();
        assert_eq!(error, CallError::Raw(RawError::Stopped));
    }
}

#[test]
fn messages_arrive_once_over_a_checkpoint_and_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    let client = node.blocking_client();
    client.call::<Account>(&key("source"), Ask::Deposit(1000)).unwrap();
    for at in 0..50 {
        client
            .call::<Account>(&key("source"), Ask::Move { amount: 1, to: format!("to-{}", at % 5) })
            .unwrap();
    }
    let report = node.checkpoint_blocking().unwrap();
    assert_eq!((report.number, report.failed_checks.len()), (1, 0));
    for at in 0..50 {
        client
            .call::<Account>(&key("source"), Ask::Move { amount: 1, to: format!("to-{}", at % 5) })
            .unwrap();
    }
    node.kill();
    let node = builder(dir.path()).open().unwrap();
    assert_eq!(node.recovery().checkpoint, Some(1));
    for to in 0..5 {
        await_answer(&node, &format!("to-{to}"), 20);
    }
    await_answer(&node, "source", 900);
    let report = node.checkpoint_blocking().unwrap();
    assert_eq!((report.number, report.failed_checks.len()), (2, 0));
    assert!(node.verify(2).unwrap().holds());
}

#[test]
fn an_error_is_an_answer_and_a_panic_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    let client = node.blocking_client();
    let move_all = Ask::Move { amount: 5, to: key("b") };
    let error = client.call::<Account>(&key("a"), move_all).unwrap_err();
    assert_eq!(error, CallError::Process(Overdrawn { missing: 5 }));
    let error = client.call::<Account>(&key("a"), Ask::Panic).unwrap_err();
    let CallError::Raw(RawError::Refused(Refusal::Panicked(why))) = error else { panic!("{error}") };
    assert!(why.starts_with("as asked (at "), "{why}");
    for account in ["a", "b", "elsewhere"] {
        assert_eq!(client.query::<Account>(&key(account), Look::Balance).unwrap(), 0);
    }
    assert_eq!(client.query::<Account>(&key("a"), Look::Calls).unwrap(), 0);
}
