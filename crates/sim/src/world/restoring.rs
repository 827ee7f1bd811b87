//! Restores a checkpoint at the end of a run, onto the same or other numbers of shards; the new incarnation must
//! continue from it.

use super::node::{fresh, open};
use super::{Outcomes, Stop, World, bent};
use crate::bug::Bug;
use crate::marks::Mark;
use crate::model::{Fold, Wanted, check_channels, difference};
use crate::profile::{Profile, spread};
use crate::violation::Violation;
use fastrand::Rng;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use stead_core::ids::Incarnation;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_node::OpenError;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{Manifest, decided_numbers, newest, read_manifest};
use stead_store::checkpoint::restore::{Progress, Restored};
use stead_store::checkpoint::store::DiskStore;
use stead_store::data_dir::{CHECKPOINTS, DataDir, DataDirError, ServiceMeta};
use stead_store::restoring::{RestoreIntoError, RestoreOptions, restore_into};
use stead_store::sim_disk::{Faults, SimDisk};

/// Number of events of the restored cluster.
const EVENTS: u64 = 150;

pub(super) fn broken(error: &CheckpointError) -> Stop {
    Violation::new(10, format!("cannot restore a checkpoint: {error}")).into()
}

fn states_of(disk: &SimDisk, manifest: &Manifest) -> Result<Vec<State>, CheckpointError> {
    let store = DiskStore::attach(Arc::new(disk.clone()), CHECKPOINTS);
    load_parts(&store, manifest, 1)?.into_iter().map(|part| part.into_state(manifest)).collect()
}

/// Compares what a restore says that it did with what it had to do.
fn check_counts(restored: &Restored, wanted: &Wanted) -> Outcomes {
    let Restored { records, messages, sessions_ended, renumbered, .. } = restored;
    let found = [*records, *messages, *sessions_ended, *renumbered];
    let wanted = [wanted.records(), wanted.messages, wanted.sessions_ended, wanted.renumbered()];
    if found == wanted {
        return Ok(());
    }
    let what = format!(
        "a restore reports {found:?} records, messages, ended sessions and new numbers instead of {wanted:?}"
    );
    Err(Violation::new(10, what).into())
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

/// The planted bug: a restore reads the messages in flight in another order.
fn swapped(disk: &SimDisk, manifest: &Manifest) -> Result<(DiskStore, Manifest), CheckpointError> {
    let disk = disk.fork(0);
    let states = bent::swap_messages(&states_of(&disk, manifest)?);
    let manifest = bent::rewrite(&disk, manifest, &states);
    Ok((DiskStore::attach(Arc::new(disk), CHECKPOINTS), manifest))
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
        let model = &self.model;
        let timers = |manifest: &Manifest| {
            let cut = model.cut(manifest.number, manifest.parts.len()).unwrap_or_default();
            cut.iter().map(|state| state.timers().len()).sum::<usize>()
        };
        // For a bug that with the most to spoil.
        let manifest = match self.bug {
            Some(Bug::SwapRestored) => manifests.into_iter().max_by_key(|manifest| manifest.totals.messages),
            Some(Bug::StrayTimer) => manifests.into_iter().max_by_key(timers),
            _ => Some(manifests.swap_remove(chosen)),
        };
        let manifest = manifest.expect("not empty");
        let number = manifest.number;
        let (mut topology, mut shards) = (Topology::new(Incarnation(2)), BTreeMap::new());
        let reshard = self.rng.bool();
        // It may be from before a service was added.
        let stored = manifest.topology().map_err(|e| broken(&e))?;
        for service in stored.services() {
            let count = if reshard { self.rng.u32(1..=6) } else { service.shards };
            shards.insert(service.name.clone(), count);
            topology.ensure(&service.name, count).expect("the same names as before");
        }
        let parts = manifest.parts.len();
        let wanted = self.model.wanted(number, parts, &topology);
        let (Some(cut), Some(wanted)) = (self.model.cut(number, parts), wanted) else {
            let what = format!("checkpoint {number} exists, and one of its markers is not committed");
            return Err(Violation::new(10, what).into());
        };
        self.workload.borrow_mut().restored(cut);
        if wanted.renumbered() > 0 {
            self.marks.hit(Mark::Renumbered);
        }
        let target = SimDisk::new(self.rng.u64(..));
        let (store, manifest) = match self.bug {
            Some(Bug::SwapRestored) => swapped(&self.disk, &manifest).map_err(|e| broken(&e))?,
            _ => (store, manifest),
        };
        let restored = self.restore_manifest(&store, &manifest, &target, (&topology, shards), &wanted)?;
        let restored = self.bend_restored(&manifest, &target, restored).map_err(|e| broken(&e))?;
        self.check_foreign(&store, &manifest, &target, &topology)?;
        let new = states_of(&target, &restored).map_err(|e| broken(&e))?;
        check_channels(&new)?;
        let shards = wanted.check(&new)?;
        let new: Vec<State> = shards.iter().map(Fold::to_state).collect();
        self.workload.borrow_mut().check_cut(&topology, &new).map_err(|s| Violation::parse(&s))?;
        self.marks.hit(if reshard { Mark::Resharded } else { Mark::Restored });

        let seed = self.rng.u64(..);
        let mut profile = Profile::new(&mut Rng::with_seed(seed)).with(&self.overrides);
        profile.flip = 0;
        profile.flip_inside = 0;
        // All payloads must fit: a dead letter over the limit loses its payload, and its money with it.
        profile.segment_bytes = profile.segment_bytes.max(self.profile.segment_bytes);
        let least = self.profile.settings.entry_bytes_max;
        profile.change_settings(|settings| settings.entry_bytes_max = settings.entry_bytes_max.max(least));
        self.workload.borrow_mut().restored(&new);
        for service in self.topology.services().iter().skip(stored.services().len()) {
            topology.ensure(&service.name, service.shards).expect("the same names as before");
        }
        let mut world = World::with(seed, None, Rc::clone(&self.workload), profile, topology, target);
        world.tracing = self.tracing;
        world.recent = Rc::clone(&self.recent);
        world.recent.borrow_mut().note(format!("checkpoint {number} is restored"));
        world.model.adopt(number, shards);
        world.recovered_once = true;
        let ended = world.run_restored(EVENTS);
        let (hash, marks, events) = (world.hash(), world.marks.clone(), world.events);
        self.marks.add(&marks);
        self.events += events;
        self.restored_hash = hash;
        ended
    }

    /// Plants the bugs in what a restore has stored. Returns the manifest.
    fn bend_restored(
        &self,
        manifest: &Manifest,
        target: &SimDisk,
        restored: Manifest,
    ) -> Result<Manifest, CheckpointError> {
        let mut states = match self.bug {
            Some(Bug::AcceptOldIncarnation) => {
                bent::set_incarnation(target, manifest.incarnation);
                return Ok(restored);
            }
            Some(Bug::KeepSessions | Bug::StrayTimer) => states_of(target, &restored)?,
            _ => return Ok(restored),
        };
        if self.bug == Some(Bug::StrayTimer) {
            bent::stray_timer(&mut states);
        } else {
            let old = states_of(&self.disk, manifest)?;
            for (new, old) in states.iter_mut().zip(&old) {
                *new = bent::with_sessions(new, old);
            }
        }
        Ok(bent::rewrite(target, &restored, &states))
    }

    /// Restores a checkpoint into the data directory of a disk, which may break off before it succeeds. Returns the manifest of
    /// the new cluster.
    fn restore_manifest(
        &mut self,
        store: &DiskStore,
        manifest: &Manifest,
        target: &SimDisk,
        (topology, shards): (&Topology, BTreeMap<String, u32>),
        wanted: &Wanted,
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
                Ok(restored) => {
                    check_counts(&restored, wanted)?;
                    return Ok(restored.manifest);
                }
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
        match open(Arc::new(disk), topology, &self.profile) {
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
                let found = &recovery.recovered.states;
                if found.len() != stored.len() {
                    return wrong(format!("found {} shards, and {} are stored", found.len(), stored.len()));
                }
                let differs = stored.iter().zip(found).find_map(|(stored, found)| difference(stored, found));
                differs.map_or(Ok(true), |differs| wrong(format!("found {differs}")))
            }
            Err(error) => wrong(format!("was refused: {error}")),
        }
    }
}
