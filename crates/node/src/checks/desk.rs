//! The checkpoints that wait for their checks, and the results that others see.

use crate::bell::Bell;
use crate::checkpoint::{CheckpointReply, CheckpointReport, Pin, failed, skipped};
use crate::checks::CheckMarks;
use crate::status::CheckStatus;
use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_core::ids::{CheckpointNumber, Micros, Time};
use stead_store::checkpoint::checks::CheckOutcome;
use stead_store::checkpoint::manifest::{CheckResult, Manifest};
use stead_store::checkpoint::store::BlobStore;

/// Maximum number of requested checkpoints that wait for their checks.
const WANTED_MAX: usize = 64;

/// A checkpoint to be checked, and the callers that wait for that.
pub(crate) struct CheckJob {
    pub(crate) manifest: Manifest,
    /// That of a checkpoint that is not checked.
    pub(crate) report: CheckpointReport,
    pub(crate) replies: Vec<CheckpointReply>,
    /// Keeps it from being deleted while it is read.
    pub(crate) pin: Option<Pin>,
}

impl CheckJob {
    /// Gives the callers the report with these results.
    pub(super) fn answer(mut self, results: &[CheckResult]) {
        self.report.check = CheckOutcome::of(results.iter().map(CheckResult::outcome));
        self.report.failed_checks = failed(results);
        self.report.skipped_checks = skipped(results);
    }
}

/// Gives the callers the report: that of a checkpoint that is not checked if nothing else answers them, as after a panic of the part that
/// runs the checks.
impl Drop for CheckJob {
    fn drop(&mut self) {
        drop(self.pin.take());
        for reply in mem::take(&mut self.replies) {
            reply.send(Ok(self.report.clone()));
        }
    }
}

/// A checkpoint whose checks run.
pub(super) struct Running {
    pub(super) job: CheckJob,
    since: Time,
    /// The service whose check runs.
    pub(super) service: Option<String>,
    /// Its mark.
    pub(super) mark: Option<String>,
    pub(super) results: Vec<CheckResult>,
}

#[derive(Default)]
struct Held {
    wanted: VecDeque<CheckJob>,
    newest: Option<CheckJob>,
    running: Option<Running>,
    /// Whether checks that were given up still hold the thread.
    stuck: bool,
    rest_until: Time,
    last: Option<CheckStatus>,
    stopped: bool,
    /// Whether a part runs the checks.
    has_part: bool,
}

/// The checkpoints that wait for their checks, and the last results.
pub(crate) struct CheckDesk {
    /// Maximum size of a checkpoint of the interval that is checked, in bytes.
    bytes_max: u64,
    held: Mutex<Held>,
    pub(super) bell: Bell,
    pub(crate) marks: CheckMarks,
}

impl CheckDesk {
    /// Runs no checks, until there is a part. Checkpoints of the interval over `bytes_max` bytes are not checked.
    pub(crate) fn new(bytes_max: u64, store: Arc<dyn BlobStore>) -> Self {
        Self { bytes_max, held: Mutex::default(), bell: Bell::default(), marks: CheckMarks::new(store) }
    }

    /// Maximum size of a checkpoint of the interval that is checked, in bytes.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Returns the number of requested checkpoints that wait for their checks, with its limit.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.held().wanted.len(), WANTED_MAX)
    }

    /// Returns the checkpoints that it keeps from being deleted.
    pub(crate) fn pins(&self) -> BTreeSet<CheckpointNumber> {
        let held = self.held();
        let running = held.running.as_ref().map(|running| &running.job);
        let jobs = held.wanted.iter().chain(&held.newest).chain(running);
        jobs.filter(|job| job.pin.is_some()).map(|job| job.manifest.number).collect()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the last checkpoint whose checks ended, if one of them failed, or a check was given up; otherwise the
    /// last one.
    pub(crate) fn last(&self) -> Option<CheckStatus> {
        let last = self.held().last.clone();
        let Some(mut given_up) = self.marks.given_up() else { return last };
        let Some(mut last) = last.filter(|last| last.check == CheckOutcome::Failed) else {
            return Some(given_up);
        };
        given_up
            .failed_checks
            .retain(|check| last.failed_checks.iter().all(|one| one.service != check.service));
        last.failed_checks.append(&mut given_up.failed_checks);
        Some(last)
    }

    /// Notes that a part runs the checks from now on, until [`Self::part_ended`].
    pub(crate) fn part_begins(&self) {
        self.held().has_part = true;
    }

    /// Notes that the part has ended, also by a panic: from then on no caller waits for it, and the check that it had marked does not
    /// begin. If the node has ended, too, the store is left alone. Returns the number of checkpoints that are not checked any more.
    pub(crate) fn part_ended(&self, is_ended: bool) -> usize {
        let unchecked = self.stop();
        self.held().has_part = false;
        self.marks.withdraw(is_ended);
        unchecked
    }

    /// Adds a checkpoint of the interval, replacing an older one that still waits.
    /// Returns false if this one or the older one is not checked.
    pub(crate) fn offer(&self, job: CheckJob) -> bool {
        let mut held = self.held();
        let passed_over = if held.stopped || !held.has_part { Some(job) } else { held.newest.replace(job) };
        drop(held);
        self.bell.ring();
        passed_over.is_none()
    }

    /// Adds a requested checkpoint; the callers are answered once it is checked. Returns false if it is not: then they are
    /// answered at once.
    pub(crate) fn want(&self, job: CheckJob) -> bool {
        let mut held = self.held();
        if held.stopped || held.stuck || !held.has_part || held.wanted.len() >= WANTED_MAX {
            drop(held);
            job.answer(&[]);
            return false;
        }
        held.wanted.push_back(job);
        drop(held);
        self.bell.ring();
        true
    }

    /// Accepts nothing more; waiting callers get the report of a checkpoint that is not checked. Returns the number of checkpoints
    /// that waited for their checks, or were being checked.
    pub(crate) fn stop(&self) -> usize {
        let mut held = self.held();
        held.stopped = true;
        let newest = held.newest.take();
        let running = held.running.take().map(|running| running.job);
        let jobs: Vec<CheckJob> = held.wanted.drain(..).chain(running).collect();
        drop(held);
        let unchecked = jobs.len() + usize::from(newest.is_some());
        // After the lock: its pin may wait for a deletion, which syncs.
        drop(newest);
        self.bell.ring();
        for job in jobs {
            job.answer(&[]);
        }
        unchecked
    }

    /// Returns the next checkpoint to check, if there is one and the part does not rest.
    pub(super) fn next(&self, now: Time) -> Next {
        let mut held = self.held();
        if held.stopped {
            return Next::Ended;
        }
        let asked = held.wanted.pop_front();
        let is_asked = asked.is_some();
        let rests = now < held.rest_until;
        let Some(job) = asked.or_else(|| held.newest.take_if(|_| !rests)) else {
            return Next::Sleep(held.newest.as_ref().map(|_| held.rest_until));
        };
        let manifest = Box::new(job.manifest.clone());
        held.running = Some(Running { job, since: now, service: None, mark: None, results: Vec::new() });
        Next::Take(manifest, is_asked)
    }

    /// Notes the progress of a checkpoint's checks; returns false if they were given up.
    pub(super) fn note(&self, number: CheckpointNumber, note: impl FnOnce(&mut Running)) -> bool {
        let mut held = self.held();
        let running = held.running.as_mut().filter(|running| running.number() == number);
        running.map(note).is_some()
    }

    /// The time at which [`Self::take_overdue`] takes those that run.
    pub(crate) fn overdue_at(&self, limit: Duration) -> Option<Time> {
        let held = self.held();
        Some(held.running.as_ref()?.since.plus(limit.into()).plus(Micros(1)))
    }

    /// Takes the checks that have run for longer than the limit at `now`, and the checkpoints that wait behind them: until the
    /// part notices, no other one is accepted.
    pub(super) fn take_overdue(&self, now: Time, limit: Duration) -> Option<(Running, Vec<CheckJob>)> {
        let mut held = self.held();
        let running = held.running.take_if(|running| running.since.plus(limit.into()) < now)?;
        held.stuck = true;
        if let Some(mark) = &running.mark {
            self.marks.overdue(mark);
        }
        Some((running, held.wanted.drain(..).collect()))
    }

    /// Takes the checks of a checkpoint that have ended, unless they were given up.
    pub(super) fn take_ended(&self, number: CheckpointNumber) -> Option<Running> {
        self.held().running.take_if(|running| running.number() == number)
    }

    /// Notes the results of a checkpoint's checks.
    pub(super) fn note_last(&self, status: CheckStatus) {
        self.held().last = Some(status);
    }

    /// Notes that the part has no checkpoint any more; it rests until a time, if one is given.
    pub(super) fn is_free(&self, rest_until: Option<Time>) {
        let mut held = self.held();
        held.stuck = false;
        held.rest_until = rest_until.unwrap_or(held.rest_until);
    }
}

impl Running {
    pub(super) fn number(&self) -> CheckpointNumber {
        self.job.manifest.number
    }
}

/// The part's next work.
pub(super) enum Next {
    /// Check this checkpoint; the flag says whether it was requested.
    Take(Box<Manifest>, bool),
    /// Sleep until a checkpoint comes, or until this time.
    Sleep(Option<Time>),
    Ended,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::CheckpointFailure;
    use crate::reply::Reply;
    use crate::shared::tests::check_desk;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use stead_core::ids::Incarnation;
    use stead_store::checkpoint::manifest::Totals;

    /// Notes when it is dropped whether the desk was free.
    struct Dropped(Arc<CheckDesk>, Arc<AtomicBool>);

    impl Reply<Result<CheckpointReport, CheckpointFailure>> for Dropped {
        fn send(self: Box<Self>, _: Result<CheckpointReport, CheckpointFailure>) {}

        fn is_gone(&self) -> bool {
            false
        }
    }

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.1.store(self.0.held.try_lock().is_ok(), Ordering::Relaxed);
        }
    }

    fn job(replies: Vec<CheckpointReply>) -> CheckJob {
        let manifest = Manifest {
            cluster: None,
            incarnation: Incarnation(1),
            number: CheckpointNumber(1),
            created: Time(1),
            writer: 5,
            services: Vec::new(),
            bundles: Vec::new(),
            parts: Vec::new(),
            in_flight: Vec::new(),
            totals: Totals::default(),
            checks: Vec::new(),
        };
        let report = CheckpointReport {
            number: 1,
            duration: Duration::ZERO,
            bytes_written: 0,
            bytes_total: 0,
            records: 0,
            in_flight: 0,
            stall_max: Duration::ZERO,
            check: CheckOutcome::NotChecked,
            failed_checks: Vec::new(),
            skipped_checks: Vec::new(),
        };
        CheckJob { manifest, report, replies, pin: None }
    }

    /// Its pin may wait for a deletion, which syncs a directory; others look at the desk meanwhile.
    #[test]
    fn a_checkpoint_that_is_not_checked_any_more_is_dropped_after_the_lock() {
        let desk = Arc::new(check_desk(1));
        desk.part_begins();
        let was_free: Arc<AtomicBool> = Arc::default();
        let replies: Vec<CheckpointReply> = vec![Box::new(Dropped(Arc::clone(&desk), Arc::clone(&was_free)))];
        assert!(desk.offer(job(replies)));
        desk.stop();
        assert!(was_free.load(Ordering::Relaxed));
    }

    struct Answered(Arc<Mutex<Option<CheckOutcome>>>);

    impl Reply<Result<CheckpointReport, CheckpointFailure>> for Answered {
        fn send(self: Box<Self>, result: Result<CheckpointReport, CheckpointFailure>) {
            *self.0.lock().unwrap() = result.ok().map(|report| report.check);
        }

        fn is_gone(&self) -> bool {
            false
        }
    }

    /// The part has taken the checkpoint from the desk, and panics while it stores the results.
    #[test]
    fn the_callers_of_a_checkpoint_whose_checks_end_in_a_panic_are_answered() {
        let answer: Arc<Mutex<_>> = Arc::default();
        let running = job(vec![Box::new(Answered(Arc::clone(&answer)))]);
        let panic = catch_unwind(AssertUnwindSafe(move || {
            let _running = running;
            resume_unwind(Box::new("on purpose"));
        }));
        assert!(panic.is_err());
        assert_eq!(*answer.lock().unwrap(), Some(CheckOutcome::NotChecked));
    }
}
