//! What runs in the simulated node: the user code, the calls of its clients, and what must hold between them.

use fastrand::Rng;
use std::sync::Arc;
use stead_core::entry::{Entry, Reply};
use stead_core::handler::Handler;
use stead_core::ids::{Blob, Key, ServiceId, ShardId, TaskId};
use stead_core::record::TaskRecord;
use stead_core::shard::{Order, Refusal, StepOutcome};
use stead_core::state::State;
use stead_core::topology::Topology;

/// One call of a client.
#[derive(Clone, Debug)]
pub struct Call {
    /// The service of the process.
    pub service: ServiceId,
    /// The process.
    pub key: Key,
    /// The request or query.
    pub payload: Blob,
    /// It only reads.
    pub query: bool,
}

/// The outcome of a handler or step that ends the process, which the process does not live to see.
pub(crate) const ENDED: &str = "the process ended";

/// A number that names a client's call in a run, through all of its retries.
pub type CallId = u64;

/// How a call ended, as its client saw it.
pub type Answered = Result<Reply, Refusal>;

/// User code with its clients and its own checks. Everything random comes from generators that the run's seed made.
///
/// The checks return a sentence that begins with the number of the invariant it breaks.
pub trait Workload {
    /// The services with their numbers of shards, in order.
    fn services(&self) -> Vec<(String, u32)>;

    /// The user code of the node's next life, with a new seed: what it draws differs if anything is executed again.
    fn restart(&mut self, topology: &Arc<Topology>, seed: u64);

    /// The user code.
    fn handler(&mut self) -> &mut dyn Handler;

    /// Whether the call that was just handled or the step that just ran ended the whole process. Its outcome then has
    /// "the process ended" as its text. Asking resets it.
    fn killed(&mut self) -> bool {
        false
    }

    /// The next call of a client, or `None` when it has no more.
    fn next(&mut self, rng: &mut Rng, topology: &Topology, client: usize, id: CallId) -> Option<Call>;

    /// What an operator orders about a dead letter that there is; `None` to leave it.
    fn order(&mut self, _rng: &mut Rng) -> Option<Order> {
        None
    }

    /// Runs one step of a task.
    fn step(&mut self, id: TaskId, task: &TaskRecord) -> StepOutcome;

    /// A call goes out for the first time.
    fn invoked(&mut self, _id: CallId, _call: &Call) {}

    /// A call's answer came: the first one only, for the simulator compares the others with it.
    ///
    /// # Errors
    /// What does not hold.
    fn answered(&mut self, _id: CallId, _call: &Call, _answer: &Answered) -> Result<(), String> {
        Ok(())
    }

    /// An entry is on stable storage; each entry comes here once, in the order of its shard.
    ///
    /// # Errors
    /// What does not hold.
    fn committed(&mut self, _shard: ShardId, _entry: &Entry) -> Result<(), String> {
        Ok(())
    }

    /// The cluster goes on from these states; what was learnt of a later past must be forgotten.
    fn restored(&mut self, _states: &[State]) {}

    /// Checks a consistent cut: the shards' states in the order of their ids, whose in-flight messages lie in their outboxes.
    ///
    /// # Errors
    /// What does not hold.
    fn check_cut(&mut self, _topology: &Topology, _cut: &[State]) -> Result<(), String> {
        Ok(())
    }
}
