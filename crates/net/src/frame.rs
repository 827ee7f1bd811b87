//! The format of a frame: a header of fixed length, then the payload.
//!
//! Little-endian:
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..4 | magic and version of this format, `SNF1` |
//! | 4..8 | CRC-32 of the header's other fields, bytes 8 to 44 |
//! | 8..12 | length of the payload in bytes |
//! | 12 | kind |
//! | 13 | flags: none are defined, so 0 |
//! | 14..16 | zeros |
//! | 16..24 | number of the request in its connection and direction; 0 if the frame belongs to none |
//! | 24..32 | incarnation of the sender's cluster |
//! | 32..40 | life of the sending process |
//! | 40..44 | CRC-32 of the payload |
//!
//! The header has a checksum of its own, so that a damaged length is noticed before bytes are awaited that never come.
//! The payload's checksum is apart from it, so that it is computed once for a payload that goes to several nodes.

use bytes::Bytes;
use std::fmt;
use stead_core::ids::{Incarnation, Life};

/// Length of a frame's header in bytes.
pub const HEADER_LEN: usize = 44;

/// Maximum length of a payload in bytes, unless a lower limit is set. It holds the largest entry, of which the writes,
/// sends and answer have at most 32 MiB.
pub const PAYLOAD_BYTES_MAX: u32 = 40 << 20;

const MAGIC: [u8; 4] = *b"SNF1";
/// The part of the magic that is the same in all versions of the format.
const MAGIC_PREFIX: &[u8; 3] = b"SNF";
const MAGIC_LEN: usize = MAGIC.len();
const CHECKED: usize = 8;

const _: () = assert!(PAYLOAD_BYTES_MAX as usize > 32 << 20);

/// The kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The first frame in each direction.
    Hello = 1,
    /// The sender refuses the connection, and closes it after this frame.
    Refusal = 2,
    /// The sender lives, and has nothing else to send.
    Alive = 3,
    /// Messages of shards to their replicas on the other node: see [`crate::section`].
    Shards = 4,
    /// A request that has an answer.
    Request = 5,
    /// The answer to a request, with its number.
    Answer = 6,
}

impl Kind {
    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Refusal,
            3 => Self::Alive,
            4 => Self::Shards,
            5 => Self::Request,
            6 => Self::Answer,
            _ => return None,
        })
    }

    /// Returns whether frames of this kind have the number of a request.
    #[must_use]
    pub const fn is_numbered(self) -> bool {
        matches!(self, Self::Request | Self::Answer)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hello => "hello",
            Self::Refusal => "refusal",
            Self::Alive => "keep-alive",
            Self::Shards => "shards",
            Self::Request => "request",
            Self::Answer => "answer",
        })
    }
}

/// The sender of a frame: what is sent by another one changes nothing. A client has the incarnation of the cluster that
/// it knows, 0 for none, and life 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The incarnation of its cluster.
    pub incarnation: Incarnation,
    /// The life of the process.
    pub life: Life,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "incarnation {}, life {}", self.incarnation, self.life)
    }
}

/// A frame without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its kind.
    pub kind: Kind,
    /// The number of its request; 0 exactly if its kind has none.
    pub number: u64,
    /// Its sender.
    pub origin: Origin,
}

/// A frame that was received whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The fields of its header.
    pub head: Head,
    /// Its payload: a part of the bytes that were received, which stay in memory as long as it does. Copy what is kept.
    pub payload: Bytes,
}

/// A header as it was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) head: Head,
    pub(crate) len: u32,
    pub(crate) checksum: u32,
}

impl Header {
    /// Returns the encoded header.
    ///
    /// # Panics
    /// If the kind and the number do not fit each other.
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let Head { kind, number, origin } = self.head;
        assert_eq!(kind.is_numbered(), number != 0, "requests and answers alone have a number");
        let mut bytes = [0; HEADER_LEN];
        bytes[..MAGIC_LEN].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12] = kind as u8;
        bytes[16..24].copy_from_slice(&number.to_le_bytes());
        bytes[24..32].copy_from_slice(&origin.incarnation.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&origin.life.0.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.checksum.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[CHECKED..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the header at the start of `bytes`; `None` if it has not arrived whole, and is right as far as it has.
    pub(crate) fn decode(bytes: &[u8], len_max: u32) -> Result<Option<Self>, FrameError> {
        let Some(magic) = bytes.first_chunk::<MAGIC_LEN>() else { return Ok(None) };
        if *magic != MAGIC {
            return Err(FrameError::NoFrame { found: Foreign::guess(*magic) });
        }
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        if crc32fast::hash(&bytes[CHECKED..]) != u32_at(bytes, 4) {
            return Err(FrameError::Header);
        }
        let Some(kind) = Kind::from_byte(bytes[12]) else { return Err(FrameError::Kind { kind: bytes[12] }) };
        if bytes[13..16] != [0; 3] {
            return Err(FrameError::Flags { kind, flags: [bytes[13], bytes[14], bytes[15]] });
        }
        let number = u64_at(bytes, 16);
        if kind.is_numbered() != (number != 0) {
            return Err(FrameError::Number { kind, number });
        }
        let len = u32_at(bytes, 8);
        if len > len_max {
            return Err(FrameError::TooLong { kind, len, max: len_max });
        }
        let origin = Origin { incarnation: Incarnation(u64_at(bytes, 24)), life: Life(u64_at(bytes, 32)) };
        Ok(Some(Self { head: Head { kind, number, origin }, len, checksum: u32_at(bytes, 40) }))
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the length"))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the length"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the length"))
}

/// The probable sender of bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// A client or a server of HTTP.
    Http,
    /// A client that begins TLS.
    Tls,
    /// A program of Stead with another format of frames, which has this version.
    Version(u8),
    /// Another one; these are the first bytes.
    Unknown([u8; MAGIC_LEN]),
}

impl Foreign {
    fn guess(bytes: [u8; MAGIC_LEN]) -> Self {
        const METHODS: [&[u8; MAGIC_LEN]; 11] = [
            b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC", b"PRI ", b"HTTP",
        ];
        match bytes {
            [0x16, 3, ..] => Self::Tls,
            _ if METHODS.contains(&&bytes) => Self::Http,
            _ => match bytes.strip_prefix(MAGIC_PREFIX) {
                Some([version]) if version.is_ascii_alphanumeric() => Self::Version(*version),
                _ => Self::Unknown(bytes),
            },
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http => {
                f.write_str("the other end speaks HTTP; use the address of the node's HTTP server for it")
            }
            Self::Tls => {
                f.write_str("the other end begins TLS, which nodes do not speak yet; connect without it")
            }
            Self::Version(version) => write!(
                f,
                "the other end speaks version {} of Stead's frames and this program version {}; run the same \
                 version of Stead at both ends",
                version.escape_ascii(),
                MAGIC[3].escape_ascii()
            ),
            Self::Unknown(bytes) => write!(
                f,
                "it begins with \"{}\"; connect nodes and clients of Stead alone to this address",
                bytes.escape_ascii()
            ),
        }
    }
}

/// Reasons for which bytes are no frame. Nothing after them can be read: the connection has to be closed. Everything
/// that was not answered may be sent again over a new one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes are of another protocol or another version.
    #[error("not a frame of Stead: {found}")]
    NoFrame {
        /// The probable sender.
        found: Foreign,
    },
    /// The header is damaged.
    #[error(
        "a frame's header was damaged on its way: its checksum is wrong; connect again, and check the network"
    )]
    Header,
    /// The kind is unknown.
    #[error("a frame is of the unknown kind {kind}; run the same version of Stead at both ends")]
    Kind {
        /// The kind.
        kind: u8,
    },
    /// There are flags that this version does not know.
    #[error("a {kind} frame has unknown flags {flags:?}; run the same version of Stead at both ends")]
    Flags {
        /// The frame's kind.
        kind: Kind,
        /// The bytes that must be 0.
        flags: [u8; 3],
    },
    /// A request or an answer without a number, or another frame with one.
    #[error("a {kind} frame has the request number {number}; report this as a bug of its sender")]
    Number {
        /// The frame's kind.
        kind: Kind,
        /// Its number.
        number: u64,
    },
    /// The payload would be longer than allowed. No memory was taken for it.
    #[error(
        "a {kind} frame has {len} bytes, and at most {max} are taken; split it, or raise the limit at this end"
    )]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// The length that its header claims.
        len: u32,
        /// The limit.
        max: u32,
    },
    /// The payload is damaged.
    #[error(
        "the {len} bytes of a {kind} frame were damaged on their way: their checksum is wrong; connect again, and \
         check the network"
    )]
    Payload {
        /// The frame's kind.
        kind: Kind,
        /// The length of the payload.
        len: u32,
    },
}
