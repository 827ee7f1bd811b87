//! The shell of the simulated node: performs the effects of shards, runs the steps of tasks, and hands out turns.

use crate::blame::Killer;
use crate::bug::Bug;
use crate::client::call_of;
use crate::marks::Mark;
use crate::node::NODE;
use crate::operator::OPERATOR;
use crate::profile::one_in;
use crate::violation::Violation;
use crate::world::{End, Inside, Outcomes, World};
use stead_core::entry::{Cause, Entry, Write};
use stead_core::handler::Misuse;
use stead_core::ids::{Colour, Seq, ShardId, TaskId};
use stead_core::record::{Kind, TaskRecord};
use stead_core::shard::{Answer, Effect, Input, Refusal, StepOutcome};
use stead_core::shutdown::Group;
use stead_core::trials::Grant;

/// The entry of a retry as one that leaves the dead letter where it is.
fn without_retry(bytes: Vec<u8>) -> Vec<u8> {
    match Entry::decode(&bytes) {
        Ok(entry) if matches!(entry.cause, Cause::Retry { .. }) => {
            let mut bent = Vec::new();
            Entry { cause: Cause::Attempt, ..entry }.encode_into(&mut bent);
            bent
        }
        _ => bytes,
    }
}

impl World<'_> {
    pub(crate) fn perform(&mut self, shard: ShardId, effect: Effect, colour_news: bool) -> Outcomes {
        if let Effect::Append { epoch, index, mut bytes } = effect {
            if self.bug == Some(Bug::KeepRetried) {
                bytes = without_retry(bytes);
            }
            self.note(index.0, &bytes);
            if self.tracing {
                eprintln!("                             shard {shard}: {:?}", Entry::decode(&bytes));
            }
            let time = (self.now, self.clock_is_right().then(|| self.time()));
            let appended = self.model.append(shard, self.life, time, &bytes);
            if let Err(violation) = appended {
                if let Ok(entry) = Entry::decode(&bytes) {
                    self.recent.borrow_mut().entry(shard, &entry);
                }
                return Err(violation.into());
            }
            if let Some(entry) = self.model.last_entry(shard) {
                self.recent.borrow_mut().entry(shard, entry);
                self.blame.entry(shard, entry, self.profile.settings.attempts_max)?;
                let (index, identity) = (entry.index, entry.cause.identity(&entry.process));
                let seen = identity.and_then(|identity| self.clients.seen_before(&identity));
                if let Some(seen) = seen.filter(|seen| !seen.is_empty()) {
                    self.model.caused(shard, index, seen.to_vec());
                }
            }
            let last = self.model.last_entry(shard);
            match last.map(|entry| &entry.cause) {
                Some(Cause::Attempt) => self.marks.hit(Mark::Attempt),
                Some(Cause::Expire) => {
                    let rest = |write: &Write| write.key.kind() == Kind::Session && write.value.is_some();
                    if last.is_some_and(|entry| entry.writes.iter().any(rest)) {
                        self.marks.hit(Mark::ConfirmedRest);
                    }
                }
                Some(Cause::DeadLetter { .. }) => self.marks.hit(Mark::DeadLetter),
                Some(Cause::Timer { .. }) => {
                    // The accounts send nothing from a timer.
                    let sent = last.is_some_and(|entry| !entry.sends.is_empty());
                    self.marks.hit(if sent { Mark::DelayedSent } else { Mark::TimerFired });
                }
                _ => {}
            }
            self.log_entry(shard, epoch, index, &bytes);
            if self.bug == Some(Bug::StoredBeforeSync) && one_in(&mut self.rng, 8) {
                let stored = Input::Stored { member: NODE, epoch, upto: index };
                self.inside(1, Inside::Input(shard, stored));
            }
            return Ok(());
        }
        if self.tracing {
            eprintln!("                             shard {shard}: {effect:?}");
        }
        self.model.check_effect(shard, &effect)?;
        if self.disk.failed_syncs() > self.failed_syncs {
            let what = format!("shard {shard}: {effect:?} after a sync had failed");
            return Err(Violation::new(5, what).into());
        }
        if let Effect::Answer(answer) = &effect
            && answer.result.is_ok()
            && let Some(session) = self.clients.opened_by(answer.token)
        {
            self.model.check_opened(shard, session, answer.index)?;
        }
        match effect {
            Effect::Append { .. } => unreachable!("handled above"),
            Effect::Deliver { to, mut messages, again } => {
                if self.bug == Some(Bug::ShiftSequence) && one_in(&mut self.rng, 4) {
                    for message in &mut messages {
                        message.seq = message.seq.next();
                    }
                    if let Some(first) = messages.first().filter(|m| m.seq == Seq(2)).cloned() {
                        messages.insert(0, stead_core::state::Message { seq: Seq(1), ..first });
                    }
                }
                if self.bug == Some(Bug::StripColours) {
                    for message in &mut messages {
                        message.colour = Colour(0);
                    }
                }
                self.carry(shard, to, Input::Deliver { from: shard, messages, again });
            }
            Effect::Ack { to, upto, mut colour } => {
                if self.bug == Some(Bug::StripColours) {
                    colour = Colour(0);
                }
                self.carry(shard, to, Input::Ack { from: shard, upto, colour });
            }
            Effect::Answer(answer) if answer.token & OPERATOR != 0 => self.operator_hears(&answer)?,
            Effect::Answer(answer) => {
                self.note_refusal(shard, &answer);
                self.carry_answer(answer);
            }
            Effect::Query(reading) => self.query_leaves(shard, reading)?,
            // Left for the next life.
            Effect::RunTask { .. } | Effect::StepAllowed { .. } if self.runs_no(Group::Tasks) => {}
            Effect::RunTask { id, run, task, asks, .. } => {
                let delay = self.random(self.profile.step_delay);
                if asks {
                    let node = self.node.as_mut().expect("only a living node has effects");
                    node.asking.insert((shard, id, run), task);
                    self.inside(delay, Inside::AskStep { shard, id, run });
                } else {
                    self.begin_step(delay, shard, id, run, task);
                }
            }
            Effect::StepAllowed { id, run, allowed } => {
                let node = self.node.as_mut().expect("only a living node has effects");
                if let Some(task) = node.asking.remove(&(shard, id, run))
                    && allowed
                {
                    let delay = self.random(self.profile.step_delay);
                    self.begin_step(delay, shard, id, run, task);
                }
            }
            Effect::WantsTurn(lane) => {
                let node = self.node.as_mut().expect("only a living node has effects");
                let grant = match self.bug {
                    Some(Bug::CrowdTrials) => Some(Grant::Turn(shard, lane)),
                    _ => node.trials.wants(shard, lane),
                };
                self.grant(grant);
            }
            Effect::EndsTurn(lane) => {
                let node = self.node.as_mut().expect("only a living node has effects");
                let grant =
                    if self.bug == Some(Bug::CrowdTrials) { None } else { node.trials.ends(shard, lane) };
                self.grant(grant);
            }
            Effect::Marked { header, all } => {
                if !colour_news {
                    self.marks.hit(Mark::MarkerByMessage);
                }
                self.model.marked(shard, &header);
                self.marked(shard, *header, all);
            }
            Effect::MarkerCommitted(colour) => self.marker_committed(shard, colour),
            Effect::Active(epoch) => self.note(epoch.0, &[]),
        }
        Ok(())
    }

    /// A thread begins a step; it takes a while until it comes to what may end the process.
    fn begin_step(&mut self, delay: u64, shard: ShardId, id: TaskId, run: u32, task: TaskRecord) {
        self.blame.step_begins(shard, id, &task);
        self.node.as_mut().expect("only a living node has steps").steps_running += 1;
        self.inside(delay, Inside::Step { shard, id, run, task });
    }

    /// Carries a grant to its shards.
    pub(crate) fn grant(&mut self, grant: Option<Grant>) {
        match grant {
            None => {}
            Some(Grant::Turn(shard, lane)) => self.inside(1, Inside::Input(shard, Input::Turn(lane))),
            Some(Grant::Yield(shard)) => self.inside(1, Inside::Input(shard, Input::Yield)),
            Some(Grant::Open) => {
                for shard in self.topology.shards() {
                    self.inside(1, Inside::Input(shard, Input::Open));
                }
            }
        }
    }

    /// A call that a client knows to be over may not be applied later. One that was too large may be: its process may
    /// have shrunk until a late frame of it comes.
    pub(crate) fn note_refusal(&mut self, shard: ShardId, answer: &Answer) {
        let over = match &answer.result {
            Err(Refusal::Misuse(misuse)) => !matches!(misuse, Misuse::TooLarge { .. }),
            Err(Refusal::Poisoned { .. } | Refusal::Panicked(_)) => true,
            _ => false,
        };
        if over && let Some(identity) = call_of(answer.token).and_then(|id| self.clients.identity(id)) {
            self.model.refused(shard, identity);
        }
    }

    pub(crate) fn step(&mut self, shard: ShardId, id: TaskId, run: u32, task: &TaskRecord) -> Outcomes {
        self.node.as_mut().expect("checked by the caller").steps_running -= 1;
        let outcome = self.workload.step(id, task);
        if self.workload.killed() {
            self.marks.hit(Mark::StepKilled);
            return self.end_by(End::Process, Some(Killer::step(shard, id, task)));
        }
        if matches!(outcome, StepOutcome::Done(_)) {
            self.marks.hit(Mark::TaskDone);
        }
        if task.retry.is_some() {
            self.marks.hit(Mark::StepRetried);
        }
        let input = Input::TaskStep { id, step: task.step, run, outcome };
        if one_in(&mut self.rng, self.profile.channel_again) {
            self.inside(self.profile.step_delay, Inside::Input(shard, input.clone()));
        }
        self.inside(1, Inside::Input(shard, input));
        Ok(())
    }
}
