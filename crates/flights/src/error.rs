//! The errors of a run.

use crate::life::LifeError;
use std::path::PathBuf;
use std::time::Duration;

/// Reasons for which a run has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConductError {
    /// The application cannot be run.
    #[error(transparent)]
    Life(#[from] LifeError),
    /// The application failed to answer a question.
    #[error("the application cannot continue: {reason}")]
    Failed {
        /// The reason that it reported.
        reason: String,
    },
    /// The feeder makes no progress.
    #[error("no row has been fed for {} s after row {row}", waited.as_secs())]
    Stuck {
        /// The last row.
        row: u64,
        /// The time without progress.
        waited: Duration,
    },
    /// A checkpoint is needed, but none completes.
    #[error("no checkpoint was completed within {} s: {reason}", waited.as_secs())]
    NoCheckpoint {
        /// The time of the wait.
        waited: Duration,
        /// Reason of the last failure.
        reason: String,
    },
    /// A node of the cluster cannot be run.
    #[error(transparent)]
    Local(#[from] stead_local::LocalError),
    /// The cluster does not become whole.
    #[error("the cluster is not whole after {} s: {reason}", waited.as_secs())]
    NotWhole {
        /// The time of the wait.
        waited: Duration,
        /// The missing thing.
        reason: String,
    },
    /// Files of the run cannot be read or written.
    #[error("{what} failed: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// The log of the application cannot be read.
    #[error("cannot read the log in {}: {reason}", dir.display())]
    Log {
        /// The data directory.
        dir: PathBuf,
        /// The cause.
        reason: String,
    },
    /// Restoring a checkpoint failed.
    #[error("cannot restore checkpoint {number}: {reason}")]
    Restore {
        /// The checkpoint.
        number: u64,
        /// The cause.
        reason: String,
    },
    /// The executioner failed.
    #[error("{0}")]
    Executioner(String),
}
