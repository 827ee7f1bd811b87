//! The addresses of other nodes, and what this node knows of its connections to them.

use crate::env::Env;
use crate::shared::Shared;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use stead_core::control::facts::PeerReport;
use stead_core::ids::{NodeId, Time};

/// The part with the connections shares this with those who follow the control plane.
#[derive(Debug, Default)]
pub(crate) struct PeerBoard(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    orders: Orders,
    seen: BTreeMap<NodeId, Seen>,
}

/// The requests to the part.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    /// The addresses of the other nodes, if they have changed.
    pub(crate) addresses: Option<BTreeMap<NodeId, SocketAddr>>,
    /// The nodes to which it has to connect at once.
    pub(crate) asks: BTreeSet<NodeId>,
}

/// A peer as the part has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// When it was heard last, or learnt of.
    pub(crate) heard: Time,
    /// Whether there is no connection to it.
    pub(crate) is_closed: bool,
}

impl PeerBoard {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_orders(&self) -> Orders {
        std::mem::take(&mut self.held().orders)
    }

    pub(crate) fn note(&self, seen: impl Iterator<Item = (NodeId, Seen)>) {
        let mut held = self.held();
        held.seen.clear();
        held.seen.extend(seen);
    }
}

impl<E: Env> Shared<E> {
    /// Replaces the addresses of the other nodes: this node connects to each. Connections to nodes that have none stay while their
    /// other end keeps them.
    pub fn set_peers(&self, addresses: BTreeMap<NodeId, SocketAddr>) {
        self.peer_board.held().orders.addresses = Some(addresses);
        self.peers.bell.ring();
    }

    /// Connects to a node at once, if there is no connection to it, instead of after the pause that follows a failed attempt.
    pub fn ask_peer(&self, node: NodeId) {
        self.peer_board.held().orders.asks.insert(node);
        self.peers.bell.ring();
    }

    /// Returns this node's view of the others.
    pub fn peer_reports(&self) -> Vec<PeerReport> {
        let now = self.now();
        let held = self.peer_board.held();
        let reports = held.seen.iter().map(|(node, seen)| PeerReport {
            node: *node,
            silent: now.since(seen.heard),
            is_closed: seen.is_closed,
        });
        reports.collect()
    }
}
