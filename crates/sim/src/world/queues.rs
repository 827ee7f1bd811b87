//! The bounds of the node's queues, and of what its workers hand over at once.

use super::node::Node;
use super::{Outcomes, World};
use crate::marks::Mark;
use crate::stage::{Done, Shown, Turn};
use crate::violation::Violation;
use stead_core::calls::{Answer, Refusal};
use stead_node::PartId;
use stead_node::checkpoint::CheckpointHub;

/// The queues before a part's turn.
pub(super) struct Queues {
    /// Bytes of snapshots that wait to be written.
    snapshots: usize,
    /// If the part is a worker, its number and that of its submissions to the log.
    submissions: Option<(usize, u64)>,
}

impl Queues {
    /// Looks at them before the turn of a part.
    pub(super) fn of(node: &Node, part: PartId) -> Self {
        let submissions = match part {
            PartId::Worker(number) => node.parts.worker(number).map(|worker| (number, worker.submissions())),
            _ => None,
        };
        Self { snapshots: node.parts.shared.queue().waiting(), submissions }
    }
}

impl World {
    /// Invariant 17 for queues, after a part's turn: none holds more than its bound, and no worker has handed over a piece of a
    /// snapshot while more than the limit waited.
    pub(super) fn check_queues(&mut self, before: &Queues, turn: &Turn) -> Outcomes {
        let node = self.node.as_ref().expect("it had a turn");
        let worker = before.submissions.and_then(|(number, _)| node.parts.worker(number));
        let limit = self.profile.sizes.behind_bytes;
        // A node that ends takes no more pieces: they are dropped.
        let is_taken = !self.is_ending() && turn.killed.is_none() && node.parts.runs(PartId::Checkpoints);
        let mut waiting = before.snapshots;
        for shown in &turn.shown {
            let Shown::Checkpoint(Done::Drained(piece)) = shown else { continue };
            if is_taken && waiting > limit {
                let (shard, number) = (piece.shard, piece.number);
                let what = format!(
                    "shard {shard} hands a piece for checkpoint {number} over when {waiting} bytes wait, over {limit}"
                );
                return Err(Violation::new(17, what).into());
            }
            waiting += piece.bytes;
        }
        if let Some(full) = node.parts.queues().into_iter().find(|queue| queue.waiting > queue.most) {
            let what = format!("{} are {} of at most {}", full.what, full.waiting, full.most);
            return Err(Violation::new(17, what).into());
        }
        let batches =
            before.submissions.zip(worker).map(|((_, before), worker)| worker.submissions() - before);
        if batches.is_some_and(|batches| batches > 1) {
            self.marks.hit(Mark::SeveralBatches);
        }
        if turn.holds_back {
            self.marks.hit(Mark::SnapshotHeldBack);
        }
        Ok(())
    }

    /// Notes that a query is refused while as many wait as may.
    pub(super) fn note_full(&mut self, answer: &Answer) {
        let Some(node) = &self.node else { return };
        let is_full = || node.parts.queues().iter().any(|queue| queue.waiting == queue.most);
        if matches!(answer.result, Err(Refusal::Overloaded { .. })) && is_full() {
            self.marks.hit(Mark::QueriesFull);
        }
    }
}
