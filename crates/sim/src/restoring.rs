//! Restores a checkpoint at the end of a run, onto the same or other numbers of shards; the new incarnation must
//! continue from it.

use crate::bug::Bug;
use crate::marks::Mark;
use crate::model::{check_channels, with_header};
use crate::node::{Code, fresh, open};
use crate::profile::{Profile, spread};
use crate::violation::Violation;
use crate::world::{Outcomes, Stop, World};
use fastrand::Rng;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use stead_core::ids::{CheckpointNumber, Incarnation};
use stead_core::record::{Kind, RecordKey};
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_node::OpenError;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{Manifest, decided_numbers, newest, read_manifest};
use stead_store::checkpoint::restore::Progress;
use stead_store::checkpoint::store::DiskStore;
use stead_store::data_dir::{CHECKPOINTS, DataDir, DataDirError, ServiceMeta};
use stead_store::restoring::{RestoreIntoError, RestoreOptions, restore_into};
use stead_store::sim_disk::{Faults, SimDisk};

/// Number of events of the restored cluster.
const EVENTS: u64 = 150;

fn broken(error: &CheckpointError) -> Stop {
    Violation::new(10, format!("cannot restore a checkpoint: {error}")).into()
}

fn states_of(disk: &SimDisk, manifest: &Manifest) -> Result<Vec<State>, CheckpointError> {
    let store = DiskStore::attach(Arc::new(disk.clone()), CHECKPOINTS);
    load_parts(&store, manifest, 1)?.into_iter().map(|part| part.into_state(manifest)).collect()
}

/// Plants the bug: the first two messages of each channel are swapped.
fn swap_messages(state: &State) -> State {
    let mut header = state.header();
    for outbox in header.outboxes.values_mut().filter(|outbox| outbox.messages.len() > 1) {
        outbox.messages.swap(0, 1);
        (outbox.messages[0].seq, outbox.messages[1].seq) = (outbox.messages[1].seq, outbox.messages[0].seq);
    }
    with_header(state, header)
}

/// The planted bug: a restore that broke off is not marked as such.
fn forget_restore(disk: &SimDisk, topology: &Topology) {
    let unfinished = DataDir::inspect(disk);
    if !matches!(unfinished, Err(DataDirError::RestoreUnfinished)) {
        return;
    }
    let made = DataDir::open_for_restore(Arc::new(disk.clone()), fresh(topology.incarnation));
    let mut data_dir = made.expect("the disk works").expect("it is marked");
    let finished = data_dir.update(|meta| {
        meta.restoring = false;
        meta.services = ServiceMeta::all_of(topology);
    });
    finished.expect("the disk works");
}

/// Breaks a restore off.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    /// The power is cut at an operation from its beginning on.
    Crash {
        at: u64,
    },
    /// The disk has room for so many bytes.
    Full {
        bytes: u64,
    },
    /// Once so many shards are read, operations fail; then the power may be cut, too, while the restore is undone.
    Fail {
        after: usize,
        faults: Faults,
        crash: Option<u64>,
    },
}

impl Trouble {
    fn draw(rng: &mut Rng) -> Self {
        match rng.u8(..4) {
            0 | 1 => Self::Crash { at: rng.u64(1..=60) },
            2 => Self::Full { bytes: spread(rng, &[1 << 10, 8 << 10]) },
            _ => {
                let faults = match rng.u8(..3) {
                    0 => Faults { writes: 1, ..Faults::default() },
                    1 => Faults { changes: rng.u32(1..=3), ..Faults::default() },
                    _ => Faults { syncs: 1, ..Faults::default() },
                };
                let crash = rng.bool().then(|| rng.u64(1..=20));
                Self::Fail { after: rng.usize(1..=4), faults, crash }
            }
        }
    }

    /// The restore begins.
    fn begin(self, target: &SimDisk) {
        match self {
            Self::Crash { at } => target.crash_after(at),
            Self::Full { bytes } => target.set_capacity(Some(target.used() + bytes)),
            Self::None | Self::Fail { .. } => {}
        }
    }

    /// So many shards are read.
    fn happen(self, target: &SimDisk, shards: usize) {
        if let Self::Fail { after, faults, crash } = self
            && after == shards
        {
            target.set_faults(faults);
            if let Some(at) = crash {
                target.crash_after(at);
            }
        }
    }
}

impl World {
    /// Restores one of the remaining checkpoints.
    pub(crate) fn restore(&mut self) -> Outcomes {
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        let numbers = decided_numbers(&store).map_err(|e| broken(&e))?;
        let mut manifests = Vec::new();
        for number in numbers {
            match read_manifest(&store, number) {
                Ok(manifest) => manifests.push(manifest),
                Err(CheckpointError::GivenUp { .. }) => {}
                Err(error) => return Err(broken(&error)),
            }
        }
        if manifests.is_empty() {
            return Ok(());
        }
        let chosen = self.rng.usize(..manifests.len());
        let manifest = if self.bug == Some(Bug::SwapRestored) {
            // That with the most to swap.
            manifests.into_iter().max_by_key(|manifest| manifest.totals.messages).expect("not empty")
        } else {
            manifests.swap_remove(chosen)
        };
        let old = states_of(&self.disk, &manifest).map_err(|e| broken(&e))?;
        self.workload.borrow_mut().check_cut(&self.topology, &old).map_err(|s| Violation::parse(&s))?;
        self.workload.borrow_mut().restored(&old);

        let (mut topology, mut shards) = (Topology::new(Incarnation(2)), BTreeMap::new());
        let reshard = self.rng.bool();
        for service in self.topology.services() {
            let count = if reshard { self.rng.u32(1..=6) } else { service.shards };
            shards.insert(service.name.clone(), count);
            topology.ensure(&service.name, count).expect("the same names as before");
        }
        let target = SimDisk::new(self.rng.u64(..));
        let restored = self.restore_manifest(&store, &manifest, &target, (&topology, shards))?;
        let mut new = states_of(&target, &restored).map_err(|e| broken(&e))?;
        if self.bug == Some(Bug::SwapRestored) {
            new = new.iter().map(swap_messages).collect();
        }
        self.check_restored(&old, &new, &topology, manifest.number)?;
        self.model.check_order(&old, &new, &topology)?;
        self.marks.hit(if reshard { Mark::Resharded } else { Mark::Restored });

        let seed = self.rng.u64(..);
        let mut profile = Profile::new(&mut Rng::with_seed(seed)).with(&self.overrides);
        profile.flip = 0;
        profile.flip_inside = 0;
        // All payloads must fit: a dead letter over the limit loses its payload, and its money with it.
        profile.segment_bytes = profile.segment_bytes.max(self.profile.segment_bytes);
        let settings = &mut profile.settings;
        settings.entry_bytes_max = settings.entry_bytes_max.max(self.profile.settings.entry_bytes_max);
        self.workload.borrow_mut().restored(&new);
        let mut world = World::with(seed, None, Rc::clone(&self.workload), profile, topology, target);
        world.tracing = self.tracing;
        world.recent = Rc::clone(&self.recent);
        world.recent.borrow_mut().note(format!("checkpoint {} is restored", manifest.number));
        world.model.adopt(&new);
        world.recovered_once = true;
        let ended = world.run_restored(EVENTS);
        let (hash, marks, events) = (world.hash(), world.marks.clone(), world.events);
        self.marks.add(&marks);
        self.events += events;
        self.restored_hash = hash;
        ended
    }

    /// Restores a checkpoint into the data directory of a disk, which may break off before it succeeds. Returns the manifest of
    /// the new cluster.
    fn restore_manifest(
        &mut self,
        store: &DiskStore,
        manifest: &Manifest,
        target: &SimDisk,
        (topology, shards): (&Topology, BTreeMap<String, u32>),
    ) -> Result<Manifest, Stop> {
        let number = manifest.number;
        let mut troubles = if self.bug == Some(Bug::ForgetRestore) { 2 } else { self.rng.u8(..3) };
        loop {
            let options =
                RestoreOptions { shards: shards.clone(), created: self.time(), writer: self.rng.u64(..) };
            let is_troubled = troubles > 0;
            troubles = troubles.saturating_sub(1);
            let kind = if is_troubled { Trouble::draw(&mut self.rng) } else { Trouble::None };
            kind.begin(target);
            let disk = Arc::new(target.clone());
            let begun = fresh(self.topology.incarnation);
            let progress = &mut |progress: Progress| kind.happen(target, progress.shards);
            let restored = restore_into(disk, store, manifest, begun, &options, progress);
            let is_crashed = target.is_crashed();
            target.set_capacity(None);
            target.set_faults(Faults::default());
            target.restart();
            match restored {
                Ok(restored) => return Ok(restored.manifest),
                Err(error) if !is_troubled => {
                    let what = format!("checkpoint {number} is not restored: {error}");
                    return Err(Violation::new(10, what).into());
                }
                Err(_) => {}
            }
            if !self.broke_off(target, topology, is_crashed)? {
                continue;
            }
            // Only its answer was lost: there is nothing to restore again.
            let disk = Arc::new(target.clone());
            let again =
                restore_into(disk, store, manifest, fresh(self.topology.incarnation), &options, &mut |_| {});
            if !matches!(again, Err(RestoreIntoError::NotEmpty)) {
                let what = format!("checkpoint {number} was restored over data: {again:?}");
                return Err(Violation::new(10, what).into());
            }
            let target = DiskStore::attach(Arc::new(target.clone()), CHECKPOINTS);
            let found = newest(&target).map_err(|e| broken(&e))?.manifest;
            return Ok(found.expect("a start found it"));
        }
    }

    /// Looks at what a start finds after a restore has broken off: nothing, a restore that did not end, or all of it. Returns
    /// whether it is all of it.
    fn broke_off(&mut self, target: &SimDisk, topology: &Topology, is_crashed: bool) -> Result<bool, Stop> {
        let disk = target.fork(self.rng.u64(..));
        if self.bug == Some(Bug::ForgetRestore) {
            forget_restore(&disk, topology);
        }
        let wrong = |what: String| {
            let how = if is_crashed { "crashed" } else { "failed" };
            Err(Violation::new(10, format!("a restore {how}, and a start after it {what}")).into())
        };
        match open(Arc::new(disk), Code::All, topology, &self.profile) {
            Err(OpenError::DataDir(DataDirError::RestoreUnfinished)) => {
                self.marks.hit(Mark::RestoreBroken);
                Ok(false)
            }
            Ok(recovery) if recovery.created => {
                self.marks.hit(Mark::RestoreUndone);
                Ok(false)
            }
            Ok(recovery) => {
                self.marks.hit(Mark::RestoreWhole);
                let store = DiskStore::attach(Arc::new(target.clone()), CHECKPOINTS);
                let found = newest(&store).map_err(|e| broken(&e))?.manifest;
                let Some(manifest) = found else {
                    return wrong("found data without a checkpoint".to_owned());
                };
                let stored = states_of(target, &manifest).map_err(|e| broken(&e))?;
                let is_same =
                    recovery.recovered.states.iter().map(State::hash).eq(stored.iter().map(State::hash));
                if is_same { Ok(true) } else { wrong("found other states than are stored".to_owned()) }
            }
            Err(error) => wrong(format!("was refused: {error}")),
        }
    }

    /// Checks invariants 9 to 11 between a checkpoint and the states restored from it.
    fn check_restored(
        &mut self,
        old: &[State],
        new: &[State],
        topology: &Topology,
        number: CheckpointNumber,
    ) -> Outcomes {
        let bad =
            |what: String| Err(Violation::new(10, format!("restored checkpoint {number}: {what}")).into());
        let moved = |key: &[u8]| {
            matches!(Kind::from_number(key[0]), Some(Kind::Process | Kind::Cell | Kind::Idempotency))
        };
        let mut count = 0;
        for state in old {
            let service = self.topology.service_of(state.shard()).expect("a shard of the run");
            for (key, value) in state.records().iter().filter(|(key, _)| moved(key)) {
                count += 1;
                let record = RecordKey::from_bytes(key).expect("checked when it was loaded");
                let process = record.process_key().expect("these kinds belong to a process");
                let shard = topology.shard_of(service, process);
                if new[shard.0 as usize].records().get(key) != Some(value) {
                    return bad(format!("record {record:?} is not what it was"));
                }
            }
        }
        let there: usize =
            new.iter().map(|state| state.records().iter().filter(|(key, _)| moved(key)).count()).sum();
        if there != count {
            return bad(format!("{there} records of processes instead of {count}"));
        }
        for kind in [Kind::Timer, Kind::Task, Kind::DeadLetter] {
            let of = |states: &[State]| -> usize {
                states
                    .iter()
                    .map(|s| s.records().iter().filter(|(key, _)| key[0] == kind as u8).count())
                    .sum()
            };
            if of(old) != of(new) {
                return bad(format!("{} records of kind {kind:?} instead of {}", of(new), of(old)));
            }
        }
        check_channels(new)?;
        self.workload.borrow_mut().check_cut(topology, new).map_err(|s| Violation::parse(&s))?;
        Ok(())
    }
}
