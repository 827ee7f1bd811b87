//! The errors of a log.

use crate::disk::is_out_of_descriptors;
use std::error::Error;
use std::fmt;
use std::io;

fn remedy(error: &io::Error) -> &'static str {
    if is_out_of_descriptors(error) {
        "close files or connections, or raise the limit of open files"
    } else {
        "free space on its disk"
    }
}

/// Reasons for which a log refuses an operation or has failed.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// There is no space for another segment, or no descriptor for its file. Nothing was written: the same call may be
    /// repeated once there is.
    #[error(
        "no room for another log segment of {bytes} bytes in {dir}: {source}; {}, then retry",
        remedy(source)
    )]
    NoSpace {
        /// The log's directory.
        dir: String,
        /// The requested bytes.
        bytes: u64,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A batch is over the log's limit. Nothing was written.
    #[error(
        "a batch of {bytes} bytes is over the log's limit of {max} (WalOptions::batch_bytes_max); split it"
    )]
    TooLarge {
        /// The batch's encoded size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// After an earlier failure the contents of the disk are unknown.
    #[error("the log accepts nothing after a failure: {reason}; restart this process to recover")]
    Fatal {
        /// The failure.
        reason: String,
    },
    /// The system failed an operation.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The attempted operation.
        action: &'static str,
        /// The file or directory.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Synced bytes are damaged. Nothing was changed.
    #[error(
        "log segment {path} is corrupt at byte {offset}: {damage}; this had been synced, so it is not the tail of a crash: \
         get the data from another replica or a checkpoint"
    )]
    Corrupt {
        /// The segment's file.
        path: String,
        /// The position in it, in bytes.
        offset: u64,
        /// The damage.
        damage: Damage,
    },
    /// A segment that the log needs is missing. Nothing was changed.
    #[error(
        "log segment {path} is missing; put it back, or get the data from another replica or a checkpoint"
    )]
    MissingSegment {
        /// The segment's file.
        path: String,
    },
    /// The log is missing. Nothing was changed.
    #[error(
        "the log in {dir} is missing; put it back, or restore a checkpoint into an empty directory: a new log would lose data"
    )]
    Missing {
        /// The log's directory.
        dir: String,
    },
    /// A segment was written by an unknown version of Stead.
    #[error(
        "log segment {path} has format version {found}, and this program reads versions 1 to {known}; use the program that wrote it"
    )]
    Version {
        /// The segment's file.
        path: String,
        /// Its version.
        found: u32,
        /// The highest known version.
        known: u32,
    },
    /// A later version of Stead wrote a record of an unknown kind that must be understood. Nothing was changed.
    #[error(
        "log segment {path} holds a record of kind {kind} in the batch at byte {offset}, which this program does not know; use \
         the program that wrote it"
    )]
    Kind {
        /// The segment's file.
        path: String,
        /// The position of its batch, in bytes.
        offset: u64,
        /// The kind.
        kind: u8,
    },
    /// The log would have promises of too many replicas. Nothing was written.
    #[error(
        "the log keeps the promises of at most {max} replicas, and {count} were given to it; use fewer shards"
    )]
    TooManyPromises {
        /// The resulting number.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// A segment belongs to another log.
    #[error(
        "log segment {path} belongs to log {found:016x}, and this is log {wanted:016x}; remove what was copied here"
    )]
    WrongLog {
        /// The segment's file.
        path: String,
        /// The log that it belongs to.
        found: u64,
        /// The opened log.
        wanted: u64,
    },
    /// An option is invalid.
    #[error("log option {option} is {value}; it must be {must}")]
    Options {
        /// The option.
        option: &'static str,
        /// The refused value.
        value: u64,
        /// The allowed values.
        must: String,
    },
    /// The visitor refused a record.
    #[error("a log record was refused: {0}")]
    Visit(#[source] Box<dyn Error + Send + Sync>),
}

/// The damage in a piece of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// No batch starts here.
    NoBatch,
    /// A batch that was written to this file under another segment number.
    Stale {
        /// That number.
        found: u64,
    },
    /// An impossible length.
    Length {
        /// The length in bytes.
        len: u32,
        /// The maximum there.
        max: usize,
    },
    /// A wrong checksum.
    Checksum,
    /// A whole batch that does not follow the previous one.
    Order {
        /// Its number.
        found: u64,
        /// The expected number, if known.
        wanted: Option<u64>,
    },
    /// A whole batch whose records are invalid.
    Records,
    /// A segment that does not begin with the table of the promises before it, or a table elsewhere.
    Table,
    /// A promise of a lower epoch than one before it.
    Promise,
    /// An install whose snapshot ends with an entry of a higher epoch than that of its primary.
    Install,
    /// A segment header that is damaged.
    SegmentHeader,
    /// A segment of another number than its file name says.
    Swapped {
        /// The number in its header.
        found: u64,
    },
    /// A file of another length than its header says.
    Truncated {
        /// Its length in bytes.
        len: u64,
        /// The length it should have.
        wanted: u64,
    },
    /// A segment number or length that is out of range.
    Range,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBatch => write!(f, "a batch should start here"),
            Self::Stale { found } => write!(f, "it holds a batch of segment {found}"),
            Self::Length { len, max } => write!(f, "a batch of {len} bytes, over the possible {max}"),
            Self::Checksum => write!(f, "the checksum is wrong"),
            Self::Order { found, wanted: Some(wanted) } => {
                write!(f, "batch {found} instead of {wanted}, or one of another history")
            }
            Self::Order { found, wanted: None } => write!(f, "batch {found} cannot be the log's first"),
            Self::Records => write!(f, "the records do not fill their batch"),
            Self::Table => write!(f, "the table of promises is not the one that belongs here"),
            Self::Promise => write!(f, "a replica promises a lower epoch than before"),
            Self::Install => write!(f, "a snapshot is installed that is newer than its primary's epoch"),
            Self::SegmentHeader => write!(f, "the segment's header is damaged"),
            Self::Swapped { found } => {
                write!(f, "the file holds segment {found}; files were swapped or renamed")
            }
            Self::Truncated { len, wanted } => write!(f, "the file has {len} of {wanted} bytes"),
            Self::Range => write!(f, "a number is out of range"),
        }
    }
}

impl WalError {
    pub(crate) fn io(action: &'static str, path: &str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}
