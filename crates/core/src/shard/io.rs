//! The inputs of a shard, and the effects that it asks for.

use crate::blob::Blob;
use crate::calls::{Answer, Query, Request};
use crate::capture::Reading;
use crate::channel::Message;
use crate::ids::{Colour, Epoch, Index, NodeId, Seq, SessionId, ShardId, TaskId};
use crate::key::Key;
use crate::record::{RecordKey, TaskRecord};
use crate::replica::EpochConfig;
use crate::state::Header;
use crate::trials::Lane;
use smallvec::SmallVec;
use std::sync::Arc;

/// The messages of one delivery. With many shards most deliveries have one: it needs no allocation, which the
/// receiving thread would have to give back to the sending one.
pub type Messages = SmallVec<[Message; 1]>;

/// News from the shell for a shard. An input may come late, twice or never: only `Stored` must be true.
#[derive(Clone, Debug)]
pub enum Input {
    /// The control plane makes this replica the primary of an epoch that it has made durable.
    Start(EpochConfig),
    /// A client opens a session.
    ///
    /// Unlike the others it must not come twice so far apart that the session ran out in between: it would open again,
    /// empty, and late requests of its first life would be handled a second time. On one node it can't: an id stays in
    /// the process that drew it, and goes to the shard again only if it was refused. Frames between nodes may be held
    /// up for any time: what takes them off the wire has to know when the id was drawn, and to answer
    /// [`Refusal::UnknownSession`](crate::calls::Refusal::UnknownSession) once that is [`super::Settings::session_ttl`] ago.
    OpenSession {
        /// Comes back with the answer.
        token: u64,
        /// Drawn at random by the shell, for this session alone.
        session: SessionId,
        /// Who opens it.
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
        /// The sender has just started: a crash may have met these before.
        again: bool,
    },
    /// A receiver holds all messages of a channel up to one.
    Ack {
        /// The receiving shard.
        from: ShardId,
        /// The last message that it holds.
        upto: Seq,
        /// Its colour.
        colour: Colour,
    },
    /// A member has the log of an epoch on stable storage up to an index.
    Stored {
        /// The member.
        member: NodeId,
        /// The epoch of the log.
        epoch: Epoch,
        /// The index.
        upto: Index,
    },
    /// The control plane begins a checkpoint.
    Colour(Colour),
    /// The checkpoint of this number exists: the shard's next part may hold only what changed after its part of that one.
    /// Until this comes, each further part holds every record, whatever became of the checkpoints between.
    Completed(Colour),
    /// A step of a task ended.
    TaskStep {
        /// The task.
        id: TaskId,
        /// The step.
        step: u64,
        /// Which run of it, as [`Effect::RunTask`] said.
        run: u32,
        /// How it ended.
        outcome: StepOutcome,
    },
    /// A thread is about to run a step that asks for it: see [`Effect::RunTask`].
    StepBegins {
        /// The task.
        id: TaskId,
        /// Which run of it.
        run: u32,
    },
    /// It is this shard's turn to try what the last life may have met: see [`crate::trials`].
    Turn(Lane),
    /// A handler has to be tried while a step of this shard is: the step goes on, but its attempt does not count.
    Yield,
    /// All that the last life had met is tried: nothing is held any more.
    Open,
    /// An operator decides about a dead letter.
    DeadLetter {
        /// Comes back with the answer.
        token: u64,
        /// The number in the dead letter's key.
        letter: Index,
        /// What is to become of it.
        order: Order,
    },
    /// An operator deletes records of a process.
    Delete {
        /// Comes back with the answer.
        token: u64,
        /// The process.
        process: Key,
        /// Its state, cells, timers and tasks that are to go: [`super::Shard::DELETE_BATCH`] at most, and none of another's.
        records: Vec<RecordKey>,
    },
    /// Time went by: [`super::Shard::deadline`] has come.
    Tick,
    /// The log has no room: take no new work until there is.
    Full(bool),
}

/// What is to become of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It is handled: the entry of that removes it. If it fails again, it stays a dead letter.
    Retry,
    /// It is removed unhandled.
    Drop,
}

/// How a step of a task ended.
#[derive(Clone, Debug)]
pub enum StepOutcome {
    /// There is more to do.
    Continue {
        /// The task's new state.
        state: Blob,
        /// The share that is done, in millionths.
        progress: u32,
    },
    /// It was the last step; this goes to the process that started the task.
    Done(Blob),
    /// The step panicked or its state could not be read: it is tried again at once, [`super::Settings::attempts_max`] times
    /// in all.
    Failed(String),
    /// The step asks to be tried again later, from the state before it.
    Retry {
        /// In so many microseconds.
        after: u64,
        /// Why it failed.
        reason: String,
    },
    /// The step has failed for good: the task becomes a dead letter.
    GivenUp(String),
}

impl StepOutcome {
    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let held = match self {
            Self::Continue { state: made, .. } | Self::Done(made) => made.len(),
            Self::Failed(reason) | Self::Retry { reason, .. } | Self::GivenUp(reason) => reason.len(),
        };
        size_of::<Self>() + held
    }
}

/// What a shard asks the shell to do. The shell performs and decides nothing.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Put an entry into the log; once it is durable, give `Stored`.
    Append {
        /// The entry's epoch.
        epoch: Epoch,
        /// Its index.
        index: Index,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Give messages of the channel to a shard, in order.
    Deliver {
        /// The receiving shard.
        to: ShardId,
        /// The messages.
        messages: Messages,
        /// This shard has just started.
        again: bool,
    },
    /// Tell a sender what this shard holds.
    Ack {
        /// The sending shard.
        to: ShardId,
        /// The last message that this shard holds.
        upto: Seq,
        /// This shard's colour, as far as it is committed.
        colour: Colour,
    },
    /// Answer a client.
    Answer(Answer),
    /// Run a query apart from the shard, and answer its client: all that it reads is captured and committed. It may take any
    /// time, and be given up: the shard waits for nothing of it.
    Query(Box<Reading>),
    /// Run a step of a task off the shard's thread.
    RunTask {
        /// The task.
        id: TaskId,
        /// Which run this is: each has a number of its own in a life of the process.
        run: u32,
        /// What it is.
        task: TaskRecord,
        /// A death of the process may have met it: once a thread has it, and before it runs, give
        /// [`Input::StepBegins`] and wait for [`Effect::StepAllowed`].
        asks: bool,
        /// It is tried in its shard's turn, which others wait for: it must begin whatever the shell has no room for.
        alone: bool,
    },
    /// The answer to [`Input::StepBegins`].
    StepAllowed {
        /// The task.
        id: TaskId,
        /// Which run of it.
        run: u32,
        /// Whether it may run; otherwise it is of no use any more.
        allowed: bool,
    },
    /// The shard wants a turn.
    WantsTurn(Lane),
    /// The shard has had its turn.
    EndsTurn(Lane),
    /// The marker of a checkpoint is in the log, and the snapshot has begun: drain it with [`super::Shard::drain_snapshot`].
    Marked {
        /// All that the part holds beside the records, except the messages in the outboxes: these come in the pieces of the
        /// snapshot.
        header: Box<Header>,
        /// The section will hold every record and replaces the stored ones; otherwise it holds what changed since the
        /// last marker.
        all: bool,
    },
    /// The marker is committed: the part counts once its snapshot is stored.
    MarkerCommitted(Colour),
    /// The epoch is active; the shard serves.
    Active(Epoch),
}

impl Input {
    /// Whether it brings work from outside, which is refused while there is no room for it: see
    /// [`super::Shard::set_crowded`].
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        matches!(
            self,
            Self::OpenSession { .. } | Self::Request(_) | Self::DeadLetter { .. } | Self::Delete { .. }
        )
    }
}
