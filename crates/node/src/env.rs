//! The surroundings of a node, as traits. All of them are generic, so that no message needs a dynamic call.

use crate::checkpoint::{CheckpointCommand, Event, News};
use crate::clock::Clock;
use crate::reply::Caller;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use stead_core::calls::{Call, Outcome};
use stead_core::capture::View;
use stead_core::checkpointing::driver::Action;
use stead_core::handler::Handler;
use stead_core::ids::{CheckpointNumber, Index, ShardId, TaskId, Time};
use stead_core::record::TaskRecord;
use stead_core::shard::{Effect, Input, Shard, StepOutcome};
use stead_core::shutdown::Step;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_store::wal::{Wal, WalError};

/// The surroundings of a node: a program in production, or a simulator.
pub trait Env: 'static {
    /// The user's code.
    type Program: Program;
    /// The receiver of one answer.
    type Caller: Caller;
    /// The clocks.
    type Clock: Clock;
    /// The observer of what passes between the parts, which may change it: `()` in production.
    type Watch: Watch;
}

/// Sees what passes between the parts of a node, and may change it, for a simulator. By default it does nothing.
pub trait Watch: Send + Sync + 'static {
    /// Called before a shard handles an input.
    fn input(&self, shard: &Shard, input: &Input) {
        let _ = (shard, input);
    }

    /// Called after a shard has handled an input, before these effects are performed.
    fn effects(&self, shard: &Shard, effects: &mut Vec<Effect>) {
        let _ = (shard, effects);
    }

    /// Inputs are about to be left in the inbox of a worker by another one.
    fn leaves(&self, from: usize, to: usize, inputs: &mut Vec<(ShardId, Input)>) {
        let _ = (from, to, inputs);
    }

    /// Called before a step of a task runs.
    fn begins(&self, shard: ShardId, id: TaskId, task: &TaskRecord) {
        let _ = (shard, id, task);
    }

    /// Called before a worker treats its submissions up to this ticket as durable.
    fn durable(&self, worker: usize, ticket: &mut u64) {
        let _ = (worker, ticket);
    }

    /// Called before a worker adds these bytes to the account of the node's memory, or subtracts negative ones: of entries
    /// that wait for the log, of messages in outboxes, and of clients' calls.
    fn account(&self, bytes: &mut [i64; 3]) {
        let _ = bytes;
    }

    /// Called before an action of the driver of checkpoints is performed.
    fn action(&self, action: &mut Action) {
        let _ = action;
    }

    /// Called before a command of the checkpoint part or the merge part is performed; `None` withholds it.
    fn command(&self, command: CheckpointCommand) -> Option<CheckpointCommand> {
        Some(command)
    }

    /// A checkpoint is about to be read, and to be kept from deletion meanwhile: `false` leaves it without that.
    fn pin(&self, number: CheckpointNumber) -> bool {
        let _ = number;
        true
    }

    /// News of checkpoints is about to be left in the inbox of a worker; `None` withholds it, until
    /// [`Shared::pass_on`](crate::Shared::pass_on).
    fn news(&self, worker: usize, news: News) -> Option<News> {
        let _ = worker;
        Some(news)
    }

    /// Called before an event of a shard's snapshot is left for the checkpoint part; `None` drops it.
    fn snapshot(&self, event: Event) -> Option<Event> {
        Some(event)
    }

    /// Called when a worker has looked whether it must keep its snapshots because so much waits to be written.
    fn holds_back(&self, holds: &mut bool) {
        let _ = holds;
    }

    /// Called when a worker has looked whether what a snapshot of a replica covers is committed and durable, so that it counts.
    fn snapshot_counts(&self, counts: &mut bool) {
        let _ = counts;
    }

    /// Called before the log is trimmed up to an entry of a shard with replicas of several.
    fn trims(&self, top: &mut Index) {
        let _ = top;
    }

    /// Called before a service's check begins, for which there is a mark.
    fn check(&self) {}

    /// Called when the queue of queries has looked whether it has no room for one that its shard has released.
    fn is_full(&self, is_full: &mut bool) {
        let _ = is_full;
    }

    /// Called when the node is about to fail, for this reason; false withholds it.
    fn fails(&self, reason: &str) -> bool {
        let _ = reason;
        true
    }

    /// Called when the node is about to be abandoned; its end waits for users' code until this time.
    fn kills(&self, until: &mut Time) {
        let _ = until;
    }

    /// Called before a step of the end of the node is performed.
    fn shutdown(&self, step: &mut Step) {
        let _ = step;
    }

    /// Records in an idle log that all of it is synced; returns whether the mark was written.
    ///
    /// # Errors
    /// As [`Wal::mark`].
    fn mark(&self, wal: &mut Wal) -> Result<bool, WalError> {
        wal.mark()
    }
}

impl Watch for () {}

/// User code, without the types of a user.
pub trait Program: Send + Sync + 'static {
    /// The code of the services, as the core calls it.
    type Handler: Handler + Send;

    /// Returns the code of the services for the shards of one worker. With the same `seed` the same calls draw the same
    /// random numbers.
    fn handler(&self, topology: &Arc<Topology>, seed: u64) -> Self::Handler;

    /// Runs a query apart from its shard, on any thread. MUST NOT panic: a panic of user code is an outcome.
    fn query(&self, call: &Call<'_>, view: View<'_>, topology: &Topology) -> Outcome;

    /// Runs one step of a task, on any thread. MUST NOT panic: a panic of user code is an outcome.
    fn step(&self, step: &StepCall<'_>) -> StepOutcome;

    /// Whether there is code for a service.
    fn has_service(&self, name: &str) -> bool;

    /// Whether there is code for a task.
    fn has_task(&self, name: &str) -> bool;

    /// Returns the services that declare a check over consistent cuts.
    fn checked_services(&self) -> Vec<String>;

    /// Runs the check of one service over a cut: the states of all shards of a topology, in the order of their ids. MUST NOT
    /// panic: a panic of user code is a failure.
    ///
    /// # Errors
    /// The reason why it does not hold.
    fn check(&self, service: &str, topology: &Topology, cut: &[State]) -> Result<(), String>;
}

/// One step of a task to be run.
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
