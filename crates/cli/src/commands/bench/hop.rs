//! The service of the workload `messages`: each message makes its process send one to another process.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use stead::{Context, Never, Process, QueryContext};

/// Processes of the workload.
pub(super) const PROCESSES: u32 = 100_000;

/// Filling with which a stored process has 100 bytes, including version, names and counter.
const FILLING: usize = 74;

/// A process that counts what it receives.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Hop {
    received: u32,
    filling: Filling,
}

/// The messages of a process.
#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    /// Send this many messages to random processes; not counted.
    Begin(u32),
    /// Count this message and send one to a random process.
    Hop,
}

/// The queries of a process.
#[derive(Serialize, Deserialize)]
pub(super) enum Query {
    Received,
}

impl Process for Hop {
    const SERVICE: &'static str = "hop";
    type Key = u32;
    type Request = Request;
    type Reply = ();
    type Error = Never;
    type Query = Query;
    type Answer = u32;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<(), Never> {
        match request {
            Request::Begin(messages) => {
                for _ in 0..messages {
                    let to = ctx.random().u32(..PROCESSES);
                    ctx.send::<Self>(&to, Request::Hop);
                }
            }
            Request::Hop => {
                self.received += 1;
                self.filling.0[self.received as usize % FILLING] ^= 1;
                count();
                if !STOPPED.load(Ordering::Relaxed) {
                    let to = ctx.random().u32(..PROCESSES);
                    ctx.send::<Self>(&to, Request::Hop);
                }
            }
        }
        Ok(())
    }

    fn query(&self, _: &QueryContext<'_, Self>, Query::Received: Query) -> Result<u32, Never> {
        Ok(self.received)
    }
}

/// When set, a message is counted but sends no other.
pub(super) static STOPPED: AtomicBool = AtomicBool::new(false);

/// A counter on a cache line of its own: workers that share one slow each other down.
#[repr(align(128))]
struct Padded(AtomicU64);

static COUNTERS: [Padded; 64] = [const { Padded(AtomicU64::new(0)) }; 64];
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MINE: Cell<Option<&'static AtomicU64>> = const { Cell::new(None) };
}

/// Counts one message, or another unit of a workload, in this process.
pub(super) fn count() {
    let mine = MINE.get().unwrap_or_else(|| {
        let mine = &COUNTERS[THREADS.fetch_add(1, Ordering::Relaxed) % COUNTERS.len()].0;
        MINE.set(Some(mine));
        mine
    });
    mine.fetch_add(1, Ordering::Relaxed);
}

/// Returns the count of all threads of this process.
pub(super) fn counted() -> u64 {
    COUNTERS.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum()
}

/// Bytes that only take up space; encoded as such, not as an array of numbers.
struct Filling([u8; FILLING]);

impl Default for Filling {
    fn default() -> Self {
        Self([7; FILLING])
    }
}

impl Serialize for Filling {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Filling {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Filling;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{FILLING} bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Filling, E> {
                bytes.try_into().map(Filling).map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_process_has_100_bytes() {
        let hop = Hop { received: 70_000, filling: Filling::default() };
        assert_eq!(stead::codec::encode_state(&hop).unwrap().len(), 100);
    }
}
