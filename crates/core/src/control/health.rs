//! The judgement on nodes: which of them have failed, and by what.
//!
//! - A *closed connection* is a reason to ask at once. The node has failed if nothing listens at its address, or if its peers do not
//!   hear it either.
//! - *Silence* counts after a timeout that adapts to each node ([`super::detector`]).
//! - *Progress* through the write path counts, not heartbeats: a node with a hung disk has failed although it is heard.
//! - *Peers* are weighed: a node that is heard here, but not by most of the others, is of no use to them. One that is not heard here,
//!   but by most of the others, works.

use super::ControlState;
use super::detector::{Detector, TimeoutBounds};
use super::facts::{NodeReport, PeerReport};
use super::failover::Cause;
use super::node::StartId;
use crate::ids::{Micros, NodeId, Time};
use std::collections::BTreeMap;

/// The bounds of the judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthSettings {
    /// The bounds of the timeout after which a silent node has failed.
    pub timeout: TimeoutBounds,
    /// The time for which something may wait in a node's write path before the node has failed.
    pub stall_max: Micros,
    /// The time in which a node whose connection closed has to be heard again.
    pub ask: Micros,
    /// The time between two looks at the nodes, beyond which the observer itself was paused.
    pub pause: Micros,
}

impl Default for HealthSettings {
    /// Suits reports at an interval of 50 milliseconds.
    fn default() -> Self {
        Self {
            timeout: TimeoutBounds { min: Micros::from_millis(200), max: Micros::from_millis(600) },
            stall_max: Micros::from_millis(500),
            ask: Micros::from_millis(50),
            pause: Micros::from_millis(100),
        }
    }
}

/// The connection to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Open,
    /// Closed at that time.
    Closed(Time),
    /// Nothing listens at the other end.
    Refused,
}

#[derive(Clone, Debug)]
struct View {
    detector: Detector,
    link: Link,
    start: StartId,
    /// The stall of the last report.
    stalled: Micros,
    peers: BTreeMap<NodeId, PeerReport>,
    /// The number of the first shards that it knows; `None` until it reports.
    known: Option<u32>,
    /// The verdict of the last look, and the time since which it is one.
    failed: Option<(Cause, Time)>,
}

/// The view of all nodes.
#[derive(Clone, Debug)]
pub struct Health {
    settings: HealthSettings,
    views: BTreeMap<NodeId, View>,
    looked: Time,
}

impl Health {
    /// Creates a view that knows nothing yet: each node has the greatest timeout to be heard.
    #[must_use]
    pub fn new(now: Time, settings: HealthSettings) -> Self {
        Self { settings, views: BTreeMap::new(), looked: now }
    }

    /// Handles a report. Returns whether it counts: one of another start than the registered one, or of an unknown node, does not.
    pub fn handle_report(&mut self, now: Time, report: &NodeReport) -> bool {
        let Some(view) = self.views.get_mut(&report.node).filter(|view| view.start == report.start) else {
            return false;
        };
        view.detector.handle_heard(now, self.settings.timeout);
        (view.link, view.stalled) = (Link::Open, report.stalled);
        view.known = Some(report.shards_known.unwrap_or(u32::MAX));
        let peers = report.peers.iter().take(ControlState::NODES_MAX);
        view.peers = peers.map(|peer| (peer.node, *peer)).collect();
        true
    }

    /// Handles that the connection to a node closed. Returns whether that is new, so that the node is to be asked.
    pub fn handle_closed(&mut self, now: Time, node: NodeId) -> bool {
        match self.views.get_mut(&node) {
            Some(view) if view.link == Link::Open => {
                view.link = Link::Closed(now);
                true
            }
            _ => false,
        }
    }

    /// Handles that nothing listens at a node's address.
    pub fn handle_refused(&mut self, node: NodeId) {
        if let Some(view) = self.views.get_mut(&node) {
            view.link = Link::Refused;
        }
    }

    /// Returns the time at which a node was last heard.
    #[must_use]
    pub fn heard(&self, node: NodeId) -> Option<Time> {
        self.views.get(&node).map(|view| view.detector.heard())
    }

    /// Returns the reason for which a node counted as failed at the last look, and the time since which it did.
    #[must_use]
    pub fn failed(&self, node: NodeId) -> Option<(Cause, Time)> {
        self.views.get(&node).and_then(|view| view.failed)
    }

    /// Whether a node is known and has not failed.
    #[must_use]
    pub fn is_well(&self, node: NodeId) -> bool {
        self.views.get(&node).is_some_and(|view| view.failed.is_none())
    }

    /// Returns the number of the first shards that a node knows, as it has reported: a running one does not learn of a service that a
    /// newer program adds. `None` before its first report.
    #[must_use]
    pub fn shards_known(&self, node: NodeId) -> Option<u32> {
        self.views.get(&node)?.known
    }

    /// Looks at all nodes of the cluster.
    pub fn look(&mut self, now: Time, state: &ControlState) {
        let paused = now.since(self.looked).minus(self.settings.pause);
        self.looked = now;
        self.views.retain(|node, _| state.nodes().contains_key(node));
        for (node, record) in state.nodes() {
            let view = self.views.entry(*node).or_insert_with(|| View {
                detector: Detector::new(now),
                link: Link::Open,
                start: record.start,
                stalled: Micros(0),
                peers: BTreeMap::new(),
                known: None,
                failed: None,
            });
            view.detector.handle_pause(paused);
            if view.start != record.start {
                // Another process: what the old one reported is over.
                (view.start, view.link, view.stalled) = (record.start, Link::Open, Micros(0));
                (view.detector, view.peers, view.known) = (Detector::new(now), BTreeMap::new(), None);
            }
        }
        let verdicts: Vec<_> = self.views.keys().map(|node| (*node, self.judge(now, *node))).collect();
        for (node, verdict) in verdicts {
            if let Some(view) = self.views.get_mut(&node) {
                let since = view.failed.map_or(now, |(_, since)| since);
                view.failed = verdict.map(|cause| (cause, since));
            }
        }
    }

    fn judge(&self, now: Time, node: NodeId) -> Option<Cause> {
        let HealthSettings { timeout, stall_max, ask, .. } = self.settings;
        let view = &self.views[&node];
        let silence = now.since(view.detector.heard());
        let is_silent = view.detector.is_silent(now, timeout);
        let lost = match view.link {
            Link::Refused => return Some(Cause::Closed),
            Link::Closed(since) if now.since(since) > ask || is_silent => Some(Cause::Closed),
            Link::Closed(_) | Link::Open => is_silent.then_some(Cause::Silent),
        };
        let (mut hear, mut miss) = (0, 0);
        for (peer, other) in &self.views {
            let is_heard = other.link == Link::Open && !other.detector.is_silent(now, timeout);
            if *peer == node || !is_heard {
                continue;
            }
            if let Some(report) = other.peers.get(&node) {
                let silent = report.silent.plus(now.since(other.detector.heard()));
                let is_missed = report.is_closed || silent > view.detector.timeout(timeout);
                if is_missed { miss += 1 } else { hear += 1 }
            }
        }
        match lost {
            Some(cause) => (miss >= hear).then_some(cause),
            // Nothing was taken since the last report, as far as is known.
            None if view.stalled > Micros(0) && view.stalled.plus(silence) > stall_max => {
                Some(Cause::Stalled)
            }
            // The peers have lost it as well: there is no need to wait for its answer.
            None if miss > 1 && miss > hear => {
                Some(if view.link == Link::Open { Cause::CutOff } else { Cause::Closed })
            }
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Cluster, Command};
    use crate::ids::{ClusterId, Incarnation, Life};

    const NODES: [NodeId; 4] = [NodeId(1), NodeId(2), NodeId(3), NodeId(4)];

    struct Test {
        state: ControlState,
        health: Health,
        now: Time,
    }

    impl Test {
        fn new(nodes: u32) -> Self {
            let mut state = ControlState::default();
            let cluster = Cluster { id: ClusterId(1), incarnation: Incarnation(1) };
            state.apply(Command::Found { cluster, secret: None });
            for node in (1..=nodes).map(NodeId) {
                let (life, start) = (Life(1), StartId(u128::from(node.0)));
                state.apply(Command::Join { node, life, start, addresses: vec!["a:1".to_owned()] });
            }
            let now = Time(5_000_000);
            let mut test = Self { health: Health::new(now, HealthSettings::default()), state, now };
            test.pass(1_000, |_| Some(Micros(0)), |_, _| false);
            test
        }

        /// So many milliseconds pass. `stalled` says for how long a node has stalled, if it reports; `is_closed` whether it has no
        /// connection to a peer.
        fn pass(
            &mut self,
            millis: u64,
            stalled: impl Fn(NodeId) -> Option<Micros>,
            is_closed: impl Fn(NodeId, NodeId) -> bool,
        ) {
            for at in 0..millis / 10 {
                self.now = self.now.plus_millis(10);
                let nodes: Vec<NodeId> = self.state.nodes().keys().copied().collect();
                for &node in nodes.iter().filter(|_| at % 5 == 0) {
                    let Some(stalled) = stalled(node) else { continue };
                    let peers = nodes.iter().filter(|peer| **peer != node).map(|&peer| PeerReport {
                        node: peer,
                        silent: Micros::from_millis(20),
                        is_closed: is_closed(node, peer),
                    });
                    let (peers, shards) = (peers.collect(), Vec::new());
                    let report = NodeReport {
                        node,
                        start: StartId(u128::from(node.0)),
                        stalled,
                        peers,
                        shards,
                        shards_known: None,
                    };
                    self.health.handle_report(self.now, &report);
                }
                self.health.look(self.now, &self.state);
            }
        }

        fn failed(&self) -> Vec<(NodeId, Cause)> {
            let failed = NODES.iter().filter_map(|node| Some((*node, self.health.failed(*node)?.0)));
            failed.collect()
        }
    }

    fn well(_: NodeId) -> Option<Micros> {
        Some(Micros(0))
    }

    #[test]
    fn nodes_that_report_are_well() {
        let mut test = Test::new(3);
        test.pass(3_000, well, |_, _| false);
        assert_eq!(test.failed(), []);
    }

    #[test]
    fn a_closed_connection_counts_when_nothing_listens_or_no_peer_hears_the_node() {
        let silent = |node| (node != NODES[1]).then_some(Micros(0));
        let mut test = Test::new(3);
        assert!(test.health.handle_closed(test.now, NODES[1]), "it is asked");
        assert!(!test.health.handle_closed(test.now, NODES[1]), "once");
        let one = |node, peer| (node, peer) == (NODES[0], NODES[1]);
        test.pass(30, silent, one);
        assert_eq!(test.failed(), [], "it is given time to answer");
        test.pass(30, silent, one);
        assert_eq!(test.failed(), [(NODES[1], Cause::Closed)]);
        test.pass(50, well, |_, _| false);
        assert_eq!(test.failed(), [], "it is back");

        assert!(test.health.handle_closed(test.now, NODES[1]));
        test.pass(10, silent, |_, peer| peer == NODES[1]);
        assert_eq!(test.failed(), [(NODES[1], Cause::Closed)], "all lost it at once");
        test.pass(50, well, |_, _| false);

        test.health.handle_refused(NODES[1]);
        test.health.look(test.now, &test.state);
        assert_eq!(test.failed(), [(NODES[1], Cause::Closed)]);
    }

    #[test]
    fn a_node_that_peers_hear_works_although_it_is_not_heard_here() {
        let silent = |node| (node != NODES[3]).then_some(Micros(0));
        let mut test = Test::new(4);
        test.pass(2_000, silent, |_, _| false);
        assert_eq!(test.failed(), [], "its peers hear it");
        test.pass(100, silent, |_, peer| peer == NODES[3]);
        assert_eq!(test.failed(), [(NODES[3], Cause::Silent)]);
    }

    #[test]
    fn a_silent_node_fails_within_the_timeout_and_most_peers_have_to_hear_it() {
        let silent = |node| (node != NODES[2]).then_some(Micros(0));
        let mut test = Test::new(3);
        test.pass(150, silent, |_, _| false);
        assert_eq!(test.failed(), []);
        test.pass(100, silent, |node, peer| (node, peer) == (NODES[0], NODES[2]));
        assert_eq!(test.failed(), [(NODES[2], Cause::Silent)]);
    }

    #[test]
    fn a_node_that_is_heard_but_makes_no_progress_has_failed() {
        let mut test = Test::new(3);
        let hung = |ms| move |node| Some(Micros::from_millis(if node == NODES[0] { ms } else { 0 }));
        test.pass(100, hung(400), |_, _| false);
        assert_eq!(test.failed(), []);
        test.pass(100, hung(501), |_, _| false);
        assert_eq!(test.failed(), [(NODES[0], Cause::Stalled)]);
    }

    #[test]
    fn a_node_that_its_peers_do_not_hear_has_failed_although_it_is_heard_here() {
        let mut test = Test::new(4);
        test.pass(100, well, |node, peer| (node, peer) == (NODES[1], NODES[3]));
        assert_eq!(test.failed(), [], "one broken link is no failure");
        test.pass(100, well, |node, peer| peer == NODES[3] && node != NODES[0]);
        assert_eq!(test.failed(), [(NODES[3], Cause::CutOff)]);
    }

    #[test]
    fn a_pause_of_the_controller_makes_no_node_fail() {
        let mut test = Test::new(3);
        test.now = test.now.plus(Micros::from_secs(30));
        test.health.look(test.now, &test.state);
        assert_eq!(test.failed(), []);
        test.pass(1_000, |_| None, |_, _| false);
        assert_eq!(test.failed().len(), 3, "afterwards they are silent");
    }

    #[test]
    fn a_report_of_an_earlier_start_is_no_sign_of_life() {
        let mut test = Test::new(2);
        let (node, life, start) = (NODES[0], Life(2), StartId(9));
        let disk = crate::control::node::DiskState::Whole;
        let addresses = vec!["a:1".to_owned()];
        let expected = test.state.nodes()[&node].start;
        test.state.apply(Command::Start { node, expected, life, start, disk, addresses });
        test.pass(1_000, well, |_, _| true);
        assert!(!test.health.is_well(node));
    }
}
