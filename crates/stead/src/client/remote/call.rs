//! A call of a client, on its way to a node and back.

use crate::error::RawError;
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;
use stead_core::ids::{ShardId, Time};
use stead_net::native::{Answer, Ask};
use tokio::sync::oneshot;

/// The time limit of a call.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Within {
    /// On the client's steady clock.
    pub(super) deadline: Time,
    pub(in super::super) timeout: Duration,
}

/// An answer.
#[derive(Debug)]
pub(in super::super) struct Got {
    pub(in super::super) answer: Answer,
    /// Whether the request was sent more than once.
    pub(in super::super) is_repeated: bool,
}

/// The receiver of the result of a call.
pub(super) type Reply = oneshot::Sender<Result<Got, RawError>>;

/// A call of a client.
pub(super) struct Call {
    pub(super) ask: Bytes,
    /// Whether it may be sent again without having its effect twice.
    pub(super) repeats: bool,
    /// The shard whose primary answers it.
    pub(super) shard: Option<ShardId>,
    /// Whether its answer has the nodes of the cluster.
    pub(super) learns: bool,
    /// The number of times that it was sent.
    pub(super) times: u32,
    /// The number of times that it was taken back from a node that had not answered it.
    pub(super) taken_back: u32,
    /// When it was sent last, and to which node.
    pub(super) sent: Option<(Time, SocketAddr)>,
    /// Whether a primary was deposed that had it: it waits for the next one.
    pub(super) is_deposed: bool,
    pub(super) within: Within,
    reply: Reply,
}

impl Call {
    pub(super) fn new(ask: &Ask<'_>, within: Within, reply: Reply) -> Self {
        Self {
            ask: ask.encode(),
            repeats: ask.repeats(),
            shard: ask.led_shard(),
            learns: matches!(ask, Ask::Topology { .. }),
            times: 0,
            taken_back: 0,
            sent: None,
            is_deposed: false,
            within,
            reply,
        }
    }

    pub(super) fn end(self, result: Result<Got, RawError>) {
        // The future may have been dropped.
        let _ = self.reply.send(result);
    }

    /// Ends it because there is no connection.
    pub(super) fn fail(self, reason: &str) {
        let sent = self.times > 0;
        self.end(Err(RawError::Network { reason: reason.to_owned(), sent }));
    }

    /// Ends it because its time is over.
    pub(super) fn time_out(self) {
        let after = self.within.timeout;
        self.end(Err(RawError::TimedOut { after }));
    }

    pub(super) fn is_over(&self, now: Time) -> bool {
        self.within.deadline <= now || self.reply.is_closed()
    }
}
