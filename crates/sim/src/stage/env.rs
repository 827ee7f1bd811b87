//! The surroundings of the simulated node: user code, clocks, and the ends of calls.

use super::{Answered, Observer, OpenCall, STAGE, Shown, code, pass};
use crate::bug::Bug;
use crate::model::{Seen, copy, hash_call};
use crate::profile::one_in;
use crate::violation::Violation;
use crate::workload::ENDED;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Call, Caller as CalledBy, Outcome, Refusal};
use stead_core::capture::View;
use stead_core::handler::{Handler, QueryPlace, Txn};
use stead_core::ids::{CallToken, Index, ShardId, StepNumber, Time};
use stead_core::key::Key;
use stead_core::record::{StepRetry, TaskRecord};
use stead_core::shard::StepOutcome;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_node::{Caller, Clock, EndOrder, Env, NoAnswer, Program, StepCall};

/// The surroundings of the simulated node.
pub(crate) struct SimEnv;

impl Env for SimEnv {
    type Program = Services;
    type Caller = Wire;
    type Clock = Clocks;
    type Watch = Observer;
}

pub(crate) struct Clocks;

impl Clock for Clocks {
    fn steady(&self) -> Time {
        pass();
        STAGE.with_borrow_mut(|stage| {
            let now = stage.scene.steady.plus_micros(stage.turn.took);
            stage.turn.took += stage.scene.look_cost;
            now
        })
    }

    fn wall(&self) -> Time {
        STAGE.with_borrow(|stage| stage.scene.wall)
    }
}

/// The end of a client's call at the node, under the client's own token.
pub(crate) struct Wire {
    pub(crate) shard: ShardId,
    pub(crate) token: CallToken,
    pub(crate) call: OpenCall,
    pub(crate) is_answered: bool,
    /// The virtual time from which on the caller does not wait any more.
    pub(crate) gone_at: u64,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if !self.is_answered {
            let is_gone = self.is_gone();
            STAGE.with_borrow_mut(|stage| {
                if is_gone { &mut stage.left } else { &mut stage.unanswered }.push(self.call);
            });
        }
    }
}

impl Caller for Wire {
    fn answer(mut self, result: Result<Answer, NoAnswer>) {
        let is_gone = self.is_gone();
        STAGE.with_borrow_mut(|stage| {
            if stage.scene.bug == Some(Bug::DropAnswer) && stage.rng.u8(..) == 0 {
                return;
            }
            self.is_answered = true;
            stage.answered.push(self.call);
            if !stage.is_dead {
                let at = stage.scene.steady.0 + stage.turn.took;
                let Self { shard, token, call, .. } = &self;
                let (shard, token, call) = (*shard, *token, *call);
                stage.turn.answers.push(Answered { is_gone, shard, token, call, at, result });
            }
        });
    }

    fn is_gone(&self) -> bool {
        STAGE.with_borrow(|stage| stage.scene.steady.0 + stage.turn.took >= self.gone_at)
    }
}

/// The workload's code as a program for the node.
#[derive(Debug, Default)]
pub(crate) struct Services {
    /// The names of the services and tasks without code.
    pub(crate) lacking: BTreeSet<String>,
}

/// The handlers of the workload.
pub(crate) struct Handlers;

impl Handler for Handlers {
    fn handle(&mut self, call: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
        let hash = hash_call(call.key, call.payload);
        let is_dead = STAGE.with_borrow_mut(|stage| {
            let now = &mut stage.now;
            now.calls.push((call.place.1, hash));
            if !matches!(call.caller, CalledBy::Client { .. }) {
                // A handler that panics is retried at once.
                now.unwanted += usize::from(now.runs >= now.runs_max && now.last != Some(call.place.1));
                now.runs += 1;
                now.last = Some(call.place.1);
            }
            stage.is_dead
        });
        if is_dead {
            return Outcome::Panicked(ENDED.to_owned());
        }
        let code = code();
        let outcome = code.borrow_mut().handler().handle(call, txn);
        abandon(call.place.1);
        if code.borrow_mut().killed() {
            STAGE.with_borrow_mut(|stage| {
                stage.now.killer = Some((call.place.1, hash));
                stage.is_dead = true;
            });
        }
        outcome
    }

    fn query(&mut self, call: &Call<'_>, view: View<'_>) -> Outcome {
        code().borrow_mut().handler().query(call, view)
    }

    fn place_query(&mut self, _: &Call<'_>, _: Option<&Blob>) -> Result<QueryPlace, Refusal> {
        let is_brief = STAGE.with_borrow(|stage| stage.now.is_brief);
        Ok(if is_brief { QueryPlace::Here } else { QueryPlace::Apart })
    }

    fn is_spent(&self) -> bool {
        STAGE.with_borrow(|stage| {
            let is_deaf = stage.scene.bug == Some(Bug::DeafSlice);
            stage.is_dead || (stage.now.runs >= stage.now.runs_max && !is_deaf)
        })
    }
}

/// The handler that appends at this index may abandon its node. None begins after one that did.
fn abandon(at: Index) {
    let kills = STAGE.with_borrow_mut(|stage| {
        if stage.killed_at.is_some_and(|killed_at| killed_at != at) {
            let what = "a handler runs after another one has abandoned the node";
            stage.turn.shown.push(Shown::Wrong(Violation::new(5, what)));
        }
        let (by, _) = stage.scene.kills.filter(|(_, of)| one_in(&mut stage.rng, *of))?;
        // A panic within its own request would leave the node as it was.
        (stage.scene.kills, stage.scene.panics_in, stage.killed_at) = (None, None, Some(at));
        stage.turn.shown.push(Shown::Killed);
        stage.turn.killed = Some((EndOrder::Begin, stage.turn.answers.len()));
        Some((stage.ender.clone()?, by)).filter(|_| stage.scene.bug != Some(Bug::LateKill))
    });
    // After the borrow: it wakes all parts.
    if let Some((ender, by)) = kills {
        let order = ender.kill(by);
        STAGE.with_borrow_mut(|stage| {
            if let Some((found, _)) = &mut stage.turn.killed {
                *found = order;
            }
        });
    }
}

impl Program for Services {
    type Handler = Handlers;

    fn handler(&self, _: &Arc<Topology>, _: u64) -> Handlers {
        Handlers
    }

    fn query(&self, call: &Call<'_>, view: View<'_>, topology: &Topology) -> Outcome {
        let shard = topology.shard_of(call.service, call.key);
        let (index, process) = (call.place.1, call.key.clone());
        let queried = Shown::Queried { shard, index, process, seen: Seen::of(view) };
        STAGE.with_borrow_mut(|stage| stage.turn.shown.push(queried));
        code().borrow_mut().handler().query(call, view)
    }

    fn step(&self, step: &StepCall<'_>) -> StepOutcome {
        let retry = |count| StepRetry { count, at: Time(0), reason: String::new() };
        let task = TaskRecord {
            process: Key::new(step.owner).expect("the key of a process"),
            name: step.name.to_owned(),
            step: StepNumber(step.step),
            state: Blob::from(step.state),
            progress: 0,
            retry: (step.retries > 0).then(|| retry(step.retries)),
        };
        let code = code();
        let outcome = code.borrow_mut().step(step.id, &task);
        STAGE.with_borrow_mut(|stage| stage.outcome_bytes += outcome.bytes() as i64);
        if code.borrow_mut().killed() {
            STAGE.with_borrow_mut(|stage| {
                let (shard, id, task) = stage.step.take().expect("the watch saw it begin");
                stage.turn.shown.push(Shown::DiedInStep { shard, id, task });
                stage.is_dead = true;
            });
            return outcome;
        }
        let (is_done, is_retry) = (matches!(outcome, StepOutcome::Done(_)), task.retry.is_some());
        STAGE.with_borrow_mut(|stage| stage.turn.shown.push(Shown::Stepped { is_done, is_retry }));
        outcome
    }

    fn has_service(&self, name: &str) -> bool {
        !self.lacking.contains(name)
    }

    fn has_task(&self, name: &str) -> bool {
        !self.lacking.contains(name)
    }

    fn checked_services(&self) -> Vec<String> {
        let services = code().borrow().services().into_iter().map(|(name, _)| name);
        services.filter(|name| self.has_service(name)).collect()
    }

    fn check(&self, service: &str, topology: &Topology, cut: &[State]) -> Result<(), String> {
        let bent = STAGE.with_borrow_mut(|stage| stage.mix(service, cut));
        let cut = bent.as_deref().unwrap_or(cut);
        let seen = cut.iter().map(copy).collect();
        let dies = STAGE.with_borrow_mut(|stage| {
            let dies = one_in(&mut stage.rng, stage.scene.check_kills);
            if dies {
                stage.turn.shown.push(Shown::DiedInCheck(service.to_owned()));
                stage.is_dead = true;
                stage.alive.store(false, Ordering::Relaxed);
            }
            dies
        });
        if dies {
            return Err(ENDED.to_owned());
        }
        let result = code().borrow_mut().check_cut(topology, cut);
        let checked = Shown::Checked { service: service.to_owned(), seen, result: result.clone() };
        STAGE.with_borrow_mut(|stage| stage.turn.shown.push(checked));
        result
    }
}
