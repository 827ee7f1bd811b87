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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_core::ids::{CheckpointNumber, Incarnation, Time};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::begun::{Begun, begun_names};
use stead_store::checkpoint::checks::{CheckOutcome, Checked};
use stead_store::checkpoint::manifest::CheckResult;
use stead_store::checkpoint::store::{BlobStore, Put, StoreError};

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
}

struct Live {
    name: String,
    /// Whether its check has begun.
    has_begun: bool,
    /// Whether it has run for longer than the limit: if it does not end in this life, that counts.
    overdue: bool,
}

struct Held {
    incarnation: Incarnation,
    services: BTreeMap<String, Service>,
    live: Vec<Live>,
    /// The marks of checks that ended, or did not begin after all, and that are not removed yet.
    unremoved: Vec<String>,
    /// The time at which the node began, as given to [`CheckMarks::load`].
    begun: Time,
    /// In the name of the last mark.
    serial: u64,
}

impl Held {
    /// Moves live marks to those that are to be removed.
    fn give_up(&mut self, is_over: impl Fn(&Live) -> bool) {
        let over = self.live.extract_if(.., |live| is_over(live)).map(|live| live.name);
        self.unremoved.extend(over);
    }
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
    store: Arc<dyn BlobStore>,
    held: Mutex<Held>,
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
    /// Knows no service, until [`Self::load`].
    pub(crate) fn new(store: Arc<dyn BlobStore>) -> Self {
        let held = Held {
            incarnation: Incarnation(0),
            services: BTreeMap::new(),
            live: Vec::new(),
            unremoved: Vec::new(),
            begun: Time(0),
            serial: 0,
        };
        Self { store, held: Mutex::new(held) }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the marks that earlier lives have left, once the start is sure, and deletes those that do not count. `serial`
    /// distinguishes the marks of this life from those of others.
    pub(crate) fn load(
        &self,
        incarnation: Incarnation,
        left: LeftMarks,
        services: impl Iterator<Item = (String, CheckLimits)>,
        now: Time,
        serial: u64,
    ) {
        let mut held = self.held();
        (held.begun, held.serial, held.incarnation) = (now, serial, incarnation);
        held.services = services.map(|(name, limits)| (name, Service { limits, left: Vec::new() })).collect();
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
            if let Err(error) = self.store.delete(&mark) {
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

    /// Marks on disk that a check is about to begin; returns the mark, for [`Self::end`]. If the check does not begin at once, it is
    /// not `has_begun`, and [`Self::begin`] follows.
    ///
    /// # Errors
    /// [`CheckpointError`]; then the check must not run.
    pub(crate) fn mark(
        &self,
        store: &dyn BlobStore,
        number: CheckpointNumber,
        service: &str,
        has_begun: bool,
    ) -> Result<String, CheckpointError> {
        loop {
            let mut held = self.held();
            held.serial = held.serial.wrapping_add(1);
            let begun = Begun { incarnation: held.incarnation, number, service: service.to_owned() };
            let name = begun.name(held.serial);
            // Before it is on disk, from where a panic of the store must not keep it.
            held.live.push(Live { name: name.clone(), has_begun, overdue: false });
            drop(held);
            let put = begun.store(store, &name);
            if let Ok(Put::Created) = put {
                return Ok(name);
            }
            self.held().live.retain(|live| live.name != name);
            put?;
        }
    }

    /// Notes that the check of a mark begins.
    pub(crate) fn begin(&self, mark: &str) {
        if let Some(live) = self.held().live.iter_mut().find(|live| live.name == mark) {
            live.has_begun = true;
        }
    }

    /// Notes that a check has ended, whether it holds or not: the marks of its service are removed, unless the node has
    /// ended.
    pub(crate) fn end(&self, is_ended: bool, store: &dyn BlobStore, mark: &str, service: &str) {
        if is_ended {
            // Another process may own the store soon. A clean shutdown forgives the mark.
            return;
        }
        let mut held = self.held();
        if let Some(service) = held.services.get_mut(service) {
            let left = std::mem::take(&mut service.left).into_iter().map(|(name, _)| name);
            held.unremoved.extend(left);
        }
        held.give_up(|live| live.name == mark);
        drop(held);
        self.remove(store);
    }

    /// Removes the marks of checks that have not begun, and will not, unless the node has ended.
    pub(crate) fn withdraw(&self, is_ended: bool) {
        if is_ended {
            // As in [`Self::end`].
            return;
        }
        self.held().give_up(|live| !live.has_begun);
        self.remove(&*self.store);
    }

    /// Removes the marks that are not needed any more. Those that the store does not remove now are removed with the next ones: a later
    /// life would count them.
    fn remove(&self, store: &dyn BlobStore) {
        let marks = self.held().unremoved.clone();
        for name in marks {
            match store.delete(&name) {
                Ok(()) => self.held().unremoved.retain(|unremoved| *unremoved != name),
                Err(error) => events::warn(format_args!(
                    "cannot delete {name}, so that its check may be blamed: {error}"
                )),
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
    pub(crate) fn forgive(&self) {
        self.held().give_up(|live| !live.overdue);
        self.remove(&*self.store);
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
    pub(crate) fn record(&self, now: Time) -> Result<(), CheckpointError> {
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
        checked.store(&*self.store).map(drop)
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
