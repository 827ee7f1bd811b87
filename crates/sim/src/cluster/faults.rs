//! The lives of nodes, and the faults that end them, hold them up, or take their disks.

use super::node::{Running, at_of};
use super::{Cluster, ClusterBug, ClusterMark, Event, Outcome, env};
use crate::profile::one_in;
use crate::violation::Violation;
use stead_core::control::facts::{Fact, Request};
use stead_core::ids::Micros;
use stead_node::NoAnswer;

/// The time for which a primary is cut off by a planted bug, in microseconds.
const CUT_OFF: u64 = 200_000;

impl Cluster {
    /// A node begins a life.
    pub(super) fn up(&mut self, at: usize) -> Outcome {
        if self.machines[at].is_up() {
            return Ok(());
        }
        // The control plane knows each node from its first life on, whose number is durable: a life that is counted again counts as one
        // on a lost disk.
        let is_first = self.machines[at].starts == 0;
        if !self.is_calm && one_in(&mut self.rng, 12) && !is_first {
            let operations = self.random(60);
            self.machines[at].disk.crash_after(operations);
        }
        let machine = &mut self.machines[at];
        let entered = machine.enter(self.bug);
        if machine.disk.is_crashed() {
            return self.crash_in_recovery(at);
        }
        entered.map_err(|error| Violation::new(2, format!("node {} does not enter: {error}", at + 1)))?;
        self.note(|| format!("node {} enters", at + 1));
        let entering = self.machines[at].entering.as_ref().expect("it has entered");
        let is_registered = self.plane.is_registered(self.machines[at].id, entering.start);
        if is_registered { self.begin_registered(at) } else { Ok(()) }
    }

    /// A node whose start is registered recovers its data, and begins.
    pub(super) fn begin_registered(&mut self, at: usize) -> Outcome {
        let seed = self.rng.u64(..);
        let machine = &mut self.machines[at];
        let Some(entering) = machine.entering.take() else { return Ok(()) };
        let replicas = self.plane.state.replicas_on(machine.id);
        let started = machine.start(entering, (&*self.topology, replicas), self.now, seed, self.bug);
        if machine.disk.is_crashed() {
            drop(started);
            return self.crash_in_recovery(at);
        }
        machine.disk.restart();
        let (running, seen) =
            started.map_err(|error| Violation::new(2, format!("node {} does not start: {error}", at + 1)))?;
        machine.life = Some(running);
        self.note(|| format!("node {} starts", at + 1));
        self.followed.retain(|(of, _), _| *of != at);
        self.links.begin(at, self.machines.len());
        self.take_seen(at, seen)?;
        self.begin(at)?;
        self.follow_routes(at);
        if self.bug == Some(ClusterBug::RestartedPrimary) { self.lead_again(at) } else { Ok(()) }
    }

    /// Plants the bug: a node that comes back leads its epochs again.
    fn lead_again(&mut self, at: usize) -> Outcome {
        let node = self.machines[at].id;
        let max_lag = self.plane.state.dials()[0].max_lag;
        let led = self.plane.state.shards().filter(|(_, record)| record.primary_node() == Some(node));
        let led = led.map(|(shard, record)| {
            let (record, learners) =
                (Box::new(record.history().newest().clone()), record.learners().collect());
            Request::Lead { node, shard, record, learners, max_lag }
        });
        let led: Vec<Request> = led.collect();
        led.into_iter().try_for_each(|request| self.obey(request))
    }

    fn crash_in_recovery(&mut self, at: usize) -> Outcome {
        self.marks.hit(ClusterMark::CrashInRecovery);
        self.fall(at)?;
        self.comes_back(at);
        Ok(())
    }

    /// A node's process ends, or has with its machine.
    pub(super) fn fall(&mut self, at: usize) -> Outcome {
        let machine = &mut self.machines[at];
        let (life, entering) = (machine.life.take(), machine.entering.take());
        machine.disk.kill_process();
        let skew = machine.skew.at(self.now);
        // Its calls end without an answer: their clients see that the connection ends.
        let ((), seen) = env::play(skew, self.bug, || drop((life, entering)));
        self.machines[at].disk.restart();
        self.note(|| format!("node {} falls", at + 1));
        for call in seen.unanswered {
            let delay = self.random(10_000);
            self.at(delay, Event::Heard(call, Err(NoAnswer::Stopped)));
        }
        self.break_links(at);
        Ok(())
    }

    fn comes_back(&mut self, at: usize) {
        let longest = if one_in(&mut self.rng, 5) { 2_000_000 } else { 300_000 };
        let pause = self.random(longest);
        self.at(pause, Event::Up(at));
    }

    pub(super) fn power_cut(&mut self, at: usize, start: u64) -> Outcome {
        let machine = &self.machines[at];
        if machine.starts != start || !machine.is_up() || self.is_calm {
            return Ok(());
        }
        machine.disk.crash();
        self.lose_power(at)
    }

    /// A node has lost its power.
    pub(super) fn lose_power(&mut self, at: usize) -> Outcome {
        self.marks.hit(ClusterMark::PowerCut);
        self.fall(at)?;
        self.comes_back(at);
        Ok(())
    }

    /// Draws a fault.
    pub(super) fn fault(&mut self) -> Outcome {
        if self.is_calm {
            return Ok(());
        }
        if self.bug.is_some_and(ClusterBug::cuts_off) {
            self.cut_off_primary();
            return Ok(());
        }
        let pause = self.random(self.faults);
        self.at(pause, Event::Fault);
        let at = self.rng.usize(..self.machines.len());
        let is_up = self.machines[at].life.is_some();
        match self.rng.u8(..9) {
            0 if is_up => {
                self.marks.hit(ClusterMark::Killed);
                self.fall(at)?;
                let of = if self.bug == Some(ClusterBug::WipedVoter) { 1 } else { 4 };
                if one_in(&mut self.rng, of) {
                    self.lose_disk(at);
                }
                self.comes_back(at);
            }
            1 if is_up => self.cut_power_within(at, 30),
            2 | 3 if is_up => self.pause(at),
            4..8 => {
                let size = self.machines.len();
                self.network.draw_cut(size, &mut self.rng);
            }
            8 => {
                // The power of all is cut at once.
                for at in 0..self.machines.len() {
                    if self.machines[at].is_up() {
                        self.machines[at].disk.crash();
                        self.lose_power(at)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Cuts off a primary, and lets an operator ask for another one.
    fn cut_off_primary(&mut self) {
        self.at(CUT_OFF, Event::Fault);
        self.network.heal();
        let led = self.plane.state.shards().find_map(|(shard, record)| {
            // The first node always reaches the control plane.
            Some((shard, at_of(record.primary_node()?))).filter(|(_, at)| *at != 0)
        });
        let Some((shard, at)) = led else { return };
        self.network.cut_off(at, self.machines.len());
        let wanted = Fact::Failover { shard, to: None, is_forced: false };
        self.plane.handle(self.now, wanted, &mut self.marks);
    }

    /// The power of a node is cut within so many operations of its disk.
    pub(super) fn cut_power_within(&mut self, at: usize, operations: u64) {
        let operations = self.random(operations);
        let machine = &self.machines[at];
        machine.disk.crash_after(operations);
        let start = machine.starts;
        self.at(50_000, Event::PowerCut(at, start));
    }

    /// A node stands still for a while.
    fn pause(&mut self, at: usize) {
        self.marks.hit(ClusterMark::Paused);
        let longest = if one_in(&mut self.rng, 4) { 2_000_000 } else { 500_000 };
        let pause = self.rng.u64(10_000..longest);
        self.machines[at].paused_until = self.now + pause;
        let leases = |running: &Running| {
            let worker = running.parts.worker(0)?;
            let led = worker.replicas().filter(|replica| replica.shard().is_some());
            led.filter_map(|replica| replica.record()).map(|record| record.lease).max()
        };
        let lease = self.machines[at].life.as_ref().and_then(leases).unwrap_or_default();
        if lease > Micros(0) && lease < Micros(pause) {
            self.marks.hit(ClusterMark::PausedLease);
        }
    }

    /// The disk of a node that is down is replaced by a new one or by an older copy, if no shard depends on it; or it is copied.
    fn lose_disk(&mut self, at: usize) {
        let seed = self.rng.u64(..);
        if self.rng.bool() {
            let copy = self.machines[at].disk.fork(seed);
            self.machines[at].copy = Some(copy);
        } else if self.is_spare(at) {
            self.marks.hit(ClusterMark::DiskLost);
            self.note(|| format!("node {} loses its disk", at + 1));
            let replicas = self.replicas_on(at);
            self.void.extend(replicas);
            self.machines[at].lose_disk(seed);
        }
    }
}
