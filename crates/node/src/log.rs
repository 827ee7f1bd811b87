//! The log thread: group commit. It takes all that workers have submitted, writes and syncs it once, and tells them.

use crate::env::Env;
use crate::events;
use crate::inbox::Command;
use crate::shared::Shared;
use crate::status::LogStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stead_core::ids::{Index, ShardId};
use stead_core::shard::Input;
use stead_store::wal::{Batch, SegmentPreparer, Wal, WalError};

/// How long the log is idle before it notes in itself that all is synced.
const IDLE: Duration = Duration::from_millis(200);
/// How often a full disk is asked for room again.
const ROOM_RETRY: Duration = Duration::from_millis(50);
/// Least reserve of the log below which no new work is taken, unless segments are shorter than twice that.
const RESERVE_MIN: u64 = 1 << 20;
/// Batches kept for their memory.
const SPARES: usize = 16;
/// A batch that has grown over this is not kept.
const SPARE_BYTES: usize = 8 << 20;

/// What a worker wants in the log.
pub(crate) struct Submission {
    pub(crate) worker: usize,
    pub(crate) ticket: u64,
    pub(crate) batch: Batch,
}

/// Where workers leave submissions.
pub(crate) struct LogQueue {
    queue: Mutex<Queue>,
    news: Condvar,
    spares: Mutex<Vec<Batch>>,
    /// There was no room for another segment.
    short: AtomicBool,
    full: AtomicBool,
    /// Why there was no room.
    shortage: Mutex<String>,
    /// Full, and half of what was left then is used up.
    spent: AtomicBool,
    bytes: AtomicU64,
    segments: AtomicU64,
    reserve: AtomicU64,
}

#[derive(Default)]
struct Queue {
    submissions: Vec<Submission>,
    /// When the oldest of `submissions` came, and the oldest of those that are being written.
    since: Option<Instant>,
    writing_since: Option<Instant>,
    /// By shard, the index up to which a checkpoint replaces the log.
    trim: Option<Vec<Index>>,
    stop: bool,
    waiting: bool,
}

impl LogQueue {
    pub(crate) fn new() -> Self {
        Self {
            queue: Mutex::default(),
            news: Condvar::new(),
            spares: Mutex::default(),
            short: AtomicBool::new(false),
            full: AtomicBool::new(false),
            shortage: Mutex::default(),
            spent: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            segments: AtomicU64::new(0),
            reserve: AtomicU64::new(0),
        }
    }

    pub(crate) fn submit(&self, submission: Submission) {
        self.change(|queue| {
            queue.since.get_or_insert_with(Instant::now);
            queue.submissions.push(submission);
        });
    }

    /// Entries up to these indexes, by shard, are not needed any more.
    pub(crate) fn trim(&self, tops: Vec<Index>) {
        self.change(|queue| queue.trim = Some(tops));
    }

    pub(crate) fn stop(&self) {
        self.change(|queue| queue.stop = true);
    }

    fn change(&self, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut queue);
        let waiting = queue.waiting;
        drop(queue);
        if waiting {
            self.news.notify_one();
        }
    }

    /// An empty batch, with memory if there is one.
    pub(crate) fn spare(&self) -> Batch {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// How long the oldest submission that is not durable has waited.
    pub(crate) fn lag(&self, now: Instant) -> Option<Duration> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = queue.writing_since.or(queue.since)?;
        Some(now.saturating_duration_since(oldest))
    }

    fn shortage(&self) -> MutexGuard<'_, String> {
        self.shortage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Whether the log is full and what is left of it is for the work that has begun: not for a checkpoint, which
    /// appends a marker to each shard. Until then one is welcome, for it lets go of old segments.
    pub(crate) fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed)
    }

    pub(crate) fn status(&self) -> LogStatus {
        LogStatus {
            bytes: self.bytes.load(Ordering::Relaxed),
            segments: self.segments.load(Ordering::Relaxed),
            reserve: self.reserve.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn publish(&self, wal: &Wal) {
        let stats = wal.stats();
        self.bytes.store(stats.bytes, Ordering::Relaxed);
        self.segments.store(stats.segments as u64, Ordering::Relaxed);
        self.reserve.store(wal.reserve_left(), Ordering::Relaxed);
    }
}

/// The log thread's own.
pub(crate) struct LogThread<'a, E: Env> {
    shared: &'a Shared<E>,
    wal: Wal,
    submissions: Vec<Submission>,
    batches: Vec<Batch>,
    /// Workers with submissions in the write, and the last ticket of each.
    tickets: Vec<Option<u64>>,
    /// Most bytes of a segment.
    segment_bytes: u64,
    /// The idle mark stands in the log.
    marked: bool,
}

impl<'a, E: Env> LogThread<'a, E> {
    pub(crate) fn new(shared: &'a Shared<E>, wal: Wal, segment_bytes: u64) -> Self {
        let workers = shared.inboxes.len();
        Self {
            shared,
            wal,
            submissions: Vec::new(),
            batches: Vec::new(),
            tickets: vec![None; workers],
            segment_bytes,
            marked: false,
        }
    }

    /// Runs until the node ends. An error is fatal for the node.
    pub(crate) fn run(mut self) -> Result<(), WalError> {
        self.shared.log.publish(&self.wal);
        loop {
            let (trim, stop) = self.wait();
            if self.shared.is_over() {
                return Ok(());
            }
            // The write may need the room that the trim makes.
            if let Some(tops) = trim {
                self.trim(&tops)?;
            }
            if !self.submissions.is_empty() {
                self.write()?;
                self.marked = false;
            } else if !stop {
                self.idle()?;
            }
            self.watch_room()?;
            if stop && self.submissions.is_empty() {
                self.wal.mark()?;
                return Ok(());
            }
        }
    }

    /// Takes what there is, or waits for it.
    fn wait(&mut self) -> (Option<Vec<Index>>, bool) {
        let log = &self.shared.log;
        for _ in 0..self.shared.spins_log {
            let queue = log.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if !queue.submissions.is_empty() || queue.stop {
                break;
            }
            drop(queue);
            std::hint::spin_loop();
        }
        let mut queue = log.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.writing_since = None;
        if queue.submissions.is_empty() && queue.trim.is_none() && !queue.stop {
            queue.waiting = true;
            let wait = if self.marked { Duration::from_secs(1) } else { IDLE };
            let (woken, _) = log.news.wait_timeout(queue, wait).unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            queue.waiting = false;
        }
        std::mem::swap(&mut queue.submissions, &mut self.submissions);
        queue.writing_since = queue.since.take();
        (queue.trim.take(), queue.stop)
    }

    /// Notes in an idle log that all is synced. Without room for that, it is tried again when it has been idle for as long.
    fn idle(&mut self) -> Result<(), WalError> {
        if !self.marked {
            self.marked = self.wal.mark()?;
        }
        Ok(())
    }

    /// Lets go of segments of which each entry is up to its shard's index.
    fn trim(&mut self, tops: &[Index]) -> Result<(), WalError> {
        let trimmed =
            self.wal.trim(|shard: ShardId| tops.get(shard.0 as usize).copied().unwrap_or(Index(0)))?;
        if trimmed > 0 {
            self.shared.log.short.store(false, Ordering::Relaxed);
            self.shared.preparer.wake();
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), WalError> {
        let log = &self.shared.log;
        for submission in self.submissions.drain(..) {
            self.tickets[submission.worker] = Some(submission.ticket);
            self.batches.push(submission.batch);
        }
        let begun = loop {
            let begun = Instant::now();
            match self.wal.append(&self.batches) {
                Ok(_) => break begun,
                Err(error @ WalError::NoSpace { .. }) => {
                    if self.shared.is_stopping() {
                        // The end can't wait for room. What is lost by it was never answered.
                        return Err(error);
                    }
                    log.spent.store(true, Ordering::Relaxed);
                    *log.shortage() = error.to_string();
                    self.set_full(true);
                    std::thread::sleep(ROOM_RETRY);
                    if self.shared.is_over() {
                        return Ok(());
                    }
                    // Room may come from a checkpoint that lets go of old segments.
                    let trim = log.queue.lock().unwrap_or_else(PoisonError::into_inner).trim.take();
                    if let Some(tops) = trim {
                        self.trim(&tops)?;
                    }
                }
                Err(error) => return Err(error),
            }
        };
        self.wal.sync()?;
        let counters = &self.shared.counters;
        counters.log_sync_micros.add(begun.elapsed().as_micros() as u64);
        counters.log_syncs.add(1);
        counters.log_writes.add(1);
        for (worker, ticket) in self.tickets.iter_mut().enumerate() {
            if let Some(ticket) = ticket.take() {
                self.shared.inboxes[worker].set_durable(ticket);
            }
        }
        let mut spares = self.shared.log.spares.lock().unwrap_or_else(PoisonError::into_inner);
        for mut batch in self.batches.drain(..) {
            if spares.len() < SPARES && batch.bytes() <= SPARE_BYTES {
                batch.clear();
                spares.push(batch);
            }
        }
        Ok(())
    }

    /// Stops new work before the last reserve of the log is used, and lets it go on when there is room again.
    fn watch_room(&mut self) -> Result<(), WalError> {
        let log = &self.shared.log;
        log.publish(&self.wal);
        if self.wal.wants_segment() {
            self.shared.preparer.wake();
        }
        let reserve_min = self.reserve_min();
        if !log.short.load(Ordering::Relaxed) && self.wal.reserve_left() < reserve_min {
            // The other thread has had no time to find out whether there is room: work that is taken now might have to wait
            // for it for long.
            match self.wal.prepare_now() {
                Err(error @ WalError::NoSpace { .. }) => {
                    *log.shortage() = error.to_string();
                    log.short.store(true, Ordering::Relaxed);
                }
                prepared => prepared?,
            }
        }
        let short = log.short.load(Ordering::Relaxed) && self.wal.reserve_left() < reserve_min;
        log.spent.store(short && self.wal.reserve_left() < reserve_min / 2, Ordering::Relaxed);
        if short != log.is_full() {
            self.set_full(short);
        }
        Ok(())
    }

    /// Below this reserve no new work is taken while there is no room for another segment.
    fn reserve_min(&self) -> u64 {
        (self.wal.segment_bytes_next() / 2).max((self.segment_bytes / 2).min(RESERVE_MIN))
    }

    fn set_full(&self, full: bool) {
        if self.shared.log.full.swap(full, Ordering::Relaxed) != full {
            if full {
                let reason = self.shared.log.shortage().clone();
                events::warn(format_args!("writes are refused until there is room: {reason}"));
            } else {
                events::info(format_args!("the log has room again: writes are taken"));
            }
            for inbox in &self.shared.inboxes {
                inbox.push(Command::every(Input::Full(full)));
            }
        }
    }
}

/// Prepares log segments on a thread of its own, so that filling one with zeros holds nobody up.
pub(crate) struct PreparerSignal {
    wanted: Mutex<bool>,
    news: Condvar,
}

impl PreparerSignal {
    pub(crate) fn new() -> Self {
        Self { wanted: Mutex::new(true), news: Condvar::new() }
    }

    pub(crate) fn wake(&self) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if !*wanted {
            *wanted = true;
            drop(wanted);
            self.news.notify_one();
        }
    }

    /// Runs until the node ends. An error is fatal for the node.
    pub(crate) fn run<E: Env>(&self, shared: &Shared<E>, preparer: &SegmentPreparer) -> Result<(), WalError> {
        while !shared.is_ended() {
            let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            if !*wanted {
                let wait = if shared.log.short.load(Ordering::Relaxed) {
                    ROOM_RETRY
                } else {
                    Duration::from_secs(1)
                };
                let (woken, _) = self.news.wait_timeout(wanted, wait).unwrap_or_else(PoisonError::into_inner);
                wanted = woken;
            }
            *wanted = false;
            drop(wanted);
            loop {
                match preparer.prepare_next() {
                    Ok(true) => self.note_short(shared, false),
                    Ok(false) => {
                        self.note_short(shared, false);
                        break;
                    }
                    Err(error @ WalError::NoSpace { .. }) => {
                        *shared.log.shortage() = error.to_string();
                        self.note_short(shared, true);
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn note_short<E: Env>(&self, shared: &Shared<E>, short: bool) {
        if shared.log.short.swap(short, Ordering::Relaxed) != short {
            // The log thread decides what follows from it.
            shared.log.change(|_| {});
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::stage;
    use crate::shared::tests::{Nothing, shared};
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::thread;
    use stead_core::ids::Epoch;
    use stead_store::sim_disk::SimDisk;
    use stead_store::wal::WalOptions;

    const SHARD: ShardId = ShardId(0);

    fn batch(index: u64, bytes: usize) -> Batch {
        let mut batch = Batch::new();
        batch.push(SHARD, Epoch(1), Index(index), &vec![7; bytes]);
        batch
    }

    /// A log of several full segments on a disk that has no byte left.
    fn full(disk: &SimDisk) -> (Wal, u64) {
        let options =
            WalOptions { segment_bytes: 32 << 10, log_id: 7, create: true, ..WalOptions::default() };
        let (mut wal, _) = Wal::open(Arc::new(disk.clone()), options, |_| Ok::<(), Infallible>(())).unwrap();
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

    /// Runs the log's thread until it ends by itself, or kills it after a while.
    fn run(shared: &Shared<Nothing>, thread: LogThread<'_, Nothing>) {
        thread::scope(|scope| {
            let run = scope.spawn(|| thread.run());
            let deadline = Instant::now() + Duration::from_secs(20);
            while !run.is_finished() && Instant::now() < deadline {
                thread::yield_now();
            }
            let in_time = run.is_finished();
            shared.stage.store(stage::KILLED, Ordering::SeqCst);
            shared.log.change(|_| {});
            run.join().unwrap().unwrap();
            assert!(in_time, "the log's thread waits");
        });
    }

    /// The write needs the room that the trim makes, and no other trim follows: a full log takes no checkpoint.
    #[test]
    fn a_trim_comes_before_the_write_that_needs_its_room() {
        let (disk, shared) = (SimDisk::new(1), shared());
        let (wal, last) = full(&disk);
        let thread = LogThread::new(&shared, wal, 32 << 10);
        shared.log.trim(vec![Index(last)]);
        shared.log.submit(Submission { worker: 0, ticket: 1, batch: batch(last + 1, 4000) });
        shared.log.stop();
        run(&shared, thread);
        assert_eq!(shared.inboxes[0].durable(), 1);
    }
    #[test]
    fn the_idle_mark_is_written_once_there_is_room() {
        let (disk, shared) = (SimDisk::new(1), shared());
        let (mut wal, _) = full(&disk);
        assert!(!wal.mark().unwrap(), "a full log has no room for it");
        let mut thread = LogThread::new(&shared, wal, 32 << 10);
        thread.idle().unwrap();
        assert!(!thread.marked);
        disk.set_capacity(None);
        thread.wal.prepare_now().unwrap();
        thread.idle().unwrap();
        assert!(thread.marked && thread.wal.is_marked());
    }
}
