//! Shards that handle random causes by the protocol's rules, and whose parts are known independently of the storage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::channel::Message;
use stead_core::checkpointing::lineage::Lineage;
use stead_core::entry::{Cause, Entry, Send, Trim, Write};
use stead_core::ids::{
    BodyHash, CheckpointNumber, ClusterId, Colour, Epoch, Incarnation, Index, Micros, NodeId, Served,
    SessionId, ShardId, StepNumber, TaskId, Time, TimerId,
};
use stead_core::key::Key;
use stead_core::record::{
    IdempotencyRecord, RecordKey, SessionRecord, TaskRecord, TimerRecord, encode_value,
};
use stead_core::records::{Piece, Records};
use stead_core::reply::Reply;
use stead_core::state::{Header, State};
use stead_core::topology::Topology;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::bundle::{Author, BundleNames};
use stead_store::checkpoint::copy::Owner;
use stead_store::checkpoint::manifest::Manifest;
use stead_store::checkpoint::store::{BlobStore, DiskStore};
use stead_store::checkpoint::verify::in_flight;
use stead_store::checkpoint::write::{CheckpointWriter, Plan, Sealed};
use stead_store::sim_disk::SimDisk;

pub(crate) const INCARNATION: Incarnation = Incarnation(7);
pub(crate) const CLUSTER: ClusterId = ClusterId(0xfeed_0000_0000_0000_0000_0000_0000_beef);
pub(crate) const OWNER: Owner = Owner { cluster: CLUSTER, incarnation: INCARNATION };

/// A life of the cluster's first node.
pub(crate) fn author(writer: u64) -> Author {
    Author { cluster: CLUSTER, node: NodeId::FIRST, writer }
}

pub(crate) fn sim_store(disk: &SimDisk) -> DiskStore {
    DiskStore::open(Arc::new(disk.clone()), "checkpoints").expect("a disk that works")
}

pub(crate) struct ModelShard {
    pub(crate) state: State,
    /// Gets the same writes as the state, and takes the snapshots that a shard would.
    mirror: Records,
    full_next: bool,
}

/// Shards of two services, and everything that they ever logged.
pub(crate) struct Cluster {
    pub(crate) topology: Topology,
    pub(crate) shards: Vec<ModelShard>,
    pub(crate) rng: fastrand::Rng,
    pub(crate) log: Vec<(ShardId, Entry)>,
    /// The names and the lineage of the first node.
    pub(crate) names: BundleNames,
    pub(crate) lineage: Lineage,
    /// Those of the other nodes. The nodes have the shards in turn.
    pub(crate) others: Vec<(BundleNames, Lineage)>,
    pub(crate) number: CheckpointNumber,
    /// The epoch of the entries that are made.
    pub(crate) epoch: Epoch,
    pub(crate) value_max: usize,
    pub(crate) keys: u32,
}

/// The state of each shard at its marker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cut {
    pub(crate) hashes: Vec<u128>,
    pub(crate) processes: BTreeMap<(usize, Vec<u8>), Vec<u8>>,
    /// Messages sent less messages received.
    pub(crate) in_flight: i64,
}

impl Cluster {
    pub(crate) fn new(seed: u64, counts: [u32; 2]) -> Self {
        let mut topology = Topology::new(INCARNATION);
        topology.ensure("left", counts[0]).unwrap();
        topology.ensure("right", counts[1]).unwrap();
        let shards = topology
            .shards()
            .map(|shard| ModelShard { state: State::new(shard), mirror: Records::new(), full_next: false })
            .collect();
        Self {
            topology,
            shards,
            rng: fastrand::Rng::with_seed(seed),
            log: Vec::new(),
            names: BundleNames::new(author(seed)),
            lineage: Lineage::new(),
            others: Vec::new(),
            number: CheckpointNumber(0),
            epoch: Epoch(1),
            value_max: 60,
            keys: 30,
        }
    }

    fn process(&mut self) -> (ShardId, Key) {
        let service = self.topology.services()[self.rng.usize(0..2)].name.clone();
        let service = self.topology.service_id(&service).unwrap();
        let key = format!("p{}", self.rng.u32(0..self.keys));
        (self.topology.shard_of(service, &key), Key::new(&key).unwrap())
    }

    fn blob(&mut self) -> Blob {
        let len = self.rng.usize(0..self.value_max);
        Blob::from((0..len).map(|_| self.rng.u8(..)).collect::<Vec<u8>>())
    }

    fn writes(&mut self, shard: ShardId, process: &Key) -> Vec<Write> {
        let index = self.shards[shard.0 as usize].state.position().index.next();
        let mut writes = Vec::new();
        for n in 0..self.rng.u64(0..4) {
            let blob = self.blob();
            let process = process.clone();
            let id = index.0 << 16 | n;
            let (key, value) = match self.rng.u8(0..10) {
                0..4 => (RecordKey::process(&process), blob),
                4..6 => (RecordKey::cell(&process, &[self.rng.u8(0..4)]), blob),
                6 => {
                    let record = TimerRecord { at: Time(5), process, payload: blob, send: None };
                    (RecordKey::timer(TimerId(id)), encode_value(&record))
                }
                7 => {
                    let record = TaskRecord {
                        process,
                        name: "t".into(),
                        step: StepNumber(0),
                        state: blob,
                        progress: 0,
                        retry: None,
                    };
                    (RecordKey::task(TaskId(id)), encode_value(&record))
                }
                8 => {
                    let record = IdempotencyRecord {
                        body_hash: BodyHash([1; 16]),
                        reply: Reply::Ok(blob),
                        expires: Served(9),
                    };
                    (RecordKey::idempotency(&process, "me", &[self.rng.u8(0..4)]), encode_value(&record))
                }
                _ => {
                    let record = SessionRecord {
                        principal: "me".into(),
                        expires: Served(9),
                        confirmed: Default::default(),
                    };
                    (RecordKey::session(SessionId(u128::from(self.rng.u8(0..3)))), encode_value(&record))
                }
            };
            let value = (self.rng.u8(0..4) > 0).then_some(value);
            if !writes.iter().any(|write: &Write| write.key == key) {
                writes.push(Write { key, value });
            }
        }
        writes
    }

    fn sends(&mut self) -> Vec<Send> {
        let count = self.rng.usize(0..3);
        (0..count)
            .map(|_| {
                let (to, process) = self.process();
                Send { to, process, payload: self.blob() }
            })
            .collect()
    }

    fn append(&mut self, shard: ShardId, cause: Cause, process: Key, writes: Vec<Write>, sends: Vec<Send>) {
        let model = &mut self.shards[shard.0 as usize];
        let position = model.state.position();
        let entry = Entry {
            index: position.index.next(),
            epoch: self.epoch,
            time: position.time.plus_micros(1),
            cause,
            process,
            writes,
            sends,
            reply: None,
            served: Some(Micros(1)),
        };
        for write in &entry.writes {
            match &write.value {
                Some(value) => drop(model.mirror.put(write.key.as_bytes(), value.clone())),
                None => drop(model.mirror.remove(write.key.as_bytes())),
            }
        }
        model.state.apply(entry.clone()).unwrap();
        assert_eq!(model.mirror.hash(), model.state.records().hash());
        self.log.push((shard, entry));
    }

    /// Messages that wait, of channels by sender and receiver.
    fn waiting(&self) -> Vec<(ShardId, ShardId, Message)> {
        let mut waiting = Vec::new();
        for from in self.topology.shards() {
            for (to, outbox) in self.shards[from.0 as usize].state.outboxes().iter() {
                let received =
                    self.shards[to.0 as usize].state.received().get(from).copied().unwrap_or_default();
                let first = outbox.messages.iter().find(|message| message.seq > received);
                waiting.extend(first.map(|message| (from, to, message.clone())));
            }
        }
        waiting
    }

    /// One random cause; `mark` takes the part of a shard that learns of a colour.
    fn step(&mut self, mark: &mut dyn FnMut(&mut Self, ShardId, Colour)) {
        match self.rng.u8(0..10) {
            0..5 => {
                let (shard, process) = self.process();
                let (writes, sends) = (self.writes(shard, &process), self.sends());
                self.append(shard, Cause::Anonymous, process, writes, sends);
            }
            5..8 => {
                let waiting = self.waiting();
                let Some((from, to, message)) = self.rng.choice(waiting) else { return };
                let colour = self.shards[from.0 as usize].state.position().colour;
                mark(self, to, colour);
                let writes = self.writes(to, &message.process);
                let sends = if self.rng.u8(0..3) == 0 { self.sends() } else { Vec::new() };
                self.append(to, Cause::Message { from, seq: message.seq }, message.process, writes, sends);
            }
            _ => {
                let from = ShardId(self.rng.u32(0..self.topology.shard_count()));
                let to = ShardId(self.rng.u32(0..self.topology.shard_count()));
                let received = self.shards[to.0 as usize].state.received().get(from).copied();
                let Some(upto) = received else { return };
                let colour = self.shards[to.0 as usize].state.position().colour;
                mark(self, from, colour);
                self.append(from, Cause::Ack { trims: vec![Trim { to, upto }] }, Key::none(), vec![], vec![]);
            }
        }
    }

    pub(crate) fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step(&mut |_, _, _| {});
        }
    }

    /// Puts a second node beside the first one.
    pub(crate) fn add_node(&mut self) {
        let node = NodeId(2 + self.others.len() as u32);
        let author = Author { node, ..self.names.author() };
        self.others.push((BundleNames::new(author), Lineage::new()));
    }

    /// Returns the position of the node that has a shard.
    fn node_of(&self, shard: ShardId) -> usize {
        shard.0 as usize % (1 + self.others.len())
    }

    fn plan(&self, node: usize) -> Plan {
        let names = if node == 0 { &self.names } else { &self.others[node - 1].0 };
        let here = self.topology.shards().filter(|shard| self.node_of(*shard) == node);
        Plan {
            number: self.number,
            created: Time(self.number.0),
            topology: self.topology.clone(),
            parts: here.map(|shard| (shard, self.epoch)).collect(),
            bundle: names.draw(self.number),
            author: names.author(),
        }
    }

    /// Takes a checkpoint of one node while work goes on, up to the manifest. An error leaves the snapshots lost, as in a
    /// node.
    pub(crate) fn seal(&mut self, store: &dyn BlobStore) -> (Cut, Result<Sealed, CheckpointError>) {
        let (cut, sealed) = self.seal_all(store);
        let only = |mut sealed: Vec<Sealed>| {
            assert_eq!(sealed.len(), 1);
            sealed.remove(0)
        };
        (cut, sealed.map(only))
    }

    /// Takes a checkpoint of all nodes, as [`Self::seal`] does, to one store.
    pub(crate) fn seal_all(&mut self, store: &dyn BlobStore) -> (Cut, Result<Vec<Sealed>, CheckpointError>) {
        self.number = self.number.next();
        let mut writers: Vec<_> =
            (0..=self.others.len()).map(|node| CheckpointWriter::create(store, self.plan(node))).collect();
        let mut cut = Cut { hashes: vec![0; self.shards.len()], ..Cut::default() };
        let mut parts: Vec<(Header, bool)> = Vec::new();
        let mut open: Vec<ShardId> = Vec::new();
        let mut unmarked: BTreeSet<ShardId> = self.topology.shards().collect();
        let number = self.number;
        while !unmarked.is_empty() || !open.is_empty() {
            let mut mark = |cluster: &mut Self, shard: ShardId, colour: Colour| {
                if colour == number.colour() && unmarked.remove(&shard) {
                    parts.push(cluster.mark(shard, &mut cut));
                }
            };
            if self.rng.u8(0..4) == 0 {
                let shard = ShardId(self.rng.u32(0..self.topology.shard_count()));
                mark(self, shard, number.colour());
            } else {
                self.step(&mut mark);
            }
            for (header, full) in parts.drain(..) {
                open.push(header.shard);
                if let Ok(writer) = &mut writers[self.node_of(header.shard)]
                    && let Err(error) = writer.begin_part(header, full)
                {
                    return (cut, Err(self.fail(error)));
                }
            }
            if open.is_empty() {
                continue;
            }
            let at = self.rng.usize(0..open.len());
            let slice = self.rng.usize(1..9);
            let mut piece = Piece::default();
            let done = self.shards[open[at].0 as usize].mirror.drain_snapshot(slice, &mut piece);
            if let Ok(writer) = &mut writers[self.node_of(open[at])] {
                let written = writer.piece(open[at], &piece.to_vec()).and_then(|()| match done {
                    true => writer.end_part(open[at]).map(drop),
                    false => Ok(()),
                });
                if let Err(error) = written {
                    return (cut, Err(self.fail(error)));
                }
            }
            if done {
                open.swap_remove(at);
            }
        }
        let lineages = [&self.lineage].into_iter().chain(self.others.iter().map(|(_, lineage)| lineage));
        let seal = |(writer, lineage): (Result<CheckpointWriter, _>, &Lineage)| writer?.seal(lineage);
        let sealed: Result<Vec<Sealed>, _> = writers.into_iter().zip(lineages).map(seal).collect();
        (cut, sealed.map_err(|error| self.fail(error)))
    }

    /// After a failed checkpoint every shard's next part is whole.
    fn fail(&mut self, error: CheckpointError) -> CheckpointError {
        for shard in &mut self.shards {
            let mut dropped = Piece::default();
            while !shard.mirror.drain_snapshot(100, &mut dropped) {}
            shard.full_next = true;
        }
        error
    }

    pub(crate) fn fail_next(&mut self) {
        for shard in &mut self.shards {
            shard.full_next = true;
        }
    }

    fn mark(&mut self, shard: ShardId, cut: &mut Cut) -> (Header, bool) {
        self.append(shard, Cause::Marker { colour: self.number.colour() }, Key::none(), vec![], vec![]);
        let model = &mut self.shards[shard.0 as usize];
        let full = std::mem::take(&mut model.full_next);
        model.mirror.begin_snapshot(full);
        cut.hashes[shard.0 as usize] = model.state.hash();
        for (_, outbox) in model.state.outboxes().iter() {
            cut.in_flight += i64::try_from(outbox.next.0).unwrap() - 1;
        }
        for (_, received) in model.state.received().iter() {
            cut.in_flight -= i64::try_from(received.0).unwrap();
        }
        let service = usize::from(self.topology.service_of(shard).unwrap().0);
        for (key, value) in model.state.records().iter() {
            if matches!(key[0], 1 | 2 | 5) {
                cut.processes.insert((service, key.to_vec()), value.to_vec());
            }
        }
        (model.state.header(), full)
    }

    /// Takes a whole checkpoint.
    pub(crate) fn checkpoint(&mut self, store: &dyn BlobStore) -> (Cut, Manifest) {
        let (cut, sealed) = self.seal(store);
        let (manifest, lineage) = sealed.unwrap().store(store).unwrap();
        self.lineage = lineage;
        (cut, manifest)
    }

    /// Takes a whole checkpoint of all nodes: one manifest over the bundles of each.
    pub(crate) fn checkpoint_of_all(&mut self, store: &dyn BlobStore) -> (Cut, Manifest) {
        let (cut, sealed) = self.seal_all(store);
        let sealed = sealed.unwrap();
        let manifest = join(&sealed);
        manifest.store(store).unwrap();
        self.lineage = sealed[0].lineage().clone();
        for ((_, lineage), sealed) in self.others.iter_mut().zip(&sealed[1..]) {
            *lineage = sealed.lineage().clone();
        }
        (cut, manifest)
    }

    pub(crate) fn index(&self, shard: ShardId) -> Index {
        self.shards[shard.0 as usize].state.position().index
    }
}

/// Joins the manifests of several nodes to that of the checkpoint.
fn join(sealed: &[Sealed]) -> Manifest {
    let headers: Vec<Header> = sealed.iter().flat_map(|sealed| sealed.headers().to_vec()).collect();
    let mut all = sealed[0].manifest().clone();
    for other in sealed[1..].iter().map(Sealed::manifest) {
        let before = all.bundles.len() as u32;
        all.bundles.extend_from_slice(&other.bundles);
        for mut part in other.parts.iter().cloned() {
            part.header += before;
            part.sections.iter_mut().for_each(|section| section.bundle += before);
            all.parts.push(part);
        }
        all.totals.records += other.totals.records;
        all.totals.section_bytes += other.totals.section_bytes;
        all.totals.written_bytes += other.totals.written_bytes;
    }
    all.parts.sort_by_key(|part| part.shard);
    all.in_flight = in_flight(&headers);
    all.totals.messages = all.in_flight.iter().map(|channel| channel.messages).sum();
    all.totals.message_bytes = all.in_flight.iter().map(|channel| channel.bytes).sum();
    all
}
