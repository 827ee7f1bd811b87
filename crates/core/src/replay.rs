//! Recovery's fold: a log, read in its own order, over the states of a checkpoint's parts.
//!
//! A log may hold entries of a shard that do not count any more (protocol, rules 10, 15, 18 and 19). An entry of a
//! higher epoch at an existing index voids the entries at that index and above it; a cut voids the entries above its
//! index. So the entries that *survive* are found first, and only those are folded. As long as no folded entry is
//! voided, one reading does both; otherwise [`Replay::end_reading`] names the shards that a second reading has to fold
//! again from their parts.
//!
//! Knows no log and no checkpoint: entries and cuts are passed in.

use crate::entry::{Cause, Entry, NoEntry};
use crate::ids::{CheckpointNumber, Epoch, Index, ShardId};
use crate::shard_map::ShardMap;
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

/// Entries of one epoch without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    epoch: Epoch,
    first: Index,
    last: Index,
}

/// The entries of one shard's log that survive.
#[derive(Clone, Debug, Default)]
struct Chain {
    /// Ascending in index and epoch, each beginning where the one before ends.
    runs: Vec<Run>,
    /// The last index; `None` before the log's first entry or cut.
    end: Option<Index>,
    /// The epoch of a cut that left no run.
    cut: Epoch,
}

impl Chain {
    /// Adds an entry; true if it voids entries before it.
    ///
    /// # Errors
    /// [`Misfit::Index`] for a gap and for an entry of the same epoch again; [`Misfit::Epoch`] for one of a lower epoch.
    fn add(&mut self, shard: ShardId, epoch: Epoch, index: Index) -> Result<bool, Misfit> {
        // The log begins wherever trimming left off.
        let Some(end) = self.end else {
            self.push(epoch, index);
            return Ok(false);
        };
        if end.0.checked_add(1) == Some(index.0) {
            let last = self.runs.last().map_or(Epoch(0), |run| run.epoch);
            if epoch < last {
                return Err(Misfit::Epoch { shard, index, last, found: epoch });
            }
            self.push(epoch, index);
            return Ok(false);
        }
        let last = self.runs.last().map_or(self.cut, |run| run.epoch);
        if index > end || epoch == last {
            return Err(Misfit::Index { shard, last: end, found: index });
        }
        if epoch < last {
            return Err(Misfit::Epoch { shard, index, last, found: epoch });
        }
        self.void(index);
        self.push(epoch, index);
        Ok(true)
    }

    /// Cuts after an index; true if that voids entries.
    ///
    /// # Errors
    /// [`ReplayError::Cut`] if an entry that it would void is of its epoch or of a higher one.
    fn cut(&mut self, shard: ShardId, epoch: Epoch, index: Index) -> Result<bool, ReplayError> {
        if self.end.is_none_or(|end| end <= index) {
            return Ok(false);
        }
        let last = self.runs.last().map_or(self.cut, |run| run.epoch);
        if epoch <= last {
            return Err(ReplayError::Cut { shard, epoch, index, last });
        }
        self.void(Index(index.0 + 1));
        self.cut = epoch;
        self.end = Some(index);
        Ok(true)
    }

    fn push(&mut self, epoch: Epoch, index: Index) {
        match self.runs.last_mut() {
            Some(run) if run.epoch == epoch => run.last = index,
            _ => self.runs.push(Run { epoch, first: index, last: index }),
        }
        self.end = Some(index);
    }

    /// Drops the entries from an index on.
    fn void(&mut self, from: Index) {
        while self.runs.pop_if(|run| run.first >= from).is_some() {}
        if let Some(run) = self.runs.last_mut() {
            // Its first index is below `from`, so that is at least 1.
            run.last = run.last.min(Index(from.0 - 1));
        }
    }

    fn has(&self, epoch: Epoch, index: Index) -> bool {
        let run = self.runs.binary_search_by_key(&epoch, |run| run.epoch);
        run.is_ok_and(|at| (self.runs[at].first..=self.runs[at].last).contains(&index))
    }
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
            applied: 0,
            skipped: 0,
        };
        let tracks = states.iter().map(track).collect();
        let places = states.iter().zip(0..).map(|(state, at)| (state.shard(), at)).collect();
        Self { states, tracks, places, shards }
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
        match track.chain.add(shard, epoch, index) {
            Ok(false) => {}
            Ok(true) => track.void(state, index),
            // The earlier fault is the likelier cause.
            Err(misfit) => return Err(track.fault.take().map_or(misfit.into(), |(_, error)| error)),
        }
        track.epoch = track.epoch.max(epoch);
        if !track.is_void
            && track.fault.is_none()
            && let Err(error) = track.fold(state, epoch, index, bytes)
        {
            track.fault = Some((index, error));
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
        track.epoch = track.epoch.max(epoch);
        if track.chain.cut(shard, epoch, index)? {
            track.void(&self.states[at], Index(index.0 + 1));
        }
        Ok(())
    }

    /// Ends the first reading. Returns the shards of which entries were folded that do not survive: for each, call
    /// [`Self::restart`] and then [`Self::handle_again`] with all of the log's entries once more. Usually there are none.
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
            let marker = track.marker.index;
            if let Some(last) = track.chain.end.filter(|last| *last < marker) {
                return Err(ReplayError::LogTooShort { shard, last, marker });
            }
            if track.is_void {
                void.push(shard);
            }
        }
        Ok(void)
    }

    /// Begins to fold a shard again, from the state that it had at first.
    ///
    /// # Panics
    /// If the state is another one.
    pub fn restart(&mut self, state: State) {
        let at = *self.places.get(state.shard()).expect("a shard of the first reading");
        let track = &mut self.tracks[at];
        assert_eq!(state.position(), track.marker, "the state that the first reading began with");
        (track.is_void, track.is_restarted) = (false, true);
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
            let end = track.chain.end.unwrap_or(position).max(track.marker.index);
            assert_eq!(position, end, "shard {} is folded to its end", state.shard());
        }
        let sum = |count: fn(&Track) -> u64| self.tracks.iter().map(count).sum();
        let (entries, entries_skipped) = (sum(|track| track.applied), sum(|track| track.skipped));
        let epochs = self.tracks.iter().map(|track| track.epoch).collect();
        Replayed { states: self.states, epochs, entries, entries_skipped }
    }
}

impl Track {
    /// Notes that the entries from an index on are void.
    fn void(&mut self, state: &State, from: Index) {
        let is_fault_void = self.fault.take_if(|(index, _)| *index >= from).is_some();
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
        let (shard, marker) = (state.shard(), self.marker);
        if index < marker.index {
            self.skipped += 1;
            return Ok(());
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
            return Ok(());
        }
        if entry.index != index || entry.epoch != epoch {
            return Err(ReplayError::Misplaced { shard, index, found: entry.index });
        }
        state.apply(entry)?;
        self.applied += 1;
        Ok(())
    }
}
