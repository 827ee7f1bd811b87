//! The committed entries of the whole cluster, folded by the model itself: each replica's entries, states and answers are compared with
//! them.

use super::env::{Made, is_refused, number_in};
use super::judge::Judge;
use crate::violation::Violation;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::blob::Blob;
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{Epoch, Index, Life, NodeId, ReplicaId, Seq, ShardId};
use stead_core::record::{Pending, RecordKey};
use stead_core::replication::epoch::EpochRecord;
use stead_core::replication::table::LogPoint;
use stead_core::shard_replica::ShardReplica;
use stead_core::state::State;
use stead_node::PeerMessage;

/// All shards.
pub(super) struct Model {
    shards: Vec<Track>,
    /// By process.
    histories: BTreeMap<String, History>,
    /// By process, the deletions that were sent, and have no entry yet.
    deletions: BTreeMap<String, u32>,
    /// By shard, the entries of its dead letters, with the numbers that they refuse.
    letters: BTreeMap<ShardId, Vec<(Index, u32)>>,
    /// The numbers of requests that were applied.
    applied: BTreeSet<u32>,
    /// The records of all epochs.
    records: BTreeMap<(ShardId, Epoch), EpochRecord>,
    pub(super) judge: Judge,
    /// By channel, the committed messages.
    sent: BTreeMap<(ShardId, ShardId), Vec<Message>>,
    /// By channel, the number of messages whose handling is committed.
    received: BTreeMap<(ShardId, ShardId), usize>,
    pub(super) entries: u64,
}

/// The committed changes of a process.
#[derive(Default)]
struct History {
    /// The numbers that its list got, and `None` for each deletion.
    steps: Vec<Option<u32>>,
    /// By entry, the number of steps after it, and of those up to the last deletion.
    lengths: Vec<(Index, u32, u32)>,
}

impl History {
    /// Notes the step of an entry.
    fn push(&mut self, index: Index, step: Option<u32>) {
        self.steps.push(step);
        let steps = self.steps.len() as u32;
        let deleted = if step.is_none() { steps } else { self.lengths.last().map_or(0, |last| last.2) };
        self.lengths.push((index, steps, deleted));
    }

    /// Returns the number of steps after an entry, and of those up to the last deletion.
    fn at(&self, index: Index) -> (u32, u32) {
        let upto = self.lengths.partition_point(|(at, ..)| *at <= index);
        upto.checked_sub(1).map_or((0, 0), |last| (self.lengths[last].1, self.lengths[last].2))
    }
}

/// A message as its sender's entry has it.
#[derive(PartialEq, Eq)]
struct Message {
    process: String,
    payload: Blob,
    at: (Epoch, Index),
}

/// A committed entry.
struct Committed {
    epoch: Epoch,
    /// The promise of the first replica that had it as committed: the epoch that committed it, or a later one.
    promised: Epoch,
    /// The hash of the state after it.
    hash: u128,
    bytes: Vec<u8>,
}

/// A shard.
struct Track {
    /// The entries that primaries have made and that are not committed yet, with those who made them.
    made: BTreeMap<(Index, Epoch), Vec<u8>>,
    /// By index minus one, the committed entries.
    committed: Vec<Committed>,
    state: State,
    /// By epoch, the process that has made entries in it.
    primaries: BTreeMap<Epoch, (NodeId, Life)>,
    /// The epochs that a replica knows to be active.
    active: BTreeSet<Epoch>,
}

impl Track {
    fn last(&self) -> Index {
        Index(self.committed.len() as u64)
    }
}

/// The state of a replica in one life of its node, as the world last saw it.
#[derive(Default)]
pub(super) struct Followed {
    pub(super) replica: ReplicaId,
    promised: Epoch,
    /// The last entry of its log.
    last: LogPoint,
    compared: Index,
    /// The last entry that its snapshot covers, and what it had committed before that was looked at.
    pub(super) base: LogPoint,
    pub(super) committed: Index,
    hashed: Index,
}

impl Followed {
    pub(super) fn new(replica: ReplicaId) -> Self {
        Self { replica, ..Self::default() }
    }
}

impl Model {
    pub(super) fn new(shards: impl Iterator<Item = ShardId>) -> Self {
        let track = |shard| Track {
            made: BTreeMap::new(),
            committed: Vec::new(),
            state: State::new(shard),
            primaries: BTreeMap::new(),
            active: BTreeSet::new(),
        };
        Self {
            shards: shards.map(track).collect(),
            histories: BTreeMap::new(),
            deletions: BTreeMap::new(),
            letters: BTreeMap::new(),
            applied: BTreeSet::new(),
            records: BTreeMap::new(),
            judge: Judge::default(),
            sent: BTreeMap::new(),
            received: BTreeMap::new(),
            entries: 0,
        }
    }

    /// A process has made an entry.
    pub(super) fn note_made(&mut self, by: (NodeId, Life), made: Made) -> Result<(), Violation> {
        let Made { shard, epoch, index, bytes } = made;
        let track = &mut self.shards[shard.0 as usize];
        let first = *track.primaries.entry(epoch).or_insert(by);
        if first != by {
            let what = format!("shard {shard}: {by:?} makes entries in epoch {epoch}, which {first:?} led");
            return Err(Violation::new(1, what));
        }
        if index <= track.last() {
            let committed = &track.committed[index.0 as usize - 1];
            // A deposed primary does not know yet what a later epoch has committed without it, be it an entry of an earlier one.
            if committed.promised <= epoch {
                let what = format!(
                    "shard {shard}: entry {index} of epoch {} is committed, and epoch {epoch} makes another",
                    committed.epoch
                );
                return Err(Violation::new(2, what));
            }
            return Ok(());
        }
        if track.made.insert((index, epoch), bytes).is_some() {
            let what = format!("shard {shard}: entry {index} is made twice in epoch {epoch}");
            return Err(Violation::new(1, what));
        }
        Ok(())
    }

    /// Notes the record of an epoch.
    pub(super) fn note_record(&mut self, shard: ShardId, record: &EpochRecord) {
        self.records.entry((shard, record.config.epoch())).or_insert_with(|| record.clone());
    }

    /// Whether what an epoch answers may be lost, for it is not committed, or not synced.
    pub(super) fn is_early(&self, shard: ShardId, epoch: Epoch) -> bool {
        let record = self.records.get(&(shard, epoch));
        record.is_some_and(|record| record.config.is_asynchronous()) || self.is_relaxed(shard, epoch)
    }

    /// Whether what is committed in an epoch may be lost by power cuts.
    pub(super) fn is_relaxed(&self, shard: ShardId, epoch: Epoch) -> bool {
        let record = self.records.get(&(shard, epoch));
        record.is_some_and(|record| record.config.durability().is_relaxed())
    }

    /// Takes back what was committed behind an entry: power cuts took it, and the record of the epoch that goes on without it says so.
    /// Returns whether there was something.
    pub(super) fn take_back(&mut self, shard: ShardId, base: Index) -> Result<bool, Violation> {
        let mut is_some = false;
        while self.shards[shard.0 as usize].last() > base {
            is_some = true;
            let track = &mut self.shards[shard.0 as usize];
            let lost = track.committed.pop().expect("it is behind the base");
            let entry = Entry::decode(&lost.bytes).expect("it was decoded before");
            let at = LogPoint { epoch: lost.epoch, index: entry.index };
            if !self.is_relaxed(shard, lost.epoch) {
                let what = format!("entry {at:?} of shard {shard} was synced, and is lost");
                return Err(Violation::new(2, what));
            }
            self.unfold(shard, &entry)?;
        }
        if is_some {
            let track = &mut self.shards[shard.0 as usize];
            track.state = State::new(shard);
            for committed in &track.committed {
                let entry = Entry::decode(&committed.bytes).expect("it was decoded before");
                track.state.apply(entry).expect("it was applied before");
            }
        }
        Ok(is_some)
    }

    /// Undoes the last entry's part of the lists. Channels have no part in it: what another shard depends on is never lost.
    fn unfold(&mut self, shard: ShardId, entry: &Entry) -> Result<(), Violation> {
        let process = entry.process.to_string();
        let key = RecordKey::process(&process);
        let written =
            entry.writes.iter().find(|write| write.key == key).and_then(|write| write.value.as_ref());
        let number =
            written.and_then(|list| list.len().checked_sub(4).and_then(|last| number_in(&list[last..])));
        let what = format!("entry {} of shard {shard} is lost, and another shard knows it", entry.index);
        let is_call = match entry.cause {
            Cause::Message { from, .. } if from == shard => {
                *self.received.entry((from, shard)).or_default() -= 1;
                false
            }
            Cause::Message { .. } => return Err(Violation::new(12, what)),
            _ => true,
        };
        if let Some(number) = number {
            if let Some(history) = self.histories.get_mut(&process) {
                history.steps.pop();
                history.lengths.pop();
            }
            // A message has the number of the request that sent it, whose own entry may be left.
            if is_call {
                self.applied.remove(&number);
            }
        }
        for send in &entry.sends {
            if send.to != shard {
                return Err(Violation::new(12, what));
            }
            self.sent.get_mut(&(shard, shard)).map(Vec::pop);
        }
        Ok(())
    }

    /// Returns the last index before an entry that survived, if the entry was lost before an epoch.
    pub(super) fn kept_before(&self, shard: ShardId, point: LogPoint, epoch: Epoch) -> Option<Index> {
        self.records
            .get(&(shard, epoch))?
            .losses
            .iter()
            .find(|kept| kept.epoch == point.epoch && kept.index < point.index)
            .map(|kept| kept.index)
    }

    /// Whether the loss of an entry is announced, and final: the epoch that announces it is active.
    pub(super) fn has_lost(&self, shard: ShardId, point: LogPoint) -> bool {
        let active = self.shards[shard.0 as usize].active.iter();
        active.filter_map(|epoch| self.records.get(&(shard, *epoch))).any(|record| record.losses.has(point))
    }

    /// Returns the epoch of an entry that is committed; that of entry 0 is 0.
    pub(super) fn committed_epoch(&self, shard: ShardId, index: Index) -> Option<Epoch> {
        let Some(before) = index.0.checked_sub(1) else { return Some(Epoch(0)) };
        self.shards[shard.0 as usize].committed.get(before as usize).map(|committed| committed.epoch)
    }

    /// Returns the length of a process's list after an entry of its shard.
    pub(super) fn count_at(&self, process: &str, index: Index) -> u32 {
        let (steps, deleted) = self.histories.get(process).map_or((0, 0), |history| history.at(index));
        steps - deleted
    }

    /// Returns the number of steps of a process up to an entry: all numbers that its list ever got, and all deletions.
    pub(super) fn steps_at(&self, process: &str, index: Index) -> u32 {
        self.histories.get(process).map_or(0, |history| history.at(index).0)
    }

    /// Returns the list of a process after an entry.
    pub(super) fn list_at(&self, process: &str, index: Index) -> Vec<u32> {
        let Some(history) = self.histories.get(process) else { return Vec::new() };
        let (steps, deleted) = history.at(index);
        history.steps[deleted as usize..steps as usize].iter().copied().flatten().collect()
    }

    /// Returns the number of the step by which a list got a number, and its length after that.
    pub(super) fn place_of(&self, process: &str, number: u32) -> Option<(u32, u32)> {
        let history = self.histories.get(process)?;
        let at = history.steps.iter().rposition(|step| *step == Some(number))?;
        let deleted =
            history.steps[..at].iter().rposition(Option::is_none).map_or(0, |deletion| deletion + 1);
        Some((at as u32 + 1, (at + 1 - deleted) as u32))
    }

    /// Whether an entry deleted the list of a process.
    pub(super) fn is_deletion(&self, process: &str, index: Index) -> bool {
        let lengths = self.histories.get(process).map_or(&[][..], |history| &history.lengths);
        lengths.iter().any(|(at, steps, deleted)| *at == index && steps == deleted)
    }

    /// Notes that a deletion is sent.
    pub(super) fn note_deletion(&mut self, process: &str) {
        *self.deletions.entry(process.to_owned()).or_default() += 1;
    }

    /// Returns the dead letters of a shard after an entry, with the numbers that they refuse.
    pub(super) fn letters_at(&self, shard: ShardId, index: Index) -> &[(Index, u32)] {
        let all = self.letters.get(&shard).map_or(&[][..], |letters| letters);
        &all[..all.partition_point(|(at, _)| *at <= index)]
    }

    /// Compares a replica with what is committed, and takes over what it has committed first. Returns whether its log was cut.
    pub(super) fn follow(
        &mut self,
        replica: &ShardReplica,
        followed: &mut Followed,
    ) -> Result<bool, Violation> {
        let shard = replica.shard_id();
        let (rules, table) = (replica.replica(), replica.replica().table());
        if rules.promised() < followed.promised {
            let what = format!(
                "shard {shard}: replica {} promised {} and then {}",
                rules.id(),
                followed.promised,
                rules.promised()
            );
            return Err(Violation::new(1, what));
        }
        followed.promised = rules.promised();
        let before = std::mem::replace(&mut followed.last, table.last());
        let is_cut = before.index > table.base().index && !table.has(before);
        self.shards[shard.0 as usize].active.insert(rules.active());
        let commit = rules.commit();
        while self.shards[shard.0 as usize].last() < commit {
            let next = self.shards[shard.0 as usize].last().next();
            self.commit(shard, next, table.epoch_at(next), rules.promised())?;
        }
        let track = &self.shards[shard.0 as usize];
        while followed.compared < commit {
            let next = followed.compared.next();
            let epoch = track.committed[next.0 as usize - 1].epoch;
            if table.epoch_at(next).is_some_and(|found| found != epoch) {
                let found = table.epoch_at(next).unwrap_or_default();
                let what = format!(
                    "shard {shard}: entry {next} is of epoch {epoch}, and replica {} commits that of {found}",
                    rules.id()
                );
                return Err(Violation::new(2, what));
            }
            followed.compared = next;
        }
        let Some(state) = replica.committed_state() else { return Ok(is_cut) };
        let index = state.position().index;
        if index > followed.hashed {
            followed.hashed = index;
            let hash = match index {
                Index(0) => return Ok(is_cut),
                index => track.committed[index.0 as usize - 1].hash,
            };
            if state.hash() != hash {
                let what = format!(
                    "shard {shard}: the state of replica {} at entry {index} is another one",
                    rules.id()
                );
                return Err(Violation::new(14, what));
            }
        }
        Ok(is_cut)
    }

    /// An entry is committed.
    fn commit(
        &mut self,
        shard: ShardId,
        index: Index,
        epoch: Option<Epoch>,
        promised: Epoch,
    ) -> Result<(), Violation> {
        let track = &mut self.shards[shard.0 as usize];
        // Without its epoch it is older than what is still in the replica's table. Of a log with one replica the newest one survives.
        let newest =
            track.made.range((index, Epoch(0))..=(index, epoch.unwrap_or(Epoch(u64::MAX)))).next_back();
        let found = newest.filter(|((_, found), _)| epoch.is_none_or(|epoch| epoch == *found));
        let Some(((_, epoch), bytes)) = found.map(|(at, bytes)| (*at, bytes.clone())) else {
            let what = format!(
                "shard {shard}: entry {index} of epoch {epoch:?} is committed, which no primary has made"
            );
            return Err(Violation::new(2, what));
        };
        let wrong = |what: String| Violation::new(2, format!("shard {shard}, entry {index}: {what}"));
        let entry = Entry::decode(&bytes).map_err(|error| wrong(error.to_string()))?;
        track.state.apply(entry.clone()).map_err(|error| wrong(error.to_string()))?;
        track.committed.push(Committed { epoch, promised, hash: track.state.hash(), bytes });
        track.made = track.made.split_off(&(index.next(), Epoch(0)));
        self.entries += 1;
        self.fold(shard, &entry)?;
        self.check_survivor(shard, LogPoint { epoch, index })
    }

    /// Folds what an entry does to the lists, and to channels.
    fn fold(&mut self, shard: ShardId, entry: &Entry) -> Result<(), Violation> {
        let process = entry.process.to_string();
        let at = (entry.epoch, entry.index);
        let key = RecordKey::process(&process);
        let written =
            entry.writes.iter().find(|write| write.key == key).and_then(|write| write.value.as_ref());
        let number =
            written.and_then(|list| list.len().checked_sub(4).and_then(|last| number_in(&list[last..])));
        let message = match entry.cause {
            Cause::Message { from, seq } => Some((from, seq, number)),
            Cause::DeadLetter { cause: Pending::Message { from, seq } } => Some((from, seq, None)),
            _ => None,
        };
        if let Some((from, seq, number)) = message {
            let channel = (from, shard);
            let received = self.received.entry(channel).or_default();
            if seq != Seq(*received as u64 + 1) {
                let what = format!("shard {shard} handles message {seq} of shard {from} after {received}");
                return Err(Violation::new(8, what));
            }
            let Some(message) = self.sent.get(&channel).and_then(|sent| sent.get(*received)) else {
                let what = format!(
                    "shard {shard} handles message {seq} of shard {from}, whose entry is not committed"
                );
                return Err(Violation::new(5, what));
            };
            let sent = number_in(&message.payload);
            if message.process != process || sent.filter(|sent| !is_refused(*sent)) != number {
                let what =
                    format!("shard {shard} handles message {seq} of shard {from} as {number:?} of {process}");
                return Err(Violation::new(8, what));
            }
            *received += 1;
            if let (None, Some(refused)) = (number, sent) {
                self.letters.entry(shard).or_default().push((entry.index, refused));
            }
        }
        if entry.cause == Cause::Delete {
            let sent = self.deletions.entry(process.clone()).or_default();
            let Some(left) = sent.checked_sub(1) else {
                let what = format!("entry {} of shard {shard} deletes {process} once more", entry.index);
                return Err(Violation::new(7, what));
            };
            *sent = left;
            self.histories.entry(process.clone()).or_default().push(entry.index, None);
        }
        if let (Some(list), Some(number)) = (written, number) {
            self.histories.entry(process.clone()).or_default().push(entry.index, Some(number));
            let known = self.list_at(&process, entry.index);
            let numbers = list.chunks(4).filter_map(number_in);
            if !numbers.eq(known.iter().copied()) {
                let what = format!(
                    "shard {shard}: entry {} makes another list of {process} than {known:?}",
                    entry.index
                );
                return Err(Violation::new(2, what));
            }
            let is_call = !matches!(entry.cause, Cause::Message { .. });
            if is_call && !self.applied.insert(number) {
                let what =
                    format!("request {number} is applied again, by entry {} of shard {shard}", entry.index);
                return Err(Violation::new(7, what));
            }
        }
        for send in &entry.sends {
            let message = Message { process: send.process.to_string(), payload: send.payload.clone(), at };
            self.sent.entry((shard, send.to)).or_default().push(message);
        }
        Ok(())
    }

    /// Checks what leaves a node for another one.
    pub(super) fn check_leaving(&self, message: &PeerMessage) -> Result<(), Violation> {
        let PeerMessage::Deliver { from, to, messages, .. } = message else { return Ok(()) };
        let sent = self.sent.get(&(*from, *to)).map_or(&[][..], |sent| sent);
        for message in messages.iter() {
            let found = sent.get(message.seq.0 as usize - 1);
            let is_it = found.is_some_and(|found| {
                found.at == (message.epoch, message.index)
                    && found.process == *message.process
                    && found.payload == message.payload
            });
            if !is_it {
                let what = format!(
                    "message {} of shard {from} to shard {to} leaves before its entry is committed",
                    message.seq
                );
                return Err(Violation::new(5, what));
            }
        }
        Ok(())
    }

    /// Whether each message that was sent is handled.
    pub(super) fn is_at_rest(&self) -> bool {
        let received = |channel| self.received.get(channel).copied().unwrap_or_default();
        self.sent.iter().all(|(channel, sent)| received(channel) == sent.len())
    }

    /// Returns a hash of all states.
    pub(super) fn hash(&self) -> u128 {
        self.shards.iter().fold(0, |hash, track| hash.rotate_left(1) ^ track.state.hash())
    }
}
