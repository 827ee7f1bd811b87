//! The watch: sees what passes between the parts, and changes it for the planted bugs.

use super::{Now, SIMULATED, STAGE, Shown, pass, position};
use crate::bug::Bug;
use crate::profile::one_in;
use std::panic::resume_unwind;
use stead_core::checkpointing::driver::Action;
use stead_core::ids::{CheckpointNumber, Micros, ShardId, TaskId, Time};
use stead_core::record::TaskRecord;
use stead_core::shard::{Effect, Input, Shard};
use stead_core::shutdown::{Group, Step};
use stead_node::Watch;
use stead_node::checkpoint::{CheckpointCommand, Event, News};
use stead_store::wal::{Wal, WalError};

/// Sees what passes between the parts, and changes it for the planted bugs.
pub(crate) struct Observer;

impl Watch for Observer {
    fn input(&self, shard: &Shard, input: &Input) {
        pass();
        STAGE.with_borrow_mut(|stage| {
            let is_brief = matches!(input, Input::Query(_)) && stage.rng.u8(..4) == 0;
            if let Input::TaskStep { outcome, .. } = input {
                stage.outcome_bytes -= outcome.bytes() as i64;
            }
            stage.now = Now {
                runs_max: match input {
                    Input::DeadLetter { .. } => usize::MAX,
                    _ => stage.scene.runs_max,
                },
                is_brief,
                is_colour: matches!(input, Input::Colour(_)),
                stored: match input {
                    Input::Stored { epoch, upto, .. } => Some((*epoch, *upto)),
                    _ => None,
                },
                opening: match input {
                    Input::OpenSession { token, .. } => Some(*token),
                    _ => None,
                },
                before: position(shard),
                ..Now::default()
            };
        });
    }

    fn effects(&self, shard: &Shard, effects: &mut Vec<Effect>) {
        STAGE.with_borrow_mut(|stage| stage.see(shard, effects));
    }

    fn leaves(&self, _: usize, _: usize, inputs: &mut Vec<(ShardId, Input)>) {
        pass();
        STAGE.with_borrow_mut(|stage| {
            if stage.is_dead {
                inputs.clear();
            }
            stage.turn.left.append(inputs);
        });
    }

    fn begins(&self, shard: ShardId, id: TaskId, task: &TaskRecord) {
        pass();
        STAGE.with_borrow_mut(|stage| stage.step = Some((shard, id, task.clone())));
    }

    fn account(&self, bytes: &mut [i64; 3]) {
        STAGE.with_borrow_mut(|stage| {
            if stage.scene.bug == Some(Bug::ForgetCharge) && bytes[2] < 0 && stage.rng.u8(..64) == 0 {
                bytes[2] = 0;
            }
        });
    }

    fn action(&self, action: &mut Action) {
        pass();
        STAGE.with_borrow_mut(|stage| stage.act(action));
    }

    fn command(&self, command: CheckpointCommand) -> Option<CheckpointCommand> {
        let panics = STAGE.with_borrow_mut(|stage| {
            let is_merge = matches!(command, CheckpointCommand::Merged(_));
            let panics = is_merge && one_in(&mut stage.rng, stage.scene.merge_panics);
            stage.turn.merge_panics |= panics;
            panics
        });
        if panics {
            // Without a message on standard error.
            resume_unwind(Box::new(SIMULATED));
        }
        STAGE.with_borrow_mut(|stage| stage.command(command))
    }

    fn pin(&self, _: CheckpointNumber) -> bool {
        STAGE.with_borrow(|stage| stage.scene.bug != Some(Bug::ForgetPin))
    }

    // The world decides when they arrive.
    fn news(&self, worker: usize, news: News) -> Option<News> {
        STAGE.with_borrow_mut(|stage| stage.turn.news.push((worker, news)));
        None
    }

    fn snapshot(&self, event: Event) -> Option<Event> {
        pass();
        STAGE.with_borrow_mut(|stage| stage.snapshot(event))
    }

    fn holds_back(&self, holds: &mut bool) {
        STAGE.with_borrow_mut(|stage| {
            if stage.scene.bug == Some(Bug::NeverHoldBack) {
                *holds = false;
            }
            stage.turn.holds_back |= *holds;
        });
    }

    fn check(&self) {
        let panics = STAGE.with_borrow_mut(|stage| {
            let panics = one_in(&mut stage.rng, stage.scene.check_panics);
            if panics {
                // Not again when the part ends.
                stage.scene.panics_in = None;
                stage.turn.panicked = true;
            }
            panics
        });
        if panics {
            resume_unwind(Box::new(SIMULATED));
        }
    }

    fn is_full(&self, is_full: &mut bool) {
        *is_full &= STAGE.with_borrow(|stage| stage.scene.bug != Some(Bug::CrowdQueries));
    }

    fn fails(&self, reason: &str) -> bool {
        STAGE.with_borrow_mut(|stage| {
            stage.turn.shown.push(Shown::Failed(reason.to_owned()));
            stage.spoils_end = true;
            stage.scene.bug != Some(Bug::IgnoreFailed)
        })
    }

    fn kills(&self, until: &mut Time) {
        STAGE.with_borrow(|stage| {
            if stage.scene.bug == Some(Bug::PatientKill) {
                *until = until.plus(Micros::from_secs(3_600));
            }
        });
    }

    fn shutdown(&self, step: &mut Step) {
        STAGE.with_borrow_mut(|stage| {
            match (stage.scene.bug, *step) {
                (Some(Bug::CleanTooEarly), Step::Stop(Group::Queries)) => *step = Step::MarkClean,
                (Some(Bug::MarkFailed), Step::Finish) if std::mem::take(&mut stage.spoils_end) => {
                    *step = Step::MarkClean;
                }
                (Some(Bug::NeverClean), Step::MarkClean) => *step = Step::StopAll,
                (Some(Bug::EarlyRelease), Step::Await(Group::Log, _)) => *step = Step::Finish,
                (Some(Bug::ForgetStop), Step::Stop(group @ Group::Workers)) => {
                    *step = Step::Await(group, None);
                }
                _ => {}
            }
            stage.turn.shown.push(Shown::Ending(*step));
        });
    }

    fn mark(&self, wal: &mut Wal) -> Result<bool, WalError> {
        pass();
        let forgets = STAGE.with_borrow(|stage| stage.scene.bug == Some(Bug::ForgetMark));
        if forgets { Ok(true) } else { wal.mark() }
    }

    fn durable(&self, _: usize, ticket: &mut u64) {
        STAGE.with_borrow_mut(|stage| match stage.scene.bug {
            Some(Bug::TicketPlusOne) => *ticket += 1,
            Some(Bug::StoredBeforeSync) if stage.rng.u8(..8) == 0 => *ticket = u64::MAX,
            _ => {}
        });
    }
}
