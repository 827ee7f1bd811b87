//! Standard error for programs that must continue without it.
//!
//! A line goes into a bounded queue, and one thread writes the queue to standard error. So a full pipe without a reader
//! blocks that thread and no other; a full disk or a closed pipe loses the lines written to it, which are counted.
//! Nothing here panics, and nothing except [`flush`] waits.
//!
//! For the events of a node, give [`stderr`] to a subscriber as its writer:
//! `tracing_subscriber::fmt().with_writer(stead::stderr::stderr).log_internal_errors(false).init()`.

#![expect(clippy::disallowed_methods, reason = "its thread serves what may block")]

use crate::outlet::{self, Delivered, Outlet};
use crate::panics;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::panic;
use std::thread;
use std::time::Duration;

/// Maximum number of bytes that wait to be written: 1 MiB. Further lines are dropped and counted.
pub const QUEUE_BYTES_MAX: usize = outlet::QUEUE_BYTES_MAX;

/// Time after which the thread tries a descriptor again that is temporarily not writable.
const BUSY_RETRY: Duration = Duration::from_millis(10);

static QUEUE: Outlet<Vec<u8>> = Outlet::new();

fn push(line: Vec<u8>) {
    let bytes = line.len();
    QUEUE.push(line, bytes, "stead-stderr", |line, missing| write_line(write_stderr, line, missing));
}

/// A writer that accepts everything at once and never fails; each write is written or dropped as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Stderr(());

/// Returns a writer to standard error; all of them share one queue.
#[must_use]
pub fn stderr() -> Stderr {
    Stderr(())
}

impl io::Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes one line.
pub fn line(text: impl fmt::Display) {
    push(format!("{text}\n").into_bytes());
}

/// Waits until all lines are written or dropped, at most `wait`; returns whether they are. For the end of a program.
pub fn flush(wait: Duration) -> bool {
    QUEUE.flush(wait)
}

/// Returns the number of lines that were dropped since the program began: the queue was full, or standard error could
/// not be written.
#[must_use]
pub fn dropped() -> u64 {
    QUEUE.dropped()
}

/// Makes panics be written here, too, instead of by the hook of the standard library, which waits for standard error.
/// Panics of handlers, steps and checks are not: these go to the caller, or into the dead letter.
pub fn take_panics() {
    panic::set_hook(Box::new(|info| {
        // Also if a node was created before, whose own hook this one replaces.
        if panics::note(info) {
            return;
        }
        let thread = thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        line(format_args!("thread '{name}' {info}{}", panics::backtrace()));
    }));
}

fn write_stderr(bytes: &[u8]) -> io::Result<usize> {
    // Not through the standard library's handle: its lock would be held as long as a full pipe has no reader.
    Ok(rustix::io::write(io::stderr().as_fd(), bytes)?)
}

type Sink = fn(&[u8]) -> io::Result<usize>;

fn write_line(sink: Sink, line: &[u8], missing: u64) -> Delivered {
    let report = format!("stead: {missing} lines before this one could not be written here\n");
    let report = missing > 0 && write_all(sink, report.as_bytes()).is_ok();
    Delivered { report, item: write_all(sink, line).is_ok() }
}

fn write_all(sink: Sink, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match sink(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written.min(bytes.len())..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(BUSY_RETRY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn what_can_not_be_written_is_dropped_counted_and_reported_once_it_works_again() {
        static QUEUE: Outlet<Vec<u8>> = Outlet::new();
        static OUT: Mutex<(u32, Vec<u8>)> = Mutex::new((0, Vec::new()));
        // A disk that is full for the first three writes, and then accepts a byte at a time.
        fn sink(bytes: &[u8]) -> io::Result<usize> {
            let mut out = OUT.lock().unwrap();
            out.0 += 1;
            match out.0 {
                1..=3 => Err(io::ErrorKind::StorageFull.into()),
                4 => Err(io::ErrorKind::Interrupted.into()),
                5 => Err(io::ErrorKind::WouldBlock.into()),
                _ => {
                    out.1.push(bytes[0]);
                    Ok(1)
                }
            }
        }
        for text in ["one\n", "two\n", "three\n"] {
            let line = text.as_bytes().to_vec();
            QUEUE.push(line, text.len(), "stderr-test", |line, missing| write_line(sink, line, missing));
            assert!(QUEUE.flush(PATIENCE));
        }
        assert_eq!(QUEUE.dropped(), 2);
        let out = String::from_utf8(OUT.lock().unwrap().1.clone()).unwrap();
        assert_eq!(out, "stead: 2 lines before this one could not be written here\nthree\n");
    }
}
