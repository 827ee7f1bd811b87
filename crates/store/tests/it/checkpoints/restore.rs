//! Restores onto the same and other numbers of shards: nothing is lost, doubled or out of order.

use super::model::{CLUSTER, Cluster, author, sim_store};
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_core::ids::{CheckpointNumber, Colour, Incarnation, Seq, ShardId, Time};
use stead_core::placement::Placement;
use stead_core::record::{Kind, RecordKey, TaskRecord, TimerRecord, decode_value};
use stead_core::state::State;
use stead_store::checkpoint::bundle::BundleNames;
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{Manifest, newest};
use stead_store::checkpoint::restore::{Restore, RestoreError, Restored, restore};
use stead_store::checkpoint::store::{BlobStore, DiskStore};
use stead_store::checkpoint::verify::verify_checkpoint;
use stead_store::recovery::{Facts, recover};
use stead_store::sim_disk::SimDisk;
use stead_store::wal::WalOptions;

fn options(shards: &[(&str, u32)]) -> Restore {
    Restore {
        incarnation: Incarnation(8),
        shards: shards.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
        created: Time(77),
    }
}

fn states(store: &dyn BlobStore, manifest: &Manifest) -> Vec<State> {
    load_parts(store, manifest, 1)
        .unwrap()
        .into_iter()
        .map(|part| part.into_state(manifest).unwrap())
        .collect()
}

type Channel = (String, String, String, String);

/// The state that must not change: by service and key, and by service and process for numbered records.
#[derive(Debug, Default, PartialEq, Eq)]
struct Content {
    records: BTreeMap<(String, Vec<u8>), Vec<u8>>,
    /// Timers and tasks by service and process, with their payloads, sorted.
    numbered: BTreeMap<(String, String), Vec<Vec<u8>>>,
    /// Messages in flight, in order, by the services and keys of sender and receiver.
    messages: BTreeMap<Channel, Vec<Vec<u8>>>,
}

fn content(manifest: &Manifest, states: &[State]) -> Content {
    let topology = manifest.topology().unwrap();
    let name = |shard: ShardId| topology.service(topology.service_of(shard).unwrap()).name.clone();
    let mut content = Content::default();
    for state in states {
        let service = topology.service_of(state.shard()).unwrap();
        for (bytes, value) in state.records().iter() {
            let key = RecordKey::from_bytes(bytes).unwrap();
            let process = match key.kind() {
                Kind::Process | Kind::Cell | Kind::Idempotency => {
                    let old = content.records.insert((name(state.shard()), bytes.to_vec()), value.to_vec());
                    assert!(old.is_none(), "{key:?} is in two shards");
                    key.process_key().unwrap().to_owned()
                }
                Kind::Timer => {
                    let record: TimerRecord = decode_value(value).unwrap();
                    let key = (name(state.shard()), record.process.to_string());
                    content.numbered.entry(key).or_default().push(value.to_vec());
                    record.process.to_string()
                }
                Kind::Task => {
                    let record: TaskRecord = decode_value(value).unwrap();
                    let key = (name(state.shard()), record.process.to_string());
                    content.numbered.entry(key).or_default().push(value.to_vec());
                    record.process.to_string()
                }
                _ => continue,
            };
            assert_eq!(topology.shard_of(service, &process), state.shard(), "{key:?}");
            assert!(
                key.number().is_none_or(|id| id >> 16 <= state.position().index.0),
                "{key:?} may be drawn again"
            );
        }
        for (to, outbox) in state.outboxes().iter() {
            let received = states[to.0 as usize].received().get(state.shard()).copied().unwrap_or_default();
            for message in outbox.messages.iter().filter(|message| message.seq > received) {
                let from = (name(state.shard()), message.sender.to_string());
                let key = (from.0, from.1, name(to), message.process.to_string());
                content.messages.entry(key).or_default().push(message.payload.to_vec());
            }
        }
    }
    content.numbered.values_mut().for_each(|list| list.sort());
    content
}

fn restored(cluster: &Cluster, source: &DiskStore, target: &SimDisk, shards: &[(&str, u32)]) -> Restored {
    let manifest = newest(source).unwrap().manifest.unwrap();
    assert_eq!(manifest.incarnation, cluster.topology.incarnation);
    let target = sim_store(target);
    let mut last = None;
    let done =
        restore(source, &manifest, &target, &BundleNames::new(author(9)), &options(shards), &mut |at| {
            last = Some(at)
        });
    let done = done.unwrap();
    let last = last.unwrap();
    assert_eq!((last.shards, last.records), (last.shards_all, done.records));
    done
}

#[test]
fn any_number_of_shards_conserves_everything() {
    for seed in 0..25 {
        println!("seed {seed}");
        let source = sim_store(&SimDisk::new(seed));
        let mut cluster = Cluster::new(seed, [1 + (seed % 4) as u32, 2]);
        for _ in 0..3 {
            cluster.run(60);
            cluster.checkpoint(&source);
        }
        let manifest = newest(&source).unwrap().manifest.unwrap();
        let before = content(&manifest, &states(&source, &manifest));
        let disk = SimDisk::new(seed);
        let shards = [("left", 1 + (seed % 5) as u32), ("right", 1 + (seed % 7) as u32)];
        let done = restored(&cluster, &source, &disk, &shards);
        let target = sim_store(&disk);
        let after = newest(&target).unwrap().manifest.unwrap();
        assert_eq!(after, done.manifest);
        assert_eq!(after.number, manifest.number);
        assert_eq!(content(&after, &states(&target, &after)), before);
        let report = verify_checkpoint(&target, &after, 1, &mut |_, _| Default::default()).unwrap();
        assert!(report.holds(), "{:?}", report.inconsistencies);
        assert_eq!(report.messages_in_flight(), manifest.totals.messages);
        assert_eq!(done.messages, manifest.totals.messages);
        for state in states(&target, &after) {
            assert!(state.received().iter().next().is_none(), "channels are new");
            assert!(state.outboxes().iter().all(|(_, outbox)| outbox.messages[0].seq == Seq(1)));
            assert_eq!(state.position().colour, Colour(3));
            assert_eq!(state.attempts(), 0);
        }
        // A node starts from it with an empty log.
        let wal = WalOptions { segment_bytes: 16 << 10, create: true, ..WalOptions::default() };
        let placement = Placement::all_here(&done.topology);
        let facts = Facts {
            cluster: CLUSTER,
            topology: &done.topology,
            placement: &placement,
            replicated: &BTreeMap::new(),
            log_bytes_max: 0,
        };
        let recovered = recover(Arc::new(disk.clone()), &target, facts, wal, 1).unwrap();
        assert_eq!(recovered.decided, CheckpointNumber(3));
    }
}

#[test]
fn the_same_shards_get_exactly_what_they_had() {
    for seed in 0..10 {
        println!("seed {seed}");
        let source = sim_store(&SimDisk::new(seed));
        let mut cluster = Cluster::new(seed, [2, 3]);
        cluster.run(150);
        let (cut, manifest) = cluster.checkpoint(&source);
        let disk = SimDisk::new(seed);
        let done = restored(&cluster, &source, &disk, &[]);
        assert_eq!(done.renumbered, 0);
        let target = sim_store(&disk);
        let mut sessions = 0;
        for (old, new) in states(&source, &manifest).iter().zip(states(&target, &done.manifest)) {
            assert_eq!(old.hash(), cut.hashes[old.shard().0 as usize]);
            assert_eq!(old.position(), new.position());
            let (ending, staying): (Vec<_>, Vec<_>) =
                old.records().iter().partition(|(key, _)| matches!(key[0], 3 | 4 | 9));
            sessions += ending.len() as u64;
            let staying: BTreeMap<_, _> = staying.into_iter().collect();
            assert_eq!(new.records().iter().collect::<BTreeMap<_, _>>(), staying);
        }
        assert_eq!(sessions, done.sessions_ended);
    }
}

#[test]
fn what_can_not_be_restored_is_refused() {
    let source = sim_store(&SimDisk::new(1));
    let mut cluster = Cluster::new(1, [2, 2]);
    cluster.run(50);
    let (_, manifest) = cluster.checkpoint(&source);
    let attempt = |target: &DiskStore, options: &Restore, manifest: &Manifest| {
        restore(&source, manifest, target, &BundleNames::new(author(9)), options, &mut |_| {})
    };
    let empty = || sim_store(&SimDisk::new(2));
    let target = empty();
    attempt(&target, &options(&[]), &manifest).unwrap();
    let again = attempt(&target, &options(&[]), &manifest);
    assert!(matches!(again, Err(RestoreError::NotEmpty { .. })));
    let old = attempt(&empty(), &Restore { incarnation: Incarnation(7), ..options(&[]) }, &manifest);
    assert!(matches!(old, Err(RestoreError::Incarnation { .. })));
    let unknown = attempt(&empty(), &options(&[("middle", 3)]), &manifest);
    assert!(unknown.unwrap_err().to_string().ends_with("it has: left, right"));
    let none = attempt(&empty(), &options(&[("left", 0)]), &manifest);
    assert!(matches!(none, Err(RestoreError::Topology(_))));
    let target = empty();
    source.delete(&manifest.bundles[0].name).unwrap();
    assert!(matches!(attempt(&target, &options(&[]), &manifest), Err(RestoreError::Checkpoint(_))));
    assert!(newest(&target).unwrap().manifest.is_none());
}
