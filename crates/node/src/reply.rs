//! The receivers of answers and results, and the reasons for which there is none.

use std::time::Duration;
use stead_core::calls::{Answer, Refusal};
use stead_core::ids::{ShardId, Time};
use stead_core::placement::Place;
use stead_net::native;
use thiserror::Error;

/// The receiver of the answer to one call. A caller that is dropped unanswered belongs to a node that has ended.
pub trait Caller: Send + 'static {
    /// Sends the answer, which ends the call.
    fn answer(self, result: Result<Answer, NoAnswer>);

    /// Whether nothing waits for the answer any more.
    fn is_gone(&self) -> bool;

    /// Drops a caller whose call came when the node had ended. One that does not learn of that by being dropped is answered.
    fn drop_unanswered(self)
    where
        Self: Sized,
    {
    }
}

/// Reasons for which a node has no answer of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoAnswer {
    /// The shard refused, or the node on its behalf. Nothing was changed.
    #[error(transparent)]
    Refused(Refusal),
    /// The shard is not on this node. Nothing was changed.
    #[error("shard {shard} is not on this node")]
    NotHere {
        /// The shard.
        shard: ShardId,
        /// Its place.
        place: Place,
    },
    /// The shard's primary was replaced before it answered, or the connection to its node closed. The request may have been applied: the
    /// same one, sent again with its identity, gets the answer of the next primary.
    #[error("the primary of shard {shard} was replaced, or the connection to it closed, before it answered")]
    Deposed {
        /// The shard.
        shard: ShardId,
    },
    /// The shard had no primary that this node reached in the time of the call. Nothing was changed.
    #[error("shard {shard} had no primary that this node reached within {} ms", after.as_millis())]
    NoPrimary {
        /// The shard.
        shard: ShardId,
        /// The time limit of the call.
        after: Duration,
    },
    /// No answer came in time. The request may have been applied, or may still be.
    #[error("no answer within {} ms", after.as_millis())]
    TimedOut {
        /// The time limit of the call.
        after: Duration,
    },
    /// The node had a fatal error before it could answer. The request may have been applied.
    #[error("the node failed: {0}")]
    Failed(String),
    /// The node is shutting down or has shut down. The request may have been applied.
    #[error("the node has stopped")]
    Stopped,
}

/// Returns the answer as it goes over the network.
pub(crate) fn answer_of(result: Result<Answer, NoAnswer>) -> native::Answer {
    match result {
        Ok(answer) => native::Answer::Of(answer),
        Err(NoAnswer::Refused(refusal)) => native::Answer::Refused(refusal),
        Err(NoAnswer::NotHere { shard, place }) => native::Answer::NotHere { shard, place },
        Err(NoAnswer::NoPrimary { shard, .. }) => native::Answer::NoPrimary { shard },
        Err(NoAnswer::TimedOut { .. }) => native::Answer::TimedOut,
        Err(NoAnswer::Deposed { shard }) => native::Answer::Deposed { shard },
        Err(NoAnswer::Failed(reason)) => native::Answer::Failed(reason),
        Err(NoAnswer::Stopped) => native::Answer::Stopped,
    }
}

/// A caller, and the time until which it waits.
#[derive(Debug)]
pub struct ReplyTo<C> {
    /// The receiver of the answer.
    pub caller: C,
    /// The time at which the call ends without an answer, on the node's steady clock:
    /// [`Shared::now`](crate::Shared::now).
    pub deadline: Time,
    /// The time limit that gave the deadline, for [`NoAnswer::TimedOut`].
    pub timeout: Duration,
}

/// The receiver of the result of an operator's request.
pub trait Reply<T>: Send {
    /// Sends the result.
    fn send(self: Box<Self>, result: T);

    /// Whether nothing waits for the result any more.
    fn is_gone(&self) -> bool;
}
