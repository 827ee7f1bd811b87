//! A second fold of a shard's entries, in plain maps and without optimisation, with which a node's state is compared.
//!
//! Uses nothing of the core's own fold. The meaning of an entry is implemented again, after `docs/storage-format.md`
//! and the core's `entry.rs`, so that a mistake in one of the two shows as a difference.

use std::collections::{BTreeMap, BTreeSet};
use stead_core::blob::Blob;
use stead_core::channel::{Message, Outbox};
use stead_core::entry::{Cause, Entry, Trim};
use stead_core::ids::{Index, Micros, RequestNumber, Seq, Served, SessionId, ShardId, TaskId, Time, TimerId};
use stead_core::record::{
    AttemptRecord, DeadLetter, IdempotencyRecord, Kind, Pending, RecordKey, SessionRecord, TaskRecord,
    TimerRecord, decode_value, encode_value,
};
use stead_core::records::Records;
use stead_core::reply::Reply;
use stead_core::state::{Header, Position, State};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// Replies that a client has confirmed are deleted once there are this many of them, or once all kept ones of the
/// session have this weight in bytes: key, value, and [`RECORD_WEIGHT`] for each.
const CONFIRM_STEP: u64 = 16;
const SESSION_KEPT: usize = 64 << 10;
const RECORD_WEIGHT: usize = 128;

/// A shard's state, folded from its entries.
pub(crate) struct Fold {
    shard: ShardId,
    position: Position,
    outboxes: BTreeMap<ShardId, Outbox>,
    received: BTreeMap<ShardId, Seq>,
    records: BTreeMap<RecordKey, Blob>,
    /// The sum of the records' hashes.
    sum: u128,
    /// The timers among the records, in the order in which they are due.
    timers: BTreeSet<(Time, TimerId)>,
    /// Records that expire, in the order of their expiry.
    expiries: BTreeSet<(Served, RecordKey)>,
}

fn read<T: for<'b> minicbor::Decode<'b, ()>>(value: &[u8]) -> T {
    decode_value(value).expect("the entry that wrote the record was checked")
}

fn hash_record(key: &RecordKey, value: &[u8]) -> u128 {
    xxh3_128_with_seed(value, xxh3_64(key.as_bytes()))
}

fn timer(key: &RecordKey, value: &[u8]) -> Option<(Time, TimerId)> {
    let id = TimerId(key.number().filter(|_| key.kind() == Kind::Timer)?);
    Some((read::<TimerRecord>(value).at, id))
}

/// Returns the time at which a record expires by itself, if it does.
fn expiry(key: &RecordKey, value: &[u8]) -> Option<Served> {
    match key.kind() {
        Kind::Session => Some(read::<SessionRecord>(value).expires),
        Kind::Idempotency => Some(read::<IdempotencyRecord>(value).expires),
        Kind::Attempt => read::<AttemptRecord>(value).expires,
        _ => None,
    }
}

impl Fold {
    /// Creates a shard before its first entry.
    pub(crate) fn new(shard: ShardId) -> Self {
        Self {
            shard,
            position: Position::default(),
            outboxes: BTreeMap::new(),
            received: BTreeMap::new(),
            records: BTreeMap::new(),
            sum: 0,
            timers: BTreeSet::new(),
            expiries: BTreeSet::new(),
        }
    }

    /// Creates a shard without contents at a position.
    pub(super) fn at(shard: ShardId, position: Position) -> Self {
        Self { position, ..Self::new(shard) }
    }

    /// Moves a shard without entries of its own to the entry after which it begins.
    pub(super) fn begin_at(&mut self, index: Index) {
        self.position.index = index;
    }

    /// Adds a message to a channel, under the channel's next number and at the shard's position.
    pub(super) fn enqueue(&mut self, to: ShardId, message: &Message) {
        let Position { epoch, index, .. } = self.position;
        let outbox = self.outboxes.entry(to).or_default();
        outbox.messages.push_back(Message { seq: outbox.next, epoch, index, ..message.clone() });
        outbox.next = outbox.next.next();
    }

    /// Creates a shard that continues from a state.
    pub(crate) fn of(state: &State) -> Self {
        let Header { shard, position, outboxes, received, .. } = state.header();
        let mut fold = Self { position, outboxes, received, ..Self::new(shard) };
        for (key, value) in state.records().iter() {
            let key = RecordKey::from_bytes(key).expect("a state's records have keys");
            fold.put(key, value.clone());
        }
        fold
    }

    /// Folds an entry that follows from the state: its index and its number in its channel were checked.
    pub(crate) fn apply(&mut self, entry: &Entry) {
        let last = self.position;
        self.position.index = entry.index;
        self.position.epoch = entry.epoch;
        self.position.time = last.time.max(entry.time);
        if let Some(served) = entry.served {
            self.position.served = Some(last.served().plus(served));
        }
        // An answered request has not ended the process.
        if let Some(identity) = entry.cause.identity(&entry.process) {
            self.forget_attempts(&Pending::Request { identity });
        }
        self.apply_cause(entry);
        for write in &entry.writes {
            match &write.value {
                Some(value) => self.put(write.key.clone(), value.clone()),
                None => self.remove(&write.key),
            }
        }
        for send in &entry.sends {
            let outbox = self.outboxes.entry(send.to).or_default();
            outbox.messages.push_back(Message {
                seq: outbox.next,
                epoch: entry.epoch,
                index: entry.index,
                colour: self.position.colour,
                sender: entry.process.clone(),
                process: send.process.clone(),
                payload: send.payload.clone(),
            });
            outbox.next = outbox.next.next();
        }
    }

    fn apply_cause(&mut self, entry: &Entry) {
        match &entry.cause {
            Cause::Start | Cause::Anonymous | Cause::Attempt | Cause::Expire | Cause::Delete => {}
            Cause::Suspected { content } => self.forget_attempts(&Pending::Call { content: *content }),
            Cause::OpenSession { session, principal, ttl } => {
                let expires = self.position.served().plus(*ttl);
                let record =
                    SessionRecord { principal: principal.clone(), expires, confirmed: RequestNumber(0) };
                self.put(RecordKey::session(*session), encode_value(&record));
            }
            Cause::Request { session, number, confirmed, ttl } => {
                if let Some(reply) = &entry.reply {
                    self.put(RecordKey::reply(*session, *number), encode_value(reply));
                }
                self.use_session(*session, *confirmed, *ttl);
            }
            Cause::Idempotent { principal, key, body_hash, expires } => {
                let reply = entry.reply.clone().unwrap_or(Reply::Ok(Blob::empty()));
                let record = IdempotencyRecord { body_hash: *body_hash, reply, expires: *expires };
                let key = RecordKey::idempotency(&entry.process, principal, key);
                self.put(key, encode_value(&record));
            }
            Cause::Message { from, seq } => self.receive(*from, *seq),
            Cause::Timer { id } => self.remove(&RecordKey::timer(*id)),
            // The entry itself writes the task's new record.
            Cause::Task { id, step } => self.forget_attempts(&Pending::Task { id: *id, step: *step }),
            Cause::DeadLetter { cause } => match *cause {
                Pending::Message { from, seq } => self.receive(from, seq),
                Pending::Timer { id } => self.remove(&RecordKey::timer(id)),
                Pending::Task { id, step } => {
                    self.forget_attempts(&Pending::Task { id, step });
                    self.remove(&RecordKey::task(id));
                }
                // The attempts at a request stay, so that a retry is refused; a dead letter stays one.
                Pending::Request { .. } | Pending::Call { .. } | Pending::DeadLetter { .. } => {}
            },
            Cause::Retry { letter } => self.remove(&RecordKey::dead_letter(*letter)),
            Cause::Drop { letter } => {
                let key = RecordKey::dead_letter(*letter);
                // The same content may then be sent again.
                if let Some(DeadLetter { cause: cause @ Pending::Call { .. }, .. }) = self.record(&key) {
                    self.forget_attempts(&cause);
                }
                self.remove(&key);
            }
            Cause::Marker { colour } => self.position.colour = *colour,
            Cause::Ack { trims } => trims.iter().for_each(|trim| self.trim(*trim)),
        }
    }

    /// Handles a request of a session: its life is prolonged, and confirmed replies are deleted from time to time.
    fn use_session(&mut self, id: SessionId, confirmed: RequestNumber, ttl: Micros) {
        let Some(mut session) = self.session(id) else { return };
        let served = self.position.served();
        let steps = confirmed.0.saturating_sub(session.confirmed.0);
        let replies = || self.records.range(RecordKey::reply(id, RequestNumber(0))..=last_reply(id));
        let kept: usize =
            replies().map(|(key, value)| key.as_bytes().len() + value.len() + RECORD_WEIGHT).sum();
        let forgets = steps >= CONFIRM_STEP || (steps > 0 && kept >= SESSION_KEPT);
        if !forgets && session.expires >= served.plus(ttl.half()) {
            return;
        }
        let is_confirmed = |key: &RecordKey| key.request_number() <= Some(confirmed);
        let gone: Vec<RecordKey> =
            replies().map(|(key, _)| key).filter(|k| is_confirmed(k)).cloned().collect();
        gone.iter().for_each(|key| self.remove(key));
        session.confirmed = session.confirmed.max(confirmed);
        session.expires = session.expires.max(served.plus(ttl));
        self.put(RecordKey::session(id), encode_value(&session));
    }

    fn receive(&mut self, from: ShardId, seq: Seq) {
        self.received.insert(from, seq);
        self.forget_attempts(&Pending::Message { from, seq });
        // A message to the own shard needs no acknowledgement.
        if from == self.shard {
            self.trim(Trim { to: from, upto: seq });
        }
    }

    fn trim(&mut self, Trim { to, upto }: Trim) {
        let Some(outbox) = self.outboxes.get_mut(&to) else { return };
        while outbox.messages.front().is_some_and(|message| message.seq <= upto) {
            outbox.messages.pop_front();
        }
    }

    pub(crate) fn put(&mut self, key: RecordKey, value: Blob) {
        self.take(&key);
        self.sum = self.sum.wrapping_add(hash_record(&key, &value));
        self.timers.extend(timer(&key, &value));
        self.expiries.extend(expiry(&key, &value).map(|at| (at, key.clone())));
        self.records.insert(key, value);
    }

    /// Removes a record, if it exists, and with a timer or a task the attempts at it.
    fn remove(&mut self, key: &RecordKey) {
        let Some(old) = self.take(key) else { return };
        let number = key.number().unwrap_or_default();
        match key.kind() {
            Kind::Timer => self.forget_attempts(&Pending::Timer { id: TimerId(number) }),
            Kind::Task => {
                let step = read::<TaskRecord>(&old).step;
                self.forget_attempts(&Pending::Task { id: TaskId(number), step });
            }
            _ => {}
        }
    }

    pub(crate) fn take(&mut self, key: &RecordKey) -> Option<Blob> {
        let old = self.records.remove(key)?;
        self.sum = self.sum.wrapping_sub(hash_record(key, &old));
        if let Some(timer) = timer(key, &old) {
            self.timers.remove(&timer);
        }
        if let Some(at) = expiry(key, &old) {
            self.expiries.remove(&(at, key.clone()));
        }
        Some(old)
    }

    fn forget_attempts(&mut self, pending: &Pending) {
        self.take(&RecordKey::attempt(pending));
    }

    pub(crate) fn position(&self) -> Position {
        self.position
    }

    pub(crate) fn has(&self, key: &RecordKey) -> bool {
        self.records.contains_key(key)
    }

    pub(crate) fn record<T: for<'b> minicbor::Decode<'b, ()>>(&self, key: &RecordKey) -> Option<T> {
        self.records.get(key).map(|value| read(value))
    }

    pub(crate) fn records(&self) -> &BTreeMap<RecordKey, Blob> {
        &self.records
    }

    pub(crate) fn session(&self, id: SessionId) -> Option<SessionRecord> {
        self.record(&RecordKey::session(id))
    }

    pub(crate) fn outbox(&self, to: ShardId) -> Option<&Outbox> {
        self.outboxes.get(&to)
    }

    /// Returns the last received message of a sender; 0 before the first.
    pub(crate) fn received(&self, from: ShardId) -> Seq {
        self.received.get(&from).copied().unwrap_or_default()
    }

    /// Returns the time at which a record expires by itself, if it does; a reply expires with its session.
    pub(crate) fn expires(&self, key: &RecordKey) -> Option<Served> {
        match key.kind() {
            Kind::Reply => self.expires(&RecordKey::session(key.session_id()?)),
            _ => expiry(key, self.records.get(key)?),
        }
    }

    pub(crate) fn timers(&self) -> &BTreeSet<(Time, TimerId)> {
        &self.timers
    }

    pub(crate) fn expiries(&self) -> &BTreeSet<(Served, RecordKey)> {
        &self.expiries
    }

    /// Whether a message, a timer or a step has begun that has no entry yet.
    pub(crate) fn has_begun(&self) -> bool {
        let first =
            self.records.range(RecordKey::attempt(&Pending::Message { from: ShardId(0), seq: Seq(0) })..);
        first.take(1).any(|(key, _)| !key.is_attempt_at_request())
    }

    /// Returns the header that a part of a checkpoint would have.
    pub(crate) fn header(&self) -> Header {
        Header {
            shard: self.shard,
            position: self.position,
            outboxes: self.outboxes.clone(),
            received: self.received.clone(),
            records: self.records.len() as u64,
            records_hash: self.sum.to_be_bytes(),
        }
    }

    /// Returns the state hash.
    pub(crate) fn hash(&self) -> u128 {
        self.header().hash()
    }

    /// Returns the same state as a node would load it.
    pub(crate) fn to_state(&self) -> State {
        let mut records = Records::new();
        records.reserve(self.records.len());
        for (key, value) in &self.records {
            records.load(key.as_bytes(), Some(value.clone()));
        }
        records.loaded();
        State::load(self.header(), records).expect("the entries that made it were checked")
    }

    /// Whether a state equals this one; compares the number of its records and the sum of their hashes.
    pub(crate) fn is_like(&self, found: &State) -> bool {
        let outbox = |(to, outbox): (&ShardId, &Outbox)| {
            found.outboxes().get(*to).is_some_and(|found| found == outbox)
        };
        self.position == found.position()
            && self.sum == found.records().hash()
            && self.records.len() == found.records().len()
            && found.received().iter().eq(self.received.iter().map(|(from, seq)| (*from, seq)))
            && found.outboxes().iter().count() == self.outboxes.len()
            && self.outboxes.iter().all(outbox)
    }

    /// Returns the first record that differs in a state, by comparing each.
    pub(crate) fn other_record(&self, found: &State) -> Option<RecordKey> {
        let there = |key: &RecordKey, value: &Blob| found.records().get(key.as_bytes()) == Some(value);
        let other = self.records.iter().find(|(key, value)| !there(key, value)).map(|(key, _)| key.clone());
        let more = || found.records().iter().find(|(key, _)| !self.records.contains_key(*key));
        other.or_else(|| more().and_then(|(key, _)| RecordKey::from_bytes(key)))
    }

    /// Whether the header of a snapshot, which has no messages, is that of this state.
    pub(crate) fn is_marked_as(&self, header: &Header) -> bool {
        let ends = |outboxes: &BTreeMap<ShardId, Outbox>| -> Vec<(ShardId, Seq)> {
            outboxes.iter().map(|(to, outbox)| (*to, outbox.next)).collect()
        };
        self.position == header.position
            && self.received == header.received
            && ends(&self.outboxes) == ends(&header.outboxes)
            && self.records.len() as u64 == header.records
            && self.sum.to_be_bytes() == header.records_hash
    }
}

fn last_reply(id: SessionId) -> RecordKey {
    RecordKey::reply(id, RequestNumber(u64::MAX))
}
