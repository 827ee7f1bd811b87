//! The engines, each used according to its documentation: all write the same entries and read them back.

use okaywal::{Configuration, Entry as OkayEntry, EntryId, LogManager, SegmentReader, WriteAheadLog};
use raft::eraftpb::Entry;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use stead_core::ids::{Epoch, Index, ShardId};
use stead_store::disk::Disk;
use stead_store::real_disk::RealDisk;
use stead_store::wal::{Batch, Record, Wal, WalOptions};

pub const SHARDS: u64 = 64;
pub const ENTRIES: u64 = 64;
pub const BYTES: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Stead,
    RaftEngine,
    OkayWal,
}

impl Which {
    pub const ALL: [Self; 3] = [Self::Stead, Self::RaftEngine, Self::OkayWal];
}

/// The load: `writes` batches from each of `threads`, each batch synced.
#[derive(Clone, Copy)]
pub struct Load {
    pub threads: u64,
    pub writes: u64,
    /// Whether to sync; without, where the engine can, to fill a log quickly.
    pub sync: bool,
    /// Whether to close the log properly at the end.
    pub close: bool,
    /// Bytes of each file that the engine fills beforehand, and their number.
    pub file_bytes: u64,
    pub prefilled: usize,
}

impl Load {
    pub fn entries(&self) -> u64 {
        self.threads * self.writes * ENTRIES
    }

    /// Returns the shard and index of each entry in a thread's batch: each thread has shards of its own, without gaps.
    fn batch(&self, thread: u64, write: u64) -> impl Iterator<Item = (u64, u64)> {
        let (threads, own) = (self.threads, SHARDS / self.threads);
        let each = ENTRIES / own;
        (0..ENTRIES).map(move |entry| (entry % own * threads + thread, write * each + entry / own + 1))
    }
}

/// Returns the expected bytes of an entry, which are incompressible.
fn content(shard: u64, index: u64) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    fastrand::Rng::with_seed(shard << 40 ^ index).fill(&mut bytes);
    bytes
}

/// The entries that were read back.
#[derive(Default)]
pub struct ReadBack {
    pub entries: u64,
    pub wrong: u64,
    last: Vec<u64>,
}

impl ReadBack {
    fn take(&mut self, shard: u64, index: u64, bytes: &[u8]) {
        self.last.resize(SHARDS as usize, 0);
        let in_order = self.last.get(shard as usize).is_some_and(|last| last + 1 == index);
        if in_order && bytes == content(shard, index) {
            self.last[shard as usize] = index;
            self.entries += 1;
        } else {
            self.wrong += 1;
        }
    }
}

/// Runs the load and returns the latency of each write.
pub fn write(which: Which, dir: &Path, load: Load) -> Vec<Duration> {
    match which {
        Which::Stead => stead_write(dir, load),
        Which::RaftEngine => raft_write(dir, load),
        Which::OkayWal => okay_write(dir, load),
    }
}

/// Opens the log and reads everything in it.
pub fn read(which: Which, dir: &Path, load: Load) -> Result<ReadBack, String> {
    match which {
        Which::Stead => stead_read(dir, load),
        Which::RaftEngine => raft_read(dir, load),
        Which::OkayWal => okay_read(dir, load),
    }
}

fn stead_open(
    dir: &Path,
    load: Load,
    visit: impl FnMut(Record<'_>) -> Result<(), std::convert::Infallible>,
) -> Result<Wal, String> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir).map_err(|error| error.to_string())?);
    let spares = load.prefilled.max(1);
    let options =
        WalOptions { segment_bytes: load.file_bytes, spares, create: true, ..WalOptions::default() };
    Wal::open(disk, options, visit).map(|(wal, _)| wal).map_err(|error| error.to_string())
}

fn stead_fill(batch: &mut Batch, load: Load, thread: u64, write: u64) {
    batch.clear();
    for (shard, index) in load.batch(thread, write) {
        batch.push(ShardId(shard as u32), Epoch(1), Index(index), &content(shard, index));
    }
}

fn stead_write(dir: &Path, load: Load) -> Vec<Duration> {
    let mut wal = stead_open(dir, load, |_| Ok(())).unwrap();
    let preparer = wal.preparer();
    while preparer.prepare_next().unwrap() {}
    let mut latencies = Vec::new();
    if load.threads == 1 {
        let mut batch = Batch::new();
        for write in 0..load.writes {
            stead_fill(&mut batch, load, 0, write);
            let started = Instant::now();
            wal.append(std::slice::from_ref(&batch)).unwrap();
            if load.sync {
                wal.sync().unwrap();
            }
            latencies.push(started.elapsed());
        }
    } else {
        latencies = stead_group(&mut wal, load);
    }
    wal.sync().unwrap();
    if load.close {
        wal.mark().unwrap();
    }
    latencies
}

/// One owner of the log, as in Stead: it takes all batches that wait, writes them at once, and syncs.
fn stead_group(wal: &mut Wal, load: Load) -> Vec<Duration> {
    let (to_log, waiting) = mpsc::channel::<(usize, Batch)>();
    thread::scope(|scope| {
        let (mut answers, mut writers) = (Vec::new(), Vec::new());
        for thread in 0..load.threads {
            let (answer, done) = mpsc::sync_channel::<Batch>(1);
            answers.push(answer);
            let to_log = to_log.clone();
            writers.push(scope.spawn(move || {
                let (mut batch, mut latencies) = (Batch::new(), Vec::new());
                for write in 0..load.writes {
                    stead_fill(&mut batch, load, thread, write);
                    let started = Instant::now();
                    to_log.send((thread as usize, batch)).unwrap();
                    batch = done.recv().unwrap();
                    latencies.push(started.elapsed());
                }
                latencies
            }));
        }
        drop(to_log);
        let (mut owners, mut batches) = (Vec::new(), Vec::new());
        while let Ok((owner, batch)) = waiting.recv() {
            owners.push(owner);
            batches.push(batch);
            for (owner, batch) in waiting.try_iter() {
                owners.push(owner);
                batches.push(batch);
            }
            wal.append(&batches).unwrap();
            wal.sync().unwrap();
            for (owner, batch) in owners.drain(..).zip(batches.drain(..)) {
                answers[owner].send(batch).unwrap();
            }
        }
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    })
}

fn stead_read(dir: &Path, load: Load) -> Result<ReadBack, String> {
    let mut back = ReadBack::default();
    stead_open(dir, load, |record| {
        back.take(u64::from(record.shard.0), record.index.0, record.bytes);
        Ok(())
    })?;
    Ok(back)
}

#[derive(Clone)]
struct Raft;

impl MessageExt for Raft {
    type Entry = Entry;
    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

fn raft_config(dir: &Path, load: Load) -> Config {
    Config {
        dir: dir.display().to_string(),
        target_file_size: ReadableSize(load.file_bytes),
        purge_threshold: ReadableSize::gb(10),
        prefill_for_recycle: load.prefilled > 0,
        prefill_limit: Some(ReadableSize(load.file_bytes * load.prefilled as u64)),
        // Off: these bytes don't compress.
        batch_compression_threshold: ReadableSize(0),
        ..Config::default()
    }
}

fn raft_write(dir: &Path, load: Load) -> Vec<Duration> {
    let engine = Engine::open(raft_config(dir, load)).unwrap();
    let latencies = threads(load, |thread, latencies| {
        let mut batch = LogBatch::default();
        for write in 0..load.writes {
            let mut by_shard = std::collections::BTreeMap::<u64, Vec<Entry>>::new();
            for (shard, index) in load.batch(thread, write) {
                let mut entry = Entry { index, ..Entry::default() };
                entry.data = content(shard, index).to_vec().into();
                by_shard.entry(shard).or_default().push(entry);
            }
            let started = Instant::now();
            for (shard, entries) in by_shard {
                batch.add_entries::<Raft>(shard + 1, &entries).unwrap();
            }
            engine.write(&mut batch, load.sync).unwrap();
            latencies.push(started.elapsed());
        }
    });
    engine.sync().unwrap();
    latencies
}

fn raft_read(dir: &Path, load: Load) -> Result<ReadBack, String> {
    let load = Load { prefilled: 0, ..load };
    let engine = Engine::open(raft_config(dir, load)).map_err(|error| error.to_string())?;
    let mut back = ReadBack::default();
    // In the order of writing: shard by shard would read each block once for each shard.
    let last = (1..=SHARDS).filter_map(|shard| engine.last_index(shard)).max().unwrap_or(0);
    for at in 1..=last {
        for shard in 0..SHARDS {
            let Some(last) = engine.last_index(shard + 1).filter(|last| *last >= at) else { continue };
            let mut entries = Vec::new();
            engine
                .fetch_entries_to::<Raft>(shard + 1, at, at + 1, None, &mut entries)
                .map_err(|error| error.to_string())?;
            for entry in entries {
                back.take(shard, entry.index, &entry.data);
            }
        }
    }
    Ok(back)
}

#[derive(Debug)]
struct Reader(mpsc::Sender<Vec<Vec<u8>>>);

impl LogManager for Reader {
    fn recover(&mut self, entry: &mut OkayEntry<'_>) -> io::Result<()> {
        if let Some(chunks) = entry.read_all_chunks()? {
            self.0.send(chunks).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn checkpoint_to(&mut self, _: EntryId, _: &mut SegmentReader, _: &WriteAheadLog) -> io::Result<()> {
        Ok(())
    }
}

fn okay_open(dir: &Path, load: Load) -> io::Result<(WriteAheadLog, mpsc::Receiver<Vec<Vec<u8>>>)> {
    let (sender, chunks) = mpsc::channel();
    let bytes = u32::try_from(load.file_bytes).map_err(io::Error::other)?;
    let configuration =
        Configuration::default_for(dir).preallocate_bytes(bytes).checkpoint_after_bytes(64 << 30);
    Ok((configuration.open(Reader(sender))?, chunks))
}

fn okay_write(dir: &Path, load: Load) -> Vec<Duration> {
    let (log, _chunks) = okay_open(dir, load).unwrap();
    let latencies = threads(load, |thread, latencies| {
        for write in 0..load.writes {
            let entries: Vec<_> = load
                .batch(thread, write)
                .map(|(shard, index)| {
                    let mut bytes = Vec::with_capacity(16 + BYTES);
                    bytes.extend(shard.to_le_bytes());
                    bytes.extend(index.to_le_bytes());
                    bytes.extend(content(shard, index));
                    bytes
                })
                .collect();
            let started = Instant::now();
            let mut writer = log.begin_entry().unwrap();
            for entry in &entries {
                writer.write_chunk(entry).unwrap();
            }
            writer.commit().unwrap();
            latencies.push(started.elapsed());
        }
    });
    if load.close {
        log.shutdown().unwrap();
    } else {
        // Replaces a kill of the process: skips the writes of a proper shutdown.
        std::mem::forget(log);
    }
    latencies
}

fn okay_read(dir: &Path, load: Load) -> Result<ReadBack, String> {
    let (log, chunks) = okay_open(dir, load).map_err(|error| error.to_string())?;
    let mut back = ReadBack::default();
    while let Ok(entries) = chunks.try_recv() {
        for bytes in entries {
            let number = |at: usize| {
                bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes)
            };
            back.take(number(0), number(8), bytes.get(16..).unwrap_or_default());
        }
    }
    drop(log);
    Ok(back)
}

fn threads(load: Load, work: impl Fn(u64, &mut Vec<Duration>) + Sync) -> Vec<Duration> {
    thread::scope(|scope| {
        let work = &work;
        let run = |thread| {
            scope.spawn(move || {
                let mut latencies = Vec::new();
                work(thread, &mut latencies);
                latencies
            })
        };
        let running: Vec<_> = (0..load.threads).map(run).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}
