//! The state that the threads of a node and its clients share.

use crate::checkpoint::SnapshotQueue;
use crate::checks::Checks;
use crate::clock::Clock;
use crate::copies::Copies;
use crate::env::{Env, NoAnswer, Reply, ReplyTo};
use crate::events;
use crate::inbox::{Command, Inbox};
use crate::log::LogDesk;
use crate::memory::{Memory, MemoryLimits};
use crate::metrics::Counters;
use crate::queries::QueryQueue;
use crate::steps::StepQueue;
use crate::watchdog::Watchdog;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::Duration;
use stead_core::calls::{Query, Refusal, Request};
use stead_core::ids::{Index, NodeId, SessionId, ShardId, Time};
use stead_core::key::Key;
use stead_core::placement::{Place, Placement};
use stead_core::record::RecordKey;
use stead_core::shard::{DeadLetterAction, Input, Shard};
use stead_core::shutdown::Group;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_core::trials::{Grant, Trials};

/// The time for which a look at a shard, and the status, wait for a worker that is held by a handler: 500 ms.
pub const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// The state that all threads and clients of a node share.
pub struct Shared<E: Env> {
    pub(crate) node: NodeId,
    /// The number of starts on the node's data directory, with this one.
    pub(crate) lives: u64,
    pub(crate) program: E::Program,
    pub(crate) topology: Arc<Topology>,
    /// The shards that this node has.
    pub(crate) placement: Placement,
    pub(crate) inboxes: Vec<Inbox<E::Caller>>,
    pub(crate) clock: E::Clock,
    pub(crate) watch: E::Watch,
    pub(crate) log: LogDesk,
    pub(crate) steps: StepQueue,
    pub(crate) queries: Arc<QueryQueue<E::Caller>>,
    /// The turns of shards that try what the last life may have met. Rarely used: its lock is no matter.
    trials: Mutex<Trials>,
    pub(crate) snapshots: Arc<SnapshotQueue>,
    pub(crate) copies: Copies,
    pub(crate) checks: Checks,
    pub(crate) watchdog: Watchdog,
    pub(crate) counters: Counters,
    pub(crate) memory: Arc<Memory>,
    pub(crate) workers_running: AtomicUsize,
    /// Turns that a thread spins before it sleeps, for waking it takes long.
    pub(crate) spins_idle: u32,
    pub(crate) spins_waiting: u32,
    pub(crate) spins_log: u32,
    pub(crate) stage: AtomicU8,
    pub(crate) failure: OnceLock<String>,
    /// Those who wait for a fatal error.
    watchers: Mutex<Vec<Box<dyn Reply<String>>>>,
    pub(crate) active: AtomicU32,
    all_active: (Mutex<()>, Condvar),
}

/// The stages of a node's life.
pub(crate) mod stage {
    pub(crate) const RUNS: u8 = 0;
    /// Takes no more calls, and commits what it has taken.
    pub(crate) const STOPS: u8 = 1;
    /// All threads have ended or are about to.
    pub(crate) const ENDED: u8 = 2;
    /// Abandoned as by a crash.
    pub(crate) const KILLED: u8 = 3;
}

impl<E: Env> Shared<E> {
    pub(crate) fn new(
        program: E::Program,
        (topology, placement): (Arc<Topology>, Placement),
        (workers, step_parts): (usize, usize),
        lives: u64,
        (clock, watch): (E::Clock, E::Watch),
        (copies, checks): (Copies, Checks),
        memory: MemoryLimits,
    ) -> Self {
        let services = topology.services().len();
        Self {
            node: NodeId(1),
            lives,
            program,
            topology,
            placement,
            inboxes: (0..workers).map(|_| Inbox::new()).collect(),
            clock,
            watch,
            log: LogDesk::default(),
            steps: StepQueue::new(step_parts),
            queries: Arc::new(QueryQueue::new(services)),
            trials: Mutex::default(),
            snapshots: Arc::new(SnapshotQueue::new(0)),
            copies,
            checks,
            watchdog: Watchdog::new(),
            counters: Counters::new(services),
            memory: Arc::new(Memory::new(memory)),
            workers_running: AtomicUsize::new(workers),
            spins_idle: 100,
            spins_waiting: 1000,
            spins_log: 20,
            stage: AtomicU8::new(stage::RUNS),
            failure: OnceLock::new(),
            watchers: Mutex::default(),
            active: AtomicU32::new(0),
            all_active: (Mutex::new(()), Condvar::new()),
        }
    }

    /// The number of the worker that has a shard of this node.
    #[must_use]
    pub fn worker_of(&self, shard: ShardId) -> usize {
        shard.0 as usize % self.inboxes.len()
    }

    /// Whether causes that may have ended the last life are still tried, and all else is held.
    #[must_use]
    pub fn is_trying(&self) -> bool {
        self.trials.lock().unwrap_or_else(PoisonError::into_inner).is_held()
    }

    /// Asks for a turn, or ends one, and carries the turn that follows to its shard.
    pub(crate) fn trials(&self, change: impl FnOnce(&mut Trials) -> Option<Grant>) {
        // Until the grant is in its inbox: a yield that overtook its turn would be lost.
        let mut trials = self.trials.lock().unwrap_or_else(PoisonError::into_inner);
        match change(&mut trials) {
            None => {}
            Some(Grant::Turn(shard, kind)) => {
                self.push(shard, Input::Turn(kind));
            }
            Some(Grant::Yield(shard)) => {
                self.push(shard, Input::Yield);
            }
            Some(Grant::Open) => {
                for inbox in &self.inboxes {
                    inbox.push(Command::every(Input::Open));
                }
            }
        }
    }

    fn watchers(&self) -> MutexGuard<'_, Vec<Box<dyn Reply<String>>>> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The user's code.
    #[must_use]
    pub fn program(&self) -> &E::Program {
        &self.program
    }

    /// The services and their shards.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Leaves an input for a shard in the inbox of its worker.
    pub fn push(&self, shard: ShardId, input: Input) {
        self.inboxes[self.worker_of(shard)].push_inputs(&mut vec![(shard, input)]);
    }

    /// Where work is left for the log.
    pub fn log(&self) -> &LogDesk {
        &self.log
    }

    /// The number of starts on the node's data directory, with this one.
    #[must_use]
    pub fn lives(&self) -> u64 {
        self.lives
    }

    /// The node's steady clock, on which calls have their deadlines.
    #[must_use]
    pub fn now(&self) -> Time {
        self.clock.steady()
    }

    /// Sends a client's request to its shard. The request's token is the node's to fill in.
    ///
    /// # Errors
    /// [`NoAnswer`] if the node takes no calls now; `reply_to` is dropped.
    pub fn request(
        &self,
        shard: ShardId,
        request: Request,
        reply_to: ReplyTo<E::Caller>,
    ) -> Result<(), NoAnswer> {
        self.send(shard, Command::Request { shard, request, reply_to })
    }

    /// Sends a client's query to its shard. The query's token is the node's to fill in.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn query(&self, shard: ShardId, query: Query, reply_to: ReplyTo<E::Caller>) -> Result<(), NoAnswer> {
        self.send(shard, Command::Query { shard, query, reply_to })
    }

    /// Opens a session at a shard. Without `reply_to` no caller waits: if it is refused, its requests will be.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn open_session(
        &self,
        shard: ShardId,
        session: SessionId,
        principal: Arc<str>,
        reply_to: Option<ReplyTo<E::Caller>>,
    ) -> Result<(), NoAnswer> {
        self.send(shard, Command::OpenSession { shard, session, principal, reply_to })
    }

    /// Sends an operator's decision about a dead letter to its shard.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn dead_letter(
        &self,
        shard: ShardId,
        letter: Index,
        action: DeadLetterAction,
        reply_to: ReplyTo<E::Caller>,
    ) -> Result<(), NoAnswer> {
        self.send(shard, Command::DeadLetter { shard, letter, action, reply_to })
    }

    /// Deletes records of a process, for an operator: at most [`Shard::DELETE_BATCH`] of them.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn delete(
        &self,
        shard: ShardId,
        process: Key,
        records: Vec<RecordKey>,
        reply_to: ReplyTo<E::Caller>,
    ) -> Result<(), NoAnswer> {
        self.send(shard, Command::Delete { shard, process, records, reply_to })
    }

    /// Looks at the state of a shard on its worker, which waits meanwhile. Blocks.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`] if a handler holds the shard for longer than [`LOOK_TIMEOUT`]; [`NoAnswer`] if the node has
    /// ended.
    #[expect(clippy::disallowed_methods, reason = "a caller of the node waits for its worker")]
    pub fn look<T: Send + 'static>(
        &self,
        shard: ShardId,
        look: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let (to, from) = mpsc::channel();
        let look = Box::new(move |state: &State| {
            // The caller may have given up.
            let _ = to.send(look(state));
        });
        self.send(shard, Command::Look { shard, look })?;
        from.recv_timeout(LOOK_TIMEOUT).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => {
                NoAnswer::Refused(Refusal::Overloaded { retry_after_ms: LOOK_TIMEOUT.as_millis() as u64 })
            }
            mpsc::RecvTimeoutError::Disconnected => self.end_reason(),
        })
    }

    /// Gives the reason once the node has a fatal error, at once if it has had one.
    pub fn on_failure(&self, reply: Box<dyn Reply<String>>) {
        let mut watchers = self.watchers();
        match self.failure.get() {
            Some(reason) => reply.send(reason.clone()),
            None => {
                watchers.retain(|reply| !reply.is_gone());
                watchers.push(reply);
            }
        }
    }

    /// Puts a client's command for a shard into the inbox of its worker.
    fn send(&self, shard: ShardId, command: Command<E::Caller>) -> Result<(), NoAnswer> {
        if self.stage.load(Ordering::Relaxed) != stage::RUNS || self.failure.get().is_some() {
            return Err(self.end_reason());
        }
        let place = self.placement.of(shard);
        if place != Place::Here {
            return Err(NoAnswer::NotHere { shard, place });
        }
        let bytes = command.request_bytes();
        if bytes > 0 {
            if !self.memory.takes(command.only_reads()) {
                let retry_after_ms = Shard::RETRY_AFTER_MS;
                return Err(NoAnswer::Refused(Refusal::Overloaded { retry_after_ms }));
            }
            self.memory.change([0, 0, bytes as i64]);
        }
        self.inboxes[self.worker_of(shard)].push(command);
        Ok(())
    }

    /// Whether threads must end at once, and leave undone what is not done.
    pub(crate) fn is_over(&self) -> bool {
        self.stage.load(Ordering::Relaxed) == stage::KILLED || self.failure.get().is_some()
    }

    /// Goes from one stage to the next, unless another one was reached meanwhile.
    pub(crate) fn change_stage(&self, from: u8, to: u8) {
        let _ = self.stage.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Whether the node has ended in any way.
    pub(crate) fn is_ended(&self) -> bool {
        self.stage.load(Ordering::Relaxed) >= stage::ENDED || self.failure.get().is_some()
    }

    /// The reason for which a node that has ended gives no answers.
    pub fn end_reason(&self) -> NoAnswer {
        match self.failure.get() {
            Some(reason) => NoAnswer::Failed(reason.clone()),
            None => NoAnswer::Stopped,
        }
    }

    /// A fatal error: the node takes and answers nothing any more.
    pub(crate) fn fail(&self, reason: String) {
        let text = format!("the node failed: {reason}");
        let _ = self.failure.set(reason);
        let watchers = std::mem::take(&mut *self.watchers());
        for reply in watchers {
            reply.send(self.failure.get().expect("it was set above").clone());
        }
        self.wake_all();
        events::error(text);
    }

    /// Takes no more calls from now on.
    pub fn begin_end(&self) {
        self.change_stage(stage::RUNS, stage::STOPS);
    }

    /// Asks the parts of a group to end, in the order of [`Group::ORDER`].
    pub fn stop(&self, group: Group) {
        match group {
            Group::Tasks => self.steps.stop(),
            Group::Checkpoints => {
                self.snapshots.stop();
                self.copies.stop();
                self.checks.stop();
            }
            Group::Workers => {
                for inbox in &self.inboxes {
                    inbox.push(Command::Stop);
                }
            }
            // They end once they are not waited for any more.
            Group::Queries => self.queries.close(),
            Group::Log => self.stop_all(),
            // Not before: a handler that runs for ever would be waited for as long.
            Group::Watchdog => self.watchdog.stop(),
        }
    }

    /// Whether no client waits any more for a query that runs, or is to run, apart from its shard.
    #[must_use]
    pub fn queries_are_answered(&self) -> bool {
        self.queries.has_answered()
    }

    /// Asks all parts to end at once.
    pub(crate) fn stop_all(&self) {
        // A kill that came meanwhile stays one.
        self.change_stage(stage::STOPS, stage::ENDED);
        self.wake_all();
    }

    pub(crate) fn wake_all(&self) {
        for inbox in &self.inboxes {
            // A worker that panicked does not do so, and what waits in its inbox has callers.
            inbox.close();
            inbox.bell.ring();
        }
        self.log.close();
        self.log.preparer_bell.ring();
        self.steps.stop();
        self.queries.stop();
        self.snapshots.stop();
        // A checkpoint part that panicked does not do so, and what waits in its queue has callers.
        self.snapshots.close();
        self.copies.stop();
        self.checks.stop();
        let _held = self.all_active.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.all_active.1.notify_all();
    }

    pub(crate) fn shard_is_active(&self) {
        if self.active.fetch_add(1, Ordering::SeqCst) + 1 == self.placement.count_here() {
            let _held = self.all_active.0.lock().unwrap_or_else(PoisonError::into_inner);
            self.all_active.1.notify_all();
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the start of a node waits for its threads")]
    pub(crate) fn await_active(&self) -> Result<(), String> {
        let mut held = self.all_active.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(reason) = self.failure.get() {
                return Err(reason.clone());
            }
            if self.active.load(Ordering::SeqCst) >= self.placement.count_here() {
                return Ok(());
            }
            held = self.all_active.1.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::env::{Caller, Program, StepCall};
    use stead_core::calls::{Answer, Call, Misuse, Outcome};
    use stead_core::capture::View;
    use stead_core::handler::{Handler, Txn};
    use stead_core::ids::{ClusterId, Incarnation};
    use stead_core::shard::StepOutcome;
    use stead_store::checkpoint::copy::Owner;

    /// The surroundings of a node without code, whose callers drop their answers.
    pub(crate) struct Nothing;

    impl Env for Nothing {
        type Program = NoCode;
        type Caller = ();
        type Clock = SystemClock;
        type Watch = ();
    }

    impl Caller for () {
        fn answer(self, _: Result<Answer, NoAnswer>) {}

        fn is_gone(&self) -> bool {
            false
        }
    }

    pub(crate) struct NoCode;

    impl Handler for NoCode {
        fn handle(&mut self, _: &Call<'_>, _: &mut Txn<'_>) -> Outcome {
            Outcome::Refused(Misuse::NoCode("any service".to_owned()))
        }

        fn query(&mut self, _: &Call<'_>, _: View<'_>) -> Outcome {
            Outcome::Refused(Misuse::NoCode("any service".to_owned()))
        }
    }

    impl Program for NoCode {
        type Handler = Self;

        fn handler(&self, _: &Arc<Topology>, _: u64) -> Self {
            Self
        }

        fn query(&self, _: &Call<'_>, _: View<'_>, _: &Topology) -> Outcome {
            Outcome::Refused(Misuse::NoCode("any service".to_owned()))
        }

        fn step(&self, step: &StepCall<'_>) -> StepOutcome {
            StepOutcome::Failed(format!("no code for task {}", step.name))
        }

        fn has_service(&self, _: &str) -> bool {
            false
        }

        fn has_task(&self, _: &str) -> bool {
            false
        }

        fn checked_services(&self) -> Vec<String> {
            Vec::new()
        }

        fn check(&self, _: &str, _: &Topology, _: &[State]) -> Result<(), String> {
            Ok(())
        }
    }

    /// The shared state of a node with these services and one worker, without threads.
    pub(crate) fn shared_with(services: &[(&str, u32)]) -> Arc<Shared<Nothing>> {
        let mut topology = Topology::new(Incarnation(1));
        for (name, shards) in services {
            topology.ensure(name, *shards).unwrap();
        }
        let owner = Owner { cluster: ClusterId(1), incarnation: topology.incarnation };
        let around = (SystemClock::new(None), ());
        let copies = (Copies::new(owner, 0, None), Checks::new(u64::MAX));
        let limits = MemoryLimits::default();
        let placement = Placement::all_here(&topology);
        Arc::new(Shared::new(NoCode, (Arc::new(topology), placement), (1, 1), 1, around, copies, limits))
    }

    /// The same without services.
    pub(crate) fn shared() -> Arc<Shared<Nothing>> {
        shared_with(&[])
    }
}
