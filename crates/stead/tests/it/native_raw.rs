//! Clients of the native protocol that are not the library: what they send wrongly has no effect on others.

use crate::patience::{PATIENCE, await_until};
use crate::services::{Account, Ask, Look, Way, builder, key};
use std::collections::VecDeque;
use std::time::Instant;
use stead::kv::{self, Kv};
use stead::{Node, Place, ServiceOptions};
use stead_core::blob::Blob;
use stead_core::ids::{Colour, Incarnation, Life, ShardId, Time};
use stead_core::key::Key;
use stead_net::connection::{Event, Settings};
use stead_net::endpoint::{Bounds, Endpoint, Happened};
use stead_net::frame::Origin;
use stead_net::handshake::{CLOCK_DIFFERENCE_MAX, Limits, Local, Role, VERSIONS};
use stead_net::native::{Answer, Ask as Request, Identified, with_time};
use stead_net::network::{ConnectionId, Tcp};
use stead_net::payload::Payload;

/// A connection to a node.
struct Raw {
    endpoint: Endpoint<Tcp>,
    connection: ConnectionId,
    begun: Instant,
    answers: VecDeque<Answer>,
    is_closed: bool,
}

impl Raw {
    fn connect(node: &Node, role: Role) -> Self {
        let is_client = role == Role::Client;
        let local = Local {
            versions: VERSIONS,
            cluster: None,
            role,
            origin: Origin { incarnation: Incarnation(0), life: Life(0) },
            limits: Limits::default(),
            client_limits: Limits::of_clients(),
            clock_difference_max: CLOCK_DIFFERENCE_MAX,
        };
        let tcp = Tcp::dialing().unwrap();
        let mut endpoint = Endpoint::new(tcp, local, Settings::default(), Bounds::default());
        let address = node.native_address().unwrap();
        let connection = endpoint.dial(address, None, Time(0), Time(0)).unwrap();
        let (answers, begun) = (VecDeque::new(), Instant::now());
        let mut raw = Self { endpoint, connection, begun, answers, is_closed: false };
        if is_client {
            raw.turn_until(|raw| {
                raw.endpoint.connection(connection).is_some_and(|open| open.agreed().is_some())
            });
        }
        raw
    }

    fn turn_until(&mut self, mut holds: impl FnMut(&mut Self) -> bool) {
        while !holds(self) {
            assert!(self.begun.elapsed() < PATIENCE, "waited in vain");
            let now = Time(u64::try_from(self.begun.elapsed().as_micros()).unwrap());
            self.endpoint.turn(now, Time(0)).unwrap();
            while let Some(happened) = self.endpoint.next_happened() {
                match happened {
                    Happened::Event(_, Event::Answer(_, bytes)) => {
                        self.answers.push_back(Answer::decode(&bytes).unwrap());
                    }
                    Happened::Ended { .. } => self.is_closed = true,
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, payload: &Payload) {
        self.endpoint.send_request(self.connection, payload, Time(0)).unwrap();
        self.endpoint.flush(Time(0));
    }

    fn ask(&mut self, request: &Request<'_>) -> Answer {
        self.send(&with_time(PATIENCE, &request.encode()));
        self.next()
    }

    fn next(&mut self) -> Answer {
        self.turn_until(|raw| !raw.answers.is_empty());
        self.answers.pop_front().unwrap()
    }
}

fn deposit(shard: ShardId) -> Request<'static> {
    Request::Request {
        shard,
        process: Key::new("a").unwrap(),
        payload: Blob::from(stead::client::payload(&Ask::Deposit(1)).unwrap()),
        principal: "raw",
        identity: Identified::None,
        colour: Colour(0),
        seen: None,
        is_first: None,
    }
}

#[test]
fn a_node_decides_itself_which_shard_has_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    let mut raw = Raw::connect(&node, Role::Client);
    let Answer::Topology { topology, .. } = raw.ask(&Request::Topology { without_services: None }) else {
        panic!("it has the shards")
    };
    assert_eq!(&topology, node.topology());
    let own = topology.shard_of(topology.service_id("account").unwrap(), "a");
    for shard in topology.shards() {
        let answer = raw.ask(&deposit(shard));
        match &answer {
            Answer::Of(answer) if shard == own => assert!(answer.result.is_ok(), "{answer:?}"),
            Answer::Invalid(reason) if shard != own => assert!(reason.contains("does not have"), "{reason}"),
            _ => panic!("{answer:?}"),
        }
    }
    assert!(matches!(raw.ask(&deposit(ShardId(99))), Answer::Invalid(_)));
    // No checkpoint of this colour has begun, and no process has this key.
    let mut of_future = deposit(own);
    let Request::Request { colour, .. } = &mut of_future else { panic!("it is a request") };
    *colour = Colour(u64::MAX);
    assert!(matches!(raw.ask(&of_future), Answer::Invalid(_)));
    let empty = topology.shard_of(topology.service_id("account").unwrap(), "");
    let mut of_nothing = deposit(empty);
    let Request::Request { process, .. } = &mut of_nothing else { panic!("it is a request") };
    *process = Key::none();
    assert!(matches!(raw.ask(&of_nothing), Answer::Invalid(_)));
    assert!(node.checkpoint_blocking().is_ok(), "checkpoints go on");
    let letter = Request::DeadLetter { shard: ShardId(99), letter: stead::Index(1), retry: true };
    assert_eq!(raw.ask(&letter), Answer::NotHere { shard: ShardId(99), place: Place::Unplaced });
    for malformed in [&b""[..], &b"abc"[..], &[0, 0, 0, 0, 0xff], &[0xff; 300]] {
        raw.send(&Payload::from(malformed));
        let answer = raw.next();
        assert!(
            matches!(&answer, Answer::Invalid(reason) if reason.contains("cannot be read")),
            "{answer:?}"
        );
    }
    assert_eq!(Way::Away.client(&node).query::<Account>(&key("a"), Look::Balance).unwrap(), 1);
}

#[test]
fn answers_that_a_client_does_not_read_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::builder(dir.path())
        .service::<Kv>(ServiceOptions::default().shards(1))
        .listen_native(([127, 0, 0, 1], 0).into())
        .open()
        .unwrap();
    let value = serde_json::Value::String("x".repeat(1 << 20));
    node.blocking_client().call::<Kv>(&key("k"), kv::Request::Put { value }).unwrap();
    let answered = || node.service_metrics()[0].answers;
    let before = answered();
    let mut raw = Raw::connect(&node, Role::Client);
    let query = Request::Query {
        shard: ShardId(0),
        process: Key::new("k").unwrap(),
        payload: Blob::from(stead::client::payload(&kv::Query::Get).unwrap()),
        principal: "raw",
        read: None,
        seen: None,
    };
    for _ in 0..60 {
        raw.send(&with_time(PATIENCE, &query.encode()));
    }
    await_until("almost all answers", || answered() >= before + 59);
    let answers: Vec<Answer> = (0..60).map(|_| raw.next()).collect();
    let dropped = answers.iter().filter(|answer| **answer == Answer::NoRoom).count();
    // Some are in the buffers of the system.
    assert!((1..=44).contains(&dropped), "{dropped} of 60");
    assert!(matches!(raw.ask(&query), Answer::Of(_)), "there is room again");
}

#[test]
fn a_connection_of_another_node_is_closed_as_long_as_nodes_run_alone() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    let role = Role::Peer { node: stead_core::ids::NodeId(2), directory: 5, process: 6 };
    let mut raw = Raw::connect(&node, role);
    raw.turn_until(|raw| raw.is_closed);
    assert!(node.is_ready());
}

#[test]
fn a_shutdown_answers_each_call_that_was_sent_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut applied = 0;
    for round in 0..8 {
        let node = builder(dir.path()).open().unwrap();
        let own = node.topology().shard_of(node.topology().service_id("account").unwrap(), "a");
        let mut raw = Raw::connect(&node, Role::Client);
        for _ in 0..100 {
            raw.send(&with_time(PATIENCE, &deposit(own).encode()));
        }
        node.shutdown();
        raw.turn_until(|raw| raw.is_closed);
        assert_eq!(raw.answers.len(), 100, "round {round}");
        applied += raw.answers.iter().filter(|answer| matches!(answer, Answer::Of(_))).count() as i64;
    }
    let node = builder(dir.path()).open().unwrap();
    assert_eq!(node.blocking_client().query::<Account>(&key("a"), Look::Balance).unwrap(), applied);
}
