//! The records of which a shard's state consists: each has a key of one kind, and bytes.

use crate::blob::Blob;
use crate::ids::{
    BodyHash, Index, RequestNumber, Seq, Served, ServiceId, SessionId, ShardId, StepNumber, TaskId, Time,
    TimerId,
};
use crate::key::Key;
use crate::reply::Reply;
use minicbor::{Decode, Encode};
use smallvec::SmallVec;
use std::borrow::Borrow;
use std::fmt;
use xxhash_rust::xxh3::xxh3_128;

/// The kind of a record. The numbers are part of the storage format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A process's whole-value state, as its service encoded it.
    Process = 1,
    /// One key of a process's keyed sub-state.
    Cell = 2,
    /// A client's session: [`SessionRecord`].
    Session = 3,
    /// A reply that its client has not confirmed: [`Reply`].
    Reply = 4,
    /// The reply to a request with an idempotency key: [`IdempotencyRecord`].
    Idempotency = 5,
    /// A timer that has not fired: [`TimerRecord`].
    Timer = 6,
    /// A task that is not finished: [`TaskRecord`].
    Task = 7,
    /// A cause that was given up: [`DeadLetter`].
    DeadLetter = 8,
    /// The attempts at a waiting cause: [`AttemptRecord`].
    Attempt = 9,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Process,
        Self::Cell,
        Self::Session,
        Self::Reply,
        Self::Idempotency,
        Self::Timer,
        Self::Task,
        Self::DeadLetter,
        Self::Attempt,
    ];

    /// Returns the kind of a number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// The key of a record: one byte of kind, then bytes whose layout depends on the kind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey(SmallVec<[u8; 32]>);

impl RecordKey {
    /// Maximum number of bytes of a record key.
    pub const LEN_MAX: usize = 4096;

    fn with(kind: Kind, parts: &[&[u8]]) -> Self {
        let mut bytes = SmallVec::new();
        bytes.push(kind as u8);
        for part in parts {
            bytes.extend_from_slice(part);
        }
        Self(bytes)
    }

    /// Returns the key of an existing record.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(SmallVec::from_slice(bytes))
    }

    /// Parses the bytes of a stored key; `None` if they are not a record key.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let kind = Kind::from_number(*bytes.first()?)?;
        let rest = &bytes[1..];
        let fits = bytes.len() <= Self::LEN_MAX
            && match kind {
                Kind::Process => std::str::from_utf8(rest).is_ok_and(|k| k.len() <= Key::LEN_MAX),
                Kind::Cell => split_prefixed(rest).is_some_and(|(key, _)| std::str::from_utf8(key).is_ok()),
                Kind::Session => rest.len() == 16,
                Kind::Reply => rest.len() == 24,
                Kind::Idempotency => split_prefixed(rest).is_some_and(|(key, rest)| {
                    std::str::from_utf8(key).is_ok()
                        && split_prefixed(rest).is_some_and(|(who, _)| std::str::from_utf8(who).is_ok())
                }),
                Kind::Timer | Kind::Task | Kind::DeadLetter => rest.len() == 8,
                Kind::Attempt => true,
            };
        fits.then(|| Self(SmallVec::from_slice(bytes)))
    }

    /// Returns the key of a process's state.
    #[must_use]
    pub fn process(key: &str) -> Self {
        Self::with(Kind::Process, &[key.as_bytes()])
    }

    /// Returns the key of one key of a process's keyed sub-state; with an empty `cell`, the prefix of them all.
    #[must_use]
    pub fn cell(process: &str, cell: &[u8]) -> Self {
        Self::with(Kind::Cell, &[&(process.len() as u16).to_be_bytes(), process.as_bytes(), cell])
    }

    /// Returns the key of a session.
    #[must_use]
    pub fn session(id: SessionId) -> Self {
        Self::with(Kind::Session, &[&id.0.to_be_bytes()])
    }

    /// Returns the key of the reply to a session's request.
    #[must_use]
    pub fn reply(id: SessionId, number: RequestNumber) -> Self {
        Self::with(Kind::Reply, &[&id.0.to_be_bytes(), &number.0.to_be_bytes()])
    }

    /// Returns the key of the reply to a request with an idempotency key.
    #[must_use]
    pub fn idempotency(process: &str, principal: &str, key: &[u8]) -> Self {
        Self::with(
            Kind::Idempotency,
            &[
                &(process.len() as u16).to_be_bytes(),
                process.as_bytes(),
                &(principal.len() as u16).to_be_bytes(),
                principal.as_bytes(),
                key,
            ],
        )
    }

    /// Returns the key of a timer.
    #[must_use]
    pub fn timer(id: TimerId) -> Self {
        Self::with(Kind::Timer, &[&id.0.to_be_bytes()])
    }

    /// Returns the key of a task.
    #[must_use]
    pub fn task(id: TaskId) -> Self {
        Self::with(Kind::Task, &[&id.0.to_be_bytes()])
    }

    /// Returns the key of the dead letter that the entry of an index created.
    #[must_use]
    pub fn dead_letter(index: Index) -> Self {
        Self::with(Kind::DeadLetter, &[&index.0.to_be_bytes()])
    }

    /// Returns the key of the attempts at a waiting cause.
    #[must_use]
    pub fn attempt(cause: &Pending) -> Self {
        let (tag, a, b) = match *cause {
            Pending::Message { from, seq } => (0u8, u64::from(from.0), seq.0),
            Pending::Timer { id } => (1, id.0, 0),
            Pending::Task { id, step } => (2, id.0, step.0),
            Pending::Request { identity } => return Self::with(Kind::Attempt, &[&[3], &identity]),
            Pending::DeadLetter { letter } => (4, letter.0, 0),
            Pending::Call { content } => return Self::with(Kind::Attempt, &[&[5], &content]),
        };
        Self::with(Kind::Attempt, &[&[tag], &a.to_be_bytes(), &b.to_be_bytes()])
    }

    /// Returns the kind of the record.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::from_number(self.0[0]).expect("every constructor writes a kind")
    }

    /// Returns the bytes, kind first.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the process that the record belongs to by its key: `Process`, `Cell` and `Idempotency` have one.
    #[must_use]
    pub fn process_key(&self) -> Option<&str> {
        let rest = &self.0[1..];
        let key = match self.kind() {
            Kind::Process => rest,
            Kind::Cell | Kind::Idempotency => split_prefixed(rest)?.0,
            _ => return None,
        };
        std::str::from_utf8(key).ok()
    }

    /// Returns the principal whose request a record of kind `Idempotency` answers.
    #[must_use]
    pub fn principal(&self) -> Option<&str> {
        if self.kind() != Kind::Idempotency {
            return None;
        }
        let (_, rest) = split_prefixed(&self.0[1..])?;
        std::str::from_utf8(split_prefixed(rest)?.0).ok()
    }

    /// Returns the cell's own key, for a record of kind `Cell`.
    #[must_use]
    pub fn cell_key(&self) -> Option<&[u8]> {
        (self.kind() == Kind::Cell).then(|| split_prefixed(&self.0[1..]).map(|(_, cell)| cell))?
    }

    /// Whether these are the attempts at a message or a timer, which wait in the system until they are handled.
    #[must_use]
    pub fn is_attempt_at_handler(&self) -> bool {
        self.kind() == Kind::Attempt && self.0.get(1).is_some_and(|tag| *tag < 2)
    }

    /// Whether these are the attempts at a request.
    #[must_use]
    pub fn is_attempt_at_request(&self) -> bool {
        self.kind() == Kind::Attempt && self.0.get(1).is_some_and(|tag| *tag > 2)
    }

    /// Returns the number in the key of a timer, task or dead letter.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        match self.kind() {
            Kind::Timer | Kind::Task | Kind::DeadLetter => {
                Some(u64::from_be_bytes(self.0[1..].try_into().ok()?))
            }
            _ => None,
        }
    }

    /// Returns the session of a `Session` or `Reply` record.
    #[must_use]
    pub fn session_id(&self) -> Option<SessionId> {
        match self.kind() {
            Kind::Session | Kind::Reply => {
                Some(SessionId(u128::from_be_bytes(self.0.get(1..17)?.try_into().ok()?)))
            }
            _ => None,
        }
    }

    /// Returns the number of the request that a reply answers, for the key of a reply.
    #[must_use]
    pub fn request_number(&self) -> Option<RequestNumber> {
        if self.kind() != Kind::Reply {
            return None;
        }
        Some(RequestNumber(u64::from_be_bytes(self.0.get(17..)?.try_into().ok()?)))
    }
}

fn split_prefixed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))
}

/// Compares by the bytes, like the keys themselves.
impl Borrow<[u8]> for RecordKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.kind(), self.0[1..].escape_ascii())
    }
}

impl<C> Encode<C> for RecordKey {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for RecordKey {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::from_bytes(d.bytes()?).ok_or_else(|| minicbor::decode::Error::message("invalid record key"))
    }
}

/// A cause that is pending until it is handled, and that may therefore be handled again after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Pending {
    /// A message in the outbox of its sender.
    #[n(0)]
    Message {
        /// The sending shard.
        #[n(0)]
        from: ShardId,
        /// Its number in the channel.
        #[n(1)]
        seq: Seq,
    },
    /// A timer that is due.
    #[n(1)]
    Timer {
        /// The timer.
        #[n(0)]
        id: TimerId,
    },
    /// A task's next step.
    #[n(2)]
    Task {
        /// The task.
        #[n(0)]
        id: TaskId,
        /// The step, counted from 0.
        #[n(1)]
        step: StepNumber,
    },
    /// A client's request, which its client may repeat.
    #[n(3)]
    Request {
        /// Hash of its identity: see [`Cause::identity`](crate::entry::Cause::identity).
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        identity: [u8; 16],
    },
    /// A dead letter that an operator retries. A crash forgets the retry, so it has no attempts.
    #[n(4)]
    DeadLetter {
        /// The number in its record's key.
        #[n(0)]
        letter: Index,
    },
    /// A client's request without a session and without an idempotency key. Its client may send the same content again.
    #[n(5)]
    Call {
        /// Hash of process, principal and payload.
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        content: [u8; 16],
    },
}

impl Pending {
    /// Identifies a request without a session and without an idempotency key by its content.
    #[must_use]
    pub fn call(process: &str, principal: &str, payload: &[u8]) -> Self {
        // The payload comes last: the key without it has a bounded length, and the parts cannot run into each other.
        let mut key = RecordKey::idempotency(process, principal, &[]).0;
        key.extend_from_slice(payload);
        Self::Call { content: xxh3_128(&key).to_be_bytes() }
    }
}

/// A client's session.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SessionRecord {
    /// The principal that opened it.
    #[n(0)]
    pub principal: String,
    /// The time at which it expires unless it is used.
    #[n(1)]
    pub expires: Served,
    /// The client has the replies up to this number.
    #[n(2)]
    pub confirmed: RequestNumber,
}

/// The kept reply to a request with an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct IdempotencyRecord {
    /// Hash of the request that the key was first used with.
    #[n(0)]
    pub body_hash: BodyHash,
    /// The reply.
    #[n(1)]
    pub reply: Reply,
    /// The time from which on the key may be used for a new request.
    #[n(2)]
    pub expires: Served,
}

/// A timer that has not fired.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TimerRecord {
    /// The time at which it fires.
    #[n(0)]
    pub at: Time,
    /// The process that set it.
    #[n(1)]
    pub process: Key,
    /// The payload for the handler.
    #[n(2)]
    pub payload: Blob,
    /// The receiver, if the payload is sent as a message of the process when the timer fires; `None`, as in older
    /// versions, if the timer fires in the process itself.
    #[n(3)]
    pub send: Option<Receiver>,
}

/// The receiver of a message with a delay.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Receiver {
    /// Its service.
    #[n(0)]
    pub service: ServiceId,
    /// Its key.
    #[n(1)]
    pub process: Key,
}

/// A task that is not finished.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TaskRecord {
    /// The process that started it.
    #[n(0)]
    pub process: Key,
    /// The name under which its code is registered.
    #[n(1)]
    pub name: String,
    /// The next step, counted from 0.
    #[n(2)]
    pub step: StepNumber,
    /// Its state, as its code encoded it.
    #[n(3)]
    pub state: Blob,
    /// The share that is done, in millionths.
    #[n(4)]
    pub progress: u32,
    /// Set if the step failed and waits to be tried again; `None` in older versions, and for a step that has not
    /// failed.
    #[n(5)]
    pub retry: Option<StepRetry>,
}

/// A [`TaskRecord`] without the task's state, which may be large: for readers that do not need it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TaskHead {
    /// The process that started it.
    #[n(0)]
    pub process: Key,
    /// The name under which its code is registered.
    #[n(1)]
    pub name: String,
    /// The next step, counted from 0.
    #[n(2)]
    pub step: StepNumber,
    /// The share that is done, in millionths.
    #[n(4)]
    pub progress: u32,
    /// Set if the step failed and waits to be tried again.
    #[n(5)]
    pub retry: Option<StepRetry>,
}

impl From<TaskRecord> for TaskHead {
    fn from(task: TaskRecord) -> Self {
        let TaskRecord { process, name, step, progress, retry, .. } = task;
        Self { process, name, step, progress, retry }
    }
}

/// The failures of a task's step, and the time at which it runs again.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StepRetry {
    /// Failures of this step so far; at least 1.
    #[n(0)]
    pub count: u32,
    /// The time at which it runs again.
    #[n(1)]
    pub at: Time,
    /// The reason of the last failure, cut to [`StepRetry::REASON_MAX`] bytes.
    #[n(2)]
    pub reason: String,
}

impl StepRetry {
    /// Maximum number of bytes of the reason.
    pub const REASON_MAX: usize = 1024;
}

/// A cause that was given up after too many attempts.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeadLetter {
    /// The cause that was given up.
    #[n(0)]
    pub cause: Pending,
    /// The process for which it was.
    #[n(1)]
    pub process: Key,
    /// The payload for the handler.
    #[n(2)]
    pub payload: Blob,
    /// The process that sent it, for a message.
    #[n(3)]
    pub sender: Key,
    /// The reason for which it was given up.
    #[n(4)]
    pub reason: String,
    /// The time at which it was given up.
    #[n(5)]
    pub time: Time,
    /// The way to retry it; missing in older versions.
    #[n(6)]
    pub retry: Option<Retry>,
}

/// The way to retry a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Retry {
    /// As a message of the sender, which is a process of this service.
    #[n(0)]
    Message {
        /// The service. The number of the sending shard would no longer determine it after a restore onto other shards.
        #[n(0)]
        service: ServiceId,
    },
    /// As the timer that it was.
    #[n(1)]
    Timer,
    /// As a task that continues with the failed step; the payload is its state before that step.
    #[n(2)]
    Step {
        /// The name under which the task's code is registered.
        #[n(0)]
        name: String,
        /// The share that was done, in millionths.
        #[n(1)]
        progress: u32,
    },
    /// As the result of a task, which is the payload.
    #[n(3)]
    Result,
    /// Not at all: the client of a request knows that it was given up, or the payload was too large to be kept.
    #[n(4)]
    Never,
}

/// A waiting cause that has begun after a life that did not shut down cleanly, and has no entry yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AttemptRecord {
    /// Same as `alone`. Older versions counted each attempt here, whatever else had begun beside it.
    #[n(0)]
    pub count: u32,
    /// The time at which it is forgotten, for a request: its client may never repeat it.
    #[n(1)]
    pub expires: Option<Served>,
    /// The number of times that it has begun without another suspect; 0 if it has only begun together with others.
    /// [`AttemptRecord::GIVEN_UP`] for a request that was given up.
    #[n(2)]
    pub alone: Option<u32>,
}

impl AttemptRecord {
    /// More attempts than any limit: marks a request that was given up.
    pub const GIVEN_UP: u32 = u32::MAX;

    /// Returns the attempts that count; `max` is the limit at which an older version gave up.
    #[must_use]
    pub fn charged(&self, max: u32) -> u32 {
        self.alone.unwrap_or(if self.count > max { Self::GIVEN_UP } else { 0 })
    }
}

/// Decodes the value of a record.
///
/// # Errors
/// The decoder's error if the bytes are not a value of this type.
pub fn decode_value<'b, T: Decode<'b, ()>>(value: &'b [u8]) -> Result<T, minicbor::decode::Error> {
    let mut decoder = minicbor::Decoder::new(value);
    let decoded = decoder.decode()?;
    if decoder.position() != value.len() {
        return Err(minicbor::decode::Error::message("bytes after the end of a record"));
    }
    Ok(decoded)
}

/// Encodes the value of a record.
#[must_use]
pub fn encode_value<T: Encode<()>>(value: &T) -> Blob {
    Blob::from(minicbor::to_vec(value).expect("writing to a Vec never fails"))
}
