//! Runs typed services and tasks behind the core's untyped [`Handler`].

use super::codec::{self, CodecError, UnreadableState};
use super::context::{Context, QueryContext};
use super::cut::Cut;
use super::kv::Kv;
use super::process::Process;
use super::schema::Schemas;
use super::task::{Progress, StepContext, Task};
use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use stead_core::blob::Blob;
use stead_core::calls::{Call, Caller, Misuse, Outcome, Refusal};
use stead_core::capture::View;
use stead_core::handler::{Handler, QueryPlace, Txn};
use stead_core::ids::{Incarnation, ServiceId};
use stead_core::reply::Reply;
use stead_core::shard::StepOutcome;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_node::{Program, StepCall, panics};

/// The names of the registered tasks.
pub(crate) type TaskNames = BTreeSet<&'static str>;

/// The code of the services and tasks of a node, by name.
#[derive(Clone, Default)]
pub struct Registry {
    services: BTreeMap<&'static str, Arc<dyn Service>>,
    tasks: BTreeMap<&'static str, Arc<dyn TaskCode>>,
    /// Services that declare a check.
    checked: BTreeSet<&'static str>,
}

/// A name that was registered twice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name} is registered twice; names are unique within a node")]
pub struct RegisteredTwice {
    /// A service or a task.
    pub what: &'static str,
    /// Its name.
    pub name: &'static str,
}

impl Registry {
    /// Creates an empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the code of a service.
    ///
    /// # Errors
    /// [`RegisteredTwice`].
    pub fn service<P: Process>(&mut self) -> Result<(), RegisteredTwice> {
        let undeclared = AtomicBool::new(false);
        let nothing = Topology::new(Incarnation(1));
        // Its result for an empty cut is ignored, and so is a panic.
        let _ = panics::catch(|| P::check(&Cut::probe(&nothing, &undeclared)));
        if !undeclared.into_inner() {
            self.checked.insert(P::SERVICE);
        }
        match self.services.insert(P::SERVICE, Arc::new(Typed::<P>(PhantomData))) {
            None => Ok(()),
            Some(_) => Err(RegisteredTwice { what: "service", name: P::SERVICE }),
        }
    }

    /// Adds the code of a task.
    ///
    /// # Errors
    /// [`RegisteredTwice`].
    pub fn task<T: Task>(&mut self) -> Result<(), RegisteredTwice> {
        match self.tasks.insert(T::NAME, Arc::new(TypedTask::<T>(PhantomData))) {
            None => Ok(()),
            Some(_) => Err(RegisteredTwice { what: "task", name: T::NAME }),
        }
    }

    /// Whether there is code for a service.
    #[must_use]
    pub fn has_service(&self, name: &str) -> bool {
        self.services.contains_key(name)
    }

    /// Returns the JSON schemas of a service, if it has code and declares them.
    #[must_use]
    pub fn schemas(&self, name: &str) -> Option<Schemas> {
        self.services.get(name)?.schemas()
    }

    /// Whether there is code for a task.
    #[must_use]
    pub fn has_task(&self, name: &str) -> bool {
        self.tasks.contains_key(name)
    }

    /// Returns the services that declare a check: [`Process::check`].
    pub fn checked_services(&self) -> impl Iterator<Item = &'static str> {
        self.checked.iter().copied()
    }

    /// Runs the check of one service over a cut. A panic is a failure.
    ///
    /// # Errors
    /// The reason why the check does not hold.
    pub fn check_service(&self, name: &str, cut: &Cut<'_>) -> Result<(), String> {
        let Some(service) = self.services.get(name) else { return Ok(()) };
        panics::catch(|| service.check(cut))
            .unwrap_or_else(|panic| Err(format!("the check panicked: {panic}")))
    }

    /// Runs every service's check over a cut; returns the failures by service.
    #[must_use]
    pub fn check(&self, cut: &Cut<'_>) -> Vec<(String, String)> {
        let failures = self.checked_services().filter_map(|name| {
            let reason = self.check_service(name, cut).err()?;
            Some((name.to_owned(), reason))
        });
        failures.collect()
    }

    /// Runs one step of a task, on the thread of the caller.
    #[must_use]
    pub fn step(&self, name: &str, state: &[u8], ctx: &StepContext<'_>) -> StepOutcome {
        match self.tasks.get(name) {
            Some(task) => task.step(state, ctx),
            None => StepOutcome::Failed(format!("no code is registered for task {name}")),
        }
    }

    /// Returns the handler that runs this code for the shards of a topology. With the same `seed` the same calls draw
    /// the same random numbers.
    #[must_use]
    pub fn runner(&self, topology: &Arc<Topology>, seed: u64) -> Runner {
        let services =
            topology.services().iter().map(|s| self.services.get(s.name.as_str()).cloned()).collect();
        Runner {
            topology: Arc::clone(topology),
            services,
            env: Env { tasks: self.tasks.keys().copied().collect(), seed, empty: Blob::empty() },
        }
    }
}

/// User code as the core calls it.
pub struct Runner {
    topology: Arc<Topology>,
    services: Vec<Option<Arc<dyn Service>>>,
    env: Env,
}

/// The environment of every call.
struct Env {
    tasks: TaskNames,
    seed: u64,
    /// The reply that no client reads, allocated once.
    empty: Blob,
}

impl Runner {
    fn find(&self, id: ServiceId) -> Result<&dyn Service, Misuse> {
        let service = self.services.get(usize::from(id.0)).and_then(|service| service.as_deref());
        service.ok_or_else(|| Misuse::NoCode(format!("service {}", self.topology.service(id).name)))
    }
}

impl Handler for Runner {
    fn handle(&mut self, call: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
        match self.find(call.service) {
            Ok(service) => {
                panics::catch(|| service.handle(call, txn, &self.env)).unwrap_or_else(Outcome::Panicked)
            }
            Err(misuse) => Outcome::Refused(misuse),
        }
    }

    fn query(&mut self, call: &Call<'_>, view: View<'_>) -> Outcome {
        match self.find(call.service) {
            Ok(service) => query(service, call, view, &self.topology),
            Err(misuse) => Outcome::Refused(misuse),
        }
    }

    /// Only code of Stead itself runs here, and only on small states: reading takes longer for larger ones.
    fn place_query(&mut self, call: &Call<'_>, state: Option<&Blob>) -> Result<QueryPlace, Refusal> {
        let bytes = call.payload.len() + state.map_or(0, |state| state.len());
        let is_brief = self.find(call.service).map_or(true, Service::is_brief);
        Ok(if is_brief && bytes <= BRIEF_BYTES_MAX { QueryPlace::Here } else { QueryPlace::Apart })
    }
}

impl Program for Registry {
    type Handler = Runner;

    fn handler(&self, topology: &Arc<Topology>, seed: u64) -> Runner {
        self.runner(topology, seed)
    }

    fn query(&self, call: &Call<'_>, view: View<'_>, topology: &Topology) -> Outcome {
        let name = &topology.service(call.service).name;
        match self.services.get(name.as_str()) {
            Some(service) => query(&**service, call, view, topology),
            None => Outcome::Refused(Misuse::NoCode(format!("service {name}"))),
        }
    }

    fn step(&self, step: &StepCall<'_>) -> StepOutcome {
        let &StepCall { name, state, id, step, owner, retries, stopping } = step;
        self.step(name, state, &StepContext { id, step, owner, retries, stopping })
    }

    fn has_service(&self, name: &str) -> bool {
        self.has_service(name)
    }

    fn has_task(&self, name: &str) -> bool {
        self.has_task(name)
    }

    fn checked_services(&self) -> Vec<String> {
        self.checked_services().map(str::to_owned).collect()
    }

    fn check(&self, service: &str, topology: &Topology, cut: &[State]) -> Result<(), String> {
        self.check_service(service, &Cut::new(topology, cut))
    }
}

/// Bytes of a query and of the state that it reads up to which the built-in services answer it on the shard's thread.
const BRIEF_BYTES_MAX: usize = 64 << 10;

fn query(service: &dyn Service, call: &Call<'_>, view: View<'_>, topology: &Topology) -> Outcome {
    panics::catch(|| service.query(call, view, topology)).unwrap_or_else(Outcome::Panicked)
}

trait Service: Send + Sync {
    /// Whether its queries are known to end soon: they are part of Stead itself.
    fn is_brief(&self) -> bool;
    fn schemas(&self) -> Option<Schemas>;
    fn handle(&self, call: &Call<'_>, txn: &mut Txn<'_>, env: &Env) -> Outcome;
    fn query(&self, call: &Call<'_>, view: View<'_>, topology: &Topology) -> Outcome;
    fn check(&self, cut: &Cut<'_>) -> Result<(), String>;
}

struct Typed<P>(PhantomData<fn() -> P>);

impl<P: Process> Typed<P> {
    fn read_request<R: serde::de::DeserializeOwned>(
        call: &Call<'_>,
        what: &'static str,
    ) -> Result<(P::Key, R), Misuse> {
        let misuse = |error: CodecError| Misuse::Request(Self::whose(call.key, &error));
        let key = codec::decode_key::<P>(call.key).map_err(misuse)?;
        Ok((key, codec::decode(call.payload, what, P::SERVICE).map_err(misuse)?))
    }

    /// Prefixes an error with the process and the version of its code.
    fn whose(key: &str, error: &CodecError) -> String {
        format!("{}/{key}, version {}: {error}", P::SERVICE, P::VERSION)
    }

    fn read_state(call: &Call<'_>, stored: Option<&[u8]>) -> Result<P, Misuse> {
        let unreadable = |error: UnreadableState| Misuse::State(error.to_string());
        stored.map_or_else(
            || Ok(P::default()),
            |bytes| codec::decode_state(call.key, bytes).map_err(unreadable),
        )
    }

    fn try_handle(call: &Call<'_>, txn: &mut Txn<'_>, env: &Env) -> Result<Outcome, Misuse> {
        let (key, request) = Self::read_request(call, "a request")?;
        if matches!(call.caller, Caller::Client { .. }) && P::internal(&request) {
            return Err(Misuse::Internal(format!("{}/{}", P::SERVICE, call.key)));
        }
        let mut state = Self::read_state(call, txn.state())?;
        let mut ctx = Context::<P>::new(key, call, txn, &env.tasks, env.seed);
        let answer = state.handle(&mut ctx, request);
        let forget = ctx.is_forgotten();
        Ok(match answer {
            Ok(reply) => {
                if forget {
                    txn.delete_state();
                } else if let Err(reason) = Self::keep_state(&state, txn) {
                    return Ok(Outcome::Panicked(reason));
                }
                // Only a client reads the reply.
                let reply = match call.caller {
                    Caller::Client { .. } => codec::encode(&reply, "a reply", P::SERVICE),
                    _ => Ok(env.empty.clone()),
                };
                match reply {
                    Ok(reply) => Outcome::Replied(Reply::Ok(reply)),
                    Err(error) => Outcome::Panicked(error.to_string()),
                }
            }
            Err(error) => match codec::encode(&error, "an error", P::SERVICE) {
                Ok(error) => Outcome::Replied(Reply::Err(error)),
                Err(error) => Outcome::Panicked(error.to_string()),
            },
        })
    }

    /// Puts the state unless it is unchanged: an unchanged state need not be logged.
    fn keep_state(state: &P, txn: &mut Txn<'_>) -> Result<(), String> {
        let changed =
            codec::with_state_bytes(state, |bytes| (txn.state() != Some(bytes)).then(|| Blob::from(bytes)));
        match changed.map_err(|error| error.to_string())? {
            Some(state) => txn.put_state(state).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    fn try_query(call: &Call<'_>, view: View<'_>, topology: &Topology) -> Result<Outcome, Misuse> {
        let (key, query) = Self::read_request(call, "a query")?;
        let state = Self::read_state(call, view.state().map(|state| &**state))?;
        let answer = state.query(&QueryContext::new(key, call, view, topology), query);
        let encoded = match &answer {
            Ok(answer) => codec::encode(answer, "an answer", P::SERVICE).map(Reply::Ok),
            Err(error) => codec::encode(error, "an error", P::SERVICE).map(Reply::Err),
        };
        Ok(encoded.map_or_else(|error| Outcome::Panicked(error.to_string()), Outcome::Replied))
    }
}

impl<P: Process> Service for Typed<P> {
    fn is_brief(&self) -> bool {
        TypeId::of::<P>() == TypeId::of::<Kv>()
    }

    fn schemas(&self) -> Option<Schemas> {
        P::schemas()
    }

    fn handle(&self, call: &Call<'_>, txn: &mut Txn<'_>, env: &Env) -> Outcome {
        Self::try_handle(call, txn, env).unwrap_or_else(Outcome::Refused)
    }

    fn query(&self, call: &Call<'_>, view: View<'_>, topology: &Topology) -> Outcome {
        Self::try_query(call, view, topology).unwrap_or_else(Outcome::Refused)
    }

    fn check(&self, cut: &Cut<'_>) -> Result<(), String> {
        P::check(cut)
    }
}

trait TaskCode: Send + Sync {
    fn step(&self, state: &[u8], ctx: &StepContext<'_>) -> StepOutcome;
}

struct TypedTask<T>(PhantomData<fn() -> T>);

impl<T: Task> TypedTask<T> {
    fn try_step(state: &[u8], ctx: &StepContext<'_>) -> Result<StepOutcome, CodecError> {
        let service = <T::Owner as Process>::SERVICE;
        let mut task: T = codec::decode(state, "a task's state", service)?;
        Ok(match task.step(ctx) {
            Progress::Continue(share) => StepOutcome::Continue {
                state: codec::encode(&task, "a task's state", service)?,
                progress: Progress::millionths(share),
            },
            Progress::Retry(reason) => {
                let failures = ctx.retries().saturating_add(1);
                match T::retry().delay(ctx.id(), ctx.step(), failures) {
                    Some(delay) => StepOutcome::Retry { after: delay.into(), reason },
                    None => StepOutcome::GivenUp(format!(
                        "step {} of task {} failed {failures} times, the last time: {reason}",
                        ctx.step(),
                        T::NAME
                    )),
                }
            }
            Progress::Done => StepOutcome::Done(codec::encode(&task.finish(), "a task's result", service)?),
        })
    }
}

impl<T: Task> TaskCode for TypedTask<T> {
    fn step(&self, state: &[u8], ctx: &StepContext<'_>) -> StepOutcome {
        match panics::catch(|| Self::try_step(state, ctx)) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => {
                let error = Typed::<T::Owner>::whose(ctx.owner(), &error);
                StepOutcome::Failed(format!("task {} of {error}", T::NAME))
            }
            Err(panic) => StepOutcome::Failed(format!("task {} panicked: {panic}", T::NAME)),
        }
    }
}
