//! Reads the entries of a shard that survive, in pieces, while the log is written: for a replica of the shard on another node, or to
//! fold them.
//!
//! A log may hold entries that are void. Which ones survive is known by their epochs: entries of the same epoch and index are equal, so
//! the first copy of each serves.

use super::live::{Reading, ShardReader, WalReader};
use super::{Record, WalError};
use std::convert::Infallible;
use std::ops::ControlFlow;
use stead_core::blob::Blob;
use stead_core::ids::{Index, ShardId};
use stead_core::replication::table::{EpochTable, LogPoint};
use stead_core::shard_replica::LogEntry;

/// Bytes that an entry counts for at least, besides its own.
const ENTRY_OVERHEAD: u64 = 64;

/// The state of a reading after one of its pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All entries were read.
    Done,
    /// More is to be read: the next piece begins there.
    More,
    /// The next entry is not in the log: it was trimmed, or it is not durable yet.
    Missing,
}

/// Reads the surviving entries of one shard from an index on, up to another one.
pub struct LogReader {
    entries: ShardReader,
    table: EpochTable,
    /// The next one to be read.
    next: Index,
    last: Index,
    /// The entry before `next`, if it was read and did not fit into its piece.
    held: Option<LogEntry>,
}

impl WalReader {
    /// Returns a reader of the entries of a shard that `table` has, of the indexes from `from` to `last`.
    #[must_use]
    pub fn log(&self, shard: ShardId, table: EpochTable, from: Index, last: Index) -> LogReader {
        LogReader { entries: self.entries(shard, from), table, next: from, last, held: None }
    }
}

impl LogReader {
    /// Bytes of the log, of all its shards, that one piece reads at most, besides a batch.
    pub const SCAN_BYTES: u64 = 1 << 20;

    /// Reads the next piece: entries with at most `bytes_max` bytes together, but at least one if it comes past any; and no more than
    /// [`Self::SCAN_BYTES`] of the log.
    ///
    /// # Errors
    /// [`WalError::Corrupt`] and the like if what is durable is damaged.
    pub fn read(&mut self, bytes_max: u64, out: &mut Vec<LogEntry>) -> Result<Progress, WalError> {
        let Self { entries, table, next, last, held } = self;
        let mut piece = Piece { out, bytes: 0, bytes_max };
        if let Some(entry) = held.take() {
            piece.add(entry);
        }
        if *next > *last {
            return Ok(Progress::Done);
        }
        let reading = entries.read_within(Self::SCAN_BYTES, |Record { epoch, index, bytes, .. }| {
            let point = LogPoint { epoch, index };
            if index != *next || !table.has(point) {
                return Ok::<_, Infallible>(ControlFlow::Continue(()));
            }
            *next = index.next();
            *held = piece.add(LogEntry { point, bytes: Blob::from(bytes) });
            let is_enough = held.is_some() || index == *last;
            Ok(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(match reading {
            _ if held.is_some() => Progress::More,
            _ if *next > *last => Progress::Done,
            Reading::Ended => Progress::Missing,
            Reading::Stopped | Reading::Paused => Progress::More,
        })
    }
}

/// The entries of one piece.
struct Piece<'a> {
    out: &'a mut Vec<LogEntry>,
    bytes: u64,
    bytes_max: u64,
}

impl Piece<'_> {
    /// Adds an entry, or returns it if it does not fit. The first one always does.
    fn add(&mut self, entry: LogEntry) -> Option<LogEntry> {
        let bytes = self.bytes + entry.bytes.len() as u64 + ENTRY_OVERHEAD;
        if self.bytes > 0 && bytes > self.bytes_max {
            return Some(entry);
        }
        self.bytes = bytes;
        self.out.push(entry);
        None
    }
}
