//! The log's part over a simulated disk, turn by turn.

use super::*;
use crate::part::Turned;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stead_core::checkpointing::driver::LogSpace;
use stead_core::durability::Durability;
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{Colour, Epoch, Index, Micros, ReplicaId, ShardId, Time};
use stead_core::key::Key;
use stead_core::log_room::LogRoom;
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{Batch, Promise, WalOptions};

const SHARD: ShardId = ShardId(0);
const SEGMENT: u64 = 32 << 10;

/// A node that records the reports of its log.
#[derive(Default)]
struct Hub {
    desk: LogDesk,
    ending: Cell<bool>,
    durability: Cell<Durability>,
    durable: RefCell<Vec<(usize, u64)>>,
    stored: RefCell<Vec<(usize, u64)>>,
    full: RefCell<Vec<bool>>,
}

impl LogHub for Hub {
    fn desk(&self) -> &LogDesk {
        &self.desk
    }

    fn is_over(&self) -> bool {
        false
    }

    fn is_ending(&self) -> bool {
        self.ending.get()
    }

    fn is_ended(&self) -> bool {
        false
    }

    fn durable(&self, worker: usize, ticket: u64) {
        self.durable.borrow_mut().push((worker, ticket));
    }

    fn stored(&self, worker: usize, ticket: u64) {
        self.stored.borrow_mut().push((worker, ticket));
    }

    fn full(&self, is_full: bool, _: &str) {
        self.full.borrow_mut().push(is_full);
    }

    fn synced(&self, _: Micros) {}
}

impl Hub {
    fn submit(&self, worker: usize, ticket: u64, index: u64) {
        self.desk.submit(
            Time(0),
            Submission {
                worker,
                ticket,
                batch: batch(index, 4000).into(),
                durability: self.durability.get(),
            },
        );
    }
}

fn batch(index: u64, bytes: usize) -> Batch {
    let mut batch = Batch::new();
    batch.push(SHARD, Epoch(1), Index(index), &vec![7; bytes]);
    batch
}

fn open(disk: &SimDisk) -> Wal {
    let options = WalOptions { segment_bytes: SEGMENT, log_id: 7, create: true, ..WalOptions::default() };
    Wal::open(Arc::new(disk.clone()), options, |_| Ok::<(), Infallible>(())).unwrap().0
}

/// Returns a log of several full segments on a full disk, and the index of its last entry.
fn full(disk: &SimDisk) -> (Wal, u64) {
    let mut wal = open(disk);
    for index in 1..=40 {
        wal.append(&[batch(index, 4000)]).unwrap();
        wal.sync().unwrap();
    }
    disk.set_capacity(Some(disk.used()));
    let mut last = 40;
    while wal.append(&[batch(last + 1, 4000)]).is_ok() {
        last += 1;
    }
    wal.sync().unwrap();
    (wal, last)
}

fn part(wal: Wal) -> LogPart {
    LogPart::new(wal, (2, 2), SEGMENT, Time(0))
}

/// Gives turns until the part wants to sleep or has ended.
fn run(part: &mut LogPart, hub: &Hub, now: Time) -> Turned {
    for _ in 0..20 {
        match part.turn(hub, now).unwrap() {
            Turned::Again => {}
            turned => return turned,
        }
    }
    panic!("the part never sleeps");
}

#[test]
fn a_ticket_comes_back_after_the_sync_and_not_before() {
    let (disk, hub) = (SimDisk::new(1), Hub::default());
    let mut part = part(open(&disk));
    hub.submit(0, 1, 1);
    hub.submit(1, 1, 2);
    hub.submit(0, 2, 3);
    let syncs = |part: &LogPart| part.wal.stats().synced;
    let before = syncs(&part);
    assert_eq!(part.turn(&hub, Time(0)).unwrap(), Turned::Again);
    hub.submit(1, 2, 4);
    assert!(hub.durable.borrow().is_empty() && syncs(&part) == before);
    assert_eq!(part.turn(&hub, Time(0)).unwrap(), Turned::Again);
    assert_eq!(hub.durable.take(), [(0, 2), (1, 1)]);
    assert_eq!(syncs(&part), before + 1, "three submissions are one batch");
    run(&mut part, &hub, Time(0));
    assert_eq!(hub.durable.take(), [(1, 2)]);
}

#[test]
fn what_may_wait_counts_at_once_and_is_synced_after_the_interval_or_with_what_may_not() {
    let (disk, hub) = (SimDisk::new(1), Hub::default());
    let mut part = part(open(&disk)).relaxed(|_| true);
    run(&mut part, &hub, Time(0));
    let synced = |part: &LogPart| part.wal.stats().synced;
    let before = synced(&part);
    hub.durability.set(Durability::Interval);
    hub.submit(0, 1, 1);
    hub.submit(1, 1, 2);
    assert_eq!(run(&mut part, &hub, Time(0)), Turned::Until(Some(Time(0).plus(LogRoom::INTERVAL))));
    assert_eq!((hub.stored.take(), hub.durable.take()), (vec![(0, 1), (1, 1)], vec![]));
    assert_eq!(synced(&part), before);
    // What comes when that is due is appended behind it.
    hub.submit(0, 2, 3);
    assert_eq!(part.turn(&hub, Time(0).plus(LogRoom::INTERVAL)).unwrap(), Turned::Again);
    assert_eq!((hub.stored.take(), hub.durable.take()), (vec![], vec![(0, 1), (1, 1)]));
    assert_eq!(synced(&part), part.wal.stats().batch);
    // One that may not wait takes all before it along.
    assert_eq!(part.turn(&hub, Time(0).plus(LogRoom::INTERVAL)).unwrap(), Turned::Again);
    hub.durability.set(Durability::Always);
    hub.submit(1, 2, 4);
    run(&mut part, &hub, Time(0).plus(LogRoom::INTERVAL));
    assert_eq!((hub.stored.take(), hub.durable.take()), (vec![(0, 2)], vec![(0, 2), (1, 2)]));
    // An idle log syncs what could wait for ever.
    hub.durability.set(Durability::Never);
    hub.submit(0, 3, 5);
    let now = Time(0).plus(LogRoom::INTERVAL);
    assert_eq!(run(&mut part, &hub, now), Turned::Until(Some(now.plus(LogRoom::IDLE))));
    run(&mut part, &hub, now.plus(LogRoom::IDLE));
    assert_eq!((hub.stored.take(), hub.durable.take()), (vec![(0, 3)], vec![(0, 3)]));
}

#[test]
fn a_log_that_fails_while_something_waits_notes_that_it_may_be_lost() {
    for (waits, expected) in
        [(true, vec![Unsynced::WithPower, Unsynced::InAnyCase]), (false, vec![Unsynced::WithPower])]
    {
        let (disk, hub, notes) = (SimDisk::new(1), Hub::default(), Arc::new(Mutex::new(Vec::new())));
        let noted = Arc::clone(&notes);
        let mut part = part(open(&disk)).relaxed(move |unsynced| {
            noted.lock().unwrap().push(unsynced);
            true
        });
        hub.durability.set(Durability::Interval);
        hub.submit(0, 1, 1);
        run(&mut part, &hub, Time(0));
        if !waits {
            run(&mut part, &hub, Time(0).plus(LogRoom::INTERVAL));
        }
        hub.durability.set(Durability::Always);
        hub.submit(0, 2, 2);
        disk.fail_syncs(1);
        let now = Time(0).plus(LogRoom::INTERVAL);
        while part.turn(&hub, now).is_ok() {}
        assert_eq!(*notes.lock().unwrap(), expected);
    }
}

#[test]
fn what_may_wait_is_synced_at_once_if_that_cannot_be_noted_and_with_a_promise() {
    for note in [None, Some(false), Some(true)] {
        let (part, hub) = (part(open(&SimDisk::new(1))), Hub::default());
        let mut part = match note {
            Some(can_note) => part.relaxed(move |_| can_note),
            None => part,
        };
        let mut batch = batch(1, 100);
        if note == Some(true) {
            batch.push_promise(Promise { shard: SHARD, replica: ReplicaId(1), epoch: Epoch(2) });
        }
        let submission =
            Submission { worker: 0, ticket: 1, batch: batch.into(), durability: Durability::Never };
        hub.desk.submit(Time(0), submission);
        run(&mut part, &hub, Time(0));
        assert_eq!((hub.stored.take(), hub.durable.take()), (vec![], vec![(0, 1)]), "{note:?}");
    }
}

/// A batch that is held elsewhere, as for a replica, is left alone; another one serves again, with its capacity.
#[test]
fn a_batch_is_used_again_once_it_is_durable_and_has_no_other_holder() {
    let (disk, hub) = (SimDisk::new(1), Hub::default());
    let mut part = part(open(&disk));
    for is_held in [true, false] {
        let mut filled = batch(1 + u64::from(is_held), 4000);
        let shared = hub.desk.share(&mut filled);
        assert!(filled.is_empty() && shared.records() == 1);
        let first = Arc::as_ptr(&shared);
        let held = is_held.then(|| Arc::clone(&shared));
        hub.desk.submit(
            Time(0),
            Submission { worker: 0, ticket: 1, batch: shared, durability: Durability::Always },
        );
        run(&mut part, &hub, Time(0));
        assert!(held.as_ref().is_none_or(|held| held.records() == 1), "it is as it was submitted");
        let next = hub.desk.share(&mut batch(3, 10));
        assert_eq!(Arc::as_ptr(&next) == first, !is_held);
    }
}

/// The write needs the space that the trim frees, and no other trim follows: a spent log accepts no checkpoint.
#[test]
fn a_trim_comes_before_the_write_that_needs_its_room() {
    let (disk, hub) = (SimDisk::new(1), Hub::default());
    let (wal, last) = full(&disk);
    let mut part = part(wal);
    hub.desk.trim(vec![Index(last)]);
    hub.submit(0, 1, last + 1);
    hub.desk.close();
    assert_eq!(run(&mut part, &hub, Time(0)), Turned::Ended);
    assert_eq!(hub.durable.take(), [(0, 1)]);
}

#[test]
fn a_refused_write_is_tried_again_and_a_trim_makes_it_at_once() {
    let (disk, hub) = (SimDisk::new(1), Hub::default());
    let (wal, last) = full(&disk);
    let mut part = part(wal);
    hub.submit(0, 1, last + 1);
    let retry = Turned::Until(Some(Time(0).plus(LogRoom::RETRY)));
    assert_eq!(run(&mut part, &hub, Time(0)), retry);
    assert!(hub.desk.is_full() && hub.desk.space() == LogSpace::Spent && hub.full.take() == [true]);
    assert_eq!(hub.desk.lag(Time(7)), Some(Duration::from_micros(7)));
    hub.desk.trim(vec![Index(last)]);
    run(&mut part, &hub, Time(1));
    assert_eq!((hub.durable.take(), hub.full.take()), (vec![(0, 1)], vec![false]));
    assert!(!hub.desk.is_full() && hub.desk.lag(Time(7)).is_none());
}

#[test]
fn a_shutdown_does_not_wait_for_room() {
    let (disk, hub) = (SimDisk::new(1), Hub::default());
    let (wal, last) = full(&disk);
    let mut part = part(wal);
    hub.submit(0, 1, last + 1);
    hub.ending.set(true);
    while !matches!(part.turn(&hub, Time(0)), Err(WalError::NoSpace { .. })) {
        assert!(hub.durable.borrow().is_empty());
    }
}

#[test]
fn the_idle_mark_is_written_once_there_is_room() {
    let (disk, hub) = (SimDisk::new(1), Hub::default());
    let (mut wal, _) = full(&disk);
    assert!(!wal.mark().unwrap(), "a full log has no space for it");
    let mut prepare = PreparePart::new(wal.preparer());
    let mut part = part(wal);
    let at = |span| Time(0).plus(span);
    assert_eq!(run(&mut part, &hub, Time(0)), Turned::Until(Some(at(LogRoom::IDLE))));
    assert_eq!(run(&mut part, &hub, at(LogRoom::IDLE)), Turned::Until(Some(at(LogRoom::IDLE.times(2)))));
    assert!(!part.wal.is_marked());
    assert_eq!(prepare.turn(&hub, Time(0)).unwrap(), Turned::Until(Some(at(LogRoom::RETRY))));
    disk.set_capacity(None);
    assert_eq!(prepare.turn(&hub, Time(0)).unwrap(), Turned::Again);
    assert!(hub.desk.bell.take_ring(), "the log looks again");
    assert_eq!(run(&mut part, &hub, at(LogRoom::IDLE.times(2))), Turned::Until(None));
    assert!(part.wal.is_marked());
}

/// Damage to a promise that is not marked would be taken for a tail that was never synced, and the promise forgotten.
#[test]
fn a_promise_is_marked_once_it_was_reported_18() {
    let (disk, hub) = (SimDisk::new(1), Hub::default());
    let mut part = part(open(&disk));
    let mut batch = Batch::new();
    batch.push_promise(Promise { shard: SHARD, replica: ReplicaId::FIRST, epoch: Epoch(2) });
    hub.desk.submit(
        Time(0),
        Submission { worker: 0, ticket: 1, batch: batch.into(), durability: Durability::Always },
    );
    while hub.durable.borrow().is_empty() {
        assert_eq!(part.turn(&hub, Time(0)).unwrap(), Turned::Again);
    }
    assert!(!part.wal.is_marked(), "nothing waits for the mark");
    assert_eq!(run(&mut part, &hub, Time(0)), Turned::Until(None));
    assert!(part.wal.is_marked());
}

/// Work stops while work that has begun still finds space, not once the log is completely full.
#[test]
fn new_work_is_refused_before_the_reserve_is_used() {
    let (disk, hub) = (SimDisk::new(1), Hub::default());
    let mut wal = open(&disk);
    let mut prepare = PreparePart::new(wal.preparer());
    wal.append(&[batch(1, 100)]).unwrap();
    let mut part = part(wal);
    while prepare.turn(&hub, Time(0)).unwrap() == Turned::Again {}
    disk.set_capacity(Some(disk.used()));
    let mut index = 2;
    while !hub.desk.is_full() {
        hub.submit(0, index, index);
        run(&mut part, &hub, Time(0));
        prepare.turn(&hub, Time(0)).unwrap();
        run(&mut part, &hub, Time(0));
        assert_eq!(hub.durable.take(), [(0, index)]);
        index += 1;
    }
    assert!(
        part.wal.reserve_left() > 0 && hub.desk.space() != LogSpace::Spent,
        "{}",
        part.wal.reserve_left()
    );
    disk.set_capacity(None);
    prepare.turn(&hub, Time(0)).unwrap();
    run(&mut part, &hub, Time(0));
    assert_eq!(hub.full.take(), [true, false]);
}

#[test]
fn no_marker_is_longer_than_is_reckoned() {
    let (index, epoch) = (Index(u64::MAX), Epoch(u64::MAX));
    let entry = Entry {
        index,
        epoch,
        time: Time(u64::MAX),
        cause: Cause::Marker { colour: Colour(u64::MAX) },
        process: Key::none(),
        writes: Vec::new(),
        sends: Vec::new(),
        reply: None,
        served: Some(Micros(u64::MAX)),
    };
    let (mut bytes, mut batch) = (Vec::new(), Batch::new());
    entry.encode_into(&mut bytes);
    batch.push(ShardId(u32::MAX), epoch, index, &bytes);
    let len = batch.bytes() as u64;
    assert!(len <= part::MARKER_BYTES_MAX && len > part::MARKER_BYTES_MAX / 2, "{len}");
}
