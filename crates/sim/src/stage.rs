//! The stage on which the parts of the simulated node meet their world: user code, clocks, callers, and the watch,
//! which sees what passes between the parts and changes it for planted bugs.
//!
//! The parts are made for threads, so everything that they hold must be `Send`. A run of the simulator is one thread,
//! and the stage belongs to this thread.

use crate::blame::Killer;
use crate::bug::Bug;
use crate::effects::without_retry;
use crate::model::{Seen, copy, hash_call};
use crate::profile::one_in;
use crate::violation::Violation;
use crate::workload::{ENDED, Workload};
use fastrand::Rng;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Call, Caller as CalledBy, Outcome, Refusal};
use stead_core::capture::{Capture, View};
use stead_core::channel::Message;
use stead_core::checkpointing::driver::Action;
use stead_core::checkpointing::retention::Garbage;
use stead_core::entry::{Entry, Write};
use stead_core::handler::{Handler, QueryPlace, Txn};
use stead_core::ids::{
    CallToken, CheckpointNumber, Colour, Epoch, Index, Seq, ShardId, StepNumber, TaskId, Time,
};
use stead_core::key::Key;
use stead_core::record::{RecordKey, StepRetry, TaskRecord};
use stead_core::records::{Piece, Records};
use stead_core::reply;
use stead_core::shard::{Effect, Input, Shard, StepOutcome};
use stead_core::state::{Position, State};
use stead_core::topology::Topology;
use stead_node::checkpoint::{CheckpointCommand, CheckpointFailure, CheckpointReport, Event, News, Trouble};
use stead_node::{Caller, Clock, Env, NoAnswer, Program, Reply, StepCall, Watch};
use stead_store::wal::{Wal, WalError};

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

/// The effects of one input at a shard.
pub(crate) struct Handled {
    pub(crate) shard: ShardId,
    pub(crate) effects: Vec<Effect>,
    /// The entries for which the handler was called, with hashes of the calls.
    pub(crate) calls: Vec<(Index, u64)>,
    /// The input reported that the log holds the shard's entries up to one.
    pub(crate) stored: Option<Index>,
    /// The input was news of a checkpoint from the control plane.
    pub(crate) is_colour: bool,
    pub(crate) work: usize,
    /// Number of handler runs that the shell did not want.
    pub(crate) unwanted: usize,
    pub(crate) is_doubted: bool,
    /// Whether work was left for a tick.
    pub(crate) is_held_back: bool,
}

/// The events of a turn that the world sees, in their order.
pub(crate) enum Shown {
    Handled(Box<Handled>),
    /// A query ran; with the state of its process that it saw.
    Queried {
        shard: ShardId,
        index: Index,
        process: Key,
        seen: Seen,
    },
    /// User code ended the process.
    Died(Killer),
    /// User code ended the process in a step.
    DiedInStep {
        shard: ShardId,
        id: TaskId,
        task: TaskRecord,
    },
    /// A step ran.
    Stepped {
        is_done: bool,
        is_retry: bool,
    },
    /// The parts of checkpoints did this.
    Checkpoint(Done),
    /// A service's check ran over the states of these shards, each with its position and hash.
    Checked {
        service: String,
        seen: Vec<(ShardId, Position, u128)>,
        result: Result<(), String>,
    },
    /// A service's check ended the process.
    DiedInCheck(String),
    Wrong(Violation),
}

/// An action of the parts of checkpoints.
pub(crate) enum Done {
    /// All shards get this colour.
    Coloured(Colour),
    /// A shard handed over a piece of its snapshot.
    Drained(ShardId, CheckpointNumber),
    /// A shard's marker came late: its snapshot is dropped.
    Discarded,
    Completed(CheckpointNumber),
    GivenUp(CheckpointNumber),
    Refused,
    /// The log is to be trimmed.
    Trim,
    /// The log is to be trimmed, and a planted bug delays it.
    HeldTrim(CheckpointCommand),
    /// Planted bug: the log is to be trimmed up to these markers.
    TrimEarly(BTreeMap<ShardId, Index>),
    /// A merge with this output is to begin.
    Merge(String),
    Merged,
    Trouble(Trouble),
    /// The store was searched for objects that are not needed.
    Looked,
    Deleted(Vec<Garbage>),
}

/// The answer to a client's call.
pub(crate) struct Answered {
    pub(crate) shard: ShardId,
    pub(crate) token: CallToken,
    pub(crate) call: OpenCall,
    /// When it was answered.
    pub(crate) at: u64,
    pub(crate) result: Result<Answer, NoAnswer>,
}

/// A client's call at the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OpenCall {
    /// The virtual time at which it is over.
    pub(crate) until: u64,
    /// The virtual time at which it arrived.
    pub(crate) since: u64,
    pub(crate) number: u64,
}

/// The results of a turn.
#[derive(Default)]
pub(crate) struct Turn {
    pub(crate) shown: Vec<Shown>,
    /// The answers to calls.
    pub(crate) answers: Vec<Answered>,
    /// Inputs that leave for shards of other workers.
    pub(crate) left: Vec<(ShardId, Input)>,
    /// News of checkpoints for workers.
    pub(crate) news: Vec<(usize, News)>,
    /// The results of wanted checkpoints.
    pub(crate) checkpoints: Vec<(Checked, Result<CheckpointReport, CheckpointFailure>)>,
    /// Microseconds that its readings of the clock took.
    pub(crate) took: u64,
}

/// The world at the beginning of a turn.
#[derive(Clone, Copy, Default)]
pub(crate) struct Scene {
    /// Virtual time, with the lead that only a bug adds.
    pub(crate) steady: Time,
    pub(crate) wall: Time,
    /// Microseconds that each reading of the steady clock takes.
    pub(crate) look_cost: u64,
    pub(crate) bug: Option<Bug>,
    pub(crate) runs_max: usize,
    /// A frame of an older life is among the inputs: it reports that this shard's log is stored up to there.
    pub(crate) old: Option<(ShardId, Index)>,
    /// How many checks end the process, as 1 in so many.
    pub(crate) check_kills: u32,
    /// Planted bug: a trim waits.
    pub(crate) holds_trim: bool,
    /// Whether the commits of markers are withheld from the checkpoint part.
    pub(crate) holds_markers: bool,
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
    marked: BTreeMap<ShardId, Index>,
    dropped: BTreeSet<(ShardId, CheckpointNumber)>,
    /// For a planted bug: by shard, the writes of the entry after its marker.
    late: BTreeMap<ShardId, Vec<(RecordKey, Blob)>>,
    /// For a planted bug: by service, the first state of the last cut that its check read.
    first: BTreeMap<String, State>,
    /// Ends the life's access to its disk.
    alive: Arc<AtomicBool>,
    /// Calls that were answered, and those that were dropped without an answer.
    answered: Vec<OpenCall>,
    unanswered: Vec<OpenCall>,
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

/// Takes the calls that were answered since this was called.
pub(crate) fn take_answered() -> Vec<OpenCall> {
    STAGE.with_borrow_mut(|stage| std::mem::take(&mut stage.answered))
}

/// Takes the calls that were dropped without an answer since this was called.
pub(crate) fn take_unanswered() -> Vec<OpenCall> {
    STAGE.with_borrow_mut(|stage| std::mem::take(&mut stage.unanswered))
}

/// Runs a function that gives a part its turn; returns the results of the turn.
pub(crate) fn play<T>(scene: Scene, turn: impl FnOnce() -> T) -> (T, Turn) {
    STAGE.with_borrow_mut(|stage| stage.scene = scene);
    let done = turn();
    (done, STAGE.with_borrow_mut(|stage| std::mem::take(&mut stage.turn)))
}

fn position(shard: &Shard) -> (Index, bool, Index) {
    (shard.commit(), shard.is_active(), shard.state().position().index)
}

/// The surroundings of the simulated node.
pub(crate) struct SimEnv;

impl Env for SimEnv {
    type Program = Services;
    type Caller = Wire;
    type Clock = Clocks;
    type Watch = Observer;
}

pub(crate) struct Clocks;

impl Clock for Clocks {
    fn steady(&self) -> Time {
        STAGE.with_borrow_mut(|stage| {
            let now = stage.scene.steady.plus_micros(stage.turn.took);
            stage.turn.took += stage.scene.look_cost;
            now
        })
    }

    fn wall(&self) -> Time {
        STAGE.with_borrow(|stage| stage.scene.wall)
    }
}

/// The end of a client's call at the node, under the client's own token.
pub(crate) struct Wire {
    pub(crate) shard: ShardId,
    pub(crate) token: CallToken,
    pub(crate) call: OpenCall,
    pub(crate) is_answered: bool,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if !self.is_answered {
            STAGE.with_borrow_mut(|stage| stage.unanswered.push(self.call));
        }
    }
}

impl Caller for Wire {
    fn answer(mut self, result: Result<Answer, NoAnswer>) {
        STAGE.with_borrow_mut(|stage| {
            if stage.scene.bug == Some(Bug::DropAnswer) && stage.rng.u8(..) == 0 {
                return;
            }
            self.is_answered = true;
            stage.answered.push(self.call);
            if !stage.is_dead {
                let at = stage.scene.steady.0 + stage.turn.took;
                let Self { shard, token, call, .. } = &self;
                stage.turn.answers.push(Answered { shard: *shard, token: *token, call: *call, at, result });
            }
        });
    }

    fn is_gone(&self) -> bool {
        false
    }
}

/// The workload's code as a program for the node.
pub(crate) struct Services;

/// The handlers of the workload.
pub(crate) struct Handlers;

impl Handler for Handlers {
    fn handle(&mut self, call: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
        let hash = hash_call(call.key, call.payload);
        let is_dead = STAGE.with_borrow_mut(|stage| {
            let now = &mut stage.now;
            now.calls.push((call.place.1, hash));
            if !matches!(call.caller, CalledBy::Client { .. }) {
                // A handler that panics is retried at once.
                now.unwanted += usize::from(now.runs >= now.runs_max && now.last != Some(call.place.1));
                now.runs += 1;
                now.last = Some(call.place.1);
            }
            stage.is_dead
        });
        if is_dead {
            return Outcome::Panicked(ENDED.to_owned());
        }
        let code = code();
        let outcome = code.borrow_mut().handler().handle(call, txn);
        if code.borrow_mut().killed() {
            STAGE.with_borrow_mut(|stage| {
                stage.now.killer = Some((call.place.1, hash));
                stage.is_dead = true;
            });
        }
        outcome
    }

    fn query(&mut self, call: &Call<'_>, view: View<'_>) -> Outcome {
        code().borrow_mut().handler().query(call, view)
    }

    fn place_query(&mut self, _: &Call<'_>, _: Option<&Blob>) -> Result<QueryPlace, Refusal> {
        let is_brief = STAGE.with_borrow(|stage| stage.now.is_brief);
        Ok(if is_brief { QueryPlace::Here } else { QueryPlace::Apart })
    }

    fn is_spent(&self) -> bool {
        STAGE.with_borrow(|stage| stage.is_dead || stage.now.runs >= stage.now.runs_max)
    }
}

impl Program for Services {
    type Handler = Handlers;

    fn handler(&self, _: &Arc<Topology>, _: u64) -> Handlers {
        Handlers
    }

    fn query(&self, call: &Call<'_>, view: View<'_>, topology: &Topology) -> Outcome {
        let shard = topology.shard_of(call.service, call.key);
        let (index, process) = (call.place.1, call.key.clone());
        let queried = Shown::Queried { shard, index, process, seen: Seen::of(view) };
        STAGE.with_borrow_mut(|stage| stage.turn.shown.push(queried));
        code().borrow_mut().handler().query(call, view)
    }

    fn step(&self, step: &StepCall<'_>) -> StepOutcome {
        let retry = |count| StepRetry { count, at: Time(0), reason: String::new() };
        let task = TaskRecord {
            process: Key::new(step.owner).expect("the key of a process"),
            name: step.name.to_owned(),
            step: StepNumber(step.step),
            state: Blob::from(step.state),
            progress: 0,
            retry: (step.retries > 0).then(|| retry(step.retries)),
        };
        let code = code();
        let outcome = code.borrow_mut().step(step.id, &task);
        if code.borrow_mut().killed() {
            STAGE.with_borrow_mut(|stage| {
                let (shard, id, task) = stage.step.take().expect("the watch saw it begin");
                stage.turn.shown.push(Shown::DiedInStep { shard, id, task });
                stage.is_dead = true;
            });
            return outcome;
        }
        let (is_done, is_retry) = (matches!(outcome, StepOutcome::Done(_)), task.retry.is_some());
        STAGE.with_borrow_mut(|stage| stage.turn.shown.push(Shown::Stepped { is_done, is_retry }));
        outcome
    }

    fn has_service(&self, _: &str) -> bool {
        true
    }

    fn has_task(&self, _: &str) -> bool {
        true
    }

    fn checked_services(&self) -> Vec<String> {
        code().borrow().services().into_iter().map(|(name, _)| name).collect()
    }

    fn check(&self, service: &str, topology: &Topology, cut: &[State]) -> Result<(), String> {
        let bent = STAGE.with_borrow_mut(|stage| stage.mix(service, cut));
        let cut = bent.as_deref().unwrap_or(cut);
        let seen = cut.iter().map(|state| (state.shard(), state.position(), state.hash())).collect();
        let dies = STAGE.with_borrow_mut(|stage| {
            let dies = one_in(&mut stage.rng, stage.scene.check_kills);
            if dies {
                stage.turn.shown.push(Shown::DiedInCheck(service.to_owned()));
                stage.is_dead = true;
                stage.alive.store(false, Ordering::Relaxed);
            }
            dies
        });
        if dies {
            return Err(ENDED.to_owned());
        }
        let result = code().borrow_mut().check_cut(topology, cut);
        let checked = Shown::Checked { service: service.to_owned(), seen, result: result.clone() };
        STAGE.with_borrow_mut(|stage| stage.turn.shown.push(checked));
        result
    }
}

/// Sees what passes between the parts, and changes it for the planted bugs.
pub(crate) struct Observer;

impl Watch for Observer {
    fn input(&self, shard: &Shard, input: &Input) {
        STAGE.with_borrow_mut(|stage| {
            let is_brief = matches!(input, Input::Query(_)) && stage.rng.u8(..4) == 0;
            stage.now = Now {
                runs_max: match input {
                    Input::DeadLetter { .. } => usize::MAX,
                    _ => stage.scene.runs_max,
                },
                is_brief,
                is_colour: matches!(input, Input::Colour(_)),
                stored: match input {
                    Input::Stored { epoch, upto, .. } => Some((*epoch, *upto)),
                    _ => None,
                },
                opening: match input {
                    Input::OpenSession { token, .. } => Some(*token),
                    _ => None,
                },
                before: position(shard),
                ..Now::default()
            };
        });
    }

    fn effects(&self, shard: &Shard, effects: &mut Vec<Effect>) {
        STAGE.with_borrow_mut(|stage| stage.see(shard, effects));
    }

    fn leaves(&self, _: usize, _: usize, inputs: &mut Vec<(ShardId, Input)>) {
        STAGE.with_borrow_mut(|stage| {
            if stage.is_dead {
                inputs.clear();
            }
            stage.turn.left.append(inputs);
        });
    }

    fn begins(&self, shard: ShardId, id: TaskId, task: &TaskRecord) {
        STAGE.with_borrow_mut(|stage| stage.step = Some((shard, id, task.clone())));
    }

    fn action(&self, action: &mut Action) {
        STAGE.with_borrow_mut(|stage| stage.act(action));
    }

    fn command(&self, command: CheckpointCommand) -> Option<CheckpointCommand> {
        STAGE.with_borrow_mut(|stage| stage.command(command))
    }

    // The world decides when they arrive.
    fn news(&self, worker: usize, news: News) -> Option<News> {
        STAGE.with_borrow_mut(|stage| stage.turn.news.push((worker, news)));
        None
    }

    fn snapshot(&self, event: Event) -> Option<Event> {
        STAGE.with_borrow_mut(|stage| stage.snapshot(event))
    }

    fn mark(&self, wal: &mut Wal) -> Result<bool, WalError> {
        let forgets = STAGE.with_borrow(|stage| stage.scene.bug == Some(Bug::ForgetMark));
        if forgets { Ok(true) } else { wal.mark() }
    }

    fn durable(&self, _: usize, ticket: &mut u64) {
        STAGE.with_borrow_mut(|stage| match stage.scene.bug {
            Some(Bug::TicketPlusOne) => *ticket += 1,
            Some(Bug::StoredBeforeSync) if stage.rng.u8(..8) == 0 => *ticket = u64::MAX,
            _ => {}
        });
    }
}

/// The receiver of the result of a wanted checkpoint.
pub(crate) struct Wanting(pub(crate) Checked);

/// Whether the services' checks of a checkpoint are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    Yes,
    No,
}

impl Reply<Result<CheckpointReport, CheckpointFailure>> for Wanting {
    fn send(self: Box<Self>, result: Result<CheckpointReport, CheckpointFailure>) {
        STAGE.with_borrow_mut(|stage| {
            if !stage.is_dead {
                stage.turn.checkpoints.push((self.0, result));
            }
        });
    }

    fn is_gone(&self) -> bool {
        false
    }
}

impl Stage {
    /// The planted bug: a check reads the first state of an earlier cut with the others of this one.
    fn mix(&mut self, service: &str, cut: &[State]) -> Option<Vec<State>> {
        if self.scene.bug != Some(Bug::MixedCut) {
            return None;
        }
        let mut mixed: Vec<State> = cut.iter().map(copy).collect();
        if let Some(before) = self.first.insert(service.to_owned(), copy(&cut[0])) {
            mixed[0] = before;
        }
        Some(mixed)
    }

    fn done(&mut self, done: Done) {
        self.turn.shown.push(Shown::Checkpoint(done));
    }

    /// Handles an action that the driver of checkpoints has decided on.
    fn act(&mut self, action: &mut Action) {
        match (self.scene.bug, &mut *action) {
            (Some(Bug::TrimOneTooFar), Action::Trim(tops)) => {
                for (_, top) in tops {
                    *top = top.next();
                }
            }
            (Some(Bug::TrimEarly), Action::Seal(_)) => {
                let marked = self.marked.clone();
                self.done(Done::TrimEarly(marked));
            }
            (Some(Bug::CollectOneMore), Action::Delete(garbage)) => {
                garbage.extend(self.bundle.clone().map(Garbage::Bundle));
            }
            (Some(Bug::DropNextSnapshot), Action::Discard { shard, number }) => {
                *number = number.next();
                self.dropped.insert((*shard, *number));
            }
            _ => {}
        }
        match action {
            Action::Create { number, .. } => self.running = Some(*number),
            Action::Completed(_) | Action::GivenUp { .. } => self.running = None,
            Action::Discard { .. } => self.done(Done::Discarded),
            Action::Look => self.done(Done::Looked),
            Action::Delete(garbage) => self.done(Done::Deleted(garbage.clone())),
            _ => {}
        }
    }

    /// Handles a command of the parts of checkpoints to the rest of the node.
    fn command(&mut self, command: CheckpointCommand) -> Option<CheckpointCommand> {
        match command {
            CheckpointCommand::Colour(colour) => self.done(Done::Coloured(colour)),
            CheckpointCommand::Completed { ref manifest, .. } => {
                self.bundle = manifest.bundles.first().map(|bundle| bundle.name.clone());
                self.done(Done::Completed(manifest.number));
            }
            CheckpointCommand::GivenUp { number, .. } => self.done(Done::GivenUp(number)),
            CheckpointCommand::Refused(_) => self.done(Done::Refused),
            CheckpointCommand::Trim(_) => {
                self.done(Done::Trim);
                if self.scene.holds_trim {
                    self.done(Done::HeldTrim(command));
                    return None;
                }
            }
            CheckpointCommand::Merge(ref job) => self.done(Done::Merge(job.output.clone())),
            CheckpointCommand::Merged(_) => self.done(Done::Merged),
            CheckpointCommand::Trouble(trouble) => {
                // The node only reports it.
                self.done(Done::Trouble(trouble));
                return None;
            }
            CheckpointCommand::ForceFull(_)
            | CheckpointCommand::Discard { .. }
            | CheckpointCommand::CaughtUp => {}
        }
        Some(command)
    }

    /// Handles an event of a snapshot that a worker leaves.
    fn snapshot(&mut self, mut event: Event) -> Option<Event> {
        if self.is_dead {
            return None;
        }
        let bug = self.scene.bug;
        match &mut event {
            Event::Begun { number, all, .. } => {
                let is_above = self.running.is_some_and(|running| running < *number);
                if is_above && bug == Some(Bug::HighColour) {
                    return None;
                }
                *all |= bug == Some(Bug::BuildOnGivenUp);
            }
            Event::Records { shard, number, piece, done } => {
                if self.dropped.contains(&(*shard, *number)) {
                    return None;
                }
                if *done && let Some(writes) = self.late.remove(shard) {
                    add(&writes, piece);
                }
                let (shard, number) = (*shard, *number);
                self.done(Done::Drained(shard, number));
            }
            Event::MarkerCommitted { .. } if self.scene.holds_markers => return None,
            _ => {}
        }
        Some(event)
    }

    /// Notes markers and the entries right after them, for planted bugs.
    fn note_markers(&mut self, id: ShardId, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Marked { header, .. } => {
                    self.marked.insert(id, header.position.index);
                    self.late.remove(&id);
                }
                Effect::Append { index, bytes, .. } if self.scene.bug == Some(Bug::LateSnapshot) => {
                    if self.marked.get(&id).is_some_and(|marked| marked.next() == *index) {
                        let writes = Entry::decode(bytes).map(|entry| entry.writes).unwrap_or_default();
                        let put = |write: Write| Some((write.key, write.value?));
                        self.late.insert(id, writes.into_iter().filter_map(put).collect());
                    }
                }
                _ => {}
            }
        }
    }

    fn see(&mut self, shard: &Shard, effects: &mut Vec<Effect>) {
        let id = shard.state().shard();
        let now = std::mem::take(&mut self.now);
        if let Some(killer) = now.killer {
            self.turn.shown.push(Shown::Died(Killer::handler(id, killer, effects)));
        }
        if self.is_dead {
            effects.clear();
            return;
        }
        if let Err(violation) = shard.check() {
            self.turn.shown.push(Shown::Wrong(violation.into()));
        }
        if let (Some((old, upto)), Some((_, found))) = (self.scene.old, now.stored)
            && (old, upto) == (id, found)
            && position(shard) != now.before
        {
            let (before, after) = (now.before, position(shard));
            let what = format!("shard {id}: a frame of an older epoch moved it from {before:?} to {after:?}");
            self.turn.shown.push(Shown::Wrong(Violation::new(15, what)));
        }
        self.bend(shard, &now, effects);
        self.note_markers(id, effects);
        let seen = effects.clone();
        self.bend_on_the_way(id, effects);
        self.turn.shown.push(Shown::Handled(Box::new(Handled {
            shard: id,
            effects: seen,
            calls: now.calls,
            stored: now
                .stored
                .filter(|(epoch, _)| *epoch == shard.state().position().epoch)
                .map(|(_, upto)| upto),
            is_colour: now.is_colour,
            work: shard.work(),
            unwanted: now.unwanted,
            is_doubted: shard.clock().is_doubted(),
            is_held_back: shard.deadline().is_some_and(|at| at <= self.scene.steady) && shard.waiting() > 0,
        })));
    }

    /// Plants the bugs in the effects of a shard.
    fn bend(&mut self, shard: &Shard, now: &Now, effects: &mut Vec<Effect>) {
        if let (Some(Bug::OpenedEarly), Some(token), true) = (self.scene.bug, now.opening, shard.is_active())
        {
            let Position { epoch, colour, .. } = shard.state().position();
            let (index, result) = (shard.commit(), Ok(reply::Reply::Ok(Blob::empty())));
            effects.push(Effect::Answer(Answer { token, epoch, index, colour, result }));
        }
        for effect in effects {
            if let (Some(Bug::KeepRetried), Effect::Append { bytes, .. }) = (self.scene.bug, effect) {
                *bytes = without_retry(std::mem::take(bytes));
            }
        }
    }

    /// Plants the bugs in the inputs that leave for other shards.
    fn bend_on_the_way(&mut self, id: ShardId, effects: &mut Vec<Effect>) {
        if self.scene.bug == Some(Bug::CrowdTrials) {
            // The world handles this.
            effects.retain(|effect| !matches!(effect, Effect::WantsTurn(_) | Effect::EndsTurn(_)));
        }
        for effect in effects {
            match (self.scene.bug, effect) {
                (Some(Bug::ShiftSequence), Effect::Deliver { messages, .. }) if one_in(&mut self.rng, 4) => {
                    for message in messages.iter_mut() {
                        message.seq = message.seq.next();
                    }
                    if let Some(first) = messages.first().filter(|m| m.seq == Seq(2)).cloned() {
                        messages.insert(0, Message { seq: Seq(1), ..first });
                    }
                }
                (Some(Bug::StripColours), Effect::Deliver { messages, .. }) => {
                    messages.iter_mut().for_each(|message| message.colour = Colour(0));
                }
                (Some(Bug::StripColours), Effect::Ack { colour, .. }) => *colour = Colour(0),
                (Some(Bug::LateQuery), Effect::Query(reading)) => {
                    let process = (id, reading.query.process.clone());
                    let now = reading.capture.clone();
                    if let Some(before) = self.captures.insert(process, now) {
                        reading.capture = before;
                    }
                }
                _ => {}
            }
        }
    }
}

/// Plants the bug: adds the writes of the entry after a marker to the shard's state at the marker.
fn add(writes: &[(RecordKey, Blob)], piece: &mut Piece) {
    let mut present = Records::new();
    for (key, value) in writes {
        present.put(key.as_bytes(), value.clone());
    }
    present.begin_snapshot(true);
    while !present.drain_snapshot(usize::MAX, piece) {}
}
