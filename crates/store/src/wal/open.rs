//! Opening a log, and reading one that has no owner.

use super::append::least_bytes;
use super::frame::{BLOCK, FORMAT, Position};
use super::live::{Extent, Published};
use super::options::WalOptions;
use super::record::{Item, Record, encode_table};
use super::recovery::{self, Opened};
use super::segment::{Pool, Segment, log_path};
use super::spans::{SegmentSpans, ShardSpans};
use super::{Batch, Sealed, Wal, WalError};
use crate::aligned::Aligned;
use crate::disk::{Disk, Open, parent};
use std::collections::VecDeque;
use std::error::Error;
use std::ops::ControlFlow;
use std::sync::Arc;

impl Wal {
    /// Opens a log, shows all its records to `visit` in the order in which they were appended, and makes them durable.
    ///
    /// Damage at or below the highest sync mark found in any whole batch is corruption, and is refused. Above it, the log
    /// ends where the damage begins: the rest had not been synced, and is wiped before this returns. Whole batches
    /// above the mark are kept. When this returns, all records that `visit` saw are durable, and a new sync mark records that,
    /// unless the disk is too full for one (see [`Wal::mark`]).
    ///
    /// # Errors
    /// [`WalError::Corrupt`], [`WalError::MissingSegment`], [`WalError::Missing`], [`WalError::Version`] and
    /// [`WalError::WrongLog`] leave the disk as it was. [`WalError::Visit`] carries `visit`'s error.
    /// [`WalError::NoSpace`] if the disk has no space for a new log.
    pub fn open<E: Into<Box<dyn Error + Send + Sync>>>(
        disk: Arc<dyn Disk>,
        options: WalOptions,
        mut visit: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<(Self, Opened), WalError> {
        let visit = |item: Item<'_>| match item {
            Item::Entry(record) => visit(record),
            Item::Promise(_) | Item::Cut(_) | Item::Install(_) => Ok(()),
        };
        Self::open_checked(disk, options, visit, || Ok(()))
    }

    /// Opens a log as [`Wal::open`] does, but calls `accept` after all records were shown and before anything is changed: the
    /// caller may know that an apparently unsynced tail was synced.
    ///
    /// # Errors
    /// As [`Wal::open`]; [`WalError::Visit`] also carries `accept`'s error, and the disk is as it was.
    pub fn open_checked<E: Into<Box<dyn Error + Send + Sync>>>(
        disk: Arc<dyn Disk>,
        options: WalOptions,
        mut visit: impl FnMut(Item<'_>) -> Result<(), E>,
        accept: impl FnOnce() -> Result<(), E>,
    ) -> Result<(Self, Opened), WalError> {
        options.check()?;
        let mut scan = recovery::scan(&*disk, &options, &mut |item| {
            visit(item).map(ControlFlow::Continue).map_err(Into::into)
        })?;
        if scan.segments.is_empty() && !options.create {
            return Err(WalError::Missing { dir: options.dir });
        }
        accept().map_err(|error| WalError::Visit(error.into()))?;
        if scan.segments.is_empty() {
            disk.create_dir(&options.dir).map_err(WalError::io("create", &options.dir))?;
            let above = parent(&options.dir);
            disk.sync_dir(above).map_err(WalError::io("sync", above))?;
        }
        scan.repair(&*disk, &options)?;

        let new = scan.number == 0;
        let id_next = scan.segments.last().map_or(1, |last| last.id + 1);
        let (mut sealed, mut spans) = (VecDeque::new(), VecDeque::new());
        let mut outdated = std::mem::take(&mut scan.outdated);
        let mut active = None;
        let mut ready = VecDeque::new();
        let open = |id: u64, bytes: u64, version: u32| {
            let path = log_path(&options.dir, id);
            let file = disk.open_direct(&path, Open::Existing).map_err(WalError::io("open", &path))?;
            Ok::<_, WalError>(Segment { id, file, bytes, version })
        };
        for (at, found) in scan.segments.into_iter().enumerate() {
            let recovery::Found { id, bytes, version, last, spans: shards } = found;
            match at.cmp(&scan.tail) {
                std::cmp::Ordering::Less if id < scan.oldest => outdated.push(id),
                std::cmp::Ordering::Less => {
                    sealed.push_back(Sealed { id, bytes });
                    spans.push_back(SegmentSpans { id, last, shards });
                }
                std::cmp::Ordering::Equal => {
                    active = Some(open(id, bytes, version)?);
                    spans.push_back(SegmentSpans { id, last, shards });
                }
                std::cmp::Ordering::Greater => ready.push_back(open(id, bytes, version)?),
            }
        }
        let pool = Arc::new(Pool::new(Arc::clone(&disk), &options, ready, scan.reusable, id_next));
        let has = |active: u64| active + sealed.iter().map(|sealed: &Sealed| sealed.bytes).sum::<u64>();
        pool.log_has(has(active.as_ref().map_or(0, |active| active.bytes)));
        if !outdated.is_empty() {
            pool.release(&outdated)?;
        }
        let active = match active {
            Some(active) => active,
            None => {
                let active = pool.take(0)?;
                spans.push_back(SegmentSpans { id: active.id, last: 0, shards: ShardSpans::default() });
                active
            }
        };
        let at = if new { BLOCK as u64 } else { scan.at };
        let last = Position { batch: scan.number, segment: active.id, offset: scan.last_at };
        let oldest = if new { active.id } else { scan.oldest };
        let mut wal = Self {
            last,
            published: Arc::new(Published::new(Extent { oldest, last }, spans)),
            last_checksum: scan.checksum,
            synced: scan.number,
            marked: 0,
            last_records: scan.number,
            oldest,
            pool,
            options,
            sealed,
            active,
            at,
            table: Vec::new(),
            promises: scan.promises,
            fatal: None,
            buf: Aligned::default(),
        };
        encode_table(&mut wal.table, &wal.promises);
        wal.pool.need(least_bytes(wal.table.len()))?;
        if new {
            // Every log has a first batch, so that a segment without batches is never taken for an empty log.
            wal.write::<Batch>(&[])?;
            wal.sync()?;
        } else {
            wal.mark()?;
        }
        // The first segment of another version is created by the first append: only then the owner has agreed to it.
        if wal.active.version == FORMAT {
            wal.pool.prepare_unless_delegated()?;
        }
        Ok((wal, scan.opened))
    }

    /// Reads the entries of a log without changing anything, as [`Wal::open`] would: for inspection without an owner.
    /// When `visit` breaks, the rest is not read.
    ///
    /// # Errors
    /// As [`Wal::open`]; [`WalError::Missing`] also if [`WalOptions::create`] is set.
    pub fn read<E: Into<Box<dyn Error + Send + Sync>>>(
        disk: &dyn Disk,
        options: &WalOptions,
        mut visit: impl FnMut(Record<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<Opened, WalError> {
        Self::read_items(disk, options, |item| match item {
            Item::Entry(record) => visit(record),
            Item::Promise(_) | Item::Cut(_) | Item::Install(_) => Ok(ControlFlow::Continue(())),
        })
    }

    /// As [`Wal::read`], with the records that say which entries do not count any more.
    ///
    /// # Errors
    /// As [`Wal::read`].
    pub fn read_items<E: Into<Box<dyn Error + Send + Sync>>>(
        disk: &dyn Disk,
        options: &WalOptions,
        mut visit: impl FnMut(Item<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<Opened, WalError> {
        options.check()?;
        let scan = recovery::scan(disk, options, &mut |item| visit(item).map_err(Into::into))?;
        if scan.number == 0 {
            return Err(WalError::Missing { dir: options.dir.clone() });
        }
        Ok(scan.opened)
    }
}
