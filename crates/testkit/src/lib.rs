//! Runs your services under the seeded simulator: crashes at any moment, power cuts, lost and duplicated requests, slow
//! and full disks, checkpoints and a restore; from `cargo test`, in milliseconds, and reproducibly: the same seed gives
//! the same run.
//!
//! The simulator runs the same core and the same storage code as a node. It checks Stead's guarantees (each answered
//! request was applied exactly once, messages arrive once and in order, committed state is never lost, …), and at each
//! consistent cut the [`Process::check`] of every service and the check given here. It reports a failure with its seed
//! and the last entries before it.
//!
//! A message is in one of four places, and a check that sums over messages must include all of them: handled, so part
//! of a process's state; in flight ([`Cut::in_flight`]); delayed ([`Cut::delayed`]) if the service uses
//! [`Context::send_after`](stead::Context::send_after); or given up ([`Cut::dead_letters`]), if handling it crashed
//! `attempts_max` times.
//!
//! The example `simulated`, which continuous integration runs over thousands of fresh seeds:
//!
//! ```
#![doc = include_str!("../examples/simulated.rs")]
//! ```
//!
//! In a test of yours, a run is one line: `Sim::new(seed).service::<Account>(3).calls(draw).run()?`, or
//! `unwrap_or_else(|failed| panic!("{failed}"))` over some seeds. A failure shows its seed, the service and the
//! violation that its check found, and then the last entries, one a line: shard and index, the handled cause, and the
//! process that handled it. The same seed gives the same failure. [`Sim::faults`], [`Sim::crash_every`] and
//! [`Sim::attempts_max`] help to find which fault it needs; [`Sim::events`] and [`Sim::calls_max`] make it shorter.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use stead::{Cut, Process, RegisteredTwice, Registry, Runner, StepContext, Task, codec};
use stead_core::blob::Blob;
use stead_core::handler::Handler;
use stead_core::ids::TaskId;
use stead_core::key::Key;
use stead_core::record::TaskRecord;
use stead_core::shard::{Settings, StepOutcome};
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_sim::{CallId, Config, Overrides, Violation, Workload, run_with};

pub use fastrand::Rng;
pub use stead_sim::Report;

/// A run of services under the simulator.
pub struct Sim {
    config: Config,
    overrides: Overrides,
    calls_max: u64,
    users: Users,
}

/// One call of a simulated client.
#[derive(Clone, Debug)]
pub struct Call {
    service: &'static str,
    key: Key,
    payload: Blob,
    query: bool,
}

/// The failure of a run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}, event {event}: {violation}; repeat it with Sim::new({seed}){}", indented(.recent))]
pub struct Failed {
    /// The seed of the run.
    pub seed: u64,
    /// The event at which it was found.
    pub event: u64,
    /// The violation.
    pub violation: Violation,
    /// The last events before it, oldest first: up to 40 entries, with their shards, indices, causes and processes, and
    /// crashes of the node. One line each; they are part of the text of this error.
    pub recent: Vec<String>,
}

/// Formats lines below a sentence; empty without lines.
fn indented(lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    lines.iter().fold("\nthe last events before it:".to_owned(), |text, line| text + "\n  " + line)
}

type Draw = Box<dyn FnMut(&mut Rng) -> Call>;
type Check = Box<dyn FnMut(&Cut<'_>) -> Result<(), String>>;

struct Users {
    registry: Registry,
    services: Vec<(String, u32)>,
    runner: Option<Runner>,
    draw: Option<Draw>,
    left: u64,
    check: Option<Check>,
}

impl Call {
    /// A request; the simulator adds its session, retries and duplicates.
    ///
    /// # Panics
    /// If the key or the request cannot be encoded.
    #[must_use]
    pub fn request<P: Process>(key: &P::Key, request: &P::Request) -> Self {
        Self::new::<P>(key, codec::encode(request, "a request", P::SERVICE), false)
    }

    /// A query.
    ///
    /// # Panics
    /// If the key or the query cannot be encoded.
    #[must_use]
    pub fn query<P: Process>(key: &P::Key, query: &P::Query) -> Self {
        Self::new::<P>(key, codec::encode(query, "a query", P::SERVICE), true)
    }

    fn new<P: Process>(key: &P::Key, payload: Result<Blob, codec::CodecError>, query: bool) -> Self {
        let key = codec::encode_key::<P>(key).unwrap_or_else(|error| panic!("{error}"));
        let payload = payload.unwrap_or_else(|error| panic!("{error}"));
        Self { service: P::SERVICE, key, payload, query }
    }
}

impl Sim {
    /// Creates a run that this seed determines, without services. It has 2,000 events before its faults end, and at
    /// most 500 calls. The limits of attempts and of entries are those of a node (5, and 32 MiB); the seed draws the
    /// faults and all other sizes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let users = Users {
            registry: Registry::new(),
            services: Vec::new(),
            runner: None,
            draw: None,
            left: 0,
            check: None,
        };
        let node = Settings::default();
        let overrides = Overrides {
            attempts_max: Some(node.attempts_max),
            entry_bytes_max: Some(node.entry_bytes_max),
            ..Overrides::default()
        };
        Self {
            config: Config { seed, events: 2000, bug: None, trace: false },
            overrides,
            calls_max: 500,
            users,
        }
    }

    /// Adds a service with a number of shards.
    ///
    /// # Panics
    /// If it was added before.
    #[must_use]
    pub fn service<P: Process>(mut self, shards: u32) -> Self {
        registered(self.users.registry.service::<P>());
        self.users.services.push((P::SERVICE.to_owned(), shards));
        self
    }

    /// Adds the code of a task.
    ///
    /// # Panics
    /// If it was added before.
    #[must_use]
    pub fn task<T: Task>(mut self) -> Self {
        registered(self.users.registry.task::<T>());
        self
    }

    /// Sets the function that draws each call of the simulated clients, from a generator that the seed determines.
    #[must_use]
    pub fn calls(mut self, draw: impl FnMut(&mut Rng) -> Call + 'static) -> Self {
        self.users.draw = Some(Box::new(draw));
        self
    }

    /// Sets the maximum number of calls. Default: 500.
    #[must_use]
    pub fn calls_max(mut self, calls: u64) -> Self {
        self.calls_max = calls;
        self
    }

    /// Sets the number of events before the faults end and the run has to come to rest. Default: 2,000.
    #[must_use]
    pub fn events(mut self, events: u64) -> Self {
        self.config.events = events;
        self
    }

    /// Sets whether there are faults. Default: `true`. Without them nothing crashes, is lost, is duplicated or fails,
    /// so a failure happens in any run: a first step before runs with faults. The order of events and the delays are
    /// still drawn.
    #[must_use]
    pub fn faults(mut self, faults: bool) -> Self {
        self.overrides.no_faults = !faults;
        self
    }

    /// Sets the number of attempts at one message, timer or step before it becomes a dead letter. Default: 5, as for a
    /// node. With fewer, causes that panic or crash the process are given up sooner, for checks that count them
    /// ([`Cut::dead_letters`]).
    ///
    /// # Panics
    /// If it is 0.
    #[must_use]
    pub fn attempts_max(mut self, attempts: u32) -> Self {
        assert!(attempts > 0, "attempts_max must be at least 1");
        self.overrides.attempts_max = Some(attempts);
        self
    }

    /// Sets the average number of events between two crashes of the node, also without other faults; 0 for no crashes.
    /// By default the seed draws 0, or 80 to 1,000.
    #[must_use]
    pub fn crash_every(mut self, events: u32) -> Self {
        self.overrides.crash_every = Some(events);
        self
    }

    /// Sets the number of simulated clients, each with up to 4 open calls. By default the seed draws 1 to 8.
    ///
    /// # Panics
    /// If it is 0.
    #[must_use]
    pub fn clients(mut self, clients: usize) -> Self {
        assert!(clients > 0, "a run needs a client");
        self.overrides.clients = Some(clients);
        self
    }

    /// Sets a check for every consistent cut and for the end; the services' own checks run anyway.
    #[must_use]
    pub fn check(mut self, check: impl FnMut(&Cut<'_>) -> Result<(), String> + 'static) -> Self {
        self.users.check = Some(Box::new(check));
        self
    }

    /// Runs the simulation.
    ///
    /// # Errors
    /// [`Failed`], with the seed that repeats it.
    ///
    /// # Panics
    /// If no service was added.
    pub fn run(mut self) -> Result<Report, Failed> {
        assert!(!self.users.services.is_empty(), "a run needs a service: add one with Sim::service");
        self.users.left = self.calls_max;
        run_with(self.config, &self.overrides, self.users).map_err(|failure| Failed {
            seed: self.config.seed,
            event: failure.event,
            violation: failure.violation,
            recent: failure.recent,
        })
    }
}

fn registered(result: Result<(), RegisteredTwice>) {
    if let Err(twice) = result {
        panic!("{twice}");
    }
}

impl Workload for Users {
    fn services(&self) -> Vec<(String, u32)> {
        self.services.clone()
    }

    fn restart(&mut self, topology: &Arc<Topology>, seed: u64) {
        self.runner = Some(self.registry.runner(topology, seed));
    }

    fn handler(&mut self) -> &mut dyn Handler {
        self.runner.as_mut().expect("a node starts before it handles anything")
    }

    fn next(
        &mut self,
        rng: &mut Rng,
        topology: &Topology,
        _client: usize,
        _id: CallId,
    ) -> Option<stead_sim::Call> {
        let draw = self.draw.as_mut()?;
        self.left = self.left.checked_sub(1)?;
        let Call { service, key, payload, query } = draw(rng);
        let service = topology
            .service_id(service)
            .unwrap_or_else(|| panic!("no service {service} was added to the run"));
        Some(stead_sim::Call { service, key, payload, query })
    }

    fn step(&mut self, id: TaskId, task: &TaskRecord) -> StepOutcome {
        let stopping = AtomicBool::new(false);
        self.registry.step(&task.name, &task.state, &StepContext::new(id, task, &stopping))
    }

    fn check_cut(&mut self, topology: &Topology, cut: &[State]) -> Result<(), String> {
        let cut = Cut::new(topology, cut);
        if let Some((service, reason)) = self.registry.check(&cut).into_iter().next() {
            return Err(format!("11: service {service}: {reason}"));
        }
        match &mut self.check {
            Some(check) => check(&cut).map_err(|reason| format!("11: {reason}")),
            None => Ok(()),
        }
    }
}
