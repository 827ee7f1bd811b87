//! The inputs and effects of a shard.

use crate::blob::Blob;
use crate::calls::{Answer, Query, Request};
use crate::capture::Reading;
use crate::channel::Message;
use crate::commit_tracker::EpochConfig;
use crate::ids::{
    CallToken, CheckpointNumber, Colour, Epoch, Index, Micros, ReplicaId, Seq, SessionId, ShardId,
    StepNumber, StepRun, TaskId,
};
use crate::key::Key;
use crate::look::Look;
use crate::record::{RecordKey, TaskRecord};
use crate::state::Header;
use crate::trials::TrialKind;
use smallvec::SmallVec;
use std::sync::Arc;

/// The messages of one delivery. With many shards most deliveries have one message, which needs no allocation that the
/// receiving thread would have to return to the sending one.
pub type Messages = SmallVec<[Message; 1]>;

/// An event for a shard. Every input may come late, twice or never; only `Stored` must be true.
#[derive(Clone, Debug)]
pub enum Input {
    /// The control plane makes this replica the primary of an epoch that it has made durable.
    Start(EpochConfig),
    /// A client opens a session.
    ///
    /// Unlike the others it must not come twice so far apart that the session has expired in between: it would be
    /// opened again, empty, and late requests of its first life would be handled a second time. On one node this is
    /// impossible: an id stays in the process that drew it, and goes to the shard again only if it was refused. Frames
    /// between nodes may be delayed for any time: their receiver has to know when the id was drawn, and to answer
    /// [`Refusal::UnknownSession`](crate::calls::Refusal::UnknownSession) once that is [`super::Settings::session_ttl`]
    /// ago.
    OpenSession {
        /// Returned with the answer.
        token: CallToken,
        /// Drawn at random by the shell, for this session alone.
        session: SessionId,
        /// The principal that opens it.
        principal: Arc<str>,
    },
    /// A client's request.
    Request(Request),
    /// A client's query: it reads one process.
    Query(Query),
    /// Messages of one channel, in order.
    Deliver {
        /// The sending shard.
        from: ShardId,
        /// The messages.
        messages: Messages,
        /// The sender has just started: the messages may have been running when the process crashed.
        again: bool,
    },
    /// A receiver has all messages of a channel up to one.
    Ack {
        /// The receiving shard.
        from: ShardId,
        /// The last message that it has.
        upto: Seq,
        /// Its colour.
        colour: Colour,
    },
    /// A member has the log of an epoch on stable storage up to an index.
    Stored {
        /// The member.
        member: ReplicaId,
        /// The epoch of the log.
        epoch: Epoch,
        /// The index.
        upto: Index,
    },
    /// The control plane begins a checkpoint.
    Colour(Colour),
    /// The checkpoint of this number exists: the shard's next part may omit what has not changed since its part of that
    /// one. Until this comes, each further part has all records, whatever became of the checkpoints in between.
    Completed(CheckpointNumber),
    /// A step of a task ended.
    TaskStep {
        /// The task.
        id: TaskId,
        /// The step.
        step: StepNumber,
        /// The run of the step, from [`Effect::RunStep`].
        run: StepRun,
        /// Its outcome.
        outcome: StepOutcome,
    },
    /// A thread is about to run a step that asks for it: see [`Effect::RunStep`].
    StepBegins {
        /// The task.
        id: TaskId,
        /// The run of the step.
        run: StepRun,
    },
    /// It is this shard's turn to try a cause that may have ended the last life: see [`crate::trials`].
    Turn(TrialKind),
    /// A handler has to be tried while a step of this shard is: the step continues, but its attempt does not count.
    Yield,
    /// All causes that may have ended the last life are tried: nothing is held any more.
    Open,
    /// An operator decides about a dead letter.
    DeadLetter {
        /// Returned with the answer.
        token: CallToken,
        /// The number in the dead letter's key.
        letter: Index,
        /// The decision.
        action: DeadLetterAction,
    },
    /// An operator deletes records of a process.
    Delete {
        /// Returned with the answer.
        token: CallToken,
        /// The process.
        process: Key,
        /// Those of its state, cells, timers and tasks that are deleted: at most [`super::Shard::DELETE_BATCH`], and
        /// none of another process.
        records: Vec<RecordKey>,
    },
    /// An operator looks at the state.
    Look {
        /// Returned with the answer, which has the encoded [`Found`](crate::look::Found).
        token: CallToken,
        /// What the operator wants to see.
        look: Box<Look>,
    },
    /// Time has passed: [`super::Shard::deadline`] has come.
    Tick,
    /// The log has no space: accept no new work until it has.
    Full(bool),
}

/// A decision on a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadLetterAction {
    /// It is retried: the entry of the retry removes it. If it fails again, it stays a dead letter.
    Retry,
    /// It is removed unhandled.
    Drop,
}

/// The outcome of a task's step.
#[derive(Clone, Debug)]
pub enum StepOutcome {
    /// There is more to do.
    Continue {
        /// The task's new state.
        state: Blob,
        /// The share that is done, in millionths.
        progress: u32,
    },
    /// It was the last step; this is sent to the process that started the task.
    Done(Blob),
    /// The step panicked or its state could not be read: it is tried again at once, [`super::Settings::attempts_max`] times
    /// in all.
    Failed(String),
    /// The step asks to be tried again later, from the state before it.
    Retry {
        /// Time after which to retry.
        after: Micros,
        /// The reason of the failure.
        reason: String,
    },
    /// The step has failed for good: the task becomes a dead letter.
    GivenUp(String),
}

impl StepOutcome {
    /// Returns the bytes that it occupies.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let held = match self {
            Self::Continue { state: made, .. } | Self::Done(made) => made.len(),
            Self::Failed(reason) | Self::Retry { reason, .. } | Self::GivenUp(reason) => reason.len(),
        };
        size_of::<Self>() + held
    }
}

/// A request of a shard to the shell. The shell performs it and decides nothing.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Append an entry to the log; once it is durable, pass `Stored`.
    Append {
        /// The entry's epoch.
        epoch: Epoch,
        /// Its index.
        index: Index,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Deliver messages of the channel to a shard, in order.
    Deliver {
        /// The receiving shard.
        to: ShardId,
        /// The messages.
        messages: Messages,
        /// This shard has just started.
        again: bool,
    },
    /// Acknowledge messages to a sender.
    Ack {
        /// The sending shard.
        to: ShardId,
        /// The last message that this shard has.
        upto: Seq,
        /// The committed colour of this shard.
        colour: Colour,
    },
    /// Answer a client.
    Answer(Answer),
    /// Run a query apart from the shard, and answer its client: all that it reads is captured and committed. It may take any
    /// time, and be given up: the shard does not wait for it.
    Query(Box<Reading>),
    /// Run a step of a task off the shard's thread.
    RunStep {
        /// The task.
        id: TaskId,
        /// The number of this run: unique in a life of the process.
        run: StepRun,
        /// The task.
        task: TaskRecord,
        /// It may have been running when the process ended: once a thread has it, and before it runs, pass
        /// [`Input::StepBegins`] and wait for [`Effect::StepAllowed`].
        asks: bool,
        /// It is tried in its shard's turn, for which others wait: it must begin even if the shell lacks space.
        alone: bool,
    },
    /// The answer to [`Input::StepBegins`].
    StepAllowed {
        /// The task.
        id: TaskId,
        /// The run of the step.
        run: StepRun,
        /// Whether it may run; otherwise it is no longer needed.
        allowed: bool,
    },
    /// The shard requests a turn.
    WantsTurn(TrialKind),
    /// The shard has ended its turn.
    EndsTurn(TrialKind),
    /// The marker of a checkpoint is in the log, and the snapshot has begun: drain it with [`super::Shard::drain_snapshot`].
    Marked {
        /// All of the part's state besides the records, except the messages in the outboxes, which come in the pieces
        /// of the snapshot.
        header: Box<Header>,
        /// Whether the section will have every record and replace the stored ones; otherwise it has the records that
        /// changed since the last marker.
        all: bool,
    },
    /// The marker is committed: the part counts once its snapshot is stored.
    MarkerCommitted(Colour),
    /// The epoch is active; the shard serves.
    Active(Epoch),
}

impl Input {
    /// Returns the token of a call, whose caller waits for an answer.
    #[must_use]
    pub fn token(&self) -> Option<CallToken> {
        match self {
            Self::OpenSession { token, .. }
            | Self::DeadLetter { token, .. }
            | Self::Delete { token, .. }
            | Self::Look { token, .. } => Some(*token),
            Self::Request(request) => Some(request.token),
            Self::Query(query) => Some(query.token),
            _ => None,
        }
    }

    /// Whether it is new work of clients, which is refused while the shell lacks memory: see
    /// [`super::Shard::set_crowded`].
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        matches!(
            self,
            Self::OpenSession { .. } | Self::Request(_) | Self::DeadLetter { .. } | Self::Delete { .. }
        )
    }
}
