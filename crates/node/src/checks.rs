//! The checks that services declare, over complete checkpoints. They are user code, and read a whole checkpoint: so they
//! run on a thread of their own, off every checkpoint's path, one checkpoint at a time and within a bound.
//!
//! Of the checkpoints of the interval the newest one is checked; those between are not when the thread cannot keep up.

#![expect(clippy::disallowed_methods, reason = "the checks run on a thread of their own")]

use crate::checkpoint::{CheckpointReply, CheckpointReport, FailedCheck, Pin, SkippedCheck, failed, skipped};
use crate::env::{Env, Program};
use crate::events;
use crate::shared::Shared;
use crate::unended::Unended;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stead_core::ids::Colour;
use stead_core::state::State;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::checks::{CheckOutcome, Checked};
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{CheckResult, Manifest};
use stead_store::checkpoint::store::BlobStore;

/// After the checks of an interval's checkpoint the thread rests for so many times as long as they took.
const REST: u32 = 3;
/// Checkpoints that were asked for and may wait for their checks.
const WANTED_MAX: usize = 64;
/// The end of a node waits at most so long for checks that run.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The last checkpoint whose checks ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// The checkpoint.
    pub number: u64,
    /// The outcome of all of them.
    pub check: CheckOutcome,
    /// Those that do not hold.
    pub failed_checks: Vec<FailedCheck>,
    /// Those that were not run.
    #[serde(default)]
    pub skipped_checks: Vec<SkippedCheck>,
}

/// A checkpoint to be checked, and the callers that wait for that.
pub(crate) struct Job {
    pub(crate) manifest: Manifest,
    pub(crate) report: CheckpointReport,
    pub(crate) replies: Vec<CheckpointReply>,
    /// It is read.
    pub(crate) pin: Pin,
}

impl Job {
    fn answer(self, results: &[CheckResult]) {
        let Self { mut report, replies, pin, .. } = self;
        drop(pin);
        report.check = CheckOutcome::of(results.iter().map(CheckResult::outcome));
        report.failed_checks = failed(results);
        report.skipped_checks = skipped(results);
        for reply in replies {
            reply.send(Ok(report.clone()));
        }
    }
}

struct Running {
    job: Job,
    since: Instant,
    service: Option<String>,
    /// The mark of the check that runs.
    mark: Option<String>,
    results: Vec<CheckResult>,
}

#[derive(Default)]
struct Held {
    wanted: VecDeque<Job>,
    newest: Option<Job>,
    running: Option<Running>,
    /// Checks that were given up still hold the thread.
    stuck: bool,
    rest_until: Option<Instant>,
    last: Option<CheckStatus>,
    stopped: bool,
    /// A thread runs the checks.
    threads: usize,
}

/// The checkpoints that wait for their checks, and the last results.
#[derive(Default)]
pub(crate) struct Checks {
    held: Mutex<Held>,
    news: Condvar,
    pub(crate) unended: Unended,
}

impl Checks {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last checkpoint whose checks ended, if one of them failed, or a check was given up; else the last one.
    pub(crate) fn last(&self) -> Option<CheckStatus> {
        let last = self.held().last.clone();
        let Some(mut given_up) = self.unended.given_up() else { return last };
        let Some(mut last) = last.filter(|last| last.check == CheckOutcome::Failed) else {
            return Some(given_up);
        };
        given_up
            .failed_checks
            .retain(|check| last.failed_checks.iter().all(|one| one.service != check.service));
        last.failed_checks.append(&mut given_up.failed_checks);
        Some(last)
    }

    /// Begins the thread's life, before it is spawned.
    pub(crate) fn begin(&self) {
        self.held().threads += 1;
    }

    /// Takes a checkpoint of the interval, instead of an older one that still waits.
    pub(crate) fn offer<E: Env>(&self, shared: &Shared<E>, job: Job) {
        let mut held = self.held();
        let passed_over =
            if held.stopped || held.threads == 0 { Some(job) } else { held.newest.replace(job) };
        if passed_over.is_some() {
            shared.counters.checkpoints_unchecked.add(1);
        }
        self.news.notify_all();
    }

    /// Takes a checkpoint that was asked for; the callers are answered once it is checked.
    pub(crate) fn want<E: Env>(&self, shared: &Shared<E>, job: Job) {
        let mut held = self.held();
        if held.stopped || held.stuck || held.threads == 0 || held.wanted.len() >= WANTED_MAX {
            shared.counters.checkpoints_unchecked.add(1);
            drop(held);
            return job.answer(&[]);
        }
        held.wanted.push_back(job);
        self.news.notify_all();
    }

    /// Takes nothing more; callers that wait get the report of a checkpoint that is not checked.
    pub(crate) fn stop(&self) {
        let mut held = self.held();
        held.stopped = true;
        held.newest = None;
        let running = held.running.take().map(|running| running.job);
        let jobs: Vec<Job> = held.wanted.drain(..).chain(running).collect();
        self.news.notify_all();
        drop(held);
        for job in jobs {
            job.answer(&[]);
        }
    }

    /// Waits, after [`Self::stop`], until nothing reads the data any more; not for ever, for the user's code cannot be
    /// stopped.
    pub(crate) fn await_end(&self) {
        let until = Instant::now() + END_TIMEOUT;
        let mut held = self.held();
        while held.threads > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            held = self.news.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Runs checks on this thread until the node stops.
    pub(crate) fn run<E: Env>(&self, shared: &Shared<E>, store: &dyn BlobStore) {
        let _ending = Ending(self);
        if let Err(error) = self.unended.record(shared, store) {
            events::warn(format_args!("cannot store that a check did not end: {error}"));
        }
        while let Some((manifest, asked)) = self.next() {
            let begun = Instant::now();
            let checked = self.check(shared, store, &manifest, asked);
            let running = self.held().running.take_if(|running| running.number() == manifest.number);
            match (running, checked) {
                (Some(running), Ok(())) => self.finish(shared, store, running),
                (Some(running), Err(error)) => {
                    events::warn(format_args!("cannot check checkpoint {}: {error}", manifest.number));
                    shared.counters.checkpoints_unchecked.add(1);
                    running.job.answer(&[]);
                }
                // It was given up meanwhile.
                (None, _) => {}
            }
            let mut held = self.held();
            held.stuck = false;
            if !asked {
                held.rest_until = Some(Instant::now() + begun.elapsed() * REST);
            }
        }
    }

    /// The next checkpoint to be checked, and whether it was asked for.
    fn next(&self) -> Option<(Manifest, bool)> {
        let mut held = self.held();
        loop {
            if held.stopped {
                return None;
            }
            let now = Instant::now();
            let rest = held.rest_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
            let asked = held.wanted.pop_front();
            let is_asked = asked.is_some();
            if let Some(job) = asked.or_else(|| held.newest.take_if(|_| rest.is_zero())) {
                let manifest = job.manifest.clone();
                held.running =
                    Some(Running { job, since: now, service: None, mark: None, results: Vec::new() });
                return Some((manifest, is_asked));
            }
            held = match &held.newest {
                Some(_) => self.news.wait_timeout(held, rest).unwrap_or_else(PoisonError::into_inner).0,
                None => self.news.wait(held).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn check<E: Env>(
        &self,
        shared: &Shared<E>,
        store: &dyn BlobStore,
        manifest: &Manifest,
        asked: bool,
    ) -> Result<(), CheckpointError> {
        let (number, topology) = (manifest.number, manifest.topology()?);
        let mut open = Vec::new();
        let checked = shared.program.checked_services();
        for name in checked.into_iter().filter(|name| topology.service_id(name).is_some()) {
            match self.unended.refusal(&name, asked) {
                None => open.push(name),
                Some(reason) => {
                    let result = CheckResult { service: name, failure: None, skipped: Some(reason) };
                    self.note(number, |running| running.results.push(result));
                }
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let states = load_states(store, manifest)?;
        for name in open {
            // Nothing is written for a checkpoint whose checks were given up: the node may have ended.
            if shared.is_ended() || !self.note(number, |running| running.service = Some(name.clone())) {
                return Ok(());
            }
            let mark = self.unended.begin(shared, store, number, &name)?;
            self.note(number, |running| running.mark = Some(mark.clone()));
            let failure = shared.program.check(&name, &topology, &states).err();
            self.unended.end(shared, store, mark, &name);
            let result = CheckResult { service: name, failure, skipped: None };
            self.note(number, |running| running.results.push(result));
        }
        Ok(())
    }

    /// Notes how far the checks of a checkpoint have come; false if they were given up.
    fn note(&self, number: Colour, note: impl FnOnce(&mut Running)) -> bool {
        let mut held = self.held();
        let running = held.running.as_mut().filter(|running| running.number() == number);
        running.map(note).is_some()
    }

    /// Gives checks up that have run for longer than the limit: the one that runs has failed.
    pub(crate) fn give_up_overdue<E: Env>(&self, shared: &Shared<E>, store: &dyn BlobStore, limit: Duration) {
        let mut held = self.held();
        let Some(mut running) = held.running.take_if(|running| running.since.elapsed() > limit) else {
            return;
        };
        held.stuck = true;
        if let Some(mark) = &running.mark {
            self.unended.overdue(mark);
        }
        let waiting: Vec<Job> = held.wanted.drain(..).collect();
        drop(held);
        for job in waiting {
            shared.counters.checkpoints_unchecked.add(1);
            job.answer(&[]);
        }
        match running.service.take() {
            Some(service) => {
                let failure = Some(format!("the check has not ended after {} ms", limit.as_millis()));
                running.results.push(CheckResult { service, failure, skipped: None });
                self.finish(shared, store, running);
            }
            None => {
                events::warn(format_args!("cannot read checkpoint {} in time to check it", running.number()));
                shared.counters.checkpoints_unchecked.add(1);
                running.job.answer(&[]);
            }
        }
    }

    fn finish<E: Env>(&self, shared: &Shared<E>, store: &dyn BlobStore, running: Running) {
        let Running { job, results, .. } = running;
        let number = job.manifest.number;
        let status = CheckStatus {
            number: number.0,
            check: CheckOutcome::of(results.iter().map(CheckResult::outcome)),
            failed_checks: failed(&results),
            skipped_checks: skipped(&results),
        };
        if status.check == CheckOutcome::NotChecked {
            shared.counters.checkpoints_unchecked.add(1);
        } else {
            shared.counters.checkpoint_checks.add(1);
        }
        if status.check == CheckOutcome::Failed {
            shared.counters.checkpoint_checks_failed.add(1);
        }
        for FailedCheck { service, reason } in &status.failed_checks {
            events::error(format_args!(
                "checkpoint {number}: the check of service {service} failed: {reason}"
            ));
        }
        if status.check != CheckOutcome::NotChecked {
            self.held().last = Some(status);
        }
        let checked = Checked {
            incarnation: job.manifest.incarnation,
            number,
            checked: shared.now(),
            results: results.clone(),
        };
        // After its end another process may own the store.
        if !shared.is_ended()
            && let Err(error) = checked.store(store)
        {
            events::warn(format_args!("cannot store the check results of checkpoint {number}: {error}"));
        }
        job.answer(&results);
    }
}

impl Running {
    fn number(&self) -> Colour {
        self.job.manifest.number
    }
}

/// Loads the states of all shards at a checkpoint's markers.
fn load_states(store: &dyn BlobStore, manifest: &Manifest) -> Result<Vec<State>, CheckpointError> {
    load_parts(store, manifest, 1)?.into_iter().map(|part| part.into_state(manifest)).collect()
}

/// The end of the thread, also by a panic: from then on no caller waits for it.
struct Ending<'a>(&'a Checks);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.stop();
        self.0.held().threads -= 1;
        self.0.news.notify_all();
    }
}
