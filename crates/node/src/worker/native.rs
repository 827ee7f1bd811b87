//! Calls from the network, and their answers.

use super::{Asker, Worker};
use crate::env::Env;
use crate::inbox::Command;
use crate::native::{Away, Native, Recipient, answer_of};
use crate::reply::{Caller, NoAnswer, ReplyTo};
use crate::shared::Shared;
use std::sync::atomic::Ordering;
use stead_core::calls::{Answer, Query, Read, Request};
use stead_core::ids::{CallToken, Colour, ShardId, Time};
use stead_core::key::Key;
use stead_core::shard::DeadLetterAction;
use stead_net::native::{self, Ask};

impl<E: Env> Worker<E> {
    /// Serves clients over these connections from now on.
    pub(crate) fn listen(&mut self, native: Native) {
        self.native = Some(Box::new(native));
    }

    /// Takes the calls that have arrived over its connections; returns whether there were any.
    pub(super) fn take_calls(&mut self, shared: &Shared<E>, now: Time) -> bool {
        let Some(mut native) = self.native.take() else { return false };
        if let Err(error) = native.turn(now, self.wall) {
            shared.fail(format!("the connections of worker {} cannot be served: {error}", self.number));
        }
        let mut busy = native.due() <= now;
        let until = self.begin_slice(shared);
        // Those that are left wait: nothing more is read meanwhile.
        while !Self::is_slice_over(shared, until)
            && let Some((away, bytes)) = native.next_call()
        {
            busy = true;
            if let Err(answer) = self.begin_call(shared, now, &mut native, &away, &bytes) {
                native.answer(now, &away, answer);
            }
        }
        self.native = Some(native);
        busy
    }

    /// Makes a call a command for the worker of its shard.
    ///
    /// # Errors
    /// The answer, if there is one at once.
    fn begin_call(
        &mut self,
        shared: &Shared<E>,
        now: Time,
        native: &mut Native,
        away: &Away,
        bytes: &[u8],
    ) -> Result<(), native::Answer> {
        let (timeout, ask) =
            Ask::decode(bytes).map_err(|error| native::Answer::Invalid(error.to_string()))?;
        let caller = Recipient::Away(away.clone());
        let reply_to = ReplyTo { caller, deadline: now.plus(timeout.into()), timeout };
        let token = CallToken(0);
        let (shard, command) = match ask {
            Ask::Topology => {
                native.answer_topology(now, away, shared.topology());
                return Ok(());
            }
            Ask::OpenSession { shard, session, principal } => {
                let principal = native.principal(away, principal);
                (shard, Command::OpenSession { shard, session, principal, reply_to: Some(reply_to) })
            }
            Ask::Request { shard, process, payload, principal, identity, colour } => {
                check_place(shared, shard, &process)?;
                let begun = Colour(shared.colour.load(Ordering::Relaxed));
                if colour > begun {
                    let reason =
                        format!("the request is of checkpoint {colour}, and {begun} is the last that began");
                    return Err(native::Answer::Invalid(reason));
                }
                let (principal, identity) = (native.principal(away, principal), identity.into());
                let request = Request { token, process, payload, principal, identity, colour };
                (shard, Command::Request { shard, request, reply_to })
            }
            Ask::Query { shard, process, payload, principal, read } => {
                check_place(shared, shard, &process)?;
                let principal = native.principal(away, principal);
                let read = read.map_or(Read::Service, Read::from);
                let query = Query { token, process, payload, principal, read };
                (shard, Command::Query { shard, query, reply_to })
            }
            Ask::DeadLetter { shard, letter, retry } => {
                let action = if retry { DeadLetterAction::Retry } else { DeadLetterAction::Drop };
                (shard, Command::DeadLetter { shard, letter, action, reply_to })
            }
        };
        shared.accept(shard, &command).map_err(|none| answer_of(Err(none)))?;
        let worker = shared.worker_of(shard);
        if worker == self.number {
            self.commands.push_back(command);
        } else {
            shared.inboxes[worker].push(command);
        }
        Ok(())
    }

    /// Answers a call: directly if its client is connected to this worker.
    pub(super) fn give_answer(&mut self, now: Time, asker: Asker<E>, result: Result<Answer, NoAnswer>) {
        match (&asker, &mut self.native) {
            (Recipient::Away(away), Some(native)) if native.has(away) => {
                native.answer(now, away, answer_of(result));
            }
            _ => asker.answer(result),
        }
    }

    /// Writes the answers of this turn, one write for each connection.
    pub(super) fn send_answers(&mut self, now: Time) {
        if let Some(native) = &mut self.native {
            native.flush(now);
        }
    }
}

/// Checks that a shard is that of a process: a client does not decide it.
fn check_place<E: Env>(shared: &Shared<E>, shard: ShardId, process: &Key) -> Result<(), native::Answer> {
    if process.is_empty() {
        return Err(native::Answer::Invalid("the key of a process has at least one byte".to_owned()));
    }
    let topology = shared.topology();
    let owner = topology.service_of(shard).map(|service| topology.shard_of(service, process));
    if owner == Some(shard) {
        return Ok(());
    }
    let reason = format!(
        "shard {shard} does not have the process {process}; connect again, for its shards have changed"
    );
    Err(native::Answer::Invalid(reason))
}
