use super::packing::pack;
use super::*;
use crate::inbox::Command;
use crate::part::{Part, Turned};
use crate::placed::Placed;
use crate::shared::Shared;
use crate::shared::tests::{Nothing, shared_with};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use stead_core::blob::Blob;
use stead_core::channel::Message;
use stead_core::control::facts::Fact;
use stead_core::ids::{
    ClusterId, Colour, Epoch, Incarnation, Index, Life, Micros, NodeId, ReplicaId, Seq, ShardId, Time,
};
use stead_core::key::Key;
use stead_core::shard::Input;
use stead_core::shard_replica::{self, Frame};
use stead_net::connection::{Event, Settings};
use stead_net::endpoint::{Bounds, Endpoint, Happened};
use stead_net::frame::Origin;
use stead_net::handshake::{CLOCK_DIFFERENCE_MAX, Limits, Local, Role, VERSIONS};
use stead_net::network::Tcp;
use stead_net::payload::Payload;
use stead_net::replica::Route;

const DEADLINE: Micros = Micros::from_secs(20);
/// The time for which a test waits at one of its networks before it looks at the next one.
const LOOK: Duration = Duration::from_micros(500);

fn local(node: u32, cluster: u128, life: u64) -> Local {
    Local {
        versions: VERSIONS,
        cluster: Some(ClusterId(cluster)),
        role: Role::Peer { node: NodeId(node), directory: node.into(), process: life },
        origin: Origin { incarnation: Incarnation(1), life: Life(life) },
        limits: Limits::default(),
        client_limits: Limits::of_clients(),
        clock_difference_max: CLOCK_DIFFERENCE_MAX,
    }
}

struct Node {
    hub: Arc<Shared<Nothing>>,
    part: PeerPart,
    address: SocketAddr,
}

impl Node {
    fn new(node: u32) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), node, 1)
    }

    fn at(address: SocketAddr, node: u32, life: u64) -> Self {
        let tcp = Tcp::listen(address).unwrap();
        let address = tcp.address().unwrap();
        let mut hub = shared_with(&[("accounts", 4)]);
        let replicas = if node == 1 { vec![(1, 10)] } else { vec![(0, 19), (1, 20), (2, 30), (3, 40)] };
        let place = |(shard, replica)| (ShardId(shard), Some(ReplicaId(replica)), ReplicaId::NONE);
        let places = replicas.into_iter().map(place);
        Arc::get_mut(&mut hub).unwrap().replicated = Placed::new(places);
        Self { hub, part: PeerPart::new(tcp, local(node, 7, life)), address }
    }

    fn turn(&mut self) {
        self.hub.peers.bell.take_ring();
        let now = self.hub.now();
        let turned = self.part.turn(&self.hub, now).unwrap();
        assert_ne!(turned, Turned::Ended);
    }

    fn report(&self, node: u32) -> Option<bool> {
        let reports = self.hub.peers.reports(self.hub.now());
        reports.iter().find(|report| report.node == NodeId(node)).map(|report| report.is_closed)
    }

    fn is_connected(&self, node: u32) -> bool {
        self.report(node) == Some(false)
    }

    /// Takes what arrived for its shards.
    fn take(&self) -> Vec<String> {
        let (mut commands, mut inputs) = (Vec::new(), Vec::new());
        self.hub.inboxes[0].take(&mut commands, &mut inputs);
        let commands = commands.into_iter().map(|command| match command {
            Command::Replica { shard, input: shard_replica::Input::Connected(replica), .. } => {
                format!("{shard} connected to {replica}")
            }
            Command::Replica { shard, input: shard_replica::Input::Frame { from, frame }, .. } => {
                format!("{shard} frame of {from}: {frame:?}")
            }
            _ => panic!("no peer sends another command"),
        });
        let inputs = inputs.into_iter().map(|(shard, input)| match input {
            Input::Deliver { from, messages, again } => {
                let numbers: Vec<u64> = messages.iter().map(|message| message.seq.0).collect();
                format!("{shard} messages {numbers:?} of {from}, again {again}")
            }
            Input::Ack { from, upto, colour } => format!("{shard} ack of {from}: {upto}, {colour}"),
            _ => panic!("no peer sends another input"),
        });
        commands.chain(inputs).collect()
    }

    fn leave(&self, node: u32, message: PeerMessage) {
        self.hub.peers.leave(NodeId(node), &mut vec![message]);
    }
}

/// Gives turns until a condition holds.
fn run(nodes: &mut [&mut Node], what: &str, mut until: impl FnMut(&mut [&mut Node]) -> bool) {
    let begun = nodes[0].hub.now();
    loop {
        for node in &mut *nodes {
            node.turn();
        }
        if until(nodes) {
            return;
        }
        assert!(nodes[0].hub.now().since(begun) < DEADLINE, "{what}");
        for node in &mut *nodes {
            node.part.network_mut().wait(Some(LOOK)).unwrap();
        }
    }
}

fn know_each_other(nodes: &[&Node]) {
    let addresses: BTreeMap<NodeId, SocketAddr> =
        (1..).map(NodeId).zip(nodes).map(|(id, node)| (id, node.address)).collect();
    // Its own address is no matter.
    nodes.iter().for_each(|node| node.hub.peers.set_addresses(addresses.clone()));
}

fn ack(shard: u32, from: u64, to: u64) -> PeerMessage {
    let route = Route { shard: ShardId(shard), from: ReplicaId(from), to: ReplicaId(to) };
    PeerMessage::Frame(route, Frame::Ack { epoch: Epoch(1), upto: Index(5) })
}

fn message(seq: u64, bytes: usize) -> Message {
    Message {
        seq: Seq(seq),
        epoch: Epoch(1),
        index: Index(seq),
        colour: Colour(0),
        sender: Key::new("payer").unwrap(),
        process: Key::new("payee").unwrap(),
        payload: Blob::from(vec![7; bytes]),
    }
}

fn deliver(messages: impl Iterator<Item = Message>) -> PeerMessage {
    PeerMessage::Deliver { from: ShardId(2), to: ShardId(3), messages: messages.collect(), again: true }
}

#[test]
fn messages_go_both_ways_between_three_nodes() {
    let (mut one, mut two, mut three) = (Node::new(1), Node::new(2), Node::new(3));
    know_each_other(&[&one, &two, &three]);
    run(&mut [&mut one, &mut two, &mut three], "all connect", |nodes| {
        // One of two connections may be replaced otherwise.
        nodes.iter().all(|node| !node.part.is_dialing())
            && (1..=3).all(|of| nodes.iter().zip(1..).all(|(node, id)| id == of || node.is_connected(of)))
    });
    one.leave(2, ack(1, 10, 20));
    two.leave(1, deliver([message(4, 9), message(5, 3_000)].into_iter()));
    let taken = PeerMessage::Ack { from: ShardId(3), to: ShardId(2), upto: Seq(5), colour: Colour(1) };
    three.leave(1, taken);
    let (mut at_one, mut at_two) = (Vec::new(), Vec::new());
    run(&mut [&mut one, &mut two, &mut three], "messages arrive", |nodes| {
        at_one.extend(nodes[0].take());
        at_two.extend(nodes[1].take());
        at_one.len() >= 2 && !at_two.is_empty()
    });
    let expected = ["2 ack of 3: 5, 1", "3 messages [4, 5] of 2, again true"];
    assert_eq!(BTreeSet::from_iter(at_one), BTreeSet::from_iter(expected.map(str::to_owned)));
    assert_eq!(at_two, ["1 frame of 10: Ack { epoch: Epoch(1), upto: Index(5) }"]);
    assert!(three.take().is_empty());
    let closed = |node: &Node| node.hub.control.take().facts.len();
    assert_eq!((closed(&one), closed(&two), closed(&three)), (0, 0, 0), "a double connection is no news");
}

#[test]
fn a_connection_that_closed_is_renewed_and_replicas_learn_of_it() {
    let (mut one, mut two) = (Node::new(1), Node::new(2));
    one.hub.peers.set_addresses(BTreeMap::from([(NodeId(2), two.address)]));
    // Before there is a connection: it is lost.
    one.leave(2, ack(0, 10, 19));
    one.turn();
    let mut at_one = Vec::new();
    run(&mut [&mut one, &mut two], "they connect", |nodes| {
        at_one.extend(nodes[0].take());
        nodes[0].is_connected(2) && nodes[1].is_connected(1)
    });
    assert_eq!(at_one, ["0 connected to 19"]);
    assert!(two.take().is_empty());

    one.leave(2, ack(1, 10, 20));
    run(&mut [&mut one, &mut two], "a message arrives", |nodes| !nodes[1].take().is_empty());
    let address = two.address;
    drop(two);
    run(&mut [&mut one], "the end is noticed", |nodes| nodes[0].report(2) == Some(true));
    let mut facts = Vec::new();
    run(&mut [&mut one], "nothing listens", |nodes| {
        facts.extend(nodes[0].hub.control.take().facts);
        facts.len() >= 2
    });
    assert!(matches!(facts[..], [Fact::Closed(NodeId(2)), Fact::Refused(NodeId(2))]), "{facts:?}");
    one.leave(2, ack(2, 10, 30));
    one.turn();
    assert!(one.take().is_empty(), "replicas learn of it once messages flow");

    let mut two = Node::at(address, 2, 2);
    let mut at_one = Vec::new();
    one.hub.peers.ask(NodeId(2));
    run(&mut [&mut one, &mut two], "they connect again", |nodes| {
        at_one.extend(nodes[0].take());
        nodes[0].is_connected(2)
    });
    assert_eq!(at_one, ["1 connected to 20", "2 connected to 30"]);
    one.leave(2, ack(3, 10, 40));
    let mut at_two = Vec::new();
    run(&mut [&mut one, &mut two], "a message arrives", |nodes| {
        at_two.extend(nodes[1].take());
        !at_two.is_empty()
    });
    assert_eq!(at_two, ["3 frame of 10: Ack { epoch: Epoch(1), upto: Index(5) }"]);
}

/// Runs a node beside an endpoint that does what it wants, until a condition holds.
fn run_beside(
    node: &mut Node,
    other: &mut Endpoint<Tcp>,
    what: &str,
    mut until: impl FnMut(&mut Node, &mut Endpoint<Tcp>, Option<Happened>) -> bool,
) {
    let begun = node.hub.now();
    loop {
        node.turn();
        other.turn(node.hub.now(), wall(node)).unwrap();
        while let Some(happened) = other.next_happened() {
            if until(node, other, Some(happened)) {
                return;
            }
        }
        if until(node, other, None) {
            return;
        }
        assert!(node.hub.now().since(begun) < DEADLINE, "{what}");
        node.part.network_mut().wait(Some(LOOK)).unwrap();
        other.network_mut().wait(Some(LOOK)).unwrap();
    }
}

fn wall(node: &Node) -> Time {
    crate::clock::Clock::wall(&node.hub.clock)
}

fn endpoint(local: Local) -> Endpoint<Tcp> {
    Endpoint::new(Tcp::dialing().unwrap(), local, Settings::default(), Bounds::default())
}

#[test]
fn a_hostile_peer_is_closed_and_the_others_are_served() {
    let (mut one, mut two) = (Node::new(1), Node::new(2));
    one.hub.peers.set_addresses(BTreeMap::from([(NodeId(2), two.address)]));
    run(&mut [&mut one, &mut two], "they connect", |nodes| nodes[0].is_connected(2));
    // A message that ends early, one of an unknown kind, and one for a shard that there is not, which is dropped, before a good one.
    let section = |shard: u32, to: u64, message: &[u8]| {
        let mut bytes = shard.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(message.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 16]);
        bytes.extend_from_slice(&to.to_le_bytes());
        bytes.extend_from_slice(message);
        bytes
    };
    let ack = [2, 5, 0, 0, 0, 0, 0, 0, 0];
    let torn = section(1, 10, &ack)[..35].to_vec();
    let strange = [section(u32::MAX, 10, &ack), section(1, 10, &ack)].concat();
    for (bytes, is_closed) in [(torn, true), (section(1, 10, &[77]), true), (strange, false)] {
        let mut hostile = endpoint(local(3, 7, 1));
        let dialed = hostile.dial(one.address, Some(NodeId(1)), one.hub.now(), wall(&one)).unwrap();
        let (mut opened, mut ended) = (false, false);
        run_beside(&mut one, &mut hostile, "it is answered", |node, hostile, happened| {
            match happened {
                Some(Happened::Event(_, Event::Opened(_))) => {
                    opened = true;
                    hostile.send_shards(dialed, &Payload::from(&bytes[..]), node.hub.now()).unwrap();
                }
                Some(Happened::Ended { .. }) => ended = true,
                _ => {}
            }
            if is_closed { ended } else { opened && !node.take().is_empty() }
        });
        assert_eq!((opened, ended), (true, is_closed));
        assert!(one.take().is_empty());
    }
    // One of another cluster never becomes a peer, and neither does a client.
    let client = Local { role: Role::Client, ..local(4, 7, 0) };
    for stranger in [local(4, 8, 1), client] {
        let mut stranger = endpoint(stranger);
        stranger.dial(one.address, None, one.hub.now(), wall(&one)).unwrap();
        run_beside(&mut one, &mut stranger, "it is refused", |_, _, happened| {
            matches!(happened, Some(Happened::Ended { .. }))
        });
        assert_eq!(one.report(4), None);
    }
    two.leave(1, self::ack(1, 20, 10));
    run(&mut [&mut one, &mut two], "a message arrives", |nodes| !nodes[0].take().is_empty());
}

#[test]
fn a_node_that_reads_nothing_costs_bounded_memory() {
    let mut one = Node::new(1);
    let mut other = endpoint(local(2, 7, 1));
    let dialed = other.dial(one.address, Some(NodeId(1)), one.hub.now(), wall(&one)).unwrap();
    run_beside(&mut one, &mut other, "it connects", |node, _, _| node.is_connected(2));
    // The other end takes none of these. They are more than may wait and what the system takes.
    for seq in 1..=60 {
        one.leave(2, deliver(std::iter::once(message(seq, 1 << 20))));
        one.leave(2, ack(1, 10, 20));
    }
    one.turn();
    let waiting = one.part.waiting(NodeId(2));
    assert!((16 << 20..=34 << 20).contains(&waiting), "{waiting} bytes wait");
    assert!(one.take().is_empty(), "it is not read yet");
    assert!(other.connection(dialed).is_some());
    // Once it reads, the replica learns that something was lost.
    let mut at_one = Vec::new();
    run_beside(&mut one, &mut other, "it flows again", |node, _, _| {
        at_one.extend(node.take());
        !at_one.is_empty()
    });
    assert_eq!(at_one, ["1 connected to 20"]);
}

#[test]
fn frames_are_filled_up_to_a_limit() {
    let many = deliver((1..=3_000).map(|seq| message(seq, 1_000)));
    let mut messages = vec![ack(1, 10, 20), many, ack(2, 11, 21)];
    let packed = pack(std::mem::take(&mut messages), Limits::default().payload_bytes_max as usize);
    assert_eq!(packed.len(), 4, "3 MB, and a megabyte each");
    assert!(packed.iter().all(|packed| packed.payload.len() <= (1 << 20) + 100));
    let receivers: Vec<_> = packed.iter().flat_map(|packed| packed.receivers.clone()).collect();
    assert_eq!(receivers, [(ShardId(1), ReplicaId(20)), (ShardId(2), ReplicaId(21))]);
    let long = pack(vec![deliver((1..=2).map(|seq| message(seq, 3 << 20)))], 40 << 20);
    assert_eq!(long.len(), 2, "one that is longer has a frame of its own");
}
