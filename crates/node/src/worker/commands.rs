//! Commands of clients and of the node's other parts to a worker, and the calls that wait for their answers.

use super::{Asker, Turn, Worker};
use crate::calls::NO_CALL;
use crate::env::Env;
use crate::forward::{Forwarded, ask_of};
use crate::inbox::Command;
use crate::native::Recipient;
use crate::reply::{Caller, NoAnswer, ReplyTo};
use crate::shared::Shared;
use crate::status::{WorkerStatus, shard_status};
use std::collections::BTreeMap;
use stead_core::calls::{Answer, Query, Read, Refusal};
use stead_core::ids::{CallToken, Micros, ShardId, Time};
use stead_core::placement::Place;
use stead_core::shard::Input;
use stead_core::shrink;

/// Number of shards whose status is taken before the worker reads the clock.
const STATUS_BATCH: usize = 8;
/// Interval at which overdue calls are searched for.
const SWEEP: Micros = Micros::from_millis(20);
/// Delay before the repetition of a request that came before its shard served.
const NOT_READY_RETRY: Micros = Micros::from_millis(20);

impl<E: Env> Worker<E> {
    /// Performs commands for a while; returns whether there were any.
    pub(super) fn perform_commands(&mut self, shared: &Shared<E>, now: Time) -> bool {
        // A handler of this turn may have ended the node.
        if self.commands.is_empty() || shared.is_ended() {
            return false;
        }
        let until = self.begin_slice(shared);
        while let Some(command) = self.commands.pop_front() {
            self.calls.command_bytes = command.request_bytes();
            self.perform_command(shared, now, command);
            // They no longer wait, unless a call has taken these bytes over.
            let bytes = std::mem::take(&mut self.calls.command_bytes);
            self.note_waiting(shared, [0, 0, -(bytes as i64)]);
            if Self::is_slice_over(shared, until) {
                break;
            }
        }
        // The capacity of an empty queue is exchanged for the next commands.
        if !self.commands.is_empty() {
            shrink::release_spare(&mut self.commands);
        }
        true
    }

    pub(super) fn perform_command(&mut self, shared: &Shared<E>, now: Time, command: Command<Asker<E>>) {
        match command {
            Command::Request { shard, mut request, reply_to } => {
                self.count(shared, shard).requests += 1;
                request.token = self.calls.next_token();
                self.begin_call(shared, now, shard, Input::Request(request), reply_to);
            }
            Command::DeadLetter { shard, letter, action, reply_to } => {
                let input = Input::DeadLetter { token: self.calls.next_token(), letter, action };
                self.begin_call(shared, now, shard, input, reply_to);
            }
            Command::Delete { shard, process, records, reply_to } => {
                let input = Input::Delete { token: self.calls.next_token(), process, records };
                self.begin_call(shared, now, shard, input, reply_to);
            }
            Command::Show { shard, look, reply_to } => {
                let input = Input::Look { token: self.calls.next_token(), look };
                self.begin_call(shared, now, shard, input, reply_to);
            }
            Command::Query { shard, mut query, reply_to } => {
                self.count(shared, shard).queries += 1;
                query.token = self.calls.next_token();
                self.begin_call(shared, now, shard, Input::Query(query), reply_to);
            }
            Command::OpenSession { shard, session, principal, reply_to: Some(reply_to) } => {
                let input = Input::OpenSession { token: self.calls.next_token(), session, principal };
                self.begin_call(shared, now, shard, input, reply_to);
            }
            // Not forwarded: the client opens the session anew when the shard does not know it.
            Command::OpenSession { shard, session, principal, reply_to: None } => {
                self.give_to(shared, now, shard, Input::OpenSession { token: NO_CALL, session, principal });
            }
            Command::Forwarded(news) => self.hear_forwarded(shared, now, news),
            Command::Every { input, from } => {
                let Some(slot) = self.shards.get(from).map(|_| from as u32) else { return };
                // The other shards continue before anything that came later.
                self.commands.push_front(Command::Every { input: input.clone(), from: from + 1 });
                self.give(shared, now, slot, input);
            }
            Command::ForceFull(shard) => {
                if let Some(slot) = self.slot(shard)
                    && let Some(shard) = self.shards[slot as usize].replica.shard_mut()
                {
                    shard.force_full_snapshot();
                }
            }
            Command::Discard { shard, number } => {
                let shards = &self.shards;
                let is_of = |slot: u32| shard.is_none_or(|shard| shards[slot as usize].id == shard);
                // Only these: the next checkpoint may have begun here already.
                let discarded =
                    self.draining.iter_mut().filter(|one| one.number <= number && is_of(one.slot));
                discarded.for_each(|draining| draining.is_given_up = true);
            }
            Command::Status { to, mut taken } => {
                let topology = &shared.topology;
                let shards = self.shards.iter().skip(taken.len()).take(STATUS_BATCH).map(|slot| {
                    let service = topology.service_of(slot.id).map_or("", |id| &topology.service(id).name);
                    shard_status(&slot.replica, service)
                });
                taken.extend(shards);
                if taken.len() < self.shards.len() {
                    self.commands.push_front(Command::Status { to, taken });
                } else {
                    // The caller may have given up.
                    let _ = to.send(WorkerStatus { shards: taken });
                }
            }
            Command::Look { shard, look } => {
                if let Some(slot) = self.slot(shard)
                    && let Some(state) = self.shards[slot as usize].replica.state()
                {
                    look(state);
                }
            }
            Command::Replica { shard, to, input } => self.give_placed(shared, now, (shard, to), input),
            Command::DeleteReplica { shard, replica } => self.delete_replica(shared, now, shard, replica),
            Command::Place { shard, replica } => self.place(shared, now, shard, replica),
            Command::TakeSnapshot { shard, replica } => self.take_snapshot(shard, replica),
            Command::SendSnapshot(transfer) => self.send_snapshot(shared, transfer),
            Command::SnapshotWritten { name, is_durable } => {
                self.note_written(shared, now, name, is_durable);
            }
            Command::Stop => {
                self.stopping = true;
                self.code.stop();
                for slot in 0..self.shards.len() as u32 {
                    self.shards[slot as usize].replica.hurry();
                    self.touch(slot);
                }
            }
        }
    }

    /// Begins a call of a client at its shard, or forwards it to the node that leads that.
    fn begin_call(
        &mut self,
        shared: &Shared<E>,
        now: Time,
        shard: ShardId,
        input: Input,
        reply_to: ReplyTo<Asker<E>>,
    ) {
        let Some(reply_to) = self.admit(now, reply_to) else { return };
        // Any replica answers a stale read.
        let is_stale = matches!(&input, Input::Query(Query { read: Read::Stale { .. }, .. }));
        if self.is_led_elsewhere(shared, shard)
            && !(is_stale && self.has_replica(shard))
            && !matches!(reply_to.caller, Recipient::Node(_))
            && let Some(ask) = ask_of(shard, &input)
        {
            let bytes = std::mem::take(&mut self.calls.command_bytes);
            return self.forward(shared, now, Forwarded::new(shard, ask, reply_to, bytes, false));
        }
        let Some(slot) = self.slot(shard) else {
            let not_here = NoAnswer::NotHere { shard, place: Place::Elsewhere };
            return self.give_answer(now, reply_to.caller, Err(not_here));
        };
        self.calls.open(reply_to, Some((shard, input.clone())));
        self.give(shared, now, slot, input);
    }

    /// Returns the caller of a call that begins. A worker that is about to end accepts no more calls, and drops `reply_to`.
    fn admit(&mut self, now: Time, reply_to: ReplyTo<Asker<E>>) -> Option<ReplyTo<Asker<E>>> {
        if self.stopping || reply_to.caller.is_gone() {
            return None;
        }
        if reply_to.deadline <= now {
            // It waited too long for the handler of another: a call whose time is over is not begun.
            let timed_out = NoAnswer::TimedOut { after: reply_to.timeout };
            self.give_answer(now, reply_to.caller, Err(timed_out));
            return None;
        }
        Some(reply_to)
    }

    /// Returns the counters of this turn for the service of a shard.
    pub(super) fn count(&mut self, shared: &Shared<E>, shard: ShardId) -> &mut Turn {
        let service = shared.topology.service_of(shard).expect("a command is sent to a shard of this node");
        &mut self.turn[usize::from(service.0)]
    }

    pub(super) fn answer(&mut self, shared: &Shared<E>, now: Time, service: usize, answer: Answer) {
        if answer.token == NO_CALL {
            return;
        }
        let wait = match &answer.result {
            Err(Refusal::NotReady) => Some(NOT_READY_RETRY),
            Err(Refusal::Overloaded { retry_after }) => Some((*retry_after).into()),
            _ => None,
        };
        if let Some(wait) = wait
            && let Some(call) = self.calls.find(answer.token).and_then(Option::as_mut)
            && let Some((shard, input)) = call.again.clone()
        {
            let at = now.plus(wait);
            if at < call.reply_to.deadline {
                self.last_retry += 1;
                self.retries.insert((at, self.last_retry), (answer.token, shard, input));
                call.refused = Some(answer);
                return;
            }
        }
        self.turn[service].answers += 1;
        self.turn[service].refusals += u64::from(answer.result.is_err());
        if let Some(call) = self.calls.close(answer.token) {
            self.note_waiting(shared, [0, 0, -(call.bytes as i64)]);
            self.give_answer(now, call.reply_to.caller, Ok(answer));
        }
    }

    /// Makes the calls due that a shard could not accept: it serves from now on.
    pub(super) fn retry_now(&mut self, now: Time, shard: ShardId) {
        let of_shard = |&(_, of, _): &(CallToken, ShardId, Input)| of == shard;
        let waiting = self.retries.iter().filter(|((at, _), retry)| *at > now && of_shard(retry));
        for key in waiting.map(|(key, _)| *key).collect::<Vec<_>>() {
            let retry = self.retries.remove(&key).expect("it was found above");
            self.retries.insert((now, key.1), retry);
        }
    }

    /// Repeats calls that their shard could not accept, for a while; returns whether there were any.
    pub(super) fn retry(&mut self, shared: &Shared<E>, now: Time) -> bool {
        let is_due = |retries: &BTreeMap<(Time, u64), _>| {
            retries.first_key_value().is_some_and(|((at, _), _)| *at <= now)
        };
        if !is_due(&self.retries) {
            return false;
        }
        let until = self.begin_slice(shared);
        while is_due(&self.retries)
            && let Some((_, (token, shard, input))) = self.retries.pop_first()
        {
            // The call may have timed out since then.
            if let Some(call) = self.calls.find(token).and_then(Option::as_mut) {
                call.refused = None;
                self.give_to(shared, now, shard, input);
            }
            if Self::is_slice_over(shared, until) {
                break;
            }
        }
        true
    }

    /// Ends overdue calls from time to time; returns the time until the next search.
    pub(super) fn sweep(&mut self, shared: &Shared<E>, now: Time) -> Micros {
        let since = now.since(self.sweep_at);
        if since < SWEEP {
            return SWEEP.minus(since);
        }
        let (overdue, is_through) = self.calls.close_overdue(now);
        for call in overdue {
            // A call that waits to be repeated was not applied.
            self.note_waiting(shared, [0, 0, -(call.bytes as i64)]);
            let timed_out = NoAnswer::TimedOut { after: call.reply_to.timeout };
            self.give_answer(now, call.reply_to.caller, call.refused.ok_or(timed_out));
        }
        if !is_through {
            return Micros(0);
        }
        self.sweep_at = now;
        SWEEP
    }
}
