//! A target for what clients and nodes ask of each other, and the answers.

use minicbor::Encode;
use std::net::SocketAddr;
use stead_core::blob::Blob;
use stead_core::calls::{self, Read, Refusal};
use stead_core::ids::{
    CallToken, Colour, Epoch, Incarnation, Index, Micros, RequestNumber, Seq, SessionId, ShardId, TaskId,
    Time, TimerId,
};
use stead_core::key::Key;
use stead_core::look::{Found, Look};
use stead_core::placement::Place;
use stead_core::record::{DeadLetter, Pending, RecordKey};
use stead_core::replication::table::LogPoint;
use stead_core::reply::Reply;
use stead_core::topology::Topology;
use stead_net::native::{Answer, Ask, Identified, Primary, Promised};

/// A request with its time, an answer, a look, or what one has found, as the first byte selects.
pub fn native(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 4 {
        0 => {
            let Ok((_, ask)) = Ask::decode(data) else { return };
            let bytes = ask.encode();
            assert_eq!(Ask::decode_untimed(&bytes).expect("what was encoded is read"), ask);
        }
        1 => {
            let Ok(answer) = Answer::decode(data) else { return };
            assert_eq!(Answer::decode(&answer.encode()).expect("what was encoded is read"), answer);
        }
        2 => {
            let Ok(look) = minicbor::decode::<Look>(data) else { return };
            let again: Look = minicbor::decode(&encoded(&look)).expect("what was encoded is read");
            assert_eq!(again, look);
            assert!(look.bytes() <= data.len() * size_of::<Key>() * 2, "its size is that of what was read");
        }
        _ => {
            let Ok(found) = Found::decode(data) else { return };
            assert_eq!(Found::decode(&found.encode()).expect("what was encoded is read"), found);
        }
    }
}

fn encoded<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("memory takes everything")
}

fn key(key: &str) -> Key {
    Key::new(key).expect("a short key")
}

fn sample_looks() -> Vec<Look> {
    let (of, process) = (vec![key("a"), key("b")], key("a"));
    vec![
        Look::Processes { from: 7, prefix: "a".to_owned(), limit: 10 },
        Look::State { process: process.clone() },
        Look::Cells { of: of.clone(), from: Some(Blob::from(&b"cell"[..])) },
        Look::CellKeys { process, limit: 3 },
        Look::Timers { of: of.clone(), after: Some((Time(5), TimerId(2))), listed: 4 },
        Look::Tasks { of, after: Some(TaskId(3)), listed: 4 },
        Look::DeadLetters { from: Index(4), limit: 5, room: 600 },
    ]
}

fn sample_found() -> Vec<Found> {
    let letter = DeadLetter {
        cause: Pending::Message { from: ShardId(1), seq: Seq(2) },
        process: key("a"),
        payload: Blob::from(&b"pay"[..]),
        sender: key("b"),
        reason: "it cannot be read".to_owned(),
        time: Time(9),
        retry: None,
    };
    vec![
        Found::Processes { found: vec![(key("a"), 3)], next: Some(8) },
        Found::State(Some(Blob::from(&b"state"[..]))),
        Found::Cells { counts: vec![(2, 30)], next: None },
        Found::CellKeys(vec![RecordKey::cell("a", b"cell")]),
        Found::Timers { ids: vec![(0, TimerId(2))], listed: Vec::new(), next: Some((Time(5), TimerId(2))) },
        Found::Tasks { ids: vec![(1, TaskId(3))], listed: Vec::new(), next: None },
        Found::DeadLetters { found: vec![(Index(4), letter)], next: Some(Index(5)) },
    ]
}

fn sample_asks() -> Vec<Ask<'static>> {
    let (shard, process, payload, principal) = (ShardId(1), key("a"), Blob::from(&b"pay"[..]), "alice");
    let seen = Some(LogPoint { epoch: Epoch(2), index: Index(3) });
    let (session, number, confirmed) = (SessionId(4), RequestNumber(2), RequestNumber(1));
    let mut asks = vec![
        Ask::Topology { without_services: Some(true) },
        Ask::OpenSession { shard, session, principal },
        Ask::Request {
            shard,
            process: process.clone(),
            payload: payload.clone(),
            principal,
            identity: Identified::Session { session, number, confirmed },
            colour: Colour(1),
            seen,
            is_first: Some(true),
        },
        Ask::DeadLetter { shard, letter: Index(4), retry: true },
        Ask::Delete { shard, process: process.clone(), records: vec![RecordKey::process("a")] },
    ];
    for read in [Read::Service, Read::Linearizable, Read::Stale { max_lag: Some(Micros(5)) }] {
        let (process, payload, read) = (process.clone(), payload.clone(), Promised::of(read));
        asks.push(Ask::Query { shard, process, payload, principal, read, seen });
    }
    asks.extend(sample_looks().into_iter().map(|look| Ask::Look { shard, look }));
    asks
}

fn sample_answers() -> Vec<Answer> {
    let of = |result| {
        let (token, epoch, index, colour) = (CallToken(0), Epoch(2), Index(3), Colour(1));
        Answer::Of(calls::Answer { token, epoch, index, colour, result, staleness: None })
    };
    let mut topology = Topology::new(Incarnation(2));
    topology.ensure("bank", 4).expect("the only service");
    let nodes = vec![SocketAddr::from(([127, 0, 0, 1], 7400))];
    let primaries = vec![None, Some(Primary { node: 0, epoch: Epoch(2) })];
    let shard = ShardId(1);
    vec![
        of(Ok(Reply::Ok(Blob::from(&b"reply"[..])))),
        of(Err(Refusal::UnknownSession(SessionId(4)))),
        Answer::Refused(Refusal::NotReady),
        Answer::NotHere { shard, place: Place::Elsewhere },
        Answer::NoPrimary { shard },
        Answer::TimedOut,
        Answer::Failed("the disk is gone".to_owned()),
        Answer::Topology { topology, nodes, primaries },
        Answer::Invalid("no process".to_owned()),
        Answer::Deposed { shard },
    ]
}

/// Returns an input for each kind of content.
pub(crate) fn samples() -> Vec<Vec<u8>> {
    let prefixed = |kind: u8, bytes: &[u8]| [&[kind][..], bytes].concat();
    let asks = sample_asks().into_iter().map(|ask| prefixed(0, &[&[1, 2, 0, 0][..], &ask.encode()].concat()));
    let answers = sample_answers().into_iter().map(|answer| prefixed(1, &answer.encode()));
    let looks = sample_looks().into_iter().map(|look| prefixed(2, &encoded(&look)));
    let found = sample_found().into_iter().map(|found| prefixed(3, &found.encode()));
    asks.chain(answers).chain(looks).chain(found).collect()
}
