//! Any node serves any client.

use super::*;
use stead_core::calls::{Query, Read};
use stead_core::look::{Found, Look};
use stead_core::record::RecordKey;

impl Cluster {
    /// Ends a node, and lets the others know that their connections to it closed.
    fn crash(&mut self, node: u32) {
        self.end(node);
        self.nodes.values().for_each(|other| other.shared.peer_closed(NodeId(node)));
    }

    /// Sends a request without an identity to a node.
    fn request_once(&self, node: u32, call: u32) {
        let request = Request {
            token: CallToken(0),
            process: Key::new("a").unwrap(),
            payload: Blob::empty(),
            principal: "test".into(),
            identity: Identity::None,
            colour: Colour(0),
            seen: None,
            is_first: false,
        };
        self.nodes[&node].shared.request(SHARD, request, self.reply_to(node, call)).unwrap();
    }

    fn query_at(&self, node: u32, call: u32) {
        let (process, principal) = (Key::new("a").unwrap(), "test".into());
        let (token, payload, read) = (CallToken(0), Blob::empty(), Read::Service);
        let query = Query { token, process, payload, principal, read, seen: None };
        self.nodes[&node].shared.query(SHARD, query, self.reply_to(node, call)).unwrap();
    }

    /// Names a primary to a node: that of an epoch which may not have begun.
    fn name_primary(&self, node: u32, epoch: u64, primary: u32) {
        let replicas = NODES.map(|node| (ReplicaId(node.into()), NodeId(node))).into();
        let route = ShardRoute {
            epoch: Epoch(epoch),
            primary: ReplicaId(primary.into()),
            replicas,
            max_lag: MAX_LAG,
        };
        self.nodes[&node].shared.follow_routes([(SHARD, &route)]);
    }

    /// Fails the first node's primary over to another one.
    fn fail_over(&mut self, epoch: u64, primary: u32) {
        let sealed = self.seal(epoch);
        let last = sealed.values().map(|answer| answer.table.last()).max().unwrap();
        assert_eq!(sealed[&primary].table.last(), last);
        self.lead(epoch, primary, last);
        self.settle();
        self.wait();
    }
}

const AFTER: Duration = Duration::from_secs(100);

#[test]
fn a_node_that_does_not_lead_forwards_calls_of_its_clients() {
    let mut cluster = serving();
    cluster.open_session(3, 1);
    cluster.request(2, 2, 1);
    cluster.settle();
    cluster.request(3, 3, 2);
    cluster.request_once(3, 4);
    cluster.settle();
    assert_eq!(cluster.answered(), [(1, Ok(0)), (2, Ok(1)), (3, Ok(2)), (4, Ok(3))]);
    cluster.query_at(2, 5);
    for _ in 0..3 {
        cluster.settle();
        cluster.turn(1, PartId::Query(0));
    }
    cluster.settle();
    assert_eq!(cluster.answered(), [(5, Ok(3))]);
}

#[test]
fn a_node_that_does_not_lead_shows_and_deletes_processes_for_an_operator() {
    let mut cluster = serving();
    cluster.request(1, 1, 1);
    cluster.settle();
    assert_eq!(cluster.answered(), [(1, Ok(1))]);
    let process = Key::new("a").unwrap();
    let look = |cluster: &mut Cluster| {
        let look = Look::State { process: process.clone() };
        cluster.nodes[&3].shared.show(SHARD, look, cluster.reply_to(3, 2)).unwrap();
        cluster.settle();
        let answer = cluster.answers.lock().unwrap().pop().map(|(_, answer)| answer.unwrap().result);
        let Some(Ok(Reply::Ok(found))) = answer else { panic!("{answer:?}") };
        Found::decode(&found).unwrap()
    };
    assert!(matches!(look(&mut cluster), Found::State(Some(_))));
    let records = vec![RecordKey::process(&process)];
    cluster.nodes[&2].shared.delete(SHARD, process.clone(), records, cluster.reply_to(2, 3)).unwrap();
    cluster.settle();
    let deleted = cluster.answers.lock().unwrap().pop().map(|(_, answer)| answer.unwrap().result);
    assert_eq!(deleted, Some(Ok(Reply::Ok(Blob::from(&1u64.to_be_bytes()[..])))));
    assert_eq!(look(&mut cluster), Found::State(None));
}

#[test]
fn a_call_waits_for_the_first_routes_of_its_node() {
    let mut cluster = Cluster::new();
    let sealed = cluster.seal(1);
    assert_eq!(sealed.len(), 3);
    cluster.open_session(2, 1);
    cluster.open_session(3, 2);
    cluster.settle();
    assert_eq!(cluster.answered(), [], "no node knows of a primary");
    cluster.lead(1, 1, LogPoint::default());
    cluster.settle();
    cluster.wait();
    assert_eq!(cluster.answered(), [(1, Ok(0)), (2, Ok(0))]);
}

#[test]
fn a_forwarded_call_waits_out_a_failover_and_is_applied_once() {
    let mut cluster = serving();
    // Both backups have the entry, and the primary ends before it answers.
    cluster.request(2, 1, 1);
    cluster.work(2);
    cluster.carry(2);
    cluster.work(1);
    cluster.log(1);
    cluster.carry(1);
    cluster.crash(1);
    cluster.settle();
    // This one has never left its node.
    cluster.request(2, 2, 2);
    cluster.settle();
    assert_eq!(cluster.answered(), []);
    cluster.fail_over(2, 3);
    assert_eq!(cluster.answered(), [(1, Ok(1)), (2, Ok(2))]);
    cluster.request(2, 3, 3);
    cluster.settle();
    assert_eq!(cluster.answered(), [(3, Ok(3))]);
}

#[test]
fn a_call_at_a_node_that_comes_to_lead_is_handled_there() {
    let mut cluster = serving();
    cluster.crash(1);
    cluster.request(2, 1, 1);
    cluster.settle();
    assert_eq!(cluster.answered(), []);
    cluster.fail_over(2, 2);
    assert_eq!(cluster.answered(), [(1, Ok(1))]);
}

#[test]
fn a_call_without_identity_is_not_sent_twice() {
    let mut cluster = serving();
    cluster.request_once(2, 1);
    cluster.work(2);
    cluster.carry(2);
    cluster.work(1);
    cluster.log(1);
    cluster.carry(1);
    cluster.crash(1);
    // This one was not sent: it may go on.
    cluster.request_once(2, 2);
    cluster.settle();
    assert_eq!(cluster.answered(), [(1, Err(NoAnswer::Deposed { shard: SHARD }))]);
    cluster.fail_over(2, 3);
    assert_eq!(cluster.answered(), [(2, Ok(2))], "the first one was applied");
}

#[test]
fn an_answer_that_is_lost_with_its_connection_is_asked_for_again() {
    let mut cluster = serving();
    cluster.request(2, 1, 1);
    cluster.work(2);
    cluster.carry(2);
    for _ in 0..3 {
        cluster.work(1);
        cluster.log(1);
        cluster.carry(3);
        if let Some(messages) = cluster.nodes[&1].shared.peers.take().remove(&NodeId(3)) {
            messages.into_iter().for_each(|message| cluster.nodes[&3].shared.from_peer(message));
        }
        cluster.work(3);
        cluster.log(3);
    }
    let node = &cluster.nodes[&2].shared;
    node.peer_closed(NodeId(1));
    cluster.settle();
    assert_eq!(cluster.answered(), []);
    cluster.nodes[&2].shared.peer_opened(NodeId(1));
    cluster.settle();
    assert_eq!(cluster.answered(), [(1, Ok(1))]);
    cluster.request(1, 2, 2);
    cluster.give(1, shard_replica::Input::Connected(ReplicaId(2)));
    cluster.settle();
    assert_eq!(cluster.answered(), [(2, Ok(2))], "it was applied once");
}

#[test]
fn a_deposed_primary_passes_its_calls_on() {
    let mut cluster = serving();
    // No backup gets these.
    cluster.request(1, 1, 1);
    cluster.request_once(1, 2);
    cluster.work(1);
    cluster.log(1);
    cluster.nodes[&1].shared.peers.take();
    cluster.settle();
    let sealed = cluster.seal(2);
    assert_eq!(cluster.answered(), [(2, Err(NoAnswer::Deposed { shard: SHARD }))]);
    cluster.lead(2, 3, sealed[&3].table.last());
    cluster.settle();
    cluster.wait();
    assert_eq!(cluster.answered(), [(1, Ok(1))]);
}

#[test]
fn a_call_is_tried_again_at_a_node_that_does_not_lead_yet_until_another_one_is_named() {
    let mut cluster = serving();
    cluster.name_primary(2, 2, 3);
    cluster.request_once(2, 1);
    cluster.settle();
    let carried = cluster.carried;
    cluster.pass(&[2], 5);
    assert_eq!(cluster.carried, carried + 2, "it goes there again, and comes back");
    cluster.pass(&[2], 5);
    assert_eq!(cluster.carried, carried + 2, "the next pause is longer");
    cluster.pass(&[2], 5);
    assert_eq!(cluster.carried, carried + 4);
    assert_eq!(cluster.answered(), []);
    cluster.name_primary(2, 3, 1);
    cluster.settle();
    assert_eq!(cluster.answered(), [(1, Ok(1))]);
}

#[test]
fn a_call_ends_with_its_time_and_says_whether_it_may_have_been_applied() {
    let mut cluster = serving();
    cluster.request(2, 1, 1);
    cluster.work(2);
    cluster.nodes[&2].shared.peers.take();
    cluster.nodes[&2].shared.peer_closed(NodeId(1));
    cluster.request(2, 2, 2);
    cluster.pass(&[2], 99_000);
    assert_eq!(cluster.answered(), []);
    cluster.pass(&[2], 2_000);
    let no_primary = NoAnswer::NoPrimary { shard: SHARD, after: AFTER };
    assert_eq!(
        cluster.answered(),
        [(1, Err(NoAnswer::TimedOut { after: AFTER })), (2, Err(no_primary))],
        "the first one was sent"
    );
}

#[test]
fn calls_move_on_from_a_node_that_stands_still_once_another_primary_is_named() {
    let mut cluster = serving();
    // Node 1 takes nothing, and its connections stay open.
    cluster.request(2, 1, 1);
    cluster.request_once(2, 2);
    cluster.work(2);
    cluster.nodes[&2].shared.peers.take();
    let stands_still = cluster.nodes.remove(&1).unwrap();
    cluster.fail_over(2, 3);
    assert_eq!(cluster.answered(), [(1, Ok(1))]);
    // The other one may be applied there yet.
    cluster.nodes[&2].shared.peer_closed(NodeId(1));
    cluster.settle();
    assert_eq!(cluster.answered(), [(2, Err(NoAnswer::Deposed { shard: SHARD }))]);
    drop(stands_still);
}
