//! Starts of the node: recovery, with damage before it and crashes within it.

use super::crashing::{cut_from, forget_end};
use super::node::{Node, open};
use super::rot::Flip;
use super::{Event, Inside, Outcomes, Stop, World};
use crate::bug::Bug;
use crate::disk::CHECK_MARK_PATHS;
use crate::marks::Mark;
use crate::profile::one_in;
use crate::refusals::COPIES;
use crate::stage;
use crate::violation::Violation;
use fastrand::Rng;
use std::sync::Arc;
use stead_core::ids::{Index, Micros};
use stead_core::record::RecordKey;
use stead_core::shard::Settings;
use stead_core::topology::Topology;
use stead_node::{OpenError, Recovery, Started};
use stead_store::data_dir::META_FILE;
use stead_store::sim_disk::SimDisk;

/// One in this number of starts is preceded by a start of a program that lacks code.
const REFUSED_STARTS: u64 = 8;

impl World {
    pub(crate) fn start(&mut self) -> Outcomes {
        self.life += 1;
        if self.room_at != 0 && self.room_at <= self.now {
            self.make_room();
        }
        if self.files_at != 0 && self.files_at <= self.now {
            self.allow_files();
        }
        self.recent.borrow_mut().note(format!("life {} of the node begins", self.life));
        if self.life > 1 && one_in(&mut self.odd, self.profile.add_service) {
            self.add_service();
        }
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
            self.start_without_code(seed)?;
        }
        if self.recovered_once
            && !self.disk.is_flipped()
            && one_in(&mut self.odd, self.profile.crash_everywhere)
        {
            self.refuse_everywhere()?;
        }
        if self.life > 1 && one_in(&mut self.rng, self.profile.flip) && !self.disk.is_flipped() {
            self.flip();
        }
        if self.disk.is_flipped() {
            // A start that is refused for a limit may have cut the damage already, and the next one would not see it.
            self.make_room();
            self.allow_files();
        }
        let (damaged, meta) = (self.disk.is_flipped(), self.disk.bytes(META_FILE));
        let mut before = None;
        if !damaged && one_in(&mut self.rng, self.profile.crash_in_recovery) {
            before = Some(self.disk.fork(0));
            self.plan_crash(60);
        }
        if self.before_recovery.is_some() && self.bug == Some(Bug::ForgetfulRecovery) {
            forget_end(&self.disk);
        }
        if self.bug == Some(Bug::FoldOther) && !self.disk.is_flipped() {
            self.fold_other();
        }
        let disk = self.node_disk();
        if self.tracing {
            eprintln!("                             life {} opens its disk", self.life);
        }
        let mut profile = self.profile.clone();
        if self.bug == Some(Bug::BriefSession) {
            profile.change_settings(|settings| settings.session_ttl = settings.session_ttl.minus(Micros(1)));
        }
        let recovery = match open(disk, &self.topology, &profile) {
            Ok(recovery) => recovery,
            Err(_) if self.disk.is_crashed() => return self.crashed_in_recovery(before),
            Err(error) => {
                if self.tracing {
                    eprintln!("                             {error}");
                }
                return self.start_refused(error, &meta);
            }
        };
        self.came_back(&recovery, damaged)?;
        let is_clean = recovery.plan.assume_clean;
        self.check_clean(is_clean)?;
        // The recovery's changes of the log stay; it has not read other files.
        match &self.flipped {
            Some(flip) if flip.path.starts_with("wal/") => self.disk.keep_flips(),
            Some(flip) if damaged && flip.path.starts_with(CHECK_MARK_PATHS) => {
                // A damaged mark does not count, and the check that it marked is tried again.
                self.check_deaths.clear();
                self.disk.unflip();
            }
            _ => self.disk.unflip(),
        }
        self.recovered_once = true;
        if recovery.recovered.report.checkpoint.is_some() {
            self.marks.hit(Mark::RecoveredFromCheckpoint);
            if profile.loaders > 1 && self.topology.shard_count() > 1 {
                self.marks.hit(Mark::LoadedInGroups);
            }
        }
        self.note_marked();
        let writer = self.rng.u64(..);
        let (topology, bug) = (Arc::clone(&self.topology), self.bug);
        let start = || Node::start(recovery, &topology, &profile, writer, bug);
        let (node, _) = stage::play(self.scene(), start);
        if self.disk.is_crashed() {
            return self.crashed_in_recovery(before);
        }
        self.node = Some(node);
        self.before_recovery = None;
        let model = &self.model;
        let waits = |shard, key: &RecordKey| model.state(shard).has(key);
        self.blame.life_begins(is_clean, waits);
        (self.may_be_clean, self.must_be_clean) = (false, false);
        if is_clean && self.life > 1 {
            self.marks.hit(Mark::CleanStart);
        }
        if self.node.as_ref().is_some_and(|node| node.parts.shared.is_trying()) {
            self.marks.hit(Mark::Held);
        }
        self.lead()
    }

    /// Begins the next parts of the node, as its start puts them on threads, some of which the system refuses.
    pub(super) fn begin_parts(&mut self) -> Outcomes {
        let most = if self.rng.bool() { usize::MAX } else { self.rng.usize(1..=6) };
        for _ in 0..most {
            let (refuses, scene) = (one_in(&mut self.odd, self.profile.refuse_threads), self.scene());
            let node = self.node.as_mut().expect("checked by the caller");
            let (started, turn) = stage::play(scene, || node.parts.start(refuses));
            let pause = match started {
                Ok(Started::Part(part)) => {
                    node.running.insert(part);
                    // Each begins with a turn.
                    let delay = self.random(self.profile.wake_delay);
                    self.turn_in(part, delay);
                    continue;
                }
                Ok(Started::All) => self.random(2_000),
                Ok(Started::Serves) => {
                    self.begin_ownership();
                    break;
                }
                Err(error) => {
                    if let OpenError::Thread(_) = error {
                        self.marks.hit(Mark::ThreadRefused);
                    }
                    self.ends(true, self.profile.shutdown_timeout);
                    return self.carry_on(turn, false);
                }
            };
            self.inside(1 + pause, Inside::Begin);
            self.heed_bells();
            return Ok(());
        }
        self.heed_bells();
        if self.node.as_ref().is_some_and(|node| !node.serves) {
            let pause = self.random(self.profile.wake_delay);
            self.inside(pause, Inside::Begin);
        }
        Ok(())
    }

    /// From this life on the program has one more service, if there is one.
    fn add_service(&mut self) {
        let Some((name, shards)) = self.workload.borrow_mut().add_service(&mut self.odd) else { return };
        let mut topology = Topology::clone(&self.topology);
        topology.ensure(&name, shards).expect("a new service");
        let (topology, profile) = (Arc::new(topology), &self.profile);
        self.model.extend(Arc::clone(&topology), |service| profile.settings_of(service));
        let shards = topology.shard_count() as usize;
        self.covered.resize(shards, Index(0));
        self.recovered.resize(shards, Index(0));
        self.works_since.resize(shards, None);
        self.topology = topology;
        self.marks.hit(Mark::ServiceAdded);
    }

    /// Reports whether a crash in the last recovery causes a violation: without the crash the node comes back with all
    /// that was committed.
    pub(super) fn blame_crash(&self, violation: Violation) -> Violation {
        let Some(before) = &self.before_recovery else { return violation };
        before.restart();
        before.set_capacity(None);
        before.set_open_files(None);
        let sound = self.begins(before).is_ok_and(|found| {
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
        self.must_be_clean = false;
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
        for id in all {
            let (found, given) = (services.settings(id), self.profile.settings_of(usize::from(id.0)));
            let figures = |s: &Settings| (s.entry_bytes_max, s.attempts_max, s.work_max, s.resend_after);
            if figures(found) != figures(given) {
                let what = format!("service {} has the settings {found:?}, and was given {given:?}", id.0);
                return Err(Violation::new(0, what).into());
            }
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

    pub(super) fn flip_in(&mut self, mut files: Vec<String>, rng: &mut Rng) {
        // Damage to copies has no effect: it is gone before anything reads them.
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

    /// Handles refused damage: the damaged file is put back, and the node starts again.
    pub(super) fn heal(&mut self) -> Outcomes {
        if self.bug == Some(Bug::CutDamage)
            && let Some(flip) = self.flipped.as_ref().filter(|flip| flip.path.starts_with("wal/"))
        {
            cut_from(&self.disk, flip);
            let disk = self.node_disk();
            if let Ok(recovery) = open(disk, &self.topology, &self.profile) {
                return self.came_back(&recovery, true);
            }
            return Err(Stop::Over);
        }
        self.marks.hit(Mark::RecoveredPastDamage);
        self.must_be_clean = false;
        self.disk.unflip();
        self.disk.kill_process();
        self.powered_off = false;
        self.at(1, Event::Start);
        Ok(())
    }
}
