//! Restores a checkpoint at the end of a run, onto the same or other numbers of shards; the new incarnation must
//! continue from it.

use crate::bug::Bug;
use crate::marks::Mark;
use crate::model::{check_channels, with_header};
use crate::node::{CHECKPOINTS, fresh};
use crate::profile::Profile;
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
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::bundle::BundleNames;
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{Manifest, decided_numbers, read_manifest};
use stead_store::checkpoint::restore::{Restore, restore};
use stead_store::checkpoint::store::DiskStore;
use stead_store::data_dir::{DataDir, Meta, ServiceMeta};
use stead_store::sim_disk::SimDisk;

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
        let manifest = manifests.swap_remove(self.rng.usize(..manifests.len()));
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
        let services = ServiceMeta::all_of(&topology);
        let meta = Meta { services, ..fresh(topology.incarnation) };
        let made = DataDir::open(Arc::new(target.clone()), || meta);
        drop(made.map_err(|e| Violation::new(0, format!("cannot create a new data directory: {e}")))?);
        let into = DiskStore::open(Arc::new(target.clone()), CHECKPOINTS);
        let into = into.map_err(|e| broken(&e.into()))?;
        let options = Restore { incarnation: Incarnation(2), shards, created: self.time() };
        let names = BundleNames::new(self.rng.u64(..));
        let restored = restore(&store, &manifest, &into, &names, &options, &mut |_| {});
        let restored = restored.map_err(|e| {
            Violation::new(10, format!("checkpoint {} is not restored: {e}", manifest.number))
        })?;
        let mut new = states_of(&target, &restored.manifest).map_err(|e| broken(&e))?;
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
