//! A readable view of the log: its entries in words and JSON, in pages.

use crate::service::codec;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use stead_core::entry::{Cause, Entry};
use stead_core::record::{Kind, Pending, RecordKey};
use stead_core::reply::Reply;

/// A log entry in readable form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its position in its shard's log.
    pub index: u64,
    /// The epoch of the primary that appended it.
    pub epoch: u64,
    /// The shard's time, in microseconds since the Unix epoch.
    pub time: u64,
    /// The handled cause.
    pub cause: String,
    /// The process that handled it; empty if no process did.
    pub process: String,
    /// The records that it puts or deletes.
    pub writes: Vec<LogWrite>,
    /// The messages that it sends.
    pub sends: Vec<LogSend>,
    /// The answer, as JSON where that is possible.
    pub reply: Option<LogReply>,
}

/// A record that an entry puts or deletes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogWrite {
    /// Its kind and key.
    pub record: String,
    /// Bytes of its value; `None` if it is deleted.
    pub bytes: Option<u64>,
    /// The value of a process's state, as JSON where that is possible.
    pub state: Option<serde_json::Value>,
}

/// A message that an entry sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSend {
    /// The receiving shard.
    pub shard: u32,
    /// The receiving process.
    pub process: String,
    /// The payload, as JSON where that is possible.
    pub payload: Option<serde_json::Value>,
}

/// The answer in an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogReply {
    /// The reply.
    Ok(Option<serde_json::Value>),
    /// The error of the process.
    Error(Option<serde_json::Value>),
}

impl LogEntry {
    pub(crate) fn of(entry: &Entry) -> Self {
        let writes = entry.writes.iter().map(|write| {
            let stored = write.value.as_ref().filter(|_| write.key.kind() == Kind::Process);
            LogWrite {
                record: record_name(&write.key),
                bytes: write.value.as_ref().map(|value| value.len() as u64),
                state: stored.and_then(|value| codec::state_to_json(value).ok()).map(|(_, state)| state),
            }
        });
        let sends = entry.sends.iter().map(|send| LogSend {
            shard: send.to.0,
            process: send.process.to_string(),
            payload: codec::payload_to_json(&send.payload).ok(),
        });
        Self {
            index: entry.index.0,
            epoch: entry.epoch.0,
            time: entry.time.0,
            cause: cause_name(&entry.cause),
            process: entry.process.to_string(),
            writes: writes.collect(),
            sends: sends.collect(),
            reply: entry.reply.as_ref().map(|reply| match reply {
                Reply::Ok(bytes) => LogReply::Ok(codec::payload_to_json(bytes).ok()),
                Reply::Err(bytes) => LogReply::Error(codec::payload_to_json(bytes).ok()),
            }),
        }
    }
}

fn record_name(key: &RecordKey) -> String {
    match (key.kind(), key.process_key(), key.cell_key()) {
        (Kind::Process, Some(process), _) => format!("process {process}"),
        (Kind::Cell, Some(process), Some(cell)) => format!("cell {} of {process}", cell.escape_ascii()),
        _ => format!("{key:?}"),
    }
}

fn cause_name(cause: &Cause) -> String {
    match cause {
        Cause::Start => "the epoch starts".to_owned(),
        Cause::OpenSession { session, principal, .. } => format!("{principal} opens session {session}"),
        Cause::Request { session, number, .. } => format!("request {number} of session {session}"),
        Cause::Idempotent { principal, key, .. } => {
            format!("request of {principal} with idempotency key {:?}", key.escape_ascii().to_string())
        }
        Cause::Anonymous | Cause::Suspected { .. } => "a request without a session".to_owned(),
        Cause::Message { from, seq } => format!("message {seq} of shard {from}"),
        Cause::Timer { id } => format!("timer {id}"),
        Cause::Task { id, step } => format!("step {step} of task {id}"),
        Cause::Marker { colour } => format!("marker of checkpoint {colour}"),
        Cause::Ack { trims } => {
            let trims: Vec<String> =
                trims.iter().map(|trim| format!("{} up to {}", trim.to, trim.upto)).collect();
            format!("received by shard {}", trims.join(", "))
        }
        Cause::Attempt => "attempts are counted".to_owned(),
        Cause::DeadLetter { cause: Pending::DeadLetter { letter } } => {
            format!("dead letter {letter} failed again")
        }
        Cause::DeadLetter { cause } => format!("given up: {cause:?}"),
        Cause::Retry { letter } => format!("dead letter {letter} is handled again"),
        Cause::Drop { letter } => format!("dead letter {letter} is deleted"),
        Cause::Delete => "deleted by an operator".to_owned(),
        Cause::Expire => "sessions and idempotency keys ran out".to_owned(),
    }
}

/// Some entries of a shard or of one process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogPage {
    /// The entries, oldest first.
    pub entries: Vec<LogEntry>,
    /// The index to continue from: all entries before it were examined.
    pub next: u64,
}

/// Bytes of values, messages and answers after which a page of entries ends.
const PAGE_BYTES: usize = 1 << 20;

/// A page while it is filled.
pub(crate) struct Filling {
    pub(crate) page: LogPage,
    limit: usize,
    bytes: usize,
}

impl Filling {
    pub(crate) fn new(from: u64, limit: usize) -> Self {
        Self { page: LogPage { entries: Vec::new(), next: from }, limit, bytes: 0 }
    }

    /// Adds an entry, if it is of this process or no process is named.
    pub(crate) fn take(&mut self, entry: &Entry, process: Option<&str>) -> ControlFlow<()> {
        self.page.next = entry.index.0 + 1;
        if process.is_none_or(|process| *entry.process == *process) {
            self.page.entries.push(LogEntry::of(entry));
            self.bytes += shown_bytes(entry);
        }
        let has_room = self.page.entries.len() < self.limit && self.bytes < PAGE_BYTES;
        if has_room { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

/// Bytes of each write and each message besides its key and its value.
const SHOWN_EACH: usize = 64;

/// Returns the approximate number of bytes of a shown entry.
fn shown_bytes(entry: &Entry) -> usize {
    let writes = entry.writes.iter().map(|write| {
        SHOWN_EACH + write.key.as_bytes().len() + write.value.as_ref().map_or(0, |value| value.len())
    });
    let sends = entry.sends.iter().map(|send| SHOWN_EACH + send.process.len() + send.payload.len());
    let reply = entry.reply.as_ref().map_or(0, |(Reply::Ok(bytes) | Reply::Err(bytes))| bytes.len());
    writes.chain(sends).sum::<usize>() + reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_core::entry::{Cause, Write};
    use stead_core::ids::{Epoch, Index, Time};
    use stead_core::key::Key;
    use stead_core::record::RecordKey;

    #[test]
    fn a_page_of_entries_that_only_delete_is_bounded_too() {
        let key = Key::new(&"k".repeat(500)).unwrap();
        let delete = Write { key: RecordKey::cell(&key, "c".repeat(500).as_bytes()), value: None };
        let (epoch, time, process) = (Epoch(1), Time(1), Key::none());
        let writes = vec![delete; 1000];
        let entry = |index| Entry {
            index: Index(index),
            epoch,
            time,
            cause: Cause::Expire,
            process: process.clone(),
            writes: writes.clone(),
            sends: Vec::new(),
            reply: None,
            served: None,
        };
        let mut page = Filling::new(1, 1000);
        let taken = (1..100).take_while(|index| page.take(&entry(*index), None).is_continue()).count();
        assert!(taken <= 1, "{taken} entries of 1 MB in a page");
    }
}
