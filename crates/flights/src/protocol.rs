//! The protocol between the conductor and the application that it kills: one JSON value a line, over the child's
//! standard input and output, so that no port is needed.

use crate::services::{Passengers, Position};
use crate::totals::Totals;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The first line that a child reads: how to open its node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// The data directory.
    pub data: PathBuf,
    /// The file for the records of handler runs.
    pub runs: PathBuf,
    /// The file to feed from; the bundled one by default.
    pub input: Option<PathBuf>,
    /// Skip malformed rows.
    pub skip_malformed: bool,
    /// Milliseconds between two checkpoints.
    pub checkpoint_every_ms: u64,
}

/// A question of the conductor, with a number that its answer repeats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// The number.
    pub id: u64,
    /// The question.
    pub what: Question,
}

/// The questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Feed rows at a rate.
    Feed {
        /// Rows.
        rows: u64,
        /// Rows a second.
        rate: f64,
    },
    /// Stop feeding.
    Finish,
    /// Report the feeder's position.
    Position,
    /// Check a passenger in, with an idempotency key of its own.
    CheckIn {
        /// The passenger.
        passenger: u64,
    },
    /// Report all passengers of all desks.
    Passengers,
    /// Wait until all rows are fed and no message is in flight, then report the totals of the processes.
    Totals,
    /// Shut down.
    Stop,
}

/// A report of a child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// It has recovered and takes questions.
    Ready(Recovery),
    /// A checkpoint begins: all that was answered before it is in it.
    CheckpointBegins,
    /// A checkpoint is complete.
    Checkpoint(Checkpoint),
    /// A checkpoint failed; the application continues.
    CheckpointFailed {
        /// The reason.
        reason: String,
    },
    /// The answer to a question.
    Answered {
        /// The question's number.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// A question could not be answered.
    Failed {
        /// The question's number; `None` if the failure is not about one question.
        id: Option<u64>,
        /// The reason.
        reason: String,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The question's action is done.
    Done,
    /// The feeder's position.
    Position(Position),
    /// The passenger's boarding number.
    Number(u64),
    /// The passengers.
    Passengers(Passengers),
    /// The totals, with the number of processes of each service that hold them.
    Totals {
        /// Rows that were fed.
        fed: u64,
        /// The totals.
        totals: Totals,
        /// Processes by service.
        processes: Counts,
    },
}

/// Processes by service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Aircraft.
    pub aircraft: u64,
    /// Airports.
    pub airport: u64,
    /// Carriers.
    pub carrier: u64,
}

impl Counts {
    /// Returns the number of processes that hold some totals.
    pub(crate) fn of(totals: &Totals) -> Self {
        Self {
            aircraft: totals.aircraft.count,
            airport: totals.airports.len() as u64,
            carrier: totals.carriers.len() as u64,
        }
    }
}

/// Figures of a recovery.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    /// Milliseconds from the start of the operating system process until it took questions; set by the conductor.
    pub ready_ms: f64,
    /// Milliseconds of it that the node took.
    pub node_ms: f64,
    /// The checkpoint that it began from, if any.
    pub checkpoint: Option<u64>,
    /// Log entries applied after it.
    pub entries: u64,
    /// Bytes of state read.
    pub state_bytes: u64,
    /// Whether it began from a restored checkpoint.
    pub restored: bool,
}

/// A checkpoint that was taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its number.
    pub number: u64,
    /// Bytes written for it.
    pub bytes: u64,
    /// Milliseconds from its begin to its manifest.
    pub ms: f64,
    /// The longest time that it held a shard, in milliseconds.
    pub stall_ms: f64,
    /// Messages in flight at its cut.
    pub in_flight: u64,
    /// Failures of the services' own checks at its cut; empty if all hold.
    pub failed_checks: Vec<String>,
}
