use super::packing::{Loser, pack};
use super::*;
use crate::clock::Clock;
use crate::forward::{Forwarder, News};
use crate::inbox::Command;
use crate::native::Recipient;
use crate::part::{Part, Turned};
use crate::placed::Placed;
use crate::reply::NoAnswer;
use crate::shared::Shared;
use crate::shared::tests::{Nothing, shared_with};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use stead_core::blob::Blob;
use stead_core::calls::Refusal;
use stead_core::channel::Message;
use stead_core::control::facts::Fact;
use stead_core::ids::{
    ClusterId, Colour, Epoch, Incarnation, Index, Life, Micros, NodeId, ReplicaId, Seq, ShardId, Time,
};
use stead_core::key::Key;
use stead_core::placement::Place;
use stead_core::shard::Input;
use stead_core::shard_replica::{self, Frame};
use stead_net::connection::{Event, Settings};
use stead_net::endpoint::{Bounds, Endpoint, Happened};
use stead_net::forward::{Answered, Call, CallId, Outcome};
use stead_net::frame::Origin;
use stead_net::handshake::{CLOCK_DIFFERENCE_MAX, Limits, Local, Role, VERSIONS};
use stead_net::native::Ask;
use stead_net::network::Tcp;
use stead_net::payload::Payload;
use stead_net::replica::{Message as Received, Route, read_message};
use stead_net::section::sections;

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
        self.part.step(&self.hub, now, self.hub.clock.wall()).unwrap();
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
        let commands = commands.into_iter().filter(|command| !matches!(command, Command::Forwarded(_)));
        let commands = commands.map(|command| match command {
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

    /// Takes the calls that arrived, and the news of those that it forwarded.
    fn take_calls(&self) -> (Vec<Forwarder>, Vec<String>) {
        let (mut commands, mut calls, mut news) = (Vec::new(), Vec::new(), Vec::new());
        self.hub.inboxes[0].take(&mut commands, &mut Vec::new());
        for command in commands {
            match command {
                Command::DeadLetter { reply_to, .. } => match reply_to.caller {
                    Recipient::Node(caller) => calls.push(caller),
                    _ => panic!("another node forwarded it"),
                },
                Command::Forwarded(News::Answered(number, outcome)) => {
                    news.push(format!("{number}: {outcome:?}"));
                }
                Command::Forwarded(News::Unsent(node, number)) => {
                    news.push(format!("{number} not sent to {node}"));
                }
                Command::Forwarded(News::Opened(node)) => news.push(format!("{node} opened")),
                Command::Forwarded(News::Closed(node)) => news.push(format!("{node} closed")),
                _ => {}
            }
        }
        (calls, news)
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

fn call(number: u64) -> PeerMessage {
    let ask = Ask::DeadLetter { shard: ShardId(2), letter: Index(1), retry: true }.encode();
    let (id, within) = (CallId { process: 1, number }, Duration::from_secs(1));
    PeerMessage::Call { from: NodeId(1), call: Call { shard: ShardId(2), id, within, ask } }
}

#[test]
fn a_forwarded_call_comes_back_with_its_answer_or_the_end_of_its_connection() {
    let (mut one, mut two) = (Node::new(1), Node::new(2));
    one.leave(2, call(7));
    one.turn();
    assert_eq!(one.take_calls().1, ["7 not sent to 2"]);
    one.hub.peers.set_addresses(BTreeMap::from([(NodeId(2), two.address)]));
    run(&mut [&mut one, &mut two], "they connect", |nodes| nodes[0].is_connected(2));
    assert_eq!(one.take_calls().1, ["2 opened"]);

    (8..=10).for_each(|number| one.leave(2, call(number)));
    let mut calls = Vec::new();
    run(&mut [&mut one, &mut two], "calls arrive", |nodes| {
        calls.extend(nodes[1].take_calls().0);
        calls.len() == 3
    });
    let not_here = NoAnswer::NotHere { shard: ShardId(2), place: Place::Elsewhere };
    calls[1].leave(Err(not_here));
    calls[0].leave(Err(NoAnswer::Refused(Refusal::Full)));
    let mut news = Vec::new();
    run(&mut [&mut one, &mut two], "answers arrive", |nodes| {
        news.extend(nodes[0].take_calls().1);
        news.len() == 2
    });
    assert_eq!(news[0], "9: NotLed");
    assert!(news[1].starts_with("8: Answer("), "{}", news[1]);
    // One of an earlier process of the first node is for no call.
    let id = CallId { process: 0, number: 10 };
    two.leave(1, PeerMessage::Answered(Answered { shard: ShardId(2), id, outcome: Outcome::NotLed }));
    calls[2].leave(Err(NoAnswer::Stopped));
    run(&mut [&mut one, &mut two], "the answer arrives", |nodes| {
        news.extend(nodes[0].take_calls().1);
        news.len() > 2
    });
    assert_eq!(news[2..], ["10: InDoubt"]);
    drop(two);
    run(&mut [&mut one], "the end is noticed", |nodes| nodes[0].report(2) == Some(true));
    assert_eq!(one.take_calls().1, ["2 closed"]);
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
    node.hub.clock.wall()
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
    // A frame without room is not forgotten: a call goes back to where it waits, and the other end learns that its call has no answer.
    one.leave(2, call(7));
    let id = CallId { process: 1, number: 70 };
    one.leave(2, PeerMessage::Answered(Answered { shard: ShardId(2), id, outcome: Outcome::NotLed }));
    one.turn();
    assert_eq!(one.take_calls().1.last().unwrap(), "7 not sent to 2");
    // Once it reads, the replica learns that something was lost.
    let (mut at_one, mut in_doubt) = (Vec::new(), Vec::new());
    run_beside(&mut one, &mut other, "it flows again", |node, _, happened| {
        at_one.extend(node.take());
        if let Some(Happened::Event(_, Event::Shards(bytes))) = happened {
            let messages = sections(bytes).map(|section| read_message(&section.unwrap()).unwrap());
            in_doubt.extend(messages.filter_map(|message| match message {
                Received::Answered(answered) => Some(answered),
                _ => None,
            }));
        }
        !at_one.is_empty() && !in_doubt.is_empty()
    });
    assert_eq!(at_one, ["1 connected to 20"]);
    assert_eq!(in_doubt, [Answered { shard: ShardId(2), id, outcome: Outcome::InDoubt }]);
}

#[test]
fn frames_are_filled_up_to_a_limit() {
    let many = deliver((1..=3_000).map(|seq| message(seq, 1_000)));
    let mut messages = vec![ack(1, 10, 20), many, ack(2, 11, 21)];
    let packed = pack(std::mem::take(&mut messages), Limits::default().payload_bytes_max as usize);
    assert_eq!(packed.len(), 4, "3 MB, and a megabyte each");
    assert!(packed.iter().all(|packed| packed.payload.len() <= (1 << 20) + 100));
    let losers: Vec<_> = packed.iter().flat_map(|packed| packed.losers.clone()).collect();
    let replica = |shard, replica| Loser::Replica(ShardId(shard), ReplicaId(replica));
    assert_eq!(losers, [replica(1, 20), replica(2, 21)]);
    let long = pack(vec![deliver((1..=2).map(|seq| message(seq, 3 << 20)))], 40 << 20);
    assert_eq!(long.len(), 2, "one that is longer has a frame of its own");
}

#[test]
fn the_relief_gives_turns_only_while_the_worker_gives_none() {
    let Node { hub, part, .. } = Node::new(1);
    let (borrowed, mut relief) = lend(part);
    let now = hub.now();
    let mut is_needed = |is_moving: bool| {
        if is_moving {
            borrowed.turn(&hub, now, hub.clock.wall()).unwrap();
        }
        match relief.turn(&hub, now).unwrap() {
            Turned::Again => true,
            Turned::Until(until) => until.unwrap() < now.plus_millis(50),
            Turned::Ended => panic!("the node serves"),
        }
    };
    assert_eq!([true, true, false, false, true].map(&mut is_needed), [false, false, true, true, false]);
    drop(borrowed);
    assert_ne!(relief.turn(&hub, now).unwrap(), Turned::Until(Some(now.plus_millis(50))));
    hub.kill(now);
    assert_eq!(relief.turn(&hub, now).unwrap(), Turned::Ended);
}
