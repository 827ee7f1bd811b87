//! The part that runs the services' checks.

use crate::bell::Bell;
use crate::checkpoint::{FailedCheck, failed, skipped};
use crate::checks::desk::{Next, Running};
use crate::env::{Env, Program, Watch};
use crate::events;
use crate::part::{Part, Turned};
use crate::shared::Shared;
use crate::status::CheckStatus;
use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Duration;
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

impl<E: Env> Shared<E> {
    /// Gives up checks that have run for longer than the limit: the running one has failed.
    pub(crate) fn give_up_overdue_checks(&self, store: &dyn BlobStore, limit: Duration) {
        let Some((mut running, waiting)) = self.checks.take_overdue(self.now(), limit) else { return };
        for job in waiting {
            self.counters.checkpoints_unchecked.add(1);
            job.answer(&[]);
        }
        match running.service.take() {
            Some(service) => {
                let failure = Some(format!("the check has not ended after {} ms", limit.as_millis()));
                running.results.push(CheckResult { service, failure, skipped: None });
                self.checks_ended(store, running);
            }
            None => {
                events::warn(format_args!(
                    "checkpoint {} was not read, or its next check not begun, in time",
                    running.number()
                ));
                self.counters.checkpoints_unchecked.add(1);
                running.job.answer(&[]);
            }
        }
    }

    /// Reports the results of a checkpoint's checks.
    fn checks_ended(&self, store: &dyn BlobStore, running: Running) {
        let Running { job, results, .. } = running;
        let number = job.manifest.number;
        let status = CheckStatus {
            number: number.0,
            check: CheckOutcome::of(results.iter().map(CheckResult::outcome)),
            failed_checks: failed(&results),
            skipped_checks: skipped(&results),
        };
        if status.check == CheckOutcome::NotChecked {
            self.counters.checkpoints_unchecked.add(1);
        } else {
            self.counters.checkpoint_checks.add(1);
        }
        if status.check == CheckOutcome::Failed {
            self.counters.checkpoint_checks_failed.add(1);
        }
        for FailedCheck { service, reason } in &status.failed_checks {
            events::error(format_args!(
                "checkpoint {number}: the check of service {service} failed: {reason}"
            ));
        }
        if status.check != CheckOutcome::NotChecked {
            self.checks.note_last(status);
        }
        let checked = Checked {
            incarnation: job.manifest.incarnation,
            number,
            checked: self.now(),
            results: results.clone(),
        };
        // After its end another process may own the store.
        if !self.is_ended()
            && let Err(error) = checked.store(store)
        {
            events::warn(format_args!("cannot store the check results of checkpoint {number}: {error}"));
        }
        job.answer(&results);
    }
}

/// Loads the states of all shards at a checkpoint's markers.
fn load_states(store: &dyn BlobStore, manifest: &Manifest) -> Result<Vec<State>, CheckpointError> {
    load_parts(store, manifest, 1)?.into_iter().map(|part| part.into_state(manifest)).collect()
}

/// Maximum number of shards that the reason of a skipped check names.
const MISSING_NAMED: usize = 8;

/// Returns the reason for which no check can run over a checkpoint, if it is not of all shards.
fn missing_parts(manifest: &Manifest, topology: &Topology) -> Option<String> {
    let mut missing = topology.shards().filter(|shard| manifest.part(*shard).is_none());
    let named: Vec<String> =
        missing.by_ref().take(MISSING_NAMED).map(|shard| format!("shard {shard}")).collect();
    if named.is_empty() {
        return None;
    }
    let more = match missing.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("the checkpoint has no part of {}{more}", named.join(", ")))
}

/// The part that runs the checks: one turn reads a checkpoint, marks a check, runs it, or records its result.
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
    current: Option<Current>,
}

/// The check whose turn it is. A mark, the check, and its result take a turn each.
struct Current {
    service: String,
    mark: String,
    /// Its result, once it has ended.
    ended: Option<CheckResult>,
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
        // A check may read all shards, at least for the messages that are in flight to its service.
        let missing = missing_parts(manifest, &topology);
        for name in checked.into_iter().filter(|name| topology.service_id(name).is_some()) {
            match missing.clone().or_else(|| checks.marks.refusal(&name, asked, begun)) {
                None => open.push_back(name),
                Some(reason) => {
                    let result = CheckResult { service: name, failure: None, skipped: Some(reason) };
                    checks.note(number, |running| running.results.push(result));
                }
            }
        }
        let states = if open.is_empty() { Vec::new() } else { load_states(&*self.store, manifest)? };
        Ok(Checking { number, asked, begun, topology, open, states, current: None })
    }

    /// Marks the next check, runs it, or records its result; returns false if there is none, or the checks were given up.
    fn check_next<E: Env>(&self, hub: &Shared<E>, checking: &mut Checking) -> Result<bool, CheckpointError> {
        let (checks, store, number) = (&hub.checks, &*self.store, checking.number);
        match checking.current.take() {
            None => {
                let Some(service) = checking.open.pop_front() else { return Ok(false) };
                // Nothing is written for a checkpoint whose checks were given up: the node may have ended.
                if hub.is_ended() || !checks.note(number, |_| {}) {
                    return Ok(false);
                }
                let mark = checks.marks.mark(store, number, &service, false)?;
                checking.current = Some(Current { service, mark, ended: None });
            }
            Some(Current { service, mark, ended: None }) => {
                hub.watch.check();
                // At once, and last before it begins: a give-up blames only a check that has begun, and knows its mark.
                let begins = checks.note(number, |running| {
                    (running.service, running.mark) = (Some(service.clone()), Some(mark.clone()));
                });
                if hub.is_ended() || !begins {
                    checks.marks.withdraw(hub.is_ended());
                    return Ok(false);
                }
                checks.marks.begin(&mark);
                let failure = hub.program.check(&service, &checking.topology, &checking.states).err();
                let ended = Some(CheckResult { service: service.clone(), failure, skipped: None });
                checking.current = Some(Current { service, mark, ended });
            }
            Some(Current { service, mark, ended: Some(result) }) => {
                checks.note(number, |running| {
                    running.results.push(result);
                    // From here on until the next one begins, no check is late.
                    (running.service, running.mark) = (None, None);
                });
                checks.marks.end(hub.is_ended(), store, &mark, &service);
            }
        }
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
        let running = checks.take_ended(number);
        match (running, error) {
            (Some(running), None) => hub.checks_ended(&*self.store, running),
            (Some(running), Some(error)) => {
                events::warn(format_args!("cannot check checkpoint {number}: {error}"));
                hub.counters.checkpoints_unchecked.add(1);
                running.job.answer(&[]);
            }
            // It was given up meanwhile.
            (None, _) => {}
        }
        let now = hub.now();
        checks.is_free((!asked).then(|| now.plus(now.since(begun).times(REST))));
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
            && let Err(error) = hub.checks.marks.record(hub.now())
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
