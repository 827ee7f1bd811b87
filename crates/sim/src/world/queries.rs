//! Queries: each runs some time after its shard has captured the process, which changes meanwhile.

use super::{Outcomes, World};
use crate::marks::Mark;
use crate::model::Seen;
use crate::profile::one_in;
use crate::stage::{self, Answered, OpenCall};
use crate::violation::Violation;
use stead_core::calls::Refusal;
use stead_core::capture::{Capture, Reading};
use stead_core::ids::{Index, ShardId};
use stead_core::key::Key;
use stead_node::{NoAnswer, PartId};

/// The longest time for which a slow query runs, in microseconds.
const SLOW_MAX: u64 = 3_000_000;
/// The time in microseconds by which an answer may come after the time of its call: the parts that end calls look for them every
/// 20 ms, and get their turns late.
const ANSWER_LATE_MAX: u64 = 500_000;

impl World {
    /// Handles a query that its shard has captured: it runs later.
    pub(crate) fn query_leaves(&mut self, shard: ShardId, reading: &Reading) {
        // The model knows the process only as of its own last entry.
        if reading.index == self.model.durable(shard) {
            let process = &reading.query.process;
            let known = Seen::in_fold(self.model.state(shard), process);
            let node = self.node.as_mut().expect("only a living node has queries");
            node.queries.insert((shard, reading.index, process.clone()), known);
        }
    }

    /// The pause before a part goes on with the query that it has taken: as long as the query runs.
    pub(crate) fn query_runs_for(&mut self) -> u64 {
        if one_in(&mut self.odd, self.profile.slow_queries) {
            self.odd.u64(..SLOW_MAX)
        } else {
            self.reads.u64(..=self.profile.step_delay)
        }
    }

    /// The pause before a part goes on with the step that it has taken: as long as the step runs.
    pub(crate) fn step_runs_for(&mut self) -> u64 {
        let is_slow = one_in(&mut self.odd, self.profile.slow_steps);
        if is_slow { self.odd.u64(..=self.profile.slow_step_max) } else { 0 }
    }

    /// Notes the calls that ended unanswered because their callers had gone. A query may run on.
    fn note_left(&mut self) {
        let Some(node) = &mut self.node else { return };
        for call in stage::take_left() {
            self.marks.hit(Mark::CallerGone);
            node.late_queries += usize::from(node.open_queries.remove(&call));
            node.admission.caller_left(call);
        }
    }

    /// Invariant 17 for calls without a result: none ends before its time, and only a node that stops ends them without one.
    pub(crate) fn check_no_answer(&mut self, answered: &Answered) -> Outcomes {
        let Answered { shard, call, at, result, .. } = answered;
        let OpenCall { until, since, .. } = *call;
        let limit = self.profile.query_limit;
        let is_ending = self.is_ending();
        self.note_left();
        let Some(node) = &mut self.node else { return Ok(()) };
        let is_query = node.open_queries.contains(call);
        let is_wrong = match result {
            Err(NoAnswer::TimedOut { .. }) => {
                node.late_queries += usize::from(is_query);
                *at < until
            }
            Err(NoAnswer::Refused(Refusal::QueryGivenUp { .. })) => {
                node.late_queries += 1;
                !is_query || *at < since + limit
            }
            Err(NoAnswer::Refused(Refusal::QueriesStuck { stuck, .. })) => {
                !is_query || node.late_queries < *stuck
            }
            Err(NoAnswer::Stopped) => !is_ending,
            Err(NoAnswer::Failed(_)) => !node.is_over,
            Ok(_) => false,
            Err(NoAnswer::Refused(_) | NoAnswer::NotHere { .. }) => false,
            Err(NoAnswer::Deposed { .. } | NoAnswer::NoPrimary { .. }) => false,
        };
        if !is_wrong {
            return Ok(());
        }
        let what =
            format!("shard {shard}: a call that arrived at {since} until {until} ends at {at}: {result:?}");
        Err(Violation::new(17, what).into())
    }

    /// Invariant 17 for queries: a client's call is answered when its time is over, whatever its query does. None is dropped
    /// without an answer, except by a node that stops.
    pub(crate) fn check_queries(&mut self) -> Outcomes {
        let (now, is_ending) = (self.now, self.is_ending());
        self.note_left();
        let Some(node) = &mut self.node else { return Ok(()) };
        for call in stage::take_answered() {
            node.open_queries.remove(&call);
        }
        let unanswered = stage::take_unanswered();
        for call in &unanswered {
            node.open_queries.remove(call);
        }
        if let Some(OpenCall { since, .. }) = unanswered.first()
            && !is_ending
        {
            let what = format!("a call that arrived at {since} was dropped without an answer");
            return Err(Violation::new(17, what).into());
        }
        // A worker whose handler ends the node holds its calls until then.
        let is_held = node.held.iter().any(|part| matches!(part, PartId::Worker(_)));
        match node.open_queries.first().filter(|_| !is_held) {
            Some(OpenCall { until, .. }) if until + ANSWER_LATE_MAX < now => {
                let what = format!("a query was to be answered by {until}, and is not at {now} \u{b5}s");
                Err(Violation::new(17, what).into())
            }
            _ => Ok(()),
        }
    }

    /// The watcher had a turn: the parts that it has begun get turns.
    pub(crate) fn start_queries(&mut self) {
        let node = self.node.as_mut().expect("it had a turn");
        let begun = node.parts.take_queries();
        node.running.extend(begun.iter().map(|number| PartId::Query(*number)));
        for number in begun {
            self.marks.hit(Mark::QueryReplaced);
            let delay = self.random(self.profile.wake_delay);
            self.turn_in(PartId::Query(number), delay);
        }
    }

    /// Handles a query that has run on a thread of its own.
    pub(crate) fn queried(&mut self, shard: ShardId, index: Index, process: &Key, seen: &Seen) -> Outcomes {
        let node = self.node.as_ref().expect("it ran there");
        let Some(known) = node.queries.get(&(shard, index, process.clone())) else { return Ok(()) };
        let now = node.shard(shard).map(|shard| Capture::new(shard.state(), process));
        if now.is_some_and(|now| *seen != Seen::of(now.view())) {
            self.marks.hit(Mark::QueryUnderWrites);
        }
        if known != seen {
            let what = format!(
                "shard {shard}: a query of {process} read {seen:?}, where entry {index} had left {known:?}"
            );
            return Err(Violation::new(6, what).into());
        }
        Ok(())
    }
}
