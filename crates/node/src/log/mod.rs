//! The log: workers leave batches on its desk; its part appends all waiting batches with one write, syncs once, and
//! reports the durable entries. The core's [`LogRoom`](stead_core::log_room::LogRoom) decides, this performs.

mod desk;
mod part;
mod prepare;
mod real;
#[cfg(test)]
mod tests;
mod trimming;

pub use desk::{LogDesk, Submission};
pub use part::LogPart;
pub(crate) use part::Unsynced;
pub use prepare::PreparePart;
pub(crate) use trimming::Trimming;

use stead_core::ids::Micros;
use stead_store::wal::{Wal, WalError};

/// The interface of the log's parts to their node: production and the simulator implement it.
pub trait LogHub {
    /// Returns the desk on which work is left for the log.
    fn desk(&self) -> &LogDesk;

    /// Whether the node is abandoned or has failed: its parts end at once, and leave their work undone.
    fn is_over(&self) -> bool;

    /// Whether the node shuts down: its log no longer waits for space.
    fn is_ending(&self) -> bool;

    /// Whether all parts of the node have ended or are about to.
    fn is_ended(&self) -> bool;

    /// Notes that all submissions of a worker up to this ticket are durable.
    fn durable(&self, worker: usize, ticket: u64);

    /// Notes that all submissions of a worker up to this ticket are written, and count as durable before they are synced.
    fn stored(&self, worker: usize, ticket: u64);

    /// Refuses new work from now on, or accepts it again; `shortage` names what there was no space for.
    fn full(&self, is_full: bool, shortage: &str);

    /// Notes a write.
    fn written(&self) {}

    /// Notes a sync, which took this time since the write.
    fn synced(&self, took: Micros);

    /// Records in an idle log that all of it is synced. Returns whether the mark was written. The simulator's planted bugs
    /// change it.
    ///
    /// # Errors
    /// As [`Wal::mark`].
    fn mark(&self, wal: &mut Wal) -> Result<bool, WalError> {
        wal.mark()
    }
}
