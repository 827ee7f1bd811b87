//! The network between the nodes of a cluster: what one sends to another comes late, twice, out of order, or not at all.

use crate::profile::one_in;
use fastrand::Rng;
use std::collections::BTreeSet;

/// The links between nodes, each by its ends; and the faults of all.
pub(super) struct Network {
    /// Links on which nothing arrives.
    cut: BTreeSet<(usize, usize)>,
    /// Links that are slow.
    slow: BTreeSet<(usize, usize)>,
    /// One in this many messages is lost, and comes twice.
    lost: u32,
    again: u32,
    /// The greatest delay, in microseconds.
    delay: u64,
    pub(super) dropped: u64,
    pub(super) doubled: u64,
}

/// The greatest delay of a sound network.
pub(super) const DELAY: u64 = 500;
/// The share of a slow link's delay.
const SLOW: u64 = 40;

impl Network {
    pub(super) fn new(rng: &mut Rng) -> Self {
        let (lost, again) = (rng.u32(5..100), rng.u32(5..100));
        let delay = DELAY * rng.u64(1..10);
        Self { cut: BTreeSet::new(), slow: BTreeSet::new(), lost, again, delay, dropped: 0, doubled: 0 }
    }

    /// From now on all arrives, once and soon.
    pub(super) fn heal(&mut self) {
        self.cut.clear();
        self.slow.clear();
        (self.lost, self.again, self.delay) = (0, 0, DELAY);
    }

    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut.contains(&(from, to))
    }

    /// Cuts all links of a node, of `size` nodes.
    pub(super) fn cut_off(&mut self, at: usize, size: usize) {
        let others = (0..size).filter(|other| *other != at);
        self.cut.extend(others.flat_map(|other| [(at, other), (other, at)]));
    }

    /// Draws another set of links that are cut, of `size` nodes: none, one direction of one, one node's, one direction of these, those
    /// between two halves, or any; or a link that is slow, or a node's.
    pub(super) fn draw_cut(&mut self, size: usize, rng: &mut Rng) {
        self.cut.clear();
        self.slow.clear();
        let (a, b) = (rng.usize(..size), rng.usize(..size));
        let both = |from: usize, to: usize| [(from, to), (to, from)];
        let others = || (0..size).filter(move |other| *other != a);
        let all = || (0..size).flat_map(move |from| (0..size).map(move |to| (from, to)));
        match rng.u8(..11) {
            0 => drop(self.cut.insert((a, b))),
            1 => self.cut.extend(both(a, b)),
            2 => self.cut_off(a, size),
            3 => self.cut.extend(others().map(|other| (a, other))),
            4 => self.cut.extend(others().map(|other| (other, a))),
            5 => {
                let sides: Vec<bool> = (0..size).map(|_| rng.bool()).collect();
                self.cut.extend(all().filter(|(from, to)| sides[*from] != sides[*to]));
            }
            6 => self.cut.extend(all().filter(|_| rng.u8(..4) == 0)),
            7 => self.slow.extend(both(a, b)),
            8 => self.slow.extend(others().flat_map(|other| both(a, other))),
            _ => {}
        }
        self.cut.retain(|(from, to)| from != to);
    }

    /// Returns the delays after which a message arrives: none, one or two.
    pub(super) fn send(&mut self, from: usize, to: usize, rng: &mut Rng) -> Vec<u64> {
        if self.is_cut(from, to) || one_in(rng, self.lost) {
            self.dropped += 1;
            return Vec::new();
        }
        let share = if self.slow.contains(&(from, to)) { SLOW } else { 1 };
        let mut delay = || (1 + rng.u64(..self.delay)) * share;
        let mut delays = vec![delay()];
        if one_in(rng, self.again) {
            self.doubled += 1;
            let later = (1 + rng.u64(..self.delay * 8)) * share;
            delays.push(later);
        }
        delays
    }
}
