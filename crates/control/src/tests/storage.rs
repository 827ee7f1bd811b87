//! The files under crashes, damage and want of room.

use super::ledger::Ledger;
use super::{DIR, IDENTITY, blank, log_id, open_log};
use crate::fault::StorageFault;
use crate::frame::{self, Link};
use crate::log::{Identity, Log};
use crate::machine::Machine;
use crate::proposal::Proposal;
use crate::snapshot;
use crate::store::{Ending, StateStore};
use crate::types::{Entry, LogId, SnapshotMeta, StoredMembership, Vote};
use openraft::EntryPayload;
use std::io;
use std::sync::Arc;
use stead_core::ids::NodeId;
use stead_store::disk::{Disk, DiskFile, DiskLock, LockError, Open};
use stead_store::sim_disk::SimDisk;

fn command(term: u64, index: u64, text: &str) -> Entry {
    let proposal = Proposal::new(0, Ledger::encode_command(&text.to_owned()));
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(proposal) }
}

/// The contents of a log.
#[derive(Clone, Debug, Default, PartialEq)]
struct Held {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

impl Held {
    fn of(log: &Log) -> Self {
        Self { vote: log.vote(), purged: log.purged(), entries: log.entries(0, u64::MAX, usize::MAX) }
    }

    fn next(&self) -> u64 {
        let last = self.entries.last().map(|entry| entry.log_id).or(self.purged);
        last.map_or(0, |last| last.index + 1)
    }
}

/// Runs a log on a disk until that crashes, and checks what is left, several times.
fn crash_often(seed: u64, wrap: impl Fn(SimDisk) -> Arc<dyn Disk>) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let disk = SimDisk::new(seed);
    // The contents that were durable last, and those that were being made so.
    let (mut durable, mut attempted) = (Held::default(), Held::default());
    let mut term = 1;
    for life in 0..6 {
        disk.crash_after(rng.u64(1..if life == 0 { 20 } else { 120 }));
        // Until it was opened once, it may have to be created.
        let opened = open_log(wrap(disk.clone()), durable == Held::default());
        let mut log = match opened {
            Ok(log) => log,
            Err(StorageFault::Io { .. }) if disk.is_crashed() => {
                disk.restart();
                continue;
            }
            Err(fault) => return Err(format!("life {life}: {fault}")),
        };
        let found = Held::of(&log);
        if found != durable && found != attempted {
            return Err(format!("life {life}: found {found:?}, neither {durable:?} nor {attempted:?}"));
        }
        (durable, attempted) = (found.clone(), found);
        loop {
            let next = attempted.next();
            let done = match rng.u8(..8) {
                0 => {
                    term += rng.u64(..2);
                    let vote = Vote { committed: rng.bool(), ..Vote::new(term, 1) };
                    if attempted.vote.is_some_and(|held| held > vote) {
                        continue;
                    }
                    attempted.vote = Some(vote);
                    log.save_vote(vote).map(|()| true)
                }
                1 if !attempted.entries.is_empty() => {
                    let kept = rng.usize(..attempted.entries.len());
                    log.truncate(attempted.entries[kept].log_id.index);
                    attempted.entries.truncate(kept);
                    Ok(false)
                }
                2 if !attempted.entries.is_empty() => {
                    let gone = rng.usize(..attempted.entries.len());
                    attempted.purged = Some(attempted.entries[gone].log_id);
                    attempted.entries.drain(..=gone);
                    let generation = log.generation();
                    log.purge(attempted.purged.unwrap()).map(|()| log.generation() > generation)
                }
                _ => {
                    let entries: Vec<_> = (next..next + rng.u64(1..4))
                        .map(|index| command(term, index, &"x".repeat(rng.usize(..9000))))
                        .collect();
                    attempted.entries.extend(entries.iter().cloned());
                    log.append(&entries).map(|()| true)
                }
            };
            match done {
                Ok(true) => durable = attempted.clone(),
                Ok(false) => {}
                Err(_) if disk.is_crashed() => break,
                Err(fault) => return Err(format!("life {life}: {fault}")),
            }
        }
        disk.restart();
    }
    Ok(())
}

#[test]
fn a_crash_anywhere_loses_nothing_that_was_durable() {
    for seed in 0..400 {
        if let Err(failure) = crash_often(seed, |disk| Arc::new(disk)) {
            panic!("seed {seed}: {failure}");
        }
    }
}

/// A disk that does not sync.
struct Unsynced(SimDisk);

struct UnsyncedFile(Box<dyn DiskFile>);

impl DiskFile for UnsyncedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Disk for Unsynced {
    fn open(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(UnsyncedFile(self.0.open(path, open)?)))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.0.create_dir(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename_new(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.0.remove(path)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.0.remove_dir(path)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.0.sync_dir(dir)
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        self.0.len(path)
    }

    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, LockError> {
        self.0.lock(path)
    }

    fn lock_to_read(&self, path: &str) -> Result<Option<Box<dyn DiskLock>>, LockError> {
        self.0.lock_to_read(path)
    }
}

#[test]
fn an_answer_before_the_sync_is_caught() {
    let caught = (0..20).any(|seed| crash_often(seed, |disk| Arc::new(Unsynced(disk))).is_err());
    assert!(caught, "20 seeds without a failure on a disk that does not sync");
}

/// Returns a disk with a log of several frames.
fn filled() -> (SimDisk, Held) {
    let disk = SimDisk::new(1);
    let mut log = open_log(Arc::new(disk.clone()), true).unwrap();
    log.save_vote(Vote::new(1, 1)).unwrap();
    log.append(&[blank(1, 0), command(1, 1, "one"), command(1, 2, &"two".repeat(2000))]).unwrap();
    log.append(&[command(1, 3, "three")]).unwrap();
    log.save_vote(Vote::new_committed(2, 1)).unwrap();
    let held = Held::of(&log);
    (disk, held)
}

#[test]
fn each_flipped_bit_is_reported_or_harmless() {
    let (disk, held) = filled();
    let len = disk.bytes("control/log").unwrap().len() as u64;
    let mut reported = 0;
    for offset in (0..len).filter(|offset| offset % 4096 < 64 || offset % 97 == 0) {
        let disk = disk.fork(1);
        disk.flip_bit("control/log", offset, u8::try_from(offset % 8).unwrap()).unwrap();
        match open_log(Arc::new(disk), false) {
            Ok(log) => assert_eq!(Held::of(&log), held, "byte {offset}"),
            Err(fault) => {
                let text = fault.to_string();
                assert!(text.contains("control/log of the control plane"), "byte {offset}: {text}");
                assert!(
                    matches!(fault, StorageFault::Damaged { .. } | StorageFault::Version { .. }),
                    "{text}"
                );
                reported += 1;
            }
        }
    }
    assert!(reported > 400, "{reported} flips were reported");
}

#[test]
fn a_damaged_last_frame_is_reported_after_a_kill_and_cut_only_if_it_was_not_marked() {
    let (disk, _) = filled();
    let bytes = disk.bytes("control/log").unwrap();
    let frames: Vec<_> =
        (0..bytes.len()).step_by(4096).filter(|at| bytes[*at..].starts_with(b"SCF1")).collect();
    let mark = (0..bytes.len()).step_by(4096).find(|at| bytes[*at..].starts_with(b"SCM1")).unwrap();
    let last = *frames.last().unwrap();
    let open = |bytes: &[u8]| {
        let disk = SimDisk::new(1);
        disk.put("control/log", bytes);
        open_log(Arc::new(disk), false)
    };
    let mut damaged = bytes.clone();
    damaged[last + 40] ^= 1;
    match open(&damaged).map(|log| log.vote()) {
        Err(StorageFault::Damaged { offset, .. }) => assert_eq!(offset, last as u64),
        other => panic!("{other:?}"),
    }
    // As a power cut may leave it: the frame is torn, and nothing was written behind it.
    damaged[mark..mark + 4096].fill(0);
    assert_eq!(open(&damaged).unwrap().vote(), Some(Vote::new(1, 1)));
    damaged.truncate(last + 5);
    assert_eq!(open(&damaged).unwrap().vote(), Some(Vote::new(1, 1)));
}

#[test]
fn a_log_refuses_gaps_and_votes_that_go_back() {
    let (disk, held) = filled();
    let mut log = open_log(Arc::new(disk.clone()), false).unwrap();
    for entries in [vec![blank(2, 5)], vec![blank(2, 3)], vec![blank(2, 4), blank(2, 6)], vec![blank(0, 4)]] {
        let refused = log.append(&entries);
        assert!(matches!(refused, Err(StorageFault::Refused(_))), "{refused:?}");
    }
    for vote in [Vote::new(1, 1), Vote::new_committed(1, 1), Vote::new(2, 1), Vote::new(2, 0)] {
        let refused = log.save_vote(vote);
        assert!(matches!(refused, Err(StorageFault::Refused(_))), "{refused:?}");
    }
    log.append(&[blank(2, 4)]).unwrap();
    drop(log);
    let log = open_log(Arc::new(disk), false).unwrap();
    assert_eq!(log.entries(0, 4, usize::MAX), held.entries);
    assert_eq!(log.last(), Some(log_id(2, 4)));
}

#[test]
fn entries_are_read_in_bounded_pieces() {
    let (disk, held) = filled();
    let log = open_log(Arc::new(disk), false).unwrap();
    assert_eq!(log.entries(1, 9, 100), held.entries[1..2]);
    assert_eq!(log.entries(2, 9, 1), held.entries[2..3], "one at least, however large");
    assert_eq!(log.entries(1, 3, 1 << 20), held.entries[1..3]);
    assert_eq!(log.entries(9, 12, 1 << 20), []);
}

#[test]
fn the_file_stays_in_proportion_to_what_is_not_purged() {
    let disk = SimDisk::new(1);
    let mut log = open_log(Arc::new(disk.clone()), true).unwrap();
    let mut most = 0;
    for index in 0..2000 {
        log.append(&[command(1, index, &"x".repeat(3000))]).unwrap();
        if index % 20 == 19 {
            log.purge(log_id(1, index - 5)).unwrap();
        }
        most = most.max(disk.bytes("control/log").unwrap().len());
    }
    assert!(most < 1 << 20, "the file had {most} bytes");
    // The purge is written with it.
    log.append(&[blank(1, 2000)]).unwrap();
    drop(log);
    let log = open_log(Arc::new(disk), false).unwrap();
    assert_eq!((log.purged(), log.last()), (Some(log_id(1, 1994)), Some(log_id(1, 2000))));
}

#[test]
fn a_full_disk_changes_nothing_until_there_is_room() {
    let (disk, held) = filled();
    let mut log = open_log(Arc::new(disk.clone()), false).unwrap();
    disk.set_capacity(Some(disk.used()));
    let large = command(2, 4, &"x".repeat(200_000));
    assert!(log.append(std::slice::from_ref(&large)).unwrap_err().is_full());
    assert_eq!(Held::of(&log), held);
    disk.set_capacity(None);
    log.append(std::slice::from_ref(&large)).unwrap();
    drop(log);
    let log = open_log(Arc::new(disk), false).unwrap();
    assert_eq!(log.entries(4, 5, usize::MAX), [large]);
}

#[test]
fn nothing_is_written_after_a_failed_sync() {
    let (disk, held) = filled();
    let mut log = open_log(Arc::new(disk.clone()), false).unwrap();
    disk.fail_syncs(1);
    assert!(matches!(log.append(&[blank(2, 4)]), Err(StorageFault::Io { action: "sync", .. })));
    assert!(matches!(log.append(&[blank(2, 4)]), Err(StorageFault::Fatal)));
    assert!(matches!(log.save_vote(Vote::new(9, 1)), Err(StorageFault::Fatal)));
    assert_eq!(Held::of(&log), held);
}

#[test]
fn files_of_others_and_lost_ones_are_refused() {
    let (disk, _) = filled();
    let other = Identity { node: NodeId(2), ..IDENTITY };
    match Log::open(Arc::new(disk.clone()), DIR, other, true).map(|log| log.vote()) {
        Err(StorageFault::Foreign { node, .. }) => assert_eq!(node, NodeId(1)),
        found => panic!("{found:?}"),
    }
    disk.remove("control/log").unwrap();
    assert!(matches!(open_log(Arc::new(disk.clone()), false), Err(StorageFault::Lost { .. })));
    // With a snapshot there was a log, so it is not created again.
    disk.put("control/snapshot", b"SCS1");
    assert!(matches!(open_log(Arc::new(disk), true), Err(StorageFault::Lost { .. })));
}

fn meta(last: LogId) -> SnapshotMeta {
    SnapshotMeta {
        last_log_id: Some(last),
        last_membership: StoredMembership::default(),
        snapshot_id: "one".to_owned(),
    }
}

#[test]
fn each_flipped_bit_of_a_snapshot_is_reported() {
    let disk = SimDisk::new(1);
    disk.create_dir(DIR).unwrap();
    snapshot::write(&disk, DIR, &meta(log_id(1, 3)), b"state").unwrap();
    assert_eq!(snapshot::read(&disk, DIR).unwrap(), Some((meta(log_id(1, 3)), b"state".to_vec())));
    let len = disk.bytes("control/snapshot").unwrap().len() as u64;
    for offset in 0..len {
        for bit in 0..8 {
            let disk = disk.fork(1);
            disk.flip_bit("control/snapshot", offset, bit).unwrap();
            let fault = snapshot::read(&disk, DIR).unwrap_err();
            assert!(matches!(fault, StorageFault::Damaged { .. } | StorageFault::Version { .. }), "{fault}");
        }
    }
}

#[test]
fn a_snapshot_that_ends_before_the_log_begins_is_refused() {
    let (disk, _) = filled();
    let mut log = open_log(Arc::new(disk.clone()), false).unwrap();
    log.purge(log_id(1, 2)).unwrap();
    let open = || {
        StateStore::open(
            Arc::new(disk.clone()),
            DIR,
            &log,
            Ledger::default(),
            Arc::new(drop),
            Ending::default(),
        )
        .map(drop)
    };
    assert!(matches!(open(), Err(StorageFault::Lost { .. })));
    snapshot::write(&disk, DIR, &meta(log_id(1, 1)), b"state").unwrap();
    assert!(matches!(open(), Err(StorageFault::Damaged { .. })));
}

#[test]
fn contents_that_were_edited_under_a_right_checksum_are_errors_or_read() {
    let (disk, _) = filled();
    let bytes = disk.bytes("control/log").unwrap();
    let whole = frame::parse(&bytes).unwrap();
    let payload = bytes[frame::HEADER..whole.span].to_vec();
    let second = frame::parse(&bytes[2 * whole.span..]).unwrap();
    let entries = bytes[2 * whole.span + frame::HEADER..2 * whole.span + second.span].to_vec();
    let (mut read, mut refused) = (0, 0);
    for seed in 0..4000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut base, mut more) = (payload.clone(), entries.clone());
        for _ in 0..rng.usize(1..4) {
            let edited = if rng.bool() { &mut base } else { &mut more };
            let at = rng.usize(..edited.len().min(200));
            match rng.u8(..3) {
                0 => edited[at] = rng.u8(..),
                1 => edited[at] = 0xff,
                _ => {
                    edited.remove(at);
                }
            }
        }
        // Without the zeros that fill the frames, which are not part of the records.
        while base.last() == Some(&0) {
            base.pop();
        }
        while more.last() == Some(&0) {
            more.pop();
        }
        let link = Link { number: 0, previous: 0, generation: 1 };
        let (mut file, checksum) = frame::frame(&base, link);
        file.extend(frame::frame(&more, Link { number: 1, previous: checksum, ..link }).0);
        let disk = SimDisk::new(seed);
        disk.put("control/log", &file);
        match open_log(Arc::new(disk), false) {
            Ok(_) => read += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(read > 100 && refused > 100, "{read} were read, {refused} refused");
}

#[test]
fn votes_of_many_elections_do_not_lengthen_the_file() {
    let (disk, held) = filled();
    let mut log = open_log(Arc::new(disk.clone()), false).unwrap();
    for term in 3..1500 {
        log.save_vote(Vote::new(term, 1)).unwrap();
    }
    let len = disk.bytes("control/log").unwrap().len();
    assert!(len < 512 << 10, "the file has {len} bytes");
    drop(log);
    let log = open_log(Arc::new(disk), false).unwrap();
    assert_eq!(Held::of(&log), Held { vote: Some(Vote::new(1499, 1)), ..held });
}

#[test]
fn a_snapshot_of_another_history_replaces_the_entries_behind_it() {
    for (upto, entries) in [(log_id(3, 2), 0), (log_id(3, 9), 0), (log_id(1, 2), 1)] {
        let (disk, _) = filled();
        let mut log = open_log(Arc::new(disk.clone()), false).unwrap();
        log.purge(upto).unwrap();
        assert_eq!(log.entries(0, u64::MAX, usize::MAX).len(), entries, "{upto}");
        let next = upto.index + 1 + entries as u64;
        log.append(&[blank(3, next)]).unwrap();
        drop(log);
        let log = open_log(Arc::new(disk), false).unwrap();
        assert_eq!((log.purged(), log.last()), (Some(upto), Some(log_id(3, next))));
    }
}

#[test]
fn the_last_frame_is_marked_again_after_a_start() {
    let (disk, _) = filled();
    for _ in 0..2 {
        // The second start finds the mark, the first one may find it cut.
        let log = open_log(Arc::new(disk.clone()), false).unwrap();
        drop(log);
        let bytes = disk.bytes("control/log").unwrap();
        let blocks = (0..bytes.len()).step_by(4096);
        let last = blocks.rev().find(|at| bytes[*at..].starts_with(b"SCF1")).unwrap();
        let disk = disk.fork(1);
        disk.flip_bit("control/log", last as u64 + 40, 1).unwrap();
        let fault = open_log(Arc::new(disk), false).map(|log| log.vote()).unwrap_err();
        assert!(matches!(fault, StorageFault::Damaged { .. }), "{fault}");
    }
    // A torn tail in place of the mark is cut, and a mark is written.
    let bytes = disk.bytes("control/log").unwrap();
    let mark = (0..bytes.len()).step_by(4096).find(|at| bytes[*at..].starts_with(b"SCM1")).unwrap();
    disk.flip_bit("control/log", mark as u64 + 9, 1).unwrap();
    drop(open_log(Arc::new(disk.clone()), false).unwrap());
    assert!(disk.bytes("control/log").unwrap()[mark..].starts_with(b"SCM1"));
}
