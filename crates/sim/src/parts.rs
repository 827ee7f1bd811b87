//! Gives the parts of the simulated node their turns when their bells are rung or their time has come, and handles the
//! results.

use crate::blame::Killer;
use crate::bug::Bug;
use crate::checkpoints::Rehearsal;
use crate::disk_log::DiskLog;
use crate::marks::Mark;
use crate::model::LATE_MAX;
use crate::node::PartId;
use crate::operator::OPERATOR;
use crate::stage::{self, Answered, Handled, OpenCall, Scene, Shown, SimEnv, Turn, Wire};
use crate::violation::Violation;
use crate::world::{End, Inside, Outcomes, Stop, World};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use stead_core::calls::{Answer, Refusal};
use stead_core::ids::{CallToken, Colour, Epoch, Index, ShardId, Time};
use stead_core::shard::{Effect, Input};
use stead_node::checkpoint::CheckpointHub;
use stead_node::{Bell, NoAnswer, Part, ReplyTo, Shared, Turned};

/// The factor by which one input may exceed the limit of work, because it has several kinds of work, and the work of
/// the calls that reach the limit.
const HOLD_MAX: usize = 4;
const CALL_WORK_MAX: usize = 1_500;

impl World {
    pub(crate) fn disk_log(&self) -> MutexGuard<'_, DiskLog> {
        self.disk_log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an entry is not durable yet.
    pub(crate) fn waits_for_log(&self) -> bool {
        self.topology.shards().any(|shard| self.model.appended(shard) > self.model.durable(shard))
    }

    /// Wakes the parts whose bells were rung.
    pub(crate) fn heed_bells(&mut self) {
        let Some(node) = &self.node else { return };
        let is_rung = |(_, bell): &(PartId, &Bell)| bell.is_rung() && bell.take_ring();
        let rung: Vec<PartId> = node.bells().filter(is_rung).map(|(part, _)| part).collect();
        for part in rung {
            if self.node.as_ref().is_some_and(|node| node.ended.contains(&part)) {
                continue;
            }
            let delay = match part {
                PartId::Step(_) => self.random(self.profile.step_delay),
                // Their threads have a low priority.
                PartId::Merges | PartId::Checks | PartId::Copies => self.random(20_000),
                _ => self.random(self.profile.wake_delay),
            };
            self.turn_in(part, delay);
        }
    }

    /// Makes a part due after this time, unless it is due earlier.
    pub(crate) fn turn_in(&mut self, part: PartId, delay: u64) {
        let at = self.now + delay;
        let node = self.node.as_mut().expect("only a living node has parts");
        if node.due.get(&part).is_none_or(|due| at < *due) {
            node.due.insert(part, at);
            self.inside(delay, Inside::Turn(part));
        }
    }

    /// Gives a part its turn if it is due.
    pub(crate) fn turn_if_due(&mut self, part: PartId) -> Outcomes {
        let node = self.node.as_mut().expect("checked by the caller");
        if node.due.get(&part).is_some_and(|at| *at <= self.now) && !node.ended.contains(&part) {
            node.due.remove(&part);
            if part == PartId::QueryWatch && self.bug == Some(Bug::DeafWatch) {
                return Ok(());
            }
            self.give_turn(part)?;
        }
        Ok(())
    }

    pub(crate) fn scene(&self) -> Scene {
        Scene {
            steady: Time(self.now + self.steady_lead()),
            wall: self.time(),
            look_cost: self.profile.look_cost,
            bug: self.bug,
            runs_max: self.profile.runs_max,
            old: None,
            check_kills: self.profile.check_kills,
            holds_trim: self.bug == Some(Bug::HoldTrim) && self.waits_for_log(),
            holds_markers: self.rehearsal == Rehearsal::Uncommitted,
        }
    }

    /// Gives a part a turn. `None` if the life has ended.
    fn give_turn(&mut self, part: PartId) -> Result<Option<Turned>, Stop> {
        self.give_turn_in(part, self.scene())
    }

    pub(crate) fn give_turn_in(&mut self, part: PartId, scene: Scene) -> Result<Option<Turned>, Stop> {
        let (life, now, before) = (self.life, self.now, self.disk.micros());
        let node = self.node.as_mut().expect("only a living node has parts");
        let shared = Arc::clone(&node.parts.shared);
        let was_full = shared.log().is_full();
        let (turned, turn) = stage::play(scene, || {
            let at = scene.steady;
            match part {
                PartId::Worker(number) => {
                    node.parts.workers[number].turn(&shared, at).map_err(|e| match e {})
                }
                PartId::Step(number) => node.parts.steps[number].turn(&shared, at).map_err(|e| match e {}),
                PartId::Log => Part::turn(&mut node.parts.log, &*shared, at).map_err(|e| e.to_string()),
                PartId::Preparer => {
                    Part::turn(&mut node.parts.preparer, &*shared, at).map_err(|e| e.to_string())
                }
                PartId::Checkpoints => node.parts.checkpoints.turn(&shared, at),
                PartId::Merges => node.parts.merges.turn(&*shared, at),
                PartId::Query(number) => node.parts.queries[number].turn(&shared, at).map_err(|e| match e {}),
                PartId::QueryWatch => node.parts.query_watch.turn(&shared, at).map_err(|e| match e {}),
                PartId::Checks => turn_if_made(node.parts.checks.as_mut(), &shared, at),
                PartId::Copies => turn_if_made(node.parts.copies.as_mut(), &shared, at),
            }
        });
        let fails = self.bug == Some(Bug::FailTurn) && part == PartId::Log && self.odd.u8(..) == 0;
        let turned = if fails { Err("it ends without a cause".to_owned()) } else { turned };
        let cost = turn.took + self.disk.micros() - before;
        if part == PartId::Log {
            // Regardless of the turn's result.
            self.learn_durable()?;
            if let Some(what) = self.disk_log().wrong() {
                return Err(Violation::new(17, what).into());
            }
        }
        if self.disk.is_crashed() {
            self.storage_failed("the power is gone")?;
            return Ok(None);
        }
        self.carry_on(turn)?;
        if self.node.is_none() || self.life != life {
            return Ok(None);
        }
        let turned = match turned {
            Ok(turned) => turned,
            Err(error) => {
                self.check_failure(part, &error)?;
                self.storage_failed(&error)?;
                return Ok(None);
            }
        };
        match part {
            PartId::Log => self.log_had_turn(was_full, turned)?,
            PartId::Copies => self.copies_had_turn()?,
            PartId::QueryWatch => self.start_queries(),
            _ => {}
        }
        self.check_queries()?;
        self.heed_bells();
        match turned {
            Turned::Again => {
                let pause = match part {
                    PartId::Merges => self.random(2_000),
                    PartId::Checks => self.odd.u64(..=self.profile.check_delay),
                    PartId::Query(number) => {
                        let node = self.node.as_ref().expect("it had a turn");
                        if node.parts.queries[number].has_begun() { self.query_runs_for() } else { 0 }
                    }
                    _ => 0,
                };
                self.turn_in(part, cost + 1 + pause);
            }
            Turned::Until(Some(at)) => {
                let mut wait = at.0.saturating_sub(scene.steady.0).max(1);
                if self.bug == Some(Bug::LateTimer) && matches!(part, PartId::Worker(_)) && at.0 > now {
                    wait += LATE_MAX + 1;
                }
                self.turn_in(part, cost + wait);
            }
            Turned::Until(None) => {}
            Turned::Ended => {
                if part == PartId::Log {
                    self.log_ended_short = self.may_be_short();
                }
                self.node.as_mut().expect("it had a turn").ended.insert(part);
            }
        }
        Ok(Some(turned))
    }

    /// Checks what a turn of the log did.
    fn log_had_turn(&mut self, was_full: bool, turned: Turned) -> Outcomes {
        let is_trimmed = self.disk_log().take_trimmed();
        if is_trimmed {
            self.marks.hit(Mark::Trimmed);
            self.check_log()?;
        }
        let is_overtaken = self.disk_log().has_overtaken_trim();
        let waits = self.waits_for_log();
        let is_limited = self.disk_is_limited();
        let scene = Scene { holds_trim: false, ..self.scene() };
        let node = self.node.as_mut().expect("it had a turn");
        if (is_overtaken || !waits)
            && let Some(command) = node.held_trim.take()
        {
            stage::play(scene, || node.parts.shared.perform(command));
        }
        match (was_full, node.parts.shared.log().is_full()) {
            (false, true) => self.marks.hit(Mark::DiskFull),
            (true, false) => {
                self.marks.hit(Mark::RoomAgain);
                if is_limited {
                    self.marks.hit(Mark::RoomByTrim);
                }
            }
            _ => {}
        }
        if turned == Turned::Until(None) {
            if !self.disk_log().is_marked() {
                let what = "the log sleeps, and does not say of its last entries that they were synced";
                return Err(Violation::new(16, what).into());
            }
            self.marks.hit(Mark::IdleMarked);
        }
        Ok(())
    }

    /// Handles the results of a turn in their order.
    fn carry_on(&mut self, turn: Turn) -> Outcomes {
        let life = self.life;
        for shown in turn.shown {
            match shown {
                Shown::Handled(handled) => self.handled(*handled)?,
                Shown::Queried { shard, index, process, seen } => {
                    self.queried(shard, index, &process, &seen)?;
                }
                Shown::Stepped { is_done, is_retry } => {
                    if is_done {
                        self.marks.hit(Mark::TaskDone);
                    }
                    if is_retry {
                        self.marks.hit(Mark::StepRetried);
                    }
                }
                Shown::Died(killer) => {
                    self.marks.hit(Mark::HandlerKilled);
                    return self.end_by(End::Process, Some(killer));
                }
                Shown::DiedInStep { shard, id, task } => {
                    self.marks.hit(Mark::StepKilled);
                    return self.end_by(End::Process, Some(Killer::step(shard, id, &task)));
                }
                Shown::Checkpoint(done) => self.checkpoint_went_on(done)?,
                Shown::Checked { service, seen, result } => self.checked(&service, &seen, result)?,
                Shown::DiedInCheck(service) => return self.died_in_check(&service),
                Shown::Wrong(violation) => return Err(violation.into()),
            }
            if self.node.is_none() || self.life != life {
                return Ok(());
            }
        }
        for answered in turn.answers {
            self.answered(answered)?;
        }
        self.checkpoints_answered(turn.checkpoints)?;
        for (worker, news) in turn.news {
            self.carry_news(worker, news);
        }
        for (to, input) in turn.left {
            if let Input::Deliver { from, .. } | Input::Ack { from, .. } = input {
                self.carry(from, to, input);
            }
        }
        Ok(())
    }

    /// Handles that a shard has handled an input.
    fn handled(&mut self, handled: Handled) -> Outcomes {
        let Handled { shard, effects, calls, stored, is_colour, work, unwanted, .. } = handled;
        self.model.looked(self.time(), self.now);
        if handled.is_doubted {
            self.marks.hit(Mark::ClockDoubted);
        }
        if handled.is_held_back {
            self.marks.hit(Mark::HeldBack);
        }
        let durable = self.model.durable(shard);
        if let Some(upto) = stored.filter(|upto| *upto > durable) {
            let what =
                format!("shard {shard}: entry {upto} is reported as stored, and the disk holds {durable}");
            return Err(Violation::new(5, what).into());
        }
        let work_max = HOLD_MAX * self.profile.settings.work_max + CALL_WORK_MAX;
        if unwanted > 0 || work > work_max {
            let what =
                format!("shard {shard}: one input made {work} of {work_max} work, {unwanted} unwanted runs");
            return Err(Violation::new(17, what).into());
        }
        for (index, call) in calls {
            self.model.called(shard, index, call);
        }
        for effect in effects {
            self.see_effect(shard, effect, is_colour)?;
            if self.node.is_none() {
                return Ok(());
            }
        }
        self.check_due(shard)
    }

    /// Handles a client's frame that arrives at the node, if it lives.
    pub(crate) fn arrive(&mut self, shard: ShardId, input: Input) -> Outcomes {
        let timeout = Duration::from_micros(self.profile.call_timeout);
        let deadline = Time(self.now + self.steady_lead()).plus_micros(self.profile.call_timeout);
        self.arrived += 1;
        let (since, until) = (self.now, self.now + self.profile.call_timeout);
        let call = OpenCall { until, since, number: self.arrived };
        let Some(node) = &mut self.node else { return Ok(()) };
        let shared = Arc::clone(&node.parts.shared);
        let reply_to =
            |token| ReplyTo { caller: Wire { shard, token, call, is_answered: false }, deadline, timeout };
        let (token, sent) = match input {
            Input::Request(request) => {
                let token = request.token;
                (token, shared.request(shard, request, reply_to(token)))
            }
            Input::Query(query) => {
                let token = query.token;
                node.open_queries.insert(call);
                (token, shared.query(shard, query, reply_to(token)))
            }
            Input::OpenSession { token, session, principal } => {
                (token, shared.open_session(shard, session, principal, Some(reply_to(token))))
            }
            Input::DeadLetter { token, letter, action } => {
                (token, shared.dead_letter(shard, letter, action, reply_to(token)))
            }
            _ => return Ok(()),
        };
        if let Err(error) = sent {
            // The result of the call takes the place of an answer.
            let is_stopping = node.stopping.is_some();
            node.open_queries.remove(&call);
            stage::take_unanswered();
            match error {
                NoAnswer::Refused(refusal) if token.0 & OPERATOR == 0 => {
                    self.carry_answer(refused(token, refusal));
                }
                NoAnswer::Refused(_) => {}
                NoAnswer::Stopped if is_stopping => {}
                error => {
                    let what = format!("shard {shard}: the living node accepts no call: {error}");
                    return Err(Violation::new(17, what).into());
                }
            }
        }
        self.heed_bells();
        Ok(())
    }

    /// Handles the end of a client's call at the node.
    fn answered(&mut self, answered: Answered) -> Outcomes {
        self.check_no_answer(&answered)?;
        let Answered { shard, token, result, .. } = answered;
        let answer = match result {
            Ok(answer) => Answer { token, ..answer },
            Err(NoAnswer::Refused(refusal)) => {
                match refusal {
                    Refusal::QueryGivenUp { .. } => self.marks.hit(Mark::QueryGivenUp),
                    Refusal::QueriesStuck { .. } => self.marks.hit(Mark::QueriesStuck),
                    _ => {}
                }
                refused(token, refusal)
            }
            // The client does not wait any longer, and retries.
            Err(NoAnswer::TimedOut { .. }) => {
                self.marks.hit(Mark::TimedOut);
                return Ok(());
            }
            Err(NoAnswer::NotHere { .. }) => {
                return Err(Violation::new(0, format!("shard {shard} is not on the only node")).into());
            }
            Err(NoAnswer::Failed(_) | NoAnswer::Stopped) => return Ok(()),
        };
        self.check_leaving(shard, &Effect::Answer(answer.clone()))?;
        if token.0 & OPERATOR != 0 {
            return self.operator_hears(&answer);
        }
        if answer.result.is_ok()
            && let Some(session) = self.clients.opened_by(token)
        {
            self.model.check_opened(shard, session, answer.index)?;
        }
        self.note_refusal(shard, &answer);
        self.carry_answer(answer);
        Ok(())
    }

    /// Notes the contents of the log on the disk.
    pub(crate) fn learn_durable(&mut self) -> Outcomes {
        let log = Arc::clone(&self.disk_log);
        let log = log.lock().unwrap_or_else(PoisonError::into_inner);
        for (shard, covered) in self.topology.shards().zip(&mut self.covered) {
            if log.covers_the_past() {
                *covered = (*covered).max(self.recovered[shard.0 as usize]).max(log.covered(shard));
            }
            self.model.synced(shard, log.durable(shard), &mut *self.workload.borrow_mut())?;
        }
        Ok(())
    }

    /// Checks that a part which ends the process has a cause: a fault of the disk, or want of space.
    fn check_failure(&self, part: PartId, error: &str) -> Outcomes {
        if self.had_trouble() {
            return Ok(());
        }
        let what = format!("{part:?} ends the process, and the disk did not fail: {error}");
        Err(Violation::new(0, what).into())
    }

    /// Handles a failure of storage: the power is gone, or the process must end because it no longer knows the contents
    /// of its disk.
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

/// Returns the answer to a call that the node itself refuses.
fn refused(token: CallToken, refusal: Refusal) -> Answer {
    Answer { token, epoch: Epoch(0), index: Index(0), colour: Colour(0), result: Err(refusal) }
}

/// Gives a part a turn that only some nodes have.
fn turn_if_made<P: Part<Shared<SimEnv>>>(
    part: Option<&mut P>,
    shared: &Shared<SimEnv>,
    now: Time,
) -> Result<Turned, String> {
    part.map_or(Ok(Turned::Ended), |part| part.turn(shared, now).map_err(|error| error.to_string()))
}
