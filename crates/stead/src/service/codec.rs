//! The encoding of values: MessagePack with field names, state with its version before it.

use super::process::{Process, ProcessKey};
use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned, IgnoredAny};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::io;
use stead_core::blob::Blob;
use stead_core::key::Key;
use thiserror::Error;

thread_local! {
    /// Grows to the largest value of its thread, so that encoding a value allocates only its bytes.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A scratch buffer over this many bytes is freed.
const SCRATCH_KEPT: usize = 1 << 20;

/// Reasons for which a value cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    /// The bytes are not a value of the type.
    #[error("cannot read {what} of {service}: {reason}")]
    Unreadable {
        /// A request, a reply, …
        what: &'static str,
        /// The service.
        service: String,
        /// The decoder's reason.
        reason: String,
    },
    /// The value cannot be encoded, such as a map with keys that are not representable.
    #[error("cannot encode {what} of {service}: {reason}")]
    Unwritable {
        /// A request, a reply, …
        what: &'static str,
        /// The service.
        service: String,
        /// The encoder's reason.
        reason: String,
    },
    /// The key of a process is empty, too long, or invalid for its service.
    #[error("invalid key {key:?} of {service}: {reason}")]
    Key {
        /// The service.
        service: String,
        /// The refused key.
        key: String,
        /// The reason.
        reason: String,
    },
    /// JSON that MessagePack cannot represent, or the reverse.
    #[error("cannot convert the value: {reason}")]
    Json {
        /// The reason.
        reason: String,
    },
}

/// State that this version of a service cannot read. The process stays unchanged until a version comes that can.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{service}/{key}: version {current} cannot read state of version {}: {reason}; \
     run the version that wrote it, or extend `migrate`",
    stored.map_or_else(|| "?".to_owned(), |v| v.to_string())
)]
pub struct UnreadableState {
    /// The service.
    pub service: &'static str,
    /// The process.
    pub key: String,
    /// The version of the stored state, if even that can be read.
    pub stored: Option<u32>,
    /// The version of the code.
    pub current: u32,
    /// The reason.
    pub reason: String,
}

/// Encodes a value as MessagePack.
///
/// # Errors
/// [`CodecError::Unwritable`] if the value's `Serialize` refuses.
pub fn encode<T: Serialize>(value: &T, what: &'static str, service: &str) -> Result<Blob, CodecError> {
    encode_with(|buffer| rmp_serde::encode::write_named(buffer, value)).map_err(|error| {
        CodecError::Unwritable { what, service: service.to_owned(), reason: error.to_string() }
    })
}

fn encode_with<E>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Blob, E> {
    with_scratch(|buffer| {
        write(buffer)?;
        Ok(Blob::from(&**buffer))
    })
}

/// Lends the empty scratch buffer, or another one while it is in use: a `Serialize` may encode other values.
fn with_scratch<R>(work: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut buffer) => {
            buffer.clear();
            let done = work(&mut buffer);
            if buffer.capacity() > SCRATCH_KEPT {
                *buffer = Vec::new();
            }
            done
        }
        Err(_) => work(&mut Vec::new()),
    })
}

/// Decodes a value that fills the bytes.
///
/// # Errors
/// [`CodecError::Unreadable`] if the bytes are anything else.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], what: &'static str, service: &str) -> Result<T, CodecError> {
    decode_exact(bytes).map_err(|reason| CodecError::Unreadable { what, service: service.to_owned(), reason })
}

/// Maximum nesting depth: no input may overflow a stack.
const DEPTH_MAX: usize = 128;

fn decode_exact<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(DEPTH_MAX);
    let value = T::deserialize(&mut deserializer).map_err(|error| error.to_string())?;
    // The deserializer does not report its position; reading one more value fails with this error only at the end.
    match IgnoredAny::deserialize(&mut deserializer) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(end))
            if end.kind() == io::ErrorKind::UnexpectedEof =>
        {
            Ok(value)
        }
        _ => Err("more bytes follow its end".to_owned()),
    }
}

/// Splits the version, a MessagePack number, from a stored state.
fn split_version(stored: &[u8]) -> Result<(u32, &[u8]), String> {
    let number = |len: usize| {
        let (digits, rest) = stored[1..].split_at_checked(len)?;
        Some((digits.iter().fold(0, |sum, &digit| sum << 8 | u32::from(digit)), rest))
    };
    let split = match stored.first() {
        Some(&small @ 0..0x80) => Some((u32::from(small), &stored[1..])),
        Some(0xcc) => number(1),
        Some(0xcd) => number(2),
        Some(0xce) => number(4),
        _ => None,
    };
    split.ok_or_else(|| "it has no version".to_owned())
}

/// Encodes a process's state in its stored form: its version, then the state.
///
/// # Errors
/// [`CodecError::Unwritable`] if the state's `Serialize` refuses.
pub fn encode_state<P: Process>(state: &P) -> Result<Blob, CodecError> {
    with_state_bytes(state, |bytes| Blob::from(bytes))
}

/// Passes the stored form of a state to a function without copying it.
pub(crate) fn with_state_bytes<P: Process, R>(
    state: &P,
    look: impl FnOnce(&[u8]) -> R,
) -> Result<R, CodecError> {
    let looked = with_scratch(|buffer| {
        rmp_serde::encode::write_named(buffer, &P::VERSION)?;
        rmp_serde::encode::write_named(buffer, state)?;
        Ok::<R, rmp_serde::encode::Error>(look(buffer))
    });
    looked.map_err(|error| CodecError::Unwritable {
        what: "the state",
        service: P::SERVICE.to_owned(),
        reason: error.to_string(),
    })
}

/// Decodes a process's stored state, through [`Process::migrate`] if it is of an older version.
///
/// # Errors
/// [`UnreadableState`]; the caller must leave the stored state unchanged.
pub fn decode_state<P: Process>(key: &str, bytes: &[u8]) -> Result<P, UnreadableState> {
    let refuse = |stored, reason| UnreadableState {
        service: P::SERVICE,
        key: key.to_owned(),
        stored,
        current: P::VERSION,
        reason,
    };
    let (version, rest) = split_version(bytes).map_err(|reason| refuse(None, reason))?;
    if version == P::VERSION {
        decode_exact(rest).map_err(|reason| refuse(Some(version), reason))
    } else if version < P::VERSION {
        P::migrate(version, rest).map_err(|reason| refuse(Some(version), reason))
    } else {
        Err(refuse(Some(version), "a newer version wrote it".to_owned()))
    }
}

/// Returns the checked text of a typed key.
///
/// # Errors
/// [`CodecError::Key`] if the text is empty or over [`Key::LEN_MAX`] bytes.
pub fn encode_key<P: Process>(key: &P::Key) -> Result<Key, CodecError> {
    struct Text(SmallVec<[u8; 64]>);
    impl fmt::Write for Text {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            self.0.extend_from_slice(s.as_bytes());
            Ok(())
        }
    }
    let mut text = Text(SmallVec::new());
    // A `Display` that fails has written part of the text; the length check below catches the empty case.
    let _ = write!(text, "{key}");
    let text = std::str::from_utf8(&text.0).expect("only whole strings were written");
    check_key(P::SERVICE, text)
}

/// Checks the text of a key as far as possible without its service.
pub(crate) fn check_key(service: &str, text: &str) -> Result<Key, CodecError> {
    let refuse = |reason| CodecError::Key {
        service: service.to_owned(),
        key: text.chars().take(64).collect(),
        reason,
    };
    if text.is_empty() {
        return Err(refuse("it is empty".to_owned()));
    }
    Key::new(text).map_err(|error| refuse(error.to_string()))
}

/// Parses a stored key's text.
pub(crate) fn decode_key<P: Process>(text: &str) -> Result<P::Key, CodecError> {
    P::Key::parse_key(text).map_err(|reason| CodecError::Key {
        service: P::SERVICE.to_owned(),
        key: text.chars().take(64).collect(),
        reason,
    })
}

/// Converts a JSON value to MessagePack, in the form of a typed request.
///
/// # Errors
/// [`CodecError::Json`] if the value cannot be written.
pub fn json_to_payload(value: &serde_json::Value) -> Result<Vec<u8>, CodecError> {
    rmp_serde::to_vec_named(value).map_err(|error| CodecError::Json { reason: error.to_string() })
}

/// Converts MessagePack to JSON; binary becomes an array of numbers.
///
/// # Errors
/// [`CodecError::Json`] for bytes that are not MessagePack, or that JSON cannot represent.
pub fn payload_to_json(payload: &[u8]) -> Result<serde_json::Value, CodecError> {
    decode_exact(payload).map_err(|reason| CodecError::Json { reason })
}

/// Converts a stored state to JSON, and returns it with its version: for people.
///
/// # Errors
/// As [`payload_to_json`].
pub fn state_to_json(stored: &[u8]) -> Result<(u32, serde_json::Value), CodecError> {
    let (version, rest) = split_version(stored).map_err(|reason| CodecError::Json { reason })?;
    Ok((version, payload_to_json(rest)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_survive_in_every_length() {
        for version in [0, 1, 127, 128, 255, 256, 65_535, 65_536, u32::MAX] {
            let mut stored = Vec::new();
            rmp_serde::encode::write_named(&mut stored, &version).unwrap();
            stored.push(0xc0);
            assert_eq!(split_version(&stored), Ok((version, &[0xc0][..])));
        }
        for broken in [&[][..], &[0xcd, 1], &[0xc0], &[0xff]] {
            assert!(split_version(broken).is_err());
        }
    }

    #[test]
    fn a_value_must_fill_its_bytes() {
        assert_eq!(decode_exact::<u8>(&[7]), Ok(7));
        assert!(decode_exact::<u8>(&[7, 7]).is_err());
        assert!(decode_exact::<u8>(&[7, 0xc1]).is_err());
        assert!(decode_exact::<u8>(&[]).is_err());
        let deep = [vec![0x91; 100_000], vec![0x01]].concat();
        assert!(decode_exact::<serde_json::Value>(&deep).is_err());
    }

    #[test]
    fn json_and_payloads_convert_both_ways() {
        let value = json!({"put": {"value": [1, -2, 2.5, "x", null, true, {"y": {}}]}});
        assert_eq!(payload_to_json(&json_to_payload(&value).unwrap()), Ok(value));
    }
}
