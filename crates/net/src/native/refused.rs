//! The encoding of refusals.

use minicbor::{Decode, Encode};
use std::time::Duration;
use stead_core::calls::{Limited, Lost, Misuse, Refusal};
use stead_core::ids::{Index, Micros, RequestNumber, SessionId, ShardId};
use stead_core::replication::freshness::TooStale;
use stead_core::replication::table::LogPoint;

/// A [`Refusal`] as answers carry it.
#[derive(Encode, Decode)]
pub(super) enum Refused {
    #[n(0)]
    UnknownSession(#[n(0)] SessionId),
    #[n(1)]
    Confirmed(#[n(0)] RequestNumber),
    #[n(2)]
    Window(#[n(0)] RequestNumber, #[n(1)] RequestNumber, #[n(2)] u64),
    #[n(3)]
    IdempotencyConflict,
    #[n(4)]
    TooLong(#[n(0)] String, #[n(1)] usize, #[n(2)] usize),
    #[n(5)]
    RequestTooLarge(#[n(0)] usize, #[n(1)] usize),
    #[n(6)]
    NoDeadLetter(#[n(0)] Index),
    #[n(7)]
    NoRetry(#[n(0)] Index, #[n(1)] String),
    #[n(8)]
    FailedAgain(#[n(0)] Index, #[n(1)] String),
    #[n(9)]
    MisuseRequest(#[n(0)] String),
    #[n(10)]
    MisuseState(#[n(0)] String),
    #[n(11)]
    MisuseNoCode(#[n(0)] String),
    #[n(12)]
    MisuseInternal(#[n(0)] String),
    #[n(13)]
    MisuseTooLarge(#[n(0)] usize, #[n(1)] usize),
    #[n(14)]
    Panicked(#[n(0)] String),
    /// The time in microseconds, as all others here.
    #[n(15)]
    Overloaded(#[n(0)] u64),
    #[n(16)]
    LimitReached(#[n(0)] Kept, #[n(1)] usize, #[n(2)] u64),
    #[n(17)]
    Poisoned(#[n(0)] u32),
    #[n(18)]
    QueryGivenUp(#[n(0)] String, #[n(1)] u64),
    #[n(19)]
    QueriesStuck(#[n(0)] String, #[n(1)] usize, #[n(2)] String),
    #[n(20)]
    NotReady,
    #[n(21)]
    Full,
    /// Microseconds: the age, and the greatest one that is allowed.
    #[n(22)]
    TooStale(#[n(0)] u64, #[n(1)] u64),
    #[n(23)]
    AgeUnknown,
    /// The shard, its service, what the client has seen, the last index that survived, and the last entry now.
    #[n(24)]
    Lost(#[n(0)] ShardId, #[n(1)] String, #[n(2)] LogPoint, #[n(3)] Index, #[n(4)] LogPoint),
}

/// A [`Limited`] as answers carry it.
#[derive(Encode, Decode)]
#[cbor(index_only)]
pub(super) enum Kept {
    #[n(0)]
    Replies,
    #[n(1)]
    RepliesOfPrincipal,
    #[n(2)]
    Sessions,
    #[n(3)]
    SessionsOfPrincipal,
    #[n(4)]
    Waiting,
    #[n(5)]
    DeadLetters,
}

/// Texts that refusals have as constants, the ones of [`Refusal::TooLong`] first. Another version may have others.
const TEXTS: [&str; 5] = [
    "an idempotency key",
    "a principal",
    "its client was informed that it was given up, and may have acted on that",
    "its payload was too large to be kept",
    "an older version recorded it without all that a retry needs",
];

fn constant(text: &str, other: &'static str) -> &'static str {
    TEXTS.into_iter().find(|known| *known == text).unwrap_or(other)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Self {
        match refusal.clone() {
            Refusal::UnknownSession(session) => Self::UnknownSession(session),
            Refusal::Confirmed(number) => Self::Confirmed(number),
            Refusal::Window { number, confirmed, window } => Self::Window(number, confirmed, window),
            Refusal::IdempotencyConflict => Self::IdempotencyConflict,
            Refusal::TooLong { what, len, max } => Self::TooLong(what.to_owned(), len, max),
            Refusal::RequestTooLarge { len, max } => Self::RequestTooLarge(len, max),
            Refusal::NoDeadLetter(letter) => Self::NoDeadLetter(letter),
            Refusal::NoRetry { letter, why } => Self::NoRetry(letter, why.to_owned()),
            Refusal::FailedAgain { letter, reason } => Self::FailedAgain(letter, reason),
            Refusal::Misuse(Misuse::Request(text)) => Self::MisuseRequest(text),
            Refusal::Misuse(Misuse::State(text)) => Self::MisuseState(text),
            Refusal::Misuse(Misuse::NoCode(text)) => Self::MisuseNoCode(text),
            Refusal::Misuse(Misuse::Internal(text)) => Self::MisuseInternal(text),
            Refusal::Misuse(Misuse::TooLarge { len, max }) => Self::MisuseTooLarge(len, max),
            Refusal::Panicked(text) => Self::Panicked(text),
            Refusal::Overloaded { retry_after } => Self::Overloaded(micros(retry_after)),
            Refusal::LimitReached { what, max, retry_after } => {
                let what = match what {
                    Limited::Replies => Kept::Replies,
                    Limited::RepliesOfPrincipal => Kept::RepliesOfPrincipal,
                    Limited::Sessions => Kept::Sessions,
                    Limited::SessionsOfPrincipal => Kept::SessionsOfPrincipal,
                    Limited::Waiting => Kept::Waiting,
                    Limited::DeadLetters => Kept::DeadLetters,
                };
                Self::LimitReached(what, max, micros(retry_after))
            }
            Refusal::Poisoned { attempts } => Self::Poisoned(attempts),
            Refusal::QueryGivenUp { process, limit } => Self::QueryGivenUp(process, micros(limit)),
            Refusal::QueriesStuck { service, stuck, process } => Self::QueriesStuck(service, stuck, process),
            Refusal::NotReady => Self::NotReady,
            Refusal::Full => Self::Full,
            Refusal::TooStale(TooStale::Over { staleness, max_lag }) => {
                Self::TooStale(staleness.0, max_lag.0)
            }
            Refusal::TooStale(TooStale::Unknown) => Self::AgeUnknown,
            Refusal::Lost(lost) => {
                let Lost { shard, service, seen, kept, now } = *lost;
                Self::Lost(shard, service, seen, kept, now)
            }
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::UnknownSession(session) => Self::UnknownSession(session),
            Refused::Confirmed(number) => Self::Confirmed(number),
            Refused::Window(number, confirmed, window) => Self::Window { number, confirmed, window },
            Refused::IdempotencyConflict => Self::IdempotencyConflict,
            Refused::TooLong(what, len, max) => {
                Self::TooLong { what: constant(&what, "a text of the request"), len, max }
            }
            Refused::RequestTooLarge(len, max) => Self::RequestTooLarge { len, max },
            Refused::NoDeadLetter(letter) => Self::NoDeadLetter(letter),
            Refused::NoRetry(letter, why) => {
                Self::NoRetry { letter, why: constant(&why, "the node refuses it") }
            }
            Refused::FailedAgain(letter, reason) => Self::FailedAgain { letter, reason },
            Refused::MisuseRequest(text) => Self::Misuse(Misuse::Request(text)),
            Refused::MisuseState(text) => Self::Misuse(Misuse::State(text)),
            Refused::MisuseNoCode(text) => Self::Misuse(Misuse::NoCode(text)),
            Refused::MisuseInternal(text) => Self::Misuse(Misuse::Internal(text)),
            Refused::MisuseTooLarge(len, max) => Self::Misuse(Misuse::TooLarge { len, max }),
            Refused::Panicked(text) => Self::Panicked(text),
            Refused::Overloaded(after) => Self::Overloaded { retry_after: Duration::from_micros(after) },
            Refused::LimitReached(what, max, after) => {
                let what = match what {
                    Kept::Replies => Limited::Replies,
                    Kept::RepliesOfPrincipal => Limited::RepliesOfPrincipal,
                    Kept::Sessions => Limited::Sessions,
                    Kept::SessionsOfPrincipal => Limited::SessionsOfPrincipal,
                    Kept::Waiting => Limited::Waiting,
                    Kept::DeadLetters => Limited::DeadLetters,
                };
                Self::LimitReached { what, max, retry_after: Duration::from_micros(after) }
            }
            Refused::Poisoned(attempts) => Self::Poisoned { attempts },
            Refused::QueryGivenUp(process, limit) => {
                Self::QueryGivenUp { process, limit: Duration::from_micros(limit) }
            }
            Refused::QueriesStuck(service, stuck, process) => Self::QueriesStuck { service, stuck, process },
            Refused::NotReady => Self::NotReady,
            Refused::Full => Self::Full,
            Refused::TooStale(staleness, max_lag) => {
                TooStale::Over { staleness: Micros(staleness), max_lag: Micros(max_lag) }.into()
            }
            Refused::AgeUnknown => TooStale::Unknown.into(),
            Refused::Lost(shard, service, seen, kept, now) => {
                Self::Lost(Box::new(Lost { shard, service, seen, kept, now }))
            }
        }
    }
}
