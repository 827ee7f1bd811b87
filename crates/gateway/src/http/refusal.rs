//! Converts the library's errors into problems: one exhaustive match, so that a new variant gets its answer.

use super::problem::{Kind, LostEntries, Problem};
use stead::codec::CodecError;
use stead::offline::OfflineError;
use stead::{Misuse, RawError, Refusal};

/// Returns the problem for a call or query that its process did not answer.
pub(super) fn problem(error: RawError) -> Problem {
    let detail = error.to_string();
    let kind = match error {
        RawError::UnknownService { .. } => Kind::UnknownService,
        RawError::UnknownShard { .. } => Kind::UnknownShard,
        RawError::NotHere { .. } => Kind::ShardNotHere,
        RawError::Codec(CodecError::Unreadable { .. }) => Kind::UnreadableRequest,
        RawError::Codec(CodecError::Unwritable { .. } | CodecError::Json { .. }) => Kind::UnwritableAnswer,
        RawError::Codec(CodecError::Key { .. }) => Kind::BadRequest,
        RawError::TimedOut { .. } => Kind::TimedOut,
        RawError::NodeFailed(_) => Kind::NodeFailed,
        // The gateway's own node is in this process.
        RawError::Stopped | RawError::Network { .. } | RawError::Invalid(_) | RawError::NoPrimary { .. } => {
            Kind::NotReady
        }
        RawError::StalePage => Kind::StalePage,
        RawError::Refused(refusal) => match refusal {
            Refusal::UnknownSession(_)
            | Refusal::Confirmed(_)
            | Refusal::Window { .. }
            | Refusal::TooLong { .. } => Kind::BadRequest,
            Refusal::IdempotencyConflict => Kind::IdempotencyConflict,
            Refusal::Misuse(Misuse::Request(_)) => Kind::UnreadableRequest,
            Refusal::Misuse(Misuse::State(_)) => Kind::UnreadableState,
            Refusal::Misuse(Misuse::NoCode(_)) => Kind::UnknownService,
            Refusal::Misuse(Misuse::Internal(_)) => Kind::InternalRequest,
            Refusal::Misuse(Misuse::TooLarge { .. }) | Refusal::RequestTooLarge { .. } => Kind::EntryTooLarge,
            Refusal::NoDeadLetter(_) => Kind::UnknownDeadLetter,
            Refusal::NoRetry { .. } => Kind::DeadLetterFinal,
            Refusal::FailedAgain { .. } => Kind::DeadLetterFailed,
            Refusal::Panicked(_) | Refusal::Poisoned { .. } => Kind::HandlerPanicked,
            Refusal::Overloaded { retry_after } | Refusal::LimitReached { retry_after, .. } => {
                return Problem::new(Kind::Overloaded, detail).retry_after_ms(retry_after.as_millis() as u64);
            }
            Refusal::QueryGivenUp { .. } => Kind::QueryGivenUp,
            Refusal::QueriesStuck { .. } => Kind::QueriesStuck,
            Refusal::NotReady => return Problem::new(Kind::NotReady, detail).retry_after_ms(100),
            Refusal::TooStale(_) => return Problem::new(Kind::TooStale, detail).retry_after_ms(100),
            Refusal::Full => Kind::Full,
            Refusal::Lost(lost) => {
                return Problem { lost: Some(LostEntries::of(&lost)), ..Problem::new(Kind::Lost, detail) };
            }
        },
    };
    Problem::new(kind, detail)
}

/// Returns the problem for a log that cannot be shown.
pub(super) fn of_log(error: OfflineError) -> Problem {
    match error {
        OfflineError::Raw(error) => problem(error),
        error @ OfflineError::UnknownShard { .. } => Problem::new(Kind::UnknownShard, error.to_string()),
        error => Problem::new(Kind::LogUnreadable, error.to_string()),
    }
}
