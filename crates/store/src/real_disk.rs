//! A [`Disk`] in a directory of the operating system.

use crate::aligned::Aligned;
use crate::disk::{BLOCK_BYTES, Disk, DiskFile, DiskLock, LockError, Open, check_path, check_rename};
use rustix::fs::{Advice, CWD, FallocateFlags, FlockOperation, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Zeros are written and synced in pieces of this size, so that another file's sync never queues behind a whole segment.
const ZEROS: usize = 1 << 20;

/// A directory of the operating system.
#[derive(Debug)]
pub struct RealDisk {
    root: PathBuf,
    /// Directories that were synced, by path. They stay open, so that the next sync needs no descriptor when none is
    /// left.
    dirs: Mutex<BTreeMap<PathBuf, Arc<File>>>,
}

impl RealDisk {
    /// Opens a directory, and creates it durably, with its parents, if it is missing.
    ///
    /// # Errors
    /// The system's error.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = std::path::absolute(root.into())?;
        let mut missing = Vec::new();
        let mut at = root.as_path();
        while !at.try_exists()? {
            missing.push(at);
            at = at.parent().ok_or(io::ErrorKind::NotFound)?;
        }
        for dir in missing.into_iter().rev() {
            match fs::create_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            if let Some(parent) = dir.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        Self::open_existing(root)
    }

    /// Opens a directory that must exist; creates and changes nothing, so it may be read-only.
    ///
    /// # Errors
    /// The system's error.
    pub fn open_existing(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = std::path::absolute(root.into())?;
        // An unreadable root is reported here and not at the first file.
        fs::read_dir(&root)?;
        Ok(Self { root, dirs: Mutex::default() })
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, path: &str) -> io::Result<PathBuf> {
        check_path(path)?;
        Ok(if path.is_empty() { self.root.clone() } else { self.root.join(path) })
    }

    fn open_file(&self, path: &str, open: Open) -> io::Result<RealFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(open != Open::Read);
        match open {
            Open::Read | Open::Existing => {}
            Open::New => {
                options.create_new(true);
            }
            Open::Replace => {
                options.create(true).truncate(true);
            }
        }
        Ok(RealFile { file: options.open(self.path(path)?)?, direct: None })
    }
}

/// The boot of this machine, by the kernel.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Disk for RealDisk {
    fn boot(&self) -> Option<u128> {
        let id = fs::read_to_string(BOOT_ID).ok()?;
        u128::from_str_radix(&id.trim_end().replace('-', ""), 16).ok()
    }

    fn open(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(self.open_file(path, open)?))
    }

    fn open_direct(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut file = self.open_file(path, open)?;
        if open == Open::Read {
            return Ok(Box::new(file));
        }
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(OFlags::DIRECT.bits() as i32);
        // Not every file system supports it: then everything goes through the cache.
        file.direct = options.open(self.path(path)?).ok();
        Ok(Box::new(file))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path(dir)?)? {
            // Skips names that are not UTF-8: Stead writes none.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let path = self.path(path)?;
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            result => result,
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_rename(from, to)?;
        fs::rename(self.path(from)?, self.path(to)?)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        check_rename(from, to)?;
        let (from, to) = (self.path(from)?, self.path(to)?);
        match fs::hard_link(&from, &to) {
            // It has the new name. The old one is only a leftover.
            Ok(()) => drop(fs::remove_file(&from)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            // Some file systems do not support links.
            Err(error) => match renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE) {
                Ok(()) => {}
                Err(Errno::EXIST) => return Err(Errno::EXIST.into()),
                Err(_) => return Err(error),
            },
        }
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.path(path)?)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let path = self.path(path)?;
        fs::remove_dir(&path)?;
        self.dirs().remove(&path);
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let path = self.path(dir)?;
        let held = self.dirs().get(&path).cloned();
        let held = match held {
            // Another directory may have this name by now.
            Some(held) if same_file(&held.metadata()?, &fs::metadata(&path)?) => held,
            _ => {
                let opened = Arc::new(File::open(&path)?);
                self.dirs().insert(path, Arc::clone(&opened));
                opened
            }
        };
        held.sync_all()
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.path(path)?) {
            Ok(data) => Ok(Some(data.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, LockError> {
        let (full, name) = self.path_and_name(path)?;
        let failed = |source| LockError::Io { path: name.clone(), source };
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&full);
        let lock = lock_path((&full, &name), FlockOperation::NonBlockingLockExclusive, open)?;
        // The number only serves the error message of later processes; the lock itself is the system's.
        lock.file.set_len(0).map_err(failed)?;
        writeln!(&lock.file, "{}", std::process::id()).map_err(failed)?;
        Ok(Box::new(lock))
    }

    fn lock_to_read(&self, path: &str) -> Result<Option<Box<dyn DiskLock>>, LockError> {
        let (full, name) = self.path_and_name(path)?;
        match lock_path((&full, &name), FlockOperation::NonBlockingLockShared, || File::open(&full)) {
            Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            locked => Ok(Some(Box::new(locked?))),
        }
    }
}

impl RealDisk {
    fn dirs(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<File>>> {
        self.dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path_and_name(&self, path: &str) -> Result<(PathBuf, String), LockError> {
        let full = self.path(path).map_err(|source| LockError::Io { path: path.to_owned(), source })?;
        let name = full.display().to_string();
        Ok((full, name))
    }
}

fn same_file(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Opens a file and takes the system's lock of it. Its owner may remove the file between the two, and a lock of a removed
/// file does not exclude processes that open the path after that: then the file that has the path now is locked.
fn lock_path(
    (path, name): (&Path, &str),
    operation: FlockOperation,
    mut open: impl FnMut() -> io::Result<File>,
) -> Result<RealLock, LockError> {
    let failed = |source| LockError::Io { path: name.to_owned(), source };
    loop {
        let lock = flock(open().map_err(failed)?, operation, name)?;
        match fs::metadata(path) {
            Ok(data) if (data.dev(), data.ino()) == lock.id => return Ok(lock),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
}

/// Time for which a lock is retried that this very process seems to hold.
const FORKED_FOR: Duration = Duration::from_secs(2);

/// Takes the system's lock of a file. The lock belongs to the open file, which is closed on exec: between fork and exec
/// a child process holds the lock, too, even if the parent has released it meanwhile. So a lock whose owner seems to be
/// this process is retried for a while.
fn flock(file: File, operation: FlockOperation, name: &str) -> Result<RealLock, LockError> {
    let failed = |source| LockError::Io { path: name.to_owned(), source };
    let id = file.metadata().map(|data| (data.dev(), data.ino())).map_err(failed)?;
    let until = Instant::now() + FORKED_FOR;
    loop {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => {
                let is_owner = operation == FlockOperation::NonBlockingLockExclusive;
                if is_owner {
                    owned().insert(id);
                }
                return Ok(RealLock { file, id, is_owner });
            }
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = [0; 20];
                let len = file.read_at(&mut text, 0).unwrap_or(0);
                let owner = std::str::from_utf8(&text[..len]).ok().and_then(|text| text.trim().parse().ok());
                let forked = owner == Some(std::process::id()) && !owned().contains(&id);
                if !forked || Instant::now() >= until {
                    return Err(LockError::Held { path: name.to_owned(), owner });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Device and inode of each lock file that this process owns.
fn owned() -> MutexGuard<'static, BTreeSet<(u64, u64)>> {
    static OWNED: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}

struct RealLock {
    file: File,
    id: (u64, u64),
    is_owner: bool,
}

impl Drop for RealLock {
    fn drop(&mut self) {
        // Before the file is closed: only after that can another thread take the lock.
        if self.is_owner {
            owned().remove(&self.id);
        }
    }
}

impl DiskLock for RealLock {}

struct RealFile {
    file: File,
    /// The same file, opened to bypass the system's cache.
    direct: Option<File>,
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let fits = |number: usize| number.is_multiple_of(BLOCK_BYTES);
        match &self.direct {
            Some(direct) if fits(offset as usize) && fits(bytes.len()) && fits(bytes.as_ptr().addr()) => {
                match direct.write_all_at(bytes, offset) {
                    // The file system needs larger blocks.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                        self.file.write_all_at(bytes, offset)
                    }
                    written => written,
                }
            }
            _ => self.file.write_all_at(bytes, offset),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let start = self.len()?;
        if start >= len {
            return Ok(());
        }
        // Fails at once, without a partial result, if there is no space. Without support by the file system, writing
        // the zeros finds that out.
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), start, len - start) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        // Reserved blocks are marked unwritten, and the first write to each would change metadata: so they are written
        // now.
        let mut zeros = Aligned::with_room(ZEROS);
        zeros.pad(ZEROS);
        let mut at = start;
        while at < len {
            let piece = usize::try_from(len - at).map_or(ZEROS, |left| left.min(ZEROS));
            self.write_at(&zeros.bytes()[..piece], at)?;
            self.file.sync_data()?;
            at += piece as u64;
        }
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn read_ahead(&self) {
        // Only a hint: reading works without it.
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::Sequential);
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::WillNeed);
    }

    fn let_go(&self, offset: u64, len: u64) {
        let _ = rustix::fs::fadvise(&self.file, offset, std::num::NonZeroU64::new(len), Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_of_a_file_that_was_removed_meanwhile_is_not_the_lock_of_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        let path = dir.path().join("LOCK");
        let lock = |operation, between: &mut dyn FnMut()| {
            let open = || {
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
                between();
                file
            };
            lock_path((&path, "LOCK"), operation, open)
        };
        for operation in [FlockOperation::NonBlockingLockExclusive, FlockOperation::NonBlockingLockShared] {
            let mut owners = vec![disk.lock("LOCK").unwrap()];
            let mut others = Vec::new();
            // The owner removes the file and releases its lock, and another owner comes.
            let mut replace = || {
                if let Some(owner) = owners.pop() {
                    disk.remove("LOCK").unwrap();
                    drop(owner);
                    others.push(disk.lock("LOCK").unwrap());
                }
            };
            assert!(matches!(lock(operation, &mut replace), Err(LockError::Held { .. })));
            drop(others);
            // Without another owner the path is locked, not the removed file.
            let mut removals = 1;
            let mut remove = || {
                if removals > 0 {
                    removals -= 1;
                    disk.remove("LOCK").unwrap();
                }
            };
            let locked = lock(operation, &mut remove).unwrap();
            assert!(matches!(disk.lock("LOCK"), Err(LockError::Held { .. })));
            drop(locked);
        }
    }

    #[test]
    fn what_goes_past_the_cache_and_what_goes_through_it_is_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        let file = disk.open_direct("f", Open::Replace).unwrap();
        let len = 8 * BLOCK_BYTES;
        file.allocate(len as u64).unwrap();
        let mut expected = vec![0; len];
        let read = |file: &dyn DiskFile| {
            let mut bytes = vec![1; len];
            assert_eq!(file.read_at(&mut bytes, 0).unwrap(), len);
            bytes
        };
        assert!(read(&*file) == expected);
        let mut aligned = Aligned::default();
        let mut rng = fastrand::Rng::with_seed(1);
        for round in 1..=50 {
            let (block, blocks) = (rng.usize(0..7), rng.usize(1..=2));
            aligned.make_room(blocks * BLOCK_BYTES);
            aligned.extend(&vec![round; blocks * BLOCK_BYTES]);
            // A write that is shorter by some bytes goes through the cache, and leaves a page there that is not on the
            // disk yet.
            let bytes = &aligned.bytes()[if rng.bool() { 0 } else { 100 }..];
            let at = block * BLOCK_BYTES;
            file.write_at(bytes, at as u64).unwrap();
            expected[at..at + bytes.len()].copy_from_slice(bytes);
            assert!(read(&*file) == expected, "round {round}");
        }
        file.sync_data().unwrap();
        assert!(read(&*disk.open_direct("f", Open::Existing).unwrap()) == expected);
    }
}
