//! Snapshots of shards, which a worker hands to the checkpoint part in slices.

use super::Worker;
use crate::checkpoint::{Event, PIECE_BYTES};
use crate::clock::Clock;
use crate::env::Env;
use crate::shared::Shared;
use stead_core::ids::CheckpointNumber;
use stead_core::records::Piece;

/// Maximum time that a snapshot may hold the worker in one turn, in microseconds.
const SNAPSHOT_SLICE: u64 = 300;
/// Number of records of a snapshot that are taken between two readings of the clock.
const SNAPSHOT_RECORDS: usize = 64;

/// A snapshot that is handed to the checkpoint thread in pieces.
pub(super) struct Draining {
    pub(super) slot: u32,
    pub(super) number: CheckpointNumber,
    pub(super) piece: Piece,
    /// Set if no checkpoint takes it. It is drained anyway: until then the shard keeps a copy of each changed record.
    pub(super) is_given_up: bool,
}

impl<E: Env> Worker<E> {
    /// Hands a slice of the running snapshots to the checkpoint thread, unless that is behind.
    pub(super) fn drain_snapshots(&mut self, shared: &Shared<E>) -> bool {
        if self.draining.is_empty() || shared.snapshots.is_behind() {
            return false;
        }
        let begun = shared.clock.steady();
        while let Some(draining) = self.draining.front_mut() {
            if draining.piece.is_empty() {
                draining.piece = shared.snapshots.spare();
            }
            let shard = &mut self.shards[draining.slot as usize];
            let done = shard.shard.drain_snapshot(SNAPSHOT_RECORDS, &mut draining.piece);
            if done || draining.piece.bytes() >= PIECE_BYTES {
                if draining.is_given_up {
                    draining.piece.clear();
                } else {
                    let (shard, number) = (shard.id, draining.number);
                    let piece = std::mem::take(&mut draining.piece);
                    shared.leave_snapshot(Event::Records { shard, number, piece, done });
                }
            }
            if done {
                self.draining.pop_front();
            }
            if shared.clock.steady() >= begun.plus_micros(SNAPSHOT_SLICE) {
                break;
            }
        }
        let took = shared.clock.steady().0.saturating_sub(begun.0);
        shared.counters.checkpoint_stall_micros.raise(took);
        true
    }
}
