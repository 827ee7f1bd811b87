//! One run of a cluster: from a seed to a final hash, or to one line that repeats the failure.

use super::{Cluster, ClusterBug, ClusterMark, ClusterMarks, env};
use crate::violation::Violation;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The configuration of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Determines everything.
    pub seed: u64,
    /// The number of nodes: 1 to 7.
    pub nodes: usize,
    /// Number of events before the faults end and all has to come to rest.
    pub events: u64,
    /// A bug to plant.
    pub bug: Option<ClusterBug>,
    /// Print what happens on stderr.
    pub trace: bool,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterReport {
    /// Hash of the final states and of the number of events: equal for equal configurations.
    pub hash: u128,
    /// Events that happened.
    pub events: u64,
    /// Entries that were committed.
    pub entries: u64,
    /// Calls that were answered.
    pub answered: u64,
    /// Rare events that occurred.
    pub marks: ClusterMarks,
}

/// The failure of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterFailure {
    /// The configuration.
    pub config: ClusterConfig,
    /// The event at which it was found.
    pub event: u64,
    /// The violation.
    pub violation: Violation,
}

impl fmt::Display for ClusterFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ClusterConfig { seed, nodes, events, bug, .. } = self.config;
        let bug = bug.map(|bug| format!(" --bug {}", bug.name())).unwrap_or_default();
        let commit = crate::run::commit();
        write!(
            f,
            "stead-sim run --nodes {nodes} --seed {seed} --seeds 1 --events {events}{bug}  # commit {commit}, event {}: {}",
            self.event, self.violation
        )
    }
}

impl std::error::Error for ClusterFailure {}

/// Runs a cluster under faults, heals it, and lets it come to rest.
///
/// # Errors
/// [`ClusterFailure`] if an invariant does not hold, or something panicked.
///
/// # Panics
/// If the number of nodes is not 1 to 7.
pub fn run_cluster(config: ClusterConfig) -> Result<ClusterReport, Box<ClusterFailure>> {
    assert!((1..=7).contains(&config.nodes), "a cluster has 1 to 7 nodes");
    // An earlier run on this thread may have left something.
    env::clear();
    let mut cluster = Cluster::new(config.seed, config.nodes, config.bug);
    (cluster.tracing, cluster.plane.tracing) = (config.trace, config.trace);
    let ended = catch_unwind(AssertUnwindSafe(|| {
        while cluster.happened < config.events {
            cluster.step()?;
        }
        cluster.heal()
    }));
    let violation = match ended {
        Ok(Ok(())) => {
            let mut marks = cluster.marks.clone();
            marks.count_more(ClusterMark::MessageLost, cluster.network.dropped);
            marks.count_more(ClusterMark::MessageAgain, cluster.network.doubled);
            marks.count_more(ClusterMark::AskedAgain, cluster.clients.asked_again);
            marks.count_more(ClusterMark::Early, cluster.model.judge.left_early);
            marks.count_more(ClusterMark::Lost, cluster.model.judge.lost);
            return Ok(ClusterReport {
                hash: cluster.model.hash() ^ u128::from(cluster.happened),
                events: cluster.happened,
                entries: cluster.model.entries,
                answered: cluster.clients.answered,
                marks,
            });
        }
        Ok(Err(violation)) => violation,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Violation::new(0, format!("panicked: {text}"))
        }
    };
    Err(Box::new(ClusterFailure { config, event: cluster.happened, violation }))
}
