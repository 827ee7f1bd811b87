//! Calls from the network, and their answers.

use super::{Asker, Worker};
use crate::env::Env;
use crate::forward::command_of;
use crate::native::{Away, Known, Native, Recipient};
use crate::reply::{Caller, NoAnswer, ReplyTo, answer_of};
use crate::shared::Shared;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use stead_core::calls::Answer;
use stead_core::ids::{Colour, Time};
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
            if let Err(answer) = self.take_call(shared, now, &mut native, &away, &bytes) {
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
    fn take_call(
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
        if let Ask::Topology { without_services } = ask {
            let known = Known { clients: shared.routes.clients(), routes: Arc::clone(&self.routes) };
            let has_services = without_services != Some(true);
            native.answer_topology(now, away, shared.topology(), has_services, known);
            return Ok(());
        }
        if let Ask::Request { colour, .. } = &ask {
            let begun = Colour(shared.colour.load(Ordering::Relaxed));
            if *colour > begun {
                let reason =
                    format!("the request is of checkpoint {colour}, and {begun} is the last that began");
                return Err(native::Answer::Invalid(reason));
            }
        }
        let intern = |principal: &str| native.principal(away, principal);
        let (shard, command) = command_of(shared.topology(), ask, intern, reply_to)?;
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
            (Recipient::Node(node), _) => self.leave_for(node.node, node.message(result)),
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
