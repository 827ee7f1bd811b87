//! The reports of a node's replicas to the control plane.

use crate::bell::Bell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use stead_core::control::facts::{Fact, ShardReport};

/// The news of a node's replicas that wait to be sent to the control plane. The part that talks to it takes them, and a simulator
/// does in its place. Its orders come back as [`Shared::push_replica`](crate::Shared::push_replica).
#[derive(Debug, Default)]
pub struct ControlDesk {
    waiting: Mutex<ControlNews>,
    /// Rung when there are any.
    pub bell: Bell,
}

/// News of a node's replicas.
#[derive(Debug, Default)]
pub struct ControlNews {
    /// The answers to the control plane's orders, in their order.
    pub facts: Vec<Fact>,
    /// Reports on the replicas that have changed, the newest last.
    pub reports: Vec<ShardReport>,
}

impl ControlDesk {
    fn waiting(&self) -> MutexGuard<'_, ControlNews> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves news.
    pub fn leave(&self, news: &mut ControlNews) {
        if news.facts.is_empty() && news.reports.is_empty() {
            return;
        }
        let mut waiting = self.waiting();
        waiting.facts.append(&mut news.facts);
        waiting.reports.append(&mut news.reports);
        drop(waiting);
        self.bell.ring();
    }

    /// Takes all news.
    pub fn take(&self) -> ControlNews {
        std::mem::take(&mut *self.waiting())
    }
}
