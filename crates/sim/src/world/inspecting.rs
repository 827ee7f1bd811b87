//! An operator who looks at processes, the status and the checkpoints, and deletes some of them, through the code that ships. What
//! the node answers is compared with the model and with what is stored.

use super::node::Node;
use super::operator::{DELETING, Deletion};
use super::rot::unseen_rot;
use super::{Event, Outcomes, Stop, World};
use crate::marks::Mark;
use crate::model::records_of;
use crate::profile::one_in;
use crate::stage::{self, Looked, SimEnv};
use crate::violation::Violation;
use std::sync::Arc;
use stead_core::calls::Answer;
use stead_core::ids::{CallToken, Index, ShardId};
use stead_core::key::Key;
use stead_core::record::{Kind, RecordKey};
use stead_core::reply::Reply;
use stead_core::shard::{Input, Shard};
use stead_node::{CheckpointFailure, Life, NoAnswer, PartId, ServiceMetrics, ShardStatus};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::manifest::{Manifest, decided_numbers, read_manifest};
use stead_store::checkpoint::store::DiskStore;
use stead_store::checkpoint::verify::Report;
use stead_store::data_dir::CHECKPOINTS;

impl World {
    /// An operator may give a command, if the node lives and does not stop.
    pub(super) fn operator_inspects(&mut self) -> Outcomes {
        let is_up = self.node.as_ref().is_some_and(|node| node.serves) && !self.is_ending();
        if !is_up || !one_in(&mut self.odd, self.profile.inspect_every) {
            return Ok(());
        }
        match self.odd.u8(..8) {
            0..=2 => self.look_at_process(),
            3 => {
                let node = self.node.as_mut().expect("it is up");
                node.status = Some(node.parts.life().ask_status());
                self.heed_bells();
                Ok(())
            }
            4 => self.list_checkpoints().map(drop),
            5 | 6 => self.begin_verification(),
            _ => self.begin_deletion(),
        }
    }

    /// Does what an operator does on the life, on a thread of its own. `None` if the life has ended.
    pub(super) fn operate<T>(&mut self, act: impl FnOnce(&Life<SimEnv>) -> T) -> Result<Option<T>, Stop> {
        let (life, mut scene) = (self.life, self.scene());
        // A verification runs a check whose mark it cannot store, and the next life then does not know that it ended the process.
        scene.check_kills = 0;
        self.turn_begins();
        let Some(node) = &self.node else { return Ok(None) };
        let (was_over, had_failed) = (node.is_over, has_failed(node));
        let (found, turn) = stage::play(scene, || act(node.parts.life()));
        if self.disk.is_crashed() {
            self.note_checked(&turn);
            self.any_check_may_be_open();
            self.power_failed()?;
            return Ok(None);
        }
        self.operator_checked(&turn);
        self.carry_on(turn, was_over)?;
        let Some(node) = self.node.as_ref().filter(|_| self.life == life) else { return Ok(None) };
        if let NoAnswer::Failed(failure) = node.parts.shared.end_reason()
            && !had_failed
        {
            self.check_failure(PartId::Checkpoints, &failure, false)?;
            self.marks.hit(Mark::IoFailed);
            self.check_queries()?;
            self.heed_bells();
            return Ok(None);
        }
        self.heed_bells();
        Ok(Some(found))
    }

    /// Looks at a process that the model knows, perhaps to delete it.
    fn look_at_process(&mut self) -> Outcomes {
        let shard = ShardId(self.odd.u32(..self.topology.shard_count()));
        let records = self.model.state(shard).records();
        let processes = records.keys().filter(|key| key.kind() == Kind::Process);
        let processes: Vec<Key> = processes
            .filter_map(|key| Key::new(key.process_key().expect("a process has a key")).ok())
            .collect();
        if processes.is_empty() {
            return Ok(());
        }
        let process = processes[self.odd.usize(..processes.len())].clone();
        let deletes = self.workload.borrow().allows_deletion() && self.odd.bool();
        let node = self.node.as_ref().expect("it is up");
        let left = node.parts.shared.leave_look(shard, move |state| stage::look(state, process, deletes));
        self.heed_bells();
        match left {
            Err(error) if error != NoAnswer::Stopped => {
                let what = format!("shard {shard}: the living node takes no look: {error}");
                Err(Violation::new(17, what).into())
            }
            _ => Ok(()),
        }
    }

    /// Compares what an operator saw with the model, if that is at the same entry, and deletes the process.
    pub(super) fn looked_at(&mut self, looked: Looked) -> Outcomes {
        let Looked { shard, position, process, records, deletes } = looked;
        let known = self.model.state(shard);
        if known.position() == position {
            let expected = records_of(known, &process);
            if expected != records {
                let index = position.index;
                let what = format!(
                    "shard {shard}: at {index} process {process} is shown with {records:?}, and has {expected:?}"
                );
                return Err(Violation::new(6, what).into());
            }
            self.marks.hit(Mark::LookedAt);
        }
        if !deletes {
            return Ok(());
        }
        let records: Vec<RecordKey> = records.into_iter().take(Shard::DELETE_BATCH).collect();
        let token = CallToken(DELETING | self.deletions.len() as u64);
        self.deletions.push(Deletion { shard, process: process.clone(), records: records.clone() });
        // It may arrive in a later life, and twice.
        for _ in 0..self.odd.u8(1..=2) {
            let delay = self.odd.u64(..20_000);
            let input = Input::Delete { token, process: process.clone(), records: records.clone() };
            self.at(delay, Event::Arrive((shard, input), self.now));
        }
        Ok(())
    }

    /// Notes the entry of a deletion that a shard appended.
    pub(super) fn deleting(&mut self, shard: ShardId, index: Index, records: usize) {
        self.deleted.insert((shard, index), records);
    }

    /// Compares the answer to a deletion with its entry, and with the model.
    pub(super) fn deletion_heard(&mut self, answer: &Answer) -> Outcomes {
        let Deletion { shard, process, records } = &self.deletions[(answer.token.0 & !DELETING) as usize];
        let Ok(Reply::Ok(count)) = &answer.result else { return Ok(()) };
        let count = (**count).try_into().map(u64::from_be_bytes).unwrap_or(u64::MAX) as usize;
        let (shard, index) = (*shard, answer.index);
        let bad = |what: String| {
            let what =
                format!("shard {shard}: the deletion of {process} is answered with {count} records, {what}");
            Err(Violation::new(7, what).into())
        };
        let known = self.model.state(shard);
        if count == 0 {
            let own = records_of(known, process);
            if known.position().index == index
                && let Some(left) = records.iter().find(|key| own.contains(*key))
            {
                return bad(format!("and has {left:?}"));
            }
            self.marks.hit(Mark::NothingDeleted);
            return Ok(());
        }
        match self.deleted.get(&(shard, index)) {
            Some(deleted) if *deleted == count => {
                self.marks.hit(Mark::ProcessDeleted);
                Ok(())
            }
            deleted => bad(format!("and entry {index} deletes {deleted:?}")),
        }
    }

    /// Takes the status of the shards, once their workers have answered, and compares it with the model.
    pub(super) fn status_comes(&mut self) -> Outcomes {
        let is_ending = self.is_ending();
        let node = self.node.as_mut().expect("it had a turn");
        let Some(shards) = node.status.as_mut().and_then(|status| status.take()) else { return Ok(()) };
        node.status = None;
        let status = node.parts.life().status_of(shards);
        if status.shards.len() != self.topology.shard_count() as usize && !is_ending {
            let what =
                format!("the status has {} of {} shards", status.shards.len(), self.topology.shard_count());
            return Err(Violation::new(6, what).into());
        }
        for found in &status.shards {
            self.check_status(found)?;
        }
        Ok(())
    }

    fn check_status(&mut self, found: &ShardStatus) -> Outcomes {
        let known = self.model.state(ShardId(found.shard));
        let position = known.position();
        if (found.index, found.epoch) != (position.index.0, position.epoch.0) {
            return Ok(());
        }
        let count = |kind| known.records().keys().filter(|key| key.kind() == kind).count() as u64;
        let figures = [
            ("records", found.records, known.records().len() as u64),
            ("colour", found.colour, position.colour.0),
            ("dead letters", found.dead_letters, count(Kind::DeadLetter)),
            ("sessions", found.sessions, count(Kind::Session)),
            ("timers", found.timers, count(Kind::Timer)),
            ("tasks", found.tasks_all, count(Kind::Task)),
        ];
        if let Some((what, found_now, expected)) = figures.iter().find(|(_, found, known)| found != known) {
            let (shard, index) = (found.shard, found.index);
            let what = format!(
                "shard {shard}: at {index} its status has {found_now} {what}, and the model {expected}"
            );
            return Err(Violation::new(6, what).into());
        }
        self.marks.hit(Mark::StatusTaken);
        Ok(())
    }

    /// Returns the manifests of all checkpoints, the oldest first, read without the node and the disk's faults.
    pub(super) fn stored_checkpoints(&mut self) -> Result<Vec<Manifest>, Stop> {
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        let stored = self.quietly(|_| {
            let mut stored = Vec::new();
            for number in decided_numbers(&store)? {
                match read_manifest(&store, number) {
                    Ok(manifest) => stored.push(manifest),
                    Err(CheckpointError::GivenUp { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(stored)
        });
        stored.map_err(|error| {
            Violation::new(13, format!("a stored checkpoint cannot be read: {error}")).into()
        })
    }

    /// Lists the checkpoints, and compares the list with what is stored. `None` if it could not be listed.
    pub(super) fn list_checkpoints(&mut self) -> Result<Option<Vec<Manifest>>, Stop> {
        let stored = self.stored_checkpoints()?;
        match self.operate(Life::checkpoints)? {
            None => Ok(None),
            Some(Err(error)) if self.excuses_command(&error) => Ok(None),
            Some(Err(error)) => {
                let what = format!("the checkpoints cannot be listed, and the disk did not fail: {error}");
                Err(Violation::new(0, what).into())
            }
            Some(Ok(found)) => {
                let is_same = found.len() == stored.len()
                    && found.iter().zip(&stored).all(|(info, manifest)| {
                        (info.number, info.records, info.in_flight)
                            == (manifest.number.0, manifest.totals.records, manifest.totals.messages)
                    });
                if is_same {
                    self.marks.hit(Mark::Listed);
                    return Ok(Some(stored));
                }
                let stored: Vec<_> = stored.iter().map(|manifest| manifest.number).collect();
                let what = format!("the list of checkpoints is {found:?}, and {stored:?} are stored");
                Err(Violation::new(13, what).into())
            }
        }
    }

    /// Verifies a checkpoint at once, when all rests.
    fn verify(&mut self, manifest: &Manifest) -> Outcomes {
        let number = manifest.number;
        self.is_verifying = true;
        let verified = self.operate(|life| life.verify(number.0));
        self.is_verifying = false;
        match verified? {
            None => Ok(()),
            Some(Ok(_)) if self.is_rotten_in(manifest) => Err(unseen_rot(number).into()),
            Some(verified) => self.verified(manifest, verified),
        }
    }

    /// Handles the result of a verification: the checkpoint holds, unless the disk has failed.
    pub(super) fn verified(
        &mut self,
        manifest: &Manifest,
        verified: Result<Report, CheckpointFailure>,
    ) -> Outcomes {
        let number = manifest.number;
        match verified {
            Ok(report) if !report.holds() => {
                let (wrong, checks) = (&report.inconsistencies, &report.checks);
                let what =
                    format!("checkpoint {number} does not hold when it is verified: {wrong:?}, {checks:?}");
                Err(Violation::new(9, what).into())
            }
            Ok(_) => {
                self.marks.hit(Mark::Verified);
                Ok(())
            }
            Err(error) if self.excuses_command(&error) => {
                if self.is_rotten_in(manifest) {
                    self.marks.hit(Mark::DamageVerified);
                }
                Ok(())
            }
            Err(error) => {
                let what = format!("checkpoint {number} is not verified, and the disk did not fail: {error}");
                Err(Violation::new(10, what).into())
            }
        }
    }

    /// At the end of a run, when all rests: the lists and the status say what is there, and every checkpoint holds.
    pub(super) fn inspect_at_rest(&mut self) -> Outcomes {
        let Some(stored) = self.list_checkpoints()? else { return Ok(()) };
        for manifest in &stored {
            self.verify(manifest)?;
        }
        self.check_pins()?;
        self.check_kept(&stored)?;
        self.look_at_rest()?;
        let Some(status) = self.operate(|life| life.status_of(Vec::new()))? else { return Ok(()) };
        let newest = stored.last().map(|manifest| manifest.number.0);
        let services: Vec<_> = self.topology.services().iter().map(|s| (s.name.as_str(), s.shards)).collect();
        let is_right = status.checkpoint == newest
            && status.checkpoint_running.is_none()
            && !status.full
            && status.failure.is_none()
            && status.incarnation == self.topology.incarnation.0
            && status.services.iter().map(|s| (s.name.as_str(), s.shards)).eq(services);
        if is_right {
            return Ok(());
        }
        let what = format!("all rests, checkpoint {newest:?} is the newest, and the status is {status:?}");
        Err(Violation::new(6, what).into())
    }
}

impl World {
    /// At the end of a run, when all rests: the node is ready, and what it says of single checkpoints, of its last check and of its
    /// services fits the list and the model.
    fn look_at_rest(&mut self) -> Outcomes {
        let looked = self.operate(|life| {
            let listed = life.checkpoints()?;
            let beyond = listed.last().map_or(1, |last| last.number + 1);
            let numbers = listed.iter().map(|info| info.number).chain([beyond]);
            let single: Result<Vec<_>, _> = numbers.map(|number| life.checkpoint_info(number)).collect();
            Ok((listed, single?, life.last_check(), life.readiness(), life.service_metrics()))
        })?;
        let Some(looked) = looked else { return Ok(()) };
        let wrong = |what: String| Err(Violation::new(6, format!("all rests, and {what}")).into());
        let (listed, single, last, ready, services) = match looked {
            Ok(looked) => looked,
            Err(error) => {
                let error: CheckpointFailure = error;
                return wrong(format!("the checkpoints cannot be read: {error}"));
            }
        };
        if let Err(reason) = ready {
            return wrong(format!("the node is not ready: {reason}"));
        }
        let expected = listed.iter().cloned().map(Some).chain([None]);
        if !single.iter().cloned().eq(expected) {
            return wrong(format!(
                "the list of checkpoints is {listed:?}, and one by one they are {single:?}"
            ));
        }
        let info = last.as_ref().and_then(|last| listed.iter().find(|info| info.number == last.number));
        if let (Some(last), Some(info)) = (&last, info)
            && last.check != info.check
        {
            return wrong(format!("the last check is {last:?}, and that of its checkpoint {info:?}"));
        }
        let names = self.topology.services().iter().map(|service| &service.name);
        if !services.iter().map(|service| &service.service).eq(names) {
            return wrong(format!("the services have the metrics {services:?}"));
        }
        let node = self.node.as_ref().expect("a node at rest lives");
        let all = node.parts.life().metrics();
        let sum = |figure: fn(&ServiceMetrics) -> u64| services.iter().map(figure).sum::<u64>();
        let sums =
            [sum(|of| of.requests), sum(|of| of.queries), sum(|of| of.entries), sum(|of| of.entry_bytes)];
        if sums != [all.requests, all.queries, all.entries, all.entry_bytes] {
            return wrong(format!(
                "the services' metrics have the sums {sums:?}, and those of the node are {all:?}"
            ));
        }
        Ok(())
    }
}

/// Whether a node has failed.
fn has_failed(node: &Node) -> bool {
    matches!(node.parts.shared.end_reason(), NoAnswer::Failed(_))
}
