//! The parts of checkpoints in a real node.

use crate::bell::Bell;
use crate::checkpoint::{
    CheckpointCommand, CheckpointFailure, CheckpointHub, CheckpointPart, CheckpointReport, MergePart,
    SnapshotQueue, Trouble, Wanted,
};
use crate::checks::Job;
use crate::clock::Clock;
use crate::env::Env;
use crate::events;
use crate::inbox::Command;
use crate::panics;
use crate::part::{Part, Turned};
use crate::shared::Shared;
use std::sync::Arc;
use std::time::Duration;
use stead_core::ids::{Index, ShardId, Time};
use stead_core::shard::Input;
use stead_store::checkpoint::checks::CheckOutcome;
use stead_store::checkpoint::manifest::Manifest;
use stead_store::checkpoint::store::BlobStore;

/// Interval at which checks that take too long are searched for.
const LOOK: Duration = Duration::from_secs(1);

/// The checkpoint part of a real node, which gives up the checks of services that take too long.
pub(crate) struct Checkpoints {
    pub(crate) part: CheckpointPart,
    pub(crate) store: Arc<dyn BlobStore>,
    /// Maximum time of the checks of a checkpoint.
    pub(crate) check_timeout: Duration,
    pub(crate) check_bytes_max: u64,
}

impl<E: Env> Part<Shared<E>> for Checkpoints {
    type Error = String;

    fn bell<'h>(&self, shared: &'h Shared<E>) -> &'h Bell {
        &shared.snapshots.bell
    }

    fn turn(&mut self, shared: &Shared<E>, now: Time) -> Result<Turned, String> {
        shared.checks.give_up_overdue(shared, &*self.store, self.check_timeout);
        let hub = Rest { shared, check_bytes_max: self.check_bytes_max };
        Ok(match self.part.turn(&hub, now)? {
            Turned::Until(until) => {
                let look = now.plus_micros(LOOK.as_micros() as u64);
                Turned::Until(Some(until.map_or(look, |until| until.min(look))))
            }
            turned => turned,
        })
    }
}

/// The merge part of a real node.
pub(crate) struct Merges(pub(crate) MergePart);

impl<E: Env> Part<Shared<E>> for Merges {
    type Error = String;

    fn bell<'h>(&self, shared: &'h Shared<E>) -> &'h Bell {
        &shared.snapshots.merges.bell
    }

    fn turn(&mut self, shared: &Shared<E>, now: Time) -> Result<Turned, String> {
        let hub = Rest { shared, check_bytes_max: 0 };
        panics::catch_own(|| self.0.turn(&hub, now)).unwrap_or_else(|panic| {
            // Bundles that are not merged cost room, and the next life would meet the same ones.
            events::warn(format_args!(
                "cannot merge bundles: the merge panicked; this is a bug in Stead: {panic}; they stay unchanged"
            ));
            self.0.give_up(&shared.snapshots);
            Ok(Turned::Again)
        })
    }
}

/// The rest of a real node.
struct Rest<'a, E: Env> {
    shared: &'a Shared<E>,
    check_bytes_max: u64,
}

impl<E: Env> CheckpointHub for Rest<'_, E> {
    fn queue(&self) -> &SnapshotQueue {
        &self.shared.snapshots
    }

    fn wall(&self) -> Time {
        self.shared.clock.wall()
    }

    fn is_over(&self) -> bool {
        self.shared.is_over()
    }

    fn is_log_spent(&self) -> bool {
        self.shared.log.is_spent()
    }

    fn perform(&self, command: CheckpointCommand) {
        let shared = self.shared;
        match command {
            CheckpointCommand::ForceFull(shards) => {
                for shard in shards {
                    shared.inboxes[shared.worker_of(shard)].push(Command::ForceFull(shard));
                }
            }
            CheckpointCommand::Colour(number) => {
                for inbox in &shared.inboxes {
                    inbox.push(Command::every(Input::Colour(number)));
                }
            }
            CheckpointCommand::Discard { shard, number } => {
                shared.inboxes[shared.worker_of(shard)].push(Command::GivenUp(number));
            }
            // A worker without other work sleeps.
            CheckpointCommand::CaughtUp => shared.inboxes.iter().for_each(|inbox| inbox.bell.ring()),
            CheckpointCommand::Completed { manifest, duration, wanted } => {
                for inbox in &shared.inboxes {
                    inbox.push(Command::every(Input::Completed(manifest.number)));
                }
                self.completed(*manifest, duration, wanted);
            }
            CheckpointCommand::GivenUp { number, reason, wanted } => {
                events::warn(format_args!("checkpoint {number} is given up: {reason}"));
                shared.counters.checkpoints_failed.add(1);
                for inbox in &shared.inboxes {
                    inbox.push(Command::GivenUp(number));
                }
                let failure = CheckpointFailure::GivenUp { number: number.0, reason };
                answer_all(wanted, &failure);
            }
            CheckpointCommand::Refused(wanted) => {
                events::warn(CheckpointFailure::Full);
                answer_all(wanted, &CheckpointFailure::Full);
            }
            CheckpointCommand::Trim(tops) => shared.log.trim(by_position(&tops)),
            CheckpointCommand::Merge(job) => shared.snapshots.merges.put(job),
            CheckpointCommand::Merged(bytes) => shared.counters.checkpoint_bytes.add(bytes),
            // The give-up is reported with its reason.
            CheckpointCommand::Trouble(Trouble::Checkpoint(..)) => {}
            CheckpointCommand::Trouble(trouble) => events::warn(trouble),
        }
    }
}

impl<E: Env> Rest<'_, E> {
    fn completed(&self, manifest: Manifest, duration: Duration, wanted: Vec<Wanted>) {
        let shared = self.shared;
        let counters = &shared.counters;
        counters.checkpoints.add(1);
        counters.checkpoint_bytes.add(manifest.totals.written_bytes);
        shared.copies.completed();
        let report = CheckpointReport {
            number: manifest.number.0,
            duration,
            bytes_written: manifest.totals.written_bytes,
            bytes_total: manifest.totals.section_bytes,
            records: manifest.totals.records,
            in_flight: manifest.totals.messages,
            stall_max: Duration::from_micros(counters.checkpoint_stall_micros.get()),
            check: CheckOutcome::NotChecked,
            failed_checks: Vec::new(),
            skipped_checks: Vec::new(),
        };
        let of_interval = wanted.is_empty();
        let (checked, unchecked): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|wanted| wanted.checked);
        for wanted in unchecked {
            wanted.reply.send(Ok(report.clone()));
        }
        let replies: Vec<_> = checked.into_iter().map(|wanted| wanted.reply).collect();
        let fits = manifest.totals.section_bytes <= self.check_bytes_max;
        if (of_interval && fits) || !replies.is_empty() {
            // Before the next collection.
            let pin = shared.snapshots.pin(manifest.number);
            let job = Job { manifest, report, replies, pin };
            if of_interval {
                shared.checks.offer(shared, job);
            } else {
                shared.checks.want(shared, job);
            }
        } else {
            counters.checkpoints_unchecked.add(1);
        }
    }
}

fn answer_all(wanted: Vec<Wanted>, failure: &CheckpointFailure) {
    for wanted in wanted {
        wanted.reply.send(Err(failure.clone()));
    }
}

/// Returns, by shard number, the index up to which the log is not needed.
fn by_position(tops: &[(ShardId, Index)]) -> Vec<Index> {
    let mut all = Vec::new();
    for (shard, top) in tops {
        let at = shard.0 as usize;
        all.resize(all.len().max(at + 1), Index(0));
        all[at] = *top;
    }
    all
}
