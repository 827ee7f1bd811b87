//! Checks that only guilty causes are given up for ending the process: an account of the causes that had begun whenever
//! the process ended, kept by the world and not by the checked code.
//!
//! A cause is charged for an end of the process that it caused itself, and for one that came while it was tried alone,
//! or while its step ran: an end from outside, or one caused by a cause that was not tried alone. The latter may be any
//! cause without a known end so far, such as the message of a suspect whose entry was lost with it; a cause that was
//! running at an end must begin only alone. A cause that is given up must have been charged the maximum number of
//! times; one that merely ran beside a trial never has.

use crate::model::hash_call;
use crate::violation::Violation;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{Index, ShardId, StepNumber, TaskId};
use stead_core::record::{AttemptRecord, DeadLetter, Kind, Pending, RecordKey, TaskRecord, decode_value};
use stead_core::shard::Effect;

/// Start of the reason of a dead letter for a cause that ended the process.
const ENDED: &str = "the process ended";

/// The handler or step that ended the process.
pub(crate) struct Killer {
    shard: ShardId,
    /// Hash of the process and the payload.
    call: u64,
    began: Began,
}

enum Began {
    /// In an input that had already handled these attempts; their entries are lost with it.
    Handler {
        handled: Vec<RecordKey>,
    },
    Step {
        attempt: RecordKey,
    },
}

impl Killer {
    /// A handler whose entry would have had this index, in an input with these effects.
    pub(crate) fn handler(shard: ShardId, (at, call): (Index, u64), effects: &[Effect]) -> Self {
        let handled = effects.iter().filter_map(|effect| match effect {
            Effect::Append { index, bytes, .. } if *index < at => handled(&Entry::decode(bytes).ok()?),
            _ => None,
        });
        Self { shard, call, began: Began::Handler { handled: handled.collect() } }
    }

    pub(crate) fn step(shard: ShardId, id: TaskId, task: &TaskRecord) -> Self {
        let call = hash_call(&task.process, &task.state);
        let attempt = RecordKey::attempt(&Pending::Task { id, step: task.step });
        Self { shard, call, began: Began::Step { attempt } }
    }
}

/// The attempts of a life.
type Attempts = BTreeMap<(ShardId, RecordKey), Attempt>;

/// A logged attempt.
#[derive(Clone, Copy)]
struct Attempt {
    /// 0 in a group.
    count: u32,
    /// Its handler was not reached, or its step continues beside others. The entry that records this may be lost.
    is_taken_back: bool,
}

/// The attempts and steps of this life, and the charges of all lives.
#[derive(Default)]
pub(crate) struct Blame {
    /// Running steps.
    steps: BTreeMap<(ShardId, TaskId, StepNumber), u64>,
    attempts: Attempts,
    /// By call, the number of ends that it caused, and the number of ends while its step ran.
    ends: BTreeMap<u64, u32>,
    met_steps: BTreeMap<u64, u32>,
    /// By counting attempt, the number of ends that came during it; steps that had begun are not counted here.
    met: BTreeMap<(ShardId, RecordKey), u32>,
    /// Messages, timers and requests that had begun at an end and have not been handled since.
    suspects: BTreeSet<(ShardId, RecordKey)>,
}

impl Blame {
    /// Begins a life; `waits` returns whether an attempt has outlived the previous life.
    pub(crate) fn life_begins(&mut self, is_clean: bool, waits: impl Fn(ShardId, &RecordKey) -> bool) {
        self.suspects.retain(|(shard, key)| !is_clean && waits(*shard, key));
    }

    /// Notes that a thread begins a step.
    pub(crate) fn step_begins(&mut self, shard: ShardId, id: TaskId, task: &TaskRecord) {
        self.steps.insert((shard, id, task.step), hash_call(&task.process, &task.state));
    }

    /// Ends the life, by a killer or from outside. `waits` returns whether an attempt still exists, `runs` whether a
    /// step has no entry.
    pub(crate) fn life_ends(
        &mut self,
        killer: Option<Killer>,
        waits: impl Fn(ShardId, &RecordKey) -> bool,
        runs: impl Fn(ShardId, TaskId, StepNumber) -> bool,
    ) {
        let mut attempts = std::mem::take(&mut self.attempts);
        attempts.retain(|(shard, key), _| waits(*shard, key));
        let steps = std::mem::take(&mut self.steps);
        self.suspects.retain(|(shard, key)| waits(*shard, key));
        self.suspects.extend(attempts.keys().filter(|(_, key)| is_of_handler(key)).cloned());
        if let Some(killer) = &killer {
            *self.ends.entry(killer.call).or_default() += 1;
            if was_alone(killer, &attempts) {
                return;
            }
        }
        for &(shard, id, step) in steps.keys() {
            attempts.remove(&(shard, RecordKey::attempt(&Pending::Task { id, step })));
        }
        for (attempt, _) in attempts.into_iter().filter(|(_, attempt)| attempt.count > 0) {
            *self.met.entry(attempt).or_default() += 1;
        }
        for ((shard, id, step), call) in steps {
            if runs(shard, id, step) && killer.as_ref().is_none_or(|killer| killer.call != call) {
                *self.met_steps.entry(call).or_default() += 1;
            }
        }
    }

    /// Handles an appended entry: notes attempts, and compares each cause that is given up with its charges.
    pub(crate) fn entry(&mut self, shard: ShardId, entry: &Entry, max: u32) -> Result<(), Violation> {
        if let Some(key) = handled(entry) {
            self.suspects.remove(&(shard, key));
        }
        if entry.cause == Cause::Expire {
            self.suspects.retain(|(of, _)| *of != shard);
        }
        for write in entry.writes.iter().filter(|write| write.key.kind() == Kind::Attempt) {
            let attempt = (shard, write.key.clone());
            let record = write.value.as_ref().and_then(|value| decode_value::<AttemptRecord>(value).ok());
            let Some(record) = record.filter(|_| entry.cause == Cause::Attempt) else {
                self.suspects.remove(&attempt);
                continue;
            };
            let count = record.count;
            match self.attempts.get_mut(&attempt) {
                Some(before) if before.count > count => before.is_taken_back = true,
                Some(before) => *before = Attempt { count, is_taken_back: false },
                None if count == 0 && self.suspects.contains(&attempt) => {
                    let (index, key) = (entry.index, &write.key);
                    let what = format!(
                        "shard {shard}: entry {index} begins {key:?} in a group, which an end has met"
                    );
                    return Err(Violation::new(17, what));
                }
                None => drop(self.attempts.insert(attempt, Attempt { count, is_taken_back: false })),
            }
        }
        self.check(shard, entry, max)
    }

    fn check(&self, shard: ShardId, entry: &Entry, max: u32) -> Result<(), Violation> {
        let Cause::DeadLetter { cause } = &entry.cause else { return Ok(()) };
        if matches!(cause, Pending::DeadLetter { .. }) {
            return Ok(());
        }
        let letters = entry.writes.iter().filter(|write| write.key.kind() == Kind::DeadLetter);
        let letters = letters.filter_map(|write| write.value.as_ref());
        for letter in letters.filter_map(|value| decode_value::<DeadLetter>(value).ok()) {
            // A payload that was too large is missing in its letter.
            if !letter.reason.starts_with(ENDED) || letter.payload.is_empty() {
                continue;
            }
            let call = hash_call(&letter.process, &letter.payload);
            let of = |counts: &BTreeMap<u64, u32>| counts.get(&call).copied().unwrap_or(0);
            let met = self.met.get(&(shard, RecordKey::attempt(cause))).copied().unwrap_or(0);
            let met_steps = if let Pending::Task { .. } = cause { of(&self.met_steps) } else { 0 };
            let charged = of(&self.ends) + met + met_steps;
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

/// Whether the killer was tried alone. A handler tried alone has the only counting attempt of its shard.
fn was_alone(killer: &Killer, attempts: &Attempts) -> bool {
    let is_alone = |attempt: &Attempt| attempt.count > 0 && !attempt.is_taken_back;
    let mut alone =
        attempts.iter().filter(|((shard, _), attempt)| *shard == killer.shard && is_alone(attempt));
    match &killer.began {
        Began::Handler { handled } => alone.any(|((_, key), _)| is_of_handler(key) && !handled.contains(key)),
        Began::Step { attempt } => alone.any(|((_, key), _)| key == attempt),
    }
}

fn is_of_handler(attempt: &RecordKey) -> bool {
    attempt.is_attempt_at_handler() || attempt.is_attempt_at_request()
}

/// Returns the attempt at the cause that the entry's handler handled.
fn handled(entry: &Entry) -> Option<RecordKey> {
    let pending = match entry.cause {
        Cause::Suspected { content } => Some(Pending::Call { content }),
        _ => entry.cause.pending(),
    };
    let request = || Some(Pending::Request { identity: entry.cause.identity(&entry.process)? });
    pending.or_else(request).map(|pending| RecordKey::attempt(&pending))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_core::blob::Blob;
    use stead_core::entry::Write;
    use stead_core::ids::{Epoch, Seq, Time};
    use stead_core::key::Key;
    use stead_core::record::{Retry, encode_value};

    const SHARD: ShardId = ShardId(1);
    const OTHER: ShardId = ShardId(2);

    fn message(seq: u64) -> Pending {
        Pending::Message { from: ShardId(0), seq: Seq(seq) }
    }

    fn entry(cause: Cause, key: RecordKey, value: Blob) -> Entry {
        let writes = vec![Write { key, value: Some(value) }];
        let (index, epoch, time, process) = (Index(1), Epoch(1), Time(1), Key::none());
        Entry { index, epoch, time, cause, process, writes, sends: Vec::new(), reply: None, served: None }
    }

    fn attempt(pending: &Pending, count: u32) -> Entry {
        let record = AttemptRecord { count, expires: None, alone: Some(count) };
        entry(Cause::Attempt, RecordKey::attempt(pending), encode_value(&record))
    }

    fn given_up(cause: Pending) -> Entry {
        let (process, payload) = (Key::new("a").expect("a valid key"), Blob::from(&b"innocent"[..]));
        let letter = DeadLetter {
            cause,
            process,
            payload,
            sender: Key::none(),
            reason: ENDED.to_owned(),
            time: Time(1),
            retry: Some(Retry::Never),
        };
        entry(Cause::DeadLetter { cause }, RecordKey::dead_letter(Index(1)), encode_value(&letter))
    }

    /// Makes a handler of the other shard end the process.
    fn killer() -> Option<Killer> {
        Some(Killer::handler(OTHER, (Index(1), 7), &[]))
    }

    #[test]
    fn an_end_by_what_is_not_known_charges_what_is_tried_alone() {
        let mut blame = Blame::default();
        assert!(blame.entry(SHARD, &attempt(&message(1), 1), 1).is_ok());
        blame.life_ends(killer(), |_, _| true, |_, _, _| true);
        assert!(blame.entry(SHARD, &given_up(message(1)), 1).is_ok());
    }

    #[test]
    fn an_end_by_what_is_tried_alone_charges_nothing_else() {
        let mut blame = Blame::default();
        assert!(blame.entry(SHARD, &attempt(&message(1), 1), 1).is_ok());
        assert!(blame.entry(OTHER, &attempt(&message(2), 1), 1).is_ok());
        blame.life_ends(killer(), |_, _| true, |_, _, _| true);
        assert_eq!(blame.entry(SHARD, &given_up(message(1)), 1).map_err(|v| v.invariant), Err(17));
    }

    /// Found by seed 9005297: the entry that takes an attempt back may be lost with the life.
    #[test]
    fn an_attempt_that_is_taken_back_may_still_be_charged() {
        let mut blame = Blame::default();
        assert!(blame.entry(SHARD, &attempt(&message(1), 1), 1).is_ok());
        assert!(blame.entry(SHARD, &attempt(&message(1), 0), 1).is_ok());
        blame.life_ends(None, |_, _| true, |_, _, _| true);
        assert!(blame.entry(SHARD, &given_up(message(1)), 1).is_ok());
    }

    /// Found by seed 129005872: the process may end between a step's attempt and its begin.
    #[test]
    fn an_end_charges_a_step_that_is_about_to_begin_alone() {
        let task = Pending::Task { id: TaskId(3), step: StepNumber(2) };
        let mut blame = Blame::default();
        assert!(blame.entry(SHARD, &attempt(&task, 1), 1).is_ok());
        blame.life_ends(killer(), |_, _| true, |_, _, _| true);
        assert!(blame.entry(SHARD, &given_up(task), 1).is_ok());
    }

    #[test]
    fn what_an_end_has_met_begins_alone() {
        let mut blame = Blame::default();
        assert!(blame.entry(SHARD, &attempt(&message(1), 0), 1).is_ok());
        blame.life_ends(killer(), |_, _| true, |_, _, _| true);
        blame.life_begins(false, |_, _| true);
        assert_eq!(blame.entry(SHARD, &attempt(&message(1), 0), 1).map_err(|v| v.invariant), Err(17));
    }

    #[test]
    fn what_an_end_has_met_and_the_log_has_lost_is_not_known() {
        let mut blame = Blame::default();
        assert!(blame.entry(SHARD, &attempt(&message(1), 0), 1).is_ok());
        blame.life_ends(killer(), |_, _| true, |_, _, _| true);
        blame.life_begins(false, |_, _| false);
        assert!(blame.entry(SHARD, &attempt(&message(1), 0), 1).is_ok());
    }
}
