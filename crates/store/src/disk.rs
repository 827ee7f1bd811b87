//! The storage code's interface to a disk: a directory of files whose changes survive a crash only once synced.

use rustix::io::Errno;
use std::io;

/// A directory tree that the storage code owns.
///
/// Paths are relative to the disk's root, use `/`, and have neither `.` nor `..`; `""` is the root. Anything else is
/// refused with [`io::ErrorKind::InvalidInput`]. A full disk is [`io::ErrorKind::StorageFull`], a full quota
/// [`io::ErrorKind::QuotaExceeded`], and too many open files are the system's own error: [`is_full`] recognises all of
/// them.
///
/// The state of unsynced changes after a crash is undefined, sector by sector and in any order; implementations and
/// callers must not rely on an operation having reached the disk because a later one did.
pub trait Disk: Send + Sync {
    /// Opens a file for reading and writing, or for reading only.
    ///
    /// A created file survives a crash only after both its own [`DiskFile::sync_data`] and [`Disk::sync_dir`] of its
    /// directory.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] or [`io::ErrorKind::AlreadyExists`] according to `open`, or the system's error.
    fn open(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>>;

    /// As [`Disk::open`], for data that is written once and not read soon: a write of whole blocks of [`BLOCK_BYTES`],
    /// aligned in the file and in memory, bypasses the system's cache where the system can do so.
    ///
    /// # Errors
    /// As [`Disk::open`].
    fn open_direct(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        self.open(path, open)
    }

    /// Returns the names (not the paths) of a directory's entries, sorted.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] without such a directory.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;

    /// Creates a directory in an existing one; an existing directory is fine.
    ///
    /// It survives a crash only after [`Disk::sync_dir`] of its parent.
    ///
    /// # Errors
    /// The system's error.
    fn create_dir(&self, path: &str) -> io::Result<()>;

    /// Renames a file within its directory, and replaces one that has the new name. After a crash there is the old
    /// or the new name, never neither; the new one is certain only after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the directories differ.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// As [`Disk::rename`], unless the new name is taken: of several callers, also in other processes, exactly one takes it.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if it is taken: then the file keeps its old name; as [`Disk::rename`].
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. It may come back after a crash, until [`Disk::sync_dir`] of its directory.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] without such a file.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Removes an empty directory. It may come back after a crash, until [`Disk::sync_dir`] of its parent.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] without such a directory, [`io::ErrorKind::DirectoryNotEmpty`], or the system's error.
    fn remove_dir(&self, path: &str) -> io::Result<()>;

    /// Makes the creations, renames and removals in a directory durable.
    ///
    /// MUST NOT return before they survive power loss, and MUST NOT need a file descriptor more than the first call for
    /// that directory did. After an error the state is unknown, and the caller must
    /// not retry: the system may have dropped the changes that it failed to write.
    ///
    /// # Errors
    /// The system's error.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;

    /// Returns the length of a file in bytes, or `None` without such a file.
    ///
    /// # Errors
    /// The system's error, except "not found".
    fn len(&self, path: &str) -> io::Result<Option<u64>>;

    /// Takes exclusive ownership of this disk's root by locking `path`, until the guard is dropped or the process ends.
    ///
    /// # Errors
    /// [`LockError::Held`] while another owner lives.
    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, LockError>;

    /// Keeps owners away from this disk's root while it is read, until the guard is dropped or the process ends: a lock
    /// of `path` that readers share. Creates and changes nothing; if there is no such file, there is no owner, and
    /// `None` is returned.
    ///
    /// # Errors
    /// [`LockError::Held`] while an owner lives.
    fn lock_to_read(&self, path: &str) -> Result<Option<Box<dyn DiskLock>>, LockError>;

    /// Returns the boot of the machine, in which nothing that was written is lost as long as the machine runs; another number than in
    /// each other boot. `None` if the system does not say.
    fn boot(&self) -> Option<u128> {
        None
    }
}

/// An open file. All positions are in bytes from its start; all calls may come from any thread.
pub trait DiskFile: Send + Sync {
    /// Fills `buf` from `offset` on and returns the number of bytes read, less than `buf` holds only at the end of
    /// the file. Sees every write that returned before.
    ///
    /// # Errors
    /// The system's error.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`, and lengthens the file if needed. After an error any part may have been
    /// written.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`], never within a range that [`DiskFile::allocate`] reserved unless the file
    /// system copies on write.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Returns the length in bytes.
    ///
    /// # Errors
    /// The system's error.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// As [`DiskFile::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Lengthens the file to `len` bytes of written zeros, so that later writes within it need no further space and
    /// change no metadata. Slow: it writes that many bytes. It may leave some of them unsynced: [`DiskFile::sync_data`]
    /// must follow.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`]: part of the length may have been added.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Cuts or lengthens (with a hole) the file to `len` bytes.
    ///
    /// # Errors
    /// The system's error.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Makes the file's bytes and length durable.
    ///
    /// MUST NOT return before all writes that returned before the call survive power loss. After an error the caller
    /// must not retry: the system may have dropped the bytes, and a second call would succeed without them.
    ///
    /// # Errors
    /// The system's error.
    fn sync_data(&self) -> io::Result<()>;

    /// Hints that the whole file will be read soon.
    fn read_ahead(&self) {}

    /// Hints that a range, which is durable, will not be read soon.
    fn let_go(&self, _offset: u64, _len: u64) {}
}

/// Unit in which disks read and write, in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// Treatment of an existing or a missing file by [`Disk::open`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It must exist, and is only read: no permission to write is needed, and a write fails.
    Read,
    /// It must exist.
    Existing,
    /// It must not exist, and is created empty.
    New,
    /// It is created empty, or emptied if it exists.
    Replace,
}

/// Exclusive ownership of a disk's root; released when dropped.
pub trait DiskLock: Send + Sync {}

/// Reasons for which a disk cannot be locked.
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
    /// The lock file cannot be used.
    #[error("cannot lock {path}: {source}; check that the data directory exists and is writable")]
    Io {
        /// The lock file.
        path: String,
        /// The system's error.
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
/// to `PATH.tmp`, synced, renamed, and the directory synced.
///
/// # Errors
/// [`is_full`] before anything changed; after another error either version may be found.
pub fn replace_file(disk: &dyn Disk, path: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{path}.tmp");
    let file = disk.open(&temporary, Open::Replace)?;
    if let Err(error) = file.write_at(bytes, 0) {
        // Frees the space; the error of the write matters more than an error of this removal.
        let _ = disk.remove(&temporary);
        return Err(error);
    }
    file.sync_data()?;
    disk.rename(&temporary, path)?;
    disk.sync_dir(parent(path))
}

/// Removes a directory and everything in it, and returns once that is durable. A missing one is removed already.
///
/// # Errors
/// The system's error; then part of it may be left.
pub fn remove_tree(disk: &dyn Disk, dir: &str) -> io::Result<()> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    for name in names {
        let path = format!("{dir}/{name}");
        match disk.list(&path) {
            Ok(_) => remove_tree(disk, &path)?,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => disk.remove(&path)?,
            Err(error) => return Err(error),
        }
    }
    disk.sync_dir(dir)?;
    disk.remove_dir(dir)?;
    disk.sync_dir(parent(dir))
}

/// Fills `buf` from `offset` on.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] if the file ends earlier.
pub fn read_exact_at(file: &dyn DiskFile, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let read = file.read_at(buf, offset)?;
    if read == buf.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Whether an error means lack of space: on the disk, within a quota, or for another open file. It may be temporary.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || is_out_of_descriptors(error)
}

/// Whether an error means that the process or the system has reached its limit of open files.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    let limits = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| limits.contains(&code))
}

/// Returns the directory of a path; `""` for entries of the root.
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
