//! Bytes that are shared, or stored inline if they are few.

use minicbor::{Decode, Encode};
use std::fmt;
use std::sync::Arc;

/// Immutable bytes. Up to [`Blob::SHORT_MAX`] of them are stored inline, so that a small message on its way to another
/// thread shares no reference count with its sender. Longer ones are shared without copying.
#[derive(Clone)]
pub struct Blob(Bytes);

#[derive(Clone)]
enum Bytes {
    Short { len: u8, bytes: [u8; Blob::SHORT_MAX] },
    Long(Arc<[u8]>),
}

impl Blob {
    /// Maximum number of bytes that are stored inline.
    pub const SHORT_MAX: usize = 22;

    /// Returns an empty blob.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Bytes::Short { len: 0, bytes: [0; Self::SHORT_MAX] })
    }
}

// A blob must not be larger than three words: there is one in each record.
const _: () = assert!(size_of::<Blob>() == 24);

impl Default for Blob {
    fn default() -> Self {
        Self::empty()
    }
}

impl std::ops::Deref for Blob {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Short { len, bytes } => &bytes[..usize::from(*len)],
            Bytes::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Blob {
    fn from(from: &[u8]) -> Self {
        if from.len() > Self::SHORT_MAX {
            return Self(Bytes::Long(Arc::from(from)));
        }
        let mut bytes = [0; Self::SHORT_MAX];
        bytes[..from.len()].copy_from_slice(from);
        Self(Bytes::Short { len: from.len() as u8, bytes })
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(&*bytes)
    }
}

impl PartialEq for Blob {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Blob {}

impl PartialOrd for Blob {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Blob {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl std::hash::Hash for Blob {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.len())
    }
}

impl<C> Encode<C> for Blob {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(self)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Blob {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Ok(Self::from(d.bytes()?))
    }
}
