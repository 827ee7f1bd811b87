//! `cargo run --release -- DIR [speed|recover|damage]`: compares write-ahead logs on one disk, all parts by default.
//!
//! 64 shards, batches of 64 entries of 256 bytes, one sync for each batch. See `docs/log-engines.md`.

mod engines;

use engines::{ENTRIES, Load, Which, read, write};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

fn main() {
    let mut args = std::env::args().skip(1);
    let Some(dir) = args.next() else {
        eprintln!("usage: bench-engines DIR [speed|recover|damage]");
        std::process::exit(2);
    };
    let parts: Vec<String> = args.collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    // A panic of an engine on a damaged log is a result.
    std::panic::set_hook(Box::new(|_| {}));
    if wanted("speed") {
        speed(Path::new(&dir));
    }
    if wanted("recover") {
        recover(Path::new(&dir));
    }
    if wanted("damage") {
        damage(Path::new(&dir));
    }
}

fn fresh(dir: &Path) -> tempfile::TempDir {
    tempfile::tempdir_in(dir).expect("the directory is writable")
}

/// Medians of five rounds, the engines in turn so that changes of the machine's speed affect all.
fn speed(dir: &Path) {
    println!("engine, threads, entries/s, p50 ms, p99 ms");
    for threads in [1, 8] {
        let load = Load {
            threads,
            writes: 8000 / (threads + 1),
            sync: true,
            close: true,
            file_bytes: 64 << 20,
            prefilled: 6,
        };
        let mut rounds = vec![Vec::new(); Which::ALL.len()];
        for _ in 0..5 {
            for (which, rounds) in Which::ALL.into_iter().zip(&mut rounds) {
                let dir = fresh(dir);
                let mut latencies = write(which, &dir.path().join("log"), load);
                latencies.sort_unstable();
                // Without opening and prefilling: each thread's writes add up to its time.
                let spent = latencies.iter().sum::<std::time::Duration>().as_secs_f64() / threads as f64;
                let at = |share: f64| {
                    latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3
                };
                rounds.push((load.entries() as f64 / spent, at(0.5), at(0.99)));
            }
        }
        for (which, mut rounds) in Which::ALL.into_iter().zip(rounds) {
            rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (rate, p50, p99) = rounds[rounds.len() / 2];
            println!("{which:?}, {threads}, {rate:.0}, {p50:.2}, {p99:.2}");
        }
    }
}

fn recover(dir: &Path) {
    println!("engine, GB on disk, seconds to open and read 1 GB of entries, cold");
    let writes = (1 << 30) / (ENTRIES * engines::BYTES as u64);
    let load = Load { threads: 1, writes, sync: false, close: true, file_bytes: 64 << 20, prefilled: 0 };
    for which in Which::ALL {
        let dir = fresh(dir);
        let log = dir.path().join("log");
        write(which, &log, load);
        let bytes: u64 = files(&log).iter().map(|path| fs::metadata(path).map_or(0, |data| data.len())).sum();
        let mut seconds = Vec::new();
        for _ in 0..3 {
            if fs::write("/proc/sys/vm/drop_caches", "1").is_err() {
                eprintln!("dropping the cache needs root: these figures are with a warm cache");
            }
            let started = Instant::now();
            let back = read(which, &log, load).expect("an undamaged log opens");
            seconds.push(started.elapsed().as_secs_f64());
            assert_eq!((back.entries, back.wrong), (load.entries(), 0), "{which:?}");
        }
        seconds.sort_by(f64::total_cmp);
        println!("{which:?}, {:.2}, {:.2}", bytes as f64 / 1e9, seconds[1]);
    }
}

fn damage(dir: &Path) {
    println!("engine, of 30 flipped bits: refused, lost silently, wrong, harmless; torn tail");
    let load = Load { threads: 1, writes: 400, sync: true, close: true, file_bytes: 4 << 20, prefilled: 0 };
    for which in Which::ALL {
        let dir = fresh(dir);
        let log = dir.path().join("log");
        write(which, &log, load);
        let mut rng = fastrand::Rng::with_seed(30);
        let mut counts = [0; 4];
        for _ in 0..30 {
            let copy = copy(&log, dir.path());
            let written = written(&copy);
            let total: u64 = written.iter().map(|(_, len)| len).sum();
            // In the middle of the log: the last tenth might be its tail.
            let mut at = rng.u64(total / 10..total / 10 * 9);
            let (path, _) = written
                .iter()
                .find(|(_, len)| {
                    let found = at < *len;
                    if !found {
                        at -= len;
                    }
                    found
                })
                .expect("less than the total");
            flip(path, at, rng.u8(..8));
            counts[outcome(which, &copy, load)] += 1;
            fs::remove_dir_all(&copy).expect("our copy");
        }

        let open = dir.path().join("open");
        write(which, &open, Load { close: false, ..load });
        let (path, len) = written(&open).pop().expect("a log has a file");
        let file = OpenOptions::new().write(true).open(path).expect("our file");
        file.write_all_at(&[0; 100], len - 100).expect("our file");
        let torn = match catch_unwind(AssertUnwindSafe(|| read(which, &open, load))) {
            Ok(Ok(back)) if back.entries == load.entries() - ENTRIES => "cut to the batch".to_owned(),
            Ok(Ok(back)) => format!("{} of {} entries, {} wrong", back.entries, load.entries(), back.wrong),
            Ok(Err(error)) => format!("won't open: {error}"),
            Err(_) => "won't open: panic".to_owned(),
        };
        println!("{which:?}, {}, {}, {}, {}; {torn}", counts[0], counts[1], counts[2], counts[3]);
    }
}

/// Returns 0 if refused, 1 if lost silently, 2 if wrong, 3 if harmless.
fn outcome(which: Which, log: &Path, load: Load) -> usize {
    match catch_unwind(AssertUnwindSafe(|| read(which, log, load))) {
        Ok(Ok(back)) if back.wrong > 0 => 2,
        Ok(Ok(back)) if back.entries < load.entries() => 1,
        Ok(Ok(_)) => 3,
        Ok(Err(_)) | Err(_) => 0,
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("our directory").flatten() {
        if entry.path().is_dir() {
            files.extend(self::files(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}

/// Returns the files with entries, and the position of the last nonzero byte of each.
fn written(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut written = Vec::new();
    for path in files(dir) {
        let bytes = fs::read(&path).expect("our file");
        let len = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1);
        if len > 64 << 10 {
            written.push((path, len));
        }
    }
    written
}

fn copy(log: &Path, to: &Path) -> PathBuf {
    let copy = to.join("copy");
    for path in files(log) {
        let target = copy.join(path.strip_prefix(log).expect("below it"));
        fs::create_dir_all(target.parent().expect("below the copy")).expect("our directory");
        fs::copy(&path, target).expect("our files");
    }
    copy
}

fn flip(path: &Path, at: u64, bit: u8) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("our file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("within the file");
    file.write_all_at(&[byte[0] ^ 1 << bit], at).expect("within the file");
}
