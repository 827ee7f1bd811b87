//! Starts by programs that lack the code of services or tasks, on copies of the disk: one whose options do not let the data wait is
//! refused, and changes nothing.

use super::node::{Lack, assemble, open, open_lacking};
use super::{Outcomes, World};
use crate::marks::Mark;
use crate::stage;
use crate::violation::Violation;
use fastrand::Rng;
use std::collections::BTreeSet;
use std::sync::Arc;
use stead_core::record::{RecordKey, TaskRecord};
use stead_core::state::State;
use stead_node::{OpenError, Recovery};
use stead_store::data_dir::DataDir;
use stead_store::sim_disk::SimDisk;

/// Returns the files that are data: unfinished ones of an earlier life are not.
fn data(disk: &SimDisk) -> Vec<(Option<Vec<u8>>, String)> {
    let files = disk.files().into_iter().filter(|path| !path.ends_with(".tmp"));
    files.map(|path| (disk.bytes(&path), path)).collect()
}

impl World {
    /// Returns a copy of the disk on which nothing fails.
    pub(super) fn sound_copy(&mut self) -> SimDisk {
        let disk = self.disk.fork(0);
        disk.restart();
        disk.set_capacity(None);
        disk.set_open_files(None);
        disk
    }

    /// Returns what a start finds on a copy of the disk on which nothing fails.
    pub(super) fn recover_copy(&mut self, disk: &SimDisk) -> Result<Recovery, Violation> {
        open(Arc::new(disk.clone()), &self.topology, &self.profile).map_err(|error| {
            let what =
                format!("the node does not come back on a copy of the disk, on which nothing fails: {error}");
            self.blame_crash(Violation::new(2, what))
        })
    }

    /// By shard, the names of the tasks that wait, each with its service.
    fn tasks_of(&self, states: &[State]) -> BTreeSet<(String, String)> {
        let mut tasks = BTreeSet::new();
        for state in states {
            let service = self.topology.service_of(state.shard()).expect("a shard of the run");
            let service = &self.topology.service(service).name;
            let found =
                state.tasks().iter().filter_map(|id| state.record::<TaskRecord>(&RecordKey::task(*id)));
            tasks.extend(found.map(|task| (task.name, service.clone())));
        }
        tasks
    }

    /// Starts a program that lacks some code: it is refused, and the data stay unchanged, unless all that it lacks may wait.
    pub(super) fn start_without_code(&mut self, seed: u64) -> Outcomes {
        let mut rng = Rng::with_seed(seed);
        let copy = self.sound_copy();
        let whole = self.recover_copy(&copy)?.recovered.states;
        let tasks = self.tasks_of(&whole);
        let disk = self.sound_copy();
        let meta = DataDir::inspect(&disk);
        let meta =
            meta.map_err(|error| Violation::new(2, format!("a sound start has no metadata: {error}")))?;
        let services: Vec<String> = meta.services.into_iter().map(|service| service.name).collect();
        let lack = draw(&mut rng, &services, &tasks);
        let waits = |name: &String| lack.allowed.contains(name);
        let services = services.iter().filter(|name| lack.code.contains(*name));
        let services = services.filter(|name| !waits(name)).map(|name| format!("service {name}"));
        let unfit = tasks
            .iter()
            .filter(|(name, service)| lack.code.contains(name) && !waits(name) && !waits(service));
        let unfit = unfit.map(|(name, service)| format!("task {name} of service {service}"));
        // The services are known first.
        let missing: Vec<String> = services.collect();
        let missing = if missing.is_empty() { unfit.collect() } else { missing };

        let before = data(&disk);
        let opened = open_lacking(Arc::new(disk.clone()), &lack, &self.topology, &self.profile);
        let wrong = |what: String| {
            let Lack { code, allowed } = &lack;
            Err(Violation::new(
                0,
                format!("a program without {code:?}, of which {allowed:?} may wait, {what}"),
            )
            .into())
        };
        match opened {
            Err(OpenError::NoCode { what })
                if what.split(", ").eq(missing.iter().map(String::as_str)) && !missing.is_empty() =>
            {
                self.marks.hit(Mark::NoCode);
                if data(&disk) == before {
                    Ok(())
                } else {
                    wrong("was refused, and has changed the data".to_owned())
                }
            }
            Ok(recovery) if missing.is_empty() => {
                let found = &recovery.recovered.states;
                if !found.iter().map(State::hash).eq(whole.iter().map(State::hash)) {
                    return wrong("finds other states than one with all code".to_owned());
                }
                let (topology, profile) = (Arc::clone(&self.topology), &self.profile);
                let start = || assemble(recovery, lack.clone(), &topology, profile, seed);
                drop(stage::play(self.scene(), start));
                if !lack.code.is_empty() {
                    self.marks.hit(Mark::CodeWaits);
                }
                Ok(())
            }
            Ok(_) => wrong(format!("was started, and lacks {missing:?}")),
            Err(error) => wrong(format!("lacks {missing:?}, and was refused: {error}")),
        }
    }
}

/// Draws the services and tasks that a program lacks, and those of them that may wait.
fn draw(rng: &mut Rng, services: &[String], tasks: &BTreeSet<(String, String)>) -> Lack {
    let mut lack = Lack::default();
    if rng.bool() {
        lack.code.insert(services[rng.usize(..services.len())].clone());
    }
    lack.code.extend(tasks.iter().filter(|_| rng.bool()).map(|(name, _)| name.clone()));
    let most = rng.u8(..3);
    lack.allowed.extend(lack.code.iter().filter(|_| rng.u8(..3) < most).cloned());
    // A service whose tasks may all wait.
    if rng.u8(..4) == 0 {
        lack.allowed.extend(tasks.iter().next().map(|(_, service)| service.clone()));
    }
    lack
}
