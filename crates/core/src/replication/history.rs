//! The control plane's records of a shard, and the judgement on a new epoch.
//!
//! A takeover is one conditional command: its evidence, the answers to seals, is judged again where it is applied (rule 9).

use super::epoch::{EpochRecord, SealAnswer};
use super::table::{LogPoint, Losses};
use crate::commit_tracker::EpochConfig;
use crate::ids::{Epoch, Generation, Life, Micros, ReplicaId};
use minicbor::{Decode, Encode};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// The command that begins an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Takeover {
    /// The newest epoch when it was decided.
    #[n(0)]
    pub expected: Epoch,
    /// The new epoch's members, W and primary.
    #[n(1)]
    pub config: EpochConfig,
    /// The life of the primary's process.
    #[n(2)]
    pub life: Life,
    /// The span of the leases under which the primary answers; 0 for none.
    #[n(3)]
    pub lease: Micros,
    /// The answers to seals for the new epoch.
    #[n(4)]
    pub seals: Vec<SealAnswer>,
}

/// Reasons for which an epoch cannot begin. Nothing was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Encode, Decode)]
pub enum TakeoverError {
    /// Another epoch was recorded meanwhile, or the new one is not above it.
    #[error(
        "epoch {asked} was decided when {expected} was the newest one, and that is {newest} now; seal again"
    )]
    #[n(0)]
    Overtaken {
        /// The refused epoch.
        #[n(0)]
        asked: Epoch,
        /// The newest epoch when it was decided.
        #[n(1)]
        expected: Epoch,
        /// The newest epoch.
        #[n(2)]
        newest: Epoch,
    },
    /// An answer is to a seal for another epoch.
    #[error("replica {replica} answered a seal for epoch {sealed}, not for {asked}; seal again")]
    #[n(1)]
    OtherSeal {
        /// The replica.
        #[n(0)]
        replica: ReplicaId,
        /// The epoch that it was sealed for.
        #[n(1)]
        sealed: Epoch,
        /// The new epoch.
        #[n(2)]
        asked: Epoch,
    },
    /// Its W is below S, and it has no lease: a primary that is cut off would answer for ever.
    #[error(
        "epoch {asked} answers before entries are committed, and has no lease; give it one, or more acks"
    )]
    #[n(2)]
    NoLease {
        /// The refused epoch.
        #[n(0)]
        asked: Epoch,
    },
    /// Too few members of an epoch are sealed: the others could still commit in it.
    #[error("{sealed} of {needed} members of epoch {epoch} are sealed; wait for more, or bring members back")]
    #[n(3)]
    TooFewSeals {
        /// The epoch.
        #[n(0)]
        epoch: Epoch,
        /// The sealed members.
        #[n(1)]
        sealed: usize,
        /// The number that must be: N - S + 1.
        #[n(2)]
        needed: usize,
    },
    /// No replica that may have the shard's entries is sealed, so that an operator's takeover would begin with nothing.
    #[error(
        "no member of the epochs before {asked} is sealed; bring one back, or restore the shard from a checkpoint"
    )]
    #[n(4)]
    NoSeal {
        /// The refused epoch.
        #[n(0)]
        asked: Epoch,
    },
    /// An operator wants to go on without the others, although enough members are sealed: nothing has to be lost.
    #[error("enough members answered for epoch {asked}; begin it without an operator's word")]
    #[n(5)]
    NotNeeded {
        /// The refused epoch.
        #[n(0)]
        asked: Epoch,
    },
    /// It names a replica that an operator's takeover went on without.
    #[error("replica {replica} was given up by an operator; bring its node back as a new replica")]
    #[n(6)]
    Void {
        /// The replica.
        #[n(0)]
        replica: ReplicaId,
    },
    /// A sealed replica knows an epoch that is not recorded: the records are older than the log. They were restored from an old copy.
    #[error(
        "replica {replica} knows epoch {known}, and the newest recorded one is {newest}: the control plane's records are older than \
         the shard; restore newer ones"
    )]
    #[n(7)]
    OldRecords {
        /// The replica.
        #[n(0)]
        replica: ReplicaId,
        /// The epoch.
        #[n(1)]
        known: Epoch,
        /// The newest recorded one.
        #[n(2)]
        newest: Epoch,
    },
    /// The tables of the sealed logs do not fit into one command: the logs have entries of very many epochs.
    #[error(
        "the seals for epoch {asked} have {bytes} bytes, more than a command may have; take a checkpoint, so that logs are trimmed"
    )]
    #[n(8)]
    TooLarge {
        /// The new epoch.
        #[n(0)]
        asked: Epoch,
        /// The bytes of the change that would begin it.
        #[n(1)]
        bytes: usize,
    },
}

/// The result of the seals for a new epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The replica with the best log: it should lead.
    pub winner: ReplicaId,
    /// The entry behind which the epoch begins.
    pub base: LogPoint,
    /// All losses, those recorded before included.
    pub losses: Losses,
    /// The highest epoch that is known to be active.
    pub active: Epoch,
}

/// The epochs of a shard that still matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode)]
pub struct History {
    /// Ascending, from the last one that is recorded as active, or the first one.
    #[n(0)]
    records: Vec<EpochRecord>,
    #[n(1)]
    losses: Losses,
    /// Replicas that an operator's takeover went on without: none takes part in anything again.
    #[n(2)]
    void: BTreeSet<ReplicaId>,
    /// The last epoch that an operator began; 0 if there is none. What it went on without, no older epoch decides any more.
    #[n(3)]
    forced: Epoch,
    /// Always false. Older versions read it.
    #[n(4)]
    unused: bool,
    /// Replicas that may have lost what they acknowledged.
    #[n(5)]
    doubted: BTreeMap<ReplicaId, Doubt>,
}

/// A replica may have lost what it acknowledged in epochs whose members do not sync before that: the power of its node was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub(super) struct Doubt {
    /// The newest epoch at the last time: in later ones it acknowledges what it has.
    #[n(0)]
    epoch: Epoch,
    /// The first life after the first time. An earlier one that has answered a seal had synced all before it did.
    #[n(1)]
    life: Life,
}

/// A history from outside.
#[derive(Decode)]
pub(super) struct RawHistory {
    #[n(0)]
    records: Vec<EpochRecord>,
    #[n(1)]
    losses: Losses,
    #[n(2)]
    void: BTreeSet<ReplicaId>,
    #[n(3)]
    forced: Epoch,
    /// Missing in histories of older versions.
    #[n(5)]
    #[cbor(default)]
    doubted: BTreeMap<ReplicaId, Doubt>,
}

/// The word that stands for the seals of members that are absent, or that may have lost what they acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Word {
    /// None: there are enough seals.
    Seals,
    /// The dial's: enough members are sealed, and some of them may have lost what they acknowledged. The absent ones are given up.
    Dial,
    /// An operator's: the absent members are given up.
    Operator,
}

impl History {
    /// Creates the history of a new shard, whose first epoch begins with an empty log.
    ///
    /// # Panics
    /// If its W is below S and `lease` is 0.
    #[must_use]
    pub fn new(config: EpochConfig, life: Life, lease: Micros) -> Self {
        assert!(
            lease > Micros(0) || !config.is_asynchronous(),
            "an epoch that answers early has a lease [4]"
        );
        let losses = Losses::default();
        let (generation, base) = (Generation(0), LogPoint::default());
        let earlier = BTreeMap::new();
        let first = EpochRecord { config, life, lease, generation, base, losses: losses.clone(), earlier };
        let (void, doubted) = (BTreeSet::new(), BTreeMap::new());
        Self { records: vec![first], losses, void, forced: Epoch(0), unused: false, doubted }
    }

    /// Creates the history of a shard that one replica has led so far without a control plane. Its first recorded epoch begins
    /// behind the log that the replica has.
    ///
    /// # Panics
    /// If the epoch is not above that of the log's last entry.
    #[must_use]
    pub fn adopt(replica: ReplicaId, life: Life, epoch: Epoch, base: LogPoint) -> Self {
        assert!(epoch > base.epoch, "an epoch's entries are above all before them [1]");
        let mut history = Self::new(EpochConfig::single(epoch, replica), life, Micros(0));
        (history.records[0].base, history.records[0].earlier) = (base, EpochRecord::unknown_past(replica));
        history
    }

    /// Checks a history from outside; `None` if its epochs do not follow each other.
    pub(super) fn parse(raw: RawHistory) -> Option<Self> {
        let RawHistory { records, losses, void, forced, doubted } = raw;
        let is_ordered = records.is_sorted_by(|a, b| a.config.epoch() < b.config.epoch());
        (!records.is_empty() && is_ordered).then_some(Self {
            records,
            losses,
            void,
            forced,
            unused: false,
            doubted,
        })
    }

    /// Returns the record of the newest epoch.
    ///
    /// # Panics
    /// Never: there is always one.
    #[must_use]
    pub fn newest(&self) -> &EpochRecord {
        self.records.last().expect("a history has an epoch from its beginning")
    }

    /// Returns the records from the last epoch that is recorded as active on, ascending.
    #[must_use]
    pub fn records(&self) -> &[EpochRecord] {
        &self.records
    }

    /// Returns all losses.
    #[must_use]
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// Returns the replicas that operators have given up.
    #[must_use]
    pub fn void(&self) -> &BTreeSet<ReplicaId> {
        &self.void
    }

    /// Records that an epoch is active. May be late, or of an older epoch, but never early (rule 13). Changes nothing if an
    /// operator began a later one: members of that epoch may be given up, so that its seals would prove nothing.
    pub fn handle_active(&mut self, epoch: Epoch) {
        if epoch < self.forced {
            return;
        }
        if let Some(at) = self.records.iter().position(|record| record.config.epoch() == epoch) {
            self.records.drain(..at);
            let first = self.records[0].config.epoch();
            self.doubted.retain(|_, doubt| doubt.epoch >= first);
        }
    }

    /// Whether a replica is the only one that may have the shard's entries: the only member of each epoch that still matters.
    #[must_use]
    pub fn is_alone(&self, replica: ReplicaId) -> bool {
        self.records.iter().all(|record| record.config.members() == [replica])
    }

    /// Records that the power of a replica's node was cut before a life. What the replica acknowledged in an epoch whose members sync
    /// before that is there; in others it may be lost. What it promised is there in each.
    pub fn handle_doubt(&mut self, replica: ReplicaId, life: Life) {
        let names = |record: &EpochRecord| record.config.members().contains(&replica);
        if self.records.iter().any(|record| record.config.durability().is_relaxed() && names(record)) {
            let epoch = self.newest().config.epoch();
            // What an earlier cut took is not there either.
            self.doubted.entry(replica).or_insert(Doubt { epoch, life }).epoch = epoch;
        }
    }

    /// Whether a member of an epoch that still matters may have lost what it acknowledged. With the next epoch that is active it
    /// matters no more.
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        !self.doubted.is_empty()
    }

    /// Whether a replica may have lost what it acknowledged.
    #[must_use]
    pub fn doubts(&self, replica: ReplicaId) -> bool {
        self.doubted.contains_key(&replica)
    }

    /// Whether the answer of a sealed member says only that it takes part in an epoch no more, and not all that it acknowledged in it.
    fn is_doubtful(&self, seal: &SealAnswer, config: &EpochConfig) -> bool {
        let doubt = self.doubted.get(&seal.replica);
        config.durability().is_relaxed()
            && doubt.is_some_and(|doubt| config.epoch() <= doubt.epoch && seal.life >= doubt.life)
    }

    /// Returns the last epoch that began without enough seals, by an operator's word or because the dial allows it; 0 if there is none.
    #[must_use]
    pub fn forced(&self) -> Epoch {
        self.forced
    }

    /// Returns [`EpochRecord::earlier`] for the next epoch.
    fn primaries(&self) -> BTreeMap<ReplicaId, Life> {
        let mut primaries = BTreeMap::new();
        for record in &self.records {
            let first = primaries.entry(record.config.primary()).or_insert(record.life);
            *first = record.life.min(*first);
        }
        primaries
    }

    /// Judges the answers to seals for a new epoch.
    ///
    /// # Errors
    /// [`TakeoverError`].
    pub fn judge(&self, epoch: Epoch, seals: &[SealAnswer]) -> Result<Judgement, TakeoverError> {
        self.weigh(epoch, seals, Word::Seals)
    }

    /// Judges the answers to seals for a new epoch, of which those count as well whose replicas may have lost what they acknowledged:
    /// the dial allows to go on without that. The result shows what would be lost.
    ///
    /// # Errors
    /// [`TakeoverError`].
    pub fn judge_doubted(&self, epoch: Epoch, seals: &[SealAnswer]) -> Result<Judgement, TakeoverError> {
        self.weigh(epoch, seals, Word::Dial)
    }

    /// Judges the answers to seals for a new epoch that an operator wants, although too few members are left (rule 14). The
    /// result shows what would be lost.
    ///
    /// # Errors
    /// [`TakeoverError`], but never for too few seals.
    pub fn judge_forced(&self, epoch: Epoch, seals: &[SealAnswer]) -> Result<Judgement, TakeoverError> {
        self.weigh(epoch, seals, Word::Operator)
    }

    fn weigh(&self, epoch: Epoch, seals: &[SealAnswer], word: Word) -> Result<Judgement, TakeoverError> {
        let newest = self.newest().config.epoch();
        if epoch <= newest {
            return Err(TakeoverError::Overtaken { asked: epoch, expected: newest, newest });
        }
        if let Some(other) = seals.iter().find(|seal| seal.epoch != epoch) {
            let (replica, sealed) = (other.replica, other.epoch);
            return Err(TakeoverError::OtherSeal { replica, sealed, asked: epoch });
        }
        // A control plane that was restored from old data would begin with less than was committed (rule 23).
        let knows = |seal: &SealAnswer| seal.active.max(seal.table.last().epoch);
        if let Some(newer) = seals.iter().find(|seal| knows(seal) > newest) {
            let (replica, known) = (newer.replica, knows(newer));
            return Err(TakeoverError::OldRecords { replica, known, newest });
        }
        let known = |epoch: Epoch| self.records.iter().any(|record| record.config.epoch() == epoch);
        let live = seals.iter().filter(|seal| !self.void.contains(&seal.replica));
        let attested = live.clone().map(|seal| seal.active);
        let attested = attested.filter(|active| known(*active) && *active >= self.forced).max();
        let active = attested.unwrap_or_default().max(self.records[0].config.epoch());
        let open = self.records.iter().filter(|record| record.config.epoch() >= active);
        let logs: BTreeMap<ReplicaId, &SealAnswer> = live.map(|seal| (seal.replica, seal)).collect();
        // Each with whether it is sure to hold what it acknowledged: of equal logs, one that is wins.
        let mut candidates: BTreeMap<ReplicaId, (LogPoint, bool)> = BTreeMap::new();
        let mut is_short = false;
        // An epoch that may have committed something ends only by seals of its own members: those of the newest one alone
        // would not do (rule 9).
        for record in open.clone() {
            let config = &record.config;
            let sealed = config.members().iter().filter_map(|id| logs.get_key_value(id));
            let (mut count, mut sure) = (0, 0);
            for (id, seal) in sealed {
                let is_sure = !self.is_doubtful(seal, config);
                (count, sure) = (count + 1, sure + usize::from(is_sure));
                let candidate = candidates.entry(*id).or_insert((seal.table.surviving(&self.losses), true));
                candidate.1 &= is_sure;
            }
            // Members that were given up cannot be waited for. All others answered then, and have to answer again.
            let left = config.members().iter().filter(|id| !self.void.contains(id)).count();
            let needed = left.min(config.members().len() - config.commit_quorum() + 1);
            is_short |= sure < needed;
            let sealed = match word {
                Word::Seals => sure,
                // All of them are fenced, so that nothing more is committed.
                Word::Dial => count,
                Word::Operator => needed,
            };
            if sealed < needed {
                let epoch = config.epoch();
                return Err(TakeoverError::TooFewSeals { epoch, sealed, needed });
            }
        }
        // The last epoch decides, then the length: never the length alone (rule 10).
        let best = candidates.iter().max_by_key(|(id, log)| (**log, std::cmp::Reverse(**id)));
        let (&winner, &(base, _)) = best.ok_or(TakeoverError::NoSeal { asked: epoch })?;
        if word == Word::Operator && !is_short {
            return Err(TakeoverError::NotNeeded { asked: epoch });
        }
        let mut surviving = logs[&winner].table.clone();
        surviving.truncate(base.index);
        let mut losses = self.losses.clone();
        let may_lose = word != Word::Seals;
        for record in open.filter(|record| may_lose || record.config.is_asynchronous()) {
            let epoch = record.config.epoch();
            losses.record(epoch, surviving.last_of(epoch));
        }
        Ok(Judgement { winner, base, losses, active })
    }

    /// Applies the command that begins an epoch. The same evidence gives the same record everywhere. If there are enough seals only
    /// with those of members that may have lost what they acknowledged, which their dial allows, it records what is lost as
    /// [`Self::force`] does, and gives up the absent members.
    ///
    /// # Errors
    /// [`TakeoverError`].
    pub fn begin(&mut self, takeover: &Takeover) -> Result<&EpochRecord, TakeoverError> {
        let word = match self.judge(takeover.config.epoch(), &takeover.seals) {
            Err(TakeoverError::TooFewSeals { .. }) if self.is_doubted() => Word::Dial,
            _ => Word::Seals,
        };
        self.apply(takeover, word)
    }

    /// Applies an operator's command that begins an epoch although too few members are left (rule 14): the losses of every
    /// epoch are recorded whatever its W, the absent members are void for ever, and the shard's channels get a new generation,
    /// for its neighbours may hold what is lost.
    ///
    /// # Errors
    /// [`TakeoverError`], but never for too few seals.
    pub fn force(&mut self, takeover: &Takeover) -> Result<&EpochRecord, TakeoverError> {
        self.apply(takeover, Word::Operator)
    }

    fn apply(&mut self, takeover: &Takeover, word: Word) -> Result<&EpochRecord, TakeoverError> {
        let Takeover { expected, config, life, lease, seals } = takeover;
        let (newest, asked) = (self.newest().config.epoch(), config.epoch());
        if *expected != newest {
            return Err(TakeoverError::Overtaken { asked, expected: *expected, newest });
        }
        if *lease == Micros(0) && config.is_asynchronous() {
            return Err(TakeoverError::NoLease { asked });
        }
        let Judgement { base, losses, active, .. } = self.weigh(asked, seals, word)?;
        let mut void = self.void.clone();
        let mut generation = self.newest().generation;
        if word != Word::Seals {
            let open = self.records.iter().filter(|record| record.config.epoch() >= active);
            let is_sealed = |id: &&ReplicaId| seals.iter().any(|seal| seal.replica == **id);
            void.extend(open.flat_map(|record| record.config.members()).filter(|id| !is_sealed(id)));
            generation = generation.next();
        }
        if let Some(&replica) = config.members().iter().find(|id| void.contains(id)) {
            return Err(TakeoverError::Void { replica });
        }
        self.handle_active(active);
        (self.losses, self.void) = (losses.clone(), void);
        if word != Word::Seals {
            self.forced = asked;
        }
        let (config, life, lease, earlier) = (config.clone(), *life, *lease, self.primaries());
        self.records.push(EpochRecord { config, life, lease, generation, base, losses, earlier });
        Ok(self.newest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durability::Durability;
    use crate::ids::Index;
    use crate::replication::table::EpochTable;

    const A: ReplicaId = ReplicaId(1);
    const B: ReplicaId = ReplicaId(2);
    const C: ReplicaId = ReplicaId(3);
    const D: ReplicaId = ReplicaId(4);
    const E: ReplicaId = ReplicaId(5);
    const NONE: Micros = Micros(0);

    fn config(epoch: u64, members: &[ReplicaId], acks: usize) -> EpochConfig {
        EpochConfig::parse(Epoch(epoch), members.to_vec(), acks, members[0]).unwrap()
    }

    /// An epoch whose members do not sync before they acknowledge.
    fn relaxed(epoch: u64, members: &[ReplicaId], acks: usize) -> EpochConfig {
        config(epoch, members, acks).with_durability(Durability::Interval)
    }

    /// The answer of a replica whose log holds these epochs, from index 1 on.
    fn seal(replica: ReplicaId, epoch: u64, log: &[u64]) -> SealAnswer {
        let mut table = EpochTable::default();
        let points = (1..).zip(log).map(|(at, epoch)| LogPoint { epoch: Epoch(*epoch), index: Index(at) });
        points.for_each(|point| table.push(point));
        SealAnswer { replica, life: Life(1), epoch: Epoch(epoch), table, active: Epoch(0), is_folding: false }
    }

    fn takeover(expected: u64, config: EpochConfig, seals: &[SealAnswer]) -> Takeover {
        Takeover { expected: Epoch(expected), config, life: Life(1), lease: NONE, seals: seals.to_vec() }
    }

    #[test]
    fn an_epoch_that_answers_early_needs_a_lease() {
        let mut history = History::new(config(1, &[A, B, C], 2), Life(1), NONE);
        let seals = [seal(A, 2, &[1]), seal(B, 2, &[1])];
        let early = takeover(1, config(2, &[A, B, C], 1), &seals);
        assert_eq!(history.begin(&early), Err(TakeoverError::NoLease { asked: Epoch(2) }));
        let leased = Takeover { lease: Micros(9), ..early };
        assert_eq!(history.begin(&leased).map(|record| record.lease), Ok(Micros(9)));
    }

    #[test]
    fn an_operator_goes_on_with_too_few_members_and_all_that_may_be_lost_is_recorded() {
        let mut history = History::new(config(1, &[A, B, C], 2), Life(1), NONE);
        let forced = takeover(1, config(2, &[C, D, E], 2), &[seal(C, 2, &[1, 1])]);
        let too_few = TakeoverError::TooFewSeals { epoch: Epoch(1), sealed: 1, needed: 2 };
        assert_eq!(history.clone().begin(&forced), Err(too_few));
        assert_eq!(
            history.force(&takeover(1, config(2, &[D], 1), &[])),
            Err(TakeoverError::NoSeal { asked: Epoch(2) })
        );
        let record = history.force(&forced).unwrap().clone();
        assert_eq!(record.base, LogPoint { epoch: Epoch(1), index: Index(2) });
        assert!(record.losses.has(LogPoint { epoch: Epoch(1), index: Index(3) }), "W was a majority");
        assert_eq!(record.generation, Generation(1));
        assert_eq!(history.void().iter().copied().collect::<Vec<_>>(), [A, B]);
    }

    #[test]
    fn what_an_operator_gave_up_stays_void_and_what_answered_is_needed_again() {
        let mut history = History::new(config(1, &[A, B, C], 2), Life(1), NONE);
        history.force(&takeover(1, config(2, &[C, D, E], 2), &[seal(C, 2, &[1, 1])])).unwrap();
        // Epoch 2 never became active: D and E may be empty, and the only log that has the entries is C's.
        let others = [seal(D, 3, &[]), seal(E, 3, &[]), seal(A, 3, &[1, 1, 1]), seal(B, 3, &[1, 1, 1])];
        let without = takeover(2, config(3, &[D, E], 2), &others);
        let too_few = TakeoverError::TooFewSeals { epoch: Epoch(1), sealed: 0, needed: 1 };
        assert_eq!(history.begin(&without), Err(too_few));
        let seals = [seal(D, 3, &[]), seal(C, 3, &[1, 1]), seal(A, 3, &[1, 1, 1])];
        let void = takeover(2, config(3, &[A, C], 2), &seals);
        assert_eq!(history.begin(&void), Err(TakeoverError::Void { replica: A }));
        let record = history.begin(&takeover(2, config(3, &[C, D], 2), &seals)).unwrap();
        assert_eq!((record.base.index, record.generation), (Index(2), Generation(1)));
    }

    #[test]
    fn an_epoch_that_an_operator_went_on_without_does_not_undo_that_by_late_news() {
        const F: ReplicaId = ReplicaId(6);
        let mut history = History::new(config(1, &[A, B, C], 2), Life(1), NONE);
        let seals = [seal(A, 2, &[1; 10]), seal(B, 2, &[1; 10])];
        history.begin(&takeover(1, config(2, &[D, E], 2), &seals)).unwrap();
        // Epoch 2 becomes active, and is gone before that is recorded.
        history.force(&takeover(2, config(3, &[C, F], 2), &[seal(C, 3, &[1; 10])])).unwrap();
        assert_eq!(history.void().iter().copied().collect::<Vec<_>>(), [A, B, D, E]);
        history.handle_active(Epoch(2));
        // F is empty as long as epoch 3 is not active: without C's log, nothing may begin.
        let too_few = Err(TakeoverError::TooFewSeals { epoch: Epoch(1), sealed: 0, needed: 1 });
        let attests = |replica, log: &[u64]| SealAnswer { active: Epoch(2), ..seal(replica, 4, log) };
        assert_eq!(history.judge(Epoch(4), &[seal(F, 4, &[])]), too_few);
        assert_eq!(history.judge(Epoch(4), &[seal(F, 4, &[]), attests(D, &[1; 10])]), too_few);
        let with_c = history.judge(Epoch(4), &[seal(F, 4, &[]), attests(C, &[1; 10])]).unwrap();
        assert_eq!((with_c.winner, with_c.base.index, with_c.active), (C, Index(10), Epoch(1)));
        history.handle_active(Epoch(3));
        assert_eq!(history.records().len(), 1, "the operator's epoch is active");
    }

    #[test]
    fn records_that_are_older_than_a_log_begin_nothing() {
        let mut history = History::new(config(1, &[A, B, C], 2), Life(1), NONE);
        let attests = SealAnswer { active: Epoch(5), ..seal(B, 7, &[1]) };
        let old = |replica, known| {
            let newest = Epoch(1);
            TakeoverError::OldRecords { replica, known: Epoch(known), newest }
        };
        for (seals, error) in
            [([seal(A, 7, &[1]), attests], old(B, 5)), ([seal(A, 7, &[1, 3]), seal(B, 7, &[1])], old(A, 3))]
        {
            assert_eq!(history.begin(&takeover(1, config(7, &[A, B], 2), &seals)), Err(error));
        }
    }

    #[test]
    fn a_lone_replica_that_may_have_lost_something_goes_on_and_that_is_announced() {
        let mut history = History::new(relaxed(1, &[A], 1), Life(1), NONE);
        history.handle_doubt(A, Life(1));
        let record =
            history.begin(&takeover(1, relaxed(2, &[A], 1), &[seal(A, 2, &[1, 1])])).unwrap().clone();
        assert!(record.losses.has(LogPoint { epoch: Epoch(1), index: Index(3) }));
        assert_eq!(record.generation, Generation(1));
        history.handle_active(Epoch(2));
        let record = history.begin(&takeover(2, relaxed(3, &[A], 1), &[seal(A, 3, &[1, 1, 2])])).unwrap();
        assert_eq!((record.generation, record.losses.iter().count()), (Generation(1), 1), "once");
        assert!(!history.is_alone(B));
    }

    #[test]
    fn an_epoch_names_the_primaries_since_the_last_active_one_with_their_first_lives() {
        let mut history = History::new(config(1, &[A, B, C], 2), Life(1), NONE);
        assert!(history.newest().earlier.is_empty(), "none was before it");
        let mut next = |epoch: u64, members: &[ReplicaId], life| {
            let seals = [seal(A, epoch, &[1]), seal(B, epoch, &[1])];
            let begun = takeover(epoch - 1, config(epoch, members, 2), &seals);
            let record = history.begin(&Takeover { life: Life(life), ..begun }).unwrap().clone();
            if epoch == 4 {
                history.handle_active(Epoch(4));
            }
            record.earlier.into_iter().map(|(replica, life)| (replica, life.0)).collect::<Vec<_>>()
        };
        assert_eq!(next(2, &[B, A, C], 1), [(A, 1)]);
        assert_eq!(next(3, &[A, B, C], 4), [(A, 1), (B, 1)]);
        assert_eq!(next(4, &[B, A, C], 2), [(A, 1), (B, 1)], "the first life of A has ended");
        assert_eq!(next(5, &[A, B, C], 4), [(B, 2)]);
        let adopted = History::adopt(A, Life(3), Epoch(2), LogPoint::default());
        assert_eq!(adopted.newest().earlier, EpochRecord::unknown_past(A));
    }

    #[test]
    fn a_power_cut_leaves_no_doubt_where_all_is_synced() {
        let mut history = History::new(config(1, &[A, B, C], 2), Life(1), NONE);
        [A, B, C].into_iter().for_each(|id| history.handle_doubt(id, Life(1)));
        assert!(!history.is_doubted());
        let seals = [seal(A, 2, &[1, 1]), seal(B, 2, &[1])];
        let record = history.begin(&takeover(1, relaxed(2, &[A, B, C], 2), &seals)).unwrap();
        assert_eq!((record.base.index, record.losses.iter().count()), (Index(2), 0));
        // What epoch 1 has acknowledged is synced still, and what its successor has is not.
        history.handle_doubt(B, Life(1));
        let seals = [seal(B, 3, &[1]), seal(C, 3, &[1])];
        let too_few = TakeoverError::TooFewSeals { epoch: Epoch(2), sealed: 1, needed: 2 };
        assert_eq!(history.judge(Epoch(3), &seals), Err(too_few));
        history.handle_active(Epoch(2));
        assert!(history.is_doubted());
    }

    #[test]
    fn seals_of_replicas_in_doubt_end_an_epoch_and_what_may_be_lost_is_recorded() {
        let mut history = History::new(relaxed(1, &[A, B, C], 2), Life(1), NONE);
        history.handle_doubt(A, Life(2));
        let of = |life, seal| SealAnswer { life: Life(life), ..seal };
        let seals = [of(2, seal(A, 2, &[1])), seal(C, 2, &[1, 1])];
        let too_few = TakeoverError::TooFewSeals { epoch: Epoch(1), sealed: 1, needed: 2 };
        assert_eq!(history.judge(Epoch(2), &seals), Err(too_few));
        assert_eq!(history.judge_doubted(Epoch(2), &seals).map(|judged| judged.base.index), Ok(Index(2)));
        // One that was sealed before the power was cut had synced all before it answered.
        let earlier = [of(1, seal(A, 2, &[1])), seal(C, 2, &[1, 1])];
        assert_eq!(history.judge(Epoch(2), &earlier).map(|judged| judged.losses.iter().count()), Ok(0));
        // Enough others are sealed: nothing is lost.
        let enough = [of(2, seal(A, 2, &[1])), seal(B, 2, &[1, 1]), seal(C, 2, &[1, 1])];
        assert_eq!(history.judge(Epoch(2), &enough).map(|judged| judged.losses.iter().count()), Ok(0));
        // They are too few in each case.
        let alone = takeover(1, relaxed(2, &[A], 1), &seals[..1]);
        assert_eq!(history.clone().begin(&alone), Err(too_few));
        let record = history.begin(&takeover(1, relaxed(2, &[A, C], 2), &seals)).unwrap().clone();
        assert!(record.losses.has(LogPoint { epoch: Epoch(1), index: Index(3) }));
        assert_eq!((history.forced(), record.generation), (Epoch(2), Generation(1)));
        assert_eq!(history.void().iter().copied().collect::<Vec<_>>(), [B], "it may hold what is lost");
        assert!(history.is_doubted(), "until the new epoch is active");
        history.handle_active(Epoch(2));
        assert!(!history.is_doubted());
    }

    #[test]
    fn an_operator_does_not_go_on_without_the_others_when_enough_answered() {
        let mut history = History::new(config(1, &[A, B, C], 2), Life(1), NONE);
        let forced = takeover(1, config(2, &[A, B], 2), &[seal(A, 2, &[1]), seal(B, 2, &[1])]);
        let not_needed = TakeoverError::NotNeeded { asked: Epoch(2) };
        assert_eq!(history.judge_forced(Epoch(2), &forced.seals), Err(not_needed));
        assert_eq!(history.force(&forced), Err(not_needed));
        assert!(history.void().is_empty());
        assert!(history.begin(&forced).is_ok());
    }
}
