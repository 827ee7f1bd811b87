//! Consistent and inconsistent cuts, by the pure check.

use std::collections::{BTreeMap, VecDeque};
use stead_core::blob::Blob;
use stead_core::channel::{Message, Outbox};
use stead_core::ids::{CheckpointNumber, Colour, Epoch, Incarnation, Index, Seq, ShardId, Time};
use stead_core::key::Key;
use stead_core::state::{Header, Position};
use stead_core::topology::Topology;
use stead_store::checkpoint::verify::{Inconsistency, in_flight, verify_cut};

const I: ShardId = ShardId(0);
const J: ShardId = ShardId(1);
const K: ShardId = ShardId(2);

fn topology() -> Topology {
    let mut topology = Topology::new(Incarnation(1));
    topology.ensure("process", 3).unwrap();
    topology
}

/// Returns a part of checkpoint 1, whose marker is entry 10.
fn part(shard: ShardId) -> Header {
    let position =
        Position { index: Index(10), epoch: Epoch(1), time: Time(0), colour: Colour(1), served: None };
    let (outboxes, received) = (BTreeMap::new(), BTreeMap::new());
    Header { shard, position, outboxes, received, records: 0, records_hash: [0; 16] }
}

fn message(seq: u64) -> Message {
    Message {
        seq: Seq(seq),
        epoch: Epoch(1),
        index: Index(seq),
        colour: Colour(0),
        sender: Key::none(),
        process: Key::none(),
        payload: Blob::from(&b"m"[..]),
    }
}

/// Sets the last message sent to `sent`, with the messages from `from` on still in the outbox.
fn sends(part: &mut Header, to: ShardId, sent: u64, from: u64) {
    let messages: VecDeque<_> = (from..=sent).map(message).collect();
    part.outboxes.insert(to, Outbox { next: Seq(sent + 1), messages });
}

/// Processes i, j and k. j sends m1 to i, and m2 to k. C1,j is taken before m1 is sent, and C1,i before it is received:
/// the cut is consistent. m2 is sent before C1,j and received after C1,k: it is in flight, in the outbox at j.
#[test]
fn the_textbook_case_is_consistent() {
    let (i, mut j, k) = (part(I), part(J), part(K));
    sends(&mut j, K, 1, 1);
    let cut = [i, j, k];
    assert_eq!(verify_cut(&topology(), CheckpointNumber(1), &cut), []);
    let flying = in_flight(&cut);
    assert_eq!(flying.len(), 1);
    assert_eq!((flying[0].from, flying[0].to, flying[0].messages, flying[0].bytes), (J, K, 1, 1));
}

/// The same with C1,i taken after m1 was received: its reception is recorded at i and its sending unknown at j.
#[test]
fn the_textbook_case_with_an_orphan_is_inconsistent() {
    let (mut i, mut j, k) = (part(I), part(J), part(K));
    i.received.insert(J, Seq(1));
    sends(&mut j, K, 1, 1);
    let found = verify_cut(&topology(), CheckpointNumber(1), &[i, j, k]);
    assert_eq!(found, [Inconsistency::ReceivedNotSent { from: J, to: I, received: Seq(1), sent: Seq(0) }]);
    assert_eq!(
        found[0].to_string(),
        "channel 1 -> 0: shard 0 has received message 1, but shard 1 has sent only 0"
    );
}

#[test]
fn planted_inconsistencies_are_named() {
    type Plant = fn(&mut Vec<Header>);
    let sound = || {
        let (mut i, mut j, k) = (part(I), part(J), part(K));
        sends(&mut i, J, 9, 4);
        j.received.insert(I, Seq(6));
        sends(&mut j, J, 3, 2);
        j.received.insert(J, Seq(1));
        vec![i, j, k]
    };
    assert_eq!(verify_cut(&topology(), CheckpointNumber(1), &sound()), []);
    let cases: [(Plant, Inconsistency); 13] = [
        (|cut| drop(cut.remove(2)), Inconsistency::NoPart { shard: K }),
        (|cut| cut.push(cut[1].clone()), Inconsistency::Surplus { shard: J }),
        (|cut| cut[2].shard = ShardId(7), Inconsistency::Surplus { shard: ShardId(7) }),
        (
            |cut| cut[2].position.colour = Colour(2),
            Inconsistency::Colour { shard: K, found: Colour(2), number: CheckpointNumber(1) },
        ),
        (
            |cut| assert!(cut[1].received.insert(I, Seq(10)).is_some()),
            Inconsistency::ReceivedNotSent { from: I, to: J, received: Seq(10), sent: Seq(9) },
        ),
        (
            |cut| assert!(cut[1].received.insert(I, Seq(2)).is_some()),
            Inconsistency::Lost { from: I, to: J, first: Seq(3), last: Seq(3) },
        ),
        (
            |cut| cut[0].outboxes.get_mut(&J).unwrap().messages.clear(),
            Inconsistency::Lost { from: I, to: J, first: Seq(7), last: Seq(9) },
        ),
        (
            |cut| drop(cut[0].outboxes.get_mut(&J).unwrap().messages.remove(4)),
            Inconsistency::Order { from: I, to: J, found: Seq(9), expected: Seq(8) },
        ),
        (
            |cut| drop(cut[0].outboxes.get_mut(&J).unwrap().messages.pop_back()),
            Inconsistency::Order { from: I, to: J, found: Seq(8), expected: Seq(9) },
        ),
        (
            |cut| cut[0].outboxes.get_mut(&J).unwrap().messages[5].index = Index(11),
            Inconsistency::SentAfterMarker { from: I, to: J, seq: Seq(9) },
        ),
        (
            |cut| {
                let message = &mut cut[0].outboxes.get_mut(&J).unwrap().messages[5];
                (message.epoch, message.index) = (Epoch(0), Index(11));
            },
            Inconsistency::SentAfterMarker { from: I, to: J, seq: Seq(9) },
        ),
        (
            |cut| cut[0].outboxes.get_mut(&J).unwrap().messages[5].colour = Colour(1),
            Inconsistency::SentAfterMarker { from: I, to: J, seq: Seq(9) },
        ),
        (
            |cut| assert!(cut[2].received.insert(ShardId(5), Seq(1)).is_none()),
            Inconsistency::Stray { from: ShardId(5), to: K },
        ),
    ];
    for (plant, expected) in cases {
        let mut cut = sound();
        plant(&mut cut);
        let found = verify_cut(&topology(), CheckpointNumber(1), &cut);
        assert!(found.contains(&expected), "{expected}: {found:?}");
    }
}
