//! A clean shutdown of the simulated node: the code that ships, stepped, and the parts of the world that it stops.

use crate::bug::Bug;
use crate::marks::Mark;
use crate::node::PartId;
use crate::violation::Violation;
use crate::world::{End, Inside, Outcomes, World};
use std::cell::{Cell, RefCell};
use std::sync::PoisonError;
use stead_core::ids::Time;
use stead_core::shutdown::Group;
use stead_node::{EndHub, ShutdownPart, Turned};

/// A request of the shutdown to the world.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Stop(Group),
    MarkClean,
}

/// The world for the shutdown.
#[derive(Default)]
struct Site {
    /// By place in [`Group::ORDER`], whether the group has ended.
    ended: Cell<[bool; Group::ORDER.len()]>,
    asked: RefCell<Vec<Asked>>,
}

fn place(group: Group) -> usize {
    Group::ORDER.iter().position(|other| *other == group).expect("each group has its place")
}

impl EndHub for Site {
    fn is_failed(&self) -> bool {
        false
    }

    fn is_killed(&self) -> bool {
        false
    }

    fn stop(&self, group: Group) {
        self.asked.borrow_mut().push(Asked::Stop(group));
    }

    fn stop_all(&self) {
        unreachable!("a failure or a kill ends a life of the simulated node at once")
    }

    fn has_ended(&self, group: Group, _: Option<Time>) -> bool {
        self.ended.get()[place(group)]
    }

    // A part that has taken a step does not begin it any more.
    fn abandon(&self, _: Group) {}

    fn mark_clean(&self) {
        self.asked.borrow_mut().push(Asked::MarkClean);
    }
}

/// A running shutdown.
pub(crate) struct Stopping {
    part: ShutdownPart,
    site: Site,
    stopped: [bool; Group::ORDER.len()],
    /// Whether the data were marked as cleanly shut down.
    is_marked: bool,
}

impl World {
    /// Begins a shutdown by an operator.
    pub(crate) fn stop(&mut self) -> Outcomes {
        let limit = self.random(2 * self.profile.step_delay);
        let until = Time(self.now + limit);
        let node = self.node.as_mut().expect("only a living node is stopped");
        if node.stopping.is_none() {
            node.stopping = Some(Stopping {
                part: ShutdownPart::new(until),
                site: Site::default(),
                stopped: [false; Group::ORDER.len()],
                is_marked: false,
            });
            node.parts.shared.begin_end();
            self.inside(1, Inside::End);
        }
        Ok(())
    }

    /// Gives the shutdown a turn.
    pub(crate) fn end_turn(&mut self) -> Outcomes {
        let ended = Group::ORDER.map(|group| self.has_ended(group));
        let now = self.now;
        let node = self.node.as_mut().expect("checked by the caller");
        let Some(Stopping { part, site, .. }) = &mut node.stopping else { return Ok(()) };
        site.ended.set(ended);
        let turned = part.turn(site, Time(now));
        for asked in site.asked.take() {
            match asked {
                Asked::Stop(group) => self.stop_group(group)?,
                Asked::MarkClean => self.mark_clean()?,
            }
            if self.node.is_none() {
                return Ok(());
            }
        }
        match turned {
            Turned::Again => self.inside(1, Inside::End),
            Turned::Until(until) => {
                // In production the thread that ends the node waits for the others.
                let look = 1 + self.random(1_000);
                let left = until.map_or(look, |until| look.min((until.0 - now).max(1)));
                self.inside(left, Inside::End);
            }
            Turned::Ended => {
                self.marks.hit(Mark::Stopped);
                return self.end(End::Process);
            }
        }
        Ok(())
    }

    fn stopping(&mut self) -> Option<&mut Stopping> {
        self.node.as_mut()?.stopping.as_mut()
    }

    fn is_stopped(&self, group: Group) -> bool {
        let stopping = self.node.as_ref().and_then(|node| node.stopping.as_ref());
        stopping.is_some_and(|stopping| stopping.stopped[place(group)])
    }

    fn stop_group(&mut self, group: Group) -> Outcomes {
        if let Some(stopping) = self.stopping() {
            stopping.stopped[place(group)] = true;
        }
        let node = self.node.as_ref().expect("it is being stopped");
        node.parts.shared.stop(group);
        self.heed_bells();
        match group {
            Group::Workers if self.bug == Some(Bug::CleanTooEarly) => self.mark_clean(),
            _ => Ok(()),
        }
    }

    /// Whether the parts of a group have ended.
    fn has_ended(&self, group: Group) -> bool {
        let Some(node) = &self.node else { return true };
        let ended = |part| node.ended.contains(&part);
        match group {
            Group::Tasks => (0..node.parts.steps.len()).all(|number| ended(PartId::Step(number))),
            Group::Workers => (0..node.parts.workers.len()).all(|number| ended(PartId::Worker(number))),
            Group::Log => ended(PartId::Log) && ended(PartId::Preparer),
            Group::Checkpoints => {
                let is_copying = node.parts.copies.is_some() && !ended(PartId::Copies);
                ended(PartId::Checkpoints) && ended(PartId::Merges) && !is_copying
            }
            Group::Queries => node.parts.shared.queries_are_answered(),
            Group::Watchdog => node.parts.checks.is_none() || ended(PartId::Checks),
        }
    }

    /// Whether an event inside of the node is dropped, because the part that it belongs to has ended.
    pub(crate) fn is_too_late(&self, what: &Inside) -> bool {
        matches!(what, Inside::Want) && self.is_stopped(Group::Checkpoints)
    }

    /// Records a clean shutdown; the next life suspects nothing.
    fn mark_clean(&mut self) -> Outcomes {
        let log_ended = self.has_ended(Group::Log);
        let mut all = true;
        for shard in self.topology.shards() {
            all &= self.model.appended(shard) == self.model.durable(shard);
        }
        let log = self.disk_log.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that ended without space has no mark, even if there is space again by now.
        let is_marked = log.is_marked() || self.log_ended_short;
        drop(log);
        let stopping = self.stopping().expect("only a life that ends in order is marked");
        let was_early = std::mem::replace(&mut stopping.is_marked, true) && !self.may_be_clean;
        self.may_be_clean = !was_early && all && is_marked && log_ended;
        self.node.as_ref().expect("it is being stopped").parts.mark_clean();
        if self.disk.is_crashed() {
            return self.storage_failed("the power is gone");
        }
        Ok(())
    }

    /// Checks, for a life that suspects nothing, the facts at the clean mark of the previous one.
    pub(crate) fn check_clean(&self, is_clean: bool) -> Outcomes {
        // There is no life before the first one.
        if !is_clean || self.may_be_clean || !self.recovered_once {
            return Ok(());
        }
        let what = "the data are marked as those of a life that ended in order, and when they were, its log had not ended";
        Err(Violation::new(17, what).into())
    }
}
