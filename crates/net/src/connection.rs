//! A connection: bytes in, frames out, and the other way round.
//!
//! Pure: bytes, frames and times arrive with calls, and [`Connection::slices`] are the bytes to write. Everything that
//! grows has a bound. What waits to be written has [`Settings::send_bytes_max`]; an end that reads slowly costs no more,
//! and its sender gets [`SendError::WouldBlock`]. Requests without an answer have the bounds that the receiver named in
//! its hello, so that a receiver never has to stop reading to limit them: two ends that both did could wait for each
//! other.

use crate::decoder::Decoder;
use crate::frame::{Frame, FrameError, HEADER_LEN, Head, Kind, Origin};
use crate::handshake::{
    Agreed, HELLO_BYTES_MAX, Handshake, HandshakeError, Known, Limits, Local, Refusal, RefusalKind, Side,
    refusal_frame,
};
use crate::outgoing::Outgoing;
use crate::payload::Payload;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use stead_core::ids::{Micros, NodeId, Time};

/// The settings of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Maximum number of bytes that wait to be written, unless a single frame has more. Default: 64 MiB.
    pub send_bytes_max: usize,
    /// Time without a frame after which an end sends a keep-alive. Default: 1 s.
    pub keep_alive: Micros,
    /// Time without a byte from the other end, or in which it takes none, after which a connection fails. More than
    /// `keep_alive` of both ends. Default: 10 s.
    pub silence_max: Micros,
    /// Time from the beginning to the other end's hello after which a connection fails. Default: 5 s.
    pub handshake_time_max: Micros,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            send_bytes_max: 64 << 20,
            keep_alive: Micros::from_secs(1),
            silence_max: Micros::from_secs(10),
            handshake_time_max: Micros::from_secs(5),
        }
    }
}

/// The number of a request in its connection and direction, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Frames and changes of a connection, for its owner. Payloads share the memory of the received bytes: copy what is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Both ends know each other: frames may be sent.
    Opened(Agreed),
    /// Messages of shards: see [`crate::section`].
    Shards(Bytes),
    /// A request of the other end. Answer it, whatever became of it: it counts until then.
    Request(RequestId, Bytes),
    /// The answer to a request of this end.
    Answer(RequestId, Bytes),
}

/// Reasons for which a connection has ended. It must be closed; over a new one, requests without an answer may be sent
/// again with their identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The bytes are no frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// One of the ends refused the other.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The other end did not say hello in time.
    #[error(
        "the other end did not say hello within {} ms; check that a node of Stead runs at this address",
        after.0 / 1000
    )]
    NoHello {
        /// The limit.
        after: Micros,
    },
    /// The other end closed the connection.
    #[error(
        "the other end closed the connection{}; connect again",
        if *torn { " within a frame" } else { "" }
    )]
    Closed {
        /// Whether a frame had arrived in part.
        torn: bool,
    },
    /// Nothing arrived, not even a keep-alive.
    #[error(
        "nothing arrived for {} ms: the other end stands still, or the network is cut; connect again",
        after.0 / 1000
    )]
    Silent {
        /// The limit.
        after: Micros,
    },
    /// The other end took no byte of those that wait.
    #[error(
        "the other end took none of {bytes} waiting bytes for {} ms: it stands still, or the network is cut; connect \
         again",
        after.0 / 1000
    )]
    Stalled {
        /// The bytes that wait.
        bytes: usize,
        /// The limit.
        after: Micros,
    },
    /// A frame names another sender than the hello did.
    #[error("a {kind} frame is of {found}, and the connection of {agreed}; close it and connect again")]
    Origin {
        /// The frame's kind.
        kind: Kind,
        /// Its sender.
        found: Origin,
        /// The sender of the connection's frames.
        agreed: Origin,
    },
    /// A frame of a kind that may not come now.
    #[error("a {kind} frame came out of order; report this as a bug of its sender")]
    Order {
        /// The frame's kind.
        kind: Kind,
    },
    /// A request or an answer has a number that it cannot have.
    #[error(
        "a {kind} frame has number {number}, which was used before or never given; report this as a bug of its sender"
    )]
    Number {
        /// The frame's kind.
        kind: Kind,
        /// Its number.
        number: u64,
    },
    /// The clients' connections need more memory than they may.
    #[error(
        "the clients' connections held {bytes} bytes, and at most {max} may be held; this one held the most; connect \
         again, and send less at once"
    )]
    Memory {
        /// The bytes of all clients.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The other end sent more requests than this end's hello allows.
    #[error(
        "the other end has {requests} requests with {bytes} bytes without an answer, more than it was allowed; report \
         this as a bug of its sender"
    )]
    TooManyRequests {
        /// The requests, with the one that was too much.
        requests: usize,
        /// Their bytes.
        bytes: u64,
    },
}

impl Failure {
    /// Returns the kind of the refusal that the other end gets: `None` if it did nothing wrong, or has gone.
    const fn refusal(&self) -> Option<RefusalKind> {
        match self {
            Self::Frame(_)
            | Self::Origin { .. }
            | Self::Order { .. }
            | Self::Number { .. }
            | Self::TooManyRequests { .. } => Some(RefusalKind::Malformed),
            Self::Memory { .. } => Some(RefusalKind::Full),
            Self::Handshake(_)
            | Self::NoHello { .. }
            | Self::Closed { .. }
            | Self::Silent { .. }
            | Self::Stalled { .. } => None,
        }
    }
}

/// Reasons for which a frame is not sent. Nothing was queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The other end reads too slowly. Send the frame again when fewer bytes wait, or do without it.
    #[error(
        "{waiting} bytes wait to be sent, and at most {max} may; send it again when the other end has read some"
    )]
    WouldBlock {
        /// The bytes that wait.
        waiting: usize,
        /// The limit.
        max: usize,
    },
    /// The other end has as many requests as it takes. Send the request again after an answer.
    #[error("{requests} requests with {bytes} bytes have no answer yet; send it again after an answer")]
    TooManyRequests {
        /// The requests without an answer.
        requests: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// The other end does not take frames of this length.
    #[error("a frame of {bytes} bytes is longer than the other end takes, {max}; split it")]
    TooLong {
        /// The length of the payload.
        bytes: usize,
        /// The limit that the other end named.
        max: u32,
    },
    /// The other end has not said hello, or the connection has failed.
    #[error("the connection is not open; wait until it is, or use another one")]
    NotOpen,
    /// The request is not one without an answer.
    #[error("request {} of this connection has an answer already, or never came", .0.0)]
    NoRequest(RequestId),
}

/// The progress of a connection.
#[derive(Debug)]
enum Stage {
    Handshake(Handshake),
    Open(Agreed),
    /// Queued frames may still be written.
    Failed(Failure),
}

/// A connection to another node or a client.
#[derive(Debug)]
pub struct Connection {
    settings: Settings,
    local: Local,
    /// The limits that this end has set for the other one.
    takes: Limits,
    side: Side,
    stage: Stage,
    decoder: Decoder,
    outgoing: Outgoing,
    begun: Time,
    /// When a byte last arrived.
    heard: Time,
    /// When this end last queued a frame.
    spoke: Time,
    /// When the other end last took a byte, or when something began to wait.
    took: Time,
    /// The last request of this end.
    last_sent: u64,
    /// The requests of this end without an answer, with their bytes.
    sent: BTreeMap<u64, u64>,
    sent_bytes: u64,
    last_received: u64,
    /// The requests of the other end without an answer, with their bytes.
    received: BTreeMap<u64, u64>,
    received_bytes: u64,
    /// The requests in `sent` whose answers are no longer awaited.
    forgotten: BTreeSet<u64>,
}

impl Connection {
    /// Begins a connection that this end dialed, to a certain node if one is given. `wall` is the wall clock; all other
    /// times are on a steady one. `number` is more than that of each connection that this process began before.
    ///
    /// # Panics
    /// If this end's limits contradict each other or are below their minimum.
    #[must_use]
    pub fn dial(
        local: Local,
        number: u64,
        expected: Option<NodeId>,
        settings: Settings,
        now: Time,
        wall: Time,
    ) -> Self {
        let handshake = Handshake::dial(local.clone(), number, expected);
        let (head, payload) = handshake.hello(wall, None);
        let mut connection = Self::new(local, handshake, settings, now);
        connection.push(head, &payload, now);
        connection
    }

    /// Begins a connection that this end accepts. `number` is more than that of each connection that this process began
    /// before.
    ///
    /// # Panics
    /// If this end's limits contradict each other or are below their minimum.
    #[must_use]
    pub fn accept(local: Local, number: u64, settings: Settings, now: Time) -> Self {
        let handshake = Handshake::accept(local.clone(), number);
        Self::new(local, handshake, settings, now)
    }

    fn new(local: Local, handshake: Handshake, settings: Settings, now: Time) -> Self {
        let are_valid = local.limits.are_valid() && local.client_limits.are_valid();
        assert!(are_valid, "the limits let the other end send something");
        Self {
            settings,
            side: handshake.side(),
            takes: local.limits,
            local,
            stage: Stage::Handshake(handshake),
            decoder: Decoder::new(HELLO_BYTES_MAX),
            outgoing: Outgoing::default(),
            begun: now,
            heard: now,
            spoke: now,
            took: now,
            last_sent: 0,
            sent: BTreeMap::new(),
            sent_bytes: 0,
            last_received: 0,
            received: BTreeMap::new(),
            received_bytes: 0,
            forgotten: BTreeSet::new(),
        }
    }

    /// Returns the time at which the other end was heard last, or the connection began.
    #[must_use]
    pub const fn heard(&self) -> Time {
        self.heard
    }

    /// Changes the settings.
    pub const fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Returns the end that opened the connection.
    #[must_use]
    pub const fn side(&self) -> Side {
        self.side
    }

    /// Returns what both ends agreed on, while the connection is open.
    #[must_use]
    pub const fn agreed(&self) -> Option<&Agreed> {
        match &self.stage {
            Stage::Open(agreed) => Some(agreed),
            Stage::Handshake(_) | Stage::Failed(_) => None,
        }
    }

    /// Returns the reason for which the connection has ended, if it has.
    #[must_use]
    pub const fn failure(&self) -> Option<&Failure> {
        match &self.stage {
            Stage::Failed(failure) => Some(failure),
            Stage::Handshake(_) | Stage::Open(_) => None,
        }
    }

    /// Takes bytes that have arrived. The caller takes all events before it gives more.
    pub fn receive(&mut self, bytes: &[u8], now: Time) {
        self.heard = self.heard.max(now);
        self.decoder.receive(bytes);
    }

    /// Notes that the other end sends nothing more. Events that have arrived must have been taken before.
    pub fn handle_end(&mut self) -> Failure {
        let torn = self.decoder.buffered() > 0;
        self.fail(Failure::Closed { torn })
    }

    /// Returns the next event, or `None` if more bytes are needed. `known` returns what this end knows of a node: see [`Handshake::handle_frame`].
    ///
    /// # Errors
    /// The reason for which the connection ends; then each later call returns the same one. What
    /// [`slices`](Self::slices) has then is written if possible: it may be a refusal.
    pub fn next_event(
        &mut self,
        now: Time,
        wall: Time,
        known: impl Fn(NodeId) -> Option<Known>,
    ) -> Result<Option<Event>, Failure> {
        loop {
            if let Stage::Failed(failure) = &self.stage {
                return Err(failure.clone());
            }
            let frame = match self.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(None),
                Err(error) => return Err(self.fail(error.into())),
            };
            let handled = match &self.stage {
                Stage::Handshake(_) => self.handle_first(&frame, now, wall, &known).map(Some),
                Stage::Open(agreed) => {
                    let agreed = agreed.origin;
                    self.handle_frame(frame, agreed)
                }
                Stage::Failed(failure) => Err(failure.clone()),
            };
            match handled {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(failure) => return Err(self.fail(failure)),
            }
        }
    }

    fn handle_first(
        &mut self,
        frame: &Frame,
        now: Time,
        wall: Time,
        known: impl Fn(NodeId) -> Option<Known>,
    ) -> Result<Event, Failure> {
        let Stage::Handshake(handshake) = &self.stage else { unreachable!("the caller checked the stage") };
        match handshake.handle_frame(frame, wall, known) {
            Ok(agreed) => {
                if self.side == Side::Accepted {
                    let (head, payload) = handshake.hello(wall, Some(agreed.role));
                    self.push(head, &payload, now);
                }
                self.takes = self.local.limits_of(agreed.role);
                self.decoder.set_payload_bytes_max(self.takes.payload_bytes_max);
                self.stage = Stage::Open(agreed.clone());
                Ok(Event::Opened(agreed))
            }
            Err(error) => {
                if let HandshakeError::Refused(refusal) = &error {
                    let (head, payload) = handshake.refusal(refusal);
                    self.push(head, &payload, now);
                }
                Err(error.into())
            }
        }
    }

    fn handle_frame(&mut self, frame: Frame, agreed: Origin) -> Result<Option<Event>, Failure> {
        let Frame { head: Head { kind, number, origin }, payload } = frame;
        if origin != agreed {
            return Err(Failure::Origin { kind, found: origin, agreed });
        }
        match kind {
            Kind::Alive => Ok(None),
            Kind::Shards => Ok(Some(Event::Shards(payload))),
            Kind::Request => self.handle_request(number, payload).map(Some),
            Kind::Answer => {
                let Some(bytes) = self.sent.remove(&number) else {
                    return Err(Failure::Number { kind, number });
                };
                self.sent_bytes -= bytes;
                let waits = !self.forgotten.remove(&number);
                Ok(waits.then_some(Event::Answer(RequestId(number), payload)))
            }
            // The end that dialed may refuse the hello of the one that accepted.
            Kind::Refusal => Err(Handshake::refused_by_other(&payload).into()),
            Kind::Hello => Err(Failure::Order { kind }),
        }
    }

    fn handle_request(&mut self, number: u64, payload: Bytes) -> Result<Event, Failure> {
        if number <= self.last_received {
            return Err(Failure::Number { kind: Kind::Request, number });
        }
        let requests = self.received.len() + 1;
        let bytes = self.received_bytes + bytes_of(payload.len());
        let limits = &self.takes;
        if requests > usize::try_from(limits.requests_max).unwrap_or(usize::MAX)
            || bytes > limits.request_bytes_max
        {
            return Err(Failure::TooManyRequests { requests, bytes });
        }
        self.last_received = number;
        self.received.insert(number, bytes_of(payload.len()));
        self.received_bytes = bytes;
        Ok(Event::Request(RequestId(number), payload))
    }

    /// Sends messages of shards: see [`crate::section`].
    ///
    /// # Errors
    /// If they cannot be sent now.
    pub fn send_shards(&mut self, payload: &Payload, now: Time) -> Result<(), SendError> {
        self.send(Kind::Shards, 0, payload, now)
    }

    /// Sends a request. Its answer arrives as [`Event::Answer`], or never if the connection fails.
    ///
    /// # Errors
    /// If it cannot be sent now.
    pub fn send_request(&mut self, payload: &Payload, now: Time) -> Result<RequestId, SendError> {
        let Stage::Open(agreed) = &self.stage else { return Err(SendError::NotOpen) };
        let (requests, bytes) = (self.sent.len(), self.sent_bytes);
        let len = bytes_of(payload.len());
        if requests >= usize::try_from(agreed.limits.requests_max).unwrap_or(usize::MAX)
            || (requests > 0 && bytes + len > agreed.limits.request_bytes_max)
        {
            return Err(SendError::TooManyRequests { requests, bytes });
        }
        let number = self.last_sent + 1;
        self.send(Kind::Request, number, payload, now)?;
        self.last_sent = number;
        self.sent.insert(number, len);
        self.sent_bytes += len;
        Ok(RequestId(number))
    }

    /// Drops the answer to a request when it arrives. Until then it counts, because the other end still works on it.
    /// Does nothing for a request that has an answer.
    pub fn forget(&mut self, request: RequestId) {
        if self.sent.contains_key(&request.0) {
            self.forgotten.insert(request.0);
        }
    }

    /// Answers a request of the other end.
    ///
    /// # Errors
    /// If the answer cannot be sent now; then the request still needs one.
    pub fn send_answer(&mut self, request: RequestId, payload: &Payload, now: Time) -> Result<(), SendError> {
        if !self.received.contains_key(&request.0) {
            return Err(SendError::NoRequest(request));
        }
        self.send(Kind::Answer, request.0, payload, now)?;
        self.received_bytes -= self.received.remove(&request.0).expect("it was there");
        Ok(())
    }

    fn send(&mut self, kind: Kind, number: u64, payload: &Payload, now: Time) -> Result<(), SendError> {
        let Stage::Open(agreed) = &self.stage else { return Err(SendError::NotOpen) };
        let (bytes, max) = (payload.len(), agreed.limits.payload_bytes_max);
        if bytes_of(bytes) > u64::from(max) {
            return Err(SendError::TooLong { bytes, max });
        }
        let (waiting, max) = (self.outgoing.len(), self.settings.send_bytes_max);
        if waiting > 0 && waiting + HEADER_LEN + bytes > max {
            return Err(SendError::WouldBlock { waiting, max });
        }
        self.push(Head { kind, number, origin: self.local.origin }, payload, now);
        Ok(())
    }

    fn push(&mut self, head: Head, payload: &Payload, now: Time) {
        if self.outgoing.is_empty() {
            self.took = now;
        }
        self.spoke = now;
        self.outgoing.push(head, payload);
    }

    /// Refuses an open connection after all, for a reason that its handshake cannot know, and returns the failure.
    pub(crate) fn refuse(&mut self, refusal: Refusal, now: Time) -> Failure {
        let (head, payload) = Handshake::accept(self.local.clone(), 0).refusal(&refusal);
        self.push(head, &payload, now);
        self.fail(HandshakeError::Refused(refusal).into())
    }

    /// Returns the number of bytes in memory: received in part, of requests without an answer, and waiting to be written.
    #[must_use]
    pub fn held(&self) -> u64 {
        bytes_of(self.decoder.buffered()) + self.received_bytes + bytes_of(self.outgoing.len())
    }

    /// Returns the number of bytes that wait to be written.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.outgoing.len()
    }

    /// Fills `slices` with bytes to write, and returns how many of them it filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.outgoing.slices(slices)
    }

    /// Notes that the first of the waiting bytes were written.
    ///
    /// # Panics
    /// If fewer wait.
    pub fn advance(&mut self, bytes: usize, now: Time) {
        if bytes > 0 {
            self.took = now;
            self.outgoing.advance(bytes);
        }
    }

    /// Does what is due: queues a keep-alive, or ends a connection whose other end is silent. Returns the time at which
    /// the next thing is due: `now` or before if it waits until all is read.
    ///
    /// `is_unread` is whether bytes may have arrived that [`receive`](Self::receive) did not get: the other end is not
    /// silent then.
    ///
    /// # Errors
    /// The reason for which the connection ends or has ended.
    pub fn tick(&mut self, now: Time, is_unread: bool) -> Result<Time, Failure> {
        let Settings { keep_alive, silence_max, handshake_time_max, .. } = self.settings;
        match &self.stage {
            Stage::Failed(failure) => return Err(failure.clone()),
            Stage::Handshake(_) => {
                let until = self.begun.plus(handshake_time_max);
                if now >= until && !is_unread {
                    return Err(self.fail(Failure::NoHello { after: handshake_time_max }));
                }
                return Ok(until);
            }
            Stage::Open(_) => {}
        }
        let mut until = self.heard.plus(silence_max);
        if now >= until && !is_unread {
            return Err(self.fail(Failure::Silent { after: silence_max }));
        }
        if self.outgoing.is_empty() {
            if now >= self.spoke.plus(keep_alive) {
                let head = Head { kind: Kind::Alive, number: 0, origin: self.local.origin };
                self.push(head, &Payload::default(), now);
            }
            until = until.min(self.spoke.plus(keep_alive));
        }
        if !self.outgoing.is_empty() {
            let stalled = self.took.plus(silence_max);
            if now >= stalled {
                let bytes = self.outgoing.len();
                return Err(self.fail(Failure::Stalled { bytes, after: silence_max }));
            }
            // The queue may be empty soon: then a keep-alive is due.
            until = until.min(stalled).min(now.plus(keep_alive));
        }
        Ok(until)
    }

    /// Ends the connection, and returns the reason of its end: an earlier one if it has failed before. The other end gets
    /// a refusal if it has said hello and the reason concerns it: another program gets nothing.
    pub(crate) fn fail(&mut self, failure: Failure) -> Failure {
        if let Stage::Failed(earlier) = &self.stage {
            return earlier.clone();
        }
        if let (Stage::Open(_), Some(kind)) = (&self.stage, failure.refusal()) {
            let (head, payload) = refusal_frame(self.local.origin, kind, failure.to_string());
            self.outgoing.push(head, &payload);
        }
        self.stage = Stage::Failed(failure.clone());
        self.sent.clear();
        self.received.clear();
        self.received_bytes = 0;
        self.forgotten.clear();
        failure
    }
}

fn bytes_of(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits 64 bits")
}
