//! A turn of a part: the world at its beginning, and what the world sees of it.

use super::{Checked, CopyWanting};
use crate::blame::Killer;
use crate::bug::Bug;
use crate::model::Seen;
use crate::violation::Violation;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::calls::Answer;
use stead_core::checkpointing::retention::Garbage;
use stead_core::ids::{CallToken, CheckpointNumber, Colour, Index, ShardId, TaskId, Time};
use stead_core::key::Key;
use stead_core::record::{RecordKey, TaskRecord};
use stead_core::shard::{Effect, Input};
use stead_core::shutdown::Step;
use stead_core::state::{Position, State};
use stead_node::checkpoint::{CheckpointCommand, CheckpointFailure, CheckpointReport, News, Trouble};
use stead_node::{CopyReport, EndOrder, NoAnswer, PartId};

/// The effects of one input at a shard.
pub(crate) struct Handled {
    pub(crate) shard: ShardId,
    pub(crate) effects: Vec<Effect>,
    /// The entries for which the handler was called, with hashes of the calls.
    pub(crate) calls: Vec<(Index, u64)>,
    /// The input reported that the log holds the shard's entries up to one.
    pub(crate) stored: Option<Index>,
    /// The input was news of a checkpoint from the control plane.
    pub(crate) is_colour: bool,
    pub(crate) work: usize,
    /// Number of handler runs that the shell did not want.
    pub(crate) unwanted: usize,
    pub(crate) is_doubted: bool,
    /// Whether work was left for a tick.
    pub(crate) is_held_back: bool,
}

/// The events of a turn that the world sees, in their order.
pub(crate) enum Shown {
    Handled(Box<Handled>),
    /// A query ran; with the state of its process that it saw.
    Queried {
        shard: ShardId,
        index: Index,
        process: Key,
        seen: Seen,
    },
    /// User code ended the process.
    Died(Killer),
    /// User code ended the process in a step.
    DiedInStep {
        shard: ShardId,
        id: TaskId,
        task: TaskRecord,
    },
    /// A step ran.
    Stepped {
        is_done: bool,
        is_retry: bool,
    },
    /// The parts of checkpoints did this.
    Checkpoint(Done),
    /// A service's check ran over these states of shards.
    Checked {
        service: String,
        seen: Vec<State>,
        result: Result<(), String>,
    },
    /// A service's check ended the process.
    DiedInCheck(String),
    /// The node has failed, for this reason.
    Failed(String),
    /// A handler has abandoned the node.
    Killed,
    /// The end of the node is about to perform this step.
    Ending(Step),
    /// An operator looked at a process.
    Looked(Box<Looked>),
    Wrong(Violation),
}

/// An action of the parts of checkpoints.
pub(crate) enum Done {
    /// All shards get this colour.
    Coloured(Colour),
    /// A shard handed over a piece of its snapshot.
    Drained(Drained),
    /// Workers that held back may go on.
    CaughtUp,
    /// A shard's marker came late: its snapshot is dropped.
    Discarded,
    /// A checkpoint exists; with whether nothing requested it.
    Completed(CheckpointNumber, bool),
    GivenUp(CheckpointNumber),
    Refused,
    /// The log is to be trimmed.
    Trim,
    /// The log is to be trimmed, and a planted bug delays it.
    HeldTrim(CheckpointCommand),
    /// Planted bug: the log is to be trimmed up to these markers.
    TrimEarly(BTreeMap<ShardId, Index>),
    /// A merge with this output is to begin.
    Merge(String),
    Merged,
    Trouble(Trouble),
    /// The store was searched for objects that are not needed.
    Looked,
    Deleted(Vec<Garbage>),
}

/// A piece of a shard's snapshot.
#[derive(Clone, Copy)]
pub(crate) struct Drained {
    pub(crate) shard: ShardId,
    pub(crate) number: CheckpointNumber,
    pub(crate) bytes: usize,
    /// Whether it is the last one.
    pub(crate) is_last: bool,
}

/// An operator's view of a process.
pub(crate) struct Looked {
    pub(crate) shard: ShardId,
    pub(crate) position: Position,
    pub(crate) process: Key,
    /// Its records.
    pub(crate) records: BTreeSet<RecordKey>,
    /// Whether the operator deletes them now.
    pub(crate) deletes: bool,
}

/// The answer to a client's call.
pub(crate) struct Answered {
    /// Whether the caller had gone, and no one receives it.
    pub(crate) is_gone: bool,
    pub(crate) shard: ShardId,
    pub(crate) token: CallToken,
    pub(crate) call: OpenCall,
    /// When it was answered.
    pub(crate) at: u64,
    pub(crate) result: Result<Answer, NoAnswer>,
}

/// A client's call at the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OpenCall {
    /// The virtual time at which it is over.
    pub(crate) until: u64,
    /// The virtual time at which it arrived.
    pub(crate) since: u64,
    pub(crate) number: u64,
}

/// The results of a turn.
#[derive(Default)]
pub(crate) struct Turn {
    pub(crate) shown: Vec<Shown>,
    /// The answers to calls.
    pub(crate) answers: Vec<Answered>,
    /// Inputs that leave for shards of other workers.
    pub(crate) left: Vec<(ShardId, Input)>,
    /// News of checkpoints for workers.
    pub(crate) news: Vec<(usize, News)>,
    /// The results of requested copies.
    pub(crate) copies: Vec<(CopyWanting, Result<CopyReport, CheckpointFailure>)>,
    /// The results of wanted checkpoints.
    pub(crate) checkpoints: Vec<(Checked, Result<CheckpointReport, CheckpointFailure>)>,
    /// Microseconds that its readings of the clock took.
    pub(crate) took: u64,
    /// Whether the owner of the node has heard that it has failed.
    pub(crate) is_failure_heard: bool,
    /// Whether a merge has panicked on purpose.
    pub(crate) merge_panics: bool,
    /// Whether a worker held its snapshots back.
    pub(crate) holds_back: bool,
    /// Whether the part has panicked on purpose.
    pub(crate) panicked: bool,
    /// The order of a handler that has abandoned the node, and the number of answers before it.
    pub(crate) killed: Option<(EndOrder, usize)>,
}

/// The world at the beginning of a turn.
#[derive(Clone, Copy, Default)]
pub(crate) struct Scene {
    /// Virtual time, with the lead that only a bug adds.
    pub(crate) steady: Time,
    pub(crate) wall: Time,
    /// Microseconds that each reading of the steady clock takes.
    pub(crate) look_cost: u64,
    pub(crate) bug: Option<Bug>,
    pub(crate) runs_max: usize,
    /// A frame of an older life is among the inputs: it reports that this shard's log is stored up to there.
    pub(crate) old: Option<(ShardId, Index)>,
    /// One in this many checks ends the process.
    pub(crate) check_kills: u32,
    /// One in this many merges panics at its end.
    pub(crate) merge_panics: u32,
    /// One in this many checks panics before it begins.
    pub(crate) check_panics: u32,
    /// The part panics on purpose when it passes the stage this many times, if it does so.
    pub(crate) panics_in: Option<u8>,
    /// The worker of the turn, if one in this many of its handlers abandons the node.
    pub(crate) kills: Option<(PartId, u32)>,
    /// Planted bug: a trim waits.
    pub(crate) holds_trim: bool,
    /// Whether the commits of markers are withheld from the checkpoint part.
    pub(crate) holds_markers: bool,
}
