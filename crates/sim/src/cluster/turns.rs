//! The turns of the parts of nodes, and what follows from each: what leaves the node, and the checks.

use super::env::{self, Seen};
use super::model::Followed;
use super::network::DELAY;
use super::node::at_of;
use super::{Cluster, ClusterBug, ClusterMark, Event, Outcome};
use crate::profile::one_in;
use crate::violation::Violation;
use stead_core::ids::ReplicaId;
use stead_node::{PartId, PeerMessage, Started, Turned};

/// The greatest time until a part whose bell was rung has its turn, in microseconds.
const WAKE: u64 = 50;
/// The greatest time of a sync.
const SYNC: u64 = 1_500;

impl Cluster {
    /// Begins all parts of a node.
    pub(super) fn begin(&mut self, at: usize) -> Outcome {
        loop {
            let (now, bug) = (self.now, self.bug);
            let machine = &mut self.machines[at];
            let skew = machine.skew.at(now);
            let Some(running) = &mut machine.life else { return Ok(()) };
            let (started, seen) = env::play(skew, bug, || running.parts.start(false));
            self.take_seen(at, seen)?;
            match started {
                Ok(Started::Part(part)) => {
                    let delay = self.random(WAKE);
                    self.turn_in(at, part, delay);
                }
                Ok(Started::All | Started::Serves) => break,
                Err(error) => {
                    return Err(Violation::new(0, format!("node {} does not start: {error}", at + 1)));
                }
            }
        }
        self.heed(at);
        Ok(())
    }

    /// Gives those parts of a node a turn soon whose bells were rung.
    pub(super) fn heed(&mut self, at: usize) {
        let Some(running) = &self.machines[at].life else { return };
        let rung = running.parts.bells().filter(|(_, bell)| bell.is_rung() && bell.take_ring());
        let rung: Vec<PartId> = rung.map(|(part, _)| part).collect();
        for part in rung {
            if self.machines[at].life.as_ref().is_some_and(|running| running.parts.runs(part)) {
                let delay = self.random(if part == PartId::Log { SYNC } else { WAKE });
                self.turn_in(at, part, delay);
            }
        }
    }

    /// Makes a part due after this time, unless it is due earlier.
    fn turn_in(&mut self, at: usize, part: PartId, delay: u64) {
        let when = self.now + delay;
        let machine = &mut self.machines[at];
        let start = machine.starts;
        let Some(running) = &mut machine.life else { return };
        if running.due.get(&part).is_none_or(|due| when < *due) {
            running.due.insert(part, when);
            self.at(delay, Event::Turn(at, start, part));
        }
    }

    pub(super) fn turn_if_due(&mut self, at: usize, start: u64, part: PartId) -> Outcome {
        let (now, machine) = (self.now, &mut self.machines[at]);
        let paused_until = machine.paused_until;
        let Some(running) = machine.life.as_mut().filter(|_| machine.starts == start) else { return Ok(()) };
        if running.due.get(&part).is_none_or(|due| *due > now) {
            return Ok(());
        }
        running.due.remove(&part);
        if now < paused_until {
            self.turn_in(at, part, paused_until - now);
            return Ok(());
        }
        self.turn(at, part)
    }

    fn turn(&mut self, at: usize, part: PartId) -> Outcome {
        let (now, bug) = (self.now, self.bug);
        let machine = &mut self.machines[at];
        let (steady, wall) = machine.skew.at(now);
        let Some(running) = machine.life.as_mut().filter(|running| running.parts.runs(part)) else {
            return Ok(());
        };
        let segments = running.parts.shared.log().segments();
        let (turned, seen) = env::play((steady, wall), bug, || running.parts.turn(part, steady));
        if running.parts.shared.log().segments() < segments {
            self.marks.hit(ClusterMark::Released);
        }
        if machine.disk.is_crashed() {
            return self.lose_power(at);
        }
        self.take_seen(at, seen)?;
        match turned {
            Ok(Turned::Again) => self.turn_in(at, part, 1),
            Ok(Turned::Until(Some(until))) => {
                let when = self.machines[at].skew.when(until);
                self.turn_in(at, part, when.saturating_sub(now).max(1));
            }
            Ok(Turned::Until(None) | Turned::Ended) => {}
            Err(error) => {
                return Err(Violation::new(0, format!("{part:?} of node {} ended: {error}", at + 1)));
            }
        }
        if let PartId::Worker(number) = part {
            self.follow(at, number)?;
        }
        self.take_messages(at)?;
        self.heed(at);
        Ok(())
    }

    /// Notes what a node has done: entries come before the answers that they allow.
    pub(super) fn take_seen(&mut self, at: usize, seen: Seen) -> Outcome {
        let Some(running) = &self.machines[at].life else { return Ok(()) };
        let by = (self.machines[at].id, running.life());
        let Seen { made, answers, unanswered } = seen;
        for made in made {
            self.model.note_made(by, made)?;
        }
        if let Some(call) = unanswered.first() {
            return Err(Violation::new(17, format!("call {call} was dropped by a node that goes on")));
        }
        if self.bug == Some(ClusterBug::StoredBeforeSync) && !answers.is_empty() && one_in(&mut self.rng, 30)
        {
            let start = self.machines[at].starts;
            self.at(1, Event::PowerCut(at, start));
        }
        for (call, result) in answers {
            let delay = self.random(DELAY);
            self.at(delay, Event::Heard(call, result));
        }
        Ok(())
    }

    /// Compares the replicas of a worker with the model.
    fn follow(&mut self, at: usize, number: usize) -> Outcome {
        let Some(worker) = self.machines[at].life.as_ref().and_then(|running| running.parts.worker(number))
        else {
            return Ok(());
        };
        for replica in worker.replicas().filter(|replica| replica.replica().id() != ReplicaId::NONE) {
            if let Some(shard) = replica.shard() {
                shard.check()?;
            }
            let (shard, id) = (replica.shard_id(), replica.replica().id());
            let record = self.plane.state.shard(shard);
            if record.is_some_and(|record| record.history().void().contains(&id)) {
                // It may hold what is lost, and knows it once it hears of the new epoch.
                continue;
            }
            let is_new = self.followed.get(&(at, shard)).is_none_or(|followed| followed.replica != id);
            if is_new {
                self.followed.insert((at, shard), Followed::new(id));
            }
            let followed = self.followed.get_mut(&(at, shard)).expect("it is there by now");
            if self.model.follow(replica, followed)? {
                self.marks.hit(ClusterMark::Cut);
            }
            let base = replica.replica().table().base();
            let before = std::mem::replace(&mut followed.base, base);
            let committed = std::mem::replace(&mut followed.committed, replica.replica().commit());
            if base == before {
                continue;
            }
            self.marks.hit(match (is_new, base.index <= committed) {
                (true, _) => ClusterMark::Recovered,
                (false, true) if replica.snapshot_sent().is_some() => ClusterMark::TrimmedBesideTransfer,
                (false, true) => ClusterMark::Trimmed,
                (false, false) => ClusterMark::Installed,
            });
        }
        Ok(())
    }

    /// Takes what a node leaves for other nodes and for the control plane.
    fn take_messages(&mut self, at: usize) -> Outcome {
        let Some(running) = &mut self.machines[at].life else { return Ok(()) };
        let (peers, news) = (running.parts.shared.peers.take(), running.parts.shared.control.take());
        running.changed |= !news.reports.is_empty();
        running.reports.extend(news.reports.into_iter().map(|report| (report.shard, report)));
        for (node, messages) in peers {
            for message in messages {
                self.model.check_leaving(&message)?;
                if let PeerMessage::Chunk(_, chunk) = &message
                    && chunk.offset + chunk.bytes.len() as u64 == chunk.total
                {
                    self.marks.hit(ClusterMark::SnapshotSent);
                }
                self.send(at, at_of(node), message);
            }
        }
        if !self.is_deaf(at) {
            news.facts.into_iter().for_each(|fact| self.send_fact(fact));
        }
        Ok(())
    }
}
