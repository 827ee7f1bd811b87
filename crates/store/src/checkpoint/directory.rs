//! A [`BlobStore`] in a directory on any file system that others may write to as well.
//!
//! Unlike [`DiskStore`](super::store::DiskStore) it has no owner: the file system decides who creates a name, and
//! temporary files of others are left alone. An object is written to a temporary file, synced, and then renamed.

use super::remote::Cancel;
use super::store::{BlobReader, BlobStore, BlobWriter, Put, StoreError, TEMPORARY, check_name};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The store.
pub(super) struct Directory {
    root: PathBuf,
    cancel: Cancel,
}

impl Directory {
    /// Opens a directory, and creates it with its parents if it is missing.
    pub(super) fn open(root: PathBuf, cancel: Cancel) -> io::Result<Self> {
        fs::create_dir_all(&root)?;
        Ok(Self { root, cancel })
    }

    fn error(&self, action: &'static str, name: &str, source: io::Error) -> StoreError {
        let (name, place) = (name.to_owned(), format!("file://{}", self.root.display()));
        match source.kind() {
            io::ErrorKind::NotFound => StoreError::NotFound { name, place },
            _ => StoreError::Io { action, name, place, source },
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, StoreError> {
        check_name(name)?;
        Ok(self.root.join(name))
    }

    /// Opens a new temporary file for a name, in a directory that is created if it is missing.
    fn begin(&self, path: &Path, mark: &str) -> io::Result<Temporary> {
        not_cancelled(&self.cancel)?;
        let dir = path.parent().expect("a name has a directory");
        if !dir.try_exists()? {
            fs::create_dir_all(dir)?;
            File::open(&self.root)?.sync_all()?;
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(mark);
        beside.push(TEMPORARY);
        let path = PathBuf::from(beside);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        Ok(Temporary { file, path })
    }
}

fn not_cancelled(cancel: &Cancel) -> io::Result<()> {
    if cancel.is_cancelled() { Err(io::Error::other(Cancel::REASON)) } else { Ok(()) }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().expect("a name has a directory"))?.sync_all()
}

/// A file that has no name yet.
struct Temporary {
    file: File,
    path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename it is gone; one that cannot be removed is overwritten by the next attempt or never read.
        let _ = fs::remove_file(&self.path);
    }
}

/// Gives a file its name unless the name is taken.
fn name_new(file: &Path, name: &Path) -> io::Result<Put> {
    match fs::hard_link(file, name) {
        Ok(()) => Ok(Put::Created),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Put::Exists),
        // Some file systems do not support links.
        Err(error) => match renameat_with(CWD, file, CWD, name, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Put::Created),
            Err(rustix::io::Errno::EXIST) => Ok(Put::Exists),
            Err(_) => Err(error),
        },
    }
}

impl BlobStore for Directory {
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        let path = self.path(name)?;
        let put = || {
            // Several writers may create one name at the same time.
            let mut temporary = self.begin(&path, &format!(".{:016x}", fastrand::u64(..)))?;
            temporary.file.write_all(bytes)?;
            temporary.file.sync_all()?;
            let put = name_new(&temporary.path, &path)?;
            drop(temporary);
            sync_parent(&path)?;
            Ok(put)
        };
        put().map_err(|source| self.error("create", name, source))
    }

    fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, StoreError> {
        let path = self.path(name)?;
        // No other writer draws the name, so the leftover of a killed writer is overwritten.
        let temporary = self.begin(&path, "").map_err(|source| self.error("create", name, source))?;
        let store = Self { root: self.root.clone(), cancel: self.cancel.clone() };
        Ok(Box::new(Writer { store, temporary, path, name: name.to_owned() }))
    }

    fn open(&self, name: &str) -> Result<Box<dyn BlobReader>, StoreError> {
        let path = self.path(name)?;
        let opened = not_cancelled(&self.cancel).and_then(|()| {
            let file = File::open(&path)?;
            Ok((file.metadata()?.len(), file))
        });
        let (size, file) = opened.map_err(|source| self.error("open", name, source))?;
        let store = Self { root: self.root.clone(), cancel: self.cancel.clone() };
        Ok(Box::new(Reader { store, file, size, name: name.to_owned() }))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, StoreError> {
        let dir = dir.trim_end_matches('/');
        let names = || {
            not_cancelled(&self.cancel)?;
            let entries = match fs::read_dir(self.root.join(dir)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries?,
            };
            let mut names = Vec::new();
            for entry in entries {
                let name = format!("{dir}/{}", entry?.file_name().to_string_lossy());
                if check_name(&name).is_ok() {
                    names.push(name);
                }
            }
            names.sort_unstable();
            Ok(names)
        };
        names().map_err(|source| self.error("list", dir, source))
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let deleted = not_cancelled(&self.cancel).and_then(|()| match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| sync_parent(&path)),
        });
        deleted.map_err(|source| self.error("delete", name, source))
    }
}

struct Writer {
    store: Directory,
    temporary: Temporary,
    path: PathBuf,
    name: String,
}

/// Bytes that are written between two checks for cancellation.
const PIECE: usize = 1 << 20;

impl BlobWriter for Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        for piece in bytes.chunks(PIECE) {
            let written =
                not_cancelled(&self.store.cancel).and_then(|()| self.temporary.file.write_all(piece));
            written.map_err(|source| self.store.error("write", &self.name, source))?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let named = not_cancelled(&self.store.cancel).and_then(|()| {
            self.temporary.file.sync_all()?;
            fs::rename(&self.temporary.path, &self.path)?;
            sync_parent(&self.path)
        });
        named.map_err(|source| self.store.error("write", &self.name, source))
    }
}

struct Reader {
    store: Directory,
    file: File,
    size: u64,
    name: String,
}

impl BlobReader for Reader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), StoreError> {
        let read = not_cancelled(&self.store.cancel).and_then(|()| self.file.read_exact_at(buf, offset));
        read.map_err(|source| self.store.error("read", &self.name, source))
    }
}
