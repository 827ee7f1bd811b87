//! A shard's state: the fold of its entries. No user code, no clock, no decision: `state' = apply(state, entry)`.

mod fold;
mod header;
mod indexes;

pub use header::{Header, Position};

use crate::blob::Blob;
use crate::channel::{Message, Outbox};
use crate::ids::{
    Colour, Epoch, Index, RequestNumber, Seq, Served, SessionId, ShardId, TaskId, Time, TimerId,
};
use crate::key::Key;
use crate::ordered::{Frozen, Ordered};
use crate::outgoing::Outgoing;
use crate::record::{Kind, RecordKey, decode_value};
use crate::records::{Piece, Records};
use crate::reply::Reply;
use crate::shard_map::ShardMap;
use minicbor::Decode;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// The state of a shard.
pub struct State {
    shard: ShardId,
    position: Position,
    records: Records,
    outboxes: ShardMap<Outbox>,
    received: ShardMap<Seq>,
    outbox_bytes: usize,
    outbox_messages: usize,
    /// Messages of the outboxes at the last marker that its part does not have yet.
    outgoing: Outgoing,
    /// Number of records that the fold has written, and of messages that it has moved.
    folded: u64,
    // The following is derived from the records, so that nothing needs a scan.
    sessions: BTreeMap<SessionId, OpenSession>,
    timers: BTreeSet<(Time, TimerId)>,
    expiries: BTreeSet<(Served, RecordKey)>,
    tasks: BTreeSet<TaskId>,
    /// The same by process, with their records: queries read a copy of it.
    process_tasks: Ordered<(Key, TaskId), Blob>,
    attempts: BTreeSet<RecordKey>,
    dead_letters: BTreeSet<Index>,
    kept: Kept,
    principals: BTreeMap<Arc<str>, OfPrincipal>,
}

/// State that a shard keeps besides its processes, in bytes: of keys and values, and [`State::RECORD_WEIGHT`] for each
/// record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Replies that are kept for a retry, in sessions and under idempotency keys.
    pub replies: usize,
    /// Timers and tasks.
    pub waiting: usize,
    /// Dead letters.
    pub dead_letters: usize,
}

/// State that a shard keeps for one principal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfPrincipal {
    /// Its sessions.
    pub sessions: usize,
    /// Its share of [`Kept::replies`].
    pub replies: usize,
}

/// The in-memory form of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSession {
    /// The principal that opened it.
    pub principal: Arc<str>,
    /// The client has the replies up to this number.
    pub confirmed: RequestNumber,
    /// The greatest number that was handled.
    pub highest: RequestNumber,
    /// The time at which the session expires unless it is used.
    pub expires: Served,
    /// Its share of [`Kept::replies`].
    pub kept: usize,
    /// Whether its record was read. While a part is loaded, replies may come before it.
    known: bool,
}

/// An entry that does not follow from the state to which it is applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The index is not the next one.
    #[error("shard {shard}: entry {found} follows entry {last}; the log has a gap or a repetition")]
    Index {
        /// The shard.
        shard: ShardId,
        /// The last applied index.
        last: Index,
        /// The index of the refused entry.
        found: Index,
    },
    /// The epoch falls.
    #[error(
        "shard {shard}: entry {index} is of epoch {found} after epoch {last}; the log is of two histories"
    )]
    Epoch {
        /// The shard.
        shard: ShardId,
        /// The refused entry.
        index: Index,
        /// The epoch before.
        last: Epoch,
        /// The entry's epoch.
        found: Epoch,
    },
    /// A message was received out of turn.
    #[error("shard {shard}: entry {index} receives message {found} of shard {from} after {last}")]
    Channel {
        /// The receiving shard.
        shard: ShardId,
        /// The refused entry.
        index: Index,
        /// The sending shard.
        from: ShardId,
        /// The last received message.
        last: Seq,
        /// The message of the entry.
        found: Seq,
    },
    /// A record's value is not of its kind.
    #[error("shard {shard}: cannot read record {key:?}: {reason}")]
    Record {
        /// The shard.
        shard: ShardId,
        /// The record.
        key: RecordKey,
        /// The decoder's reason.
        reason: String,
    },
    /// A request confirms more replies than a session can have.
    #[error(
        "shard {shard}: entry {index} confirms the replies up to {confirmed} after {last}, more than a session has"
    )]
    Confirmed {
        /// The shard.
        shard: ShardId,
        /// The refused entry.
        index: Index,
        /// The number that it confirms.
        confirmed: RequestNumber,
        /// The number that was confirmed before.
        last: RequestNumber,
    },
    /// A marker whose colour does not grow.
    #[error("shard {shard}: marker {found} follows colour {last}")]
    Colour {
        /// The shard.
        shard: ShardId,
        /// The colour before.
        last: Colour,
        /// The marker's colour.
        found: Colour,
    },
}

impl State {
    /// Maximum distance of a request's number from the number that its client confirmed.
    pub const SESSION_WINDOW: u64 = 65_536;
    /// Confirmed replies are dropped once there are this many: fewer rewrites of the session's record.
    pub(crate) const CONFIRM_STEP: u64 = 16;
    /// Confirmed replies of a session that keeps this many bytes are dropped at once: 64 KiB.
    pub const SESSION_KEPT: usize = 64 << 10;
    /// Approximate number of bytes of a record's index entries.
    pub const RECORD_WEIGHT: usize = 128;

    /// Returns the state of a shard before its first entry.
    #[must_use]
    pub fn new(shard: ShardId) -> Self {
        Self {
            shard,
            position: Position::default(),
            records: Records::new(),
            outboxes: ShardMap::default(),
            received: ShardMap::default(),
            outbox_bytes: 0,
            outbox_messages: 0,
            outgoing: Outgoing::default(),
            folded: 0,
            sessions: BTreeMap::new(),
            timers: BTreeSet::new(),
            expiries: BTreeSet::new(),
            tasks: BTreeSet::new(),
            process_tasks: Ordered::default(),
            attempts: BTreeSet::new(),
            dead_letters: BTreeSet::new(),
            kept: Kept::default(),
            principals: BTreeMap::new(),
        }
    }

    /// Returns the state of a shard from a checkpoint's part.
    ///
    /// # Errors
    /// [`Misfit::Record`] if a record cannot be read.
    pub fn load(header: Header, records: Records) -> Result<Self, Misfit> {
        let mut state = Self::new(header.shard);
        state.position = header.position;
        state.outbox_bytes = header.outboxes.values().flat_map(|o| &o.messages).map(Message::weight).sum();
        state.outbox_messages = header.outboxes.values().map(|outbox| outbox.messages.len()).sum();
        state.outboxes = header.outboxes.into_iter().collect();
        state.received = header.received.into_iter().collect();
        for (key, value) in records.iter() {
            if !matches!(key[0], 1 | 2) {
                let key = RecordKey::from_bytes(key).expect("sections are decoded with their keys checked");
                state.index_record(&key, value)?;
                if key.kind() == Kind::Reply {
                    let _: Reply = state.read(&key, value)?;
                }
            }
        }
        state.records = records;
        Ok(state)
    }

    /// Returns the shard of this state.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Returns the position of the state.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Returns the records.
    #[must_use]
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Begins a snapshot of the whole state, with the records that changed since the last one or all of them, and
    /// returns the part's header without the messages in the outboxes: these come with the records. It takes time for
    /// each channel, but not for the channel's messages.
    ///
    /// # Panics
    /// If the last snapshot is not drained and this one is not of all records.
    pub fn begin_snapshot(&mut self, all: bool) -> Header {
        self.records.begin_snapshot(all);
        self.outgoing.begin(&self.outboxes);
        let empty = |outbox: &Outbox| Outbox { next: outbox.next, messages: VecDeque::new() };
        self.header_with(empty)
    }

    /// Gives up the snapshot that runs, if there is one: the next one is of all records.
    pub fn end_snapshot(&mut self) {
        self.records.end_snapshot();
        self.outgoing.end();
    }

    /// Whether a snapshot waits to be drained.
    #[must_use]
    pub fn snapshot_runs(&self) -> bool {
        self.records.snapshot_runs()
    }

    /// Appends up to `max` more messages and records of the snapshot to `out`; returns true once it is complete.
    pub fn drain_snapshot(&mut self, max: usize, out: &mut Piece) -> bool {
        let left = max - self.outgoing.drain(&self.outboxes, max, out);
        self.outgoing.is_drained() && self.records.drain_snapshot(left, out)
    }

    /// Returns the number of records that the fold has written, and of messages that it has put into outboxes or
    /// removed, since the state was created.
    #[must_use]
    pub fn folded(&self) -> u64 {
        self.folded
    }

    /// Reads a record of one of Stead's own kinds. Unreadable values were refused when they were written or loaded.
    #[must_use]
    pub fn record<T: for<'b> Decode<'b, ()>>(&self, key: &RecordKey) -> Option<T> {
        self.records
            .get(key.as_bytes())
            .map(|v| decode_value(v).expect("checked when it was written or loaded"))
    }

    /// Returns the sending ends of the shard's channels.
    #[must_use]
    pub fn outboxes(&self) -> &ShardMap<Outbox> {
        &self.outboxes
    }

    /// Returns the receiving ends: the last message received, by sender.
    #[must_use]
    pub fn received(&self) -> &ShardMap<Seq> {
        &self.received
    }

    /// Returns the bytes of all outboxes, with an allowance for each message.
    #[must_use]
    pub fn outbox_bytes(&self) -> usize {
        self.outbox_bytes
    }

    /// Returns the number of messages in all outboxes.
    #[must_use]
    pub fn outbox_messages(&self) -> usize {
        self.outbox_messages
    }

    /// Returns an open session.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<&OpenSession> {
        self.sessions.get(&id)
    }

    /// Returns the timers in the order in which they fire.
    #[must_use]
    pub fn timers(&self) -> &BTreeSet<(Time, TimerId)> {
        &self.timers
    }

    /// Returns the sessions and idempotency keys in the order in which they expire.
    #[must_use]
    pub fn expiries(&self) -> &BTreeSet<(Served, RecordKey)> {
        &self.expiries
    }

    /// Returns the tasks that are not finished.
    #[must_use]
    pub fn tasks(&self) -> &BTreeSet<TaskId> {
        &self.tasks
    }

    /// Returns the unfinished tasks of a process, in the order of their ids.
    pub fn tasks_of<'a>(&'a self, process: &'a Key) -> impl Iterator<Item = TaskId> + use<'a> {
        let tasks = self.process_tasks.all().from(&(process.clone(), TaskId(0)));
        tasks.map(|(task, _)| task).take_while(move |(owner, _)| owner == process).map(|(_, id)| *id)
    }

    /// Returns the current records of these tasks; see [`Ordered::part`].
    pub(crate) fn task_records_of(&self, process: &Key) -> Frozen<(Key, TaskId), Blob> {
        self.process_tasks.part(|(owner, _)| owner.cmp(process))
    }

    /// Returns the number of causes with logged attempts.
    #[must_use]
    pub fn attempts(&self) -> usize {
        self.attempts.len()
    }

    /// Whether requests have begun that have no entry yet, or were given up.
    #[must_use]
    pub fn has_begun_requests(&self) -> bool {
        self.attempts.last().is_some_and(RecordKey::is_attempt_at_request)
    }

    /// Returns the causes with logged attempts, by the keys of their records.
    pub(crate) fn attempt_keys(&self) -> &BTreeSet<RecordKey> {
        &self.attempts
    }

    /// Whether messages or timers have begun that have no entry yet.
    #[must_use]
    pub fn has_begun_handlers(&self) -> bool {
        self.attempts.first().is_some_and(RecordKey::is_attempt_at_handler)
    }

    /// Returns the number of dead letters.
    #[must_use]
    pub fn dead_letters(&self) -> usize {
        self.dead_letters.len()
    }

    /// Returns the numbers of the dead letters from one on, ascending.
    pub fn dead_letters_from(&self, from: Index) -> impl Iterator<Item = Index> + use<'_> {
        self.dead_letters.range(from..).copied()
    }

    /// Returns the state that the shard keeps besides its processes.
    #[must_use]
    pub fn kept(&self) -> Kept {
        self.kept
    }

    /// Returns the state that the shard keeps for a principal.
    #[must_use]
    pub fn kept_for(&self, principal: &str) -> OfPrincipal {
        self.principals.get(principal).copied().unwrap_or_default()
    }

    /// Returns the number of sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Returns the name of the first index that differs from that of another state with the same records: indexes
    /// follow from the records, whether these were replayed or loaded. The state hash does not cover them.
    #[must_use]
    pub fn index_difference(&self, other: &Self) -> Option<&'static str> {
        // The replies of an expired session may be deleted before it; its progress no longer matters then.
        let session = |open: &OpenSession, now: Served| {
            let highest = (open.expires > now).then_some(open.highest);
            (open.principal.clone(), open.confirmed, open.expires, highest)
        };
        let sessions = |state: &Self| -> Vec<_> {
            state.sessions.iter().map(|(id, open)| (*id, session(open, state.position.served()))).collect()
        };
        let alike = [
            ("sessions", sessions(self) == sessions(other)),
            ("expiries", self.expiries == other.expiries),
            ("timers", self.timers == other.timers),
            ("tasks", self.tasks == other.tasks && self.process_tasks == other.process_tasks),
            ("attempts", self.attempts == other.attempts),
            ("dead letters", self.dead_letters == other.dead_letters),
            ("bytes kept", self.kept == other.kept),
            ("principals", self.principals == other.principals),
            ("bytes in outboxes", self.outbox_bytes == other.outbox_bytes),
            ("messages in outboxes", self.outbox_messages == other.outbox_messages),
        ];
        alike.into_iter().find(|(_, alike)| !alike).map(|(index, _)| index)
    }

    /// Returns the header that a part of a checkpoint would have now. Copies all messages in the outboxes.
    #[must_use]
    pub fn header(&self) -> Header {
        self.header_with(Outbox::clone)
    }

    fn header_with(&self, outbox_of: impl Fn(&Outbox) -> Outbox) -> Header {
        Header {
            shard: self.shard,
            position: self.position,
            // An empty outbox still counts: its next number is part of the channel.
            outboxes: self.outboxes.iter().map(|(to, outbox)| (to, outbox_of(outbox))).collect(),
            received: self.received.iter().map(|(from, seq)| (from, *seq)).collect(),
            records: self.records.len() as u64,
            records_hash: self.records.hash().to_be_bytes(),
        }
    }

    /// Returns the state hash: equal states give equal hashes.
    #[must_use]
    pub fn hash(&self) -> u128 {
        self.header().hash()
    }
}
