//! The stage on which the parts of the simulated node meet their world: user code, clocks, callers, and the watch,
//! which sees what passes between the parts and changes it for planted bugs.
//!
//! The parts are made for threads, so everything that they hold must be `Send`. A run of the simulator is one thread,
//! and the stage belongs to this thread.
mod bugs;
mod env;
mod replies;
mod turn;
mod watch;

pub(crate) use env::{Clocks, Services, SimEnv, Wire};
pub(crate) use replies::{Checked, CopyWanting, Owner, Wanting, look};
pub(crate) use turn::{Answered, Done, Drained, Handled, Looked, OpenCall, Scene, Shown, Turn};
pub(crate) use watch::Observer;

use crate::workload::Workload;
use fastrand::Rng;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use stead_core::blob::Blob;
use stead_core::capture::Capture;
use stead_core::ids::{CallToken, CheckpointNumber, Epoch, Index, ShardId, TaskId};
use stead_core::key::Key;
use stead_core::record::{RecordKey, TaskRecord};
use stead_core::shard::Shard;
use stead_core::state::State;
use stead_node::Ender;

/// The workload of a run, which user code, clients and checks share.
pub(crate) type Code = Rc<RefCell<dyn Workload>>;

thread_local! {
    static STAGE: RefCell<Stage> = RefCell::default();
    static CODE: RefCell<Option<Code>> = const { RefCell::new(None) };
}

/// Lets the parts of this thread run a workload's code.
pub(crate) fn set_code(code: &Code) {
    CODE.set(Some(Rc::clone(code)));
}

fn code() -> Code {
    CODE.with_borrow(|code| Rc::clone(code.as_ref().expect("a world sets it before it has a node")))
}

#[derive(Default)]
struct Stage {
    scene: Scene,
    turn: Turn,
    rng: Rng,
    now: Now,
    /// The process has ended: the rest of the turn has no effect.
    is_dead: bool,
    /// The step that runs.
    step: Option<(ShardId, TaskId, TaskRecord)>,
    /// For a planted bug: by process, what an earlier query read.
    captures: BTreeMap<(ShardId, Key), Capture>,
    /// For planted bugs: the running checkpoint, a bundle of the newest one, the markers of shards, and snapshots that
    /// are taken for those of a checkpoint that was given up.
    running: Option<CheckpointNumber>,
    bundle: Option<String>,
    /// For a planted bug: the checkpoints that this life has completed.
    completed: BTreeSet<CheckpointNumber>,
    /// Ends the node from within a turn.
    ender: Option<Ender<SimEnv>>,
    /// The last entry of the handler that has abandoned the node in this turn.
    killed_at: Option<Index>,
    /// For a planted bug: the output of a merge to which no checkpoint refers yet.
    merged: Option<String>,
    marked: BTreeMap<ShardId, Index>,
    dropped: BTreeSet<(ShardId, CheckpointNumber)>,
    /// For a planted bug: by shard, the writes of the entry after its marker.
    late: BTreeMap<ShardId, Vec<(RecordKey, Blob)>>,
    /// For a planted bug: whether a part has failed, and the data have yet to be marked.
    spoils_end: bool,
    /// For a planted bug: by service, the first state of the last cut that its check read.
    first: BTreeMap<String, State>,
    /// Ends the life's access to its disk.
    alive: Arc<AtomicBool>,
    /// Bytes of outcomes of steps on their way to their shard.
    outcome_bytes: i64,
    /// Calls that were answered, and those that were dropped without an answer: by callers that waited, or had gone.
    answered: Vec<OpenCall>,
    unanswered: Vec<OpenCall>,
    left: Vec<OpenCall>,
}

/// The input that is being handled.
#[derive(Default)]
struct Now {
    calls: Vec<(Index, u64)>,
    /// Place and call of the code that ended the process.
    killer: Option<(Index, u64)>,
    runs_max: usize,
    runs: usize,
    unwanted: usize,
    last: Option<Index>,
    is_brief: bool,
    stored: Option<(Epoch, Index)>,
    is_colour: bool,
    /// The token of the session that it opens.
    opening: Option<CallToken>,
    /// Commit, activity and last entry before it.
    before: (Index, bool, Index),
}

/// Begins a life. The seed determines the draws of the watch.
pub(crate) fn begin_life(seed: u64) {
    STAGE.set(Stage { rng: Rng::with_seed(seed), ..Stage::default() });
}

/// Gives the flag that ends the life's access to its disk.
pub(crate) fn set_alive(alive: Arc<AtomicBool>) {
    STAGE.with_borrow_mut(|stage| stage.alive = alive);
}

/// Gives the way in which users' code ends the node within a turn.
pub(crate) fn set_ender(ender: Ender<SimEnv>) {
    STAGE.with_borrow_mut(|stage| stage.ender = Some(ender));
}

/// Takes the calls that were answered since this was called.
pub(crate) fn take_answered() -> Vec<OpenCall> {
    STAGE.with_borrow_mut(|stage| std::mem::take(&mut stage.answered))
}

/// Takes the calls that were dropped without an answer since this was called.
pub(crate) fn take_unanswered() -> Vec<OpenCall> {
    STAGE.with_borrow_mut(|stage| std::mem::take(&mut stage.unanswered))
}

/// Takes the calls whose callers had gone when they were dropped without an answer, since this was called.
pub(crate) fn take_left() -> Vec<OpenCall> {
    STAGE.with_borrow_mut(|stage| std::mem::take(&mut stage.left))
}

/// Returns the bytes of outcomes of steps that have not reached their shard.
pub(crate) fn outcome_bytes() -> i64 {
    STAGE.with_borrow(|stage| stage.outcome_bytes)
}

/// Runs a function that gives a part its turn; returns the results of the turn.
pub(crate) fn play<T>(scene: Scene, turn: impl FnOnce() -> T) -> (T, Turn) {
    STAGE.with_borrow_mut(|stage| (stage.scene, stage.killed_at) = (scene, None));
    let done = turn();
    let turn = STAGE.with_borrow_mut(|stage| {
        stage.scene.panics_in = None;
        std::mem::take(&mut stage.turn)
    });
    (done, turn)
}

/// The message of a panic on purpose.
pub(crate) const SIMULATED: &str = "it is simulated";

/// The part that has its turn passes the stage: it may panic here.
pub(crate) fn pass() {
    let panics = STAGE.with_borrow_mut(|stage| {
        let Some(left) = &mut stage.scene.panics_in else { return false };
        if *left > 0 {
            *left -= 1;
            return false;
        }
        stage.scene.panics_in = None;
        stage.turn.panicked = true;
        true
    });
    if panics {
        // Without a message on standard error.
        resume_unwind(Box::new(SIMULATED));
    }
}

fn position(shard: &Shard) -> (Index, bool, Index) {
    (shard.commit(), shard.is_active(), shard.state().position().index)
}
