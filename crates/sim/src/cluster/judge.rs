//! The judgement on answers: what they show is committed, or was answered early by an asynchronous epoch and is committed later, or
//! announced as lost.

use super::env::number_in;
use super::model::Model;
use crate::violation::Violation;
use std::collections::BTreeMap;
use stead_core::calls::{Answer, Lost, Refusal};
use stead_core::ids::{Index, Micros, ShardId};
use stead_core::record::DeadLetter;
use stead_core::replication::table::LogPoint;

/// An answer whose last entry may still be lost: it was not committed when the answer left, or is of a relaxed epoch.
#[derive(Clone, Debug)]
pub(super) struct Early {
    shard: ShardId,
    point: LogPoint,
    process: String,
    /// The number of the request; `None` for a read.
    number: Option<u32>,
    /// The place in the list that was answered, or the length that the read saw.
    count: u32,
}

/// The answers of a process before a call began: its own shows no less, but for losses.
#[derive(Clone, Debug, Default)]
pub(super) struct Floor {
    committed: u32,
    early: Vec<(LogPoint, u32)>,
}

/// An answer that a client has got.
pub(super) struct Answered {
    pub(super) shard: ShardId,
    pub(super) process: String,
    /// The last entry that it includes.
    pub(super) point: LogPoint,
    pub(super) number: Option<u32>,
    pub(super) count: u32,
}

/// The answers that clients have got.
#[derive(Default)]
pub(super) struct Judge {
    /// By process, the greatest number of steps that an answer included that is committed.
    answered: BTreeMap<String, u32>,
    early: Vec<Early>,
    /// By shard, the greatest number of dead letters that was shown.
    letters: BTreeMap<ShardId, usize>,
    /// By process, what had been answered by a time, ascending.
    floors: BTreeMap<String, Vec<(u64, Floor)>>,
    /// Answers that were lost, and announced.
    pub(super) lost: u64,
    /// All answers that left early.
    pub(super) left_early: u64,
    /// The greatest age that the dials have allowed a stale read so far.
    pub(super) max_lag: Micros,
}

impl Model {
    /// Returns what was answered of a process.
    pub(super) fn floor(&self, process: &str) -> Floor {
        let of = self.judge.early.iter().filter(|early| early.process == process);
        Floor {
            committed: self.judge.answered.get(process).copied().unwrap_or_default(),
            early: of.map(|early| (early.point, early.count)).collect(),
        }
    }

    /// Returns the least number of steps that a call has to show that began at a floor.
    fn least(&self, shard: ShardId, floor: &Floor) -> u32 {
        let kept = floor.early.iter().filter(|(point, _)| !self.has_lost(shard, *point));
        kept.map(|(_, count)| *count).chain([floor.committed]).max().unwrap_or_default()
    }

    fn note_floor(&mut self, now: u64, process: &str) {
        let floor = self.floor(process);
        self.judge.floors.entry(process.to_owned()).or_default().push((now, floor));
    }

    /// Returns the number of steps of its process that an answer includes. What is not committed is of a run without deletions.
    fn steps_of(&self, answered: &Answered) -> u32 {
        let Answered { shard, process, point, number, count } = answered;
        let found = match number {
            Some(number) => self.place_of(process, *number).map(|(steps, _)| steps),
            None if self.is_committed(*shard, *point) => Some(self.steps_at(process, point.index)),
            None => None,
        };
        found.unwrap_or(*count)
    }

    fn is_committed(&self, shard: ShardId, point: LogPoint) -> bool {
        let epoch = self.committed_epoch(shard, point.index);
        epoch.is_some_and(|epoch| epoch == point.epoch || point.index == Index(0))
    }

    /// Notes an answer whose last entry is committed, with the number of steps that it includes.
    fn note_answered(&mut self, answer: Early, steps: u32) {
        if self.is_relaxed(answer.shard, answer.point.epoch) {
            self.judge.early.push(answer);
        } else {
            let most = self.judge.answered.entry(answer.process).or_default();
            *most = steps.max(*most);
        }
    }

    /// Judges an answer that has come.
    pub(super) fn judge(&mut self, now: u64, answered: Answered, floor: &Floor) -> Result<(), Violation> {
        let steps = self.steps_of(&answered);
        let Answered { shard, process, point, number, count } = answered;
        let least = self.least(shard, floor);
        let what = |text: &str| {
            format!(
                "{} of {process}, as of entry {point:?} of shard {shard}: {text}",
                match number {
                    Some(number) => format!("request {number} became {count}"),
                    None => format!("a read saw {count}"),
                }
            )
        };
        let is_behind = if number.is_some() { steps <= least } else { steps < least };
        if is_behind {
            let what = what(&format!("it includes {steps} steps, and {least} were answered before"));
            return Err(Violation::new(6, what));
        }
        match self.committed_epoch(shard, point.index) {
            Some(_) if self.is_committed(shard, point) => {
                match number {
                    Some(number) if self.place_of(&process, number) != Some((steps, count)) => {
                        return Err(Violation::new(5, what("another request is committed there")));
                    }
                    None if self.count_at(&process, point.index) != count => {
                        let is = self.count_at(&process, point.index);
                        return Err(Violation::new(5, what(&format!("{is} is committed"))));
                    }
                    _ => {}
                }
                self.note_answered(Early { shard, point, process: process.clone(), number, count }, steps);
            }
            // It left before its loss was known.
            _ if self.has_lost(shard, point) => {
                self.judge.left_early += 1;
                self.judge.lost += 1;
            }
            Some(epoch) => {
                return Err(Violation::new(4, what(&format!("epoch {epoch} took its place, unannounced"))));
            }
            None if !self.is_early(shard, point.epoch) => {
                return Err(Violation::new(5, what("it is not committed")));
            }
            None => {
                self.judge.left_early += 1;
                self.judge.early.push(Early { shard, point, process: process.clone(), number, count });
            }
        }
        self.note_floor(now, &process);
        Ok(())
    }

    /// Judges what an operator has seen of a process: as a read, and with the content of its list.
    pub(super) fn judge_look(
        &mut self,
        now: u64,
        (shard, process, point): (ShardId, String, LogPoint),
        list: &[u8],
        floor: &Floor,
    ) -> Result<(), Violation> {
        let shown: Vec<u32> = list.chunks(4).filter_map(number_in).collect();
        if self.is_committed(shard, point) && shown != self.list_at(&process, point.index) {
            let what =
                format!("{process} is shown as {shown:?} at entry {point:?} of shard {shard}, and is not");
            return Err(Violation::new(5, what));
        }
        let (number, count) = (None, shown.len() as u32);
        self.judge(now, Answered { shard, process, point, number, count }, floor)
    }

    /// Returns the greatest number of a shard's dead letters that was shown.
    pub(super) fn letters_shown(&self, shard: ShardId) -> usize {
        self.judge.letters.get(&shard).copied().unwrap_or_default()
    }

    /// Judges a list of all dead letters of a shard. `least` were shown before it was asked for.
    pub(super) fn judge_letters(
        &mut self,
        shard: ShardId,
        point: LogPoint,
        found: &[(Index, DeadLetter)],
        least: usize,
    ) -> Result<(), Violation> {
        let bad = |number, what: &str| {
            let shown: Vec<Index> = found.iter().map(|(index, _)| *index).collect();
            let what = format!("dead letters {shown:?} at entry {point:?} of shard {shard}: {what}");
            Err(Violation::new(number, what))
        };
        if found.len() < least {
            return bad(6, &format!("{least} were shown before"));
        }
        if !self.is_committed(shard, point) {
            let may_be_early = self.is_early(shard, point.epoch) || self.has_lost(shard, point);
            return if may_be_early { Ok(()) } else { bad(5, "the entry is not committed") };
        }
        let shown = found.iter().map(|(index, letter)| (*index, number_in(&letter.payload)));
        let expected = self.letters_at(shard, point.index);
        if !shown.eq(expected.iter().map(|(index, number)| (*index, Some(*number)))) {
            return bad(5, &format!("{expected:?} are committed"));
        }
        let most = self.judge.letters.entry(shard).or_default();
        *most = found.len().max(*most);
        Ok(())
    }

    /// Judges the answer to a deletion: its entry deleted the list, or there was none.
    pub(super) fn judge_deletion(
        &mut self,
        now: u64,
        (shard, process, point): (ShardId, String, LogPoint),
        deleted: u64,
        floor: &Floor,
    ) -> Result<(), Violation> {
        let is_right = deleted == 0 || deleted == 1 && self.is_deletion(&process, point.index);
        if !is_right {
            let what = format!(
                "the deletion of {process} is answered {deleted} at entry {point:?} of shard {shard}"
            );
            return Err(Violation::new(7, what));
        }
        let (number, count) = (None, 0);
        self.judge(now, Answered { shard, process, point, number, count }, floor)
    }

    /// Judges whether an answer reports the loss of what its client had seen of the shard when it sent the call: its primary does so if
    /// the record of its epoch names that loss, and only then. Returns whether it does.
    pub(super) fn judge_report(
        &self,
        shard: ShardId,
        seen: Option<LogPoint>,
        answer: &Answer,
    ) -> Result<bool, Violation> {
        let lost = seen.and_then(|seen| Some((seen, self.kept_before(shard, seen, answer.epoch)?)));
        let what = |text: &str| {
            let (epoch, index) = (answer.epoch, answer.index);
            format!(
                "the client of shard {shard} has seen {seen:?}, and is answered at {index} of epoch {epoch}: {text}"
            )
        };
        match (&answer.result, lost) {
            (Err(Refusal::Lost(report)), Some((seen, kept))) => {
                let Lost { now, .. } = **report;
                let is_right = (report.shard, report.seen, report.kept) == (shard, seen, kept);
                if !is_right
                    || now.epoch != answer.epoch
                    || self.kept_before(shard, now, answer.epoch).is_some()
                {
                    return Err(Violation::new(4, what(&format!("{report:?} is not what was lost"))));
                }
                Ok(true)
            }
            (Err(Refusal::Lost(_)), None) => Err(Violation::new(4, what("a loss is reported that is none"))),
            // One with index 0 saw nothing.
            (_, Some((_, kept))) if answer.index > Index(0) => {
                Err(Violation::new(4, what(&format!("what is behind {kept} is lost, and not reported"))))
            }
            _ => Ok(false),
        }
    }

    /// Judges a stale read that was sent at a time: it shows the state at a commit index, and all that was answered before its age.
    pub(super) fn judge_stale(
        &self,
        (shard, process, point, count): (ShardId, &str, LogPoint, u32),
        sent: u64,
        staleness: Option<Micros>,
        asked: Option<Micros>,
    ) -> Result<(), Violation> {
        let what = |text: &str| {
            format!("a stale read of {process} saw {count}, as of entry {point:?} of shard {shard}: {text}")
        };
        let max_lag = asked.map_or(self.judge.max_lag, |asked| asked.min(self.judge.max_lag));
        let Some(staleness) = staleness.filter(|staleness| *staleness <= max_lag) else {
            return Err(Violation::new(17, what(&format!("its age is {staleness:?} of {max_lag}"))));
        };
        let is_kept = self.committed_epoch(shard, point.index) == Some(point.epoch);
        if !is_kept && self.is_relaxed(shard, point.epoch) {
            // Power cuts took what it shows, or will have.
            return Ok(());
        }
        let is_committed = point.index == Index(0) || self.committed_epoch(shard, point.index).is_some();
        if !is_committed || self.count_at(process, point.index) != count {
            return Err(Violation::new(5, what("another state is committed, or none")));
        }
        let as_of = sent.saturating_sub(staleness.0);
        let floors = self.judge.floors.get(process).map_or(&[][..], |floors| floors);
        let before = floors.partition_point(|(at, _)| *at < as_of);
        let least = before.checked_sub(1).map_or(0, |at| self.least(shard, &floors[at].1));
        if self.steps_at(process, point.index) < least {
            return Err(Violation::new(
                6,
                what(&format!("{least} was answered before, its age is {staleness}")),
            ));
        }
        Ok(())
    }

    /// Judges those answers that saw the entries up to this one, which is newly committed.
    pub(super) fn check_survivor(&mut self, shard: ShardId, point: LogPoint) -> Result<(), Violation> {
        if self.has_lost(shard, point) {
            let what = format!("entry {point:?} of shard {shard} is committed, and was announced as lost");
            return Err(Violation::new(4, what));
        }
        let is_it = |early: &mut Early| early.shard == shard && early.point.index == point.index;
        let seen: Vec<Early> = self.judge.early.extract_if(.., is_it).collect();
        for early in seen {
            let Early { point: answered, process, number, count, .. } = early;
            if answered == point {
                let is_right = match number {
                    Some(number) => self.place_of(&process, number).is_some_and(|(_, place)| place == count),
                    None => self.count_at(&process, point.index) == count,
                };
                if !is_right {
                    let what =
                        format!("{number:?} was answered as {count} of {process}, and is not at {point:?}");
                    return Err(Violation::new(4, what));
                }
                // What left early is of a run without deletions, in which each step is one of the list.
                self.note_answered(Early { shard, point, process, number, count }, count);
            } else if self.has_lost(shard, answered) {
                self.judge.lost += 1;
            } else {
                let what = format!("{answered:?} of shard {shard} was answered and is lost, unannounced");
                return Err(Violation::new(4, what));
            }
        }
        Ok(())
    }

    /// Whether all that was answered early is committed, or announced as lost.
    pub(super) fn are_answers_settled(&self) -> bool {
        let is_there =
            |early: &Early| self.committed_epoch(early.shard, early.point.index) == Some(early.point.epoch);
        self.judge.early.iter().all(|early| is_there(early) || self.has_lost(early.shard, early.point))
    }
}
