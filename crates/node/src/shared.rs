//! The state that the threads of a node and its clients share.

use crate::checkpoint::SnapshotQueue;
use crate::checks::CheckDesk;
use crate::clock::Clock;
use crate::control::ControlDesk;
use crate::copies::CopyDesk;
use crate::env::{Env, Watch};
use crate::events;
use crate::forward::{self, Forwarder, command_of};
use crate::inbox::{Command, Inbox};
use crate::log::{LogDesk, Trimming};
use crate::memory::{Memory, MemoryLimits};
use crate::metrics::Counters;
use crate::native::{Native, Recipient};
use crate::peers::{PeerDesk, PeerMessage};
use crate::placed::Placed;
use crate::queries::QueryQueue;
use crate::reply::{NoAnswer, Reply, ReplyTo};
use crate::roster::{PartId, Roster};
use crate::routes::{Followed, RouteDesk};
use crate::sizes::Sizes;
use crate::status::ShardNotHere;
use crate::steps::StepQueue;
use crate::transfers::desk::{Event, TransferDesk};
use crate::watchdog::Watchdog;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::Duration;
use stead_core::calls::{Query, Refusal, Request};
use stead_core::control::directory::ShardRoute;
use stead_core::ids::{Index, Micros, NodeId, ReplicaId, SessionId, ShardId, Time};
use stead_core::key::Key;
use stead_core::look::Look;
use stead_core::placement::{Place, Placement};
use stead_core::record::RecordKey;
use stead_core::shard::{DeadLetterAction, Input, Shard};
use stead_core::shard_replica;
use stead_core::shutdown::Group;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_core::trials::{Grant, Trials};
use stead_net::forward::{Answered, Call, CallId};
use stead_net::native::{self, Ask};
use stead_net::replica::Route;

/// The time for which a look at a shard, and the status, wait for a worker that is held by a handler: 500 ms.
pub const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// The state that all threads and clients of a node share.
pub struct Shared<E: Env> {
    /// Returns the number of starts on the node's data directory, including this one.
    pub(crate) lives: u64,
    /// The identity of this process, drawn at random.
    pub(crate) process: u64,
    pub(crate) program: E::Program,
    pub(crate) topology: Arc<Topology>,
    /// The shards that this node has.
    pub(crate) placement: Placement,
    /// The replicas of these that are not the only ones of their shards.
    pub(crate) replicated: Placed,
    /// This node.
    pub(crate) node: NodeId,
    pub(crate) routes: RouteDesk,
    pub(crate) inboxes: Vec<Inbox<Recipient<E::Caller>>>,
    pub(crate) clock: E::Clock,
    pub(crate) watch: E::Watch,
    pub(crate) log: LogDesk,
    /// The messages for other nodes, their addresses, and what is known of them.
    pub peers: Arc<PeerDesk>,
    pub(crate) transfers: TransferDesk,
    pub(crate) trimming: Trimming,
    /// The news for the control plane.
    pub control: ControlDesk,
    pub(crate) steps: StepQueue,
    pub(crate) queries: Arc<QueryQueue<Recipient<E::Caller>>>,
    /// The turns of shards that try what the last life may have met. Rarely used: its lock is no matter.
    trials: Mutex<Trials>,
    pub(crate) snapshots: Arc<SnapshotQueue>,
    pub(crate) copies: CopyDesk,
    pub(crate) checks: CheckDesk,
    pub(crate) watchdog: Watchdog,
    pub(crate) counters: Counters,
    pub(crate) memory: Arc<Memory>,
    pub(crate) sizes: Sizes,
    pub(crate) roster: Roster,
    /// Turns that a thread spins before it sleeps, for waking it takes long.
    pub(crate) spins_idle: u32,
    pub(crate) spins_waiting: u32,
    pub(crate) spins_log: u32,
    pub(crate) stage: AtomicU8,
    /// The time until which an end that abandons the node waits for users' code, in microseconds of the steady clock.
    killed_until: AtomicU64,
    pub(crate) failure: OnceLock<String>,
    /// The highest colour of a checkpoint that has begun: a client over the network cannot have seen a higher one.
    pub(crate) colour: AtomicU64,
    /// The connections to clients of workers that have ended, for answers that still come.
    connections: Mutex<Vec<Native>>,
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
        (topology, placement, replicated): (Arc<Topology>, Placement, Placed),
        (workers, step_parts): (usize, usize),
        (node, lives, process): (NodeId, u64, u64),
        (clock, watch): (E::Clock, E::Watch),
        (copies, checks): (CopyDesk, CheckDesk),
        (memory, sizes): (MemoryLimits, Sizes),
    ) -> Self {
        let services = topology.services().len();
        Self {
            lives,
            process,
            trimming: Trimming::new(&placement),
            program,
            topology,
            placement,
            replicated,
            node,
            routes: RouteDesk::default(),
            inboxes: (0..workers).map(|_| Inbox::new()).collect(),
            clock,
            watch,
            log: LogDesk::default(),
            peers: Arc::default(),
            transfers: TransferDesk::default(),
            control: ControlDesk::default(),
            steps: StepQueue::new(step_parts),
            queries: Arc::new(QueryQueue::new(services, sizes)),
            trials: Mutex::default(),
            snapshots: Arc::new(SnapshotQueue::new(0, sizes.behind_bytes)),
            copies,
            checks,
            watchdog: Watchdog::new(),
            counters: Counters::new(services),
            memory: Arc::new(Memory::new(memory)),
            sizes,
            roster: Roster::default(),
            spins_idle: 100,
            spins_waiting: 1000,
            spins_log: 20,
            stage: AtomicU8::new(stage::RUNS),
            killed_until: AtomicU64::new(u64::MAX),
            failure: OnceLock::new(),
            colour: AtomicU64::new(0),
            connections: Mutex::default(),
            watchers: Mutex::default(),
            active: AtomicU32::new(0),
            all_active: (Mutex::new(()), Condvar::new()),
        }
    }

    /// Returns the number of the worker that has a shard of this node.
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

    /// Returns the user's code.
    #[must_use]
    pub fn program(&self) -> &E::Program {
        &self.program
    }

    /// Returns the services and their shards.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Returns the shards that are not on this node, in the order of their numbers.
    pub fn not_here(&self) -> impl Iterator<Item = ShardNotHere> {
        self.placement.not_here().map(|(shard, place)| {
            let service =
                self.topology.service_of(shard).expect("a placement is of the shards of the topology");
            ShardNotHere { shard: shard.0, service: self.topology.service(service).name.clone(), place }
        })
    }

    /// Leaves an input for a shard in the inbox of its worker.
    pub fn push(&self, shard: ShardId, input: Input) {
        self.inboxes[self.worker_of(shard)].push_inputs(&mut vec![(shard, input)]);
    }

    /// Leaves an input for the replica of a shard on this node, which comes from the control plane or from a peer.
    pub fn push_replica(&self, shard: ShardId, input: shard_replica::Input) {
        self.push_to(shard, Command::Replica { shard, to: None, input });
    }

    /// Leaves an input for one replica of a shard. It is dropped unless that is here when its turn comes.
    pub fn push_replica_of(&self, shard: ShardId, replica: ReplicaId, input: shard_replica::Input) {
        self.push_to(shard, Command::Replica { shard, to: Some(replica), input });
    }

    fn push_to(&self, shard: ShardId, command: Command<Recipient<E::Caller>>) {
        self.inboxes[self.worker_of(shard)].push(command);
    }

    /// Places a replica on this node, as the control plane has decided: with an empty log, behind whatever replica of the shard was here,
    /// of which nothing counts any more. Nothing happens if it is here already, or had its time.
    pub fn place_replica(&self, shard: ShardId, replica: ReplicaId) {
        if self.replicated.place(shard, replica) {
            self.push_to(shard, Command::Place { shard, replica });
        }
    }

    /// Drops a replica of this node for ever, as the control plane orders it once no epoch that counts names the replica (rule 5). Once a
    /// tombstone is durable, [`Fact::Deleted`](stead_core::control::facts::Fact::Deleted) waits on [`Self::control`]; an order that is
    /// repeated is answered again. What the replica promised stays in the log.
    pub fn delete_replica(&self, shard: ShardId, replica: ReplicaId) {
        self.replicated.delete(shard, replica);
        self.push_to(shard, Command::DeleteReplica { shard, replica });
    }

    /// Leaves a message of another node for the worker of its shard. One for a shard or a replica that is not here is dropped: its
    /// sender repeats it, once it knows where that is.
    pub fn from_peer(&self, message: PeerMessage) {
        match message {
            // Rule 1: a frame for an earlier stint of membership must not reach this one.
            PeerMessage::Frame(Route { shard, from, to }, frame) if self.replicated.of(shard) == Some(to) => {
                self.push_replica_of(shard, to, shard_replica::Input::Frame { from, frame });
            }
            PeerMessage::Frame(..) => {}
            PeerMessage::Chunk(route, chunk) if self.replicated.of(route.shard) == Some(route.to) => {
                self.transfers.leave(Event::Chunk(route, chunk));
            }
            PeerMessage::Received(route, received) if self.replicated.of(route.shard) == Some(route.to) => {
                self.transfers.leave(Event::Received(route, received));
            }
            PeerMessage::Chunk(..) | PeerMessage::Received(..) => {}
            PeerMessage::Deliver { from, to, messages, again } => {
                self.push(to, Input::Deliver { from, messages, again });
            }
            PeerMessage::Ack { from, to, upto, colour } => self.push(to, Input::Ack { from, upto, colour }),
            PeerMessage::Call { from, call } => self.take_forwarded(from, call),
            PeerMessage::Answered(Answered { shard, id, outcome }) if id.process == self.process => {
                let news = forward::News::Answered(id.number, outcome);
                self.inboxes[self.worker_of(shard)].push(Command::Forwarded(news));
            }
            PeerMessage::Answered(_) => {}
        }
    }

    /// Takes a call that another node forwarded, or answers it at once.
    fn take_forwarded(&self, from: NodeId, Call { shard, id, within, ask }: Call) {
        let caller = Forwarder { desk: Arc::clone(&self.peers), node: from, shard, id };
        let deadline = self.now().plus(within.into());
        let reply_to = ReplyTo { caller: Recipient::Node(caller.clone()), deadline, timeout: within };
        let command = Ask::decode_untimed(&ask)
            .map_err(|error| native::Answer::Invalid(error.to_string()))
            .and_then(|ask| command_of(&self.topology, ask, |principal| principal.into(), reply_to));
        let (shard, command) = match command {
            Ok(command) => command,
            Err(answer) => return caller.leave_answer(&answer),
        };
        let accepted = match self.placement.of(shard) {
            Place::Here => self.accept(shard, &command),
            place => Err(NoAnswer::NotHere { shard, place }),
        };
        match accepted {
            Ok(()) => self.inboxes[self.worker_of(shard)].push(command),
            Err(refused @ NoAnswer::Refused(_)) => caller.leave(Err(refused)),
            // Nothing was changed, also if this node ends.
            Err(_) => caller.leave(Err(NoAnswer::NotHere { shard, place: Place::Elsewhere })),
        }
    }

    /// Notes that a call did not leave for a node, to which there is no connection.
    pub fn not_sent(&self, node: NodeId, shard: ShardId, id: CallId) {
        self.inboxes[self.worker_of(shard)].push(Command::Forwarded(forward::News::Unsent(node, id.number)));
    }

    /// Notes that messages flow to a node from now on.
    pub fn peer_opened(&self, node: NodeId) {
        for inbox in &self.inboxes {
            inbox.push(Command::Forwarded(forward::News::Opened(node)));
        }
    }

    /// Notes that the connection to a node closed: what was on its way may be lost.
    pub fn peer_closed(&self, node: NodeId) {
        for inbox in &self.inboxes {
            inbox.push(Command::Forwarded(forward::News::Closed(node)));
        }
    }

    /// Follows routes that are new or have changed, as
    /// [`Directory::shards_changed_since`](stead_core::control::directory::Directory::shards_changed_since) returns them. Replicas that
    /// they name on this node begin here, as by [`Self::place_replica`]. Those that are here send again what may be lost on its way to a
    /// replica whose node is new.
    pub fn follow_routes<'a>(&self, changed: impl IntoIterator<Item = (ShardId, &'a ShardRoute)>) {
        let Followed { placed, connected } = self.routes.follow(changed, &self.replicated, self.node);
        for (shard, replica) in placed {
            self.place_replica(shard, replica);
        }
        for (shard, replica) in connected {
            self.push_replica(shard, shard_replica::Input::Connected(replica));
        }
    }

    /// Replaces the addresses at which the nodes of the cluster serve clients, which learn them from this node.
    pub fn set_client_addresses(&self, addresses: BTreeMap<NodeId, SocketAddr>) {
        self.routes.set_clients(addresses);
    }

    /// Returns the replica of a shard on this node, if that may have others elsewhere.
    #[must_use]
    pub fn replica_of(&self, shard: ShardId) -> Option<ReplicaId> {
        self.replicated.of(shard)
    }

    /// Returns the longest time for which the node's write path has made no progress: the oldest entry has waited for the log, or a
    /// worker has been stuck in a turn, outside user code.
    #[must_use]
    pub fn stalled(&self) -> Micros {
        let waited = self.log.lag(self.now()).unwrap_or_default();
        Micros::from(waited.max(self.watchdog.stuck()))
    }

    /// Returns the desk where work is left for the log.
    pub fn log(&self) -> &LogDesk {
        &self.log
    }

    /// Returns the number of starts on the node's data directory, including this one.
    #[must_use]
    pub fn lives(&self) -> u64 {
        self.lives
    }

    /// Returns the time of the node's steady clock, on which calls have their deadlines.
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
        self.send(shard, Command::Request { shard, request, reply_to: reply_to.here() })
    }

    /// Sends a client's query to its shard. The query's token is the node's to fill in.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn query(&self, shard: ShardId, query: Query, reply_to: ReplyTo<E::Caller>) -> Result<(), NoAnswer> {
        self.send(shard, Command::Query { shard, query, reply_to: reply_to.here() })
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
        let reply_to = reply_to.map(ReplyTo::here);
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
        self.send(shard, Command::DeadLetter { shard, letter, action, reply_to: reply_to.here() })
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
        self.send(shard, Command::Delete { shard, process, records, reply_to: reply_to.here() })
    }

    /// Looks at the state of a shard, for an operator: the answer has the encoded [`Found`](stead_core::look::Found).
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn show(&self, shard: ShardId, look: Look, reply_to: ReplyTo<E::Caller>) -> Result<(), NoAnswer> {
        self.send(shard, Command::Show { shard, look: Box::new(look), reply_to: reply_to.here() })
    }

    /// Returns the node of a shard's primary, as far as this node knows it.
    #[must_use]
    pub fn primary_node(&self, shard: ShardId) -> Option<NodeId> {
        self.routes.newest().get(&shard).and_then(ShardRoute::primary_node)
    }

    /// Leaves a function for the worker of a shard, which passes the shard's state to it, and waits meanwhile.
    ///
    /// # Errors
    /// [`NoAnswer`] if the node takes no calls now. Otherwise the function is dropped if the node ends first.
    pub fn leave_look(
        &self,
        shard: ShardId,
        look: impl FnOnce(&State) + Send + 'static,
    ) -> Result<(), NoAnswer> {
        self.send(shard, Command::Look { shard, look: Box::new(look) })
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
        self.leave_look(shard, move |state| {
            // The caller may have given up.
            let _ = to.send(look(state));
        })?;
        from.recv_timeout(LOOK_TIMEOUT).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => {
                NoAnswer::Refused(Refusal::Overloaded { retry_after: LOOK_TIMEOUT })
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
    fn send(&self, shard: ShardId, command: Command<Recipient<E::Caller>>) -> Result<(), NoAnswer> {
        self.accept(shard, &command)?;
        self.inboxes[self.worker_of(shard)].push(command);
        Ok(())
    }

    /// Counts a client's command, which goes to the worker of its shard at once.
    ///
    /// # Errors
    /// [`NoAnswer`] if the node takes no calls now: nothing was counted.
    pub(crate) fn accept(
        &self,
        shard: ShardId,
        command: &Command<Recipient<E::Caller>>,
    ) -> Result<(), NoAnswer> {
        if self.stage.load(Ordering::Relaxed) != stage::RUNS || self.failure.get().is_some() {
            return Err(self.end_reason());
        }
        let place = self.placement.of(shard);
        let is_forwarded =
            || command.can_be_forwarded() && place == Place::Elsewhere && self.routes.are_expected();
        if place != Place::Here && !is_forwarded() {
            return Err(NoAnswer::NotHere { shard, place });
        }
        let bytes = command.request_bytes();
        if bytes > 0 {
            if !self.memory.takes(command.only_reads()) {
                let retry_after = Shard::RETRY_AFTER;
                return Err(NoAnswer::Refused(Refusal::Overloaded { retry_after }));
            }
            self.memory.change([0, 0, bytes as i64]);
        }
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

    /// Returns the reason for which a node that has ended gives no answers.
    pub fn end_reason(&self) -> NoAnswer {
        match self.failure.get() {
            Some(reason) => NoAnswer::Failed(reason.clone()),
            None => NoAnswer::Stopped,
        }
    }

    /// Records a fatal error: the node accepts and answers nothing any more.
    pub fn fail(&self, reason: String) {
        if !self.watch.fails(&reason) {
            return;
        }
        let text = format!("the node failed: {reason}");
        let _ = self.failure.set(reason);
        let watchers = std::mem::take(&mut *self.watchers());
        for reply in watchers {
            reply.send(self.failure.get().expect("it was set above").clone());
        }
        self.wake_all();
        events::error(text);
    }

    /// Returns the node's fatal error, if it has had one.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Notes that a part begins.
    pub(crate) fn part_begins(&self, part: PartId) {
        match part {
            PartId::Checks => self.checks.part_begins(),
            PartId::Query(_) => self.queries.part_begins(),
            _ => {}
        }
        self.roster.begin(part);
    }

    /// Begins a part, which `run` puts on its thread.
    ///
    /// # Errors
    /// That of `run`, if the system refuses a thread: the part has not begun.
    pub(crate) fn begin_part<T>(&self, part: PartId, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.part_begins(part);
        run().inspect_err(|_| self.part_refused(part))
    }

    /// Notes that a part has panicked, which ends it. This is fatal for the node, except for the part that runs services' checks:
    /// no caller waits for a check, and the data do not depend on it.
    pub(crate) fn part_panicked(&self, part: PartId, panic: &str) {
        let name = part.thread_name();
        let ended = if part == PartId::Checks {
            events::error(format_args!(
                "no checkpoint is checked any more: the thread panicked; this is a bug in Stead: {panic}"
            ));
            Ok(())
        } else {
            Err(format!("thread {name} panicked; this is a bug in Stead: {panic}"))
        };
        self.part_ended(part, ended);
    }

    /// Notes that a part has ended. Its error is fatal for the node.
    pub(crate) fn part_ended(&self, part: PartId, ended: Result<(), String>) {
        if let Err(reason) = ended
            // The end of the node does not always wait for the checks.
            && (part != PartId::Checks || !self.is_ended())
        {
            self.fail(reason);
        }
        if part == PartId::Checks {
            let unchecked = self.checks.part_ended(self.is_ended());
            self.counters.checkpoints_unchecked.add(unchecked as u64);
        }
        self.roster.end(part);
    }

    /// Notes that a part does not begin after all: the system refuses its thread.
    fn part_refused(&self, part: PartId) {
        if let PartId::Query(_) = part {
            self.queries.part_refused();
        }
        self.part_ended(part, Ok(()));
    }

    /// Abandons the node as a crash does: its parts leave their work undone. Its end waits for users' code until a time.
    pub(crate) fn kill(&self, mut until: Time) {
        self.watch.kills(&mut until);
        self.killed_until.fetch_min(until.0, Ordering::SeqCst);
        self.stage.store(stage::KILLED, Ordering::SeqCst);
        // Also for a shutdown that waits.
        self.wake_all();
    }

    /// Returns the time until which the end waits for users' code if the node was abandoned.
    pub(crate) fn killed_until(&self) -> Option<Time> {
        let is_killed = self.stage.load(Ordering::SeqCst) == stage::KILLED;
        is_killed.then(|| Time(self.killed_until.load(Ordering::SeqCst)))
    }

    /// Keeps the connections of a worker that ends: other workers and queries may still answer their clients.
    pub(crate) fn keep_connections(&self, native: Native) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).push(native);
    }

    /// Gives the kept connections a turn; returns whether all calls are answered, and all answers have left.
    pub(crate) fn serve_connections(&self, now: Time) -> bool {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let mut are_drained = true;
        connections.retain_mut(|native| {
            let drained = native.drain(now, self.clock.wall());
            are_drained &= !matches!(drained, Ok(false));
            // One that the system serves no more is closed.
            drained.is_ok()
        });
        are_drained
    }

    /// Closes the kept connections.
    pub(crate) fn close_connections(&self) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Takes no more calls from now on.
    pub(crate) fn begin_end(&self) {
        self.change_stage(stage::RUNS, stage::STOPS);
    }

    /// Asks the parts of a group to end, in the order of [`Group::ORDER`].
    pub(crate) fn stop(&self, group: Group) {
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
        self.peers.bell.ring();
        self.peers.relief.ring();
        self.transfers.bell.ring();
        self.steps.stop();
        self.queries.stop();
        self.snapshots.stop();
        // A checkpoint part that panicked does not do so, and what waits in its queue has callers.
        self.snapshots.close();
        self.copies.stop();
        self.checks.stop();
        self.roster.ring();
        let _held = self.all_active.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.all_active.1.notify_all();
    }

    /// Returns the number of shards that serve as soon as the node does: those that have no other replica.
    pub(crate) fn serving(&self) -> u32 {
        self.placement.count_here() - self.replicated.len() as u32
    }

    /// Notes that one of [`Self::serving`] serves.
    pub(crate) fn shard_is_active(&self) {
        if self.active.fetch_add(1, Ordering::SeqCst) + 1 == self.serving() {
            let _held = self.all_active.0.lock().unwrap_or_else(PoisonError::into_inner);
            self.all_active.1.notify_all();
        }
    }

    /// Whether all shards serve, or the failure that came before; `None` while the node starts.
    pub(crate) fn started(&self) -> Option<Result<(), String>> {
        if let Some(reason) = self.failure.get() {
            return Some(Err(reason.clone()));
        }
        (self.active.load(Ordering::SeqCst) >= self.serving()).then_some(Ok(()))
    }

    #[expect(clippy::disallowed_methods, reason = "the start of a node waits for its threads")]
    pub(crate) fn await_start(&self) {
        let mut held = self.all_active.0.lock().unwrap_or_else(PoisonError::into_inner);
        while self.started().is_none() {
            held = self.all_active.1.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::env::{Program, StepCall};
    use crate::reply::Caller;
    use stead_core::calls::{Answer, Call, Misuse, Outcome};
    use stead_core::capture::View;
    use stead_core::handler::{Handler, Txn};
    use stead_core::ids::{ClusterId, Incarnation};
    use stead_core::shard::StepOutcome;
    use stead_store::checkpoint::copy::Owner;
    use stead_store::checkpoint::store::DiskStore;
    use stead_store::data_dir::CHECKPOINTS;
    use stead_store::sim_disk::SimDisk;

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

    /// Creates the shared state of a node with these services and one worker, without threads.
    pub(crate) fn shared_with(services: &[(&str, u32)]) -> Arc<Shared<Nothing>> {
        shared_in(SystemClock::new(None), services)
    }

    /// The same in other surroundings.
    pub(crate) fn shared_in<E>(clock: E::Clock, services: &[(&str, u32)]) -> Arc<Shared<E>>
    where
        E: Env<Program = NoCode, Watch = ()>,
    {
        let mut topology = Topology::new(Incarnation(1));
        for (name, shards) in services {
            topology.ensure(name, *shards).unwrap();
        }
        let topology = Arc::new(topology);
        let owner = Owner { cluster: ClusterId(1), incarnation: topology.incarnation };
        let around = (clock, ());
        let copies = (CopyDesk::new(owner, 0, None), check_desk(u64::MAX));
        let (limits, sizes) = (MemoryLimits::default(), Sizes::default());
        let placed = (Arc::clone(&topology), Placement::all_here(&topology), Placed::default());
        let node = (NodeId::FIRST, 1, 1);
        Arc::new(Shared::new(NoCode, placed, (1, 1), node, around, copies, (limits, sizes)))
    }

    /// Creates the desk of checks over an empty store.
    pub(crate) fn check_desk(bytes_max: u64) -> CheckDesk {
        let store = DiskStore::attach(Arc::new(SimDisk::new(1)), CHECKPOINTS);
        CheckDesk::new(bytes_max, Arc::new(store))
    }

    /// As [`shared_with`] without services.
    pub(crate) fn shared() -> Arc<Shared<Nothing>> {
        shared_with(&[])
    }
}
