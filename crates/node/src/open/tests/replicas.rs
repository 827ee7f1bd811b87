//! Three nodes with the replicas of one shard. The test is their network and their control plane.

use super::*;
use crate::control::ControlNews;
use crate::peers::PeerMessage;
use stead_core::commit_tracker::EpochConfig;
use stead_core::control::directory::ShardRoute;
use stead_core::control::facts::Fact;
use stead_core::ids::{
    ClusterId, Generation, Incarnation, Life, Micros, NodeId, ReplicaId, RequestNumber, SessionId,
};
use stead_core::replication::epoch::{EpochRecord, Seal, SealAnswer};
use stead_core::replication::table::{LogPoint, Losses};
use stead_core::shard_replica;

const SHARD: ShardId = ShardId(0);
const NODES: [u32; 3] = [1, 2, 3];

/// Three nodes, of which some may have ended. Replica n is on node n.
struct Cluster {
    disks: BTreeMap<u32, SimDisk>,
    nodes: BTreeMap<u32, stepped::Stepped<Stepped>>,
    answers: Answers,
    facts: Vec<Fact>,
    reports: BTreeMap<u32, stead_core::control::facts::ShardReport>,
    /// The messages that were carried.
    carried: usize,
}

impl Cluster {
    fn new() -> Self {
        let disks = NODES.map(|node| (node, SimDisk::new(node.into()))).into();
        let (answers, facts) = (Answers::default(), Vec::new());
        let mut cluster =
            Self { disks, nodes: BTreeMap::new(), answers, facts, reports: BTreeMap::new(), carried: 0 };
        NODES.iter().for_each(|node| cluster.open(*node));
        cluster
    }

    /// Opens a node, or opens it again.
    fn open(&mut self, node: u32) {
        // Each request would be preceded by the entry of an attempt at it: no life before has ended in order.
        let settings = Settings { suspect_for: Micros(0), ..Settings::default() };
        let service = ServiceLimits { name: "counter".to_owned(), shards: Some(1), when_new: 1, settings };
        let replicated = BTreeMap::from([(SHARD, ReplicaId(node.into()))]);
        let options = Options { services: vec![service], replicated, ..Node::options(1) };
        let code = Registered { program: &Counters, without_code: &options.without_code };
        let meta = || Meta::new(ClusterId(1), Incarnation(1), NodeId(node), node.into());
        let disk: Arc<dyn Disk> = Arc::new(self.disks[&node].clone());
        let found = recover(disk, &code, plan::recover_options(&options), meta).unwrap();
        let watch = Withholding { tickets_max: AtomicU64::new(u64::MAX), ..Withholding::default() };
        let around = (Ticking(AtomicU64::new(1_000_000_000)), watch);
        let mut opened = stepped::Stepped::assemble(Counters, around, found, options, Drawn::fresh());
        while opened.start(false).unwrap() != Started::Serves {}
        self.nodes.insert(node, opened);
    }

    /// Gives a part of a node turns until it has no work left.
    fn turn(&mut self, node: u32, part: PartId) {
        let Some(node) = self.nodes.get_mut(&node) else { return };
        loop {
            node.bells().find(|(id, _)| *id == part).unwrap().1.take_ring();
            let now = node.shared.now();
            if node.turn(part, now).unwrap() != Turned::Again {
                return;
            }
        }
    }

    fn work(&mut self, node: u32) {
        self.turn(node, PartId::Worker(0));
    }

    /// Makes what a node has submitted durable, and lets its worker know.
    fn log(&mut self, node: u32) {
        self.turn(node, PartId::Log);
        self.work(node);
    }

    /// Carries the messages that wait at a node; returns their number.
    fn carry(&mut self, from: u32) -> usize {
        let Some(sender) = self.nodes.get(&from) else { return 0 };
        let mut count = 0;
        for (to, messages) in sender.shared.peers.take() {
            assert_ne!(to, NodeId(from));
            for message in messages {
                count += 1;
                if let Some(to) = self.nodes.get(&to.0) {
                    to.shared.from_peer(message);
                }
            }
        }
        self.carried += count;
        count
    }

    /// Gives all nodes turns and carries their messages until there is nothing left to do.
    fn settle(&mut self) {
        for _ in 0..1000 {
            for node in NODES {
                self.work(node);
                self.log(node);
            }
            if NODES.map(|node| self.carry(node)) == [0; 3] {
                for (node, opened) in &self.nodes {
                    let ControlNews { facts, reports } = opened.shared.control.take();
                    self.facts.extend(facts);
                    self.reports.extend(reports.into_iter().map(|report| (*node, report)));
                }
                return;
            }
        }
        panic!("it never settles");
    }

    fn give(&self, node: u32, input: shard_replica::Input) {
        self.nodes[&node].shared.push_replica(SHARD, input);
    }

    /// Seals the living nodes for an epoch; returns their answers.
    fn seal(&mut self, epoch: u64) -> BTreeMap<u32, SealAnswer> {
        for node in self.nodes.keys() {
            self.give(*node, shard_replica::Input::Seal(Seal { epoch: Epoch(epoch), lease: Micros(0) }));
        }
        self.settle();
        let answers = self.facts.drain(..).filter_map(|fact| match fact {
            Fact::Sealed(SHARD, answer) => Some((answer.replica.0 as u32, answer)),
            _ => None,
        });
        answers.collect()
    }

    /// Makes a node lead an epoch of all three with W = 2, behind an entry.
    fn lead(&mut self, epoch: u64, node: u32, base: LogPoint) {
        let (epoch, primary) = (Epoch(epoch), ReplicaId(node.into()));
        let config =
            EpochConfig::parse(epoch, NODES.map(|node| ReplicaId(node.into())).to_vec(), 2, primary).unwrap();
        let replicas = NODES.map(|node| (ReplicaId(node.into()), NodeId(node))).into();
        let route = ShardRoute { epoch, primary, replicas };
        self.nodes.values().for_each(|node| node.shared.follow_routes([(SHARD, &route)]));
        let (life, lease) = (Life(self.nodes[&node].shared.lives()), Micros(0));
        let (generation, losses) = (Generation(0), Losses::default());
        let record = Box::new(EpochRecord { config, life, lease, generation, base, losses });
        self.give(node, shard_replica::Input::Lead { record, learners: Vec::new() });
    }

    fn reply_to(&self, node: u32, call: u32) -> ReplyTo<Noting> {
        let timeout = Duration::from_secs(100);
        let deadline = self.nodes[&node].shared.now().plus_millis(100_000);
        ReplyTo { caller: Noting(call, Arc::clone(&self.answers)), deadline, timeout }
    }

    fn open_session(&self, node: u32, call: u32) {
        let reply_to = Some(self.reply_to(node, call));
        self.nodes[&node].shared.open_session(SHARD, SessionId(7), "test".into(), reply_to).unwrap();
    }

    /// Sends the request of a number in the session to a node.
    fn request(&self, node: u32, call: u32, number: u64) {
        let identity = Identity::Session {
            session: SessionId(7),
            number: RequestNumber(number),
            confirmed: RequestNumber(0),
        };
        let request = Request {
            token: CallToken(0),
            process: Key::new("a").unwrap(),
            payload: Blob::empty(),
            principal: "test".into(),
            identity,
            colour: Colour(0),
        };
        self.nodes[&node].shared.request(SHARD, request, self.reply_to(node, call)).unwrap();
    }

    /// Returns the answers since the last look by their calls, with their counts.
    fn answered(&self) -> Vec<(u32, Result<u8, NoAnswer>)> {
        let count = |answer: Answer| match answer.result.unwrap() {
            Reply::Ok(count) => count.first().copied().unwrap_or(0),
            Reply::Err(_) => unreachable!("the handler returns no error"),
        };
        let mut answers: Vec<_> = self.answers.lock().unwrap().drain(..).collect();
        answers.sort_by_key(|(call, _)| *call);
        answers.into_iter().map(|(call, result)| (call, result.map(count))).collect()
    }

    fn end(&mut self, node: u32) {
        drop(self.nodes.remove(&node).unwrap());
    }
}

/// A cluster whose node 1 leads epoch 1, with an open session.
fn serving() -> Cluster {
    let mut cluster = Cluster::new();
    let sealed = cluster.seal(1);
    assert_eq!(sealed.keys().copied().collect::<Vec<_>>(), NODES);
    cluster.lead(1, 1, LogPoint::default());
    cluster.settle();
    cluster.open_session(1, 0);
    cluster.settle();
    assert_eq!(cluster.answered(), [(0, Ok(0))]);
    cluster
}

#[test]
fn an_answer_waits_for_a_backup_and_a_retry_at_the_next_primary_gets_the_same_one() {
    let mut cluster = serving();
    let leads =
        |cluster: &Cluster| NODES.map(|node| cluster.reports.get(&node).and_then(|report| report.leads));
    assert_eq!(leads(&cluster), [Some(Epoch(1)), None, None]);

    cluster.request(1, 1, 1);
    cluster.work(1);
    // The frames are on their way before the own log has the entry.
    assert_eq!(cluster.carry(1), 2);
    cluster.log(1);
    assert_eq!(cluster.answered(), [], "it is durable at the primary alone");
    cluster.work(2);
    cluster.carry(2);
    cluster.work(1);
    assert_eq!(cluster.answered(), [], "the backup's log does not have it");
    cluster.log(2);
    assert_eq!(cluster.carry(2), 1);
    cluster.work(1);
    assert_eq!(cluster.answered(), [(1, Ok(1))]);

    // The third node never gets the next entry, and neither does the client its answer.
    cluster.settle();
    cluster.request(1, 2, 2);
    cluster.work(1);
    cluster.nodes[&1].shared.peers.take().remove(&NodeId(2)).unwrap().into_iter().for_each(|message| {
        assert!(matches!(message, PeerMessage::Frame(..)));
        cluster.nodes[&2].shared.from_peer(message);
    });
    cluster.log(1);
    cluster.work(2);
    cluster.log(2);
    cluster.end(1);
    assert_eq!(cluster.answered(), []);

    let sealed = cluster.seal(2);
    let last = |node: u32| sealed[&node].table.last();
    assert!(last(2) > last(3), "{:?} and {:?}", last(2), last(3));
    cluster.lead(2, 2, last(2));
    cluster.settle();
    assert_eq!(leads(&cluster)[1..], [Some(Epoch(2)), None]);
    cluster.request(2, 3, 1);
    cluster.request(2, 4, 2);
    cluster.request(2, 5, 3);
    cluster.settle();
    assert_eq!(cluster.answered(), [(3, Ok(1)), (4, Ok(2)), (5, Ok(3))]);
}

#[test]
fn a_replica_that_does_not_lead_turns_calls_away() {
    let mut cluster = serving();
    cluster.request(2, 1, 1);
    cluster.settle();
    assert_eq!(cluster.answered(), [(1, Err(NoAnswer::NotHere { shard: SHARD, place: Place::Elsewhere }))]);
}

#[test]
fn a_primary_that_is_deposed_ends_its_calls_and_follows_the_next_one() {
    let mut cluster = serving();
    // It is sealed before it learns that a backup has the entry.
    cluster.request(1, 1, 1);
    cluster.work(1);
    cluster.log(1);
    cluster.carry(1);
    let sealed = cluster.seal(2);
    assert_eq!(cluster.answered(), [(1, Err(NoAnswer::Deposed { shard: SHARD }))]);
    cluster.lead(2, 2, sealed[&2].table.last());
    cluster.settle();
    // The retry at the next primary is answered: the request was handled once.
    cluster.request(2, 2, 1);
    cluster.request(2, 3, 2);
    cluster.request(1, 4, 2);
    cluster.settle();
    let not_here = NoAnswer::NotHere { shard: SHARD, place: Place::Elsewhere };
    assert_eq!(cluster.answered(), [(2, Ok(1)), (3, Ok(2)), (4, Err(not_here))]);
    assert_eq!(cluster.reports[&1].leads, None);
}

#[test]
fn a_node_with_some_of_several_replicas_takes_no_checkpoint() {
    let cluster = Cluster::new();
    let report = Arc::default();
    cluster.nodes[&1].shared.checkpoint(false, Box::new(Slot(Arc::clone(&report))));
    assert!(matches!(report.lock().unwrap().take(), Some(Err(CheckpointFailure::Store(_)))));
}

#[test]
fn a_deposed_primary_folds_its_state_anew_without_what_it_alone_had() {
    let mut cluster = serving();
    cluster.request(1, 1, 1);
    cluster.settle();
    assert_eq!(cluster.answered(), [(1, Ok(1))]);
    // No backup gets this one.
    cluster.request(1, 2, 2);
    cluster.work(1);
    cluster.log(1);
    cluster.nodes[&1].shared.peers.take();
    let sealed = cluster.seal(2);
    assert!(sealed[&1].table.last() > sealed[&2].table.last());
    cluster.lead(2, 2, sealed[&2].table.last());
    cluster.settle();
    cluster.request(2, 3, 3);
    cluster.settle();
    assert_eq!(cluster.answered(), [(2, Err(NoAnswer::Deposed { shard: SHARD })), (3, Ok(2))]);
    // It has what the others have, and leads again.
    let sealed = cluster.seal(3);
    assert_eq!(sealed[&1].table, sealed[&2].table);
    cluster.lead(3, 1, sealed[&1].table.last());
    cluster.settle();
    cluster.request(1, 4, 2);
    cluster.settle();
    assert_eq!(cluster.answered(), [(4, Ok(3))]);
}
