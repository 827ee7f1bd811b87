//! The answers of a node for the OpenAPI document.
//!
//! The gateway serves the library's own types, which do not know OpenAPI. These types describe their JSON; the tests
//! below compare each with the JSON of the served type.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;
use utoipa::ToSchema;

/// The status of a node.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct Status {
    /// The number of times that a node was started on this data directory.
    lives: u64,
    /// The cluster's incarnation, which each restore begins.
    incarnation: u64,
    /// The time for which the node has run.
    #[schema(value_type = Object)]
    uptime: Duration,
    /// The disk has no room: writes are refused, reads go on.
    full: bool,
    /// The fatal error that ended the node's work.
    failure: Option<String>,
    /// The services.
    services: Vec<ServiceStatus>,
    /// The shards of this node that answered in time; one that is missing is held by a handler.
    shards: Vec<ShardStatus>,
    /// The shards of the services that are not on this node: no figure here includes them.
    #[schema(required = false)]
    shards_not_here: Vec<ShardNotHere>,
    /// The wall clock, as the shards that answered read it.
    #[schema(required = false)]
    clock: ClockStatus,
    /// The log.
    log: LogStatus,
    /// The bytes that wait in memory in all shards together, and their limits.
    #[schema(required = false)]
    memory: MemoryStatus,
    /// The newest checkpoint, if there is one.
    checkpoint: Option<u64>,
    /// The checkpoint that is being taken.
    checkpoint_running: Option<u64>,
    /// The last checkpoint whose checks ended since the node was opened, and their results; `None` before the first.
    checkpoint_check: Option<CheckStatus>,
    /// The copying of checkpoints to stable storage, if it is configured.
    checkpoint_copies: Option<CopyStatus>,
    /// Queries that were given up and still run, the one that has run for the longest first.
    #[schema(required = false)]
    stuck_queries: Vec<StuckQuery>,
}

/// A service.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct ServiceStatus {
    /// Its name.
    name: String,
    /// The first of its shards.
    first_shard: u32,
    /// The number of its shards.
    shards: u32,
    /// Whether this program has its code.
    registered: bool,
}

/// A shard that is not on this node.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct ShardNotHere {
    /// Its number.
    shard: u32,
    /// Its service.
    service: String,
    /// Its place: on another node, or on no known one.
    place: Place,
}

/// A shard that a list leaves out because its primary gave no answer.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct ShardUnanswered {
    /// Its number.
    shard: u32,
    /// Its service.
    service: String,
    /// The node of its primary, as far as this node knows it.
    node: Option<u32>,
    /// The reason.
    reason: String,
}

/// The place of a shard.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Place {
    /// On this node.
    Here,
    /// On another node.
    Elsewhere,
    /// On no known node.
    Unplaced,
}

/// A shard.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct ShardStatus {
    /// Its number.
    shard: u32,
    /// Its service.
    service: String,
    /// Its epoch.
    epoch: u64,
    /// Whether it serves.
    active: bool,
    /// Its last entry.
    index: u64,
    /// Its last committed entry.
    commit: u64,
    /// The number of its last checkpoint marker.
    colour: u64,
    /// Records of all kinds: processes, cells, sessions, replies, timers and so on.
    records: u64,
    /// Bytes of the records, keys included.
    records_bytes: u64,
    /// Messages sent and not yet acknowledged.
    outbox_messages: u64,
    /// Their bytes.
    outbox_bytes: u64,
    /// Messages, timers and steps that wait to be handled.
    waiting: u64,
    /// Causes that were given up.
    dead_letters: u64,
    /// Bytes of the dead letters, with 128 for each; bounded by `dead_letter_bytes_max`.
    #[schema(required = false)]
    dead_letters_bytes: u64,
    /// Open sessions; bounded by `sessions_max`.
    #[schema(required = false)]
    sessions: u64,
    /// Bytes of the replies that are kept for retries, with 128 for each; bounded by `kept_bytes_max`.
    #[schema(required = false)]
    kept_bytes: u64,
    /// Timers that have not fired.
    #[schema(required = false)]
    timers: u64,
    /// Tasks that are not finished.
    #[schema(required = false)]
    tasks_all: u64,
    /// Bytes of timers and tasks, with 128 for each; bounded by `waiting_bytes_max`.
    #[schema(required = false)]
    waiting_bytes: u64,
    /// The first 100 tasks that are not finished.
    tasks: Vec<TaskStatus>,
    /// The shard's time, on which timers fire, in microseconds since the Unix epoch.
    #[schema(required = false)]
    time: u64,
    /// The lead of the wall clock over it in microseconds; negative if the wall clock is behind. The shard runs faster
    /// or slower until both are equal.
    #[schema(required = false)]
    clock_ahead_micros: i64,
    /// Whether the wall clock is so far ahead that timers do not follow it yet: see `clock_confirm`.
    #[schema(required = false)]
    clock_doubted: bool,
    /// The replicas on other nodes to which this node sends the shard's log, while it leads it.
    #[schema(required = false)]
    backups: Vec<BackupStatus>,
}

/// A replica of a shard on another node, as the shard's primary knows it.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct BackupStatus {
    /// Its number.
    replica: u64,
    /// The last entry that it is known to have stored.
    stored: u64,
    /// Whether it lags by more than 64 MiB, or has stored nothing more of what it lacks for 5 s.
    #[schema(required = false)]
    is_slow: bool,
}

/// The wall clock.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct ClockStatus {
    /// Its lead over the time of the shard that differs most, in microseconds; negative if it is behind.
    ahead_micros: i64,
    /// Whether its lead over a shard is so large that timers do not follow it yet: the clock is wrong, or the node was
    /// down.
    doubted: bool,
}

/// A task that is not finished.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct TaskStatus {
    /// Its number in its shard.
    id: u64,
    /// The name of its kind.
    name: String,
    /// The key of the process that started it.
    process: String,
    /// The next step, counted from 0.
    step: u64,
    /// The share that is done, 0.0 to 1.0.
    progress: f64,
    /// The number of failures of the next step so far; it is retried.
    #[schema(required = false)]
    retries: u32,
    /// The reason of the last failure.
    failure: Option<String>,
    /// The time of the next attempt, in microseconds since the Unix epoch.
    retry_at: Option<u64>,
}

/// The log.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct LogStatus {
    /// Bytes of its files.
    bytes: u64,
    /// Segments that are still needed.
    segments: u64,
    /// Bytes that can be appended before another segment is needed.
    reserve: u64,
}

/// The bytes that wait in a node, and their limits.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct MemoryStatus {
    /// Bytes of entries that are not committed, and of answers that wait for such entries.
    uncommitted_bytes: u64,
    /// Limit of `uncommitted_bytes` above which no handler begins: `memory.uncommitted_bytes_max`.
    uncommitted_bytes_max: u64,
    /// Bytes of messages in outboxes: sent, and not yet acknowledged.
    outbox_bytes: u64,
    /// Bytes of clients' calls that wait for their answer.
    request_bytes: u64,
    /// Bytes of queries from their arrival until their answers, and of the states that they read.
    #[schema(required = false)]
    query_bytes: u64,
    /// Limit of the sum of these above which clients' calls are refused as overloaded: `memory.bytes_max`.
    bytes_max: u64,
}

/// The last checkpoint whose checks ended.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct CheckStatus {
    /// The checkpoint.
    number: u64,
    /// The outcome of all checks.
    check: String,
    /// Those that do not hold.
    failed_checks: Vec<FailedCheck>,
    /// Those that were not run.
    #[schema(required = false)]
    skipped_checks: Vec<SkippedCheck>,
}

/// A service's check that does not hold.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct FailedCheck {
    /// The service.
    service: String,
    /// The reason, as the check reports it.
    reason: String,
}

/// A service's check that was not run over a checkpoint.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct SkippedCheck {
    /// The service.
    service: String,
    /// The reason why it was not run.
    reason: String,
}

/// The state of copying checkpoints to stable storage.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct CopyStatus {
    /// The address that checkpoints are copied to.
    to: String,
    /// The newest checkpoint that was copied since the process started, if any.
    newest: Option<u64>,
    /// The reason of the last failure, if the last attempt failed. It is repeated.
    failure: Option<String>,
}

/// A query that was given up and still runs.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct StuckQuery {
    /// The service of the process.
    service: String,
    /// The key of the process.
    process: String,
    /// The time for which it has run.
    #[schema(value_type = Object)]
    running: Duration,
}

/// Some processes of a service.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct ProcessPage {
    /// The processes, not ordered by key.
    processes: Vec<ProcessInfo>,
    /// The position of the next page; `None` after the last one. A page may be short or empty although there is a next
    /// one.
    next: Option<String>,
    /// The shards of the service that are not on this node: no page has their processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    shards_not_here: Vec<ShardNotHere>,
    /// The shards that this page had come to and whose primaries gave no answer: what they hold is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unanswered: Vec<ShardUnanswered>,
}

/// A process and the size of its state.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct ProcessInfo {
    /// Its key.
    key: String,
    /// Its shard.
    shard: u32,
    /// Bytes of its stored state, its version included.
    bytes: u64,
    /// Cells of its keyed sub-state.
    cells: u64,
    /// Bytes of these cells, without their keys.
    cells_bytes: u64,
    /// Timers that have not fired, messages with a delay included.
    timers: u64,
    /// Tasks that are not finished.
    tasks: u64,
}

/// A process and its state.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct ProcessDetail {
    /// Its service.
    service: String,
    /// Its key, shard and sizes.
    #[serde(flatten)]
    info: ProcessInfo,
    /// Whether it has a state, cells, timers or tasks. Every key has a shard, also before its process is called for the
    /// first time.
    exists: bool,
    /// The version of the service that stored its state; `None` without a state.
    version: Option<u32>,
    /// Its state, as JSON where that is possible.
    state: Option<Value>,
    /// Its timers that fire first, 100 at most.
    timer_list: Vec<TimerStatus>,
    /// The first of its tasks, 100 at most.
    task_list: Vec<TaskStatus>,
}

/// A timer that has not fired, or a message with a delay.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct TimerStatus {
    /// Its number in its shard.
    id: u64,
    /// The time at which it fires, in microseconds since the Unix epoch.
    at: u64,
    /// The process that receives its message, `SERVICE/KEY`; `None` if it fires in its own process.
    to: Option<String>,
    /// Its payload for the handler, as JSON where that is possible.
    payload: Option<Value>,
}

/// Some dead letters of a service.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct DeadLetterPage {
    /// The dead letters, by shard and index.
    #[schema(value_type = Vec<Object>)]
    dead_letters: Vec<Value>,
    /// The position of the next page; `None` after the last one. A page may be short although there is a next one.
    next: Option<String>,
    /// The shards of the service that are not on this node: no page has their dead letters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    shards_not_here: Vec<ShardNotHere>,
    /// The shards that this page had come to and whose primaries gave no answer: what they hold is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unanswered: Vec<ShardUnanswered>,
}

/// A log entry for people to read.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct LogEntry {
    /// Its position in its shard's log.
    index: u64,
    /// The epoch of the primary that appended it.
    epoch: u64,
    /// The shard's time, in microseconds since the Unix epoch.
    time: u64,
    /// The input that was handled.
    cause: String,
    /// The process that handled it; empty if no process did.
    process: String,
    /// The records that it puts or deletes.
    writes: Vec<LogWrite>,
    /// The messages that it sends.
    sends: Vec<LogSend>,
    /// The answer, as JSON where that is possible.
    reply: Option<LogReply>,
}

/// A record that an entry puts or deletes.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct LogWrite {
    /// Its kind and key.
    record: String,
    /// Bytes of its value; `None` if it is deleted.
    bytes: Option<u64>,
    /// The value of a process's state, as JSON where that is possible.
    state: Option<Value>,
}

/// A message that an entry sends.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct LogSend {
    /// The receiving shard.
    shard: u32,
    /// The receiving process.
    process: String,
    /// Its payload, as JSON where that is possible.
    payload: Option<Value>,
}

/// The answer in an entry.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogReply {
    /// The reply.
    Ok(Option<Value>),
    /// The error that the process answered with.
    Error(Option<Value>),
}

/// Some entries of a shard or of one process.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct LogPage {
    /// The entries, oldest first.
    entries: Vec<LogEntry>,
    /// The index to continue from: all entries before it were examined.
    next: u64,
}

/// Panics unless the description keeps the whole JSON of a value: it has each of its fields, and no other.
#[cfg(test)]
pub(super) fn assert_described<Description: Serialize + serde::de::DeserializeOwned>(value: &impl Serialize) {
    let json = serde_json::to_value(value).unwrap();
    let described: Description = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(described).unwrap(), json);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use stead::{CheckOutcome, offline};

    fn failed_check() -> stead::FailedCheck {
        stead::FailedCheck { service: "bank".to_owned(), reason: "3 too much".to_owned() }
    }

    fn task() -> stead::TaskStatus {
        stead::TaskStatus {
            id: 1,
            name: "count".to_owned(),
            process: "a".to_owned(),
            step: 2,
            progress: 0.5,
            retries: 3,
            failure: Some("no answer".to_owned()),
            retry_at: Some(4),
        }
    }

    fn shard() -> stead::ShardStatus {
        let backups = vec![stead::BackupStatus { replica: 2, stored: 9, is_slow: true }];
        stead::ShardStatus { clock_ahead_micros: -1, tasks: vec![task()], backups, ..Default::default() }
    }

    fn not_here() -> Vec<stead::ShardNotHere> {
        [stead::Place::Elsewhere, stead::Place::Unplaced]
            .map(|place| stead::ShardNotHere { shard: 1, service: "bank".to_owned(), place })
            .to_vec()
    }

    fn unanswered() -> Vec<stead::ShardUnanswered> {
        let (service, reason) = ("bank".to_owned(), "no answer".to_owned());
        vec![stead::ShardUnanswered { shard: 2, service, node: Some(3), reason }]
    }

    #[test]
    fn the_status_is_described_as_it_is_served() {
        assert_described::<Status>(&stead::Status::default());
        let (service, process) = ("bank".to_owned(), "a".to_owned());
        let check = stead::CheckStatus {
            number: 3,
            check: CheckOutcome::Failed,
            failed_checks: vec![failed_check()],
            skipped_checks: vec![stead::SkippedCheck { service: service.clone(), reason: "late".to_owned() }],
        };
        let copies = stead::CopyStatus {
            to: "file:///copies".to_owned(),
            newest: Some(2),
            failure: Some("no room".to_owned()),
        };
        let status = stead::Status {
            uptime: Duration::from_millis(1500),
            failure: Some("no disk".to_owned()),
            services: vec![stead::ServiceStatus {
                name: service.clone(),
                first_shard: 0,
                shards: 1,
                registered: true,
            }],
            shards: vec![shard()],
            shards_not_here: not_here(),
            checkpoint: Some(3),
            checkpoint_running: Some(4),
            checkpoint_check: Some(check),
            checkpoint_copies: Some(copies),
            stuck_queries: vec![stead::StuckQuery { service, process, running: Duration::from_secs(9) }],
            ..Default::default()
        };
        assert_described::<Status>(&status);
    }

    #[test]
    fn pages_are_described_as_they_are_served() {
        let info = stead::ProcessInfo { key: "a".to_owned(), shard: 1, ..Default::default() };
        assert_described::<ProcessPage>(&stead::ProcessPage::default());
        let next = Some("1.2.3".parse().unwrap());
        let shards_not_here = not_here();
        assert_described::<ProcessPage>(&stead::ProcessPage {
            processes: vec![info.clone()],
            next,
            shards_not_here,
            unanswered: unanswered(),
        });
        let timer = stead::TimerStatus {
            id: 1,
            at: 2,
            to: Some("bank/b".to_owned()),
            payload: Some(json!({ "pay": 3 })),
        };
        let detail = stead::ProcessDetail {
            info,
            version: Some(2),
            state: Some(json!([1, 2])),
            timer_list: vec![timer],
            task_list: vec![task()],
            ..Default::default()
        };
        assert_described::<ProcessDetail>(&detail);
        assert_described::<DeadLetterPage>(&stead::DeadLetterPage::default());
        let next = Some("1.2".parse().unwrap());
        assert_described::<DeadLetterPage>(&stead::DeadLetterPage {
            next,
            shards_not_here: not_here(),
            unanswered: unanswered(),
            ..Default::default()
        });
    }

    #[test]
    fn the_log_is_described_as_it_is_served() {
        for reply in [None, Some(offline::LogReply::Ok(Some(json!(5)))), Some(offline::LogReply::Error(None))]
        {
            let write = offline::LogWrite {
                record: "process a".to_owned(),
                bytes: Some(3),
                state: Some(json!({ "coins": 1 })),
            };
            let send = offline::LogSend { shard: 1, process: "b".to_owned(), payload: Some(json!(2)) };
            let entry = offline::LogEntry {
                index: 1,
                epoch: 2,
                time: 3,
                cause: "timer 4".to_owned(),
                process: "a".to_owned(),
                writes: vec![write],
                sends: vec![send],
                reply,
            };
            assert_described::<LogPage>(&stead::LogPage { entries: vec![entry], next: 2 });
        }
    }
}
