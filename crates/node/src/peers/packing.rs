//! Puts the messages for a node into few frames.

use super::PeerMessage;
use stead_core::ids::{ReplicaId, ShardId};
use stead_net::channel::{Taken, message_len, write_deliver, write_taken};
use stead_net::forward::{CallId, write_answered, write_call};
use stead_net::payload::{Payload, PayloadWriter};
use stead_net::replica::{write_chunk, write_frame, write_received};

/// Bytes from which on a frame is full: 1 MiB. The last message may go beyond.
const FULL: usize = 1 << 20;

/// The content of a frame, with those that lose something if it is lost.
pub(super) struct Packed {
    pub(super) payload: Payload,
    pub(super) losers: Vec<Loser>,
}

/// One that loses something if a message is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loser {
    /// The replica of a shard that the message is for.
    Replica(ShardId, ReplicaId),
    /// The call that it forwards.
    Call(ShardId, CallId),
    /// The call that it answers.
    Answer(ShardId, CallId),
}

impl Loser {
    pub(super) fn of(message: &PeerMessage) -> Option<Self> {
        match message {
            PeerMessage::Frame(route, _) | PeerMessage::Chunk(route, _) => {
                Some(Self::Replica(route.shard, route.to))
            }
            // They are asked for again, or sent again.
            PeerMessage::Received(..) | PeerMessage::Deliver { .. } | PeerMessage::Ack { .. } => None,
            PeerMessage::Call { call, .. } => Some(Self::Call(call.shard, call.id)),
            PeerMessage::Answered(answered) => Some(Self::Answer(answered.shard, answered.id)),
        }
    }
}

/// Returns the frames that hold the messages, in their order. `payload_bytes_max` is the other node's limit: a frame goes beyond it
/// only with a single message, or part of a replica's frame, that nearly does alone.
pub(super) fn pack(messages: Vec<PeerMessage>, payload_bytes_max: usize) -> Vec<Packed> {
    let mut packer = Packer {
        full: FULL.min(payload_bytes_max / 8),
        writer: PayloadWriter::new(),
        losers: Vec::new(),
        packed: Vec::new(),
    };
    for message in messages {
        packer.add(message);
    }
    packer.close();
    packer.packed
}

struct Packer {
    full: usize,
    writer: PayloadWriter,
    losers: Vec<Loser>,
    packed: Vec<Packed>,
}

impl Packer {
    fn add(&mut self, message: PeerMessage) {
        self.losers.extend(Loser::of(&message));
        match message {
            PeerMessage::Frame(route, frame) => {
                write_frame(&mut self.writer, route, &frame);
                self.close_if_full();
            }
            PeerMessage::Chunk(route, chunk) => {
                write_chunk(&mut self.writer, route, &chunk);
                self.close_if_full();
            }
            PeerMessage::Received(route, received) => {
                write_received(&mut self.writer, route, &received);
                self.close_if_full();
            }
            PeerMessage::Deliver { from, to, messages, again } => {
                let mut rest = &messages[..];
                while !rest.is_empty() {
                    let mut len = self.writer.len();
                    let fits = rest.iter().take_while(|message| {
                        len += message_len(message);
                        len <= self.full
                    });
                    // One at least, or the frame would never be full.
                    let (now, later) = rest.split_at(fits.count().max(1));
                    write_deliver(&mut self.writer, (from, to), now, again);
                    rest = later;
                    if rest.is_empty() {
                        self.close_if_full();
                    } else {
                        self.close();
                    }
                }
            }
            PeerMessage::Ack { from, to, upto, colour } => {
                write_taken(&mut self.writer, &Taken { from, to, upto, colour });
                self.close_if_full();
            }
            PeerMessage::Call { from: _, call } => {
                write_call(&mut self.writer, &call);
                self.close_if_full();
            }
            PeerMessage::Answered(answered) => {
                write_answered(&mut self.writer, &answered);
                self.close_if_full();
            }
        }
    }

    fn close_if_full(&mut self) {
        if self.writer.len() >= self.full {
            self.close();
        }
    }

    fn close(&mut self) {
        if !self.writer.is_empty() {
            let payload = std::mem::take(&mut self.writer).finish();
            self.packed.push(Packed { payload, losers: std::mem::take(&mut self.losers) });
        }
    }
}
