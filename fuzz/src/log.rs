//! Targets for the files of a data directory besides checkpoints: the log's segments and `stead.json`.

use crate::edits::{Source, damage};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use stead_core::ids::{Epoch, Index, ShardId};
use stead_store::data_dir::{DataDir, META_FILE, Meta};
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{Batch, Wal, WalError, WalOptions};

const BLOCK: usize = 4096;
const SEGMENT: usize = 16 << 10;
const LOG: u64 = 7;

type Record = (u32, u64, u64, Vec<u8>);

fn options() -> WalOptions {
    WalOptions { segment_bytes: SEGMENT as u64, log_id: LOG, create: false, ..WalOptions::default() }
}

fn open(disk: &SimDisk, options: WalOptions) -> Result<(Wal, Vec<Record>), WalError> {
    let mut seen = Vec::new();
    let (wal, _) = Wal::open(Arc::new(disk.clone()), options, |record| {
        seen.push((record.shard.0, record.epoch.0, record.index.0, record.bytes.to_vec()));
        Ok::<(), Infallible>(())
    })?;
    Ok((wal, seen))
}

fn batch(record: &Record) -> Batch {
    let mut batch = Batch::new();
    batch.push(ShardId(record.0), Epoch(record.1), Index(record.2), &record.3);
    batch
}

/// A log of some segments, closed with a mark, and the number of its records after each batch.
struct Template {
    disk: SimDisk,
    records: Vec<Record>,
    upto: Vec<usize>,
}

fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let disk = SimDisk::new(1);
        let (mut wal, _) = open(&disk, WalOptions { create: true, ..options() }).expect("a new log");
        // The first batch is the log's own, without records.
        let mut template = Template { disk, records: Vec::new(), upto: vec![0, 0] };
        for index in 1..=12u64 {
            let record = (index as u32 % 3, 1, index, vec![index as u8; 150 * index as usize]);
            wal.append(&[batch(&record)]).expect("there is room");
            wal.sync().expect("the disk is well");
            template.records.push(record);
            template.upto.push(template.records.len());
        }
        wal.mark().expect("the disk is well");
        template.upto.push(template.records.len());
        template
    })
}

fn files(disk: &SimDisk) -> Vec<(String, Vec<u8>)> {
    disk.files().into_iter().map(|path| (path.clone(), disk.bytes(&path).expect("it was listed"))).collect()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn batch_checksum(batch: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&LOG.to_le_bytes());
    crc.update(&batch[8..]);
    crc.finalize()
}

/// Returns the batch at the start of the bytes, if its length is plausible.
fn batch_span(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(..64).filter(|head| head.starts_with(b"SWB1") || head.starts_with(b"SWB2"))?;
    let len = u32::from_le_bytes(head[8..12].try_into().expect("four bytes")) as usize;
    let span = (64usize.checked_add(len)?).checked_next_multiple_of(BLOCK)?;
    (span <= bytes.len()).then_some(span)
}

/// Corrects every checksum in a segment.
fn mend(segment: &mut [u8]) {
    if segment.len() < BLOCK {
        return;
    }
    let crc = crc32fast::hash(&segment[16..BLOCK]);
    segment[12..16].copy_from_slice(&crc.to_le_bytes());
    let mut at = BLOCK;
    while at < segment.len() {
        let span = batch_span(&segment[at..]);
        if let Some(span) = span {
            let crc = batch_checksum(&segment[at..at + span]);
            segment[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        }
        at += span.unwrap_or(BLOCK);
    }
}

/// Returns the highest sync mark of the whole batches in a segment.
fn highest_mark(segment: &[u8], id: u64) -> u64 {
    let mut highest = 0;
    let mut at = BLOCK;
    while at < segment.len() {
        let span = batch_span(&segment[at..]).filter(|span| {
            let batch = &segment[at..at + span];
            u64_at(batch, 16) == id && batch_checksum(batch).to_le_bytes() == batch[4..8]
        });
        if span.is_some() {
            highest = highest.max(u64_at(&segment[at..], 32));
        }
        at += span.unwrap_or(BLOCK);
    }
    highest
}

/// Returns the name of a log's first segment; names sort as their numbers do.
fn first_segment(files: &[(String, Vec<u8>)]) -> Option<&str> {
    files.iter().map(|(path, _)| path.as_str()).filter(|path| path.ends_with(".log")).min()
}

/// Opens a possible log. If it is refused, it must be unchanged; otherwise it must open again with the same records and
/// accept new ones. If its checksums may be forged, segments that it no longer needs by its own word may be missing then: the
/// first opening shows those that are there, and releases them.
fn open_twice(disk: &SimDisk, is_forged: bool) -> Option<Vec<Record>> {
    let before = files(disk);
    let Ok((wal, seen)) = open(disk, options()) else {
        assert!(files(disk) == before, "a refused log was changed");
        return None;
    };
    drop(wal);
    let may_release = is_forged && first_segment(&files(disk)) > first_segment(&before);
    let (mut wal, again) = open(disk, options()).expect("what was opened opens again");
    assert!(
        again == seen || may_release && seen.ends_with(&again),
        "a second opening shows {} records after {}",
        again.len(),
        seen.len()
    );
    let record = (1, u64::MAX, 77, b"appended".to_vec());
    wal.append(&[batch(&record)]).expect("the disk has room");
    wal.sync().expect("the disk is well");
    drop(wal);
    let (_, more) = open(disk, options()).expect("what was written opens");
    assert!(
        more[..again.len()] == again && more[again.len()..] == [record],
        "the appended record follows the others"
    );
    Some(seen)
}

/// A real log whose files are damaged. Unless checksums were corrected, no record that a mark covers is missing, and no
/// record is shown that was not appended.
pub fn wal_damage(data: &[u8]) {
    let mut source = Source::new(data);
    let template = template();
    let disk = template.disk.fork(1);
    let mended = source.u8() % 2 == 1;
    let mut files = files(&disk);
    let mut edits = 0;
    while !source.is_empty() && edits < 8 {
        edits += 1;
        let count = files.len();
        let chosen = source.u8();
        let (path, file) = &mut files[usize::from(chosen) % count];
        if chosen >= 250 {
            let _ = stead_store::disk::Disk::remove(&disk, path);
            file.clear();
            continue;
        }
        let original = disk.bytes(path).unwrap_or_default();
        damage(&mut source, file);
        if !mended {
            // A fuzzer that sees comparisons would forge the checksums: they stay unchanged.
            for block in 0..file.len().min(original.len()) / BLOCK {
                let at = block * BLOCK + if block == 0 { 12 } else { 4 };
                file[at..at + 4].copy_from_slice(&original[at..at + 4]);
            }
        }
    }
    let mut mark = 0;
    for (path, file) in &mut files {
        if mended {
            mend(file);
        }
        if disk.bytes(path).is_some() {
            disk.put(path, file);
            let id = u64::from_str_radix(&path[4..20], 16).expect("a segment's name is its number");
            mark = mark.max(highest_mark(file, id));
        }
    }
    let Some(seen) = open_twice(&disk, mended) else { return };
    if !mended {
        assert!(template.records.starts_with(&seen), "records that were never appended");
        let least = template.upto[mark as usize];
        assert!(seen.len() >= least, "{} records, and batch {mark} was synced with {least}", seen.len());
    }
}

/// A made-up log with valid checksums; the fuzzer determines its contents.
pub fn wal_segment(data: &[u8]) {
    let mut source = Source::new(data);
    let disk = SimDisk::new(1);
    stead_store::disk::Disk::create_dir(&disk, "wal").expect("an empty disk");
    // The highest bit selects the version, so that older inputs keep their meaning.
    let choice = source.u8();
    let (first, version) = (u64::from(choice % 4), 1 + (choice >> 7));
    let (mut number, mut previous) = (0u64, 0u32);
    for id in first..first + 1 + u64::from(source.u8() % 3) {
        let mut segment = vec![0; BLOCK];
        segment[0..8].copy_from_slice(b"STEADWAL");
        segment[8..12].copy_from_slice(&u32::from(version).to_le_bytes());
        segment[16..24].copy_from_slice(&id.to_le_bytes());
        segment[24..32].copy_from_slice(&LOG.to_le_bytes());
        segment[32..40].copy_from_slice(&(SEGMENT as u64).to_le_bytes());
        while segment.len() < SEGMENT && !source.is_empty() {
            let strange = source.u8();
            let len = usize::from(source.u16()) % (SEGMENT - segment.len() - 63);
            let payload = source.bytes(len);
            let mut batch = vec![0; 64];
            // One field may have any value; the others are those of a valid log.
            let mut field =
                |bit: u8, right: u64| match strange >> bit & 1 {
                    0 => right,
                    _ => u64::from_le_bytes(std::array::from_fn(|at| {
                        if at < 3 || bit == 6 { source.u8() } else { 0 }
                    })),
                };
            number = field(0, number + 1);
            let counted = count(payload, version);
            let fields = [
                (16, field(1, id)),
                (24, number),
                (32, field(2, number.saturating_sub(1))),
                (40, field(3, first)),
                (48, field(4, u64::from(previous))),
                (12, field(5, counted)),
            ];
            batch[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
            for (at, value) in fields {
                let len = if at == 12 || at == 48 { 4 } else { 8 };
                batch[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
            }
            batch[0..4].copy_from_slice(if version == 1 { b"SWB1" } else { b"SWB2" });
            batch.extend_from_slice(payload);
            batch.resize(batch.len().next_multiple_of(BLOCK), 0);
            previous = batch_checksum(&batch);
            batch[4..8].copy_from_slice(&previous.to_le_bytes());
            segment.extend_from_slice(&batch);
        }
        segment.resize(SEGMENT, 0);
        mend(&mut segment);
        disk.put(&format!("wal/{id:016x}.log"), &segment);
    }
    open_twice(&disk, true);
}

/// Returns the number of records in a payload, if it is well formed.
fn count(mut payload: &[u8], version: u8) -> u64 {
    let (head, at) = if version == 1 { (24, 0) } else { (5, 1) };
    let mut count = 0;
    while let Some(len) = payload.get(..head).and_then(|head| head.get(at..at + 4)) {
        let len = u32::from_le_bytes(len.try_into().expect("four bytes")) as usize;
        let Some(rest) = payload.get(head + len..) else { break };
        payload = rest;
        count += 1;
    }
    count
}

/// The metadata, in the order in which its checksum covers the fields.
#[derive(Serialize, Deserialize)]
struct Body {
    cluster: String,
    incarnation: u64,
    node: u32,
    lives: u64,
    epoch_floor: u64,
    log_id: String,
    log_created: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    starts: Vec<String>,
    services: Vec<Service>,
}

/// The metadata of version 1.
#[derive(Serialize, Deserialize)]
struct BodyV1 {
    cluster: String,
    incarnation: u64,
    epoch: u64,
    log_id: String,
    log_created: bool,
    services: Vec<Service>,
}

#[derive(Serialize, Deserialize)]
struct Service {
    name: String,
    first_shard: u32,
    shards: u32,
}

/// Returns the file with this metadata and its checksum.
fn whole(format: u64, body: &impl Serialize) -> String {
    let bytes = serde_json::to_vec(body).expect("text and numbers");
    let checksum = format!("{:08x}", crc32fast::hash(&bytes));
    serde_json::json!({"format": format, "checksum": checksum, "meta": body}).to_string()
}

/// `stead.json`: the whole file, or its metadata with a correct checksum.
pub fn data_dir(data: &[u8]) {
    let disk = SimDisk::new(1);
    match serde_json::from_slice::<Body>(data) {
        Ok(body) => disk.put(META_FILE, whole(2, &body).as_bytes()),
        Err(_) => match serde_json::from_slice::<BodyV1>(data) {
            Ok(body) => disk.put(META_FILE, whole(1, &body).as_bytes()),
            Err(_) => disk.put(META_FILE, data),
        },
    }
    let Ok(meta) = DataDir::inspect(&disk) else {
        let before = files(&disk);
        assert!(DataDir::open(Arc::new(disk.clone()), || panic!("a fresh start")).is_err());
        assert!(files(&disk) == before, "a refused data directory was changed");
        return;
    };
    let open =
        || DataDir::open(Arc::new(disk.clone()), || panic!("a fresh start")).expect("it can be read").0;
    let mut dir = open();
    assert_eq!(*dir.meta(), meta);
    let changed = Meta { lives: meta.lives ^ 1, log_created: true, ..meta };
    dir.update(|meta| *meta = changed.clone()).expect("the disk has room");
    assert_eq!(*open().meta(), changed);
}
