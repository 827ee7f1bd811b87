//! Indexes over the records, so that nothing needs a scan. Each write keeps them up to date.

use super::{Misfit, OfPrincipal, OpenSession, State};
use crate::blob::Blob;
use crate::ids::{Index, RequestNumber, Served, TaskId, TimerId};
use crate::record::{
    AttemptRecord, DeadLetter, IdempotencyRecord, Kind, Pending, RecordKey, SessionRecord, TaskRecord,
    TimerRecord, decode_value,
};
use minicbor::Decode;
use std::collections::BTreeMap;
use std::sync::Arc;

impl State {
    pub(super) fn write(&mut self, key: &RecordKey, value: Option<Blob>) -> Result<(), Misfit> {
        self.folded += 1;
        if matches!(key.kind(), Kind::Process | Kind::Cell) {
            match value {
                Some(value) => drop(self.records.put(key.as_bytes(), value)),
                None => drop(self.records.remove(key.as_bytes())),
            }
            return Ok(());
        }
        let old = match &value {
            Some(value) => self.records.put(key.as_bytes(), value.clone()),
            None => self.records.remove(key.as_bytes()),
        };
        if let Some(old) = old {
            self.unindex_record(key, &old)?;
        }
        value.map_or(Ok(()), |value| self.index_record(key, &value))
    }

    pub(super) fn read<'b, T: Decode<'b, ()>>(&self, key: &RecordKey, value: &'b [u8]) -> Result<T, Misfit> {
        decode_value(value).map_err(|error| Misfit::Record {
            shard: self.shard,
            key: key.clone(),
            reason: error.to_string(),
        })
    }

    pub(super) fn index_record(&mut self, key: &RecordKey, value: &Blob) -> Result<(), Misfit> {
        let weight = weight(key, value);
        match key.kind() {
            Kind::Process | Kind::Cell => {}
            Kind::Session => {
                let record: SessionRecord = self.read(key, value)?;
                let id = key.session_id().expect("a session's key holds its id");
                self.expiries.insert((record.expires, key.clone()));
                let session = self.sessions.entry(id).or_insert_with(OpenSession::unknown);
                if *session.principal != *record.principal {
                    let moved = OfPrincipal { sessions: session.known.into(), replies: session.kept };
                    discharge(&mut self.principals, &session.principal, moved);
                    session.principal = record.principal.into();
                    charge(&mut self.principals, &session.principal, moved);
                }
                if !std::mem::replace(&mut session.known, true) {
                    let one = OfPrincipal { sessions: 1, replies: 0 };
                    charge(&mut self.principals, &session.principal, one);
                }
                session.confirmed = record.confirmed;
                session.expires = record.expires;
                session.highest = session.highest.max(record.confirmed);
            }
            Kind::Reply => {
                let id = key.session_id().expect("a reply's key holds its session");
                let number = key.request_number().expect("a reply's key holds its number");
                // While a part is loaded, the reply may come before its session.
                let session = self.sessions.entry(id).or_insert_with(OpenSession::unknown);
                session.highest = session.highest.max(number);
                session.kept += weight;
                self.kept.replies += weight;
                let more = OfPrincipal { sessions: 0, replies: weight };
                charge(&mut self.principals, &session.principal, more);
            }
            Kind::Idempotency => {
                let record: IdempotencyRecord = self.read(key, value)?;
                self.expiries.insert((record.expires, key.clone()));
                self.kept.replies += weight;
                let more = OfPrincipal { sessions: 0, replies: weight };
                charge(&mut self.principals, key.principal().unwrap_or_default(), more);
            }
            Kind::Timer => {
                let record: TimerRecord = self.read(key, value)?;
                self.timers.insert((record.at, TimerId(key.number().expect("a timer's key is its id"))));
                self.kept.waiting += weight;
            }
            Kind::Task => {
                let record: TaskRecord = self.read(key, value)?;
                let id = TaskId(key.number().expect("a task's key is its id"));
                self.tasks.insert(id);
                self.process_tasks.insert((record.process, id), value.clone());
                self.kept.waiting += weight;
            }
            Kind::DeadLetter => {
                let _: DeadLetter = self.read(key, value)?;
                self.dead_letters.insert(Index(key.number().expect("a dead letter's key is its number")));
                self.kept.dead_letters += weight;
            }
            Kind::Attempt => {
                let record: AttemptRecord = self.read(key, value)?;
                self.attempts.insert(key.clone());
                if let Some(expires) = record.expires {
                    self.expiries.insert((expires, key.clone()));
                }
            }
        }
        Ok(())
    }

    fn unindex_record(&mut self, key: &RecordKey, old: &[u8]) -> Result<(), Misfit> {
        let weight = weight(key, old);
        let less = OfPrincipal { sessions: 0, replies: weight };
        match key.kind() {
            Kind::Process | Kind::Cell => {}
            Kind::Reply => {
                self.kept.replies -= weight;
                let id = key.session_id().expect("a reply's key holds its session");
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.kept = session.kept.saturating_sub(weight);
                    discharge(&mut self.principals, &session.principal, less);
                }
            }
            Kind::Session => {
                let record: SessionRecord = self.read(key, old)?;
                self.expiries.remove(&(record.expires, key.clone()));
                if self.records.get(key.as_bytes()).is_none() {
                    let id = key.session_id().expect("a session's key holds its id");
                    if let Some(session) = self.sessions.remove(&id) {
                        let gone = OfPrincipal { sessions: session.known.into(), replies: session.kept };
                        discharge(&mut self.principals, &session.principal, gone);
                    }
                }
            }
            Kind::Idempotency => {
                let record: IdempotencyRecord = self.read(key, old)?;
                self.expiries.remove(&(record.expires, key.clone()));
                self.kept.replies -= weight;
                discharge(&mut self.principals, key.principal().unwrap_or_default(), less);
            }
            Kind::Timer => {
                let record: TimerRecord = self.read(key, old)?;
                let id = TimerId(key.number().expect("a timer's key is its id"));
                self.timers.remove(&(record.at, id));
                self.kept.waiting -= weight;
                self.forget_attempts(key, &Pending::Timer { id })?;
            }
            Kind::Task => {
                let record: TaskRecord = self.read(key, old)?;
                let id = TaskId(key.number().expect("a task's key is its id"));
                self.tasks.remove(&id);
                if self.records.get(key.as_bytes()).is_none() {
                    self.process_tasks.remove(&(record.process, id));
                }
                self.kept.waiting -= weight;
                self.forget_attempts(key, &Pending::Task { id, step: record.step })?;
            }
            Kind::DeadLetter => {
                self.kept.dead_letters -= weight;
                if self.records.get(key.as_bytes()).is_none() {
                    let number = key.number().expect("a dead letter's key is its number");
                    self.dead_letters.remove(&Index(number));
                }
            }
            Kind::Attempt => {
                let record: AttemptRecord = self.read(key, old)?;
                if self.records.get(key.as_bytes()).is_none() {
                    self.attempts.remove(key);
                }
                if let Some(expires) = record.expires {
                    self.expiries.remove(&(expires, key.clone()));
                }
            }
        }
        Ok(())
    }

    /// Deletes the attempts at a cause that was cancelled after it was tried.
    fn forget_attempts(&mut self, key: &RecordKey, pending: &Pending) -> Result<(), Misfit> {
        if !self.attempts.is_empty() && self.records.get(key.as_bytes()).is_none() {
            self.write(&RecordKey::attempt(pending), None)?;
        }
        Ok(())
    }
}

impl OpenSession {
    /// A session whose record is not read yet.
    fn unknown() -> Self {
        Self {
            principal: Arc::default(),
            confirmed: RequestNumber(0),
            highest: RequestNumber(0),
            expires: Served(0),
            kept: 0,
            known: false,
        }
    }
}

fn weight(key: &RecordKey, value: &[u8]) -> usize {
    key.as_bytes().len() + value.len() + State::RECORD_WEIGHT
}

fn charge(principals: &mut BTreeMap<Arc<str>, OfPrincipal>, principal: &str, more: OfPrincipal) {
    if more == OfPrincipal::default() {
        return;
    }
    if !principals.contains_key(principal) {
        principals.insert(principal.into(), OfPrincipal::default());
    }
    let of = principals.get_mut(principal).expect("it was just put there");
    of.sessions += more.sessions;
    of.replies += more.replies;
}

fn discharge(principals: &mut BTreeMap<Arc<str>, OfPrincipal>, principal: &str, less: OfPrincipal) {
    let Some(of) = principals.get_mut(principal) else { return };
    of.sessions = of.sessions.saturating_sub(less.sessions);
    of.replies = of.replies.saturating_sub(less.replies);
    if *of == OfPrincipal::default() {
        principals.remove(principal);
    }
}
