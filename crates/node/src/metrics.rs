//! The counters of a node, and the figures that they make up for operators.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of a node since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// Clients' requests accepted.
    pub requests: u64,
    /// Clients' queries accepted.
    pub queries: u64,
    /// Answers given, refusals included.
    pub answers: u64,
    /// Refusals given.
    pub refusals: u64,
    /// Messages delivered from shard to shard, resends included.
    pub messages: u64,
    /// Entries appended to the log.
    pub entries: u64,
    /// Bytes of these entries.
    pub entry_bytes: u64,
    /// Steps of tasks that were run.
    pub task_steps: u64,
    /// Writes to the log.
    pub log_writes: u64,
    /// Syncs of the log.
    pub log_syncs: u64,
    /// Time of all writes and syncs of the log together, in microseconds.
    pub log_sync_micros: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Checkpoints given up.
    pub checkpoints_failed: u64,
    /// Bytes written for checkpoints.
    pub checkpoint_bytes: u64,
    /// Longest time that a slice of a checkpoint held its worker, in microseconds.
    pub checkpoint_stall_micros: u64,
    /// Longest time of a worker between two looks at its inbox, in microseconds. Over about 10,000, one call of a handler held
    /// the worker.
    #[serde(default)]
    pub worker_hold_micros: u64,
    /// Checkpoints whose services' checks ended.
    #[serde(default)]
    pub checkpoint_checks: u64,
    /// Checkpoints among these with a failed check.
    #[serde(default)]
    pub checkpoint_checks_failed: u64,
    /// Completed checkpoints that were not checked: the caller declined it, no service declares a check, they were over
    /// `checkpoints.check_bytes_max`, or newer ones came before their turn.
    #[serde(default)]
    pub checkpoints_unchecked: u64,
    /// Current bytes of entries that are not committed, and of answers that wait for them.
    #[serde(default)]
    pub uncommitted_bytes: u64,
    /// Current bytes of messages in outboxes: sent, and not yet acknowledged.
    #[serde(default)]
    pub outbox_bytes: u64,
    /// Current bytes of clients' calls that wait for their answer.
    #[serde(default)]
    pub request_bytes: u64,
    /// Current bytes of queries from their arrival until their answers, and of the states that they read.
    #[serde(default)]
    pub query_bytes: u64,
    /// Current bytes of queries that were given up and still run, and of the states that they read. Not part of
    /// [`Self::query_bytes`].
    #[serde(default)]
    pub stuck_query_bytes: u64,
    /// Queries that wait for a thread now.
    #[serde(default)]
    pub queries_waiting: u64,
    /// Queries that were given up and still run now.
    #[serde(default)]
    pub queries_stuck: u64,
    /// Queries that were given up at the time limit or at their client's deadline.
    #[serde(default)]
    pub queries_given_up: u64,
    /// Checkpoints copied to other stores.
    pub checkpoint_copies: u64,
    /// Copies that failed.
    pub checkpoint_copies_failed: u64,
    /// Bytes written for copies.
    pub checkpoint_copy_bytes: u64,
}

/// The counters of one service since the node was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceMetrics {
    /// The service.
    pub service: String,
    /// Clients' requests accepted.
    pub requests: u64,
    /// Clients' queries accepted.
    pub queries: u64,
    /// Answers given, refusals included.
    pub answers: u64,
    /// Refusals given.
    pub refusals: u64,
    /// Messages that its shards delivered to shards of any service, resends included.
    pub messages: u64,
    /// Entries appended to the log.
    pub entries: u64,
    /// Bytes of these entries.
    pub entry_bytes: u64,
    /// Steps of its tasks that were run.
    pub task_steps: u64,
}

/// A figure of [`Metrics`] that any thread may add to.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn raise(&self, to: u64) {
        self.0.fetch_max(to, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one service, to which workers add once for each turn.
#[derive(Default)]
pub(crate) struct ServiceCounters {
    pub(crate) requests: Counter,
    pub(crate) queries: Counter,
    pub(crate) answers: Counter,
    pub(crate) refusals: Counter,
    pub(crate) messages: Counter,
    pub(crate) entries: Counter,
    pub(crate) entry_bytes: Counter,
    pub(crate) task_steps: Counter,
}

impl ServiceCounters {
    pub(crate) fn snapshot(&self, service: &str) -> ServiceMetrics {
        ServiceMetrics {
            service: service.to_owned(),
            requests: self.requests.get(),
            queries: self.queries.get(),
            answers: self.answers.get(),
            refusals: self.refusals.get(),
            messages: self.messages.get(),
            entries: self.entries.get(),
            entry_bytes: self.entry_bytes.get(),
            task_steps: self.task_steps.get(),
        }
    }
}

/// The counters of a node.
#[derive(Default)]
pub(crate) struct Counters {
    /// By service.
    pub(crate) services: Vec<ServiceCounters>,
    pub(crate) log_writes: Counter,
    pub(crate) log_syncs: Counter,
    pub(crate) log_sync_micros: Counter,
    pub(crate) checkpoints: Counter,
    pub(crate) checkpoints_failed: Counter,
    pub(crate) checkpoint_bytes: Counter,
    pub(crate) checkpoint_stall_micros: Counter,
    pub(crate) worker_hold_micros: Counter,
    pub(crate) queries_given_up: Counter,
    pub(crate) checkpoint_checks: Counter,
    pub(crate) checkpoint_checks_failed: Counter,
    pub(crate) checkpoints_unchecked: Counter,
    pub(crate) checkpoint_copies: Counter,
    pub(crate) checkpoint_copies_failed: Counter,
    pub(crate) checkpoint_copy_bytes: Counter,
}

impl Counters {
    pub(crate) fn new(services: usize) -> Self {
        Self { services: (0..services).map(|_| ServiceCounters::default()).collect(), ..Self::default() }
    }

    pub(crate) fn snapshot(&self) -> Metrics {
        let sum =
            |of: fn(&ServiceCounters) -> &Counter| self.services.iter().map(|each| of(each).get()).sum();
        Metrics {
            requests: sum(|each| &each.requests),
            queries: sum(|each| &each.queries),
            answers: sum(|each| &each.answers),
            refusals: sum(|each| &each.refusals),
            messages: sum(|each| &each.messages),
            entries: sum(|each| &each.entries),
            entry_bytes: sum(|each| &each.entry_bytes),
            task_steps: sum(|each| &each.task_steps),
            log_writes: self.log_writes.get(),
            log_syncs: self.log_syncs.get(),
            log_sync_micros: self.log_sync_micros.get(),
            checkpoints: self.checkpoints.get(),
            checkpoints_failed: self.checkpoints_failed.get(),
            checkpoint_bytes: self.checkpoint_bytes.get(),
            checkpoint_stall_micros: self.checkpoint_stall_micros.get(),
            worker_hold_micros: self.worker_hold_micros.get(),
            checkpoint_checks: self.checkpoint_checks.get(),
            checkpoint_checks_failed: self.checkpoint_checks_failed.get(),
            checkpoints_unchecked: self.checkpoints_unchecked.get(),
            uncommitted_bytes: 0,
            outbox_bytes: 0,
            request_bytes: 0,
            query_bytes: 0,
            stuck_query_bytes: 0,
            queries_waiting: 0,
            queries_stuck: 0,
            queries_given_up: self.queries_given_up.get(),
            checkpoint_copies: self.checkpoint_copies.get(),
            checkpoint_copies_failed: self.checkpoint_copies_failed.get(),
            checkpoint_copy_bytes: self.checkpoint_copy_bytes.get(),
        }
    }
}
