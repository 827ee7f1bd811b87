//! Targets for what arrives over the network.

use crate::edits::Source;
use bytes::Bytes;
use std::io::IoSlice;
use stead_core::ids::{Epoch, Incarnation, Life, ReplicaId, ShardId};
use stead_net::decoder::Decoder;
use stead_net::frame::{Frame, FrameError, HEADER_LEN, Head, Kind, Origin};
use stead_net::outgoing::Outgoing;
use stead_net::payload::{Payload, PayloadWriter};
use stead_net::section::{Address, sections, write_section};

const PAYLOAD_BYTES_MAX: u32 = 1 << 20;

fn written(outgoing: &mut Outgoing) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !outgoing.is_empty() {
        let mut slices = [IoSlice::new(&[]); 4];
        let filled = outgoing.slices(&mut slices);
        let len = slices[..filled].iter().map(|slice| slice.len()).sum();
        slices[..filled].iter().for_each(|slice| bytes.extend_from_slice(slice));
        outgoing.advance(len);
    }
    bytes
}

/// Corrects the checksums of all frames whose length is within the input.
fn mend(mut bytes: &mut [u8]) {
    while bytes.len() >= HEADER_LEN {
        let len = u32::from_le_bytes(*bytes[8..].first_chunk().expect("a header is longer"));
        let end = HEADER_LEN.saturating_add(len as usize);
        if let Some(payload) = bytes.get(HEADER_LEN..end) {
            let checksum = crc32fast::hash(payload);
            bytes[40..44].copy_from_slice(&checksum.to_le_bytes());
        }
        bytes[..4].copy_from_slice(b"SNF1");
        let checksum = crc32fast::hash(&bytes[8..HEADER_LEN]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        bytes = bytes.get_mut(end..).unwrap_or_default();
    }
}

fn decode(bytes: &[u8], pieces: impl Iterator<Item = usize>) -> (Vec<Frame>, Option<FrameError>) {
    let mut decoder = Decoder::new(PAYLOAD_BYTES_MAX);
    let (mut frames, mut rest) = (Vec::new(), bytes);
    for len in pieces.chain([usize::MAX]) {
        let (now, later) = rest.split_at(len.min(rest.len()));
        decoder.receive(now);
        rest = later;
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// Frames, and the sections in them. The first byte selects whether checksums are corrected, the next eight are lengths
/// in which the bytes arrive.
pub fn frames(data: &[u8]) {
    let mut source = Source::new(data);
    let mends = source.u8() & 1 == 1;
    let pieces: Vec<usize> = (0..8).map(|_| usize::from(source.u8())).collect();
    let mut bytes = data.get(9..).unwrap_or_default().to_vec();
    if mends {
        mend(&mut bytes);
    }
    let (frames, error) = decode(&bytes, std::iter::empty());
    assert_eq!(decode(&bytes, pieces.into_iter()), (frames.clone(), error), "splits change nothing");

    let mut outgoing = Outgoing::default();
    for frame in &frames {
        outgoing.push(frame.head, &Payload::from(frame.payload.clone()));
    }
    let again = written(&mut outgoing);
    assert!(bytes.starts_with(&again), "the frames are what was read");

    for frame in frames.into_iter().filter(|frame| frame.head.kind == Kind::Shards) {
        let mut writer = PayloadWriter::new();
        let mut torn = false;
        for section in sections(frame.payload.clone()) {
            match section {
                Ok(section) => write_section(&mut writer, section.address, &section.message),
                Err(_) => torn = true,
            }
        }
        assert_eq!(torn, writer.len() < frame.payload.len(), "a payload without an error is read to its end");
        let mut outgoing = Outgoing::default();
        outgoing.push(frame.head, &writer.finish());
        let again = written(&mut outgoing);
        assert!(frame.payload.starts_with(&again[HEADER_LEN..]), "the sections are what was read");
    }
}

/// Returns frames of several kinds.
pub(crate) fn sample_frames() -> Vec<u8> {
    let mut outgoing = Outgoing::default();
    let origin = Origin { incarnation: Incarnation(2), life: Life(5) };
    let mut writer = PayloadWriter::new();
    for (shard, message) in [(0, &b""[..]), (7, b"an append")] {
        let address =
            Address { shard: ShardId(shard), epoch: Epoch(3), from: ReplicaId(1), to: ReplicaId(2) };
        write_section(&mut writer, address, &Bytes::from_static(message));
    }
    outgoing.push(Head { kind: Kind::Shards, number: 0, origin }, &writer.finish());
    outgoing.push(Head { kind: Kind::Request, number: 9, origin }, &Payload::from(&b"a request"[..]));
    outgoing.push(Head { kind: Kind::Alive, number: 0, origin }, &Payload::default());
    written(&mut outgoing)
}
