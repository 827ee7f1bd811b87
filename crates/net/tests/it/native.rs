//! The native protocol: each request, answer and refusal arrives as it was sent, and what is no such thing is refused.

use crate::connections::{local, settings, take};
use std::time::Duration;
use stead_core::blob::Blob;
use stead_core::calls::{self, Identity, Limited, Lost, Misuse, Read, Refusal};
use stead_core::ids::{
    BodyHash, CallToken, ClusterId, Colour, Epoch, Incarnation, Index, Life, Micros, RequestNumber,
    SessionId, ShardId, Time,
};
use stead_core::key::Key;
use stead_core::look::Look;
use stead_core::placement::Place;
use stead_core::record::RecordKey;
use stead_core::replication::freshness::TooStale;
use stead_core::replication::table::LogPoint;
use stead_core::reply::Reply;
use stead_core::topology::Topology;
use stead_net::connection::{Connection, Event, Failure};
use stead_net::frame::Origin;
use stead_net::handshake::{HandshakeError, Local, RefusalKind, Role};
use stead_net::native::{Answer, Ask, Identified, Primary, Promised, repeated, with_time};
use stead_net::payload::PayloadWriter;

fn refusals() -> Vec<Refusal> {
    let after = Duration::from_millis(1500);
    let limited = [
        Limited::Replies,
        Limited::RepliesOfPrincipal,
        Limited::Sessions,
        Limited::SessionsOfPrincipal,
        Limited::Waiting,
        Limited::DeadLetters,
    ];
    let text = || "text".to_owned();
    let mut refusals = vec![
        Refusal::UnknownSession(SessionId(7)),
        Refusal::Confirmed(RequestNumber(8)),
        Refusal::Window { number: RequestNumber(9), confirmed: RequestNumber(1), window: 4 },
        Refusal::IdempotencyConflict,
        Refusal::TooLong { what: "a principal", len: 300, max: 256 },
        Refusal::TooLong { what: "an idempotency key", len: 300, max: 256 },
        Refusal::RequestTooLarge { len: 1 << 40, max: 5 },
        Refusal::NoDeadLetter(Index(3)),
        Refusal::NoRetry { letter: Index(3), why: "its payload was too large to be kept" },
        Refusal::FailedAgain { letter: Index(3), reason: text() },
        Refusal::Misuse(Misuse::Request(text())),
        Refusal::Misuse(Misuse::State(text())),
        Refusal::Misuse(Misuse::NoCode(text())),
        Refusal::Misuse(Misuse::Internal(text())),
        Refusal::Misuse(Misuse::TooLarge { len: 9, max: 8 }),
        Refusal::Panicked(text()),
        Refusal::Overloaded { retry_after: after },
        Refusal::Poisoned { attempts: 5 },
        Refusal::QueryGivenUp { process: text(), limit: after },
        Refusal::QueriesStuck { service: text(), stuck: 4, process: text() },
        Refusal::NotReady,
        Refusal::Full,
        Refusal::TooStale(TooStale::Over { staleness: Micros(9), max_lag: Micros(8) }),
        Refusal::TooStale(TooStale::Unknown),
        Refusal::Lost(Box::new(Lost {
            shard: ShardId(3),
            service: text(),
            seen: LogPoint { epoch: Epoch(2), index: Index(9) },
            kept: Index(7),
            now: LogPoint { epoch: Epoch(4), index: Index(8) },
        })),
    ];
    refusals.extend(limited.map(|what| Refusal::LimitReached { what, max: 10, retry_after: after }));
    refusals
}

#[test]
fn each_answer_and_each_refusal_arrives_as_it_was_sent() {
    let mut topology = Topology::new(Incarnation(3));
    topology.ensure("kv", 16).unwrap();
    topology.ensure("bank", 2).unwrap();
    let of = |result, staleness| {
        Answer::Of(calls::Answer {
            token: CallToken(0),
            epoch: Epoch(4),
            index: Index(u64::MAX),
            colour: Colour(2),
            result,
            staleness,
        })
    };
    let mut answers = vec![
        of(Ok(Reply::Ok(Blob::from(&[1; 100][..]))), None),
        of(Ok(Reply::Ok(Blob::from(&[1; 100][..]))), Some(Micros(1_000))),
        of(Ok(Reply::Err(Blob::empty())), None),
        Answer::NotHere { shard: ShardId(5), place: Place::Elsewhere },
        Answer::NotHere { shard: ShardId(5), place: Place::Unplaced },
        Answer::NoPrimary { shard: ShardId(5) },
        Answer::TimedOut,
        Answer::Failed("the disk".to_owned()),
        Answer::Stopped,
        Answer::NoRoom,
        Answer::Topology { topology: topology.clone(), nodes: vec![], primaries: vec![] },
        Answer::Topology {
            topology,
            nodes: vec!["127.0.0.1:7421".parse().unwrap(), "[::1]:7422".parse().unwrap()],
            primaries: vec![Some(Primary { node: 1, epoch: Epoch(4) }), None],
        },
        Answer::Invalid("why".to_owned()),
    ];
    answers.extend(refusals().into_iter().map(|refusal| of(Err(refusal), None)));
    answers.extend(refusals().into_iter().map(Answer::Refused));
    for answer in answers {
        let bytes = answer.encode();
        assert_eq!(Answer::decode(&bytes), Ok(answer));
        for cut in 0..bytes.len() {
            assert!(Answer::decode(&bytes[..cut]).is_err(), "a part is no answer");
        }
    }
}

fn asks() -> [Ask<'static>; 15] {
    let (shard, process) = (ShardId(3), Key::new("key").unwrap());
    let payload = Blob::from(&b"payload"[..]);
    let (session, principal) = (SessionId(u128::MAX), "local");
    let request_of = |identity: Identity, seen| Ask::Request {
        shard,
        process: process.clone(),
        payload: payload.clone(),
        principal,
        identity: identity.into(),
        colour: Colour(9),
        seen,
        is_first: None,
    };
    let request = |identity| request_of(identity, None);
    let query_of = |read, seen| {
        let (process, payload) = (process.clone(), payload.clone());
        Ask::Query { shard, process, payload, principal, read: Promised::of(read), seen }
    };
    let query = |read| query_of(read, None);
    let seen = Some(LogPoint { epoch: Epoch(4), index: Index(1 << 40) });
    [
        Ask::Topology { without_services: None },
        Ask::Topology { without_services: Some(true) },
        Ask::OpenSession { shard, session, principal },
        request(Identity::Session { session, number: RequestNumber(5), confirmed: RequestNumber(2) }),
        request(Identity::Idempotency { key: Blob::from(&b"k"[..]), body_hash: BodyHash([7; 16]) }),
        request(Identity::None),
        query(Read::Service),
        query(Read::Linearizable),
        query(Read::Primary),
        query(Read::Stale { max_lag: Some(Micros(5)) }),
        Ask::DeadLetter { shard, letter: Index(1), retry: true },
        request_of(Identity::None, seen),
        query_of(Read::Service, seen),
        Ask::Delete {
            shard,
            process: process.clone(),
            records: vec![RecordKey::process("key"), RecordKey::cell("key", b"cell")],
        },
        Ask::Look { shard, look: Look::State { process: process.clone() } },
    ]
}

fn bytes_of(time: Duration, ask: &Ask<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (mut client, mut node) = open();
    client.send_request(&with_time(time, &ask.encode()), Time(0)).unwrap();
    node.receive(&take(&mut client, usize::MAX, Time(0)), Time(0));
    if let Ok(Some(Event::Request(_, payload))) = node.next_event(Time(0), Time(0), |_| None) {
        bytes.extend_from_slice(&payload);
    }
    bytes
}

#[test]
fn each_request_arrives_with_the_time_that_is_left() {
    for ask in asks() {
        let bytes = bytes_of(Duration::from_micros(1_500_001), &ask);
        assert_eq!(Ask::decode(&bytes), Ok((Duration::from_millis(1501), ask)));
        for cut in 0..bytes.len() {
            assert!(Ask::decode(&bytes[..cut]).is_err(), "a part is no request");
        }
    }
    let bytes = bytes_of(Duration::MAX, &Ask::Topology { without_services: None });
    assert_eq!(Ask::decode(&bytes).unwrap().0, Duration::from_millis(u32::MAX.into()));
}

#[test]
fn a_request_that_is_sent_again_does_not_say_that_it_is_the_first_time() {
    for ask in asks() {
        let mut said = ask.clone();
        if let Ask::Request { is_first, .. } = &mut said {
            *is_first = Some(true);
        }
        assert_eq!(Ask::decode_untimed(&said.encode()), Ok(said.clone()));
        assert_eq!(repeated(&said.encode()), ask.encode(), "nothing else changes");
    }
}

#[test]
fn identities_keep_their_content() {
    let Ask::Request { identity, .. } = &asks()[3] else { panic!("it is a request") };
    let back = Identified::from(Identity::from(identity.clone()));
    assert_eq!(&back, identity);
}

/// The first version's bytes: a later one must read them.
#[test]
fn the_first_version_is_read() {
    let bytes = [
        1, 0, 0, 0, // 1 ms
        0x82, 2, // a request
        0x86, 3, 0x63, b'k', b'e', b'y', 0x42, 1, 2, 0x61, b'p', // shard, process, payload, principal
        0x82, 2, 0x80, // no identity
        9,    // colour
    ];
    let ask = Ask::Request {
        shard: ShardId(3),
        process: Key::new("key").unwrap(),
        payload: Blob::from(&[1, 2][..]),
        principal: "p",
        identity: Identified::None,
        colour: Colour(9),
        seen: None,
        is_first: None,
    };
    assert_eq!(Ask::decode(&bytes), Ok((Duration::from_millis(1), ask.clone())));
    assert_eq!(bytes_of(Duration::from_millis(1), &ask), bytes);
    let answer = [0x82, 0, 0x84, 4, 5, 6, 0x82, 0, 0x81, 0x41, 7];
    let reply = Answer::decode(&answer).unwrap();
    assert_eq!(&reply.encode()[..], answer);
    let query = [1, 0, 0, 0, 0x82, 3, 0x84, 3, 0x63, b'k', b'e', b'y', 0x42, 1, 2, 0x61, b'p'];
    let read = Ask::decode(&query).unwrap().1;
    assert!(matches!(&read, Ask::Query { read: None, seen: None, .. }), "{read:?}");
    assert_eq!(bytes_of(Duration::from_millis(1), &read), query);
}

/// What a client that does not know the last field takes for a shard on another node.
#[test]
fn a_shard_without_a_primary_is_one_on_another_node_to_older_clients() {
    let [elsewhere, none] = [
        Answer::NotHere { shard: ShardId(3), place: Place::Elsewhere },
        Answer::NoPrimary { shard: ShardId(3) },
    ];
    assert_eq!(elsewhere.encode()[..], [0x82, 3, 0x82, 3, 0xf5]);
    assert_eq!(none.encode()[..], [0x82, 3, 0x83, 3, 0xf5, 0xf5]);
}

/// A node that does not know the primaries, and a client that does not know that there are any, understand the other one.
#[test]
fn topologies_are_read_with_and_without_primaries() {
    let ask = [1, 0, 0, 0, 0x82, 0, 0x80];
    let topology = Ask::decode(&ask).unwrap().1;
    assert_eq!(topology, Ask::Topology { without_services: None });
    assert_eq!(bytes_of(Duration::from_millis(1), &topology), ask);
    let answer = [0x82, 8, 0x83, 1, 0x80, 0x80];
    let known = Answer::decode(&answer).unwrap();
    assert!(matches!(&known, Answer::Topology { primaries, .. } if primaries.is_empty()), "{known:?}");
    assert_eq!(&known.encode()[..], answer);
    // A node whose address is not understood: the positions would be those of others.
    let answer = [0x82, 8, 0x84, 1, 0x80, 0x81, 0x61, b'x', 0x81, 0x82, 0, 4];
    let unknown = Answer::decode(&answer).unwrap();
    assert!(
        matches!(&unknown, Answer::Topology { nodes, primaries, .. } if nodes.is_empty() && primaries.is_empty()),
        "{unknown:?}"
    );
}

#[test]
fn the_shard_whose_primary_answers_is_that_of_all_but_stale_reads() {
    for ask in asks() {
        let is_led = !matches!(ask, Ask::Topology { .. } | Ask::Query { read: Some(Promised::Stale(_)), .. });
        assert_eq!(ask.led_shard(), is_led.then_some(ShardId(3)), "{ask:?}");
    }
}

/// The second version's bytes, and what a client of the first one gets instead.
#[test]
fn a_deposed_primary_is_an_answer_of_the_second_version() {
    let answer = Answer::Deposed { shard: ShardId(3) };
    assert_eq!(answer.encode()[..], [0x82, 10, 0x81, 3]);
    assert_eq!(Answer::decode(&answer.encode()), Ok(answer.clone()));
    assert_eq!(answer.clone().in_version(2), answer);
    assert_eq!(answer.in_version(1), Answer::TimedOut);
}

/// A client and a node that are connected.
fn open() -> (Connection, Connection) {
    let client = Local {
        cluster: None,
        role: Role::Client,
        origin: Origin { incarnation: Incarnation(0), life: Life(0) },
        ..local(1)
    };
    let mut client = Connection::dial(client, 1, None, settings(), Time(0), Time(0));
    let mut node = Connection::accept(local(2), 1, settings(), Time(0));
    node.receive(&take(&mut client, usize::MAX, Time(0)), Time(0));
    let opened = node.next_event(Time(0), Time(0), |_| None);
    assert!(matches!(&opened, Ok(Some(Event::Opened(agreed))) if agreed.role == Role::Client));
    client.receive(&take(&mut node, usize::MAX, Time(0)), Time(0));
    let opened = client.next_event(Time(0), Time(0), |_| None);
    assert!(matches!(&opened, Ok(Some(Event::Opened(agreed))) if agreed.cluster == Some(ClusterId(1))));
    (client, node)
}

#[test]
fn an_end_whose_frames_are_invalid_gets_the_reason_before_the_connection_closes() {
    let (mut client, mut node) = open();
    let mut payload = PayloadWriter::new();
    payload.write(b"request");
    client.send_request(&payload.finish(), Time(0)).unwrap();
    let request = take(&mut client, usize::MAX, Time(0));
    // The same number twice.
    node.receive(&[request.clone(), request].concat(), Time(0));
    assert!(matches!(node.next_event(Time(0), Time(0), |_| None), Ok(Some(Event::Request(..)))));
    let failed = node.next_event(Time(0), Time(0), |_| None).unwrap_err();
    assert!(matches!(failed, Failure::Number { number: 1, .. }), "{failed}");
    client.receive(&take(&mut node, usize::MAX, Time(0)), Time(0));
    let refused = client.next_event(Time(0), Time(0), |_| None).unwrap_err();
    let Failure::Handshake(HandshakeError::RefusedByOther { kind, text }) = refused else {
        panic!("{refused}")
    };
    assert_eq!((kind, text), (RefusalKind::Malformed, failed.to_string()));
    // Garbage.
    let (mut client, mut node) = open();
    node.receive(b"GET / HTTP/1.1\r\n", Time(0));
    let failed = node.next_event(Time(0), Time(0), |_| None).unwrap_err();
    client.receive(&take(&mut node, usize::MAX, Time(0)), Time(0));
    let refused = client.next_event(Time(0), Time(0), |_| None).unwrap_err();
    assert!(refused.to_string().contains(&failed.to_string()), "{refused}");
}
