//! Frames survive any split, and damage is noticed.

use bytes::Bytes;
use std::io::IoSlice;
use stead_core::ids::{Epoch, Incarnation, Life, ReplicaId, ShardId};
use stead_net::decoder::Decoder;
use stead_net::frame::{Foreign, Frame, FrameError, HEADER_LEN, Head, Kind, Origin, PAYLOAD_BYTES_MAX};
use stead_net::outgoing::Outgoing;
use stead_net::payload::{Payload, PayloadWriter};
use stead_net::section::{Address, SECTION_HEADER_LEN, Section, sections, write_section};

const ORIGIN: Origin = Origin { incarnation: Incarnation(3), life: Life(7) };

fn head(kind: Kind, number: u64) -> Head {
    Head { kind, number, origin: ORIGIN }
}

fn rng() -> fastrand::Rng {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    fastrand::Rng::with_seed(seed)
}

fn random_bytes(rng: &mut fastrand::Rng, len: usize) -> Bytes {
    std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
}

/// Writes all that waits, in vectored writes that take a random number of bytes.
fn drain(outgoing: &mut Outgoing, rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !outgoing.is_empty() {
        let mut slices = [IoSlice::new(&[]); 3];
        let filled = outgoing.slices(&mut slices);
        assert!(filled > 0, "bytes wait");
        let all: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
        let written = rng.usize(1..=all.len());
        bytes.extend_from_slice(&all[..written]);
        outgoing.advance(written);
    }
    bytes
}

fn encoded(head: Head, payload: &[u8]) -> Vec<u8> {
    let mut outgoing = Outgoing::default();
    outgoing.push(head, &Payload::from(payload));
    drain(&mut outgoing, &mut fastrand::Rng::with_seed(0))
}

fn decode(bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::new(PAYLOAD_BYTES_MAX);
    decoder.receive(bytes);
    std::iter::from_fn(|| decoder.next_frame().transpose()).take(100).collect()
}

#[test]
fn frames_survive_random_splits() {
    let mut rng = rng();
    for _ in 0..200 {
        let mut outgoing = Outgoing::default();
        let mut sent = Vec::new();
        for number in 1..=rng.u64(1..12) {
            let mut writer = PayloadWriter::new();
            let mut whole = Vec::new();
            for _ in 0..rng.usize(..4) {
                let len = *rng.choice(&[0, 1, 100, 1024, 1025, 5000]).unwrap();
                let bytes = random_bytes(&mut rng, len);
                if rng.bool() {
                    writer.write(&bytes)
                } else {
                    writer.share(&bytes)
                }
                whole.extend_from_slice(&bytes);
            }
            assert_eq!(writer.len(), whole.len());
            let kind = *rng.choice(&[Kind::Shards, Kind::Request, Kind::Answer, Kind::Alive]).unwrap();
            let head = head(kind, if kind.is_numbered() { number } else { 0 });
            let payload = writer.finish();
            assert_eq!(payload.len(), whole.len());
            outgoing.push(head, &payload);
            sent.push(Frame { head, payload: whole.into() });
        }
        let bytes = drain(&mut outgoing, &mut rng);
        let mut decoder = Decoder::new(PAYLOAD_BYTES_MAX);
        let (mut received, mut rest) = (Vec::new(), &bytes[..]);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rng.usize(1..=rest.len().min(3000)));
            decoder.receive(now);
            rest = later;
            while let Some(frame) = decoder.next_frame().unwrap() {
                received.push(frame);
            }
        }
        assert_eq!(received, sent);
        assert_eq!(decoder.buffered(), 0);
    }
}

#[test]
fn a_torn_frame_waits_for_more() {
    let bytes = encoded(head(Kind::Request, 1), b"a request");
    for len in 0..bytes.len() {
        let mut decoder = Decoder::new(PAYLOAD_BYTES_MAX);
        decoder.receive(&bytes[..len]);
        assert_eq!(decoder.next_frame(), Ok(None), "{len} bytes");
        decoder.receive(&bytes[len..]);
        assert_eq!(&decoder.next_frame().unwrap().unwrap().payload[..], b"a request");
    }
}

#[test]
fn each_flipped_bit_is_noticed() {
    let bytes = encoded(head(Kind::Answer, 9), b"an answer");
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = decode(&damaged).expect_err(&format!("bit {bit} is noticed"));
        match bit / 8 {
            0..4 => assert!(matches!(error, FrameError::NoFrame { .. }), "{bit}: {error}"),
            4..HEADER_LEN => assert_eq!(error, FrameError::Header, "{bit}"),
            _ => assert_eq!(error, FrameError::Payload { kind: Kind::Answer, len: 9 }, "{bit}"),
        }
    }
}

#[test]
fn nothing_is_read_after_damage() {
    let mut bytes = encoded(head(Kind::Alive, 0), b"");
    bytes.extend(encoded(head(Kind::Request, 1), b"x"));
    *bytes.last_mut().unwrap() ^= 1;
    let mut decoder = Decoder::new(PAYLOAD_BYTES_MAX);
    decoder.receive(&bytes);
    assert_eq!(decoder.next_frame().unwrap().unwrap().head.kind, Kind::Alive);
    let error = decoder.next_frame().unwrap_err();
    decoder.receive(&encoded(head(Kind::Alive, 0), b""));
    assert_eq!(decoder.next_frame().unwrap_err(), error);
    assert_eq!(decoder.buffered(), 0, "no memory is kept for it");
}

/// Changes a field of a header and corrects the header's checksum.
fn forged(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = encoded(head(Kind::Shards, 0), b"");
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    let checksum = crc32fast::hash(&frame[8..HEADER_LEN]);
    frame[4..8].copy_from_slice(&checksum.to_le_bytes());
    frame
}

#[test]
fn hostile_headers_are_refused_before_memory_is_taken() {
    for len in [PAYLOAD_BYTES_MAX + 1, u32::MAX] {
        let error = decode(&forged(8, &len.to_le_bytes())).unwrap_err();
        assert_eq!(error, FrameError::TooLong { kind: Kind::Shards, len, max: PAYLOAD_BYTES_MAX });
    }
    assert_eq!(
        decode(&forged(8, &PAYLOAD_BYTES_MAX.to_le_bytes())),
        Ok(vec![]),
        "the limit itself is awaited"
    );
    assert_eq!(decode(&forged(12, &[0])), Err(FrameError::Kind { kind: 0 }));
    assert_eq!(decode(&forged(12, &[7])), Err(FrameError::Kind { kind: 7 }));
    let flags = [1, 0, 0];
    assert_eq!(decode(&forged(13, &flags)), Err(FrameError::Flags { kind: Kind::Shards, flags }));
    assert_eq!(decode(&forged(16, &[4])), Err(FrameError::Number { kind: Kind::Shards, number: 4 }));
    let nameless = forged(12, &[Kind::Request as u8]);
    assert_eq!(decode(&nameless), Err(FrameError::Number { kind: Kind::Request, number: 0 }));
}

#[test]
fn foreign_protocols_are_named() {
    for (bytes, found) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], Foreign::Http),
        (b"HTTP/1.1 400 Bad Request\r\n", Foreign::Http),
        (b"PRI * HTTP/2.0\r\n\r\n", Foreign::Http),
        (&[0x16, 3, 1, 2, 0, 1], Foreign::Tls),
        (b"SNF2 and more", Foreign::Version(b'2')),
        (b"*1\r\n$4\r\nPING\r\n", Foreign::Unknown(*b"*1\r\n")),
    ] {
        assert_eq!(decode(bytes), Err(FrameError::NoFrame { found }));
        // Three bytes could still become a frame's, or do not show their sender.
        assert_eq!(decode(&bytes[..3]), Ok(vec![]));
    }
    let error = decode(b"GET / HTTP/1.1\r\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "not a frame of Stead: the other end speaks HTTP; use the address of the node's HTTP server for it"
    );
    let error = decode(b"*1\r\n").unwrap_err().to_string();
    assert!(error.contains(r#"it begins with "*1\r\n""#), "{error}");
}

#[test]
fn long_payloads_are_shared_and_short_ones_share_a_buffer() {
    let long = Bytes::from(vec![5; 10_000]);
    let mut writer = PayloadWriter::new();
    writer.write(b"before");
    writer.share(&long);
    let payload = writer.finish();
    let mut queues = [Outgoing::default(), Outgoing::default()];
    for outgoing in &mut queues {
        outgoing.push(head(Kind::Shards, 0), &payload);
        for number in 1..=20 {
            outgoing.push(head(Kind::Answer, number), &Payload::from(&b"short"[..]));
        }
        let mut slices = [IoSlice::new(&[]); 8];
        // The header and what is before the long bytes, these, and all that follows.
        assert_eq!(outgoing.slices(&mut slices), 3);
        assert!(std::ptr::eq(slices[1].as_ptr(), long.as_ptr()), "the long bytes are not copied");
    }
}

#[test]
fn payloads_are_parts_of_the_received_bytes() {
    let mut decoder = Decoder::new(PAYLOAD_BYTES_MAX);
    let bytes = [encoded(head(Kind::Request, 1), b"one"), encoded(head(Kind::Request, 2), b"two")].concat();
    decoder.receive(&bytes);
    let first = decoder.next_frame().unwrap().unwrap().payload;
    let second = decoder.next_frame().unwrap().unwrap().payload;
    assert_eq!(first.as_ptr().wrapping_add(3 + HEADER_LEN), second.as_ptr(), "both are where they arrived");
}

#[test]
fn sections_survive_and_torn_ones_are_refused() {
    let mut rng = rng();
    let mut writer = PayloadWriter::new();
    let mut sent = Vec::new();
    for len in [0, 1, 1024, 1025, 30_000, 3] {
        let address = Address {
            shard: ShardId(rng.u32(..)),
            epoch: Epoch(rng.u64(..)),
            from: ReplicaId(rng.u64(..)),
            to: ReplicaId(rng.u64(..)),
        };
        let message = random_bytes(&mut rng, len);
        write_section(&mut writer, address, &message);
        sent.push(Section { address, message });
    }
    let mut outgoing = Outgoing::default();
    outgoing.push(head(Kind::Shards, 0), &writer.finish());
    let frames = decode(&drain(&mut outgoing, &mut rng)).unwrap();
    let payload = frames[0].payload.clone();
    let received: Vec<_> = sections(payload.clone()).collect::<Result<_, _>>().unwrap();
    assert_eq!(received, sent);

    let whole = SECTION_HEADER_LEN;
    let torn = payload.slice(..whole + SECTION_HEADER_LEN);
    let mut torn = sections(torn);
    assert_eq!(torn.next().unwrap().unwrap(), sent[0]);
    let error = torn.next().unwrap().unwrap_err();
    assert_eq!((error.at, error.needed, error.left), (whole, whole + 1, whole));
    assert!(torn.next().is_none());
    let error = sections(payload.slice(..5)).next().unwrap().unwrap_err();
    assert_eq!((error.at, error.needed, error.left), (0, whole, 5));
}
