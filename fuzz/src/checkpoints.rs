//! Targets for stored checkpoints: bundles and manifests, and the cut that they make up.

use crate::edits::{Source, damage};
use std::sync::{Arc, OnceLock};
use stead_core::blob::Blob;
use stead_core::checkpointing::bundle::Hash;
use stead_core::checkpointing::lineage::Lineage;
use stead_core::entry::{Cause, Entry, Send, Write};
use stead_core::ids::{
    CheckpointNumber, ClusterId, Epoch, Incarnation, Index, Micros, NodeId, ShardId, Time,
};
use stead_core::key::Key;
use stead_core::record::{RecordKey, decode_value};
use stead_core::records::encode_record;
use stead_core::state::{Header, State};
use stead_core::topology::Topology;
use stead_store::checkpoint::bundle::{Author, Bundle, BundleNames};
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{Decision, Manifest, decode_decision, manifest_name, newest};
use stead_store::checkpoint::store::DiskStore;
use stead_store::checkpoint::verify::{in_flight, verify_checkpoint, verify_cut};
use stead_store::checkpoint::write::{CheckpointWriter, Plan};
use stead_store::sim_disk::SimDisk;
use xxhash_rust::xxh3::xxh3_128;

const ROOT: &str = "checkpoints";
const NUMBER: CheckpointNumber = CheckpointNumber(3);

/// A store with one checkpoint of two shards, between which a message is in flight.
pub(crate) struct Template {
    disk: SimDisk,
    pub(crate) manifest: Manifest,
    pub(crate) headers: Vec<Header>,
    hashes: Vec<u128>,
}

fn topology() -> Topology {
    let mut topology = Topology::new(Incarnation(9));
    topology.ensure("a", 1).expect("a good name");
    topology.ensure("b", 1).expect("a good name");
    topology
}

fn state(shard: ShardId) -> State {
    let key = Key::new("customer").expect("a short key");
    let entry = |index, cause| Entry {
        index: Index(index),
        epoch: Epoch(2),
        time: Time(1_000_000 + index),
        cause,
        process: key.clone(),
        writes: Vec::new(),
        sends: Vec::new(),
        reply: None,
        served: Some(Micros(5)),
    };
    let mut state = State::new(shard);
    let put = |n: u32| Write {
        key: RecordKey::process(&format!("process-{n}")),
        value: Some(Blob::from(vec![n as u8; 40])),
    };
    let mut worked = entry(2, Cause::Anonymous);
    worked.writes = (0..20).map(put).collect();
    worked
        .writes
        .push(Write { key: RecordKey::cell("process-1", b"c"), value: Some(Blob::from(b"cell".as_slice())) });
    worked.sends =
        vec![Send { to: ShardId(1), process: key.clone(), payload: Blob::from(b"a message".as_slice()) }];
    let marker = Cause::Marker { colour: NUMBER.colour() };
    for entry in [entry(1, Cause::Start), worked, entry(3, marker)] {
        state.apply(entry).expect("it follows");
    }
    state
}

pub(crate) fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let disk = SimDisk::new(1);
        let store = DiskStore::open(Arc::new(disk.clone()), ROOT).expect("an empty disk");
        let author = Author { cluster: ClusterId(6), node: NodeId(2), writer: 4 };
        let bundle = BundleNames::new(author).draw(NUMBER);
        let parts = topology().shards().map(|shard| (shard, Epoch(2))).collect();
        let plan = Plan { number: NUMBER, created: Time(5), topology: topology(), parts, bundle, author };
        let mut writer = CheckpointWriter::create(&store, plan).expect("there is room");
        let mut headers = Vec::new();
        for shard in topology().shards() {
            let state = state(shard);
            let mut section = Vec::new();
            for (key, value) in state.records().iter() {
                encode_record(key, Some(value), &mut section);
            }
            writer.begin_part(state.header(), true).expect("a part of the topology");
            writer.piece(shard, &section).expect("there is room");
            writer.end_part(shard).expect("it was begun");
            headers.push(state.header());
        }
        let (manifest, _) =
            writer.seal(&Lineage::new()).and_then(|sealed| sealed.store(&store)).expect("all parts");
        let hashes = headers.iter().map(Header::hash).collect();
        Template { disk, manifest, headers, hashes }
    })
}

/// Loads and verifies all objects in a manifest; the loaded state equals the manifest's.
fn load(store: &DiskStore, manifest: &Manifest) -> Option<Vec<u128>> {
    let loaded = load_parts(store, manifest, 1).ok()?;
    let mut hashes = Vec::new();
    for part in loaded {
        let shard = part.header.shard;
        let state = part.into_state(manifest).ok()?;
        assert_eq!(manifest.part(shard).map(|part| part.hash), Some(Hash(state.hash())));
        hashes.push(state.hash());
    }
    let report =
        verify_checkpoint(store, manifest, 1, &mut |_, _| Default::default()).expect("it was loaded");
    let _ = report.holds();
    Some(hashes)
}

/// A bundle with damage: refused, or equal to the original. With corrected checksums, its header, index and
/// trailer may have any content.
pub fn bundle(data: &[u8]) {
    let template = template();
    let disk = template.disk.fork(1);
    let store = DiskStore::attach(Arc::new(disk.clone()), ROOT);
    let mut manifest = template.manifest.clone();
    let path = format!("{ROOT}/{}", manifest.bundles[0].name);
    let mut file = disk.bytes(&path).expect("the template has it");
    let mut source = Source::new(data);
    let mended = source.u8() % 2 == 1;
    if !mended {
        while !source.is_empty() {
            damage(&mut source, &mut file);
        }
        disk.put(&path, &file);
        if let Some(hashes) = load(&store, &manifest) {
            assert_eq!(hashes, template.hashes, "a damaged bundle was accepted");
        }
        return;
    }
    // Blocks from the template, then an index of the fuzzer's, or the template's with some bytes replaced.
    let index_at =
        u64::from_le_bytes(file[file.len() - 48..file.len() - 40].try_into().expect("eight bytes")) as usize;
    let mut index = file[index_at..file.len() - 48].to_vec();
    if source.u8() % 2 == 1 {
        damage(&mut source, &mut index);
    } else {
        index = source.rest().to_vec();
    }
    file.truncate(index_at);
    let hash = xxh3_128(&[&file[..64], &index].concat());
    file.extend_from_slice(&index);
    let mut trailer = [0; 48];
    trailer[..8].copy_from_slice(&(index_at as u64).to_le_bytes());
    trailer[8..16].copy_from_slice(&(index.len() as u64).to_le_bytes());
    trailer[16..32].copy_from_slice(&hash.to_le_bytes());
    let crc = crc32fast::hash(&trailer[..32]);
    trailer[32..36].copy_from_slice(&crc.to_le_bytes());
    trailer[40..].copy_from_slice(b"STEADEND");
    file.extend_from_slice(&trailer);
    disk.put(&path, &file);
    manifest.bundles[0].index = Hash(hash);
    manifest.bundles[0].bytes = file.len() as u64;
    if let Ok(bundle) = Bundle::open(&store, &manifest.bundles[0], manifest.belonging()) {
        for (shard, section) in bundle.sections() {
            let _ = (bundle.header(shard), section.bytes());
        }
    }
    load(&store, &manifest);
}

/// A manifest or tombstone: whole, or its body in a correct envelope, over a store with the bundle of a valid
/// manifest.
pub fn manifest(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let kind = if mode & 2 == 0 { "manifest" } else { "tombstone" };
    let format = if mode & 4 == 0 { 1 } else { 2 };
    let bytes = match (mode & 1, std::str::from_utf8(data)) {
        (1, Ok(body)) => {
            let checksum = Hash(xxh3_128(format!("{kind} {format} {body}").as_bytes()));
            format!(r#"{{"stead":"{kind}","format":{format},"checksum":"{checksum}","body":{body}}}"#)
                .into_bytes()
        }
        _ => data.to_vec(),
    };
    let name = manifest_name(NUMBER);
    let disk = template().disk.fork(1);
    disk.put(&format!("{ROOT}/{name}"), &bytes);
    let store = DiskStore::attach(Arc::new(disk), ROOT);
    let found = newest(&store);
    match decode_decision(&name, &bytes) {
        Ok(Decision::Complete(manifest)) => {
            assert_eq!(found.expect("it was decoded").manifest.as_ref(), Some(&*manifest));
            let again = decode_decision(&name, &manifest.encode()).expect("what was encoded is read");
            assert_eq!(again, Decision::Complete(manifest.clone()));
            load(&store, &manifest);
        }
        Ok(Decision::GivenUp(tombstone)) => {
            assert_eq!(tombstone.number, NUMBER);
            assert_eq!(found.expect("it was decoded").manifest, None);
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(found.is_err(), "an unreadable decision was skipped");
        }
    }
}

/// The headers of a checkpoint's parts, with any claims about their channels.
pub fn cut(data: &[u8]) {
    let mut source = Source::new(data);
    let mut headers = Vec::new();
    while !source.is_empty() && headers.len() < 4 {
        let len = usize::from(source.u16());
        if let Ok(header) = decode_value::<Header>(source.bytes(len)) {
            headers.push(header);
        }
    }
    let found = verify_cut(&topology(), NUMBER, &headers);
    let channels = in_flight(&headers);
    for inconsistency in &found {
        assert!(!inconsistency.to_string().is_empty());
    }
    if found.is_empty() {
        assert_eq!(headers.len(), 2, "a cut has all parts");
        let sent: u64 = channels.iter().map(|channel| channel.messages).sum();
        let waiting: usize =
            headers.iter().flat_map(|part| part.outboxes.values()).map(|out| out.messages.len()).sum();
        assert!(sent <= waiting as u64, "messages in flight are in an outbox");
    }
}
