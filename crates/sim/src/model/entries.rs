//! The checks of each entry: when it is given to the log, and when it is known to be synced.

use super::{Model, Sent, hash_call, records_of};
use crate::violation::Violation;
use crate::workload::Workload;
use std::collections::BTreeMap;
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{Index, Seq, ShardId, Time};
use stead_core::record::{
    DeadLetter, Kind, Pending, RecordKey, Retry, SessionRecord, TaskRecord, TimerRecord, decode_value,
};

impl Model {
    /// Handles that a shard gives an entry to the log at some virtual time; with the wall clock, if it was never wrong.
    pub(crate) fn append(
        &mut self,
        shard: ShardId,
        life: u64,
        (now, right): (u64, Option<Time>),
        bytes: &[u8],
    ) -> Result<(), Violation> {
        let next = self.appended(shard).next();
        let entry = Entry::decode(bytes)
            .map_err(|e| Violation::new(16, format!("shard {shard}: appended bytes are {e}")))?;
        let mut again = Vec::with_capacity(bytes.len());
        entry.encode_into(&mut again);
        if again != bytes {
            return Err(Violation::new(
                16,
                format!("shard {shard}: entry {} reads as another one", entry.index),
            ));
        }
        if entry.index != next {
            return Err(Violation::new(
                2,
                format!("shard {shard}: appends {} where {next} should be", entry.index),
            ));
        }
        if self.leaders.get(&(shard, entry.epoch)) != Some(&life) {
            let epoch = entry.epoch;
            return Err(Violation::new(
                1,
                format!("shard {shard}: life {life} appends in epoch {epoch} of another life"),
            ));
        }
        let latest = Time(self.lead + now);
        if entry.time > latest || right.is_some_and(|right| entry.time != right) {
            let time = entry.time;
            return Err(Violation::new(
                7,
                format!(
                    "shard {shard}: entry {next} is of {time:?}, where no clock is beyond {latest:?}, and a right one at {right:?}"
                ),
            ));
        }
        let shadow = self.shadow(shard);
        shadow.made.insert(next, now);
        shadow.tail.push_back(entry);
        Ok(())
    }

    /// Returns the entry that was appended last.
    pub(crate) fn last_entry(&self, shard: ShardId) -> Option<&Entry> {
        self.shards[shard.0 as usize].tail.back()
    }

    /// Handles that the entries up to an index are synced.
    pub(crate) fn synced(
        &mut self,
        shard: ShardId,
        upto: Index,
        workload: &mut dyn Workload,
    ) -> Result<(), Violation> {
        while self.durable(shard) < upto {
            let Some(entry) = self.shadow(shard).tail.pop_front() else {
                let last = self.durable(shard);
                return Err(Violation::new(
                    2,
                    format!("shard {shard}: entry {upto} is synced, but the last is {last}"),
                ));
            };
            self.fold(shard, entry, workload)?;
        }
        Ok(())
    }

    fn fold(&mut self, shard: ShardId, entry: Entry, workload: &mut dyn Workload) -> Result<(), Violation> {
        self.entries += 1;
        self.check_time(shard, &entry)?;
        self.check_entry(shard, &entry)?;
        self.check_sessions(shard, &entry)?;
        if entry.cause == Cause::Delete {
            let fold = &self.shards[shard.0 as usize].fold;
            let records: Vec<_> = entry
                .writes
                .iter()
                .filter_map(|write| Some((write.key.clone(), fold.records().get(&write.key)?.clone())))
                .collect();
            workload.deleted(shard, &entry, &records).map_err(|s| Violation::parse(&s))?;
        }
        workload.committed(shard, &entry).map_err(|s| Violation::parse(&s))?;
        let marker = match entry.cause {
            Cause::Marker { colour } => Some(colour.number()),
            _ => None,
        };
        let shadow = &mut self.shards[shard.0 as usize];
        let before: BTreeMap<ShardId, Seq> =
            entry.sends.iter().map(|s| (s.to, shadow.fold.outbox(s.to).map_or(Seq(1), |o| o.next))).collect();
        let index = entry.index;
        shadow.fold.apply(&entry);
        for (to, first) in before {
            let outbox = shadow.fold.outbox(to).expect("the entry sent to it");
            let log = self.sent.entry((shard, to)).or_default();
            if log.len() as u64 != first.0 - 1 {
                let (sent, next) = (log.len(), first.0);
                return Err(Violation::new(
                    8,
                    format!("channel {shard} to {to}: {sent} messages were sent, the next is {next}"),
                ));
            }
            let new = outbox.messages.iter().filter(|m| m.seq >= first);
            log.extend(new.map(Sent::of));
        }
        shadow.called.retain(|&at, _| at > index);
        shadow.made.retain(|&at, _| at > index);
        if let Some(number) = marker {
            self.check_marker(shard, number)?;
            self.check_cut(number, workload)?;
        }
        Ok(())
    }

    /// Compares the times in an entry with the clocks of the world.
    fn check_time(&mut self, shard: ShardId, entry: &Entry) -> Result<(), Violation> {
        let shadow = self.shadow(shard);
        let key_life = shadow.key_life;
        let bad =
            |what: String| Err(Violation::new(7, format!("shard {shard}: entry {} {what}", entry.index)));
        let Some(&now) = shadow.made.get(&entry.index) else { return bad("was never made".to_owned()) };
        let last = shadow.fold.position().time;
        if entry.time < last {
            return bad(format!("is of {:?} after {last:?}", entry.time));
        }
        shadow.served = shadow.served.plus(entry.served.unwrap_or_default());
        if shadow.served.0 > now {
            return bad(format!("says that {} were served in {now}", shadow.served));
        }
        if let (Cause::Idempotent { .. }, Some(identity)) =
            (&entry.cause, entry.cause.identity(&entry.process))
            && let Some(first) = shadow.keyed.insert(identity, now)
            && now - first < key_life.0
        {
            let age = now - first;
            return bad(format!("applies a request again after {age} of the {key_life} that its key lives"));
        }
        Ok(())
    }

    /// Compares an entry with the state before it.
    fn check_entry(&mut self, shard: ShardId, entry: &Entry) -> Result<(), Violation> {
        let index = entry.index;
        let shadow = &self.shards[shard.0 as usize];
        let bad = |invariant, what: String| {
            Err(Violation::new(invariant, format!("shard {shard}: entry {index} {what}")))
        };
        if entry.epoch < shadow.fold.position().epoch {
            return bad(1, format!("is of epoch {} after {}", entry.epoch, shadow.fold.position().epoch));
        }
        if entry.cause.identity(&entry.process).is_some_and(|identity| shadow.refused.contains(&identity)) {
            return bad(7, format!("applies {:?}, which was refused for good", entry.cause));
        }
        let served = shadow.fold.position().served().plus(entry.served.unwrap_or_default());
        match &entry.cause {
            Cause::Request { session, number, .. } => {
                let open = shadow.fold.session(*session);
                if open.is_none_or(|open| open.expires <= served) {
                    return bad(7, format!("applies request {number} of session {session}, which ran out"));
                }
                if !self.shadow(shard).requests.insert((*session, *number)) {
                    return bad(7, format!("applies request {number} of session {session} a second time"));
                }
            }
            Cause::Idempotent { principal, key, .. } => {
                let record = RecordKey::idempotency(&entry.process, principal, key);
                if shadow.fold.has(&record) {
                    return bad(7, format!("applies the request with idempotency key {key:?} a second time"));
                }
            }
            Cause::Message { from, seq } => self.check_receive(shard, entry, *from, *seq, true)?,
            Cause::DeadLetter { cause: Pending::Message { from, seq } } => {
                self.check_receive(shard, entry, *from, *seq, false)?;
            }
            Cause::Timer { id } | Cause::DeadLetter { cause: Pending::Timer { id } } => {
                let Some(timer) = shadow.fold.record::<TimerRecord>(&RecordKey::timer(*id)) else {
                    return bad(7, format!("fires timer {id}, which is not set"));
                };
                if timer.at > entry.time {
                    return bad(7, format!("fires timer {id} at {:?}, before {:?}", entry.time, timer.at));
                }
            }
            Cause::Task { id, step } | Cause::DeadLetter { cause: Pending::Task { id, step } } => {
                let task: Option<TaskRecord> = shadow.fold.record(&RecordKey::task(*id));
                if task.as_ref().map(|t| t.step) != Some(*step) {
                    return bad(
                        7,
                        format!("ends step {step} of task {id}, which is at {:?}", task.map(|t| t.step)),
                    );
                }
            }
            Cause::DeadLetter { cause: Pending::Request { .. } | Pending::Call { .. } } => {}
            Cause::Retry { letter }
            | Cause::Drop { letter }
            | Cause::DeadLetter { cause: Pending::DeadLetter { letter } } => {
                let Some(known) = shadow.fold.record::<DeadLetter>(&RecordKey::dead_letter(*letter)) else {
                    return bad(7, format!("is about dead letter {letter}, which is not there"));
                };
                let is_it = match (&entry.cause, &known.retry) {
                    (Cause::Retry { .. }, Some(Retry::Step { .. })) => {
                        let mut tasks = entry.writes.iter().filter(|write| write.key.kind() == Kind::Task);
                        let task = tasks.next().and_then(|write| write.value.as_ref());
                        let task = task.and_then(|task| decode_value::<TaskRecord>(task).ok());
                        task.is_some_and(|task| task.state == known.payload)
                    }
                    (Cause::Retry { .. }, _) => {
                        let call = hash_call(&known.process, &known.payload);
                        shadow.called.get(&index).is_none_or(|&called| called == call)
                    }
                    _ => true,
                };
                if !is_it {
                    return bad(7, format!("handles something else than dead letter {letter}"));
                }
            }
            Cause::Expire => {
                // Otherwise replies that its client holds would be deleted.
                let sessions = entry.writes.iter().filter(|write| write.key.kind() == Kind::Session);
                let confirmed = |id| {
                    let session = sessions.clone().find(|write| write.key.session_id() == id)?;
                    let record: SessionRecord = decode_value(session.value.as_ref()?).ok()?;
                    Some(record.confirmed)
                };
                for key in entry.writes.iter().filter(|w| w.value.is_none()).map(|w| &w.key) {
                    // A reply lives as long as its session, whose requests are refused from then on, whenever the reply
                    // itself is deleted.
                    let expires = match key.kind() {
                        Kind::Reply
                            if confirmed(key.session_id())
                                .is_some_and(|upto| key.request_number() <= Some(upto)) =>
                        {
                            None
                        }
                        _ => shadow.fold.expires(key),
                    };
                    if let Some(at) = expires.filter(|at| *at > served) {
                        return bad(7, format!("forgets {key:?} at {served:?}, which lives until {at:?}"));
                    }
                }
            }
            Cause::Delete => {
                let own = records_of(&shadow.fold, &entry.process);
                let other = entry.writes.iter().find(|w| w.value.is_some() || !own.contains(&w.key));
                if other.is_some() || entry.writes.is_empty() || !entry.sends.is_empty() {
                    let process = &entry.process;
                    return bad(7, format!("deletes process {process}, and {other:?}, which is not of it"));
                }
            }
            Cause::Ack { trims } => {
                for trim in trims {
                    let received = self.state(trim.to).received(shard);
                    if trim.upto > received {
                        return bad(
                            9,
                            format!("trims {} to shard {}, which holds {received}", trim.upto, trim.to),
                        );
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_receive(
        &self,
        shard: ShardId,
        entry: &Entry,
        from: ShardId,
        seq: Seq,
        handled: bool,
    ) -> Result<(), Violation> {
        let index = entry.index;
        let bad = |invariant, what: String| {
            Err(Violation::new(invariant, format!("shard {shard}: entry {index} {what}")))
        };
        let shadow = &self.shards[shard.0 as usize];
        let last = shadow.fold.received(from);
        if seq != last.next() {
            return bad(8, format!("receives message {seq} of shard {from} after {last}"));
        }
        let Some(sent) = self.sent.get(&(from, shard)).and_then(|log| log.get(seq.0 as usize - 1)) else {
            return bad(8, format!("receives message {seq} of shard {from}, which has not sent so many"));
        };
        if sent.process != entry.process {
            return bad(
                8,
                format!(
                    "receives message {seq} of shard {from} at {}, which it was not sent to",
                    entry.process
                ),
            );
        }
        if handled && shadow.called.get(&index).is_some_and(|&call| call != sent.payload) {
            return bad(8, format!("handled another message than {seq} of shard {from}"));
        }
        if sent.colour > shadow.fold.position().colour {
            let (colour, own) = (sent.colour, shadow.fold.position().colour);
            return bad(
                9,
                format!("receives a message of colour {colour} before its own marker, at colour {own}"),
            );
        }
        Ok(())
    }
}
