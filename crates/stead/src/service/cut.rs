//! A consistent cut of the whole system: its typed processes and the messages in flight between them.

use super::codec::{self, CodecError, UnreadableState};
use super::context::TaskState;
use super::process::Process;
use super::task::Task;
use serde::de::DeserializeOwned;
use std::sync::atomic::{AtomicBool, Ordering};
use stead_core::blob::Blob;
use stead_core::ids::{Seq, ShardId, TaskId};
use stead_core::record::{
    DeadLetter as Letter, Kind, Pending, RecordKey, Retry, TaskRecord, TimerRecord, decode_value,
};
use stead_core::state::State;
use stead_core::topology::Topology;
use thiserror::Error;

/// A consistent cut: the state of each shard at its marker of one checkpoint.
#[derive(Clone, Copy)]
pub struct Cut<'a> {
    topology: &'a Topology,
    /// In the order of their shards.
    states: &'a [State],
    /// Set by the check of a service that declares none.
    undeclared: Option<&'a AtomicBool>,
}

/// A message, timer, task or request that was given up because no handler could handle it, as
/// [`Cut::dead_letters`] returns it.
#[derive(Debug)]
pub struct DeadLetter<P: Process> {
    /// The process for which it was.
    pub key: P::Key,
    /// Its kind.
    pub cause: DeadLetterCause,
    /// The request that the process did not handle; `None` for a step of a task, and if it was too large to be kept or
    /// cannot be read.
    pub request: Option<P::Request>,
    /// The reason for which it was given up.
    pub reason: String,
    payload: Blob,
}

/// The kind of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadLetterCause {
    /// A message. It was received, and is no longer in flight.
    Message,
    /// A timer, which fired.
    Timer,
    /// A step of the task of this name; [`DeadLetter::task`] returns its state.
    Step {
        /// The task's name.
        name: String,
    },
    /// The result of a task.
    TaskResult,
    /// A client's request, which was refused to the client and changed nothing.
    Request,
}

impl<P: Process> DeadLetter<P> {
    /// Returns the state of the task whose step was given up, from before that step; `None` if it is of another task or
    /// cannot be read.
    #[must_use]
    pub fn task<T: Task<Owner = P>>(&self) -> Option<T> {
        let DeadLetterCause::Step { name } = &self.cause else { return None };
        if name == T::NAME { codec::decode(&self.payload, "a task's state", P::SERVICE).ok() } else { None }
    }
}

/// Data in a cut that cannot be read. Converts into a `String`, so that `?` works in [`Process::check`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CutError {
    /// A process's state.
    #[error(transparent)]
    State(#[from] UnreadableState),
    /// A key, a message or a timer.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl From<CutError> for String {
    fn from(error: CutError) -> Self {
        error.to_string()
    }
}

impl<'a> Cut<'a> {
    /// Creates a cut from the states of all shards of a topology, in the order of their ids.
    #[must_use]
    pub fn new(topology: &'a Topology, states: &'a [State]) -> Self {
        Self { topology, states, undeclared: None }
    }

    /// Creates an empty cut, to find out whether a service declares a check.
    pub(crate) fn probe(topology: &'a Topology, undeclared: &'a AtomicBool) -> Self {
        Self { topology, states: &[], undeclared: Some(undeclared) }
    }

    /// Runs instead of the check of a service that declares none.
    pub(crate) fn undeclared(&self) {
        if let Some(undeclared) = self.undeclared {
            undeclared.store(true, Ordering::Relaxed);
        }
    }

    /// Returns the processes of a service that have state, in no order.
    pub fn processes<P: Process>(&self) -> impl Iterator<Item = Result<(P::Key, P), CutError>> + use<'a, P> {
        records(self.shards(P::SERVICE), Kind::Process).map(|(key, value)| {
            let key = key.process_key().expect("the key of a process names it");
            Ok((codec::decode_key::<P>(key)?, codec::decode_state(key, value)?))
        })
    }

    /// Returns the state of one process; `None` if it has none.
    ///
    /// # Errors
    /// [`CutError`] if its state cannot be read.
    pub fn process<P: Process>(&self, key: &P::Key) -> Result<Option<P>, CutError> {
        let Some(service) = self.topology.service_id(P::SERVICE) else { return Ok(None) };
        let key = codec::encode_key::<P>(key)?;
        let state = find(self.states, self.topology.shard_of(service, &key));
        let stored = state.and_then(|state| state.records().get(RecordKey::process(&key).as_bytes()));
        Ok(stored.map(|bytes| codec::decode_state(&key, bytes)).transpose()?)
    }

    /// Returns the messages to processes of a service that were sent before the cut and not received before it.
    pub fn in_flight<P: Process>(
        &self,
    ) -> impl Iterator<Item = Result<(P::Key, P::Request), CutError>> + use<'a, P> {
        let (topology, states) = (self.topology, self.states);
        let service = topology.service_id(P::SERVICE);
        states
            .iter()
            .flat_map(|from| from.outboxes().iter().map(move |(to, outbox)| (from.shard(), to, outbox)))
            .filter(move |(_, to, _)| topology.service_of(*to) == service)
            .flat_map(move |(from, to, outbox)| {
                let received = find(states, to).and_then(|state| state.received().get(from).copied());
                let received = received.unwrap_or(Seq(0));
                outbox.messages.iter().filter(move |message| message.seq > received)
            })
            .map(|message| {
                let request = codec::decode(&message.payload, "a message", P::SERVICE)?;
                Ok((codec::decode_key::<P>(&message.process)?, request))
            })
    }

    /// Returns the messages with a delay ([`Context::send_after`](crate::Context::send_after)) to processes of a
    /// service that have not left.
    pub fn delayed<P: Process>(
        &self,
    ) -> impl Iterator<Item = Result<(P::Key, P::Request), CutError>> + use<'a, P> {
        let service = self.topology.service_id(P::SERVICE);
        records(self.states.iter(), Kind::Timer)
            .filter_map(|(_, value)| decode_value::<TimerRecord>(value).ok())
            .filter_map(move |timer| {
                let receiver = timer.send.filter(|receiver| Some(receiver.service) == service)?;
                Some((receiver.process, timer.payload))
            })
            .map(|(process, payload)| {
                let request = codec::decode(&payload, "a message", P::SERVICE)?;
                Ok((codec::decode_key::<P>(&process)?, request))
            })
    }

    /// Returns one cell of a process's keyed state; `None` if there is none.
    ///
    /// # Errors
    /// [`CutError`] if it cannot be read.
    pub fn cell<P: Process, V: DeserializeOwned>(
        &self,
        key: &P::Key,
        cell: &[u8],
    ) -> Result<Option<V>, CutError> {
        let Some(service) = self.topology.service_id(P::SERVICE) else { return Ok(None) };
        let key = codec::encode_key::<P>(key)?;
        let state = find(self.states, self.topology.shard_of(service, &key));
        let stored = state.and_then(|state| state.records().get(RecordKey::cell(&key, cell).as_bytes()));
        Ok(stored.map(|bytes| codec::decode(bytes, "a cell", P::SERVICE)).transpose()?)
    }

    /// Returns the cells of all processes of a service, each with the key of its process and its own, in no order.
    pub fn cells<P: Process, V: DeserializeOwned>(
        &self,
    ) -> impl Iterator<Item = Result<(P::Key, Vec<u8>, V), CutError>> + use<'a, P, V> {
        records(self.shards(P::SERVICE), Kind::Cell).map(|(key, value)| {
            let process = key.process_key().expect("the key of a cell names its process");
            let cell = key.cell_key().expect("it is a cell's").to_vec();
            Ok((codec::decode_key::<P>(process)?, cell, codec::decode(value, "a cell", P::SERVICE)?))
        })
    }

    /// Returns the tasks of a service's processes that are not finished, with the keys of the processes.
    pub fn tasks<P: Process>(
        &self,
    ) -> impl Iterator<Item = Result<(P::Key, TaskState), CutError>> + use<'a, P> {
        task_records(self.shards(P::SERVICE))
            .map(|(id, task)| Ok((codec::decode_key::<P>(&task.process)?, TaskState::new(id, task))))
    }

    /// Returns the states of the unfinished tasks of one kind, with the keys of the processes that started them.
    pub fn task_states<T: Task>(
        &self,
    ) -> impl Iterator<Item = Result<(<T::Owner as Process>::Key, T), CutError>> + use<'a, T> {
        task_records(self.shards(T::Owner::SERVICE)).filter(|(_, task)| task.name == T::NAME).map(
            |(_, task)| {
                let state = codec::decode(&task.state, "a task's state", T::Owner::SERVICE)?;
                Ok((codec::decode_key::<T::Owner>(&task.process)?, state))
            },
        )
    }

    /// Returns the dead letters of a service's processes: each was given up, and is neither in flight nor handled until
    /// an operator retries or deletes it.
    pub fn dead_letters<P: Process>(
        &self,
    ) -> impl Iterator<Item = Result<DeadLetter<P>, CutError>> + use<'a, P> {
        records(self.shards(P::SERVICE), Kind::DeadLetter)
            .filter_map(|(_, value)| decode_value::<Letter>(value).ok())
            .map(|letter| {
                let cause = match (letter.cause, letter.retry) {
                    (Pending::Message { .. } | Pending::DeadLetter { .. }, _) => DeadLetterCause::Message,
                    (Pending::Timer { .. }, _) => DeadLetterCause::Timer,
                    (Pending::Request { .. } | Pending::Call { .. }, _) => DeadLetterCause::Request,
                    (Pending::Task { .. }, Some(Retry::Result)) => DeadLetterCause::TaskResult,
                    (Pending::Task { .. }, Some(Retry::Step { name, .. })) => DeadLetterCause::Step { name },
                    (Pending::Task { .. }, _) => DeadLetterCause::Step { name: String::new() },
                };
                let request = match cause {
                    DeadLetterCause::Step { .. } => None,
                    _ => codec::decode(&letter.payload, "a request", P::SERVICE).ok(),
                };
                let key = codec::decode_key::<P>(&letter.process)?;
                Ok(DeadLetter { key, cause, request, reason: letter.reason, payload: letter.payload })
            })
    }

    /// Returns the requests of timers of a service's processes that have not fired.
    pub fn timers<P: Process>(
        &self,
    ) -> impl Iterator<Item = Result<(P::Key, P::Request), CutError>> + use<'a, P> {
        records(self.shards(P::SERVICE), Kind::Timer)
            .filter_map(|(_, value)| decode_value::<TimerRecord>(value).ok())
            .filter(|timer| timer.send.is_none())
            .map(|timer| {
                let request = codec::decode(&timer.payload, "a timer's request", P::SERVICE)?;
                Ok((codec::decode_key::<P>(&timer.process)?, request))
            })
    }

    fn shards(&self, service: &str) -> impl Iterator<Item = &'a State> + use<'a> {
        let (topology, states) = (self.topology, self.states);
        let service = topology.service_id(service);
        states.iter().filter(move |state| service.is_some() && topology.service_of(state.shard()) == service)
    }
}

/// Returns the records of one kind of some shards.
fn records<'a>(
    states: impl Iterator<Item = &'a State>,
    kind: Kind,
) -> impl Iterator<Item = (RecordKey, &'a Blob)> {
    states
        .flat_map(|state| state.records().iter())
        .filter(move |(key, _)| key[0] == kind as u8)
        .filter_map(|(key, value)| Some((RecordKey::from_bytes(key)?, value)))
}

fn task_records<'a>(states: impl Iterator<Item = &'a State>) -> impl Iterator<Item = (TaskId, TaskRecord)> {
    records(states, Kind::Task)
        .filter_map(|(key, value)| Some((TaskId(key.number()?), decode_value(value).ok()?)))
}

fn find(states: &[State], shard: ShardId) -> Option<&State> {
    states.binary_search_by_key(&shard, State::shard).ok().map(|at| &states[at])
}
