//! The comparison with the model between two events, and the end of a run: without faults, everything comes to rest.

use super::{Outcomes, World};
use crate::model::{check_channels, copy};
use crate::violation::Violation;
use std::cmp::Reverse;
use stead_core::record::{Kind, RecordKey};
use stead_core::state::State;
use stead_store::sim_disk::Faults;

/// Number of events within which a world without faults must come to rest, if its time is over too; and after which its
/// time is over in any case.
const CALM_EVENTS: u64 = 200_000;
const CALM_EVENTS_MAX: u64 = 10 * CALM_EVENTS;
/// The time in which a world without faults must come to rest, as numbers of resends of lost messages and of deadlines
/// of checkpoints.
const CALM_RESENDS: u64 = 10;
const CALM_CHECKPOINTS: u64 = 4;
/// The byte in the key of an attempt's record that marks a client's request.
const REQUEST_TAG: u8 = 3;

impl World {
    /// Compares the shards without entries on their way to the log with the model.
    pub(super) fn compare(&mut self) -> Outcomes {
        let Some(node) = &self.node else { return Ok(()) };
        // Only one of them record by record, because this is slow.
        let thorough = self.events % u64::from(self.topology.shard_count());
        for shard in node.shards() {
            let state = shard.state();
            if state.position().index == self.model.durable(state.shard()) {
                self.model.same(state)?;
                if u64::from(state.shard().0) == thorough {
                    self.model.same_records(state)?;
                }
            }
        }
        self.check_memory()?;
        self.topology.shards().try_for_each(|shard| self.check_due(shard))?;
        self.check_pins()
    }

    /// Whether all work has ended and new work is accepted: a log that was full has found that the disk has space
    /// again, for which it looks from time to time.
    pub(super) fn rests(&self) -> bool {
        let Some(node) = &self.node else { return false };
        self.checkpoints_rest()
            && node.serves
            && !self.is_ending()
            && node.commands.is_empty()
            && !node.parts.shared.log().is_full()
            && self.clients.pending() == 0
            && node.shards().count() == self.topology.shard_count() as usize
            && node.shards().all(|shard| {
                let state = shard.state();
                shard.is_active()
                    && shard.waiting() == 0
                    && state.timers().is_empty()
                    && state.tasks().is_empty()
                    && state.outboxes().iter().all(|(_, outbox)| outbox.messages.is_empty())
                    && shard.commit() == state.position().index
            })
    }

    /// Ends all faults; then all running work must come to its end.
    pub(super) fn settle(&mut self) -> Outcomes {
        self.calm = true;
        self.profile.calm();
        self.set_interval(None);
        if self.is_rotten() {
            self.disk.unflip();
        }
        self.make_room();
        self.allow_files();
        self.disk.set_faults(Faults::default());
        if let Some(node) = &self.node {
            node.parts.refuse_threads(false);
        }
        // A planned power cut still comes.
        let (until, most) = (self.events + CALM_EVENTS, self.events + CALM_EVENTS_MAX);
        // While it waits for the resend of a lost message, the node may retry many calls many times.
        let until_time = self.now
            + CALM_RESENDS
                * self.profile.all_settings().map(|s| s.resend_after.0).max().expect("there are some")
            + CALM_CHECKPOINTS * self.profile.checkpoint_deadline;
        loop {
            if self.rests() && self.rehearse()? {
                break;
            }
            let Some(Reverse(next)) = self.queue.pop() else {
                return Err(Violation::new(17, format!("nothing happens any more: {}", self.unrest())).into());
            };
            if self.events >= most || (self.events >= until && self.now >= until_time) {
                return Err(Violation::new(17, format!("no rest without faults: {}", self.unrest())).into());
            }
            self.happen(next)?;
            self.check_interval()?;
        }
        // A planned power cut that has not come by now does not come any more.
        self.power_on();
        self.compare()?;
        self.check_memory_at_rest()?;
        let node = self.node.as_ref().expect("a node at rest lives");
        let mut cut: Vec<State> = node.shards().map(|shard| copy(shard.state())).collect();
        cut.sort_by_key(State::shard);
        check_channels(&cut)?;
        self.workload.borrow_mut().check_cut(&self.topology, &cut).map_err(|s| Violation::parse(&s))?;
        for state in &cut {
            // The attempts at requests are kept as long as their clients may retry.
            let left = state
                .records()
                .iter()
                .filter(|(key, _)| key[0] == Kind::Attempt as u8 && key[1] < REQUEST_TAG);
            if let Some((key, _)) = left.into_iter().next() {
                let what = format!(
                    "shard {}: {:?} is kept, whose cause is gone",
                    state.shard(),
                    RecordKey::from_bytes(key)
                );
                return Err(Violation::new(17, what).into());
            }
        }
        self.inspect_at_rest()?;
        self.check_all_checkpoints()?;
        self.check_newest_copied()?;
        if self.nested { Ok(()) } else { self.restore() }
    }

    pub(super) fn unrest(&self) -> String {
        let Some(node) = &self.node else { return "the node is down".to_owned() };
        let full = if node.parts.shared.log().is_full() { "the log is full; " } else { "" };
        let running = node.running_checkpoint();
        let rests = self.checkpoints_rest();
        let mut text = format!(
            "{full}checkpoint {running:?}, at rest {rests} ({} wanted, {} copies wanted, due {:?}); calls {:?} wait;",
            node.checkpoints.wanted,
            node.copy_requests.open,
            node.due,
            self.clients.pending_calls()
        );
        for shard in node.shards() {
            let state = shard.state();
            let kept: usize = state.outboxes().iter().map(|(_, o)| o.messages.len()).sum();
            text += &format!(
                " shard {}: active {}, {} jobs, {} timers, {} tasks, {kept} messages, commit {} of {};",
                state.shard(),
                shard.is_active(),
                shard.waiting(),
                state.timers().len(),
                state.tasks().len(),
                shard.commit(),
                state.position().index,
            );
        }
        text
    }
}
