//! Snapshots of single shards, which a primary sends to a replica that lacks entries that no log has any more.
//!
//! A snapshot is stored aside, and changes nothing. Only an install in the log switches to it (protocol, rule 4): until then, and once a
//! newer checkpoint has more, a recovery ignores and removes it. It is a bundle with the section of its one shard, so that its index
//! and all of its blocks have checksums.
//!
//! The sender stores it, too, until it is sent: in another directory, from which nothing is ever loaded.

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
const DIR: &str = "snapshots";
/// The directory of those that are sent to other nodes.
const SENT: &str = "sent";
/// Approximate number of bytes that are written at once.
const PIECE_BYTES: usize = 256 << 10;

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

    fn object(&self) -> String {
        format!("{DIR}/{self}")
    }

    fn sent(&self) -> String {
        format!("{SENT}/{self}")
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard, replica, base } = self;
        write!(f, "{shard}-{replica}-{}-{}.snapshot", base.epoch, base.index)
    }
}

/// Writes a snapshot that is to be sent, a piece at a time. It leaves nothing on the disk if it is dropped before it is finished.
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
        let (dir, sent) = (format!("{REPLICAS}/{DIR}"), format!("{REPLICAS}/{SENT}"));
        let made = |source| StoreError::Io {
            action: "make",
            name: DIR.to_owned(),
            place: REPLICAS.to_owned(),
            source,
        };
        for path in [REPLICAS, &dir, &sent] {
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
        name: SnapshotName,
        author: Author,
        incarnation: Incarnation,
        (header, records): (&Header, &Records),
    ) -> Result<(), CheckpointError> {
        let mut snapshot = self.create(name, name.object(), author, incarnation)?;
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

    fn create(
        &self,
        name: SnapshotName,
        object: String,
        author: Author,
        incarnation: Incarnation,
    ) -> Result<SnapshotWriter, CheckpointError> {
        self.make_dirs()?;
        let origin = Origin { author, incarnation, number: CheckpointNumber(0) };
        let mut bundle = BundleWriter::create(&self.store, object, origin, 0)?;
        bundle.base(name.shard);
        Ok(SnapshotWriter { shard: name.shard, bundle })
    }

    /// Begins to write a snapshot that is to be sent.
    ///
    /// # Errors
    /// [`CheckpointError::Store`], also if one of this name is being sent.
    pub fn begin_sent(
        &self,
        name: SnapshotName,
        author: Author,
        incarnation: Incarnation,
    ) -> Result<SnapshotWriter, CheckpointError> {
        self.create(name, name.sent(), author, incarnation)
    }

    /// Opens a snapshot that is to be sent, to read its bytes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open_sent(&self, name: SnapshotName) -> Result<Box<dyn BlobReader>, StoreError> {
        self.store.open(&name.sent())
    }

    /// Removes a snapshot that was to be sent, if there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_sent(&self, name: SnapshotName) -> Result<(), StoreError> {
        self.store.delete(&name.sent())
    }

    /// Begins to write the bytes of a snapshot that another node sends. It is whole, and has its name, once the writer is finished.
    /// What it holds is checked by [`Self::load`].
    ///
    /// # Errors
    /// [`StoreError`], also if the snapshot exists.
    pub fn receive(&self, name: SnapshotName) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.make_dirs()?;
        self.store.create(&name.object())
    }

    /// Removes a snapshot that no install switches to, if there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, name: SnapshotName) -> Result<(), StoreError> {
        self.store.delete(&name.object())
    }

    /// Loads a snapshot, and checks all of it.
    ///
    /// # Errors
    /// [`CheckpointError`] if it is missing, damaged, of another owner, or another one.
    pub fn load(&self, name: SnapshotName, owner: Belonging) -> Result<State, CheckpointError> {
        let object = name.object();
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

    /// Returns the names of all whole snapshots.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn names(&self) -> Result<Vec<SnapshotName>, StoreError> {
        let objects = self.store.list(DIR)?;
        let files = objects.iter().filter_map(|object| object.rsplit('/').next());
        Ok(files.filter_map(SnapshotName::parse).collect())
    }

    /// Removes all snapshots but the needed ones, also those that were never whole, and those that were to be sent; returns their number.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn clean(&self, needed: &BTreeSet<SnapshotName>) -> Result<usize, StoreError> {
        Ok(self.clean_dir(DIR, needed)? + self.clean_dir(SENT, &BTreeSet::new())?)
    }

    fn clean_dir(&self, dir: &str, needed: &BTreeSet<SnapshotName>) -> Result<usize, StoreError> {
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
        let is_needed = |file: &String| SnapshotName::parse(file).is_some_and(|name| needed.contains(&name));
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
