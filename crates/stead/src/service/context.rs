//! The interface of a handler beyond its own state.

use super::codec;
use super::process::Process;
use super::registry::TaskNames;
use super::task::Task;
use fastrand::Rng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::marker::PhantomData;
use std::time::Duration;
use stead_core::blob::Blob;
use stead_core::calls::{Call, Caller as CoreCaller};
use stead_core::capture::View;
use stead_core::handler::{Limit, Txn};
use stead_core::ids::{Epoch, Index, ServiceId, TaskId, Time, TimerId};
use stead_core::key::Key;
use stead_core::record::{StepRetry, TaskRecord};
use stead_core::topology::Topology;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The caller of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller<'a> {
    /// A client, by the name with which it authenticated.
    Client {
        /// The name.
        principal: &'a str,
    },
    /// Another process, or this one, by a message.
    Process {
        /// Its service.
        service: &'a str,
        /// Its key.
        key: &'a str,
    },
    /// A timer that the process set.
    Timer {
        /// The timer.
        id: TimerId,
    },
    /// A task that the process started: it ended.
    Task {
        /// The task.
        id: TaskId,
    },
}

impl<'a> Caller<'a> {
    fn new(caller: CoreCaller<'a>, topology: &'a Topology) -> Self {
        match caller {
            CoreCaller::Client { principal } => Self::Client { principal },
            CoreCaller::Process { service, key } => {
                Self::Process { service: &topology.service(service).name, key }
            }
            CoreCaller::Timer { id } => Self::Timer { id },
            CoreCaller::Task { id } => Self::Task { id },
        }
    }
}

/// A task of a process that is not finished.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskState {
    /// The task.
    pub id: TaskId,
    /// The name of its kind.
    pub name: String,
    /// The next step, counted from 0.
    pub step: u64,
    /// The share that is done, 0.0 to 1.0, as its last step returned it.
    pub progress: f64,
    /// Number of failures of the next step with [`Progress::Retry`](crate::Progress::Retry) so far.
    pub retries: u32,
    /// The reason of the last failure; `None` if it has not failed.
    pub failure: Option<String>,
    /// The time at which it runs again; `None` if it has not failed.
    pub retry_at: Option<Time>,
}

impl TaskState {
    pub(crate) fn new(id: TaskId, record: TaskRecord) -> Self {
        let (retries, failure, retry_at) = match record.retry {
            Some(StepRetry { count, at, reason }) => (count, Some(reason), Some(at)),
            None => (0, None, None),
        };
        let progress = f64::from(record.progress) / 1e6;
        Self { id, name: record.name, step: record.step.0, progress, retries, failure, retry_at }
    }
}

/// The part of [`Txn`] that a context needs, without its second lifetime, which users would have to write.
trait Effects {
    fn topology(&self) -> &Topology;
    fn cell(&self, cell: &[u8]) -> Option<&[u8]>;
    fn put_cell(&mut self, cell: &[u8], value: Blob) -> Result<(), Limit>;
    fn delete_cell(&mut self, cell: &[u8]);
    fn scan_cells(&self, prefix: &[u8], from: &[u8], limit: usize) -> Vec<(Vec<u8>, Blob)>;
    fn send_to(&mut self, service: ServiceId, key: Key, payload: Blob) -> Result<(), Limit>;
    fn set_timer(&mut self, at: Time, payload: Blob) -> Result<TimerId, Limit>;
    fn send_at(&mut self, at: Time, to: ServiceId, key: Key, payload: Blob) -> Result<TimerId, Limit>;
    fn cancel_timer(&mut self, id: TimerId) -> bool;
    fn start_task(&mut self, name: &str, state: Blob) -> Result<TaskId, Limit>;
    fn cancel_task(&mut self, id: TaskId) -> bool;
    fn task(&self, id: TaskId) -> Option<TaskRecord>;
    fn tasks(&self) -> Vec<(TaskId, TaskRecord)>;
}

impl Effects for Txn<'_> {
    fn topology(&self) -> &Topology {
        Txn::topology(self)
    }
    fn cell(&self, cell: &[u8]) -> Option<&[u8]> {
        Txn::cell(self, cell)
    }
    fn put_cell(&mut self, cell: &[u8], value: Blob) -> Result<(), Limit> {
        Txn::put_cell(self, cell, value)
    }
    fn delete_cell(&mut self, cell: &[u8]) {
        Txn::delete_cell(self, cell);
    }
    fn scan_cells(&self, prefix: &[u8], from: &[u8], limit: usize) -> Vec<(Vec<u8>, Blob)> {
        Txn::scan_cells(self, prefix, from, limit)
    }
    fn send_to(&mut self, service: ServiceId, key: Key, payload: Blob) -> Result<(), Limit> {
        Txn::send_to(self, service, key, payload)
    }
    fn set_timer(&mut self, at: Time, payload: Blob) -> Result<TimerId, Limit> {
        Txn::set_timer(self, at, payload)
    }
    fn send_at(&mut self, at: Time, to: ServiceId, key: Key, payload: Blob) -> Result<TimerId, Limit> {
        Txn::send_at(self, at, to, key, payload)
    }
    fn cancel_timer(&mut self, id: TimerId) -> bool {
        Txn::cancel_timer(self, id)
    }
    fn start_task(&mut self, name: &str, state: Blob) -> Result<TaskId, Limit> {
        Txn::start_task(self, name, state)
    }
    fn cancel_task(&mut self, id: TaskId) -> bool {
        Txn::cancel_task(self, id)
    }
    fn task(&self, id: TaskId) -> Option<TaskRecord> {
        Txn::task(self, id)
    }
    fn tasks(&self) -> Vec<(TaskId, TaskRecord)> {
        Txn::tasks(self)
    }
}

/// The interface of a handler beyond its own state. All of its effects are kept with the state, or not at all.
pub struct Context<'a, P: Process> {
    effects: &'a mut (dyn Effects + 'a),
    key: P::Key,
    key_text: &'a Key,
    service: ServiceId,
    caller: CoreCaller<'a>,
    time: Time,
    place: (Epoch, Index),
    tasks: &'a TaskNames,
    seed: u64,
    rng: Option<Rng>,
    forget: bool,
}

impl<'a, P: Process> Context<'a, P> {
    pub(crate) fn new(
        key: P::Key,
        call: &Call<'a>,
        txn: &'a mut Txn<'_>,
        tasks: &'a TaskNames,
        seed: u64,
    ) -> Self {
        Self {
            effects: txn,
            key,
            key_text: call.key,
            service: call.service,
            caller: call.caller,
            time: call.time,
            place: call.place,
            tasks,
            seed,
            rng: None,
            forget: false,
        }
    }

    pub(crate) fn is_forgotten(&self) -> bool {
        self.forget
    }

    /// Returns the key of this process.
    #[must_use]
    pub fn key(&self) -> &P::Key {
        &self.key
    }

    /// Returns the caller.
    #[must_use]
    pub fn caller(&self) -> Caller<'_> {
        Caller::new(self.caller, self.effects.topology())
    }

    /// Returns the shard's time: it never runs backwards, not even over a restart with a clock that was set back.
    #[must_use]
    pub fn time(&self) -> Time {
        self.time
    }

    /// Returns a unique name for this call within its process: for effects outside of the system.
    #[must_use]
    pub fn place(&self) -> (Epoch, Index) {
        self.place
    }

    /// Returns a random number generator, newly seeded for each call. Not for secrets.
    pub fn random(&mut self) -> &mut Rng {
        let (epoch, index) = self.place;
        let (service, key, seed) = (self.service, self.key_text, self.seed);
        self.rng.get_or_insert_with(|| {
            let place = epoch.0.rotate_left(40) ^ index.0 ^ u64::from(service.0).rotate_left(20);
            Rng::with_seed(xxh3_64_with_seed(key.as_bytes(), seed ^ place))
        })
    }

    /// Sends a message to a process of any service, this one included. It arrives exactly once, in order with the
    /// others from this process to that one; an error or a panic of its handler is not reported back.
    ///
    /// # Panics
    /// If [`Self::try_send`] would return an error; the call then leaves no trace.
    #[track_caller]
    pub fn send<Q: Process>(&mut self, key: &Q::Key, request: Q::Request) {
        done(self.try_send::<Q>(key, request));
    }

    /// Sends a message as [`Self::send`] does.
    ///
    /// # Errors
    /// [`EffectError`] if the service is not registered, the key is invalid, the message is over 16 MiB, or the call
    /// has sent 65,536 of them.
    pub fn try_send<Q: Process>(&mut self, key: &Q::Key, request: Q::Request) -> Result<(), EffectError> {
        let (service, key, payload) = self.message::<Q>(key, &request)?;
        Ok(self.effects.send_to(service, key, payload)?)
    }

    /// Sends a message to a process of any service, this one included, after the delay or as soon after that as the
    /// shard can. It leaves then, exactly once, in the order of due times; [`Self::cancel_timer`] cancels it until
    /// then.
    ///
    /// # Panics
    /// If the service is not registered, the key is invalid, the message is over 16 MiB, or the call makes over 65,535
    /// timers and tasks; the call then leaves no trace.
    #[track_caller]
    pub fn send_after<Q: Process>(&mut self, delay: Duration, key: &Q::Key, request: Q::Request) -> TimerId {
        let at = self.time.plus(delay.into());
        let sent = self
            .message::<Q>(key, &request)
            .and_then(|(service, key, payload)| Ok(self.effects.send_at(at, service, key, payload)?));
        done(sent)
    }

    fn message<Q: Process>(
        &self,
        key: &Q::Key,
        request: &Q::Request,
    ) -> Result<(ServiceId, Key, Blob), EffectError> {
        let service = match self.effects.topology().service_id(Q::SERVICE) {
            Some(service) => service,
            None => return Err(Limit::UnknownService(Q::SERVICE.to_owned()).into()),
        };
        Ok((service, codec::encode_key::<Q>(key)?, codec::encode(request, "a message", Q::SERVICE)?))
    }

    /// Sets a timer: after the delay, or as soon after that as the shard can, the request comes to this process, once.
    ///
    /// # Panics
    /// If the request is over 16 MiB or the call makes over 65,535 timers and tasks; the call then leaves no trace.
    #[track_caller]
    pub fn set_timer(&mut self, delay: Duration, request: P::Request) -> TimerId {
        self.set_timer_at(self.time.plus(delay.into()), request)
    }

    /// Sets a timer as [`Self::set_timer`] does, for a time of the shard's clock.
    ///
    /// # Panics
    /// As [`Self::set_timer`].
    #[track_caller]
    pub fn set_timer_at(&mut self, at: Time, request: P::Request) -> TimerId {
        let set = codec::encode(&request, "a timer's request", P::SERVICE)
            .map_err(EffectError::from)
            .and_then(|payload| Ok(self.effects.set_timer(at, payload)?));
        done(set)
    }

    /// Cancels a timer of this process, or a delayed message of it; returns false if it has fired, has left or was
    /// cancelled.
    pub fn cancel_timer(&mut self, id: TimerId) -> bool {
        self.effects.cancel_timer(id)
    }

    /// Starts a task of this process.
    ///
    /// # Panics
    /// If the task is not registered with the node, its state is over 16 MiB, or the call makes over 65,535 timers and
    /// tasks; the call then leaves no trace.
    #[track_caller]
    pub fn start_task<T: Task<Owner = P>>(&mut self, task: T) -> TaskId {
        assert!(
            self.tasks.contains(T::NAME),
            "no task {} is registered; add `.task::<{}>()` to the node's builder",
            T::NAME,
            std::any::type_name::<T>()
        );
        let started = codec::encode(&task, "a task", P::SERVICE)
            .map_err(EffectError::from)
            .and_then(|state| Ok(self.effects.start_task(T::NAME, state)?));
        done(started)
    }

    /// Cancels a task of this process; returns false if it has ended. The outcome of a running step is dropped.
    pub fn cancel_task(&mut self, id: TaskId) -> bool {
        self.effects.cancel_task(id)
    }

    /// Returns a task of this process; `None` once it has ended.
    #[must_use]
    pub fn task(&self, id: TaskId) -> Option<TaskState> {
        self.effects.task(id).map(|record| TaskState::new(id, record))
    }

    /// Returns the tasks of this process that are not finished, with those that this call started.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskState> {
        self.effects.tasks().into_iter().map(|(id, record)| TaskState::new(id, record)).collect()
    }

    /// Returns one cell of this process's keyed state.
    ///
    /// # Panics
    /// If the cell holds another type's bytes.
    #[must_use]
    #[track_caller]
    pub fn cell<V: DeserializeOwned>(&self, cell: &[u8]) -> Option<V> {
        let bytes = self.effects.cell(cell)?;
        Some(read_cell::<P, V>(bytes))
    }

    /// Puts one cell of the keyed state; only this cell is stored.
    ///
    /// # Panics
    /// If the cell's key is over 1 KiB, its value over 64 MiB, or it cannot be written; the call then leaves no trace.
    #[track_caller]
    pub fn put_cell<V: Serialize>(&mut self, cell: &[u8], value: &V) {
        let put = codec::encode(value, "a cell", P::SERVICE)
            .map_err(EffectError::from)
            .and_then(|value| Ok(self.effects.put_cell(cell, value)?));
        done(put);
    }

    /// Deletes one cell of the keyed state.
    pub fn delete_cell(&mut self, cell: &[u8]) {
        self.effects.delete_cell(cell);
    }

    /// Returns the cells whose key begins with `prefix`, in order, from the key `from` on, `limit` at most.
    ///
    /// # Panics
    /// If a cell holds another type's bytes.
    #[must_use]
    #[track_caller]
    pub fn scan_cells<V: DeserializeOwned>(
        &self,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Vec<(Vec<u8>, V)> {
        let found = self.effects.scan_cells(prefix, from, limit);
        read_cells::<P, V>(found)
    }

    /// Deletes this process's state when the call succeeds: the next call finds `Default`. Its cells stay.
    pub fn forget(&mut self) {
        self.forget = true;
    }
}

/// Unwraps the result of an effect, or panics where the user's code called: a closure would point into the library.
#[track_caller]
fn done<T, E: Display>(made: Result<T, E>) -> T {
    match made {
        Ok(made) => made,
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn read_cell<P: Process, V: DeserializeOwned>(bytes: &[u8]) -> V {
    done(codec::decode(bytes, "a cell", P::SERVICE))
}

#[track_caller]
fn read_cells<P: Process, V: DeserializeOwned>(found: Vec<(Vec<u8>, Blob)>) -> Vec<(Vec<u8>, V)> {
    let mut cells = Vec::with_capacity(found.len());
    for (cell, bytes) in found {
        cells.push((cell, read_cell::<P, V>(&bytes)));
    }
    cells
}

/// Reasons for which an effect of a call is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EffectError {
    /// Over a limit, or to a service that does not exist.
    #[error(transparent)]
    Limit(#[from] Limit),
    /// The key or the value cannot be encoded.
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
}

/// The interface of a query beyond the state.
pub struct QueryContext<'a, P: Process> {
    view: View<'a>,
    key: P::Key,
    caller: CoreCaller<'a>,
    time: Time,
    topology: &'a Topology,
    process: PhantomData<fn(P)>,
}

impl<'a, P: Process> QueryContext<'a, P> {
    pub(crate) fn new(key: P::Key, call: &Call<'a>, view: View<'a>, topology: &'a Topology) -> Self {
        Self { view, key, caller: call.caller, time: call.time, topology, process: PhantomData }
    }

    /// Returns the key of this process.
    #[must_use]
    pub fn key(&self) -> &P::Key {
        &self.key
    }

    /// Returns the client's principal.
    #[must_use]
    pub fn caller(&self) -> Caller<'_> {
        Caller::new(self.caller, self.topology)
    }

    /// Returns the shard's time.
    #[must_use]
    pub fn time(&self) -> Time {
        self.time
    }

    /// Whether the process has stored state: false before its first change, and after it was forgotten.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.view.state().is_some()
    }

    /// Returns one cell of this process's keyed state.
    ///
    /// # Panics
    /// If the cell holds another type's bytes; the caller gets the error.
    #[must_use]
    #[track_caller]
    pub fn cell<V: DeserializeOwned>(&self, cell: &[u8]) -> Option<V> {
        let bytes = self.view.cell(cell)?;
        Some(read_cell::<P, V>(bytes))
    }

    /// Returns the cells whose key begins with `prefix`, in order, from the key `from` on, `limit` at most.
    ///
    /// # Panics
    /// As [`Self::cell`].
    #[must_use]
    #[track_caller]
    pub fn scan_cells<V: DeserializeOwned>(
        &self,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Vec<(Vec<u8>, V)> {
        let found = self.view.scan_cells(prefix, from, limit);
        read_cells::<P, V>(found)
    }

    /// Returns the tasks of this process that are not finished.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskState> {
        self.view.tasks().into_iter().map(|(id, record)| TaskState::new(id, record)).collect()
    }
}
