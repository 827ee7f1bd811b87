//! Connections without sockets: order, bounds, times.

use std::io::IoSlice;
use stead_core::ids::{ClusterId, Incarnation, Life, Micros, NodeId, Time};
use stead_net::connection::{Connection, Event, Failure, RequestId, SendError, Settings};
use stead_net::frame::{HEADER_LEN, Head, Kind, Origin};
use stead_net::handshake::{CLOCK_DIFFERENCE_MAX, Limits, Local, Role, VERSIONS};
use stead_net::outgoing::Outgoing;
use stead_net::payload::Payload;

const START: Time = Time(5_000_000);

pub(crate) fn local(node: u32) -> Local {
    Local {
        versions: VERSIONS,
        cluster: Some(ClusterId(1)),
        role: Role::Peer { node: NodeId(node), directory: u64::from(node), process: u64::from(node) },
        origin: Origin { incarnation: Incarnation(1), life: Life(u64::from(node)) },
        limits: Limits { payload_bytes_max: 1000, requests_max: 3, request_bytes_max: 2000 },
        client_limits: Limits::of_clients(),
        clock_difference_max: CLOCK_DIFFERENCE_MAX,
    }
}

pub(crate) fn settings() -> Settings {
    Settings { send_bytes_max: 4000, ..Settings::default() }
}

/// Takes up to `max` bytes that wait.
pub(crate) fn take(connection: &mut Connection, max: usize, now: Time) -> Vec<u8> {
    let mut bytes = Vec::new();
    while connection.waiting() > 0 && bytes.len() < max {
        let mut slices = [IoSlice::new(&[]); 4];
        let filled = connection.slices(&mut slices);
        let first = slices[..filled][0].to_vec();
        let len = first.len().min(max - bytes.len());
        bytes.extend_from_slice(&first[..len]);
        connection.advance(len, now);
    }
    bytes
}

fn events(connection: &mut Connection, now: Time) -> Vec<Event> {
    std::iter::from_fn(|| connection.next_event(now, Time(0), |_| None).unwrap()).collect()
}

/// Gives all that waits at one end to the other one, and returns its events.
fn pass(from: &mut Connection, to: &mut Connection, now: Time) -> Vec<Event> {
    to.receive(&take(from, usize::MAX, now), now);
    events(to, now)
}

fn open() -> (Connection, Connection) {
    let mut left = Connection::dial(local(1), 1, Some(NodeId(2)), settings(), START, Time(0));
    let mut right = Connection::accept(local(2), 1, settings(), START);
    assert_eq!(left.send_shards(&payload(1), START), Err(SendError::NotOpen));
    assert!(matches!(pass(&mut left, &mut right, START)[..], [Event::Opened(_)]));
    assert!(matches!(pass(&mut right, &mut left, START)[..], [Event::Opened(_)]));
    (left, right)
}

fn payload(len: usize) -> Payload {
    Payload::from(&vec![7; len][..])
}

/// Gives a connection a frame that its other end would not send.
fn forge(connection: &mut Connection, head: Head, payload: &Payload) -> Failure {
    let mut outgoing = Outgoing::default();
    outgoing.push(head, payload);
    let mut slices = [IoSlice::new(&[]); 4];
    let filled = outgoing.slices(&mut slices);
    slices[..filled].iter().for_each(|slice| connection.receive(slice, START));
    loop {
        match connection.next_event(START, Time(0), |_| None) {
            Ok(event) => assert!(event.is_some(), "it fails"),
            Err(failure) => return failure,
        }
    }
}

#[test]
fn requests_are_answered_in_any_order_over_any_split() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut left, mut right) = open();
    let (mut waiting, mut answered) = (Vec::new(), Vec::new());
    let mut sent = 0;
    while answered.len() < 200 {
        if sent < 200 && left.send_request(&payload(rng.usize(..600)), START).is_ok() {
            sent += 1;
        }
        if !waiting.is_empty() && rng.bool() {
            let request = waiting.swap_remove(rng.usize(..waiting.len()));
            right.send_answer(request, &payload(8), START).unwrap();
        }
        right.receive(&take(&mut left, rng.usize(1..200), START), START);
        for event in events(&mut right, START) {
            let Event::Request(request, _) = event else { panic!("{event:?}") };
            waiting.push(request);
        }
        left.receive(&take(&mut right, rng.usize(1..50), START), START);
        for event in events(&mut left, START) {
            let Event::Answer(request, _) = event else { panic!("{event:?}") };
            answered.push(request.0);
        }
    }
    answered.sort_unstable();
    assert_eq!(answered, (1..=200).collect::<Vec<_>>());
}

#[test]
fn a_slow_reader_costs_bounded_memory() {
    let (mut left, mut right) = open();
    let mut queued = 0;
    let refused = loop {
        match left.send_shards(&payload(900), START) {
            Ok(()) => queued += 1,
            Err(error) => break error,
        }
    };
    let waiting = left.waiting();
    assert_eq!((queued, waiting), (4, 4 * (900 + HEADER_LEN)));
    assert_eq!(refused, SendError::WouldBlock { waiting, max: 4000 });
    assert_eq!(pass(&mut left, &mut right, START).len(), 4);
    assert_eq!(left.send_shards(&payload(900), START), Ok(()));
    assert_eq!(left.send_shards(&payload(1001), START), Err(SendError::TooLong { bytes: 1001, max: 1000 }));
}

#[test]
fn requests_are_limited_by_number_and_bytes_until_they_are_answered() {
    let (mut left, mut right) = open();
    let first = left.send_request(&payload(1000), START).unwrap();
    left.send_request(&payload(900), START).unwrap();
    let refused = SendError::TooManyRequests { requests: 2, bytes: 1900 };
    assert_eq!(left.send_request(&payload(101), START), Err(refused), "by bytes");
    left.send_request(&payload(1), START).unwrap();
    let refused = SendError::TooManyRequests { requests: 3, bytes: 1901 };
    assert_eq!(left.send_request(&payload(1), START), Err(refused.clone()), "by number");
    // A forgotten request counts until the other end has answered it.
    left.forget(first);
    assert_eq!(left.send_request(&payload(1), START), Err(refused));
    assert_eq!(pass(&mut left, &mut right, START).len(), 3);
    right.send_answer(first, &payload(1), START).unwrap();
    assert_eq!(right.send_answer(first, &payload(1), START), Err(SendError::NoRequest(first)));
    assert_eq!(pass(&mut right, &mut left, START), vec![], "its answer is not awaited");
    assert_eq!(left.send_request(&payload(1), START), Ok(RequestId(4)));
}

#[test]
fn no_end_has_more_requests_in_flight_than_it_takes_itself() {
    let limits = Limits { requests_max: u32::MAX, request_bytes_max: u64::MAX, ..local(2).limits };
    let mut left = Connection::dial(local(1), 1, None, settings(), START, Time(0));
    let mut right = Connection::accept(Local { limits, ..local(2) }, 1, settings(), START);
    pass(&mut left, &mut right, START);
    pass(&mut right, &mut left, START);
    left.send_request(&payload(1000), START).unwrap();
    let refused = SendError::TooManyRequests { requests: 1, bytes: 1000 };
    assert_eq!(left.send_request(&payload(1001), START), Err(refused), "by bytes");
    left.send_request(&payload(1), START).unwrap();
    left.send_request(&payload(1), START).unwrap();
    let refused = SendError::TooManyRequests { requests: 3, bytes: 1002 };
    assert_eq!(left.send_request(&payload(1), START), Err(refused), "by number");
}

#[test]
fn what_a_correct_end_never_sends_ends_the_connection() {
    let head = |kind, number| Head { kind, number, origin: local(1).origin };
    let (_, mut right) = open();
    let failure = forge(&mut right, head(Kind::Answer, 1), &payload(1));
    assert_eq!(failure, Failure::Number { kind: Kind::Answer, number: 1 });
    assert_eq!(right.failure(), Some(&failure));
    assert_eq!(right.send_shards(&payload(1), START), Err(SendError::NotOpen));

    let (mut left, mut right) = open();
    left.send_request(&payload(1), START).unwrap();
    pass(&mut left, &mut right, START);
    let failure = forge(&mut right, head(Kind::Request, 1), &payload(1));
    assert_eq!(failure, Failure::Number { kind: Kind::Request, number: 1 });

    let (mut left, mut right) = open();
    for _ in 0..3 {
        left.send_request(&payload(1), START).unwrap();
    }
    pass(&mut left, &mut right, START);
    let failure = forge(&mut right, head(Kind::Request, 4), &payload(1));
    assert_eq!(failure, Failure::TooManyRequests { requests: 4, bytes: 4 });

    let (_, mut right) = open();
    let failure = forge(&mut right, head(Kind::Hello, 0), &payload(1));
    assert_eq!(failure, Failure::Order { kind: Kind::Hello });

    for origin in [
        Origin { incarnation: Incarnation(2), life: Life(1) },
        Origin { incarnation: Incarnation(1), life: Life(2) },
    ] {
        let (_, mut right) = open();
        let failure = forge(&mut right, Head { origin, ..head(Kind::Shards, 0) }, &payload(1));
        assert_eq!(failure, Failure::Origin { kind: Kind::Shards, found: origin, agreed: local(1).origin });
    }
}

#[test]
fn an_end_within_a_frame_is_reported_as_such() {
    let (mut left, mut right) = open();
    left.send_request(&payload(10), START).unwrap();
    right.receive(&take(&mut left, 30, START), START);
    assert_eq!(events(&mut right, START), vec![]);
    assert_eq!(right.handle_end(), Failure::Closed { torn: true });
    let (_, mut right) = open();
    assert_eq!(right.handle_end(), Failure::Closed { torn: false });
}

#[test]
fn keep_alives_keep_an_idle_connection_for_ever() {
    let (mut left, mut right) = open();
    let (mut now, mut turns) = (START, 0);
    while now < START.plus(Micros::from_secs(100)) {
        let until = left.tick(now, false).unwrap().min(right.tick(now, false).unwrap());
        assert_eq!(pass(&mut left, &mut right, now), vec![]);
        assert_eq!(pass(&mut right, &mut left, now), vec![]);
        now = until.max(now.plus_millis(1));
        turns += 1;
    }
    assert!(turns < 1000, "{turns} turns: an idle connection needs few");
}

#[test]
fn silence_and_a_stalled_reader_end_a_connection() {
    let after = Settings::default().silence_max;
    let (mut left, _) = open();
    let mut now = START;
    let failure = loop {
        take(&mut left, usize::MAX, now);
        match left.tick(now, false) {
            Ok(until) => now = until.max(now.plus_millis(1)),
            Err(failure) => break failure,
        }
    };
    assert_eq!((failure, now), (Failure::Silent { after }, START.plus(after)));

    // The other end sends, but takes nothing.
    let (mut left, mut right) = open();
    left.send_shards(&payload(10), START).unwrap();
    let mut now = START;
    let failure = loop {
        drop(right.tick(now, false));
        pass(&mut right, &mut left, now);
        match left.tick(now, false) {
            Ok(_) => now = now.plus_millis(500),
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure, Failure::Stalled { bytes: 10 + HEADER_LEN, after });
    assert_eq!(now, START.plus(after));
}

#[test]
fn a_hello_that_does_not_come_ends_a_connection() {
    let after = Settings::default().handshake_time_max;
    let mut right = Connection::accept(local(2), 1, settings(), START);
    let until = right.tick(START, false).unwrap();
    assert_eq!(until, START.plus(after));
    // Some bytes of it change nothing.
    right.receive(b"SNF1", START.plus_millis(4900));
    assert_eq!(right.tick(until, false), Err(Failure::NoHello { after }));
}
