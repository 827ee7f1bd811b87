//! The receivers of what the node answers to its owner and operators.

use super::{Looked, STAGE, Shown};
use crate::model::records_in;
use stead_core::ids::CheckpointNumber;
use stead_core::key::Key;
use stead_core::state::State;
use stead_node::checkpoint::{CheckpointFailure, CheckpointReport};
use stead_node::{CopyReport, Reply};

/// An operator looks at a process, on the worker of its shard.
pub(crate) fn look(state: &State, process: Key, deletes: bool) {
    let (shard, position, records) = (state.shard(), state.position(), records_in(state, &process));
    let looked = Looked { shard, position, process, records, deletes };
    STAGE.with_borrow_mut(|stage| stage.turn.shown.push(Shown::Looked(Box::new(looked))));
}

/// The owner of the node, who hears that it has failed.
pub(crate) struct Owner;

impl Reply<String> for Owner {
    fn send(self: Box<Self>, _: String) {
        STAGE.with_borrow_mut(|stage| stage.turn.is_failure_heard = true);
    }

    fn is_gone(&self) -> bool {
        false
    }
}

/// The receiver of the result of a wanted checkpoint.
pub(crate) struct Wanting(pub(crate) Checked);

/// The receiver of the result of a requested copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyWanting {
    pub(crate) number: CheckpointNumber,
    /// The target.
    pub(crate) to: &'static str,
}

impl Reply<Result<CopyReport, CheckpointFailure>> for CopyWanting {
    fn send(self: Box<Self>, result: Result<CopyReport, CheckpointFailure>) {
        STAGE.with_borrow_mut(|stage| {
            if !stage.is_dead {
                stage.turn.copies.push((*self, result));
            }
        });
    }

    fn is_gone(&self) -> bool {
        false
    }
}

/// Whether the services' checks of a checkpoint are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    Yes,
    No,
}

impl Reply<Result<CheckpointReport, CheckpointFailure>> for Wanting {
    fn send(self: Box<Self>, result: Result<CheckpointReport, CheckpointFailure>) {
        STAGE.with_borrow_mut(|stage| {
            if !stage.is_dead {
                stage.turn.checkpoints.push((self.0, result));
            }
        });
    }

    fn is_gone(&self) -> bool {
        false
    }
}
