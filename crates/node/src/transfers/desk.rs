//! Where work is left for the part that writes and carries snapshots.

use crate::bell::Bell;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use stead_core::ids::{Epoch, Index, ReplicaId, ShardId};
use stead_core::records::Piece;
use stead_core::replication::table::EpochTable;
use stead_core::state::Header;
use stead_net::replica::{Chunk, Received, Route};
use stead_store::snapshots::SnapshotName;

/// Bytes of chunks of other nodes that wait at most: 8 MiB. Later ones are dropped, and sent again.
const CHUNKS_MAX: usize = 8 << 20;

/// The transfer of a snapshot between two replicas of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) shard: ShardId,
    /// The primary.
    pub(crate) from: ReplicaId,
    /// The receiver.
    pub(crate) to: ReplicaId,
    /// The epoch that the primary leads.
    pub(crate) epoch: Epoch,
}

/// Work for the part.
pub(crate) enum Event {
    /// A replica needs a snapshot, or is connected anew and still needs it.
    Wanted(Transfer),
    /// The log of the primary at the turn of a transfer, and its commit index: a snapshot of what these hold may be sent.
    Usable { transfer: Transfer, table: EpochTable, commit: Index },
    /// The primary of a shard leads no more.
    Ended { shard: ShardId, epoch: Epoch },
    /// A piece of a snapshot has arrived.
    Chunk(Route, Chunk),
    /// The receiver of a snapshot reports.
    Received(Route, Received),
    /// A worker goes by this snapshot of a replica from now on: older ones of the shard are not needed.
    Superseded(SnapshotName),
    /// A replica is gone for ever.
    Gone { shard: ShardId, replica: ReplicaId },
}

/// A step of the snapshot that a worker takes of one of its replicas.
pub(crate) enum Taken {
    /// It has begun.
    Begun { name: SnapshotName, header: Box<Header> },
    /// The next records and messages.
    Records { name: SnapshotName, piece: Piece },
    /// It is whole, and what it covers is committed and durable in the log.
    Whole(SnapshotName),
    /// It is taken no more.
    Dropped(SnapshotName),
}

#[derive(Default)]
pub(crate) struct TransferDesk {
    held: Mutex<Held>,
    /// Rung when there is work.
    pub(crate) bell: Bell,
}

#[derive(Default)]
struct Held {
    events: VecDeque<Event>,
    taken: VecDeque<Taken>,
    /// Bytes of the pieces, and of the chunks.
    pieces: usize,
    chunks: usize,
}

impl TransferDesk {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn leave(&self, event: Event) {
        let mut held = self.held();
        if let Event::Chunk(_, chunk) = &event {
            if held.chunks + chunk.bytes.len() > CHUNKS_MAX {
                return;
            }
            held.chunks += chunk.bytes.len();
        }
        held.events.push_back(event);
        drop(held);
        self.bell.ring();
    }

    pub(crate) fn take(&self) -> Option<Event> {
        let mut held = self.held();
        let event = held.events.pop_front()?;
        if let Event::Chunk(_, chunk) = &event {
            held.chunks -= chunk.bytes.len();
        }
        Some(event)
    }

    /// Leaves the next step of a snapshot.
    pub(crate) fn leave_taken(&self, taken: Taken) {
        let mut held = self.held();
        if let Taken::Records { piece, .. } = &taken {
            held.pieces += piece.bytes();
        }
        held.taken.push_back(taken);
        drop(held);
        self.bell.ring();
    }

    pub(crate) fn take_taken(&self) -> Option<Taken> {
        let mut held = self.held();
        let taken = held.taken.pop_front()?;
        if let Taken::Records { piece, .. } = &taken {
            held.pieces -= piece.bytes();
        }
        Some(taken)
    }

    /// Returns the bytes of records that wait to be written.
    pub(crate) fn piece_bytes(&self) -> usize {
        self.held().pieces
    }
}
