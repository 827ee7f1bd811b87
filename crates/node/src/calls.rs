//! The clients' calls that wait for their answer at a worker.

use crate::reply::ReplyTo;
use stead_core::calls::Answer;
use stead_core::ids::{CallToken, ShardId, Time};
use stead_core::shard::Input;

/// Number of overdue calls that are ended before the worker does other work again.
const OVERDUE_BATCH: usize = 1024;
/// Maximum number of calls that one search for overdue ones examines.
const OVERDUE_LOOK: usize = 16_384;

/// The token of an input whose answer no client waits for.
pub(crate) const NO_CALL: CallToken = CallToken(u64::MAX);

/// The calls that wait for their answer, by token.
pub(crate) struct Calls<C> {
    slots: Vec<(u32, Option<PendingCall<C>>)>,
    free: Vec<u32>,
    /// The generation of further slots: no token of a released slot names a call.
    generation: u32,
    /// The slot at which the next search for overdue calls begins.
    looked: usize,
    /// Bytes of the current command, in the account of memory; the call that it opens takes them over.
    pub(crate) command_bytes: usize,
}

/// A call that waits for its answer.
pub(crate) struct PendingCall<C> {
    pub(crate) reply_to: ReplyTo<C>,
    /// Its bytes in the account of memory.
    pub(crate) bytes: usize,
    /// The input to repeat, if its shard cannot accept it yet.
    pub(crate) again: Option<(ShardId, Input)>,
    /// The refusal after which it waits to be repeated.
    pub(crate) refused: Option<Answer>,
}

impl<C> Default for Calls<C> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), generation: 0, looked: 0, command_bytes: 0 }
    }
}

impl<C> Calls<C> {
    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Returns the token of the next call.
    pub(crate) fn next_token(&mut self) -> CallToken {
        if self.free.is_empty() {
            self.free.push(self.slots.len() as u32);
            self.slots.push((self.generation, None));
        }
        let at = *self.free.last().expect("one was pushed");
        token(self.slots[at as usize].0, at)
    }

    /// Releases the memory of a burst of calls once it is over.
    pub(crate) fn shrink(&mut self) {
        const KEPT: usize = 1024;
        if self.slots.capacity() > KEPT && self.is_empty() {
            let last = self.slots.drain(..).map(|(generation, _)| generation).max();
            self.generation = next_generation(last.unwrap_or(self.generation));
            self.looked = 0;
            self.slots.shrink_to(KEPT);
            self.free.clear();
            self.free.shrink_to(KEPT);
        }
    }

    /// Adds a call, and returns its token: [`Self::next_token`].
    pub(crate) fn open(&mut self, reply_to: ReplyTo<C>, again: Option<(ShardId, Input)>) -> CallToken {
        let token = self.next_token();
        let at = self.free.pop().expect("the next token is that of a free slot");
        let bytes = std::mem::take(&mut self.command_bytes);
        self.slots[at as usize].1 = Some(PendingCall { reply_to, bytes, again, refused: None });
        token
    }

    /// Returns the call of a token, which names it only until it is closed.
    pub(crate) fn find(&mut self, token: CallToken) -> Option<&mut Option<PendingCall<C>>> {
        let (generation, slot) = self.slots.get_mut(slot_of(token))?;
        (u64::from(*generation) == token.0 >> 32).then_some(slot)
    }

    pub(crate) fn close(&mut self, token: CallToken) -> Option<PendingCall<C>> {
        let call = self.find(token)?.take()?;
        let at = slot_of(token);
        self.slots[at].0 = next_generation(self.slots[at].0);
        self.free.push(at as u32);
        Some(call)
    }

    /// Closes overdue calls, as far as one search goes; returns them, and whether all calls have been examined since
    /// the first search.
    pub(crate) fn close_overdue(&mut self, now: Time) -> (Vec<PendingCall<C>>, bool) {
        let until = self.slots.len().min(self.looked + OVERDUE_LOOK);
        let mut overdue = Vec::new();
        while self.looked < until && overdue.len() < OVERDUE_BATCH {
            let (generation, slot) = &self.slots[self.looked];
            if slot.as_ref().is_some_and(|call| call.reply_to.deadline <= now) {
                let token = token(*generation, self.looked as u32);
                overdue.extend(self.close(token));
            }
            self.looked += 1;
        }
        let is_through = self.looked >= self.slots.len();
        if is_through {
            self.looked = 0;
        }
        (overdue, is_through)
    }

    /// Closes the calls of a shard, and returns them.
    pub(crate) fn close_of(&mut self, shard: ShardId) -> Vec<PendingCall<C>> {
        let is_of = |call: &PendingCall<C>| call.again.as_ref().is_some_and(|(of, _)| *of == shard);
        let calls = (0..).zip(&self.slots);
        let of_shard = calls.filter(|(_, (_, call))| call.as_ref().is_some_and(is_of));
        let tokens: Vec<CallToken> = of_shard.map(|(at, (generation, _))| token(*generation, at)).collect();
        tokens.into_iter().filter_map(|token| self.close(token)).collect()
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = PendingCall<C>> {
        self.free.clear();
        self.slots.drain(..).filter_map(|(_, slot)| slot)
    }
}

/// Returns the next generation; the last one is skipped, because it would create [`NO_CALL`].
/// The token of the call in a slot: the slot's generation, and its number.
fn token(generation: u32, slot: u32) -> CallToken {
    CallToken(u64::from(generation) << 32 | u64::from(slot))
}

/// Returns the slot of a token.
fn slot_of(token: CallToken) -> usize {
    (token.0 & u64::from(u32::MAX)) as usize
}

fn next_generation(generation: u32) -> u32 {
    (generation + 1) % (u32::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn reply_to() -> ReplyTo<()> {
        ReplyTo { caller: (), deadline: Time(1), timeout: Duration::ZERO }
    }

    #[test]
    fn a_rush_of_calls_leaves_no_memory_and_no_token_names_another_call() {
        let mut calls = Calls::default();
        let rush: Vec<CallToken> = (0..5000).map(|_| calls.open(reply_to(), None)).collect();
        calls.shrink();
        assert!(calls.slots.capacity() >= 5000, "all of them wait");
        for (at, token) in rush.iter().enumerate() {
            calls.command_bytes = at;
            assert!(calls.close(*token).is_some());
        }
        calls.shrink();
        assert!(calls.is_empty() && calls.slots.capacity() <= 1024 && calls.free.capacity() <= 1024);
        for _ in 0..5000 {
            let token = calls.open(reply_to(), None);
            assert!(!rush.contains(&token));
        }
        assert!(rush.iter().all(|token| calls.close(*token).is_none()));
    }

    #[test]
    fn a_look_for_overdue_calls_goes_on_where_the_last_one_ended() {
        let mut calls = Calls::default();
        let tokens: Vec<CallToken> = (0..40_000).map(|_| calls.open(reply_to(), None)).collect();
        assert!(calls.close_overdue(Time(0)).0.is_empty());
        assert_eq!(calls.looked, OVERDUE_LOOK);
        let (mut closed, mut looks) = (0, 0);
        while !calls.is_empty() {
            let (overdue, _) = calls.close_overdue(Time(1));
            assert!(overdue.len() <= OVERDUE_BATCH);
            closed += overdue.len();
            looks += 1;
        }
        assert_eq!(closed, tokens.len());
        assert!(looks <= 40_000 / OVERDUE_BATCH + 6, "{looks} looks");
    }
}
