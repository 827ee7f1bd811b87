//! The network between clients and node, and between shards: frames come late, twice, out of order, or not at all.

use super::{Event, Inside, Outcomes, World};
use crate::bug::Bug;
use crate::client::{Frame, Reaction};
use crate::marks::Mark;
use crate::profile::one_in;
use crate::workload::CallId;
use stead_core::calls::{Answer, Identity};
use stead_core::ids::{Colour, ShardId};
use stead_core::shard::Input;

impl World {
    pub(crate) fn keyed_age(&self) -> u64 {
        self.profile
            .all_settings()
            .map(|settings| settings.idempotency_ttl.half().0)
            .min()
            .expect("there are some")
    }

    pub(crate) fn client_acts(&mut self, client: usize) -> Outcomes {
        if self.calm {
            return Ok(());
        }
        let (window, now) = (self.profile.window, self.now);
        let call = self.clients.call(
            client,
            window,
            now,
            &mut self.rng,
            &self.topology,
            &mut *self.workload.borrow_mut(),
        );
        if let Some(id) = call {
            self.send_call(id);
        }
        let think = self.random(self.profile.think);
        self.at(think + 1, Event::Client(client));
        Ok(())
    }

    pub(crate) fn send_call(&mut self, id: CallId) {
        let keyed_age = self.keyed_age();
        let opening = self.clients.open_unawaited(id);
        if let Some(frame) = self.clients.send(id, self.now, keyed_age, &mut self.rng) {
            match opening {
                Some(opening) => self.transmit_behind(opening, frame),
                None => self.transmit(frame),
            }
            let retry = self.profile.retry + self.random(self.profile.retry);
            self.at(retry, Event::Retry(id, self.clients.tries(id)));
        }
    }

    /// Sends the opening of a session, and a request right behind it, as the client in the node's process does: the request takes
    /// the same way.
    fn transmit_behind(&mut self, opening: Frame, request: Frame) {
        let delay = self.random(self.profile.net_delay);
        self.at(delay, Event::Arrive(opening, self.now));
        self.transmit_in(delay, request);
    }

    /// Sends a client's frame to the node: late, lost or twice. A frame without an identity is sent at most once.
    pub(crate) fn transmit(&mut self, frame: Frame) {
        let delay = self.random(self.profile.net_delay);
        self.transmit_in(delay, frame);
    }

    fn transmit_in(&mut self, delay: u64, (shard, mut input): Frame) {
        let known = match &input {
            Input::Request(request) => !matches!(request.identity, Identity::None),
            _ => true,
        };
        if self.bug == Some(Bug::StaleQuery)
            && let Input::Query(query) = &input
        {
            self.queries.insert(query.token, query.process.to_string());
        }
        if let (Some(Bug::StripColours | Bug::StripRequestColours), Input::Request(request)) =
            (self.bug, &mut input)
        {
            request.colour = Colour(0);
        }
        if let (Some(Bug::ForgetBody), Input::Request(request)) = (self.bug, &mut input)
            && let Identity::Idempotency { body_hash, .. } = &mut request.identity
        {
            *body_hash = self.clients.body_hash(request.token).unwrap_or(*body_hash);
        }
        if one_in(&mut self.rng, self.profile.net_drop) {
            return;
        }
        if known && one_in(&mut self.rng, self.profile.net_again) {
            let later = self.random(self.profile.net_delay * 4);
            let mut again = input.clone();
            if let Input::Request(request) = &mut again {
                request.is_first = false;
                if self.bug == Some(Bug::ForgetIdentity) {
                    request.identity = Identity::None;
                }
            }
            self.at(delay + later, Event::Arrive((shard, again), self.now));
        }
        self.at(delay, Event::Arrive((shard, input), self.now));
    }

    pub(crate) fn client_hears(&mut self, answer: Answer) -> Outcomes {
        self.note(answer.token.0, &[]);
        let Reaction { send, done } =
            self.clients.answer(answer, &mut *self.workload.borrow_mut(), &mut self.marks)?;
        for id in send {
            self.send_call(id);
        }
        if let Some(id) = done
            && self.clients.may_ask_again(id)
            && one_in(&mut self.rng, 6)
        {
            let delay = self.random(self.profile.retry * 4);
            self.at(delay, Event::AskAgain(id));
        }
        Ok(())
    }

    /// Sends a frame on a channel between two shards.
    pub(crate) fn carry(&mut self, from: ShardId, to: ShardId, input: Input) {
        if one_in(&mut self.rng, self.profile.channel_drop) {
            self.marks.hit(Mark::FrameDropped);
            return;
        }
        let delay = self.random(self.profile.channel_delay);
        if one_in(&mut self.rng, self.profile.channel_again) {
            self.marks.hit(Mark::FrameAgain);
            let later = delay + self.random(self.profile.channel_delay * 4);
            self.inside(later, Inside::Input(to, input.clone()));
        }
        // Half of all frames keep their channel's order; the others overtake.
        let now = self.now;
        let keep = self.rng.bool();
        let node = self.node.as_mut().expect("only a living node has effects");
        let last = node.channels.entry((from, to)).or_default();
        let at = if keep { (*last).max(now + delay) } else { now + delay };
        *last = at.max(*last);
        self.inside(at - now, Inside::Input(to, input));
    }

    pub(crate) fn carry_answer(&mut self, mut answer: Answer) {
        if self.bug == Some(Bug::StaleQuery)
            && answer.result.is_ok()
            && let Some(process) = self.queries.remove(&answer.token)
        {
            match self.stale.get(&process) {
                Some(stale) if one_in(&mut self.rng, 2) => answer.result = stale.result.clone(),
                _ => drop(self.stale.insert(process, answer.clone())),
            }
        }
        if one_in(&mut self.rng, self.profile.net_drop) {
            return;
        }
        let delay = self.random(self.profile.net_delay);
        if one_in(&mut self.rng, self.profile.net_again) {
            let later = self.random(self.profile.net_delay * 4);
            self.at(delay + later, Event::Answer(answer.clone()));
        }
        self.at(delay, Event::Answer(answer));
    }
}
