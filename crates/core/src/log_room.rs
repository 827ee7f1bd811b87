//! Decides what the owner of a node's log does next, and when the node accepts no new work for lack of space.
//!
//! The owner asks for one [`Step`] at a time, performs it, and reports the result, and then the log's [`Event::Room`]
//! if [`LogRoom::wants_room`]. Never touches the log, never waits, and never reads a clock: time arrives with each call.
//!
//! | fact | source |
//! | --- | --- |
//! | [`Event::Submitted`], [`Event::TrimWanted`] | the desk on which workers and checkpoints leave work for the log |
//! | [`Event::Ending`], [`Event::Closed`] | the node's shutdown |
//! | [`Event::Trimmed`], [`Event::Appended`], [`Event::NoSpace`], [`Event::Synced`], [`Event::Marked`] | the log, after the step |
//! | [`Event::Prepared`] | [`Step::Prepare`], or the part that prepares segments beside the log |
//! | [`Event::Room`] | the log |
//!
//! The rules:
//!
//! - Append and sync are separate steps. Appended batches are synced before anything else, and batches submitted meanwhile
//!   are appended together: one sync for many.
//! - What may wait for its sync ([`Durability`]) is acknowledged once it is appended. It is synced with the next batch that may not wait,
//!   or [`LogRoom::INTERVAL`] after the first of it, and by the mark of an idle log.
//! - A trim comes before an append, which may need its space, and a refused append is retried at once after it.
//! - New work is refused ([`Notice::Full`]) while no further segment can be prepared and the reserve is below
//!   [`LogRoom::reserve_min`]: the rest is for work that has begun. A checkpoint may still begin, because it releases old
//!   segments, until half of the rest is used as well ([`LogRoom::is_spent`]). The other half has space for all markers that
//!   may be on their way, unless segments are too short for that.
//! - A promise is marked at once: the mark is the next step after it was reported as durable, unless a batch follows, which carries
//!   it (protocol, rule 18). Otherwise damage to the promise could be taken for a tail that was never synced.
//! - An idle log records that all of it is synced. Only a mark that was written counts; without space for it, it is retried.

use crate::durability::Durability;
use crate::ids::{Micros, Time};

/// An event that the owner of the log reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Batches wait to be appended.
    Submitted,
    /// A checkpoint replaces part of the log.
    TrimWanted,
    /// The node shuts down: nothing waits for space any more.
    Ending,
    /// Nothing more will be submitted.
    Closed,
    /// [`Step::Trim`] released segments.
    Trimmed {
        /// Their number; it may be 0.
        segments: usize,
    },
    /// [`Step::Append`] appended all waiting batches.
    Appended {
        /// Whether there is a promise among them.
        has_promise: bool,
        /// When they have to be synced: before they are acknowledged, if one of them has to be.
        durability: Durability,
    },
    /// What was acknowledged before it was synced is to be synced soon.
    SyncWanted,
    /// [`Step::Append`] found no space and appended nothing: the batches still wait.
    NoSpace,
    /// [`Step::Sync`] made all appended batches durable.
    Synced,
    /// Result of [`Step::Mark`]: whether the mark was written, for which there may be no space.
    Marked(bool),
    /// The preparation of a segment was tried, or was unnecessary.
    Prepared {
        /// Whether there was no space for it.
        is_short: bool,
    },
    /// The remaining space of the log.
    Room {
        /// Bytes that can be appended before another segment is needed.
        reserve: u64,
        /// Length of the next segment, in bytes.
        segment_bytes_next: u64,
        /// Whether fewer segments are ready than should be.
        wants_segment: bool,
    },
}

/// The next step of the log's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Release the segments that a checkpoint replaces.
    Trim,
    /// Append all waiting batches.
    Append,
    /// Sync, then report to the workers which entries are durable.
    Sync,
    /// Prepare a segment if none is ready: it must be known whether there is space for one before more work is
    /// accepted.
    Prepare,
    /// Record in the log that all of it is synced.
    Mark,
    /// Wait for an event, until this time if there is one.
    Sleep(Option<Time>),
    /// Record in the log that all of it is synced, if there is space for that, and end: all submitted batches are
    /// durable.
    Close,
    /// Fail: the node shuts down, and there is no space for the last submitted batches. None of them was answered.
    GiveUp,
}

/// A notice for other parts of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Whether new work is refused; for all shards.
    Full(bool),
    /// The part that prepares segments should look for work.
    Prepare,
}

/// The remaining space of a node's log, and the next step of its owner.
#[derive(Clone, Debug)]
pub struct LogRoom {
    /// Maximum number of bytes of a segment.
    segment_bytes: u64,
    /// Bytes of the markers of checkpoints that may be on their way to the log at once.
    marker_bytes: u64,
    /// The step that was given out and not reported yet.
    performing: Option<Step>,
    submitted: bool,
    trim: bool,
    ending: bool,
    closed: bool,
    /// Batches were appended and not synced.
    unsynced: bool,
    /// There is a promise among them.
    has_promise: bool,
    /// Batches were acknowledged and not synced.
    relaxed: bool,
    /// The time at which they are to be synced; `None` if at no time.
    sync_at: Option<Time>,
    /// Time of the next attempt of a refused append; `None` if none was refused.
    retry_at: Option<Time>,
    /// An append was refused while the node shuts down.
    gives_up: bool,
    /// The mark is in the log.
    marked: bool,
    /// Time at which the log will have been idle for long enough.
    idle_at: Time,
    /// No further segment could be prepared.
    short: bool,
    /// A segment was prepared, or tried to be, since the room last changed.
    prepared: bool,
    /// The reserve, and the reserve below which new work is refused; `None` if they may have changed.
    room: Option<(u64, u64)>,
    full: bool,
    /// The last notice that the shards were given.
    full_noticed: bool,
    spent: bool,
    prepare: bool,
}

impl LogRoom {
    /// Time that the log is idle before it records that all of it is synced.
    pub const IDLE: Micros = Micros::from_millis(200);
    /// The greatest span between an acknowledgement and the sync of what it acknowledges, for [`Durability::Interval`].
    pub const INTERVAL: Micros = Micros::from_millis(100);
    /// Interval at which a full disk is tried again.
    pub const RETRY: Micros = Micros::from_millis(50);
    /// Reserve in bytes below which no new work is accepted, unless segments are shorter than twice that, or the markers of
    /// many shards need more.
    pub const RESERVE_MIN: u64 = 1 << 20;

    /// Creates the state of a log that was just opened, with segments of at most `segment_bytes`. The markers of checkpoints
    /// that may be on their way to it at once have at most `marker_bytes`.
    #[must_use]
    pub fn new(segment_bytes: u64, marker_bytes: u64, now: Time) -> Self {
        Self {
            segment_bytes,
            marker_bytes,
            performing: None,
            submitted: false,
            trim: false,
            ending: false,
            closed: false,
            unsynced: false,
            has_promise: false,
            relaxed: false,
            sync_at: None,
            retry_at: None,
            gives_up: false,
            marked: false,
            idle_at: now.plus(Self::IDLE),
            short: false,
            prepared: false,
            room: None,
            full: false,
            full_noticed: false,
            spent: false,
            prepare: false,
        }
    }

    /// Handles an event.
    ///
    /// # Panics
    /// If a step is reported that was not given out.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Submitted => self.submitted = true,
            Event::TrimWanted => self.trim = true,
            Event::Ending => self.ending = true,
            Event::Closed => (self.ending, self.closed) = (true, true),
            Event::Trimmed { segments } => {
                self.performed(Step::Trim);
                self.trim = false;
                self.room_changed();
                if segments > 0 {
                    (self.short, self.prepare, self.gives_up) = (false, true, false);
                    self.retry_at = self.retry_at.map(|_| now);
                }
            }
            Event::Appended { has_promise, durability } => {
                self.performed(Step::Append);
                self.has_promise |= has_promise;
                (self.submitted, self.marked) = (false, false);
                if durability.is_relaxed() {
                    (self.relaxed, self.idle_at) = (true, now.plus(Self::IDLE));
                    if durability == Durability::Interval {
                        self.sync_at.get_or_insert(now.plus(Self::INTERVAL));
                    }
                } else {
                    self.unsynced = true;
                }
                self.retry_at = None;
                self.room_changed();
            }
            Event::SyncWanted => {
                if self.relaxed {
                    self.sync_at = Some(now);
                }
            }
            Event::NoSpace => {
                self.performed(Step::Append);
                self.gives_up = self.ending;
                self.retry_at = Some(now.plus(Self::RETRY));
                self.room_changed();
            }
            Event::Synced => {
                self.performed(Step::Sync);
                (self.unsynced, self.relaxed, self.sync_at) = (false, false, None);
                let is_urgent = std::mem::take(&mut self.has_promise);
                self.idle_at = if is_urgent { now } else { now.plus(Self::IDLE) };
            }
            Event::Marked(is_written) => {
                self.performed(Step::Mark);
                // It is synced in each case.
                (self.relaxed, self.sync_at) = (false, None);
                self.marked = is_written;
                self.idle_at = now.plus(Self::IDLE);
                self.room_changed();
            }
            Event::Prepared { is_short } => {
                if self.performing == Some(Step::Prepare) {
                    (self.performing, self.prepared) = (None, true);
                    // The other part keeps trying.
                    self.prepare |= is_short;
                }
                (self.short, self.room) = (is_short, None);
            }
            Event::Room { reserve, segment_bytes_next, wants_segment } => {
                self.room = Some((reserve, self.reserve_min(segment_bytes_next)));
                self.prepare |= wants_segment;
            }
        }
        self.judge();
    }

    /// Returns the next step. Anything but [`Step::Sleep`] must be performed and reported before the next call; no call
    /// may follow [`Step::Close`] or [`Step::GiveUp`].
    ///
    /// # Panics
    /// If the last step was not reported, or the room is not known.
    pub fn step(&mut self, now: Time) -> Step {
        assert_eq!(self.performing, None, "a step is reported before the next one is given out");
        let (reserve, reserve_min) = self.room.expect("the room is reported whenever it is wanted");
        let may_append = self.retry_at.is_none_or(|at| at <= now);
        let sleep = |until: Option<Time>| Step::Sleep(until.into_iter().chain(self.sync_at).min());
        let step = if self.unsynced || self.sync_at.is_some_and(|at| at <= now) {
            Step::Sync
        } else if self.trim {
            Step::Trim
        } else if self.gives_up {
            Step::GiveUp
        } else if !self.short && !self.prepared && self.retry_at.is_none() && reserve < reserve_min {
            Step::Prepare
        } else if self.submitted && may_append {
            Step::Append
        } else if self.submitted {
            sleep(self.retry_at)
        } else if self.closed {
            Step::Close
        } else if self.marked {
            Step::Sleep(None)
        } else if self.idle_at <= now {
            Step::Mark
        } else {
            sleep(Some(self.idle_at))
        };
        self.performing = (!matches!(step, Step::Sleep(_))).then_some(step);
        step
    }

    /// Returns the next notice for other parts; `None` if there is none.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        if self.full != self.full_noticed {
            self.full_noticed = self.full;
            return Some(Notice::Full(self.full));
        }
        std::mem::take(&mut self.prepare).then_some(Notice::Prepare)
    }

    /// Whether [`Event::Room`] has to be reported before the next step.
    #[must_use]
    pub fn wants_room(&self) -> bool {
        self.room.is_none()
    }

    /// Whether the log is full and its remaining space is for work that has begun: not for a checkpoint, which appends
    /// a marker to each shard.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.spent
    }

    /// Whether no further segment could be prepared.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.short
    }

    /// Returns the reserve in bytes below which no new work is accepted while no further segment of this length can be
    /// prepared.
    #[must_use]
    pub fn reserve_min(&self, segment_bytes_next: u64) -> u64 {
        let least = Self::RESERVE_MIN.max(self.marker_bytes.saturating_mul(2));
        (segment_bytes_next / 2).max((self.segment_bytes / 2).min(least))
    }

    fn performed(&mut self, step: Step) {
        assert_eq!(self.performing.take(), Some(step), "only a step that was given out is reported");
    }

    fn room_changed(&mut self) {
        (self.room, self.prepared) = (None, false);
    }

    /// Decides what is refused, from the known space.
    fn judge(&mut self) {
        let is_refused = self.retry_at.is_some();
        let is_below = |least: u64| self.room.is_some_and(|(reserve, _)| self.short && reserve < least);
        if let Some((_, least)) = self.room {
            (self.full, self.spent) = (is_refused || is_below(least), is_refused || is_below(least / 2));
        } else if is_refused {
            (self.full, self.spent) = (true, true);
        }
        assert!(self.full || !self.spent, "a log whose reserve is spent is full");
        assert!(
            !self.marked || !(self.unsynced || self.relaxed),
            "a mark stands after all that was appended, or does not count"
        );
        assert!(!is_refused || self.submitted, "only what waits is tried again");
    }
}
