//! Planted bugs in what is stored: the code that ships reads it, and the checks have to find what follows.

use super::World;
use super::node::fresh;
use super::rot::UNSEEN;
use crate::disk_log::entries_of;
use crate::model::{Fold, with_header};
use std::sync::Arc;
use stead_core::channel::Message;
use stead_core::checkpointing::bundle::{Author, BundleNames};
use stead_core::checkpointing::lineage::Lineage;
use stead_core::entry::{Entry, Write};
use stead_core::ids::{Incarnation, NodeId, ShardId};
use stead_core::record::{Kind, RecordKey};
use stead_core::records::encode_record;
use stead_core::state::State;
use stead_store::checkpoint::manifest::Manifest;
use stead_store::checkpoint::store::DiskStore;
use stead_store::checkpoint::write::{CheckpointWriter, Plan};
use stead_store::data_dir::{CHECKPOINTS, DataDir};
use stead_store::sim_disk::SimDisk;

/// Number of places in a log that are tried.
const TRIES: usize = 64;

/// Writes a checkpoint again, of other states, in its place on the disk. Returns its manifest.
pub(super) fn rewrite(disk: &SimDisk, manifest: &Manifest, states: &[State]) -> Manifest {
    let scratch = SimDisk::new(0);
    let store = DiskStore::open(Arc::new(scratch.clone()), CHECKPOINTS).expect("the disk works");
    let cluster = manifest.cluster.expect("this version wrote it");
    let author = Author { cluster, node: NodeId::FIRST, writer: manifest.writer };
    let plan = Plan {
        number: manifest.number,
        created: manifest.created,
        topology: manifest.topology().expect("it was read"),
        parts: states.iter().map(|state| (state.shard(), state.position().epoch)).collect(),
        bundle: BundleNames::new(author).draw(manifest.number),
        author,
    };
    let written = "the disk works, and each part is written once";
    let mut writer = CheckpointWriter::create(&store, plan).expect(written);
    for state in states {
        let (shard, mut records) = (state.shard(), Vec::new());
        for (key, value) in state.records().iter() {
            encode_record(key, Some(value), &mut records);
        }
        writer.begin_part(state.header(), true).expect(written);
        writer.piece(shard, &records).expect(written);
        writer.end_part(shard).expect(written);
    }
    let sealed = writer.seal(&Lineage::new()).expect(written);
    let (manifest, _) = sealed.store(&store).expect(written);
    for path in scratch.files() {
        disk.put(&path, &scratch.bytes(&path).expect("just listed"));
    }
    manifest
}

/// Returns the states of a cut in which the messages in flight of each channel are in the opposite order.
pub(super) fn swap_messages(cut: &[State]) -> Vec<State> {
    let received = |from: ShardId, to: ShardId| {
        let to = cut.iter().find(|state| state.shard() == to);
        to.and_then(|state| state.received().get(from)).copied().unwrap_or_default()
    };
    let swapped = |state: &State| {
        let mut header = state.header();
        for (to, outbox) in &mut header.outboxes {
            let received = received(state.shard(), *to);
            let sent: Vec<Message> = outbox.messages.iter().filter(|m| m.seq > received).cloned().collect();
            let in_flight = outbox.messages.iter_mut().filter(|message| message.seq > received);
            for (place, message) in in_flight.zip(sent.into_iter().rev()) {
                let (seq, epoch, index) = (place.seq, place.epoch, place.index);
                *place = Message { seq, epoch, index, ..message };
            }
        }
        with_header(state, header)
    };
    cut.iter().map(swapped).collect()
}

/// Returns a state with the sessions of an older one.
pub(super) fn with_sessions(state: &State, old: &State) -> State {
    let mut fold = Fold::of(state);
    for (key, value) in old.records().iter().filter(|(key, _)| key[0] == Kind::Session as u8) {
        fold.put(RecordKey::from_bytes(key).expect("a state's records have keys"), value.clone());
    }
    fold.to_state()
}

/// Moves a timer into the shard after its own.
pub(super) fn stray_timer(states: &mut [State]) {
    let has_timers = |state: &State| !state.timers().is_empty();
    let (Some(from), false) = (states.iter().position(has_timers), states.len() == 1) else { return };
    let to = (from + 1) % states.len();
    let [mut from_fold, mut to_fold] = [from, to].map(|at| Fold::of(&states[at]));
    let (_, id) = *from_fold.timers().first().expect("it has some");
    let value = from_fold.take(&RecordKey::timer(id)).expect("it is there");
    to_fold.put(RecordKey::timer(id), value);
    (states[from], states[to]) = (from_fold.to_state(), to_fold.to_state());
}

/// Puts an incarnation into the metadata of a data directory.
pub(super) fn set_incarnation(disk: &SimDisk, incarnation: Incarnation) {
    let opened = DataDir::open(Arc::new(disk.clone()), || fresh(incarnation));
    let (mut data_dir, _) = opened.expect("the disk works, and the restore has ended");
    data_dir.update(|meta| meta.incarnation = incarnation).expect("the disk works");
}

/// Whether these bytes are an entry that differs from another one in what it writes into processes and cells, and in nothing else.
fn is_other(bytes: &[u8], entry: &Entry) -> bool {
    let Ok(other) = Entry::decode(bytes) else { return false };
    let mut again = Vec::new();
    other.encode_into(&mut again);
    let writes = other.writes.iter().zip(&entry.writes);
    let is_contents = |key: &RecordKey| matches!(key.kind(), Kind::Process | Kind::Cell);
    let is_allowed = |(new, old): (&Write, &Write)| {
        new == old || (new.key == old.key && new.value.is_some() && is_contents(&new.key))
    };
    let rest = Entry { writes: entry.writes.clone(), ..other.clone() };
    again == bytes
        && other != *entry
        && rest == *entry
        && other.writes.len() == entry.writes.len()
        && writes.into_iter().all(is_allowed)
}

impl World {
    /// The planted bug: changes the contents of an entry in the middle of the log, under the same checksum.
    pub(super) fn fold_other(&mut self) {
        let mut entries = Vec::new();
        for path in self.disk.files() {
            if path.starts_with("wal/") && path.ends_with(".log") {
                let bytes = self.disk.bytes(&path).expect("just listed");
                entries.extend(entries_of(&bytes).into_iter().map(|place| (path.clone(), place)));
            }
        }
        for _ in 0..TRIES.min(entries.len().saturating_sub(1)) {
            let (path, place) = entries[self.odd.usize(..entries.len() - 1)].clone();
            let mut bytes = self.disk.bytes(&path).expect("just listed");
            let Ok(entry) = Entry::decode(&bytes[place.clone()]) else { continue };
            let Some(last) = place.len().checked_sub(UNSEEN.len()) else { continue };
            let at = place.start + self.odd.usize(..=last);
            bytes[at..].iter_mut().zip(UNSEEN).for_each(|(byte, flips)| *byte ^= flips);
            if is_other(&bytes[place], &entry) {
                self.disk.put(&path, &bytes);
                return;
            }
        }
    }
}
