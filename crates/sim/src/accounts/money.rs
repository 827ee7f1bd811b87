//! The money of accounts: none appears or vanishes.

use super::op::{Account, Op};
use std::collections::BTreeMap;
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{Index, ShardId};
use stead_core::record::{DeadLetter, Kind, Pending, RecordKey, TaskRecord, TimerRecord, decode_value};
use stead_core::state::State;

/// The money that is not in the sum of accounts and messages (invariant 11).
#[derive(Default)]
pub(super) struct Purse {
    /// The sum at the beginning of the cluster.
    pub(super) base: i64,
    /// The money in each dead letter.
    pub(super) letters: BTreeMap<(ShardId, Index), i64>,
    /// The money of dropped dead letters and deleted processes, with the entry that dropped each.
    pub(super) dropped: Vec<(ShardId, Index, i64)>,
}

impl Purse {
    pub(super) fn of(states: &[State]) -> Self {
        let mut purse = Self { base: money_of_cut(states).unwrap_or_default(), ..Self::default() };
        for state in states {
            for (key, value) in state.records().iter().filter(|(key, _)| key[0] == Kind::DeadLetter as u8) {
                let number = RecordKey::from_bytes(key).and_then(|key| key.number());
                if let (Some(number), Ok(money)) = (number, money_of_letter(value)) {
                    purse.letters.insert((state.shard(), Index(number)), money);
                }
            }
        }
        purse
    }

    pub(super) fn committed(&mut self, shard: ShardId, entry: &Entry) -> Result<(), String> {
        for write in entry.writes.iter().filter(|write| write.key.kind() == Kind::DeadLetter) {
            if let (Some(number), Some(value)) = (write.key.number(), &write.value) {
                self.letters.insert((shard, Index(number)), money_of_letter(value)?);
            }
        }
        if let Cause::Drop { letter } = entry.cause {
            let money = self.letters.remove(&(shard, letter));
            let money =
                money.ok_or_else(|| format!("7: shard {shard}: dead letter {letter} is deleted twice"))?;
            self.dropped.push((shard, entry.index, money));
        }
        Ok(())
    }

    pub(super) fn dropped_before(&self, cut: &[State]) -> i64 {
        let of = |shard: &ShardId| cut.iter().find(|state| state.shard() == *shard);
        let before = self
            .dropped
            .iter()
            .filter(|(shard, index, _)| of(shard).is_some_and(|state| *index <= state.position().index));
        before.map(|(_, _, money)| money).sum()
    }
}

/// Returns the money in the shards and between them, as the difference from the beginning.
pub(super) fn money_of_cut(cut: &[State]) -> Result<i64, String> {
    let mut sum = 0;
    for state in cut {
        sum += money_of_state(state)?;
        for (to, outbox) in state.outboxes().iter() {
            let receiver = cut.iter().find(|s| s.shard() == to);
            let received =
                receiver.and_then(|s| s.received().get(state.shard())).copied().unwrap_or_default();
            for message in outbox.messages.iter().filter(|m| m.seq > received) {
                sum += money_of(&message.payload)?;
            }
        }
    }
    Ok(sum)
}

/// Returns the money in the record of an account, timer or task; 0 for any other record.
pub(super) fn money_of_record(key: &RecordKey, value: &[u8]) -> Result<i64, String> {
    let bad = |e: minicbor::decode::Error| format!("16: cannot read {key:?}: {e}");
    Ok(match key.kind() {
        Kind::Process => decode_value::<Account>(value).map_err(bad)?.balance - Account::INITIAL,
        Kind::Timer => money_of(&decode_value::<TimerRecord>(value).map_err(bad)?.payload)?,
        Kind::Task => money_of(&decode_value::<TaskRecord>(value).map_err(bad)?.state)?,
        _ => 0,
    })
}

/// Returns the money in a shard, as the difference from the beginning.
pub(super) fn money_of_state(state: &State) -> Result<i64, String> {
    let mut sum = 0;
    for (key, value) in state.records().iter() {
        let bad =
            |e: minicbor::decode::Error| format!("16: shard {}: cannot read a record: {e}", state.shard());
        match Kind::from_number(key[0]) {
            Some(Kind::Process) => {
                sum += decode_value::<Account>(value).map_err(bad)?.balance - Account::INITIAL
            }
            Some(Kind::Timer) => sum += money_of(&decode_value::<TimerRecord>(value).map_err(bad)?.payload)?,
            Some(Kind::Task) => sum += money_of(&decode_value::<TaskRecord>(value).map_err(bad)?.state)?,
            Some(Kind::DeadLetter) => sum += money_of_letter(value)?,
            _ => {}
        }
    }
    Ok(sum)
}

pub(super) fn money_of_letter(value: &[u8]) -> Result<i64, String> {
    let letter: DeadLetter =
        decode_value(value).map_err(|e| format!("16: cannot read a dead letter: {e}"))?;
    // A request that was given up moved no money.
    // Nor did a payload that was too large for its letter: no payment is.
    if matches!(letter.cause, Pending::Request { .. } | Pending::Call { .. }) || letter.payload.is_empty() {
        Ok(0)
    } else {
        money_of(&letter.payload)
    }
}

pub(super) fn money_of(payload: &[u8]) -> Result<i64, String> {
    let op: Op = decode_value(payload).map_err(|e| format!("16: cannot read a payload: {e}"))?;
    Ok(match op {
        Op::Credit { amount, .. } | Op::Working { amount, .. } | Op::Poison { amount, .. } => amount,
        _ => 0,
    })
}
