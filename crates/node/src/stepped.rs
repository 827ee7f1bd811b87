//! The parts of a node without threads, for a simulator: it gives them their turns.

use crate::bell::Bell;
use crate::checkpoint::{Checkpoints, Merges};
use crate::copies::CopyPart;
use crate::drive::end_part;
use crate::env::Env;
use crate::life::{Ending, Life};
use crate::lifecycle::EndOrder;
use crate::open::{AnyPart, Drawn, OpenError, Options, Recovery, Sockets, assemble};
use crate::panics;
use crate::part::{Part, Turned};
use crate::queries::{QueryPart, QueryThread, QueryThreads};
use crate::roster::PartId;
use crate::shared::Shared;
use crate::shutdown::EndPart;
use crate::starting::{StartOrder, Starting};
use crate::worker::Worker;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use stead_core::ids::{CheckpointNumber, ShardId, Time};
use stead_core::shard::Shard;

/// The parts of a node, and what they share.
pub struct Stepped<E: Env> {
    /// The state that the parts share: the hub of each.
    pub shared: Arc<Shared<E>>,
    /// The parts that have not ended, whether they have begun or not, except for the watchdog and the end.
    parts: BTreeMap<PartId, AnyPart<E>>,
    /// The part that ends the others, once the end has begun.
    end: Option<EndPart>,
    /// Decides which begins next.
    starting: Starting,
    threads: Arc<Threads>,
    life: Arc<Life<E>>,
    /// The end that users' code has begun within a turn.
    begun: Arc<Mutex<Option<EndPart>>>,
}

/// Ends a node from within a turn of one of its parts, as users' code does.
pub struct Ender<E: Env> {
    life: Weak<Life<E>>,
    begun: Arc<Mutex<Option<EndPart>>>,
}

impl<E: Env> Clone for Ender<E> {
    fn clone(&self) -> Self {
        Self { life: Weak::clone(&self.life), begun: Arc::clone(&self.begun) }
    }
}

impl<E: Env> Ender<E> {
    /// Asks for the end of the node, as [`Stepped::kill`] does for the part whose turn it is.
    pub fn kill(&self, by: PartId) -> EndOrder {
        let Some(life) = self.life.upgrade() else { return EndOrder::Nothing };
        let until = life.shared.now().plus(life.shutdown_timeout.into());
        let (order, end) = life.ask_end(Ending::Kill, until, Some(by));
        if let Some(end) = end {
            *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        }
        order
    }
}

/// The fill of a queue that has a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The name of what waits in it.
    pub what: &'static str,
    /// The number that waits.
    pub waiting: usize,
    /// The bound.
    pub most: usize,
}

/// The progress of a node's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// This part has begun.
    Part(PartId),
    /// All parts have begun, and not all shards serve.
    All,
    /// All shards serve.
    Serves,
}

/// The threads of a simulated system.
#[derive(Default)]
struct Threads {
    /// Parts for queries that the watcher has begun.
    begun: Mutex<Vec<QueryPart>>,
    /// Whether the system has no thread for more of them.
    are_refused: AtomicBool,
}

struct NoThreads(Arc<Threads>);

impl QueryThreads for NoThreads {
    fn run(&mut self, part: QueryPart) -> io::Result<()> {
        if self.0.are_refused.load(Ordering::Relaxed) {
            return Err(no_thread());
        }
        self.0.begun.lock().unwrap_or_else(PoisonError::into_inner).push(part);
        Ok(())
    }

    fn let_others_first(&mut self, _: QueryThread) {}
}

fn no_thread() -> io::Error {
    io::Error::new(io::ErrorKind::WouldBlock, "the system has no thread")
}

impl<E: Env> Stepped<E> {
    /// Assembles a life over what was recovered, as [`Life::open`] does. None of its parts has begun.
    #[expect(clippy::disallowed_methods, reason = "it times the start")]
    #[must_use]
    pub fn assemble(
        program: E::Program,
        around: (E::Clock, E::Watch),
        recovery: Recovery,
        options: Options,
        drawn: Drawn,
    ) -> Self {
        let parts = assemble(program, around, recovery, (options, Sockets::default()), drawn, Instant::now());
        let threads: Arc<Threads> = Arc::default();
        let (life, parts) = parts.in_order(Box::new(NoThreads(Arc::clone(&threads))));
        // It waits, and reads the system's clock.
        let steps = |(id, _): &(PartId, AnyPart<E>)| *id != PartId::Watchdog;
        let parts: Vec<(PartId, AnyPart<E>)> = parts.into_iter().filter(steps).collect();
        Self {
            shared: Arc::clone(&life.shared),
            starting: Starting::new(parts.iter().map(|(id, _)| *id)),
            parts: parts.into_iter().collect(),
            end: None,
            threads,
            life: Arc::new(life),
            begun: Arc::default(),
        }
    }

    /// Returns a worker that has not ended. Its first turn starts its shards.
    #[must_use]
    pub fn worker(&self, number: usize) -> Option<&Worker<E>> {
        match self.parts.get(&PartId::Worker(number)) {
            Some(AnyPart::Worker(part)) => Some(part),
            _ => None,
        }
    }

    /// Returns the part that takes checkpoints, unless it has ended.
    #[must_use]
    pub fn checkpoints(&self) -> Option<&Checkpoints> {
        match self.parts.get(&PartId::Checkpoints) {
            Some(AnyPart::Checkpoints(part)) => Some(part),
            _ => None,
        }
    }

    /// The same, to change it.
    pub fn checkpoints_mut(&mut self) -> Option<&mut Checkpoints> {
        match self.parts.get_mut(&PartId::Checkpoints) {
            Some(AnyPart::Checkpoints(part)) => Some(part),
            _ => None,
        }
    }

    /// Returns the part that merges bundles, unless it has ended.
    #[must_use]
    pub fn merges(&self) -> Option<&Merges> {
        match self.parts.get(&PartId::Merges) {
            Some(AnyPart::Merges(part)) => Some(part),
            _ => None,
        }
    }

    /// Returns the part that copies checkpoints, unless it has ended.
    pub fn copies_mut(&mut self) -> Option<&mut CopyPart> {
        match self.parts.get_mut(&PartId::Copies) {
            Some(AnyPart::Copies(part)) => Some(part),
            _ => None,
        }
    }

    /// Whether a part that runs steps or queries has one whose code runs.
    #[must_use]
    pub fn has_begun(&self, id: PartId) -> bool {
        match self.parts.get(&id) {
            Some(AnyPart::Step(part)) => part.has_begun(),
            Some(AnyPart::Query(part)) => part.has_begun(),
            _ => false,
        }
    }

    /// Returns the life, for operators' commands. Without threads, a command that waits for a worker gets no answer.
    #[must_use]
    pub fn life(&self) -> &Life<E> {
        &self.life
    }

    /// Begins the next part, as the start of a node puts it on its thread, or looks whether the shards serve. If the system
    /// `refuses` the thread, or a part has failed, the end of the node begins.
    ///
    /// # Errors
    /// [`OpenError::Thread`], [`OpenError::Failed`].
    pub fn start(&mut self, refuses: bool) -> Result<Started, OpenError> {
        loop {
            match self.starting.next(self.shared.started()) {
                StartOrder::Begin(id) => {
                    let run = || if refuses { Err(no_thread()) } else { Ok(()) };
                    match self.life.begin_part(id, run) {
                        Ok(()) => return Ok(Started::Part(id)),
                        Err(error) => self.starting.refused(error),
                    }
                }
                StartOrder::Await => return Ok(Started::All),
                StartOrder::Serve => return Ok(Started::Serves),
                StartOrder::Kill(error) => {
                    self.kill(None);
                    return Err(error);
                }
            }
        }
    }

    /// Returns the means by which users' code ends the node within a turn.
    #[must_use]
    pub fn ender(&self) -> Ender<E> {
        Ender { life: Arc::downgrade(&self.life), begun: Arc::clone(&self.begun) }
    }

    /// Whether a part has begun and not ended.
    #[must_use]
    pub fn runs(&self, id: PartId) -> bool {
        match id {
            PartId::End => self.end.is_some(),
            id => self.shared.roster.runs(id),
        }
    }

    /// Returns the parts that have not ended with their bells, whether they have begun or not.
    pub fn bells(&self) -> impl Iterator<Item = (PartId, &Bell)> {
        let hub = &*self.shared;
        let end = self.end.iter().map(|part| (PartId::End, part.bell(hub)));
        self.parts.iter().map(|(id, part)| (*id, part.bell(hub))).chain(end)
    }

    /// Gives a part that runs a turn. Drops it after its last one, and performs the consequences of its end or its panic, as its
    /// thread does.
    ///
    /// # Errors
    /// The text of the turn's error, or of its panic.
    ///
    /// # Panics
    /// If there is no such part.
    pub fn turn(&mut self, id: PartId, now: Time) -> Result<Turned, String> {
        let hub = &*self.shared;
        if id == PartId::End {
            let end = self.end.as_mut().expect("the end has begun");
            let turned = turn(end, hub, now);
            if turned == Ok(Turned::Ended) {
                self.end = None;
                self.life.note_ended();
            }
            return turned;
        }
        let part = self.parts.get_mut(&id).expect("only a part of the node gets turns");
        let turned = panics::catch_own(|| part.turn(hub, now));
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.end = begun.or(self.end.take());
        let (turned, ended) = match turned {
            Ok(Ok(Turned::Ended)) => (Ok(Turned::Ended), Ok(Ok(()))),
            Ok(Ok(turned)) => return Ok(turned),
            Ok(Err(error)) => (Err(error.clone()), Ok(Err(error))),
            Err(panic) => (Err(format!("it panicked: {panic}")), Err(panic)),
        };
        end_part(hub, id, self.parts.remove(&id), ended);
        turned
    }

    /// Ends a part with an error, as if its turn had failed.
    pub fn fail(&mut self, id: PartId, reason: &str) {
        end_part(&self.shared, id, self.parts.remove(&id), Ok(Err(reason.to_owned())));
    }

    /// Asks for the end of the node, as [`Life::shutdown`] does. Steps of tasks and queries are waited for up to `limit`. `by` is
    /// the part that asks, within its turn; `None` for a caller from outside. Returns the caller's order: after
    /// [`EndOrder::Begin`], [`PartId::End`] gets turns.
    pub fn shut_down(&mut self, limit: Duration, by: Option<PartId>) -> EndOrder {
        self.ask_end(Ending::InOrder, limit, by)
    }

    /// Asks for the end of the node, as [`Life::kill`] does. `by` and the result are those of [`Self::shut_down`].
    pub fn kill(&mut self, by: Option<PartId>) -> EndOrder {
        self.ask_end(Ending::Kill, self.life.shutdown_timeout, by)
    }

    fn ask_end(&mut self, ending: Ending, limit: Duration, by: Option<PartId>) -> EndOrder {
        let until = self.shared.now().plus(limit.into());
        let (order, end) = self.life.ask_end(ending, until, by);
        self.end = end.or(self.end.take());
        order
    }

    /// Makes the system refuse threads for more parts that run queries, or not.
    pub fn refuse_threads(&self, are_refused: bool) {
        self.threads.are_refused.store(are_refused, Ordering::Relaxed);
    }

    /// Returns the shards that lead, of the workers that have not ended.
    pub fn shards(&self) -> impl Iterator<Item = &Shard> {
        let workers = self.parts.values().filter_map(|part| match part {
            AnyPart::Worker(part) => Some(part),
            _ => None,
        });
        workers.flat_map(|part| part.shards())
    }

    /// Returns the account of the node's memory, in bytes: of entries and answers that wait for the log, of messages in outboxes and
    /// outcomes of steps, of clients' calls, of queries, and of queries that were given up and still run.
    #[must_use]
    pub fn memory_account(&self) -> [i64; 5] {
        self.shared.memory.account()
    }

    /// Returns the fill of each queue that has a bound, by the name of what waits in it.
    #[must_use]
    pub fn queues(&self) -> Vec<Fill> {
        let fill = |what| move |(waiting, most)| Fill { what, waiting, most };
        let queries = self.shared.queries.waiting().map(fill("queries that wait for a thread"));
        let copies = fill("requested copies of checkpoints")(self.shared.copies.waiting());
        let checks = fill("requested checkpoints that wait for their checks")(self.shared.checks.waiting());
        queries.chain([copies, checks]).collect()
    }

    /// Returns the checkpoints that are kept from being deleted.
    #[must_use]
    pub fn pinned(&self) -> BTreeSet<CheckpointNumber> {
        self.shared.snapshots.pinned()
    }

    /// Returns the checkpoints that its parts read, or are to read: those keep them from being deleted. Operators' commands do so
    /// too.
    #[must_use]
    pub fn reads(&self) -> BTreeSet<CheckpointNumber> {
        let mut reads = self.shared.checks.pins();
        if let Some(AnyPart::Copies(part)) = self.parts.get(&PartId::Copies) {
            reads.extend(part.pins());
        }
        reads
    }

    /// Returns the number of the worker of a shard.
    #[must_use]
    pub fn worker_of(&self, shard: ShardId) -> usize {
        self.shared.worker_of(shard)
    }

    /// Takes over the parts for queries that the watcher has begun since this was called. Returns their numbers.
    pub fn take_queries(&mut self) -> Vec<usize> {
        let begun = mem::take(&mut *self.threads.begun.lock().unwrap_or_else(PoisonError::into_inner));
        let numbers = begun.iter().map(QueryPart::number).collect();
        self.parts.extend(begun.into_iter().map(|part| (part.id(), AnyPart::Query(part))));
        numbers
    }
}

/// A node that is dropped before its end has none: its process has ended.
impl<E: Env> Drop for Stepped<E> {
    fn drop(&mut self) {
        self.life.abandon();
    }
}

impl<E: Env> AnyPart<E> {
    fn bell<'a>(&'a self, hub: &'a Shared<E>) -> &'a Bell {
        match self {
            Self::Worker(part) => part.bell(hub),
            Self::Step(part) => part.bell(hub),
            Self::Log(part) => part.bell(hub),
            Self::Peers(part) => part.bell(hub),
            Self::Transfers(part) => part.bell(hub),
            Self::Preparer(part) => part.bell(hub),
            Self::Checkpoints(part) => part.bell(hub),
            Self::Merges(part) => part.bell(hub),
            Self::Checks(part) => part.bell(hub),
            Self::Copies(part) => part.bell(hub),
            Self::Query(part) => part.bell(hub),
            Self::QueryWatch(part) => part.bell(hub),
            Self::Watchdog(_) => unreachable!("the watchdog has no bell"),
        }
    }

    fn turn(&mut self, hub: &Shared<E>, now: Time) -> Result<Turned, String> {
        match self {
            Self::Worker(part) => turn(&mut **part, hub, now),
            Self::Step(part) => turn(part, hub, now),
            Self::Log(part) => turn(&mut **part, hub, now),
            Self::Peers(part) => turn(part, hub, now),
            Self::Transfers(part) => turn(&mut **part, hub, now),
            Self::Preparer(part) => turn(part, hub, now),
            Self::Checkpoints(part) => turn(&mut **part, hub, now),
            Self::Merges(part) => turn(&mut **part, hub, now),
            Self::Checks(part) => turn(part, hub, now),
            Self::Copies(part) => turn(&mut **part, hub, now),
            Self::Query(part) => turn(part, hub, now),
            Self::QueryWatch(part) => turn(part, hub, now),
            Self::Watchdog(_) => unreachable!("the watchdog takes no turns"),
        }
    }
}

fn turn<E: Env>(part: &mut impl Part<Shared<E>>, hub: &Shared<E>, now: Time) -> Result<Turned, String> {
    part.turn(hub, now).map_err(|error| error.to_string())
}
