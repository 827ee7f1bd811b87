//! The receiver of the answer to a call that another node forwarded to this one.

use crate::peers::{PeerDesk, PeerMessage};
use crate::reply::{NoAnswer, answer_of};
use std::sync::Arc;
use stead_core::calls::Answer;
use stead_core::ids::{NodeId, ShardId};
use stead_net::forward::{Answered, CallId, Outcome};
use stead_net::native;

/// A node that waits for the answer to a call that it forwarded.
#[derive(Clone)]
pub(crate) struct Forwarder {
    pub(crate) desk: Arc<PeerDesk>,
    pub(crate) node: NodeId,
    pub(crate) shard: ShardId,
    pub(crate) id: CallId,
}

impl Forwarder {
    /// Returns the message with the result of the call.
    pub(crate) fn message(&self, result: Result<Answer, NoAnswer>) -> PeerMessage {
        let outcome = match result {
            Err(NoAnswer::NotHere { .. } | NoAnswer::NoPrimary { .. }) => Outcome::NotLed,
            Err(NoAnswer::Deposed { .. } | NoAnswer::Failed(_) | NoAnswer::Stopped) => Outcome::InDoubt,
            result @ (Ok(_) | Err(NoAnswer::Refused(_) | NoAnswer::TimedOut { .. })) => {
                Outcome::Answer(answer_of(result).encode())
            }
        };
        PeerMessage::Answered(Answered { shard: self.shard, id: self.id, outcome })
    }

    /// Leaves an answer for that node that no shard has given.
    pub(crate) fn leave_answer(&self, answer: &native::Answer) {
        let outcome = Outcome::Answer(answer.encode());
        let answered = Answered { shard: self.shard, id: self.id, outcome };
        self.desk.leave(self.node, &mut vec![PeerMessage::Answered(answered)]);
    }

    /// Leaves the result for that node.
    pub(crate) fn leave(&self, result: Result<Answer, NoAnswer>) {
        self.desk.leave(self.node, &mut vec![self.message(result)]);
    }
}
