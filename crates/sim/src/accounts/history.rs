//! The checks on the answers of clients.

use super::op::Output;
use crate::workload::CallId;
use std::collections::BTreeMap;

/// The checks on the answers of clients (invariants 6 and 7).
#[derive(Default)]
pub(super) struct History {
    /// By account, the last chain, and the highest count in it, of any answer.
    pub(super) floor: BTreeMap<String, (usize, u64)>,
    /// The chain at each committed count, by account; one more after each deletion of it.
    pub(super) chains: BTreeMap<String, Vec<Chain>>,
    /// The floor when a call was sent.
    pub(super) invoked: BTreeMap<CallId, (usize, u64)>,
    /// Tickets of committed calls.
    pub(super) tickets: BTreeMap<u64, Output>,
}

/// The chain of an account, from the first known count on.
#[derive(Default)]
pub(super) struct Chain {
    pub(super) base: u64,
    pub(super) first: u64,
    pub(super) links: Vec<u64>,
}

impl History {
    /// Returns the chains of an account, of which the last one grows.
    pub(super) fn chains_of(&mut self, account: &str) -> &mut Vec<Chain> {
        self.chains.entry(account.to_owned()).or_insert_with(|| vec![Chain::default()])
    }
}

impl Chain {
    pub(super) fn at(&self, count: u64) -> Option<u64> {
        let at = count.checked_sub(self.first)?;
        match at.checked_sub(1) {
            None => Some(self.base),
            Some(at) => self.links.get(at as usize).copied(),
        }
    }

    pub(super) fn last(&self) -> u64 {
        self.first + self.links.len() as u64
    }
}
