//! An operator's view of the log of a running node.

use super::Node;
use crate::log_view::{Filling, LogEntry, LogPage};
use crate::offline::OfflineError;
use std::ops::ControlFlow;
use stead_core::entry::{Entry, NoEntry};
use stead_core::ids::{Index, ShardId};

impl Node {
    /// Passes the entries of a shard's log from an index on to `visit`, until it breaks: those that are on disk now.
    /// Entries that a checkpoint replaced may be missing. Reads files, unless the shard has no entry from there on.
    /// Blocks.
    ///
    /// # Errors
    /// [`OfflineError`] if there is no such shard or the log cannot be read.
    pub fn read_log(
        &self,
        shard: u32,
        from: u64,
        mut visit: impl FnMut(LogEntry) -> ControlFlow<()>,
    ) -> Result<(), OfflineError> {
        self.visit_log(shard, from, |entry| visit(LogEntry::of(&entry)))
    }

    /// Returns some entries of a shard's log, as [`Self::read_log`] passes them: `limit` at most, and no more after 1
    /// MiB of values, messages and answers. Blocks.
    ///
    /// # Errors
    /// As [`Self::read_log`].
    pub fn log_page(&self, shard: u32, from: u64, limit: usize) -> Result<LogPage, OfflineError> {
        let mut page = Filling::new(from, limit);
        self.visit_log(shard, from, |entry| page.take(&entry, None))?;
        Ok(page.page)
    }

    fn visit_log(
        &self,
        shard: u32,
        from: u64,
        visit: impl FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<(), OfflineError> {
        let shards = self.topology().shard_count();
        if shard >= shards {
            return Err(OfflineError::UnknownShard { shard, shards });
        }
        // A node that has stopped does not know the ends of its shards' logs, but its log can be read.
        if from > 0 && self.last_index(ShardId(shard)).is_ok_and(|last| from > last) {
            return Ok(());
        }
        self.follow(ShardId(shard), Index(from), visit)
    }

    /// Passes the entries of a shard from an index on.
    fn follow(
        &self,
        shard: ShardId,
        from: Index,
        mut visit: impl FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<(), OfflineError> {
        let mut reader = self.log().entries(shard, from);
        Ok(reader.read(|record| Ok::<_, NoEntry>(visit(Entry::decode(record.bytes)?)))?)
    }

    /// Returns some entries of one process: `limit` at most, and no more after 1 MiB of values, messages and answers,
    /// from an index of its shard's log on; those that are on disk now. Entries that a checkpoint replaced may be
    /// missing. Reads files, unless there is no entry since `from`. Blocks.
    ///
    /// # Errors
    /// [`OfflineError::Raw`] if there is no such service or the key is invalid; [`OfflineError::Wal`] if the log cannot
    /// be read.
    pub fn process_log(
        &self,
        service: &str,
        key: &str,
        from: u64,
        limit: usize,
    ) -> Result<LogPage, OfflineError> {
        let (shard, process) = self.place_of(service, key)?;
        let mut page = Filling::new(from, limit);
        if from <= self.last_index(shard)? {
            self.follow(shard, Index(from), |entry| page.take(&entry, Some(&process)))?;
        }
        Ok(page.page)
    }
}
