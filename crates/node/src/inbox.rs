//! Where other threads leave work for a worker.

use crate::bell::Bell;
use crate::env::Reception;
use crate::status::{ShardStatus, WorkerStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use stead_core::ids::{Colour, Index, Key, SessionId, ShardId};
use stead_core::record::RecordKey;
use stead_core::shard::{Input, Order, Query, Request};

/// What a worker is to do.
pub(crate) enum Command<C> {
    /// A client's request; the answer goes to the reception. The token is the worker's to fill in.
    Request { shard: ShardId, request: Request, reception: Reception<C> },
    /// A client's query.
    Query { shard: ShardId, query: Query, reception: Reception<C> },
    /// An operator decides about a dead letter.
    DeadLetter { shard: ShardId, letter: Index, order: Order, reception: Reception<C> },
    /// An operator deletes records of a process.
    Delete { shard: ShardId, process: Key, records: Vec<RecordKey>, reception: Reception<C> },
    /// A client opens a session. Without a reception no one waits: if it is refused, its requests will be.
    OpenSession { shard: ShardId, session: SessionId, principal: Arc<str>, reception: Option<Reception<C>> },
    /// The same for every shard of this worker, from its so many-th on.
    Every { input: Input, from: usize },
    /// The next part of a shard holds everything.
    ForceFull(ShardId),
    /// The checkpoints up to this one take no more parts: their snapshots are drained to nowhere.
    GivenUp(Colour),
    /// Report the status of the shards; `taken` is that of the first ones.
    Status { to: mpsc::Sender<WorkerStatus>, taken: Vec<ShardStatus> },
    /// Show the records of one shard.
    Look { shard: ShardId, look: Box<dyn FnOnce(&stead_core::state::State) + Send> },
    /// Commit what was taken on, then end.
    Stop,
}

impl<C> Command<C> {
    /// The same input for every shard.
    pub(crate) fn every(input: Input) -> Self {
        Self::Every { input, from: 0 }
    }

    /// Bytes of a call in the accounting of memory until it is answered; 0 if no caller waits.
    pub(crate) fn request_bytes(&self) -> usize {
        let held = match self {
            Self::Request { request, .. } => request.payload.len() + request.process.len(),
            Self::Query { query, .. } => query.payload.len() + query.process.len(),
            Self::Delete { process, records, .. } => {
                let keys: usize = records.iter().map(|record| record.as_bytes().len()).sum();
                process.len() + keys + records.len() * size_of::<RecordKey>()
            }
            Self::DeadLetter { .. } | Self::OpenSession { reception: Some(_), .. } => 0,
            _ => return 0,
        };
        // In the inbox, and then with what is asked again.
        held + 2 * size_of::<Self>()
    }

    /// Whether it leaves the state as it is.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(self, Self::Query { .. })
    }
}

/// What waits in an inbox. Both are exchanged for empty ones with memory, so that nothing is allocated at full speed.
struct Queue<C> {
    commands: Vec<Command<C>>,
    inputs: Vec<(ShardId, Input)>,
}

/// A worker's inbox. Any thread puts in; the worker takes all at once.
pub(crate) struct Inbox<C> {
    /// `None` once the worker has ended: what is put in then is dropped.
    queue: Mutex<Option<Queue<C>>>,
    /// Something was put in since the worker last took all.
    is_filled: AtomicBool,
    /// The worker's bell.
    pub(crate) bell: Bell,
    /// The last of the worker's submissions that the log holds durably.
    durable: AtomicU64,
}

impl<C> Inbox<C> {
    pub(crate) fn new() -> Self {
        Self {
            queue: Mutex::new(Some(Queue { commands: Vec::new(), inputs: Vec::new() })),
            is_filled: AtomicBool::new(false),
            bell: Bell::default(),
            durable: AtomicU64::new(0),
        }
    }

    /// Puts a command in and wakes the worker if it sleeps.
    pub(crate) fn push(&self, command: Command<C>) {
        if let Some(queue) = &mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            queue.commands.push(command);
            self.is_filled.store(true, Ordering::Relaxed);
        }
        self.bell.ring();
    }

    /// Puts inputs for shards in, which leaves `inputs` empty, and wakes the worker if it sleeps.
    pub(crate) fn push_inputs(&self, inputs: &mut Vec<(ShardId, Input)>) {
        match &mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(queue) => {
                queue.inputs.append(inputs);
                self.is_filled.store(true, Ordering::Relaxed);
            }
            None => inputs.clear(),
        }
        self.bell.ring();
    }

    /// The log holds all of the worker's submissions up to one.
    pub(crate) fn set_durable(&self, ticket: u64) {
        self.durable.store(ticket, Ordering::Release);
        self.bell.ring();
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Takes everything; both must be empty and give their memory in exchange.
    pub(crate) fn take(&self, commands: &mut Vec<Command<C>>, inputs: &mut Vec<(ShardId, Input)>) {
        // Set before the ring that gave the worker its turn.
        if self.is_filled.load(Ordering::Relaxed) {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            self.is_filled.store(false, Ordering::Relaxed);
            if let Some(queue) = &mut *queue {
                std::mem::swap(&mut queue.commands, commands);
                std::mem::swap(&mut queue.inputs, inputs);
            }
        }
    }

    /// Takes nothing any more, and drops what is in.
    pub(crate) fn close(&self) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        // After the lock: dropping a call wakes its caller.
        drop(queue);
    }
}
