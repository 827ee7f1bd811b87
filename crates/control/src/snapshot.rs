//! The snapshot on disk: one file, replaced as a whole.
//!
//! Little-endian: `SCS1` (4), CRC-32 of all that follows (4), the length of the metadata (4), the metadata in CBOR, the
//! state.

use crate::encoding::{MetaCbor, decode_all, encode};
use crate::fault::{StorageFault, io_fault};
use crate::frame;
use crate::types::SnapshotMeta;
use std::io;
use stead_store::disk::{Disk, read_file, replace_file};

/// Maximum number of bytes of a snapshot's state: it has to fit into one frame between nodes.
pub const SNAPSHOT_BYTES_MAX: usize = 32 << 20;
const META_BYTES_MAX: usize = 1 << 20;
const HEADER: usize = 12;

pub(crate) fn path(dir: &str) -> String {
    format!("{dir}/snapshot")
}

/// Replaces the snapshot, and returns once the new one is durable.
pub(crate) fn write(
    disk: &dyn Disk,
    dir: &str,
    meta: &SnapshotMeta,
    state: &[u8],
) -> Result<(), StorageFault> {
    let meta = encode(&MetaCbor::from(meta));
    for (what, bytes, max) in
        [("a snapshot", state.len(), SNAPSHOT_BYTES_MAX), ("the membership", meta.len(), META_BYTES_MAX)]
    {
        if bytes > max {
            return Err(StorageFault::TooLarge { what, bytes, max });
        }
    }
    let mut bytes = Vec::with_capacity(HEADER + meta.len() + state.len());
    bytes.extend_from_slice(b"SCS1\0\0\0\0");
    bytes.extend_from_slice(&u32::try_from(meta.len()).expect("checked above").to_le_bytes());
    bytes.extend_from_slice(&meta);
    bytes.extend_from_slice(state);
    let checksum = crc32fast::hash(&bytes[8..]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    let path = path(dir);
    replace_file(disk, &path, &bytes).map_err(io_fault("replace", &path))
}

/// Reads the snapshot, if there is one.
pub(crate) fn read(disk: &dyn Disk, dir: &str) -> Result<Option<(SnapshotMeta, Vec<u8>)>, StorageFault> {
    let path = path(dir);
    let damaged = |offset: u64, reason: String| StorageFault::Damaged { path: path.clone(), offset, reason };
    let max = (HEADER + META_BYTES_MAX + SNAPSHOT_BYTES_MAX) as u64;
    let bytes = match read_file(disk, &path, max) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(damaged(0, error.to_string()));
        }
        Err(error) => return Err(io_fault("read", &path)(error)),
    };
    if let Some(found) = frame::foreign_version(&bytes, b"SCS") {
        return Err(StorageFault::Version { path, found });
    }
    decode(&bytes).map(Some).map_err(|(offset, reason)| damaged(offset, reason))
}

fn decode(bytes: &[u8]) -> Result<(SnapshotMeta, Vec<u8>), (u64, String)> {
    let word = |at: usize| {
        bytes.get(at..at + 4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
    };
    let (Some(checksum), Some(len)) = (word(4), word(8)) else {
        return Err((0, "it is too short".to_owned()));
    };
    if bytes[..4] != *b"SCS1" || crc32fast::hash(&bytes[8..]) != checksum {
        return Err((0, "its checksum is wrong".to_owned()));
    }
    let split = bytes[HEADER..].split_at_checked(len as usize);
    let Some((meta, state)) = split else { return Err((8, "its length is wrong".to_owned())) };
    let meta: MetaCbor = decode_all(meta).map_err(|error| (HEADER as u64, error.to_string()))?;
    if !meta.is_possible() {
        return Err((HEADER as u64, "a number in it is over the limit".to_owned()));
    }
    Ok((meta.into(), state.to_vec()))
}
