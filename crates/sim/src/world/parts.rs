//! Gives the parts of the simulated node their turns when their bells are rung or their time has come, and handles the
//! results.

use super::admission::Asked;
use super::checkpoints::Rehearsal;
use super::node::Node;
use super::operator::OPERATOR;
use super::queues::Queues;
use super::{End, Inside, Outcomes, World};
use crate::blame::Killer;
use crate::bug::Bug;
use crate::client::UNAWAITED;
use crate::disk_log::DiskLog;
use crate::marks::Mark;
use crate::model::LATE_MAX;
use crate::profile::one_in;
use crate::refusals::Area;
use crate::stage::{self, Answered, Done, Handled, OpenCall, Scene, Shown, Turn, Wire};
use crate::violation::Violation;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use stead_core::calls::{Answer, Refusal};
use stead_core::ids::{CallToken, Colour, Epoch, Index, ShardId, Time};
use stead_core::shard::{Effect, Input};
use stead_node::checkpoint::CheckpointHub;
use stead_node::{Bell, NoAnswer, PartId, ReplyTo, Turned};

/// The factor by which one input may exceed the limit of work, because it has several kinds of work, and the work of
/// the calls that reach the limit.
const HOLD_MAX: usize = 4;
/// The longest time in microseconds for which a caller waits that goes before its answer.
const GONE_MAX: u64 = 100_000;
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
        let rung: Vec<PartId> = node.parts.bells().filter(is_rung).map(|(part, _)| part).collect();
        for part in rung {
            // A step that runs does not hear the bell of its part.
            let is_deaf = |node: &Node| matches!(part, PartId::Step(_)) && node.parts.has_begun(part);
            if self.node.as_ref().is_some_and(|node| !node.parts.runs(part) || is_deaf(node)) {
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
        if node.due.get(&part).is_some_and(|at| *at <= self.now) {
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
            merge_panics: self.profile.merge_panics,
            check_panics: self.profile.check_panics,
            panics_in: None,
            kills: None,
            holds_trim: self.bug == Some(Bug::HoldTrim) && self.waits_for_log(),
            holds_markers: self.rehearsal == Rehearsal::Uncommitted,
        }
    }

    /// Returns the share of a part's turns that panic on purpose: a panic of the end is its caller's, and merges have a share of
    /// their own. Most panics of checks come just before one begins.
    fn panics_of(&self, part: PartId) -> u32 {
        match part {
            PartId::End | PartId::Merges => 0,
            PartId::Checks => 8 * self.profile.check_panics,
            _ => self.profile.part_panics,
        }
    }

    /// Gives a part a turn, if it runs.
    pub(super) fn give_turn(&mut self, part: PartId) -> Outcomes {
        self.give_turn_in(part, self.scene())
    }

    pub(crate) fn give_turn_in(&mut self, part: PartId, scene: Scene) -> Outcomes {
        let (life, now, before) = (self.life, self.now, self.disk.micros());
        let fails = self.bug == Some(Bug::FailTurn) && part == PartId::Log && self.odd.u8(..) == 0;
        self.turn_begins();
        let refused = self.refusals();
        let of = self.panics_of(part);
        let panics = one_in(&mut self.odd, of);
        let panics_in = panics.then(|| self.odd.u8(..8));
        let may_kill = matches!(part, PartId::Worker(_))
            && !self.is_ending()
            && self.node.as_ref().is_some_and(|node| node.serves);
        let kills = may_kill.then_some((part, self.profile.crash_every));
        let scene = Scene { panics_in, kills, ..scene };
        let node = self.node.as_mut().expect("only a living node has parts");
        if !node.parts.runs(part) || node.held.contains(&part) {
            return Ok(());
        }
        let (was_full, was_over) = (node.parts.shared.log().is_full(), node.is_over);
        let queues = Queues::of(node, part);
        let (turned, turn) = stage::play(scene, || {
            let turned = node.parts.turn(part, scene.steady);
            if !fails {
                return turned;
            }
            let reason = "it ends without a cause".to_owned();
            node.parts.fail(part, &reason);
            Err(reason)
        });
        if let PartId::Worker(number) = part {
            node.admission.worker_had_turn(number);
        }
        let killed = turn.killed.map(|(order, _)| match self.bug {
            Some(Bug::LateKill) => node.parts.kill(Some(part)),
            _ => order,
        });
        if !matches!(turned, Ok(Turned::Again | Turned::Until(_))) {
            node.running.remove(&part);
        }
        let (merge_panics, panicked) = (u64::from(turn.merge_panics), turn.panicked);
        let cost = turn.took + self.disk.micros() - before;
        if part == PartId::Log {
            // Regardless of the turn's result.
            self.learn_durable()?;
        }
        let wrong = if part == PartId::Log || was_over { self.disk_log().wrong() } else { None };
        if let Some((invariant, what)) = wrong {
            return Err(Violation::new(invariant, what).into());
        }
        if part == PartId::End {
            self.end_had_turn(&turn.shown, refused.failed_syncs())?;
        }
        if self.disk.is_crashed() {
            self.note_checked(&turn);
            if part == PartId::Checks {
                self.any_check_may_be_open();
            }
            return self.power_failed();
        }
        if part == PartId::Checks {
            self.checks_had_turn(&turn)?;
        }
        self.check_queues(&queues, &turn)?;
        if let Some(order) = killed {
            self.killed_by(part, order)?;
        }
        self.carry_on(turn, was_over)?;
        if self.node.is_none() || self.life != life {
            return Ok(());
        }
        let turned = match turned {
            Ok(turned) => turned,
            Err(error) => {
                if panicked {
                    let is_check = part == PartId::Checks;
                    self.marks.hit(if is_check { Mark::ChecksPanicked } else { Mark::PartPanicked });
                } else {
                    self.check_failure(part, &error, was_over)?;
                    self.marks.hit(Mark::IoFailed);
                }
                self.check_queries()?;
                self.heed_bells();
                return Ok(());
            }
        };
        match part {
            PartId::Log => self.log_had_turn(was_full, turned)?,
            PartId::Copies => self.copies_had_turn()?,
            PartId::QueryWatch => self.start_queries(),
            PartId::Merges => self.merges_had_turn(merge_panics)?,
            PartId::Worker(_) => self.status_comes()?,
            PartId::Checkpoints => self.look_at_interval(scene.steady.0)?,
            _ => {}
        }
        self.check_queries()?;
        self.heed_bells();
        match turned {
            Turned::Again => {
                let pause = match part {
                    PartId::Merges => self.random(2_000),
                    PartId::Checks => self.odd.u64(..=self.profile.check_delay),
                    PartId::Copies => self.odd.u64(..=self.profile.copy_pause),
                    PartId::Step(_) | PartId::Query(_) => {
                        let node = self.node.as_ref().expect("it had a turn");
                        match (part, node.parts.has_begun(part)) {
                            (_, false) => 0,
                            (PartId::Step(_), true) => self.step_runs_for(),
                            (_, true) => self.query_runs_for(),
                        }
                    }
                    _ => 0,
                };
                self.turn_in(part, cost + 1 + pause);
            }
            Turned::Until(Some(_)) if part == PartId::Checkpoints && self.skips_interval() => {}
            Turned::Until(Some(at)) => {
                self.note_wait(part, at);
                let mut wait = at.0.saturating_sub(scene.steady.0).max(1);
                if self.bug == Some(Bug::LateTimer) && matches!(part, PartId::Worker(_)) && at.0 > now {
                    wait += LATE_MAX + 1;
                }
                self.turn_in(part, cost + wait);
            }
            Turned::Until(None) => {}
            Turned::Ended => {
                if part == PartId::Log {
                    self.log_ended_short = self.refused_in_turn().is_short(Area::Log);
                }
                if part == PartId::End {
                    self.marks.hit(if was_over { Mark::FailureEnded } else { Mark::Stopped });
                    return self.ended();
                }
            }
        }
        Ok(())
    }

    /// Checks that the merge part panics only on purpose, as in the turn that it had.
    fn merges_had_turn(&mut self, panics: u64) -> Outcomes {
        let node = self.node.as_mut().expect("it had a turn");
        node.merge_panics += panics;
        if node.parts.merges().is_some_and(|part| part.panics() > node.merge_panics) {
            return Err(Violation::new(0, "a merge panicked").into());
        }
        if panics > 0 {
            self.marks.hit(Mark::MergePanicked);
        }
        Ok(())
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

    /// Handles the results of a turn in their order; `was_over` if the node had failed or was abandoned before it.
    pub(super) fn carry_on(&mut self, turn: Turn, mut was_over: bool) -> Outcomes {
        let life = self.life;
        let (mut killed, began_over) = (false, was_over);
        // The input whose handler has abandoned the node may answer calls, of committed entries or with refusals.
        let mut last_answers = 0;
        for shown in turn.shown {
            // The input whose handler has abandoned the node is handled to its end.
            // Or ends the process as well.
            let is_killer = killed && matches!(shown, Shown::Handled(_) | Shown::Died(_));
            killed &= !is_killer;
            if let Shown::Handled(handled) = &shown
                && is_killer
            {
                let is_answer = |effect: &&Effect| matches!(effect, Effect::Answer(_));
                last_answers = handled.effects.iter().filter(is_answer).count();
            }
            // A worker that was in the middle of its turn fills a piece, which nothing takes.
            let is_piece = !began_over && matches!(shown, Shown::Checkpoint(Done::Drained(_)));
            if was_over && !is_killer && !is_piece {
                self.check_over(&shown)?;
            }
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
                Shown::Looked(looked) => self.looked_at(*looked)?,
                Shown::DiedInCheck(service) => return self.died_in_check(&service),
                Shown::Wrong(violation) => return Err(violation.into()),
                Shown::Failed(reason) => self.failed(&reason),
                Shown::Killed => (was_over, killed) = (true, true),
                // The end of the node has looked at it.
                Shown::Ending(_) => {}
            }
            if self.node.is_none() || self.life != life {
                return Ok(());
            }
        }
        self.owner_hears(turn.is_failure_heard);
        let answers_before = turn.killed.map_or(usize::MAX, |(_, before)| before + last_answers);
        for (at, answered) in turn.answers.into_iter().enumerate() {
            if (began_over || at >= answers_before) && answered.result.is_ok() {
                let what =
                    format!("shard {}: an answer after the node had failed or was abandoned", answered.shard);
                return Err(Violation::new(5, what).into());
            }
            self.answered(answered)?;
        }
        self.checkpoints_answered(turn.checkpoints)?;
        self.copies_answered(turn.copies)?;
        for (worker, news) in turn.news {
            self.carry_news(worker, news);
        }
        for (to, input) in turn.left {
            match input {
                Input::Deliver { from, .. } | Input::Ack { from, .. } => self.carry(from, to, input),
                input => {
                    let what = format!("a worker leaves {input:?} for shard {to} of another one");
                    return Err(Violation::new(0, what).into());
                }
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
        let work_max = HOLD_MAX * self.settings(shard).work_max + CALL_WORK_MAX;
        if unwanted > 0 || work > work_max {
            let what =
                format!("shard {shard}: one input made {work} of {work_max} work, {unwanted} unwanted runs");
            return Err(Violation::new(17, what).into());
        }
        for (index, call) in calls {
            self.model.called(shard, index, call);
        }
        if self.is_pressed() {
            self.marks.hit(Mark::Pressed);
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
        let goes = one_in(&mut self.odd, self.profile.gone);
        let gone_at = if goes { self.now + self.odd.u64(..GONE_MAX) } else { u64::MAX };
        let is_ending = self.is_ending();
        // Before that no client has a handle of the node.
        let Some(node) = self.node.as_mut().filter(|node| node.serves) else { return Ok(()) };
        let shared = Arc::clone(&node.parts.shared);
        let before = node.parts.memory_account();
        let asked = Asked::of(shard, &input);
        let reply_to = |token| {
            let caller = Wire { shard, token, call, is_answered: false, gone_at };
            ReplyTo { caller, deadline, timeout }
        };
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
            Input::OpenSession { token, session, principal } if token == UNAWAITED => {
                let opened = shared.open_session(shard, session, principal, None);
                return self.opened_unawaited(shard, opened);
            }
            Input::OpenSession { token, session, principal } => {
                (token, shared.open_session(shard, session, principal, Some(reply_to(token))))
            }
            Input::DeadLetter { token, letter, action } => {
                (token, shared.dead_letter(shard, letter, action, reply_to(token)))
            }
            Input::Delete { token, process, records } => {
                (token, shared.delete(shard, process, records, reply_to(token)))
            }
            _ => return Ok(()),
        };
        if let Err(error) = sent {
            // The result of the call takes the place of an answer.
            let is_over = node.is_over;
            node.open_queries.remove(&call);
            stage::take_unanswered();
            stage::take_left();
            self.refused_at_once(&asked, &error)?;
            match error {
                NoAnswer::Refused(refusal) if token.0 & OPERATOR == 0 => {
                    self.carry_answer(refused(token, refusal));
                }
                NoAnswer::Refused(_) => {}
                NoAnswer::Stopped if is_ending => {}
                NoAnswer::Failed(_) if is_over => {}
                error => {
                    let what = format!("shard {shard}: the living node accepts no call: {error}");
                    return Err(Violation::new(17, what).into());
                }
            }
        } else {
            self.accepted(call, asked, before)?;
        }
        self.heed_bells();
        Ok(())
    }

    /// Handles that a session was opened without a caller that waits.
    fn opened_unawaited(&mut self, shard: ShardId, opened: Result<(), NoAnswer>) -> Outcomes {
        self.heed_bells();
        match opened {
            Ok(()) => Ok(()),
            Err(NoAnswer::Stopped | NoAnswer::Failed(_)) if self.is_ending() => Ok(()),
            Err(error) => {
                let what = format!("shard {shard}: the living node opens no session: {error}");
                Err(Violation::new(17, what).into())
            }
        }
    }

    /// Handles the end of a client's call at the node.
    fn answered(&mut self, mut answered: Answered) -> Outcomes {
        let is_query = self.node.as_ref().is_some_and(|node| node.open_queries.contains(&answered.call));
        self.check_no_answer(&answered)?;
        if self.bug == Some(Bug::RefuseApplied)
            && let Ok(answer) = &mut answered.result
            && answer.result.is_ok()
            && self.odd.u8(..16) == 0
        {
            answer.result = Err(Refusal::Overloaded { retry_after: Duration::from_millis(1) });
        }
        self.call_ended(&answered)?;
        let Answered { is_gone, shard, token, result, .. } = answered;
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
            Err(NoAnswer::NotHere { .. } | NoAnswer::Deposed { .. } | NoAnswer::NoPrimary { .. }) => {
                return Err(Violation::new(0, format!("shard {shard} is not on the only node")).into());
            }
            Err(NoAnswer::Failed(_) | NoAnswer::Stopped) => return Ok(()),
        };
        self.check_leaving(shard, &Effect::Answer(answer.clone()))?;
        if is_query {
            self.note_full(&answer);
        }
        if is_gone {
            self.marks.hit(Mark::CallerGone);
            return Ok(());
        }
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

    /// Notes that the node has failed.
    fn failed(&mut self, reason: &str) {
        if self.tracing {
            eprintln!("                             the node fails: {reason}");
        }
        let node = self.node.as_mut().expect("it had a turn");
        node.is_over = true;
        self.disk_log().is_over();
    }

    /// Handles that the power is gone.
    pub(crate) fn power_failed(&mut self) -> Outcomes {
        self.marks.hit(Mark::CrashInIo);
        self.end(End::Power)
    }
}

/// Returns the answer to a call that the node itself refuses.
fn refused(token: CallToken, refusal: Refusal) -> Answer {
    let (epoch, index, colour) = (Epoch(0), Index(0), Colour(0));
    Answer { token, epoch, index, colour, result: Err(refusal), staleness: None }
}
