//! A directory of the operating system as a [`Disk`].

use crate::aligned::Aligned;
use crate::disk::{BLOCK_BYTES, Disk, DiskFile, DiskLock, LockError, Open, check_path, check_rename};
use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Zeros are written and synced in pieces of this size, so that another file's sync never queues behind a whole segment.
const ZEROS: usize = 1 << 20;

/// A directory of the operating system.
#[derive(Debug)]
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// Uses a directory, which is created with its missing parents, durably.
    ///
    /// # Errors
    /// Whatever the system says.
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
        // An unreadable or unlistable root is told here and not at the first file.
        fs::read_dir(&root)?;
        Ok(Self { root })
    }

    /// The directory.
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
        options.read(true).write(true);
        match open {
            Open::Existing => {}
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

impl Disk for RealDisk {
    fn open(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(self.open_file(path, open)?))
    }

    fn open_direct(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut file = self.open_file(path, open)?;
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(OFlags::DIRECT.bits() as i32);
        // Not every file system can: then everything goes through its cache.
        file.direct = options.open(self.path(path)?).ok();
        Ok(Box::new(file))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path(dir)?)? {
            // A name that isn't UTF-8 is nobody's here: Stead writes none.
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

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.path(path)?)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.path(dir)?)?.sync_all()
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.path(path)?) {
            Ok(data) => Ok(Some(data.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, LockError> {
        let full = self.path(path).map_err(|source| LockError::Io { path: path.to_owned(), source })?;
        let name = full.display().to_string();
        let failed = |source| LockError::Io { path: name.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&full)
            .map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = file.take(20).read_to_string(&mut text);
                return Err(LockError::Held { path: name, owner: text.trim().parse().ok() });
            }
            Err(error) => return Err(failed(error.into())),
        }
        // The number only serves the error message above; the lock itself is the system's.
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Box::new(RealLock { _file: file }))
    }
}

struct RealLock {
    _file: File,
}

impl DiskLock for RealLock {}

struct RealFile {
    file: File,
    /// The same file, past the system's cache.
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
                    // Larger blocks than these are asked for.
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
        // Fails at once and whole if there is no room. Not every file system can: then the zeros find out.
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), start, len - start) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        // Reserved blocks are marked unwritten, and the first write to each would change metadata: so write them now.
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
        // Only a hint: a file system that refuses it reads correctly all the same.
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
            // Some bytes less go through the cache, and leave a page there that is not on the disk yet.
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
