//! The decisions of the control plane, on the node whose plane leads.

use crate::board::Role;
use crate::control_state::ControlPlane;
use std::time::Duration;
use stead_core::clock::Now;
use stead_core::control::controller::Controller;
use stead_core::control::facts::{Fact, Request};
use stead_core::control::settings::Settings;

/// The time in which a plane gives a command to the leader. The controller proposes again what changed nothing.
const WAIT: Duration = Duration::from_millis(500);

/// A term in which this node's plane leads.
struct Term {
    number: u64,
    /// The number of entries that the log had when it began: what was committed before is among them.
    entries: u64,
    /// There is none until those entries are applied.
    controller: Option<Controller>,
    /// The number of entries in the state of the last look.
    looked: u64,
    /// A fact came after the last look.
    is_due: bool,
}

/// Runs the [`Controller`] of a node while the node's plane leads, and proposes its commands.
///
/// It is stepped by its owner, and has no thread and no connections: facts of all nodes come in, and orders for nodes go out. Each
/// term has a new controller, because all that one knows besides the state comes again in reports.
pub struct Driver {
    settings: Settings,
    term: Option<Term>,
}

impl Driver {
    /// Creates a driver.
    #[must_use]
    pub const fn new(settings: Settings) -> Self {
        Self { settings, term: None }
    }

    /// Handles a fact of any node, and returns whether it counts: it does not while this node does not lead. Nodes repeat theirs;
    /// an operator's request has to be made at the leader.
    pub fn handle(&mut self, now: Now, fact: Fact) -> bool {
        let Some(term) = &mut self.term else { return false };
        let Some(controller) = &mut term.controller else { return false };
        controller.handle(now, fact);
        term.is_due = true;
        true
    }

    /// Returns the controller, while this node leads.
    #[must_use]
    pub fn controller(&self) -> Option<&Controller> {
        self.term.as_ref().and_then(|term| term.controller.as_ref())
    }

    /// Follows the plane. While it leads, proposes the commands that are due, and appends the orders for nodes, this one included:
    /// none of them is [`Request::Propose`]. To be called when a fact came, when the plane has changed, and at the controller's
    /// [`Controller::wakes_at`].
    pub fn step(&mut self, now: Now, plane: &ControlPlane, orders: &mut Vec<Request>) {
        let status = plane.status();
        if status.role != Role::Leader || status.is_stopped {
            self.term = None;
            return;
        }
        if self.term.as_ref().is_none_or(|term| term.number != status.term) {
            let (number, entries) = (status.term, status.entries);
            self.term = Some(Term { number, entries, controller: None, looked: 0, is_due: true });
        }
        let Some(term) = &mut self.term else { return };
        let newest = plane.newest();
        if newest.applied < term.entries {
            return;
        }
        let controller = term.controller.get_or_insert_with(|| Controller::new(now, self.settings));
        let is_new = newest.applied != term.looked;
        if !term.is_due && !is_new && now.steady < controller.wakes_at() {
            return;
        }
        (term.is_due, term.looked) = (false, newest.applied);
        let mut requests = Vec::new();
        controller.decide(now, &newest.state, &mut requests);
        for request in requests {
            match request {
                // Its outcome is seen in the state, or it is proposed again.
                Request::Propose(command) => plane.propose_then(plane.proposal(&command), WAIT, drop),
                order => orders.push(order),
            }
        }
    }
}
