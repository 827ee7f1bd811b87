//! Checkpoints of the interval, which nothing requests: each begins when its time has come, and their newest is checked.

use super::{Outcomes, World};
use crate::bug::Bug;
use crate::marks::Mark;
use crate::model::LATE_MAX;
use crate::violation::Violation;
use std::time::Duration;
use stead_core::ids::CheckpointNumber;
use stead_store::checkpoint::manifest::Manifest;

/// The interval at the end of a run, in microseconds.
pub(super) const REHEARSED_INTERVAL: u64 = 300_000;

/// The interval of checkpoints in one life of the node. Times are virtual.
#[derive(Default)]
pub(crate) struct Interval {
    /// The time from one beginning to the next, if there is an interval.
    length: Option<u64>,
    /// The time of the last beginning, or from which the interval holds.
    since: u64,
    /// Whether `since` is exact: then none begins before its time is over.
    is_exact: bool,
    /// The time by which the part has taken the last change of the interval.
    settled: u64,
    /// The running checkpoint, and the time since which none runs.
    running: Option<CheckpointNumber>,
    free_since: u64,
    /// The newest complete checkpoint of the interval, until the services' checks have read it.
    unchecked: Option<CheckpointNumber>,
    /// The newest one that is too large to be checked.
    too_large: Option<CheckpointNumber>,
}

impl Interval {
    /// A life begins with this interval; 0 for none.
    pub(super) fn new(length: u64) -> Self {
        Self { length: (length > 0).then_some(length), is_exact: true, ..Self::default() }
    }

    /// A due checkpoint was refused, some time after it was due.
    pub(super) fn refused(&mut self, now: u64) {
        (self.since, self.is_exact) = (now, false);
    }

    /// A checkpoint that nothing requested exists.
    pub(super) fn completed(&mut self, number: CheckpointNumber) {
        self.unchecked = Some(number);
    }

    /// Whether a checkpoint is too large to be checked by itself.
    pub(super) fn is_too_large(&self, number: CheckpointNumber) -> bool {
        self.too_large == Some(number)
    }

    /// A check has read a checkpoint; returns whether it was one of the interval.
    pub(super) fn checked(&mut self, number: CheckpointNumber) -> bool {
        self.unchecked.take_if(|unchecked| *unchecked <= number).is_some()
    }
}

impl World {
    /// A life has begun, and its first interval with it.
    pub(super) fn begin_interval(&mut self) {
        let now = self.now;
        let interval = &mut self.checkpoints().interval;
        (interval.since, interval.free_since) = (now, now);
    }

    /// Notes that a checkpoint of the interval is too large to be checked, if it is.
    pub(super) fn note_size(&mut self, manifest: &Manifest) {
        if manifest.totals.section_bytes > self.profile.check_bytes_max {
            self.checkpoints().interval.too_large = Some(manifest.number);
            self.marks.hit(Mark::CheckpointTooLarge);
        }
    }

    /// Sets the interval as an operator does, if the node lives.
    pub(super) fn set_interval(&mut self, length: Option<u64>) {
        let now = self.now;
        let Some(node) = &mut self.node else { return };
        let interval = &mut node.checkpoints.interval;
        (interval.length, interval.since, interval.is_exact) = (length, now, false);
        interval.settled = now + LATE_MAX;
        node.parts
            .life()
            .set_checkpoint_interval(length.map(Duration::from_micros))
            .expect("no shard has other replicas");
        self.heed_bells();
    }

    /// Looks, after a turn of the checkpoint part that began at `steady`, whether a checkpoint has begun or ended in it.
    pub(super) fn look_at_interval(&mut self, steady: u64) -> Outcomes {
        let node = self.node.as_mut().expect("it had a turn");
        let (running, checkpoints) = (node.running_checkpoint(), &mut node.checkpoints);
        let interval = &mut checkpoints.interval;
        let before = std::mem::replace(&mut interval.running, running);
        if before.is_some() && before != running {
            interval.free_since = steady;
        }
        let Some(number) = running.filter(|_| before != running) else { return Ok(()) };
        let (since, is_exact) = (interval.since, interval.is_exact && interval.settled <= steady);
        (interval.since, interval.is_exact) = (steady, true);
        let is_early = is_exact && interval.length.is_none_or(|length| steady < since + length);
        if checkpoints.wanted > 0 {
            return Ok(());
        }
        self.marks.hit(Mark::CheckpointByInterval);
        if is_early {
            let what = format!(
                "checkpoint {number} begins at {steady}, was not requested, and the interval began at {since}"
            );
            return Err(Violation::new(17, what).into());
        }
        Ok(())
    }

    /// Invariant 17 for the interval: once it is over, and no checkpoint runs, the next one begins.
    pub(super) fn check_interval(&self) -> Outcomes {
        let Some(node) = &self.node else { return Ok(()) };
        let Interval { length, since, running, free_since, .. } = node.checkpoints.interval;
        let (Some(length), None) = (length, running) else { return Ok(()) };
        if self.is_ending() || !node.serves {
            return Ok(());
        }
        let due = (since + length).max(free_since);
        if self.now <= due + LATE_MAX {
            return Ok(());
        }
        let now = self.now;
        let what =
            format!("a checkpoint of the interval was due at {due}, and none has begun at {now} \u{b5}s");
        Err(Violation::new(17, what).into())
    }

    /// The planted bug: the checkpoint part is not woken when a checkpoint of the interval is due.
    pub(super) fn skips_interval(&self) -> bool {
        self.bug == Some(Bug::SkipInterval)
            && self.node.as_ref().is_some_and(|node| {
                node.running_checkpoint().is_none() && node.checkpoints.interval.length.is_some()
            })
    }

    /// At the end of a run: the checkpoint of the interval was taken. Each one of this life was checked, or is counted as one
    /// that was not.
    pub(super) fn check_rehearsed_interval(&mut self) -> Outcomes {
        let checkpoints = self.checkpoints();
        if !checkpoints.is_complete() || checkpoints.interval.length.is_some() {
            let what = "no checkpoint of the interval was completed without faults";
            return Err(Violation::new(17, what).into());
        }
        let metrics = self.node.as_ref().expect("it rests").parts.life().metrics();
        let (all, checked) = (metrics.checkpoints, metrics.checkpoint_checks);
        let unchecked = metrics.checkpoints_unchecked;
        let interval = &self.checkpoints().interval;
        let number = interval.unchecked.filter(|number| !interval.is_too_large(*number));
        if let Some(number) = number.filter(|_| self.marked_services.is_empty() && self.runs_checks()) {
            let what = format!("checkpoint {number} of the interval is not checked, and nothing fails");
            return Err(Violation::new(17, what).into());
        }
        if all == checked + unchecked {
            return Ok(());
        }
        let what = format!("of {all} checkpoints {checked} were checked, and {unchecked} are said not to be");
        Err(Violation::new(17, what).into())
    }
}
