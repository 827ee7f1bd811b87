//! Endpoints over loopback TCP.

#![expect(
    clippy::disallowed_methods,
    reason = "sockets of the system need its time, and a wait another thread"
)]

use crate::connections::local;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use stead_core::ids::{ClusterId, Life, NodeId, Time};
use stead_net::connection::{Event, Failure, SendError, Settings};
use stead_net::endpoint::{Bounds, Ended, Endpoint, Happened};
use stead_net::frame::{Foreign, FrameError};
use stead_net::handshake::{HandshakeError, Limits, Local, RefusalKind, Role};
use stead_net::network::{AddressError, ConnectionId, Network, Tcp};
use stead_net::payload::Payload;

struct Node {
    endpoint: Endpoint<Tcp>,
    address: SocketAddr,
    begun: Instant,
}

const WALL: Time = Time(1_000_000_000);

impl Node {
    fn new(local: Local) -> Self {
        let tcp = Tcp::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = tcp.address().unwrap();
        let settings = Settings { send_bytes_max: 1 << 20, ..Settings::default() };
        Self {
            endpoint: Endpoint::new(tcp, local, settings, Bounds::default()),
            address,
            begun: Instant::now(),
        }
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.begun.elapsed().as_micros()).unwrap())
    }

    fn dial(&mut self, other: &Self) -> ConnectionId {
        let now = self.now();
        self.endpoint.dial(other.address, None, now, WALL).unwrap()
    }

    /// Gives a turn, and returns what happened in it.
    fn turn(&mut self) -> Vec<Happened> {
        let now = self.now();
        self.endpoint.turn(now, WALL).unwrap();
        std::iter::from_fn(|| self.endpoint.next_happened()).collect()
    }
}

fn large(node: u32) -> Local {
    Local { limits: Limits::default(), ..local(node) }
}

/// Repeats until there is a result, for at most a minute.
fn until<T>(mut step: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(result) = step() {
            return result;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not come");
    }
}

fn ended(happened: Vec<Happened>) -> Option<Ended> {
    happened.into_iter().find_map(|happened| match happened {
        Happened::Ended { ended, .. } => Some(ended),
        Happened::Event(..) | Happened::AcceptFailed(_) => None,
    })
}

/// Connects two nodes, and returns the connection at each.
fn connect(left: &mut Node, right: &mut Node, nodes: (u32, u32)) -> (ConnectionId, ConnectionId) {
    left.dial(right);
    until(|| {
        drop((left.turn(), right.turn()));
        Some((left.endpoint.peer(NodeId(nodes.1))?, right.endpoint.peer(NodeId(nodes.0))?))
    })
}

#[test]
fn connections_of_a_client_to_one_node_are_several() {
    let (mut client, mut node) = (Node::new(Local::stranger()), Node::new(large(1)));
    let dialed = [client.dial(&node), client.dial(&node)];
    let mut opened = Vec::new();
    until(|| {
        node.turn();
        for happened in client.turn() {
            match happened {
                Happened::Event(connection, Event::Opened(_)) => opened.push(connection),
                happened => panic!("{happened:?}"),
            }
        }
        (opened.len() == dialed.len()).then_some(())
    });
    assert!(dialed.iter().all(|connection| client.endpoint.connection(*connection).is_some()));
}

#[test]
fn many_requests_are_in_flight_on_one_connection() {
    let (mut left, mut right) = (Node::new(large(1)), Node::new(large(2)));
    let (connection, _) = connect(&mut left, &mut right, (1, 2));
    let request = Payload::from(&[3; 2000][..]);
    let (mut sent, mut answered) = (0, 0);
    until(|| {
        let now = left.now();
        while sent < 1000 && left.endpoint.send_request(connection, &request, now).is_ok() {
            sent += 1;
        }
        for happened in right.turn() {
            let Happened::Event(from, Event::Request(request, bytes)) = happened else {
                panic!("{happened:?}")
            };
            assert_eq!(bytes.len(), 2000);
            right.endpoint.send_answer(from, request, &Payload::from(&b"done"[..]), Time(0)).unwrap();
        }
        for happened in left.turn() {
            let Happened::Event(_, Event::Answer(_, bytes)) = happened else { panic!("{happened:?}") };
            assert_eq!(&bytes[..], b"done");
            answered += 1;
        }
        (answered == 1000).then_some(())
    });
}

#[test]
fn long_frames_arrive_while_the_sender_is_held_back() {
    let (mut left, mut right) = (Node::new(large(1)), Node::new(large(2)));
    let (connection, _) = connect(&mut left, &mut right, (1, 2));
    let frame = Payload::from(&vec![9; 700_000][..]);
    let (mut sent, mut held_back, mut received) = (0, 0, 0);
    until(|| {
        let now = left.now();
        match left.endpoint.send_shards(connection, &frame, now) {
            Ok(()) => sent += 1,
            Err(SendError::WouldBlock { waiting, max }) => {
                held_back += 1;
                assert!(waiting <= max);
            }
            Err(error) => panic!("{error}"),
        }
        drop(left.turn());
        // The receiver reads now and then.
        if held_back % 3 == 1 {
            for happened in right.turn() {
                let Happened::Event(_, Event::Shards(bytes)) = happened else { panic!("{happened:?}") };
                assert!(bytes.len() == 700_000 && bytes.iter().all(|byte| *byte == 9));
                received += 1;
            }
        }
        (received >= 20).then_some(())
    });
    assert!(held_back > 0 && sent >= received);
}

#[test]
fn a_refusal_reaches_both_ends() {
    let mut left = Node::new(large(1));
    let mut right = Node::new(Local { cluster: Some(ClusterId(9)), ..large(2) });
    left.dial(&right);
    let (mut here, mut there) = (None, None);
    until(|| {
        here = here.take().or(ended(left.turn()));
        there = there.take().or(ended(right.turn()));
        (here.is_some() && there.is_some()).then_some(())
    });
    let Some(Ended::Failed(Failure::Handshake(HandshakeError::RefusedByOther { kind, text }))) = here else {
        panic!("{here:?}")
    };
    assert_eq!(kind, RefusalKind::Cluster);
    let there = there.unwrap().to_string();
    assert_eq!(there, format!("refused a connection: {text}"));
    assert_eq!((left.endpoint.connections(), right.endpoint.connections()), (0, 0));
}

#[test]
fn a_later_life_replaces_the_connection_of_the_earlier_one() {
    let (mut old, mut right) = (Node::new(large(1)), Node::new(large(2)));
    let (_, older) = connect(&mut old, &mut right, (1, 2));
    let mut origin = large(1).origin;
    origin.life = Life(origin.life.0 + 1);
    let role = Role::Peer { node: NodeId(1), directory: 1, process: 9 };
    let mut new = Node::new(Local { origin, role, ..large(1) });
    new.dial(&right);
    let ended = until(|| {
        drop(new.turn());
        ended(right.turn())
    });
    assert!(matches!(ended, Ended::Replaced(NodeId(1))), "{ended}");
    assert_ne!(right.endpoint.peer(NodeId(1)), Some(older));
    assert_eq!(right.endpoint.connections(), 1);
}

#[test]
fn both_ends_keep_one_connection_when_both_dial() {
    let (mut left, mut right) = (Node::new(large(1)), Node::new(large(2)));
    left.dial(&right);
    right.dial(&left);
    until(|| {
        drop((left.turn(), right.turn()));
        let one = left.endpoint.connections() == 1 && right.endpoint.connections() == 1;
        (one && left.endpoint.peer(NodeId(2)).is_some() && right.endpoint.peer(NodeId(1)).is_some())
            .then_some(())
    });
    // It is the same one: what is sent arrives.
    let (connection, now) = (left.endpoint.peer(NodeId(2)).unwrap(), left.now());
    left.endpoint.send_shards(connection, &Payload::from(&b"x"[..]), now).unwrap();
    until(|| {
        drop(left.turn());
        right.turn().into_iter().find(|happened| matches!(happened, Happened::Event(_, Event::Shards(_))))
    });
}

#[test]
fn the_end_of_the_other_end_is_reported_at_once() {
    let (mut left, mut right) = (Node::new(large(1)), Node::new(large(2)));
    connect(&mut left, &mut right, (1, 2));
    drop(right);
    let happened = until(|| {
        let happened = left.turn();
        (!happened.is_empty()).then_some(happened)
    });
    let [Happened::Ended { role: Some(Role::Peer { node: NodeId(2), .. }), .. }] = happened[..] else {
        panic!("{happened:?}")
    };
    assert_eq!(left.endpoint.peer(NodeId(2)), None);
}

#[test]
fn http_at_the_port_is_closed_and_named() {
    let mut node = Node::new(large(1));
    let mut http = TcpStream::connect(node.address).unwrap();
    http.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let ended = until(|| ended(node.turn()));
    let found = Foreign::Http;
    assert!(
        matches!(&ended, Ended::Failed(Failure::Frame(error)) if *error == FrameError::NoFrame { found })
    );
    let mut answer = Vec::new();
    // The end, or a reset: nothing is answered.
    drop(http.read_to_end(&mut answer));
    assert_eq!(answer, b"");
}

#[test]
fn a_port_where_nobody_listens_is_reported() {
    let mut node = Node::new(large(1));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    node.endpoint.dial(free, None, Time(0), WALL).unwrap();
    let ended = until(|| ended(node.turn()));
    assert!(matches!(&ended, Ended::System(error) if error.kind() == std::io::ErrorKind::ConnectionRefused));
}

#[test]
fn addresses_of_other_machines_are_refused() {
    for address in ["0.0.0.0:0", "192.0.2.1:80", "[::]:0", "[2001:db8::1]:80"] {
        let address = address.parse().unwrap();
        let error = Tcp::listen(address).unwrap_err();
        assert!(matches!(error, AddressError::NotLoopback { .. }), "{error}");
        let error = Node::new(large(1)).endpoint.dial(address, None, Time(0), WALL).unwrap_err();
        assert!(error.to_string().contains("not encrypted yet; use 127.0.0.1"), "{error}");
    }
    let taken = Node::new(large(1));
    let error = Tcp::listen(taken.address).unwrap_err();
    assert!(matches!(error, AddressError::System { .. }), "{error}");
}

#[test]
fn a_wake_ends_a_wait() {
    let mut tcp = Tcp::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let wake = tcp.wake();
    let waiting = std::thread::spawn(move || tcp.wait(None));
    wake.wake().unwrap();
    waiting.join().unwrap().unwrap();
}

/// A thread with two networks waits once for the sockets of both.
#[test]
fn a_wait_is_for_the_sockets_of_the_network_beside_it_as_well() {
    let mut tcp = Tcp::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut beside = tcp.beside(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let address = beside.address().unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let mut ready = Vec::new();
    let mut next = |tcp: &mut Tcp, beside: &mut Tcp| {
        tcp.wait(None).unwrap();
        tcp.ready(&mut ready).unwrap();
        assert!(ready.is_empty(), "none of its own: {ready:?}");
        beside.ready(&mut ready).unwrap();
        std::mem::take(&mut ready)
    };
    assert_eq!(next(&mut tcp, &mut beside)[0].connection, None, "one knocks");
    let (_socket, _) = beside.accept(ConnectionId(7)).unwrap();
    client.write_all(b"one").unwrap();
    until(|| {
        let found = next(&mut tcp, &mut beside);
        found.iter().any(|ready| ready.connection == Some(ConnectionId(7)) && ready.readable).then_some(())
    });
    assert_eq!(tcp.address().unwrap().ip(), address.ip());
}
