//! The checks that services declare, as the node runs them: each reads one consistent cut, and one that ends the process again and
//! again is run no more.

use super::{End, Outcomes, World};
use crate::bug::Bug;
use crate::marks::Mark;
use crate::model::difference;
use crate::refusals::Area;
use crate::stage::{Shown, Turn};
use crate::violation::Violation;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use stead_core::ids::Colour;
use stead_core::state::{Position, State};
use stead_node::{CheckpointReport, FailedCheck, PartId};
use stead_store::checkpoint::begun::{Begun, begun_names};
use stead_store::checkpoint::checks::CheckOutcome;
use stead_store::checkpoint::store::{BlobStore, DiskStore};
use stead_store::data_dir::CHECKPOINTS;

/// The simulator's account of checks that began and did not come to their end: only these may be skipped.
#[derive(Default)]
pub(crate) struct UnendedChecks {
    /// By service, the lives that ended within its check since it last came to its end.
    lives: BTreeMap<String, u32>,
    /// As `lives` at the beginning of this life.
    at_start: BTreeMap<String, u32>,
    /// The service whose check has begun in this life, and whether it has run and its end is not recorded.
    open: Option<(String, bool)>,
    /// Its mark, while its turn to run comes next.
    about: Option<String>,
    /// The marks on the disk.
    marks: BTreeSet<String>,
}

impl UnendedChecks {
    /// The check of a service came to its end; `is_removed` if its mark and those before it could be removed. Otherwise it counts as
    /// one more that did not end.
    fn ended(&mut self, service: &str, is_removed: bool) {
        if is_removed {
            self.lives.remove(service);
        } else {
            let lives = self.lives.entry(service.to_owned()).or_default();
            *lives = lives.saturating_add(1);
        }
    }
}

impl World {
    /// A life begins: notes the checks that may be skipped in it.
    pub(super) fn begin_check_account(&mut self) {
        let marks = self.check_marks().into_keys().collect();
        let unended = &mut self.unended_checks;
        unended.at_start = unended.lives.clone();
        (unended.open, unended.about, unended.marks) = (None, None, marks);
    }

    /// A life ends, which may leave the mark of its open check.
    pub(super) fn end_check_account(&mut self) {
        let unended = &mut self.unended_checks;
        if let Some((service, _)) = unended.open.take() {
            let lives = unended.lives.entry(service).or_default();
            *lives = lives.saturating_add(1);
        }
    }

    /// Whether the disk refused nothing in this turn that could keep a mark of a check from being removed.
    fn marks_are_removed(&self) -> bool {
        !self.refused_in_turn().any_of(Area::Checkpoints)
    }

    /// The power was cut within a turn that may have begun the check of any service.
    pub(super) fn any_check_may_be_open(&mut self) {
        for service in self.topology.services() {
            let lives = self.unended_checks.lives.entry(service.name.clone()).or_default();
            *lives = lives.saturating_add(1);
        }
    }

    /// Returns the marks of checks on the disk, each with its service.
    fn check_marks(&mut self) -> BTreeMap<String, String> {
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        self.quietly(|_| {
            let names = begun_names(&store).unwrap_or_default().into_iter();
            names.filter_map(|name| Some((name.clone(), Begun::read(&store, &name).ok()?.service))).collect()
        })
    }

    /// Notes what a turn of the part that runs checks did: it marked a check, ran it, or recorded its result. If it panicked, no mark
    /// of a check that had not begun is left.
    pub(super) fn checks_had_turn(&mut self, turn: &Turn) -> Outcomes {
        self.open_check = None;
        let ran = turn.shown.iter().find_map(|shown| match shown {
            Shown::Checked { service, .. } => Some(service.clone()),
            _ => None,
        });
        if let Some(service) = ran {
            (self.unended_checks.open, self.unended_checks.about) = (Some((service, true)), None);
            return Ok(());
        }
        if !self.is_ending()
            && let Some((service, _)) = self.unended_checks.open.take_if(|(_, has_run)| *has_run)
        {
            let is_removed = self.marks_are_removed();
            self.unended_checks.ended(&service, is_removed);
        }
        let marks = self.check_marks();
        let is_withdrawn = turn.panicked && !self.is_ending() && self.marks_are_removed();
        let unended = &mut self.unended_checks;
        let about = unended.about.take();
        if is_withdrawn {
            let is_of_none = |name: &String| !unended.marks.contains(name) || about.as_ref() == Some(name);
            if let Some((_, service)) = marks.iter().find(|(name, _)| is_of_none(name)) {
                let what = format!("the check of service {service} had not begun, and its mark is left");
                return Err(Violation::new(17, what).into());
            }
            // Of an earlier check a mark may be left that the disk has kept.
            unended.open.take_if(|_| about.is_some());
        } else if let Some((name, service)) = marks.iter().find(|(name, _)| !unended.marks.contains(*name)) {
            (unended.open, unended.about) = (Some((service.clone(), false)), Some(name.clone()));
        }
        unended.marks = marks.into_keys().collect();
        Ok(())
    }

    /// Notes the checks that an operator's command has run.
    pub(super) fn operator_checked(&mut self, turn: &Turn) {
        let is_removed = self.marks_are_removed();
        for shown in &turn.shown {
            if let Shown::Checked { service, .. } = shown {
                self.unended_checks.ended(service, is_removed);
            }
        }
        self.unended_checks.marks = self.check_marks().into_keys().collect();
    }

    /// A service's check ran to its end.
    pub(crate) fn checked(&mut self, service: &str, seen: &[State], result: Result<(), String>) -> Outcomes {
        self.may_be_checked(service)?;
        self.check_deaths.remove(service);
        self.marks.hit(Mark::Checked);
        if !self.is_verifying {
            // Its end is recorded in the next turn of its part.
            self.open_check = Some(service.to_owned());
        }
        let number = seen.iter().map(|state| state.position().colour).max().unwrap_or(Colour(0));
        if !self.is_verifying && self.checkpoints().interval.is_too_large(number.number()) {
            let what = format!("checkpoint {number} is too large to be checked, and was");
            return Err(Violation::new(17, what).into());
        }
        if self.checkpoints().interval.checked(number.number()) {
            self.marks.hit(Mark::IntervalChecked);
        }
        for state in seen {
            let (shard, Position { index, colour, .. }) = (state.shard(), state.position());
            let differs = match self.model.mark(number.number(), shard) {
                _ if colour != number => Some(format!("colour {colour}")),
                mark => mark.and_then(|mark| difference(mark, state)),
            };
            if let Some(differs) = differs {
                let what = format!(
                    "the check of service {service} over checkpoint {number} read shard {shard} at entry {index}, with {differs}"
                );
                return Err(Violation::new(10, what).into());
            }
        }
        Ok(result.map_err(|what| Violation::parse(&what))?)
    }

    /// Notes the checks that came to their end in a turn within which the power was cut: their marks may be gone.
    pub(super) fn note_checked(&mut self, turn: &Turn) {
        for shown in &turn.shown {
            if let Shown::Checked { service, .. } = shown {
                self.check_deaths.remove(service);
            }
        }
    }

    /// A service's check ended the process.
    pub(crate) fn died_in_check(&mut self, service: &str) -> Outcomes {
        self.may_be_checked(service)?;
        self.marks.hit(Mark::CheckKilled);
        *self.check_deaths.entry(service.to_owned()).or_default() += 1;
        self.end(End::Process)?;
        if self.bug == Some(Bug::ForgetCheckMark) {
            let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
            self.quietly(|_| {
                for name in begun_names(&store).unwrap_or_default() {
                    let _ = store.delete(&name);
                }
            });
        }
        Ok(())
    }

    /// Returns the number of lives that the check of a service may end.
    fn attempts_max(&self, service: &str) -> u32 {
        let place = self.topology.service_id(service).map_or(usize::MAX, |id| usize::from(id.0));
        self.profile.settings_of(place).attempts_max
    }

    /// Invariant 17 for checks: one that has ended the process as often as it may be tried is not run.
    fn may_be_checked(&self, service: &str) -> Outcomes {
        let deaths = self.check_deaths.get(service).copied().unwrap_or(0);
        if self.is_verifying {
            return Ok(());
        }
        if deaths < self.attempts_max(service) {
            return Ok(());
        }
        let what =
            format!("the check of service {service} has ended the process {deaths} times, and ran again");
        Err(Violation::new(17, what).into())
    }

    /// Notes the services whose checks have left a mark on the disk, before a node loads these.
    pub(super) fn note_marked(&mut self) {
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        self.marked_services = self.quietly(|_| {
            let names = begun_names(&store).unwrap_or_default();
            names.iter().filter_map(|name| Some(Begun::read(&store, name).ok()?.service)).collect()
        });
    }

    /// Whether the checks of a checkpoint have yet to run.
    pub(super) fn waits_for_checks(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.due.contains_key(&PartId::Checks))
    }

    /// The report of a checkpoint whose checks were wanted: none of them fails, so none is reported as failed, but one that
    /// has begun and not ended in time. Without faults each runs.
    pub(crate) fn check_report(&mut self, report: &CheckpointReport) -> Outcomes {
        let is_late = |failed: &FailedCheck| {
            self.open_check.as_ref() == Some(&failed.service) && failed.reason.contains("has not ended")
        };
        if report.failed_checks.iter().any(is_late) {
            self.marks.hit(Mark::CheckLate);
        }
        if let Some(failed) = report.failed_checks.iter().find(|failed| !is_late(failed)) {
            let what = format!(
                "checkpoint {}: the check of service {} is reported as failed, and did not: {}",
                report.number, failed.service, failed.reason
            );
            return Err(Violation::new(17, what).into());
        }
        for skipped in &report.skipped_checks {
            let unended = self.unended_checks.at_start.get(&skipped.service).copied().unwrap_or(0);
            if unended < self.attempts_max(&skipped.service) {
                let what = format!(
                    "checkpoint {}: the check of service {} is skipped, which {unended} lives left without its end: {}",
                    report.number, skipped.service, skipped.reason
                );
                return Err(Violation::new(17, what).into());
            }
        }
        if !report.skipped_checks.is_empty() {
            self.marks.hit(Mark::CheckSkipped);
        } else if report.check == CheckOutcome::NotChecked {
            if self.is_rehearsing_checks() {
                let what = format!("checkpoint {} is not checked, and nothing fails", report.number);
                return Err(Violation::new(17, what).into());
            }
            self.marks.hit(Mark::ChecksGivenUp);
        }
        Ok(())
    }
}
