//! Runs that are written down step by step, for what the drawn faults meet too rarely.

use super::clients::Pending;
use super::{CONTROL, Message, SETTINGS, World};
use crate::bugs::Bug;
use fastrand::Rng;
use stead_core::commit_tracker::EpochConfig;
use stead_core::ids::{Epoch, Micros, ReplicaId};
use stead_core::replication::epoch::Seal;
use stead_core::shard::Settings;
use stead_core::shard_replica::{Frame, Input};

impl World {
    /// All arrives and is handled, and these nodes sync what they write, until nothing is left to do.
    fn settle(&mut self, syncing: &[usize]) -> Result<(), String> {
        loop {
            if !self.wire.is_empty() {
                self.deliver(0)?;
            } else if let Some(at) = self.nodes.iter().position(|node| !node.todo.is_empty()) {
                let input = self.nodes[at].todo.pop_front().unwrap();
                self.give(at, input)?;
            } else if let Some(at) = syncing.iter().find(|at| !self.nodes[**at].written.is_empty()) {
                self.sync_batches(*at, self.nodes[*at].written.len())?;
            } else {
                return Ok(());
            }
        }
    }

    /// Whether a node's answer to the seal has come.
    fn is_sealed(&self, at: usize) -> bool {
        let id = self.nodes[at].id;
        self.plane.seals.contains_key(&id)
    }

    /// A member answers a seal, crashes before more reaches its disk than the answer needs, and meets the old primary, which has
    /// not heard of the new epoch.
    pub(crate) fn forgotten_seal(bug: Option<Bug>) -> Result<(), String> {
        let mut world = Self::with(Rng::with_seed(1), bug, 3, 3, 2);
        (world.is_calm, world.is_scripted) = (true, true);
        let (old, new, forgetful) = (0, 1, 2);
        world.settle(&[old, new, forgetful])?;
        assert_eq!(world.committed.len(), 1, "epoch 1 is active");

        // The old primary hears neither the control plane nor the next primary.
        world.deaf = Some(old);
        world.cut.insert((old, new));
        for at in [new, forgetful] {
            let seal = Seal { epoch: Epoch(2), lease: Micros(0) };
            world.send(CONTROL, world.nodes[at].id, Message::Seal(seal));
        }
        world.settle(&[new])?;
        if !world.is_sealed(forgetful) {
            world.settle(&[forgetful])?;
        }
        assert!(world.is_sealed(new) && world.is_sealed(forgetful), "both answer");
        world.end(forgetful, 0);
        let seals = std::mem::take(&mut world.plane.seals);
        let config = EpochConfig::parse(Epoch(2), vec![ReplicaId(2)], 1, ReplicaId(2)).unwrap();
        world.take_over(config, seals.into_values().collect());
        world.settle(&[new])?;
        assert_eq!(world.committed.len(), 2, "epoch 2 is active");

        world.start(forgetful);
        world.connect_nodes(old, forgetful)?;
        world.write_anew();
        let request = world.next_request(0);
        world.nodes[old].todo.push_back(request.into());
        world.settle(&[old, forgetful])?;
        assert_eq!(world.committed.len(), 2, "the old primary commits nothing");

        world.is_scripted = false;
        world.heal()
    }

    /// The disk of a backup is replaced by a copy of the same life, which lacks a committed entry and does not look like a copy. Then the
    /// primary is away.
    pub(crate) fn older_disk(bug: Option<Bug>) -> Result<(), String> {
        let mut world = Self::with(Rng::with_seed(1), bug, 3, 3, 2);
        (world.is_calm, world.is_scripted) = (true, true);
        let (primary, older, spare) = (0, 1, 2);
        world.settle(&[primary, older, spare])?;
        world.now = world.now.plus(Micros(4 * Settings::default().suspect_for.0));
        let copy = world.nodes[older].durable.clone();
        world.cut.insert((primary, spare));
        world.write_to_first(&[primary, older])?;
        assert_eq!((world.committed.len(), world.pending.len()), (2, 0), "two have it");
        world.end(older, 0);
        world.nodes[older].durable = copy;
        world.start(older);
        world.connect_nodes(primary, older)?;
        // All else that the primary sends is lost.
        world.wire.retain(|(_, _, message)| !matches!(message, Message::Frame(Frame::Append { .. })));
        world.settle(&[older])?;
        let is_void = world.plane.void.contains(&world.nodes[older].id);
        assert_eq!(is_void, bug.is_none(), "it notices");

        world.deaf = Some(primary);
        world.cut.insert((primary, older));
        for at in [older, spare] {
            let seal = Seal { epoch: Epoch(2), lease: Micros(0) };
            world.send(CONTROL, world.nodes[at].id, Message::Seal(seal));
        }
        world.settle(&[older, spare])?;
        assert_eq!((world.is_sealed(older), world.is_sealed(spare)), (!is_void, true));
        if !is_void {
            let seals = std::mem::take(&mut world.plane.seals);
            let members = vec![ReplicaId(2), ReplicaId(3)];
            // Its life is the registered one.
            let config = EpochConfig::parse(Epoch(2), members, 2, ReplicaId(3)).unwrap();
            world.take_over(config, seals.into_values().collect());
            world.settle(&[older, spare])?;
        }
        world.is_scripted = false;
        world.heal()
    }

    /// A write to the first node, as far as it is answered.
    fn write_to_first(&mut self, syncing: &[usize]) -> Result<(), String> {
        self.write_anew();
        let request = self.next_request(self.pending.len() - 1);
        self.nodes[0].todo.push_back(request.into());
        self.settle(syncing)
    }

    /// A primary that is cut off answers a write by its own disk alone, under its lease. The others begin an epoch without it.
    pub(crate) fn lost_answer(bug: Option<Bug>) -> Result<(), String> {
        let mut world = Self::with(Rng::with_seed(1), bug, 3, 3, 1);
        (world.is_calm, world.is_scripted) = (true, true);
        world.settle(&[0, 1, 2])?;
        // Requests are not suspected any more, and need no attempt, also by a slow clock.
        world.now = world.now.plus(Micros(4 * Settings::default().suspect_for.0));
        world.write_to_first(&[0, 1, 2])?;
        assert_eq!(world.pending.len(), 0, "it has a lease");
        let committed = world.committed.len();

        world.deaf = Some(0);
        world.cut.extend([(0, 1), (0, 2)]);
        world.write_to_first(&[0])?;
        assert_eq!((world.early.len(), world.pending.len()), (1, 0), "it is answered");
        for at in [1, 2] {
            let seal = Seal { epoch: Epoch(2), lease: super::LEASE };
            world.send(CONTROL, world.nodes[at].id, Message::Seal(seal));
        }
        world.settle(&[1, 2])?;
        if !world.is_sealed(1) {
            world.now = world.now.plus(super::LEASE.plus(super::LEASE));
            world.give(1, Input::Tick)?;
            world.give(2, Input::Tick)?;
            world.settle(&[1, 2])?;
        }
        assert!(world.is_sealed(1) && world.is_sealed(2), "both answer");
        let seals = std::mem::take(&mut world.plane.seals);
        let members = vec![ReplicaId(2), ReplicaId(3)];
        let config = EpochConfig::parse(Epoch(2), members, 2, ReplicaId(2)).unwrap();
        world.take_over(config, seals.into_values().collect());
        world.settle(&[1, 2])?;
        assert_eq!(
            (world.committed.len(), world.marks.lost),
            (committed + 1, 1),
            "epoch 2 is active without it"
        );

        world.write_to_first(&[0])?;
        assert_eq!(world.pending.len(), 1, "the old primary answers nothing");
        world.is_scripted = false;
        world.heal()
    }

    /// The backups of an asynchronous service confirm the primary's lease while their disks hang.
    pub(crate) fn lagging_backups() -> Result<(), String> {
        let mut world = Self::with(Rng::with_seed(1), None, 3, 3, 1);
        (world.is_calm, world.is_scripted) = (true, true);
        world.settle(&[0, 1, 2])?;
        world.now = world.now.plus(Micros(4 * Settings::default().suspect_for.0));
        let begun = world.now;
        while world.now.since(begun) <= SETTINGS.max_lag {
            world.write_to_first(&[0])?;
            assert_eq!(world.pending.len(), 0, "the backups lag by less than they may");
            world.now = world.now.plus_millis(10);
            for at in 0..3 {
                world.give(at, Input::Tick)?;
            }
            world.settle(&[0])?;
        }
        let (committed, answered) = (world.committed.len(), world.early.len());
        world.write_to_first(&[0])?;
        let is_refused = |pending: &Pending| pending.token.is_none();
        assert!(world.pending.len() == 1 && world.pending.iter().all(is_refused), "it is refused");
        assert_eq!((world.committed.len(), world.early.len()), (committed, answered), "it changes nothing");

        world.settle(&[0, 1, 2])?;
        assert!(
            world.committed.len() >= committed + answered && world.early.is_empty(),
            "they have caught up"
        );
        let request = world.next_request(0);
        world.nodes[0].todo.push_back(request.into());
        world.settle(&[0])?;
        assert_eq!((world.pending.len(), world.early.len()), (0, 1), "it is answered at once");
        world.is_scripted = false;
        world.heal()
    }
}
