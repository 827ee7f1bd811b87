//! Queries: each runs some time after its shard has captured the process, which changes meanwhile.

use crate::bug::Bug;
use crate::marks::Mark;
use crate::model::Seen;
use crate::violation::Violation;
use crate::world::{Inside, Outcomes, World};
use stead_core::capture::{Capture, Reading};
use stead_core::ids::ShardId;

impl World<'_> {
    /// Handles a query that leaves its shard with its capture: it runs later.
    pub(crate) fn query_leaves(&mut self, shard: ShardId, reading: Box<Reading>) -> Outcomes {
        // The model knows the process at its own last entry only.
        let known = (reading.index == self.model.durable(shard))
            .then(|| Seen::in_fold(self.model.state(shard), &reading.query.process));
        let delay = self.reads.u64(..=self.profile.step_delay);
        self.node.as_mut().expect("only a living node has effects").queries_running += 1;
        self.inside(delay, Inside::Query { shard, reading, known });
        Ok(())
    }

    /// Runs a query, on a thread of its own.
    pub(crate) fn query_runs(
        &mut self,
        shard: ShardId,
        mut reading: Reading,
        known: Option<Seen>,
    ) -> Outcomes {
        let node = self.node.as_mut().expect("checked by the caller");
        node.queries_running -= 1;
        let now = Capture::new(node.shards[shard.0 as usize].state(), &reading.query.process);
        if self.bug == Some(Bug::LateQuery) {
            reading.capture = now.clone();
        }
        let seen = Seen::of(reading.capture.view());
        if known.is_some() && seen != Seen::of(now.view()) {
            self.marks.hit(Mark::QueryUnderWrites);
        }
        if let Some(known) = known.filter(|known| *known != seen) {
            let (process, index) = (&reading.query.process, reading.index);
            let what = format!(
                "shard {shard}: a query of {process} read {seen:?}, where entry {index} had left {known:?}"
            );
            return Err(Violation::new(6, what).into());
        }
        let handler = self.workload.handler();
        let answer = reading.answer(|call, view| handler.query(call, view));
        self.note_refusal(shard, &answer);
        self.carry_answer(answer);
        Ok(())
    }
}
