//! Processes as an operator sees them, and their deletion.

use super::{Effect, Effects, Shard, write_weight};
use crate::blob::Blob;
use crate::calls::Refusal;
use crate::entry::{Cause, Write};
use crate::ids::{CallToken, Index};
use crate::key::Key;
use crate::look::Look;
use crate::record::{Kind, RecordKey, TaskRecord, TimerRecord};
use crate::reply::Reply;

impl Shard {
    /// Looks at the state. The answer leaves once what it shows is committed, as that of a query does.
    pub(super) fn handle_look(&mut self, token: CallToken, look: &Look, out: &mut Vec<Effect>) {
        let found = if self.is_active() { self.admit_answer() } else { Err(Refusal::NotReady) };
        let found = found.map(|()| {
            let found = look.at(&self.state).encode();
            (self.state.position().index, Reply::Ok(Blob::from(found)))
        });
        self.answer(token, found, out);
    }

    /// Maximum number of records that one entry deletes.
    pub const DELETE_BATCH: usize = 1024;

    /// Deletes those of the records that belong to the process: its state, its cells, its timers and its tasks. The
    /// answer is their number, as 8 bytes in big endian: less than requested if some belong to another process, are
    /// gone, or exceed the limit of one entry.
    pub(super) fn handle_delete(
        &mut self,
        token: CallToken,
        process: Key,
        records: Vec<RecordKey>,
        out: &mut Vec<Effect>,
    ) {
        let deleted = self.delete(process, records, out);
        self.answer(token, deleted, out);
    }

    fn delete(
        &mut self,
        process: Key,
        mut records: Vec<RecordKey>,
        out: &mut Vec<Effect>,
    ) -> Result<(Index, Reply), Refusal> {
        self.admit("")?;
        records.truncate(Self::DELETE_BATCH);
        records.sort_unstable();
        records.dedup();
        let mut writes: Vec<Write> = Vec::new();
        let mut room = self.settings.entry_bytes_max;
        for key in records.into_iter().filter(|key| self.is_own(&process, key)) {
            let write = Write { key, value: None };
            let Some(left) = room.checked_sub(write_weight(&write)) else { break };
            room = left;
            writes.push(write);
        }
        let count = Reply::Ok(Blob::from((writes.len() as u64).to_be_bytes().as_slice()));
        if writes.is_empty() {
            return Ok((self.state.position().index, count));
        }
        let index = self.append(Cause::Delete, process, Effects::of(writes), out);
        Ok((index, count))
    }

    /// Whether a record exists and belongs to a process.
    fn is_own(&self, process: &Key, key: &RecordKey) -> bool {
        match key.kind() {
            Kind::Process | Kind::Cell => {
                key.process_key() == Some(process) && self.state.records().get(key.as_bytes()).is_some()
            }
            Kind::Timer => {
                self.state.record::<TimerRecord>(key).is_some_and(|timer| timer.process == *process)
            }
            Kind::Task => self.state.record::<TaskRecord>(key).is_some_and(|task| task.process == *process),
            Kind::Session | Kind::Reply | Kind::Idempotency | Kind::DeadLetter | Kind::Attempt => false,
        }
    }
}
