//! The faults of a run, and what it proves.

use crate::audit::Compared;
use crate::callers::{DEADLINE, Reads};
use crate::passengers::Verdict;
use crate::totals::{Difference, Totals};
use serde::Serialize;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// A node is killed with SIGKILL, and started again.
    Kill,
    /// A node is stopped with SIGSTOP, and continues when others have replaced it.
    Pause,
    /// A node is cut off from all others, and joins them again.
    Cut,
}

/// A fault that was done to the cluster, and what followed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// Its kind.
    pub kind: FaultKind,
    /// The node.
    pub node: u32,
    /// The shards that the node led.
    pub led: usize,
    /// The shards of these that another node led afterwards.
    pub moved: usize,
    /// The longest time from the notice of the failure until another node led one of them, in milliseconds.
    pub failover_ms: f64,
    /// The time from the fault until the cluster was whole again, in milliseconds.
    pub healed_ms: f64,
    /// The longest wait of a request that was under way in that time, in milliseconds.
    pub worst_wait_ms: f64,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Number of nodes.
    pub nodes: u16,
    /// Number of shards.
    pub shards: usize,
    /// Rows that were fed.
    pub rows: u64,
    /// The totals according to the processes.
    pub totals: Totals,
    /// The difference to the expected totals.
    pub difference: Difference,
    /// The clients' requests, compared with the final state.
    pub requests: Verdict,
    /// Requests that were made.
    pub begun: u64,
    /// Requests that were not answered within [`DEADLINE`], and the reason of the last one.
    pub unanswered: (u64, Option<String>),
    /// Boarding numbers that were given to two passengers, or to none.
    pub misgiven: u64,
    /// The median time of a request, in milliseconds.
    pub usual_wait_ms: f64,
    /// The clients' reads.
    pub reads: Reads,
    /// The handler runs, compared with the logs.
    pub compared: Compared,
    /// The faults.
    pub faults: Vec<Fault>,
}

impl Outcome {
    /// Returns the number of lost requests and rows.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.difference.missing + self.requests.lost
    }

    /// Returns the number of requests and rows that were applied twice.
    #[must_use]
    pub fn doubled(&self) -> u64 {
        self.difference.extra + self.requests.doubled + self.compared.doubled
    }

    /// Returns whether all totals equal those of the straightforward computation.
    #[must_use]
    pub fn totals_match(&self) -> bool {
        self.difference.is_none()
    }

    /// Returns the share of requests that were answered in time.
    #[must_use]
    pub fn accepted_share(&self) -> f64 {
        share(self.begun - self.unanswered.0, self.begun)
    }

    /// Returns the share of answers that the final state confirms.
    #[must_use]
    pub fn right_share(&self) -> f64 {
        let wrong = self.requests.lost + self.requests.doubled + self.misgiven;
        share(self.requests.answers.saturating_sub(wrong), self.requests.answers)
    }

    /// Returns the reasons for which the run proves nothing, or the opposite. Empty if all is as promised.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let mut violations = Vec::new();
        let mut check = |holds: bool, what: String| {
            if !holds {
                violations.push(what);
            }
        };
        check(self.lost() == 0, format!("{} lost", self.lost()));
        check(self.doubled() == 0, format!("{} applied twice", self.doubled()));
        check(self.totals_match(), "the totals differ".to_owned());
        check(self.compared.holds(), format!("handler runs: {:?}", self.compared));
        let (unanswered, reason) = &self.unanswered;
        let reason = reason.as_deref().unwrap_or("no reason");
        let seconds = DEADLINE.as_secs();
        check(*unanswered == 0, format!("{unanswered} requests had no answer within {seconds} s: {reason}"));
        check(
            self.misgiven == 0,
            format!("{} boarding numbers were given twice, or left out", self.misgiven),
        );
        check(self.requests.answered > 0, "no request was answered".to_owned());
        check(self.reads.hold(), format!("reads: {:?}", self.reads));
        for fault in &self.faults {
            let Fault { kind, node, led, moved, .. } = fault;
            let what =
                format!("{kind:?} of node {node}: other nodes led {moved} of its {led} shards afterwards");
            check(*led > 0 && moved == led, what);
        }
        violations
    }
}

fn share(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 }
}
