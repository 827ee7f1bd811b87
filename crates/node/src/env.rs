//! The surroundings of a node, as traits. All of them are generic, so that nothing is dynamic for each message.

use crate::checkpoint::{CheckpointCommand, Event, News};
use crate::clock::Clock;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use stead_core::checkpointing::driver::Action;
use stead_core::handler::{Call, Handler, Outcome, View};
use stead_core::ids::{ShardId, TaskId, Time};
use stead_core::placement::Place;
use stead_core::record::TaskRecord;
use stead_core::shard::{Answer, Effect, Input, Refusal, Shard, StepOutcome};
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_store::wal::{Wal, WalError};
use thiserror::Error;

/// The surroundings of a node: a program in production, or a simulator.
pub trait Env: 'static {
    /// The user's code.
    type Program: Program;
    /// Where one answer goes.
    type Caller: Caller;
    /// The clocks.
    type Clock: Clock;
    /// The observer of what passes between the parts, which may change it: `()` in production.
    type Watch: Watch;
}

/// Sees what passes between the parts of a node, and may bend it, for a simulator. By default it does nothing.
pub trait Watch: Send + Sync + 'static {
    /// A shard is about to be given an input.
    fn input(&self, shard: &Shard, input: &Input) {
        let _ = (shard, input);
    }

    /// A shard has handled the input, and these effects are about to be performed.
    fn effects(&self, shard: &Shard, effects: &mut Vec<Effect>) {
        let _ = (shard, effects);
    }

    /// Inputs are about to be left in the inbox of a worker by another one.
    fn leaves(&self, from: usize, to: usize, inputs: &mut Vec<(ShardId, Input)>) {
        let _ = (from, to, inputs);
    }

    /// A step of a task is about to run.
    fn begins(&self, shard: ShardId, id: TaskId, task: &TaskRecord) {
        let _ = (shard, id, task);
    }

    /// A worker is about to take its submissions up to this ticket as durable.
    fn durable(&self, worker: usize, ticket: &mut u64) {
        let _ = (worker, ticket);
    }

    /// The driver of checkpoints has decided on an action, which is about to be performed.
    fn action(&self, action: &mut Action) {
        let _ = action;
    }

    /// A command of the checkpoint part or the merge part is about to be performed; `None` withholds it.
    fn command(&self, command: CheckpointCommand) -> Option<CheckpointCommand> {
        Some(command)
    }

    /// News of checkpoints is about to be left in the inbox of a worker; `None` withholds it, until
    /// [`Shared::pass_on`](crate::Shared::pass_on).
    fn news(&self, worker: usize, news: News) -> Option<News> {
        let _ = worker;
        Some(news)
    }

    /// An event of a shard's snapshot is about to be left for the checkpoint part; `None` drops it.
    fn snapshot(&self, event: Event) -> Option<Event> {
        Some(event)
    }

    /// Notes in an idle log that all is synced; returns whether the mark stands there.
    ///
    /// # Errors
    /// As [`Wal::mark`].
    fn mark(&self, wal: &mut Wal) -> Result<bool, WalError> {
        wal.mark()
    }
}

impl Watch for () {}

/// Where the answer to one call goes. One that is dropped unanswered belongs to a node that has ended.
pub trait Caller: Send + 'static {
    /// Gives the answer, which ends the call.
    fn answer(self, result: Result<Answer, NoAnswer>);

    /// Whether the answer is not waited for any more.
    fn is_gone(&self) -> bool;
}

/// Reasons for which a node has no answer of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoAnswer {
    /// The shard refused, or the node on its behalf. Nothing was changed.
    #[error(transparent)]
    Refused(Refusal),
    /// The shard is not on this node. Nothing was changed.
    #[error("shard {shard} is not on this node")]
    NotHere {
        /// The shard.
        shard: ShardId,
        /// Where it is.
        place: Place,
    },
    /// No answer came in time. The request may have been applied, or may still be.
    #[error("no answer within {} ms", after.as_millis())]
    TimedOut {
        /// The time limit of the call.
        after: Duration,
    },
    /// The node had a fatal error before it could answer. The request may have been applied.
    #[error("the node failed: {0}")]
    Failed(String),
    /// The node is shutting down or has shut down. The request may have been applied.
    #[error("the node has stopped")]
    Stopped,
}

/// A caller, and until when it waits.
#[derive(Debug)]
pub struct ReplyTo<C> {
    /// Where the answer goes.
    pub caller: C,
    /// When the call ends without an answer, on the node's steady clock: [`Shared::now`](crate::Shared::now).
    pub deadline: Time,
    /// The time limit from which the deadline was made, for [`NoAnswer::TimedOut`].
    pub timeout: Duration,
}

/// Where the result of something goes that an operator asked for.
pub trait Reply<T>: Send {
    /// Gives the result.
    fn send(self: Box<Self>, result: T);

    /// Whether the result is not waited for any more.
    fn is_gone(&self) -> bool;
}

/// User code, without a type of a user.
pub trait Program: Send + Sync + 'static {
    /// The code of the services, as the core calls it.
    type Handler: Handler + Send;

    /// The code of the services for the shards of one worker. With the same `seed` the same calls draw the same random
    /// numbers.
    fn handler(&self, topology: &Arc<Topology>, seed: u64) -> Self::Handler;

    /// Runs a query apart from its shard, on any thread. MUST NOT panic: a panic of user code is an outcome.
    fn query(&self, call: &Call<'_>, view: View<'_>, topology: &Topology) -> Outcome;

    /// Runs one step of a task, on any thread. MUST NOT panic: a panic of user code is an outcome.
    fn step(&self, step: &StepCall<'_>) -> StepOutcome;

    /// Whether there is code for a service.
    fn has_service(&self, name: &str) -> bool;

    /// Whether there is code for a task.
    fn has_task(&self, name: &str) -> bool;

    /// The services that declare a check over consistent cuts.
    fn checked_services(&self) -> Vec<String>;

    /// Runs the check of one service over a cut: the states of all shards of a topology, in the order of their ids. MUST NOT
    /// panic: a panic of user code is a failure.
    ///
    /// # Errors
    /// The reason why it does not hold.
    fn check(&self, service: &str, topology: &Topology, cut: &[State]) -> Result<(), String>;
}

/// One step of a task that is to be run.
#[derive(Debug)]
pub struct StepCall<'a> {
    /// The name of the task's kind.
    pub name: &'a str,
    /// Its state before the step.
    pub state: &'a [u8],
    /// The task.
    pub id: TaskId,
    /// The number of the step, counted from 0.
    pub step: u64,
    /// The key of the process that started the task.
    pub owner: &'a str,
    /// The number of times that this step has failed.
    pub retries: u32,
    /// Set once the node stops.
    pub stopping: &'a AtomicBool,
}
