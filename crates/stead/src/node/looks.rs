//! Looks at the state of shards, wherever their primaries are.

use super::Node;
use crate::client::{Client, block_on_until};
use crate::error::RawError;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use stead_core::calls::Refusal;
use stead_core::ids::{Epoch, ShardId};
use stead_core::look::{Found, Look};
use stead_node::LOOK_TIMEOUT;

/// Time that a look at one process waits for a shard's primary in a cluster: a failover may be under way.
const LOOK_TIMEOUT_CLUSTER: Duration = Duration::from_secs(2);

/// A shard that a list leaves out because its primary gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardUnanswered {
    /// Its number.
    pub shard: u32,
    /// Its service.
    pub service: String,
    /// The node of its primary, as far as this node knows it.
    pub node: Option<u32>,
    /// The reason.
    pub reason: String,
}

/// An operator who looks at shards through a node.
pub(super) struct Looker<'a> {
    node: &'a Node,
    client: Client,
}

impl Node {
    /// Returns an operator for a list, who does not wait long for any shard.
    pub(super) fn lister(&self) -> Looker<'_> {
        Looker { node: self, client: self.client().with_timeout(LOOK_TIMEOUT) }
    }

    /// Returns an operator for one process.
    pub(super) fn looker(&self) -> Looker<'_> {
        let timeout = if self.0.membership.is_some() { LOOK_TIMEOUT_CLUSTER } else { LOOK_TIMEOUT };
        Looker { node: self, client: self.client().with_timeout(timeout) }
    }
}

impl Looker<'_> {
    /// Looks at a shard. Returns the epoch of the primary that showed it, too. Blocks.
    pub(super) fn look(&self, shard: ShardId, look: Look) -> Result<(Epoch, Found), RawError> {
        let until = Instant::now() + self.client.timeout();
        // A handler that holds the worker of the shard holds its clock as well.
        let found = block_on_until(self.client.look(self.node.shared(), shard, look), Some(until));
        match found.unwrap_or(Err(RawError::TimedOut { after: self.client.timeout() })) {
            Err(RawError::TimedOut { after }) if self.node.0.membership.is_none() => {
                Err(RawError::Refused(Refusal::Overloaded { retry_after: after }))
            }
            found => found,
        }
    }

    /// Returns what a list says of a shard for which there was this error.
    ///
    /// # Errors
    /// The error, if it is not one of the shard alone: the node has ended, or is not part of a cluster.
    pub(super) fn unanswered(
        &self,
        service: &str,
        shard: ShardId,
        error: RawError,
    ) -> Result<ShardUnanswered, RawError> {
        let is_of_node = matches!(error, RawError::Stopped | RawError::NodeFailed(_) | RawError::StalePage);
        if is_of_node || self.node.0.membership.is_none() {
            return Err(error);
        }
        let node = self.node.shared().primary_node(shard).map(|node| node.0);
        let reason = match error {
            // That nothing was changed is clear.
            RawError::TimedOut { after } => format!("no answer within {} ms", after.as_millis()),
            error => error.to_string(),
        };
        Ok(ShardUnanswered { shard: shard.0, service: service.to_owned(), node, reason })
    }
}
