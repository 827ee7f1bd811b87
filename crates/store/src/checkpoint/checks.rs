//! The results of the services' checks at a checkpoint: a small object beside the manifest, written after the checks.
//!
//! It has the manifest's envelope, is written once unless a check was left out, and is collected with its checkpoint. A
//! checkpoint without such an object, and without results in its manifest, was not checked.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::manifest::{CheckResult, Manifest, decided_numbers, encode, read_object};
use crate::checkpoint::store::{BlobStore, Put};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use stead_core::ids::{CheckpointNumber, Incarnation, Time};

/// The directory of the results of checks.
pub const CHECKS: &str = "checks/";
/// The beginning of the names of marks of checks that have begun, which are in the same directory.
pub(crate) const MARKS: &str = "checks/begun-";
/// Maximum number of bytes of such an object.
const CHECKS_MAX: u64 = 16 << 20;
const KIND_CHECKS: &str = "checks";

/// The known outcome of checks that services declare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// Some or all of them were not run, or no service declares one.
    #[default]
    NotChecked,
    /// All were run, and hold.
    Hold,
    /// One of them does not hold.
    Failed,
}

impl CheckOutcome {
    /// Returns the outcome of several checks together.
    #[must_use]
    pub fn of(outcomes: impl IntoIterator<Item = Self>) -> Self {
        let mut all = None;
        for outcome in outcomes {
            match outcome {
                Self::Failed => return Self::Failed,
                Self::Hold if all.is_none() => all = Some(Self::Hold),
                Self::Hold => {}
                Self::NotChecked => all = Some(Self::NotChecked),
            }
        }
        all.unwrap_or(Self::NotChecked)
    }
}

impl std::fmt::Display for CheckOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotChecked => "not checked",
            Self::Hold => "hold",
            Self::Failed => "failed",
        })
    }
}

impl CheckResult {
    /// Whether it holds.
    #[must_use]
    pub fn outcome(&self) -> CheckOutcome {
        match (&self.failure, &self.skipped) {
            (Some(_), _) => CheckOutcome::Failed,
            (None, Some(_)) => CheckOutcome::NotChecked,
            (None, None) => CheckOutcome::Hold,
        }
    }
}

/// The results of the checks of one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checked {
    /// The incarnation of the cluster.
    pub incarnation: Incarnation,
    /// The checkpoint.
    pub number: CheckpointNumber,
    /// The end of the checks, in microseconds since the Unix epoch.
    pub checked: Time,
    /// The results by service.
    pub results: Vec<CheckResult>,
}

/// Returns the name of the object with the results of a checkpoint's checks.
#[must_use]
pub fn checks_name(number: CheckpointNumber) -> String {
    format!("{CHECKS}{:020}.json", number.0)
}

fn checks_number(name: &str) -> Option<CheckpointNumber> {
    let number = CheckpointNumber(name.strip_prefix(CHECKS)?.strip_suffix(".json")?.parse().ok()?);
    (checks_name(number) == name).then_some(number)
}

impl Checked {
    /// Stores the results. Existing results stay, unless a check was left out of them and none failed.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn store(&self, store: &dyn BlobStore) -> Result<Put, CheckpointError> {
        let (name, bytes) = (checks_name(self.number), encode(KIND_CHECKS, 1, self));
        CheckpointError::check_len(&name, bytes.len(), CHECKS_MAX)?;
        let put = store.put_new(&name, &bytes)?;
        let is_open = |found: Self| found.outcome() == CheckOutcome::NotChecked;
        if put == Put::Exists && Self::read(store, &name).is_ok_and(is_open) {
            store.delete(&name)?;
            return Ok(store.put_new(&name, &bytes)?);
        }
        Ok(put)
    }

    /// Returns the outcome of all checks together.
    #[must_use]
    pub fn outcome(&self) -> CheckOutcome {
        CheckOutcome::of(self.results.iter().map(CheckResult::outcome))
    }

    fn read(store: &dyn BlobStore, name: &str) -> Result<Self, CheckpointError> {
        read_object(store, name, CHECKS_MAX, KIND_CHECKS, "the results of checks")
    }
}

/// Reads the results of a checkpoint's checks: those beside the manifest, or those in it; empty if it was not checked.
///
/// # Errors
/// [`CheckpointError`] if results exist but cannot be read, or are of another checkpoint.
pub fn recorded_checks(
    store: &dyn BlobStore,
    manifest: &Manifest,
) -> Result<Vec<CheckResult>, CheckpointError> {
    let beside = checks_beside(store, manifest.incarnation, manifest.number)?;
    Ok(beside.unwrap_or_else(|| manifest.checks.clone()))
}

/// Reads the results beside a checkpoint's manifest; `None` if there are none yet. They change only while a check is
/// left out of them.
///
/// # Errors
/// As [`recorded_checks`].
pub fn checks_beside(
    store: &dyn BlobStore,
    incarnation: Incarnation,
    number: CheckpointNumber,
) -> Result<Option<Vec<CheckResult>>, CheckpointError> {
    let name = checks_name(number);
    let checked = match Checked::read(store, &name) {
        Err(CheckpointError::Store(error)) if error.is_not_found() => return Ok(None),
        checked => checked?,
    };
    if (checked.incarnation, checked.number) != (incarnation, number) {
        return Err(CheckpointError::damaged(&name, format!("it is about checkpoint {}", checked.number)));
    }
    Ok(Some(checked.results))
}

/// Lists the results of checks, with the checkpoint that the name gives, if any. Marks of checks that did not end are
/// left out.
pub(crate) fn list_checks(
    store: &dyn BlobStore,
) -> Result<Vec<(String, Option<CheckpointNumber>)>, CheckpointError> {
    let names = store.list(CHECKS)?.into_iter().filter(|name| !name.starts_with(MARKS));
    Ok(names.map(|name| (name.clone(), checks_number(&name))).collect())
}

/// Copies the results of a checkpoint that is about to be copied, and those that were written since earlier copies.
pub(crate) fn copy_checks(
    from: &dyn BlobStore,
    to: &dyn BlobStore,
    number: CheckpointNumber,
) -> Result<(), CheckpointError> {
    let there: BTreeSet<String> = to.list(CHECKS)?.into_iter().collect();
    let names = decided_numbers(to)?.into_iter().chain([number]).map(checks_name);
    for name in names.filter(|name| !there.contains(name)) {
        match from.get(&name, CHECKS_MAX) {
            Err(error) if error.is_not_found() => {}
            bytes => drop(to.put_new(&name, &bytes?)?),
        }
    }
    Ok(())
}
