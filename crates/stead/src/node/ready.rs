//! Whether a node serves: what a load balancer and whoever starts the program ask.

use super::{Node, Shared, life};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Why a node does not serve now.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotReady {
    /// It had a fatal error.
    #[error("the node failed: {0}")]
    Failed(String),
    /// It was told to end.
    #[error("the node stops or has stopped")]
    Stopped,
    /// It still starts.
    #[error("{active} of {shards} shards serve")]
    Shards {
        /// Shards that serve.
        active: u32,
        /// Shards that there are.
        shards: u32,
    },
    /// Messages and timers that had begun when the last life of the process ended are tried one by one; all else waits.
    #[error(
        "the causes that had begun when the process last ended are tried one by one; all other calls wait"
    )]
    Trying,
    /// What shards wrote does not get to the disk: nothing is answered meanwhile.
    #[error(
        "entries have waited for the log for {} ms, longer than {} ms; check the disk of the data directory",
        .waits.as_millis(), Node::LOG_LAG_MAX.as_millis()
    )]
    Log {
        /// How long the oldest of them has waited.
        waits: Duration,
    },
}

impl Node {
    /// How long entries may wait for the log while the node counts as ready: 5 s.
    pub const LOG_LAG_MAX: Duration = Duration::from_secs(5);

    /// Whether the node serves: it runs, has not failed, each shard is active, and the log keeps up.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.readiness().is_ok()
    }

    /// As [`Self::is_ready`], with what is not ready.
    ///
    /// # Errors
    /// [`NotReady`].
    pub fn readiness(&self) -> Result<(), NotReady> {
        self.0.shared.readiness(Instant::now())
    }
}

impl Shared {
    fn readiness(&self, now: Instant) -> Result<(), NotReady> {
        if let Some(reason) = self.failure.get() {
            return Err(NotReady::Failed(reason.clone()));
        }
        if self.life.load(Ordering::Relaxed) != life::RUNS {
            return Err(NotReady::Stopped);
        }
        let (active, shards) = (self.active.load(Ordering::SeqCst), self.topology.shard_count());
        if active < shards {
            return Err(NotReady::Shards { active, shards });
        }
        if self.is_trying() {
            return Err(NotReady::Trying);
        }
        match self.log.lag(now) {
            Some(waits) if waits > Node::LOG_LAG_MAX => Err(NotReady::Log { waits }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Clock;
    use super::*;
    use crate::node::log::Submission;
    use crate::node::memory::MemoryLimits;
    use crate::node::stable::Copies;
    use crate::registry::Registry;
    use std::sync::Arc;
    use stead_core::ids::{Epoch, Incarnation, Time};
    use stead_core::topology::Topology;
    use stead_store::checkpoint::copy::Owner;
    use stead_store::wal::Batch;

    /// What the threads of a node with two shards share, without the threads.
    fn shared() -> Shared {
        let mut topology = Topology::new(Incarnation(1));
        topology.ensure("service", 2).unwrap();
        let owner = Owner { cluster: 1, incarnation: topology.incarnation };
        let copies = Copies::new(owner, 0, None);
        let clock = Clock::new(Box::new(|| Time(0)));
        Shared::new(Registry::new(), Arc::new(topology), 1, Epoch(1), clock, copies, MemoryLimits::default())
            .0
    }

    #[test]
    fn each_shard_must_serve() {
        let shared = shared();
        shared.shard_is_active();
        assert_eq!(shared.readiness(Instant::now()), Err(NotReady::Shards { active: 1, shards: 2 }));
        shared.shard_is_active();
        assert_eq!(shared.readiness(Instant::now()), Ok(()));
        shared.fail("the disk is gone".to_owned());
        assert_eq!(shared.readiness(Instant::now()), Err(NotReady::Failed("the disk is gone".to_owned())));
    }

    #[test]
    fn a_log_that_does_not_keep_up_is_not_ready() {
        let shared = shared();
        shared.shard_is_active();
        shared.shard_is_active();
        let later = Instant::now() + Node::LOG_LAG_MAX * 2;
        assert_eq!(shared.readiness(later), Ok(()), "nothing waits");
        shared.log.submit(Submission { worker: 0, ticket: 1, batch: Batch::new() });
        assert_eq!(shared.readiness(Instant::now()), Ok(()), "it came just now");
        assert!(matches!(shared.readiness(later), Err(NotReady::Log { waits }) if waits > Node::LOG_LAG_MAX));
    }
}
