//! Where the parts of the simulated node meet its world: the user's code, the clocks, the callers, and the watch that sees and
//! bends what passes.
//!
//! The parts are made for threads, so that all that they hold has to be `Send`. A run of the simulator is one thread, and what
//! its parts meet lies on a stage that belongs to the thread.

use crate::blame::Killer;
use crate::bug::Bug;
use crate::effects::without_retry;
use crate::model::{Seen, hash_call};
use crate::profile::one_in;
use crate::violation::Violation;
use crate::workload::{ENDED, Workload};
use fastrand::Rng;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Refusal};
use stead_core::capture::Capture;
use stead_core::handler::{Call, Caller as CalledBy, Handler, Outcome, QueryPlace, Txn, View};
use stead_core::ids::{Colour, Epoch, Index, Seq, ShardId, TaskId, Time};
use stead_core::key::Key;
use stead_core::record::{StepRetry, TaskRecord};
use stead_core::reply::Reply;
use stead_core::shard::{Effect, Input, Shard, StepOutcome};
use stead_core::state::{Message, Position, State};
use stead_core::topology::Topology;
use stead_node::{Caller, Clock, Env, NoAnswer, Program, StepCall, Watch};
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
    /// The input said that the log holds the shard's entries up to one.
    pub(crate) stored: Option<Index>,
    /// It was news of a checkpoint from the control plane.
    pub(crate) is_colour: bool,
    pub(crate) work: usize,
    /// Runs of handlers that the shell did not want.
    pub(crate) unwanted: usize,
    pub(crate) is_doubted: bool,
    /// Work was left for a tick.
    pub(crate) is_held_back: bool,
}

/// The events of a turn that the world sees, in their order.
pub(crate) enum Shown {
    Handled(Box<Handled>),
    /// A query ran, with what it saw of its process.
    Queried {
        shard: ShardId,
        index: Index,
        process: Key,
        seen: Seen,
    },
    /// The user's code ended the process.
    Died(Killer),
    /// The same, in a step.
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
    Wrong(Violation),
}

/// The results of a turn.
#[derive(Default)]
pub(crate) struct Turn {
    pub(crate) shown: Vec<Shown>,
    /// The answers to calls: the shard, the client's token, the result.
    pub(crate) answers: Vec<(ShardId, u64, Result<Answer, NoAnswer>)>,
    /// Inputs that leave for shards of other workers.
    pub(crate) left: Vec<(ShardId, Input)>,
    /// Microseconds that its looks at the clock took.
    pub(crate) took: u64,
}

/// The world as a turn finds it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Scene {
    /// Virtual time, with what only a bug adds to it.
    pub(crate) steady: Time,
    pub(crate) wall: Time,
    /// Microseconds that each look at the steady clock takes.
    pub(crate) look_cost: u64,
    pub(crate) bug: Option<Bug>,
    pub(crate) runs_max: usize,
    /// A frame of an older life is among the inputs: it says that this shard's log is stored up to there.
    pub(crate) old: Option<(ShardId, Index)>,
}

#[derive(Default)]
struct Stage {
    scene: Scene,
    turn: Turn,
    rng: Rng,
    now: Now,
    /// The process has ended: what still runs in the turn does not exist.
    is_dead: bool,
    /// The step that runs.
    step: Option<(ShardId, TaskId, TaskRecord)>,
    /// For a planted bug: by process, what an earlier query read.
    captures: BTreeMap<(ShardId, Key), Capture>,
}

/// The input that is being handled.
#[derive(Default)]
struct Now {
    calls: Vec<(Index, u64)>,
    /// Place and call of what ended the process.
    killer: Option<(Index, u64)>,
    runs_max: usize,
    runs: usize,
    unwanted: usize,
    last: Option<Index>,
    is_brief: bool,
    stored: Option<(Epoch, Index)>,
    is_colour: bool,
    /// The token of the session that it opens.
    opening: Option<u64>,
    /// Commit, activity and last entry before it.
    before: (Index, bool, Index),
}

/// Begins a life: what the watch draws follows from the seed.
pub(crate) fn begin_life(seed: u64) {
    STAGE.set(Stage { rng: Rng::with_seed(seed), ..Stage::default() });
}

/// Runs something that gives a part its turn, and takes what came of it.
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
    pub(crate) token: u64,
}

impl Caller for Wire {
    fn answer(self, result: Result<Answer, NoAnswer>) {
        STAGE.with_borrow_mut(|stage| {
            if !stage.is_dead {
                stage.turn.answers.push((self.shard, self.token, result));
            }
        });
    }

    fn is_gone(&self) -> bool {
        false
    }
}

/// The workload's code as the node sees it.
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
                // A handler that panics is tried again at once.
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
            step: step.step,
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
        Vec::new()
    }

    fn check(&self, _: &str, _: &Topology, _: &[State]) -> Result<(), String> {
        Ok(())
    }
}

/// Sees what passes between the parts, and bends it for the planted bugs.
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

impl Stage {
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

    /// Plants the bugs in what a shard wants.
    fn bend(&mut self, shard: &Shard, now: &Now, effects: &mut Vec<Effect>) {
        if let (Some(Bug::OpenedEarly), Some(token), true) = (self.scene.bug, now.opening, shard.is_active())
        {
            let Position { epoch, colour, .. } = shard.state().position();
            let (index, result) = (shard.commit(), Ok(Reply::Ok(Blob::empty())));
            effects.push(Effect::Answer(Answer { token, epoch, index, colour, result }));
        }
        for effect in effects {
            if let (Some(Bug::KeepRetried), Effect::Append { bytes, .. }) = (self.scene.bug, effect) {
                *bytes = without_retry(std::mem::take(bytes));
            }
        }
    }

    /// Plants the bugs in what has left a shard.
    fn bend_on_the_way(&mut self, id: ShardId, effects: &mut Vec<Effect>) {
        if self.scene.bug == Some(Bug::CrowdTrials) {
            // The world grants what is wanted here.
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
