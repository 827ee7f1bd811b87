//! A model of seal, takeover, reconfiguration, leases, reads and snapshots (protocol, rules 1 to 22), explored by `stateright`
//! over the replicas and the judgement that ship. Each mistake that breaks a rule must be found, so that the checks are known
//! to see.
//!
//! Not among the mistakes: a log that is wiped before its snapshot is whole (rule 4). A primary sends a snapshot only of what
//! S other members hold, so that what the wipe loses is on each quorum of seals without it: it costs a copy, which matters
//! only with another fault, deeper than the explored worlds.

mod prepared;
#[path = "../it/transcript.rs"]
mod transcript;
mod transcripts;
mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};
use std::panic::{AssertUnwindSafe, catch_unwind};
use stead_core::durability::Durability;
use stead_core::ids::{Epoch, Time};
use stead_core::replication::reads::ReadKind;
use world::{Frame, Mistake, Shape, World};

/// The limits of a world.
#[derive(Clone)]
struct Shard {
    nodes: usize,
    /// By epoch, the shapes that it may have.
    shapes: Vec<Vec<Shape>>,
    /// The steps before the exploration begins.
    prepare: fn(&mut World),
    writes: usize,
    crashes: usize,
    /// Power cuts, in a world whose members acknowledge before they sync.
    cuts: usize,
    wipes: usize,
    /// Ticks of the clock; without any, no time passes, and no lease is looked at.
    ticks: u64,
    rounds: usize,
    reads: usize,
    kind: ReadKind,
    trims: usize,
    mistake: Option<Mistake>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Write(usize),
    Sync(usize),
    Cache(usize),
    Crash { node: usize, kept: usize },
    CutPower { node: usize, kept: usize },
    CutAll,
    Wipe(usize),
    Tick,
    BeginRound(usize),
    Read(usize),
    Trim(usize),
    BeginSealing(Epoch),
    Seal(usize),
    TakeOver(Shape, usize),
    Lead(usize, Epoch),
    RecordActive(Epoch),
    Deliver(Frame),
}

impl Model for Shard {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let begin = |shape: &Shape| {
            let durability = if self.cuts > 0 { Durability::Interval } else { Durability::Always };
            let mut world = World::new(self.nodes, *shape, self.ticks > 0, durability, self.mistake);
            (self.prepare)(&mut world);
            world
        };
        self.shapes[0].iter().map(begin).collect()
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.wrong.is_some() {
            return;
        }
        for (at, node) in world.nodes.iter().enumerate() {
            if node.serves() && world.writes < self.writes {
                steps.push(Step::Write(at));
            }
            if node.serves() && world.reads < self.reads {
                steps.push(Step::Read(at));
            }
            if node.leading.is_some() && world.rounds < self.rounds {
                steps.push(Step::BeginRound(at));
            }
            if node.unsynced() > 0 {
                steps.push(Step::Sync(at));
            }
            if self.cuts > 0 && node.can_cache() {
                steps.push(Step::Cache(at));
            }
            if world.cuts < self.cuts {
                steps.extend((0..=node.unsynced()).map(|kept| Step::CutPower { node: at, kept }));
            }
            if node.can_trim() && world.trims < self.trims {
                steps.push(Step::Trim(at));
            }
            if world.crashes < self.crashes {
                steps.extend((0..=node.written()).map(|kept| Step::Crash { node: at, kept }));
            }
            if world.wipes < self.wipes {
                steps.push(Step::Wipe(at));
            }
            if world.sealing.is_some() {
                steps.push(Step::Seal(at));
            }
            steps.extend(world.to_lead(at).map(|epoch| Step::Lead(at, epoch)));
        }
        if self.cuts > 0 && world.cuts == 0 {
            steps.push(Step::CutAll);
        }
        if world.now < Time(0).plus_millis(self.ticks) {
            steps.push(Step::Tick);
        }
        let newest = world.history.newest().config.epoch();
        let next = newest.next();
        if next.0 as usize <= self.shapes.len() {
            match world.sealing {
                None => steps.push(Step::BeginSealing(next)),
                Some(_) => {
                    for shape in &self.shapes[next.0 as usize - 1] {
                        steps.extend(shape.0.iter().map(|primary| Step::TakeOver(*shape, *primary)));
                    }
                }
            }
        }
        for record in &world.history.records()[1..] {
            let epoch = record.config.epoch();
            if world.nodes.iter().any(|node| node.replica.active() == epoch) {
                steps.push(Step::RecordActive(epoch));
            }
        }
        steps.extend(world.frames.iter().cloned().map(Step::Deliver));
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut world = before.clone();
        let moved = catch_unwind(AssertUnwindSafe(|| {
            match &step {
                Step::Write(node) => world.write(*node),
                Step::Sync(node) => world.sync(*node),
                Step::Cache(node) => world.cache(*node),
                Step::Crash { node, kept } => world.crash(*node, *kept),
                Step::CutPower { node, kept } => world.cut_power(*node, *kept),
                Step::CutAll => world.cut_all(),
                Step::Wipe(node) => world.wipe(*node),
                Step::Tick => world.tick(),
                Step::BeginRound(node) => world.begin_round(*node),
                Step::Read(node) => world.read(*node, self.kind),
                Step::Trim(node) => world.trim(*node),
                Step::BeginSealing(epoch) => world.begin_sealing(*epoch),
                Step::Seal(node) => {
                    if let Some(epoch) = world.sealing {
                        world.seal(*node, epoch);
                    }
                }
                Step::TakeOver(shape, primary) => {
                    // One that may not begin changes nothing.
                    let _ = world.take_over(*shape, *primary, false);
                }
                Step::Lead(node, epoch) => world.lead(*node, *epoch),
                Step::RecordActive(epoch) => world.record_active(*epoch),
                Step::Deliver(frame) => world.deliver(frame),
            }
            world.check_states();
            world.check_ages();
        }));
        if moved.is_err() {
            world = before.clone();
            world.wrong = Some("a replica panics");
        }
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("the rules hold", |_, world: &World| world.wrong.is_none())]
    }
}

/// The number of states, repeated ones included, after which a mistake counts as not found; and that in which none is made.
const STATES: usize = 300_000;
const STATES_HELD: usize = 80_000;

const ABC: Shape = (&[0, 1, 2], 2);
const ABC_ALL: Shape = (&[0, 1, 2], 3);
const ABC_ONE: Shape = (&[0, 1, 2], 1);
const ABD: Shape = (&[0, 1, 3], 2);
const A: Shape = (&[0], 1);
const BC: Shape = (&[1, 2], 2);
const CD: Shape = (&[2, 3], 2);

fn shard(shapes: &[&[Shape]]) -> Shard {
    let shapes: Vec<Vec<Shape>> = shapes.iter().map(|shapes| shapes.to_vec()).collect();
    let nodes = shapes.iter().flatten().flat_map(|(members, _)| members.iter()).max().expect("members") + 1;
    Shard {
        nodes,
        shapes,
        prepare: |_| {},
        writes: 1,
        crashes: 1,
        cuts: 0,
        wipes: 0,
        ticks: 0,
        rounds: 0,
        reads: 0,
        kind: ReadKind::Linearizable,
        trims: 0,
        mistake: None,
    }
}

/// Explores a model up to a number of states and expects that no rule is broken.
fn holds(name: &str, shard: Shard) {
    let checker = shard.checker().threads(2).target_state_count(STATES_HELD).spawn_bfs().join();
    println!("{name}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    if let Some(path) = checker.discovery("the rules hold") {
        panic!("{name}: {:?}\n{path}", path.last_state().wrong);
    }
}

/// Expects that a mistake is found, and that the same world without it holds as long.
fn finds(mistake: Mistake, shard: Shard) {
    // A panic of a replica is a finding; those of the test itself are printed.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name().is_none_or(|name| !name.starts_with("checker")) {
            print(panic);
        }
    }));
    let wrong = Shard { mistake: Some(mistake), ..shard.clone() };
    let wanted = HasDiscoveries::AnyFailures;
    let checker =
        wrong.checker().threads(2).target_state_count(STATES).finish_when(wanted).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    let Some(path) = checker.discovery("the rules hold") else {
        panic!("{mistake:?} is not found in {states} states of depth {depth}");
    };
    println!("{mistake:?}: {states} states, depth {depth}: {:?}", path.last_state().wrong);
    let sound = shard.checker().threads(2).target_state_count(states.min(20_000)).spawn_bfs().join();
    if let Some(path) = sound.discovery("the rules hold") {
        panic!("without {mistake:?}: {:?}\n{path}", path.last_state().wrong);
    }
}

#[test]
fn three_members() {
    holds("three members", shard(&[&[ABC], &[ABC], &[ABC]]));
}

#[test]
fn w_changes_with_every_epoch() {
    holds("W changes", shard(&[&[ABC_ALL], &[ABC_ONE, ABC], &[ABC_ALL]]));
}

#[test]
fn members_change_with_every_epoch() {
    holds("members change", shard(&[&[ABC], &[ABD, CD], &[ABC]]));
}

#[test]
fn members_of_an_epoch_that_is_not_active_lead_the_next_one() {
    // The member of the last active epoch led the one after it, and may have lost its start entry, which the others have.
    holds("not active", shard(&[&[A], &[ABC], &[ABC, BC]]));
}

#[test]
fn leases() {
    let shard = shard(&[&[ABC_ONE], &[ABC_ONE, ABC]]);
    holds(
        "leases",
        Shard { prepare: prepared::leased, ticks: 3, rounds: 2, reads: 1, kind: ReadKind::Primary, ..shard },
    );
}

#[test]
fn reads_beside_a_deposed_primary() {
    let shard = shard(&[&[ABC], &[ABC], &[ABC]]);
    let prepare = prepared::two_primaries;
    holds("reads", Shard { prepare, ticks: 2, rounds: 3, reads: 2, crashes: 0, writes: 2, ..shard });
}

/// A world whose members acknowledge before they sync.
fn relaxed(shapes: &[&[Shape]]) -> Shard {
    Shard { cuts: 2, crashes: 0, ..shard(shapes) }
}

#[test]
fn power_cuts() {
    holds("power cuts", relaxed(&[&[ABC], &[ABC, BC], &[ABC]]));
}

#[test]
fn power_cuts_behind_an_acknowledged_entry() {
    let shard = relaxed(&[&[ABC], &[ABC, BC], &[ABC]]);
    holds("power cuts later", Shard { prepare: prepared::acknowledged, writes: 0, ..shard });
}

#[test]
fn power_cuts_beside_early_answers() {
    holds("power cuts, W = 1", relaxed(&[&[ABC_ONE], &[ABC, ABC_ONE], &[ABC_ALL]]));
}

#[test]
fn a_shard_goes_on_after_a_power_cut_of_all_and_announces_the_loss() {
    let mut world = World::new(3, ABC, false, Durability::Interval, None);
    prepared::acknowledged(&mut world);
    let lost = *world.answered.keys().next_back().unwrap();
    assert_eq!(lost.value, 1, "the client's, not the start entry");
    world.cut_all();
    world.begin_sealing(Epoch(2));
    for node in 0..3 {
        world.seal(node, Epoch(2));
        world.sync(node);
    }
    world.take_over(ABC, 0, false).unwrap();
    world.lead(0, Epoch(2));
    world.settle();
    assert!(world.nodes[0].serves());
    assert_eq!(world.wrong, None);
    assert!(world.history.losses().has(lost.at));
}

#[test]
fn a_forgotten_doubt_is_found() {
    let shard = relaxed(&[&[ABC], &[ABC]]);
    finds(Mistake::DoubtForgotten, Shard { prepare: prepared::acknowledged, writes: 0, ..shard });
}

#[test]
fn a_loss_by_power_cuts_that_is_not_recorded_is_found() {
    let shard = relaxed(&[&[ABC], &[ABC]]);
    finds(Mistake::LossNotRecorded, Shard { prepare: prepared::acknowledged, writes: 0, ..shard });
}

#[test]
fn snapshots() {
    let shard = shard(&[&[ABC], &[ABC], &[ABC]]);
    holds("snapshots", Shard { prepare: prepared::one_behind, trims: 1, ..shard });
}

#[test]
fn a_seal_that_is_not_durable_is_found() {
    finds(Mistake::SealNotDurable, shard(&[&[ABC], &[ABC]]));
}

#[test]
fn an_append_after_a_seal_is_found() {
    finds(Mistake::TakesAfterSeal, Shard { crashes: 0, ..shard(&[&[ABC], &[ABC]]) });
}

#[test]
fn a_wiped_voter_is_found() {
    finds(Mistake::WipedVoter, Shard { wipes: 1, crashes: 0, ..shard(&[&[ABC], &[ABC]]) });
}

#[test]
fn a_primary_that_goes_on_after_a_restart_is_found() {
    finds(Mistake::LeadsAgain, shard(&[&[ABC], &[ABC]]));
}

#[test]
fn a_learner_that_counts_is_found() {
    finds(Mistake::LearnerCounts, Shard { crashes: 0, ..shard(&[&[ABC], &[ABC, ABD]]) });
}

#[test]
fn a_loss_that_is_not_recorded_is_found() {
    finds(Mistake::LossNotRecorded, Shard { crashes: 0, ..shard(&[&[ABC_ONE], &[ABC]]) });
}

#[test]
fn a_takeover_that_looks_at_the_newest_epoch_only_is_found() {
    let shard = shard(&[&[ABC], &[CD], &[ABD]]);
    finds(Mistake::NewestEpochOnly, Shard { prepare: prepared::moved, crashes: 0, ..shard });
}

#[test]
fn a_longest_log_that_wins_is_found() {
    let shard = shard(&[&[ABC], &[ABC], &[ABC]]);
    finds(Mistake::LongestWins, Shard { prepare: prepared::long_old_tail, crashes: 0, writes: 0, ..shard });
}

#[test]
fn an_old_tail_that_counts_is_found() {
    let shard = shard(&[&[ABC], &[ABC], &[ABC], &[ABC]]);
    finds(
        Mistake::OldTailCounts,
        Shard { prepare: prepared::old_tail_returns, crashes: 0, writes: 0, ..shard },
    );
}

#[test]
fn an_acknowledgement_of_what_was_not_verified_is_found() {
    let shard = shard(&[&[ABC], &[ABC], &[ABC], &[ABC]]);
    finds(Mistake::AcksLast, Shard { prepare: prepared::another_tail, crashes: 0, writes: 0, ..shard });
}

#[test]
fn a_w_that_changes_within_an_epoch_is_found() {
    finds(Mistake::AcksChange, Shard { crashes: 0, ..shard(&[&[ABC_ALL], &[ABC]]) });
}

#[test]
fn an_ignored_lease_is_found() {
    let shard = Shard { ticks: 3, reads: 1, crashes: 0, ..shard(&[&[ABC_ONE], &[ABC]]) };
    finds(Mistake::LeaseIgnored, Shard { prepare: prepared::leased, kind: ReadKind::Primary, ..shard });
}

#[test]
fn a_member_that_forgets_its_grants_is_found() {
    let shard = Shard { ticks: 1, reads: 1, ..shard(&[&[ABC_ONE], &[ABC]]) };
    finds(Mistake::ForgetsGrants, Shard { prepare: prepared::leased, kind: ReadKind::Primary, ..shard });
}

#[test]
fn a_round_that_began_before_its_read_is_found() {
    let shard = Shard { reads: 1, crashes: 0, ..shard(&[&[ABC], &[ABC]]) };
    finds(Mistake::OldRound, Shard { prepare: prepared::asked_and_overtaken, ..shard });
}

#[test]
fn a_speculative_read_is_found() {
    finds(Mistake::SpeculativeRead, Shard { rounds: 1, reads: 1, crashes: 0, ..shard(&[&[ABC]]) });
}

#[test]
fn a_paused_primary_that_claims_to_be_fresh_is_found() {
    let shard = Shard { ticks: 2, rounds: 1, crashes: 0, ..shard(&[&[ABC], &[ABC]]) };
    finds(Mistake::PausedClaimsFresh, Shard { prepare: prepared::two_primaries, ..shard });
}

#[test]
fn a_late_report_that_makes_a_state_fresh_is_found() {
    let shard = Shard { ticks: 3, crashes: 0, ..shard(&[&[ABC], &[ABC]]) };
    finds(Mistake::ReportClaimsFresh, Shard { prepare: prepared::a_late_report, ..shard });
}

#[test]
fn a_snapshot_of_what_is_not_committed_is_found() {
    let shard = Shard { crashes: 0, ..shard(&[&[ABC], &[ABC]]) };
    finds(Mistake::SnapshotAhead, Shard { prepare: prepared::one_behind, ..shard });
}

#[test]
fn an_install_that_keeps_another_tail_is_found() {
    let shard = Shard { crashes: 0, writes: 0, ..shard(&[&[ABC], &[ABC]]) };
    finds(Mistake::KeepsTail, Shard { prepare: prepared::another_tail_meets_a_snapshot, ..shard });
}
