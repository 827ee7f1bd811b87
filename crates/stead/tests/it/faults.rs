//! Faults: full disks, failing syncs, second owners, invalid configurations.

use crate::patience::await_some;
use crate::services::{Account, Ask, Look, builder, key};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use stead::{CallError, Node, OpenError, RawError, Refusal, ServiceOptions};
use stead_store::disk::{Disk, DiskFile, DiskLock, LockError, Open};
use stead_store::real_disk::RealDisk;

/// A disk on which space and syncs can be made to fail.
pub(crate) struct FaultyDisk {
    disk: RealDisk,
    faults: Arc<Faults>,
}

impl FaultyDisk {
    pub(crate) fn open(dir: &Path, faults: &Arc<Faults>) -> Arc<Self> {
        Arc::new(Self { disk: RealDisk::open(dir).unwrap(), faults: Arc::clone(faults) })
    }
}

#[derive(Default)]
pub(crate) struct Faults {
    full: AtomicBool,
    sync_fails: AtomicBool,
    checkpoint_sync_fails: AtomicBool,
    syncs: AtomicU64,
    /// Syncs of files do not end.
    hangs: Mutex<bool>,
    news: Condvar,
}

struct FaultyFile {
    file: Box<dyn DiskFile>,
    faults: Arc<Faults>,
}

/// While it lives, syncs of files do not end.
pub(crate) struct Hanging(Arc<Faults>);

impl Drop for Hanging {
    fn drop(&mut self) {
        *self.0.hangs.lock().unwrap() = false;
        self.0.news.notify_all();
    }
}

impl Faults {
    /// Lets syncs of files hang until this is dropped.
    pub(crate) fn hang(self: &Arc<Self>) -> Hanging {
        *self.hangs.lock().unwrap() = true;
        Hanging(Arc::clone(self))
    }

    fn grow(&self) -> io::Result<()> {
        // A full quota stands for a full disk, which the tests over the simulated disk have.
        if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::QuotaExceeded.into()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        if self.sync_fails.load(Ordering::SeqCst) {
            Err(io::Error::other("the disk is gone"))
        } else {
            Ok(())
        }
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        if !matches!(open, Open::Read | Open::Existing) {
            self.faults.grow()?;
        }
        Ok(Box::new(FaultyFile { file: self.disk.open(path, open)?, faults: Arc::clone(&self.faults) }))
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.disk.create_dir(path)
    }
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename_new(from, to)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        if dir.starts_with("checkpoints") && self.faults.checkpoint_sync_fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is gone"));
        }
        self.disk.sync_dir(dir)
    }
    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        self.disk.len(path)
    }
    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, LockError> {
        self.disk.lock(path)
    }
    fn lock_to_read(&self, path: &str) -> Result<Option<Box<dyn DiskLock>>, LockError> {
        self.disk.lock_to_read(path)
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if offset + bytes.len() as u64 > self.file.len()? {
            self.faults.grow()?;
        }
        self.file.write_at(bytes, offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.faults.grow()?;
        self.file.allocate(len)
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.faults.sync()?;
        drop(self.faults.news.wait_while(self.faults.hangs.lock().unwrap(), |hangs| *hangs).unwrap());
        self.file.sync_data()
    }
}

#[test]
fn a_full_disk_refuses_writes_answers_reads_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let disk = FaultyDisk::open(dir.path(), &faults);
    let node = builder(dir.path()).segment_bytes(64 << 10).disk(disk).open().unwrap();
    let client = node.blocking_client();
    faults.full.store(true, Ordering::SeqCst);
    let mut balance = 0;
    let error = loop {
        match client.call::<Account>(&key("a"), Ask::Deposit(1)) {
            Ok(now) => {
                balance += 1;
                assert_eq!(now, balance);
            }
            Err(error) => break error,
        }
        assert!(balance < 10_000, "three segments hold far less");
    };
    assert_eq!(error, CallError::Raw(RawError::Refused(Refusal::Full)));
    assert_eq!(client.query::<Account>(&key("a"), Look::Balance).unwrap(), balance);
    assert!(node.status().full);
    faults.full.store(false, Ordering::SeqCst);
    let now = await_some("the node takes writes again", || {
        let deposited = client.call::<Account>(&key("a"), Ask::Deposit(1));
        assert!(matches!(deposited, Ok(_) | Err(CallError::Raw(RawError::Refused(Refusal::Full)))));
        deposited.ok()
    });
    assert_eq!(now, balance + 1, "a refused request was not applied");
    assert!(!node.status().full);
}

#[test]
fn a_failed_sync_ends_the_node_and_nothing_unsynced_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let disk = FaultyDisk::open(dir.path(), &faults);
    let node = builder(dir.path()).disk(disk).open().unwrap();
    let client = node.blocking_client();
    assert_eq!(client.call::<Account>(&key("a"), Ask::Deposit(1)).unwrap(), 1);
    faults.sync_fails.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        let error = client.call::<Account>(&key("a"), Ask::Deposit(1)).unwrap_err();
        let CallError::Raw(RawError::NodeFailed(reason)) = error else { panic!("{error}") };
        assert!(reason.contains("the disk is gone"), "{reason}");
    }
    assert!(node.status().failure.is_some() && !node.is_ready());
    drop(node);
    faults.sync_fails.store(false, Ordering::SeqCst);
    let node = builder(dir.path()).open().unwrap();
    let balance = node.blocking_client().query::<Account>(&key("a"), Look::Balance).unwrap();
    assert!((1..=2).contains(&balance), "{balance}");
}

#[test]
fn a_checkpoint_whose_sync_fails_ends_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let disk = FaultyDisk::open(dir.path(), &faults);
    let node = builder(dir.path()).disk(disk).open().unwrap();
    node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(1)).unwrap();
    node.checkpoint_blocking().unwrap();
    faults.checkpoint_sync_fails.store(true, Ordering::SeqCst);
    node.checkpoint_blocking().unwrap_err();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let reason = runtime.block_on(node.failed());
    assert!(reason.contains("bundles/") && reason.contains("the disk is gone"), "{reason}");
    drop(node);
    let node = builder(dir.path()).open().unwrap();
    let balance = node.blocking_client().query::<Account>(&key("a"), Look::Balance).unwrap();
    assert_eq!(balance, 1);
    node.checkpoint_blocking().unwrap();
}

#[test]
fn a_data_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    let error = builder(dir.path()).open().map(|_| ()).unwrap_err();
    assert!(matches!(&error, OpenError::DataDir(_)) && error.to_string().contains("locked"), "{error}");
    node.shutdown();
    builder(dir.path()).open().unwrap();
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let error = |builder: stead::NodeBuilder| builder.open().map(|_| ()).unwrap_err().to_string();
    let twice = builder(dir.path()).service::<Account>(ServiceOptions::default());
    assert!(error(twice).contains("registered twice"));
    assert!(error(builder(dir.path()).threads(0)).contains("1 to 256"));
    let config = stead::Config::from_toml("[services.acount]\nshards = 2", "test").unwrap();
    let text = error(builder(dir.path()).config(config));
    assert!(text.contains("did you mean \"account\""), "{text}");
    builder(dir.path()).open().unwrap().shutdown();
    let more = Node::builder(dir.path()).service::<Account>(ServiceOptions::default().shards(5));
    assert!(error(more).contains("has 4 shards"));
    let when_new = ServiceOptions::default().shards_when_new(5);
    let node = Node::builder(dir.path()).service::<Account>(when_new).segment_bytes(1 << 20).open().unwrap();
    assert_eq!(node.status().services[0].shards, 4, "an existing number wins over a default");
    node.shutdown();
    std::fs::remove_file(dir.path().join("stead.json")).unwrap();
    assert!(error(builder(dir.path())).contains("stead.json"));
}

#[test]
fn a_client_without_a_session_is_refused_because_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let disk = FaultyDisk::open(dir.path(), &faults);
    let node = builder(dir.path()).segment_bytes(64 << 10).disk(disk).open().unwrap();
    faults.full.store(true, Ordering::SeqCst);
    let error = await_some("the log is full", || {
        node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(1)).err()
    });
    assert_eq!(error, CallError::Raw(RawError::Refused(Refusal::Full)));
}
