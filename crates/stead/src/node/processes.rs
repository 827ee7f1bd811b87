//! An operator's view of the processes of a service: listing them, showing one, deleting one.
//!
//! A shard may hold millions of records. So they are read in pieces, between which the shard's worker does its own
//! work.

use super::{Node, ShardNotHere, TaskStatus};
use crate::client::block_on;
use crate::error::RawError;
use crate::service::codec;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Bound;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stead_core::blob::Blob;
use stead_core::ids::{ShardId, TaskId, Time, TimerId};
use stead_core::key::Key;
use stead_core::record::{Kind, RecordKey, TaskRecord, TimerRecord};
use stead_core::reply::Reply;
use stead_core::shard::Shard;
use stead_core::state::State;

/// Number of slots of records that one look examines: less than a millisecond.
const SLOTS: usize = 8192;
/// Number of cells, timers or tasks that one look examines.
const RECORDS: usize = 1024;
/// Time after which a page ends although it is not full.
const PAGE_TIME: Duration = Duration::from_secs(1);
/// Maximum number of timers, and of tasks, that are listed of one process.
const LISTED: usize = 100;

/// Some processes of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessPage {
    /// The processes, not ordered by key.
    pub processes: Vec<ProcessInfo>,
    /// The position of the next page; `None` after the last one. A page may be short or empty although there is a next
    /// one.
    pub next: Option<ProcessCursor>,
    /// The shards of the service that are not on this node: no page has their processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards_not_here: Vec<ShardNotHere>,
}

/// A process and the size of its state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its key.
    pub key: String,
    /// Its shard.
    pub shard: u32,
    /// Bytes of its stored state, its version included.
    pub bytes: u64,
    /// Cells of its keyed sub-state.
    pub cells: u64,
    /// Bytes of these cells, without their keys.
    pub cells_bytes: u64,
    /// Timers that have not fired, messages with a delay included.
    pub timers: u64,
    /// Tasks that are not finished.
    pub tasks: u64,
}

/// A process and its state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessDetail {
    /// Its service.
    pub service: String,
    /// Its key, shard and sizes.
    #[serde(flatten)]
    pub info: ProcessInfo,
    /// Whether it has a state, cells, timers or tasks. Every key has a shard, also before its process is called for the
    /// first time.
    pub exists: bool,
    /// The version of the service that stored its state; `None` without a state.
    pub version: Option<u32>,
    /// Its state, as JSON where that is possible.
    pub state: Option<serde_json::Value>,
    /// Its timers that fire first, 100 at most.
    pub timer_list: Vec<TimerStatus>,
    /// The first of its tasks, 100 at most.
    pub task_list: Vec<TaskStatus>,
}

/// A timer that has not fired, or a message with a delay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimerStatus {
    /// Its number in its shard.
    pub id: u64,
    /// The time at which it fires, in microseconds since the Unix epoch.
    pub at: u64,
    /// The process that receives its message, `SERVICE/KEY`; `None` if it fires in its own process.
    pub to: Option<String>,
    /// Its payload for the handler, as JSON where that is possible.
    pub payload: Option<serde_json::Value>,
}

/// The position of a page of processes: text that only [`Node::processes`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessCursor {
    shard: u32,
    slot: u64,
    /// The node's life: another life has other slots.
    life: u64,
}

impl fmt::Display for ProcessCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.shard, self.slot, self.life)
    }
}

/// Text that is not the position of a page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid page position {text:?}; use the value of `next` from the previous page")]
pub struct NoCursor {
    /// The text; its beginning, if it is long.
    pub text: String,
}

impl FromStr for ProcessCursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        let read = || {
            let mut parts = text.split('.');
            let mut next = || parts.next()?.parse::<u64>().ok();
            let (shard, slot, life) = (next()?.try_into().ok()?, next()?, next()?);
            parts.next().is_none().then_some(Self { shard, slot, life })
        };
        read().ok_or_else(|| NoCursor { text: text.chars().take(64).collect() })
    }
}

impl Serialize for ProcessCursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ProcessCursor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Node {
    /// Returns some processes of a service whose keys begin with `prefix`: `limit` at most, from 1 to 1000, the first
    /// ones without `after`. Processes that are created or deleted meanwhile may be missing or appear twice. A process
    /// without a state is missing, even if it still has cells. Only shards on this node are read:
    /// [`ProcessPage::shards_not_here`] names the others. Blocks.
    ///
    /// # Errors
    /// [`RawError::UnknownService`]; [`RawError::StalePage`] if the node was restarted since the previous page;
    /// [`Refusal::Overloaded`](crate::Refusal::Overloaded) if a handler holds a shard for longer than half a second.
    pub fn processes(
        &self,
        service: &str,
        prefix: &str,
        after: Option<ProcessCursor>,
        limit: usize,
    ) -> Result<ProcessPage, RawError> {
        let (first, shards) = self.shards_of(service)?;
        let limit = limit.clamp(1, 1000);
        let until = Instant::now() + PAGE_TIME;
        let life = self.shared().lives();
        let mut at = after.unwrap_or(ProcessCursor { shard: 0, slot: 0, life });
        if at.life != life {
            return Err(RawError::StalePage);
        }
        let mut page = ProcessPage { shards_not_here: self.not_here_of(service), ..ProcessPage::default() };
        let prefix: Arc<[u8]> = Arc::from(prefix.as_bytes());
        while at.shard < shards {
            let shard = ShardId(first + at.shard);
            if page.shards_not_here.iter().any(|other| other.shard == shard.0) {
                at = ProcessCursor { shard: at.shard + 1, slot: 0, life };
                continue;
            }
            let (from, left, prefix) = (at.slot as usize, limit - page.processes.len(), Arc::clone(&prefix));
            let (mut found, next) =
                self.shared().look(shard, move |state| walk_processes(state, from, &prefix, left))?;
            self.count_cells(shard, &mut found)?;
            self.count_timers_and_tasks(shard, &mut found)?;
            page.processes.append(&mut found);
            at = match next {
                Some(slot) => ProcessCursor { slot: slot as u64, ..at },
                None => ProcessCursor { shard: at.shard + 1, slot: 0, life },
            };
            if page.processes.len() == limit || Instant::now() >= until {
                break;
            }
        }
        page.next = (at.shard < shards).then_some(at);
        Ok(page)
    }

    /// Returns a process with its shard and its state. Blocks.
    ///
    /// # Errors
    /// As [`Self::processes`]; [`RawError::Codec`] if the key is empty or too long; [`RawError::NotHere`] if its shard is not
    /// on this node.
    pub fn process(&self, service: &str, key: &str) -> Result<ProcessDetail, RawError> {
        let (shard, process) = self.place_of(service, key)?;
        let record = RecordKey::process(&process);
        let state =
            self.shared().look(shard, move |state| state.records().get(record.as_bytes()).cloned())?;
        let bytes = state.as_ref().map_or(0, |state| state.len() as u64);
        let mut info = [ProcessInfo { key: key.to_owned(), shard: shard.0, bytes, ..ProcessInfo::default() }];
        self.count_cells(shard, &mut info)?;
        let [mut info] = info;
        let timers = self.timers_of(shard, &process)?;
        let tasks = self.tasks_of(shard, &process)?;
        (info.timers, info.tasks) = (timers.len() as u64, tasks.len() as u64);
        let exists = state.is_some() || info.cells + info.timers + info.tasks > 0;
        let read = state.as_ref().and_then(|state| codec::state_to_json(state).ok());
        let (version, state) = read.map_or((None, None), |(version, state)| (Some(version), Some(state)));
        let timer_list = timers.into_iter().take(LISTED).map(|(id, timer)| TimerStatus {
            id: id.0,
            at: timer.at.0,
            to: timer.send.map(|to| format!("{}/{}", self.topology().service(to.service).name, to.process)),
            payload: codec::payload_to_json(&timer.payload).ok(),
        });
        let task_list = tasks.into_iter().take(LISTED).map(|(id, task)| TaskStatus::of(id, task.into()));
        let (timer_list, task_list) = (timer_list.collect(), task_list.collect());
        Ok(ProcessDetail { service: service.to_owned(), info, exists, version, state, timer_list, task_list })
    }

    /// Deletes a process: its state, its cells, its timers, its messages with a delay and its tasks. Returns the number
    /// of deleted records. One log entry deletes up to 1024 of them, the first one the state too; calls of a larger
    /// process meanwhile may find only some of its cells. Replies that are kept for retries stay. A later message
    /// creates the process again from its `Default`. Blocks.
    ///
    /// # Errors
    /// As [`Self::process`], and as [`Client::call_raw`](crate::Client::call_raw). After an error, repeat the call.
    pub fn delete_process(&self, service: &str, key: &str) -> Result<u64, RawError> {
        let (shard, process) = self.place_of(service, key)?;
        let mut deleted = 0;
        // The second round deletes records that were put between the looks and the entries.
        for _ in 0..2 {
            let mut records = vec![RecordKey::process(&process)];
            records.extend(self.timers_of(shard, &process)?.iter().map(|(id, _)| RecordKey::timer(*id)));
            records.extend(self.tasks_of(shard, &process)?.iter().map(|(id, _)| RecordKey::task(*id)));
            for batch in records.chunks(Shard::DELETE_BATCH) {
                deleted += self.delete_records(shard, process.clone(), batch.to_vec())?;
            }
            loop {
                let owner = process.clone();
                let cells = self
                    .shared()
                    .look(shard, move |state| first_cells(state, &owner, Shard::DELETE_BATCH))?;
                if cells.is_empty() {
                    break;
                }
                deleted += self.delete_records(shard, process.clone(), cells)?;
            }
        }
        Ok(deleted)
    }

    fn delete_records(&self, shard: ShardId, process: Key, records: Vec<RecordKey>) -> Result<u64, RawError> {
        let answer = block_on(self.client().delete_records(self.shared(), shard, process, records))?;
        match answer.result.map_err(RawError::Refused)? {
            Reply::Ok(count) => {
                Ok((*count).try_into().map(u64::from_be_bytes).expect("the core answers 8 bytes"))
            }
            Reply::Err(_) => unreachable!("no handler runs that could return an error"),
        }
    }

    /// Returns the shards of a service that are not on this node.
    pub(super) fn not_here_of(&self, service: &str) -> Vec<ShardNotHere> {
        self.shared().not_here().filter(|shard| shard.service == service).collect()
    }

    pub(super) fn shards_of(&self, service: &str) -> Result<(u32, u32), RawError> {
        let topology = self.topology();
        let id = topology.service_id(service);
        let id = id.ok_or_else(|| RawError::UnknownService { service: service.to_owned() })?;
        let service = topology.service(id);
        Ok((service.first.0, service.shards))
    }

    pub(crate) fn place_of(&self, service: &str, key: &str) -> Result<(ShardId, Key), RawError> {
        let topology = self.topology();
        let id = topology.service_id(service);
        let id = id.ok_or_else(|| RawError::UnknownService { service: service.to_owned() })?;
        let process = codec::check_key(service, key)?;
        Ok((topology.shard_of(id, &process), process))
    }

    /// Returns the last entry of a shard.
    pub(crate) fn last_index(&self, shard: ShardId) -> Result<u64, RawError> {
        Ok(self.shared().look(shard, |state| state.position().index.0)?)
    }

    fn count_cells(&self, shard: ShardId, processes: &mut [ProcessInfo]) -> Result<(), RawError> {
        let mut at = 0;
        let mut from: Option<Vec<u8>> = None;
        while at < processes.len() {
            let keys: Vec<String> = processes[at..].iter().map(|process| process.key.clone()).collect();
            let (counts, rest) = self.shared().look(shard, move |state| walk_cells(state, &keys, from))?;
            for (process, (cells, bytes)) in processes[at..].iter_mut().zip(&counts) {
                process.cells += cells;
                process.cells_bytes += bytes;
            }
            let Some(rest) = rest else { break };
            // The cells of the last process are not complete.
            at += counts.len() - 1;
            from = Some(rest);
        }
        Ok(())
    }

    fn count_timers_and_tasks(&self, shard: ShardId, processes: &mut [ProcessInfo]) -> Result<(), RawError> {
        if processes.is_empty() {
            return Ok(());
        }
        let places: HashMap<String, usize> =
            processes.iter().enumerate().map(|(at, process)| (process.key.clone(), at)).collect();
        let places = Arc::new(places);
        let mine = Arc::clone(&places);
        self.each_timer(
            shard,
            move |_, timer| mine.get(&*timer.process).copied(),
            |at| {
                processes[at].timers += 1;
            },
        )?;
        self.each_task(
            shard,
            move |_, task| places.get(&*task.process).copied(),
            |at| {
                processes[at].tasks += 1;
            },
        )
    }

    fn timers_of(&self, shard: ShardId, process: &Key) -> Result<Vec<(TimerId, TimerRecord)>, RawError> {
        let (mut timers, process) = (Vec::new(), process.clone());
        let own = move |id, timer: TimerRecord| (timer.process == process).then_some((id, timer));
        self.each_timer(shard, own, |(id, mut timer)| {
            // Only the ids are needed of items that are not listed: the payloads of all timers may be large.
            if timers.len() >= LISTED {
                timer.payload = Blob::empty();
            }
            timers.push((id, timer));
        })?;
        Ok(timers)
    }

    fn tasks_of(&self, shard: ShardId, process: &Key) -> Result<Vec<(TaskId, TaskRecord)>, RawError> {
        let (mut tasks, process) = (Vec::new(), process.clone());
        let own = move |id, task: TaskRecord| (task.process == process).then_some((id, task));
        self.each_task(shard, own, |(id, mut task)| {
            if tasks.len() >= LISTED {
                task.state = Blob::empty();
            }
            tasks.push((id, task));
        })?;
        Ok(tasks)
    }

    /// Returns selected timers of a shard, in the order in which they fire.
    fn each_timer<T: Send + 'static>(
        &self,
        shard: ShardId,
        pick: impl Fn(TimerId, TimerRecord) -> Option<T> + Send + Sync + 'static,
        take: impl FnMut(T),
    ) -> Result<(), RawError> {
        let pick = move |state: &State, &(_, id): &(Time, TimerId)| {
            state.record(&RecordKey::timer(id)).and_then(|timer| pick(id, timer))
        };
        self.each(shard, State::timers, pick, take)
    }

    /// Returns selected tasks of a shard.
    fn each_task<T: Send + 'static>(
        &self,
        shard: ShardId,
        pick: impl Fn(TaskId, TaskRecord) -> Option<T> + Send + Sync + 'static,
        take: impl FnMut(T),
    ) -> Result<(), RawError> {
        let pick = move |state: &State, &id: &TaskId| {
            state.record(&RecordKey::task(id)).and_then(|task| pick(id, task))
        };
        self.each(shard, State::tasks, pick, take)
    }

    /// Visits a set of a shard in pieces.
    fn each<K: Ord + Copy + Send + 'static, T: Send + 'static>(
        &self,
        shard: ShardId,
        set: fn(&State) -> &BTreeSet<K>,
        pick: impl Fn(&State, &K) -> Option<T> + Send + Sync + 'static,
        mut take: impl FnMut(T),
    ) -> Result<(), RawError> {
        let pick = Arc::new(pick);
        let mut after = Bound::Unbounded;
        loop {
            let pick = Arc::clone(&pick);
            let (picked, last) = self.shared().look(shard, move |state| {
                let piece: Vec<K> =
                    set(state).range((after, Bound::Unbounded)).take(RECORDS).copied().collect();
                let picked: Vec<T> = piece.iter().filter_map(|key| pick(state, key)).collect();
                (picked, piece.last().copied().filter(|_| piece.len() == RECORDS))
            })?;
            picked.into_iter().for_each(&mut take);
            let Some(last) = last else { return Ok(()) };
            after = Bound::Excluded(last);
        }
    }
}

/// Returns the processes of some slots, and the slot to continue from, unless that was the last one.
fn walk_processes(
    state: &State,
    from: usize,
    prefix: &[u8],
    limit: usize,
) -> (Vec<ProcessInfo>, Option<usize>) {
    let records = state.records();
    let end = from.saturating_add(SLOTS);
    let mut found = Vec::new();
    for (slot, key, value) in records.iter_slots(from..end) {
        let Some((kind, key)) = key.split_first() else { continue };
        if *kind != Kind::Process as u8 || !key.starts_with(prefix) {
            continue;
        }
        let key = String::from_utf8_lossy(key).into_owned();
        let bytes = value.len() as u64;
        found.push(ProcessInfo { key, shard: state.shard().0, bytes, ..ProcessInfo::default() });
        if found.len() == limit {
            return (found, Some(slot + 1).filter(|next| *next < records.slot_count()));
        }
    }
    (found, Some(end).filter(|next| *next < records.slot_count()))
}

type CellCounts = Vec<(u64, u64)>;

/// Returns the numbers of cells of some processes and their bytes. If there were too many, also returns the cell of the
/// last process to continue from.
fn walk_cells(
    state: &State,
    processes: &[String],
    mut from: Option<Vec<u8>>,
) -> (CellCounts, Option<Vec<u8>>) {
    let mut counts = Vec::new();
    let mut passed = 0;
    for process in processes {
        let all = RecordKey::cell(process, b"");
        let from = from.take().unwrap_or_else(|| all.as_bytes().to_vec());
        let (mut cells, mut bytes) = (0, 0);
        for (key, value) in state.records().scan_cells_from(&from) {
            if !key.starts_with(all.as_bytes()) {
                break;
            }
            if passed == RECORDS {
                counts.push((cells, bytes));
                return (counts, Some(key.to_vec()));
            }
            passed += 1;
            cells += 1;
            bytes += value.len() as u64;
        }
        counts.push((cells, bytes));
    }
    (counts, None)
}

fn first_cells(state: &State, process: &Key, count: usize) -> Vec<RecordKey> {
    let all = RecordKey::cell(process, b"");
    let cells = state
        .records()
        .scan_cells_from(all.as_bytes())
        .take_while(|(key, _)| key.starts_with(all.as_bytes()));
    cells.take(count).filter_map(|(key, _)| RecordKey::from_bytes(key)).collect()
}
