//! The simulated node's log: the parts that ship, stepped over the simulated disk, and in place of the workers what leaves
//! batches on their desk.

use crate::bug::Bug;
use crate::disk_log::DiskLog;
use crate::marks::Mark;
use crate::node::NODE;
use crate::profile::one_in;
use crate::violation::Violation;
use crate::world::{End, Inside, Outcomes, Stop, World};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, MutexGuard, PoisonError};
use stead_core::ids::{Epoch, Index, ShardId, Time};
use stead_core::shard::Input;
use stead_node::{LogDesk, LogHub, LogPart, PreparePart, Submission, Turned};
use stead_store::wal::{Batch, Wal, WalError};

/// Bytes of a record beside the entry's own, as the shell counts them.
const RECORD_OVERHEAD: usize = 64;

/// What the parts of the log see of the node.
#[derive(Default)]
struct Site {
    desk: LogDesk,
    /// The tickets that came back, by worker.
    durable: RefCell<Vec<(usize, u64)>>,
    /// What the shards are to be given.
    full: RefCell<Vec<bool>>,
    /// The node shuts down, and the log is the last to do so.
    is_ending: Cell<bool>,
    is_ended: Cell<bool>,
    /// Planted bug: idle marks are noted, and not written.
    forgets_mark: bool,
}

impl LogHub for Site {
    fn desk(&self) -> &LogDesk {
        &self.desk
    }

    fn is_over(&self) -> bool {
        false
    }

    fn is_ending(&self) -> bool {
        self.is_ending.get()
    }

    fn is_ended(&self) -> bool {
        self.is_ended.get()
    }

    fn durable(&self, worker: usize, ticket: u64) {
        self.durable.borrow_mut().push((worker, ticket));
    }

    fn full(&self, is_full: bool, _: &str) {
        self.full.borrow_mut().push(is_full);
    }

    fn synced(&self, _: u64) {}

    fn mark(&self, wal: &mut Wal) -> Result<bool, WalError> {
        if self.forgets_mark { Ok(true) } else { wal.mark() }
    }
}

/// By shard, the last entry in a batch.
type Reached = BTreeMap<ShardId, (Epoch, Index)>;

/// What a worker does with the log.
#[derive(Default)]
struct Worker {
    batch: Batch,
    reached: Reached,
    /// A submission is scheduled.
    submits: bool,
    ticket: u64,
    submitted: VecDeque<(u64, Reached)>,
}

/// The log with what waits for it.
pub(crate) struct Log {
    site: Site,
    part: LogPart,
    preparer: PreparePart,
    /// When the next turns are due, in virtual time.
    turn_at: Option<u64>,
    prepare_at: Option<u64>,
    workers: Vec<Worker>,
    batch_max: usize,
    /// Both parts have ended.
    part_ended: bool,
    preparer_ended: bool,
    /// Planted bug: a trim that is held back.
    held_trim: Option<Vec<Index>>,
}

impl Log {
    pub(crate) fn new(wal: Wal, workers: usize, segment_bytes: u64, now: u64, bug: Option<Bug>) -> Self {
        let site = Site { forgets_mark: bug == Some(Bug::ForgetMark), ..Site::default() };
        // Both threads begin with a turn.
        site.desk.bell.ring();
        site.desk.preparer_bell.ring();
        Self {
            site,
            preparer: PreparePart::new(wal.preparer()),
            batch_max: wal.batch_bytes_max(),
            part: LogPart::new(wal, workers, segment_bytes, Time(now)),
            turn_at: None,
            prepare_at: None,
            workers: (0..workers).map(|_| Worker::default()).collect(),
            part_ended: false,
            preparer_ended: false,
            held_trim: None,
        }
    }

    /// Whether new work is refused.
    pub(crate) fn is_full(&self) -> bool {
        self.site.desk.is_full()
    }

    /// Whether no checkpoint may begin.
    pub(crate) fn is_spent(&self) -> bool {
        self.site.desk.is_spent()
    }

    /// The node shuts down.
    pub(crate) fn shut_down(&self) {
        self.site.is_ending.set(true);
    }

    /// Whether the parts of the log have ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.part_ended && self.preparer_ended
    }

    /// Whether something waits to become durable.
    pub(crate) fn has_waiting(&self) -> bool {
        self.workers.iter().any(|worker| !worker.batch.is_empty() || !worker.submitted.is_empty())
    }
}

impl World<'_> {
    fn log(&mut self) -> &mut Log {
        &mut self.node.as_mut().expect("only a living node has a log").log
    }

    fn disk_log(&self) -> MutexGuard<'_, DiskLog> {
        self.disk_log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An entry goes into the batch of its shard's worker.
    pub(crate) fn log_entry(&mut self, shard: ShardId, epoch: Epoch, index: Index, bytes: &[u8]) {
        let log = self.log();
        let number = shard.0 as usize % log.workers.len();
        if log.workers[number].batch.bytes() + bytes.len() + RECORD_OVERHEAD > log.batch_max {
            self.submit(number);
        }
        let worker = &mut self.log().workers[number];
        worker.batch.push(shard, epoch, index, bytes);
        worker.reached.insert(shard, (epoch, index));
        if !std::mem::replace(&mut worker.submits, true) {
            let delay = self.random(self.profile.flush_delay);
            self.inside(delay, Inside::Submit(number));
        }
    }

    /// A worker's turn ends: what it gathered goes to the log.
    pub(crate) fn submit(&mut self, number: usize) {
        let now = Time(self.now);
        let Log { site, workers, .. } = self.log();
        let worker = &mut workers[number];
        worker.submits = false;
        if worker.batch.is_empty() {
            return;
        }
        worker.ticket += 1;
        worker.submitted.push_back((worker.ticket, std::mem::take(&mut worker.reached)));
        let batch = std::mem::replace(&mut worker.batch, site.desk.spare());
        site.desk.submit(now, Submission { worker: number, ticket: worker.ticket, batch });
        self.heed_bells();
    }

    /// What a checkpoint holds, the log need not hold any more.
    pub(crate) fn trim_log(&mut self, tops: Vec<Index>) {
        self.disk_log().wants_trim();
        let holds = self.bug == Some(Bug::HoldTrim);
        let log = self.log();
        if holds && log.has_waiting() {
            log.held_trim = Some(tops);
        } else {
            log.site.desk.trim(tops);
        }
        self.heed_bells();
    }

    /// Wakes the parts whose bells were rung.
    pub(crate) fn heed_bells(&mut self) {
        let desk = &self.log().site.desk;
        let (log, preparer) = (desk.bell.take_ring(), desk.preparer_bell.take_ring());
        if log {
            let delay = self.random(self.profile.wake_delay);
            self.log_turn_in(delay);
        }
        if preparer {
            let delay = self.random(self.profile.wake_delay);
            self.prepare_turn_in(delay);
        }
    }

    fn log_turn_in(&mut self, delay: u64) {
        let at = self.now + delay;
        let turn_at = &mut self.log().turn_at;
        if turn_at.is_none_or(|due| at < due) {
            *turn_at = Some(at);
            self.inside(delay, Inside::Log);
        }
    }

    fn prepare_turn_in(&mut self, delay: u64) {
        let at = self.now + delay;
        let turn_at = &mut self.log().prepare_at;
        if turn_at.is_none_or(|due| at < due) {
            *turn_at = Some(at);
            self.inside(delay, Inside::Prepare);
        }
    }

    /// The log may be due.
    pub(crate) fn log_turn(&mut self) -> Outcomes {
        let now = self.now;
        if self.log().turn_at.take_if(|at| *at <= now).is_some() {
            self.turn_log()?;
        }
        Ok(())
    }

    /// The part that prepares segments may be due.
    pub(crate) fn prepare_turn(&mut self) -> Outcomes {
        let now = self.now;
        if self.log().prepare_at.take_if(|at| *at <= now).is_none() {
            return Ok(());
        }
        let before = self.disk.micros();
        let Log { preparer, site, .. } = self.log();
        let turned = match preparer.turn(site, Time(now)) {
            Ok(turned) => turned,
            Err(error) => return self.storage_failed(&error.to_string()),
        };
        let cost = self.disk.micros() - before;
        self.heed_bells();
        match turned {
            Turned::Again => self.prepare_turn_in(cost + 1),
            Turned::Until(Some(at)) => self.prepare_turn_in(at.0 - now),
            Turned::Until(None) => {}
            Turned::Ended => self.log().preparer_ended = true,
        }
        Ok(())
    }

    /// Gives the log a turn, and carries on what comes of it. `None` if the life has ended.
    fn turn_log(&mut self) -> Result<Option<Turned>, Stop> {
        let (life, now, before) = (self.life, self.now, self.disk.micros());
        let Log { part, site, .. } = self.log();
        let turned = part.turn(site, Time(now));
        let cost = self.disk.micros() - before;
        // Whatever came of the turn.
        self.learn_durable()?;
        if let Some(what) = self.disk_log().wrong() {
            return Err(Violation::new(17, what).into());
        }
        let turned = match turned {
            Ok(turned) => turned,
            Err(error) => {
                self.storage_failed(&error.to_string())?;
                return Ok(None);
            }
        };
        let is_trimmed = self.disk_log().take_trimmed();
        if is_trimmed {
            self.marks.hit(Mark::Trimmed);
            self.check_log()?;
        }
        let is_overtaken = self.disk_log().has_overtaken_trim();
        let log = self.log();
        if (is_overtaken || !log.has_waiting())
            && let Some(tops) = log.held_trim.take()
        {
            log.site.desk.trim(tops);
        }
        self.carry_tickets(cost)?;
        for is_full in self.log().site.full.take() {
            self.marks.hit(if is_full { Mark::DiskFull } else { Mark::RoomAgain });
            if !is_full && self.disk_is_limited() {
                self.marks.hit(Mark::RoomByTrim);
            }
            self.give_all(|_| Input::Full(is_full))?;
            if self.node.is_none() || self.life != life {
                return Ok(None);
            }
        }
        self.heed_bells();
        match turned {
            Turned::Again => self.log_turn_in(cost + 1),
            Turned::Until(Some(at)) => self.log_turn_in(at.0 - now),
            Turned::Until(None) => {
                if !self.disk_log().is_marked() {
                    let what = "the log sleeps, and does not say of its last entries that they were synced";
                    return Err(Violation::new(16, what).into());
                }
                self.marks.hit(Mark::IdleMarked);
            }
            Turned::Ended => self.log().part_ended = true,
        }
        Ok(Some(turned))
    }

    /// Gives the shards what came back to their workers.
    fn carry_tickets(&mut self, cost: u64) -> Outcomes {
        let more = u64::from(self.bug == Some(Bug::TicketPlusOne));
        for (number, ticket) in self.log().site.durable.take() {
            loop {
                let submitted = &mut self.log().workers[number].submitted;
                let Some((_, reached)) = submitted.pop_front_if(|(first, _)| *first <= ticket + more) else {
                    break;
                };
                for (shard, (epoch, upto)) in reached {
                    let durable = self.model.durable(shard);
                    if upto > durable {
                        let what = format!(
                            "shard {shard}: entry {upto} is reported as stored, and the disk holds {durable}"
                        );
                        return Err(Violation::new(5, what).into());
                    }
                    let after = cost + self.random(self.profile.stored_delay);
                    let stored = Input::Stored { member: NODE, epoch, upto };
                    if one_in(&mut self.rng, self.profile.channel_again) {
                        self.inside(after * 3, Inside::Input(shard, stored.clone()));
                    }
                    self.inside(after, Inside::Input(shard, stored));
                }
            }
        }
        Ok(())
    }

    /// Nothing is submitted any more: the log ends once it holds all that was.
    pub(crate) fn close_log(&mut self) {
        let Log { site, .. } = self.log();
        site.is_ended.set(true);
        site.desk.close();
        site.desk.preparer_bell.ring();
        self.heed_bells();
    }

    /// Notes what the disk holds of the log.
    pub(crate) fn learn_durable(&mut self) -> Outcomes {
        let log = Arc::clone(&self.disk_log);
        let log = log.lock().unwrap_or_else(PoisonError::into_inner);
        for (shard, covered) in self.topology.shards().zip(&mut self.covered) {
            if log.covers_the_past() {
                *covered = (*covered).max(self.recovered[shard.0 as usize]).max(log.covered(shard));
            }
            self.model.synced(shard, log.durable(shard), self.workload)?;
        }
        Ok(())
    }

    /// Storage failed: either the power is gone, or the process has to end for it knows no longer what is on its disk.
    pub(crate) fn storage_failed(&mut self, error: &str) -> Outcomes {
        if self.tracing {
            eprintln!("                             {error}");
        }
        if self.disk.is_crashed() {
            self.marks.hit(Mark::CrashInIo);
            self.end(End::Power)
        } else {
            self.marks.hit(Mark::IoFailed);
            self.end(End::Process)
        }
    }
}
