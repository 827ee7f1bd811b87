//! Stead's shell: the threads of a node that run shards, log, checkpoints, tasks, queries and checks.
//!
//! Performs what the core decides. Knows no type of a user: user code is a [`Program`], and the place where an answer goes a
//! [`Caller`]; an [`Env`] names both.
//!
//! - [`Life::open`] recovers a data directory and starts the threads; [`Life`] ends them.
//! - [`Shared`] is what the threads and the clients of a node share; clients hand their calls to it.

#![forbid(unsafe_code)]

mod bell;
mod calls;
pub mod checkpoint;
mod checks;
mod clock;
mod control;
mod copies;
mod data;
mod drive;
mod env;
pub mod events;
mod forward;
mod guarded;
mod inbox;
mod life;
mod lifecycle;
mod listed;
mod log;
mod memory;
mod metrics;
mod native;
mod open;
mod operator;
mod outlet;
mod pace;
pub mod panics;
mod part;
mod peers;
mod placed;
mod queries;
mod ready;
mod reply;
mod roster;
mod routes;
mod shared;
mod shutdown;
mod sizes;
mod slice;
mod starting;
mod status;
pub mod stderr;
mod stepped;
mod steps;
mod transfers;
mod watchdog;
mod worker;

pub use bell::Bell;
pub use checkpoint::{CheckpointFailure, CheckpointInfo, CheckpointReport, FailedCheck, SkippedCheck};
pub use checks::{CheckPart, note_unended};
pub use clock::{Clock, SystemClock, Wall, system_time};
pub use control::{ControlDesk, ControlNews};
pub use copies::{CopyFailure, CopyPart, CopyReply, CopyReport, CopyTarget, Opener, begin_copy};
pub use env::{Env, Program, StepCall, Watch};
pub use life::{AskedStatus, Life};
pub use lifecycle::EndOrder;
pub use listed::{list_checkpoints, verify_stored};
pub use log::{LogDesk, LogHub, LogPart, PreparePart, Submission};
pub use memory::{MemoryLimits, MemoryStatus};
pub use metrics::{Metrics, ServiceMetrics};
pub use open::{
    CheckpointOptions, Drawn, NativeOptions, OpenError, Options, RecoverOptions, Recovery, Registered,
    recover, recover_in, recover_options,
};
pub use operator::{Deletion, Verification};
pub use part::{Part, Turned};
pub use peers::{PeerDesk, PeerMessage, PeerPart};
pub use queries::{QueryPart, QueryWatch};
pub use ready::{LOG_LAG_MAX, NotReady};
pub use reply::{Caller, NoAnswer, Reply, ReplyTo};
pub use roster::PartId;
pub use shared::{LOOK_TIMEOUT, Shared};
pub use shutdown::EndPart;
pub use sizes::Sizes;
pub use status::{
    BackupStatus, CheckStatus, ClockStatus, CopyStatus, LogStatus, RecoveryReport, ServiceStatus,
    ShardNotHere, ShardStatus, Status, StuckQuery, TaskStatus,
};
pub use stead_core::start::ServiceLimits;
pub use stepped::{Ender, Fill, Started, Stepped};
pub use steps::StepPart;
pub use worker::Worker;
