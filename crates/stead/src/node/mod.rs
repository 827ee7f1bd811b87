//! The handle to a running node, and an operator's view of it.

mod builder;
mod cluster;
mod dead_letters;
mod log;
mod looks;
mod processes;

pub use builder::{NodeBuilder, ServiceOptions};
pub use dead_letters::{DeadLetterCursor, DeadLetterInfo, DeadLetterPage};
pub use looks::ShardUnanswered;
pub use processes::{NoCursor, ProcessCursor, ProcessDetail, ProcessInfo, ProcessPage, TimerStatus};
pub use stead_node::{
    BackupStatus, CheckStatus, CheckpointFailure, CheckpointInfo, CheckpointOptions, CheckpointReport,
    ClockStatus, CopyReport, CopyStatus, FailedCheck, LogStatus, MemoryStatus, Metrics, NotReady,
    RecoveryReport, ServiceMetrics, ServiceStatus, ShardNotHere, ShardStatus, SkippedCheck, Status,
    StuckQuery, TaskStatus,
};

use crate::client::{BlockingClient, Client, block_on};
use crate::embedded::{Embedded, Waiter};
use crate::error::RawError;
use crate::service::Registry;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use stead_cluster::Membership;
use stead_core::topology::Topology;
use stead_node::{Life, Shared};
use stead_store::checkpoint::checks::CheckOutcome;
use stead_store::checkpoint::verify::Report;
use stead_store::wal::WalReader;
use tokio::sync::oneshot;

/// A running node. Clones are handles to the same one; when the last is dropped, the node is shut down.
#[derive(Clone)]
pub struct Node(Arc<Running>);

/// A node that runs, alone or in a cluster.
struct Running {
    life: Life<Embedded>,
    /// Ends after the life, of which other nodes then see that its connections close.
    membership: Option<Membership>,
}

impl Node {
    /// Puts a node together that runs, and lets the control plane of its cluster give it orders.
    fn new(life: Life<Embedded>, membership: Option<Membership>) -> Self {
        if let Some(membership) = &membership {
            membership.attach(Arc::clone(life.shared()));
        }
        Self(Arc::new(Running { life, membership }))
    }

    /// Returns a builder of a node with its data in a directory, which is created if it does not exist.
    pub fn builder(data_dir: impl Into<PathBuf>) -> NodeBuilder {
        NodeBuilder::new(data_dir.into())
    }

    /// Returns a client for async code.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(Arc::clone(self.shared()))
    }

    /// Returns a client for code that may block.
    #[must_use]
    pub fn blocking_client(&self) -> BlockingClient {
        BlockingClient::new(self.client())
    }

    /// Returns the address at which it serves clients by the native protocol, if it does: see
    /// [`NodeBuilder::listen_native`].
    #[must_use]
    pub fn native_address(&self) -> Option<SocketAddr> {
        self.0.life.native_address()
    }

    /// Returns the address at which the other nodes of its cluster reach it, if it is part of one: see
    /// [`NodeBuilder::listen_cluster`].
    #[must_use]
    pub fn cluster_address(&self) -> Option<SocketAddr> {
        self.0.membership.as_ref().map(Membership::address)
    }

    /// Returns the cluster, if the node is part of one: its condition, and what operators ask of it.
    #[must_use]
    pub fn cluster(&self) -> Option<&Membership> {
        self.0.membership.as_ref()
    }

    /// Returns the services and their shards.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        self.shared().topology()
    }

    /// Returns the code of its services and tasks.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        self.shared().program()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared<Embedded>> {
        self.0.life.shared()
    }

    pub(crate) fn log(&self) -> &WalReader {
        self.0.life.log()
    }

    /// Returns the report of the last recovery.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        self.0.life.recovery()
    }

    /// Time that entries may wait for the log while the node counts as ready: 5 s.
    pub const LOG_LAG_MAX: Duration = stead_node::LOG_LAG_MAX;

    /// Whether the node serves: it runs, has not failed, each shard is active, and the log keeps up.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.readiness().is_ok()
    }

    /// As [`Self::is_ready`], with the reason.
    ///
    /// # Errors
    /// [`NotReady`].
    pub fn readiness(&self) -> Result<(), NotReady> {
        self.0.life.readiness()
    }

    /// Returns the status of the node. Waits up to half a second for workers that are held by a handler.
    #[must_use]
    pub fn status(&self) -> Status {
        self.0.life.status()
    }

    /// Returns the last checked checkpoint, if a service's check failed there; also for checks that no longer run,
    /// because they did not end [`ServiceOptions::attempts_max`] times in a row.
    #[must_use]
    pub fn failed_check(&self) -> Option<CheckStatus> {
        self.0.life.last_check().filter(|last| last.check == CheckOutcome::Failed)
    }

    /// Returns the counters of the node since it was opened.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.0.life.metrics()
    }

    /// Returns the counters of each service since the node was opened.
    #[must_use]
    pub fn service_metrics(&self) -> Vec<ServiceMetrics> {
        self.0.life.service_metrics()
    }

    /// Resolves with the reason when the node has a fatal error: then the process should end, and be started again.
    pub async fn failed(&self) -> String {
        let (reply, from) = oneshot::channel();
        self.shared().on_failure(Box::new(Waiter(reply)));
        // The sender lives as long as the node.
        from.await.unwrap_or_default()
    }

    /// Takes a checkpoint now, runs the services' checks over it and returns their results:
    /// [`CheckpointReport::check`]. A failed check does not undo the checkpoint.
    ///
    /// # Errors
    /// [`CheckpointFailure`]; the node continues.
    pub async fn checkpoint(&self) -> Result<CheckpointReport, CheckpointFailure> {
        self.take_checkpoint(true).await
    }

    /// Takes a checkpoint now without the services' checks, which would read all of it.
    ///
    /// # Errors
    /// As [`Self::checkpoint`].
    pub async fn checkpoint_unchecked(&self) -> Result<CheckpointReport, CheckpointFailure> {
        self.take_checkpoint(false).await
    }

    async fn take_checkpoint(&self, checked: bool) -> Result<CheckpointReport, CheckpointFailure> {
        let (reply, from) = oneshot::channel();
        self.0.life.checkpoint(checked, Box::new(Waiter(reply)));
        from.await.unwrap_or_else(|_| self.has_ended())
    }

    fn has_ended<T>(&self) -> Result<T, CheckpointFailure> {
        Err(CheckpointFailure::Stopped(RawError::from(self.shared().end_reason()).to_string()))
    }

    /// As [`Self::checkpoint`], for code that may block.
    ///
    /// # Errors
    /// As [`Self::checkpoint`].
    pub fn checkpoint_blocking(&self) -> Result<CheckpointReport, CheckpointFailure> {
        block_on(self.checkpoint())
    }

    /// Changes the time from one checkpoint's beginning to the next, for the rest of this node's life; `None`: only
    /// on request.
    ///
    /// # Errors
    /// [`CheckpointFailure::Store`] if this node takes no checkpoints, because shards of it have replicas on other nodes.
    pub fn set_checkpoint_interval(&self, interval: Option<Duration>) -> Result<(), CheckpointFailure> {
        self.0.life.set_checkpoint_interval(interval)
    }

    /// Returns the stored checkpoints, the oldest first. Lists files, and reads each manifest once in the node's life.
    ///
    /// # Errors
    /// [`CheckpointFailure::Store`].
    pub fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, CheckpointFailure> {
        self.0.life.checkpoints()
    }

    /// Returns a checkpoint, if it is complete. Lists files.
    ///
    /// # Errors
    /// [`CheckpointFailure`] if it cannot be read.
    pub fn checkpoint_info(&self, number: u64) -> Result<Option<CheckpointInfo>, CheckpointFailure> {
        self.0.life.checkpoint_info(number)
    }

    /// Recomputes a checkpoint from its stored objects, and runs the services' checks. Reads all of it. It also runs
    /// checks that were given up because they did not end; one that ends runs for every checkpoint again.
    ///
    /// # Errors
    /// [`CheckpointFailure::Store`] if it is damaged; [`CheckpointFailure::Stopped`] if the node has ended, or ends meanwhile. An
    /// undamaged but inconsistent checkpoint is in the report.
    pub fn verify(&self, number: u64) -> Result<Report, CheckpointFailure> {
        self.0.life.verify(number)
    }

    /// Deletes a checkpoint, unless it is the newest one, which a restart needs.
    ///
    /// # Errors
    /// [`CheckpointFailure`], which is [`CheckpointFailure::Stopped`] if the node has ended: then nothing was deleted.
    pub fn delete_checkpoint(&self, number: u64) -> Result<(), CheckpointFailure> {
        self.0.life.delete_checkpoint(number)
    }

    /// Copies a checkpoint to `file:///directory` or `s3://bucket/prefix`; objects that exist there are not sent again.
    /// S3 takes its region, endpoint and credentials from the usual variables `AWS_…`. The target belongs to this
    /// cluster alone, and copies to the address of [`CheckpointOptions::copy_to`] fall under its retention. The copy
    /// continues if this future is dropped. One copy runs at a time, and up to 16 run or wait.
    ///
    /// # Errors
    /// [`CheckpointFailure`], which is [`CheckpointFailure::Busy`] for one more; the checkpoint does not exist at the target
    /// then, and a repetition continues from there.
    pub async fn copy_checkpoint(&self, number: u64, to: &str) -> Result<CopyReport, CheckpointFailure> {
        let (reply, from) = oneshot::channel();
        self.0.life.copy_checkpoint(number, to, Box::new(Waiter(reply)))?;
        from.await.unwrap_or_else(|_| self.has_ended())
    }

    /// As [`Self::copy_checkpoint`], for code that may block.
    ///
    /// # Errors
    /// As [`Self::copy_checkpoint`].
    pub fn copy_checkpoint_blocking(&self, number: u64, to: &str) -> Result<CopyReport, CheckpointFailure> {
        block_on(self.copy_checkpoint(number, to))
    }

    /// Shuts the node down: accepts no more calls, waits for running steps of tasks, commits and answers the accepted
    /// calls, and ends all threads. Other open work waits in the log for the next start. A query that was given up is
    /// not waited for, nor one that still runs after [`NodeBuilder::shutdown_timeout`]: it ends with the program.
    ///
    /// A step that still runs after [`NodeBuilder::shutdown_timeout`] is abandoned: its outcome is dropped, and the
    /// step is repeated after the next start. Its thread ends with the step, or with the program.
    pub fn shutdown(&self) {
        self.shutdown_within(self.0.life.shutdown_timeout());
    }

    /// Returns the time that [`Self::shutdown`] waits for running steps.
    #[must_use]
    pub fn shutdown_timeout(&self) -> Duration {
        self.0.life.shutdown_timeout()
    }

    /// As [`Self::shutdown`], with another time limit for running steps.
    pub fn shutdown_within(&self, limit: Duration) {
        self.0.life.shutdown(limit);
        self.leave();
    }

    /// Ends the node as a crash would: it finishes no work, and writes nothing more. Waits for steps of tasks that run, up to
    /// [`NodeBuilder::shutdown_timeout`]. For tests.
    pub fn kill(&self) {
        self.0.life.kill();
        self.leave();
    }

    /// Ends the membership in its cluster, for this life.
    fn leave(&self) {
        if let Some(membership) = &self.0.membership {
            membership.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::CallError;
    use crate::service::kv::{Kv, Query, Request};
    use std::collections::BTreeMap;
    use stead_core::ids::ShardId;
    use stead_core::placement::Place;

    #[test]
    fn what_is_asked_of_shards_that_are_not_here_is_refused_or_left_out_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let options = ServiceOptions::default().shards(3);
        let places = [(1, Place::Elsewhere), (2, Place::Unplaced)];
        let not_here = BTreeMap::from(places.map(|(shard, place)| (ShardId(shard), place)));
        let node = Node::builder(dir.path()).service::<Kv>(options).open_without(not_here).unwrap();
        let service = "kv".to_owned();
        let others = places.map(|(shard, place)| ShardNotHere { shard, service: service.clone(), place });
        assert!(node.is_ready());

        let client = node.blocking_client();
        let key_of = |shard| {
            let mut keys = (0..100).map(|at| at.to_string());
            keys.find(|key| node.place_of("kv", key).unwrap().0 == ShardId(shard)).unwrap()
        };
        let here = key_of(0);
        client.call::<Kv>(&here, Request::Put { value: 5.into() }).unwrap();
        for (shard, place) in places {
            let (key, refused) = (key_of(shard), RawError::NotHere { shard, place });
            assert_eq!(
                client.call::<Kv>(&key, Request::Delete).unwrap_err(),
                CallError::Raw(refused.clone())
            );
            assert_eq!(client.query::<Kv>(&key, Query::Get).unwrap_err(), CallError::Raw(refused.clone()));
            assert_eq!(node.process("kv", &key).unwrap_err(), refused);
            assert_eq!(node.delete_process("kv", &key).unwrap_err(), refused);
        }
        let refused = RawError::NotHere { shard: 1, place: Place::Elsewhere }.to_string();
        assert!(refused.starts_with("shard 1 is not on this node: it is on another one;"), "{refused}");

        let status = node.status();
        assert_eq!(status.shards.iter().map(|shard| shard.shard).collect::<Vec<_>>(), [0]);
        assert_eq!((status.services[0].shards, &*status.shards_not_here), (3, &others[..]));
        let page = node.processes("kv", "", None, 10).unwrap();
        assert_eq!(page.processes.iter().map(|process| &process.key).collect::<Vec<_>>(), [&here]);
        assert_eq!((page.next, &*page.shards_not_here), (None, &others[..]));
        let page = node.dead_letters("kv", None, 10).unwrap();
        assert_eq!((page.dead_letters.len(), page.next, &*page.shards_not_here), (0, None, &others[..]));
    }
}
