//! Transcripts of the commit rule and of a channel.

use crate::transcript::replay;
use crate::world::World;
use std::collections::BTreeMap;
use stead_core::calls::Identity;
use stead_core::channel::Message;
use stead_core::commit_tracker::{CommitTracker, EpochConfig};
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{Epoch, Index, ReplicaId, ShardId};
use stead_core::shard::Input;

/// Parses a list of replicas such as `1,2,3`, or `none`.
fn replicas(list: &str) -> Vec<ReplicaId> {
    list.split(',').filter(|id| *id != "none").map(|id| ReplicaId(id.parse().unwrap())).collect()
}

#[test]
fn the_commit_rule() {
    let mut tracker = None;
    replay("commit_rule", include_str!("../testdata/commit_rule.txt"), |words| {
        vec![match *words {
            ["epoch", epoch, "members", members, "acks", acks, "primary", primary, "start", start] => {
                let (acks, primary) = (acks.parse().unwrap(), ReplicaId(primary.parse().unwrap()));
                let config =
                    EpochConfig::parse(Epoch(epoch.parse().unwrap()), replicas(members), acks, primary);
                match config {
                    Err(error) => error.to_string(),
                    Ok(config) => {
                        let quorum = config.commit_quorum();
                        tracker = Some(CommitTracker::new(config, Index(start.parse().unwrap())));
                        format!("{quorum} must store an entry")
                    }
                }
            }
            ["stored", member, upto] => {
                let tracker: &mut CommitTracker = tracker.as_mut().unwrap();
                let (member, upto) = (ReplicaId(member.parse().unwrap()), Index(upto.parse().unwrap()));
                let grows = if tracker.handle_stored(member, upto) { "" } else { " as before" };
                let active = if tracker.is_active() { "active" } else { "starting" };
                format!("{active}, commit {}{grows}", tracker.commit())
            }
            _ => panic!("no command {words:?}"),
        }]
    });
}

/// Two shards whose frames a transcript delivers, loses, delays and repeats.
struct Channel {
    world: World,
    /// Number of entries of each shard that were shown.
    shown: BTreeMap<ShardId, usize>,
    /// All frames that have left, in order; a number from 1 on names one.
    frames: Vec<(ShardId, Input)>,
}

impl Channel {
    fn new() -> Self {
        let world = World::new();
        assert_ne!(world.shard_of("a"), world.shard_of("b"), "the two processes are on two shards");
        let shown = world.log.iter().map(|(shard, log)| (*shard, log.len())).collect();
        Self { world, shown, frames: Vec::new() }
    }

    fn name(&self, shard: ShardId) -> &'static str {
        let is = |name: &&&str| self.world.shard_of(name) == shard;
        ["a", "b"].iter().find(is).expect("the transcript has two shards")
    }

    fn perform(&mut self, words: &[&str]) -> Vec<String> {
        match *words {
            ["request", key, ref payload @ ..] => {
                self.world.request(key, &payload.join(" "), Identity::None);
            }
            ["store", key] => self.world.store(self.world.shard_of(key)),
            ["deliver", frame] => {
                let (to, input) = self.frames[frame.parse::<usize>().unwrap() - 1].clone();
                self.world.give(to, input);
            }
            ["pass", millis] => {
                self.world.now = self.world.now.plus_millis(millis.parse().unwrap());
                for key in ["a", "b"] {
                    self.world.give(self.world.shard_of(key), Input::Tick);
                }
            }
            ["crash"] => {
                self.world.crash();
                for (shard, log) in &self.world.log {
                    let old = log.iter().take_while(|entry| entry.epoch < self.world.epoch).count();
                    self.shown.insert(*shard, old);
                }
            }
            ["show", key] => return self.show(key),
            _ => panic!("no command {words:?}"),
        }
        self.news()
    }

    /// Shows the shard's ends of its channels.
    fn show(&self, key: &str) -> Vec<String> {
        let state = self.world.shard(key).state();
        let mut out = vec![format!("state {:?}", self.world.state(key))];
        for (to, outbox) in state.outboxes().iter() {
            let held: Vec<String> = outbox.messages.iter().map(|message| message.seq.to_string()).collect();
            out.push(format!("outbox to {} [{}] next {}", self.name(to), held.join(" "), outbox.next));
        }
        for (from, seq) in state.received().iter() {
            out.push(format!("received {} {seq}", self.name(from)));
        }
        out
    }

    /// Shows the entries and frames since the last command.
    fn news(&mut self) -> Vec<String> {
        let mut out = Vec::new();
        for key in ["a", "b"] {
            let shard = self.world.shard_of(key);
            let log = &self.world.log[&shard];
            let shown = self.shown.entry(shard).or_default();
            let new = log[(*shown).min(log.len())..].iter();
            *shown = log.len();
            for entry in new {
                out.push(format!("{key} logs {}: {}", entry.index, self.what(entry)));
            }
        }
        for (to, input) in std::mem::take(&mut self.world.wire) {
            let (to_name, frame) = (self.name(to), self.frames.len() + 1);
            match &input {
                Input::Deliver { from, messages, again } => {
                    let seqs: Vec<String> = messages.iter().map(|m: &Message| m.seq.to_string()).collect();
                    let again = if *again { " again" } else { "" };
                    let from = self.name(*from);
                    out.push(format!("frame {frame}: {from} to {to_name} [{}]{again}", seqs.join(" ")));
                }
                Input::Ack { from, upto, .. } => {
                    out.push(format!("frame {frame}: {} to {to_name} ack {upto}", self.name(*from)));
                }
                other => panic!("{other:?} is no frame"),
            }
            self.frames.push((to, input));
        }
        out
    }

    fn what(&self, entry: &Entry) -> String {
        let cause = match &entry.cause {
            Cause::Start => format!("start of epoch {}", entry.epoch),
            Cause::Anonymous => "request".to_owned(),
            Cause::Message { from, seq } => format!("receives {} {seq}", self.name(*from)),
            Cause::Ack { trims } => {
                let trims = trims.iter().map(|trim| format!("to {} up to {}", self.name(trim.to), trim.upto));
                format!("trims {}", trims.collect::<Vec<_>>().join(" "))
            }
            Cause::Attempt => "attempt".to_owned(),
            other => panic!("{other:?} is not in the transcript"),
        };
        let sends: Vec<&str> = entry.sends.iter().map(|send| self.name(send.to)).collect();
        if sends.is_empty() { cause } else { format!("{cause} and sends to {}", sends.join(" ")) }
    }
}

#[test]
fn a_channel() {
    let mut channel = Channel::new();
    replay("channel", include_str!("../testdata/channel.txt"), |words| channel.perform(words));
}
