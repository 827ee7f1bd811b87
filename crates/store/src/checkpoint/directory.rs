//! A [`BlobStore`] in a directory of a [`Disk`] that others may write to as well.
//!
//! Unlike [`DiskStore`](super::store::DiskStore) it has no owner: the file system decides who creates a name, and
//! temporary files of others are left alone. An object is written to a temporary file, synced, and then renamed.

use super::cancel::Cancel;
use super::store::{BlobReader, BlobStore, BlobWriter, Put, StoreError, TEMPORARY, check_name};
use crate::disk::{Disk, DiskFile, Open, parent, read_exact_at};
use fastrand::Rng;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The store; clones share it.
#[derive(Clone)]
pub struct Directory(Arc<Inner>);

struct Inner {
    disk: Arc<dyn Disk>,
    root: String,
    /// The address, for errors.
    place: String,
    cancel: Cancel,
    /// Draws the names of temporary files: several writers may create one name at the same time.
    rng: Mutex<Rng>,
    /// Whether all names of objects are durable, as far as this writer knows.
    is_synced: AtomicBool,
}

impl Directory {
    /// The directories of objects.
    const DIRS: [&str; 4] = ["bundles", "checks", "manifests", "owner"];

    /// Opens a directory of a disk (`""` is its root), and creates it if it is missing. `place` is its address, for errors;
    /// `seed` determines the names of temporary files, and must differ from that of any other writer.
    ///
    /// # Errors
    /// The disk's error.
    pub fn open(
        disk: Arc<dyn Disk>,
        root: &str,
        place: String,
        cancel: Cancel,
        seed: u64,
    ) -> io::Result<Self> {
        if !root.is_empty() {
            disk.create_dir(root)?;
        }
        let (rng, is_synced) = (Mutex::new(Rng::with_seed(seed)), AtomicBool::new(false));
        Ok(Self(Arc::new(Inner { disk, root: root.to_owned(), place, cancel, rng, is_synced })))
    }

    fn error(&self, action: &'static str, name: &str, source: io::Error) -> StoreError {
        let (name, place) = (name.to_owned(), self.0.place.clone());
        match source.kind() {
            io::ErrorKind::NotFound => StoreError::NotFound { name, place },
            _ => StoreError::Io { action, name, place, source },
        }
    }

    fn path(&self, name: &str) -> Result<String, StoreError> {
        check_name(name)?;
        Ok(self.0.path(name))
    }

    /// Opens a new temporary file for a name, in a directory that is created if it is missing.
    fn begin(&self, path: &str, mark: &str) -> io::Result<Temporary> {
        self.0.sync()?;
        let disk = &self.0.disk;
        let path = format!("{path}{mark}{TEMPORARY}");
        let file = match disk.open(&path, Open::Replace) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                disk.create_dir(parent(&path))?;
                self.0.sync_dir(&self.0.root)?;
                disk.open(&path, Open::Replace)?
            }
            opened => opened?,
        };
        Ok(Temporary { disk: Arc::clone(disk), file, path, is_named: false })
    }
}

impl Inner {
    fn path(&self, name: &str) -> String {
        if self.root.is_empty() { name.to_owned() } else { format!("{}/{name}", self.root) }
    }

    fn not_cancelled(&self) -> io::Result<()> {
        if self.cancel.is_cancelled() { Err(io::Error::other(Cancel::REASON)) } else { Ok(()) }
    }

    /// Makes the names that are visible durable, before the first write and after a sync that failed: a writer that was
    /// killed between a rename and its sync has left a name that a power cut would undo, and objects that are found are not
    /// written again.
    fn sync(&self) -> io::Result<()> {
        self.not_cancelled()?;
        if self.is_synced.load(Ordering::Relaxed) {
            return Ok(());
        }
        let above = (!self.root.is_empty()).then(|| parent(&self.root).to_owned());
        let dirs = Directory::DIRS.iter().map(|dir| self.path(dir));
        for dir in dirs.chain([self.root.clone()]).chain(above) {
            match self.disk.sync_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                synced => synced?,
            }
        }
        self.is_synced.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(dir).inspect_err(|_| self.is_synced.store(false, Ordering::Relaxed))
    }
}

/// A file that does not have its name yet.
struct Temporary {
    disk: Arc<dyn Disk>,
    file: Box<dyn DiskFile>,
    path: String,
    is_named: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_named {
            // One that cannot be removed is overwritten by the next attempt, or never read.
            let _ = self.disk.remove(&self.path);
        }
    }
}

impl BlobStore for Directory {
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        let path = self.path(name)?;
        let put = || {
            let drawn = self.0.rng.lock().unwrap_or_else(PoisonError::into_inner).u64(..);
            let mut temporary = self.begin(&path, &format!(".{drawn:016x}"))?;
            temporary.file.write_at(bytes, 0)?;
            temporary.file.sync_data()?;
            let put = match self.0.disk.rename_new(&temporary.path, &path) {
                Ok(()) => {
                    temporary.is_named = true;
                    Put::Created
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Put::Exists,
                Err(error) => return Err(error),
            };
            drop(temporary);
            self.0.sync_dir(parent(&path))?;
            Ok(put)
        };
        put().map_err(|source| self.error("create", name, source))
    }

    fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, StoreError> {
        let path = self.path(name)?;
        // No other writer draws the name, so the leftover of a killed writer is overwritten.
        let temporary = self.begin(&path, "").map_err(|source| self.error("create", name, source))?;
        Ok(Box::new(Writer { store: self.clone(), temporary, path, name: name.to_owned(), at: 0 }))
    }

    fn open(&self, name: &str) -> Result<Box<dyn BlobReader>, StoreError> {
        let path = self.path(name)?;
        let opened = self.0.not_cancelled().and_then(|()| {
            let file = self.0.disk.open(&path, Open::Read)?;
            Ok((file.len()?, file))
        });
        let (size, file) = opened.map_err(|source| self.error("open", name, source))?;
        Ok(Box::new(Reader { store: self.clone(), file, size, name: name.to_owned() }))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, StoreError> {
        let dir = dir.trim_end_matches('/');
        let listed = self.0.not_cancelled().and_then(|()| self.0.disk.list(&self.0.path(dir)));
        let names = match listed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            names => names.map_err(|source| self.error("list", dir, source))?,
        };
        let names = names.into_iter().map(|name| format!("{dir}/{name}"));
        Ok(names.filter(|name| check_name(name).is_ok()).collect())
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let deleted = self.0.not_cancelled().and_then(|()| match self.0.disk.remove(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| self.0.sync_dir(parent(&path))),
        });
        deleted.map_err(|source| self.error("delete", name, source))
    }
}

struct Writer {
    store: Directory,
    temporary: Temporary,
    path: String,
    name: String,
    /// Bytes written so far.
    at: u64,
}

/// Bytes that are written between two checks for cancellation.
const PIECE: usize = 1 << 20;

impl BlobWriter for Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        for piece in bytes.chunks(PIECE) {
            let written = self.store.0.not_cancelled();
            let written = written.and_then(|()| self.temporary.file.write_at(piece, self.at));
            written.map_err(|source| self.store.error("write", &self.name, source))?;
            self.at += piece.len() as u64;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        let inner = &self.store.0;
        let named = inner.not_cancelled().and_then(|()| {
            self.temporary.file.sync_data()?;
            inner.disk.rename(&self.temporary.path, &self.path)?;
            self.temporary.is_named = true;
            inner.sync_dir(parent(&self.path))
        });
        named.map_err(|source| self.store.error("write", &self.name, source))
    }
}

struct Reader {
    store: Directory,
    file: Box<dyn DiskFile>,
    size: u64,
    name: String,
}

impl BlobReader for Reader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), StoreError> {
        let read = self.store.0.not_cancelled().and_then(|()| read_exact_at(&*self.file, buf, offset));
        read.map_err(|source| self.store.error("read", &self.name, source))
    }
}
