//! Readable transcripts of replicas, their primary and the control plane. Nodes are letters, entries are `epoch.index`; those
//! in parentheses are not durable yet, those in brackets are in a snapshot only. Nothing arrives or is synced unless it is said.

use crate::transcript;
use crate::world::{Frame, Shape, World};
use std::collections::BTreeSet;
use stead_core::durability::Durability;
use stead_core::ids::{Epoch, Micros, ReplicaId};
use stead_core::replication::reads::ReadKind;
use stead_core::replication::table::LogPoint;

fn node(name: &str) -> usize {
    usize::from(name.as_bytes()[0] - b'a')
}

fn number(word: &str) -> u64 {
    word.parse().expect("a number")
}

fn shape(members: &str, acks: &str) -> Shape {
    let nodes: Vec<usize> = members.split("").filter(|name| !name.is_empty()).map(node).collect();
    (Box::leak(nodes.into_boxed_slice()), number(acks) as usize)
}

fn point(at: LogPoint) -> String {
    format!("{}.{}", at.epoch, at.index)
}

fn points(points: impl Iterator<Item = LogPoint>) -> String {
    points.map(point).collect::<Vec<_>>().join(" ")
}

/// The name of the node that has a replica; replicas of disks that were exchanged are named by their number.
fn name(world: &World, id: ReplicaId) -> String {
    world.node_of(id).map_or_else(|| format!("replica {id}"), |at| char::from(b'a' + at as u8).to_string())
}

fn describe_node(world: &World, at: usize) -> String {
    let node = &world.nodes[at];
    let all: Vec<LogPoint> = node.entries().iter().map(|entry| entry.at).collect();
    let durable = node.disk.entries.iter().zip(&all).take_while(|(entry, at)| entry.at == **at).count();
    let trimmed = (node.replica.table().base().index.0 as usize).min(durable);
    let mut parts = Vec::new();
    for (from, upto, around) in [(0, trimmed, "[]"), (trimmed, durable, ""), (durable, all.len(), "()")] {
        if from < upto {
            let text = points(all[from..upto].iter().copied());
            let (open, close) = around.split_at(around.len() / 2);
            parts.push(format!("{open}{text}{close}"));
        }
    }
    let log = if parts.is_empty() { "nothing".to_owned() } else { parts.join(" ") };
    let replica = &node.replica;
    let mut text = format!("{} has {log}", name(world, replica.id()));
    text += &format!(" of {} committed {}", replica.promised(), replica.commit());
    match replica.leads() {
        Some(_) if node.serves() => text += " serves",
        Some(_) => text += " leads",
        None => {}
    }
    text
}

fn describe_frame(world: &World, frame: &Frame) -> String {
    match frame {
        Frame::Append { to, head, entries } => {
            let sent = points(entries.iter().map(|entry| entry.at));
            let sent = if sent.is_empty() { "nothing" } else { &sent };
            format!("{} is sent {sent} after {}", name(world, *to), point(head.before))
        }
        Frame::Snapshot { to, state, .. } => {
            let base = state.last().map_or(LogPoint::default(), |entry| entry.at);
            format!("{} is sent a snapshot of {}", name(world, *to), point(base))
        }
        Frame::Ask { to, ask } => format!("{} is asked in round {}", name(world, *to), ask.round),
        Frame::Ack { from, epoch, upto } => format!("{} acks {upto} in epoch {epoch}", name(world, *from)),
        Frame::Diverged { from, epoch, .. } => format!("{} differs in epoch {epoch}", name(world, *from)),
        Frame::Confirm { from, round, .. } => format!("{} confirms round {round}", name(world, *from)),
    }
}

/// The difference between two worlds, in words.
fn describe(before: &World, after: &World) -> Vec<String> {
    let mut text = Vec::new();
    for at in 0..after.nodes.len() {
        let now = describe_node(after, at);
        if describe_node(before, at) != now {
            text.push(now);
        }
    }
    text.extend(after.frames.difference(&before.frames).map(|frame| describe_frame(after, frame)));
    let sealed = after.answers.keys().filter(|id| !before.answers.contains_key(id));
    text.extend(sealed.map(|id| format!("{} is sealed", name(after, *id))));
    for record in &after.records[before.records.len()..] {
        let mut line = format!("epoch {} begins after {}", record.config.epoch(), point(record.base));
        for last in record.losses.iter() {
            line += &format!("; of epoch {} all after {} is lost", last.epoch, last.index);
        }
        text.push(line);
    }
    let answered = after.answered.keys().filter(|entry| !before.answered.contains_key(entry));
    text.extend(answered.map(|entry| format!("{} is answered", point(entry.at))));
    if after.reads_answered > before.reads_answered {
        text.push("the read is answered".to_owned());
    }
    text
}

fn perform(world: &mut Option<World>, words: &[&str]) -> Vec<String> {
    if let ["shard", members, acks, rest @ ..] = words {
        let shape = shape(members, acks);
        let nodes = rest.first().map_or(shape.0.len(), |nodes| number(nodes) as usize);
        let new = world.insert(World::new(nodes, shape, true, Durability::Always, None));
        return (0..nodes).map(|at| describe_node(new, at)).collect();
    }
    let world = world.as_mut().expect("a shard");
    let before = world.clone();
    let mut said = Vec::new();
    match words {
        ["write", at] => world.write(node(at)),
        ["sync", names @ ..] => names.iter().for_each(|at| world.sync(node(at))),
        ["crash", at] => world.crash(node(at), 0),
        ["tick"] => world.tick(),
        ["round", at] => world.begin_round(node(at)),
        ["read", at, "primary"] => world.read(node(at), ReadKind::Primary),
        ["read", at, "linearizable"] => world.read(node(at), ReadKind::Linearizable),
        ["trim", at] => world.trim(node(at)),
        ["reconnect", at] => world.reconnect(node(at)),
        ["seal", epoch, names @ ..] => {
            let epoch = Epoch(number(epoch));
            if world.sealing != Some(epoch) {
                world.begin_sealing(epoch);
            }
            names.iter().for_each(|at| world.seal(node(at), epoch));
        }
        ["begin", members, acks, primary] | ["force", members, acks, primary] => {
            let is_forced = words[0] == "force";
            match world.take_over(shape(members, acks), node(primary), is_forced) {
                Err(error) => said.push(error.to_string()),
                Ok(()) if world.records.len() == before.records.len() => {
                    said.push(format!("{primary} has not the best log"));
                }
                Ok(()) => {}
            }
        }
        ["lead", at, epoch] => world.lead(node(at), Epoch(number(epoch))),
        ["deliver", at] | ["lose", at] => {
            let frames = std::mem::take(&mut world.frames);
            let (here, others) =
                frames.into_iter().partition(|frame| world.receiver(frame) == Some(node(at)));
            world.frames = others;
            if words[0] == "deliver" {
                let here: BTreeSet<Frame> = here;
                here.iter().for_each(|frame| world.deliver(frame));
            }
        }
        ["age", at] => {
            let replica = &world.nodes[node(at)].replica;
            said.push(match replica.staleness(world.now, Micros(2_000)) {
                Ok(age) => age.to_string(),
                Err(error) => error.to_string(),
            });
        }
        _ => panic!("an unknown command: {words:?}"),
    }
    world.check_states();
    world.check_ages();
    assert_eq!(world.wrong, None, "after {words:?}");
    said.extend(describe(&before, world));
    said
}

macro_rules! transcripts {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                let text = include_str!(concat!("../testdata/replication/", stringify!($name), ".txt"));
                let mut world = None;
                transcript::replay(stringify!($name), text, |words| perform(&mut world, words));
            }
        )*
    };
}

transcripts! {
    a_seal_race_leaves_one_epoch
    an_epoch_that_never_became_active
    two_failovers_in_a_row
    a_lossy_takeover_says_what_is_lost
    a_divergent_tail_is_truncated
    an_install_while_the_primary_trims
    a_lease_that_a_pause_outlasts
    an_operator_goes_on_with_one_of_three
    a_backup_says_how_old_its_state_is
}
