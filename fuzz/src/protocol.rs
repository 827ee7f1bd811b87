//! Targets for the encodings of the core: entries, records and headers.

use crate::edits::Source;
use minicbor::{Decode, Encode};
use std::fmt::Debug;
use stead_core::blob::Blob;
use stead_core::entry::{Cause, Entry, Send, Trim, Write};
use stead_core::ids::{
    BodyHash, Colour, Epoch, Index, Micros, RequestNumber, Seq, Served, ServiceId, SessionId, ShardId,
    StepNumber, TaskId, Time, TimerId,
};
use stead_core::key::Key;
use stead_core::record::{
    AttemptRecord, DeadLetter, IdempotencyRecord, Kind, Pending, RecordKey, Retry, SessionRecord, TaskRecord,
    TimerRecord, decode_value, encode_value,
};
use stead_core::records::{Records, decode_records, encode_record};
use stead_core::reply::Reply;
use stead_core::state::{Header, State};

/// A log entry.
pub fn entry(data: &[u8]) {
    if let Ok(entry) = Entry::decode(data) {
        let mut bytes = Vec::new();
        entry.encode_into(&mut bytes);
        assert_eq!(Entry::decode(&bytes).expect("what was encoded is read"), entry);
    }
}

fn survives<T: for<'b> Decode<'b, ()> + Encode<()> + PartialEq + Debug>(data: &[u8]) -> Option<T> {
    let value: T = decode_value(data).ok()?;
    let back: T = decode_value(&encode_value(&value)).expect("what was encoded is read");
    assert_eq!(back, value);
    Some(value)
}

/// The header of a checkpoint's part.
pub fn header(data: &[u8]) {
    if let Some(header) = survives::<Header>(data) {
        assert_eq!(header.hash(), header.clone().hash());
    }
}

/// The value of a record, of the kind that the first byte selects.
pub fn record_value(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 8 {
        0 => drop(survives::<SessionRecord>(data)),
        1 => drop(survives::<Reply>(data)),
        2 => drop(survives::<IdempotencyRecord>(data)),
        3 => drop(survives::<TimerRecord>(data)),
        4 => drop(survives::<TaskRecord>(data)),
        5 => drop(survives::<DeadLetter>(data)),
        6 => drop(survives::<AttemptRecord>(data)),
        _ => drop(survives::<Pending>(data)),
    }
}

/// The key of a record.
pub fn record_key(data: &[u8]) {
    let Some(key) = RecordKey::from_bytes(data) else { return };
    assert_eq!(key.as_bytes(), data);
    assert_eq!(key.kind() as u8, data[0]);
    assert_eq!(RecordKey::from_bytes(key.as_bytes()).as_ref(), Some(&key));
    match key.kind() {
        Kind::Process => assert_eq!(key, RecordKey::process(key.process_key().expect("a process has a key"))),
        Kind::Cell => {
            let (process, cell) = (key.process_key().expect("its process"), key.cell_key().expect("its own"));
            assert_eq!(key, RecordKey::cell(process, cell));
        }
        Kind::Session | Kind::Reply => assert!(key.session_id().is_some()),
        Kind::Idempotency => assert!(key.process_key().is_some()),
        Kind::Timer | Kind::Task | Kind::DeadLetter => assert!(key.number().is_some()),
        Kind::Attempt => {}
    }
    assert!(!format!("{key:?}").is_empty());
}

/// A section of a snapshot, loaded as a recovery does.
pub fn records(data: &[u8]) {
    let mut again = Vec::new();
    let mut loaded = Records::new();
    for record in decode_records(data) {
        let Ok((key, value)) = record else {
            assert!(data.starts_with(&again), "the records before the damage are those of the section");
            return;
        };
        encode_record(key, value, &mut again);
        if RecordKey::from_bytes(key).is_some() {
            loaded.load(key, value.map(Blob::from));
        }
    }
    assert_eq!(again, data, "a section that is read to its end is what its records make");
    loaded.loaded();
    loaded.check().expect("the sums fit the records");
}

/// A log: entries folded into a state, which then goes through a checkpoint. Each entry gets the correct position,
/// because otherwise only a perfect log would be read.
pub fn state(data: &[u8]) {
    let mut source = Source::new(data);
    let mut state = State::new(ShardId(0));
    while !source.is_empty() {
        let len = usize::from(source.u16());
        let Ok(mut entry) = Entry::decode(source.bytes(len)) else { continue };
        entry.index = state.position().index.next();
        entry.epoch = state.position().epoch.max(entry.epoch);
        if state.apply(entry).is_err() {
            return;
        }
    }
    state.records().check().expect("the sums fit the records");
    let header = state.header();
    let header: Header = decode_value(&encode_value(&header)).expect("what was encoded is read");
    let mut records = Records::new();
    for (key, value) in state.records().iter() {
        records.load(key, Some(value.clone()));
    }
    records.loaded();
    let loaded = State::load(header, records).expect("what was applied can be loaded");
    assert_eq!(loaded.hash(), state.hash());
    assert_eq!(loaded.timers(), state.timers());
    assert_eq!(loaded.tasks(), state.tasks());
    assert_eq!(loaded.expiries(), state.expiries());
    assert_eq!(loaded.outbox_bytes(), state.outbox_bytes());
    assert_eq!((loaded.attempts(), loaded.dead_letters()), (state.attempts(), state.dead_letters()));
    for (key, value) in state.records().iter() {
        let key = RecordKey::from_bytes(key).expect("a written record's key was checked");
        // The shard later assumes that these can be decoded.
        match key.kind() {
            Kind::Reply => assert!(decode_value::<Reply>(value).is_ok(), "an unreadable reply was let in"),
            Kind::DeadLetter => {
                assert!(decode_value::<DeadLetter>(value).is_ok(), "an unreadable dead letter")
            }
            _ => {}
        }
    }
}

/// Returns a log with every cause and every kind of record.
pub(crate) fn sample_entries() -> Vec<Entry> {
    let key = Key::new("k").expect("a short key");
    let blob = |text: &str| Blob::from(text.as_bytes());
    let session = SessionId(5);
    let put = |key: RecordKey, value: Blob| Write { key, value: Some(value) };
    let timer = TimerRecord { at: Time(50), process: key.clone(), payload: blob("t"), send: None };
    let task = TaskRecord {
        process: key.clone(),
        name: "sum".to_owned(),
        step: StepNumber(1),
        state: blob("s"),
        progress: 500_000,
        retry: None,
    };
    let pending = Pending::Message { from: ShardId(1), seq: Seq(1) };
    let letter = DeadLetter {
        cause: pending,
        process: key.clone(),
        payload: blob("p"),
        sender: key.clone(),
        reason: "it panicked".to_owned(),
        time: Time(8),
        retry: Some(Retry::Message { service: ServiceId(0) }),
    };
    let causes: Vec<(Cause, Vec<Write>)> = vec![
        (Cause::Start, Vec::new()),
        (Cause::OpenSession { session, principal: "me".to_owned(), ttl: Micros(1000) }, Vec::new()),
        (
            Cause::Request {
                session,
                number: RequestNumber(1),
                confirmed: RequestNumber(0),
                ttl: Micros(1000),
            },
            vec![put(RecordKey::process("k"), blob("state")), put(RecordKey::cell("k", b"c"), blob("cell"))],
        ),
        (
            Cause::Idempotent {
                principal: "me".to_owned(),
                key: blob("once"),
                body_hash: BodyHash([3; 16]),
                expires: Served(9_000),
            },
            vec![put(RecordKey::timer(TimerId(1)), encode_value(&timer))],
        ),
        (Cause::Anonymous, vec![put(RecordKey::task(TaskId(2)), encode_value(&task))]),
        (
            Cause::Attempt,
            vec![put(
                RecordKey::attempt(&pending),
                encode_value(&AttemptRecord { count: 1, expires: None, alone: Some(1) }),
            )],
        ),
        (Cause::Message { from: ShardId(1), seq: Seq(1) }, Vec::new()),
        (Cause::Timer { id: TimerId(1) }, Vec::new()),
        (
            Cause::Task { id: TaskId(2), step: StepNumber(1) },
            vec![put(RecordKey::task(TaskId(2)), encode_value(&task))],
        ),
        (Cause::Marker { colour: Colour(1) }, Vec::new()),
        (Cause::Ack { trims: vec![Trim { to: ShardId(2), upto: Seq(1) }] }, Vec::new()),
        (
            Cause::DeadLetter { cause: Pending::Message { from: ShardId(1), seq: Seq(2) } },
            vec![put(RecordKey::dead_letter(Index(12)), encode_value(&letter))],
        ),
        (
            Cause::DeadLetter { cause: Pending::DeadLetter { letter: Index(12) } },
            vec![put(RecordKey::dead_letter(Index(12)), encode_value(&letter))],
        ),
        (Cause::Retry { letter: Index(12) }, Vec::new()),
        (Cause::Drop { letter: Index(12) }, Vec::new()),
        (Cause::Delete, vec![Write { key: RecordKey::process("k"), value: None }]),
        (
            Cause::Expire,
            vec![
                Write { key: RecordKey::cell("k", b"c"), value: None },
                Write { key: RecordKey::session(session), value: None },
            ],
        ),
    ];
    let entry = |(at, (cause, writes)): (usize, (Cause, Vec<Write>))| {
        let reply = matches!(cause, Cause::Request { .. } | Cause::Idempotent { .. });
        Entry {
            index: Index(at as u64 + 1),
            epoch: Epoch(1),
            time: Time(at as u64),
            process: if reply { key.clone() } else { Key::none() },
            sends: match at {
                2 => vec![Send { to: ShardId(2), process: key.clone(), payload: blob("message") }],
                3 => vec![Send { to: ShardId(0), process: key.clone(), payload: blob("to itself") }],
                _ => Vec::new(),
            },
            reply: reply.then(|| Reply::Ok(blob("reply"))),
            served: Some(Micros(at as u64)),
            cause,
            writes,
        }
    };
    causes.into_iter().enumerate().map(entry).collect()
}
