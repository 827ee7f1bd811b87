//! The disk as the storage code sees it: a directory of files whose changes survive a crash only once synced.

use rustix::io::Errno;
use std::io;

/// A directory tree that the storage code owns.
///
/// Paths are relative to the disk's root, use `/`, and have neither `.` nor `..`; `""` is the root. Anything else is
/// refused with [`io::ErrorKind::InvalidInput`]. A full disk is [`io::ErrorKind::StorageFull`], a full quota
/// [`io::ErrorKind::QuotaExceeded`], and a file too many is what the system says of it: [`is_full`] knows all of them.
///
/// What a crash leaves of unsynced changes is undefined, sector by sector and in any order; implementations and
/// callers must not rely on an operation having reached the disk because a later one did.
pub trait Disk: Send + Sync {
    /// Opens a file for reading and writing, or for reading only.
    ///
    /// A created file survives a crash only after both its own [`DiskFile::sync_data`] and [`Disk::sync_dir`] of its
    /// directory.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] or [`io::ErrorKind::AlreadyExists`] as `open` demands; whatever the system says.
    fn open(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>>;

    /// As [`Disk::open`], for much that is written once and not read soon: a write of whole blocks of [`BLOCK_BYTES`] that
    /// begin so in the file and in memory goes past the system's cache, where there is a way past it.
    ///
    /// # Errors
    /// As [`Disk::open`].
    fn open_direct(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        self.open(path, open)
    }

    /// The names (not the paths) of a directory's entries, sorted.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] without such a directory.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;

    /// Creates a directory in an existing one; an existing directory is fine.
    ///
    /// It survives a crash only after [`Disk::sync_dir`] of its parent.
    ///
    /// # Errors
    /// Whatever the system says.
    fn create_dir(&self, path: &str) -> io::Result<()>;

    /// Renames a file within its directory, and replaces one that has the new name. After a crash there is the old
    /// or the new name, never neither; the new one for sure only after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the directories differ.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. It may come back after a crash, until [`Disk::sync_dir`] of its directory.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] without such a file.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Makes the creations, renames and removals in a directory durable.
    ///
    /// MUST NOT return before they survive power loss, and MUST NOT need a file descriptor more than the first call for
    /// that directory did. After an error nothing may be assumed, and the caller must
    /// not retry: the system may have forgotten what it failed to write.
    ///
    /// # Errors
    /// Whatever the system says.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;

    /// The length of a file in bytes, or `None` without such a file.
    ///
    /// # Errors
    /// Whatever the system says, but for "not found".
    fn len(&self, path: &str) -> io::Result<Option<u64>>;

    /// Takes the only ownership of this disk's root by locking `path`, until the guard is dropped or the process ends.
    ///
    /// # Errors
    /// [`LockError::Held`] while another owner lives.
    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, LockError>;

    /// Keeps owners away from this disk's root while it is read, until the guard is dropped or the process ends: a lock
    /// of `path` that other readers have too. Creates and changes nothing; without the file there is no owner, and `None`
    /// is returned.
    ///
    /// # Errors
    /// [`LockError::Held`] while an owner lives.
    fn lock_to_read(&self, path: &str) -> Result<Option<Box<dyn DiskLock>>, LockError>;
}

/// An open file. All positions are in bytes from its start; all calls may come from any thread.
pub trait DiskFile: Send + Sync {
    /// Fills `buf` from `offset` on and returns the number of bytes read, less than `buf` holds only at the end of
    /// the file. Sees every write that returned before.
    ///
    /// # Errors
    /// Whatever the system says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`, and lengthens the file if needed. After an error any part may have been
    /// written.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`], never within a range that [`DiskFile::allocate`] reserved unless the file
    /// system copies on write.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// Whatever the system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// As [`DiskFile::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Lengthens the file to `len` bytes of written zeros, so that later writes within it take no space and change no
    /// metadata. Slow: it writes that many bytes. Doesn't sync all of it: [`DiskFile::sync_data`] must follow.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`]: the file may have been lengthened in part.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Cuts or lengthens (with a hole) the file to `len` bytes.
    ///
    /// # Errors
    /// Whatever the system says.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Makes the file's bytes and length durable.
    ///
    /// MUST NOT return before all writes that returned before the call survive power loss. After an error the caller
    /// must not retry: the system may have dropped the bytes, and a second call would succeed without them.
    ///
    /// # Errors
    /// Whatever the system says.
    fn sync_data(&self) -> io::Result<()>;

    /// A hint that the whole file will be read soon.
    fn read_ahead(&self) {}

    /// A hint that a range, which is durable, will not be read soon.
    fn let_go(&self, _offset: u64, _len: u64) {}
}

/// What disks read and write at once.
pub const BLOCK_BYTES: usize = 4096;

/// How [`Disk::open`] treats a file that exists or doesn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It must exist, and is only read: no permission to write is needed, and a write through it fails.
    Read,
    /// It must exist.
    Existing,
    /// It must not exist, and is created empty.
    New,
    /// It is created empty, or emptied if it exists.
    Replace,
}

/// The ownership of a disk's root; given up when dropped.
pub trait DiskLock: Send + Sync {}

/// Why a disk couldn't be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another owner lives.
    #[error("{path} is locked by {}; stop it, or use another data directory", owner_text(*owner))]
    Held {
        /// The lock file.
        path: String,
        /// The owner's process id, if it could be read.
        owner: Option<u32>,
    },
    /// The lock file can't be used.
    #[error("cannot lock {path}: {source}; check that the data directory exists and is writable")]
    Io {
        /// The lock file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

fn owner_text(owner: Option<u32>) -> String {
    owner.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// Reads a whole file of at most `len_max` bytes.
///
/// # Errors
/// [`io::ErrorKind::NotFound`], or [`io::ErrorKind::InvalidData`] over the limit, which is checked before anything is
/// allocated.
pub fn read_file(disk: &dyn Disk, path: &str, len_max: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Open::Read)?;
    let len = file.len()?;
    if len > len_max {
        let text = format!("{path} has {len} bytes, over the limit of {len_max}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    read_exact_at(&*file, &mut bytes, 0)?;
    Ok(bytes)
}

/// Replaces a file so that a crash leaves the old or the new bytes, and returns once the new ones are durable: written
/// beside it as `PATH.tmp`, synced, renamed, and the directory synced.
///
/// # Errors
/// [`is_full`] before anything changed; after another error either version may be found.
pub fn replace_file(disk: &dyn Disk, path: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{path}.tmp");
    let file = disk.open(&temporary, Open::Replace)?;
    if let Err(error) = file.write_at(bytes, 0) {
        // Gives the space back; the write's error matters more than that of this.
        let _ = disk.remove(&temporary);
        return Err(error);
    }
    file.sync_data()?;
    disk.rename(&temporary, path)?;
    disk.sync_dir(parent(path))
}

/// Fills `buf` from `offset` on.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] if the file ends before.
pub fn read_exact_at(file: &dyn DiskFile, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let read = file.read_at(buf, offset)?;
    if read == buf.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Whether there was no room: on the disk, within a quota, or for another open file. It may pass.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || is_out_of_descriptors(error)
}

/// Whether the process or the system has as many files open as it may.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    let limits = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| limits.contains(&code))
}

/// The directory of a path: `""` for the root's entries.
#[must_use]
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// Checks a path against the rules of [`Disk`].
pub(crate) fn check_path(path: &str) -> io::Result<()> {
    let good = path.is_empty()
        || path.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'));
    if good {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("bad path on a disk: {path:?}")))
    }
}

pub(crate) fn check_rename(from: &str, to: &str) -> io::Result<()> {
    check_path(from)?;
    check_path(to)?;
    if parent(from) == parent(to) {
        return Ok(());
    }
    let text = format!("cannot rename {from} into another directory as {to}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}
