//! Recovery's fold: a log, read in its own order, over the states of a checkpoint's parts.
//!
//! A log may hold entries of a shard that do not count any more (protocol, rules 10, 15, 18 and 19). An entry of a
//! higher epoch at an existing index voids the entries at that index and above it; a cut voids the entries above its
//! index. So the entries that *survive* are found first, and only those are folded. As long as no folded entry is
//! voided, one reading does both; otherwise [`Replay::end_reading`] names the shards that a second reading has to fold
//! again from their parts. An install begins the log of a shard anew behind another snapshot, from which the shard then
//! begins as well.
//!
//! A shard of several replicas is *kept*: of its entries none is known to be committed, so none is folded (rule 16); what survives is
//! collected for its [`ShardReplica`](crate::shard_replica::ShardReplica). Only what that replica wrote counts (rule 1): each replica
//! promises before it writes anything else, so a promise of a later one is where its log begins, at nothing.
//!
//! Knows no log and no checkpoint: promises, entries, cuts and installs are passed in.

use crate::blob::Blob;
use crate::entry::{Cause, Entry, NoEntry};
use crate::ids::{CheckpointNumber, Epoch, Index, ReplicaId, ShardId};
use crate::replication::table::{EpochTable, LogPoint};
use crate::shard_map::ShardMap;
use crate::shard_replica::{LogEntry, Record, ReplicaLog};
use crate::state::{Misfit, Position, State};
use thiserror::Error;

/// Reasons for which a log cannot be replayed.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// A record belongs to a shard that the node does not have.
    #[error(
        "entry {index} belongs to shard {shard}, and its topology has {shards} shards; the topology was lost or exchanged"
    )]
    UnknownShard {
        /// The shard.
        shard: ShardId,
        /// The entry.
        index: Index,
        /// The number of shards.
        shards: u32,
    },
    /// Its bytes are no entry.
    #[error("cannot read entry {index} of shard {shard}: {source}")]
    NoEntry {
        /// The shard.
        shard: ShardId,
        /// The entry.
        index: Index,
        /// The reason.
        source: NoEntry,
    },
    /// Its place in the log is not the one that it names.
    #[error("entry {found} of shard {shard} stands in the log as entry {index}; the log is damaged")]
    Misplaced {
        /// The shard.
        shard: ShardId,
        /// As the log says.
        index: Index,
        /// As the entry says.
        found: Index,
    },
    /// It does not follow from the entries before it.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// A cut would void entries of its own epoch or of a higher one.
    #[error(
        "shard {shard}: a cut of epoch {epoch} after entry {index} would void entries of epoch {last}; the log is of two \
         histories"
    )]
    Cut {
        /// The shard.
        shard: ShardId,
        /// The cut's epoch.
        epoch: Epoch,
        /// The last index that it keeps.
        index: Index,
        /// The epoch of the last entry.
        last: Epoch,
    },
    /// A snapshot was installed in an epoch that was over, or below an installed one.
    #[error(
        "shard {shard}: a snapshot up to entry {index} was installed in epoch {epoch}, in a log of epoch {last} that holds more; the \
         log is of two histories"
    )]
    Install {
        /// The shard.
        shard: ShardId,
        /// The epoch of the install.
        epoch: Epoch,
        /// The last entry that the snapshot covers.
        index: Index,
        /// The epoch of the last entry or cut.
        last: Epoch,
    },
    /// The entry at the checkpoint's marker is another one.
    #[error(
        "entry {index} of shard {shard} is not the marker of checkpoint {number}: the log and the checkpoints \
         are not of one node, or one of them is an older copy; put back the files that belong here, or restore the checkpoint into an \
         empty directory"
    )]
    Unbound {
        /// The shard.
        shard: ShardId,
        /// The marker's index.
        index: Index,
        /// The checkpoint.
        number: CheckpointNumber,
    },
    /// The log lacks entries that were in it when the checkpoint was completed.
    #[error(
        "the log's last entry of shard {shard} is {last}, and the checkpoint holds entry {marker}; the log lost its end: \
         put it back, or restore the checkpoint into an empty directory"
    )]
    LogTooShort {
        /// The shard.
        shard: ShardId,
        /// The last entry in the log.
        last: Index,
        /// The checkpoint's marker.
        marker: Index,
    },
}

/// The entries of one shard's log that survive.
#[derive(Clone, Debug, Default)]
struct Chain {
    /// They follow a base that stands for whatever came before; `None` before the log's first entry.
    table: Option<EpochTable>,
    /// The epoch of the last cut or install.
    cut: Epoch,
    /// The last entry that an installed snapshot covers: it is committed, as are all before it.
    floor: Index,
}

impl Chain {
    /// Returns the last index; `None` before the log's first entry.
    fn end(&self) -> Option<Index> {
        self.table.as_ref().map(|table| table.last().index)
    }

    /// Returns the epoch above which an entry or a cut has to be that voids entries.
    fn last_epoch(&self) -> Epoch {
        let table = self.table.as_ref().filter(|table| table.last() != table.base());
        table.map_or(self.cut, |table| table.last().epoch)
    }

    /// Adds an entry; true if it voids entries before it.
    ///
    /// # Errors
    /// [`Misfit::Index`] for a gap and for an entry of the same epoch again; [`Misfit::Epoch`] for one of a lower epoch.
    fn add(&mut self, shard: ShardId, epoch: Epoch, index: Index) -> Result<bool, Misfit> {
        let before = index.0.checked_sub(1).map(Index).filter(|before| *before >= self.floor);
        let Some(before) = before else {
            return Err(Misfit::Index { shard, last: self.end().unwrap_or_default(), found: index });
        };
        // The log begins wherever trimming left off.
        let table = self.table.get_or_insert_with(|| behind(before));
        let end = table.last();
        if end.index == before {
            if epoch < end.epoch {
                return Err(Misfit::Epoch { shard, index, last: end.epoch, found: epoch });
            }
            table.push(LogPoint { epoch, index });
            return Ok(false);
        }
        let last = self.last_epoch();
        if index > end.index || epoch == last {
            return Err(Misfit::Index { shard, last: end.index, found: index });
        }
        if epoch < last {
            return Err(Misfit::Epoch { shard, index, last, found: epoch });
        }
        self.keep(before).push(LogPoint { epoch, index });
        Ok(true)
    }

    /// Cuts after an index; true if that voids entries.
    ///
    /// # Errors
    /// [`ReplayError::Cut`] if an entry that it would void is of its epoch or of a higher one.
    fn cut(&mut self, shard: ShardId, epoch: Epoch, index: Index) -> Result<bool, ReplayError> {
        if self.end().is_none_or(|end| end <= index) {
            return Ok(false);
        }
        let last = self.last_epoch();
        if epoch <= last || index < self.floor {
            return Err(ReplayError::Cut { shard, epoch, index, last });
        }
        self.keep(index);
        self.cut = epoch;
        Ok(true)
    }

    /// Begins anew behind an installed snapshot.
    ///
    /// # Errors
    /// [`ReplayError::Install`] if an entry or a cut before it is of a higher epoch, or the snapshot is, or covers less than an earlier one.
    fn install(&mut self, shard: ShardId, epoch: Epoch, base: LogPoint) -> Result<(), ReplayError> {
        let last = self.last_epoch().max(base.epoch);
        if epoch < last || base.index < self.floor {
            return Err(ReplayError::Install { shard, epoch, index: base.index, last });
        }
        *self = Self { table: Some(EpochTable::new(base)), cut: epoch, floor: base.index };
        Ok(())
    }

    /// Drops the entries behind an index, which may be below all of them.
    fn keep(&mut self, index: Index) -> &mut EpochTable {
        let table = self.table.get_or_insert_with(|| behind(index));
        if index < table.base().index {
            *table = behind(index);
        } else {
            table.truncate(index);
        }
        table
    }

    fn has(&self, epoch: Epoch, index: Index) -> bool {
        self.table.as_ref().is_some_and(|table| table.has(LogPoint { epoch, index }))
    }
}

/// The table of a log that begins behind an index. The entry there is unknown: no entry is of epoch 0.
fn behind(index: Index) -> EpochTable {
    EpochTable::new(LogPoint { epoch: Epoch(0), index })
}

/// A shard on its way through the log.
struct Track {
    /// The marker of its part; all zero without one.
    marker: Position,
    chain: Chain,
    /// The first entry that could not be folded, and the reason. This is an error only if the entry survives.
    fault: Option<(Index, ReplayError)>,
    /// The highest epoch of all entries and cuts, also of those that are void.
    epoch: Epoch,
    /// Whether folded entries are void, so that the state is unusable.
    is_void: bool,
    /// Whether it is folded again, in the second reading.
    is_restarted: bool,
    /// The last entry that an installed snapshot, or the replica's own, covers, which is newer than the part.
    installed: Option<LogPoint>,
    /// The last entry that the newest durable snapshot covers which that replica took itself.
    own_snapshot: Option<LogPoint>,
    /// The entries that survive, if they are not folded.
    kept: Option<ReplicaLog>,
    /// The replica whose records stand at this place of the log.
    writer: ReplicaId,
    /// The replica of a kept shard whose records count; `None` if there is none.
    own: Option<ReplicaId>,
    /// Maximum bytes of the entries that are kept in memory.
    bytes_max: u64,
    applied: u64,
    skipped: u64,
}

/// Folds the log of each shard over its state.
pub struct Replay {
    states: Vec<State>,
    tracks: Vec<Track>,
    /// The positions of the shards.
    places: ShardMap<usize>,
    /// The number of shards of the topology.
    shards: u32,
}

/// The result of a replay.
pub struct Replayed {
    /// The states, in the order of their shards.
    pub states: Vec<State>,
    /// The highest epoch of each shard that its log or its state knows.
    pub epochs: Vec<Epoch>,
    /// Entries that were folded.
    pub entries: u64,
    /// Entries that the states held already.
    pub entries_skipped: u64,
    /// The logs of the shards that were kept, in the order of the states; `None` for a shard that was folded.
    pub logs: Vec<Option<ReplicaLog>>,
}

impl Replay {
    /// Begins a reading over the states of the shards that are placed on this node, which are those of a checkpoint's parts,
    /// or new. Entries of the other shards of the topology, which has `shards`, are passed over.
    ///
    /// # Panics
    /// If the states are not in the order of their shards.
    #[must_use]
    pub fn new(states: Vec<State>, shards: u32) -> Self {
        assert!(states.is_sorted_by(|a, b| a.shard() < b.shard()), "shards in order");
        let track = |state: &State| Track {
            marker: state.position(),
            chain: Chain::default(),
            fault: None,
            epoch: state.position().epoch,
            is_void: false,
            is_restarted: false,
            installed: None,
            own_snapshot: None,
            kept: None,
            writer: ReplicaId::FIRST,
            own: None,
            bytes_max: 0,
            applied: 0,
            skipped: 0,
        };
        let tracks = states.iter().map(track).collect();
        let places = states.iter().zip(0..).map(|(state, at)| (state.shard(), at)).collect();
        Self { states, tracks, places, shards }
    }

    /// Keeps a shard: its entries are not folded over its state, but collected, the last ones of up to `bytes_max` bytes together.
    /// Only those of `replica` count, and its state if that is the first replica, which alone can have been in a checkpoint; without
    /// one nothing does. `snapshot` is the last entry that the newest durable snapshot covers which that replica has taken itself: the
    /// shard begins from that, as from an [installed](Self::installed) one. Call it before the first reading.
    ///
    /// # Panics
    /// If the shard is not placed here.
    pub fn keep(
        &mut self,
        shard: ShardId,
        replica: Option<ReplicaId>,
        snapshot: Option<LogPoint>,
        bytes_max: u64,
    ) {
        let at = *self.places.get(shard).expect("a shard on this node");
        let (track, state) = (&mut self.tracks[at], &mut self.states[at]);
        (track.own, track.own_snapshot, track.bytes_max) = (replica, snapshot, bytes_max);
        let Position { epoch, index, .. } = track.marker;
        track.kept = Some(ReplicaLog::new(LogPoint { epoch, index }, bytes_max));
        if replica == Some(ReplicaId::FIRST) {
            track.begin_from_own();
        } else {
            track.begin_anew(state);
        }
    }

    /// Takes a promise in the first reading: what follows of the shard is written by this replica.
    pub fn handle_promise(&mut self, shard: ShardId, replica: ReplicaId) {
        let Some(&at) = self.places.get(shard) else { return };
        let (track, state) = (&mut self.tracks[at], &mut self.states[at]);
        // Numbers of replicas only grow.
        if track.kept.is_some() && replica > track.writer {
            track.writer = replica;
            track.begin_anew(state);
        }
    }

    /// Whether a shard is kept.
    #[must_use]
    pub fn is_kept(&self, shard: ShardId) -> bool {
        self.places.get(shard).is_some_and(|at| self.tracks[*at].kept.is_some())
    }

    /// Returns the last entry that the installed snapshot of a shard covers, or that which its replica took itself, from which it has to
    /// begin in place of the checkpoint's part; `None` if it begins from that.
    #[must_use]
    pub fn installed(&self, shard: ShardId) -> Option<LogPoint> {
        self.places.get(shard).and_then(|at| self.tracks[*at].installed)
    }

    /// Returns the position of a shard; `None` if it is not placed here.
    fn at(&self, shard: ShardId, index: Index) -> Result<Option<usize>, ReplayError> {
        match self.places.get(shard) {
            None if shard.0 >= self.shards => {
                Err(ReplayError::UnknownShard { shard, index, shards: self.shards })
            }
            at => Ok(at.copied()),
        }
    }

    /// Takes the log's next entry in the first reading.
    ///
    /// # Errors
    /// [`ReplayError`] if no log can hold it here. What is wrong with its contents is an error only if it survives:
    /// [`Replay::end_reading`] returns that.
    pub fn handle_entry(
        &mut self,
        shard: ShardId,
        epoch: Epoch,
        index: Index,
        bytes: &[u8],
    ) -> Result<(), ReplayError> {
        let Some(at) = self.at(shard, index)? else { return Ok(()) };
        let (track, state) = (&mut self.tracks[at], &mut self.states[at]);
        if track.is_of_other() {
            return Ok(());
        }
        match track.chain.add(shard, epoch, index) {
            Ok(false) => {}
            Ok(true) => track.void(state, index),
            // The earlier fault is the likelier cause.
            Err(misfit) => return Err(track.fault.take().map_or(misfit.into(), |(_, error)| error)),
        }
        track.epoch = track.epoch.max(epoch);
        let taken = if track.kept.is_some() {
            track.collect(shard, LogPoint { epoch, index }, bytes)
        } else if track.is_void || track.fault.is_some() {
            return Ok(());
        } else {
            track.fold(state, epoch, index, bytes)
        };
        if let Err(error) = taken {
            track.fault.get_or_insert((index, error));
        }
        Ok(())
    }

    /// Takes a cut in the first reading: of the shard's entries before it none above `index` counts.
    ///
    /// # Errors
    /// As [`Self::handle_entry`].
    pub fn handle_cut(&mut self, shard: ShardId, epoch: Epoch, index: Index) -> Result<(), ReplayError> {
        let Some(at) = self.at(shard, index)? else { return Ok(()) };
        let track = &mut self.tracks[at];
        if track.is_of_other() {
            return Ok(());
        }
        track.epoch = track.epoch.max(epoch);
        if track.chain.cut(shard, epoch, index)? {
            track.void(&self.states[at], Index(index.0 + 1));
        }
        if let Some(log) = &mut track.kept {
            log.handle_record(Record::Cut { epoch, keep: index });
        }
        Ok(())
    }

    /// Takes an install in the first reading: the shard's entries before it do not count, and the next one follows `base`, the last
    /// one that a snapshot covers.
    ///
    /// # Errors
    /// As [`Self::handle_entry`].
    pub fn handle_install(
        &mut self,
        shard: ShardId,
        epoch: Epoch,
        base: LogPoint,
    ) -> Result<(), ReplayError> {
        let Some(at) = self.at(shard, base.index)? else { return Ok(()) };
        let track = &mut self.tracks[at];
        if track.is_of_other() {
            return Ok(());
        }
        track.chain.install(shard, epoch, base)?;
        track.epoch = track.epoch.max(epoch);
        track.void(&self.states[at], Index(0));
        if base.index > track.installed.map_or(track.marker.index, |begins| begins.index) {
            (track.installed, track.is_void) = (Some(base), true);
        }
        if let Some(log) = &mut track.kept {
            log.handle_record(Record::Install { epoch, base });
        }
        Ok(())
    }

    /// Ends the first reading. Returns the shards of which entries were folded that do not survive, or that begin from an installed
    /// snapshot: for each, call [`Self::restart`] and then, unless it is kept, [`Self::handle_again`] with all of the log's entries
    /// once more. Usually there are none.
    ///
    /// # Errors
    /// [`ReplayError`] if an entry that survives cannot be folded, or entries that the checkpoint holds are gone.
    pub fn end_reading(&mut self) -> Result<Vec<ShardId>, ReplayError> {
        let mut void = Vec::new();
        for (track, shard) in self.tracks.iter_mut().zip(self.states.iter().map(State::shard)) {
            if let Some((_, error)) = track.fault.take() {
                return Err(error);
            }
            // Whole segments are trimmed from the front: if any entry is left, so are all after it.
            let marker = track.installed.map_or(track.marker.index, |base| base.index);
            if let Some(last) = track.chain.end().filter(|last| *last < marker) {
                return Err(ReplayError::LogTooShort { shard, last, marker });
            }
            if track.is_void {
                void.push(shard);
            }
        }
        Ok(void)
    }

    /// Begins to fold a shard again, from the state that it had at first, or from that of the [installed](Self::installed) snapshot.
    ///
    /// # Panics
    /// If the state is another one.
    pub fn restart(&mut self, state: State) {
        let at = *self.places.get(state.shard()).expect("a shard of the first reading");
        let track = &mut self.tracks[at];
        let position = state.position();
        match track.installed {
            Some(base) => {
                assert_eq!(
                    (position.epoch, position.index),
                    (base.epoch, base.index),
                    "the installed snapshot"
                );
                track.marker = position;
            }
            None => assert_eq!(position, track.marker, "the state that the first reading began with"),
        }
        (track.is_void, track.is_restarted) = (false, track.kept.is_none());
        (track.applied, track.skipped) = (0, 0);
        self.states[at] = state;
    }

    /// Takes an entry in the second reading. Those of shards that were not restarted, and those that do not survive, are
    /// passed over.
    ///
    /// # Errors
    /// [`ReplayError`] if it cannot be folded.
    pub fn handle_again(
        &mut self,
        shard: ShardId,
        epoch: Epoch,
        index: Index,
        bytes: &[u8],
    ) -> Result<(), ReplayError> {
        let Some(at) = self.at(shard, index)? else { return Ok(()) };
        let (track, state) = (&mut self.tracks[at], &mut self.states[at]);
        if !track.is_restarted {
            return Ok(());
        }
        // Behind the base of an installed snapshot nothing of it is in the log.
        if track.installed.is_some() && index <= track.marker.index {
            return Ok(());
        }
        // An entry that was voided may have been appended once more: its first copy was folded.
        let next = state.position().index.0 + 1;
        if index.0 > next || index.0 < next && index > track.marker.index || !track.chain.has(epoch, index) {
            return Ok(());
        }
        track.fold(state, epoch, index, bytes)
    }

    /// Returns the states as far as the log was read, in the order of their shards.
    #[must_use]
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// Ends the replay.
    ///
    /// # Panics
    /// If a shard still has to be folded again, or was not folded to its last surviving entry.
    #[must_use]
    pub fn finish(self) -> Replayed {
        for (track, state) in self.tracks.iter().zip(&self.states) {
            let position = state.position().index;
            assert!(!track.is_void && track.fault.is_none(), "shard {} is folded", state.shard());
            let end = track.chain.end().unwrap_or(position).max(track.marker.index);
            let end = track.kept.as_ref().map_or(end, |log| log.snapshot().index);
            assert_eq!(position, end, "shard {} is folded to its end", state.shard());
        }
        let sum = |count: fn(&Track) -> u64| self.tracks.iter().map(count).sum();
        let (entries, entries_skipped) = (sum(|track| track.applied), sum(|track| track.skipped));
        let epochs = self.tracks.iter().map(|track| track.epoch).collect();
        let logs = self.tracks.into_iter().map(|track| track.kept).collect();
        Replayed { states: self.states, epochs, entries, entries_skipped, logs }
    }
}

impl Track {
    /// Whether what stands at this place of the log does not count, for another replica of the kept shard wrote it.
    fn is_of_other(&self) -> bool {
        self.kept.is_some() && self.own != Some(self.writer)
    }

    /// Begins the log of a kept shard at nothing.
    fn begin_anew(&mut self, state: &mut State) {
        *state = State::new(state.shard());
        (self.marker, self.chain, self.fault) = (state.position(), Chain::default(), None);
        (self.is_void, self.installed) = (false, None);
        self.kept = Some(ReplicaLog::new(LogPoint::default(), self.bytes_max));
        self.begin_from_own();
    }

    /// Begins the log of a kept shard behind the snapshot that its replica has taken, where the records of that replica begin. What the
    /// snapshot covers may still be in the log.
    fn begin_from_own(&mut self) {
        let is_newer = |base: &LogPoint| base.index > self.marker.index;
        if let Some(base) = self.own_snapshot.filter(is_newer)
            && self.own == Some(self.writer)
        {
            (self.installed, self.is_void) = (Some(base), true);
            self.epoch = self.epoch.max(base.epoch);
            self.kept = Some(ReplicaLog::new(base, self.bytes_max));
        }
    }

    /// Notes that the entries from an index on are void.
    fn void(&mut self, state: &State, from: Index) {
        let is_fault_void = self.fault.take_if(|(index, _)| *index >= from).is_some();
        if self.kept.is_some() {
            return;
        }
        let position = state.position().index;
        self.is_void |= is_fault_void || position > self.marker.index && position >= from;
    }

    /// Folds an entry over the state, unless the state already has it.
    fn fold(
        &mut self,
        state: &mut State,
        epoch: Epoch,
        index: Index,
        bytes: &[u8],
    ) -> Result<(), ReplayError> {
        if let Some(entry) = self.decode(state.shard(), epoch, index, bytes)? {
            state.apply(entry)?;
            self.applied += 1;
        }
        Ok(())
    }

    /// Adds an entry to the log of a shard that is kept.
    fn collect(&mut self, shard: ShardId, point: LogPoint, bytes: &[u8]) -> Result<(), ReplayError> {
        let LogPoint { epoch, index } = point;
        let log = self.kept.as_mut().expect("its caller looked");
        let snapshot = log.snapshot();
        if index > snapshot.index {
            // The chain may follow something else than the snapshot.
            match log.table().epoch_at(Index(index.0 - 1)) {
                Some(last) if last > epoch => {
                    return Err(Misfit::Epoch { shard, index, last, found: epoch }.into());
                }
                Some(_) => {}
                None => {
                    let last = log.table().last().index;
                    return Err(Misfit::Index { shard, last, found: index }.into());
                }
            }
        }
        log.handle_record(Record::Entry(LogEntry { point, bytes: Blob::from(bytes) }));
        // Entries that a snapshot covers are skipped.
        if self.installed.is_none() || index > snapshot.index {
            self.decode(shard, epoch, index, bytes)?;
        }
        Ok(())
    }

    /// Decodes and checks an entry; `None` if the part has it already.
    fn decode(
        &mut self,
        shard: ShardId,
        epoch: Epoch,
        index: Index,
        bytes: &[u8],
    ) -> Result<Option<Entry>, ReplayError> {
        let marker = self.marker;
        if index < marker.index {
            self.skipped += 1;
            return Ok(None);
        }
        let entry = Entry::decode(bytes).map_err(|source| ReplayError::NoEntry { shard, index, source })?;
        if index == marker.index {
            // Log and checkpoint have no name in common: the marker shows that the checkpoint was taken of this log.
            let colour = marker.colour;
            if (entry.epoch, entry.time, entry.cause) != (marker.epoch, marker.time, Cause::Marker { colour })
            {
                return Err(ReplayError::Unbound { shard, index, number: colour.number() });
            }
            self.skipped += 1;
            return Ok(None);
        }
        if entry.index != index || entry.epoch != epoch {
            return Err(ReplayError::Misplaced { shard, index, found: entry.index });
        }
        Ok(Some(entry))
    }
}
