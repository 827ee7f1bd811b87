//! Checkpoints over a running node: checks, retention, restore, the readable log.

use crate::patience::{await_some, await_until};
use crate::services::{Account, Ask, Look, await_answer, await_failed_check, builder, key, take_checkpoint};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex};
use std::time::Duration;
use stead::offline::{self, LogReply, RestoreOptions};
use stead::{
    CheckOutcome, CheckpointFailure, CheckpointOptions, Context, Cut, Never, NoQuery, Node, Process,
    Registry, ServiceOptions,
};

#[test]
fn a_check_that_does_not_hold_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(7)).unwrap();
    let report = node.checkpoint_blocking().unwrap();
    assert_eq!(report.failed_checks.len(), 1);
    assert_eq!(report.failed_checks[0].reason, "the balances and what is in flight make 7");
    assert_eq!(report.check, CheckOutcome::Failed);
    assert!(!node.verify(report.number).unwrap().holds());
    let failed = node.failed_check().unwrap();
    assert_eq!((failed.number, &failed.failed_checks), (report.number, &report.failed_checks));
    let metrics = node.metrics();
    assert_eq!((metrics.checkpoint_checks, metrics.checkpoint_checks_failed), (1, 1));
    node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(93)).unwrap();
    let report = node.checkpoint_blocking().unwrap();
    assert_eq!((report.check, node.failed_check()), (CheckOutcome::Hold, None));
    assert!(matches!(node.verify(99), Err(CheckpointFailure::Store(_))));
}

/// Returns the checkpoints of a node, each with the known outcome of its checks.
fn listed(node: &Node) -> Vec<(u64, CheckOutcome)> {
    node.checkpoints().unwrap().into_iter().map(|checkpoint| (checkpoint.number, checkpoint.check)).collect()
}

#[test]
fn checkpoints_of_the_interval_are_checked_too_and_what_is_not_checked_is_listed_so() {
    let dir = tempfile::tempdir().unwrap();
    let options = CheckpointOptions { interval: None, keep: 1000, ..CheckpointOptions::default() };
    let node = builder(dir.path()).checkpoints(options.clone()).open().unwrap();
    node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(7)).unwrap();
    let number = block_on(node.checkpoint_unchecked()).unwrap().number;
    assert_eq!(listed(&node), [(number, CheckOutcome::NotChecked)]);
    node.set_checkpoint_interval(Some(Duration::from_millis(10))).unwrap();
    await_until("a check fails", || node.failed_check().is_some());
    node.set_checkpoint_interval(None).unwrap();
    let failed = node.failed_check().unwrap();
    assert!(failed.failed_checks[0].reason.ends_with("make 7"), "{failed:?}");
    await_until("it is listed so", || listed(&node).contains(&(failed.number, CheckOutcome::Failed)));
    // A checkpoint that was skipped is checked when it is verified.
    assert!(!node.verify(number).unwrap().holds());
    assert!(listed(&node).contains(&(number, CheckOutcome::Failed)));
    node.shutdown();

    // Without the code, the results come from the stored object, if there is one.
    let from = dir.path().display().to_string();
    let report = offline::verify(&from, number, &Registry::new()).unwrap();
    assert_eq!((report.check, report.checks[0].outcome), (CheckOutcome::Failed, CheckOutcome::Failed));
    std::fs::remove_dir_all(dir.path().join("checkpoints/checks")).unwrap();
    let report = offline::verify(&from, number, &Registry::new()).unwrap();
    assert_eq!((report.holds(), report.check), (true, CheckOutcome::NotChecked));
    // Checkpoints of the interval that are over the limit are not checked either.
    let options = CheckpointOptions { check_bytes_max: 0, ..options };
    let node = builder(dir.path()).checkpoints(options).open().unwrap();
    node.set_checkpoint_interval(Some(Duration::from_millis(10))).unwrap();
    await_until("three are not checked", || node.metrics().checkpoints_unchecked >= 3);
    assert_eq!((node.failed_check(), node.metrics().checkpoint_checks), (None, 0));
}

/// Determines the behaviour of the check: it does nothing, panics, or hangs until the mood is another.
static MOOD: Mutex<Mood> = Mutex::new(Mood::Well);
static MOOD_NEWS: Condvar = Condvar::new();

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    Panics,
    /// The next check hangs.
    Waits,
    /// A check hangs.
    Hangs,
}

#[derive(Default, Serialize, Deserialize)]
struct Moody;

impl Process for Moody {
    const SERVICE: &'static str = "moody";
    type Key = String;
    type Request = ();
    type Reply = ();
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, _: &mut Context<'_, Self>, (): ()) -> Result<(), Never> {
        Ok(())
    }

    fn check(_: &Cut<'_>) -> Result<(), String> {
        let mut mood = MOOD.lock().unwrap();
        if *mood == Mood::Waits {
            *mood = Mood::Hangs;
            mood = MOOD_NEWS.wait_while(mood, |mood| *mood == Mood::Hangs).unwrap();
        }
        let panics = *mood == Mood::Panics;
        drop(mood);
        assert!(!panics, "bad mood");
        Ok(())
    }
}

fn set_mood(mood: Mood) {
    *MOOD.lock().unwrap() = mood;
    MOOD_NEWS.notify_all();
}

#[test]
fn a_check_that_panics_has_failed_and_one_that_never_ends_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let patient = CheckpointOptions { interval: None, keep: 1000, ..CheckpointOptions::default() };
    let short = CheckpointOptions { timeout: Duration::from_secs(1), ..patient.clone() };
    let open = |options: &CheckpointOptions| {
        Node::builder(dir.path())
            .service::<Moody>(ServiceOptions::default().shards(1))
            .segment_bytes(1 << 20)
            .checkpoints(options.clone())
            .open()
            .unwrap()
    };
    let await_hang = || await_until("a check hangs", || *MOOD.lock().unwrap() == Mood::Hangs);
    let node = open(&patient);
    set_mood(Mood::Panics);
    let report = node.checkpoint_blocking().unwrap();
    let reason = &report.failed_checks[0].reason;
    assert!(reason.starts_with("the check panicked: bad mood (at "), "{reason}");
    node.shutdown();
    drop(node);

    // A check that never ends fails after its timeout, and checkpoints continue.
    let node = open(&short);
    set_mood(Mood::Waits);
    let waiting = {
        let node = node.clone();
        std::thread::spawn(move || await_failed_check(&node))
    };
    await_hang();
    let beside = await_some("a checkpoint beside it", || block_on(node.checkpoint_unchecked()).ok());
    let report = waiting.join().unwrap();
    assert_eq!(report.failed_checks[0].reason, "the check has not ended after 1000 ms");
    assert!(beside.number > report.number);
    // It still holds the thread: the next checkpoint is complete, but not checked.
    let report = take_checkpoint(&node);
    assert_eq!((report.check, report.failed_checks.len()), (CheckOutcome::NotChecked, 0));
    set_mood(Mood::Well);
    await_until("checks run again", || take_checkpoint(&node).check == CheckOutcome::Hold);
    node.shutdown();
    drop(node);

    // The end of the node does not wait for it either.
    let node = open(&patient);
    set_mood(Mood::Waits);
    let waiting = {
        let node = node.clone();
        std::thread::spawn(move || node.checkpoint_blocking().unwrap().check)
    };
    await_hang();
    node.kill();
    assert_eq!(waiting.join().unwrap(), CheckOutcome::NotChecked);
    set_mood(Mood::Well);
    assert_eq!(open(&patient).checkpoint_blocking().unwrap().check, CheckOutcome::Hold);
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
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
    let node = Node::builder(other.path())
        .service::<Account>(ServiceOptions::default())
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
    // The original is unchanged.
    let node = builder(dir.path()).open().unwrap();
    assert_eq!(node.blocking_client().query::<Account>(&key("0"), Look::Balance).unwrap(), 200);
}

/// The checkpoints of two data directories were mixed: nothing starts from, verifies, copies or restores the foreign one.
#[test]
fn a_checkpoint_of_another_cluster_is_refused() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for dir in &dirs {
        let node = builder(dir.path()).open().unwrap();
        node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(100)).unwrap();
        node.checkpoint_blocking().unwrap();
        node.shutdown();
    }
    let [own, foreign] = dirs.each_ref().map(|dir| dir.path().join("checkpoints"));
    std::fs::remove_dir_all(&own).unwrap();
    std::fs::rename(&foreign, &own).unwrap();
    let (dir, other) = (dirs[0].path(), tempfile::tempdir().unwrap());
    let from = dir.display().to_string();
    let mixed = "files of two clusters were mixed";
    let error = builder(dir).open().err().unwrap().to_string();
    assert!(error.contains(mixed) && error.contains("nothing was changed"), "{error}");
    let error = offline::verify(&from, 1, &Registry::new()).unwrap_err().to_string();
    assert!(error.contains(mixed), "{error}");
    let copies = other.path().join("copies");
    let to = format!("file://{}", copies.display());
    let error = offline::copy_checkpoint(dir, 1, &to).unwrap_err().to_string();
    assert!(error.contains(mixed) && !copies.join("manifests").exists(), "{error}");
    let into = other.path().join("restored");
    let options = RestoreOptions { from, number: None, into: into.clone(), shards: BTreeMap::new() };
    let error = stead::restore(&options, |_| {}).unwrap_err().to_string();
    assert!(error.contains(mixed) && !into.exists(), "{error}");
    // Without the facts that say whose directory it is, the checkpoint is restored, as a cluster of its own.
    std::fs::remove_file(dir.join("stead.json")).unwrap();
    stead::restore(&options, |_| {}).unwrap();
    await_answer(&builder(&into).open().unwrap(), "a", 100);
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
