//! Limits of the machine, which bound all other figures.

use super::figures::Report;
use super::room::Room;
use super::{BenchArgs, failed};
use crate::failure::Failure;
use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const WORKLOAD: &str = "machine";
/// Bytes of the file that is written, synced and read.
pub(super) const FILE_BYTES: usize = 1 << 30;
const PIECE_BYTES: usize = 1 << 20;
/// Larger than any cache.
const MEMORY_BYTES: usize = 256 << 20;

pub(super) fn run(args: &BenchArgs, report: &mut Report) -> Result<(), Failure> {
    let room = Room::new(args)?;
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, m)| m));
    report.fact("processor", model.unwrap_or("unknown"));
    report.fact("cores", std::thread::available_parallelism().map_or(1, usize::from));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    report.fact("kernel", kernel.trim());
    report.fact("version", env!("CARGO_PKG_VERSION"));

    let second = Duration::from_secs(1);
    report.add(WORKLOAD, "fsync of 4 KiB", "ms", &fsync_millis(room.path(), 4 << 10, second)?, None);
    report.add(WORKLOAD, "fsync of 64 KiB", "ms", &fsync_millis(room.path(), 64 << 10, second)?, None);
    report.add(WORKLOAD, "fsync of 1 MiB", "ms", &fsync_millis(room.path(), 1 << 20, second)?, None);
    let path = room.path().join("sequential");
    report.add(WORKLOAD, "sequential write and fsync of 1 GiB", "MB/s", &[write_speed(&path)?], None);
    report.add(WORKLOAD, "sequential read, cold", "MB/s", &[read_speed(&path)?], None);
    report.add(WORKLOAD, "memory copied", "GB/s", &copy_speeds(), None);
    report.add(WORKLOAD, "loopback round trip", "us", &loopback_micros(second)?, None);
    Ok(())
}

/// Overwrites a filled file from beginning to end and syncs each write, as the log does.
pub(super) fn fsync_millis(dir: &Path, bytes: usize, time: Duration) -> Result<Vec<f64>, Failure> {
    let path = dir.join("fsync");
    let io = |error| failed("sync a file")(&error);
    let length = 64 << 20;
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&path).map_err(io)?;
    file.write_all(&vec![0; length]).map_err(io)?;
    file.sync_all().map_err(io)?;
    let piece = vec![1; bytes];
    let mut at = 0;
    let mut millis = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time || millis.is_empty() {
        let begun = Instant::now();
        file.write_all_at(&piece, at).map_err(io)?;
        file.sync_data().map_err(io)?;
        millis.push(begun.elapsed().as_secs_f64() * 1e3);
        at = (at + bytes as u64) % (length - bytes) as u64 / 4096 * 4096;
    }
    fs::remove_file(&path).map_err(io)?;
    Ok(millis)
}

/// Writes a file of [`FILE_BYTES`]; returns MB/s.
pub(super) fn write_speed(path: &Path) -> Result<f64, Failure> {
    let io = |error| failed("write a file")(&error);
    let mut piece = vec![0; PIECE_BYTES];
    fastrand::Rng::with_seed(1).fill(&mut piece);
    let start = Instant::now();
    let mut file = File::create(path).map_err(io)?;
    for _ in 0..FILE_BYTES / PIECE_BYTES {
        file.write_all(&piece).map_err(io)?;
    }
    file.sync_all().map_err(io)?;
    Ok(FILE_BYTES as f64 / start.elapsed().as_secs_f64() / 1e6)
}

/// Reads a file with a cold cache; returns MB/s.
pub(super) fn read_speed(path: &Path) -> Result<f64, Failure> {
    let io = |error| failed("read a file")(&error);
    drop_cache(path)?;
    let mut piece = vec![0; PIECE_BYTES];
    let start = Instant::now();
    let mut file = File::open(path).map_err(io)?;
    let mut bytes = 0;
    loop {
        match file.read(&mut piece).map_err(io)? {
            0 => return Ok(bytes as f64 / start.elapsed().as_secs_f64() / 1e6),
            read => bytes += read,
        }
    }
}

/// Drops a file, or all files below a directory, from the page cache.
pub(super) fn drop_cache(path: &Path) -> Result<(), Failure> {
    // Root can drop the whole cache, directories included.
    if let Ok(mut control) = OpenOptions::new().write(true).open("/proc/sys/vm/drop_caches")
        && control.write_all(b"3").is_ok()
    {
        return Ok(());
    }
    let io = |error| failed("drop the cache of a file")(&error);
    if fs::metadata(path).map_err(io)?.is_dir() {
        for entry in fs::read_dir(path).map_err(io)? {
            drop_cache(&entry.map_err(io)?.path())?;
        }
        return Ok(());
    }
    let file = File::open(path).map_err(io)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(|error| io(error.into()))
}

/// Returns GB/s of copies from memory to memory; each byte counts once.
fn copy_speeds() -> Vec<f64> {
    let from = vec![1u8; MEMORY_BYTES];
    let mut to = vec![0u8; MEMORY_BYTES];
    let copy = |to: &mut Vec<u8>| {
        let start = Instant::now();
        to.copy_from_slice(black_box(&from));
        black_box(&to);
        MEMORY_BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..9).map(|_| copy(&mut to)).collect()
}

/// Returns the microseconds from sending a byte to receiving its echo; both ends block.
fn loopback_micros(time: Duration) -> Result<Vec<f64>, Failure> {
    let io = |error| failed("use the loopback")(&error);
    let listener = TcpListener::bind("127.0.0.1:0").map_err(io)?;
    let mut near = TcpStream::connect(listener.local_addr().map_err(io)?).map_err(io)?;
    let (mut far, _) = listener.accept().map_err(io)?;
    near.set_nodelay(true).map_err(io)?;
    far.set_nodelay(true).map_err(io)?;
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        // Ends when the other end is closed.
        while far.read_exact(&mut byte).and_then(|()| far.write_all(&byte)).is_ok() {}
    });
    let mut micros = Vec::new();
    let start = Instant::now();
    let mut byte = [0];
    while start.elapsed() < time {
        let begun = Instant::now();
        near.write_all(&byte).map_err(io)?;
        near.read_exact(&mut byte).map_err(io)?;
        micros.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    drop(near);
    let _ = echo.join();
    Ok(micros)
}
