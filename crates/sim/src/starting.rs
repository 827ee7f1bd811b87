//! The node starts: recovery, with crashes in the middle of it and damage before it.

use crate::bug::Bug;
use crate::marks::Mark;
use crate::node::{Node, Opened, open};
use crate::profile::one_in;
use crate::stage;
use crate::violation::Violation;
use crate::world::{Event, Outcomes, Stop, World};
use fastrand::Rng;
use std::sync::Arc;
use stead_core::ids::Index;
use stead_core::record::RecordKey;
use stead_store::sim_disk::SimDisk;
use stead_store::wal::Opened as WalOpened;

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
        let opened = match open(disk, &self.topology, self.profile.segment_bytes) {
            Ok(opened) => opened,
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
        self.came_back(&opened, damaged)?;
        let is_clean = opened.data_dir.meta().clean;
        self.check_clean(is_clean)?;
        // What a recovery made of the log stands; other files it did not look at.
        match &self.flipped {
            Some(flip) if flip.path.starts_with("wal/") => self.disk.keep_flips(),
            _ => self.disk.unflip(),
        }
        self.recovered_once = true;
        if opened.recovered.report.checkpoint.is_some() {
            self.marks.hit(Mark::RecoveredFromCheckpoint);
        }
        let writer = self.rng.u64(..);
        let mut profile = self.profile.clone();
        if self.bug == Some(Bug::ShortSession) {
            profile.settings.session_ttl -= 1;
        }
        let (topology, now, bug) = (Arc::clone(&self.topology), self.now, self.bug);
        let start = || Node::start(opened, &topology, &profile, (now, writer), is_clean, bug);
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
        if is_clean {
            self.marks.hit(Mark::CleanStart);
        }
        if self.node.as_ref().is_some_and(|node| node.parts.shared.is_trying()) {
            self.marks.hit(Mark::Held);
        }
        self.lead()
    }

    /// Says whether a crash in the last recovery is what a violation comes from: without it the node comes back with
    /// all that was committed.
    fn blame_crash(&self, violation: Violation) -> Violation {
        let Some(before) = &self.before_recovery else { return violation };
        before.restart();
        let sound = self.recovered_hash(before).is_ok_and(|(states, _)| {
            self.topology.shards().zip(states).all(|(shard, (index, _))| index >= self.model.durable(shard))
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

    /// Holds what came back against the model.
    fn came_back(&mut self, opened: &Opened, damaged: bool) -> Outcomes {
        if opened.created && self.recovered_once {
            return Err(Violation::new(2, "the node came back with an empty data directory").into());
        }
        let (mut kept, mut lost) = (false, false);
        for state in &opened.recovered.states {
            let shard = state.shard();
            let index = state.position().index;
            kept |= index > self.model.durable(shard);
            lost |= index < self.model.appended(shard);
            if index < self.model.durable(shard) && damaged {
                if index >= self.covered[shard.0 as usize] {
                    // Damage to the last synced batch looks like a tail that never was synced.
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
        let (decided, found) = (self.decided, opened.recovered.decided);
        if found < decided {
            let what = format!("checkpoint {decided} was decided, and the node came back with {found}");
            return Err(Violation::new(13, what).into());
        }
        // A full disk had no room for the mark: then damage to what came after the last one looks like a torn tail.
        self.recovered = self.topology.shards().map(|shard| self.model.durable(shard)).collect();
        self.learn_durable()
    }

    /// Flips a bit somewhere, while the node is down.
    fn flip(&mut self) {
        let mut files: Vec<String> = self.disk.files();
        files.retain(|path| !path.ends_with("LOCK"));
        let mut rng = std::mem::take(&mut self.rng);
        self.flip_in(files, &mut rng);
        self.rng = rng;
    }

    /// Flips a bit of the log or of the node's own file, while the node runs.
    pub(crate) fn flip_inside(&mut self) {
        let mut files: Vec<String> = self.disk.files();
        files.retain(|path| path.starts_with("wal/") || path.ends_with("stead.json"));
        let mut rng = std::mem::take(&mut self.odd);
        self.flip_in(files, &mut rng);
        self.odd = rng;
        self.marks.hit(Mark::FlippedInside);
    }

    fn flip_in(&mut self, mut files: Vec<String>, rng: &mut Rng) {
        files.retain(|path| self.disk.bytes(path).is_some_and(|bytes| !bytes.is_empty()));
        let Some(path) = files.get(rng.usize(..files.len().max(1))).cloned() else { return };
        let bytes = self.disk.bytes(&path).expect("just listed");
        // Most of a log is zeros that nothing was written to: there a flip finds little.
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

    /// An operation failed, and the node refused to start, as it may: it starts again.
    fn refused(&mut self) -> Outcomes {
        self.marks.hit(Mark::StartFailed);
        self.disk.kill_process();
        self.powered_off = false;
        self.at(1, Event::Start);
        Ok(())
    }

    /// Damage was refused, as it must be; its file is put back, and the node starts again.
    fn heal(&mut self) -> Outcomes {
        if self.bug == Some(Bug::CutDamage)
            && let Some(flip) = self.flipped.as_ref().filter(|flip| flip.path.starts_with("wal/"))
        {
            cut_from(&self.disk, flip);
            let disk = self.node_disk();
            if let Ok(opened) = open(disk, &self.topology, self.profile.segment_bytes) {
                return self.came_back(&opened, true);
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

    /// Invariant 18: crashes a recovery at each of its I/O operations, on copies of the disk, and recovers again.
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
            // The recovery that follows is cut short as well.
            disk.crash_after(at.min(operations - at).max(1));
            let _ = self.recovered_hash(&disk);
            disk.restart();
            if crashed.is_err() && self.bug == Some(Bug::ForgetfulRecovery) {
                forget_end(&disk);
            }
            let found = self.recovered_hash(&disk);
            if found.as_ref().map(|found| &found.0).ok() != Some(&wanted.0) {
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

    /// The last index and the hash of each shard that a recovery gives, and what it says of the log.
    fn recovered_hash(&self, disk: &SimDisk) -> Result<(Vec<(Index, u128)>, WalOpened), String> {
        let opened = open(Arc::new(disk.clone()), &self.topology, self.profile.segment_bytes);
        let opened = opened.map_err(|error| error.to_string())?;
        let states =
            opened.recovered.states.iter().map(|state| (state.position().index, state.hash())).collect();
        Ok((states, opened.recovered.log))
    }
}

fn log_files(disk: &SimDisk) -> Vec<String> {
    let mut files = disk.files();
    files.retain(|path| path.starts_with("wal/") && path.ends_with(".log"));
    files
}

/// A block of the log.
const BLOCK: usize = 4096;

/// Wipes the last blocks of the log that hold something.
fn forget_end(disk: &SimDisk) {
    for path in log_files(disk).into_iter().rev() {
        let mut bytes = disk.bytes(&path).expect("just listed");
        let last = bytes.chunks(BLOCK).rposition(|block| block.iter().any(|&byte| byte != 0)).unwrap_or(0);
        if last > 0 {
            for block in bytes.chunks_mut(BLOCK).skip(1).skip(last.saturating_sub(3)) {
                block.fill(0);
            }
            disk.put(&path, &bytes);
            return;
        }
    }
}

/// Wipes the log from a damaged place on.
fn cut_from(disk: &SimDisk, flip: &Flip) {
    for path in log_files(disk).into_iter().filter(|path| *path >= flip.path) {
        let mut bytes = disk.bytes(&path).expect("just listed");
        let from = if path == flip.path { flip.offset as usize / BLOCK * BLOCK } else { BLOCK };
        bytes[from.max(BLOCK)..].fill(0);
        disk.put(&path, &bytes);
    }
}
