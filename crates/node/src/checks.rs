//! Runs the checks that services declare over complete checkpoints. They are user code, and read a whole checkpoint: so
//! they run on a thread of their own, apart from taking checkpoints, one checkpoint at a time and with a time limit.
//!
//! Of the interval's checkpoints the newest one is checked; older ones are skipped if the thread cannot keep up.

#![expect(
    clippy::disallowed_methods,
    reason = "the end of a node waits for the checks by the system's clock"
)]

use crate::bell::Bell;
use crate::check_marks::CheckMarks;
use crate::checkpoint::{CheckpointReply, CheckpointReport, FailedCheck, Pin, failed, skipped};
use crate::env::{Env, Program};
use crate::events;
use crate::part::{Part, Turned};
use crate::shared::Shared;
use crate::status::CheckStatus;
use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stead_core::ids::{CheckpointNumber, Time};
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::checks::{CheckOutcome, Checked};
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{CheckResult, Manifest};
use stead_store::checkpoint::store::BlobStore;

/// After the checks of an interval's checkpoint the part rests for this many times their duration.
const REST: u64 = 3;
/// Maximum number of requested checkpoints that wait for their checks.
const WANTED_MAX: usize = 64;
/// Longest wait for running checks at the end of a node.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// A checkpoint to be checked, and the callers that wait for that.
pub(crate) struct Job {
    pub(crate) manifest: Manifest,
    pub(crate) report: CheckpointReport,
    pub(crate) replies: Vec<CheckpointReply>,
    /// Keeps it from being deleted while it is read.
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
    since: Time,
    service: Option<String>,
    /// The mark of the running check.
    mark: Option<String>,
    results: Vec<CheckResult>,
}

#[derive(Default)]
struct Held {
    wanted: VecDeque<Job>,
    newest: Option<Job>,
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
pub(crate) struct Checks {
    /// Maximum size of a checkpoint of the interval that is checked, in bytes.
    bytes_max: u64,
    held: Mutex<Held>,
    bell: Bell,
    /// Signalled when the part has ended.
    ended: Condvar,
    pub(crate) marks: CheckMarks,
}

impl Checks {
    /// Runs no checks, until there is a part. Checkpoints of the interval over `bytes_max` bytes are not checked.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            held: Mutex::default(),
            bell: Bell::default(),
            ended: Condvar::new(),
            marks: CheckMarks::default(),
        }
    }

    /// Maximum size of a checkpoint of the interval that is checked, in bytes.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
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

    /// Notes that the part has ended, also by a panic: from then on no caller waits for it.
    pub(crate) fn part_ended(&self) {
        self.stop();
        self.held().has_part = false;
        self.ended.notify_all();
    }

    /// Adds a checkpoint of the interval, replacing an older one that still waits.
    pub(crate) fn offer<E: Env>(&self, shared: &Shared<E>, job: Job) {
        let mut held = self.held();
        let passed_over = if held.stopped || !held.has_part { Some(job) } else { held.newest.replace(job) };
        if passed_over.is_some() {
            shared.counters.checkpoints_unchecked.add(1);
        }
        drop(held);
        self.bell.ring();
    }

    /// Adds a requested checkpoint; the callers are answered once it is checked.
    pub(crate) fn want<E: Env>(&self, shared: &Shared<E>, job: Job) {
        let mut held = self.held();
        if held.stopped || held.stuck || !held.has_part || held.wanted.len() >= WANTED_MAX {
            shared.counters.checkpoints_unchecked.add(1);
            drop(held);
            return job.answer(&[]);
        }
        held.wanted.push_back(job);
        drop(held);
        self.bell.ring();
    }

    /// Accepts nothing more; waiting callers get the report of a checkpoint that is not checked.
    pub(crate) fn stop(&self) {
        let mut held = self.held();
        held.stopped = true;
        held.newest = None;
        let running = held.running.take().map(|running| running.job);
        let jobs: Vec<Job> = held.wanted.drain(..).chain(running).collect();
        drop(held);
        self.bell.ring();
        for job in jobs {
            job.answer(&[]);
        }
    }

    /// Waits, after [`Self::stop`], until nothing reads the data any more; only for a limited time, because user code
    /// cannot be stopped.
    pub(crate) fn await_end(&self) {
        let until = Instant::now() + END_TIMEOUT;
        let mut held = self.held();
        while held.has_part {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            held = self.ended.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns the next checkpoint to check, if there is one and the part does not rest.
    fn next(&self, now: Time) -> Next {
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
    fn note(&self, number: CheckpointNumber, note: impl FnOnce(&mut Running)) -> bool {
        let mut held = self.held();
        let running = held.running.as_mut().filter(|running| running.number() == number);
        running.map(note).is_some()
    }

    /// The time at which [`Self::give_up_overdue`] gives up those that run.
    pub(crate) fn overdue_at(&self, limit: Duration) -> Option<Time> {
        let held = self.held();
        Some(held.running.as_ref()?.since.plus_micros(limit.as_micros() as u64 + 1))
    }

    /// Gives up checks that have run for longer than the limit: the running one has failed.
    pub(crate) fn give_up_overdue<E: Env>(&self, shared: &Shared<E>, store: &dyn BlobStore, limit: Duration) {
        let mut held = self.held();
        let (now, limit_micros) = (shared.now(), limit.as_micros() as u64);
        let is_over = |running: &mut Running| running.since.plus_micros(limit_micros) < now;
        let Some(mut running) = held.running.take_if(is_over) else {
            return;
        };
        held.stuck = true;
        if let Some(mark) = &running.mark {
            self.marks.overdue(mark);
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
    fn number(&self) -> CheckpointNumber {
        self.job.manifest.number
    }
}

/// Loads the states of all shards at a checkpoint's markers.
fn load_states(store: &dyn BlobStore, manifest: &Manifest) -> Result<Vec<State>, CheckpointError> {
    load_parts(store, manifest, 1)?.into_iter().map(|part| part.into_state(manifest)).collect()
}

/// The part's next work.
enum Next {
    /// Check this checkpoint; the flag says whether it was requested.
    Take(Box<Manifest>, bool),
    /// Sleep until a checkpoint comes, or until this time.
    Sleep(Option<Time>),
    Ended,
}

/// The part that runs the checks: one turn reads a checkpoint, or runs one check.
pub struct CheckPart {
    store: Arc<dyn BlobStore>,
    /// Whether the checks that earlier lives gave up are recorded.
    is_recorded: bool,
    checking: Option<Checking>,
}

/// A checkpoint that is being checked.
struct Checking {
    number: CheckpointNumber,
    asked: bool,
    begun: Time,
    topology: Topology,
    /// The services whose checks have yet to run.
    open: VecDeque<String>,
    states: Vec<State>,
}

impl CheckPart {
    pub(crate) fn new(store: Arc<dyn BlobStore>) -> Self {
        Self { store, is_recorded: false, checking: None }
    }

    /// Determines which checks of a checkpoint may run, and reads it for them.
    fn read<E: Env>(
        &self,
        hub: &Shared<E>,
        manifest: &Manifest,
        asked: bool,
        begun: Time,
    ) -> Result<Checking, CheckpointError> {
        let (checks, number, topology) = (&hub.checks, manifest.number, manifest.topology()?);
        let mut open = VecDeque::new();
        let checked = hub.program.checked_services();
        for name in checked.into_iter().filter(|name| topology.service_id(name).is_some()) {
            match checks.marks.refusal(&name, asked, begun) {
                None => open.push_back(name),
                Some(reason) => {
                    let result = CheckResult { service: name, failure: None, skipped: Some(reason) };
                    checks.note(number, |running| running.results.push(result));
                }
            }
        }
        let states = if open.is_empty() { Vec::new() } else { load_states(&*self.store, manifest)? };
        Ok(Checking { number, asked, begun, topology, open, states })
    }

    /// Runs the next check; returns false if there is none, or the checks were given up.
    fn check_next<E: Env>(&self, hub: &Shared<E>, checking: &mut Checking) -> Result<bool, CheckpointError> {
        let (checks, store, number) = (&hub.checks, &*self.store, checking.number);
        let Some(name) = checking.open.pop_front() else { return Ok(false) };
        // Nothing is written for a checkpoint whose checks were given up: the node may have ended.
        if hub.is_ended() || !checks.note(number, |running| running.service = Some(name.clone())) {
            return Ok(false);
        }
        let mark = checks.marks.begin(hub, store, number, &name)?;
        checks.note(number, |running| running.mark = Some(mark.clone()));
        let failure = hub.program.check(&name, &checking.topology, &checking.states).err();
        checks.marks.end(hub, store, mark, &name);
        let result = CheckResult { service: name, failure, skipped: None };
        checks.note(number, |running| {
            running.results.push(result);
            // From here on until the next one begins, no check is late.
            running.service = None;
        });
        Ok(true)
    }

    /// Reports the results of a checkpoint whose checks have ended or were interrupted.
    fn finish<E: Env>(
        &self,
        hub: &Shared<E>,
        number: CheckpointNumber,
        asked: bool,
        begun: Time,
        error: Option<CheckpointError>,
    ) {
        let checks = &hub.checks;
        let running = checks.held().running.take_if(|running| running.number() == number);
        match (running, error) {
            (Some(running), None) => checks.finish(hub, &*self.store, running),
            (Some(running), Some(error)) => {
                events::warn(format_args!("cannot check checkpoint {number}: {error}"));
                hub.counters.checkpoints_unchecked.add(1);
                running.job.answer(&[]);
            }
            // It was given up meanwhile.
            (None, _) => {}
        }
        let mut held = checks.held();
        held.stuck = false;
        if !asked {
            let now = hub.now();
            held.rest_until = now.plus_micros(now.0.saturating_sub(begun.0).saturating_mul(REST));
        }
    }
}

impl<E: Env> Part<Shared<E>> for CheckPart {
    /// The reason why the store takes nothing more.
    type Error = String;

    fn bell<'h>(&self, hub: &'h Shared<E>) -> &'h Bell {
        &hub.checks.bell
    }

    fn turn(&mut self, hub: &Shared<E>, now: Time) -> Result<Turned, String> {
        let turned = self.step(hub, now);
        // Whatever has failed: the contents of the store are not known any more.
        self.store.failure().map_or(Ok(turned), Err)
    }
}

impl CheckPart {
    fn step<E: Env>(&mut self, hub: &Shared<E>, now: Time) -> Turned {
        if !mem::replace(&mut self.is_recorded, true)
            && let Err(error) = hub.checks.marks.record(hub, &*self.store)
        {
            events::warn(format_args!("cannot store that a check did not end: {error}"));
        }
        if let Some(mut checking) = self.checking.take() {
            match self.check_next(hub, &mut checking) {
                Ok(true) => self.checking = Some(checking),
                ended => self.finish(hub, checking.number, checking.asked, checking.begun, ended.err()),
            }
            return Turned::Again;
        }
        match hub.checks.next(now) {
            Next::Ended => Turned::Ended,
            Next::Sleep(until) => Turned::Until(until),
            Next::Take(manifest, asked) => {
                // The checkpoint part gives it up when it takes too long.
                hub.snapshots.bell.ring();
                match self.read(hub, &manifest, asked, now) {
                    Ok(checking) => self.checking = Some(checking),
                    Err(error) => self.finish(hub, manifest.number, asked, now, Some(error)),
                }
                Turned::Again
            }
        }
    }
}
