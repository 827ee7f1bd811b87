//! The core's interface to user code: it runs once for each cause and leaves its effects in a transaction.

use crate::blob::Blob;
use crate::calls::{Call, Caller, Outcome, Refusal};
use crate::capture::View;
use crate::entry::{Send, Write};
use crate::ids::{IDS_PER_ENTRY, Index, ServiceId, StepNumber, TaskId, Time, TimerId, id_of_entry};
use crate::key::Key;
use crate::record::{
    Kind, Receiver, RecordKey, StepRetry, TaskRecord, TimerRecord, decode_value, encode_value,
};
use crate::records::Records;
use crate::state::State;
use crate::topology::Topology;
use crate::writes::Writes;
use std::cell::{OnceCell, RefCell};
use thiserror::Error;

/// User code. The library implements it for typed services, the simulator for its workloads.
pub trait Handler {
    /// Runs the handler of a process for one cause. The effects in `txn` become one entry, unless the outcome drops
    /// them all.
    fn handle(&mut self, call: &Call<'_>, txn: &mut Txn<'_>) -> Outcome;

    /// Answers a query from the captured state of a process.
    fn query(&mut self, call: &Call<'_>, view: View<'_>) -> Outcome;

    /// Decides where a query runs: apart from the shard, unless its code is known to be brief. `state` is that of the
    /// process.
    ///
    /// # Errors
    /// The refusal of a query that is not accepted: nothing is captured for it.
    fn place_query(&mut self, call: &Call<'_>, state: Option<&Blob>) -> Result<QueryPlace, Refusal> {
        let _ = (call, state);
        Ok(QueryPlace::Apart)
    }

    /// Whether the shell has other work now: the shard's waiting work then continues to wait, and
    /// [`Shard::deadline`](crate::shard::Shard::deadline) asks for a tick at once. Called before each run of the
    /// handler except a client's.
    fn is_spent(&self) -> bool {
        false
    }
}

/// The place where a query runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryPlace {
    /// At once, on the shard's thread: only for code that ends soon whatever it reads.
    Here,
    /// Where the shell runs it: see [`Effect::Query`](crate::shard::Effect::Query).
    Apart,
}

/// The effects of one call, kept apart from the state until the handler has ended successfully.
pub struct Txn<'a> {
    state: &'a State,
    topology: &'a Topology,
    process: &'a Key,
    /// The process's state before the call, once it was looked up.
    stored: OnceCell<Option<&'a Blob>>,
    place: Index,
    /// The timer or task that calls: it has fired or ended, but its record is deleted only by the entry.
    ended: Option<RecordKey>,
    writes: Writes,
    /// Keys of cells between which a scan has found none: the cells between them are deleted by this call.
    no_cells: RefCell<Option<(RecordKey, RecordKey)>>,
    sends: Vec<Send>,
    numbered: u16,
}

// Each id that a call draws is one of its entry's.
const _: () = assert!(Txn::NUMBERED_MAX as u64 <= IDS_PER_ENTRY);
// A payload fits into the record of a timer, a task or a dead letter, with names, reasons and numbers around it.
const _: () =
    assert!(Txn::PAYLOAD_MAX + 3 * Key::LEN_MAX + StepRetry::REASON_MAX + 4096 <= Records::VALUE_MAX);
// A cell's key fits into the key of its record, after the kind and the length and key of its process.
const _: () = assert!(1 + 2 + Key::LEN_MAX + Txn::CELL_KEY_MAX <= RecordKey::LEN_MAX);

/// Reasons for which an effect cannot be part of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Limit {
    /// A message to a service that does not exist.
    #[error("no service {0} exists; register it before messages are sent to it")]
    UnknownService(String),
    /// A state, message or payload is too large.
    #[error("{what} of {len} bytes is over the limit of {max} bytes")]
    TooLarge {
        /// The kind of value.
        what: &'static str,
        /// Its bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Too many messages, timers or tasks in one call.
    #[error("one call makes more than {max} {what}; spread them over several calls")]
    TooMany {
        /// The kind of effect.
        what: &'static str,
        /// The limit.
        max: usize,
    },
}

impl<'a> Txn<'a> {
    /// Maximum number of messages that one call may send.
    pub const SENDS_MAX: usize = 65_536;
    /// Maximum number of timers and tasks together that one call may create.
    pub const NUMBERED_MAX: usize = u16::MAX as usize;
    /// Maximum number of bytes of a message, a timer's payload or a task's state: 16 MiB.
    pub const PAYLOAD_MAX: usize = 16 << 20;
    /// Maximum number of bytes of a cell's key.
    pub const CELL_KEY_MAX: usize = 1024;

    pub(crate) fn new(state: &'a State, topology: &'a Topology, call: &Call<'a>) -> Self {
        let ended = match call.caller {
            Caller::Timer { id } => Some(RecordKey::timer(id)),
            Caller::Task { id } => Some(RecordKey::task(id)),
            Caller::Client { .. } | Caller::Process { .. } => None,
        };
        Self {
            state,
            topology,
            process: call.key,
            stored: OnceCell::new(),
            place: call.place.1,
            ended,
            writes: Writes::default(),
            no_cells: RefCell::default(),
            sends: Vec::new(),
            numbered: 0,
        }
    }

    pub(crate) fn into_effects(self) -> (Vec<Write>, Vec<Send>) {
        (self.writes.into_vec(), self.sends)
    }

    /// Returns the services that messages can be sent to.
    #[must_use]
    pub fn topology(&self) -> &'a Topology {
        self.topology
    }

    /// Returns the process's whole-value state, as last put.
    #[must_use]
    pub fn state(&self) -> Option<&[u8]> {
        let key = || RecordKey::process(self.process);
        if !self.writes.is_empty() {
            return self.get(&key());
        }
        self.stored.get_or_init(|| self.state.records().get(key().as_bytes())).map(|state| &**state)
    }

    /// Puts the process's whole-value state.
    ///
    /// # Errors
    /// [`Limit::TooLarge`] over [`Records::VALUE_MAX`] bytes.
    pub fn put_state(&mut self, state: Blob) -> Result<(), Limit> {
        self.put(RecordKey::process(self.process), state, "a process's state")
    }

    /// Deletes the process's whole-value state.
    pub fn delete_state(&mut self) {
        self.writes.set(RecordKey::process(self.process), None);
    }

    /// Returns the value of one key of the process's keyed sub-state.
    #[must_use]
    pub fn cell(&self, cell: &[u8]) -> Option<&[u8]> {
        self.get(&RecordKey::cell(self.process, cell))
    }

    /// Puts one key of the keyed sub-state; only this key is logged.
    ///
    /// # Errors
    /// [`Limit::TooLarge`] if the key is over [`Self::CELL_KEY_MAX`] or the value over [`Records::VALUE_MAX`] bytes.
    pub fn put_cell(&mut self, cell: &[u8], value: Blob) -> Result<(), Limit> {
        check_len("a cell's key", cell.len(), Self::CELL_KEY_MAX)?;
        let key = RecordKey::cell(self.process, cell);
        if self.no_cells.get_mut().as_ref().is_some_and(|(from, to)| *from <= key && key < *to) {
            *self.no_cells.get_mut() = None;
        }
        self.put(key, value, "a cell's value")
    }

    /// Deletes one key of the keyed sub-state.
    pub fn delete_cell(&mut self, cell: &[u8]) {
        self.writes.set(RecordKey::cell(self.process, cell), None);
    }

    /// Returns the cells whose key begins with `prefix`, in order, from the key `from` on, `limit` at most.
    #[must_use]
    pub fn scan_cells(&self, prefix: &[u8], from: &[u8], limit: usize) -> Vec<(Vec<u8>, Blob)> {
        let mut start = RecordKey::cell(self.process, from.max(prefix));
        let asked = start.clone();
        if let Some((_, to)) =
            self.no_cells.borrow().as_ref().filter(|(from, to)| (from..to).contains(&&start))
        {
            start = to.clone();
        }
        let whole = RecordKey::cell(self.process, prefix);
        let is_asked = |key: &[u8]| key.starts_with(whole.as_bytes());
        let mut stored = self.state.records().scan_cells_from(start.as_bytes());
        let mut stored = std::iter::from_fn(|| stored.next().filter(|(key, _)| is_asked(key))).peekable();
        let mut written = self.writes.from(&start);
        let mut written =
            std::iter::from_fn(|| written.next().filter(|write| is_asked(write.key.as_bytes()))).peekable();
        let head = RecordKey::cell(self.process, b"").as_bytes().len();
        let mut found = Vec::new();
        // The last key that was looked at before the first cell was found.
        let mut seen = None;
        while found.len() < limit {
            let (key, value) = match (stored.peek(), written.peek()) {
                (None, None) => break,
                (Some((key, _)), Some(write)) if *key < write.key.as_bytes() => {
                    stored.next().map(|(key, value)| (key, Some(value))).expect("peeked")
                }
                (Some(_), None) => stored.next().map(|(key, value)| (key, Some(value))).expect("peeked"),
                (at, Some(write)) => {
                    if at.is_some_and(|(key, _)| *key == write.key.as_bytes()) {
                        stored.next();
                    }
                    written.next().map(|write| (write.key.as_bytes(), write.value.as_ref())).expect("peeked")
                }
            };
            if found.is_empty() {
                seen = Some(key);
            }
            if let Some(value) = value {
                found.push((key[head..].to_vec(), value.clone()));
            }
        }
        if let Some(seen) = seen.and_then(RecordKey::from_bytes) {
            *self.no_cells.borrow_mut() = Some((asked, seen));
        }
        found
    }

    /// Sends a message to a process; it leaves once the entry is committed.
    ///
    /// # Errors
    /// [`Limit`] for an unknown service, a message over [`Self::PAYLOAD_MAX`], or more than [`Self::SENDS_MAX`] of them.
    pub fn send(&mut self, service: &str, key: Key, payload: Blob) -> Result<(), Limit> {
        let id =
            self.topology.service_id(service).ok_or_else(|| Limit::UnknownService(service.to_owned()))?;
        self.send_to(id, key, payload)
    }

    /// Sends a message to a process of a service that was looked up before.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_to(&mut self, service: ServiceId, key: Key, payload: Blob) -> Result<(), Limit> {
        check_len("a message", payload.len(), Self::PAYLOAD_MAX)?;
        if self.sends.len() >= Self::SENDS_MAX {
            return Err(Limit::TooMany { what: "messages", max: Self::SENDS_MAX });
        }
        let to = self.topology.shard_of(service, &key);
        self.sends.push(Send { to, process: key, payload });
        Ok(())
    }

    /// Sets a timer; it fires exactly once, at `at` or as soon after that as the shard can.
    ///
    /// # Errors
    /// [`Limit`] for a payload over [`Self::PAYLOAD_MAX`] or too many timers in one call.
    pub fn set_timer(&mut self, at: Time, payload: Blob) -> Result<TimerId, Limit> {
        check_len("a timer's payload", payload.len(), Self::PAYLOAD_MAX)?;
        self.put_timer(at, payload, None)
    }

    /// Sends a message at `at`, or as soon after that as the shard can: it leaves then, exactly once, as a message of
    /// this process. Until then it can be cancelled like a timer.
    ///
    /// # Errors
    /// [`Limit`] for a payload over [`Self::PAYLOAD_MAX`] or too many timers in one call.
    pub fn send_at(
        &mut self,
        at: Time,
        service: ServiceId,
        key: Key,
        payload: Blob,
    ) -> Result<TimerId, Limit> {
        check_len("a message", payload.len(), Self::PAYLOAD_MAX)?;
        self.put_timer(at, payload, Some(Receiver { service, process: key }))
    }

    fn put_timer(&mut self, at: Time, payload: Blob, send: Option<Receiver>) -> Result<TimerId, Limit> {
        let id = TimerId(self.number("timers")?);
        let record = TimerRecord { at, process: self.process.clone(), payload, send };
        self.writes.set(RecordKey::timer(id), Some(encode_value(&record)));
        Ok(id)
    }

    /// Cancels a timer of this process; returns false if it has fired, or is not this process's.
    pub fn cancel_timer(&mut self, id: TimerId) -> bool {
        let key = RecordKey::timer(id);
        let own = self
            .get(&key)
            .and_then(|value| decode_value::<TimerRecord>(value).ok())
            .is_some_and(|timer| timer.process == *self.process);
        if own {
            self.writes.set(key, None);
        }
        own
    }

    /// Starts a task: its steps run off the shard's thread, and the last one's result comes back to this process.
    ///
    /// # Errors
    /// [`Limit`] for a state over [`Self::PAYLOAD_MAX`] or too many tasks in one call.
    pub fn start_task(&mut self, name: &str, state: Blob) -> Result<TaskId, Limit> {
        check_len("a task's state", state.len(), Self::PAYLOAD_MAX)?;
        let id = TaskId(self.number("tasks")?);
        let process = self.process.clone();
        let record = TaskRecord {
            process,
            name: name.to_owned(),
            step: StepNumber(0),
            state,
            progress: 0,
            retry: None,
        };
        self.writes.set(RecordKey::task(id), Some(encode_value(&record)));
        Ok(id)
    }

    /// Cancels a task of this process; a running step is not waited for, and its result is dropped. Returns false if
    /// the task has ended, or is not this process's.
    pub fn cancel_task(&mut self, id: TaskId) -> bool {
        let own = self.task(id).is_some();
        if own {
            self.writes.set(RecordKey::task(id), None);
        }
        own
    }

    /// Returns a task of this process that is not finished.
    #[must_use]
    pub fn task(&self, id: TaskId) -> Option<TaskRecord> {
        let task: TaskRecord = decode_value(self.get(&RecordKey::task(id))?).ok()?;
        (task.process == *self.process).then_some(task)
    }

    /// Returns all tasks of this process that are not finished, with those that this call started and without those
    /// that it cancelled.
    #[must_use]
    pub fn tasks(&self) -> Vec<(TaskId, TaskRecord)> {
        let written = self.writes.from(&RecordKey::task(TaskId(0)));
        let started = written
            .map_while(|write| write.key.number().filter(|_| write.key.kind() == Kind::Task).map(TaskId));
        let mut ids: Vec<TaskId> = self.state.tasks_of(self.process).chain(started).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().filter_map(|id| self.task(id).map(|task| (id, task))).collect()
    }

    /// Ids are drawn from the entry's index, so that they are unique without a counter.
    fn number(&mut self, what: &'static str) -> Result<u64, Limit> {
        let n = self.numbered;
        self.numbered = n.checked_add(1).ok_or(Limit::TooMany { what, max: Self::NUMBERED_MAX })?;
        Ok(id_of_entry(self.place, u64::from(n)))
    }

    fn get(&self, key: &RecordKey) -> Option<&[u8]> {
        match self.writes.get(key) {
            Some(write) => write.value.as_deref(),
            None if self.ended.as_ref() == Some(key) => None,
            None => self.state.records().get(key.as_bytes()).map(|value| &**value),
        }
    }

    fn put(&mut self, key: RecordKey, value: Blob, what: &'static str) -> Result<(), Limit> {
        check_len(what, value.len(), Records::VALUE_MAX)?;
        self.writes.set(key, Some(value));
        Ok(())
    }
}

fn check_len(what: &'static str, len: usize, max: usize) -> Result<(), Limit> {
    if len > max { Err(Limit::TooLarge { what, len, max }) } else { Ok(()) }
}
