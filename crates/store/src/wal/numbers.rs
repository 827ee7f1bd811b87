//! Numbers in the log: of a fixed length, little-endian, or varints of 7 bits a byte, the lowest first.

/// Maximum number of bytes of a varint of 32 bits, and of 64.
pub(crate) const VARINT32_MAX: usize = 5;
pub(crate) const VARINT64_MAX: usize = 10;

/// Reads 4 bytes, little-endian, which must exist.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// Reads 8 bytes, little-endian, which must exist.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Writes a varint at `at`, where there must be space, and returns its end.
#[inline]
pub(crate) fn put_varint(out: &mut [u8], mut at: usize, mut value: u64) -> usize {
    while value >= 0x80 {
        out[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    out[at] = value as u8;
    at + 1
}

/// Takes a varint of at most 64 bits off `bytes`; `None` if there is none.
#[inline]
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    // Most numbers have one to three bytes: recovery reads three of them for each entry.
    let (value, rest) = match **bytes {
        [a @ ..0x80, ref rest @ ..] => (u64::from(a), rest),
        [a, b @ ..0x80, ref rest @ ..] => (u64::from(a & 0x7f) | u64::from(b) << 7, rest),
        [a, b, c @ ..0x80, ref rest @ ..] => {
            (u64::from(a & 0x7f) | u64::from(b & 0x7f) << 7 | u64::from(c) << 14, rest)
        }
        _ => return take_long_varint(bytes),
    };
    *bytes = rest;
    Some(value)
}

/// As [`take_varint`], of any length.
#[cold]
fn take_long_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().enumerate().take(VARINT64_MAX) {
        let bits = u64::from(byte & 0x7f);
        if at == VARINT64_MAX - 1 && bits > 1 {
            return None;
        }
        value |= bits << (7 * at);
        if byte < 0x80 {
            *bytes = &bytes[at + 1..];
            return Some(value);
        }
    }
    None
}
