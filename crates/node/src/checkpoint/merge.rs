//! The part that merges bundles, so that checkpoints and callers do not wait for that.

use crate::bell::Bell;
use crate::checkpoint::{CheckpointCommand, CheckpointHub, Event, MergeJob, SnapshotQueue, Trouble};
use crate::part::{Part, Turned};
use std::sync::Arc;
use stead_core::checkpointing::bundle::Author;
use stead_core::checkpointing::pace::Meter;
use stead_core::ids::{Incarnation, Time};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::bundle::Origin;
use stead_store::checkpoint::compact::Merger;
use stead_store::checkpoint::store::BlobStore;

/// Merges bundles: a turn reads and writes about a megabyte.
pub struct MergePart {
    store: Arc<dyn BlobStore>,
    incarnation: Incarnation,
    /// The life of the process, in the bundles' headers.
    author: Author,
    block_bytes: usize,
    merger: Option<Merger>,
    meter: Meter,
}

impl MergePart {
    /// Creates an idle part. `author` is that of the names of bundles, whose blocks have about `block_bytes`.
    #[must_use]
    pub fn new(
        store: Arc<dyn BlobStore>,
        incarnation: Incarnation,
        author: Author,
        block_bytes: usize,
    ) -> Self {
        Self { store, incarnation, author, block_bytes, merger: None, meter: Meter::default() }
    }

    /// Drops the running merge: the bundles stay unchanged.
    pub(crate) fn give_up(&mut self, queue: &SnapshotQueue) {
        self.merger = None;
        queue.send(Event::Merged(None));
    }

    fn begin(&mut self, job: &MergeJob) -> Result<bool, CheckpointError> {
        let MergeJob { output, number, lineage, merge } = job;
        let origin = Origin { author: self.author, incarnation: self.incarnation, number: *number };
        let mut merger = Merger::begin(&*self.store, output.clone(), origin, lineage, merge)?;
        merger.set_block_bytes(self.block_bytes);
        self.merger = Some(merger);
        Ok(false)
    }

    fn step(merger: &mut Merger, meter: &mut Meter, rate: u64, now: Time) -> Result<bool, CheckpointError> {
        let before = merger.bytes();
        let done = merger.step()?;
        meter.spend(rate, now, merger.bytes() - before);
        Ok(done)
    }
}

impl<H: CheckpointHub> Part<H> for MergePart {
    /// The reason why the store accepts nothing more.
    type Error = String;

    fn bell<'h>(&self, hub: &'h H) -> &'h Bell {
        &hub.queue().merges.bell
    }

    /// Begins the requested merge, or continues it.
    fn turn(&mut self, hub: &H, now: Time) -> Result<Turned, String> {
        let queue = hub.queue();
        if queue.merges.is_stopped() || hub.is_over() {
            // The bytes written so far are dropped with the writer.
            self.merger = None;
            return Ok(Turned::Ended);
        }
        let job = queue.merges.take();
        if let Some(due) = self.meter.held_until(queue.pace.rate(), now)
            && job.is_none()
        {
            return Ok(Turned::Until(Some(due)));
        }
        let done = match (job, &mut self.merger) {
            (Some(job), _) => self.begin(&job),
            (None, Some(merger)) => Self::step(merger, &mut self.meter, queue.pace.rate(), now),
            (None, None) => return Ok(Turned::Until(None)),
        };
        let ended = match done {
            Ok(false) => return Ok(Turned::Again),
            Ok(true) => self.merger.take().expect("it has come to its end").finish(),
            Err(error) => Err(error),
        };
        self.merger = None;
        let merged = match ended {
            Ok(merged) => {
                hub.perform(CheckpointCommand::Merged(merged.bundle.bytes));
                Some(merged)
            }
            Err(error) => {
                if let Some(failure) = self.store.failure() {
                    return Err(failure);
                }
                hub.perform(CheckpointCommand::Trouble(Trouble::Merge(error)));
                None
            }
        };
        queue.send(Event::Merged(merged));
        Ok(Turned::Again)
    }
}
