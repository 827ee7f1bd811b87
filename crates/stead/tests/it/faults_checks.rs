//! Checks over a cut that do not end: they are given up, and the node continues without them.
//!
//! Checks that end the process run in a child: this test binary, started with [`DIR`] set.

use crate::patience::{await_some, await_until};
use crate::services::{await_failed_check, take_checkpoint};
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;
use stead::{
    CheckOutcome, CheckpointOptions, Context, Cut, Never, NoQuery, Node, NodeBuilder, Process, ServiceOptions,
};

/// The data directory of a child.
const DIR: &str = "CHECKS_CHILD_DIR";
/// The fault of a child's check.
const FAULT: &str = "CHECKS_CHILD_FAULT";
const ATTEMPTS: u32 = 2;

/// A service whose check does not end, or holds.
#[derive(Default, Serialize, Deserialize)]
struct Checked<const ENDS: bool> {
    calls: u64,
}

type Sick = Checked<false>;
type Well = Checked<true>;

fn deeper(levels: u64) -> u64 {
    let frame = black_box([levels; 64]);
    if levels == 0 { 0 } else { deeper(levels - 1) + black_box(frame)[7] }
}

/// Locked by each test: all tests of this process share [`WAITS`].
static ALONE: Mutex<()> = Mutex::new(());
/// Whether the check of [`Sick`] waits, if it does not run in a child.
static WAITS: Mutex<bool> = Mutex::new(false);
static NEWS: Condvar = Condvar::new();

fn set_waits(waits: bool) {
    *WAITS.lock().unwrap() = waits;
    NEWS.notify_all();
}

impl<const ENDS: bool> Process for Checked<ENDS> {
    const SERVICE: &'static str = if ENDS { "well" } else { "sick" };
    type Key = u8;
    type Request = ();
    type Reply = ();
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, _: &mut Context<'_, Self>, (): ()) -> Result<(), Never> {
        self.calls += 1;
        Ok(())
    }

    fn check(cut: &Cut<'_>) -> Result<(), String> {
        if ENDS || cut.processes::<Self>().next().is_none() {
            return Ok(());
        }
        match std::env::var(FAULT).as_deref() {
            Ok("abort") => std::process::abort(),
            Ok("overflow") => drop(black_box(deeper(u64::MAX))),
            _ => drop(NEWS.wait_while(WAITS.lock().unwrap(), |waits| *waits).unwrap()),
        }
        Ok(())
    }
}

fn builder(dir: &Path, options: CheckpointOptions) -> NodeBuilder {
    builder_with(dir, options, ATTEMPTS)
}

fn builder_with(dir: &Path, options: CheckpointOptions, attempts_max: u32) -> NodeBuilder {
    Node::builder(dir)
        .service::<Sick>(ServiceOptions::default().shards(1).attempts_max(attempts_max))
        .service::<Well>(ServiceOptions::default().shards(1))
        .segment_bytes(256 << 10)
        .checkpoints(options)
}

fn by_hand() -> CheckpointOptions {
    CheckpointOptions { interval: None, keep: 1000, ..CheckpointOptions::default() }
}

/// Counts the marks of checks on disk.
fn marks(dir: &Path) -> usize {
    let files =
        std::fs::read_dir(dir.join("checkpoints/checks")).unwrap().map(|file| file.unwrap().file_name());
    files.filter(|name| name.to_str().unwrap().starts_with("begun-")).count()
}

/// One life: its check ends it, or it finds that the check was given up.
#[test]
#[ignore = "a life of the tests below, which run it as a child process"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let interval = Some(Duration::from_millis(10));
    let options = CheckpointOptions { interval, ..by_hand() };
    let node = builder(Path::new(&dir), options).suspect_for(Duration::from_millis(50)).open().unwrap();
    node.blocking_client().call::<Sick>(&1, ()).unwrap();
    let failed = await_some("the check is given up", || node.failed_check());
    // The other services are still checked; the one whose check was given up is not.
    let left_out = await_some("a later checkpoint without it", || {
        let mut listed = node.checkpoints().unwrap().into_iter();
        listed.find(|one| one.number > failed.number && !one.skipped_checks.is_empty())
    });
    assert_eq!((left_out.check, left_out.failed_checks.len()), (CheckOutcome::NotChecked, 0));
    assert_eq!(left_out.skipped_checks[0].service, "sick");
    println!("given up at {}: {}", failed.number, failed.failed_checks[0].reason);
    println!("left out: {}", left_out.skipped_checks[0].reason);
    node.shutdown();
}

fn live(dir: &Path, fault: &str) -> Output {
    Command::new("sh")
        .args(["-c", "ulimit -c 0; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "faults_checks::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(FAULT, fault)
        .output()
        .unwrap()
}

fn is_given_up(fault: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut deaths = 0;
    let output = loop {
        let life = live(dir.path(), fault);
        let output =
            String::from_utf8_lossy(&life.stdout).into_owned() + &String::from_utf8_lossy(&life.stderr);
        if life.status.success() {
            break output;
        }
        deaths += 1;
        assert!(deaths <= ATTEMPTS, "{output}");
        assert_eq!(marks(dir.path()), deaths as usize, "{output}");
    };
    assert_eq!(deaths, ATTEMPTS, "{output}");
    assert!(output.contains("did not end 2 times in a row, over checkpoints "), "{output}");
    assert!(output.contains("verify a checkpoint to run it again"), "{output}");

    // Listed as failed at the checkpoint where the check was given up, and as not checked where it ended the process
    // before.
    let from = dir.path().display().to_string();
    let listed = stead::offline::checkpoints(&from).unwrap();
    let failed: Vec<_> = listed.iter().filter(|one| one.check == CheckOutcome::Failed).collect();
    assert_eq!(failed.len(), 1, "{listed:?}");
    let first = listed.iter().find(|one| one.number < failed[0].number && !one.skipped_checks.is_empty());
    let first = first.unwrap_or_else(|| panic!("{listed:?}"));
    assert_eq!(first.check, CheckOutcome::NotChecked);
    assert_eq!(first.skipped_checks[0].reason, "it began, and did not end in the life of its node");

    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // A corrected check runs again once a checkpoint is verified.
    let node = builder(dir.path(), by_hand()).open().unwrap();
    let report = node.checkpoint_blocking().unwrap();
    assert_eq!((report.check, report.skipped_checks.len()), (CheckOutcome::NotChecked, 1));
    assert_eq!(node.failed_check().unwrap().number, failed[0].number);
    assert!(node.verify(report.number).unwrap().holds());
    let listed = node.checkpoints().unwrap();
    let again = listed.iter().find(|one| one.number == report.number).unwrap();
    assert_eq!((again.check, again.skipped_checks.len()), (CheckOutcome::Hold, 0));
    assert_eq!((node.failed_check(), marks(dir.path())), (None, 0));
    assert_eq!(node.checkpoint_blocking().unwrap().check, CheckOutcome::Hold);
}

#[test]
fn a_check_that_aborts_the_process_is_given_up() {
    is_given_up("abort");
}

#[test]
fn a_check_that_overflows_its_stack_is_given_up() {
    is_given_up("overflow");
}

/// Takes a checkpoint whose check waits, and waits until it does; returns the checkpoint's number.
fn begin_check(node: &Node, dir: &Path) -> u64 {
    let (before, asking) = (marks(dir), node.clone());
    std::thread::spawn(move || asking.checkpoint_blocking());
    await_until("the check has begun", || marks(dir) != before);
    node.status().checkpoint.unwrap()
}

#[test]
fn long_checks_that_an_end_meets_are_counted_and_one_that_ends_is_trusted_again() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let open = |suspect_for| {
        let node = builder(dir.path(), by_hand()).suspect_for(suspect_for).open().unwrap();
        node.blocking_client().call::<Sick>(&1, ()).unwrap();
        node
    };
    set_waits(true);
    let node = open(Duration::ZERO);
    let number = begin_check(&node, dir.path());
    let killing = {
        let node = node.clone();
        std::thread::spawn(move || node.kill())
    };
    await_until("the node takes no calls", || node.blocking_client().call::<Sick>(&1, ()).is_err());
    // A check that ends after the kill changes nothing.
    set_waits(false);
    killing.join().unwrap();
    assert_eq!(marks(dir.path()), 1);

    // Not given up, and not tried while something else may have ended the process.
    let node = open(Duration::from_secs(3600));
    assert_eq!(node.failed_check(), None);
    let listed = node.checkpoints().unwrap();
    let met = listed.iter().find(|one| one.number == number).unwrap();
    assert_eq!((met.check, met.skipped_checks.len()), (CheckOutcome::NotChecked, 1));
    node.set_checkpoint_interval(Some(Duration::from_millis(10))).unwrap();
    let waits = |one: &stead::CheckpointInfo| {
        one.skipped_checks.iter().any(|skipped| skipped.reason.contains("tried again once the node has run"))
    };
    await_until("a check waits", || node.checkpoints().unwrap().iter().any(waits));
    node.set_checkpoint_interval(None).unwrap();
    // A check that is requested runs anyway, and then those of the interval do, too.
    assert_eq!(node.checkpoint_blocking().unwrap().check, CheckOutcome::Hold);
    await_until("no mark is left", || marks(dir.path()) == 0);

    node.shutdown();

    // A clean shutdown blames no check that it interrupts. In a life of its own: a check of the interval could still run here.
    let node = open(Duration::ZERO);
    set_waits(true);
    begin_check(&node, dir.path());
    node.shutdown();
    assert_eq!(marks(dir.path()), 0);

    // A check that exceeds its timeout and never ends is to blame for that.
    let options = CheckpointOptions { timeout: Duration::from_secs(1), ..by_hand() };
    let open = || builder_with(dir.path(), options.clone(), 1).open().unwrap();
    let node = open();
    let report = await_failed_check(&node);
    assert_eq!(report.failed_checks[0].reason, "the check has not ended after 1000 ms");
    node.shutdown();
    assert_eq!(marks(dir.path()), 1);
    let node = open();
    assert_eq!(take_checkpoint(&node).check, CheckOutcome::NotChecked);
    assert!(
        node.failed_check().unwrap().failed_checks[0].reason.starts_with("it did not end over checkpoint ")
    );
    set_waits(false);
}
