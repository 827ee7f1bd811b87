//! Targets for what arrives over the network.

use crate::edits::Source;
use bytes::Bytes;
use std::io::IoSlice;
use std::time::Duration;
use stead_core::blob::Blob;
use stead_core::channel::Message as ChannelMessage;
use stead_core::commit_tracker::EpochConfig;
use stead_core::ids::{
    Colour, Epoch, Generation, Incarnation, Index, Life, Micros, ReplicaId, Round, Seq, ShardId, Time,
};
use stead_core::key::Key;
use stead_core::replication::epoch::{Ask, EpochRecord, Fresh, Mark};
use stead_core::replication::replica::AppendHead;
use stead_core::replication::table::{EpochTable, LogPoint, Losses};
use stead_core::shard_replica::{Frame as ReplicaFrame, LogEntry};
use stead_net::channel::{Taken, write_deliver, write_taken};
use stead_net::decoder::Decoder;
use stead_net::forward::{Answered, Call, CallId, Outcome, write_answered, write_call};
use stead_net::frame::{Frame, FrameError, HEADER_LEN, Head, Kind, Origin};
use stead_net::outgoing::Outgoing;
use stead_net::payload::{Payload, PayloadWriter};
use stead_net::replica::{
    Chunk, Message, Received, Route, read_message, write_chunk, write_frame, write_received,
};
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

fn shards_frame(writer: PayloadWriter) -> Bytes {
    let mut outgoing = Outgoing::default();
    let origin = Origin { incarnation: Incarnation(2), life: Life(5) };
    outgoing.push(Head { kind: Kind::Shards, number: 0, origin }, &writer.finish());
    Bytes::from(written(&mut outgoing)).slice(HEADER_LEN..)
}

/// Returns the section that holds a message, as its writer makes it.
fn section_of(address: Address, message: &Message) -> Bytes {
    let mut writer = PayloadWriter::new();
    let route = Route { shard: address.shard, from: address.from, to: address.to };
    match message {
        Message::Frame(frame) => write_frame(&mut writer, route, frame),
        Message::Chunk(chunk) => write_chunk(&mut writer, route, chunk),
        Message::Received(received) => write_received(&mut writer, route, received),
        Message::Deliver(deliver) => {
            write_deliver(&mut writer, (deliver.from, deliver.to), &deliver.messages, deliver.again);
        }
        Message::Taken(taken) => write_taken(&mut writer, taken),
        Message::Call(call) => write_call(&mut writer, call),
        Message::Answered(answered) => write_answered(&mut writer, answered),
    }
    shards_frame(writer)
}

/// The messages between replicas and between shards, in the payload of a shards frame.
pub fn messages(data: &[u8]) {
    for section in sections(Bytes::copy_from_slice(data)).map_while(Result::ok) {
        let Ok(message) = read_message(&section) else { continue };
        let once = section_of(section.address, &message);
        let mut again = sections(once.clone());
        let read = again.next().expect("there is one").expect("a section is whole");
        assert!(again.next().is_none(), "there is one");
        let message = read_message(&read).expect("what was written is read");
        assert_eq!(section_of(read.address, &message), once);
        // An epoch's record and the table of a log have other encodings, too.
        if !matches!(message, Message::Frame(ReplicaFrame::Append { .. } | ReplicaFrame::Diverged { .. })) {
            assert_eq!(read, section, "there is one encoding of it");
        }
    }
}

/// Returns a payload with a message of each kind.
pub(crate) fn sample_messages() -> Vec<u8> {
    let route = Route { shard: ShardId(4), from: ReplicaId(1), to: ReplicaId(2) };
    let (epoch, base) = (Epoch(3), LogPoint { epoch: Epoch(2), index: Index(5) });
    let config = EpochConfig::parse(epoch, vec![ReplicaId(1), ReplicaId(2)], 2, ReplicaId(1));
    let record = EpochRecord {
        config: config.expect("a valid configuration"),
        life: Life(1),
        lease: Micros(0),
        generation: Generation(0),
        base,
        losses: Losses::default(),
        earlier: [(ReplicaId(2), Life(1))].into(),
    };
    let entry = |index, bytes: &[u8]| LogEntry {
        point: LogPoint { epoch, index: Index(index) },
        bytes: Blob::from(bytes),
    };
    let mut table = EpochTable::default();
    for (epoch, index) in [(1, 1), (1, 2), (2, 3), (2, 4), (2, 5)] {
        table.push(LogPoint { epoch: Epoch(epoch), index: Index(index) });
    }
    let mark = Mark { life: Life(1), at: Time(7) };
    let fresh = Some(Fresh { as_of: mark, upto: Index(5) });
    let frames = [
        ReplicaFrame::Append {
            head: AppendHead { epoch, before: base, commit: Index(4) },
            record: Some(Box::new(record)),
            entries: vec![entry(6, b"one"), entry(7, b"")],
        },
        ReplicaFrame::Ack { epoch, upto: Index(7) },
        ReplicaFrame::Diverged { epoch, table },
        ReplicaFrame::Acked { epoch, upto: LogPoint { epoch: Epoch(2), index: Index(5) } },
        ReplicaFrame::Refuse { epoch, promised: Epoch(4) },
        ReplicaFrame::Ask(Ask { epoch, round: Round(3), lease: Micros(9), fresh }),
        ReplicaFrame::Ask(Ask { epoch, round: Round(3), lease: Micros(9), fresh: None }),
        ReplicaFrame::Confirm { epoch, round: Round(3), mark, vouches: true },
    ];
    let mut writer = PayloadWriter::new();
    frames.iter().for_each(|frame| write_frame(&mut writer, route, frame));
    let chunk = Chunk { epoch, base, total: 9, offset: 2, bytes: Bytes::from_static(b"a piece") };
    write_chunk(&mut writer, route, &chunk);
    write_received(&mut writer, route, &Received { epoch, base, bytes: 9 });
    let key = |key| Key::new(key).expect("a short key");
    let message = |seq: u64| ChannelMessage {
        seq: Seq(seq),
        epoch,
        index: Index(6),
        colour: Colour(1),
        sender: key("a"),
        process: key("b"),
        payload: Blob::from(&b"pay"[..]),
    };
    write_deliver(&mut writer, (ShardId(1), ShardId(4)), &[message(1), message(2)], true);
    let taken = Taken { from: ShardId(4), to: ShardId(1), upto: Seq(2), colour: Colour(1) };
    write_taken(&mut writer, &taken);
    let (shard, id) = (ShardId(4), CallId { process: 1, number: 8 });
    let call = Call { shard, id, within: Duration::from_millis(5), ask: Bytes::from_static(b"a request") };
    write_call(&mut writer, &call);
    for outcome in [Outcome::Answer(Bytes::from_static(b"an answer")), Outcome::NotLed, Outcome::InDoubt] {
        write_answered(&mut writer, &Answered { shard, id, outcome });
    }
    shards_frame(writer).to_vec()
}
