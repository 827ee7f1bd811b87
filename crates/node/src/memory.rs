//! The account of the bytes that wait in a node: over a limit clients' calls are refused as overloaded.
//!
//! Messages between processes are never refused. A message in an inbox or a shard's queue shares its payload with the
//! outbox of its sender, which keeps it until the reception is committed: so it is counted there.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicI64, Ordering};

/// The bytes that wait in a node, and their limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Bytes of entries that are not committed, and of answers that wait for such entries.
    pub uncommitted_bytes: u64,
    /// Limit of `uncommitted_bytes` above which no handler begins: `memory.uncommitted_bytes_max`.
    pub uncommitted_bytes_max: u64,
    /// Bytes of messages in outboxes: sent, and not yet acknowledged.
    pub outbox_bytes: u64,
    /// Bytes of clients' calls that wait for their answer.
    pub request_bytes: u64,
    /// Bytes of queries from their arrival until their answers, and of the states that they read.
    #[serde(default)]
    pub query_bytes: u64,
    /// Limit of the sum of these above which clients' calls are refused as overloaded: `memory.bytes_max`.
    pub bytes_max: u64,
}

/// The limits of the bytes that wait in a node.
#[derive(Clone, Copy, Debug)]
pub struct MemoryLimits {
    /// Limit of the bytes that wait in a node, above which clients' requests are refused as overloaded: 1 GiB by
    /// default.
    pub bytes_max: u64,
    /// Limit of the bytes that wait for the log, above which no handler begins: 256 MiB by default. The log alone
    /// reduces them, so that this wait cannot be part of a cycle.
    pub uncommitted_bytes_max: u64,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self { bytes_max: 1 << 30, uncommitted_bytes_max: 256 << 20 }
    }
}

/// Share of [`MemoryLimits::bytes_max`] for queries and the states that they captured: a quarter.
const QUERY_SHARE: u64 = 4;

/// The account of the waiting bytes. Each thread that adds bytes later subtracts the same number.
#[derive(Default)]
pub(crate) struct Memory {
    uncommitted: AtomicI64,
    outboxes: AtomicI64,
    requests: AtomicI64,
    queries: AtomicI64,
    stuck_queries: AtomicI64,
    limits: MemoryLimits,
}

impl Memory {
    pub(crate) fn new(limits: MemoryLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Adds bytes that wait for the log, of messages in outboxes, and of clients' calls; negative ones are subtracted.
    pub(crate) fn change(&self, more: [i64; 3]) {
        for (part, more) in self.parts().into_iter().zip(more) {
            if more != 0 {
                part.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    fn parts(&self) -> [&AtomicI64; 3] {
        [&self.uncommitted, &self.outboxes, &self.requests]
    }

    /// Adds bytes of queries that wait for the commit of what they read, that wait for a thread, or that run.
    pub(crate) fn change_queries(&self, bytes: i64) {
        if bytes != 0 {
            self.queries.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Adds bytes of queries that were given up and still run. They count against no other limit: they may never end,
    /// and their number is bounded.
    pub(crate) fn change_stuck_queries(&self, bytes: i64) {
        self.stuck_queries.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes of queries that were given up and still run.
    pub(crate) fn stuck_queries(&self) -> u64 {
        u64::try_from(self.stuck_queries.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Whether another query may be captured and run apart from its shard.
    pub(crate) fn takes_queries(&self) -> bool {
        self.queries() < self.limits.bytes_max / QUERY_SHARE
    }

    /// Returns the bytes of queries that wait for the commit of what they read, for a thread, or that run.
    pub(crate) fn queries(&self) -> u64 {
        u64::try_from(self.queries.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Whether another call may wait for its answer. It needs memory meanwhile, so it is refused at once if there is
    /// none; a call that only reads is not affected by waiting messages. Space for one call is space for any: a single
    /// call that exceeds the limit must not be refused forever.
    pub(crate) fn takes(&self, only_reads: bool) -> bool {
        let [uncommitted, outboxes, requests] = self.waiting();
        let outboxes = if only_reads { 0 } else { outboxes };
        uncommitted + outboxes + requests + self.queries() < self.limits.bytes_max
    }

    /// Whether clients' requests must not be handled yet. Their own bytes do not count: otherwise waiting requests
    /// would wait for each other.
    pub(crate) fn is_over(&self) -> bool {
        let [uncommitted, outboxes, _] = self.waiting();
        self.is_pressed() || uncommitted + outboxes >= self.limits.bytes_max
    }

    /// Whether the log is so far behind that no handler may begin.
    pub(crate) fn is_pressed(&self) -> bool {
        self.waiting()[0] >= self.limits.uncommitted_bytes_max
    }

    /// Returns the bytes that wait for the log, of messages in outboxes, and of clients' calls.
    pub(crate) fn waiting(&self) -> [u64; 3] {
        // Threads publish independently: a sum may be below zero for a moment.
        self.parts().map(|bytes| u64::try_from(bytes.load(Ordering::Relaxed)).unwrap_or(0))
    }

    /// Returns the account as it stands: bytes that wait for the log, of messages in outboxes, of clients' calls, of
    /// queries, and of queries that were given up.
    pub(crate) fn account(&self) -> [i64; 5] {
        let Self { uncommitted, outboxes, requests, queries, stuck_queries, .. } = self;
        [uncommitted, outboxes, requests, queries, stuck_queries].map(|bytes| bytes.load(Ordering::Relaxed))
    }

    pub(crate) fn status(&self) -> MemoryStatus {
        let [uncommitted_bytes, outbox_bytes, request_bytes] = self.waiting();
        let MemoryLimits { bytes_max, uncommitted_bytes_max } = self.limits;
        let query_bytes = self.queries();
        MemoryStatus {
            uncommitted_bytes,
            uncommitted_bytes_max,
            outbox_bytes,
            request_bytes,
            query_bytes,
            bytes_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_waits_counts_together_and_the_log_alone_holds_handlers() {
        let limits = MemoryLimits { bytes_max: 1000, uncommitted_bytes_max: 400 };
        let memory = Memory::new(limits);
        memory.change([100, 890, 9]);
        assert!(memory.takes(false) && !memory.is_over() && !memory.is_pressed());
        memory.change([0, 0, 1]);
        assert!(!memory.takes(false) && !memory.is_over() && !memory.is_pressed());
        assert!(memory.takes(true), "what only reads does not wait for messages");
        memory.change([0, 10, -10]);
        assert!(memory.is_over() && !memory.is_pressed());
        memory.change([300, -900, 599]);
        assert!(memory.is_over() && memory.is_pressed() && memory.takes(true));
        memory.change([0, 0, 1]);
        assert!(!memory.takes(true));
        memory.change([-400, 0, -600]);
        assert_eq!(memory.waiting(), [0, 0, 0]);
        // Queries have a share of it, and do not delay accepted requests.
        memory.change_queries(249);
        assert!(memory.takes_queries());
        memory.change_queries(1);
        assert!(!memory.takes_queries() && memory.takes(false) && !memory.is_over());
        memory.change([0, 0, 750]);
        assert!(!memory.takes(true));
        memory.change_queries(-250);
        assert!(memory.takes(true));
    }

    #[test]
    fn what_waits_alone_may_be_over_the_limit() {
        let memory = Memory::new(MemoryLimits { bytes_max: 10, uncommitted_bytes_max: 10 });
        assert!(memory.takes(false));
        memory.change([0, 0, 5000]);
        assert!(!memory.takes(false) && !memory.takes(true));
        assert!(!memory.is_over(), "it is handled, whatever its size");
    }
}
