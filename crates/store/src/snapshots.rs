//! Snapshots of single shards: those that a node takes of its own replicas, behind which it trims its log, and those that it receives for
//! replicas which lack entries that no log has any more.
//!
//! A replica's *own* snapshot covers what is committed and durable in its log, so a recovery begins from the newest one. A *received* one
//! is stored aside, and changes nothing: only an install in the log switches to it (protocol, rule 4). A recovery removes all but the
//! snapshots that it begins from. A snapshot is a bundle with the section of its one shard, so that its index and all of its blocks have
//! checksums. It is sent to another node as it is.

use crate::checkpoint::bundle::{Author, Bundle, BundleWriter, Origin};
use crate::checkpoint::load::load_alone;
use crate::checkpoint::store::{BlobReader, BlobStore, BlobWriter, DiskStore, StoreError};
use crate::checkpoint::{Belonging, CheckpointError};
use crate::disk::{Disk, parent};
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;
use stead_core::ids::{CheckpointNumber, Epoch, Incarnation, Index, ReplicaId, ShardId};
use stead_core::records::{Records, encode_record};
use stead_core::replication::table::LogPoint;
use stead_core::state::{Header, State};

/// The directory of the snapshots on a node's disk.
const REPLICAS: &str = "replicas";
/// Approximate number of bytes that are written at once.
const PIECE_BYTES: usize = 256 << 10;

/// The source of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Another node sent it.
    Received,
    /// The replica took it itself.
    Own,
}

impl Source {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Received, Self::Own];

    /// Returns the directory.
    fn dir(self) -> &'static str {
        match self {
            Self::Received => "snapshots",
            Self::Own => "own",
        }
    }
}

/// The snapshot of a shard for one of its replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotName {
    /// The shard.
    pub shard: ShardId,
    /// The replica that is to begin from it.
    pub replica: ReplicaId,
    /// The last entry that it covers.
    pub base: LogPoint,
}

impl SnapshotName {
    /// Returns the name in a file's name; `None` if it is of something else.
    #[must_use]
    pub fn parse(file: &str) -> Option<Self> {
        let mut numbers = file.strip_suffix(".snapshot")?.split('-');
        let mut number = || numbers.next()?.parse::<u64>().ok();
        let (shard, replica) = (ShardId(u32::try_from(number()?).ok()?), ReplicaId(number()?));
        let base = LogPoint { epoch: Epoch(number()?), index: Index(number()?) };
        let name = Self { shard, replica, base };
        (name.to_string() == file).then_some(name)
    }

    fn object(&self, source: Source) -> String {
        format!("{}/{self}", source.dir())
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard, replica, base } = self;
        write!(f, "{shard}-{replica}-{}-{}.snapshot", base.epoch, base.index)
    }
}

/// Writes a snapshot, a piece at a time. It leaves nothing on the disk if it is dropped before it is finished.
pub struct SnapshotWriter {
    shard: ShardId,
    bundle: BundleWriter,
}

impl SnapshotWriter {
    /// Appends whole records in their stored form.
    ///
    /// # Errors
    /// [`CheckpointError::Store`].
    pub fn records(&mut self, records: &[u8]) -> Result<(), CheckpointError> {
        self.bundle.records(self.shard, records)
    }

    /// Completes the snapshot, of which `header` has all but the records.
    ///
    /// # Errors
    /// [`CheckpointError::Store`].
    pub fn finish(mut self, header: &Header) -> Result<(), CheckpointError> {
        self.bundle.header(header)?;
        self.bundle.finish().map(drop)
    }
}

/// The snapshots on a node's disk.
pub struct Snapshots {
    disk: Arc<dyn Disk>,
    store: DiskStore,
}

impl Snapshots {
    /// Returns those of a disk. Changes nothing.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { store: DiskStore::attach(Arc::clone(&disk), REPLICAS), disk }
    }

    /// Creates the directories, unless they exist.
    fn make_dirs(&self) -> Result<(), StoreError> {
        let dirs = Source::ALL.map(|source| format!("{REPLICAS}/{}", source.dir()));
        for path in std::iter::once(REPLICAS).chain(dirs.iter().map(String::as_str)) {
            let made = |source| StoreError::Io {
                action: "make",
                name: path.to_owned(),
                place: REPLICAS.to_owned(),
                source,
            };
            self.disk.create_dir(path).map_err(made)?;
            self.disk.sync_dir(parent(path)).map_err(made)?;
        }
        Ok(())
    }

    /// Writes the snapshot of a shard's state, of which `header` has all but the records. It is whole and durable when this returns.
    ///
    /// # Errors
    /// [`CheckpointError::Store`], also if the snapshot exists.
    pub fn write(
        &self,
        (source, name): (Source, SnapshotName),
        author: Author,
        incarnation: Incarnation,
        (header, records): (&Header, &Records),
    ) -> Result<(), CheckpointError> {
        let mut snapshot = self.begin(source, name, author, incarnation)?;
        let mut piece = Vec::new();
        for (key, value) in records.iter() {
            encode_record(key, Some(value), &mut piece);
            if piece.len() >= PIECE_BYTES {
                snapshot.records(&piece)?;
                piece.clear();
            }
        }
        snapshot.records(&piece)?;
        snapshot.finish(header)
    }

    /// Begins to write a snapshot.
    ///
    /// # Errors
    /// [`CheckpointError::Store`], also if the snapshot exists.
    pub fn begin(
        &self,
        source: Source,
        name: SnapshotName,
        author: Author,
        incarnation: Incarnation,
    ) -> Result<SnapshotWriter, CheckpointError> {
        self.make_dirs()?;
        let origin = Origin { author, incarnation, number: CheckpointNumber(0) };
        let mut bundle = BundleWriter::create(&self.store, name.object(source), origin, 0)?;
        bundle.base(name.shard);
        Ok(SnapshotWriter { shard: name.shard, bundle })
    }

    /// Opens a snapshot to read its bytes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(&self, source: Source, name: SnapshotName) -> Result<Box<dyn BlobReader>, StoreError> {
        self.store.open(&name.object(source))
    }

    /// Begins to write the bytes of a snapshot that another node sends. It is whole, and has its name, once the writer is finished.
    /// [`Self::load`] checks its contents.
    ///
    /// # Errors
    /// [`StoreError`], also if the snapshot exists.
    pub fn receive(&self, name: SnapshotName) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.make_dirs()?;
        self.store.create(&name.object(Source::Received))
    }

    /// Removes a snapshot that is not needed, if there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, source: Source, name: SnapshotName) -> Result<(), StoreError> {
        self.store.delete(&name.object(source))
    }

    /// Loads a snapshot, and checks all of it.
    ///
    /// # Errors
    /// [`CheckpointError`] if it is missing, damaged, of another owner, or another one.
    pub fn load(
        &self,
        source: Source,
        name: SnapshotName,
        owner: Belonging,
    ) -> Result<State, CheckpointError> {
        let object = name.object(source);
        let bundle = Bundle::open_alone(&self.store, &object, owner)?;
        let part = load_alone(&bundle, name.shard)?;
        let position = part.header.position;
        let found = LogPoint { epoch: position.epoch, index: position.index };
        if found != name.base {
            let reason = format!("it ends with entry {} of epoch {}", found.index, found.epoch);
            return Err(CheckpointError::damaged(&object, reason));
        }
        let damaged =
            |misfit: stead_core::state::Misfit| CheckpointError::damaged(&object, misfit.to_string());
        State::load(part.header, part.records).map_err(damaged)
    }

    /// Returns all whole snapshots.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn names(&self) -> Result<Vec<(Source, SnapshotName)>, StoreError> {
        let mut names = Vec::new();
        for source in Source::ALL {
            let objects = self.store.list(source.dir())?;
            let files = objects.iter().filter_map(|object| object.rsplit('/').next());
            names.extend(files.filter_map(SnapshotName::parse).map(|name| (source, name)));
        }
        Ok(names)
    }

    /// Removes all snapshots but the needed ones, also those that were never whole; returns their number.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn clean(&self, needed: &BTreeSet<(Source, SnapshotName)>) -> Result<usize, StoreError> {
        let cleaned = Source::ALL.map(|source| self.clean_dir(source, needed));
        cleaned.into_iter().sum()
    }

    fn clean_dir(
        &self,
        source: Source,
        needed: &BTreeSet<(Source, SnapshotName)>,
    ) -> Result<usize, StoreError> {
        let dir = source.dir();
        let path = format!("{REPLICAS}/{dir}");
        let failed = |action, name: &str, source| StoreError::Io {
            action,
            name: name.to_owned(),
            place: REPLICAS.to_owned(),
            source,
        };
        let names = match self.disk.list(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            names => names.map_err(|source| failed("list", dir, source))?,
        };
        let is_needed =
            |file: &String| SnapshotName::parse(file).is_some_and(|name| needed.contains(&(source, name)));
        let others: Vec<String> = names.into_iter().filter(|file| !is_needed(file)).collect();
        for file in &others {
            let removed = self.disk.remove(&format!("{path}/{file}"));
            removed.map_err(|source| failed("remove", file, source))?;
        }
        if !others.is_empty() {
            self.disk.sync_dir(&path).map_err(|source| failed("sync", dir, source))?;
        }
        Ok(others.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_and_no_other_is() {
        let base = LogPoint { epoch: Epoch(3), index: Index(70_000) };
        let name = SnapshotName { shard: ShardId(12), replica: ReplicaId(9), base };
        assert_eq!(name.to_string(), "12-9-3-70000.snapshot");
        assert_eq!(SnapshotName::parse(&name.to_string()), Some(name));
        let others = [
            "12-9-3-70000.snapshot.tmp",
            "012-9-3-70000.snapshot",
            "12-9-3.snapshot",
            "1-2-3-4-5.snapshot",
            "x",
        ];
        for other in others {
            assert_eq!(SnapshotName::parse(other), None, "{other}");
        }
    }
}
