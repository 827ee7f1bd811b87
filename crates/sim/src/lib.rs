//! A deterministic simulator of one Stead node.
//!
//! It runs the real core, the real storage code and the parts of the real node over a simulated disk, and owns everything
//! else: time, the order of turns, clients, what is lost or late or comes twice, full and slow disks, failed syncs, flipped bits, and crashes at
//! any I/O operation. A seed decides all of it, so that a run can be repeated to the same final hash. After each step the
//! design's invariants are checked against a model that outlives the crashes; [`Bug`]s that are planted from outside show
//! that the checks catch what they are there for. `README.md` maps each invariant to its check.

#![forbid(unsafe_code)]

mod accounts;
mod blame;
mod bug;
mod client;
mod cluster;
mod disk;
mod disk_log;
mod marks;
mod model;
mod profile;
mod recent;
mod refusals;
mod run;
mod stage;
mod violation;
mod workload;
mod world;

pub use accounts::Accounts;
pub use bug::Bug;
pub use cluster::{
    ClusterBug, ClusterConfig, ClusterFailure, ClusterMark, ClusterMarks, ClusterReport, run_cluster,
};
pub use marks::{Mark, Marks};
pub use profile::Overrides;
pub use run::{Config, Failure, Report, run, run_with};
pub use violation::Violation;
pub use workload::{Answered, Call, CallId, Workload};
