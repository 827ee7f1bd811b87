//! Who may be given up for ending the process: an account of what had begun whenever the process ended, kept by the world
//! and not by the code that it checks.
//!
//! A cause is charged for an end that it made itself, and for one from outside, or made by a cause that was not known yet,
//! that met it: while it was tried alone, or its step ran. A cause is known from its third end on that it makes in a life which
//! suspects something: by the first nothing is suspected of it, and by the second it is one of a group. What is given up must have been charged as often as it may be tried;
//! what merely stood beside a known cause never has.

use crate::model::hash_call;
use crate::violation::Violation;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{ShardId, TaskId};
use stead_core::record::{AttemptRecord, DeadLetter, Kind, RecordKey, TaskRecord, Waiting, decode_value};

/// How a dead letter's reason begins that was made of what ends the process.
const ENDED: &str = "the process ended";
/// Ends by one cause until it has to be tried alone.
const UNKNOWN_ENDS: u32 = 2;

/// What began in this life, and the charges of all lives.
#[derive(Default)]
pub(crate) struct Blame {
    /// The call that began last.
    last: Option<u64>,
    /// This life follows one that ended in order, so that it suspects nothing.
    trusted: bool,
    /// Steps that run.
    steps: BTreeMap<(ShardId, TaskId, u64), u64>,
    /// Attempts of this life that count, but for those at steps.
    alone: BTreeSet<(ShardId, RecordKey)>,
    /// By call, how often it has ended the process, and how often an end met it while its step ran.
    ends: BTreeMap<u64, u32>,
    /// Of these, the ends of lives that suspected something.
    suspected_ends: BTreeMap<u64, u32>,
    met_steps: BTreeMap<u64, u32>,
    met: BTreeMap<(ShardId, RecordKey), u32>,
}

impl Blame {
    pub(crate) fn life_begins(&mut self, trusted: bool) {
        self.trusted = trusted;
    }

    /// A handler begins.
    pub(crate) fn handler_begins(&mut self, call: u64) {
        self.last = Some(call);
    }

    /// A thread begins a step.
    pub(crate) fn step_begins(&mut self, shard: ShardId, id: TaskId, task: &TaskRecord) {
        self.steps.insert((shard, id, task.step), hash_call(&task.process, &task.state));
    }

    /// The step comes to what may end the process.
    pub(crate) fn step_runs(&mut self, task: &TaskRecord) {
        self.last = Some(hash_call(&task.process, &task.state));
    }

    /// The life ends, by what began last or from outside. `waits` says whether an attempt is still there, `runs` whether a
    /// step has no entry.
    pub(crate) fn life_ends(
        &mut self,
        by_itself: bool,
        waits: impl Fn(ShardId, &RecordKey) -> bool,
        runs: impl Fn(ShardId, TaskId, u64) -> bool,
    ) {
        let killer = self.last.take().filter(|_| by_itself);
        let known = killer.is_some_and(|killer| {
            *self.ends.entry(killer).or_default() += 1;
            let suspected = self.suspected_ends.entry(killer).or_default();
            *suspected += u32::from(!self.trusted);
            *suspected > UNKNOWN_ENDS
        });
        let alone = std::mem::take(&mut self.alone);
        let steps = std::mem::take(&mut self.steps);
        if known {
            return;
        }
        for (shard, key) in alone.into_iter().filter(|(shard, key)| waits(*shard, key)) {
            *self.met.entry((shard, key)).or_default() += 1;
        }
        for ((shard, id, step), call) in steps {
            if runs(shard, id, step) && killer != Some(call) {
                *self.met_steps.entry(call).or_default() += 1;
            }
        }
    }

    /// An entry is appended: notes attempts that count, and holds what gives something up against the charges.
    pub(crate) fn entry(&mut self, shard: ShardId, entry: &Entry, max: u32) -> Result<(), Violation> {
        for write in entry.writes.iter().filter(|write| write.key.kind() == Kind::Attempt) {
            let record = write.value.as_ref().and_then(|value| decode_value::<AttemptRecord>(value).ok());
            if entry.cause == Cause::Attempt && record.is_some_and(|record| record.count > 0) {
                self.alone.insert((shard, write.key.clone()));
            }
        }
        self.check(shard, entry, max)
    }

    fn check(&self, shard: ShardId, entry: &Entry, max: u32) -> Result<(), Violation> {
        let Cause::DeadLetter { cause } = &entry.cause else { return Ok(()) };
        if matches!(cause, Waiting::DeadLetter { .. }) {
            return Ok(());
        }
        let letters = entry.writes.iter().filter(|write| write.key.kind() == Kind::DeadLetter);
        let letters = letters.filter_map(|write| write.value.as_ref());
        for letter in letters.filter_map(|value| decode_value::<DeadLetter>(value).ok()) {
            // A payload that was too large is gone from its letter.
            if !letter.reason.starts_with(ENDED) || letter.payload.is_empty() {
                continue;
            }
            let call = hash_call(&letter.process, &letter.payload);
            let of = |counts: &BTreeMap<u64, u32>| counts.get(&call).copied().unwrap_or(0);
            let met = match cause {
                Waiting::Task { .. } => of(&self.met_steps),
                _ => self.met.get(&(shard, RecordKey::attempt(cause))).copied().unwrap_or(0),
            };
            let charged = of(&self.ends) + met;
            if charged < max {
                let index = entry.index;
                let what = format!(
                    "shard {shard}: entry {index} gives {cause:?} up, which is charged {charged} of {max} times"
                );
                return Err(Violation::new(17, what));
            }
        }
        Ok(())
    }
}
