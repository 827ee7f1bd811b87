//! Puts the messages for a node into few frames.

use super::PeerMessage;
use stead_core::ids::{ReplicaId, ShardId};
use stead_net::channel::{Taken, message_len, write_deliver, write_taken};
use stead_net::payload::{Payload, PayloadWriter};
use stead_net::replica::{write_chunk, write_frame, write_received};

/// Bytes from which on a frame is full: 1 MiB. The last message may go beyond.
const FULL: usize = 1 << 20;

/// The content of a frame, with the replicas that lose something if it is lost.
pub(super) struct Packed {
    pub(super) payload: Payload,
    pub(super) receivers: Vec<(ShardId, ReplicaId)>,
}

/// Returns the frames that hold the messages, in their order. `payload_bytes_max` is the other node's limit: a frame goes beyond it
/// only with a single message, or part of a replica's frame, that nearly does alone.
pub(super) fn pack(messages: Vec<PeerMessage>, payload_bytes_max: usize) -> Vec<Packed> {
    let mut packer = Packer {
        full: FULL.min(payload_bytes_max / 8),
        writer: PayloadWriter::new(),
        receivers: Vec::new(),
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
    receivers: Vec<(ShardId, ReplicaId)>,
    packed: Vec<Packed>,
}

impl Packer {
    fn add(&mut self, message: PeerMessage) {
        match message {
            PeerMessage::Frame(route, frame) => {
                write_frame(&mut self.writer, route, &frame);
                self.receivers.push((route.shard, route.to));
                self.close_if_full();
            }
            PeerMessage::Chunk(route, chunk) => {
                write_chunk(&mut self.writer, route, &chunk);
                self.receivers.push((route.shard, route.to));
                self.close_if_full();
            }
            // It is asked for again.
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
            self.packed.push(Packed { payload, receivers: std::mem::take(&mut self.receivers) });
        }
    }
}
