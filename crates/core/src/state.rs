//! A shard's state: the fold of its entries. No user code, no clock, no decision: `state' = apply(state, entry)`.

use crate::blob::Blob;
pub use crate::channel::{Message, Outbox};
use crate::entry::{Cause, Entry, Trim, Write};
use crate::ids::{
    Colour, Epoch, Index, Micros, RequestNumber, Seq, Served, SessionId, ShardId, TaskId, Time, TimerId,
};
use crate::key::Key;
use crate::ordered::{Frozen, Ordered};
use crate::outgoing::Outgoing;
use crate::record::{
    AttemptRecord, DeadLetter, IdempotencyRecord, Kind, Pending, RecordKey, SessionRecord, TaskRecord,
    TimerRecord, decode_value, encode_value,
};
use crate::records::{Piece, Records};
use crate::reply::Reply;
use crate::shard_map::ShardMap;
use crate::shrink;
use minicbor::{Decode, Encode};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

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

/// The position of a shard's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Position {
    /// The last applied entry.
    #[n(0)]
    pub index: Index,
    /// The epoch of that entry.
    #[n(1)]
    pub epoch: Epoch,
    /// The shard's time; it never falls.
    #[n(2)]
    pub time: Time,
    /// The colour of the last marker.
    #[n(3)]
    pub colour: Colour,
    /// The time that the shard has served; see [`Position::served`]. `None` before an entry has it.
    #[n(4)]
    pub served: Option<Served>,
}

impl Position {
    /// Returns the time that the shard has served. It starts from the shard's time at that entry, so that expiry times
    /// of the wall clock, which older versions stored, leave the same remaining time.
    #[must_use]
    pub fn served(&self) -> Served {
        self.served.unwrap_or(Served(self.time.0))
    }
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

/// The content of a checkpoint's part besides the records.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Header {
    /// The shard.
    #[n(0)]
    pub shard: ShardId,
    /// The position of its marker.
    #[n(1)]
    pub position: Position,
    /// The sending ends of its channels.
    #[n(2)]
    pub outboxes: BTreeMap<ShardId, Outbox>,
    /// The receiving ends: the last message received, by sender.
    #[n(3)]
    pub received: BTreeMap<ShardId, Seq>,
    /// The number of records.
    #[n(4)]
    pub records: u64,
    /// The sum of their hashes, big endian.
    #[n(5)]
    #[cbor(with = "minicbor::bytes")]
    pub records_hash: [u8; 16],
}

impl Header {
    /// Adds messages from a slice of the snapshot, in their order.
    pub fn add(&mut self, messages: &[(ShardId, Message)]) {
        for (to, message) in messages {
            self.outboxes.entry(*to).or_default().messages.push_back(message.clone());
        }
    }

    /// Returns the state hash: equal states give equal hashes.
    #[must_use]
    pub fn hash(&self) -> u128 {
        xxh3_128(&minicbor::to_vec(self).expect("writing to a Vec never fails"))
    }
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

    /// Folds one entry into the state.
    ///
    /// # Errors
    /// [`Misfit`] if the entry does not follow; the state is then unusable.
    pub fn apply(&mut self, entry: Entry) -> Result<(), Misfit> {
        let (shard, index) = (self.shard, entry.index);
        let last = self.position;
        if index != last.index.next() {
            return Err(Misfit::Index { shard, last: last.index, found: index });
        }
        if entry.epoch < last.epoch {
            return Err(Misfit::Epoch { shard, index, last: last.epoch, found: entry.epoch });
        }
        self.position.index = index;
        self.position.epoch = entry.epoch;
        self.position.time = last.time.max(entry.time);
        if let Some(served) = entry.served {
            self.position.served = Some(last.served().plus_micros(served));
        }
        self.apply_cause(&entry)?;
        for Write { key, value } in entry.writes {
            // Replies that the fold creates itself need no check; one in an entry is read again later.
            if let (Kind::Reply, Some(value)) = (key.kind(), &value) {
                let _: Reply = self.read(&key, value)?;
            }
            self.write(&key, value)?;
        }
        for send in entry.sends {
            let outbox = self.outboxes.get_or_default(send.to);
            let message = Message {
                seq: outbox.next,
                epoch: entry.epoch,
                index,
                colour: self.position.colour,
                sender: entry.process.clone(),
                process: send.process,
                payload: send.payload,
            };
            self.outbox_bytes += message.weight();
            self.outbox_messages += 1;
            self.folded += 1;
            outbox.next = outbox.next.next();
            outbox.messages.push_back(message);
        }
        Ok(())
    }

    fn apply_cause(&mut self, entry: &Entry) -> Result<(), Misfit> {
        if !self.attempts.is_empty()
            && let Some(identity) = entry.cause.identity(&entry.process)
        {
            self.write(&RecordKey::attempt(&Pending::Request { identity }), None)?;
        }
        match &entry.cause {
            Cause::Start | Cause::Anonymous | Cause::Attempt | Cause::Expire | Cause::Delete => {}
            Cause::Suspected { content } => {
                self.write(&RecordKey::attempt(&Pending::Call { content: *content }), None)?;
            }
            Cause::OpenSession { session, principal, ttl } => {
                let record = SessionRecord {
                    principal: principal.clone(),
                    expires: self.position.served().plus(*ttl),
                    confirmed: RequestNumber(0),
                };
                self.write(&RecordKey::session(*session), Some(encode_value(&record)))?;
            }
            Cause::Request { session, number, confirmed, ttl } => {
                self.apply_request(entry, *session, *number, *confirmed, *ttl)?;
            }
            Cause::Idempotent { principal, key, body_hash, expires } => {
                let reply = entry.reply.clone().unwrap_or_else(|| Reply::Ok(Blob::empty()));
                let record = IdempotencyRecord { body_hash: *body_hash, reply, expires: *expires };
                let key = RecordKey::idempotency(&entry.process, principal, key);
                self.write(&key, Some(encode_value(&record)))?;
            }
            Cause::Message { .. } | Cause::Timer { .. } | Cause::Task { .. } => {
                let pending = entry.cause.pending().expect("these three wait");
                self.consume(entry.index, pending)?;
            }
            Cause::DeadLetter { cause } => {
                self.consume(entry.index, *cause)?;
                if let Pending::Task { id, .. } = cause {
                    self.write(&RecordKey::task(*id), None)?;
                }
            }
            Cause::Retry { letter } => self.write(&RecordKey::dead_letter(*letter), None)?,
            Cause::Drop { letter } => {
                let key = RecordKey::dead_letter(*letter);
                // The same content may be sent again: no client was promised that it stays refused.
                if let Some(cause @ Pending::Call { .. }) =
                    self.record::<DeadLetter>(&key).map(|letter| letter.cause)
                {
                    self.write(&RecordKey::attempt(&cause), None)?;
                }
                self.write(&key, None)?;
            }
            Cause::Marker { colour } => {
                if *colour <= self.position.colour {
                    let last = self.position.colour;
                    return Err(Misfit::Colour { shard: self.shard, last, found: *colour });
                }
                self.position.colour = *colour;
            }
            Cause::Ack { trims } => {
                for trim in trims {
                    self.trim(*trim);
                }
            }
        }
        Ok(())
    }

    fn apply_request(
        &mut self,
        entry: &Entry,
        id: SessionId,
        number: RequestNumber,
        confirmed: RequestNumber,
        ttl: Micros,
    ) -> Result<(), Misfit> {
        if let Some(reply) = &entry.reply {
            self.write(&RecordKey::reply(id, number), Some(encode_value(reply)))?;
        }
        let Some(session) = self.sessions.get(&id).cloned() else { return Ok(()) };
        let step = confirmed.0.saturating_sub(session.confirmed.0);
        if step > Self::SESSION_WINDOW {
            return Err(Misfit::Confirmed {
                shard: self.shard,
                index: entry.index,
                confirmed,
                last: session.confirmed,
            });
        }
        let confirms = step >= Self::CONFIRM_STEP || (step > 0 && session.kept >= Self::SESSION_KEPT);
        let served = self.position.served();
        let extends = session.expires < served.plus(ttl.half());
        if confirms || extends {
            for number in session.confirmed.0 + 1..=confirmed.0.min(session.highest.0) {
                self.write(&RecordKey::reply(id, RequestNumber(number)), None)?;
            }
            let key = RecordKey::session(id);
            if let Some(value) = self.records.get(key.as_bytes()) {
                let mut record: SessionRecord = self.read(&key, value)?;
                record.confirmed = session.confirmed.max(confirmed);
                record.expires = session.expires.max(served.plus(ttl));
                self.write(&key, Some(encode_value(&record)))?;
            }
        }
        Ok(())
    }

    /// Removes a waiting cause that is handled, with its attempts.
    fn consume(&mut self, index: Index, cause: Pending) -> Result<(), Misfit> {
        match cause {
            Pending::Message { from, seq } => {
                let last = self.received.get_or_default(from);
                if seq != last.next() {
                    let (shard, last) = (self.shard, *last);
                    return Err(Misfit::Channel { shard, index, from, last, found: seq });
                }
                *last = seq;
                if from == self.shard {
                    // One log holds both ends of this channel, so it needs no acknowledgement.
                    self.trim(Trim { to: from, upto: seq });
                }
            }
            Pending::Timer { id } => self.write(&RecordKey::timer(id), None)?,
            Pending::Task { .. } => {}
            // Its attempts stay, so that a retry is refused.
            Pending::Request { .. } | Pending::Call { .. } => return Ok(()),
            // It stays a dead letter, for another reason.
            Pending::DeadLetter { .. } => return Ok(()),
        }
        if !self.attempts.is_empty() {
            self.write(&RecordKey::attempt(&cause), None)?;
        }
        Ok(())
    }

    fn trim(&mut self, trim: Trim) {
        let Some(outbox) = self.outboxes.get_mut(trim.to) else { return };
        while let Some(message) = outbox.messages.front()
            && message.seq <= trim.upto
        {
            self.outbox_bytes -= message.weight();
            self.outbox_messages -= 1;
            self.folded += 1;
            let message = outbox.messages.pop_front().expect("it was looked at");
            self.outgoing.keep(trim.to, message);
        }
        shrink::release_spare(&mut outbox.messages);
    }

    fn write(&mut self, key: &RecordKey, value: Option<Blob>) -> Result<(), Misfit> {
        self.folded += 1;
        if matches!(key.kind(), Kind::Process | Kind::Cell) {
            match value {
                Some(value) => drop(self.records.put(key.as_bytes(), value)),
                None => drop(self.records.remove(key.as_bytes())),
            }
            return Ok(());
        }
        let old = match &value {
            Some(value) => self.records.put(key.as_bytes(), value.clone()),
            None => self.records.remove(key.as_bytes()),
        };
        if let Some(old) = old {
            self.unindex_record(key, &old)?;
        }
        value.map_or(Ok(()), |value| self.index_record(key, &value))
    }

    fn read<'b, T: Decode<'b, ()>>(&self, key: &RecordKey, value: &'b [u8]) -> Result<T, Misfit> {
        decode_value(value).map_err(|error| Misfit::Record {
            shard: self.shard,
            key: key.clone(),
            reason: error.to_string(),
        })
    }

    fn index_record(&mut self, key: &RecordKey, value: &Blob) -> Result<(), Misfit> {
        let weight = weight(key, value);
        match key.kind() {
            Kind::Process | Kind::Cell => {}
            Kind::Session => {
                let record: SessionRecord = self.read(key, value)?;
                let id = key.session_id().expect("a session's key holds its id");
                self.expiries.insert((record.expires, key.clone()));
                let session = self.sessions.entry(id).or_insert_with(OpenSession::unknown);
                if *session.principal != *record.principal {
                    let moved = OfPrincipal { sessions: session.known.into(), replies: session.kept };
                    discharge(&mut self.principals, &session.principal, moved);
                    session.principal = record.principal.into();
                    charge(&mut self.principals, &session.principal, moved);
                }
                if !std::mem::replace(&mut session.known, true) {
                    let one = OfPrincipal { sessions: 1, replies: 0 };
                    charge(&mut self.principals, &session.principal, one);
                }
                session.confirmed = record.confirmed;
                session.expires = record.expires;
                session.highest = session.highest.max(record.confirmed);
            }
            Kind::Reply => {
                let id = key.session_id().expect("a reply's key holds its session");
                let number = key.request_number().expect("a reply's key holds its number");
                // While a part is loaded, the reply may come before its session.
                let session = self.sessions.entry(id).or_insert_with(OpenSession::unknown);
                session.highest = session.highest.max(number);
                session.kept += weight;
                self.kept.replies += weight;
                let more = OfPrincipal { sessions: 0, replies: weight };
                charge(&mut self.principals, &session.principal, more);
            }
            Kind::Idempotency => {
                let record: IdempotencyRecord = self.read(key, value)?;
                self.expiries.insert((record.expires, key.clone()));
                self.kept.replies += weight;
                let more = OfPrincipal { sessions: 0, replies: weight };
                charge(&mut self.principals, key.principal().unwrap_or_default(), more);
            }
            Kind::Timer => {
                let record: TimerRecord = self.read(key, value)?;
                self.timers.insert((record.at, TimerId(key.number().expect("a timer's key is its id"))));
                self.kept.waiting += weight;
            }
            Kind::Task => {
                let record: TaskRecord = self.read(key, value)?;
                let id = TaskId(key.number().expect("a task's key is its id"));
                self.tasks.insert(id);
                self.process_tasks.insert((record.process, id), value.clone());
                self.kept.waiting += weight;
            }
            Kind::DeadLetter => {
                let _: DeadLetter = self.read(key, value)?;
                self.dead_letters.insert(Index(key.number().expect("a dead letter's key is its number")));
                self.kept.dead_letters += weight;
            }
            Kind::Attempt => {
                let record: AttemptRecord = self.read(key, value)?;
                self.attempts.insert(key.clone());
                if let Some(expires) = record.expires {
                    self.expiries.insert((expires, key.clone()));
                }
            }
        }
        Ok(())
    }

    fn unindex_record(&mut self, key: &RecordKey, old: &[u8]) -> Result<(), Misfit> {
        let weight = weight(key, old);
        let less = OfPrincipal { sessions: 0, replies: weight };
        match key.kind() {
            Kind::Process | Kind::Cell => {}
            Kind::Reply => {
                self.kept.replies -= weight;
                let id = key.session_id().expect("a reply's key holds its session");
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.kept = session.kept.saturating_sub(weight);
                    discharge(&mut self.principals, &session.principal, less);
                }
            }
            Kind::Session => {
                let record: SessionRecord = self.read(key, old)?;
                self.expiries.remove(&(record.expires, key.clone()));
                if self.records.get(key.as_bytes()).is_none() {
                    let id = key.session_id().expect("a session's key holds its id");
                    if let Some(session) = self.sessions.remove(&id) {
                        let gone = OfPrincipal { sessions: session.known.into(), replies: session.kept };
                        discharge(&mut self.principals, &session.principal, gone);
                    }
                }
            }
            Kind::Idempotency => {
                let record: IdempotencyRecord = self.read(key, old)?;
                self.expiries.remove(&(record.expires, key.clone()));
                self.kept.replies -= weight;
                discharge(&mut self.principals, key.principal().unwrap_or_default(), less);
            }
            Kind::Timer => {
                let record: TimerRecord = self.read(key, old)?;
                let id = TimerId(key.number().expect("a timer's key is its id"));
                self.timers.remove(&(record.at, id));
                self.kept.waiting -= weight;
                self.forget_attempts(key, &Pending::Timer { id })?;
            }
            Kind::Task => {
                let record: TaskRecord = self.read(key, old)?;
                let id = TaskId(key.number().expect("a task's key is its id"));
                self.tasks.remove(&id);
                if self.records.get(key.as_bytes()).is_none() {
                    self.process_tasks.remove(&(record.process, id));
                }
                self.kept.waiting -= weight;
                self.forget_attempts(key, &Pending::Task { id, step: record.step })?;
            }
            Kind::DeadLetter => {
                self.kept.dead_letters -= weight;
                if self.records.get(key.as_bytes()).is_none() {
                    let number = key.number().expect("a dead letter's key is its number");
                    self.dead_letters.remove(&Index(number));
                }
            }
            Kind::Attempt => {
                let record: AttemptRecord = self.read(key, old)?;
                if self.records.get(key.as_bytes()).is_none() {
                    self.attempts.remove(key);
                }
                if let Some(expires) = record.expires {
                    self.expiries.remove(&(expires, key.clone()));
                }
            }
        }
        Ok(())
    }

    /// Deletes the attempts at a cause that was cancelled after it was tried.
    fn forget_attempts(&mut self, key: &RecordKey, pending: &Pending) -> Result<(), Misfit> {
        if !self.attempts.is_empty() && self.records.get(key.as_bytes()).is_none() {
            self.write(&RecordKey::attempt(pending), None)?;
        }
        Ok(())
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

impl OpenSession {
    /// A session whose record is not read yet.
    fn unknown() -> Self {
        Self {
            principal: Arc::default(),
            confirmed: RequestNumber(0),
            highest: RequestNumber(0),
            expires: Served(0),
            kept: 0,
            known: false,
        }
    }
}

fn weight(key: &RecordKey, value: &[u8]) -> usize {
    key.as_bytes().len() + value.len() + State::RECORD_WEIGHT
}

fn charge(principals: &mut BTreeMap<Arc<str>, OfPrincipal>, principal: &str, more: OfPrincipal) {
    if more == OfPrincipal::default() {
        return;
    }
    if !principals.contains_key(principal) {
        principals.insert(principal.into(), OfPrincipal::default());
    }
    let of = principals.get_mut(principal).expect("it was just put there");
    of.sessions += more.sessions;
    of.replies += more.replies;
}

fn discharge(principals: &mut BTreeMap<Arc<str>, OfPrincipal>, principal: &str, less: OfPrincipal) {
    let Some(of) = principals.get_mut(principal) else { return };
    of.sessions = of.sessions.saturating_sub(less.sessions);
    of.replies = of.replies.saturating_sub(less.replies);
    if *of == OfPrincipal::default() {
        principals.remove(principal);
    }
}
