//! Keeps track of checks that began and did not end: decides whether a service's check may still run.
//!
//! A check is the user's code. One that ends the process would do so again over each checkpoint, so each is marked on
//! disk before it runs. A mark that is left at the next start counts against its service; a check of the service that
//! ends removes all of them. At `attempts_max` in a row the check is given up: it runs only when a checkpoint is
//! verified.

use crate::checkpoint::{CheckpointInfo, FailedCheck, SkippedCheck};
use crate::events;
use crate::status::CheckStatus;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_core::ids::{CheckpointNumber, Incarnation, Time};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::begun::{Begun, begun_names};
use stead_store::checkpoint::checks::{CheckOutcome, Checked};
use stead_store::checkpoint::manifest::CheckResult;
use stead_store::checkpoint::store::{BlobStore, StoreError};

/// Maximum number of marks that are read at a start.
const MARKS_MAX: usize = 10_000;

/// The limits of the check of one service.
#[derive(Clone, Copy)]
pub(crate) struct CheckLimits {
    /// Number of consecutive checks that do not end after which the check is given up.
    pub(crate) attempts_max: u32,
    /// Time that a node runs before it tries a check again that did not end.
    pub(crate) suspect_for: Duration,
}

struct Service {
    limits: CheckLimits,
    /// The marks that earlier lives have left, with their checkpoints, oldest first.
    left: Vec<(String, CheckpointNumber)>,
    /// The marks of this life's checks that ended, or did not begin after all, and that could not be removed.
    unremoved: Vec<String>,
}

struct Live {
    name: String,
    /// Whether it has run for longer than the limit: if it does not end in this life, that counts.
    overdue: bool,
}

struct Held {
    incarnation: Incarnation,
    services: BTreeMap<String, Service>,
    live: Vec<Live>,
    /// The time at which the node began, as given to [`CheckMarks::load`].
    begun: Time,
    /// In the name of the last mark.
    serial: u64,
}

/// The marks that earlier lives have left, as a start finds them before it changes anything.
#[derive(Default)]
pub(crate) struct LeftMarks {
    /// Those of the cluster's incarnation with their names, oldest first.
    begun: Vec<(String, Begun)>,
    /// The names of those that are damaged or of another incarnation.
    void: Vec<String>,
}

impl LeftMarks {
    /// Reads the marks.
    ///
    /// # Errors
    /// [`StoreError`]: one that cannot be read may be sound.
    pub(crate) fn read(store: &dyn BlobStore, incarnation: Incarnation) -> Result<Self, StoreError> {
        let mut left = Self::default();
        for name in begun_names(store)?.into_iter().take(MARKS_MAX) {
            match Begun::read(store, &name) {
                Ok(begun) if begun.incarnation == incarnation => left.begun.push((name, begun)),
                Ok(_) => left.void.push(name),
                Err(CheckpointError::Store(error)) => return Err(error),
                Err(error) => {
                    tracing::warn!("cannot read the mark of a check, which does not count: {error}");
                    left.void.push(name);
                }
            }
        }
        Ok(left)
    }
}

/// The checks that did not end, and those that run.
pub(crate) struct CheckMarks {
    held: Mutex<Held>,
}

impl Default for CheckMarks {
    fn default() -> Self {
        let (services, live) = (BTreeMap::new(), Vec::new());
        let held = Held { incarnation: Incarnation(0), services, live, begun: Time(0), serial: 0 };
        Self { held: Mutex::new(held) }
    }
}

impl Service {
    fn is_given_up(&self) -> bool {
        self.left.len() >= self.limits.attempts_max as usize
    }

    fn reason(&self) -> String {
        let numbers: Vec<String> = self.left.iter().map(|(_, number)| number.to_string()).collect();
        if let [number] = numbers.as_slice() {
            return format!("it did not end over checkpoint {number}");
        }
        format!("it did not end {} times in a row, over checkpoints {}", numbers.len(), numbers.join(", "))
    }
}

impl CheckMarks {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the marks that earlier lives have left, once the start is sure, and deletes those that do not count. `serial`
    /// distinguishes the marks of this life from those of others.
    pub(crate) fn load(
        &self,
        store: &dyn BlobStore,
        incarnation: Incarnation,
        left: LeftMarks,
        services: impl Iterator<Item = (String, CheckLimits)>,
        now: Time,
        serial: u64,
    ) {
        let mut held = self.held();
        (held.begun, held.serial, held.incarnation) = (now, serial, incarnation);
        held.services = services
            .map(|(name, limits)| (name, Service { limits, left: Vec::new(), unremoved: Vec::new() }))
            .collect();
        for (name, begun) in left.begun {
            if let Some(service) = held.services.get_mut(begun.service.as_str()) {
                service.left.push((name, begun.number));
            }
        }
        let mut needless = left.void;
        for (name, service) in &mut held.services {
            // A manual verification may have added to those that count.
            let more = service.left.len().saturating_sub(service.limits.attempts_max as usize);
            needless.extend(service.left.drain(..more).map(|(mark, _)| mark));
            match service.left.last() {
                None => {}
                Some(_) if service.is_given_up() => {
                    let reason = service.reason();
                    tracing::error!(
                        "the check of service {name} is not run any more: {reason}; correct it, then verify a checkpoint, which runs it"
                    );
                }
                Some((_, number)) => tracing::warn!(
                    "the check of service {name} over checkpoint {number} did not end in an earlier life: {} of {} times",
                    service.left.len(),
                    service.limits.attempts_max
                ),
            }
        }
        drop(held);
        for mark in needless {
            if let Err(error) = store.delete(&mark) {
                // The next start ignores it as well.
                tracing::warn!("cannot delete {mark}, which does not count: {error}");
            }
        }
    }

    /// Returns the reason for which the check of a service must not run now; `None` if it may.
    pub(crate) fn refusal(&self, service: &str, asked: bool, now: Time) -> Option<String> {
        let held = self.held();
        let begun = held.begun;
        let service = held.services.get(service)?;
        if service.is_given_up() {
            return Some(format!("{}; verify a checkpoint to run it again", service.reason()));
        }
        // Another cause that ended the process is found soon after the start, so the check does not begin beside it.
        let suspect_for = service.limits.suspect_for;
        let waits = !service.left.is_empty() && !asked && now < begun.plus(suspect_for.into());
        waits.then(|| {
            let seconds = suspect_for.as_secs();
            format!("{}; it is tried again once the node has run for {seconds} s", service.reason())
        })
    }

    /// Marks on disk that a check begins; returns the mark, for [`Self::end`].
    ///
    /// # Errors
    /// [`CheckpointError`]; then the check must not run.
    pub(crate) fn begin(
        &self,
        store: &dyn BlobStore,
        number: CheckpointNumber,
        service: &str,
    ) -> Result<String, CheckpointError> {
        let (incarnation, serial) = {
            let mut held = self.held();
            held.serial = held.serial.wrapping_add(1);
            (held.incarnation, held.serial)
        };
        let begun = Begun { incarnation, number, service: service.to_owned() };
        let name = begun.store(store, serial)?;
        self.held().live.push(Live { name: name.clone(), overdue: false });
        Ok(name)
    }

    /// Notes that a check has ended, whether it holds or not: the marks of its service are removed, unless the node has
    /// ended.
    pub(crate) fn end(&self, is_ended: bool, store: &dyn BlobStore, mark: String, service: &str) {
        if is_ended {
            // Another process may own the store soon. A clean shutdown forgives the mark.
            return;
        }
        let mut held = self.held();
        held.live.retain(|live| live.name != mark);
        let mut marks = Vec::new();
        if let Some(service) = held.services.get_mut(service) {
            marks.extend(std::mem::take(&mut service.left).into_iter().map(|(name, _)| name));
            marks.append(&mut service.unremoved);
        }
        drop(held);
        marks.push(mark);
        self.remove(store, marks, service);
    }

    /// Removes the mark of a check that does not begin after all, unless the node has ended.
    pub(crate) fn withdraw(&self, is_ended: bool, store: &dyn BlobStore, mark: String, service: &str) {
        if is_ended {
            // As in [`Self::end`].
            return;
        }
        self.held().live.retain(|live| live.name != mark);
        self.remove(store, vec![mark], service);
    }

    /// Removes marks of a service. Those that the store does not remove now are removed with the next ones: a later life
    /// would count them.
    fn remove(&self, store: &dyn BlobStore, marks: Vec<String>, service: &str) {
        for name in marks {
            let Err(error) = store.delete(&name) else { continue };
            events::warn(format_args!(
                "cannot delete {name}, so that the check of {service} may be blamed: {error}"
            ));
            if let Some(service) = self.held().services.get_mut(service) {
                service.unremoved.push(name);
            }
        }
    }

    /// Notes that the check in the background has run for longer than the limit.
    pub(crate) fn overdue(&self, mark: &str) {
        if let Some(live) = self.held().live.iter_mut().find(|live| live.name == mark) {
            live.overdue = true;
        }
    }

    /// Notes that the node shuts down cleanly: checks that it interrupts are not to blame.
    pub(crate) fn forgive(&self, store: &dyn BlobStore) {
        let mut held = self.held();
        let live =
            std::mem::take(&mut held.live).into_iter().filter(|live| !live.overdue).map(|live| live.name);
        let unremoved = held.services.values_mut().flat_map(|service| std::mem::take(&mut service.unremoved));
        let marks: Vec<String> = live.chain(unremoved).collect();
        drop(held);
        for name in marks {
            if let Err(error) = store.delete(&name) {
                events::warn(format_args!("cannot delete {name}: {error}"));
            }
        }
    }

    /// Returns the checks that were given up, as failures over the last checkpoint at which one of them did not end.
    pub(crate) fn given_up(&self) -> Option<CheckStatus> {
        let held = self.held();
        let given_up: Vec<_> = held.services.iter().filter(|(_, service)| service.is_given_up()).collect();
        let number = given_up.iter().filter_map(|(_, service)| Some(service.left.last()?.1.0)).max()?;
        let failed = |(name, service): (&String, &Service)| FailedCheck {
            service: name.clone(),
            reason: service.reason(),
        };
        Some(CheckStatus {
            number,
            check: CheckOutcome::Failed,
            failed_checks: given_up.into_iter().map(failed).collect(),
            skipped_checks: Vec::new(),
        })
    }

    /// Stores the failure of checks that were given up, at the checkpoints at which this happened.
    pub(crate) fn record(&self, now: Time, store: &dyn BlobStore) -> Result<(), CheckpointError> {
        let Some(status) = self.given_up() else { return Ok(()) };
        let result = |failed: FailedCheck| CheckResult {
            service: failed.service,
            failure: Some(failed.reason),
            skipped: None,
        };
        let checked = Checked {
            incarnation: self.held().incarnation,
            number: CheckpointNumber(status.number),
            checked: now,
            results: status.failed_checks.into_iter().map(result).collect(),
        };
        checked.store(store).map(drop)
    }

    /// Notes in a list of checkpoints which checks began over them and did not end.
    pub(crate) fn note(&self, checkpoints: &mut [CheckpointInfo]) {
        for (name, service) in &self.held().services {
            for (_, number) in &service.left {
                note_unended(checkpoints, *number, name);
            }
        }
    }
}

/// Notes that a check began over a checkpoint and did not end, if nothing else is known about it.
pub fn note_unended(checkpoints: &mut [CheckpointInfo], number: CheckpointNumber, service: &str) {
    let open = |info: &&mut CheckpointInfo| {
        let known = info.skipped_checks.iter().any(|skipped| skipped.service == service);
        info.number == number.0 && info.check == CheckOutcome::NotChecked && !known
    };
    if let Some(info) = checkpoints.iter_mut().find(open) {
        let reason = "it began, and did not end in the life of its node".to_owned();
        info.skipped_checks.push(SkippedCheck { service: service.to_owned(), reason });
    }
}
