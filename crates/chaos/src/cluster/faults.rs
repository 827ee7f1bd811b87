//! The faults of a cluster: drawn at random, and healed after a while, up to two at a time.

use crate::power::{PowerCut, Skipped};
use rustix::fs::{FallocateFlags, fallocate};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use stead_local::{LocalCluster, LocalError};

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// Longest time between the beginnings of two faults.
const GAP_MAX: Duration = Duration::from_secs(3);
/// Longest delay of a slow link.
const DELAY_MAX_MS: u64 = 60;
/// Time until a node that has ended because of its disk is started again.
const AGAIN: Duration = Duration::from_millis(500);
/// Bytes by which a disk is filled: first large pieces, then small ones.
const PIECES: [u64; 2] = [8 << 20, 64 << 10];

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Kill,
    KillAll,
    Pause,
    Cut,
    CutOneWay,
    CutAndClose,
    Delay,
    PowerCut,
    FullDisk,
}

const KINDS: [Kind; 9] = [
    Kind::Kill,
    Kind::KillAll,
    Kind::Pause,
    Kind::Cut,
    Kind::CutOneWay,
    Kind::CutAndClose,
    Kind::Delay,
    Kind::PowerCut,
    Kind::FullDisk,
];

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::KillAll => "kill_all",
            Self::Pause => "pause",
            Self::Cut => "cut",
            Self::CutOneWay => "cut_one_way",
            Self::CutAndClose => "cut_and_close",
            Self::Delay => "delay",
            Self::PowerCut => "power_cut",
            Self::FullDisk => "full_disk",
        }
    }
}

/// The action that ends a fault.
#[derive(Clone, Copy, Debug)]
enum Undo {
    Start,
    Resume,
    Heal,
    Hasten,
    Empty,
}

/// A disk of its own for the last node, whose power can be cut, and which can be filled.
#[derive(Debug)]
pub(crate) struct Disk {
    power: PowerCut,
    ballast: PathBuf,
}

impl Disk {
    /// Creates one in a directory, and places the data directory of a node on it.
    pub(crate) fn new(dir: &Path, data: &Path) -> Result<Self, Skipped> {
        let power = PowerCut::new(dir)?;
        let place = power.mount_point().join("data");
        std::fs::create_dir(&place)
            .and_then(|()| std::os::unix::fs::symlink(&place, data))
            .map_err(|error| Skipped { reason: format!("no directory can be created on it: {error}") })?;
        let ballast = power.mount_point().join("ballast");
        Ok(Self { power, ballast })
    }

    fn fill(&self) -> std::io::Result<()> {
        let file = File::create(&self.ballast)?;
        let mut len = 0;
        for piece in PIECES {
            while fallocate(&file, FallocateFlags::empty(), len, piece).is_ok() {
                len += piece;
            }
        }
        Ok(())
    }

    fn empty(&self) {
        // An error means that it is not there.
        let _ = std::fs::remove_file(&self.ballast);
    }
}

/// The faults of one cluster.
pub(crate) struct Faults<'a> {
    cluster: &'a mut LocalCluster,
    disk: Option<&'a mut Disk>,
    rng: fastrand::Rng,
    /// The faults that last, with their ends.
    lasting: Vec<(Instant, usize, Undo)>,
    /// Whether the last node may end by itself.
    disk_fails: bool,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl<'a> Faults<'a> {
    pub(crate) fn new(cluster: &'a mut LocalCluster, disk: Option<&'a mut Disk>, seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self { cluster, disk, rng, lasting: Vec::new(), disk_fails: false, counts: BTreeMap::new() }
    }

    /// Makes faults for a time, then heals all. Returns once each node is ready.
    ///
    /// # Errors
    /// A node that ended by itself, or did not get ready.
    pub(crate) fn run(&mut self, time: Duration, ready_time_max: Duration) -> Result<(), String> {
        let until = Instant::now() + time;
        let mut next = Instant::now();
        while Instant::now() < until {
            self.undo(|end| end <= Instant::now())?;
            self.watch()?;
            if Instant::now() >= next && self.lasting.len() < 2 {
                self.begin().map_err(|error| error.to_string())?;
                next = Instant::now() + GAP_MAX.mul_f64(self.rng.f64());
            }
            thread::sleep(LOOK);
        }
        self.undo(|_| true)?;
        // One that ended because of its disk.
        for node in 0..self.cluster.len() {
            self.watch()?;
            self.cluster.spawn(node).map_err(|error| error.to_string())?;
        }
        self.cluster.wait_until_ready(ready_time_max).map_err(|error| error.to_string())
    }

    /// Looks for nodes that have ended by themselves.
    fn watch(&mut self) -> Result<(), String> {
        let last = self.cluster.len() - 1;
        match self.cluster.check() {
            Ok(()) => Ok(()),
            Err(LocalError::Ended { node, .. }) if self.disk_fails && usize::from(node) == last + 1 => {
                self.lasting.push((Instant::now() + AGAIN, last, Undo::Start));
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Returns a time for which a fault lasts: a short one or a long one.
    fn span(&mut self) -> Duration {
        let max = Duration::from_millis(if self.rng.bool() { 400 } else { 6_000 });
        max.mul_f64(self.rng.f64())
    }

    fn begin(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let kind = KINDS[self.rng.usize(..KINDS.len())];
        let (nodes, last) = (self.cluster.len(), self.cluster.len() - 1);
        let node = match kind {
            Kind::PowerCut | Kind::FullDisk => last,
            _ => self.rng.usize(..nodes),
        };
        let is_busy = |node: usize| self.lasting.iter().any(|(_, busy, _)| *busy == node);
        if is_busy(node) || (kind == Kind::KillAll && !self.lasting.is_empty()) {
            return Ok(());
        }
        let end = Instant::now() + self.span();
        let mut undo = |undo| self.lasting.push((end, node, undo));
        match kind {
            Kind::Kill => {
                self.cluster.kill(node)?;
                undo(Undo::Start);
            }
            Kind::KillAll => {
                for node in 0..nodes {
                    self.cluster.kill(node)?;
                    self.lasting.push((end, node, Undo::Start));
                }
            }
            Kind::Pause => {
                self.cluster.pause(node)?;
                undo(Undo::Resume);
            }
            Kind::Cut | Kind::CutAndClose => {
                self.cluster.cut(node);
                if kind == Kind::CutAndClose {
                    self.cluster.close_links(node);
                }
                undo(Undo::Heal);
            }
            Kind::CutOneWay => {
                let to_it = self.rng.bool();
                for other in (0..nodes).filter(|other| *other != node) {
                    let (from, to) = if to_it { (other, node) } else { (node, other) };
                    self.cluster.cut_link(from, to);
                }
                self.lasting.push((end, node, Undo::Heal));
            }
            Kind::Delay => {
                self.cluster.delay(node, Duration::from_millis(self.rng.u64(1..=DELAY_MAX_MS)));
                self.lasting.push((end, node, Undo::Hasten));
            }
            Kind::PowerCut => {
                let Some(disk) = &mut self.disk else { return Ok(()) };
                disk.power.cut()?;
                self.cluster.kill(node)?;
                disk.power.power_on()?;
                undo(Undo::Start);
            }
            Kind::FullDisk => {
                let Some(disk) = &mut self.disk else { return Ok(()) };
                disk.fill()?;
                self.disk_fails = true;
                undo(Undo::Empty);
            }
        }
        *self.counts.entry(kind.name()).or_default() += 1;
        Ok(())
    }

    /// Ends the faults whose time is over.
    fn undo(&mut self, is_over: impl Fn(Instant) -> bool) -> Result<(), String> {
        let (over, lasting) = self.lasting.drain(..).partition(|(end, ..)| is_over(*end));
        self.lasting = lasting;
        let over: Vec<(Instant, usize, Undo)> = over;
        for (_, node, undo) in over {
            let undone = match undo {
                Undo::Start => {
                    let is_full = self.lasting.iter().any(|(.., undo)| matches!(undo, Undo::Empty));
                    if node + 1 == self.cluster.len() && !is_full {
                        self.disk_fails = false;
                    }
                    self.cluster.spawn(node)
                }
                Undo::Resume => self.cluster.resume(node),
                Undo::Heal => {
                    self.cluster.heal(node);
                    Ok(())
                }
                Undo::Hasten => {
                    self.cluster.delay(node, Duration::ZERO);
                    Ok(())
                }
                Undo::Empty => {
                    if let Some(disk) = &self.disk {
                        disk.empty();
                    }
                    Ok(())
                }
            };
            undone.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
