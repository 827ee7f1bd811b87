//! Segment files: their names and headers, and the preparation of the next one before it is needed.
//!
//! In the log's directory, by hexadecimal number: `N.log` is a segment, live or prepared; `N.free` is one that was trimmed
//! and will be reused; `N.tmp` is one being made. A file is called `.log` only once it is whole and synced, so a live
//! segment that is short or without a header is damage.

use super::error::{Damage, WalError};
use super::frame::{BLOCK, FORMAT};
use super::numbers::{u32_at, u64_at};
use super::options::WalOptions;
use crate::disk::{Disk, DiskFile, Open, is_full, is_out_of_descriptors};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

const MAGIC: [u8; 8] = *b"STEADWAL";

/// The kind of a file in the log's directory, by its name.
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

/// Returns the first block of a segment: magic, version, CRC-32 of the rest of the block, segment number, log, length.
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
/// Returns its version.
pub(crate) fn check_header(
    block: &[u8],
    path: &str,
    id: u64,
    log_id: u64,
    len: u64,
) -> Result<u32, WalError> {
    let corrupt = |damage| WalError::Corrupt { path: path.to_owned(), offset: 0, damage };
    if block.len() < BLOCK || block[..8] != MAGIC {
        return Err(corrupt(Damage::SegmentHeader));
    }
    let version = u32_at(block, 8);
    if !(1..=FORMAT).contains(&version) {
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
    Ok(version)
}

/// An open segment.
pub(crate) struct Segment {
    pub(crate) id: u64,
    pub(crate) file: Box<dyn DiskFile>,
    pub(crate) bytes: u64,
    pub(crate) version: u32,
}

/// A trimmed segment that is kept for reuse.
#[derive(Clone, Copy)]
pub(crate) struct Free {
    pub(crate) id: u64,
    pub(crate) bytes: u64,
}

/// Segments that are ready to be written, shared by the log and its [`SegmentPreparer`]s.
pub(crate) struct Pool {
    disk: Arc<dyn Disk>,
    dir: String,
    log_id: u64,
    options: WalOptions,
    state: Mutex<PoolState>,
    /// Signalled when a preparation ends.
    prepared: Condvar,
}

#[derive(Default)]
struct PoolState {
    ready: VecDeque<Segment>,
    free: Vec<Free>,
    /// The wanted bytes of the next segments, which grow with the log.
    wanted_bytes: u64,
    /// Minimum bytes of a segment that begins with the table of promises.
    least_bytes: u64,
    id_next: u64,
    preparing: bool,
    /// Another thread is going to prepare segments.
    delegated: bool,
    fatal: Option<String>,
}

impl Pool {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        options: &WalOptions,
        ready: VecDeque<Segment>,
        free: Vec<Free>,
        id_next: u64,
    ) -> Self {
        let wanted_bytes = options.first_bytes();
        let state = PoolState { ready, free, id_next, wanted_bytes, ..PoolState::default() };
        Self {
            disk,
            dir: options.dir.clone(),
            log_id: options.log_id,
            options: options.clone(),
            state: Mutex::new(state),
            prepared: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        // The state is consistent between statements; a panic elsewhere does not change that.
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

    /// Whether a segment should be prepared now.
    pub(crate) fn wants(&self) -> bool {
        let state = self.state();
        state.ready.len() < self.options.spares && !state.preparing
    }

    /// Sets the wanted length of the next segments from the bytes of all needed ones.
    pub(crate) fn log_has(&self, bytes: u64) {
        let first = self.options.first_bytes();
        let doublings = (bytes / first).checked_ilog2().unwrap_or(0);
        self.state().wanted_bytes = (first << doublings).min(self.options.segment_bytes);
    }

    /// Returns the bytes of the next segment, unless a batch needs more.
    pub(crate) fn wanted_bytes(&self) -> u64 {
        let state = self.state();
        state.wanted_bytes.max(state.least_bytes)
    }

    /// Accepts only segments of at least `bytes` from now on. Shorter ready ones are removed, and those after them,
    /// whose numbers follow.
    pub(crate) fn need(&self, bytes: u64) -> Result<(), WalError> {
        let mut state = self.state();
        let is_more = bytes > state.least_bytes;
        state.least_bytes = bytes;
        if !is_more {
            return Ok(());
        }
        // A segment that another thread is preparing may be too short as well.
        while state.preparing {
            state = self.prepared.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let Some(short) = state.ready.iter().position(|segment| segment.bytes < bytes) else { return Ok(()) };
        // The last one first, each durably before the next: a crash leaves no gap.
        while state.ready.len() > short {
            let segment = state.ready.pop_back().expect("longer than the place of the short one");
            state.id_next = segment.id;
            let path = log_path(&self.dir, segment.id);
            drop(segment);
            let removed = self.disk.remove(&path).map_err(WalError::io("remove", &path));
            let removed =
                removed.and_then(|()| self.disk.sync_dir(&self.dir).map_err(WalError::io("sync", &self.dir)));
            if let Err(error) = removed {
                state.fatal = Some(error.to_string());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Returns the bytes of each ready segment, in the order in which they are used.
    pub(crate) fn ready(&self) -> Vec<u64> {
        self.state().ready.iter().map(|segment| segment.bytes).collect()
    }

    /// Returns the number of free segments, and their bytes.
    pub(crate) fn free(&self) -> (usize, u64) {
        let state = self.state();
        (state.free.len(), state.free.iter().map(|free| free.bytes).sum())
    }

    /// Prepares a segment of at least `bytes` and of the wanted length, if fewer than `count` are ready; returns false
    /// if there was nothing to do.
    fn prepare(&self, count: usize, bytes: u64) -> Result<bool, WalError> {
        let (id, bytes, free) = {
            let mut state = self.state();
            if let Some(reason) = &state.fatal {
                return Err(WalError::Fatal { reason: reason.clone() });
            }
            if state.preparing || state.ready.len() >= count {
                return Ok(false);
            }
            state.preparing = true;
            let bytes = bytes.max(state.wanted_bytes).max(state.least_bytes);
            let free = state.free.iter().rposition(|free| free.bytes >= bytes);
            (state.id_next, bytes, free.map(|at| state.free.swap_remove(at)))
        };
        let made = match free {
            Some(free) => self.recycle(free, id),
            None => self.make_or_free(id, bytes),
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
                if matches!(error, WalError::NoSpace { .. }) {
                    state.free.extend(free);
                } else {
                    state.fatal = Some(error.to_string());
                }
                Err(error)
            }
        }
    }

    /// Prepares a segment if fewer than the wanted spares are ready; returns false if there was nothing to do.
    fn prepare_spare(&self) -> Result<bool, WalError> {
        self.prepare(self.options.spares, 0)
    }

    /// Prepares until nothing is missing, and waits for other threads that prepare. `missing` gets the bytes of the
    /// ready segments, and returns the bytes that the next one must have.
    pub(crate) fn ensure(&self, missing: impl Fn(&[u64]) -> Option<u64>) -> Result<(), WalError> {
        loop {
            {
                let mut state = self.state();
                while state.preparing {
                    state = self.prepared.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
            let Some(bytes) = missing(&self.ready()) else { return Ok(()) };
            self.prepare(usize::MAX, bytes)?;
        }
    }

    /// Takes the next segment; creates one of at least `bytes` if there is none.
    pub(crate) fn take(&self, bytes: u64) -> Result<Segment, WalError> {
        loop {
            if let Some(segment) = self.state().ready.pop_front() {
                return Ok(segment);
            }
            self.ensure(|ready| ready.is_empty().then_some(bytes))?;
        }
    }

    /// Prepares on this thread if no other one does. A full disk shows later, when the segment is needed.
    pub(crate) fn prepare_unless_delegated(&self) -> Result<(), WalError> {
        if self.state().delegated {
            return Ok(());
        }
        match self.prepare_spare() {
            Ok(_) | Err(WalError::NoSpace { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Releases segments that the log no longer needs, oldest first: some are kept for reuse, the others are removed.
    pub(crate) fn release(&self, ids: &[u64]) -> Result<(), WalError> {
        let (wanted, small) = {
            let mut state = self.state();
            let wanted = state.wanted_bytes.max(state.least_bytes);
            // The log has outgrown these segments.
            let small: Vec<Free> = state.free.extract_if(.., |free| free.bytes < wanted).collect();
            (wanted, small)
        };
        for free in small {
            let path = free_path(&self.dir, free.id);
            self.disk.remove(&path).map_err(WalError::io("remove", &path))?;
        }
        let room = self.options.free_max.saturating_sub(self.state().free.len());
        let mut kept = Vec::new();
        for &id in ids {
            let path = log_path(&self.dir, id);
            let len = self.disk.len(&path).map_err(WalError::io("look at", &path))?.unwrap_or(0);
            if kept.len() < room && len >= wanted && self.options.is_reusable(len) {
                self.disk.rename(&path, &free_path(&self.dir, id)).map_err(WalError::io("rename", &path))?;
                kept.push(Free { id, bytes: len });
            } else {
                self.disk.remove(&path).map_err(WalError::io("remove", &path))?;
            }
        }
        self.disk.sync_dir(&self.dir).map_err(WalError::io("sync", &self.dir))?;
        // Must come last: after a power cut a segment could have its old name again, with the header of another one.
        self.state().free.append(&mut kept);
        Ok(())
    }

    fn recycle(&self, free: Free, id: u64) -> Result<Segment, WalError> {
        let (from, to) = (free_path(&self.dir, free.id), log_path(&self.dir, id));
        let file = match self.disk.open_direct(&from, Open::Existing) {
            Ok(file) => file,
            Err(source) if is_full(&source) => return Err(self.no_space(free.bytes, source)),
            Err(source) => return Err(WalError::Io { action: "open", path: from, source }),
        };
        self.finish(file, &from, &to, id, free.bytes)
    }

    /// Creates a segment. If the disk is too full, shorter free segments are removed first.
    fn make_or_free(&self, id: u64, bytes: u64) -> Result<Segment, WalError> {
        match self.make(id, bytes) {
            Err(WalError::NoSpace { source, .. }) if !is_out_of_descriptors(&source) => {
                let free = std::mem::take(&mut self.state().free);
                if free.is_empty() {
                    return Err(self.no_space(bytes, source));
                }
                for free in free {
                    let path = free_path(&self.dir, free.id);
                    self.disk.remove(&path).map_err(WalError::io("remove", &path))?;
                }
                // Only a durable removal releases its space.
                self.disk.sync_dir(&self.dir).map_err(WalError::io("sync", &self.dir))?;
                self.make(id, bytes)
            }
            made => made,
        }
    }

    fn make(&self, id: u64, bytes: u64) -> Result<Segment, WalError> {
        let temporary = format!("{}/{id:016x}.tmp", self.dir);
        let made = self.disk.open_direct(&temporary, Open::Replace).and_then(|file| {
            file.allocate(bytes)?;
            Ok(file)
        });
        match made {
            Ok(file) => self.finish(file, &temporary, &log_path(&self.dir, id), id, bytes),
            Err(source) if is_full(&source) => {
                // The allocated bytes would only keep the disk full; if they cannot be removed, the next attempt
                // replaces the file.
                let _ = self.disk.remove(&temporary);
                Err(self.no_space(bytes, source))
            }
            Err(source) => Err(WalError::Io { action: "allocate", path: temporary, source }),
        }
    }

    fn no_space(&self, bytes: u64, source: io::Error) -> WalError {
        WalError::NoSpace { dir: self.dir.clone(), bytes, source }
    }

    /// The header must be durable before the file is named as a segment.
    fn finish(
        &self,
        file: Box<dyn DiskFile>,
        from: &str,
        to: &str,
        id: u64,
        bytes: u64,
    ) -> Result<Segment, WalError> {
        let header = encode_header(id, self.log_id, bytes);
        file.write_at(&header, 0).map_err(WalError::io("write", from))?;
        file.sync_data().map_err(WalError::io("sync", from))?;
        self.disk.rename(from, to).map_err(WalError::io("rename", from))?;
        self.disk.sync_dir(&self.dir).map_err(WalError::io("sync", &self.dir))?;
        Ok(Segment { id, file, bytes, version: FORMAT })
    }
}

/// Prepares segments on a thread of the caller, so that appends never wait: filling a segment with zeros takes some
/// tenths of a second.
#[derive(Clone)]
pub struct SegmentPreparer {
    pub(crate) pool: Arc<Pool>,
}

impl SegmentPreparer {
    /// Prepares the next segment if fewer than [`WalOptions::spares`] are ready; returns whether it did.
    ///
    /// # Errors
    /// [`WalError::NoSpace`]: call again when there may be space. After any other error the log refuses everything.
    pub fn prepare_next(&self) -> Result<bool, WalError> {
        self.pool.prepare_spare()
    }
}
