//! The reports of a node's replicas to the control plane.

use crate::bell::Bell;
use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};
use std::sync::{Mutex, MutexGuard, PoisonError};
use stead_core::control::facts::{Fact, ShardReport};
use stead_core::ids::ShardId;

/// The news of a node's replicas that wait to be sent to the control plane. The part that talks to it takes them, and a simulator
/// does in its place. Its orders come back as [`Shared::push_replica`](crate::Shared::push_replica).
#[derive(Debug, Default)]
pub struct ControlDesk {
    waiting: Mutex<Waiting>,
    /// Rung when there are any.
    pub bell: Bell,
}

#[derive(Debug, Default)]
struct Waiting {
    facts: Vec<Fact>,
    /// By shard, the newest report.
    reports: BTreeMap<ShardId, ShardReport>,
}

/// News of a node's replicas.
#[derive(Debug, Default)]
pub struct ControlNews {
    /// The answers to the control plane's orders, in their order.
    pub facts: Vec<Fact>,
    /// The newest report on each replica that has changed.
    pub reports: Vec<ShardReport>,
}

impl ControlDesk {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves news. What waits and is replaced by it is dropped, so that no more waits than a few facts for each shard and node.
    pub fn leave(&self, news: &mut ControlNews) {
        if news.facts.is_empty() && news.reports.is_empty() {
            return;
        }
        let mut waiting = self.waiting();
        for fact in news.facts.drain(..) {
            if let Some(about) = about(&fact) {
                waiting.facts.retain(|waiting| self::about(waiting) != Some(about));
            }
            waiting.facts.push(fact);
        }
        waiting.reports.extend(news.reports.drain(..).map(|report| (report.shard, report)));
        drop(waiting);
        self.bell.ring();
    }

    /// Takes all news.
    pub fn take(&self) -> ControlNews {
        let Waiting { facts, reports } = std::mem::take(&mut *self.waiting());
        ControlNews { facts, reports: reports.into_values().collect() }
    }
}

/// Returns the kind of a fact and the shard or node that it is about, of which the newest fact replaces the others: a later seal or
/// promise covers those before, and a node that is gone again is gone. `None` if none replaces it.
fn about(fact: &Fact) -> Option<(Discriminant<Fact>, u32)> {
    let of = match fact {
        Fact::Sealed(shard, _)
        | Fact::Superseded { shard, .. }
        | Fact::CannotLead { shard, .. }
        | Fact::Void(shard, _) => shard.0,
        Fact::Closed(node) | Fact::Refused(node) => node.0,
        _ => return None,
    };
    Some((discriminant(fact), of))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_core::ids::{Epoch, NodeId, ReplicaId};

    #[test]
    fn what_nothing_takes_has_a_bound() {
        let desk = ControlDesk::default();
        for epoch in 1..=100 {
            let report = |shard| ShardReport {
                shard: ShardId(shard),
                replica: ReplicaId(1),
                promised: Epoch(epoch),
                active: Epoch(0),
                leads: None,
                learners: Vec::new(),
                caught_up: Vec::new(),
                max_lag: None,
            };
            let superseded = |shard| Fact::Superseded { shard: ShardId(shard), promised: Epoch(epoch) };
            let facts = vec![superseded(1), Fact::Closed(NodeId(1)), superseded(2)];
            desk.leave(&mut ControlNews { facts, reports: vec![report(2), report(1)] });
        }
        let ControlNews { facts, reports } = desk.take();
        let promised: Vec<_> = reports.iter().map(|report| (report.shard.0, report.promised.0)).collect();
        assert_eq!(promised, [(1, 100), (2, 100)]);
        let [
            Fact::Superseded { shard: ShardId(1), promised: Epoch(100) },
            Fact::Closed(NodeId(1)),
            Fact::Superseded { shard: ShardId(2), promised: Epoch(100) },
        ] = facts[..]
        else {
            panic!("{facts:?}")
        };
        assert!(desk.take().facts.is_empty());
    }
}
