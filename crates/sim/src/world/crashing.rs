//! Starts that crash at each of their I/O operations, on copies of the disk.

use super::node::{Lack, assemble, open};
use super::rot::Flip;
use super::{Outcomes, Stop, World};
use crate::bug::Bug;
use crate::disk_log::{BLOCK, number_of_entries};
use crate::marks::Mark;
use crate::stage;
use crate::violation::Violation;
use std::sync::Arc;
use stead_core::ids::{CheckpointNumber, Epoch, Index};
use stead_node::Recovery;
use stead_store::checkpoint::begun::{Begun, begun_names};
use stead_store::checkpoint::store::DiskStore;
use stead_store::data_dir::CHECKPOINTS;
use stead_store::disk::Disk;
use stead_store::sim_disk::SimDisk;
use stead_store::wal::Opened as WalOpened;

/// The beginning of a life.
#[derive(Debug)]
pub(super) struct Begins {
    pub(super) states: Vec<(Index, u128)>,
    epochs: Vec<Epoch>,
    assume_clean: bool,
    /// The services' checks that did not end in an earlier life, and may be blamed.
    unended: Vec<(String, CheckpointNumber)>,
    #[expect(dead_code, reason = "it is printed")]
    log: WalOpened,
}

impl Begins {
    /// Whether this is what a start gives after another one was broken off, on the data on which an undisturbed start gave `wanted`. If
    /// the other one `may_have_begun` its life, its promises exist or not, and so does the mark of a clean end.
    pub(super) fn continues(&self, wanted: &Self, may_have_begun: bool) -> bool {
        let mut epochs = self.epochs.iter().zip(&wanted.epochs);
        let is_clean = self.assume_clean == wanted.assume_clean || (may_have_begun && !self.assume_clean);
        self.states == wanted.states
            && epochs.all(|(found, wanted)| found >= wanted)
            && is_clean
            && self.unended == wanted.unended
    }
}

impl World {
    /// Checks invariant 18: crashes a start at each of its I/O operations, on copies of the disk, and starts again.
    pub(super) fn crash_everywhere(&mut self) -> Outcomes {
        let (wanted, operations) = self.undisturbed_start()?;
        let stride = (operations / 24).max(1);
        let mut at = 1 + self.rng.u64(..stride);
        while at <= operations {
            let disk = self.disk.fork(self.rng.u64(..));
            disk.set_capacity(None);
            disk.set_open_files(None);
            disk.restart();
            disk.crash_after(at);
            let crashed = self.begins(&disk);
            disk.restart();
            // The following start crashes as well.
            disk.crash_after(at.min(operations - at).max(1));
            let _ = self.begins(&disk);
            disk.restart();
            if crashed.is_err() && self.bug == Some(Bug::ForgetfulRecovery) {
                forget_end(&disk);
            }
            let found = self.begins(&disk);
            let is_same = found.as_ref().is_ok_and(|found| {
                found.continues(&wanted, true) && (!found.assume_clean || crashed.is_err())
            });
            if !is_same {
                let reason =
                    found.map_or_else(|error| error, |found| format!("{found:?} instead of {wanted:?}"));
                let what = format!(
                    "a start crashed at operation {at} of {operations}, and the next one gave {reason}"
                );
                return Err(Violation::new(18, what).into());
            }
            at += stride;
        }
        self.marks.hit(Mark::RecoveryCrashedEverywhere);
        Ok(())
    }

    /// Starts on a copy of the disk on which nothing fails. Returns what the life begins with, and the number of the start's I/O
    /// operations.
    pub(super) fn undisturbed_start(&mut self) -> Result<(Begins, u64), Stop> {
        let disk = self.sound_copy();
        let before = disk.operations();
        let wanted = self.begins(&disk).map_err(|error| {
            let what =
                format!("the node does not start on a copy of the disk, on which nothing fails: {error}");
            self.blame_crash(Violation::new(2, what))
        })?;
        Ok((wanted, disk.operations() - before))
    }

    /// Starts a node on a disk, without its turns: the last index and the hash of each recovered shard, and the other facts with
    /// which its life begins.
    pub(super) fn begins(&self, disk: &SimDisk) -> Result<Begins, String> {
        let recovery = open(Arc::new(disk.clone()), &self.topology, &self.profile);
        let recovery = recovery.map_err(|error| error.to_string())?;
        let Recovery { recovered, plan, .. } = &recovery;
        let states = recovered.states.iter().map(|state| (state.position().index, state.hash())).collect();
        let (epochs, assume_clean, log) =
            (plan.epochs.values().copied().collect(), plan.assume_clean, recovered.log.clone());
        let held = if self.bug == Some(Bug::HoldMarks) { take_marks(disk)? } else { Vec::new() };
        let start = || assemble(recovery, Lack::default(), &self.topology, &self.profile, self.life);
        let (assembled, _) = stage::play(self.scene(), start);
        drop(assembled);
        if disk.is_crashed() {
            return Err("the power is gone".to_owned());
        }
        for (path, bytes) in held {
            disk.put(&path, &bytes);
        }
        let unended = marks_on(disk)?;
        Ok(Begins { states, epochs, assume_clean, unended, log })
    }
}

/// Returns the marks of checks that have begun.
fn marks_on(disk: &SimDisk) -> Result<Vec<(String, CheckpointNumber)>, String> {
    let store = DiskStore::attach(Arc::new(disk.clone()), CHECKPOINTS);
    let names = begun_names(&store).map_err(|error| error.to_string())?;
    let marks = names.iter().map(|name| Begun::read(&store, name).map(|begun| (begun.service, begun.number)));
    marks.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// Plants the bug: a start has the marks of checks only in its memory until it is over.
fn take_marks(disk: &SimDisk) -> Result<Vec<(String, Vec<u8>)>, String> {
    let store = DiskStore::attach(Arc::new(disk.clone()), CHECKPOINTS);
    let names = begun_names(&store).map_err(|error| error.to_string())?;
    let paths: Vec<String> = names.iter().map(|name| format!("{CHECKPOINTS}/{name}")).collect();
    let held = paths.iter().filter_map(|path| Some((path.clone(), disk.bytes(path)?))).collect();
    for path in &paths {
        disk.remove(path).map_err(|error| error.to_string())?;
    }
    disk.sync_dir(&format!("{CHECKPOINTS}/checks")).map_err(|error| error.to_string())?;
    Ok(held)
}

fn log_files(disk: &SimDisk) -> Vec<String> {
    let mut files = disk.files();
    files.retain(|path| path.starts_with("wal/") && path.ends_with(".log"));
    files
}

/// Wipes the last batch of the log that has entries, and everything after it.
pub(super) fn forget_end(disk: &SimDisk) {
    let mut last = None;
    for path in log_files(disk) {
        let bytes = disk.bytes(&path).expect("just listed");
        for at in (0..bytes.len()).step_by(BLOCK) {
            if let Some(number) = number_of_entries(&bytes[at..]) {
                last = last.max(Some((number, path.clone(), at as u64)));
            }
        }
    }
    if let Some((_, path, offset)) = last {
        cut_from(disk, &Flip { path, offset });
    }
}

/// Wipes the log from the damage on.
pub(super) fn cut_from(disk: &SimDisk, flip: &Flip) {
    for path in log_files(disk).into_iter().filter(|path| *path >= flip.path) {
        let mut bytes = disk.bytes(&path).expect("just listed");
        let from = if path == flip.path { flip.offset as usize / BLOCK * BLOCK } else { BLOCK };
        bytes[from.max(BLOCK)..].fill(0);
        disk.put(&path, &bytes);
    }
}
