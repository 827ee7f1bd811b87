//! How numbers and hashes are written in JSON.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use stead_core::ids::{Colour, Epoch, Incarnation, Index, ShardId, Time};

/// A hash of 128 bits; 32 hexadecimal digits in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash(pub u128);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Hash {
    /// Reads what `Display` writes, and nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hash = u128::from_str_radix(text, 16).ok().map(Self)?;
        (hash.to_string() == text).then_some(hash)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a hash has 32 hexadecimal digits"))
    }
}

// The core knows no JSON, so its numbers are described here.
macro_rules! number {
    ($name:ident as $core:literal is $inner:ty) => {
        #[derive(Serialize, Deserialize)]
        #[serde(remote = $core)]
        pub(crate) struct $name(pub $inner);
    };
}

number!(ShardNumber as "ShardId" is u32);
number!(EpochNumber as "Epoch" is u64);
number!(IndexNumber as "Index" is u64);
number!(ColourNumber as "Colour" is u64);
number!(IncarnationNumber as "Incarnation" is u64);
number!(Micros as "Time" is u64);
