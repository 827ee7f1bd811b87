//! What can go wrong with a log.

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

/// Why the log refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// There is no room for another segment, or no descriptor for its file. Nothing was written: the same call may be
    /// repeated when there is.
    #[error(
        "no room for another log segment of {bytes} bytes in {dir}: {source}; {}, then retry",
        remedy(source)
    )]
    NoSpace {
        /// The log's directory.
        dir: String,
        /// Bytes that were asked for.
        bytes: u64,
        /// What the system said.
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
    /// An earlier failure left it unknown what is on disk.
    #[error("the log accepts nothing after a failure: {reason}; restart this process to recover")]
    Fatal {
        /// The failure.
        reason: String,
    },
    /// The system failed an operation.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Bytes that had been synced are damaged. Nothing was changed.
    #[error(
        "log segment {path} is corrupt at byte {offset}: {damage}; this had been synced, so it is not the tail of a crash: \
         get the data from another replica or a checkpoint"
    )]
    Corrupt {
        /// The segment's file.
        path: String,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong there.
        damage: Damage,
    },
    /// A segment that the log needs isn't there. Nothing was changed.
    #[error(
        "log segment {path} is missing; put it back, or get the data from another replica or a checkpoint"
    )]
    MissingSegment {
        /// The segment's file.
        path: String,
    },
    /// There is no log where one must be. Nothing was changed.
    #[error(
        "the log in {dir} is missing; put it back, or restore a checkpoint into an empty directory: a new log would lose data"
    )]
    Missing {
        /// The log's directory.
        dir: String,
    },
    /// A segment was written by a version of Stead that this one doesn't know.
    #[error(
        "log segment {path} has format version {found}, and this program reads versions 1 to {known}; use the program that wrote it"
    )]
    Version {
        /// The segment's file.
        path: String,
        /// Its version.
        found: u32,
        /// The highest version known here.
        known: u32,
    },
    /// A later version of Stead wrote a record that must be understood, and this one does not know its kind. Nothing was
    /// changed.
    #[error(
        "log segment {path} holds a record of kind {kind} in the batch at byte {offset}, which this program does not know; use \
         the program that wrote it"
    )]
    Kind {
        /// The segment's file.
        path: String,
        /// Where its batch begins, in bytes.
        offset: u64,
        /// The kind.
        kind: u8,
    },
    /// Promises of more replicas than a log keeps. Nothing was written.
    #[error(
        "the log keeps the promises of at most {max} replicas, and {count} were given to it; use fewer shards"
    )]
    TooManyPromises {
        /// The number that there would be.
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
        /// The log that is opened.
        wanted: u64,
    },
    /// Options that can't be.
    #[error("log option {option} is {value}; it must be {must}")]
    Options {
        /// Which option.
        option: &'static str,
        /// The refused value.
        value: u64,
        /// What is possible.
        must: String,
    },
    /// The visitor refused a record.
    #[error("a log record was refused: {0}")]
    Visit(#[source] Box<dyn Error + Send + Sync>),
}

/// What is wrong with a piece of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// No batch starts here.
    NoBatch,
    /// A batch that was written to this file under another segment number.
    Stale {
        /// That number.
        found: u64,
    },
    /// A length that can't be.
    Length {
        /// The length in bytes.
        len: u32,
        /// The most possible here.
        max: usize,
    },
    /// A checksum that is wrong.
    Checksum,
    /// A whole batch that doesn't follow the one before it.
    Order {
        /// Its number.
        found: u64,
        /// The number that should stand here, if known.
        wanted: Option<u64>,
    },
    /// A batch that is whole but whose records make no sense.
    Records,
    /// A segment that does not begin with the table of the promises before it, or a table elsewhere.
    Table,
    /// A promise of a lower epoch than one before it.
    Promise,
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
