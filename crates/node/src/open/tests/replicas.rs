//! Three nodes with the replicas of one shard. The test is their network and their control plane.

mod forwarding;
mod placing;
mod trimming;

use super::*;
use crate::control::ControlNews;
use crate::open::RecoverOptions;
use crate::peers::PeerMessage;
use stead_core::commit_tracker::EpochConfig;
use stead_core::control::directory::ShardRoute;
use stead_core::control::facts::Fact;
use stead_core::ids::{
    ClusterId, Generation, Incarnation, Life, Micros, NodeId, ReplicaId, RequestNumber, Seq, SessionId,
};
use stead_core::replication::epoch::{EpochRecord, Seal, SealAnswer};
use stead_core::replication::freshness::TooStale;
use stead_core::replication::replica::AppendHead;
use stead_core::replication::table::{LogPoint, Losses};
use stead_core::shard::Messages;
use stead_core::shard_replica::{self, Frame};
use stead_core::trials::TrialKind;
use stead_net::replica::Route;
use stead_store::checkpoint::Belonging;
use stead_store::checkpoint::bundle::Author;
use stead_store::snapshots::{SnapshotName, Snapshots, Source};
use stead_store::wal::WalOptions;

const SHARD: ShardId = ShardId(0);
const NODES: [u32; 3] = [1, 2, 3];
/// The age that the dial allows a stale read.
const MAX_LAG: Micros = Micros::from_secs(10);

/// Three nodes, of which some may have ended. Replica n is on node n, unless a test places others.
struct Cluster {
    /// The replicas by their nodes.
    placed: BTreeMap<u32, ReplicaId>,
    /// The newest route to them.
    route: Option<ShardRoute>,
    disks: BTreeMap<u32, SimDisk>,
    nodes: BTreeMap<u32, stepped::Stepped<Stepped>>,
    answers: Answers,
    facts: Vec<Fact>,
    reports: BTreeMap<u32, stead_core::control::facts::ShardReport>,
    /// The messages that were carried, and those of them that were pieces of snapshots.
    carried: usize,
    chunks: usize,
    /// A node from and to which nothing is carried.
    cut_off: Option<u32>,
    /// The growth of a log between two snapshots of a replica.
    snapshot_log_bytes: u64,
}

impl Cluster {
    fn new() -> Self {
        Self::with(NODES.map(|node| (node, ReplicaId(node.into()))).into())
    }

    fn with(placed: BTreeMap<u32, ReplicaId>) -> Self {
        Self::with_snapshots(placed, Sizes::default().snapshot_log_bytes)
    }

    fn with_snapshots(placed: BTreeMap<u32, ReplicaId>, snapshot_log_bytes: u64) -> Self {
        let disks = NODES.map(|node| (node, SimDisk::new(node.into()))).into();
        let (answers, facts, reports) = (Answers::default(), Vec::new(), BTreeMap::new());
        let (nodes, cut_off) = (BTreeMap::new(), None);
        let mut cluster = Self {
            placed,
            route: None,
            disks,
            nodes,
            answers,
            facts,
            reports,
            carried: 0,
            chunks: 0,
            cut_off,
            snapshot_log_bytes,
        };
        NODES.iter().for_each(|node| cluster.open(*node));
        cluster
    }

    /// Opens a node, or opens it again.
    fn open(&mut self, node: u32) {
        // Each request would be preceded by the entry of an attempt at it: no life before has ended in order.
        let settings = Settings { suspect_for: Micros(0), ..Settings::default() };
        let service = ServiceLimits { name: "counter".to_owned(), shards: Some(1), when_new: 1, settings };
        let replicated = self.placed.get(&node).map(|replica| (SHARD, *replica)).into_iter().collect();
        let options = Options { services: vec![service], replicated, in_cluster: true, ..Node::options(1) };
        let code = Registered { program: &Counters, without_code: &options.without_code };
        let meta = || Meta::new(ClusterId(1), Incarnation(1), NodeId(node), node.into());
        let disk: Arc<dyn Disk> = Arc::new(self.disks[&node].clone());
        let production = plan::recover_options(&options);
        let wal = WalOptions { segment_bytes_min: 16 << 10, ..production.wal };
        let found = recover(disk, &code, RecoverOptions { wal, ..production }, meta).unwrap();
        let watch = Withholding { tickets_max: AtomicU64::new(u64::MAX), ..Withholding::default() };
        let around = (Ticking(AtomicU64::new(1_000_000_000)), watch);
        // The snapshots of the few processes here are several chunks.
        let snapshot_log_bytes = self.snapshot_log_bytes;
        let sizes = Sizes { chunk_bytes: 100, snapshot_log_bytes, ..Sizes::default() };
        let drawn = Drawn { sizes, ..Drawn::fresh() };
        let mut opened = stepped::Stepped::assemble(Counters, around, found, options, drawn);
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
            if [from, to.0].contains(&self.cut_off.unwrap_or(0)) {
                continue;
            }
            for message in messages {
                count += 1;
                self.chunks += usize::from(matches!(message, PeerMessage::Chunk(..)));
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
            if !self.round() {
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

    /// Gives all nodes turns, and carries their messages once; returns whether there were any.
    fn round(&mut self) -> bool {
        for node in NODES {
            // Its parts leave each other work several times, before anything leaves the node.
            for _ in 0..4 {
                self.work(node);
                self.log(node);
                self.turn(node, PartId::Transfers);
                self.turn(node, PartId::Query(0));
            }
        }
        NODES.map(|node| self.carry(node)) != [0; 3]
    }

    /// Informs two nodes that messages flow between them from now on.
    fn connect(&self, one: u32, two: u32) {
        for (node, other) in [(one, two), (two, one)] {
            self.give(node, shard_replica::Input::Connected(ReplicaId(other.into())));
        }
    }

    fn replica(&self, node: u32) -> &shard_replica::ShardReplica {
        self.nodes[&node].worker(0).unwrap().replicas().next().unwrap()
    }

    /// Writes what a node has committed as a snapshot to the disk of one; returns its last entry, and loads the state.
    fn snapshot(&self, of: u32, to: u32) -> (LogPoint, Box<State>) {
        let state = self.replica(of).committed_state().unwrap();
        let base = LogPoint { epoch: state.position().epoch, index: state.position().index };
        let name = SnapshotName { shard: SHARD, replica: ReplicaId(to.into()), base };
        let author = Author { cluster: ClusterId(1), node: NodeId(to), writer: 1 };
        let snapshots = Snapshots::new(Arc::new(self.disks[&to].clone()));
        let contents = (&state.header(), state.records());
        snapshots.write((Source::Own, name), author, Incarnation(1), contents).unwrap();
        let belonging = Belonging { cluster: Some(ClusterId(1)), incarnation: Incarnation(1) };
        (base, Box::new(snapshots.load(Source::Own, name, belonging).unwrap()))
    }

    /// Lets a node's log begin behind what it has committed, as if it were trimmed up to there.
    fn trim(&mut self, node: u32) {
        let (base, _) = self.snapshot(node, node);
        self.give(node, shard_replica::Input::Trimmed(base));
        self.settle();
        assert_eq!(self.replica(node).replica().table().base(), base);
    }

    /// Lets the transfer of a snapshot to node 3 begin, and cuts that node off until what is on its way is lost.
    fn cut(&mut self) {
        while self.chunks < 3 {
            self.round();
        }
        self.cut_off = Some(3);
        self.settle();
        self.cut_off = None;
        assert_eq!(self.replica(3).replica().table().base(), LogPoint::default(), "it is not whole");
    }

    /// Returns the files of snapshots on a node's disk.
    fn snapshot_files(&self, node: u32) -> Vec<String> {
        let files = |dir: &str| self.disks[&node].list(dir).unwrap_or_default();
        [files("replicas/own"), files("replicas/snapshots")].concat()
    }

    /// Lets time pass at nodes, and settles.
    fn pass(&mut self, nodes: &[u32], millis: u64) {
        for node in nodes.iter().filter_map(|node| self.nodes.get(node)) {
            node.shared.clock.0.fetch_add(millis * 1000, Ordering::Relaxed);
        }
        self.settle();
    }

    /// Waits until calls are repeated that came before their shard served.
    fn wait(&mut self) {
        self.pass(&NODES, 20);
        self.pass(&NODES, 20);
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
        let members = self.placed.values().copied().collect();
        self.lead_with(epoch, node, base, (members, Vec::new()));
    }

    /// Makes a node lead an epoch of these members with W = 2, with learners.
    fn lead_with(
        &mut self,
        epoch: u64,
        node: u32,
        base: LogPoint,
        (members, learners): (Vec<ReplicaId>, Vec<ReplicaId>),
    ) {
        let (epoch, primary) = (Epoch(epoch), self.placed[&node]);
        let config = EpochConfig::parse(epoch, members, 2, primary).unwrap();
        let replicas = self.placed.iter().map(|(node, replica)| (*replica, NodeId(*node))).collect();
        let route = ShardRoute { epoch, primary, replicas, max_lag: MAX_LAG };
        self.nodes.values().for_each(|node| node.shared.follow_routes([(SHARD, &route)]));
        self.route = Some(route);
        let (life, lease) = (Life(self.nodes[&node].shared.lives()), Micros(0));
        let (generation, losses, earlier) = (Generation(0), Losses::default(), BTreeMap::new());
        let record = Box::new(EpochRecord { config, life, lease, generation, base, losses, earlier });
        self.give(node, shard_replica::Input::Lead { record, learners, max_lag: MAX_LAG });
    }

    /// Lets node 1, which leads epoch 1, take a request that no backup gets, and node 2 lead epoch 2, in which its entry is cut.
    fn succeed_without(&mut self, call: u32) {
        self.request(1, call, call.into());
        self.work(1);
        self.log(1);
        self.nodes[&1].shared.peers.take();
        let sealed = self.seal(2);
        assert!(sealed[&1].table.last() > sealed[&2].table.last());
        self.lead(2, 2, sealed[&2].table.last());
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
            seen: None,
            is_first: false,
        };
        self.nodes[&node].shared.request(SHARD, request, self.reply_to(node, call)).unwrap();
    }

    fn query(&self, node: u32, read: Read) {
        let (process, principal) = (Key::new("a").unwrap(), "test".into());
        let (token, payload) = (CallToken(0), Blob::empty());
        let query = Query { token, process, payload, principal, read, seen: None };
        self.nodes[&node].shared.query(SHARD, query, self.reply_to(node, 0)).unwrap();
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
    begin_to_serve(Cluster::new())
}

fn begin_to_serve(mut cluster: Cluster) -> Cluster {
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
fn messages_for_shards_and_replicas_that_are_not_here_change_nothing() {
    let mut cluster = serving();
    let node = &cluster.nodes[&1].shared;
    let before = cluster.replica(1).state().unwrap().hash();
    for shard in [SHARD, ShardId(1), ShardId(u32::MAX)] {
        let route = |to| Route { shard, from: ReplicaId(2), to: ReplicaId(to) };
        let frame = || Frame::Ack { epoch: Epoch(9), upto: Index(99) };
        node.from_peer(PeerMessage::Frame(route(99), frame()));
        if shard != SHARD {
            node.from_peer(PeerMessage::Frame(route(1), frame()));
        }
        let (from, upto, colour) = (ShardId(7), Seq(9), Colour(0));
        node.from_peer(PeerMessage::Ack { from, to: shard, upto, colour });
        node.from_peer(PeerMessage::Deliver { from, to: shard, messages: Messages::new(), again: true });
    }
    cluster.settle();
    assert_eq!(cluster.replica(1).state().unwrap().hash(), before);
    cluster.request(1, 1, 1);
    cluster.settle();
    assert_eq!(cluster.answered(), [(1, Ok(1))]);
}

#[test]
fn a_primary_that_is_deposed_passes_its_calls_on_and_follows_the_next_one() {
    let mut cluster = serving();
    // It is sealed before it learns that a backup has the entry.
    cluster.request(1, 1, 1);
    cluster.work(1);
    cluster.log(1);
    cluster.carry(1);
    let sealed = cluster.seal(2);
    assert_eq!(cluster.answered(), []);
    cluster.lead(2, 2, sealed[&2].table.last());
    cluster.settle();
    cluster.wait();
    assert_eq!(cluster.answered(), [(1, Ok(1))], "the next one answers it");
    // Also a retry: the request was handled once.
    cluster.request(2, 2, 1);
    cluster.request(2, 3, 2);
    cluster.request(1, 4, 2);
    cluster.settle();
    assert_eq!(cluster.answered(), [(2, Ok(1)), (3, Ok(2)), (4, Ok(2))]);
    assert_eq!(cluster.reports[&1].leads, None);
}

#[test]
fn a_node_with_some_of_several_replicas_takes_no_checkpoint() {
    let cluster = Cluster::new();
    let report = Arc::default();
    cluster.nodes[&1].shared.checkpoint(false, Box::new(Slot(Arc::clone(&report))));
    assert!(matches!(report.lock().unwrap().take(), Some(Err(CheckpointFailure::Store(_)))));
    let life = cluster.nodes[&1].life();
    assert!(matches!(
        life.set_checkpoint_interval(Some(Duration::from_secs(1))),
        Err(CheckpointFailure::Store(_))
    ));
    life.set_checkpoint_interval(None).unwrap();
}

#[test]
fn a_deposed_primary_folds_its_state_anew_without_what_it_alone_had() {
    let mut cluster = serving();
    cluster.request(1, 1, 1);
    cluster.settle();
    assert_eq!(cluster.answered(), [(1, Ok(1))]);
    cluster.succeed_without(2);
    cluster.settle();
    cluster.wait();
    cluster.request(2, 3, 3);
    cluster.settle();
    assert_eq!(cluster.answered(), [(2, Ok(2)), (3, Ok(3))], "the next primary handles what was lost");
    // It has what the others have, and leads again.
    let sealed = cluster.seal(3);
    assert_eq!(sealed[&1].table, sealed[&2].table);
    cluster.lead(3, 1, sealed[&1].table.last());
    cluster.settle();
    cluster.request(1, 4, 4);
    cluster.settle();
    assert_eq!(cluster.answered(), [(4, Ok(4))]);
}

/// A cluster whose node 1 leads epoch 1 of all three nodes, whose log is trimmed there and on node 2. Node 3 has nothing of it: it has just come.
fn lagging() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.end(3);
    cluster.seal(1);
    cluster.lead(1, 1, LogPoint::default());
    cluster.settle();
    cluster.open_session(1, 0);
    cluster.settle();
    for number in 1..=20 {
        cluster.request(1, number, number.into());
    }
    cluster.settle();
    assert_eq!(cluster.answered().len(), 21);
    cluster.trim(1);
    cluster.trim(2);
    cluster.open(3);
    let route = ShardRoute {
        epoch: Epoch(1),
        primary: ReplicaId(1),
        replicas: NODES.map(|node| (ReplicaId(node.into()), NodeId(node))).into(),
        max_lag: MAX_LAG,
    };
    cluster.nodes[&3].shared.follow_routes([(SHARD, &route)]);
    cluster.connect(1, 3);
    cluster
}

#[test]
fn a_replica_that_comes_once_the_log_is_trimmed_gets_a_snapshot_while_the_shard_serves() {
    let mut cluster = lagging();
    let (trimmed, mut number) = (cluster.replica(1).replica().table().base(), 20);
    while cluster.replica(3).replica().table().base() == LogPoint::default() {
        number += 1;
        assert!(number < 100, "it gets no snapshot");
        cluster.request(1, number, number.into());
        cluster.round();
    }
    cluster.settle();
    assert!(cluster.chunks > 3, "{} chunks", cluster.chunks);
    let served: Vec<_> = (21..=number).map(|number| (number, Ok(number as u8))).collect();
    assert_eq!(cluster.answered(), served);
    let base = cluster.replica(3).replica().table().base();
    assert_eq!(base, trimmed, "the entries behind that are in the log");
    assert_eq!(cluster.replica(3).replica().table().last(), cluster.replica(1).replica().table().last());
    let name = format!("0-3-1-{}.snapshot", base.index);
    assert_eq!(cluster.snapshot_files(3), [name]);
    assert_eq!(cluster.snapshot_files(1).len(), 1, "that of the trim");

    // It has all that was answered: after a restart, and as the only one that is left of those that served.
    cluster.end(3);
    cluster.open(3);
    assert_eq!(cluster.replica(3).replica().table().base(), base);
    let sealed = cluster.seal(2);
    cluster.end(1);
    cluster.lead(2, 3, sealed[&3].table.last());
    cluster.settle();
    cluster.request(3, 200, number.into());
    cluster.request(3, 201, u64::from(number) + 1);
    cluster.settle();
    assert_eq!(cluster.answered(), [(200, Ok(number as u8)), (201, Ok(number as u8 + 1))]);
}

#[test]
fn a_snapshot_that_is_cut_goes_on_over_the_next_connection() {
    let mut cluster = lagging();
    cluster.cut();
    let before = cluster.chunks;
    cluster.connect(1, 3);
    cluster.settle();
    let last = cluster.replica(1).replica().table().last();
    assert_eq!(cluster.replica(3).replica().table().last(), last);
    let again = cluster.chunks - before;
    assert_eq!(cluster.answered(), []);

    // Chunks that had arrived were not sent again.
    let mut whole = lagging();
    whole.settle();
    assert!(again < whole.chunks, "{again} of {}", whole.chunks);
}

#[test]
fn a_chunk_that_is_lost_is_sent_again_after_a_while() {
    let mut cluster = lagging();
    cluster.cut();
    for node in cluster.nodes.values() {
        node.shared.clock.0.fetch_add(300_000, Ordering::Relaxed);
    }
    cluster.settle();
    let last = cluster.replica(1).replica().table().last();
    assert_eq!(cluster.replica(3).replica().table().last(), last);
}

#[test]
fn a_snapshot_of_an_epoch_that_is_over_is_dropped() {
    let mut cluster = lagging();
    cluster.cut();
    // Node 3 does not take part in this one.
    let late = cluster.nodes.remove(&3).unwrap();
    let sealed = cluster.seal(2);
    cluster.lead(2, 2, sealed[&2].table.last());
    cluster.settle();
    assert_eq!(cluster.snapshot_files(1).len(), 1, "that of the trim");
    cluster.nodes.insert(3, late);
    cluster.connect(2, 3);
    cluster.settle();
    let base = cluster.replica(3).replica().table().base();
    assert_eq!(base, sealed[&2].table.base(), "that of the second node");
    let last = cluster.replica(2).replica().table().last();
    assert_eq!(cluster.replica(3).replica().table().last(), last);
    cluster.request(2, 30, 21);
    cluster.settle();
    assert_eq!(cluster.answered(), [(30, Ok(21))]);
}

#[test]
fn a_backup_answers_a_stale_read_with_its_age_and_forwards_others() {
    let mut cluster = serving();
    cluster.request(1, 1, 1);
    cluster.settle();
    assert_eq!(cluster.answered(), [(1, Ok(1))]);
    let ask = |cluster: &mut Cluster, read| {
        cluster.query(2, read);
        cluster.settle();
        cluster.answers.lock().unwrap().pop().unwrap().1
    };
    let stale = Read::Stale { max_lag: None };
    let unknown = ask(&mut cluster, stale).unwrap();
    assert_eq!(unknown.result, Err(Refusal::TooStale(TooStale::Unknown)), "no round was confirmed");
    // The heartbeats of the primary carry the age: of the round before the last one.
    for _ in 0..3 {
        for node in cluster.nodes.values() {
            node.shared.clock.0.fetch_add(100_000, Ordering::Relaxed);
        }
        cluster.settle();
    }
    let answer = ask(&mut cluster, stale).unwrap();
    assert_eq!(answer.result, Ok(Reply::Ok(Blob::from([1].as_slice()))));
    let staleness = answer.staleness.unwrap();
    assert!((100_000..300_000).contains(&staleness.0), "{staleness}");
    let over = ask(&mut cluster, Read::Stale { max_lag: Some(Micros(1_000)) }).unwrap().result;
    assert!(matches!(over, Err(Refusal::TooStale(TooStale::Over { .. }))), "{over:?}");
    let max_lag = Micros(1_000);
    let route = ShardRoute { max_lag, ..cluster.route.clone().unwrap() };
    cluster.nodes[&2].shared.follow_routes([(SHARD, &route)]);
    let over = ask(&mut cluster, stale).unwrap().result;
    let is_over = |over| matches!(over, TooStale::Over { max_lag: Micros(1_000), .. });
    assert!(matches!(over, Err(Refusal::TooStale(why)) if is_over(why)), "the dial allows less now");
    let forwarded = ask(&mut cluster, Read::Linearizable).unwrap();
    assert_eq!(forwarded.result, Ok(Reply::Ok(Blob::from([1].as_slice()))));
    assert_eq!(forwarded.staleness, None, "the primary answered it");
}

#[test]
fn a_turn_of_an_epoch_that_is_over_does_not_reach_the_next_one() {
    let mut cluster = serving();
    let turns = |cluster: &Cluster| cluster.nodes[&1].shared.watch.turns.load(Ordering::Relaxed);
    // It is deposed, and leads again, before it looks at the turn.
    let base = cluster.replica(1).replica().table().last();
    cluster.nodes[&1].shared.push(SHARD, Input::Turn(TrialKind::Handlers));
    cluster.give(1, shard_replica::Input::Seal(Seal { epoch: Epoch(2), lease: Micros(0) }));
    cluster.lead(2, 1, base);
    cluster.settle();
    assert_eq!(cluster.replica(1).replica().leads(), Some(Epoch(2)));
    assert_eq!(turns(&cluster), 0);
}

#[test]
fn a_replica_is_given_up_only_for_a_primary_that_the_control_plane_names() {
    let void = |cluster: &mut Cluster| {
        cluster.settle();
        cluster.facts.drain(..).any(|fact| matches!(fact, Fact::Void(SHARD, ReplicaId(2))))
    };
    // Its log has another entry at a place that is committed.
    let contradict = |cluster: &Cluster, epoch: u64| {
        let before = LogPoint { epoch: Epoch(epoch), index: Index(1) };
        let head = AppendHead { epoch: Epoch(epoch), before, commit: Index(0) };
        let frame = Frame::Append { head, record: None, entries: Vec::new() };
        cluster.give(2, shard_replica::Input::Frame { from: ReplicaId(3), frame });
    };
    let follow = |cluster: &Cluster, epoch: u64, primary: u64| {
        let replicas = NODES.map(|node| (ReplicaId(node.into()), NodeId(node))).into();
        let (epoch, primary) = (Epoch(epoch), ReplicaId(primary));
        let route = ShardRoute { epoch, primary, replicas, max_lag: MAX_LAG };
        cluster.nodes[&2].shared.follow_routes([(SHARD, &route)]);
    };
    let mut cluster = serving();
    contradict(&cluster, 9);
    assert!(!void(&mut cluster), "no epoch 9 is known");
    // Another one leads it, or it is over.
    follow(&cluster, 9, 1);
    assert!(!void(&mut cluster));
    contradict(&cluster, 10);
    follow(&cluster, 11, 3);
    assert!(!void(&mut cluster));
    contradict(&cluster, 12);
    follow(&cluster, 12, 3);
    assert!(void(&mut cluster), "an operator gave up what it holds");
    follow(&cluster, 12, 3);
    assert!(!void(&mut cluster), "once");
}
