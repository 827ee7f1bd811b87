//! Reports on checkpoints for callers.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::checks::CheckOutcome;
use stead_store::checkpoint::collect::DeleteError;
use stead_store::checkpoint::manifest::{CheckResult, Manifest};

/// A completed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointReport {
    /// Its number.
    pub number: u64,
    /// The time that it took.
    pub duration: Duration,
    /// Bytes that it wrote.
    pub bytes_written: u64,
    /// Bytes of all its sections.
    pub bytes_total: u64,
    /// Records of all shards.
    pub records: u64,
    /// Messages in flight.
    pub in_flight: u64,
    /// Longest time that a slice of a snapshot has held its worker since the node was opened.
    pub stall_max: Duration,
    /// The outcome of the services' checks.
    pub check: CheckOutcome,
    /// Those that do not hold, by service.
    pub failed_checks: Vec<FailedCheck>,
    /// Those that were not run, by service, with the reason.
    #[serde(default)]
    pub skipped_checks: Vec<SkippedCheck>,
}

/// A service's check that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCheck {
    /// The service.
    pub service: String,
    /// The reason, as the check reports it.
    pub reason: String,
}

/// A service's check that was not run over a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedCheck {
    /// The service.
    pub service: String,
    /// The reason why it was not run.
    pub reason: String,
}

/// A stored checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    /// Its number.
    pub number: u64,
    /// The time at which it began, in microseconds since the Unix epoch.
    pub created: u64,
    /// Bytes that it wrote.
    pub bytes_written: u64,
    /// Bytes of all its sections.
    pub bytes_total: u64,
    /// Records of all shards.
    pub records: u64,
    /// Messages in flight.
    pub in_flight: u64,
    /// Its shards.
    pub shards: u64,
    /// The outcome of the services' checks; not checked if they were not run, or not yet.
    #[serde(default)]
    pub check: CheckOutcome,
    /// Those that do not hold, by service.
    pub failed_checks: Vec<FailedCheck>,
    /// Those that were not run, by service, as far as the reason is known.
    #[serde(default)]
    pub skipped_checks: Vec<SkippedCheck>,
}

impl CheckpointInfo {
    pub(crate) fn of(manifest: &Manifest, checks: &[CheckResult]) -> Self {
        let mut info = Self {
            number: manifest.number.0,
            created: manifest.created.0,
            bytes_written: manifest.totals.written_bytes,
            bytes_total: manifest.totals.section_bytes,
            records: manifest.totals.records,
            in_flight: manifest.totals.messages,
            shards: manifest.parts.len() as u64,
            check: CheckOutcome::NotChecked,
            failed_checks: Vec::new(),
            skipped_checks: Vec::new(),
        };
        info.note_checks(checks);
        info
    }

    pub(crate) fn note_checks(&mut self, checks: &[CheckResult]) {
        self.check = CheckOutcome::of(checks.iter().map(CheckResult::outcome));
        self.failed_checks = failed(checks);
        self.skipped_checks = skipped(checks);
    }
}

pub(crate) fn skipped(checks: &[CheckResult]) -> Vec<SkippedCheck> {
    let skipped = checks.iter().filter_map(|check| {
        let reason = check.skipped.clone().filter(|_| check.failure.is_none())?;
        Some(SkippedCheck { service: check.service.clone(), reason })
    });
    skipped.collect()
}

pub(crate) fn failed(checks: &[CheckResult]) -> Vec<FailedCheck> {
    let failed = checks.iter().filter_map(|check| {
        let reason = check.failure.clone()?;
        Some(FailedCheck { service: check.service.clone(), reason })
    });
    failed.collect()
}

/// Reasons for which there is no checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointFailure {
    /// It took too long, or could not be written: its number is given up.
    #[error(
        "checkpoint {number} was given up: {reason}; the node keeps running, and the next checkpoint may succeed"
    )]
    GivenUp {
        /// Its number.
        number: u64,
        /// The reason.
        reason: String,
    },
    /// The disk is full, and the remaining space of the log is needed for work that has begun.
    #[error("no checkpoint is taken: the data directory's disk is full; make room and try again")]
    Full,
    /// The maximum number of copies is running or waiting.
    #[error("{0} copies run or wait already; try again when one of them has ended")]
    Busy(usize),
    /// The checkpoint is being read, and cannot be deleted now.
    #[error("checkpoint {0} is in use; try again when it is not")]
    InUse(u64),
    /// The stored checkpoints cannot be read, or there is no such checkpoint.
    #[error("{0}")]
    Store(String),
    /// An address is invalid.
    #[error("{0}")]
    Address(String),
    /// The node has stopped or failed.
    #[error("the node has stopped: {0}")]
    Stopped(String),
}

impl From<DeleteError> for CheckpointFailure {
    fn from(error: DeleteError) -> Self {
        match error {
            DeleteError::Pinned(number) => Self::InUse(number.0),
            DeleteError::Newest(_) | DeleteError::NewestPart(_) | DeleteError::Checkpoint(_) => {
                Self::Store(error.to_string())
            }
        }
    }
}

impl From<CheckpointError> for CheckpointFailure {
    fn from(error: CheckpointError) -> Self {
        Self::Store(error.to_string())
    }
}
