//! The view of a query: a process as it was at one entry, apart from its shard.
//!
//! The shard captures the process when the query arrives, and continues. The query may then run for any time and on any
//! thread: it holds nothing but memory.

use crate::blob::Blob;
use crate::calls::{Answer, Call, Outcome, Query, Refusal};
use crate::ids::{Colour, Epoch, Index, Micros, ServiceId, TaskId, Time};
use crate::key::Key;
use crate::ordered::Frozen;
use crate::record::{RecordKey, TaskRecord, decode_value};
use crate::state::State;
use std::fmt;

/// A process at one moment: its state, its cells, and its tasks. All of it is shared with the shard's state, so
/// capturing takes a time that does not depend on the size; later writes of the shard are not in it.
#[derive(Clone)]
pub struct Capture {
    pub(crate) process: Key,
    pub(crate) state: Option<Blob>,
    pub(crate) cells: Frozen<RecordKey, Blob>,
    pub(crate) tasks: Frozen<(Key, TaskId), Blob>,
}

impl Capture {
    /// Captures the current state of a process of a shard.
    #[must_use]
    pub fn new(state: &State, process: &Key) -> Self {
        Self::with(state, process, state.records().get(RecordKey::process(process).as_bytes()))
    }

    /// As [`Self::new`], with the state of the process already looked up.
    pub(crate) fn with(state: &State, process: &Key, process_state: Option<&Blob>) -> Self {
        Self {
            process: process.clone(),
            state: process_state.cloned(),
            cells: state.records().cells_of(process),
            tasks: state.task_records_of(process),
        }
    }

    /// Returns the view of the process for code.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View(self)
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.state.as_ref().map(|state| state.len());
        f.debug_struct("Capture")
            .field("process", &self.process)
            .field("state_bytes", &bytes)
            .finish_non_exhaustive()
    }
}

/// A query with the captured process that it may read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The query itself.
    pub query: Query,
    /// The service of the process.
    pub service: ServiceId,
    /// The shard's time at the capture.
    pub time: Time,
    /// The epoch that answers.
    pub epoch: Epoch,
    /// The entry up to which the shard's state was captured: the answer may leave once it is committed.
    pub index: Index,
    /// The shard's colour at the capture.
    pub colour: Colour,
    /// The answer's: see [`Answer::staleness`].
    pub staleness: Option<Micros>,
    /// The captured process.
    pub capture: Capture,
}

impl Reading {
    /// Bytes for which a reading counts in the accounting of memory, besides those of the query and of the process's
    /// state.
    pub const WEIGHT: usize = 512;

    /// Returns the bytes for which the reading counts in the accounting of memory: the query, the process's state, and
    /// [`Self::WEIGHT`]. Cells and tasks are not counted: the shard shares them until it changes them.
    #[must_use]
    pub fn weight(&self) -> usize {
        let state = self.capture.state.as_ref().map_or(0, |state| state.len());
        self.query.payload.len() + state + Self::WEIGHT
    }

    /// Returns the call of the service's code.
    #[must_use]
    pub fn call(&self) -> Call<'_> {
        self.query.call(self.service, self.time, (self.epoch, self.index))
    }

    /// Runs the query and returns its answer. `run` is the service's code; it may run anywhere and for any time.
    pub fn answer(&self, run: impl FnOnce(&Call<'_>, View<'_>) -> Outcome) -> Answer {
        let result = match run(&self.call(), self.capture.view()) {
            Outcome::Replied(reply) => Ok(reply),
            Outcome::Refused(misuse) => Err(Refusal::Misuse(misuse)),
            Outcome::Panicked(why) => Err(Refusal::Panicked(why)),
        };
        Answer {
            token: self.query.token,
            epoch: self.epoch,
            index: self.index,
            colour: self.colour,
            result,
            staleness: self.staleness,
        }
    }
}

/// The state of a process, read-only.
#[derive(Clone, Copy)]
pub struct View<'a>(&'a Capture);

impl<'a> View<'a> {
    /// Returns the process's whole-value state.
    #[must_use]
    pub fn state(&self) -> Option<&'a Blob> {
        self.0.state.as_ref()
    }

    /// Returns the value of one key of the process's keyed sub-state.
    #[must_use]
    pub fn cell(&self, cell: &[u8]) -> Option<&'a Blob> {
        self.0.cells.get(RecordKey::cell(&self.0.process, cell).as_bytes())
    }

    /// Returns the cells whose key begins with `prefix`, in order, from the key `from` on, `limit` at most.
    #[must_use]
    pub fn scan_cells(&self, prefix: &[u8], from: &[u8], limit: usize) -> Vec<(Vec<u8>, Blob)> {
        self.cells_from(prefix, from)
            .take(limit)
            .map(|(cell, value)| (cell.to_vec(), value.clone()))
            .collect()
    }

    fn cells_from(self, prefix: &[u8], from: &[u8]) -> impl Iterator<Item = (&'a [u8], &'a Blob)> {
        let Capture { process, cells, .. } = self.0;
        let start = RecordKey::cell(process, from.max(prefix));
        let prefix = RecordKey::cell(process, prefix);
        let head = RecordKey::cell(process, b"").as_bytes().len();
        let found = cells.from(start.as_bytes()).map(|(key, value)| (key.as_bytes(), value));
        found
            .take_while(move |(key, _)| key.starts_with(prefix.as_bytes()))
            .map(move |(key, value)| (&key[head..], value))
    }

    /// Returns a task of this process that is not finished.
    #[must_use]
    pub fn task(&self, id: TaskId) -> Option<TaskRecord> {
        self.0.tasks.get(&(self.0.process.clone(), id)).map(|value| task_of(value))
    }

    /// Returns all tasks of this process that are not finished.
    #[must_use]
    pub fn tasks(&self) -> Vec<(TaskId, TaskRecord)> {
        let Capture { process, tasks, .. } = self.0;
        let found = tasks.from(&(process.clone(), TaskId(0))).take_while(|((owner, _), _)| owner == process);
        found.map(|((_, id), value)| (*id, task_of(value))).collect()
    }
}

fn task_of(value: &[u8]) -> TaskRecord {
    decode_value(value).expect("checked when it was written or loaded")
}
