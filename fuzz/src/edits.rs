//! Derives structured values from a fuzzer's bytes.

/// Takes values off the front of a fuzzer's bytes; zeros once they run out, so that every input is valid.
pub(crate) struct Source<'a> {
    rest: &'a [u8],
}

impl<'a> Source<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    /// Takes up to `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }
}

/// Damages a file as the source determines: bytes replaced, ranges moved or zeroed, the end cut off.
pub(crate) fn damage(source: &mut Source<'_>, file: &mut Vec<u8>) {
    let kind = source.u8();
    if file.is_empty() {
        return;
    }
    let at = usize::from(source.u16()) * 7 % file.len();
    match kind % 6 {
        0 => file[at] ^= 1 << (source.u8() % 8),
        1 => {
            let len = usize::from(source.u8() % 32);
            let bytes = source.bytes(len);
            let len = bytes.len().min(file.len() - at);
            file[at..at + len].copy_from_slice(&bytes[..len]);
        }
        2 => {
            let end = (at + usize::from(source.u16())).min(file.len());
            file[at..end].fill(0);
        }
        3 => file.truncate(at),
        4 => {
            let from = usize::from(source.u16()) * 7 % file.len();
            let len = usize::from(source.u16()).min(file.len() - at.max(from));
            file.copy_within(from..from + len, at);
        }
        _ => file.extend_from_slice(&vec![source.u8(); at % 5000]),
    }
}
