//! Snapshots of shards, which a worker hands to the checkpoint part in slices.

use super::Worker;
use crate::checkpoint::Event;
use crate::clock::Clock;
use crate::env::{Env, Watch};
use crate::shared::Shared;
use stead_core::ids::Micros;

/// Maximum time that a snapshot may hold the worker in one turn.
const SNAPSHOT_SLICE: Micros = Micros(300);

impl<E: Env> Worker<E> {
    /// Hands a slice of the running snapshots to the checkpoint thread, unless that is behind.
    pub(super) fn drain_snapshots(&mut self, shared: &Shared<E>) -> bool {
        if self.draining.is_empty() || holds_back(shared) {
            return false;
        }
        let begun = shared.clock.steady();
        let mut is_over = false;
        while !is_over && let Some(draining) = self.draining.front_mut() {
            if draining.piece.is_empty() {
                draining.piece = shared.snapshots.spare();
            }
            let slot = &mut self.shards[draining.slot as usize];
            let shard = slot.replica.shard_mut().expect("a snapshot is dropped with its shard");
            let done = shard.drain_snapshot(shared.sizes.snapshot_records, &mut draining.piece);
            if done || draining.piece.bytes() >= shared.sizes.piece_bytes {
                if draining.is_given_up {
                    draining.piece.clear();
                } else {
                    let (shard, number) = (slot.id, draining.number);
                    let piece = std::mem::take(&mut draining.piece);
                    shared.leave_snapshot(Event::Records { shard, number, piece, done });
                    is_over = holds_back(shared);
                }
            }
            if done {
                self.draining.pop_front();
            }
            is_over |= shared.clock.steady() >= begun.plus(SNAPSHOT_SLICE);
        }
        let took = shared.clock.steady().since(begun);
        shared.counters.checkpoint_stall_micros.raise(took.0);
        true
    }
}

/// Whether a worker must keep its snapshots, because so much waits to be written already.
fn holds_back<E: Env>(shared: &Shared<E>) -> bool {
    let mut holds = shared.snapshots.is_behind();
    shared.watch.holds_back(&mut holds);
    holds
}
