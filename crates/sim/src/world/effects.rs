//! The world's side of the effects of shards.

use super::{Inside, Outcomes, World};
use crate::bug::Bug;
use crate::client::call_of;
use crate::marks::Mark;
use crate::violation::Violation;
use stead_core::calls::{Answer, Misuse, Refusal};
use stead_core::entry::{Cause, Entry, Write};
use stead_core::ids::ShardId;
use stead_core::record::Kind;
use stead_core::shard::{Effect, Input};

impl World {
    /// Handles an effect of a shard, which its worker performs.
    pub(crate) fn see_effect(&mut self, shard: ShardId, effect: Effect, colour_news: bool) -> Outcomes {
        if let Effect::Append { index, bytes, .. } = effect {
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
                let service = self.topology.service_of(shard).map_or(usize::MAX, |id| usize::from(id.0));
                self.blame.entry(shard, entry, self.profile.settings_of(service).attempts_max)?;
                let (index, identity) = (entry.index, entry.cause.identity(&entry.process));
                let seen = identity.and_then(|identity| self.clients.seen_before(&identity));
                if let Some(seen) = seen.filter(|seen| !seen.is_empty()) {
                    self.model.caused(shard, index, seen.to_vec());
                }
            }
            self.check_applied(shard)?;
            let last = self.model.last_entry(shard);
            match last.map(|entry| &entry.cause) {
                Some(Cause::Attempt) => self.marks.hit(Mark::Attempt),
                Some(Cause::Delete) => {
                    let records = last.map_or(0, |entry| entry.writes.len());
                    self.deleting(shard, index, records);
                }
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
            return Ok(());
        }
        if self.tracing {
            eprintln!("                             shard {shard}: {effect:?}");
        }
        self.check_leaving(shard, &effect)?;
        match effect {
            // Answers are handled where they arrive.
            Effect::Append { .. }
            | Effect::Deliver { .. }
            | Effect::Ack { .. }
            | Effect::Answer(_)
            | Effect::MarkerCommitted(_)
            | Effect::EndsTurn(_) => {}
            Effect::Query(reading) => self.query_leaves(shard, &reading),
            Effect::RunStep { id, run, task, asks, .. } => {
                if asks {
                    let node = self.node.as_mut().expect("only a living node has effects");
                    node.asking.insert((shard, id, run), task);
                } else {
                    self.blame.step_begins(shard, id, &task);
                }
            }
            Effect::StepAllowed { id, run, allowed } => {
                let node = self.node.as_mut().expect("only a living node has effects");
                if let Some(task) = node.asking.remove(&(shard, id, run))
                    && allowed
                {
                    self.blame.step_begins(shard, id, &task);
                }
            }
            Effect::WantsTurn(kind) => {
                if self.bug == Some(Bug::CrowdTrials) {
                    self.inside(1, Inside::Input(shard, Input::Turn(kind)));
                }
            }
            Effect::Marked { header, .. } => {
                if !colour_news {
                    self.marks.hit(Mark::MarkerByMessage);
                }
                self.model.marked(shard, &header);
            }
            Effect::Active(epoch) => self.note(epoch.0, &[]),
        }
        Ok(())
    }

    /// Compares what leaves a shard with what is committed.
    pub(crate) fn check_leaving(&self, shard: ShardId, effect: &Effect) -> Outcomes {
        self.model.check_effect(shard, effect)?;
        if self.refusals().failed_syncs() > 0 {
            let what = format!("shard {shard}: {effect:?} after a sync had failed");
            return Err(Violation::new(5, what).into());
        }
        Ok(())
    }

    /// Checks that a call which its client knows to be over is not applied later. One that was too large may be: its
    /// process may shrink before a late frame of it arrives.
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
}
