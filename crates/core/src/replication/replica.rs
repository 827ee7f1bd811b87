//! A replica of one shard: what it promises, what it verifies, and what it acknowledges.
//!
//! The shell hands each write to the node's log in the order of the [`Action`]s, and reports how many of them are durable
//! with [`Replica::handle_durable`]. All else that a replica says waits for that.

use super::epoch::{Ask, EpochRecord, Mark, Seal, SealAnswer};
use super::freshness::{Freshness, TooStale};
use super::lease::Grants;
use super::table::{EpochTable, LogPoint};
use crate::ids::{Epoch, Index, Life, Micros, ReplicaId, Round, Time};
use std::collections::VecDeque;
use thiserror::Error;

/// The head of a frame with entries from the primary of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppendHead {
    /// The epoch that the sender leads.
    pub epoch: Epoch,
    /// The entry before the frame's first one.
    pub before: LogPoint,
    /// The sender's commit index; 0 until its epoch is active.
    pub commit: Index,
}

/// A request of a replica to the shell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Write a promise to the log: this replica takes part in no lower epoch.
    WritePromise(Epoch),
    /// Write a cut to the log: the entries behind `keep` do not count.
    WriteCut {
        /// The epoch for which the log is cut.
        epoch: Epoch,
        /// The last index that is kept.
        keep: Index,
    },
    /// Write the frame's entries from this position on to the log.
    WriteEntries {
        /// The position in the frame of the first one.
        from: usize,
    },
    /// Switch atomically to the snapshot of committed state at `base`, which is whole and durable aside. The log begins anew
    /// behind it (rule 4).
    WriteInstall {
        /// The epoch of the primary that sent it.
        epoch: Epoch,
        /// The last entry that the snapshot covers.
        base: LogPoint,
    },
    /// Acknowledge to the primary of the epoch: the log is durable here up to `upto`, and equal to the primary's.
    Ack {
        /// The epoch.
        epoch: Epoch,
        /// The index.
        upto: Index,
    },
    /// Refuse what came for an epoch.
    Refuse {
        /// The refused epoch.
        epoch: Epoch,
        /// The epoch below which this replica takes part in nothing.
        promised: Epoch,
    },
    /// Report to the primary of the epoch that its frame does not follow from this log.
    Diverged {
        /// The epoch.
        epoch: Epoch,
        /// This log.
        table: EpochTable,
    },
    /// Confirm to the primary of the epoch that this replica still takes part in it.
    Confirm {
        /// The epoch.
        epoch: Epoch,
        /// The round that was asked for.
        round: Round,
        /// The time of this replica's clock.
        mark: Mark,
    },
    /// Answer a seal.
    Sealed(SealAnswer),
    /// This replica does not lead the epoch any more: drop what was executed ahead of the commit index, and rebuild the state.
    Deposed(Epoch),
}

/// Reasons for which a frame of entries or a snapshot is invalid. Nothing of it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidAppend {
    /// An entry does not follow the one before it.
    #[error("entry {found} does not follow entry {before} in the frame")]
    Gap {
        /// The index before.
        before: Index,
        /// The index found.
        found: Index,
    },
    /// The epochs in the frame fall, or exceed the sender's.
    #[error("entry {index} of epoch {found} follows one of epoch {before} in a frame of epoch {frame}")]
    Epoch {
        /// The entry.
        index: Index,
        /// Its epoch.
        found: Epoch,
        /// The epoch before.
        before: Epoch,
        /// The sender's epoch.
        frame: Epoch,
    },
    /// It differs from what the same primary sent before.
    #[error(
        "entry {index} differs in epoch {frame} from the log that its primary sent before up to {verified}"
    )]
    Verified {
        /// The entry.
        index: Index,
        /// The index up to which the log is known to be that of the primary.
        verified: Index,
        /// The sender's epoch.
        frame: Epoch,
    },
    /// It contradicts what is committed here, as only an operator's takeover may.
    #[error(
        "entry {index} is of epoch {found} in the log of epoch {frame}, and committed here in the history of epoch {here}; if an operator gave that up, bring the node back as a new replica"
    )]
    GivenUp {
        /// The entry.
        index: Index,
        /// Its epoch.
        found: Epoch,
        /// The epoch of the entry here, or of the snapshot that covers it.
        here: Epoch,
        /// The sender's epoch.
        frame: Epoch,
    },
}

/// Reasons for which a replica cannot lead an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CannotLead {
    /// The record names another replica, or an earlier life of its process.
    #[error("epoch {epoch} is led by life {life} of replica {primary}, which is not this one")]
    NotNamed {
        /// The epoch.
        epoch: Epoch,
        /// The replica that the record names.
        primary: ReplicaId,
        /// The life of its process.
        life: Life,
    },
    /// This replica has promised to take part in higher epochs only.
    #[error("epoch {epoch} is over: this replica takes part in no epoch below {promised}")]
    Promised {
        /// The epoch.
        epoch: Epoch,
        /// The promise.
        promised: Epoch,
    },
    /// This log lacks the entry at which the epoch begins: it must be copied from the replica that has it.
    #[error("epoch {epoch} begins behind entry {} of epoch {}, which this log does not have", base.index, base.epoch)]
    NoBase {
        /// The epoch.
        epoch: Epoch,
        /// The entry.
        base: LogPoint,
    },
}

impl CannotLead {
    /// Returns the epoch that cannot be led.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        match *self {
            Self::NotNamed { epoch, .. } | Self::Promised { epoch, .. } | Self::NoBase { epoch, .. } => epoch,
        }
    }
}

/// A record in the queue to the disk, or what waits for those before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Queued {
    Records(usize),
    /// So many entries of the primary, which this replica is, the last of them at an index: each acknowledges itself.
    Own(usize, Index),
    Ack(LogPoint),
    Seal,
}

/// The newest seal, until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Unanswered {
    seal: Seal,
    is_durable: bool,
}

/// A replica of one shard, in one life of its process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    id: ReplicaId,
    life: Life,
    /// It takes part in no lower epoch (rule 6).
    promised: Epoch,
    /// The log, with what is on its way to the disk.
    table: EpochTable,
    /// The index up to which the log is known to be that of the primary of `promised`; none before it was compared.
    verified: Option<Index>,
    /// The epoch that it leads.
    leads: Option<Epoch>,
    commit: Index,
    active: Epoch,
    queue: VecDeque<Queued>,
    seal: Option<Unanswered>,
    grants: Grants,
    freshness: Freshness,
}

impl Replica {
    /// Creates a replica from what its log holds durably, in a new life of its process. Entries behind the snapshot are
    /// applied only once a primary says that they are committed (rule 16). `grants` are [`Grants::new`] for a replica that
    /// had no life before, and [`Grants::after_restart`] otherwise.
    #[must_use]
    pub fn new(id: ReplicaId, life: Life, promised: Epoch, table: EpochTable, grants: Grants) -> Self {
        let (base, last) = (table.base(), table.last());
        let promised = promised.max(last.epoch);
        // A snapshot counts only once it is committed, so its epoch was active.
        let (commit, active) = (base.index, base.epoch);
        Self {
            id,
            life,
            promised,
            table,
            verified: None,
            leads: None,
            commit,
            active,
            queue: VecDeque::new(),
            seal: None,
            grants,
            freshness: Freshness::default(),
        }
    }

    /// Returns its number.
    #[must_use]
    pub fn id(&self) -> ReplicaId {
        self.id
    }

    /// Returns the epoch below which it takes part in nothing.
    #[must_use]
    pub fn promised(&self) -> Epoch {
        self.promised
    }

    /// Returns its log, with what is on its way to the disk.
    #[must_use]
    pub fn table(&self) -> &EpochTable {
        &self.table
    }

    /// Returns the epoch that it leads.
    #[must_use]
    pub fn leads(&self) -> Option<Epoch> {
        self.leads
    }

    /// Returns the index up to which its state may be the fold of its log (rule 16).
    #[must_use]
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// Returns the highest epoch that it knows to be active.
    #[must_use]
    pub fn active(&self) -> Epoch {
        self.active
    }

    /// Handles a frame from the primary of an epoch. `entries` are the places of its entries.
    ///
    /// # Errors
    /// [`InvalidAppend`]: the frame is of no log.
    pub fn handle_append(
        &mut self,
        head: AppendHead,
        entries: &[LogPoint],
        out: &mut Vec<Action>,
    ) -> Result<(), InvalidAppend> {
        check_append(head, entries)?;
        if head.epoch < self.promised {
            out.push(Action::Refuse { epoch: head.epoch, promised: self.promised });
            return Ok(());
        }
        if self.leads == Some(head.epoch) {
            // Its own frame came back.
            return Ok(());
        }
        self.check_kept(head.epoch, head.before)?;
        for entry in entries {
            self.check_kept(head.epoch, *entry)?;
        }
        // A frame that ends early is no reason to cut: entries are compared one by one (rule 15).
        let base = self.table.base().index;
        let equal = entries.iter().take_while(|entry| entry.index <= base || self.table.has(**entry)).count();
        if let Some(first) = entries.get(equal) {
            self.check_verified(head.epoch, first.index)?;
        }
        self.promise(head.epoch, out);
        self.forget_seals();
        if head.before.index >= self.table.base().index && !self.table.has(head.before) {
            out.push(Action::Diverged { epoch: head.epoch, table: self.table.clone() });
            return Ok(());
        }
        if let Some(first) = entries.get(equal) {
            let keep = Index(first.index.0 - 1);
            if keep < self.table.last().index {
                assert!(keep >= self.commit, "what is committed is never cut [2]");
                self.table.truncate(keep);
                self.queue_records(1);
                out.push(Action::WriteCut { epoch: head.epoch, keep });
            }
            entries[equal..].iter().for_each(|entry| self.table.push(*entry));
            self.queue_records(entries.len() - equal);
            out.push(Action::WriteEntries { from: equal });
        }
        let end = entries.last().map_or(head.before.index, |last| last.index);
        let verified = self.verified.map_or(end, |verified| verified.max(end));
        self.verified = Some(verified);
        if head.commit > Index(0) {
            // A primary names a commit index only once its start entry is committed.
            self.active = self.active.max(head.epoch);
        }
        self.commit = self.commit.max(head.commit.min(verified));
        self.acknowledge(verified, out);
        Ok(())
    }

    /// Handles that a snapshot from the primary of an epoch is whole and durable aside: that of committed state at `base`.
    /// Nothing here is replaced before (rule 4).
    ///
    /// A log that holds the entry at `base` needs no snapshot: it holds all before it, too, and keeps what comes behind. Any
    /// other log ended before `base`, or was another one there, so that none of it behind `base` is the primary's either.
    ///
    /// # Errors
    /// [`InvalidAppend`]: the snapshot is not of this log.
    pub fn handle_snapshot(
        &mut self,
        epoch: Epoch,
        base: LogPoint,
        out: &mut Vec<Action>,
    ) -> Result<(), InvalidAppend> {
        if epoch < self.promised {
            out.push(Action::Refuse { epoch, promised: self.promised });
            return Ok(());
        }
        if self.leads == Some(epoch) {
            return Ok(());
        }
        self.check_kept(epoch, base)?;
        let is_new = base.index > self.commit && !self.table.has(base);
        if is_new {
            self.check_verified(epoch, base.index)?;
        }
        self.promise(epoch, out);
        self.forget_seals();
        if is_new {
            self.table = EpochTable::new(base);
            self.queue_records(1);
            out.push(Action::WriteInstall { epoch, base });
        }
        // Each primary has all committed entries, so the logs agree up to there.
        let verified = self.verified.map_or(base.index, |verified| verified.max(base.index));
        self.verified = Some(verified);
        self.active = self.active.max(base.epoch);
        self.commit = self.commit.max(base.index);
        self.acknowledge(verified, out);
        Ok(())
    }

    /// Checks that an entry of a primary's log does not contradict what is committed here. Where only a snapshot is left, it
    /// may not be of a higher epoch, for epochs do not fall within a log.
    fn check_kept(&self, frame: Epoch, point: LogPoint) -> Result<(), InvalidAppend> {
        let LogPoint { epoch: found, index } = point;
        if index > self.commit {
            return Ok(());
        }
        let here = self.table.epoch_at(index);
        let is_kept = here.map_or(found <= self.table.base().epoch, |here| here == found);
        let here = here.unwrap_or(self.table.base().epoch);
        if is_kept { Ok(()) } else { Err(InvalidAppend::GivenUp { index, found, here, frame }) }
    }

    /// Checks that the log of a primary may be another one from an entry on: it was not verified in the same epoch.
    fn check_verified(&self, frame: Epoch, index: Index) -> Result<(), InvalidAppend> {
        match self.verified.filter(|verified| frame == self.promised && *verified >= index) {
            Some(verified) => Err(InvalidAppend::Verified { index, verified, frame }),
            None => Ok(()),
        }
    }

    /// Whether this replica lacks what it acknowledged up to an entry, as the primary of an epoch reports it: its disk is another one, or
    /// an older copy (rule 18). In the same epoch nothing that was acknowledged is cut; in a higher one it may have been.
    #[must_use]
    pub fn lacks(&self, epoch: Epoch, upto: LogPoint) -> bool {
        let has = upto.index <= self.table.base().index || self.table.has(upto);
        self.promised < epoch || self.promised == epoch && !has
    }

    /// Handles that the log was trimmed up to `base`, which a durable snapshot of this replica covers. Old reports change nothing.
    ///
    /// # Panics
    /// If the entry is not committed, or not in the log.
    pub fn handle_trimmed(&mut self, base: LogPoint) {
        if base.index <= self.table.base().index {
            return;
        }
        assert!(base.index <= self.commit, "only what is committed is trimmed [2]");
        self.table.rebase(base);
    }

    /// Handles a primary's question whether this replica still takes part in its epoch, and grants it a lease. A replica that
    /// has promised a higher epoch refuses, also while that promise is on its way to the disk (rules 21 and 22).
    pub fn handle_ask(&mut self, now: Time, ask: Ask, out: &mut Vec<Action>) {
        let Ask { epoch, round, lease, fresh } = ask;
        if epoch < self.promised {
            out.push(Action::Refuse { epoch, promised: self.promised });
            return;
        }
        if self.leads == Some(epoch) {
            // Its own frame came back.
            return;
        }
        self.grants.grant(now, lease);
        if let Some(fresh) = fresh {
            self.freshness.handle_fresh(self.life, fresh);
        }
        out.push(Action::Confirm { epoch, round, mark: Mark { life: self.life, at: now } });
    }

    /// Handles that the state holds all entries up to an index, which is at most [`Replica::commit`].
    pub fn handle_applied(&mut self, applied: Index) {
        self.freshness.handle_applied(applied);
    }

    /// Returns the age of the state as it was last reported to [`Replica::handle_applied`], for a stale read that allows
    /// `max_lag`. A primary's is [`super::rounds::Rounds::staleness`].
    ///
    /// # Errors
    /// [`TooStale`].
    pub fn staleness(&self, now: Time, max_lag: Micros) -> Result<Micros, TooStale> {
        self.freshness.staleness(now, max_lag)
    }

    /// Handles a seal: nothing of a lower epoch is taken, acknowledged or granted any more, whenever it came. It is answered
    /// once the promise is durable and no lease stands in its way (rules 6, 7 and 21); see [`Replica::handle_tick`].
    pub fn handle_seal(&mut self, now: Time, seal: Seal, out: &mut Vec<Action>) {
        if seal.epoch < self.promised {
            out.push(Action::Refuse { epoch: seal.epoch, promised: self.promised });
            return;
        }
        self.promise(seal.epoch, out);
        self.seal = Some(Unanswered { seal, is_durable: false });
        if !self.queue.contains(&Queued::Seal) {
            self.queue.push_back(Queued::Seal);
        }
        self.let_go(out);
        self.handle_tick(now, out);
    }

    /// Returns the time at which a seal may be answered that waits for a lease to end; `None` if none waits for that. Then
    /// [`Replica::handle_tick`] is due.
    #[must_use]
    pub fn wakes_at(&self) -> Option<Time> {
        let waiting = self.seal.filter(|waiting| waiting.is_durable)?;
        self.grants.free_at(waiting.seal.lease)
    }

    /// Answers a seal for which no lease is waited for any more.
    pub fn handle_tick(&mut self, now: Time, out: &mut Vec<Action>) {
        let is_free = |waiting: &mut Unanswered| {
            waiting.is_durable && self.grants.free_at(waiting.seal.lease).is_none_or(|at| at <= now)
        };
        if let Some(Unanswered { seal, .. }) = self.seal.take_if(is_free) {
            out.push(Action::Sealed(SealAnswer {
                replica: self.id,
                life: self.life,
                epoch: seal.epoch,
                table: self.table.clone(),
                active: self.active,
                is_folding: false,
            }));
        }
    }

    /// Begins to lead an epoch: the log is cut to its base, behind which the caller appends the start entry in the same
    /// batch (rule 10).
    ///
    /// # Errors
    /// [`CannotLead`]. Nothing was changed.
    pub fn lead(&mut self, record: &EpochRecord, out: &mut Vec<Action>) -> Result<(), CannotLead> {
        let (epoch, base) = (record.config.epoch(), record.base);
        let primary = record.config.primary();
        if primary != self.id || record.life != self.life {
            return Err(CannotLead::NotNamed { epoch, primary, life: record.life });
        }
        // This life has appended in the epoch already: the record came twice.
        if self.leads == Some(epoch) {
            return Ok(());
        }
        if epoch < self.promised || self.table.last().epoch >= epoch {
            return Err(CannotLead::Promised { epoch, promised: self.promised });
        }
        if !self.table.has(base) {
            return Err(CannotLead::NoBase { epoch, base });
        }
        self.promise(epoch, out);
        if base.index < self.table.last().index {
            assert!(base.index >= self.commit, "what is committed is never cut [2]");
            self.table.truncate(base.index);
            self.queue_records(1);
            out.push(Action::WriteCut { epoch, keep: base.index });
        }
        self.forget_seals();
        self.leads = Some(epoch);
        self.verified = Some(base.index);
        Ok(())
    }

    /// Handles that the primary, which this replica is, has handed the entries of its epoch up to an index to the log. Its own disk
    /// counts by the same acknowledgement as the others' (rule 17).
    ///
    /// # Panics
    /// If it leads no epoch, or has handed over the entry before.
    pub fn handle_own(&mut self, upto: Index) {
        let epoch = self.leads.expect("only a primary appends");
        let before = self.table.last().index;
        self.table.extend(LogPoint { epoch, index: upto });
        self.verified = Some(upto);
        let entries = (upto.0 - before.0) as usize;
        match self.queue.back_mut() {
            Some(Queued::Own(waiting, last)) => (*waiting, *last) = (*waiting + entries, upto),
            _ => self.queue.push_back(Queued::Own(entries, upto)),
        }
    }

    /// Handles that the commit index of the epoch that it leads grew: the epoch is active.
    pub fn handle_commit(&mut self, commit: Index) {
        if let Some(epoch) = self.leads {
            self.active = self.active.max(epoch);
            self.commit = self.commit.max(commit);
        }
    }

    /// Handles that `records` more of those that were to be written are durable, in their order.
    ///
    /// # Panics
    /// If so many were not written.
    pub fn handle_durable(&mut self, now: Time, records: usize, out: &mut Vec<Action>) {
        self.take_durable(records, out);
        self.let_go(out);
        self.handle_tick(now, out);
    }

    /// Handles what [`Self::handle_durable`] does, if these are entries of the epoch that it leads and nothing else waits. Returns the
    /// last of them, which it acknowledges; `None` if the call is not of that kind, and has changed nothing.
    pub fn take_own_durable(&mut self, records: usize) -> Option<Index> {
        if records == 0 || self.queue.len() != 1 || self.seal.is_some() || self.leads != Some(self.promised) {
            return None;
        }
        let Some(Queued::Own(waiting, last)) = self.queue.front_mut() else { return None };
        let left = waiting.checked_sub(records)?;
        let upto = Index(last.0 - left as u64);
        if left == 0 {
            self.queue.clear();
        } else {
            *waiting = left;
        }
        Some(upto)
    }

    fn take_durable(&mut self, mut records: usize, out: &mut Vec<Action>) {
        while records > 0 {
            match self.queue.front_mut() {
                Some(Queued::Records(waiting)) if *waiting > records => {
                    *waiting -= records;
                    return;
                }
                Some(Queued::Records(waiting)) => {
                    records -= *waiting;
                    self.queue.pop_front();
                }
                Some(Queued::Own(waiting, upto)) => {
                    let taken = records.min(*waiting);
                    (records, *waiting) = (records - taken, *waiting - taken);
                    let ack = LogPoint { epoch: self.promised, index: Index(upto.0 - *waiting as u64) };
                    if *waiting == 0 {
                        self.queue.pop_front();
                    }
                    push_ack(ack, out);
                }
                Some(_) => self.let_go(out),
                None => panic!("more records are durable than were written"),
            }
        }
    }

    /// Raises the promise: nothing of a lower epoch is acknowledged or led any more.
    fn promise(&mut self, epoch: Epoch, out: &mut Vec<Action>) {
        if epoch <= self.promised {
            return;
        }
        self.promised = epoch;
        self.verified = None;
        if let Some(led) = self.leads.take() {
            out.push(Action::Deposed(led));
        }
        self.queue.retain_mut(|queued| {
            if let Queued::Own(entries, _) = *queued {
                *queued = Queued::Records(entries);
            }
            matches!(queued, Queued::Records(_))
        });
        self.seal = None;
        self.freshness.handle_new_epoch();
        self.queue_records(1);
        out.push(Action::WritePromise(epoch));
    }

    /// Drops seals for an epoch that has begun by now: it was recorded without their answers.
    fn forget_seals(&mut self) {
        self.queue.retain(|queued| *queued != Queued::Seal);
        self.seal = None;
    }

    fn queue_records(&mut self, records: usize) {
        match self.queue.back_mut() {
            Some(Queued::Records(waiting)) => *waiting += records,
            _ => self.queue.push_back(Queued::Records(records)),
        }
    }

    /// Acknowledges once all that was written is durable.
    fn acknowledge(&mut self, upto: Index, out: &mut Vec<Action>) {
        let ack = LogPoint { epoch: self.promised, index: upto };
        match self.queue.back_mut() {
            Some(Queued::Ack(last)) => *last = ack,
            _ => self.queue.push_back(Queued::Ack(ack)),
        }
        self.let_go(out);
    }

    /// Says what waits for no record any more.
    fn let_go(&mut self, out: &mut Vec<Action>) {
        let waits_for_none = |queued: &mut Queued| !matches!(queued, Queued::Records(_) | Queued::Own(..));
        while let Some(queued) = self.queue.pop_front_if(waits_for_none) {
            match queued {
                Queued::Ack(ack) => push_ack(ack, out),
                Queued::Seal => {
                    if let Some(waiting) = &mut self.seal {
                        waiting.is_durable = true;
                    }
                }
                Queued::Records(_) | Queued::Own(..) => unreachable!("it is not taken off"),
            }
        }
    }
}

/// Adds an acknowledgement; one of the same epoch that was added just before is part of it.
fn push_ack(ack: LogPoint, out: &mut Vec<Action>) {
    match out.last_mut() {
        Some(Action::Ack { epoch, upto }) if *epoch == ack.epoch => *upto = ack.index,
        _ => out.push(Action::Ack { epoch: ack.epoch, upto: ack.index }),
    }
}

/// Checks that a frame's entries could follow each other in a log of its epoch.
fn check_append(head: AppendHead, entries: &[LogPoint]) -> Result<(), InvalidAppend> {
    let mut before = head.before;
    for entry in entries {
        if before.index.0.checked_add(1) != Some(entry.index.0) {
            return Err(InvalidAppend::Gap { before: before.index, found: entry.index });
        }
        if entry.epoch < before.epoch || entry.epoch > head.epoch {
            let (index, found) = (entry.index, entry.epoch);
            return Err(InvalidAppend::Epoch { index, found, before: before.epoch, frame: head.epoch });
        }
        before = *entry;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::table::Losses;
    use super::*;
    use crate::commit_tracker::EpochConfig;
    use crate::ids::Generation;
    use std::collections::BTreeMap;

    fn at(epoch: u64, index: u64) -> LogPoint {
        LogPoint { epoch: Epoch(epoch), index: Index(index) }
    }

    /// A replica that promised epoch 1, with a snapshot, and entries of these epochs behind it.
    fn replica(base: LogPoint, log: &[u64]) -> Replica {
        let mut table = EpochTable::new(base);
        (base.index.0 + 1..).zip(log).for_each(|(index, epoch)| table.push(at(*epoch, index)));
        Replica::new(ReplicaId(4), Life(1), Epoch(1), table, Grants::new())
    }

    /// A frame of the primary of an epoch with entries of these epochs.
    fn append(
        replica: &mut Replica,
        epoch: u64,
        before: LogPoint,
        commit: u64,
        epochs: &[u64],
    ) -> Result<Vec<Action>, InvalidAppend> {
        let head = AppendHead { epoch: Epoch(epoch), before, commit: Index(commit) };
        let entries: Vec<LogPoint> =
            (before.index.0 + 1..).zip(epochs).map(|(index, epoch)| at(*epoch, index)).collect();
        let mut out = Vec::new();
        replica.handle_append(head, &entries, &mut out).map(|()| out)
    }

    #[test]
    fn what_was_acknowledged_in_an_epoch_is_not_cut_in_it() {
        let mut replica = replica(at(0, 0), &[]);
        append(&mut replica, 3, at(0, 0), 0, &[1, 1, 3]).unwrap();
        let before = replica.clone();
        let (verified, frame) = (Index(3), Epoch(3));
        let cut = append(&mut replica, 3, at(0, 0), 0, &[1, 3]);
        assert_eq!(cut, Err(InvalidAppend::Verified { index: Index(2), verified, frame }));
        let snapshot = replica.handle_snapshot(Epoch(3), at(2, 3), &mut Vec::new());
        assert_eq!(snapshot, Err(InvalidAppend::Verified { index: Index(3), verified, frame }));
        assert_eq!(replica, before, "nothing was taken");
        append(&mut replica, 4, at(0, 0), 0, &[1, 4]).expect("the primary of a higher epoch may cut");
        assert_eq!(replica.table().last(), at(4, 2));
    }

    #[test]
    fn own_entries_become_durable_by_either_way_alike() {
        let mut rng = fastrand::Rng::with_seed(11);
        let config = EpochConfig::single(Epoch(2), ReplicaId(4));
        let (lease, generation, losses) = (Micros(0), Generation(0), Losses::default());
        let (life, earlier) = (Life(1), BTreeMap::new());
        let record = EpochRecord { config, life, lease, generation, base: at(1, 1), losses, earlier };
        let (mut taken, mut left) = (0, 0);
        for _ in 0..300 {
            let mut replica = replica(at(0, 0), &[1]);
            replica.lead(&record, &mut Vec::new()).unwrap();
            let mut records = 1;
            for index in 2..2 + rng.u64(1..5) {
                replica.handle_own(Index(index));
                records += 1;
            }
            while records > 0 {
                let durable = rng.usize(..=records);
                records -= durable;
                let (mut other, mut actions) = (replica.clone(), Vec::new());
                other.handle_durable(Time(1), durable, &mut actions);
                match replica.take_own_durable(durable) {
                    Some(upto) => {
                        taken += 1;
                        assert_eq!(actions, [Action::Ack { epoch: Epoch(2), upto }]);
                    }
                    None => {
                        left += 1;
                        replica.handle_durable(Time(1), durable, &mut Vec::new());
                    }
                }
                assert_eq!(replica, other);
                if durable == 0 && rng.bool() {
                    break;
                }
            }
        }
        assert!(taken > 100 && left > 100, "{taken} and {left} of both kinds");
    }

    #[test]
    fn a_replica_lacks_what_it_acknowledged_unless_it_was_cut_since() {
        let (log, trimmed) = (replica(at(0, 0), &[1, 1, 3]), replica(at(3, 3), &[]));
        for replica in [&log, &trimmed] {
            assert!(!replica.lacks(Epoch(3), at(1, 2)) && !replica.lacks(Epoch(3), at(3, 3)));
            assert!(replica.lacks(Epoch(3), at(3, 4)), "an entry is missing");
            assert!(replica.lacks(Epoch(4), at(1, 2)), "the promise is missing");
            assert!(!replica.lacks(Epoch(2), at(2, 9)), "a higher epoch may have cut it");
        }
        assert!(log.lacks(Epoch(3), at(2, 2)), "another entry is there");
    }

    #[test]
    fn a_learner_that_holds_what_was_given_up_acknowledges_nothing_of_the_new_history() {
        // D has a snapshot of what C lacks. An operator goes on with C, whose epoch 2 begins behind entry 8.
        let error = |index| {
            let (here, found) = (Epoch(1), Epoch(2));
            Err(InvalidAppend::GivenUp { index: Index(index), found, here, frame: Epoch(2) })
        };
        let mut snapshot = replica(at(1, 10), &[]);
        let mut entries = replica(at(1, 5), &[1, 1, 1, 1, 1]);
        append(&mut entries, 1, at(1, 10), 10, &[]).unwrap();
        for learner in [&mut snapshot, &mut entries] {
            let before = learner.clone();
            assert_eq!(append(learner, 2, at(1, 8), 0, &[2]), error(9));
            assert_eq!(append(learner, 2, at(2, 9), 0, &[2]), error(9));
            assert_eq!(append(learner, 2, at(2, 10), 11, &[2]), error(10));
            assert_eq!(
                learner.handle_snapshot(Epoch(2), at(2, 9), &mut Vec::new()).map(|()| Vec::new()),
                error(9)
            );
            assert_eq!(*learner, before, "nothing was taken");
            // C's log up to its base is here.
            append(learner, 2, at(1, 8), 0, &[]).unwrap();
        }
    }

    #[test]
    fn no_frame_makes_a_replica_panic_and_an_invalid_one_leaves_no_trace() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut taken, mut invalid) = (0, 0);
        for _ in 0..500 {
            let base = at(rng.u64(0..2), rng.u64(0..3));
            let mut log: Vec<u64> = (0..rng.u64(0..4)).map(|_| rng.u64(base.epoch.0..4)).collect();
            log.sort_unstable();
            let mut replica = replica(base, &log);
            for _ in 0..20 {
                let mut epochs: Vec<u64> = (0..rng.u64(0..4)).map(|_| rng.u64(0..5)).collect();
                epochs.sort_unstable();
                let (epoch, before, unchanged) =
                    (rng.u64(1..6), at(rng.u64(0..5), rng.u64(0..7)), replica.clone());
                let result = if rng.u8(..4) == 0 {
                    replica.handle_snapshot(Epoch(epoch), before, &mut Vec::new())
                } else {
                    append(&mut replica, epoch, before, rng.u64(0..8), &epochs).map(drop)
                };
                match result {
                    Ok(()) => taken += 1,
                    Err(_) => {
                        assert_eq!(replica, unchanged);
                        invalid += 1;
                    }
                }
                assert!(replica.commit() <= replica.table().last().index);
            }
        }
        assert!(taken > 0 && invalid > 0, "{taken} and {invalid}");
    }
}
