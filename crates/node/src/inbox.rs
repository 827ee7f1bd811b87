//! The queue through which other threads give work to a worker.

use crate::bell::Bell;
use crate::forward;
use crate::reply::{Caller, ReplyTo};
use crate::status::{ShardStatus, WorkerStatus};
use crate::transfers::desk::Transfer;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use stead_core::calls::{Query, Request};
use stead_core::ids::{CheckpointNumber, Index, ReplicaId, SessionId, ShardId};
use stead_core::key::Key;
use stead_core::look::Look;
use stead_core::record::RecordKey;
use stead_core::shard::{DeadLetterAction, Input};
use stead_core::shard_replica;
use stead_store::snapshots::SnapshotName;

/// A command for a worker.
pub(crate) enum Command<C> {
    /// A client's request; the answer goes to `reply_to`. The worker fills in the token.
    Request { shard: ShardId, request: Request, reply_to: ReplyTo<C> },
    /// A client's query.
    Query { shard: ShardId, query: Query, reply_to: ReplyTo<C> },
    /// An operator's decision on a dead letter.
    DeadLetter { shard: ShardId, letter: Index, action: DeadLetterAction, reply_to: ReplyTo<C> },
    /// An operator deletes records of a process.
    Delete { shard: ShardId, process: Key, records: Vec<RecordKey>, reply_to: ReplyTo<C> },
    /// An operator looks at the state of a shard.
    Show { shard: ShardId, look: Box<Look>, reply_to: ReplyTo<C> },
    /// A client opens a session. Without `reply_to` no caller waits: if it is refused, its requests will be refused,
    /// too.
    OpenSession { shard: ShardId, session: SessionId, principal: Arc<str>, reply_to: Option<ReplyTo<C>> },
    /// The same input for every shard of this worker, from the one at position `from` on.
    Every { input: Input, from: usize },
    /// The next part of a shard must have every record.
    ForceFull(ShardId),
    /// The checkpoints up to this one take no more parts, of one shard or of any: their snapshots are drained and dropped.
    Discard { shard: Option<ShardId>, number: CheckpointNumber },
    /// Report the status of the shards; `taken` is that of the first ones.
    Status { to: mpsc::Sender<WorkerStatus>, taken: Vec<ShardStatus> },
    /// Pass the state of one shard to a function.
    Look { shard: ShardId, look: Box<dyn FnOnce(&stead_core::state::State) + Send> },
    /// News of calls that this worker forwarded, or of the nodes that have them.
    Forwarded(forward::News),
    /// An input for a replica of a shard, from the control plane or from a peer: for the one that is named, or for any that is here.
    Replica { shard: ShardId, to: Option<ReplicaId>, input: shard_replica::Input },
    /// Take a snapshot of a replica soon.
    TakeSnapshot { shard: ShardId, replica: ReplicaId },
    /// A transfer of a snapshot has its turn.
    SendSnapshot(Transfer),
    /// A snapshot that was taken is durable, or cannot be written.
    SnapshotWritten { name: SnapshotName, is_durable: bool },
    /// Begin an empty replica of a shard.
    Place { shard: ShardId, replica: ReplicaId },
    /// Drop a replica of a shard for ever.
    DeleteReplica { shard: ShardId, replica: ReplicaId },
    /// Commit the accepted work, then end.
    Stop,
}

impl<C> Command<C> {
    /// Returns the command that passes an input to every shard.
    pub(crate) fn every(input: Input) -> Self {
        Self::Every { input, from: 0 }
    }

    /// Returns the bytes of a call in the accounting of memory until it is answered; 0 if no caller waits.
    pub(crate) fn request_bytes(&self) -> usize {
        let held = match self {
            Self::Request { request, .. } => request.payload.len() + request.process.len(),
            Self::Query { query, .. } => query.payload.len() + query.process.len(),
            Self::Delete { process, records, .. } => {
                let keys: usize = records.iter().map(|record| record.as_bytes().len()).sum();
                process.len() + keys + records.len() * size_of::<RecordKey>()
            }
            Self::Show { look, .. } => size_of::<Look>() + look.bytes(),
            Self::DeadLetter { .. } | Self::OpenSession { reply_to: Some(_), .. } => 0,
            _ => return 0,
        };
        // In the inbox, and then among the inputs to repeat.
        held + 2 * size_of::<Self>()
    }

    /// Whether another node may perform it, if that leads the shard.
    pub(crate) fn can_be_forwarded(&self) -> bool {
        matches!(
            self,
            Self::Request { .. }
                | Self::Query { .. }
                | Self::DeadLetter { .. }
                | Self::Delete { .. }
                | Self::Show { .. }
                | Self::OpenSession { .. }
        )
    }

    /// Drops a call for a worker that has ended.
    fn drop_unanswered(self)
    where
        C: Caller,
    {
        let reply_to = match self {
            Self::Request { reply_to, .. }
            | Self::Query { reply_to, .. }
            | Self::DeadLetter { reply_to, .. }
            | Self::Delete { reply_to, .. }
            | Self::Show { reply_to, .. }
            | Self::OpenSession { reply_to: Some(reply_to), .. } => reply_to,
            _ => return,
        };
        reply_to.caller.drop_unanswered();
    }

    /// Whether it leaves the state unchanged.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(self, Self::Query { .. } | Self::Show { .. })
    }
}

/// The contents of an inbox. Both are exchanged for empty ones with capacity, so that nothing is allocated at full
/// speed.
struct Queue<C> {
    commands: Vec<Command<C>>,
    inputs: Vec<(ShardId, Input)>,
}

/// A worker's inbox. Any thread adds to it; the worker takes everything at once.
pub(crate) struct Inbox<C> {
    /// `None` once the worker has ended: later additions are dropped, and calls answered if their callers do not learn of it otherwise.
    queue: Mutex<Option<Queue<C>>>,
    /// Whether anything was added since the worker last took everything.
    is_filled: AtomicBool,
    /// The worker's bell.
    pub(crate) bell: Arc<Bell>,
    /// The last of the worker's submissions that count as durable, and the last one that is synced.
    durable: AtomicU64,
    synced: AtomicU64,
}

impl<C: Caller> Inbox<C> {
    pub(crate) fn new() -> Self {
        Self {
            queue: Mutex::new(Some(Queue { commands: Vec::new(), inputs: Vec::new() })),
            is_filled: AtomicBool::new(false),
            bell: Arc::default(),
            durable: AtomicU64::new(0),
            synced: AtomicU64::new(0),
        }
    }

    /// Adds a command, and wakes the worker if it sleeps.
    pub(crate) fn push(&self, command: Command<C>) {
        let late = match &mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(queue) => {
                queue.commands.push(command);
                self.is_filled.store(true, Ordering::Relaxed);
                None
            }
            None => Some(command),
        };
        if let Some(late) = late {
            late.drop_unanswered();
        }
        self.bell.ring();
    }

    /// Adds inputs for shards, which empties `inputs`, and wakes the worker if it sleeps.
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

    /// Drops inputs that no worker has taken.
    pub(crate) fn drop_inputs(&self, is_dropped: impl Fn(&(ShardId, Input)) -> bool) {
        if let Some(queue) = &mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            queue.inputs.retain(|input| !is_dropped(input));
        }
    }

    /// Notes that the log has all of the worker's submissions up to one durably.
    pub(crate) fn set_durable(&self, ticket: u64) {
        self.synced.store(ticket, Ordering::Release);
        self.set_stored(ticket);
    }

    /// Notes that all of the worker's submissions up to one count as durable, though they may not be synced.
    pub(crate) fn set_stored(&self, ticket: u64) {
        self.durable.store(ticket, Ordering::Release);
        self.bell.ring();
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Returns the last of the worker's submissions that is synced.
    pub(crate) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Takes everything; both arguments must be empty, and their capacity is used in exchange.
    pub(crate) fn take(&self, commands: &mut Vec<Command<C>>, inputs: &mut Vec<(ShardId, Input)>) {
        // Set before the ring that caused the worker's turn.
        if self.is_filled.load(Ordering::Relaxed) {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            self.is_filled.store(false, Ordering::Relaxed);
            if let Some(queue) = &mut *queue {
                std::mem::swap(&mut queue.commands, commands);
                std::mem::swap(&mut queue.inputs, inputs);
            }
        }
    }

    /// Closes the inbox, and drops its contents.
    pub(crate) fn close(&self) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        // After the lock: dropping a call wakes its caller.
        queue.into_iter().flat_map(|queue| queue.commands).for_each(Command::drop_unanswered);
    }
}
