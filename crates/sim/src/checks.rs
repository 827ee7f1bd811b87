//! The checks that services declare, as the node runs them: each reads one consistent cut, and one that ends the process again and
//! again is run no more.

use crate::bug::Bug;
use crate::marks::Mark;
use crate::violation::Violation;
use crate::world::{End, Outcomes, World};
use std::sync::Arc;
use stead_core::ids::{Colour, ShardId};
use stead_core::state::{Position, State};
use stead_node::CheckpointReport;
use stead_store::checkpoint::begun::begun_names;
use stead_store::checkpoint::checks::CheckOutcome;
use stead_store::checkpoint::store::{BlobStore, DiskStore};
use stead_store::data_dir::CHECKPOINTS;

impl World {
    /// A service's check ran to its end.
    pub(crate) fn checked(
        &mut self,
        service: &str,
        seen: &[(ShardId, Position, u128)],
        result: Result<(), String>,
    ) -> Outcomes {
        self.may_be_checked(service)?;
        self.check_deaths.remove(service);
        self.marks.hit(Mark::Checked);
        let number = seen.iter().map(|(_, position, _)| position.colour).max().unwrap_or(Colour(0));
        for (shard, position, hash) in seen {
            let is_other = |mark: &State| mark.hash() != *hash;
            if position.colour != number || self.model.mark(number.number(), *shard).is_some_and(is_other) {
                let (index, colour) = (position.index, position.colour);
                let what = format!(
                    "the check of service {service} over checkpoint {number} read shard {shard} at entry {index}, of colour {colour}"
                );
                return Err(Violation::new(10, what).into());
            }
        }
        Ok(result.map_err(|what| Violation::parse(&what))?)
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

    /// Invariant 17 for checks: one that has ended the process as often as it may be tried is not run.
    fn may_be_checked(&self, service: &str) -> Outcomes {
        let deaths = self.check_deaths.get(service).copied().unwrap_or(0);
        if deaths < self.profile.settings.attempts_max {
            return Ok(());
        }
        let what =
            format!("the check of service {service} has ended the process {deaths} times, and ran again");
        Err(Violation::new(17, what).into())
    }

    /// The report of a checkpoint whose checks were wanted: none of them fails, so none is reported as failed.
    pub(crate) fn check_report(&mut self, report: &CheckpointReport) -> Outcomes {
        if let Some(failed) = report.failed_checks.first() {
            let what = format!(
                "checkpoint {}: the check of service {} is reported as failed, and did not: {}",
                report.number, failed.service, failed.reason
            );
            return Err(Violation::new(17, what).into());
        }
        if !report.skipped_checks.is_empty() {
            self.marks.hit(Mark::CheckSkipped);
        } else if report.check == CheckOutcome::NotChecked {
            self.marks.hit(Mark::ChecksGivenUp);
        }
        Ok(())
    }
}
