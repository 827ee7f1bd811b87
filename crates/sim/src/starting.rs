//! Starts of the node: recovery, with damage before it and crashes within it.

use crate::bug::Bug;
use crate::disk_log::number_of_entries;
use crate::marks::Mark;
use crate::node::{COPIES, Code, Node, open};
use crate::profile::one_in;
use crate::stage;
use crate::violation::Violation;
use crate::world::{Event, Outcomes, Stop, World};
use fastrand::Rng;
use std::sync::Arc;
use stead_core::ids::{Epoch, Index};
use stead_core::record::RecordKey;
use stead_node::{OpenError, Recovery};
use stead_store::sim_disk::SimDisk;
use stead_store::wal::Opened as WalOpened;

/// One in this number of starts is preceded by a start of a program that lacks code.
const REFUSED_STARTS: u64 = 8;

/// The place of a flipped bit.
pub(crate) struct Flip {
    path: String,
    offset: u64,
}

impl World {
    pub(crate) fn start(&mut self) -> Outcomes {
        self.life += 1;
        self.recent.borrow_mut().note(format!("life {} of the node begins", self.life));
        let seed = self.rng.u64(..);
        self.workload.borrow_mut().restart(&self.topology, seed);
        stage::begin_life(seed);
        if self.life > 1
            && self.powered_off
            && one_in(&mut self.rng, self.profile.crash_everywhere)
            && !self.disk.is_flipped()
        {
            self.crash_everywhere()?;
        }
        if self.recovered_once && !self.disk.is_flipped() && seed.is_multiple_of(REFUSED_STARTS) {
            self.refuse_without_code(seed)?;
        }
        if self.life > 1 && one_in(&mut self.rng, self.profile.flip) && !self.disk.is_flipped() {
            self.flip();
        }
        let (damaged, failed) = (self.disk.is_flipped(), self.disk.failed());
        let mut before = None;
        if !damaged && one_in(&mut self.rng, self.profile.crash_in_recovery) {
            before = Some(self.disk.fork(0));
            self.plan_crash(60);
        }
        if self.before_recovery.is_some() && self.bug == Some(Bug::ForgetfulRecovery) {
            forget_end(&self.disk);
        }
        let disk = self.node_disk();
        if self.tracing {
            eprintln!("                             life {} opens its disk", self.life);
        }
        let mut profile = self.profile.clone();
        if self.bug == Some(Bug::ShortSession) {
            profile.settings.session_ttl -= 1;
        }
        let recovery = match open(disk, Code::All, &self.topology, &profile) {
            Ok(recovery) => recovery,
            Err(_) if self.disk.is_crashed() => return self.crashed_in_recovery(before),
            Err(error) => {
                if self.tracing {
                    eprintln!("                             {error}");
                }
                if self.disk.failed() > failed {
                    return self.refused();
                }
                if !damaged {
                    let violation = Violation::new(2, format!("the node does not come back: {error}"));
                    return Err(self.blame_crash(violation).into());
                }
                return self.heal();
            }
        };
        self.came_back(&recovery, damaged)?;
        let is_clean = recovery.plan.assume_clean;
        self.check_clean(is_clean)?;
        // The recovery's changes of the log stay; it has not read other files.
        match &self.flipped {
            Some(flip) if flip.path.starts_with("wal/") => self.disk.keep_flips(),
            _ => self.disk.unflip(),
        }
        self.recovered_once = true;
        if recovery.recovered.report.checkpoint.is_some() {
            self.marks.hit(Mark::RecoveredFromCheckpoint);
        }
        let writer = self.rng.u64(..);
        let (topology, bug) = (Arc::clone(&self.topology), self.bug);
        let start = || Node::start(recovery, &topology, &profile, writer, bug);
        let (node, _) = stage::play(self.scene(), start);
        match node {
            Ok(node) => self.node = Some(node),
            Err(_) if self.disk.is_crashed() => return self.crashed_in_recovery(before),
            Err(_) if self.disk.failed() > failed => return self.refused(),
            Err(error) => return Err(Violation::new(0, format!("the node does not start: {error}")).into()),
        }
        self.before_recovery = None;
        let model = &self.model;
        let waits = |shard, key: &RecordKey| model.state(shard).has(key);
        self.blame.life_begins(is_clean, waits);
        self.may_be_clean = false;
        if is_clean && self.life > 1 {
            self.marks.hit(Mark::CleanStart);
        }
        if self.node.as_ref().is_some_and(|node| node.parts.shared.is_trying()) {
            self.marks.hit(Mark::Held);
        }
        self.lead()
    }

    /// Reports whether a crash in the last recovery causes a violation: without the crash the node comes back with all
    /// that was committed.
    fn blame_crash(&self, violation: Violation) -> Violation {
        let Some(before) = &self.before_recovery else { return violation };
        before.restart();
        let sound = self.recovered_hash(before).is_ok_and(|found| {
            self.topology
                .shards()
                .zip(found.states)
                .all(|(shard, (index, _))| index >= self.model.durable(shard))
        });
        if !sound {
            return violation;
        }
        let Violation { invariant, what } = violation;
        Violation::new(
            18,
            format!("{what} (invariant {invariant}, but for the crash in the recovery before)"),
        )
    }

    fn crashed_in_recovery(&mut self, before: Option<SimDisk>) -> Outcomes {
        self.marks.hit(Mark::CrashInRecovery);
        if self.before_recovery.is_none() {
            self.before_recovery = before;
        }
        self.powered_off = true;
        self.power_on();
        let pause = self.random(10_000);
        self.at(pause + 1, Event::Start);
        Ok(())
    }

    /// Compares the recovered states with the model.
    fn came_back(&mut self, recovery: &Recovery, damaged: bool) -> Outcomes {
        if recovery.created && self.recovered_once {
            return Err(Violation::new(2, "the node came back with an empty data directory").into());
        }
        let services = &recovery.services;
        if **services.topology() != *self.topology {
            let what = format!("the node came back with other services: {:?}", services.topology());
            return Err(Violation::new(2, what).into());
        }
        let all =
            self.topology.services().iter().filter_map(|service| self.topology.service_id(&service.name));
        let entry_bytes_max = self.profile.settings.entry_bytes_max;
        if let Some(other) =
            all.map(|id| services.settings(id).entry_bytes_max).find(|bytes| *bytes != entry_bytes_max)
        {
            let what = format!("the limit of an entry is {other} bytes, and should be {entry_bytes_max}");
            return Err(Violation::new(0, what).into());
        }
        let (mut kept, mut lost) = (false, false);
        for state in &recovery.recovered.states {
            let shard = state.shard();
            let index = state.position().index;
            kept |= index > self.model.durable(shard);
            lost |= index < self.model.appended(shard);
            if index < self.model.durable(shard) && damaged {
                if index >= self.covered[shard.0 as usize] {
                    // Damage to the last synced batch looks like a tail that was never synced.
                    self.marks.hit(Mark::DamageUncovered);
                    return Err(Stop::Over);
                }
                let durable = self.model.durable(shard);
                let what = format!("shard {shard}: after damage it serves {index} entries of {durable}");
                return Err(Violation::new(16, what).into());
            }
            let back = self.model.recovered(state, &mut *self.workload.borrow_mut());
            back.map_err(|violation| match violation {
                Violation { invariant: 2, what } if damaged => Violation::new(16, what),
                violation @ Violation { invariant: 2, .. } => self.blame_crash(violation),
                other => other,
            })?;
        }
        if kept {
            self.marks.hit(Mark::UnsyncedKept);
        }
        if lost {
            self.marks.hit(Mark::UnsyncedLost);
        }
        if damaged {
            self.marks.hit(Mark::DamageHarmless);
        }
        let (decided, found) = (self.decided, recovery.recovered.decided);
        if found < decided {
            let what = format!("checkpoint {decided} was decided, and the node came back with {found}");
            return Err(Violation::new(13, what).into());
        }
        // The full disk had no space for the mark: damage to the batches after the last mark looks like a torn tail.
        self.recovered = self.topology.shards().map(|shard| self.model.durable(shard)).collect();
        self.learn_durable()
    }

    /// Flips a bit of any file while the node is down.
    fn flip(&mut self) {
        let mut files: Vec<String> = self.disk.files();
        files.retain(|path| !path.ends_with("LOCK"));
        let mut rng = std::mem::take(&mut self.rng);
        self.flip_in(files, &mut rng);
        self.rng = rng;
    }

    /// Flips a bit of the log or of the node's metadata while the node runs.
    pub(crate) fn flip_inside(&mut self) {
        let mut files: Vec<String> = self.disk.files();
        files.retain(|path| path.starts_with("wal/") || path.ends_with("stead.json"));
        let mut rng = std::mem::take(&mut self.odd);
        self.flip_in(files, &mut rng);
        self.odd = rng;
        self.marks.hit(Mark::FlippedInside);
    }

    fn flip_in(&mut self, mut files: Vec<String>, rng: &mut Rng) {
        // What is damaged there is damaged no more before anything reads it.
        files.retain(|path| !path.starts_with(COPIES));
        files.retain(|path| self.disk.bytes(path).is_some_and(|bytes| !bytes.is_empty()));
        let Some(path) = files.get(rng.usize(..files.len().max(1))).cloned() else { return };
        let bytes = self.disk.bytes(&path).expect("just listed");
        // Most of a log is unused zeros, where a flip has no effect.
        let written: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
        let offset = match rng.bool() {
            true if !written.is_empty() => written[rng.usize(..written.len())],
            _ => rng.usize(..bytes.len()),
        } as u64;
        self.disk.flip_bit(&path, offset, rng.u8(..8)).expect("the byte is there");
        if self.tracing {
            eprintln!("                             a bit flips in {path} at {offset}");
        }
        self.flipped = Some(Flip { path, offset });
    }

    /// Handles a failed operation: the node may refuse to start, and starts again.
    fn refused(&mut self) -> Outcomes {
        self.marks.hit(Mark::StartFailed);
        self.disk.kill_process();
        self.powered_off = false;
        self.at(1, Event::Start);
        Ok(())
    }

    /// Handles refused damage: the damaged file is put back, and the node starts again.
    fn heal(&mut self) -> Outcomes {
        if self.bug == Some(Bug::CutDamage)
            && let Some(flip) = self.flipped.as_ref().filter(|flip| flip.path.starts_with("wal/"))
        {
            cut_from(&self.disk, flip);
            let disk = self.node_disk();
            if let Ok(recovery) = open(disk, Code::All, &self.topology, &self.profile) {
                return self.came_back(&recovery, true);
            }
            return Err(Stop::Over);
        }
        self.marks.hit(Mark::RecoveredPastDamage);
        self.disk.unflip();
        self.disk.kill_process();
        self.powered_off = false;
        self.at(1, Event::Start);
        Ok(())
    }

    /// Checks invariant 18: crashes a recovery at each of its I/O operations, on copies of the disk, and recovers
    /// again.
    fn crash_everywhere(&mut self) -> Outcomes {
        let first = self.disk.fork(0);
        let Ok(wanted) = self.recovered_hash(&first) else { return Ok(()) };
        let operations = first.operations() - self.disk.operations();
        let stride = (operations / 24).max(1);
        let mut at = 1 + self.rng.u64(..stride);
        while at <= operations {
            let disk = self.disk.fork(self.rng.u64(..));
            disk.crash_after(at);
            let crashed = self.recovered_hash(&disk);
            disk.restart();
            // The following recovery crashes as well.
            disk.crash_after(at.min(operations - at).max(1));
            let _ = self.recovered_hash(&disk);
            disk.restart();
            if crashed.is_err() && self.bug == Some(Bug::ForgetfulRecovery) {
                forget_end(&disk);
            }
            let found = self.recovered_hash(&disk);
            let is_same = found.as_ref().is_ok_and(|found| {
                // The promises of a crashed start may exist or not.
                found.states == wanted.states
                    && found.epochs.iter().zip(&wanted.epochs).all(|(found, wanted)| found >= wanted)
                    && (!found.assume_clean || (wanted.assume_clean && crashed.is_err()))
            });
            if !is_same {
                let reason =
                    found.map_or_else(|error| error, |found| format!("{found:?} instead of {wanted:?}"));
                let what = format!(
                    "a recovery crashed at operation {at} of {operations}, and the next one gave {reason}"
                );
                return Err(Violation::new(18, what).into());
            }
            at += stride;
        }
        self.marks.hit(Mark::RecoveryCrashedEverywhere);
        Ok(())
    }

    /// The last index and the hash of each recovered shard, and the other facts with which the next life begins.
    fn recovered_hash(&self, disk: &SimDisk) -> Result<Begins, String> {
        let recovery = open(Arc::new(disk.clone()), Code::All, &self.topology, &self.profile);
        let Recovery { recovered, plan, .. } = recovery.map_err(|error| error.to_string())?;
        let states = recovered.states.iter().map(|state| (state.position().index, state.hash())).collect();
        let epochs = plan.epochs.into_values().collect();
        Ok(Begins { states, epochs, assume_clean: plan.assume_clean, log: recovered.log })
    }

    /// Checks that a program without the code is refused, and that the data stay unchanged.
    fn refuse_without_code(&mut self, seed: u64) -> Outcomes {
        let code = if (seed / REFUSED_STARTS).is_multiple_of(2) { Code::NoService } else { Code::NoTask };
        let disk = self.disk.fork(0);
        // Unfinished files of an earlier life are not data.
        let files = |disk: &SimDisk| -> Vec<_> {
            let files = disk.files().into_iter().filter(|path| !path.ends_with(".tmp"));
            files.map(|path| (disk.bytes(&path), path)).collect()
        };
        let before = files(&disk);
        match open(Arc::new(disk.clone()), code, &self.topology, &self.profile) {
            Err(OpenError::NoCode { .. }) => self.marks.hit(Mark::NoCode),
            // There are no tasks, or the disk fails.
            Ok(_) if code == Code::NoTask => return Ok(()),
            Ok(_) => return Err(Violation::new(0, "data without code were opened").into()),
            Err(_) => return Ok(()),
        }
        if files(&disk) == before {
            return Ok(());
        }
        Err(Violation::new(0, "a start that was refused for want of code has changed the data").into())
    }
}

/// The beginning of a life.
#[derive(Debug)]
struct Begins {
    states: Vec<(Index, u128)>,
    epochs: Vec<Epoch>,
    assume_clean: bool,
    #[expect(dead_code, reason = "it is printed")]
    log: WalOpened,
}

fn log_files(disk: &SimDisk) -> Vec<String> {
    let mut files = disk.files();
    files.retain(|path| path.starts_with("wal/") && path.ends_with(".log"));
    files
}

/// A block of the log.
const BLOCK: usize = 4096;

/// Wipes the last batch of the log that has entries, and everything after it.
fn forget_end(disk: &SimDisk) {
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
fn cut_from(disk: &SimDisk, flip: &Flip) {
    for path in log_files(disk).into_iter().filter(|path| *path >= flip.path) {
        let mut bytes = disk.bytes(&path).expect("just listed");
        let from = if path == flip.path { flip.offset as usize / BLOCK * BLOCK } else { BLOCK };
        bytes[from.max(BLOCK)..].fill(0);
        disk.put(&path, &bytes);
    }
}
