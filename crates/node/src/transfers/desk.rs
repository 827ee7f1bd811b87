//! Where work is left for the part that carries snapshots.

use crate::bell::Bell;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use stead_core::ids::{Epoch, ReplicaId, ShardId};
use stead_core::records::Piece;
use stead_core::state::Header;
use stead_net::replica::{Chunk, Received, Route};

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
    /// A worker has begun to take it.
    Begun { transfer: Transfer, header: Box<Header> },
    /// The next records and messages.
    Records { transfer: Transfer, piece: Piece },
    /// The snapshot is whole and committed.
    Taken(Transfer),
    /// The primary of a shard leads no more.
    Ended { shard: ShardId, epoch: Epoch },
    /// A piece of a snapshot has arrived.
    Chunk(Route, Chunk),
    /// The receiver of a snapshot reports.
    Received(Route, Received),
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
        match &event {
            Event::Chunk(_, chunk) if held.chunks + chunk.bytes.len() > CHUNKS_MAX => return,
            Event::Chunk(_, chunk) => held.chunks += chunk.bytes.len(),
            Event::Records { piece, .. } => held.pieces += piece.bytes(),
            _ => {}
        }
        held.events.push_back(event);
        drop(held);
        self.bell.ring();
    }

    pub(crate) fn take(&self) -> Option<Event> {
        let mut held = self.held();
        let event = held.events.pop_front()?;
        match &event {
            Event::Chunk(_, chunk) => held.chunks -= chunk.bytes.len(),
            Event::Records { piece, .. } => held.pieces -= piece.bytes(),
            _ => {}
        }
        Some(event)
    }

    /// Returns the bytes of records that wait to be written.
    pub(crate) fn piece_bytes(&self) -> usize {
        self.held().pieces
    }
}
