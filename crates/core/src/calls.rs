//! The calls that clients and shards make to processes, and their answers and refusals.

use crate::blob::Blob;
use crate::ids::{
    BodyHash, CallToken, Colour, Epoch, Index, Micros, RequestNumber, ServiceId, SessionId, ShardId, TaskId,
    Time, TimerId,
};
use crate::key::Key;
use crate::replication::freshness::TooStale;
use crate::replication::table::LogPoint;
use crate::reply::Reply;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// A client's request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Returned with the answer.
    pub token: CallToken,
    /// The receiving process.
    pub process: Key,
    /// The request's bytes.
    pub payload: Blob,
    /// The client's principal.
    pub principal: Arc<str>,
    /// The identity by which a retry is recognised.
    pub identity: Identity,
    /// The highest colour that the client has seen.
    pub colour: Colour,
    /// The newest entry of the shard that an answer to the client included: if it is lost, the client gets [`Lost`].
    pub seen: Option<LogPoint>,
    /// Whether no shard can have had it before, so that it has not ended the process of an earlier primary. False if that is unknown.
    pub is_first: bool,
}

/// The identity by which a retry of a request is recognised.
#[derive(Clone, Debug)]
pub enum Identity {
    /// A position in a session.
    Session {
        /// The session.
        session: SessionId,
        /// The request's number; at most [`crate::shard::Shard::SESSION_WINDOW`] over `confirmed`.
        number: RequestNumber,
        /// The client has the replies up to this number.
        confirmed: RequestNumber,
    },
    /// A key chosen by the client, scoped to the principal and the process.
    Idempotency {
        /// The key: at most [`crate::shard::Shard::IDEMPOTENCY_KEY_MAX`] bytes.
        key: Blob,
        /// Hash of the request.
        body_hash: BodyHash,
    },
    /// None: a retry is a new request.
    None,
}

/// A client's query.
#[derive(Clone, Debug)]
pub struct Query {
    /// Returned with the answer.
    pub token: CallToken,
    /// The queried process.
    pub process: Key,
    /// The query's bytes.
    pub payload: Blob,
    /// The client's principal.
    pub principal: Arc<str>,
    /// The promise that its answer has to keep.
    pub read: Read,
    /// As that of a [request](Request::seen). A [stale read](Read::Stale) ignores it.
    pub seen: Option<LogPoint>,
}

/// The promise that a client wants of the answer to a query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Read {
    /// That of the service: linearizable, or for an asynchronous one that of its primary.
    #[default]
    Service,
    /// It shows all that was answered before the query came, and only what is committed.
    Linearizable,
    /// As far as the primary's lease shows, it is current. It may show what an asynchronous service loses. Without a lease
    /// it is linearizable.
    Primary,
    /// Any replica answers, from committed state whose age it names: see [`Answer::staleness`].
    Stale {
        /// The greatest age that is allowed, if the service does not allow less anyway.
        max_lag: Option<Micros>,
    },
}

impl Query {
    /// Returns the call of the service's code.
    pub(crate) fn call(&self, service: ServiceId, time: Time, place: (Epoch, Index)) -> Call<'_> {
        let caller = Caller::Client { principal: &self.principal };
        Call { service, key: &self.process, caller, payload: &self.payload, time, place }
    }
}

/// The input of a handler.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The service of the process.
    pub service: ServiceId,
    /// The key of the process.
    pub key: &'a Key,
    /// The caller.
    pub caller: Caller<'a>,
    /// The request, message, timer's payload or task's result.
    pub payload: &'a [u8],
    /// The shard's time.
    pub time: Time,
    /// Epoch and index of this call's entry; they identify the call uniquely.
    pub place: (Epoch, Index),
}

/// The caller of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller<'a> {
    /// A client, by the name with which it authenticated.
    Client {
        /// The name.
        principal: &'a str,
    },
    /// Another process, by a message.
    Process {
        /// Its service.
        service: ServiceId,
        /// Its key.
        key: &'a Key,
    },
    /// A timer that the process set.
    Timer {
        /// The timer.
        id: TimerId,
    },
    /// A task that the process started: it ended, and the payload is its result.
    Task {
        /// The task.
        id: TaskId,
    },
}

/// The outcome of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered. With [`Reply::Err`] writes and sends are dropped, but the answer is kept.
    Replied(Reply),
    /// The call could not be decoded, or the process's state not be read: nothing is kept, and the caller gets the
    /// reason.
    Refused(Misuse),
    /// It panicked with this message: nothing is kept.
    Panicked(String),
}

/// Reasons for which a call was refused before or instead of being handled.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Misuse {
    /// The request's bytes are invalid for the service.
    #[error("cannot read the request: {0}")]
    Request(String),
    /// This version of the service cannot read the stored state of the process.
    #[error("cannot read the state of the process: {0}")]
    State(String),
    /// The service has no code on this node.
    #[error("no code is registered for {0}")]
    NoCode(String),
    /// A client sent a request that only processes, timers and tasks may send.
    #[error(
        "{0} takes this request from other processes only, and refuses it from clients; send one of the requests that the \
         service offers to clients"
    )]
    Internal(String),
    /// The writes, messages and answer of the call are together too large for an entry.
    #[error(
        "the call writes, sends and answers {len} bytes, over the limit of {max} bytes of one log entry; spread it over several calls"
    )]
    TooLarge {
        /// Its bytes.
        len: usize,
        /// The limit in bytes: [`Settings::entry_bytes_max`](crate::shard::Settings::entry_bytes_max).
        max: usize,
    },
}

impl Misuse {
    /// Returns the length of its text in bytes.
    pub(crate) fn text_len(&self) -> usize {
        match self {
            Self::Request(text) | Self::State(text) | Self::NoCode(text) | Self::Internal(text) => text.len(),
            Self::TooLarge { .. } => 0,
        }
    }
}

/// A client's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The token of the request or query.
    pub token: CallToken,
    /// The epoch of the answer.
    pub epoch: Epoch,
    /// The last entry that the answer includes; 0 if it includes none.
    pub index: Index,
    /// The committed colour of the shard when the answer leaves.
    pub colour: Colour,
    /// The answer.
    pub result: Result<Reply, Refusal>,
    /// Of a [stale read](Read::Stale), the age of the state when the query captured it, after the query had come: it shows all that
    /// was answered so long before. `None` for any other answer.
    pub staleness: Option<Micros>,
}

impl Answer {
    /// Returns the approximate number of bytes that it occupies in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let held = match &self.result {
            Ok(Reply::Ok(reply) | Reply::Err(reply)) => reply.len(),
            Err(Refusal::Panicked(text) | Refusal::FailedAgain { reason: text, .. }) => text.len(),
            Err(Refusal::Misuse(misuse)) => misuse.text_len(),
            Err(Refusal::Lost(lost)) => size_of::<Lost>() + lost.service.len(),
            Err(_) => 0,
        };
        size_of::<Self>() + held
    }
}

/// State that a shard's settings limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Limited {
    /// Replies kept for retries, of all principals.
    #[error(
        "bytes of replies that are kept for retries (kept_bytes_max), which go when their sessions and keys expire"
    )]
    Replies,
    /// Replies kept for retries of the client's principal.
    #[error(
        "bytes of replies that are kept for retries of one principal (half of kept_bytes_max), which go when they expire"
    )]
    RepliesOfPrincipal,
    /// Sessions.
    #[error("sessions (sessions_max)")]
    Sessions,
    /// Sessions of the client's principal.
    #[error("sessions of one principal (half of sessions_max)")]
    SessionsOfPrincipal,
    /// Timers and tasks.
    #[error("bytes of timers and tasks (waiting_bytes_max)")]
    Waiting,
    /// Dead letters.
    #[error("bytes of dead letters (dead_letter_bytes_max): retry or delete some")]
    DeadLetters,
}

/// Entries that an answer to the client included are lost: a failover of an asynchronous service went on without them, or an operator's
/// did. The shard reports this instead of handling the call, so that the client builds on nothing that did not happen. Later calls
/// carry [`now`](Self::now) as what they have seen, so each loss is reported to a client once it has come to it, and no more.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "shard {shard} of {service} has lost entries of epoch {} behind {kept}, and an answer to this client included entry {}; the \
     call was not handled: read again what it builds on, repeat what is missing, and then repeat the call",
    .seen.epoch, .seen.index
)]
pub struct Lost {
    /// The shard.
    pub shard: ShardId,
    /// The name of its service.
    pub service: String,
    /// The newest entry that an answer to the client included.
    pub seen: LogPoint,
    /// The last entry of that epoch that survived; 0 if none did.
    pub kept: Index,
    /// The last entry of the shard when it reported the loss.
    pub now: LogPoint,
}

/// Reasons for which a request was not handled.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The session is unknown or has expired.
    #[error(
        "session {0} is unknown or has expired; open a new one: requests of the old one may have been applied"
    )]
    UnknownSession(SessionId),
    /// The client has confirmed this reply.
    #[error(
        "the reply to request {0} was confirmed and is no longer kept; do not retry what has been answered"
    )]
    Confirmed(RequestNumber),
    /// The request's number is too far above the confirmed one.
    #[error(
        "request {number} is more than {window} over the confirmed {confirmed}; confirm replies that have come"
    )]
    Window {
        /// The number.
        number: RequestNumber,
        /// The confirmed number.
        confirmed: RequestNumber,
        /// The largest allowed distance.
        window: u64,
    },
    /// The idempotency key was used with another request.
    #[error("the idempotency key was used with another request; use a new key for a new request")]
    IdempotencyConflict,
    /// An idempotency key or a principal that is too long.
    #[error("{what} of {len} bytes is over the limit of {max}")]
    TooLong {
        /// The kind of the text.
        what: &'static str,
        /// Its bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The request would not fit into the log if it had to be given up.
    #[error(
        "the request of {len} bytes is over the limit of {max} bytes of one log entry; split it, or raise log.segment_bytes"
    )]
    RequestTooLarge {
        /// Its bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// There is no such dead letter.
    #[error("dead letter {0} does not exist; it may have been retried or deleted meanwhile")]
    NoDeadLetter(Index),
    /// The dead letter cannot be retried.
    #[error("cannot retry dead letter {letter}: {why}; it can only be deleted")]
    NoRetry {
        /// The dead letter.
        letter: Index,
        /// The reason.
        why: &'static str,
    },
    /// The dead letter was retried and failed again.
    #[error("dead letter {letter} failed again and stays what it is: {reason}")]
    FailedAgain {
        /// The dead letter.
        letter: Index,
        /// The reason of the failure.
        reason: String,
    },
    /// The handler or the request's decoder refused it.
    #[error(transparent)]
    Misuse(#[from] Misuse),
    /// The handler panicked; nothing was changed.
    #[error("the handler panicked: {0}; nothing was changed")]
    Panicked(String),
    /// The shard has too many undelivered messages or uncommitted entries.
    #[error("the shard is overloaded; retry after {} ms", .retry_after.as_millis())]
    Overloaded {
        /// Time after which to retry.
        retry_after: Duration,
    },
    /// The shard has reached the limit of some state.
    #[error("the shard has reached its limit of {max} {what}; retry later")]
    LimitReached {
        /// The limited state.
        what: Limited,
        /// The limit: a count or bytes, depending on `what`.
        max: usize,
        /// Time after which to retry.
        retry_after: Duration,
    },
    /// The process ended repeatedly while it handled this request, which is a dead letter now.
    #[error(
        "the process ended {attempts} times while it handled this request, so it was given up; see the dead letters"
    )]
    Poisoned {
        /// The number of attempts.
        attempts: u32,
    },
    /// The query has run for longer than a handler may, and was given up.
    #[error(
        "the query of {process} has run for over {} ms (handler_timeout) and was given up; ask for less at once, or raise the limit",
        .limit.as_millis()
    )]
    QueryGivenUp {
        /// Service and key of the process.
        process: String,
        /// The limit.
        limit: Duration,
    },
    /// The service has the maximum number of queries that were given up and still run.
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
    /// The state of this replica is older than a stale read allows.
    #[error(transparent)]
    TooStale(#[from] TooStale),
    /// The client has seen what is lost.
    #[error(transparent)]
    Lost(#[from] Box<Lost>),
    /// There is no space for the log.
    #[error(
        "the data directory's disk is full, or too many files are open: writes are refused until there is room; reads go on"
    )]
    Full,
}

impl Refusal {
    /// Whether it says that something is not there: a primary that was deposed and does not know it may lack what its successor has made.
    #[must_use]
    pub(crate) fn may_be_outdated(&self) -> bool {
        matches!(self, Self::UnknownSession(_) | Self::NoDeadLetter(_))
    }

    /// Whether it follows from the shard's state, or may reveal it, as a panic does: then it leaves no sooner than an
    /// answer would. The others must not wait, least of all for space.
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
            | Self::Poisoned { .. }
            | Self::Lost(_) => true,
            Self::TooLong { .. }
            | Self::RequestTooLarge { .. }
            | Self::Overloaded { .. }
            | Self::LimitReached { .. }
            | Self::QueryGivenUp { .. }
            | Self::QueriesStuck { .. }
            | Self::NotReady
            | Self::TooStale(_)
            | Self::Full => false,
        }
    }
}
