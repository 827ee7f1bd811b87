//! Standard error for programs that must go on without it.
//!
//! A line that is said here goes into a bounded queue, and one thread writes the queue to standard error. So a full pipe
//! that is not read holds up that thread and no other; a full disk or a closed pipe costs the lines that meet it, which are
//! counted. Nothing here panics, and nothing but [`flush`] waits.
//!
//! For the events of a node, give [`stderr`] to a subscriber as its writer:
//! `tracing_subscriber::fmt().with_writer(stead::stderr::stderr).log_internal_errors(false).init()`.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Most bytes that wait to be written: 1 MiB. What comes above is dropped and counted.
pub const QUEUE_BYTES_MAX: usize = 1 << 20;

/// How long the thread waits before it tries a descriptor again that takes nothing at the moment.
const BUSY_RETRY: Duration = Duration::from_millis(10);

static QUEUE: Queue = Queue::new();

/// A writer that takes everything at once and never fails; each write is one piece, written or dropped as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Stderr(());

/// A writer to standard error; all of them share one queue.
#[must_use]
pub fn stderr() -> Stderr {
    Stderr(())
}

impl io::Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        QUEUE.push(bytes.to_vec(), write_stderr);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says one line.
pub fn line(text: impl fmt::Display) {
    QUEUE.push(format!("{text}\n").into_bytes(), write_stderr);
}

/// Waits until all that was said is written or dropped, at most `wait`; whether it is. For the end of a program.
pub fn flush(wait: Duration) -> bool {
    QUEUE.flush(wait)
}

/// Lines that were dropped since the program began: the queue was full, or standard error could not be written.
#[must_use]
pub fn dropped() -> u64 {
    QUEUE.lock().dropped
}

/// From now on panics are said here too, and not by the hook of the standard library, which waits for standard error.
pub fn take_panics() {
    panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        let mut text = format!("thread '{name}' {info}");
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            text.push_str(&format!("\n{backtrace}"));
        }
        line(text);
    }));
}

fn write_stderr(bytes: &[u8]) -> io::Result<usize> {
    // Not through the standard library's handle: its lock would be held as long as a full pipe is not read.
    Ok(rustix::io::write(io::stderr().as_fd(), bytes)?)
}

type Sink = fn(&[u8]) -> io::Result<usize>;

struct Queue {
    state: Mutex<State>,
    news: Condvar,
    /// Signalled when nothing waits any more.
    drained: Condvar,
}

struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// A line was taken and is neither written nor dropped yet.
    is_writing: bool,
    has_thread: bool,
    dropped: u64,
    /// Of these, how many a line in the output tells of.
    reported: u64,
}

impl Queue {
    const fn new() -> Self {
        let state = State {
            lines: VecDeque::new(),
            bytes: 0,
            is_writing: false,
            has_thread: false,
            dropped: 0,
            reported: 0,
        };
        Self { state: Mutex::new(state), news: Condvar::new(), drained: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&'static self, line: Vec<u8>, sink: Sink) {
        let mut state = self.lock();
        if !state.has_thread {
            let spawned =
                thread::Builder::new().name("stead-stderr".to_owned()).spawn(move || self.run(sink));
            state.has_thread = spawned.is_ok();
        }
        if !state.has_thread || state.bytes + line.len() > QUEUE_BYTES_MAX {
            state.dropped += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        drop(state);
        self.news.notify_one();
    }

    fn flush(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        let mut state = self.lock();
        while !state.lines.is_empty() || state.is_writing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.drained.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn run(&self, sink: Sink) {
        let mut state = self.lock();
        loop {
            let Some(line) = state.lines.pop_front() else {
                self.drained.notify_all();
                state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.bytes -= line.len();
            state.is_writing = true;
            let missing = state.dropped - state.reported;
            drop(state);
            let report = format!("stead: {missing} lines before this one could not be written here\n");
            let is_reported = missing > 0 && write_all(sink, report.as_bytes()).is_ok();
            let is_written = write_all(sink, &line).is_ok();
            state = self.lock();
            state.is_writing = false;
            state.reported += if is_reported { missing } else { 0 };
            state.dropped += u64::from(!is_written);
        }
    }
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

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn what_can_not_be_written_is_dropped_counted_and_reported_once_it_works_again() {
        static QUEUE: Queue = Queue::new();
        static OUT: Mutex<(u32, Vec<u8>)> = Mutex::new((0, Vec::new()));
        // A disk that is full for the first three writes, and then takes a byte at a time.
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
            QUEUE.push(text.as_bytes().to_vec(), sink);
            assert!(QUEUE.flush(PATIENCE));
        }
        assert_eq!(QUEUE.lock().dropped, 2);
        let out = String::from_utf8(OUT.lock().unwrap().1.clone()).unwrap();
        assert_eq!(out, "stead: 2 lines before this one could not be written here\nthree\n");
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up_and_the_queue_stays_small() {
        static QUEUE: Queue = Queue::new();
        static GATE: Mutex<()> = Mutex::new(());
        fn sink(bytes: &[u8]) -> io::Result<usize> {
            let _open = GATE.lock();
            Ok(bytes.len())
        }
        let closed = GATE.lock().unwrap();
        for _ in 0..4000 {
            QUEUE.push(vec![b'x'; 1000], sink);
        }
        assert!(!QUEUE.flush(Duration::from_millis(1)));
        // One guard: two in one statement would wait for each other.
        let state = QUEUE.lock();
        let (bytes, dropped) = (state.bytes, state.dropped);
        drop(state);
        assert!(bytes <= QUEUE_BYTES_MAX && dropped >= 4000 - 1 - QUEUE_BYTES_MAX as u64 / 1000);
        drop(closed);
        assert!(QUEUE.flush(PATIENCE));
        assert_eq!(QUEUE.lock().dropped, dropped);
    }
}
