//! One run: from a seed to a final hash, or to one line that repeats the failure.

use crate::accounts::Accounts;
use crate::bug::Bug;
use crate::marks::Marks;
use crate::profile::{Overrides, Profile};
use crate::stage::{Code, set_code};
use crate::violation::Violation;
use crate::workload::Workload;
use crate::world::{Stop, World};
use fastrand::Rng;
use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::rc::Rc;

/// The configuration of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Determines everything.
    pub seed: u64,
    /// Number of events before the faults end and all has to come to rest.
    pub events: u64,
    /// A bug to plant.
    pub bug: Option<Bug>,
    /// Print every event on stderr.
    pub trace: bool,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Hash of every event and the final state: equal for equal configurations.
    pub hash: u128,
    /// Events that happened.
    pub events: u64,
    /// Entries that were committed.
    pub entries: u64,
    /// Calls that were answered.
    pub answered: u64,
    /// Lives of the node.
    pub lives: u64,
    /// Consistent cuts that were checked.
    pub cuts: u64,
    /// Rare events that occurred.
    pub marks: Marks,
}

/// The failure of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The configuration.
    pub config: Config,
    /// The event at which it was found.
    pub event: u64,
    /// The violation.
    pub violation: Violation,
    /// The last events before it, oldest first: up to 40 entries, and ends of the node. One line each.
    pub recent: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { seed, events, bug, .. } = self.config;
        let bug = bug.map(|bug| format!(" --bug {}", bug.name())).unwrap_or_default();
        let commit = commit();
        write!(
            f,
            "stead-sim run --seed {seed} --seeds 1 --events {events}{bug}  # commit {commit}, event {}: {}",
            self.event, self.violation
        )
    }
}

impl std::error::Error for Failure {}

/// Returns the commit of the sources in the working directory: a seed is meaningful only with it.
pub(crate) fn commit() -> String {
    let git = Command::new("git").args(["describe", "--always", "--dirty", "--exclude=*"]).output();
    match git {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// Runs the simulator's own workload.
///
/// # Errors
/// [`Failure`] if an invariant does not hold, or something panicked.
pub fn run(config: Config) -> Result<Report, Box<Failure>> {
    let accounts = Accounts::new(&mut Rng::with_seed(config.seed ^ 0xacc0), config.bug);
    run_with(config, &Overrides::default(), accounts)
}

/// Runs a workload of the caller, in a world that the seed draws except for the overridden settings.
///
/// # Errors
/// [`Failure`] if an invariant or a check of the workload does not hold, or something panicked.
pub fn run_with(
    config: Config,
    overrides: &Overrides,
    workload: impl Workload + 'static,
) -> Result<Report, Box<Failure>> {
    let profile =
        Profile::new(&mut Rng::with_seed(config.seed ^ 0xfa17)).with(overrides).with_bug(config.bug);
    let code: Code = Rc::new(RefCell::new(workload));
    set_code(&code);
    let mut world = World::new(config.seed, config.bug, code, profile);
    world.overrides = *overrides;
    if config.trace {
        eprintln!("{:#?}", world.profile);
        world.tracing = true;
    }
    let ended = catch_unwind(AssertUnwindSafe(|| world.run(config.events)));
    let violation = match ended {
        Ok(Ok(()) | Err(Stop::Over)) => None,
        Ok(Err(Stop::Violation(violation))) => Some(violation),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Some(Violation::new(0, format!("panicked: {text}")))
        }
    };
    match violation {
        Some(violation) => {
            let recent = world.recent.borrow().lines(&world.topology);
            Err(Box::new(Failure { config, event: world.events, violation, recent }))
        }
        None => Ok(Report {
            hash: world.hash(),
            events: world.events,
            entries: world.model.entries,
            answered: world.clients.answered,
            lives: world.life,
            cuts: world.model.cuts_checked,
            marks: world.marks.clone(),
        }),
    }
}
