//! Workloads of the simulated node: the user code, the calls of its clients, and the invariants between them.

use fastrand::Rng;
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::calls::Refusal;
use stead_core::entry::Entry;
use stead_core::handler::Handler;
use stead_core::ids::{ServiceId, ShardId, TaskId};
use stead_core::key::Key;
use stead_core::record::{RecordKey, TaskRecord};
use stead_core::reply::Reply;
use stead_core::shard::{DeadLetterAction, StepOutcome};
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
    /// Whether it only reads.
    pub query: bool,
}

/// The outcome of a handler or step that ends the process, which no one receives.
pub(crate) const ENDED: &str = "the process ended";

/// The number of a client's call in a run, the same in all of its retries.
pub type CallId = u64;

/// The outcome of a call, as its client saw it.
pub type Answered = Result<Reply, Refusal>;

/// User code with its clients and its own checks. All randomness comes from generators seeded by the run.
///
/// The checks return a sentence that begins with the number of the violated invariant.
pub trait Workload {
    /// The services with their numbers of shards, in order.
    fn services(&self) -> Vec<(String, u32)>;

    /// Starts the user code of the node's next life, with a new seed: its draws differ if anything is executed again.
    fn restart(&mut self, topology: &Arc<Topology>, seed: u64);

    /// Returns the user code.
    fn handler(&mut self) -> &mut dyn Handler;

    /// Whether the call that was just handled or the step that just ran ended the whole process. Its outcome then has
    /// "the process ended" as its text. Asking resets it.
    fn killed(&mut self) -> bool {
        false
    }

    /// Returns the next call of a client, or `None` if it has no more.
    fn next(&mut self, rng: &mut Rng, topology: &Topology, client: usize, id: CallId) -> Option<Call>;

    /// Decides on an existing dead letter; `None` leaves it.
    fn dead_letter_action(&mut self, _rng: &mut Rng) -> Option<DeadLetterAction> {
        None
    }

    /// Adds a service that the program has from its next life on, and that its clients call. Returns its name and its number of
    /// shards; `None` for no more.
    fn add_service(&mut self, _rng: &mut Rng) -> Option<(String, u32)> {
        None
    }

    /// Whether an operator may delete any process, with its timers and tasks.
    fn allows_deletion(&self) -> bool {
        false
    }

    /// Runs one step of a task.
    fn step(&mut self, id: TaskId, task: &TaskRecord) -> StepOutcome;

    /// Called when a call is sent for the first time.
    fn invoked(&mut self, _id: CallId, _call: &Call) {}

    /// Called when a call's first answer arrives; the simulator compares the others with it.
    ///
    /// # Errors
    /// The violation.
    fn answered(&mut self, _id: CallId, _call: &Call, _answer: &Answered) -> Result<(), String> {
        Ok(())
    }

    /// Called when an entry is on stable storage; once for each entry, in the order of its shard.
    ///
    /// # Errors
    /// The violation.
    fn committed(&mut self, _shard: ShardId, _entry: &Entry) -> Result<(), String> {
        Ok(())
    }

    /// Called before [`Self::committed`] for an entry that deletes these records of a process.
    ///
    /// # Errors
    /// The violation.
    fn deleted(
        &mut self,
        _shard: ShardId,
        _entry: &Entry,
        _records: &[(RecordKey, Blob)],
    ) -> Result<(), String> {
        Ok(())
    }

    /// Called when the cluster continues from these states; knowledge of a later past must be dropped.
    fn restored(&mut self, _states: &[State]) {}

    /// Checks a consistent cut: the shards' states in the order of their ids, with the messages in flight in their
    /// outboxes.
    ///
    /// # Errors
    /// The violation.
    fn check_cut(&mut self, _topology: &Topology, _cut: &[State]) -> Result<(), String> {
        Ok(())
    }
}
