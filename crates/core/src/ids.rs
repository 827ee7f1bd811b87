//! A newtype for every number, so that an epoch cannot be passed as an index.
//!
//! The newtypes serialize with serde as plain numbers: a user's process stores the id of its timer or task in its
//! state.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::time::Duration;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone,
            Copy,
            Debug,
            Default,
            PartialEq,
            Eq,
            PartialOrd,
            Ord,
            Hash,
            Encode,
            Decode,
            Serialize,
            Deserialize,
        )]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] pub $inner);

        impl $name {
            /// Returns the next number.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// A shard, numbered over all services of a cluster.
    ShardId(u32)
}
number! {
    /// A service's position in the topology.
    ServiceId(u16)
}
number! {
    /// A node of the cluster.
    NodeId(u32)
}

impl NodeId {
    /// The first node of a cluster.
    pub const FIRST: Self = Self(1);
}

number! {
    /// A replica of a shard: its number is new for each stint of membership and never used again for that shard.
    ReplicaId(u64)
}

impl ReplicaId {
    /// The replica of a shard that is created on a node of its own.
    pub const FIRST: Self = Self(1);
    /// No replica: the number of a place that has none.
    pub const NONE: Self = Self(0);
}

number! {
    /// A shard's configuration number; it only grows.
    Epoch(u64)
}

impl Epoch {
    /// The greatest epoch that is taken from outside. No shard reaches it by failovers.
    pub const MAX: Self = Self(1 << 48);
}

number! {
    /// A generation of a shard's channels: it grows with each takeover that may have lost committed entries.
    Generation(u64)
}
number! {
    /// A start of a node on its data directory; the first one is 1.
    Life(u64)
}
number! {
    /// A disk of a node, numbered within the node: replicas on an older one are lost. The first one is 1.
    DiskNumber(u64)
}
number! {
    /// A round in which a primary asks for confirmations, numbered within its epoch; the first one is 1.
    Round(u64)
}
number! {
    /// The position of an entry in its shard's log; the first entry is 1.
    Index(u64)
}

impl Index {
    /// The greatest index that is taken from outside: a shard that appends a million entries a second reaches it after nine years.
    pub const MAX: Self = Self(u64::MAX / IDS_PER_ENTRY);
}

number! {
    /// The position of a message in its channel; the first message is 1.
    Seq(u64)
}
number! {
    /// The number of a checkpoint; the first one is 1.
    CheckpointNumber(u64)
}

impl CheckpointNumber {
    /// Returns the colour of a shard that has taken its part of this checkpoint.
    #[must_use]
    pub const fn colour(self) -> Colour {
        Colour(self.0)
    }
}

number! {
    /// The number of the last checkpoint whose marker a shard has appended; everything that leaves the shard carries it.
    Colour(u64)
}

impl Colour {
    /// Returns the last checkpoint whose marker a shard of this colour has appended.
    #[must_use]
    pub const fn number(self) -> CheckpointNumber {
        CheckpointNumber(self.0)
    }
}

number! {
    /// A cluster's life since its last restore.
    Incarnation(u64)
}
number! {
    /// The position of a request in its session; the first one is 1.
    RequestNumber(u64)
}
number! {
    /// A timer, unique within its shard for ever.
    TimerId(u64)
}
number! {
    /// A task, unique within its shard for ever.
    TaskId(u64)
}

/// A cluster, drawn at random when it is created. Written as 32 hexadecimal digits, also with serde.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for ClusterId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClusterId {
    /// Takes the output of `Display`, and nothing else.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let id = u128::from_str_radix(&text, 16).ok().map(Self).filter(|id| id.to_string() == text);
        id.ok_or_else(|| serde::de::Error::custom("a cluster has 32 hexadecimal digits"))
    }
}

number! {
    /// The position of a step in its task; the first one is 0.
    StepNumber(u64)
}
number! {
    /// A run of a step of a task, unique among those of its shard whose outcome may still come in this life of the process.
    StepRun(u32)
}

number! {
    /// A call that waits for its answer, as its caller names it; the core returns it with the answer.
    CallToken(u64)
}

/// Timers and tasks that one entry can number.
pub const IDS_PER_ENTRY: u64 = 1 << 16;

/// Returns the number of a timer or task: the `n`-th of the entry with this index, from 0 on. So no number is used
/// twice, and no counter is kept.
///
/// # Panics
/// If `n` is [`IDS_PER_ENTRY`] or more, or the index is 2^48 or more, from which on two timers would have the same
/// number: a shard that appends a million entries a second reaches it after nine years.
#[must_use]
pub const fn id_of_entry(place: Index, n: u64) -> u64 {
    assert!(n < IDS_PER_ENTRY, "an entry numbers no more timers and tasks than that");
    assert!(place.0 <= u64::MAX / IDS_PER_ENTRY, "the shard has used up its ids");
    place.0 * IDS_PER_ENTRY + n
}

impl TimerId {
    /// Returns the index of the entry that set the timer, or an earlier one if a restore has given it another number.
    pub(crate) const fn place(self) -> Index {
        Index(self.0 / IDS_PER_ENTRY)
    }
}

/// Microseconds since the Unix epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[cbor(transparent)]
pub struct Time(#[n(0)] pub u64);

impl Time {
    /// Returns this time plus a number of microseconds, at most the greatest time.
    #[must_use]
    pub const fn plus_micros(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// Returns this time plus a number of milliseconds, at most the greatest time.
    #[must_use]
    pub const fn plus_millis(self, millis: u64) -> Self {
        self.plus(Micros::from_millis(millis))
    }

    /// Returns this time plus a span, at most the greatest time.
    #[must_use]
    pub const fn plus(self, span: Micros) -> Self {
        self.plus_micros(span.0)
    }

    /// Returns the span from an earlier time to this one; 0 if the other time is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }
}

/// The time that a shard has served, in microseconds. It advances only while the shard serves: no jump of a clock and
/// no downtime advances it. Its beginning is arbitrary: only differences are meaningful.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Served(#[n(0)] pub u64);

impl Served {
    /// Returns this time plus a span, at most the greatest time.
    #[must_use]
    pub const fn plus(self, span: Micros) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// Returns the span from an earlier time to this one; 0 if the other time is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }
}

/// A span of time in microseconds. All times of the protocol, its settings and its formats have this unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Micros(#[n(0)] pub u64);

impl Micros {
    /// Returns a span of milliseconds, at most the longest span.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000))
    }

    /// Returns a span of seconds, at most the longest span.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Returns the sum of two spans, at most the longest span.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Returns the rest of this span after another one; 0 if the other one is longer.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Returns a multiple of the span, at most the longest span.
    #[must_use]
    pub const fn times(self, count: u64) -> Self {
        Self(self.0.saturating_mul(count))
    }

    /// Returns half of the span.
    #[must_use]
    pub const fn half(self) -> Self {
        Self(self.0 / 2)
    }
}

impl From<Duration> for Micros {
    /// Drops the part below a microsecond; at most the longest span.
    fn from(duration: Duration) -> Self {
        // Without the 128 bits of `as_micros`: a clock is read for each slice of a turn.
        Self::from_secs(duration.as_secs()).plus(Self(u64::from(duration.subsec_micros())))
    }
}

impl From<Micros> for Duration {
    fn from(span: Micros) -> Self {
        Self::from_micros(span.0)
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} µs", self.0)
    }
}

/// The hash of a request: its idempotency key is refused with another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BodyHash(pub [u8; 16]);

impl<C> Encode<C> for BodyHash {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for BodyHash {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let bytes = d.bytes()?.try_into();
        bytes.map(Self).map_err(|_| minicbor::decode::Error::message("a body's hash has 16 bytes"))
    }
}

/// A client's session, drawn at random by the shell that opens it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct SessionId(#[cbor(n(0), with = "bytes16")] pub u128);

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The encoding of random numbers of 128 bits: 16 bytes, the most significant one first.
pub(crate) mod bytes16 {
    use minicbor::decode::{self, Decoder};
    use minicbor::encode::{self, Encoder};

    pub(crate) fn encode<C, W: encode::Write>(
        number: &u128,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&number.to_be_bytes())?.ok()
    }

    pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<u128, decode::Error> {
        let bytes = d.bytes()?.try_into();
        bytes.map(u128::from_be_bytes).map_err(|_| decode::Error::message("a random number has 16 bytes"))
    }
}
