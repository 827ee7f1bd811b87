//! The status of a node, for people and for metrics.

use crate::checkpoint::{FailedCheck, SkippedCheck};
use crate::memory::MemoryStatus;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use stead_core::ids::{Index, ReplicaId, TaskId};
use stead_core::placement::Place;
use stead_core::record::TaskHead;
use stead_core::shard_replica::ShardReplica;
use stead_store::checkpoint::checks::CheckOutcome;

/// The status of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The number of times that a node was started on this data directory.
    pub lives: u64,
    /// The cluster's life since its last restore.
    pub incarnation: u64,
    /// The time for which the node has run.
    pub uptime: Duration,
    /// Whether the disk is full: writes are refused, reads continue.
    pub full: bool,
    /// The fatal error that ended the node's work.
    pub failure: Option<String>,
    /// The services.
    pub services: Vec<ServiceStatus>,
    /// The shards of this node that answered in time; one that is missing is held by a handler.
    pub shards: Vec<ShardStatus>,
    /// The shards of the services that are not on this node: no figure here includes them.
    #[serde(default)]
    pub shards_not_here: Vec<ShardNotHere>,
    /// The wall clock, as the shards that answered read it.
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
    /// The number of its shards.
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
    /// The lead of the wall clock over it in microseconds; negative if the wall clock is behind. The shard's time runs
    /// faster or slower until both are equal.
    #[serde(default)]
    pub clock_ahead_micros: i64,
    /// Whether the wall clock is so far ahead that timers do not follow it yet: see
    /// [`Options::clock_confirm`](crate::Options::clock_confirm).
    #[serde(default)]
    pub clock_doubted: bool,
    /// The replicas on other nodes to which this node sends the shard's log, while it leads it.
    #[serde(default)]
    pub backups: Vec<BackupStatus>,
}

/// A replica of a shard on another node, as the shard's primary knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupStatus {
    /// Its number.
    pub replica: u64,
    /// The last entry that it is known to have stored.
    pub stored: u64,
    /// Whether it lags by more than 64 MiB, or has stored nothing more of what it lacks for 5 s.
    #[serde(default)]
    pub is_slow: bool,
}

/// A shard that is not on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardNotHere {
    /// Its number.
    pub shard: u32,
    /// Its service.
    pub service: String,
    /// Its place: on another node, or on no known one.
    pub place: Place,
}

/// The wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// Its lead over the time of the shard that differs most, in microseconds; negative if it is behind.
    pub ahead_micros: i64,
    /// Whether its lead over a shard is so large that timers do not follow it yet: the clock is wrong, or the node was down.
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
    /// The number of failures of the next step so far; it is retried.
    #[serde(default)]
    pub retries: u32,
    /// The reason of the last failure.
    #[serde(default)]
    pub failure: Option<String>,
    /// The time of the next attempt, in microseconds since the Unix epoch.
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

/// The last checkpoint whose checks ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// The checkpoint.
    pub number: u64,
    /// The outcome of all checks.
    pub check: CheckOutcome,
    /// Those that do not hold.
    pub failed_checks: Vec<FailedCheck>,
    /// Those that were not run.
    #[serde(default)]
    pub skipped_checks: Vec<SkippedCheck>,
}

/// The state of copying to stable storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// The address that checkpoints are copied to.
    pub to: String,
    /// The newest checkpoint that was copied since the process started, if any.
    pub newest: Option<u64>,
    /// The reason of the last failure, if the last attempt failed. It is repeated.
    pub failure: Option<String>,
}

/// A query that was given up and still runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckQuery {
    /// The service of the process.
    pub service: String,
    /// The key of the process.
    pub process: String,
    /// The time for which it has run.
    pub running: Duration,
}

/// Maximum number of tasks in the status of a shard.
const TASKS_LISTED: usize = 100;

/// The status of one worker's shards.
pub(crate) struct WorkerStatus {
    pub(crate) shards: Vec<ShardStatus>,
}

/// The report of a start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// Whether the data directory was new.
    pub created: bool,
    /// The time until all shards served.
    pub duration: Duration,
    /// The checkpoint that was loaded, if there was one.
    pub checkpoint: Option<u64>,
    /// Entries of the log that were applied after it.
    pub entries_replayed: u64,
    /// Whether the unsynced tail of a crash was cut off the log.
    pub tail_cut: bool,
    /// Bytes of all records after the start.
    pub state_bytes: u64,
}

impl TaskStatus {
    /// Returns the status of a task from its record.
    #[must_use]
    pub fn of(id: TaskId, record: TaskHead) -> Self {
        Self {
            id: id.0,
            name: record.name,
            process: record.process.to_string(),
            step: record.step.0,
            progress: f64::from(record.progress) / 1e6,
            retries: record.retry.as_ref().map_or(0, |retry| retry.count),
            retry_at: record.retry.as_ref().map(|retry| retry.at.0),
            failure: record.retry.map(|retry| retry.reason),
        }
    }
}

pub(crate) fn shard_status(replica: &ShardReplica, service: &str) -> ShardStatus {
    let log = replica.replica();
    let mut status = ShardStatus {
        shard: replica.shard_id().0,
        service: service.to_owned(),
        epoch: log.promised().0,
        index: log.table().last().index.0,
        commit: log.commit().0,
        ..ShardStatus::default()
    };
    let backups = replica.backups();
    let backup = |(id, stored, is_slow): (ReplicaId, Index, bool)| BackupStatus {
        replica: id.0,
        stored: stored.0,
        is_slow,
    };
    status.backups = backups.map(backup).collect();
    if let Some(state) = replica.state() {
        let kept = state.kept();
        let tasks = state.tasks().iter().filter_map(|&task| {
            let head: TaskHead = state.record(&stead_core::record::RecordKey::task(task))?;
            Some(TaskStatus::of(task, head))
        });
        status.tasks = tasks.take(TASKS_LISTED).collect();
        status.colour = state.position().colour.0;
        status.records = state.records().len() as u64;
        status.records_bytes = state.records().bytes() as u64;
        status.outbox_messages = state.outbox_messages() as u64;
        status.outbox_bytes = state.outbox_bytes() as u64;
        status.dead_letters = state.dead_letters() as u64;
        status.dead_letters_bytes = kept.dead_letters as u64;
        status.sessions = state.sessions() as u64;
        status.kept_bytes = kept.replies as u64;
        status.timers = state.timers().len() as u64;
        status.tasks_all = state.tasks().len() as u64;
        status.waiting_bytes = kept.waiting as u64;
    }
    if let Some(shard) = replica.shard() {
        status.epoch = shard.state().position().epoch.0;
        status.active = shard.is_active();
        status.commit = shard.commit().0;
        status.waiting = shard.waiting() as u64;
        status.time = shard.clock().time().0;
        status.clock_ahead_micros = shard.clock().wall_ahead();
        status.clock_doubted = shard.clock().is_doubted();
    }
    status
}
