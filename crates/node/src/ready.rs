//! Readiness: whether a node serves, for load balancers and supervisors.

use crate::env::Env;
use crate::shared::{Shared, stage};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;
use stead_core::control::directory::ShardRoute;
use stead_core::ids::{ShardId, Time};
use thiserror::Error;

/// Reasons for which a node does not serve now.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotReady {
    /// It had a fatal error.
    #[error("the node failed: {0}")]
    Failed(String),
    /// It is shutting down, or has shut down.
    #[error("the node stops or has stopped")]
    Stopped,
    /// It still starts, or replicas of its cluster fail over, or it has no connection to those that serve.
    #[error("{active} of {shards} shards serve")]
    Shards {
        /// Shards that serve clients of this node: at the node, or at another one to which it is connected.
        active: u32,
        /// Shards that this node has and no other one, and all those that have replicas on several nodes.
        shards: u32,
    },
    /// Messages and timers that had begun when the last life of the process ended are tried one by one; all else waits.
    #[error(
        "the causes that had begun when the process last ended are tried one by one; all other calls wait"
    )]
    Trying,
    /// The log does not reach the disk: nothing is answered meanwhile.
    #[error(
        "entries have waited for the log for {} ms, longer than {} ms; check the disk of the data directory",
        .waits.as_millis(), LOG_LAG_MAX.as_millis()
    )]
    Log {
        /// The time for which the oldest of them has waited.
        waits: Duration,
    },
}

/// Longest time that entries may wait for the log while a node counts as ready: 5 s.
pub const LOG_LAG_MAX: Duration = Duration::from_secs(5);

impl<E: Env> Shared<E> {
    pub(crate) fn readiness(&self, now: Time) -> Result<(), NotReady> {
        if let Some(reason) = self.failure.get() {
            return Err(NotReady::Failed(reason.clone()));
        }
        if self.stage.load(Ordering::Relaxed) != stage::RUNS {
            return Err(NotReady::Stopped);
        }
        let (served, replicated) = self.replicated_served(now);
        let active = self.active.load(Ordering::SeqCst) + served;
        let shards = self.serving() + replicated;
        if active < shards {
            return Err(NotReady::Shards { active, shards });
        }
        if self.is_trying() {
            return Err(NotReady::Trying);
        }
        match self.log.lag(now) {
            Some(waits) if waits > LOG_LAG_MAX => Err(NotReady::Log { waits }),
            _ => Ok(()),
        }
    }

    /// Returns the number of shards with replicas on several nodes that serve clients of this node, and that of all of them: this node
    /// leads the shard, or is connected to the one that does. Before it knows the routes, none serves.
    fn replicated_served(&self, now: Time) -> (u32, u32) {
        let routes = self.routes.newest();
        let peers = self.peers.reports(now);
        let open: BTreeSet<_> = peers.iter().filter(|peer| !peer.is_closed).map(|peer| peer.node).collect();
        let is_served = |(shard, route): &(&ShardId, &ShardRoute)| match route.primary_node() {
            Some(node) if node == self.node => self.replicated.serves(**shard) >= Some(route.epoch),
            Some(node) => open.contains(&node),
            None => false,
        };
        let served = routes.iter().filter(is_served).count();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        (count(served), count(routes.len().max(self.replicated.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Submission;
    use crate::shared::tests::{Nothing, shared_with};
    use std::sync::Arc;
    use stead_core::durability::Durability;
    use stead_store::wal::Batch;

    /// Returns the shared state of a node with two shards, without its threads.
    fn shared() -> Arc<Shared<Nothing>> {
        shared_with(&[("service", 2)])
    }

    #[test]
    fn each_shard_must_serve() {
        let shared = shared();
        shared.shard_is_active();
        assert_eq!(shared.readiness(shared.now()), Err(NotReady::Shards { active: 1, shards: 2 }));
        shared.shard_is_active();
        assert_eq!(shared.readiness(shared.now()), Ok(()));
        shared.fail("the disk is gone".to_owned());
        assert_eq!(shared.readiness(shared.now()), Err(NotReady::Failed("the disk is gone".to_owned())));
    }

    #[test]
    fn a_log_that_does_not_keep_up_is_not_ready() {
        let shared = shared();
        shared.shard_is_active();
        shared.shard_is_active();
        let now = shared.now();
        let later = now.plus((2 * LOG_LAG_MAX).into());
        assert_eq!(shared.readiness(later), Ok(()), "nothing waits");
        shared.log.submit(
            now,
            Submission { worker: 0, ticket: 1, batch: Batch::new().into(), durability: Durability::Always },
        );
        assert_eq!(shared.readiness(now), Ok(()), "it came just now");
        assert!(matches!(shared.readiness(later), Err(NotReady::Log { waits }) if waits > LOG_LAG_MAX));
    }
}
