//! The end of the simulated node: its owner asks for it, as a program does, also when the node has failed. Parts of the node that
//! ships decide and perform the rest.

use super::{End, Inside, Outcomes, World};
use crate::bug::Bug;
use crate::marks::Mark;
use crate::refusals::Area;
use crate::stage::{self, Owner, Shown};
use crate::violation::Violation;
use std::sync::atomic::Ordering;
use std::time::Duration;
use stead_core::shutdown::{Group, Shutdown, Step};
use stead_node::{EndOrder, PartId};

/// Longest time in microseconds from the deadline of steps and queries to the end of the last part: parts wait for the disk and
/// for delayed turns, and checks for seconds.
const END_MAX: u64 = 20_000_000;
/// Longest time in microseconds until the owner of a node that has failed ends it.
const OWNER_DELAY: u64 = 1_000_000;

impl World {
    /// Whether the node has begun to end, or has failed.
    pub(super) fn is_ending(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.ends_by.is_some() || node.is_over)
    }

    /// The shards serve: the owner has a handle of the node.
    pub(super) fn begin_ownership(&mut self) {
        let scene = self.scene();
        let node = self.node.as_mut().expect("its shards serve");
        node.serves = true;
        let ((), turn) = stage::play(scene, || node.parts.shared.on_failure(Box::new(Owner)));
        self.owner_hears(turn.is_failure_heard);
    }

    /// The owner of the node may have heard that it has failed, and then ends it.
    pub(super) fn owner_hears(&mut self, is_failure: bool) {
        if is_failure {
            let delay = self.random(OWNER_DELAY);
            self.inside(delay, Inside::Stop);
        }
    }

    /// The owner shuts the node down, or kills it as tests do; so does users' code, within the turn of a part. Also while the node
    /// ends.
    pub(super) fn stop(&mut self) -> Outcomes {
        let (limit, scene) =
            (self.random(2 * self.profile.step_delay.max(self.slow_step_max())), self.scene());
        let is_own = self.odd.u8(..4) == 0 || self.bug == Some(Bug::WaitForSelf);
        let by = if is_own { self.part_in_user_code() } else { None };
        let node = self.node.as_mut().expect("only a living node is stopped");
        if !node.serves {
            return Ok(());
        }
        let is_ending = node.ends_by.is_some();
        let is_patient = self.bug == Some(Bug::PatientKill);
        let kills = self.operator.u8(..if is_ending { 2 } else { 8 }) == 0 || (is_patient && is_ending);
        let is_hasty = self.bug == Some(Bug::ImpatientEnd);
        let known = by.filter(|_| self.bug != Some(Bug::WaitForSelf));
        let (order, turn) = stage::play(scene, || match kills {
            true => node.parts.kill(known),
            false => node.parts.shut_down(Duration::from_micros(if is_hasty { 0 } else { limit }), known),
        });
        match (order, is_ending) {
            (EndOrder::Begin, false) => {
                self.marks.hit(if by.is_some() { Mark::StoppedByPart } else { Mark::OwnerStopped });
            }
            (EndOrder::Wait | EndOrder::Nothing, true) => self.marks.hit(match (by, kills) {
                (Some(_), _) => Mark::AskedByPart,
                (None, true) => Mark::AbandonedInEnd,
                (None, false) => Mark::StoppedTwice,
            }),
            (order, _) => {
                let what =
                    format!("who asks for the end of a node is to {order:?}; it ends already: {is_ending}");
                return Err(Violation::new(17, what).into());
            }
        }
        if order == EndOrder::Begin {
            node.ends_itself = known.is_some();
        }
        // Its turn lasts as long as the end.
        node.held.extend(by.filter(|_| matches!(order, EndOrder::Begin | EndOrder::Wait)));
        if kills || !is_ending {
            self.ends(kills, if kills { self.profile.shutdown_timeout } else { limit });
        }
        self.carry_on(turn, false)?;
        self.heed_bells();
        if self.node.is_some() && (self.operator.u8(..3) == 0 || is_patient) {
            let delay = self.random(OWNER_DELAY);
            self.inside(delay, Inside::Stop);
        }
        Ok(())
    }

    /// A handler has abandoned the node within the turn of its worker, which lasts as long as the end.
    pub(super) fn killed_by(&mut self, part: PartId, order: EndOrder) -> Outcomes {
        if order != EndOrder::Begin {
            let what = format!("a handler that abandons the node is to {order:?}");
            return Err(Violation::new(17, what).into());
        }
        self.marks.hit(Mark::KilledByHandler);
        let node = self.node.as_mut().expect("it had a turn");
        if node.running.contains(&part) {
            node.held.insert(part);
        }
        self.ends(true, self.profile.shutdown_timeout);
        Ok(())
    }

    /// Returns a part that may be in users' code now.
    fn part_in_user_code(&mut self) -> Option<PartId> {
        let node = self.node.as_ref()?;
        let may_be = |part: &PartId| match *part {
            PartId::Worker(_) => true,
            part => node.parts.has_begun(part),
        };
        let parts: Vec<PartId> =
            node.running.iter().copied().filter(|part| !node.held.contains(part) && may_be(part)).collect();
        if parts.is_empty() { None } else { Some(parts[self.odd.usize(..parts.len())]) }
    }

    /// Returns the longest time for which a step runs, in microseconds.
    fn slow_step_max(&self) -> u64 {
        if self.profile.slow_steps > 0 { self.profile.slow_step_max } else { 0 }
    }

    /// The end of the node begins, or it is abandoned within it: users' code is waited for so long; `is_over` if it is abandoned.
    pub(super) fn ends(&mut self, is_over: bool, limit: u64) {
        let until = self.now + limit + END_MAX;
        let node = self.node.as_mut().expect("it ends");
        node.ends_by = Some(node.ends_by.map_or(until, |before| before.min(until)));
        node.is_over |= is_over;
        if is_over {
            self.marks.hit(Mark::Abandoned);
            self.disk_log().is_over();
        }
        self.turn_in(PartId::End, 0);
    }

    /// The end of the node is over: all its parts have ended, but for those in users' code, and its data may have another owner.
    /// Those parts have no effect any more.
    pub(super) fn ended(&mut self) -> Outcomes {
        let now = self.now;
        let node = self.node.as_mut().expect("it has ended");
        // Steps, and after the last group the others whose code does not end, are left to themselves once their time is over, or once
        // the node has failed.
        let is_late = node.is_over || node.ends_by.is_some_and(|until| until <= now + END_MAX);
        let is_last =
            node.is_over || node.reads_since.is_some_and(|since| now >= since + Shutdown::LAST_READS.0);
        let is_user_code = |part: &PartId| {
            node.held.contains(part)
                || match part {
                    PartId::Step(_) => is_late,
                    PartId::Query(_) => is_last || node.parts.has_begun(*part),
                    PartId::Checks => is_last,
                    _ => false,
                }
        };
        if let Some(part) = node.running.iter().find(|part| !is_user_code(part)) {
            let what = format!("the data directory is released, and {part:?} runs");
            return Err(Violation::new(17, what).into());
        }
        if !node.is_over && !node.is_marked && !node.ends_itself {
            let what = "a life has ended in order, and its data are not marked so";
            return Err(Violation::new(17, what).into());
        }
        self.must_be_clean = !node.is_over && node.is_marked && self.may_be_clean && self.can_be_marked();
        let node = self.node.as_mut().expect("it has ended");
        if self.is_locked.load(Ordering::Relaxed) {
            return Err(Violation::new(17, "the node has ended, and owns its data directory").into());
        }
        if node.running.iter().any(|part| matches!(part, PartId::Step(_)) && !node.held.contains(part)) {
            self.marks.hit(Mark::StepLeft);
        }
        node.is_over = true;
        self.disk_log().is_over();
        let node = self.node.as_mut().expect("it has ended");
        let (life, held) = (self.life, std::mem::take(&mut node.held));
        for part in held {
            for _ in 0..3 {
                let node = self.node.as_ref().filter(|_| self.life == life);
                if node.is_some_and(|node| node.parts.runs(part)) {
                    self.give_turn(part)?;
                }
            }
            if self.node.as_ref().is_some_and(|node| node.parts.runs(part)) {
                let what = format!("the node has ended, and {part:?} goes on");
                return Err(Violation::new(17, what).into());
            }
        }
        self.commands_outlast()?;
        if self.node.is_none() || self.life != life {
            return Ok(());
        }
        self.end(End::Process)
    }

    /// Whether the disk refused nothing in this life that could keep the data from being marked as those of a life that ended in order.
    fn can_be_marked(&self) -> bool {
        let refused = self.refusals();
        !refused.any_of(Area::Data) && !refused.may_latch(Area::Checkpoints)
    }

    /// Checks what a turn shows of a node that had failed or was abandoned before it: nothing is begun any more, and nothing leaves.
    pub(super) fn check_over(&self, shown: &Shown) -> Outcomes {
        let what = match shown {
            // The code of a query cannot be stopped; what it answers is dropped.
            Shown::Queried { .. } | Shown::Ending(_) | Shown::Failed(_) | Shown::Killed => return Ok(()),
            Shown::Handled(handled) => format!("shard {} handles an input", handled.shard),
            Shown::Looked(looked) => format!("shard {} is looked at", looked.shard),
            Shown::Checkpoint(_) => "a checkpoint goes on".to_owned(),
            Shown::Stepped { .. } | Shown::DiedInStep { .. } => "a step of a task runs".to_owned(),
            Shown::Checked { service, .. } | Shown::DiedInCheck(service) => {
                format!("the check of service {service} runs")
            }
            Shown::Died(_) => "a handler runs".to_owned(),
            Shown::Wrong(_) => return Ok(()),
        };
        Err(Violation::new(5, format!("{what} after the node had failed or was abandoned")).into())
    }

    /// Handles a turn of the part that ends the others, which has performed these steps; so many syncs had failed before.
    pub(super) fn end_had_turn(&mut self, shown: &[Shown], failed_syncs: u64) -> Outcomes {
        let now = self.now;
        for shown in shown {
            match shown {
                Shown::Ending(Step::MarkClean) => self.marks_clean(failed_syncs)?,
                Shown::Ending(Step::Stop(Group::Watchdog)) => {
                    self.node.as_mut().expect("it had a turn").reads_since = Some(now);
                }
                _ => {}
            }
        }
        let node = self.node.as_ref().expect("it had a turn");
        let has_ended = matches!(shown.last(), Some(Shown::Ending(Step::Finish)));
        if !has_ended && !self.is_locked.load(Ordering::Relaxed) {
            return Err(
                Violation::new(17, "the node has not ended, and does not own its data directory").into()
            );
        }
        let Some(until) = node.ends_by.filter(|until| *until < now) else { return Ok(()) };
        let left: Vec<PartId> =
            node.parts.bells().map(|(part, _)| part).filter(|part| node.parts.runs(*part)).collect();
        let what = format!("the node was to end by {until} \u{b5}s, and at {now} it still has {left:?}");
        Err(Violation::new(17, what).into())
    }

    /// The data are about to be marked as those of a life that ended in order; the next one suspects nothing.
    fn marks_clean(&mut self, failed_syncs: u64) -> Outcomes {
        let node = self.node.as_mut().expect("it ends");
        let was_marked = std::mem::replace(&mut node.is_marked, true);
        let log_ended = !node.parts.runs(PartId::Log) && !node.parts.runs(PartId::Preparer);
        let wrong = |what: &str| {
            let what = format!("the data are marked as those of a life that ended in order, {what}");
            Err(Violation::new(17, what).into())
        };
        if node.is_over {
            return wrong("and the node had failed or was abandoned");
        }
        if node.ends_itself {
            return wrong("and code that has ended its own node goes on");
        }
        if failed_syncs > 0 {
            return wrong("and a sync had failed");
        }
        let all = self.topology.shards().all(|shard| self.model.appended(shard) == self.model.durable(shard));
        // A log that ended without space has no mark, even if there is space again by now.
        let is_marked = self.disk_log().is_marked() || self.log_ended_short;
        let was_early = was_marked && !self.may_be_clean;
        self.may_be_clean = !was_early && all && is_marked && log_ended;
        Ok(())
    }

    /// Checks, for a life that suspects nothing, the facts at the clean mark of the previous one.
    pub(crate) fn check_clean(&self, is_clean: bool) -> Outcomes {
        if !is_clean && self.must_be_clean {
            let what = "the last life has ended in order, and the next one takes it for one that did not";
            return Err(Violation::new(17, what).into());
        }
        // There is no life before the first one.
        if !is_clean || self.may_be_clean || !self.recovered_once {
            return Ok(());
        }
        let what = "the data are marked as those of a life that ended in order, and when they were, its log had not ended";
        Err(Violation::new(17, what).into())
    }
}
