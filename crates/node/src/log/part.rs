//! The part that owns the log.

use crate::log::LogHub;
use crate::log::desk::{Submission, Taken};
use crate::part::Turned;
use std::fmt;
use std::sync::Arc;
use stead_core::checkpointing::driver::COLOURS_MAX;
use stead_core::durability::Durability;
use stead_core::ids::{Index, ShardId, Time};
use stead_core::log_room::{Event, LogRoom, Notice, Step};
use stead_store::disk::BLOCK_BYTES;
use stead_store::wal::{Batch, Wal, WalError};

/// Maximum number of bytes of a marker in the log.
pub(super) const MARKER_BYTES_MAX: u64 = 128;

/// Notes durably what the log may lack at the next start; false if that is not possible.
type NoteUnsynced = Box<dyn FnMut(Unsynced) -> bool + Send>;

/// What the log may lack at the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    /// Its end, if the power is cut.
    WithPower,
    /// Its end, whatever happens: it cannot be synced any more.
    InAnyCase,
}

/// The log's owner.
pub struct LogPart {
    pub(super) wal: Wal,
    room: LogRoom,
    /// Taken from the desk and not durable yet.
    submissions: Vec<Submission>,
    batches: Vec<Arc<Batch>>,
    /// By worker, the last ticket among them.
    tickets: Vec<Option<u64>>,
    /// When they have to be synced.
    durability: Durability,
    /// By worker, the last ticket that counts as durable and is not synced.
    relaxed: Vec<Option<u64>>,
    note_unsynced: Option<NoteUnsynced>,
    /// Whether that is noted.
    is_noted: bool,
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
    /// Creates the part that owns a log, with a desk for this many workers and shards. Segments have at most `segment_bytes`.
    #[must_use]
    pub fn new(wal: Wal, (workers, shards): (usize, u32), segment_bytes: u64, now: Time) -> Self {
        let marker_bytes = u64::from(shards) * MARKER_BYTES_MAX * COLOURS_MAX as u64;
        Self {
            wal,
            room: LogRoom::new(segment_bytes, marker_bytes, now),
            submissions: Vec::new(),
            batches: Vec::new(),
            tickets: vec![None; workers],
            durability: Durability::Never,
            relaxed: vec![None; workers],
            note_unsynced: None,
            is_noted: false,
            trim: None,
            is_written: false,
            begun: now,
            is_timed: false,
            refusal: None,
        }
    }

    /// Lets submissions count as durable before they are synced, if that suffices for them. Before the first time, `note` has to note
    /// durably that the log may lose its end with the power. If it cannot, they are synced at once as all are without it, until the end
    /// of the life. It is called again if the log fails while something counts as durable that is not synced.
    #[must_use]
    pub fn relaxed(self, note: impl FnMut(Unsynced) -> bool + Send + 'static) -> Self {
        Self { note_unsynced: Some(Box::new(note)), ..self }
    }

    /// Takes the work that has arrived, and does one thing: a trim, one write of all submissions, one sync, or a mark.
    /// Never waits for anything but the disk.
    ///
    /// # Errors
    /// [`WalError`], which is fatal for the node: the part must not be given another turn.
    pub fn turn<H: LogHub>(&mut self, hub: &H, now: Time) -> Result<Turned, WalError> {
        let turned = self.take_turn(hub, now);
        if turned.is_err()
            && self.relaxed.iter().any(Option::is_some)
            && let Some(note) = &mut self.note_unsynced
        {
            // If this fails, too, the disk is one of which nothing is known.
            note(Unsynced::InAnyCase);
        }
        turned
    }

    fn take_turn<H: LogHub>(&mut self, hub: &H, now: Time) -> Result<Turned, WalError> {
        if std::mem::take(&mut self.is_timed) {
            hub.synced(now.since(self.begun));
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
                    let durability = self.grant();
                    (self.begun, self.is_written) = (now, !durability.is_relaxed());
                    hub.written();
                    let bytes: usize = self.batches.iter().map(|batch| batch.bytes()).sum();
                    // Each write fills whole blocks.
                    hub.desk().note_appended(bytes.next_multiple_of(BLOCK_BYTES) as u64);
                    let has_promise = self.batches.iter().any(|batch| batch.has_promise());
                    if durability.is_relaxed() {
                        self.wal.publish();
                        self.acknowledge(hub);
                    }
                    Event::Appended { has_promise, durability }
                }
                Err(error @ WalError::NoSpace { .. }) => {
                    *hub.desk().shortage() = error.to_string();
                    self.refusal = Some(error);
                    Event::NoSpace
                }
                Err(error) => return Err(error),
            },
            Step::Sync => {
                let is_written = std::mem::take(&mut self.is_written);
                if !is_written {
                    self.begun = now;
                }
                self.wal.sync()?;
                self.is_timed = true;
                if is_written {
                    self.report(hub);
                } else {
                    self.report_relaxed(hub);
                }
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
            Step::Mark => {
                let is_marked = hub.mark(&mut self.wal)?;
                self.report_relaxed(hub);
                Event::Marked(is_marked)
            }
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
        if let Some(is_short) = desk.take_prepared() {
            self.room.handle(now, Event::Prepared { is_short });
        }
        if hub.is_ending() {
            self.room.handle(now, Event::Ending);
        }
        let submissions = self.batches.is_empty().then_some(&mut self.submissions);
        let Taken { trim, wants_sync, is_closed } = desk.take(submissions);
        if wants_sync {
            self.room.handle(now, Event::SyncWanted);
        }
        if let Some(tops) = trim {
            self.trim = Some(tops);
            self.room.handle(now, Event::TrimWanted);
        }
        if !self.submissions.is_empty() {
            self.durability = Durability::Never;
            for Submission { worker, ticket, batch, durability } in self.submissions.drain(..) {
                self.durability = self.durability.min(durability);
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
            desk.note_size(stats.bytes, stats.segments as u64, reserve);
            let (segment_bytes_next, wants_segment) =
                (self.wal.segment_bytes_next(), self.wal.wants_segment());
            self.room.handle(now, Event::Room { reserve, segment_bytes_next, wants_segment });
        }
        desk.note_room(self.room.is_short(), self.room.is_spent());
        while let Some(notice) = self.room.poll_notice() {
            match notice {
                Notice::Prepare => desk.preparer_bell.ring(),
                Notice::Full(is_full) => {
                    desk.note_full(is_full);
                    let shortage = desk.shortage().clone();
                    hub.full(is_full, &shortage);
                }
            }
        }
    }

    /// Returns when the batches that were just appended have to be synced.
    fn grant(&mut self) -> Durability {
        let has_promise = self.batches.iter().any(|batch| batch.has_promise());
        if !self.durability.is_relaxed() || has_promise {
            return Durability::Always;
        }
        if !self.is_noted {
            self.is_noted = self.note_unsynced.as_mut().is_some_and(|note| note(Unsynced::WithPower));
        }
        if self.is_noted {
            return self.durability;
        }
        self.note_unsynced = None;
        Durability::Always
    }

    /// Returns the tickets of what is not synced to the workers, and the batches' capacity to the desk.
    fn acknowledge<H: LogHub>(&mut self, hub: &H) {
        for (worker, (ticket, relaxed)) in self.tickets.iter_mut().zip(&mut self.relaxed).enumerate() {
            if let Some(ticket) = ticket.take() {
                *relaxed = Some(ticket);
                hub.stored(worker, ticket);
            }
        }
        hub.desk().keep_spares(self.batches.drain(..));
    }

    /// Returns the tickets of the appended batches, which are synced, to the workers, and the batches' capacity to the desk.
    fn report<H: LogHub>(&mut self, hub: &H) {
        for (ticket, relaxed) in self.tickets.iter_mut().zip(&mut self.relaxed) {
            *relaxed = ticket.take().or(*relaxed);
        }
        self.report_relaxed(hub);
        hub.desk().keep_spares(self.batches.drain(..));
    }

    /// Notes that what counts as durable is synced. Batches that wait to be appended are not.
    fn report_relaxed<H: LogHub>(&mut self, hub: &H) {
        for (worker, ticket) in self.relaxed.iter_mut().enumerate() {
            if let Some(ticket) = ticket.take() {
                hub.durable(worker, ticket);
            }
        }
    }
}

impl fmt::Debug for LogPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogPart").field("wal", &self.wal).field("room", &self.room).finish_non_exhaustive()
    }
}
