//! The parts of a node by their names: the group with which each ends, and those that run.

use crate::bell::Bell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use stead_core::shutdown::Group;

/// The name of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartId {
    /// A part that owns shards, by its number.
    Worker(usize),
    /// A part that runs steps of tasks, by its number.
    Step(usize),
    /// The part that writes the log.
    Log,
    /// The part that has the connections to other nodes.
    Peers,
    /// The part that carries snapshots to and from other nodes.
    Transfers,
    /// The part that prepares the log's segments.
    Preparer,
    /// The part that takes checkpoints.
    Checkpoints,
    /// The part that merges bundles.
    Merges,
    /// The part that runs the services' checks.
    Checks,
    /// The part that copies checkpoints.
    Copies,
    /// A part that runs queries, by the order in which they are made.
    Query(usize),
    /// The part that watches over queries.
    QueryWatch,
    /// The watchdog of user code, which waits on a thread of its own and takes no turns.
    Watchdog,
    /// The part that ends the others.
    End,
}

impl PartId {
    /// Returns the group with which it ends; `None` if nothing waits for it.
    fn group(self) -> Option<Group> {
        match self {
            Self::Step(_) => Some(Group::Tasks),
            Self::Checkpoints | Self::Merges | Self::Copies => Some(Group::Checkpoints),
            Self::Worker(_) => Some(Group::Workers),
            // The watcher gives up queries until their clients have answers, which is the end of the group before.
            // The shards need their peers to commit their last work.
            Self::Log | Self::Peers | Self::Transfers | Self::Preparer | Self::QueryWatch => Some(Group::Log),
            Self::Checks | Self::Watchdog => Some(Group::Watchdog),
            // User code cannot be stopped: only those that are idle are waited for.
            Self::Query(_) | Self::End => None,
        }
    }

    /// Returns the name of its thread.
    pub(crate) fn thread_name(self) -> String {
        match self {
            Self::Worker(number) => format!("stead-worker-{number}"),
            Self::Step(number) => format!("stead-task-{number}"),
            Self::Log => "stead-log".to_owned(),
            Self::Peers => "stead-peers".to_owned(),
            Self::Transfers => "stead-transfers".to_owned(),
            Self::Preparer => "stead-segments".to_owned(),
            Self::Checkpoints => "stead-checkpoint".to_owned(),
            Self::Merges => "stead-merge".to_owned(),
            Self::Checks => "stead-checks".to_owned(),
            Self::Copies => "stead-copies".to_owned(),
            Self::Query(_) => "stead-query".to_owned(),
            Self::QueryWatch => "stead-queries".to_owned(),
            Self::Watchdog => "stead-watchdog".to_owned(),
            Self::End => "stead-end".to_owned(),
        }
    }

    /// Whether callers do not wait for its work: its thread has a lower priority.
    pub(crate) fn lets_others_first(self) -> bool {
        matches!(
            self,
            Self::Transfers | Self::Preparer | Self::Checkpoints | Self::Merges | Self::Checks | Self::Copies
        )
    }
}

/// The parts that run.
#[derive(Default)]
pub(crate) struct Roster(Mutex<Held>);

#[derive(Default)]
struct Held {
    /// Those that run, with their threads once these are known. In the simulator they have none.
    running: BTreeMap<PartId, Option<ThreadId>>,
    /// Those that do not end, and that the end of the node has left to themselves.
    left: BTreeSet<PartId>,
    /// Rung when one has ended.
    bell: Option<Arc<Bell>>,
}

impl Roster {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(&self, part: PartId) {
        self.held().running.insert(part, None);
    }

    /// Notes the thread of a part.
    pub(crate) fn run_on(&self, part: PartId, thread: ThreadId) {
        self.held().running.insert(part, Some(thread));
    }

    pub(crate) fn end(&self, part: PartId) {
        self.held().running.remove(&part);
        self.ring();
    }

    /// Whether a part has begun and not ended.
    pub(crate) fn runs(&self, part: PartId) -> bool {
        self.held().running.contains_key(&part)
    }

    /// Whether no part of a group runs, except for the one by which the node is ended.
    pub(crate) fn has_ended(&self, group: Group, by: Option<PartId>) -> bool {
        let runs = |part: &PartId| part.group() == Some(group) && Some(*part) != by;
        !self.held().running.keys().any(runs)
    }

    /// Returns the part that runs on a thread.
    pub(crate) fn part_on(&self, thread: ThreadId) -> Option<PartId> {
        let held = self.held();
        held.running.iter().find(|(_, own)| **own == Some(thread)).map(|(part, _)| *part)
    }

    /// Notes that nothing waits for this part any more.
    pub(crate) fn leave(&self, part: PartId) {
        let mut held = self.held();
        if held.running.contains_key(&part) {
            held.left.insert(part);
        }
    }

    pub(crate) fn is_left(&self, part: PartId) -> bool {
        self.held().left.contains(&part)
    }

    /// Sets the bell of the part that waits for the others.
    pub(crate) fn set_bell(&self, bell: Arc<Bell>) {
        self.held().bell = Some(bell);
    }

    /// Requests a turn of the part that waits for the others, if there is one.
    pub(crate) fn ring(&self) {
        let bell = self.held().bell.clone();
        if let Some(bell) = bell {
            bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn the_part_by_which_a_node_is_ended_is_not_waited_for() {
        let (roster, here) = (Roster::default(), thread::current().id());
        roster.begin(PartId::Worker(0));
        roster.begin(PartId::Worker(1));
        assert!(!roster.has_ended(Group::Workers, None) && roster.has_ended(Group::Log, None));
        assert_eq!(roster.part_on(here), None);
        roster.run_on(PartId::Worker(0), here);
        let by = roster.part_on(here);
        assert_eq!(by, Some(PartId::Worker(0)));
        assert!(!roster.has_ended(Group::Workers, by), "the other one runs");
        let bell = Arc::new(Bell::default());
        roster.set_bell(Arc::clone(&bell));
        roster.end(PartId::Worker(1));
        assert!(bell.take_ring() && roster.has_ended(Group::Workers, by));
        assert!(!roster.has_ended(Group::Workers, None));
        roster.leave(PartId::Worker(1));
        roster.leave(PartId::Worker(0));
        assert!(roster.is_left(PartId::Worker(0)) && !roster.is_left(PartId::Worker(1)));
    }
}
