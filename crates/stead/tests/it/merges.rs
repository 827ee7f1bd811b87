//! Bundles are merged while checkpoints are taken: the output of a merge is kept until a checkpoint refers to it.

use crate::patience::{PATIENCE, await_some};
use crate::services::{Account, Ask, builder, key};
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use stead::CheckpointOptions;
use stead_store::disk::{Disk, DiskFile, DiskLock, LockError, Open};
use stead_store::sim_disk::SimDisk;

/// Time in which an expected event must come.

#[derive(Default)]
struct Seen {
    /// The bundle that the merge has named. The merge is held there.
    merged: Option<String>,
    released: bool,
    /// Collections since the merge is held.
    collections: usize,
}

/// A disk that holds the thread of a merge once its bundle has its name, and counts collections from then on.
struct HeldMerge {
    disk: SimDisk,
    seen: Mutex<Seen>,
    news: Condvar,
}

fn is_thread(name: &str) -> bool {
    std::thread::current().name() == Some(name)
}

impl HeldMerge {
    fn wait(&self, until: impl Fn(&Seen) -> bool) {
        let seen = self.seen.lock().unwrap();
        let waited = self.news.wait_timeout_while(seen, PATIENCE, |seen| !until(seen)).unwrap();
        assert!(!waited.1.timed_out());
    }

    fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap());
        self.news.notify_all();
    }
}

impl Disk for HeldMerge {
    fn open(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        self.disk.open(path, open)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        if dir.ends_with("bundles") && is_thread("stead-checkpoint") {
            self.change(|seen| seen.collections += usize::from(seen.merged.is_some()));
        }
        self.disk.list(dir)
    }
    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.disk.create_dir(path)
    }
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename_new(from, to)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)?;
        if is_thread("stead-merge") {
            self.change(|seen| seen.merged = Some(to.to_owned()));
            self.wait(|seen| seen.released);
        }
        Ok(())
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
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

#[test]
fn checkpoints_are_collected_during_a_merge_and_what_it_wrote_is_used() {
    let disk = SimDisk::new(1);
    let held = Arc::new(HeldMerge { disk: disk.clone(), seen: Mutex::default(), news: Condvar::new() });
    let options = CheckpointOptions { interval: None, keep: 1, ..CheckpointOptions::default() };
    let dir = std::path::Path::new("unused");
    let node = builder(dir)
        .segment_bytes(1 << 20)
        .checkpoints(options)
        .disk(Arc::clone(&held) as Arc<dyn Disk>)
        .open()
        .unwrap();
    let checkpoint = || {
        node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(100)).unwrap();
        node.checkpoint_blocking().unwrap().number
    };
    // Sixteen bundles of one level are merged.
    for _ in 0..16 {
        checkpoint();
    }
    held.wait(|seen| seen.merged.is_some());
    let merged = held.seen.lock().unwrap().merged.clone().unwrap();
    for _ in 0..3 {
        checkpoint();
    }
    // No manifest refers to what the merge wrote: it is in use all the same.
    held.wait(|seen| seen.collections > 0);
    held.change(|seen| seen.released = true);
    let name = merged.strip_prefix("checkpoints/").unwrap();
    let is_built_on_it = |number: u64| {
        let manifest = disk.bytes(&format!("checkpoints/manifests/{number:020}.json")).unwrap();
        String::from_utf8(manifest).unwrap().contains(name)
    };
    // Those that are sealed before the merge has reported its end are not.
    let number = await_some("a checkpoint that is built on it", || {
        Some(checkpoint()).filter(|number| is_built_on_it(*number))
    });
    assert!(disk.bytes(&merged).is_some());
    assert!(node.verify(number).unwrap().holds());
}
