//! The log: workers leave batches on its desk; its part appends all waiting batches with one write, syncs once, and
//! reports the durable entries. The core's [`LogRoom`] decides, this performs.

use crate::bell::Bell;
use crate::env::Env;
use crate::part::{Part, Turned};
use crate::shared::Shared;
use crate::status::LogStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_core::ids::{Index, ShardId, Time};
use stead_core::log_room::{Event, LogRoom, Notice, Step};
use stead_store::wal::{Batch, Wal, WalError};

/// Number of batches kept for their capacity.
const SPARES: usize = 16;
/// A batch that has grown above this size is not kept.
const SPARE_BYTES: usize = 8 << 20;

/// A worker's entries for the log.
#[derive(Debug)]
pub struct Submission {
    /// The worker's number.
    pub worker: usize,
    /// Counts the worker's submissions, from 1.
    pub ticket: u64,
    /// The entries.
    pub batch: Batch,
}

/// The interface of the log's parts to their node: production and the simulator implement it.
pub trait LogHub {
    /// Returns the desk on which work is left for the log.
    fn desk(&self) -> &LogDesk;

    /// Whether the node is abandoned or has failed: its parts end at once, and leave their work undone.
    fn is_over(&self) -> bool;

    /// Whether the node shuts down: its log no longer waits for space.
    fn is_ending(&self) -> bool;

    /// Whether all parts of the node have ended or are about to.
    fn is_ended(&self) -> bool;

    /// Notes that all submissions of a worker up to this ticket are durable.
    fn durable(&self, worker: usize, ticket: u64);

    /// Refuses new work from now on, or accepts it again; `shortage` names what there was no space for.
    fn full(&self, is_full: bool, shortage: &str);

    /// Notes that a write is durable, after this many microseconds.
    fn synced(&self, micros: u64);

    /// Records in an idle log that all of it is synced. Returns whether the mark was written. The simulator's planted
    /// bugs
    /// change it.
    ///
    /// # Errors
    /// As [`Wal::mark`].
    fn mark(&self, wal: &mut Wal) -> Result<bool, WalError> {
        wal.mark()
    }
}

/// The desk on which workers, checkpoints and the shutdown leave work for the log, and where they read its state.
#[derive(Debug, Default)]
pub struct LogDesk {
    queue: Mutex<Queue>,
    /// Rung when there is something on the desk.
    pub bell: Bell,
    /// Rung when a segment should be prepared.
    pub preparer_bell: Bell,
    spares: Mutex<Vec<Batch>>,
    /// Whether the log's owner assumes that there is no space for another segment.
    short: AtomicBool,
    /// Whether the part that prepares segments found no space when it last looked, and whether that is new.
    found_short: AtomicBool,
    prepared: AtomicBool,
    /// The reason for which there was no space.
    shortage: Mutex<String>,
    full: AtomicBool,
    spent: AtomicBool,
    bytes: AtomicU64,
    segments: AtomicU64,
    reserve: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    submissions: Vec<Submission>,
    /// Arrival of the oldest of `submissions`, and of the oldest that is being written.
    since: Option<Time>,
    writing_since: Option<Time>,
    /// By shard, the index up to which a checkpoint replaces the log.
    trim: Option<Vec<Index>>,
    closed: bool,
}

impl LogDesk {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a worker's entries.
    pub fn submit(&self, now: Time, submission: Submission) {
        let mut queue = self.queue();
        queue.since.get_or_insert(now);
        queue.submissions.push(submission);
        drop(queue);
        self.bell.ring();
    }

    /// Notes that entries up to these indexes, by shard, are in a checkpoint: the log no longer needs them.
    pub fn trim(&self, tops: Vec<Index>) {
        self.queue().trim = Some(tops);
        self.bell.ring();
    }

    /// Notes that nothing more is submitted: the log ends once all submissions are durable.
    pub fn close(&self) {
        self.queue().closed = true;
        self.bell.ring();
    }

    /// Returns an empty batch, with capacity if a spare one is left.
    pub fn spare(&self) -> Batch {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Returns the time that the oldest submission that is not durable has waited.
    pub(crate) fn lag(&self, now: Time) -> Option<Duration> {
        let queue = self.queue();
        let oldest = queue.writing_since.or(queue.since)?;
        Some(Duration::from_micros(now.0.saturating_sub(oldest.0)))
    }

    /// Whether new work is refused for lack of space.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// As [`LogRoom::is_spent`]: no checkpoint may begin. Until then one may, because it releases old segments.
    pub fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed)
    }

    pub(crate) fn status(&self) -> LogStatus {
        LogStatus {
            bytes: self.bytes.load(Ordering::Relaxed),
            segments: self.segments.load(Ordering::Relaxed),
            reserve: self.reserve.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn shortage(&self) -> MutexGuard<'_, String> {
        self.shortage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether the part that prepares segments has found space.
    pub(crate) fn note_prepared(&self, is_short: bool, is_made: bool) {
        self.found_short.store(is_short, Ordering::SeqCst);
        if is_made || self.short.load(Ordering::SeqCst) != is_short {
            self.prepared.store(true, Ordering::SeqCst);
            self.bell.ring();
        }
    }
}

/// The log's owner.
#[derive(Debug)]
pub struct LogPart {
    wal: Wal,
    room: LogRoom,
    /// Taken from the desk and not durable yet.
    submissions: Vec<Submission>,
    batches: Vec<Batch>,
    /// By worker, the last ticket among them.
    tickets: Vec<Option<u64>>,
    trim: Option<Vec<Index>>,
    /// Whether appended batches are not synced yet.
    is_written: bool,
    /// The time at which the write of the batches being synced began.
    begun: Time,
    /// Whether the sync has just ended.
    is_timed: bool,
    /// The error of the last append, which found no space.
    refusal: Option<WalError>,
}

impl LogPart {
    /// Creates the part that owns a log, with a desk for this many workers. Segments have at most `segment_bytes`.
    #[must_use]
    pub fn new(wal: Wal, workers: usize, segment_bytes: u64, now: Time) -> Self {
        Self {
            wal,
            room: LogRoom::new(segment_bytes, now),
            submissions: Vec::new(),
            batches: Vec::new(),
            tickets: vec![None; workers],
            trim: None,
            is_written: false,
            begun: now,
            is_timed: false,
            refusal: None,
        }
    }

    /// Takes the work that has arrived, and does one thing: a trim, one write of all submissions, one sync, or a mark.
    /// Never waits for anything but the disk.
    ///
    /// # Errors
    /// [`WalError`], which is fatal for the node: the part must not be given another turn.
    pub fn turn<H: LogHub>(&mut self, hub: &H, now: Time) -> Result<Turned, WalError> {
        if std::mem::take(&mut self.is_timed) {
            hub.synced(now.0.saturating_sub(self.begun.0));
        }
        if hub.is_over() {
            return Ok(Turned::Ended);
        }
        // Written batches are synced first, whatever has arrived.
        if !self.is_written {
            self.take(hub, now);
        }
        self.look(hub, now);
        let done = match self.room.step(now) {
            Step::Trim => {
                let tops = self.trim.take().expect("asked for once one was taken from the desk");
                let top = |shard: ShardId| tops.get(shard.0 as usize).copied().unwrap_or(Index(0));
                Event::Trimmed { segments: self.wal.trim(top)? }
            }
            Step::Append => match self.wal.append(&self.batches) {
                Ok(_) => {
                    (self.begun, self.is_written) = (now, true);
                    Event::Appended
                }
                Err(error @ WalError::NoSpace { .. }) => {
                    *hub.desk().shortage() = error.to_string();
                    self.refusal = Some(error);
                    Event::NoSpace
                }
                Err(error) => return Err(error),
            },
            Step::Sync => {
                self.wal.sync()?;
                (self.is_written, self.is_timed) = (false, true);
                self.report(hub);
                Event::Synced
            }
            Step::Prepare => match self.wal.prepare_now() {
                Ok(()) => Event::Prepared { is_short: false },
                Err(error @ WalError::NoSpace { .. }) => {
                    *hub.desk().shortage() = error.to_string();
                    Event::Prepared { is_short: true }
                }
                Err(error) => return Err(error),
            },
            Step::Mark => Event::Marked(hub.mark(&mut self.wal)?),
            Step::Sleep(until) => return Ok(Turned::Until(until)),
            Step::Close => {
                // The active segment may be full, and the part that prepares the next one may have ended.
                if !self.wal.mark()? {
                    match self.wal.prepare_now() {
                        Ok(()) => drop(self.wal.mark()?),
                        Err(WalError::NoSpace { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                return Ok(Turned::Ended);
            }
            Step::GiveUp => return Err(self.refusal.take().expect("an append was refused")),
        };
        self.room.handle(now, done);
        self.look(hub, now);
        Ok(Turned::Again)
    }

    /// Takes the work on the desk. Submissions stay there while earlier ones have found no space.
    fn take<H: LogHub>(&mut self, hub: &H, now: Time) {
        let desk = hub.desk();
        if desk.prepared.swap(false, Ordering::SeqCst) {
            let is_short = desk.found_short.load(Ordering::SeqCst);
            self.room.handle(now, Event::Prepared { is_short });
        }
        if hub.is_ending() {
            self.room.handle(now, Event::Ending);
        }
        let mut queue = desk.queue();
        if let Some(tops) = queue.trim.take() {
            self.trim = Some(tops);
            self.room.handle(now, Event::TrimWanted);
        }
        if self.batches.is_empty() {
            std::mem::swap(&mut queue.submissions, &mut self.submissions);
            queue.writing_since = queue.since.take();
        }
        let is_closed = queue.closed && queue.submissions.is_empty();
        drop(queue);
        if !self.submissions.is_empty() {
            for Submission { worker, ticket, batch } in self.submissions.drain(..) {
                self.tickets[worker] = Some(ticket);
                self.batches.push(batch);
            }
            self.room.handle(now, Event::Submitted);
        }
        if is_closed {
            self.room.handle(now, Event::Closed);
        }
    }

    /// Reads the remaining space, if it may have changed, and passes on the consequences.
    fn look<H: LogHub>(&mut self, hub: &H, now: Time) {
        let desk = hub.desk();
        if self.room.wants_room() {
            let (stats, reserve) = (self.wal.stats(), self.wal.reserve_left());
            desk.bytes.store(stats.bytes, Ordering::Relaxed);
            desk.segments.store(stats.segments as u64, Ordering::Relaxed);
            desk.reserve.store(reserve, Ordering::Relaxed);
            let (segment_bytes_next, wants_segment) =
                (self.wal.segment_bytes_next(), self.wal.wants_segment());
            self.room.handle(now, Event::Room { reserve, segment_bytes_next, wants_segment });
        }
        desk.short.store(self.room.is_short(), Ordering::SeqCst);
        desk.spent.store(self.room.is_spent(), Ordering::Relaxed);
        while let Some(notice) = self.room.poll_notice() {
            match notice {
                Notice::Prepare => desk.preparer_bell.ring(),
                Notice::Full(is_full) => {
                    desk.full.store(is_full, Ordering::Relaxed);
                    let shortage = desk.shortage().clone();
                    hub.full(is_full, &shortage);
                }
            }
        }
    }

    /// Returns the tickets to the workers, and the batches' capacity to the desk.
    fn report<H: LogHub>(&mut self, hub: &H) {
        for (worker, ticket) in self.tickets.iter_mut().enumerate() {
            if let Some(ticket) = ticket.take() {
                hub.durable(worker, ticket);
            }
        }
        let mut spares = hub.desk().spares.lock().unwrap_or_else(PoisonError::into_inner);
        for mut batch in self.batches.drain(..) {
            if spares.len() < SPARES && batch.bytes() <= SPARE_BYTES {
                batch.clear();
                spares.push(batch);
            }
        }
    }
}

impl<E: Env> Part<Shared<E>> for LogPart {
    type Error = WalError;

    fn bell<'h>(&self, shared: &'h Shared<E>) -> &'h Bell {
        &shared.log.bell
    }

    fn spins(&self, shared: &Shared<E>) -> u32 {
        shared.spins_log
    }

    fn turn(&mut self, shared: &Shared<E>, now: Time) -> Result<Turned, WalError> {
        self.turn(shared, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::PreparePart;
    use std::cell::{Cell, RefCell};
    use std::convert::Infallible;
    use std::sync::Arc;
    use stead_core::ids::Epoch;
    use stead_store::sim_disk::SimDisk;
    use stead_store::wal::WalOptions;

    const SHARD: ShardId = ShardId(0);
    const SEGMENT: u64 = 32 << 10;

    /// A node that records the reports of its log.
    #[derive(Default)]
    struct Hub {
        desk: LogDesk,
        ending: Cell<bool>,
        durable: RefCell<Vec<(usize, u64)>>,
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

        fn full(&self, is_full: bool, _: &str) {
            self.full.borrow_mut().push(is_full);
        }

        fn synced(&self, _: u64) {}
    }

    impl Hub {
        fn submit(&self, worker: usize, ticket: u64, index: u64) {
            self.desk.submit(Time(0), Submission { worker, ticket, batch: batch(index, 4000) });
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
        LogPart::new(wal, 2, SEGMENT, Time(0))
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
        let retry = Turned::Until(Some(Time(0).plus_millis(LogRoom::RETRY)));
        assert_eq!(run(&mut part, &hub, Time(0)), retry);
        assert!(hub.desk.is_full() && hub.desk.is_spent() && hub.full.take() == [true]);
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
        let ms = |ms| Time(0).plus_millis(ms);
        assert_eq!(run(&mut part, &hub, ms(0)), Turned::Until(Some(ms(LogRoom::IDLE))));
        assert_eq!(run(&mut part, &hub, ms(LogRoom::IDLE)), Turned::Until(Some(ms(2 * LogRoom::IDLE))));
        assert!(!part.wal.is_marked());
        assert_eq!(prepare.turn(&hub, ms(0)).unwrap(), Turned::Until(Some(ms(LogRoom::RETRY))));
        disk.set_capacity(None);
        assert_eq!(prepare.turn(&hub, ms(0)).unwrap(), Turned::Again);
        assert!(hub.desk.bell.take_ring(), "the log looks again");
        assert_eq!(run(&mut part, &hub, ms(2 * LogRoom::IDLE)), Turned::Until(None));
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
        assert!(part.wal.reserve_left() > 0 && !hub.desk.is_spent(), "{}", part.wal.reserve_left());
        disk.set_capacity(None);
        prepare.turn(&hub, Time(0)).unwrap();
        run(&mut part, &hub, Time(0));
        assert_eq!(hub.full.take(), [true, false]);
    }
}
