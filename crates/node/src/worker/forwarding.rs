//! Forwards calls of clients whose shards other nodes lead, and answers them.

use super::{Asker, Worker};
use crate::calls::PendingCall;
use crate::env::Env;
use crate::forward::{Forwarded, News, ask_of, command_of, result_of};
use crate::native::Recipient;
use crate::peers::PeerMessage;
use crate::reply::{Caller, NoAnswer};
use crate::routes::Routes;
use crate::shared::Shared;
use std::sync::Arc;
use std::time::Duration;
use stead_core::calls::{Answer, Refusal};
use stead_core::ids::{NodeId, ShardId, Time};
use stead_core::shard::Shard;
use stead_net::forward::{Call, CallId, Outcome};
use stead_net::native::Ask;

impl<E: Env> Worker<E> {
    /// Whether another node leads a shard, or may.
    pub(super) fn is_led_elsewhere(&self, shared: &Shared<E>, shard: ShardId) -> bool {
        shared.routes.are_expected()
            && self.slot(shard).is_none_or(|slot| {
                let slot = &self.shards[slot as usize];
                slot.is_replicated && slot.replica.shard().is_none()
            })
    }

    /// Forwards a call, or refuses it if too many wait.
    pub(super) fn forward(&mut self, shared: &Shared<E>, now: Time, call: Forwarded<Asker<E>>) {
        if self.forwarded.has_room() {
            return self.send_forwarded(shared, now, call);
        }
        let refused = if call.in_doubt {
            NoAnswer::Deposed { shard: call.shard }
        } else {
            NoAnswer::Refused(Refusal::Overloaded { retry_after: Shard::RETRY_AFTER })
        };
        self.end_forwarded(shared, now, call, Err(refused));
    }

    /// Takes a call back from a replica that did not lead, or has been deposed: then it may have been applied. Returns whether it goes on.
    pub(super) fn forward_again(
        &mut self,
        shared: &Shared<E>,
        now: Time,
        call: PendingCall<Asker<E>>,
        in_doubt: bool,
    ) -> Option<PendingCall<Asker<E>>> {
        let is_from_client = !matches!(call.reply_to.caller, Recipient::Node(_));
        let ask = call.again.as_ref().and_then(|(shard, input)| Some((*shard, ask_of(*shard, input)?)));
        match ask {
            Some((shard, ask)) if is_from_client && shared.routes.are_expected() && (ask.1 || !in_doubt) => {
                self.forward(shared, now, Forwarded::new(shard, ask, call.reply_to, call.bytes, in_doubt));
                None
            }
            _ => Some(call),
        }
    }

    /// Sends a call to the node of its shard's primary, gives it to the shard if that is this one, or keeps it until there is one.
    fn send_forwarded(&mut self, shared: &Shared<E>, now: Time, call: Forwarded<Asker<E>>) {
        if call.reply_to.caller.is_gone() || self.stopping {
            return self.note_waiting(shared, [0, 0, -(call.bytes as i64)]);
        }
        let Forwarded { shard, in_doubt, .. } = call;
        if call.reply_to.deadline <= now {
            let after = call.reply_to.timeout;
            let none =
                if in_doubt { NoAnswer::TimedOut { after } } else { NoAnswer::NoPrimary { shard, after } };
            return self.end_forwarded(shared, now, call, Err(none));
        }
        if !self.is_led_elsewhere(shared, shard) {
            return self.give_forwarded(shared, now, call);
        }
        match primary_node(&self.routes, shard) {
            // It has yet to learn so.
            Some(node) if node == shared.node => self.forwarded.pause(call, now),
            Some(node) if !self.forwarded.is_down(node) => {
                let within = Duration::from_micros(call.reply_to.deadline.since(now).0);
                let ask = call.ask_now();
                let id = CallId { process: shared.process, number: self.forwarded.send(call, node) };
                let call = Call { shard, id, within, ask };
                self.leave_for(node, PeerMessage::Call { from: shared.node, call });
            }
            Some(_) | None => self.forwarded.hold(call),
        }
    }

    /// Gives a call to its shard, which this node leads now.
    fn give_forwarded(&mut self, shared: &Shared<E>, now: Time, call: Forwarded<Asker<E>>) {
        let ask = call.ask_now();
        let Forwarded { reply_to, bytes, .. } = call;
        let ask = Ask::decode_untimed(&ask).expect("this node encoded it");
        self.calls.command_bytes = bytes;
        match command_of(shared.topology(), ask, |principal| principal.into(), reply_to) {
            Ok((_, command)) => self.perform_command(shared, now, command),
            Err(_) => unreachable!("its shard is that of its process"),
        }
        let bytes = std::mem::take(&mut self.calls.command_bytes);
        self.note_waiting(shared, [0, 0, -(bytes as i64)]);
    }

    fn end_forwarded(
        &mut self,
        shared: &Shared<E>,
        now: Time,
        call: Forwarded<Asker<E>>,
        result: Result<Answer, NoAnswer>,
    ) {
        self.note_waiting(shared, [0, 0, -(call.bytes as i64)]);
        self.give_answer(now, call.reply_to.caller, result);
    }

    /// Takes news of forwarded calls.
    pub(super) fn hear_forwarded(&mut self, shared: &Shared<E>, now: Time, news: News) {
        match news {
            News::Answered(number, outcome) => {
                let Some(mut call) = self.forwarded.take(number) else { return };
                match outcome {
                    Outcome::Answer(answer) => {
                        let result = result_of(&answer, call.reply_to.timeout);
                        self.end_forwarded(shared, now, call, result);
                    }
                    Outcome::InDoubt if !call.repeats => {
                        let deposed = NoAnswer::Deposed { shard: call.shard };
                        self.end_forwarded(shared, now, call, Err(deposed));
                    }
                    outcome => {
                        call.in_doubt |= outcome == Outcome::InDoubt;
                        self.forwarded.pause(call, now);
                    }
                }
            }
            News::Unsent(node, number) => {
                self.forwarded.note_down(node);
                if let Some(call) = self.forwarded.take(number) {
                    self.forwarded.hold(call);
                }
            }
            News::Opened(node) => self.forwarded.note_up(node, now),
            News::Closed(node) => {
                self.forwarded.note_down(node);
                for call in self.forwarded.take_back(now, |_, of| of == node) {
                    let deposed = NoAnswer::Deposed { shard: call.shard };
                    self.end_forwarded(shared, now, call, Err(deposed));
                }
            }
        }
    }

    /// Follows routes that have changed: calls go on to the new primaries, and stale reads are bounded by the dials.
    pub(super) fn follow_routes(&mut self, now: Time, routes: Arc<Routes>) {
        let moved = |call: &Forwarded<Asker<E>>, node| {
            // One that may not be repeated still waits for the answer of the old one.
            call.repeats && primary_node(&routes, call.shard) != Some(node)
        };
        let ends = self.forwarded.take_back(now, moved);
        assert!(ends.is_empty(), "only those that may be repeated were taken back");
        self.forwarded.wake(now, |_| true);
        for slot in self.shards.iter_mut().filter(|slot| slot.is_replicated) {
            if let Some(route) = routes.get(&slot.id) {
                slot.replica.follow_dial(route.max_lag);
            }
        }
        self.routes = routes;
    }

    /// Lets the forwarded calls of a shard go on that this node leads from now on.
    pub(super) fn call_forwarded_back(&mut self, now: Time, shard: ShardId) {
        self.forwarded.wake(now, |of| of == shard);
    }

    /// Looks at the forwarded calls that are due, for a while; returns whether there were any.
    pub(super) fn look_at_forwarded(&mut self, shared: &Shared<E>, now: Time) -> bool {
        if self.forwarded.due().is_none_or(|at| at > now) {
            return false;
        }
        let until = self.begin_slice(shared);
        while let Some(call) = self.forwarded.take_due(now) {
            self.send_forwarded(shared, now, call);
            if Self::is_slice_over(shared, until) {
                break;
            }
        }
        true
    }
}

fn primary_node(routes: &Routes, shard: ShardId) -> Option<NodeId> {
    routes.get(&shard).and_then(|route| route.primary_node())
}
