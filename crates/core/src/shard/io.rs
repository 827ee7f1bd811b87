//! The inputs of a shard, and the effects that it asks for.

use crate::capture::Reading;
use crate::entry::Reply;
use crate::handler::{Call, Caller, Misuse};
use crate::ids::{
    Blob, Colour, Epoch, Index, Key, NodeId, RequestNumber, Seq, ServiceId, SessionId, ShardId, TaskId, Time,
};
use crate::record::{RecordKey, TaskRecord};
use crate::replica::EpochConfig;
use crate::state::{Header, Message};
use crate::trials::Lane;
use smallvec::SmallVec;
use std::sync::Arc;
use thiserror::Error;

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
    /// [`Refusal::UnknownSession`] once that is [`super::Settings::session_ttl`] ago.
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

/// A client's request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Comes back with the answer.
    pub token: u64,
    /// The process that it is for.
    pub process: Key,
    /// What it asks.
    pub payload: Blob,
    /// Who asks.
    pub principal: Arc<str>,
    /// What makes a retry of it known.
    pub identity: Identity,
    /// The highest colour that the client has seen.
    pub colour: Colour,
}

/// What makes a retry of a request known.
#[derive(Clone, Debug)]
pub enum Identity {
    /// A place in a session.
    Session {
        /// The session.
        session: SessionId,
        /// The request's number; at most [`super::Shard::SESSION_WINDOW`] over `confirmed`.
        number: RequestNumber,
        /// The client holds the replies up to this number.
        confirmed: RequestNumber,
    },
    /// A key that the client chose, scoped to the principal and the process.
    Idempotency {
        /// The key: at most [`super::Shard::IDEMPOTENCY_KEY_MAX`] bytes.
        key: Blob,
        /// Hash of what the client asks.
        body_hash: [u8; 16],
    },
    /// Nothing: a retry is a new request.
    None,
}

/// A client's query.
#[derive(Clone, Debug)]
pub struct Query {
    /// Comes back with the answer.
    pub token: u64,
    /// The process that is read.
    pub process: Key,
    /// What is asked.
    pub payload: Blob,
    /// Who asks.
    pub principal: Arc<str>,
}

impl Query {
    /// The call of the service's code.
    pub(crate) fn call(&self, service: ServiceId, time: Time, place: (Epoch, Index)) -> Call<'_> {
        let caller = Caller::Client { principal: &self.principal };
        Call { service, key: &self.process, caller, payload: &self.payload, time, place }
    }
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

/// A client's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which question.
    pub token: u64,
    /// The epoch that answered.
    pub epoch: Epoch,
    /// The entry up to which the answer has seen the shard; 0 if it has seen nothing.
    pub index: Index,
    /// The shard's colour, as far as it is committed when the answer leaves.
    pub colour: Colour,
    /// The answer.
    pub result: Result<Reply, Refusal>,
}

impl Answer {
    /// About as many bytes as it holds in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let held = match &self.result {
            Ok(Reply::Ok(reply) | Reply::Err(reply)) => reply.len(),
            Err(Refusal::Panicked(text) | Refusal::FailedAgain { reason: text, .. }) => text.len(),
            Err(Refusal::Misuse(misuse)) => misuse.text_len(),
            Err(_) => 0,
        };
        size_of::<Self>() + held
    }
}

/// What a shard keeps no more than its settings say of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Limited {
    /// Replies kept for retries, of all principals.
    #[error(
        "bytes of replies that are kept for retries (kept_bytes_max), which go when their sessions and keys expire"
    )]
    Replies,
    /// Replies kept for retries of the principal that asks.
    #[error(
        "bytes of replies that are kept for retries of one principal (half of kept_bytes_max), which go when they expire"
    )]
    RepliesOfPrincipal,
    /// Sessions.
    #[error("sessions (sessions_max)")]
    Sessions,
    /// Sessions of the principal that asks.
    #[error("sessions of one principal (half of sessions_max)")]
    SessionsOfPrincipal,
    /// Timers and tasks.
    #[error("bytes of timers and tasks (waiting_bytes_max)")]
    Waiting,
    /// Dead letters.
    #[error("bytes of dead letters (dead_letter_bytes_max): retry or delete some")]
    DeadLetters,
}

/// Why a request was not handled.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The session is unknown or ran out.
    #[error(
        "session {0} is unknown or has expired; open a new one: requests of the old one may have been applied"
    )]
    UnknownSession(SessionId),
    /// The client said that it holds this reply.
    #[error(
        "the reply to request {0} was confirmed and is no longer kept; do not retry what has been answered"
    )]
    Confirmed(RequestNumber),
    /// The request's number is too far ahead of what is confirmed.
    #[error(
        "request {number} is more than {window} over the confirmed {confirmed}; confirm replies that have come"
    )]
    Window {
        /// The number.
        number: RequestNumber,
        /// What is confirmed.
        confirmed: RequestNumber,
        /// How far ahead a number may be.
        window: u64,
    },
    /// The idempotency key was used with another request.
    #[error("the idempotency key was used with another request; use a new key for a new request")]
    IdempotencyConflict,
    /// An idempotency key or a principal that is too long.
    #[error("{what} of {len} bytes is over the limit of {max}")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Its bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A request that would not fit into the log if it had to be given up.
    #[error(
        "the request of {len} bytes is over the limit of {max} bytes of one log entry; split it, or raise log.segment_bytes"
    )]
    RequestTooLarge {
        /// Its bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// No such dead letter.
    #[error("dead letter {0} does not exist; it may have been retried or deleted meanwhile")]
    NoDeadLetter(Index),
    /// The dead letter can't be handled again.
    #[error("cannot retry dead letter {letter}: {why}; it can only be deleted")]
    NoRetry {
        /// The dead letter.
        letter: Index,
        /// Why not.
        why: &'static str,
    },
    /// The dead letter was tried again, in vain.
    #[error("dead letter {letter} failed again and stays what it is: {reason}")]
    FailedAgain {
        /// The dead letter.
        letter: Index,
        /// Why it failed.
        reason: String,
    },
    /// The handler or the request's decoder refused.
    #[error(transparent)]
    Misuse(#[from] Misuse),
    /// The handler panicked; nothing of it was kept.
    #[error("the handler panicked: {0}; nothing was changed")]
    Panicked(String),
    /// The shard has more undelivered messages or uncommitted entries than it may.
    #[error("the shard is overloaded; retry after {retry_after_ms} ms")]
    Overloaded {
        /// When to retry, in milliseconds.
        retry_after_ms: u64,
    },
    /// The shard keeps as much of something as it may.
    #[error("the shard has reached its limit of {max} {what}; retry later")]
    LimitReached {
        /// What it keeps.
        what: Limited,
        /// The limit: a count or bytes, as `what` says.
        max: usize,
        /// When to retry, in milliseconds.
        retry_after_ms: u64,
    },
    /// The process ended again and again while it handled this request; it is a dead letter now.
    #[error(
        "the process ended {attempts} times while it handled this request, so it was given up; see the dead letters"
    )]
    Poisoned {
        /// How often it was tried.
        attempts: u32,
    },
    /// The query has run for longer than a handler may, and was given up.
    #[error(
        "the query of {process} has run for over {limit_ms} ms (handler_timeout) and was given up; ask for less at once, or raise the limit"
    )]
    QueryGivenUp {
        /// Service and key of the process.
        process: String,
        /// The limit in milliseconds.
        limit_ms: u64,
    },
    /// Queries of the service were given up and still run, as many as may.
    #[error(
        "queries of service {service} are refused: {stuck} of them were given up and still run, the first of {process}; \
         correct its code and restart the node"
    )]
    QueriesStuck {
        /// The service.
        service: String,
        /// The number of these queries.
        stuck: usize,
        /// Service and key of the process whose query has run for the longest.
        process: String,
    },
    /// The shard does not serve yet.
    #[error("the shard is starting; retry shortly")]
    NotReady,
    /// There is no room for the log.
    #[error(
        "the data directory's disk is full, or too many files are open: writes are refused until there is room; reads go on"
    )]
    Full,
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

impl Refusal {
    /// Whether it follows from the shard's state, or may tell of it, as a panic does: then it leaves no sooner than an
    /// answer would. The others must not wait, least of all for room.
    #[must_use]
    pub fn saw_state(&self) -> bool {
        match self {
            Self::UnknownSession(_)
            | Self::Confirmed(_)
            | Self::Window { .. }
            | Self::IdempotencyConflict
            | Self::NoDeadLetter(_)
            | Self::NoRetry { .. }
            | Self::FailedAgain { .. }
            | Self::Misuse(_)
            | Self::Panicked(_)
            | Self::Poisoned { .. } => true,
            Self::TooLong { .. }
            | Self::RequestTooLarge { .. }
            | Self::Overloaded { .. }
            | Self::LimitReached { .. }
            | Self::QueryGivenUp { .. }
            | Self::QueriesStuck { .. }
            | Self::NotReady
            | Self::Full => false,
        }
    }
}
