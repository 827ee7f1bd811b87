//! An endpoint over a network whose every read and write the test decides.

use crate::connections::local;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use stead_core::ids::{ClusterId, Life, Micros, NodeId, Time};
use stead_net::connection::{Connection, Event, Failure, SendError, Settings};
use stead_net::endpoint::{Bounds, Ended, Endpoint, Happened};
use stead_net::frame::Origin;
use stead_net::handshake::{HandshakeError, Limits, Local, Refusal, RefusalKind, Role};
use stead_net::network::{ConnectionId, Network, Ready};
use stead_net::payload::Payload;

const START: Time = Time(5_000_000);
const WALL: Time = Time(1_000_000_000);

/// A socket's two directions.
#[derive(Default)]
struct Pipe {
    arrived: VecDeque<u8>,
    /// Whether the other end has closed it.
    is_closed: bool,
    written: Vec<u8>,
    /// The number of reads.
    reads: usize,
    /// Whether writes return `WouldBlock`.
    is_full: bool,
    write_error: Option<ErrorKind>,
}

#[derive(Default)]
struct Wires {
    pipes: BTreeMap<ConnectionId, Pipe>,
    ready: Vec<Ready>,
    /// Connections to accept.
    knocks: usize,
}

#[derive(Clone, Default)]
struct Script(Rc<RefCell<Wires>>);

struct Socket {
    script: Script,
    id: ConnectionId,
}

impl Script {
    fn with<T>(&self, id: ConnectionId, change: impl FnOnce(&mut Pipe) -> T) -> T {
        let mut wires = self.0.borrow_mut();
        let pipe = wires.pipes.get_mut(&id).unwrap();
        let changed = change(pipe);
        let ends = pipe.is_closed || pipe.write_error.is_some();
        wires.ready.push(Ready { connection: Some(id), readable: true, writable: true, ends });
        changed
    }

    fn knock(&self) {
        let mut wires = self.0.borrow_mut();
        wires.knocks += 1;
        wires.ready.push(Ready { connection: None, readable: true, writable: false, ends: false });
    }

    fn open(&self, id: ConnectionId) -> Socket {
        self.0.borrow_mut().pipes.insert(id, Pipe::default());
        Socket { script: self.clone(), id }
    }
}

impl Network for Script {
    type Socket = Socket;

    fn dial(&mut self, _: SocketAddr, connection: ConnectionId) -> io::Result<Socket> {
        let socket = self.open(connection);
        self.with(connection, |_| ());
        Ok(socket)
    }

    fn accept(&mut self, connection: ConnectionId) -> io::Result<(Socket, SocketAddr)> {
        let knocks = self.0.borrow().knocks;
        self.0.borrow_mut().knocks = knocks.checked_sub(1).ok_or(ErrorKind::WouldBlock)?;
        Ok((self.open(connection), address()))
    }

    fn ready(&mut self, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.append(&mut self.0.borrow_mut().ready);
        Ok(())
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut wires = self.script.0.borrow_mut();
        let pipe = wires.pipes.get_mut(&self.id).unwrap();
        pipe.reads += 1;
        if pipe.arrived.is_empty() && !pipe.is_closed {
            return Err(ErrorKind::WouldBlock.into());
        }
        pipe.arrived.read(bytes)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut wires = self.script.0.borrow_mut();
        let pipe = wires.pipes.get_mut(&self.id).unwrap();
        if let Some(error) = pipe.write_error {
            return Err(error.into());
        }
        if pipe.is_full {
            return Err(ErrorKind::WouldBlock.into());
        }
        pipe.written.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn address() -> SocketAddr {
    "127.0.0.1:1".parse().unwrap()
}

struct Node {
    endpoint: Endpoint<Script>,
    script: Script,
}

impl Node {
    fn new(local: Local) -> Self {
        Self::with(local, Bounds::default())
    }

    fn with(local: Local, bounds: Bounds) -> Self {
        let script = Script::default();
        Self { endpoint: Endpoint::new(script.clone(), local, Settings::default(), bounds), script }
    }

    /// Gives a turn, and returns what happened in it.
    fn turn(&mut self, now: Time) -> Vec<Happened> {
        self.endpoint.turn(now, WALL).unwrap();
        std::iter::from_fn(|| self.endpoint.next_happened()).collect()
    }

    fn dial(&mut self, now: Time) -> ConnectionId {
        self.endpoint.dial(address(), None, now, WALL).unwrap()
    }

    /// Accepts a connection.
    fn accept(&mut self, now: Time) -> ConnectionId {
        self.script.knock();
        let before: Vec<_> = self.script.0.borrow().pipes.keys().copied().collect();
        assert!(self.turn(now).is_empty());
        let wires = self.script.0.borrow();
        *wires.pipes.keys().find(|id| !before.contains(id)).unwrap()
    }

    /// Gives what waits at the other end to this one.
    fn receive(&self, id: ConnectionId, other: &mut Connection, now: Time) {
        self.script.with(id, |pipe| pipe.arrived.extend(drain(other, now)));
    }

    /// Gives what this end wrote to the other one, and returns its events.
    fn pass(&self, id: ConnectionId, other: &mut Connection, now: Time) -> Vec<Event> {
        other.receive(&self.script.with(id, |pipe| std::mem::take(&mut pipe.written)), now);
        std::iter::from_fn(|| other.next_event(now, WALL, |_| None).unwrap()).collect()
    }

    /// Opens a connection that the other end dials.
    fn open(&mut self, other: &mut Connection, now: Time) -> ConnectionId {
        let id = self.accept(now);
        self.receive(id, other, now);
        assert!(matches!(self.turn(now)[..], [Happened::Event(_, Event::Opened(_))]));
        assert!(matches!(self.pass(id, other, now)[..], [Event::Opened(_)]));
        id
    }
}

/// Takes the bytes that wait.
fn drain(connection: &mut Connection, now: Time) -> Vec<u8> {
    let mut bytes = Vec::new();
    while connection.waiting() > 0 {
        let mut slices = [IoSlice::new(&[]); 4];
        let filled = connection.slices(&mut slices);
        let first = slices[..filled][0].to_vec();
        connection.advance(first.len(), now);
        bytes.extend_from_slice(&first);
    }
    bytes
}

fn dialer(local: Local) -> Connection {
    Connection::dial(local, 1, None, Settings::default(), START, WALL)
}

#[test]
fn what_arrived_and_was_not_read_is_no_silence() {
    let (mut node, mut other) = (Node::new(local(2)), dialer(local(1)));
    let id = node.open(&mut other, START);
    other.send_shards(&Payload::from(&b"one"[..]), START).unwrap();
    node.receive(id, &mut other, START);
    node.endpoint.turn(START, WALL).unwrap();
    // The first event is not taken, so that the next turn does not read.
    let later = START.plus(Settings::default().silence_max);
    other.send_shards(&Payload::from(&b"two"[..]), later).unwrap();
    node.receive(id, &mut other, later);
    for _ in 0..2 {
        let happened = node.turn(later);
        assert!(matches!(happened[..], [Happened::Event(_, Event::Shards(_))]), "{happened:?}");
    }
    // A hello that was not read has come in time.
    let (mut node, mut other) = (Node::new(local(2)), dialer(local(1)));
    let (first, mut third) = (node.accept(START), dialer(local(3)));
    let second = node.accept(START);
    node.receive(first, &mut other, START);
    node.endpoint.turn(START, WALL).unwrap();
    let later = START.plus(Settings::default().handshake_time_max);
    node.receive(second, &mut third, START);
    for _ in 0..2 {
        let happened = node.turn(later);
        assert!(matches!(happened[..], [Happened::Event(_, Event::Opened(_))]), "{happened:?}");
    }
}

#[test]
fn a_read_that_was_not_filled_is_the_last_one_unless_the_end_has_come() {
    let (mut node, mut other) = (Node::new(local(2)), dialer(local(1)));
    let id = node.open(&mut other, START);
    for (is_closed, reads, events) in [(false, 1, 1), (true, 2, 2)] {
        other.send_shards(&Payload::from(&b"one"[..]), START).unwrap();
        let before = node.script.with(id, |pipe| {
            pipe.arrived.extend(drain(&mut other, START));
            pipe.is_closed = is_closed;
            pipe.reads
        });
        assert_eq!(node.turn(START).len(), events);
        assert_eq!(node.script.with(id, |pipe| pipe.reads) - before, reads);
    }
}

#[test]
fn a_new_connection_has_its_keep_alives_in_time() {
    let keep_alive = Settings::default().keep_alive;
    let (mut node, mut other) = (Node::new(local(2)), dialer(local(1)));
    let now = START.plus(Micros::from_millis(10));
    let id = node.accept(START);
    node.receive(id, &mut other, now);
    assert_eq!(node.turn(now).len(), 1);
    assert_eq!(node.endpoint.turn(now, WALL).unwrap(), now.plus(keep_alive));
}

#[test]
fn keep_alives_follow_after_a_queue_that_was_full() {
    let keep_alive = Settings::default().keep_alive;
    let (mut node, mut other) = (Node::new(local(2)), dialer(local(1)));
    let id = node.open(&mut other, START);
    node.endpoint.turn(START, WALL).unwrap();
    node.script.with(id, |pipe| pipe.is_full = true);
    node.endpoint.send_shards(id, &Payload::from(&b"one"[..]), START).unwrap();
    let now = START.plus(keep_alive);
    node.endpoint.turn(now, WALL).unwrap();
    node.script.with(id, |pipe| pipe.is_full = false);
    let until = node.endpoint.turn(now, WALL).unwrap();
    assert_eq!(node.pass(id, &mut other, now).len(), 1);
    assert_eq!(until, now.plus(keep_alive));
    node.endpoint.turn(until, WALL).unwrap();
    assert_ne!(node.script.with(id, |pipe| pipe.written.len()), 0, "a keep-alive");
}

#[test]
fn a_refusal_is_read_although_a_write_fails() {
    let mut node = Node::new(local(1));
    let id = node.dial(START);
    // The other end has read enough of the hello to refuse it.
    let mut other =
        Connection::accept(Local { cluster: Some(ClusterId(9)), ..local(2) }, 1, Settings::default(), START);
    other.receive(&drain(&mut dialer(local(1)), START), START);
    assert!(other.next_event(START, WALL, |_| None).is_err());
    node.script.with(id, |pipe| {
        pipe.arrived.extend(drain(&mut other, START));
        pipe.is_closed = true;
        pipe.write_error = Some(ErrorKind::BrokenPipe);
    });
    let mut happened = node.turn(START);
    happened.append(&mut node.turn(START));
    let [
        Happened::Ended {
            ended: Ended::Failed(Failure::Handshake(HandshakeError::RefusedByOther { kind, .. })),
            ..
        },
    ] = &happened[..]
    else {
        panic!("{happened:?}")
    };
    assert_eq!(*kind, RefusalKind::Cluster);
}

#[test]
fn an_answer_is_read_although_a_write_fails() {
    let (mut node, mut other) = (Node::new(local(2)), dialer(local(1)));
    let id = node.open(&mut other, START);
    node.endpoint.send_request(id, &Payload::from(&b"one"[..]), START).unwrap();
    node.turn(START);
    let [Event::Request(request, _)] = node.pass(id, &mut other, START)[..] else { panic!("a request") };
    other.send_answer(request, &Payload::from(&b"done"[..]), START).unwrap();
    node.receive(id, &mut other, START);
    node.script.with(id, |pipe| pipe.write_error = Some(ErrorKind::ConnectionReset));
    node.endpoint.send_request(id, &Payload::from(&b"two"[..]), START).unwrap();
    let mut happened = node.turn(START);
    happened.append(&mut node.turn(START));
    let [Happened::Event(_, Event::Answer(answered, _)), Happened::Ended { ended: Ended::System(error), .. }] =
        &happened[..]
    else {
        panic!("{happened:?}")
    };
    assert_eq!((*answered, error.kind()), (request, ErrorKind::ConnectionReset));
    assert_eq!(node.endpoint.peer(NodeId(1)), None);
}

#[test]
fn processes_with_one_data_directory_do_not_replace_each_other() {
    let mut node = Node::new(local(2));
    let open = node.open(&mut dialer(local(1)), START);
    let role = Role::Peer { node: NodeId(1), directory: 1, process: 9 };
    let mut origin = local(1).origin;
    let (same, older) = (RefusalKind::Identity, RefusalKind::OlderLife);
    for (life, is_connected, kind) in
        [(origin.life, true, same), (origin.life, false, same), (Life(0), false, older)]
    {
        if !is_connected {
            node.endpoint.close(open);
        }
        origin.life = life;
        let id = node.accept(START);
        node.receive(id, &mut dialer(Local { role, origin, ..local(1) }), START);
        let happened = node.turn(START);
        let [
            Happened::Ended {
                ended: Ended::Failed(Failure::Handshake(HandshakeError::Refused(refusal))),
                ..
            },
        ] = &happened[..]
        else {
            panic!("{happened:?}")
        };
        assert_eq!(refusal.kind(), kind);
        assert_eq!(node.endpoint.peer(NodeId(1)), is_connected.then_some(open));
    }
}

#[test]
fn a_node_that_lost_a_connection_dials_again_at_once() {
    for (own, other) in [(1, 2), (2, 1)] {
        let mut node = Node::new(local(own));
        let mut ids = Vec::new();
        // The other end has lost each earlier connection, and this one does not know.
        for number in 1..=6 {
            let id = if number % 2 == 1 { node.dial(START) } else { node.accept(START) };
            let mut connection = if number % 2 == 1 {
                Connection::accept(local(other), number, Settings::default(), START)
            } else {
                Connection::dial(local(other), number, None, Settings::default(), START, WALL)
            };
            node.turn(START);
            if number % 2 == 1 {
                assert!(matches!(node.pass(id, &mut connection, START)[..], [Event::Opened(_)]));
            }
            node.receive(id, &mut connection, START);
            let happened = node.turn(START);
            assert!(
                matches!(happened[..], [.., Happened::Event(_, Event::Opened(_))]),
                "connection {number} of node {other}: {happened:?}"
            );
            assert_eq!(node.endpoint.peer(NodeId(other)), Some(id));
            assert_eq!(node.endpoint.connections(), 1);
            ids.push(id);
        }
        assert!(ids.is_sorted());
    }
}

fn client() -> Connection {
    let origin = Origin { incarnation: local(1).origin.incarnation, life: Life(0) };
    dialer(Local { role: Role::Client, origin, limits: Limits::of_clients(), ..local(1) })
}

fn ended(happened: &[Happened]) -> Option<&Failure> {
    happened.iter().find_map(|happened| match happened {
        Happened::Ended { ended: Ended::Failed(failure), .. } => Some(failure),
        _ => None,
    })
}

#[test]
fn clients_and_strangers_leave_room_for_nodes() {
    let bounds = Bounds { connections_max: 6, handshakes_max: 2, clients_max: 3, ..Bounds::default() };
    let mut node = Node::with(local(2), bounds);
    for _ in 0..3 {
        node.open(&mut client(), START);
    }
    // A further client is refused, and learns why.
    let (id, mut fourth) = (node.accept(START), client());
    node.receive(id, &mut fourth, START);
    let happened = node.turn(START);
    let refused = Refusal::Full { clients: 3 };
    assert_eq!(ended(&happened), Some(&Failure::Handshake(HandshakeError::Refused(refused))));
    assert_eq!(happened.len(), 1, "it was never open");
    fourth.receive(&node.script.with(id, |pipe| std::mem::take(&mut pipe.written)), START);
    assert!(matches!(fourth.next_event(START, WALL, |_| None), Ok(Some(Event::Opened(_)))));
    let failure = fourth.next_event(START, WALL, |_| None).unwrap_err();
    assert!(matches!(
        failure,
        Failure::Handshake(HandshakeError::RefusedByOther { kind: RefusalKind::Full, .. })
    ));
    // So many connections that say nothing do not take the places of nodes.
    for _ in 0..5 {
        node.script.knock();
    }
    node.turn(START);
    assert_eq!(node.endpoint.connections(), 5);
    let later = START.plus(Settings::default().handshake_time_max);
    let happened = node.turn(later);
    assert_eq!(happened.len(), 2, "{happened:?}");
    node.script.0.borrow_mut().knocks = 0;
    node.turn(later);
    let mut peer = Connection::dial(local(1), 1, None, Settings::default(), later, WALL);
    let id = node.open(&mut peer, later);
    assert_eq!(node.endpoint.peer(NodeId(1)), Some(id));
}

#[test]
fn clients_share_a_bound_of_memory() {
    let bounds = Bounds { client_bytes_max: 5 << 20, ..Bounds::default() };
    let mut node = Node::with(local(2), bounds);
    let mut clients: Vec<_> = (0..3)
        .map(|_| {
            let mut client = client();
            (node.open(&mut client, START), client)
        })
        .collect();
    let too_long = Payload::from(&vec![0; (2 << 20) + 1][..]);
    let max = 2 << 20;
    let refused = SendError::TooLong { bytes: max + 1, max: 2 << 20 };
    assert_eq!(clients[0].1.send_request(&too_long, START), Err(refused));
    // Two have a whole request without an answer, one a part of one.
    let (mut whole, mut failed) = (0, 0);
    for (at, len) in [(0, max / 2 - 100), (1, max), (2, max)] {
        let (id, client) = &mut clients[at];
        client.send_request(&Payload::from(&vec![0; len][..]), START).unwrap();
        let mut bytes = drain(client, START);
        if at == 1 {
            bytes.pop();
        }
        node.script.with(*id, |pipe| pipe.arrived.extend(bytes));
        for _ in 0..100 {
            let happened = node.turn(START);
            whole += happened.len();
            failed += usize::from(ended(&happened).is_some());
        }
    }
    assert_eq!((whole, failed), (2, 0));
    let held: u64 = clients.iter().map(|(id, _)| node.endpoint.connection(*id).unwrap().held()).sum();
    assert!(held > 4 << 20 && held <= 5 << 20, "{held}");
    let (id, client) = &mut clients[0];
    client.send_request(&Payload::from(&vec![0; max / 2][..]), START).unwrap();
    let bytes = drain(client, START);
    node.script.with(*id, |pipe| pipe.arrived.extend(bytes));
    let failures: Vec<_> = (0..100).filter_map(|_| ended(&node.turn(START)).cloned()).collect();
    assert!(matches!(failures[..], [Failure::Memory { max: 5_242_880, .. }]), "{failures:?}");
    assert_eq!(node.endpoint.connections(), 2);
    assert!(node.endpoint.connection(clients[0].0).is_some(), "it does not hold the most");
}
