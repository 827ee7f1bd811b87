//! How a node stands, for people and for metrics.

use crate::checks::CheckStatus;
use crate::copies::CopyStatus;
use crate::memory::MemoryStatus;
use crate::queries::StuckQuery;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use stead_core::ids::{ShardId, TaskId};
use stead_core::record::TaskHead;

/// How a node stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The number of times that a node was started on this data directory.
    pub lives: u64,
    /// The cluster's life since its last restore.
    pub incarnation: u64,
    /// The time for which the node has run.
    pub uptime: Duration,
    /// The disk has no room: writes are refused, reads go on.
    pub full: bool,
    /// The fatal error that ended the node's work.
    pub failure: Option<String>,
    /// The services.
    pub services: Vec<ServiceStatus>,
    /// The shards that answered in time; a shard that is missing is held by a handler.
    pub shards: Vec<ShardStatus>,
    /// The wall clock, as the shards that answered see it.
    #[serde(default)]
    pub clock: ClockStatus,
    /// The log.
    pub log: LogStatus,
    /// The bytes that wait in memory in all shards together, and their limits.
    #[serde(default)]
    pub memory: MemoryStatus,
    /// The newest checkpoint, if there is one.
    pub checkpoint: Option<u64>,
    /// The checkpoint that is being taken.
    pub checkpoint_running: Option<u64>,
    /// The last checkpoint whose checks ended since the node was opened, and their results; `None` before the first.
    #[serde(default)]
    pub checkpoint_check: Option<CheckStatus>,
    /// The copying of checkpoints to stable storage, if it is configured.
    #[serde(default)]
    pub checkpoint_copies: Option<CopyStatus>,
    /// Queries that were given up and still run, the one that has run for the longest first.
    #[serde(default)]
    pub stuck_queries: Vec<StuckQuery>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// The first of its shards.
    pub first_shard: u32,
    /// How many it has.
    pub shards: u32,
    /// Whether this program has its code.
    pub registered: bool,
}

/// A shard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Its number.
    pub shard: u32,
    /// Its service.
    pub service: String,
    /// Its epoch.
    pub epoch: u64,
    /// Whether it serves.
    pub active: bool,
    /// Its last entry.
    pub index: u64,
    /// Its last committed entry.
    pub commit: u64,
    /// The number of its last checkpoint marker.
    pub colour: u64,
    /// Records of all kinds: processes, cells, sessions, replies, timers and so on.
    pub records: u64,
    /// Bytes of the records, keys included.
    pub records_bytes: u64,
    /// Messages sent and not yet acknowledged.
    pub outbox_messages: u64,
    /// Their bytes.
    pub outbox_bytes: u64,
    /// Messages, timers and steps that wait to be handled.
    pub waiting: u64,
    /// Causes that were given up.
    pub dead_letters: u64,
    /// Bytes of the dead letters, with 128 for each; bounded by `dead_letter_bytes_max`.
    #[serde(default)]
    pub dead_letters_bytes: u64,
    /// Open sessions; bounded by `sessions_max`.
    #[serde(default)]
    pub sessions: u64,
    /// Bytes of the replies that are kept for retries, with 128 for each; bounded by `kept_bytes_max`.
    #[serde(default)]
    pub kept_bytes: u64,
    /// Timers that have not fired.
    #[serde(default)]
    pub timers: u64,
    /// Tasks that are not finished.
    #[serde(default)]
    pub tasks_all: u64,
    /// Bytes of timers and tasks, with 128 for each; bounded by `waiting_bytes_max`.
    #[serde(default)]
    pub waiting_bytes: u64,
    /// The first 100 tasks that are not finished.
    pub tasks: Vec<TaskStatus>,
    /// The shard's time, on which timers fire, in microseconds since the Unix epoch.
    #[serde(default)]
    pub time: u64,
    /// By how many microseconds the wall clock is ahead of it; negative if it is behind. The shard runs faster or slower
    /// until both are the same.
    #[serde(default)]
    pub clock_ahead_micros: i64,
    /// Whether the wall clock is so far ahead that timers do not follow it yet: see
    /// [`Options::clock_confirm`](crate::Options::clock_confirm).
    #[serde(default)]
    pub clock_doubted: bool,
}

/// The wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// By how many microseconds it is ahead of the shard whose time differs most; negative if it is behind.
    pub ahead_micros: i64,
    /// Whether it is so far ahead of a shard that timers do not follow it yet: it is wrong, or the node was down for so long.
    pub doubted: bool,
}

impl ClockStatus {
    pub(crate) fn of(shards: &[ShardStatus]) -> Self {
        let aheads = shards.iter().map(|shard| shard.clock_ahead_micros);
        Self {
            ahead_micros: aheads.max_by_key(|ahead| ahead.unsigned_abs()).unwrap_or(0),
            doubted: shards.iter().any(|shard| shard.clock_doubted),
        }
    }
}

/// A task that is not finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// Its number in its shard.
    pub id: u64,
    /// The name of its kind.
    pub name: String,
    /// The key of the process that started it.
    pub process: String,
    /// The next step, counted from 0.
    pub step: u64,
    /// The share that is done, 0.0 to 1.0.
    pub progress: f64,
    /// How often the next step has failed so far, to be tried again later.
    #[serde(default)]
    pub retries: u32,
    /// Why it failed the last time.
    #[serde(default)]
    pub failure: Option<String>,
    /// When it runs again, in microseconds since the Unix epoch.
    #[serde(default)]
    pub retry_at: Option<u64>,
}

/// The log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Bytes of its files.
    pub bytes: u64,
    /// Segments that are still needed.
    pub segments: u64,
    /// Bytes that can be appended before another segment is needed.
    pub reserve: u64,
}

/// Tasks of a shard that its status lists.
const TASKS_LISTED: usize = 100;

/// What one worker tells of its shards.
pub(crate) struct WorkerStatus {
    pub(crate) shards: Vec<ShardStatus>,
}

/// What a node counts, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// Clients' requests taken in.
    pub requests: u64,
    /// Clients' queries taken in.
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
    /// Time that the writes to the log and its syncs took together, in microseconds.
    pub log_sync_micros: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Checkpoints given up.
    pub checkpoints_failed: u64,
    /// Bytes written for checkpoints.
    pub checkpoint_bytes: u64,
    /// The longest that a slice of a checkpoint held its worker, in microseconds.
    pub checkpoint_stall_micros: u64,
    /// The longest that a worker went without a look at its inbox, in microseconds. Over about 10,000 it was held by one
    /// call of a handler.
    #[serde(default)]
    pub worker_hold_micros: u64,
    /// Checkpoints whose services' checks ended.
    #[serde(default)]
    pub checkpoint_checks: u64,
    /// Those of them with a check that failed.
    #[serde(default)]
    pub checkpoint_checks_failed: u64,
    /// Checkpoints that were completed and not checked: because the caller declined it, no service declares a check, they were
    /// over `checkpoints.check_bytes_max`, or newer ones came before their turn.
    #[serde(default)]
    pub checkpoints_unchecked: u64,
    /// Bytes of entries that are not committed yet, and of answers that wait for them, now.
    #[serde(default)]
    pub uncommitted_bytes: u64,
    /// Bytes of messages in outboxes, now: sent, and not yet received for good.
    #[serde(default)]
    pub outbox_bytes: u64,
    /// Bytes of clients' calls that wait for their answer, now.
    #[serde(default)]
    pub request_bytes: u64,
    /// Bytes of clients' queries on the way from their shards to their answers, and of the states that they read, now.
    #[serde(default)]
    pub query_bytes: u64,
    /// Bytes of queries that were given up and still run, and of the states that they read, now. Not in
    /// [`Self::query_bytes`].
    #[serde(default)]
    pub stuck_query_bytes: u64,
    /// Queries that wait for a thread, now.
    #[serde(default)]
    pub queries_waiting: u64,
    /// Queries that were given up and still run, now.
    #[serde(default)]
    pub queries_stuck: u64,
    /// Queries whose clients were answered by the time limit or their deadline, and not by the process.
    #[serde(default)]
    pub queries_given_up: u64,
    /// Checkpoints copied to other stores.
    pub checkpoint_copies: u64,
    /// Copies that failed.
    pub checkpoint_copies_failed: u64,
    /// Bytes written for copies.
    pub checkpoint_copy_bytes: u64,
}

/// What a node counts for one service, since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceMetrics {
    /// The service.
    pub service: String,
    /// Clients' requests taken in.
    pub requests: u64,
    /// Clients' queries taken in.
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

/// What is counted for one service; workers add to it once for each turn of their loop.
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

/// What is counted.
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

/// How a start went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// Whether the data directory was new.
    pub created: bool,
    /// How long it took until the shards were started.
    pub duration: Duration,
    /// The checkpoint that was loaded, if there was one.
    pub checkpoint: Option<u64>,
    /// Entries of the log that were applied on top of it.
    pub entries_replayed: u64,
    /// Whether the unsynced remains of a crash were cut off the log.
    pub tail_cut: bool,
    /// Bytes of records after it.
    pub state_bytes: u64,
}

impl TaskStatus {
    /// A task as its record has it.
    #[must_use]
    pub fn of(id: TaskId, record: TaskHead) -> Self {
        Self {
            id: id.0,
            name: record.name,
            process: record.process.to_string(),
            step: record.step,
            progress: f64::from(record.progress) / 1e6,
            retries: record.retry.as_ref().map_or(0, |retry| retry.count),
            retry_at: record.retry.as_ref().map(|retry| retry.at.0),
            failure: record.retry.map(|retry| retry.reason),
        }
    }
}

pub(crate) fn shard_status(shard: &stead_core::shard::Shard, id: ShardId, service: &str) -> ShardStatus {
    let state = shard.state();
    let (position, kept) = (state.position(), state.kept());
    let tasks = state.tasks().iter().filter_map(|&task| {
        let head: TaskHead = state.record(&stead_core::record::RecordKey::task(task))?;
        Some(TaskStatus::of(task, head))
    });
    ShardStatus {
        shard: id.0,
        service: service.to_owned(),
        epoch: position.epoch.0,
        active: shard.is_active(),
        index: position.index.0,
        commit: shard.commit().0,
        colour: position.colour.0,
        records: state.records().len() as u64,
        records_bytes: state.records().bytes() as u64,
        outbox_messages: state.outbox_messages() as u64,
        outbox_bytes: state.outbox_bytes() as u64,
        waiting: shard.waiting() as u64,
        dead_letters: state.dead_letters() as u64,
        dead_letters_bytes: kept.dead_letters as u64,
        sessions: state.sessions() as u64,
        kept_bytes: kept.replies as u64,
        timers: state.timers().len() as u64,
        tasks_all: state.tasks().len() as u64,
        waiting_bytes: kept.waiting as u64,
        tasks: tasks.take(TASKS_LISTED).collect(),
        time: shard.clock().time().0,
        clock_ahead_micros: shard.clock().wall_ahead(),
        clock_doubted: shard.clock().is_doubted(),
    }
}
