//! An operator's view of the processes of a service: listing them, showing one, deleting one.
//!
//! A shard may hold millions of records. So they are read in pieces, between which the shard's worker does its own
//! work. In a cluster the pieces come from the nodes of the shards' primaries.

use super::looks::{Looker, ShardUnanswered};
use super::{Node, ShardNotHere, TaskStatus};
use crate::client::{block_on, misfit};
use crate::error::RawError;
use crate::service::codec;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};
use stead_core::ids::{ShardId, TaskId, TimerId};
use stead_core::key::Key;
use stead_core::look::{Found, Look};
use stead_core::record::{RecordKey, TaskHead, TimerRecord};
use stead_core::reply::Reply;
use stead_core::shard::Shard;

/// Time after which a page ends although it is not full.
pub(super) const PAGE_TIME: Duration = Duration::from_secs(1);
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
    /// The shards that this page had come to and whose primaries gave no answer: their processes are missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<ShardUnanswered>,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessCursor {
    shard: u32,
    slot: u64,
    /// The epoch in which the slots of the shard were counted: another one may have others.
    epoch: u64,
}

impl fmt::Display for ProcessCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.shard, self.slot, self.epoch)
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
            let (shard, slot, epoch) = (next()?.try_into().ok()?, next()?, next()?);
            parts.next().is_none().then_some(Self { shard, slot, epoch })
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
    /// without a state is missing, even if it still has cells. In a cluster, the nodes that lead the shards are asked:
    /// [`ProcessPage::unanswered`] names those that give no answer. Blocks.
    ///
    /// # Errors
    /// [`RawError::UnknownService`]; [`RawError::StalePage`] if the shard's primary was restarted or replaced since the previous
    /// page; [`Refusal::Overloaded`](crate::Refusal::Overloaded) if a handler holds a shard for longer than half a second, on a node
    /// without a cluster.
    pub fn processes(
        &self,
        service: &str,
        prefix: &str,
        after: Option<ProcessCursor>,
        limit: usize,
    ) -> Result<ProcessPage, RawError> {
        let (first, shards) = self.shards_of(service)?;
        let limit = limit.clamp(1, Look::PROCESSES_MAX);
        let until = Instant::now() + PAGE_TIME;
        let lister = self.lister();
        let mut at = after.unwrap_or_default();
        let mut page = ProcessPage { shards_not_here: self.not_here_of(service), ..ProcessPage::default() };
        while at.shard < shards {
            let shard = ShardId(first + at.shard);
            let behind = ProcessCursor { shard: at.shard + 1, ..ProcessCursor::default() };
            if page.shards_not_here.iter().any(|other| other.shard == shard.0) {
                at = behind;
                continue;
            }
            let left = limit - page.processes.len();
            at = match lister.processes(shard, at, prefix, left) {
                Ok((mut found, next)) => {
                    page.processes.append(&mut found);
                    next.unwrap_or(behind)
                }
                Err(error) => {
                    page.unanswered.push(lister.unanswered(service, shard, error)?);
                    behind
                }
            };
            if page.processes.len() >= limit || Instant::now() >= until {
                break;
            }
        }
        page.next = (at.shard < shards).then_some(at);
        Ok(page)
    }

    /// Returns a process with its shard and its state. In a cluster, the node that leads its shard is asked. Blocks.
    ///
    /// # Errors
    /// As [`Client::call_raw`](crate::Client::call_raw); [`RawError::Codec`] if the key is empty or too long;
    /// [`Refusal::Overloaded`](crate::Refusal::Overloaded) if the shard does not answer soon.
    pub fn process(&self, service: &str, key: &str) -> Result<ProcessDetail, RawError> {
        let (shard, process) = self.place_of(service, key)?;
        let looker = self.looker();
        let look = Look::State { process: process.clone() };
        let (_, Found::State(state)) = looker.look(shard, look)? else { return Err(misfit()) };
        let bytes = state.as_ref().map_or(0, |state| state.len() as u64);
        let mut info = [ProcessInfo { key: key.to_owned(), shard: shard.0, bytes, ..ProcessInfo::default() }];
        let of = [process];
        looker.count_cells(shard, &of, &mut info)?;
        let [mut info] = info;
        let (timers, tasks) = (looker.timers(shard, &of, LISTED)?, looker.tasks(shard, &of, LISTED)?);
        (info.timers, info.tasks) = (timers.ids.len() as u64, tasks.ids.len() as u64);
        let exists = state.is_some() || info.cells + info.timers + info.tasks > 0;
        let read = state.as_ref().and_then(|state| codec::state_to_json(state).ok());
        let (version, state) = read.map_or((None, None), |(version, state)| (Some(version), Some(state)));
        let timer_list = timers.listed.into_iter().map(|(id, timer)| TimerStatus {
            id: id.0,
            at: timer.at.0,
            to: timer.send.map(|to| format!("{}/{}", self.topology().service(to.service).name, to.process)),
            payload: codec::payload_to_json(&timer.payload).ok(),
        });
        let task_list = tasks.listed.into_iter().map(|(id, task)| TaskStatus::of(id, task));
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
        let (looker, of) = (self.looker(), [process.clone()]);
        let mut deleted = 0;
        // The second round deletes records that were put between the looks and the entries.
        for _ in 0..2 {
            let mut records = vec![RecordKey::process(&process)];
            let (timers, tasks) = (looker.timers(shard, &of, 0)?, looker.tasks(shard, &of, 0)?);
            records.extend(timers.ids.iter().map(|(_, id)| RecordKey::timer(*id)));
            records.extend(tasks.ids.iter().map(|(_, id)| RecordKey::task(*id)));
            for batch in records.chunks(Shard::DELETE_BATCH) {
                deleted += self.delete_records(shard, process.clone(), batch.to_vec())?;
            }
            loop {
                let look = Look::CellKeys { process: process.clone(), limit: Shard::DELETE_BATCH as u32 };
                let (_, Found::CellKeys(cells)) = looker.look(shard, look)? else { return Err(misfit()) };
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
        // No handler runs that could return an error.
        let (Reply::Ok(count) | Reply::Err(count)) = answer.result.map_err(RawError::Refused)?;
        (*count).try_into().map(u64::from_be_bytes).map_err(|_| misfit())
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
}

/// Timers or tasks of processes.
struct Waiting<I, T> {
    /// Each with the place of its process.
    ids: Vec<(u32, I)>,
    /// The first ones.
    listed: Vec<(I, T)>,
}

/// As [`Waiting`], of one look; with the place of the next piece, if there is one.
type Piece<I, T, P> = (Vec<(u32, I)>, Vec<(I, T)>, Option<P>);

impl Looker<'_> {
    /// Returns processes of a shard from a place on, `limit` at most, and the place of the next ones.
    fn processes(
        &self,
        shard: ShardId,
        at: ProcessCursor,
        prefix: &str,
        limit: usize,
    ) -> Result<(Vec<ProcessInfo>, Option<ProcessCursor>), RawError> {
        let look = Look::Processes { from: at.slot, prefix: prefix.to_owned(), limit: limit as u32 };
        let (epoch, Found::Processes { found, next }) = self.look(shard, look)? else {
            return Err(misfit());
        };
        if at.slot > 0 && at.epoch != epoch.0 {
            return Err(RawError::StalePage);
        }
        let info = |(key, bytes): &(Key, u64)| ProcessInfo {
            key: key.to_string(),
            shard: shard.0,
            bytes: *bytes,
            ..ProcessInfo::default()
        };
        let mut infos: Vec<ProcessInfo> = found.iter().map(info).collect();
        if !infos.is_empty() {
            let of: Vec<Key> = found.into_iter().map(|(key, _)| key).collect();
            self.count_cells(shard, &of, &mut infos)?;
            for (place, _) in self.timers(shard, &of, 0)?.ids {
                infos.get_mut(place as usize).ok_or_else(misfit)?.timers += 1;
            }
            for (place, _) in self.tasks(shard, &of, 0)?.ids {
                infos.get_mut(place as usize).ok_or_else(misfit)?.tasks += 1;
            }
        }
        Ok((infos, next.map(|slot| ProcessCursor { slot, epoch: epoch.0, ..at })))
    }

    fn count_cells(&self, shard: ShardId, of: &[Key], processes: &mut [ProcessInfo]) -> Result<(), RawError> {
        let (mut at, mut from) = (0, None);
        while at < of.len() {
            let look = Look::Cells { of: of[at..].to_vec(), from: from.take() };
            let (_, Found::Cells { counts, next }) = self.look(shard, look)? else { return Err(misfit()) };
            for (process, (cells, bytes)) in processes[at..].iter_mut().zip(&counts) {
                process.cells += cells;
                process.cells_bytes += bytes;
            }
            let Some(next) = next else { break };
            // The cells of the last process are not complete.
            at += counts.len().saturating_sub(1);
            from = Some(next);
        }
        Ok(())
    }

    /// Returns the timers of processes, in the order in which they fire, so many of them with their content.
    fn timers(
        &self,
        shard: ShardId,
        of: &[Key],
        listed: usize,
    ) -> Result<Waiting<TimerId, TimerRecord>, RawError> {
        let look = |after, listed| Look::Timers { of: of.to_vec(), after, listed };
        self.waiting(shard, listed, look, |found| match found {
            Found::Timers { ids, listed, next } => Some((ids, listed, next)),
            _ => None,
        })
    }

    /// As [`Self::timers`], the tasks.
    fn tasks(
        &self,
        shard: ShardId,
        of: &[Key],
        listed: usize,
    ) -> Result<Waiting<TaskId, TaskHead>, RawError> {
        let look = |after, listed| Look::Tasks { of: of.to_vec(), after, listed };
        self.waiting(shard, listed, look, |found| match found {
            Found::Tasks { ids, listed, next } => Some((ids, listed, next)),
            _ => None,
        })
    }

    /// Returns what is found piece by piece, by the look for the piece after a place.
    fn waiting<I, T, P>(
        &self,
        shard: ShardId,
        listed: usize,
        look: impl Fn(Option<P>, u32) -> Look,
        read: impl Fn(Found) -> Option<Piece<I, T, P>>,
    ) -> Result<Waiting<I, T>, RawError> {
        let mut all = Waiting { ids: Vec::new(), listed: Vec::new() };
        let mut after = None;
        loop {
            let left = listed.saturating_sub(all.listed.len()) as u32;
            let (_, found) = self.look(shard, look(after, left))?;
            let (ids, contents, next) = read(found).ok_or_else(misfit)?;
            all.ids.extend(ids);
            all.listed.extend(contents);
            if next.is_none() {
                return Ok(all);
            }
            after = next;
        }
    }
}
