//! The links between nodes, and what planted bugs change of what they carry.

use super::node::NONE;
use super::{CONTROL, Message, SETTINGS, SHARD, World, fold};
use crate::bugs::Bug;
use stead_core::commit_tracker::EpochConfig;
use stead_core::control::facts::Fact;
use stead_core::ids::{Index, Micros, ReplicaId};
use stead_core::replication::epoch::EpochRecord;
use stead_core::replication::table::Losses;
use stead_core::shard_replica::{Frame, Input};

impl World {
    pub(super) fn deliver(&mut self, which: usize) -> Result<(), String> {
        let (from, to, message) = if !self.is_calm && self.chance(5) {
            self.wire[which].clone()
        } else {
            self.wire.swap_remove(which)
        };
        let link = self.at(from).zip(self.at(to)).map(|(a, b)| (a.min(b), a.max(b)));
        let is_deaf = from == CONTROL && self.deaf.is_some() && self.at(to) == self.deaf;
        let is_cut = is_deaf || link.is_some_and(|link| self.cut.contains(&link));
        // A learner's acknowledgement matters where the members have not got the entry.
        let percent = match (self.bug, &message) {
            (Some(Bug::LearnerCounted), Message::Frame(Frame::Append { .. }))
                if self.history.newest().config.members().contains(&to) =>
            {
                40
            }
            _ => 5,
        };
        let is_lost = is_cut || !self.is_calm && self.chance(percent);
        if is_lost {
            self.broken.extend(link);
            return Ok(());
        }
        if let (Some(Bug::AckedUnsaid), Message::Frame(Frame::Acked { .. })) = (self.bug, &message) {
            return Ok(());
        }
        match message {
            Message::Fact(fact) => self.handle_fact(&fact),
            Message::Delete(id) => {
                match self.at(id) {
                    Some(at) if !self.nodes[at].is_up => return Ok(()),
                    Some(at) => self.delete(at),
                    None => {}
                }
                self.send(NONE, CONTROL, Message::Fact(Fact::Deleted(SHARD, id)));
            }
            message => {
                let Some(at) = self.at(to) else { return Ok(()) };
                if self.nodes[at].replica.is_none() {
                    self.broken.extend(link);
                    return Ok(());
                }
                let input = match message {
                    Message::Frame(frame) => self.spoil(at, from, frame),
                    Message::Snapshot { epoch, base } => {
                        self.marks.installs += 1;
                        Input::Installed {
                            from,
                            epoch,
                            base,
                            state: Box::new(fold(&self.committed, base.index)),
                        }
                    }
                    Message::Seal(mut seal) => {
                        if self.bug == Some(Bug::LeaseIgnored) {
                            seal.lease = Micros(0);
                        }
                        Input::Seal(seal)
                    }
                    Message::Lead { mut record, learners } => {
                        if self.bug == Some(Bug::RestartedPrimary) {
                            record.life = self.nodes[at].life;
                        }
                        if self.bug == Some(Bug::AcksChange) {
                            let config = &record.config;
                            let (epoch, members) = (config.epoch(), config.members().to_vec());
                            let acks = config.acks().min(members.len() / 2 + 1);
                            record.config =
                                EpochConfig::parse(epoch, members, acks, config.primary()).unwrap();
                        }
                        if self.bug == Some(Bug::PastTrusted) {
                            record.earlier.clear();
                        }
                        if self.bug == Some(Bug::LossUnannounced) {
                            record.losses = Losses::default();
                        }
                        let epoch = record.config.epoch();
                        self.records.entry(epoch).or_insert_with(|| EpochRecord::clone(&record));
                        Input::Lead { record, learners, max_lag: SETTINGS.max_lag }
                    }
                    Message::Delete(_) | Message::Fact(_) => unreachable!("handled above"),
                };
                self.give(at, input)?;
            }
        }
        Ok(())
    }

    /// A node deletes its replica.
    fn delete(&mut self, at: usize) {
        self.marks.deleted += 1;
        let size = self.nodes.len();
        let node = &mut self.nodes[at];
        (node.id, node.replica, node.rebuild) = (NONE, None, None);
        node.todo.clear();
        node.written.clear();
        (node.durable, node.snapshot) = (Vec::new(), Index(0));
        self.broken.extend((0..size).filter(|peer| *peer != at).map(|peer| (at.min(peer), at.max(peer))));
    }

    /// Changes a frame as a planted bug would.
    pub(super) fn spoil(&mut self, at: usize, mut from: ReplicaId, mut frame: Frame) -> Input {
        let replica = self.nodes[at].replica.as_ref().unwrap().replica();
        match (self.bug, &mut frame) {
            (Some(Bug::AckAfterSeal), Frame::Append { head, entries, .. })
                if head.epoch < replica.promised() =>
            {
                let upto = entries.last().map_or(head.before.index, |last| last.point.index);
                let (id, frame) = (self.nodes[at].id, Frame::Ack { epoch: head.epoch, upto });
                self.send(id, from, Message::Frame(frame));
            }
            (Some(Bug::AckBeforeSync), Frame::Append { head, entries, .. })
                if replica.table().has(head.before) =>
            {
                let upto = entries.last().map_or(head.before.index, |last| last.point.index);
                let (id, frame) = (self.nodes[at].id, Frame::Ack { epoch: head.epoch, upto });
                self.send(id, from, Message::Frame(frame));
            }
            (Some(Bug::SuspicionForgotten), Frame::Confirm { vouches, .. }) => *vouches = true,
            (Some(Bug::LearnerCounted), Frame::Ack { .. }) => {
                let config = &self.history.newest().config;
                if !config.members().contains(&from) {
                    let other = config.members().iter().find(|id| **id != config.primary());
                    from = other.copied().unwrap_or(from);
                }
            }
            (Some(Bug::AppliesUnmatched), Frame::Append { head, entries, .. }) => {
                if !replica.table().has(head.before) {
                    head.before = replica.table().last();
                    entries.clear();
                }
            }
            _ => {}
        }
        Input::Frame { from, frame }
    }

    pub(super) fn connect(&mut self) -> Result<(), String> {
        let whole: Vec<(usize, usize)> = self.broken.difference(&self.cut).copied().collect();
        let Some(&(a, b)) = self.rng.choice(&whole) else { return Ok(()) };
        self.connect_nodes(a, b)
    }

    pub(super) fn connect_nodes(&mut self, a: usize, b: usize) -> Result<(), String> {
        if self.nodes[a].replica.is_none() || self.nodes[b].replica.is_none() {
            return Ok(());
        }
        self.broken.remove(&(a, b));
        let (first, second) = (self.nodes[a].id, self.nodes[b].id);
        self.give(a, Input::Connected(second))?;
        self.give(b, Input::Connected(first))
    }
}
