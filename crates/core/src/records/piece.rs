//! Pieces of a snapshot, and the stored form of records.

use crate::blob::Blob;
use crate::channel::Message;
use crate::ids::ShardId;
use crate::record::{Kind, RecordKey};
use smallvec::SmallVec;

/// Number of records that are prefetched together before they are taken: they are in no cache.
pub(super) const AHEAD: usize = 16;

/// Maximum number of bytes of a record's value.
pub(super) const VALUE_MAX: usize = 64 << 20;

/// Records of a snapshot, which share their values with the state, and messages of the outboxes that belong to it.
#[derive(Default)]
pub struct Piece {
    pub(super) records: Vec<(SmallVec<[u8; 16]>, Option<Blob>)>,
    messages: Vec<(ShardId, Message)>,
    bytes: usize,
}

impl Piece {
    /// Bytes of a value that are prefetched; the processor predicts the rest of longer values.
    const AHEAD_BYTES: usize = 1024;
    /// Bytes that the processor fetches at once.
    const LINE_BYTES: usize = 64;

    /// Returns the bytes that [`Piece::encode`] appends, plus approximately those of the messages.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the number of records and messages together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len() + self.messages.len()
    }

    /// Whether there are no records and no messages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the messages and their receiving shards: the next ones of the outboxes that the part's [`Header`]
    /// begins.
    ///
    /// [`Header`]: crate::state::Header
    #[must_use]
    pub fn messages(&self) -> &[(ShardId, Message)] {
        &self.messages
    }

    /// Appends the records in their stored form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(self.bytes);
        for (at, (key, value)) in self.records.iter().enumerate() {
            if at.is_multiple_of(AHEAD) {
                // They are in no cache, and are fetched in parallel if they are requested together.
                for (_, value) in self.records[at..].iter().take(AHEAD) {
                    let value = value.as_deref().unwrap_or_default();
                    let lines = value.iter().take(Self::AHEAD_BYTES).step_by(Self::LINE_BYTES);
                    std::hint::black_box(lines.fold(0, |sum, byte| sum ^ byte));
                }
            }
            encode_record(key, value.as_deref(), out);
        }
    }

    /// Returns the records in their stored form.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    /// Removes all contents, and keeps the capacity for other records.
    pub fn clear(&mut self) {
        self.records.clear();
        self.messages = Vec::new();
        self.bytes = 0;
    }

    pub(crate) fn push_message(&mut self, to: ShardId, message: Message) {
        self.bytes += message.weight();
        self.messages.push((to, message));
    }

    pub(super) fn push(&mut self, key: &SmallVec<[u8; 16]>, value: Option<&Blob>) {
        self.bytes += record_bytes(key, value);
        self.records.push((key.clone(), value.cloned()));
    }

    /// Takes up to `max` of the last records of another piece; returns their number.
    pub(super) fn take_last(&mut self, other: &mut Self, max: usize) -> usize {
        let left = other.records.len().saturating_sub(max);
        let taken = other.records.len() - left;
        for (key, value) in other.records.drain(left..) {
            let bytes = record_bytes(&key, value.as_ref());
            other.bytes -= bytes;
            self.bytes += bytes;
            self.records.push((key, value));
        }
        taken
    }
}

/// Bytes of a stored record before its key.
const RECORD_HEAD_LEN: usize = 6;

/// Returns the bytes that [`encode_record`] appends.
fn record_bytes(key: &[u8], value: Option<&Blob>) -> usize {
    RECORD_HEAD_LEN + key.len() + value.map_or(0, |value| value.len())
}

/// Appends one record of a snapshot: length of the key (u16), length of the value plus one or 0 for a delete (u32),
/// both little endian, then key and value.
pub fn encode_record(key: &[u8], value: Option<&[u8]>, out: &mut Vec<u8>) {
    let key_len = u16::try_from(key.len()).expect("record keys are shorter than 64 KiB");
    out.extend_from_slice(&key_len.to_le_bytes());
    let value_len = value.map_or(0, |v| u32::try_from(v.len() + 1).expect("values are at most 64 MiB"));
    out.extend_from_slice(&value_len.to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value.unwrap_or_default());
}

/// Snapshot bytes without a valid record where one should begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid snapshot record at byte {at}; the snapshot is damaged or of another version")]
pub struct NoRecord {
    /// The position, in bytes from the start.
    pub at: usize,
}

/// A record of a snapshot: its key, and its value unless it was deleted.
pub type StoredRecord<'a> = (&'a [u8], Option<&'a [u8]>);

/// Decodes the records of a snapshot section in order; ends after the first error.
pub fn decode_records(section: &[u8]) -> impl Iterator<Item = Result<StoredRecord<'_>, NoRecord>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = section.get(at..).filter(|rest| !rest.is_empty())?;
        let record = decode_record(rest);
        match record {
            Some((record, len)) => {
                at += len;
                Some(Ok(record))
            }
            None => {
                let error = NoRecord { at };
                at = section.len();
                Some(Err(error))
            }
        }
    })
}

/// Returns the first record of the bytes, and its length.
fn decode_record(bytes: &[u8]) -> Option<(StoredRecord<'_>, usize)> {
    let (key_len, rest) = bytes.split_first_chunk::<2>()?;
    let (value_len, rest) = rest.split_first_chunk::<4>()?;
    let key_len = usize::from(u16::from_le_bytes(*key_len));
    let value_len = u32::from_le_bytes(*value_len) as usize;
    let (key, rest) = rest.split_at_checked(key_len)?;
    Kind::from_number(*key.first()?)?;
    if key_len > RecordKey::LEN_MAX || value_len > VALUE_MAX + 1 {
        return None;
    }
    match value_len.checked_sub(1) {
        None => Some(((key, None), 6 + key_len)),
        Some(len) => Some(((key, Some(rest.get(..len)?)), 6 + key_len + len)),
    }
}
