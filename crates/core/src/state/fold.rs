//! Folds entries into a shard's state.

use super::{Misfit, State};
use crate::blob::Blob;
use crate::channel::Message;
use crate::entry::{Cause, Entry, Trim, Write};
use crate::ids::{Index, Micros, RequestNumber, SessionId};
use crate::record::{DeadLetter, IdempotencyRecord, Kind, Pending, RecordKey, SessionRecord, encode_value};
use crate::reply::Reply;
use crate::shrink;

impl State {
    /// Folds one entry into the state.
    ///
    /// # Errors
    /// [`Misfit`] if the entry does not follow; the state is then unusable.
    pub fn apply(&mut self, entry: Entry) -> Result<(), Misfit> {
        let (shard, index) = (self.shard, entry.index);
        let last = self.position;
        if index != last.index.next() {
            return Err(Misfit::Index { shard, last: last.index, found: index });
        }
        if entry.epoch < last.epoch {
            return Err(Misfit::Epoch { shard, index, last: last.epoch, found: entry.epoch });
        }
        self.position.index = index;
        self.position.epoch = entry.epoch;
        self.position.time = last.time.max(entry.time);
        if let Some(served) = entry.served {
            self.position.served = Some(last.served().plus(served));
        }
        self.apply_cause(&entry)?;
        for Write { key, value } in entry.writes {
            // Replies that the fold creates itself need no check; one in an entry is read again later.
            if let (Kind::Reply, Some(value)) = (key.kind(), &value) {
                let _: Reply = self.read(&key, value)?;
            }
            self.write(&key, value)?;
        }
        for send in entry.sends {
            let outbox = self.outboxes.get_or_default(send.to);
            let message = Message {
                seq: outbox.next,
                epoch: entry.epoch,
                index,
                colour: self.position.colour,
                sender: entry.process.clone(),
                process: send.process,
                payload: send.payload,
            };
            self.outbox_bytes += message.weight();
            self.outbox_messages += 1;
            self.folded += 1;
            outbox.next = outbox.next.next();
            outbox.messages.push_back(message);
        }
        Ok(())
    }

    fn apply_cause(&mut self, entry: &Entry) -> Result<(), Misfit> {
        if !self.attempts.is_empty()
            && let Some(identity) = entry.cause.identity(&entry.process)
        {
            self.write(&RecordKey::attempt(&Pending::Request { identity }), None)?;
        }
        match &entry.cause {
            Cause::Start | Cause::Anonymous | Cause::Attempt | Cause::Expire | Cause::Delete => {}
            Cause::Suspected { content } => {
                self.write(&RecordKey::attempt(&Pending::Call { content: *content }), None)?;
            }
            Cause::OpenSession { session, principal, ttl } => {
                let record = SessionRecord {
                    principal: principal.clone(),
                    expires: self.position.served().plus(*ttl),
                    confirmed: RequestNumber(0),
                };
                self.write(&RecordKey::session(*session), Some(encode_value(&record)))?;
            }
            Cause::Request { session, number, confirmed, ttl } => {
                self.apply_request(entry, *session, *number, *confirmed, *ttl)?;
            }
            Cause::Idempotent { principal, key, body_hash, expires } => {
                let reply = entry.reply.clone().unwrap_or_else(|| Reply::Ok(Blob::empty()));
                let record = IdempotencyRecord { body_hash: *body_hash, reply, expires: *expires };
                let key = RecordKey::idempotency(&entry.process, principal, key);
                self.write(&key, Some(encode_value(&record)))?;
            }
            Cause::Message { .. } | Cause::Timer { .. } | Cause::Task { .. } => {
                let pending = entry.cause.pending().expect("these three wait");
                self.consume(entry.index, pending)?;
            }
            Cause::DeadLetter { cause } => {
                self.consume(entry.index, *cause)?;
                if let Pending::Task { id, .. } = cause {
                    self.write(&RecordKey::task(*id), None)?;
                }
            }
            Cause::Retry { letter } => self.write(&RecordKey::dead_letter(*letter), None)?,
            Cause::Drop { letter } => {
                let key = RecordKey::dead_letter(*letter);
                // The same content may be sent again: no client was promised that it stays refused.
                if let Some(cause @ Pending::Call { .. }) =
                    self.record::<DeadLetter>(&key).map(|letter| letter.cause)
                {
                    self.write(&RecordKey::attempt(&cause), None)?;
                }
                self.write(&key, None)?;
            }
            Cause::Marker { colour } => {
                if *colour <= self.position.colour {
                    let last = self.position.colour;
                    return Err(Misfit::Colour { shard: self.shard, last, found: *colour });
                }
                self.position.colour = *colour;
            }
            Cause::Ack { trims } => {
                for trim in trims {
                    self.trim(*trim);
                }
            }
        }
        Ok(())
    }

    fn apply_request(
        &mut self,
        entry: &Entry,
        id: SessionId,
        number: RequestNumber,
        confirmed: RequestNumber,
        ttl: Micros,
    ) -> Result<(), Misfit> {
        if let Some(reply) = &entry.reply {
            self.write(&RecordKey::reply(id, number), Some(encode_value(reply)))?;
        }
        let Some(session) = self.sessions.get(&id).cloned() else { return Ok(()) };
        let step = confirmed.0.saturating_sub(session.confirmed.0);
        if step > Self::SESSION_WINDOW {
            return Err(Misfit::Confirmed {
                shard: self.shard,
                index: entry.index,
                confirmed,
                last: session.confirmed,
            });
        }
        let confirms = step >= Self::CONFIRM_STEP || (step > 0 && session.kept >= Self::SESSION_KEPT);
        let served = self.position.served();
        let extends = session.expires < served.plus(ttl.half());
        if confirms || extends {
            for number in session.confirmed.0 + 1..=confirmed.0.min(session.highest.0) {
                self.write(&RecordKey::reply(id, RequestNumber(number)), None)?;
            }
            let key = RecordKey::session(id);
            if let Some(value) = self.records.get(key.as_bytes()) {
                let mut record: SessionRecord = self.read(&key, value)?;
                record.confirmed = session.confirmed.max(confirmed);
                record.expires = session.expires.max(served.plus(ttl));
                self.write(&key, Some(encode_value(&record)))?;
            }
        }
        Ok(())
    }

    /// Removes a waiting cause that is handled, with its attempts.
    fn consume(&mut self, index: Index, cause: Pending) -> Result<(), Misfit> {
        match cause {
            Pending::Message { from, seq } => {
                let last = self.received.get_or_default(from);
                if seq != last.next() {
                    let (shard, last) = (self.shard, *last);
                    return Err(Misfit::Channel { shard, index, from, last, found: seq });
                }
                *last = seq;
                if from == self.shard {
                    // One log holds both ends of this channel, so it needs no acknowledgement.
                    self.trim(Trim { to: from, upto: seq });
                }
            }
            Pending::Timer { id } => self.write(&RecordKey::timer(id), None)?,
            Pending::Task { .. } => {}
            // Its attempts stay, so that a retry is refused.
            Pending::Request { .. } | Pending::Call { .. } => return Ok(()),
            // It stays a dead letter, for another reason.
            Pending::DeadLetter { .. } => return Ok(()),
        }
        if !self.attempts.is_empty() {
            self.write(&RecordKey::attempt(&cause), None)?;
        }
        Ok(())
    }

    fn trim(&mut self, trim: Trim) {
        let Some(outbox) = self.outboxes.get_mut(trim.to) else { return };
        while let Some(message) = outbox.messages.front()
            && message.seq <= trim.upto
        {
            self.outbox_bytes -= message.weight();
            self.outbox_messages -= 1;
            self.folded += 1;
            let message = outbox.messages.pop_front().expect("it was looked at");
            self.outgoing.keep(trim.to, message);
        }
        shrink::release_spare(&mut outbox.messages);
    }
}
