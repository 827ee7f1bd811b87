//! Queries: each runs some time after its shard has captured the process, which changes meanwhile.

use crate::marks::Mark;
use crate::model::Seen;
use crate::violation::Violation;
use crate::world::{Inside, Outcomes, World};
use stead_core::capture::{Capture, Reading};
use stead_core::ids::{Index, ShardId};
use stead_core::key::Key;

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
        let delay = self.reads.u64(..=self.profile.step_delay);
        self.inside(delay, Inside::Query);
    }

    /// Handles a query that has run on a thread of its own.
    pub(crate) fn queried(&mut self, shard: ShardId, index: Index, process: &Key, seen: &Seen) -> Outcomes {
        let node = self.node.as_ref().expect("it ran there");
        let Some(known) = node.queries.get(&(shard, index, process.clone())) else { return Ok(()) };
        let now = Capture::new(node.shard(shard).state(), process);
        if *seen != Seen::of(now.view()) {
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
