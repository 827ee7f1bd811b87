//! Decides in which order the groups of a node's parts end, and whether its data may be marked as cleanly shut
//! down.
//!
//! The shell asks for one [`Step`] at a time and performs it. Never waits, and never reads a clock: time arrives with each
//! call.
//!
//! | fact | source |
//! | --- | --- |
//! | [`Event::Ended`] | the parts of the awaited group, once all have ended |
//! | [`Event::Failed`] | any part, or storage: the node has a fatal error |
//! | [`Event::Killed`] | the caller: the node is abandoned as by a crash |
//! | [`Event::EndsItself`] | the caller, if it is users' code on one of the node's own parts |
//!
//! The rules:
//!
//! - One group ends after the other, in the order of [`Group::ORDER`], so that each still has what it needs to finish: steps of
//!   tasks reach their shards, shards their log. Work that they leave undone waits in the log for the next start.
//! - Steps of tasks, queries and services' checks are users' code, and are waited for only until a deadline.
//! - After a failure or a kill all groups are stopped at once, and no step's outcome counts any more.
//! - The data are marked clean only once the log has ended regularly, which includes its last mark, and never after a failure
//!   or a kill. A cause of such a life cannot have ended the process, so the next one suspects none.
//! - Users' code that ends its own node goes on after that end. Its work is in no log, and it may yet end the process, so such
//!   data are not marked: otherwise each life would repeat it, and none would give it up.

use crate::ids::{Micros, Time};

/// Parts of a node that end together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Parts that run steps of tasks.
    Tasks,
    /// Parts that take, copy and check checkpoints.
    Checkpoints,
    /// Parts that own the shards. They first commit the work that they have accepted.
    Workers,
    /// Parts that answer queries, until no client waits for one.
    Queries,
    /// Parts that write the log and prepare its segments, and the one that watches over queries.
    Log,
    /// Parts that watch over the others, that run services' checks, and idle ones that answer queries.
    Watchdog,
}

impl Group {
    /// The order in which they end.
    pub const ORDER: [Self; 6] =
        [Self::Tasks, Self::Checkpoints, Self::Workers, Self::Queries, Self::Log, Self::Watchdog];
}

/// An event that the shell reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// All parts of the awaited group have ended.
    Ended(Group),
    /// The node has a fatal error. Only the first time counts.
    Failed,
    /// The node is abandoned: users' code is waited for until this time at most. Only the first time counts.
    Killed(Time),
    /// Users' code in one of the node's parts has asked for the end, which does not wait for that part.
    EndsItself,
}

/// The next step of the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask the parts of a group to end.
    Stop(Group),
    /// Ask all parts to end at once, and to leave their work undone.
    StopAll,
    /// Wait until the parts of a group have ended, until this time if there is one.
    Await(Group, Option<Time>),
    /// Wait no longer for the parts of a group: their later results are dropped.
    Abandon(Group),
    /// Record on disk that this life shut down cleanly.
    MarkClean,
    /// Release the data directory. No further step follows.
    Finish,
}

/// The end of one life of a node.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Time until which steps of tasks are waited for.
    until: Time,
    /// Number of groups that have ended.
    ended: usize,
    /// Whether the next group was asked to end.
    stopped: bool,
    stopped_all: bool,
    /// Time until which that group is awaited.
    limit: Option<Time>,
    failed: bool,
    killed: bool,
    /// Whether the node has neither failed nor been killed.
    orderly: bool,
    /// Whether the code that has asked for the end goes on after it.
    ends_itself: bool,
    /// Whether the log has ended regularly.
    log_ended: bool,
    marked: bool,
}

impl Shutdown {
    /// Time that queries have for their answers, even after the deadline: their shards may release them last.
    pub const LAST_ANSWERS: Micros = Micros::from_secs(1);
    /// Time that services' checks have to end, even after the deadline: they are users' code, and cannot be stopped.
    pub const LAST_READS: Micros = Micros::from_secs(2);

    /// Creates the end of a life, in which steps of tasks and queries are waited for until a time.
    #[must_use]
    pub fn new(until: Time) -> Self {
        Self {
            until,
            ended: 0,
            stopped: false,
            stopped_all: false,
            limit: None,
            failed: false,
            killed: false,
            orderly: true,
            ends_itself: false,
            log_ended: false,
            marked: false,
        }
    }

    /// Handles an event.
    ///
    /// # Panics
    /// If a group is reported that is not awaited.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Ended(group) => {
                assert_eq!(self.awaited(), Some(group), "groups end in their order");
                self.log_ended |= group == Group::Log && self.orderly;
                self.next();
            }
            Event::Failed if self.failed => {}
            Event::Failed => {
                (self.failed, self.orderly) = (true, false);
                self.until = self.until.min(now);
                self.limit = self.limit.map(|limit| limit.min(now));
            }
            Event::EndsItself => self.ends_itself = true,
            Event::Killed(_) if self.killed => {}
            Event::Killed(until) => {
                (self.killed, self.orderly) = (true, false);
                self.until = self.until.min(until);
                self.limit = self.limit.map(|limit| limit.min(until));
            }
        }
    }

    /// Returns the next step. While it is [`Step::Await`] there is no other.
    pub fn step(&mut self, now: Time) -> Step {
        if !self.orderly && !self.stopped_all {
            self.stopped_all = true;
            return Step::StopAll;
        }
        let Some(&group) = Group::ORDER.get(self.ended) else {
            if self.orderly && !self.ends_itself && !self.marked {
                assert!(self.log_ended, "the data are clean only once the log has ended");
                self.marked = true;
                return Step::MarkClean;
            }
            return Step::Finish;
        };
        if !self.stopped {
            self.stopped = true;
            self.limit = match group {
                Group::Tasks => Some(self.until),
                Group::Queries => Some(self.until.max(now.plus(Self::LAST_ANSWERS))),
                Group::Watchdog => Some(now.plus(Self::LAST_READS)),
                Group::Checkpoints | Group::Workers | Group::Log => None,
            };
            if !self.stopped_all || group == Group::Watchdog {
                return Step::Stop(group);
            }
        }
        if self.limit.is_some_and(|limit| limit <= now) {
            self.next();
            return Step::Abandon(group);
        }
        Step::Await(group, self.limit)
    }

    fn awaited(&self) -> Option<Group> {
        Group::ORDER.get(self.ended).copied().filter(|_| self.stopped)
    }

    fn next(&mut self) {
        self.ended += 1;
        (self.stopped, self.limit) = (false, None);
    }
}
