//! A node's data directory: one owner, one format, and the metadata that must outlive every start.
//!
//! The metadata is in `stead.json`, which is replaced as a whole. It is written before anything else, so a directory
//! that has files but no `stead.json` has lost it. It is refused, so that lost metadata never looks like a new node.

use crate::disk::{Disk, DiskLock, LockError, is_full, read_file, replace_file};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use stead_core::control::facts::Hello;
use stead_core::control::node::StartId;
use stead_core::ids::{ClusterId, Epoch, Incarnation, Life, NodeId, ShardId};
use stead_core::topology::Topology;

/// The version of the data directory's format. Version 1 is read, and replaced by the first change.
pub const FORMAT: u64 = 2;

/// The file that holds [`Meta`].
pub const META_FILE: &str = "stead.json";

/// The file that the owner locks.
pub const LOCK_FILE: &str = "LOCK";

/// The directory of the checkpoints of the node.
pub const CHECKPOINTS: &str = "checkpoints";

/// Maximum number of bytes of [`META_FILE`]: enough for thousands of services.
const META_BYTES_MAX: u64 = 4 << 20;

/// The metadata of a node, which it reads before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The cluster, drawn at random when it is created.
    pub cluster: ClusterId,
    /// The cluster's life since its last restore.
    pub incarnation: Incarnation,
    /// The node of the cluster that the directory belongs to.
    pub node: NodeId,
    /// The number of lives of a node here. Each start counts itself before it promises an epoch, and so before any of
    /// its shards takes part in anything.
    pub lives: u64,
    /// All epochs up to this one count as used, for every shard: those of a time when a node had one epoch for all its
    /// shards, and those of a checkpoint that was restored here.
    pub epoch_floor: Epoch,
    /// The write-ahead log's identity, drawn at random.
    pub log_id: u64,
    /// Whether the log was created: from then on, no log means that it was lost.
    pub log_created: bool,
    /// Whether the last life that promised epochs shut down cleanly. The next one unsets it before it promises any, so that a
    /// crash leaves it unset. A life that was counted and never came so far has run no handler, and leaves it as it is.
    pub clean: bool,
    /// The boot of the machine in which the log was acknowledged last before it was synced, and 0 for one that is not known, or if it could not
    /// be synced; `None` if it never was since the last end in order. After another boot, the log may lack what was acknowledged.
    pub unsynced: Option<u128>,
    /// Whether a restore into this directory has begun and not ended: its contents are incomplete.
    pub restoring: bool,
    /// Whether the node has had the control plane's files: from then on, none means that they were lost, and the node
    /// must not found a cluster again.
    pub has_control: bool,
    /// In a cluster, the starts of a node here: from the last one on that is known to be registered with the control plane, each one
    /// since. So an older copy of the directory shows by what it lacks, however often it was started.
    pub starts: Vec<StartId>,
    /// The services and their shards.
    pub services: Vec<ServiceMeta>,
}

/// Greatest number of [`Meta::starts`].
const STARTS_MAX: usize = Hello::EARLIER_MAX + 1;

impl Meta {
    /// Creates the metadata of a new data directory, before the first life in it. `cluster` and `log_id` are drawn at random.
    #[must_use]
    pub fn new(cluster: ClusterId, incarnation: Incarnation, node: NodeId, log_id: u64) -> Self {
        Self {
            cluster,
            incarnation,
            node,
            lives: 0,
            epoch_floor: Epoch(0),
            log_id,
            log_created: false,
            clean: false,
            unsynced: None,
            restoring: false,
            has_control: false,
            starts: Vec::new(),
            services: Vec::new(),
        }
    }

    /// Returns the starts before the newest one.
    #[must_use]
    pub fn earlier_starts(&self) -> &[StartId] {
        self.starts.split_last().map_or(&[], |(_, earlier)| earlier)
    }

    /// Notes a start that begins. Beyond the limit one of the middle is forgotten: the first ones and the last ones are those that the
    /// control plane may have registered last.
    fn note_start(&mut self, start: StartId) {
        if self.starts.len() >= STARTS_MAX {
            self.starts.remove(STARTS_MAX / 2);
        }
        self.starts.push(start);
    }
}

/// A service in the topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceMeta {
    /// Its name.
    pub name: String,
    /// The first of its shards.
    pub first: ShardId,
    /// The number of its shards.
    pub shards: u32,
}

impl ServiceMeta {
    /// Returns the services of a topology.
    #[must_use]
    pub fn all_of(topology: &Topology) -> Vec<Self> {
        let services = topology.services().iter();
        services
            .map(|service| Self { name: service.name.clone(), first: service.first, shards: service.shards })
            .collect()
    }
}

/// Reasons for which a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It has another owner, or cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The system failed an operation.
    #[error("cannot {action} {path} in the data directory: {source}")]
    Io {
        /// The attempted operation.
        action: &'static str,
        /// The file or directory.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// There are files, but no metadata.
    #[error(
        "the data directory has {found:?} but no {META_FILE}: it was lost, or this is not a data directory of Stead; \
         put it back, restore a checkpoint into an empty directory, or use another directory"
    )]
    MetaMissing {
        /// One of the files.
        found: String,
    },
    /// A restore into it did not end.
    #[error(
        "a restore into this data directory did not end, so what it holds is not whole; repeat the restore, which begins \
         again, or delete the directory"
    )]
    RestoreUnfinished,
    /// There is no data.
    #[error("this directory holds no data of Stead: {META_FILE} is missing")]
    Empty,
    /// The metadata is damaged.
    #[error(
        "{META_FILE} is damaged: {reason}; put it back from a backup, or restore a checkpoint into an empty directory"
    )]
    MetaDamaged {
        /// The damage.
        reason: String,
    },
    /// It was written by an unknown version of Stead.
    #[error(
        "the data directory has format version {found}, and this program reads versions 1 to {FORMAT}; use the program that wrote it"
    )]
    Version {
        /// Its version.
        found: u64,
    },
    /// The metadata exceeds the limit of its readers. Nothing was written.
    #[error(
        "{META_FILE} would have {len} bytes, over the limit of {META_BYTES_MAX}; use fewer services or shorter names"
    )]
    TooLarge {
        /// Its bytes.
        len: usize,
    },
    /// After an earlier failure the contents of the disk are unknown.
    #[error("the data directory accepts no changes after a failure; restart this process")]
    Fatal,
}

/// A data directory, owned until this is dropped.
pub struct DataDir {
    disk: Arc<dyn Disk>,
    meta: Meta,
    /// The version of the file.
    format: u64,
    /// Whether the owner has counted its life.
    is_counted: bool,
    fatal: bool,
    _lock: Box<dyn DiskLock>,
}

impl DataDir {
    /// Takes ownership of the data directory at the disk's root, and creates it with the metadata from `fresh` if it is
    /// empty. Returns whether it was empty.
    ///
    /// # Errors
    /// [`DataDirError`]; nothing was changed.
    pub fn open(disk: Arc<dyn Disk>, fresh: impl FnOnce() -> Meta) -> Result<(Self, bool), DataDirError> {
        let lock = disk.lock(LOCK_FILE)?;
        let (meta, format, created) = match Self::read(&*disk) {
            Ok((meta, _)) if meta.restoring => return Err(DataDirError::RestoreUnfinished),
            Ok((meta, format)) => (meta, format, false),
            Err(DataDirError::Empty) => {
                let meta = fresh();
                write(&*disk, &meta)?;
                (meta, FORMAT, true)
            }
            Err(error) => return Err(error),
        };
        // The file may not be durable yet, if a process was killed between rename and sync.
        disk.sync_dir("").map_err(io_error("sync", ""))?;
        Ok((Self { disk, meta, format, is_counted: false, fatal: false, _lock: lock }, created))
    }

    /// Takes ownership of the data directory at the disk's root for a restore, and gives it the metadata `meta`, marked
    /// as [`Meta::restoring`] until the first [`Self::update`] that unsets it. The directory must be empty, or hold an
    /// unfinished restore, whose files except the metadata are still there. Returns `None` if it holds data.
    ///
    /// # Errors
    /// [`DataDirError`]; nothing was changed.
    pub fn open_for_restore(disk: Arc<dyn Disk>, meta: Meta) -> Result<Option<Self>, DataDirError> {
        let lock = disk.lock(LOCK_FILE)?;
        match Self::read(&*disk) {
            Ok((found, _)) if !found.restoring => return Ok(None),
            Ok(_) | Err(DataDirError::Empty) => {}
            Err(error) => return Err(error),
        }
        let meta = Meta { restoring: true, ..meta };
        write(&*disk, &meta)?;
        disk.sync_dir("").map_err(io_error("sync", ""))?;
        Ok(Some(Self { disk, meta, format: FORMAT, is_counted: false, fatal: false, _lock: lock }))
    }

    /// Reads the metadata, and prevents other owners until the lock is dropped. Changes nothing: the directory may be
    /// read-only. Without a lock file the directory never had an owner at this place, and nothing is locked.
    ///
    /// # Errors
    /// As [`Self::inspect`]; [`DataDirError::Lock`] while an owner lives.
    pub fn lock_to_read(disk: &dyn Disk) -> Result<(Meta, Option<Box<dyn DiskLock>>), DataDirError> {
        let lock = disk.lock_to_read(LOCK_FILE)?;
        Ok((Self::inspect(disk)?, lock))
    }

    /// Reads the metadata without owning the directory.
    ///
    /// # Errors
    /// [`DataDirError::Empty`] without data, [`DataDirError::RestoreUnfinished`]; [`DataDirError`] if it cannot be read
    /// or is damaged.
    pub fn inspect(disk: &dyn Disk) -> Result<Meta, DataDirError> {
        let (meta, _) = Self::read(disk)?;
        if meta.restoring { Err(DataDirError::RestoreUnfinished) } else { Ok(meta) }
    }

    /// Returns the metadata, and the version of its file.
    fn read(disk: &dyn Disk) -> Result<(Meta, u64), DataDirError> {
        match read_file(disk, META_FILE, META_BYTES_MAX) {
            Ok(bytes) => decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let names = disk.list("").map_err(io_error("list", ""))?;
                // A file system's own directory at the root of a disk is not data.
                let known = [LOCK_FILE, "stead.json.tmp", "lost+found"];
                match names.into_iter().find(|name| !known.contains(&name.as_str())) {
                    Some(found) => Err(DataDirError::MetaMissing { found }),
                    None => Err(DataDirError::Empty),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(DataDirError::MetaDamaged { reason: error.to_string() })
            }
            Err(source) => Err(DataDirError::Io { action: "read", path: META_FILE.to_owned(), source }),
        }
    }

    /// Returns the metadata, all of it durable.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Whether an update has failed such that the contents of the disk are unknown: every later one is refused.
    pub(crate) fn is_fatal(&self) -> bool {
        self.fatal
    }

    /// Returns the disk of the directory.
    #[must_use]
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Counts the life that its owner begins, and returns once that is durable; the first call counts, and the others return the same
    /// life. A node of a cluster names its life to the others before it opens anything else. Whether the last life ended in order stays
    /// as it was.
    ///
    /// # Errors
    /// As [`Self::update`]: the life does not count, or after a failure of the disk it may.
    pub fn begin_life(&mut self) -> Result<Life, DataDirError> {
        self.begin_life_with(|_| {})
    }

    /// Counts the life as [`Self::begin_life`] does, and changes the metadata in the same write.
    ///
    /// # Errors
    /// As [`Self::begin_life`].
    pub fn begin_life_with(&mut self, change: impl FnOnce(&mut Meta)) -> Result<Life, DataDirError> {
        let more = u64::from(!self.is_counted);
        self.update(|meta| {
            meta.lives += more;
            change(meta);
        })?;
        self.is_counted = true;
        Ok(Life(self.meta.lives))
    }

    /// Counts the life of a node of a cluster as [`Self::begin_life`] does, and notes its start in the same write. To be called once.
    ///
    /// # Errors
    /// As [`Self::begin_life`].
    pub fn begin_start(&mut self, start: StartId) -> Result<Life, DataDirError> {
        self.begin_life_with(|meta| meta.note_start(start))
    }

    /// Notes that the log may lose with the power what is acknowledged from now on, and returns once that is durable.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub fn note_unsynced(&mut self) -> Result<(), DataDirError> {
        let boot = self.boot();
        self.update(|meta| meta.unsynced = Some(boot))
    }

    /// Notes that the log may lack what was acknowledged, also in this boot: it could not be synced.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub fn note_lost(&mut self) -> Result<(), DataDirError> {
        self.update(|meta| meta.unsynced = Some(0))
    }

    /// Returns the boot of the machine, as [`Meta::unsynced`] names it.
    #[must_use]
    pub fn boot(&self) -> u128 {
        self.disk.boot().unwrap_or_default()
    }

    /// Whether the log may lack what was acknowledged: that was not synced, and the machine was booted anew, or could not be synced.
    #[must_use]
    pub fn may_lack(&self) -> bool {
        self.meta.unsynced.is_some_and(|boot| boot == 0 || self.boot() != boot)
    }

    /// Changes the metadata, and returns once the change is durable. The file then has the current version, even if
    /// nothing changed.
    ///
    /// # Errors
    /// A full disk, or metadata over the limit, leave everything unchanged. After any other error every later update is
    /// refused.
    pub fn update(&mut self, change: impl FnOnce(&mut Meta)) -> Result<(), DataDirError> {
        if self.fatal {
            return Err(DataDirError::Fatal);
        }
        let mut meta = self.meta.clone();
        change(&mut meta);
        if meta == self.meta && self.format == FORMAT {
            return Ok(());
        }
        match write(&*self.disk, &meta) {
            Ok(()) => {
                (self.meta, self.format) = (meta, FORMAT);
                Ok(())
            }
            Err(error) => {
                self.fatal = match &error {
                    DataDirError::Io { source, .. } => !is_full(source),
                    DataDirError::TooLarge { .. } => false,
                    _ => true,
                };
                Err(error)
            }
        }
    }
}

impl std::fmt::Debug for DataDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataDir").field("meta", &self.meta).finish_non_exhaustive()
    }
}

/// `stead.json`. Numbers that use all 64 bits are hexadecimal text, for JSON readers that know only floating point.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MetaJson<B> {
    format: u64,
    checksum: String,
    meta: B,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BodyJson {
    cluster: String,
    incarnation: u64,
    node: u32,
    lives: u64,
    epoch_floor: u64,
    log_id: String,
    log_created: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    clean: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsynced: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    restoring: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    has_control: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    starts: Vec<String>,
    services: Vec<ServiceJson>,
}

/// Version 1: one node, which had one epoch for all its shards.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BodyJsonV1 {
    cluster: String,
    incarnation: u64,
    epoch: u64,
    log_id: String,
    log_created: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    clean: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    restoring: bool,
    services: Vec<ServiceJson>,
}

impl From<BodyJsonV1> for BodyJson {
    fn from(body: BodyJsonV1) -> Self {
        Self {
            cluster: body.cluster,
            incarnation: body.incarnation,
            node: 1,
            lives: body.epoch,
            epoch_floor: body.epoch,
            log_id: body.log_id,
            log_created: body.log_created,
            clean: body.clean,
            unsynced: None,
            restoring: body.restoring,
            has_control: false,
            starts: Vec::new(),
            services: body.services,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceJson {
    name: String,
    first_shard: u32,
    shards: u32,
}

/// CRC-32 of the compact encoding, so that the file may be indented by hand, but not changed.
fn checksum(body: &impl Serialize) -> String {
    let bytes = serde_json::to_vec(body).expect("plain structs of text and numbers encode");
    format!("{:08x}", crc32fast::hash(&bytes))
}

fn encode(meta: &Meta) -> Vec<u8> {
    let services = meta.services.iter().map(|service| ServiceJson {
        name: service.name.clone(),
        first_shard: service.first.0,
        shards: service.shards,
    });
    let body = BodyJson {
        cluster: meta.cluster.to_string(),
        incarnation: meta.incarnation.0,
        node: meta.node.0,
        lives: meta.lives,
        epoch_floor: meta.epoch_floor.0,
        log_id: format!("{:016x}", meta.log_id),
        log_created: meta.log_created,
        clean: meta.clean,
        unsynced: meta.unsynced.map(|boot| format!("{boot:032x}")),
        restoring: meta.restoring,
        has_control: meta.has_control,
        starts: meta.starts.iter().map(|start| format!("{:032x}", start.0)).collect(),
        services: services.collect(),
    };
    let json = MetaJson { format: FORMAT, checksum: checksum(&body), meta: body };
    let mut bytes = serde_json::to_vec_pretty(&json).expect("plain structs of text and numbers encode");
    bytes.push(b'\n');
    bytes
}

fn damaged(reason: String) -> DataDirError {
    DataDirError::MetaDamaged { reason }
}

/// Returns the contents of the file, with the checksum of their version.
fn decode_body<B: Serialize + DeserializeOwned>(value: serde_json::Value) -> Result<B, DataDirError> {
    let json: MetaJson<B> = serde_json::from_value(value).map_err(|error| damaged(error.to_string()))?;
    let (found, wanted) = (json.checksum, checksum(&json.meta));
    if wanted != found {
        return Err(damaged(format!("its checksum is {found}, and that of its contents is {wanted}")));
    }
    Ok(json.meta)
}

fn decode(bytes: &[u8]) -> Result<(Meta, u64), DataDirError> {
    // The version comes first: another one may have other fields.
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    let format = format.ok_or_else(|| damaged("it has no format version".to_owned()))?;
    let body: BodyJson = match format {
        1 => decode_body::<BodyJsonV1>(value)?.into(),
        FORMAT => decode_body(value)?,
        found => return Err(DataDirError::Version { found }),
    };
    if body.epoch_floor == u64::MAX {
        return Err(damaged("no epoch is above its epoch_floor".to_owned()));
    }
    if body.lives == u64::MAX {
        return Err(damaged("no start can be counted above its lives".to_owned()));
    }
    if body.starts.len() > STARTS_MAX {
        return Err(damaged(format!("it has more than {STARTS_MAX} starts")));
    }
    let hex = |name: &str, text: &str| {
        u128::from_str_radix(text, 16).map_err(|_| damaged(format!("{name} is not a hexadecimal number")))
    };
    let starts: Result<_, _> = body.starts.iter().map(|start| hex("starts", start).map(StartId)).collect();
    let services = body.services.into_iter().map(|service| ServiceMeta {
        name: service.name,
        first: ShardId(service.first_shard),
        shards: service.shards,
    });
    let meta = Meta {
        cluster: ClusterId(hex("cluster", &body.cluster)?),
        incarnation: Incarnation(body.incarnation),
        node: NodeId(body.node),
        lives: body.lives,
        epoch_floor: Epoch(body.epoch_floor),
        log_id: u64::try_from(hex("log_id", &body.log_id)?)
            .map_err(|_| damaged("log_id is too large".to_owned()))?,
        log_created: body.log_created,
        clean: body.clean,
        unsynced: body.unsynced.map(|boot| hex("unsynced", &boot)).transpose()?,
        restoring: body.restoring,
        has_control: body.has_control,
        starts: starts?,
        services: services.collect(),
    };
    Ok((meta, format))
}

fn write(disk: &dyn Disk, meta: &Meta) -> Result<(), DataDirError> {
    let bytes = encode(meta);
    // Checked before writing too: unreadable metadata must never replace readable one.
    assert!(decode(&bytes)? == (meta.clone(), FORMAT), "the facts survive encoding");
    if bytes.len() as u64 > META_BYTES_MAX {
        return Err(DataDirError::TooLarge { len: bytes.len() });
    }
    replace_file(disk, META_FILE, &bytes).map_err(io_error("replace", META_FILE))
}

fn io_error(action: &'static str, path: &str) -> impl FnOnce(io::Error) -> DataDirError {
    move |source| DataDirError::Io { action, path: path.to_owned(), source }
}
