//! The outbox messages that belong to a snapshot, taken in slices like the records.
//!
//! A marker notes only the range of each outbox. Messages at the end of an outbox are newer than the marker and do not
//! belong to the snapshot; one that is trimmed from the front before a slice takes it is kept here instead.

use crate::channel::{Message, Outbox};
use crate::ids::{Seq, ShardId};
use crate::records::Piece;
use crate::shard_map::ShardMap;
use std::collections::{BTreeMap, VecDeque};

/// The messages that were in the outboxes at the last marker and that no slice has taken yet.
#[derive(Default)]
pub(crate) struct Outgoing {
    channels: BTreeMap<ShardId, Channel>,
    /// Messages kept for snapshots that were given up: also dropped in slices.
    garbage: Vec<VecDeque<Message>>,
}

struct Channel {
    /// The next message to take.
    from: Seq,
    /// The one after the last.
    end: Seq,
    /// The first of them, which are no longer in the outbox.
    kept: VecDeque<Message>,
}

impl Outgoing {
    /// Begins with the current contents of the outboxes, and gives up the previous snapshot.
    pub(crate) fn begin(&mut self, outboxes: &ShardMap<Outbox>) {
        let given_up = std::mem::take(&mut self.channels).into_values().map(|channel| channel.kept);
        self.garbage.extend(given_up.filter(|kept| !kept.is_empty()));
        let channel = |(to, outbox): (ShardId, &Outbox)| {
            let from = outbox.messages.front()?.seq;
            Some((to, Channel { from, end: outbox.next, kept: VecDeque::new() }))
        };
        self.channels = outboxes.iter().filter_map(channel).collect();
    }

    /// Gives up the snapshot.
    pub(crate) fn end(&mut self) {
        *self = Self::default();
    }

    /// Keeps a trimmed message, if it belongs to the snapshot.
    pub(crate) fn keep(&mut self, to: ShardId, message: Message) {
        if let Some(channel) = self.channels.get_mut(&to)
            && (channel.from..channel.end).contains(&message.seq)
        {
            channel.kept.push_back(message);
        }
    }

    /// Whether all messages are taken.
    pub(crate) fn is_drained(&self) -> bool {
        self.channels.is_empty() && self.garbage.is_empty()
    }

    /// Appends up to `max` more messages to `out`; returns their number.
    pub(crate) fn drain(&mut self, outboxes: &ShardMap<Outbox>, max: usize, out: &mut Piece) -> usize {
        self.drop_garbage(max);
        let mut room = max;
        while room > 0
            && let Some(mut first) = self.channels.first_entry()
        {
            let (to, channel) = (*first.key(), first.get_mut());
            while room > 0 && channel.from < channel.end {
                let message = channel.kept.pop_front().unwrap_or_else(|| {
                    let messages = &outboxes.get(to).expect("it was there at the marker").messages;
                    let front = messages.front().expect("what is trimmed is kept").seq;
                    messages[(channel.from.0 - front.0) as usize].clone()
                });
                assert_eq!(message.seq, channel.from, "the snapshot of the outbox to shard {to} has a gap");
                out.push_message(to, message);
                channel.from = channel.from.next();
                room -= 1;
            }
            if channel.from == channel.end {
                first.remove();
            }
        }
        max - room
    }

    fn drop_garbage(&mut self, mut max: usize) {
        while max > 0
            && let Some(last) = self.garbage.last_mut()
        {
            let left = last.len().saturating_sub(max);
            max -= last.len() - left;
            last.truncate(left);
            if left == 0 {
                self.garbage.pop();
            }
        }
    }
}
