//! Random runs with crashes against a model: what was synced is never lost, what comes back is what was appended, in
//! order and without a hole, and nothing is invented.

use crate::wal_log::{Rec, batch, open, open_on, put, rec, small};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use stead_core::ids::{Index, ShardId};
use stead_store::disk::{Disk, DiskFile, DiskLock, LockError, Open};
use stead_store::sim_disk::{SimDisk, is_crash};
use stead_store::wal::{Opened, SegmentPreparer, Wal, WalError, WalOptions};

fn crashed(error: &WalError) -> bool {
    match error {
        WalError::Io { source, .. } => is_crash(source),
        WalError::Fatal { reason } => reason.contains("crashed"),
        _ => false,
    }
}

/// The expected contents of a log. Records are numbered in the order of appending.
#[derive(Default)]
struct Model {
    records: Vec<Rec>,
    /// Records up to here are durable.
    synced: usize,
    /// A recovered log may end here only: after each write.
    ends: Vec<usize>,
    /// The greatest index that a trim was allowed to take, by shard.
    trimmed: BTreeMap<u32, u64>,
    next_index: BTreeMap<u32, u64>,
}

impl Model {
    fn first_needed(&self) -> usize {
        let needed = |rec: &Rec| rec.index > self.trimmed.get(&rec.shard).copied().unwrap_or(0);
        self.records.iter().position(needed).unwrap_or(self.records.len())
    }

    /// Checks a recovered log and goes on from it.
    fn recover(&mut self, seen: &[Rec]) {
        let first = match seen.first() {
            Some(first) => {
                self.records.iter().position(|rec| rec == first).expect("the first record was appended")
            }
            None => self.records.len().min(self.first_needed().max(self.synced)),
        };
        assert!(
            first <= self.first_needed(),
            "record {first} is the first, {} is needed",
            self.first_needed()
        );
        let end = first + seen.len();
        assert!(end >= self.synced, "{end} records came back, {} had been synced", self.synced);
        assert_eq!(seen, self.records.get(first..end).expect("nothing was invented"));
        assert!(end == 0 || self.ends.contains(&end), "a write came back in part");
        self.records.truncate(end);
        self.ends.retain(|at| *at <= end);
        self.synced = end;
        self.next_index.clear();
        for rec in &self.records {
            self.next_index.insert(rec.shard, rec.index);
        }
    }
}

fn random_group(rng: &mut fastrand::Rng, model: &mut Model) -> Vec<Rec> {
    let count = rng.usize(1..4);
    let group = (0..count).map(|_| {
        let shard = rng.u32(..5);
        let index = model.next_index.entry(shard).or_insert(0);
        *index += 1;
        let number = rng.u64(..).to_le_bytes();
        let mut bytes = number.to_vec();
        // Some look like headers of batches, to be found where none was written.
        let filler = if rng.u8(..8) == 0 { *b"SWB2" } else { [number[0]; 4] };
        bytes.extend(filler.iter().cycle().take(rng.usize(..2500)));
        rec(shard, *index, &bytes)
    });
    group.collect()
}

/// Does random things until something fails.
fn work(rng: &mut fastrand::Rng, wal: &mut Wal, model: &mut Model, steps: usize) -> Result<(), WalError> {
    for _ in 0..steps {
        match rng.u8(..10) {
            0..5 => {
                let groups: Vec<Vec<Rec>> = (0..rng.usize(1..3)).map(|_| random_group(rng, model)).collect();
                let batches: Vec<_> = groups.iter().map(|group| batch(group)).collect();
                for group in groups {
                    model.records.extend(group);
                    // They fit into one write or need two.
                    model.ends.push(model.records.len());
                }
                wal.append(&batches)?;
            }
            5..8 => {
                wal.sync()?;
                model.synced = model.records.len();
            }
            8 => {
                wal.mark()?;
                model.synced = model.records.len();
            }
            _ => {
                for (shard, index) in &model.next_index {
                    let top = model.trimmed.entry(*shard).or_insert(0);
                    *top = (*top).max(rng.u64(..=*index));
                }
                // Only what is synced may be given up in this model: a lost record's index is used again.
                wal.sync()?;
                model.synced = model.records.len();
                let trimmed = model.trimmed.clone();
                wal.trim(|ShardId(shard)| Index(trimmed.get(&shard).copied().unwrap_or(0)))?;
            }
        }
    }
    Ok(())
}

fn options(seed: u64) -> WalOptions {
    WalOptions {
        segment_bytes: [16, 32, 64][seed as usize % 3] << 10,
        // Those that may be longer begin short or not.
        segment_bytes_min: [16 << 10, 1 << 20][seed as usize / 3 % 2],
        spares: 1 + seed as usize % 2,
        ..small()
    }
}

/// Opens, with crashes on the way.
fn open_at_last(rng: &mut fastrand::Rng, disk: &SimDisk, options: &WalOptions) -> (Wal, Opened, Vec<Rec>) {
    loop {
        disk.restart();
        if rng.bool() {
            disk.crash_after(rng.u64(1..40));
        }
        match open(disk, options) {
            Ok(opened) => {
                disk.restart();
                return opened;
            }
            Err(error) => assert!(crashed(&error), "{error}"),
        }
    }
}

fn run(seed: u64, crashes: usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let disk = SimDisk::new(rng.u64(..));
    let mut options = options(seed);
    let mut model = Model::default();
    for _ in 0..crashes {
        let (mut wal, _, seen) = open_at_last(&mut rng, &disk, &options);
        options.create = false;
        model.recover(&seen);
        let planned = rng.bool();
        if planned {
            disk.crash_after(rng.u64(1..60));
        }
        let steps = rng.usize(..30);
        match work(&mut rng, &mut wal, &mut model, steps) {
            Ok(()) if rng.u8(..4) == 0 => disk.kill_process(),
            Ok(()) => disk.crash(),
            Err(error) => assert!(planned && crashed(&error), "{error}"),
        }
    }
    disk.restart();
    model.recover(&open(&disk, &options).unwrap().2);
}

#[test]
fn synced_records_survive_random_crashes() {
    let base = std::env::var("STEAD_SEED").ok().and_then(|seed| seed.parse().ok());
    let runs = std::env::var("STEAD_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(20);
    let base = base.unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    for seed in base..base + runs {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed, 12)) {
            eprintln!("repeat with STEAD_SEED={seed} STEAD_RUNS=1");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_crash_at_any_operation_of_a_recovery_changes_nothing() {
    for seed in 0..12 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let disk = SimDisk::new(seed);
        let options = options(seed);
        let (mut wal, _, _) = open(&disk, &options).unwrap();
        work(&mut rng, &mut wal, &mut Model::default(), 40).unwrap();
        let mut model = Model::default();
        for _ in 0..3 {
            let group = random_group(&mut rng, &mut model);
            wal.append(&[batch(&group)]).unwrap();
        }
        drop(wal);
        disk.crash();
        disk.restart();
        let (_, _, expected) = open(&disk.fork(1), &options).unwrap();
        for operation in 1.. {
            let copy = disk.fork(operation);
            copy.crash_after(operation);
            match open(&copy, &options) {
                Ok(_) => {
                    assert!(operation > 5, "a recovery has more operations than that");
                    break;
                }
                Err(error) => assert!(crashed(&error), "{error}"),
            }
            copy.restart();
            let (_, _, seen) = open(&copy, &options).unwrap();
            assert_eq!(seen, expected, "seed {seed}, crash at operation {operation}");
        }
    }
}

#[test]
fn a_crash_at_any_operation_of_creation_leaves_a_log_that_opens() {
    for operation in 1.. {
        let disk = SimDisk::new(operation);
        disk.crash_after(operation);
        let done = open(&disk, &small()).is_ok();
        disk.restart();
        let (mut wal, _, seen) = open(&disk, &small()).unwrap();
        assert_eq!(seen, []);
        put(&mut wal, &rec(1, 1, b"x"));
        if done {
            break;
        }
    }
}

#[test]
fn what_an_opening_showed_is_never_lost_later() {
    // The process dies after a failed sync: the system's cache shows the batch, and the disk does not have it.
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let (mut wal, _, _) = open(&disk, &small()).unwrap();
        wal.append(&[batch(&[rec(1, 1, &[1; 6000])])]).unwrap();
        disk.fail_syncs(1);
        wal.sync().unwrap_err();
        drop(wal);
        disk.kill_process();
        let (_, opened, seen) = open(&disk, &small()).unwrap();
        assert_eq!((opened.unsynced, seen.len()), (1, 1));
        disk.crash();
        disk.restart();
        assert_eq!(open(&disk, &small()).unwrap().2, seen);
    }
}

/// Before a directory is synced another thread prepares a segment, and the power is cut when that one syncs it.
struct PreparedMeanwhile {
    disk: SimDisk,
    preparer: Mutex<Option<SegmentPreparer>>,
    prepares: AtomicBool,
}

impl Disk for PreparedMeanwhile {
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let preparer = self.preparer.lock().unwrap().take();
        if let Some(preparer) = preparer {
            self.prepares.store(true, Ordering::Relaxed);
            preparer.prepare_next().unwrap_err();
        } else if self.prepares.load(Ordering::Relaxed) {
            self.disk.crash();
        }
        self.disk.sync_dir(dir)
    }

    fn open(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        self.disk.open(path, open)
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
fn a_trimmed_segment_is_not_reused_before_its_new_name_is_durable() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let hooked = Arc::new(PreparedMeanwhile {
            disk: disk.clone(),
            preparer: Mutex::default(),
            prepares: AtomicBool::new(false),
        });
        let (mut wal, _, _) = open_on(hooked.clone(), &small()).unwrap();
        let preparer = wal.preparer();
        for index in 1..=12 {
            put(&mut wal, &rec(1, index, &[0; 4000]));
        }
        assert!(wal.wants_segment());
        *hooked.preparer.lock().unwrap() = Some(preparer);
        wal.trim(|_| Index(8)).unwrap_err();
        drop(wal);
        disk.restart();
        let (_, _, seen) = open(&disk, &small()).unwrap();
        assert_eq!(seen.last().unwrap().index, 12, "seed {seed}");
    }
}
