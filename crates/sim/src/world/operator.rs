//! The operator: requests retries and deletions of dead letters, twice, late and between crashes.

use super::{Event, Outcomes, World};
use crate::marks::Mark;
use crate::violation::Violation;
use stead_core::calls::{Answer, Refusal};
use stead_core::ids::{CallToken, Index, ShardId};
use stead_core::key::Key;
use stead_core::record::{Kind, RecordKey};
use stead_core::shard::{DeadLetterAction, Input, Shard};
use stead_core::state::State;

/// The bit of a token that marks an operator's request.
pub(crate) const OPERATOR: u64 = 1 << 62;
/// The bits of a token that marks an operator's deletion of a process.
pub(super) const DELETING: u64 = OPERATOR | 1 << 60;
/// Average number of events between two looks of the operator.
const LOOK_EVERY: u32 = 40;

/// A requested decision; a token names it.
pub(crate) type Decision = (ShardId, Index, DeadLetterAction);

/// A requested deletion of a process.
pub(super) struct Deletion {
    pub(super) shard: ShardId,
    pub(super) process: Key,
    pub(super) records: Vec<RecordKey>,
}

fn letters(state: &State) -> impl Iterator<Item = (ShardId, Index)> + '_ {
    let records = (state.dead_letters() > 0).then(|| state.records().iter());
    let keys = records.into_iter().flatten().filter(|(key, _)| key[0] == Kind::DeadLetter as u8);
    let number = |(key, _): (&[u8], _)| RecordKey::from_bytes(key).and_then(|key| key.number());
    keys.filter_map(number).map(|number| (state.shard(), Index(number)))
}

impl World {
    pub(crate) fn operator_acts(&mut self) {
        if self.operator.u32(..LOOK_EVERY) != 0 {
            return;
        }
        let Some(node) = &self.node else { return };
        let mut found: Vec<(ShardId, Index)> =
            node.shards().flat_map(|shard| letters(shard.state())).collect();
        if found.is_empty() {
            return;
        }
        // The order of the records is that of their hashes, which must not matter.
        found.sort_unstable();
        let (shard, letter) = found[self.operator.usize(..found.len())];
        let Some(action) = self.workload.borrow_mut().dead_letter_action(&mut self.operator) else { return };
        let token = CallToken(OPERATOR | self.decisions.len() as u64);
        self.decisions.push((shard, letter, action));
        // It may arrive in a later life, and twice.
        for _ in 0..self.operator.u8(1..=2) {
            let delay = self.operator.u64(..200_000);
            let input = Input::DeadLetter { token, letter, action };
            self.at(delay, Event::Arrive((shard, input), self.now));
        }
    }

    pub(crate) fn operator_hears(&mut self, answer: &Answer) -> Outcomes {
        if answer.token.0 & DELETING == DELETING {
            return self.deletion_heard(answer);
        }
        let (shard, letter, action) = self.decisions[(answer.token.0 & !OPERATOR) as usize];
        let key = RecordKey::dead_letter(letter);
        let bad = |what: &str| {
            let what = format!("shard {shard}: {action:?} of dead letter {letter} is answered, {what}");
            Err(Violation::new(7, what).into())
        };
        match &answer.result {
            Ok(_) => {
                self.marks.hit(match action {
                    DeadLetterAction::Retry => Mark::DeadLetterRetried,
                    DeadLetterAction::Drop => Mark::DeadLetterDropped,
                });
                if self.model.state(shard).has(&key) {
                    return bad("and it is still there");
                }
            }
            // A dead letter that was created after the request was handled may be missing.
            Err(Refusal::NoDeadLetter(_)) if letter <= answer.index => {
                let node = self.node.as_ref().expect("only a living node has effects");
                let is_there = |shard: &Shard| shard.state().records().get(key.as_bytes()).is_some();
                if node.shard(shard).is_some_and(is_there) {
                    return bad("but it was not found, and it is there");
                }
            }
            Err(Refusal::FailedAgain { .. }) => self.marks.hit(Mark::DeadLetterFailed),
            Err(_) => {}
        }
        Ok(())
    }
}
