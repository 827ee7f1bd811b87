//! Stores of checkpoints: named objects that are written once, and read, listed and deleted.

use crate::aligned::Aligned;
use crate::disk::{BLOCK_BYTES, Disk, DiskFile, Open, is_full, read_exact_at};
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use thiserror::Error;

/// A store of objects. All calls block; none may be made from an async task.
///
/// Names are one directory and a file, like `bundles/7.bundle`, of `a-z 0-9 - . /`; the end `.tmp` is reserved. An
/// object is complete and durable once the call that creates it has returned, and never visible in part.
pub trait BlobStore: Send + Sync {
    /// Creates an object unless its name is taken: of several callers exactly one creates it.
    ///
    /// MUST NOT return before the object survives power loss.
    ///
    /// # Errors
    /// [`StoreError`]; then the object may or may not have been created.
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StoreError>;

    /// Begins a large object, to be written in pieces. Its name must be unique to the caller; it is not taken before
    /// [`BlobWriter::finish`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, StoreError>;

    /// As [`Self::create`], for an object of known size: some stores need parts that fit it.
    ///
    /// # Errors
    /// As [`Self::create`].
    fn create_sized(&self, name: &str, bytes: u64) -> Result<Box<dyn BlobWriter>, StoreError> {
        let _ = bytes;
        self.create(name)
    }

    /// Opens an object to read parts of it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] or the store's error.
    fn open(&self, name: &str) -> Result<Box<dyn BlobReader>, StoreError>;

    /// Reads a whole object of at most `len_max` bytes; the limit is checked before anything is allocated.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::TooLarge`] or the store's error.
    fn get(&self, name: &str, len_max: u64) -> Result<Vec<u8>, StoreError> {
        let reader = self.open(name)?;
        let len = reader.size();
        if len > len_max {
            return Err(StoreError::TooLarge { name: name.to_owned(), len, max: len_max });
        }
        let mut bytes = vec![0; len as usize];
        reader.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Returns the names of all objects of a directory (`bundles/`), sorted.
    ///
    /// # Errors
    /// [`StoreError`].
    fn list(&self, dir: &str) -> Result<Vec<String>, StoreError>;

    /// Deletes an object; deleting one that does not exist succeeds.
    ///
    /// # Errors
    /// [`StoreError`].
    fn delete(&self, name: &str) -> Result<(), StoreError>;

    /// Returns the failure since which the store accepts no writes, because the state on disk is unknown: its owner
    /// must end.
    fn failure(&self) -> Option<String> {
        None
    }
}

/// An object that is being written. If it is dropped before it is finished, it never exists.
pub trait BlobWriter: Send {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`StoreError`]; then the object cannot be finished.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Completes the object: it is durable and readable when this returns.
    ///
    /// # Errors
    /// [`StoreError`].
    fn finish(self: Box<Self>) -> Result<(), StoreError>;
}

/// An object that is read in parts, from any thread.
pub trait BlobReader: Send + Sync {
    /// Returns the object's size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// [`StoreError`] if the object ends earlier.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), StoreError>;

    /// Hints that the whole object will be read soon.
    fn read_ahead(&self) {}
}

/// The result of [`BlobStore::put_new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object was created.
    Created,
    /// Another object has the name.
    Exists,
}

/// Errors of a store.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The object does not exist.
    #[error("{name} does not exist in {place}; it was deleted, or this is the wrong place")]
    NotFound {
        /// The object.
        name: String,
        /// The store.
        place: String,
    },
    /// An object is over the limit of a single read.
    #[error("{name} has {len} bytes, over the limit of {max}; it is damaged, or Stead did not write it")]
    TooLarge {
        /// The object.
        name: String,
        /// Its bytes.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// A name or an address is invalid.
    #[error("cannot use {name:?}: {reason}")]
    Address {
        /// The refused name or address.
        name: String,
        /// The reason.
        reason: String,
    },
    /// The state on disk is unknown after an earlier failure.
    #[error("{place} accepts no writes after a failure: {reason}; restart this process")]
    Failed {
        /// The store.
        place: String,
        /// The failure.
        reason: String,
    },
    /// The system or the service reported an error.
    #[error("cannot {action} {name} in {place}: {source}")]
    Io {
        /// The attempted operation.
        action: &'static str,
        /// The object.
        name: String,
        /// The store.
        place: String,
        /// The cause.
        source: io::Error,
    },
}

impl StoreError {
    /// Whether the store is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }

    /// Whether the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), StoreError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let good = name.split_once('/').is_some_and(|(dir, file)| {
        [dir, file].iter().all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(fits))
    });
    if good && !name.ends_with(TEMPORARY) {
        return Ok(());
    }
    let reason =
        "an object's name is DIRECTORY/FILE of a-z, 0-9, '-' and '.', without .tmp at its end".to_owned();
    Err(StoreError::Address { name: name.to_owned(), reason })
}

pub(super) const TEMPORARY: &str = ".tmp";

/// Bytes that are written at once.
const WRITE_BYTES: usize = 1 << 20;

/// A directory of a [`Disk`]. The disk has one owner, so a lock in memory is enough to decide who creates a name.
pub struct DiskStore {
    disk: Arc<dyn Disk>,
    root: String,
    /// Held from the check of a name until it is taken, and while one is given up.
    create: Mutex<()>,
    latch: Latch,
}

/// Keeps the first failure to make data durable. No later success brings back data that the system has dropped, so no
/// later success may be trusted.
#[derive(Clone, Default)]
struct Latch(Arc<OnceLock<String>>);

impl Latch {
    fn check(&self, root: &str) -> Result<(), StoreError> {
        match self.0.get() {
            Some(reason) => Err(StoreError::Failed { place: place(root), reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn fail(&self, error: StoreError) -> StoreError {
        // Only the first failure counts.
        let _ = self.0.set(error.to_string());
        error
    }

    /// For objects that are not visible yet: a full disk means that they do not exist, and nothing is unknown.
    fn fail_unless_full(&self, error: StoreError) -> StoreError {
        if error.is_full() { error } else { self.fail(error) }
    }
}

impl DiskStore {
    /// Bytes between two syncs of a large object: few, so that, if they go through the system's cache, no sync writes
    /// much at once and delays that of the log.
    const SYNC_BYTES: usize = 16 << 20;
    /// Directories of a store, created when it is opened.
    const DIRS: [&str; 3] = ["bundles", "checks", "manifests"];

    /// Opens or creates the store in a directory of the disk (`""` is its root) and removes the leftovers of crashed
    /// writers. Only the disk's owner may do so.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(disk: Arc<dyn Disk>, root: &str) -> Result<Self, StoreError> {
        let store = Self::attach(disk, root);
        let made =
            |name: &str, result: io::Result<()>| result.map_err(|source| store.io("make", name, source));
        if !root.is_empty() {
            made("", store.disk.create_dir(root))?;
            made("", store.disk.sync_dir(crate::disk::parent(root)))?;
        }
        for dir in Self::DIRS {
            made(dir, store.disk.create_dir(&store.path(dir)))?;
        }
        made("", store.disk.sync_dir(root))?;
        for dir in Self::DIRS {
            let path = store.path(dir);
            for name in store.disk.list(&path).map_err(|source| store.io("list", dir, source))? {
                if name.ends_with(TEMPORARY) {
                    let path = format!("{path}/{name}");
                    store.disk.remove(&path).map_err(|source| store.io("remove", &name, source))?;
                }
            }
            // A process that was killed between a rename and its sync left a name that a power cut could undo.
            made(dir, store.disk.sync_dir(&path))?;
        }
        Ok(store)
    }

    /// Opens a store whose directories exist, or are made by the caller; changes nothing itself.
    #[must_use]
    pub fn attach(disk: Arc<dyn Disk>, root: &str) -> Self {
        Self { disk, root: root.to_owned(), create: Mutex::new(()), latch: Latch::default() }
    }

    fn path(&self, name: &str) -> String {
        if self.root.is_empty() { name.to_owned() } else { format!("{}/{name}", self.root) }
    }

    fn io(&self, action: &'static str, name: &str, source: io::Error) -> StoreError {
        io_error(action, name, &self.root, source)
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        let len = self.disk.len(&self.path(name)).map_err(|source| self.io("look for", name, source))?;
        Ok(len.is_some())
    }

    fn writer(&self, name: &str) -> Result<Box<DiskWriter>, StoreError> {
        self.latch.check(&self.root)?;
        let path = self.path(name);
        let temporary = format!("{path}{TEMPORARY}");
        let opened = self.disk.open_direct(&temporary, Open::Replace);
        let file = opened.map_err(|source| self.io("create", name, source))?;
        Ok(Box::new(DiskWriter {
            disk: Arc::clone(&self.disk),
            latch: self.latch.clone(),
            file,
            name: name.to_owned(),
            root: self.root.clone(),
            path,
            temporary,
            blocks: Aligned::with_room(WRITE_BYTES),
            at: 0,
            unsynced: 0,
            finished: false,
        }))
    }
}

fn place(root: &str) -> String {
    if root.is_empty() { "the store".to_owned() } else { root.to_owned() }
}

fn io_error(action: &'static str, name: &str, root: &str, source: io::Error) -> StoreError {
    let (name, place) = (name.to_owned(), place(root));
    match source.kind() {
        io::ErrorKind::NotFound => StoreError::NotFound { name, place },
        _ => StoreError::Io { action, name, place, source },
    }
}

impl BlobStore for DiskStore {
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        check_name(name)?;
        let _taken = self.create.lock().unwrap_or_else(PoisonError::into_inner);
        if self.exists(name)? {
            return Ok(Put::Exists);
        }
        let mut writer = self.writer(name)?;
        writer.write(bytes)?;
        writer.finish()?;
        Ok(Put::Created)
    }

    fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, StoreError> {
        check_name(name)?;
        if self.exists(name)? {
            return Err(self.io("write", name, io::ErrorKind::AlreadyExists.into()));
        }
        Ok(self.writer(name)?)
    }

    fn open(&self, name: &str) -> Result<Box<dyn BlobReader>, StoreError> {
        check_name(name)?;
        let opened = self.disk.open(&self.path(name), Open::Read);
        let file = opened.map_err(|source| self.io("open", name, source))?;
        let size = file.len().map_err(|source| self.io("open", name, source))?;
        Ok(Box::new(DiskReader { file, size, name: name.to_owned(), root: self.root.clone() }))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, StoreError> {
        let path = self.path(dir.trim_end_matches('/'));
        let names = match self.disk.list(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            names => names.map_err(|source| self.io("list", dir, source))?,
        };
        let dir = dir.trim_end_matches('/');
        Ok(names.iter().map(|name| format!("{dir}/{name}")).filter(|name| check_name(name).is_ok()).collect())
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        check_name(name)?;
        let _taken = self.create.lock().unwrap_or_else(PoisonError::into_inner);
        self.latch.check(&self.root)?;
        let path = self.path(name);
        match self.disk.remove(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.map_err(|source| self.io("delete", name, source))?,
        }
        let synced = self.disk.sync_dir(crate::disk::parent(&path));
        synced.map_err(|source| self.latch.fail(self.io("delete", name, source)))
    }

    fn failure(&self) -> Option<String> {
        self.latch.0.get().cloned()
    }
}

struct DiskWriter {
    disk: Arc<dyn Disk>,
    latch: Latch,
    file: Box<dyn DiskFile>,
    name: String,
    root: String,
    path: String,
    temporary: String,
    /// The bytes to write at `at`.
    blocks: Aligned,
    at: u64,
    unsynced: usize,
    finished: bool,
}

impl DiskWriter {
    fn io(&self, action: &'static str, source: io::Error) -> StoreError {
        io_error(action, &self.name, &self.root, source)
    }

    fn write_blocks(&mut self) -> Result<(), StoreError> {
        let bytes = self.blocks.bytes();
        // Only the end of an object is shorter than a block.
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % BLOCK_BYTES);
        for piece in [whole, rest].into_iter().filter(|piece| !piece.is_empty()) {
            let written = self.file.write_at(piece, self.at);
            written.map_err(|source| self.io("write", source))?;
            self.at += piece.len() as u64;
        }
        self.unsynced += bytes.len();
        self.blocks.clear();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let synced = self.file.sync_data();
        synced.map_err(|source| self.latch.fail_unless_full(self.io("sync", source)))?;
        let synced = std::mem::take(&mut self.unsynced) as u64;
        // Releases the system's cache for the next piece.
        self.file.let_go(self.at - synced, synced);
        Ok(())
    }
}

impl BlobWriter for DiskWriter {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            let (taken, rest) = bytes.split_at(bytes.len().min(WRITE_BYTES - self.blocks.len()));
            self.blocks.extend(taken);
            bytes = rest;
            if self.blocks.len() == WRITE_BYTES {
                self.write_blocks()?;
                if self.unsynced >= DiskStore::SYNC_BYTES {
                    self.sync()?;
                }
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        self.latch.check(&self.root)?;
        if self.blocks.len() > 0 {
            self.write_blocks()?;
        }
        self.sync()?;
        let renamed = self.disk.rename(&self.temporary, &self.path);
        renamed.map_err(|source| self.latch.fail_unless_full(self.io("name", source)))?;
        self.finished = true;
        let synced = self.disk.sync_dir(crate::disk::parent(&self.path));
        synced.map_err(|source| self.latch.fail(self.io("sync", source)))
    }
}

impl Drop for DiskWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Frees the space; if this fails, the next opening of the store removes the file.
            let _ = self.disk.remove(&self.temporary);
        }
    }
}

struct DiskReader {
    file: Box<dyn DiskFile>,
    size: u64,
    name: String,
    root: String,
}

impl BlobReader for DiskReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), StoreError> {
        read_exact_at(&*self.file, buf, offset)
            .map_err(|source| io_error("read", &self.name, &self.root, source))
    }

    fn read_ahead(&self) {
        self.file.read_ahead();
    }
}
