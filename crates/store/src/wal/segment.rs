//! Segment files: names, headers, and how the next one is made ready before it is needed.
//!
//! In the log's directory, by hexadecimal number: `N.log` is a segment, live or prepared; `N.free` is one that was trimmed
//! and will be reused; `N.tmp` is one being made. A file is called `.log` only once it is whole and synced, so a live
//! segment that is short or without a header is damage.

use super::batch::{u32_at, u64_at};
use super::error::{Damage, WalError};
use super::frame::BLOCK;
use super::{FORMAT, WalOptions};
use crate::disk::{Disk, DiskFile, Open, is_full};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

const MAGIC: [u8; 8] = *b"STEADWAL";

/// Most bytes that a segment may have.
pub(crate) const SEGMENT_MAX: u64 = 1 << 30;
/// Fewest bytes that a segment may have.
pub(crate) const SEGMENT_MIN: u64 = 4 * BLOCK as u64;

/// What a file in the log's directory is by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Log(u64),
    Free(u64),
    Temporary,
}

pub(crate) fn file_kind(name: &str) -> Option<FileKind> {
    let (number, kind) = name.split_once('.')?;
    if number.len() != 16 || number.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let number = u64::from_str_radix(number, 16).ok()?;
    match kind {
        "log" => Some(FileKind::Log(number)),
        "free" => Some(FileKind::Free(number)),
        "tmp" => Some(FileKind::Temporary),
        _ => None,
    }
}

pub(crate) fn log_path(dir: &str, id: u64) -> String {
    format!("{dir}/{id:016x}.log")
}

pub(crate) fn free_path(dir: &str, id: u64) -> String {
    format!("{dir}/{id:016x}.free")
}

/// The first block of a segment: magic, version, CRC-32 of the rest of the block, segment number, log, length.
pub(crate) fn encode_header(id: u64, log_id: u64, bytes: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[0..8].copy_from_slice(&MAGIC);
    block[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    block[16..24].copy_from_slice(&id.to_le_bytes());
    block[24..32].copy_from_slice(&log_id.to_le_bytes());
    block[32..40].copy_from_slice(&bytes.to_le_bytes());
    let checksum = crc32fast::hash(&block[16..]);
    block[12..16].copy_from_slice(&checksum.to_le_bytes());
    block
}

/// Checks the first block of the segment at `path`, which should be number `id` of log `log_id` and `len` bytes long.
pub(crate) fn check_header(block: &[u8], path: &str, id: u64, log_id: u64, len: u64) -> Result<(), WalError> {
    let corrupt = |damage| WalError::Corrupt { path: path.to_owned(), offset: 0, damage };
    if block.len() < BLOCK || block[..8] != MAGIC {
        return Err(corrupt(Damage::SegmentHeader));
    }
    let version = u32_at(block, 8);
    if version != FORMAT {
        return Err(WalError::Version { path: path.to_owned(), found: version, known: FORMAT });
    }
    if crc32fast::hash(&block[16..BLOCK]) != u32_at(block, 12) {
        return Err(corrupt(Damage::SegmentHeader));
    }
    let (found_id, found_log, wanted) = (u64_at(block, 16), u64_at(block, 24), u64_at(block, 32));
    if found_log != log_id {
        return Err(WalError::WrongLog { path: path.to_owned(), found: found_log, wanted: log_id });
    }
    if found_id != id {
        return Err(corrupt(Damage::Swapped { found: found_id }));
    }
    if len != wanted {
        return Err(corrupt(Damage::Truncated { len, wanted }));
    }
    Ok(())
}

/// An open segment.
pub(crate) struct Segment {
    pub(crate) id: u64,
    pub(crate) file: Box<dyn DiskFile>,
    pub(crate) bytes: u64,
}

/// Segments that are ready to be written, shared by the log and its [`SegmentPreparer`]s.
pub(crate) struct Pool {
    disk: Arc<dyn Disk>,
    dir: String,
    log_id: u64,
    segment_bytes: u64,
    spares: usize,
    free_max: usize,
    state: Mutex<PoolState>,
    /// Signalled when a preparation ends.
    prepared: Condvar,
}

#[derive(Default)]
struct PoolState {
    ready: VecDeque<Segment>,
    /// Numbers of the `.free` files.
    free: Vec<u64>,
    id_next: u64,
    preparing: bool,
    /// Someone promised to prepare on another thread.
    delegated: bool,
    fatal: Option<String>,
}

impl Pool {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        options: &WalOptions,
        ready: VecDeque<Segment>,
        free: Vec<u64>,
        id_next: u64,
    ) -> Self {
        let state = PoolState { ready, free, id_next, ..PoolState::default() };
        Self {
            disk,
            dir: options.dir.clone(),
            log_id: options.log_id,
            segment_bytes: options.segment_bytes,
            spares: options.spares,
            free_max: options.free_max,
            state: Mutex::new(state),
            prepared: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        // The state is consistent between statements; a panic elsewhere doesn't change that.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(crate) fn fatal(&self) -> Option<String> {
        self.state().fatal.clone()
    }

    pub(crate) fn delegate(&self) {
        self.state().delegated = true;
    }

    /// Whether a preparation would be worth its while now.
    pub(crate) fn wants(&self) -> bool {
        let state = self.state();
        state.ready.len() < self.spares && !state.preparing
    }

    /// Bytes of the ready segments, their number, and the number of free ones.
    pub(crate) fn counts(&self) -> (u64, usize, usize) {
        let state = self.state();
        (state.ready.iter().map(|segment| segment.bytes).sum(), state.ready.len(), state.free.len())
    }

    /// Prepares a segment if fewer than `wanted` are ready; false if there was nothing to do.
    pub(crate) fn prepare(&self, wanted: usize) -> Result<bool, WalError> {
        let (id, free) = {
            let mut state = self.state();
            if let Some(reason) = &state.fatal {
                return Err(WalError::Fatal { reason: reason.clone() });
            }
            if state.preparing || state.ready.len() >= wanted {
                return Ok(false);
            }
            state.preparing = true;
            (state.id_next, state.free.pop())
        };
        let made = match free {
            Some(free) => self.recycle(free, id),
            None => self.make(id),
        };
        let mut state = self.state();
        state.preparing = false;
        self.prepared.notify_all();
        match made {
            Ok(segment) => {
                state.ready.push_back(segment);
                state.id_next += 1;
                Ok(true)
            }
            Err(error) => {
                if !matches!(error, WalError::NoSpace { .. }) {
                    state.fatal = Some(error.to_string());
                }
                Err(error)
            }
        }
    }

    /// Prepares until `wanted` segments are ready, or waits for another thread that does.
    pub(crate) fn ensure(&self, wanted: usize) -> Result<(), WalError> {
        loop {
            {
                let mut state = self.state();
                while state.preparing {
                    state = self.prepared.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                if state.ready.len() >= wanted {
                    return Ok(());
                }
            }
            self.prepare(wanted)?;
        }
    }

    /// Takes the next segment.
    pub(crate) fn take(&self) -> Result<Segment, WalError> {
        loop {
            if let Some(segment) = self.state().ready.pop_front() {
                return Ok(segment);
            }
            self.ensure(1)?;
        }
    }

    /// Prepares here and now if no other thread does. A full disk shows later, when the segment is needed.
    pub(crate) fn prepare_unless_delegated(&self) -> Result<(), WalError> {
        if self.state().delegated {
            return Ok(());
        }
        match self.prepare(self.spares) {
            Ok(_) | Err(WalError::NoSpace { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives up segments that the log no longer needs, oldest first: some are kept for reuse, the others removed.
    pub(crate) fn release(&self, ids: &[u64]) -> Result<(), WalError> {
        let room = self.free_max.saturating_sub(self.state().free.len());
        let mut kept = Vec::new();
        for &id in ids {
            let path = log_path(&self.dir, id);
            // Only segments of today's length can be reused.
            let len = self.disk.len(&path).map_err(WalError::io("look at", &path))?;
            if kept.len() < room && len == Some(self.segment_bytes) {
                self.disk.rename(&path, &free_path(&self.dir, id)).map_err(WalError::io("rename", &path))?;
                kept.push(id);
            } else {
                self.disk.remove(&path).map_err(WalError::io("remove", &path))?;
            }
        }
        self.disk.sync_dir(&self.dir).map_err(WalError::io("sync", &self.dir))?;
        // Not before: a power cut could give a segment its old name back, and it would have another one's header by then.
        self.state().free.append(&mut kept);
        Ok(())
    }

    fn recycle(&self, free: u64, id: u64) -> Result<Segment, WalError> {
        let (from, to) = (free_path(&self.dir, free), log_path(&self.dir, id));
        let file = self.disk.open_direct(&from, Open::Existing).map_err(WalError::io("open", &from))?;
        self.finish(file, &from, &to, id)
    }

    fn make(&self, id: u64) -> Result<Segment, WalError> {
        let temporary = format!("{}/{id:016x}.tmp", self.dir);
        let made = self.disk.open_direct(&temporary, Open::Replace).and_then(|file| {
            file.allocate(self.segment_bytes)?;
            Ok(file)
        });
        match made {
            Ok(file) => self.finish(file, &temporary, &log_path(&self.dir, id), id),
            Err(error) if is_full(&error) => {
                // What was allocated would only keep the disk full; if it can't be removed, the next attempt replaces it.
                let _ = self.disk.remove(&temporary);
                Err(WalError::NoSpace { dir: self.dir.clone(), bytes: self.segment_bytes })
            }
            Err(source) => Err(WalError::Io { action: "allocate", path: temporary, source }),
        }
    }

    /// The header is durable before the file is called a segment.
    fn finish(&self, file: Box<dyn DiskFile>, from: &str, to: &str, id: u64) -> Result<Segment, WalError> {
        let header = encode_header(id, self.log_id, self.segment_bytes);
        file.write_at(&header, 0).map_err(WalError::io("write", from))?;
        file.sync_data().map_err(WalError::io("sync", from))?;
        self.disk.rename(from, to).map_err(WalError::io("rename", from))?;
        self.disk.sync_dir(&self.dir).map_err(WalError::io("sync", &self.dir))?;
        Ok(Segment { id, file, bytes: self.segment_bytes })
    }
}

/// Prepares segments on a thread of the caller's, so that appends never wait for it: filling a segment with zeros takes
/// some tenths of a second.
#[derive(Clone)]
pub struct SegmentPreparer {
    pub(crate) pool: Arc<Pool>,
}

impl SegmentPreparer {
    /// Prepares the next segment if fewer than [`WalOptions::spares`] are ready; returns whether it did.
    ///
    /// # Errors
    /// [`WalError::NoSpace`]: call again when there may be room. Anything else: the log refuses everything from now on.
    pub fn prepare_next(&self) -> Result<bool, WalError> {
        self.pool.prepare(self.pool.spares)
    }
}
