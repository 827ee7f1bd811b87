//! The states that a restore must make of a checkpoint.
//!
//! Uses nothing of the code that restores. The states at the markers are the model's own, and the rules are implemented
//! again, after `docs/checkpoints.md`. Of what was restored, the model only accepts the new numbers of timers, tasks and dead
//! letters whose number is taken, which may be any that no shard has used.

use super::{Fold, Model, difference};
use crate::violation::Violation;
use std::collections::BTreeMap;
use stead_core::blob::Blob;
use stead_core::channel::Message;
use stead_core::ids::{CheckpointNumber, IDS_PER_ENTRY, Index, ServiceId, ShardId};
use stead_core::key::Key;
use stead_core::record::{DeadLetter, Kind, RecordKey, TaskRecord, TimerRecord, decode_value};
use stead_core::state::{Position, State};
use stead_core::topology::Topology;

/// The expected result of a restore.
pub(crate) struct Wanted {
    number: CheckpointNumber,
    shards: Vec<Target>,
    /// Number of sessions that end.
    pub(crate) sessions_ended: u64,
    /// Number of messages in flight.
    pub(crate) messages: u64,
}

/// A new shard.
struct Target {
    fold: Fold,
    /// Timers, tasks and dead letters whose number another one has: they get a new one.
    renumbered: Vec<(Kind, Blob)>,
}

impl Model {
    /// Returns the states at the markers of a checkpoint of the first `shards` shards, in their order; `None` if a marker is not
    /// committed. Shards that were added later may have a marker of its colour, too.
    pub(crate) fn cut(&self, number: CheckpointNumber, shards: usize) -> Option<&[State]> {
        self.cuts.get(&number)?.get(..shards)
    }

    /// Returns what a restore of a checkpoint of the first `shards` shards must make in the topology `new`; `None` if a marker is
    /// not committed.
    pub(crate) fn wanted(&self, number: CheckpointNumber, shards: usize, new: &Topology) -> Option<Wanted> {
        let (cut, old) = (self.cut(number, shards)?, &*self.topology);
        let begin = |shard: ShardId| {
            let service = new.service_of(shard).expect("a shard of this topology");
            let fold = Fold::at(shard, beginning(cut, (old, new), service, shard));
            Target { fold, renumbered: Vec::new() }
        };
        let shards = new.shards().map(begin).collect();
        let mut wanted = Wanted { number, shards, sessions_ended: 0, messages: 0 };
        let place = |from: ShardId, process: &str| {
            let service = old.service_of(from).expect("a shard of the run");
            new.shard_of(service, process)
        };
        for from in cut {
            for (key, value) in from.records().iter() {
                let key = RecordKey::from_bytes(key).expect("a state's records have keys");
                wanted.sessions_ended += u64::from(key.kind() == Kind::Session);
                let Some(process) = owner(&key, value) else { continue };
                wanted.target(place(from.shard(), &process)).take(key, value.clone());
            }
        }
        for from in cut {
            for (to, message) in in_flight(from, cut) {
                let channel = (place(from.shard(), &message.sender), place(to, &message.process));
                wanted.target(channel.0).fold.enqueue(channel.1, message);
                wanted.messages += 1;
            }
        }
        Some(wanted)
    }
}

/// Returns the process that a record moves with; `None` if it ends with the incarnation.
fn owner(key: &RecordKey, value: &[u8]) -> Option<Key> {
    let read = "the entry that wrote the record was checked";
    match key.kind() {
        Kind::Process | Kind::Cell | Kind::Idempotency => {
            let process = key.process_key().expect("these kinds belong to a process");
            Some(Key::new(process).expect("it was a key before"))
        }
        Kind::Timer => Some(decode_value::<TimerRecord>(value).expect(read).process),
        Kind::Task => Some(decode_value::<TaskRecord>(value).expect(read).process),
        Kind::DeadLetter => Some(decode_value::<DeadLetter>(value).expect(read).process),
        Kind::Session | Kind::Reply | Kind::Attempt => None,
    }
}

/// Returns the position at which a new shard begins: that of its own marker if the service keeps its number of shards,
/// otherwise one that is after all of them, from which nothing expires early.
fn beginning(
    cut: &[State],
    (old, new): (&Topology, &Topology),
    service: ServiceId,
    shard: ShardId,
) -> Position {
    let (before, after) = (old.service(service), new.service(service));
    let parts = cut.iter().filter(|state| old.service_of(state.shard()) == Some(service));
    let positions: Vec<Position> = parts.map(State::position).collect();
    if before.shards == after.shards {
        return positions[(shard.0 - after.first.0) as usize];
    }
    let one = |first: Position, next: &Position| Position {
        index: first.index.max(next.index),
        epoch: first.epoch.max(next.epoch),
        time: first.time.max(next.time),
        colour: first.colour.max(next.colour),
        served: Some(first.served().min(next.served())),
    };
    positions[1..].iter().fold(positions[0], one)
}

/// Returns the messages that were sent and not received, in the order in which the shard sent them.
fn in_flight<'a>(from: &'a State, cut: &[State]) -> Vec<(ShardId, &'a Message)> {
    let mut sent: Vec<(ShardId, &Message)> = Vec::new();
    for (to, outbox) in from.outboxes().iter() {
        let receiver = cut.iter().find(|state| state.shard() == to);
        let received = receiver.and_then(|to| to.received().get(from.shard())).copied().unwrap_or_default();
        sent.extend(outbox.messages.iter().filter(|m| m.seq > received).map(|message| (to, message)));
    }
    sent.sort_by_key(|(to, message)| (message.index, *to, message.seq));
    sent
}

impl Target {
    fn take(&mut self, key: RecordKey, value: Blob) {
        if self.fold.has(&key) {
            self.renumbered.push((key.kind(), value));
        } else {
            self.fold.put(key, value);
        }
    }

    /// Accepts the new numbers that a restore has given.
    fn accept_numbers(&mut self, found: &State) -> Result<(), String> {
        let (first, last) = (self.fold.position().index, found.position().index);
        if last.0 > first.0 + self.renumbered.len() as u64 {
            return Err(format!("begins at entry {last} instead of {first}"));
        }
        if self.renumbered.is_empty() {
            return Ok(());
        }
        let mut drawn = Index(0);
        for (key, value) in found.records().iter() {
            let key = RecordKey::from_bytes(key).expect("a state's records have keys");
            let place = match key.kind() {
                Kind::Timer | Kind::Task => key.number().map(|number| Index(number / IDS_PER_ENTRY)),
                Kind::DeadLetter => key.number().map(Index),
                _ => None,
            };
            let Some(place) = place.filter(|_| !self.fold.has(&key)) else { continue };
            let item = (key.kind(), value.clone());
            // All earlier numbers may have been in use, and all later ones will be.
            if let Some(at) = self.renumbered.iter().position(|other| *other == item)
                && place > first
                && place <= last
            {
                self.renumbered.swap_remove(at);
                self.fold.put(key, item.1);
                drawn = drawn.max(place);
            }
        }
        if let Some((kind, _)) = self.renumbered.first() {
            return Err(format!("lacks a record of kind {kind:?}, whose number another one had"));
        }
        if drawn != last {
            return Err(format!("begins at entry {last}, and its new numbers end at {drawn}"));
        }
        self.fold.begin_at(last);
        Ok(())
    }

    /// Compares it with what was restored, record by record.
    fn check(&mut self, found: &State) -> Result<(), (u8, String)> {
        self.accept_numbers(found).map_err(|what| (10, what))?;
        if self.fold.is_like(found) {
            return match self.fold.other_record(found) {
                None => Ok(()),
                Some(key) => Err((10, format!("has another record {key:?} than it had to"))),
            };
        }
        let wanted = self.fold.to_state();
        let count = |state: &State| -> BTreeMap<ShardId, usize> {
            state.outboxes().iter().map(|(to, outbox)| (to, outbox.messages.len())).collect()
        };
        let invariant = match wanted.header().outboxes == found.header().outboxes {
            true => 10,
            false if count(&wanted) == count(found) => 8,
            false => 9,
        };
        let differs = difference(&wanted, found).unwrap_or_else(|| "other sums".to_owned());
        Err((invariant, format!("has {differs}")))
    }
}

impl Wanted {
    fn target(&mut self, shard: ShardId) -> &mut Target {
        &mut self.shards[shard.0 as usize]
    }

    /// Returns the number of timers, tasks and dead letters that get a new number.
    pub(crate) fn renumbered(&self) -> u64 {
        self.shards.iter().map(|target| target.renumbered.len() as u64).sum()
    }

    /// Returns the number of records.
    pub(crate) fn records(&self) -> u64 {
        let kept: u64 = self.shards.iter().map(|target| target.fold.records().len() as u64).sum();
        kept + self.renumbered()
    }

    /// Compares the states that a restore made. Returns the same states as the model has them, from which it continues.
    pub(crate) fn check(mut self, found: &[State]) -> Result<Vec<Fold>, Violation> {
        let number = self.number;
        let bad = |invariant, what: String| {
            Err(Violation::new(invariant, format!("restored checkpoint {number}: {what}")))
        };
        if found.len() != self.shards.len() {
            return bad(10, format!("{} shards instead of {}", found.len(), self.shards.len()));
        }
        for (target, found) in self.shards.iter_mut().zip(found) {
            if let Err((invariant, what)) = target.check(found) {
                return bad(invariant, format!("shard {} {what}", found.shard()));
            }
        }
        Ok(self.shards.into_iter().map(|target| target.fold).collect())
    }
}
