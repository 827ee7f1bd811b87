//! What the conductor and the application that it kills say to each other: one JSON value a line, over the child's
//! standard input and output, so that no port is needed.

use crate::services::{Passengers, Position};
use crate::totals::Totals;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How a child opens; the first line that it reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// The data directory.
    pub data: PathBuf,
    /// Where handler runs are recorded.
    pub runs: PathBuf,
    /// The file to feed from; the bundled one if there is none.
    pub input: Option<PathBuf>,
    /// Pass over malformed rows.
    pub skip_malformed: bool,
    /// Milliseconds between two checkpoints.
    pub checkpoint_every_ms: u64,
}

/// What the conductor asks, with a number that the answer carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// The number.
    pub id: u64,
    /// What.
    pub what: Question,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Feed so many rows, so many a second.
    Feed {
        /// Rows.
        rows: u64,
        /// Rows a second.
        rate: f64,
    },
    /// Feed no more.
    Finish,
    /// How far is the feeder?
    Position,
    /// Check a passenger in, under an idempotency key of its own.
    CheckIn {
        /// Who.
        passenger: u64,
    },
    /// All passengers of all desks.
    Passengers,
    /// Wait until all is fed and nothing is in flight, then read the totals from the processes.
    Totals,
    /// Shut down.
    Stop,
}

/// What a child says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// It recovered and takes questions.
    Ready(Recovery),
    /// A checkpoint begins: what was answered up to now will be in it.
    CheckpointBegins,
    /// A checkpoint is complete.
    Checkpoint(Checkpoint),
    /// A checkpoint failed; the work goes on.
    CheckpointFailed {
        /// Why.
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
        /// The question's number; none if it is about the opening or the whole.
        id: Option<u64>,
        /// Why.
        reason: String,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
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

/// How a child recovered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    /// Milliseconds from the start of the operating system process until it took questions; told by the conductor.
    pub ready_ms: f64,
    /// Milliseconds that the node took of it.
    pub node_ms: f64,
    /// The checkpoint that it began from, if any.
    pub checkpoint: Option<u64>,
    /// Log entries applied after it.
    pub entries: u64,
    /// Bytes of state read.
    pub state_bytes: u64,
    /// It began from a restored checkpoint.
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
    /// The longest that it held a shard, in milliseconds.
    pub stall_ms: f64,
    /// Messages in flight at its cut.
    pub in_flight: u64,
    /// What the services' own checks found wrong at its cut: nothing, if all is well.
    pub failed_checks: Vec<String>,
}
