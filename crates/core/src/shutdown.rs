//! Decides in which order the groups of a node's parts end, and whether its data may be marked as those of a life that ended in
//! order.
//!
//! The shell asks for one [`Step`] at a time and performs it. Never waits, and never reads a clock: time arrives with each
//! call.
//!
//! | fact | where it comes from |
//! | --- | --- |
//! | [`Event::Ended`] | the parts of the group that is awaited, once all have ended |
//! | [`Event::Failed`] | any part, or storage: the node has a fatal error |
//! | [`Event::Killed`] | the caller: the node is to be abandoned as by a crash |
//!
//! The rules:
//!
//! - One group ends after the other, in the order of [`Group::ORDER`], so that each still has what it needs to finish: steps of
//!   tasks reach their shards, shards their log. What they leave undone waits in the log for the next start.
//! - Steps of tasks and queries are users' code, and are waited for until a deadline only.
//! - After a failure or a kill all are stopped at once, and no step's outcome counts any more.
//! - The data are marked clean only once the log has ended in order, which includes its last mark, and never after a failure or
//!   a kill. Such a life has ended nothing by accident, so that the next one suspects nothing.

use crate::ids::Time;

/// Parts of a node that end together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Those that run steps of tasks.
    Tasks,
    /// Those that take, copy and check checkpoints.
    Checkpoints,
    /// Those that own the shards. They commit what they have taken first.
    Workers,
    /// Those that answer queries.
    Queries,
    /// Those that write the log and prepare its segments.
    Log,
    /// Those that watch over the others, and what of copies and checks still runs.
    Watchdog,
}

impl Group {
    /// The order in which they end.
    pub const ORDER: [Self; 6] =
        [Self::Tasks, Self::Checkpoints, Self::Workers, Self::Queries, Self::Log, Self::Watchdog];
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// All parts of the group that is awaited have ended.
    Ended(Group),
    /// The node has a fatal error. Only the first time counts.
    Failed,
    /// The node is abandoned.
    Killed,
}

/// What the shell does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask the parts of a group to end.
    Stop(Group),
    /// Ask all parts to end at once, and to leave undone what is not done.
    StopAll,
    /// Wait until the parts of a group have ended, until this time if there is one.
    Await(Group, Option<Time>),
    /// Wait no longer for the parts of a group: what they still bring is dropped.
    Abandon(Group),
    /// Record on disk that this life ended in order.
    MarkClean,
    /// Give the data directory up. Nothing is asked after this.
    Finish,
}

/// The end of one life of a node.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Until when steps of tasks are waited for.
    until: Time,
    /// How many groups have ended.
    ended: usize,
    /// The next group was asked to end.
    stopped: bool,
    stopped_all: bool,
    /// Until when that group is awaited.
    limit: Option<Time>,
    failed: bool,
    /// Neither failed nor killed.
    orderly: bool,
    /// The log has ended in order.
    log_ended: bool,
    marked: bool,
}

impl Shutdown {
    /// Time in ms that queries have for their answers, even after the deadline: their shards may let them go last.
    pub const LAST_ANSWERS: u64 = 1_000;

    /// The end of a life, in which steps of tasks and queries are waited for until a time.
    #[must_use]
    pub fn new(until: Time) -> Self {
        Self {
            until,
            ended: 0,
            stopped: false,
            stopped_all: false,
            limit: None,
            failed: false,
            orderly: true,
            log_ended: false,
            marked: false,
        }
    }

    /// Takes note of what happened.
    ///
    /// # Panics
    /// If a group is said to have ended that is not awaited.
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
            Event::Killed => self.orderly = false,
        }
    }

    /// What to do next. While it is [`Step::Await`] nothing else can be done.
    pub fn step(&mut self, now: Time) -> Step {
        if !self.orderly && !self.stopped_all {
            self.stopped_all = true;
            return Step::StopAll;
        }
        let Some(&group) = Group::ORDER.get(self.ended) else {
            if self.orderly && !self.marked {
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
                Group::Queries => Some(self.until.max(now.plus_millis(Self::LAST_ANSWERS))),
                _ => None,
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
