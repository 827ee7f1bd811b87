//! The bytes that wait somewhere in a node, accounted together: over a limit clients are told to come back later.
//!
//! Messages between processes are never refused. A message in an inbox or a shard's queue shares its payload with the
//! outbox of its sender, which holds it until the reception is committed: so it is counted there.

use std::sync::atomic::{AtomicI64, Ordering};

/// Bytes that wait in a node from which on clients' requests are refused as overloaded: 1 GiB.
const WAITING_BYTES_MAX: i64 = 1 << 30;
/// Bytes of entries that wait for the log from which on no handler begins: 256 MiB. The log alone brings them down, so
/// that nothing can wait for this in a circle.
const UNCOMMITTED_BYTES_MAX: i64 = 256 << 20;

/// What waits, in bytes. Any thread adds to it and takes away what it added.
#[derive(Default)]
pub(crate) struct Memory {
    uncommitted: AtomicI64,
    outboxes: AtomicI64,
    requests: AtomicI64,
}

impl Memory {
    /// Entries that are not committed, and messages in outboxes, are so many bytes more.
    pub(crate) fn change(&self, uncommitted: i64, outboxes: i64) {
        if uncommitted != 0 {
            self.uncommitted.fetch_add(uncommitted, Ordering::Relaxed);
        }
        if outboxes != 0 {
            self.outboxes.fetch_add(outboxes, Ordering::Relaxed);
        }
    }

    /// Clients' requests in inboxes are so many bytes more.
    pub(crate) fn change_requests(&self, bytes: i64) {
        self.requests.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether clients are to come back later.
    pub(crate) fn is_over(&self) -> bool {
        self.is_pressed() || self.waiting().iter().sum::<u64>() >= WAITING_BYTES_MAX as u64
    }

    /// Whether the log is so far behind that no handler may begin.
    pub(crate) fn is_pressed(&self) -> bool {
        self.uncommitted.load(Ordering::Relaxed) >= UNCOMMITTED_BYTES_MAX
    }

    /// Bytes of entries that are not committed, of messages in outboxes, and of requests in inboxes.
    pub(crate) fn waiting(&self) -> [u64; 3] {
        // Threads publish in their own time: a sum may be below zero for a moment.
        [&self.uncommitted, &self.outboxes, &self.requests]
            .map(|bytes| u64::try_from(bytes.load(Ordering::Relaxed)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_waits_counts_together_and_the_log_alone_holds_handlers() {
        let memory = Memory::default();
        memory.change(1, WAITING_BYTES_MAX - 10);
        assert!(!memory.is_over() && !memory.is_pressed());
        memory.change_requests(9);
        assert!(memory.is_over() && !memory.is_pressed());
        memory.change_requests(-9);
        memory.change(UNCOMMITTED_BYTES_MAX, 10 - WAITING_BYTES_MAX);
        assert!(memory.is_over() && memory.is_pressed());
        memory.change(-1 - UNCOMMITTED_BYTES_MAX, 0);
        assert!(!memory.is_over());
        assert_eq!(memory.waiting(), [0, 0, 0]);
    }
}
