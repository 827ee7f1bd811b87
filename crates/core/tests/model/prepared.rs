//! Worlds that are some steps old when their exploration begins, for what is too deep to be reached from a new one. Each
//! step is one that the exploration could have taken.

use crate::world::{Shape, World};
use stead_core::ids::Epoch;

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

const ABC: Shape = (&[A, B, C], 2);

/// Some members are sealed, and one of them is named to lead the next epoch, with the same members.
fn elect(world: &mut World, epoch: u64, sealed: &[usize], primary: usize) {
    elect_as(world, epoch, sealed, ABC, primary);
}

fn elect_as(world: &mut World, epoch: u64, sealed: &[usize], shape: Shape, primary: usize) {
    world.begin_sealing(Epoch(epoch));
    for &node in sealed {
        world.seal(node, Epoch(epoch));
        world.sync(node);
    }
    let elected = world.take_over(shape, primary, false);
    elected.expect("there are enough seals");
    assert_eq!(world.history.newest().config.epoch(), Epoch(epoch), "the primary has the best log");
}

/// A primary leads, its start entry is durable at it, and nothing of it arrives.
fn lead_alone(world: &mut World, node: usize, epoch: u64) {
    world.lead(node, Epoch(epoch));
    world.sync(node);
    world.frames.clear();
}

/// A primary leads, and only one other member hears of it: the epoch is active.
fn lead_with(world: &mut World, node: usize, epoch: u64, other: usize) {
    world.lead(node, Epoch(epoch));
    deliver_between(world, node, other);
    assert!(world.nodes[node].serves(), "two of three are a quorum");
}

/// All that two nodes have for each other arrives and is synced; the rest is lost.
fn deliver_between(world: &mut World, one: usize, other: usize) {
    for _ in 0..6 {
        world.sync(one);
        world.sync(other);
        for frame in std::mem::take(&mut world.frames) {
            let receiver = world.receiver(&frame);
            if receiver == Some(one) || receiver == Some(other) {
                world.deliver(&frame);
            }
        }
    }
    world.frames.clear();
}

/// A write stays at its primary.
fn write_alone(world: &mut World, node: usize) {
    world.write(node);
    world.sync(node);
    world.frames.clear();
    // The exploration has writes of its own.
    world.writes = 0;
}

/// A client was answered by an entry that A and B have acknowledged and not synced.
pub(crate) fn acknowledged(world: &mut World) {
    world.write(A);
    world.cache(A);
    for _ in 0..3 {
        for frame in std::mem::take(&mut world.frames) {
            if world.receiver(&frame).is_some_and(|node| node != C) {
                world.deliver(&frame);
            }
        }
        if world.nodes[B].can_cache() {
            world.cache(B);
        }
    }
    world.frames.clear();
    world.writes = 0;
}

/// A holds two entries of epoch 1 that it alone has; epoch 2 is active at B and C.
pub(crate) fn long_old_tail(world: &mut World) {
    write_alone(world, A);
    write_alone(world, A);
    elect(world, 2, &[B, C], B);
    lead_with(world, B, 2, C);
}

/// The same, and B sends A a snapshot of epoch 2.
pub(crate) fn another_tail_meets_a_snapshot(world: &mut World) {
    long_old_tail(world);
    world.trim(B);
    world.reconnect(B);
    world.trims = 0;
}

/// Epoch 2 has other members, one of them empty, and never becomes active.
pub(crate) fn moved(world: &mut World) {
    elect_as(world, 2, &[B, C], (&[C, 3], 2), C);
}

/// A has an entry of epoch 1 that it alone has, B the start entry of epoch 2, and A is to lead epoch 3.
pub(crate) fn old_tail_returns(world: &mut World) {
    write_alone(world, A);
    elect(world, 2, &[B, C], B);
    lead_alone(world, B, 2);
    elect(world, 3, &[A, C], A);
}

/// C has the start entry of epoch 2, which it alone has; A is to lead epoch 3, and asks first.
pub(crate) fn another_tail(world: &mut World) {
    elect(world, 2, &[B, C], C);
    lead_alone(world, C, 2);
    elect(world, 3, &[A, B], A);
    world.asks_first = true;
}

/// The primary A holds a lease that B granted.
pub(crate) fn leased(world: &mut World) {
    world.begin_round(A);
    deliver_between(world, A, B);
}

/// Epoch 2 is active at B and C, and A does not know of it.
pub(crate) fn two_primaries(world: &mut World) {
    elect(world, 2, &[B, C], B);
    lead_with(world, B, 2, C);
}

/// The same, and a confirmation of epoch 1 is still on its way to A.
pub(crate) fn asked_and_overtaken(world: &mut World) {
    world.begin_round(A);
    for frame in std::mem::take(&mut world.frames) {
        if world.receiver(&frame) == Some(B) {
            world.deliver(&frame);
        }
    }
    let confirmation = std::mem::take(&mut world.frames);
    two_primaries(world);
    world.frames = confirmation;
}

/// A report of epoch 1 is still on its way to C; epoch 2 is active at A and B.
pub(crate) fn a_late_report(world: &mut World) {
    world.begin_round(A);
    world.settle();
    world.begin_round(A);
    world.settle();
    // The commit index reaches C with this.
    world.write(A);
    world.settle();
    world.writes = 0;
    world.begin_round(A);
    let mut reports = std::mem::take(&mut world.frames);
    reports.retain(|frame| world.receiver(frame) == Some(C));
    // B's grant ends.
    world.tick();
    world.tick();
    elect(world, 2, &[A, B], B);
    lead_with(world, B, 2, A);
    world.frames = reports;
    world.rounds = 0;
}

/// C lacks what A and B have committed, and A, which has trimmed that, sends it a snapshot. One more entry is not committed.
pub(crate) fn one_behind(world: &mut World) {
    world.write(A);
    deliver_between(world, A, B);
    world.trim(A);
    write_alone(world, A);
    world.reconnect(A);
    world.trims = 0;
}
