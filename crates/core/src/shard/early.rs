//! Answers of an asynchronous service: they leave once W members have stored what they saw, under the primary's lease (rule 21).

use super::Shard;
use crate::calls::Refusal;
use crate::commit_tracker::CommitTracker;
use crate::ids::{Index, Micros, Time};
use crate::replication::backlog::Backlog;

/// The state of an epoch whose clients are answered before their entries are committed.
pub(super) struct Early {
    pub(super) backlog: Backlog,
    leased_until: Option<Time>,
    /// The query of the next input answers under the lease, and not by a round.
    are_reads_leased: bool,
}

impl Shard {
    /// Makes the epoch that begins next answer before its entries are committed, and refuse clients while its oldest entry that is not
    /// committed is older than `max_lag`.
    pub(crate) fn answer_early(&mut self, max_lag: Micros) {
        let backlog = Backlog::new(max_lag);
        self.early = Some(Early { backlog, leased_until: None, are_reads_leased: false });
    }

    /// Sets the greatest age of an entry that is not committed, if the epoch answers early.
    pub(crate) fn set_max_lag(&mut self, max_lag: Micros) {
        if let Some(early) = &mut self.early {
            early.backlog.set_max_lag(max_lag);
        }
    }

    /// Notes the time from which on the primary's lease does not hold any more.
    #[inline]
    pub(crate) fn note_lease(&mut self, leased_until: Option<Time>) {
        if let Some(early) = &mut self.early {
            early.leased_until = leased_until;
        }
    }

    /// Notes whether the query of the next input answers under the lease.
    pub(crate) fn note_read(&mut self, is_leased: bool) {
        if let Some(early) = &mut self.early {
            early.are_reads_leased = is_leased;
        }
    }

    /// Notes the age of the state for the query of the next input, which is a stale read.
    pub(crate) fn note_staleness(&mut self, staleness: Micros) {
        self.staleness = staleness;
    }

    /// Whether answers wait for nothing but a lease.
    pub(crate) fn waits_for_lease(&self) -> bool {
        let stored = self.replica.as_ref().map_or(Index(0), CommitTracker::answerable);
        self.early.is_some() && self.early_upto().is_none() && self.release.has_early(stored)
    }

    /// Whether something waits for the backups: anything but an answer for which this replica's disk suffices.
    pub(crate) fn waits_for_backups(&self) -> bool {
        let acks = self.replica.as_ref().map(|replica| replica.config().acks());
        self.early.is_none()
            || acks != Some(1)
            || self.release.waits_for_commit()
            || !self.jobs.queue.is_empty()
            || self.suspicion.is_busy()
    }

    /// Returns the index up to which answers of an asynchronous service may leave at the time of this input; `None` if no lease
    /// holds, or the service is synchronous.
    pub(super) fn early_upto(&self) -> Option<Index> {
        let until = self.early.as_ref()?.leased_until?;
        // It is looked at when an answer is released: a pause may have outlasted the lease.
        let replica = self.replica.as_ref().filter(|_| self.clock.steady() < until)?;
        Some(replica.answerable().max(replica.commit()))
    }

    pub(super) fn are_reads_leased(&self) -> bool {
        self.early.as_ref().is_some_and(|early| early.are_reads_leased)
    }

    /// Refuses a client while the backups lag by more than the service allows.
    pub(super) fn check_lag(&self) -> Result<(), Refusal> {
        let Some(early) = &self.early else { return Ok(()) };
        let retry_after = Self::RETRY_AFTER;
        early.backlog.check(self.clock.steady()).map_err(|_| Refusal::Overloaded { retry_after })
    }
}
