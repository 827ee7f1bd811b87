//! The key of a process.

use compact_str::CompactString;
use minicbor::{Decode, Encode};
use std::fmt;

/// The key of a process within its service: UTF-8, at most [`Key::LEN_MAX`] bytes.
///
/// Keys of up to 24 bytes are stored inline, so that a message to another thread shares no reference count with its
/// sender.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(CompactString);

/// A process key that is too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a process key of {len} bytes is over the limit of {max}; use a shorter key", max = Key::LEN_MAX)]
pub struct KeyTooLong {
    /// Bytes of the refused key.
    pub len: usize,
}

impl Key {
    /// Maximum number of bytes of a key.
    pub const LEN_MAX: usize = 512;

    /// Checks and copies a key.
    ///
    /// # Errors
    /// [`KeyTooLong`] over [`Key::LEN_MAX`] bytes.
    pub fn new(key: &str) -> Result<Self, KeyTooLong> {
        if key.len() > Self::LEN_MAX {
            return Err(KeyTooLong { len: key.len() });
        }
        Ok(Self(CompactString::new(key)))
    }

    /// Returns the empty key of an entry that concerns no process.
    #[must_use]
    pub const fn none() -> Self {
        Self(CompactString::const_new(""))
    }
}

impl std::ops::Deref for Key {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<C> Encode<C> for Key {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.str(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Key {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::new(d.str()?).map_err(minicbor::decode::Error::message)
    }
}
