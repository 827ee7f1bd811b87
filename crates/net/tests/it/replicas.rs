//! The messages between replicas, and between shards.

use bytes::Bytes;
use std::fmt::Write as _;
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
use stead_core::shard_replica::{Frame, LogEntry};
use stead_net::channel::{Deliver, Taken, message_len, write_deliver, write_taken};
use stead_net::forward::{Answered, Call, CallId, Outcome, write_answered, write_call};
use stead_net::frame::{HEADER_LEN, Head, Kind, Origin};
use stead_net::outgoing::Outgoing;
use stead_net::payload::PayloadWriter;
use stead_net::replica::{
    Chunk, Message, MessageError, Received, Route, append_overhead, read_message, write_chunk, write_frame,
    write_received,
};
use stead_net::section::{Address, Section, sections};

fn at(epoch: u64, index: u64) -> LogPoint {
    LogPoint { epoch: Epoch(epoch), index: Index(index) }
}

fn route(shard: u32) -> Route {
    Route { shard: ShardId(shard), from: ReplicaId(7), to: ReplicaId(9) }
}

/// Returns the bytes of a payload.
fn bytes(writer: PayloadWriter) -> Bytes {
    let mut outgoing = Outgoing::default();
    let origin = Origin { incarnation: Incarnation(1), life: Life(2) };
    outgoing.push(Head { kind: Kind::Shards, number: 0, origin }, &writer.finish());
    let mut bytes = Vec::new();
    while !outgoing.is_empty() {
        let mut slices = [IoSlice::new(&[]); 8];
        let filled = outgoing.slices(&mut slices);
        let len = slices[..filled].iter().map(|slice| slice.len()).sum();
        slices[..filled].iter().for_each(|slice| bytes.extend_from_slice(slice));
        outgoing.advance(len);
    }
    Bytes::from(bytes).slice(HEADER_LEN..)
}

fn write(route: Route, message: &Message) -> Bytes {
    let mut writer = PayloadWriter::new();
    write_to(&mut writer, route, message);
    let len = writer.len();
    let bytes = bytes(writer);
    assert_eq!(bytes.len(), len);
    bytes
}

fn write_to(writer: &mut PayloadWriter, route: Route, message: &Message) {
    match message {
        Message::Frame(frame) => write_frame(writer, route, frame),
        Message::Chunk(chunk) => write_chunk(writer, route, chunk),
        Message::Received(received) => write_received(writer, route, received),
        Message::Deliver(Deliver { from, to, messages, again }) => {
            write_deliver(writer, (*from, *to), messages, *again);
        }
        Message::Taken(taken) => write_taken(writer, taken),
        Message::Call(call) => write_call(writer, call),
        Message::Answered(answered) => write_answered(writer, answered),
    }
}

fn only(payload: Bytes) -> Section {
    let all: Vec<_> = sections(payload).collect::<Result<_, _>>().unwrap();
    let [section] = <[Section; 1]>::try_from(all).unwrap();
    section
}

/// The contents of a message: the debug form of a blob shows its length alone.
fn shown(message: &Message) -> String {
    let mut text = format!("{message:?}");
    match message {
        Message::Frame(Frame::Append { entries, .. }) => {
            entries.iter().for_each(|entry| write!(text, " {:?}", &*entry.bytes).unwrap());
        }
        Message::Deliver(Deliver { messages, .. }) => {
            messages.iter().for_each(|message| write!(text, " {:?}", &*message.payload).unwrap());
        }
        _ => {}
    }
    text
}

/// Bytes whose length is around those from which bytes are shared.
fn draw_bytes(rng: &mut fastrand::Rng) -> Blob {
    let len = *rng.choice(&[0, 1, 22, 23, 256, 1_024, 1_025, 5_000]).unwrap();
    Blob::from((0..len).map(|_| rng.u8(..)).collect::<Vec<u8>>())
}

fn draw_key(rng: &mut fastrand::Rng) -> Key {
    let len = *rng.choice(&[0, 1, 24, 25, Key::LEN_MAX]).unwrap();
    Key::new(&(0..len).map(|_| rng.alphanumeric()).collect::<String>()).unwrap()
}

const CALL: CallId = CallId { process: 3, number: 77 };

fn call(ask: &'static [u8]) -> Message {
    let within = Duration::from_millis(1500);
    Message::Call(Call { shard: ShardId(258), id: CALL, within, ask: Bytes::from_static(ask) })
}

fn answered(outcome: Outcome) -> Message {
    Message::Answered(Answered { shard: ShardId(258), id: CALL, outcome })
}

/// Draws a forwarded call or its end.
fn draw_forwarded(rng: &mut fastrand::Rng, shard: ShardId) -> Message {
    let id = CallId { process: rng.u64(..), number: rng.u64(..) };
    let mut content = || Bytes::copy_from_slice(&draw_bytes(rng));
    let (ask, answer) = (content(), content());
    if rng.bool() {
        let within = Duration::from_millis(rng.u32(..).into());
        return Message::Call(Call { shard, id, within, ask });
    }
    let outcomes = [Outcome::Answer(answer), Outcome::NotLed, Outcome::InDoubt];
    Message::Answered(Answered { shard, id, outcome: rng.choice(outcomes).unwrap() })
}

/// Draws a message to a shard.
fn draw_to(rng: &mut fastrand::Rng, to: ShardId) -> Message {
    let number = |rng: &mut fastrand::Rng| rng.u64(..) >> rng.u32(16..64);
    let from = ShardId(rng.u32(..));
    if rng.bool() {
        return draw_forwarded(rng, to);
    }
    if rng.bool() {
        return Message::Taken(Taken { from, to, upto: Seq(number(rng)), colour: Colour(number(rng)) });
    }
    let messages = (0..rng.u32(0..5)).map(|_| ChannelMessage {
        seq: Seq(number(rng)),
        epoch: Epoch(number(rng)),
        index: Index(number(rng)),
        colour: Colour(number(rng)),
        sender: draw_key(rng),
        process: draw_key(rng),
        payload: draw_bytes(rng),
    });
    let messages = messages.collect();
    Message::Deliver(Deliver { from, to, messages, again: rng.bool() })
}

/// An epoch of the replicas 7 and 9, of which 7 leads.
fn record(epoch: Epoch) -> EpochRecord {
    let config = EpochConfig::parse(epoch, vec![ReplicaId(7), ReplicaId(9)], 1, ReplicaId(7)).unwrap();
    let mut losses = Losses::default();
    losses.record(Epoch(1), Index(10));
    let (life, lease, generation) = (Life(2), Micros(2_000_000), Generation(0));
    let earlier = [(ReplicaId(9), Life(1))].into();
    EpochRecord { config, life, lease, generation, base: at(1, 10), losses, earlier }
}

fn draw_record(rng: &mut fastrand::Rng, epoch: Epoch) -> EpochRecord {
    let mut losses = Losses::default();
    (0..rng.u64(0..3)).for_each(|_| losses.record(Epoch(rng.u64(..epoch.0)), Index(rng.u64(..))));
    let base = at(rng.u64(..epoch.0), rng.u64(..) >> 16);
    let earlier = (0..rng.u64(0..3)).map(|id| (ReplicaId(id), Life(rng.u64(..)))).collect();
    EpochRecord { life: Life(rng.u64(..)), base, losses, earlier, ..record(epoch) }
}

fn draw(rng: &mut fastrand::Rng) -> Message {
    let number = |rng: &mut fastrand::Rng| rng.u64(..) >> rng.u32(16..64);
    let epoch = Epoch(number(rng));
    let point = |rng: &mut fastrand::Rng| at(number(rng), number(rng));
    let mark = |rng: &mut fastrand::Rng| Mark { life: Life(rng.u64(..)), at: Time(rng.u64(..)) };
    Message::Frame(match rng.u32(0..9) {
        0 => Frame::Ack { epoch, upto: Index(number(rng)) },
        1 => {
            let mut table = EpochTable::new(point(rng));
            for _ in 0..rng.usize(0..4) {
                let last = table.last();
                table.push(at(last.epoch.0 + rng.u64(0..3), last.index.0 + 1));
            }
            Frame::Diverged { epoch, table }
        }
        2 => Frame::Refuse { epoch, promised: Epoch(number(rng)) },
        3 => {
            let fresh = rng.bool().then(|| Fresh { as_of: mark(rng), upto: Index(number(rng)) });
            Frame::Ask(Ask { epoch, round: Round(rng.u64(..)), lease: Micros(rng.u64(..)), fresh })
        }
        4 => Frame::Confirm { epoch, round: Round(rng.u64(..)), mark: mark(rng), vouches: rng.bool() },
        5 => {
            let bytes: Vec<u8> = (0..rng.usize(0..3_000)).map(|_| rng.u8(..)).collect();
            let (offset, after) = (number(rng), number(rng));
            let (base, total) = (point(rng), offset + bytes.len() as u64 + after);
            return Message::Chunk(Chunk { epoch, base, total, offset, bytes: Bytes::from(bytes) });
        }
        6 => return Message::Received(Received { epoch, base: point(rng), bytes: rng.u64(..) }),
        7 => Frame::Acked { epoch, upto: point(rng) },
        _ => {
            let before = point(rng);
            let entries = (1..=rng.u64(0..6)).map(|after| LogEntry {
                point: at(number(rng), before.index.0 + after),
                bytes: draw_bytes(rng),
            });
            let entries = entries.collect();
            let head = AppendHead { epoch, before, commit: Index(number(rng)) };
            let record = (rng.bool() && epoch > Epoch(0)).then(|| Box::new(draw_record(rng, epoch)));
            Frame::Append { head, record, entries }
        }
    })
}

/// Draws a message to a replica or a shard.
fn draw_any(rng: &mut fastrand::Rng, shard: u32) -> Message {
    if rng.u32(0..4) == 0 { draw_to(rng, ShardId(shard)) } else { draw(rng) }
}

#[test]
fn messages_of_many_shards_come_back() {
    for seed in 0..300 {
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let sent: Vec<(Route, Message)> =
            (0..rng.u32(1..20)).map(|shard| (route(shard), draw_any(&mut rng, shard))).collect();
        let mut writer = PayloadWriter::new();
        sent.iter().for_each(|(route, message)| write_to(&mut writer, *route, message));
        let received: Vec<Section> = sections(bytes(writer)).collect::<Result<_, _>>().unwrap();
        assert_eq!(received.len(), sent.len());
        for (section, (route, message)) in received.iter().zip(&sent) {
            let found =
                Route { shard: section.address.shard, from: section.address.from, to: section.address.to };
            let expected = match message {
                Message::Deliver(_) | Message::Taken(_) | Message::Call(_) | Message::Answered(_) => {
                    Route { shard: route.shard, from: ReplicaId(0), to: ReplicaId(0) }
                }
                _ => *route,
            };
            assert_eq!(found, expected);
            let read = read_message(section).unwrap();
            assert_eq!(shown(&read), shown(message));
        }
    }
}

/// Whether the message has no length of its own: it takes the rest of its section.
fn ends_with_section(message: &Message) -> bool {
    let answer = |answered: &Answered| matches!(answered.outcome, Outcome::Answer(_));
    matches!(message, Message::Chunk(_) | Message::Call(_))
        || matches!(message, Message::Answered(answered) if answer(answered))
}

#[test]
fn a_message_that_ends_early_or_late_is_refused() {
    for seed in 0..200 {
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let message = draw_any(&mut rng, 1);
        let section = only(write(route(1), &message));
        let ends = if section.message.len() < 200 {
            (0..section.message.len()).collect()
        } else {
            vec![rng.usize(0..section.message.len()), section.message.len() - 1]
        };
        for end in ends {
            let torn = Section { message: section.message.slice(..end), ..section.clone() };
            match (read_message(&torn), &message) {
                (Ok(_), message) if ends_with_section(message) => {}
                (result, _) => assert!(result.is_err(), "{message:?} up to {end}"),
            }
        }
        if !ends_with_section(&message) {
            let longer = Section { message: [&section.message[..], &[0]].concat().into(), ..section };
            read_message(&longer).unwrap_err();
        }
    }
}

/// Frames are filled up to a limit by this.
#[test]
fn the_overhead_of_an_append_is_known() {
    for count in [0, 1, 5] {
        let entries =
            (1..=count).map(|index| LogEntry { point: at(1, index), bytes: Blob::from(vec![7; 30]) });
        let head = AppendHead { epoch: Epoch(1), before: at(0, 0), commit: Index(0) };
        let frame = Message::Frame(Frame::Append { head, record: None, entries: entries.collect() });
        assert_eq!(write(route(1), &frame).len(), append_overhead(count as usize) + 30 * count as usize);
    }
}

/// The bytes that a length claims are not allocated before they are there.
#[test]
fn hostile_numbers_are_refused() {
    let head = AppendHead { epoch: Epoch(3), before: at(1, 4), commit: Index(4) };
    let entries = vec![LogEntry { point: at(3, 5), bytes: Blob::from(&b"entry"[..]) }];
    let section = only(write(route(2), &Message::Frame(Frame::Append { head, record: None, entries })));
    let with = |offset: usize, bytes: &[u8]| {
        let mut message = section.message.to_vec();
        message[offset..offset + bytes.len()].copy_from_slice(bytes);
        read_message(&Section { message: message.into(), ..section.clone() })
    };
    let hostile: [(usize, &[u8], &str); 9] = [
        (1, &[0xff; 8], "epoch that there is not"),
        (9, &[0xff; 8], "index that no log reaches"),
        (17, &[0xff; 8], "index that no log reaches"),
        (25, &[1, 0, 0, 0], "no record of an epoch"),
        (25, &[0xff; 4], "within its record"),
        (29, &[0xff; 4], "fewer entries"),
        (29, &[0; 4], "more than its entries"),
        (33, &[0xff; 8], "epoch that there is not"),
        (41, &[0xff; 4], "within an entry"),
    ];
    for (offset, bytes, reason) in hostile {
        let error = with(offset, bytes).unwrap_err();
        assert!(matches!(error, MessageError::Invalid { shard: ShardId(2), kind: 1, .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error} at {offset}");
    }
    let last = Index::MAX.0.to_le_bytes();
    assert!(with(9, &last).unwrap_err().to_string().contains("no log reaches"), "its entry is behind");
    let later = Frame::Append { head, record: Some(Box::new(record(Epoch(4)))), entries: Vec::new() };
    let later = only(write(route(2), &Message::Frame(later)));
    assert!(read_message(&later).unwrap_err().to_string().contains("record of another epoch"));
    let unknown = with(0, &[200]).unwrap_err();
    assert_eq!(unknown, MessageError::Kind { shard: ShardId(2), kind: 200 });
    let mut later = section.clone();
    later.address.epoch = Epoch(u64::MAX);
    read_message(&later).unwrap_err();
    let empty = Section { message: Bytes::new(), ..section };
    read_message(&empty).unwrap_err();

    let chunk =
        Chunk { epoch: Epoch(3), base: at(1, 4), total: 9, offset: 4, bytes: Bytes::from_static(b"piece") };
    let section = only(write(route(2), &Message::Chunk(chunk)));
    for offset in [5, u64::MAX] {
        let mut message = section.message.to_vec();
        message[25..33].copy_from_slice(&offset.to_le_bytes());
        let error = read_message(&Section { message: message.into(), ..section.clone() }).unwrap_err();
        assert!(error.to_string().contains("beyond the end"), "{error}");
    }
}

fn delivery(messages: &[(u64, &str, &[u8])]) -> Message {
    let messages = messages.iter().map(|(seq, process, payload)| ChannelMessage {
        seq: Seq(*seq),
        epoch: Epoch(3),
        index: Index(12),
        colour: Colour(2),
        sender: Key::new("payer").unwrap(),
        process: Key::new(process).unwrap(),
        payload: Blob::from(*payload),
    });
    let messages = messages.collect();
    Message::Deliver(Deliver { from: ShardId(4), to: ShardId(258), messages, again: true })
}

/// Frames are filled up to a limit by this.
#[test]
fn the_length_of_a_message_between_shards_is_known() {
    let Message::Deliver(Deliver { from, to, messages, .. }) =
        delivery(&[(1, "payee", b"a"), (2, "", &[7; 5_000])])
    else {
        unreachable!("it is one")
    };
    let len = |messages: &[ChannelMessage]| {
        let mut writer = PayloadWriter::new();
        write_deliver(&mut writer, (from, to), messages, false);
        writer.len()
    };
    let head = len(&[]);
    assert_eq!(len(&messages), head + messages.iter().map(message_len).sum::<usize>());
}

/// As [`hostile_numbers_are_refused`], of messages between shards.
#[test]
fn hostile_messages_between_shards_are_refused() {
    let section = only(write(route(2), &delivery(&[(7, "payee", b"paid")])));
    let with = |section: &Section, offset: usize, bytes: &[u8]| {
        let mut message = section.message.to_vec();
        message[offset..offset + bytes.len()].copy_from_slice(bytes);
        read_message(&Section { message: message.into(), ..section.clone() })
    };
    let too_long = u16::try_from(Key::LEN_MAX + 1).unwrap().to_le_bytes();
    let hostile: [(usize, &[u8], &str); 13] = [
        (5, &[2], "does not know"),
        (6, &[0xff; 4], "fewer messages"),
        (6, &[0; 4], "more than its messages"),
        (10, &[0xff; 8], "no channel reaches"),
        (18, &[0xff; 8], "epoch that there is not"),
        (26, &[0xff; 8], "index that no log reaches"),
        (34, &[0xff; 8], "no channel reaches"),
        (42, &[0xff; 2], "within a key"),
        (42, &too_long, "within a key"),
        (44, &[0xff; 2], "within a key"),
        (46, &[0xff; 4], "within a payload"),
        (46, &[3, 0, 0, 0], "more than its messages"),
        (50, &[0xff], "no UTF-8"),
    ];
    for (offset, bytes, reason) in hostile {
        let error = with(&section, offset, bytes).unwrap_err();
        assert!(matches!(error, MessageError::Invalid { shard: ShardId(258), kind: 9, .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error} at {offset}");
    }
    let long = only(write(route(2), &delivery(&[(7, "payee", &[b'k'; 2_000])])));
    let error = with(&long, 42, &too_long).unwrap_err();
    assert!(error.to_string().contains("key that is too long"), "{error}");

    let taken = Taken { from: ShardId(258), to: ShardId(4), upto: Seq(9), colour: Colour(2) };
    let taken = only(write(route(2), &Message::Taken(taken)));
    for offset in [5, 13] {
        let error = with(&taken, offset, &[0xff; 8]).unwrap_err();
        assert!(error.to_string().contains("no channel reaches"), "{error}");
    }
    for mut addressed in [section, taken] {
        addressed.address.to = ReplicaId(1);
        let error = read_message(&addressed).unwrap_err();
        assert!(error.to_string().contains("an epoch or replicas"), "{error}");
    }
}

#[test]
fn hostile_forwarded_calls_are_refused() {
    for whole in [call(b""), answered(Outcome::NotLed)] {
        let section = only(write(route(2), &whole));
        let with = |message: Bytes| read_message(&Section { message, ..section.clone() });
        for len in 1..section.message.len() {
            let error = with(section.message.slice(..len)).unwrap_err().to_string();
            assert!(error.contains("ends within its head"), "{error} at {len}");
        }
        let addressed = Section { address: route_address(), ..section.clone() };
        let error = read_message(&addressed).unwrap_err().to_string();
        assert!(error.contains("an epoch or replicas"), "{error}");
    }
    // Another outcome, and one that has no answer with one.
    let not_led = only(write(route(2), &answered(Outcome::NotLed))).message;
    let mut other = not_led.to_vec();
    other[17] = 3;
    for message in [other.into(), Bytes::from([&not_led[..], b"x"].concat())] {
        let address = Address { from: ReplicaId(0), to: ReplicaId(0), epoch: Epoch(0), ..route_address() };
        let error = read_message(&Section { address, message }).unwrap_err().to_string();
        assert!(error.contains("no known outcome"), "{error}");
    }
}

fn route_address() -> Address {
    Address { shard: ShardId(258), epoch: Epoch(0), from: ReplicaId(7), to: ReplicaId(9) }
}

/// Every later version must read these.
#[test]
fn the_bytes_of_messages_stay_what_they_are() {
    let fresh = Some(Fresh { as_of: Mark { life: Life(4), at: Time(70_000) }, upto: Index(12) });
    let ask = |fresh| Frame::Ask(Ask { epoch: Epoch(3), round: Round(8), lease: Micros(2_000_000), fresh });
    let mut table = EpochTable::new(at(1, 10));
    [at(1, 11), at(3, 12)].into_iter().for_each(|point| table.push(point));
    let entry = |epoch, index, bytes: &[u8]| LogEntry { point: at(epoch, index), bytes: Blob::from(bytes) };
    let head = AppendHead { epoch: Epoch(3), before: at(1, 10), commit: Index(9) };
    let messages = [
        (
            "append",
            Message::Frame(Frame::Append {
                head,
                record: None,
                entries: vec![entry(1, 11, b"one"), entry(3, 12, b"")],
            }),
        ),
        ("heartbeat", Message::Frame(Frame::Append { head, record: None, entries: Vec::new() })),
        ("ack", Message::Frame(Frame::Ack { epoch: Epoch(3), upto: Index(300) })),
        ("diverged", Message::Frame(Frame::Diverged { epoch: Epoch(3), table })),
        ("refuse", Message::Frame(Frame::Refuse { epoch: Epoch(3), promised: Epoch(5) })),
        ("ask", Message::Frame(ask(None))),
        ("ask with an age", Message::Frame(ask(fresh))),
        (
            "confirm",
            Message::Frame(Frame::Confirm {
                epoch: Epoch(3),
                round: Round(8),
                mark: Mark { life: Life(2), at: Time(5) },
                vouches: true,
            }),
        ),
        (
            "chunk",
            Message::Chunk(Chunk {
                epoch: Epoch(3),
                base: at(1, 10),
                total: 70_000,
                offset: 4,
                bytes: Bytes::from_static(b"piece"),
            }),
        ),
        ("received", Message::Received(Received { epoch: Epoch(3), base: at(1, 10), bytes: 9 })),
        ("deliver", delivery(&[(7, "payee", b"paid"), (8, "", b"")])),
        (
            "taken",
            Message::Taken(Taken { from: ShardId(4), to: ShardId(258), upto: Seq(8), colour: Colour(2) }),
        ),
        (
            "first append",
            Message::Frame(Frame::Append {
                head,
                record: Some(Box::new(record(Epoch(3)))),
                entries: vec![entry(3, 11, b"one")],
            }),
        ),
        ("call", call(b"ask")),
        ("answered", answered(Outcome::Answer(Bytes::from_static(b"answer")))),
        ("not led", answered(Outcome::NotLed)),
        ("in doubt", answered(Outcome::InDoubt)),
        ("acked", Message::Frame(Frame::Acked { epoch: Epoch(3), upto: at(1, 300) })),
    ];
    let mut text = String::new();
    for (name, message) in &messages {
        let bytes = write(route(258), message);
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{name}: {}", hex.join(" ")).unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/replica_messages.txt");
    if std::env::var_os("STEAD_WRITE_FIXTURES").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let stored = std::fs::read_to_string(path).unwrap();
    assert_eq!(text, stored);
    for (line, (name, message)) in stored.lines().zip(&messages) {
        let hex = line.strip_prefix(&format!("{name}: ")).unwrap();
        let bytes: Vec<u8> = hex.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        assert_eq!(shown(&read_message(&only(Bytes::from(bytes))).unwrap()), shown(message));
    }
}
