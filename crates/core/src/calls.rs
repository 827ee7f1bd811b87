//! What clients and shards ask of a process, and what they are answered.

use crate::blob::Blob;
use crate::ids::{Colour, Epoch, Index, RequestNumber, ServiceId, SessionId, TaskId, Time, TimerId};
use crate::key::Key;
use crate::reply::Reply;
use std::sync::Arc;
use thiserror::Error;

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
        /// The request's number; at most [`crate::shard::Shard::SESSION_WINDOW`] over `confirmed`.
        number: RequestNumber,
        /// The client holds the replies up to this number.
        confirmed: RequestNumber,
    },
    /// A key that the client chose, scoped to the principal and the process.
    Idempotency {
        /// The key: at most [`crate::shard::Shard::IDEMPOTENCY_KEY_MAX`] bytes.
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

/// What a handler is called for.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The service of the process.
    pub service: ServiceId,
    /// The key of the process.
    pub key: &'a Key,
    /// Who calls.
    pub caller: Caller<'a>,
    /// The request, message, timer's payload or task's result.
    pub payload: &'a [u8],
    /// The shard's time.
    pub time: Time,
    /// Where the entry of this call will stand; a name for it that no other call has.
    pub place: (Epoch, Index),
}

/// Who calls a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller<'a> {
    /// A client, by the name that it authenticated with.
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
    /// A task that the process started: it ended, and the payload is what it made.
    Task {
        /// The task.
        id: TaskId,
    },
}

/// How a handler ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered. With [`Reply::Err`] writes and sends are dropped, but the answer is kept.
    Replied(Reply),
    /// The call could not be understood or the process's state not be read: nothing is kept, and the caller learns why.
    Refused(Misuse),
    /// It panicked with this message: nothing is kept.
    Panicked(String),
}

/// Why a call was refused before or instead of being handled.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Misuse {
    /// The request's bytes are not what the service takes.
    #[error("cannot read the request: {0}")]
    Request(String),
    /// The process's stored state can't be read by this version of the service.
    #[error("cannot read the state of the process: {0}")]
    State(String),
    /// The service has no code here.
    #[error("no code is registered for {0}")]
    NoCode(String),
    /// A client sent what only processes, timers and tasks of the system may send.
    #[error(
        "{0} takes this request from other processes only, and refuses it from clients; send one of the requests that the \
         service offers to clients"
    )]
    Internal(String),
    /// What the call writes, sends and answers together is too large for an entry.
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
    /// Bytes of the text that it carries.
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
