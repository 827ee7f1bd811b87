//! The queue of queries, and the parts and the watcher that serve it, turn by turn. Their thread is that of the test.

use super::queue::{LOOK, LOOK_ON, STUCK_MAX};
use super::*;
use crate::clock::Clock;
use crate::env::Env;
use crate::part::{Part, Turned};
use crate::reply::{Caller, NoAnswer, ReplyTo};
use crate::roster::PartId;
use crate::shared::Shared;
use crate::shared::tests::{NoCode, shared_in};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Query, Read, Refusal};
use stead_core::capture::{Capture, Reading};
use stead_core::ids::{CallToken, Colour, Epoch, Index, Micros, ServiceId, ShardId, Time};
use stead_core::key::Key;
use stead_core::state::State;

/// The time limit of a query.
const LIMIT: Micros = Micros(10_000_000);

/// A clock that the test sets.
struct Hand(AtomicU64);

impl Clock for Hand {
    fn steady(&self) -> Time {
        Time(self.0.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Time {
        self.steady()
    }
}

struct Client {
    to: mpsc::Sender<Result<Answer, NoAnswer>>,
    is_gone: Arc<AtomicBool>,
}

impl Caller for Client {
    fn answer(self, result: Result<Answer, NoAnswer>) {
        self.to.send(result).unwrap();
    }

    fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }
}

struct Asking;

impl Env for Asking {
    type Program = NoCode;
    type Caller = Client;
    type Clock = Hand;
    type Watch = ();
}

/// The client's end of a query.
struct Asked {
    from: mpsc::Receiver<Result<Answer, NoAnswer>>,
    is_gone: Arc<AtomicBool>,
}

impl Asked {
    fn waits(&self) -> bool {
        matches!(self.from.try_recv(), Err(mpsc::TryRecvError::Empty))
    }

    /// Whether no answer will come.
    fn is_dropped(&self) -> bool {
        matches!(self.from.try_recv(), Err(mpsc::TryRecvError::Disconnected))
    }

    fn error(&self) -> NoAnswer {
        self.from.try_recv().unwrap().unwrap_err()
    }
}

/// Two services, and the queue of their queries.
struct Node {
    hub: Arc<Shared<Asking>>,
    watch: QueryWatch,
    /// Parts that the watcher has asked for.
    wanted: Arc<AtomicUsize>,
}

/// Counts the parts that the watcher wants, and refuses them: the tests create those that they need.
struct Wanted(Arc<AtomicUsize>);

impl QueryThreads for Wanted {
    fn run(&mut self, _: QueryPart) -> std::io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Err(std::io::ErrorKind::WouldBlock.into())
    }

    fn let_others_first(&mut self, _: QueryThread) {}
}

impl Node {
    fn new() -> Self {
        let hub = shared_in::<Asking>(Hand(AtomicU64::new(1_000_000)), &[("a", 1), ("b", 1)]);
        let wanted = Arc::default();
        let watch = QueryWatch::new(&hub, Duration::from(LIMIT), Box::new(Wanted(Arc::clone(&wanted))));
        // As if all parts were there.
        hub.queries.queue().threads = QUERY_THREADS;
        Self { hub, watch, wanted }
    }

    fn pass(&self, time: Micros) {
        self.hub.clock.0.fetch_add(time.0, Ordering::Relaxed);
    }

    /// Adds a query of a service, whose client waits for so long.
    fn ask(&self, service: u16, wait: Micros) -> Asked {
        let process = Key::new("process").unwrap();
        let reading = Reading {
            capture: Capture::new(&State::new(ShardId(u32::from(service))), &process),
            query: Query {
                token: CallToken(0),
                process,
                payload: Blob::empty(),
                principal: "test".into(),
                read: Read::Service,
                seen: None,
            },
            service: ServiceId(service),
            time: self.hub.now(),
            epoch: Epoch(1),
            index: Index(0),
            colour: Colour(0),
            staleness: None,
        };
        let (to, from) = mpsc::channel();
        let is_gone = Arc::default();
        let caller = Client { to, is_gone: Arc::clone(&is_gone) };
        let reply_to = ReplyTo { caller, deadline: self.hub.now().plus(wait), timeout: wait.into() };
        let job = Job::new(Box::new(reading), reply_to.here(), &self.hub.memory);
        self.hub.queries.push(&self.hub.counters, &self.hub.watch, &mut vec![job]);
        Asked { from, is_gone }
    }

    fn turn(&self, part: &mut QueryPart) -> Turned {
        part.turn(&self.hub, self.hub.now()).unwrap()
    }

    /// Begins the next query on a part of its own.
    fn begin(&self) -> QueryPart {
        let mut part = QueryPart::new(&*self.hub);
        assert_eq!(self.turn(&mut part), Turned::Again);
        assert!(part.has_begun());
        part
    }

    fn look(&mut self) -> Turned {
        self.watch.turn(&self.hub, self.hub.now()).unwrap()
    }

    /// Lets so many queries of a service be given up, while they still run.
    fn stick(&mut self, service: u16, count: usize) -> Vec<QueryPart> {
        let before = self.hub.queries.counts().1;
        let asked: Vec<_> = (0..count).map(|_| self.ask(service, Micros(1))).collect();
        let parts = (0..count).map(|_| self.begin()).collect();
        self.pass(Micros(1_000_000));
        self.look();
        assert!(asked.iter().all(|asked| matches!(asked.error(), NoAnswer::TimedOut { .. })));
        assert_eq!(
            self.hub.queries.counts(),
            (0, before + count as u64),
            "they wait for nothing, and still run"
        );
        assert_eq!(self.hub.queries.queue().threads, QUERY_THREADS - count);
        // Others have taken their places.
        self.hub.queries.queue().threads = QUERY_THREADS;
        parts
    }

    fn waiting(&self) -> u64 {
        self.hub.queries.counts().0
    }
}

const LONG: Micros = Micros(60_000_000);

#[test]
fn services_take_turns() {
    let node = Node::new();
    let _asked = [0, 0, 0, 1, 1].map(|service| node.ask(service, LONG));
    let mut queue = node.hub.queries.queue();
    let order: Vec<u16> = std::iter::from_fn(|| queue.pop()).map(|job| job.reading.service.0).collect();
    assert_eq!(order, [0, 1, 0, 1, 0]);
}

/// So that each service has a thread although the queries of others take long.
#[test]
fn the_last_two_parts_take_only_queries_of_a_service_that_runs_none() {
    let node = Node::new();
    let _asked = [0; 8].map(|service| node.ask(service, LONG));
    let _parts = [(); 6].map(|()| node.begin());
    let mut part = QueryPart::new(&*node.hub);
    assert_eq!(node.turn(&mut part), Turned::Until(None));
    assert_eq!(node.waiting(), 2);
    let _other = [node.ask(1, LONG), node.ask(1, LONG)];
    assert_eq!((node.turn(&mut part), part.has_begun()), (Turned::Again, true));
    assert_eq!(node.waiting(), 3);
    let mut part = QueryPart::new(&*node.hub);
    assert_eq!((node.turn(&mut part), node.waiting()), (Turned::Until(None), 3));
}

#[test]
fn each_query_that_waits_is_given_up_at_its_own_deadline() {
    let mut node = Node::new();
    let asked = [3, 1, 2].map(|seconds| node.ask(0, Micros(seconds * 1_000_000)));
    let waiting = |node: &Node| (asked.iter().filter(|asked| asked.waits()).count(), node.waiting());
    node.pass(Micros(999_999));
    node.look();
    assert_eq!(waiting(&node), (3, 3));
    node.pass(Micros(1));
    node.look();
    assert!(matches!(asked[1].error(), NoAnswer::TimedOut { .. }));
    node.pass(Micros(1_000_000));
    node.look();
    assert!(matches!(asked[2].error(), NoAnswer::TimedOut { .. }));
    assert_eq!(node.waiting(), 1);
    node.pass(Micros(1_000_000));
    node.look();
    assert!(matches!(asked[0].error(), NoAnswer::TimedOut { .. }));
    assert_eq!((node.waiting(), node.hub.memory.queries()), (0, 0));
}

#[test]
fn a_query_whose_time_is_over_or_whose_client_has_gone_does_not_begin() {
    let node = Node::new();
    let (late, gone) = (node.ask(0, Micros(1)), node.ask(0, LONG));
    node.pass(Micros(1));
    gone.is_gone.store(true, Ordering::Relaxed);
    let mut part = QueryPart::new(&*node.hub);
    for _ in 0..2 {
        assert_eq!(node.turn(&mut part), Turned::Again);
        assert!(!part.has_begun());
    }
    assert!(matches!(late.error(), NoAnswer::TimedOut { .. }) && gone.is_dropped());
    assert_eq!(node.turn(&mut part), Turned::Until(None));
    assert_eq!((node.waiting(), node.hub.memory.queries()), (0, 0));
}

/// A part that runs a query for long must not get the ring for the next one.
#[test]
fn a_query_rings_a_part_that_has_nothing_to_do() {
    let node = Node::new();
    let (mut first, mut second) = (QueryPart::new(&*node.hub), QueryPart::new(&*node.hub));
    let rung = |part: &QueryPart| Part::<Shared<Asking>>::bell(part, &node.hub).take_ring();
    assert_eq!(node.turn(&mut second), Turned::Until(None));
    assert_eq!(node.turn(&mut first), Turned::Until(None));
    assert_eq!(node.turn(&mut second), Turned::Until(None));
    // It was rung for another reason, and takes the query for which the other one was rung.
    let _one = node.ask(0, LONG);
    assert!(rung(&second) && !rung(&first));
    assert_eq!((node.turn(&mut first), first.has_begun()), (Turned::Again, true));
    assert_eq!(node.turn(&mut second), Turned::Until(None));
    let _two = node.ask(0, LONG);
    assert!(rung(&second) && !rung(&first));
    assert_eq!((node.turn(&mut second), second.has_begun()), (Turned::Again, true));
    let _three = node.ask(0, LONG);
    assert!(!rung(&second) && !rung(&first), "both are busy");
}

#[test]
fn a_part_that_begins_rings_the_next_one_if_there_is_more() {
    let node = Node::new();
    let (mut first, mut second) = (QueryPart::new(&*node.hub), QueryPart::new(&*node.hub));
    let rung = |part: &QueryPart| Part::<Shared<Asking>>::bell(part, &node.hub).take_ring();
    node.turn(&mut first);
    let _asked = [node.ask(0, LONG), node.ask(0, LONG)];
    assert!(rung(&first));
    node.turn(&mut second);
    assert!(second.has_begun());
    let mut third = QueryPart::new(&*node.hub);
    let _asked = node.ask(1, LONG);
    node.turn(&mut third);
    assert!(third.has_begun());
    // Two wait by now, and the part that begins one of them rings an idle one.
    let _asked = [node.ask(0, LONG), node.ask(1, LONG)];
    let mut idle = QueryPart::new(&*node.hub);
    node.hub.queries.queue().idle.push(Arc::new(crate::bell::Bell::default()));
    let bell = Arc::clone(&node.hub.queries.queue().idle[0]);
    node.turn(&mut idle);
    assert!(idle.has_begun() && bell.take_ring());
}

#[test]
fn queries_of_a_service_wait_behind_its_stuck_ones_and_keep_their_deadlines() {
    let mut node = Node::new();
    let mut stuck = node.stick(0, STUCK_MAX);
    let waits = node.ask(0, Micros(5_000_000));
    let mut part = QueryPart::new(&*node.hub);
    assert_eq!(node.turn(&mut part), Turned::Until(None), "it must not begin");
    // However long nothing begins: the watcher looks as long as a query waits.
    for _ in 0..4 {
        node.pass(Micros(1_000_000));
        let until = node.hub.now().plus(LOOK);
        assert_eq!(node.look(), Turned::Until(Some(until)));
    }
    assert!(waits.waits());
    node.pass(Micros(1_000_000));
    node.look();
    assert!(matches!(waits.error(), NoAnswer::TimedOut { .. }));

    // Another service is not affected.
    let other = node.ask(1, LONG);
    assert_eq!((node.turn(&mut part), node.turn(&mut part)), (Turned::Again, Turned::Again));
    assert!(other.from.try_recv().unwrap().is_ok());
    assert_eq!(node.turn(&mut part), Turned::Until(None));
    let waits = node.ask(0, LONG);
    assert!(Part::<Shared<Asking>>::bell(&part, &node.hub).take_ring());
    assert_eq!(node.turn(&mut part), Turned::Until(None));
    // The end of a stuck one rings a part for the query that it held back.
    assert_eq!(node.turn(&mut stuck[0]), Turned::Ended);
    assert!(Part::<Shared<Asking>>::bell(&part, &node.hub).take_ring());
    assert_eq!((node.turn(&mut part), node.turn(&mut part)), (Turned::Again, Turned::Again));
    assert!(waits.from.try_recv().unwrap().is_ok());
}

#[test]
fn a_service_is_refused_once_so_many_are_stuck_for_as_long_as_a_handler_may_run() {
    let mut node = Node::new();
    let admit = |node: &Node, service: u16| {
        let hub = &node.hub;
        hub.queries.admit(ServiceId(service), &hub.topology, &hub.memory, || hub.now())
    };
    let mut stuck = node.stick(0, STUCK_MAX - 1);
    node.pass(LIMIT);
    let waits = node.ask(0, LONG);
    node.look();
    assert!(waits.waits() && admit(&node, 0).is_ok(), "one less");
    let _begun = node.begin();
    stuck.extend(node.stick(0, 1));
    let waits = node.ask(0, LONG);
    node.look();
    assert!(waits.waits() && admit(&node, 0).is_ok(), "the last one has not run for as long");
    node.pass(LIMIT);
    assert!(matches!(admit(&node, 0), Err(Refusal::QueriesStuck { stuck: STUCK_MAX.., .. })));
    assert!(admit(&node, 1).is_ok());
    node.look();
    assert!(matches!(waits.error(), NoAnswer::Refused(Refusal::QueriesStuck { .. })));
}

#[test]
fn a_query_with_a_client_keeps_its_thread_and_one_without_loses_it_after_a_second() {
    let mut node = Node::new();
    let (asked, gone) = (node.ask(0, LONG), node.ask(0, LONG));
    let _parts = [node.begin(), node.begin()];
    gone.is_gone.store(true, Ordering::Relaxed);
    node.pass(Micros(999_999));
    node.look();
    assert_eq!(node.hub.queries.counts(), (0, 0));
    node.pass(Micros(1));
    node.look();
    assert!(asked.waits() && gone.is_dropped());
    assert_eq!(node.hub.queries.counts(), (0, 1));
    // The bytes of each are in one account only.
    let weight = Reading::WEIGHT as u64;
    assert_eq!((node.hub.memory.queries(), node.hub.memory.stuck_queries()), (weight, weight));
    assert_eq!(node.hub.queries.queue().threads, QUERY_THREADS - 1);
}

#[test]
fn the_watcher_looks_as_long_as_a_query_runs_and_then_a_while_longer() {
    let mut node = Node::new();
    let asked = node.ask(0, LONG);
    let mut part = node.begin();
    node.look();
    for _ in 0..9 {
        node.pass(Micros(1_000_000));
        let until = node.hub.now().plus(LOOK);
        assert_eq!(node.look(), Turned::Until(Some(until)));
    }
    assert!(asked.waits());
    node.pass(Micros(1_000_000));
    node.look();
    assert!(matches!(asked.error(), NoAnswer::Refused(Refusal::QueryGivenUp { .. })));
    assert_eq!(node.turn(&mut part), Turned::Ended, "it was replaced");
    // One that began and ended between two looks keeps it awake as well.
    node.hub.queries.queue().threads = QUERY_THREADS;
    node.pass(LOOK_ON);
    assert_eq!(node.look(), Turned::Until(None));
    let asked = node.ask(0, LONG);
    assert!(node.hub.queries.watch_bell.take_ring(), "it sleeps");
    let mut part = node.begin();
    node.turn(&mut part);
    assert!(asked.from.try_recv().unwrap().is_ok());
    assert!(matches!(node.look(), Turned::Until(Some(_))));
    node.pass(LOOK_ON);
    assert_eq!(node.look(), Turned::Until(None));
    // A missing part is asked for as long as the system refuses its thread, and does not count meanwhile.
    node.hub.queries.queue().threads -= 1;
    for wanted in 2..4 {
        assert!(matches!(node.look(), Turned::Until(Some(_))));
        assert_eq!(node.wanted.load(Ordering::Relaxed), wanted);
        assert_eq!(node.hub.queries.queue().threads, QUERY_THREADS - 1);
        let made = node.hub.queries.queue().made;
        assert!((0..made).all(|number| !node.hub.roster.runs(PartId::Query(number))));
    }
}

#[test]
fn a_queue_that_is_full_or_has_no_memory_accepts_no_query() {
    let node = Node::new();
    let (queries, memory) = (&node.hub.queries, &node.hub.memory);
    let admit = |service| queries.admit(ServiceId(service), &node.hub.topology, memory, || node.hub.now());
    let overloaded = Err(Refusal::Overloaded { retry_after: Duration::from_millis(50) });
    for (waiting, admitted) in [
        ([8_191, 8_191], [true, true]),
        ([8_192, 0], [false, true]),
        ([8_000, 8_383], [true, false]),
        ([8_001, 8_383], [false, false]),
    ] {
        for (queue, waiting) in queries.waiting.iter().zip(waiting) {
            queue.store(waiting, Ordering::Relaxed);
        }
        for (service, is_admitted) in (0..).zip(admitted) {
            let expected = if is_admitted { Ok(()) } else { overloaded.clone() };
            assert_eq!(admit(service), expected, "{waiting:?}");
        }
    }
    queries.waiting.iter().for_each(|queue| queue.store(0, Ordering::Relaxed));
    memory.change_queries(1 << 28);
    assert_eq!(admit(0), overloaded, "a quarter of a GiB");
    memory.change_queries(-1);
    assert_eq!(admit(0), Ok(()));
}

#[test]
fn a_node_that_ends_answers_what_it_has_taken_and_drops_the_rest() {
    let mut node = Node::new();
    let _stuck = node.stick(0, STUCK_MAX);
    let waits = node.ask(0, LONG);
    node.hub.queries.close();
    assert!(!node.hub.queries.has_answered(None), "one waits, and none of a client runs");
    // A part must stay for the query that waits for a stuck one.
    let mut part = QueryPart::new(&*node.hub);
    assert_eq!(node.turn(&mut part), Turned::Until(None));
    let runs = node.ask(1, LONG);
    let _part = node.begin();
    let wanted = node.wanted.load(Ordering::Relaxed);
    node.hub.queries.queue().threads = 1;
    node.look();
    assert_eq!(node.wanted.load(Ordering::Relaxed), wanted, "no part begins any more");
    node.hub.queries.stop();
    assert!(waits.is_dropped() && runs.is_dropped());
    assert!(node.hub.queries.has_answered(None));
    let late = node.ask(1, LONG);
    assert!(late.is_dropped() && node.waiting() == 0);
    assert_eq!((node.turn(&mut part), node.look()), (Turned::Ended, Turned::Ended));
}

/// The code of a query may end its node, and waits for all but itself.
#[test]
fn the_end_of_a_node_waits_for_queries_of_other_parts() {
    let node = Node::new();
    let asked = node.ask(0, LONG);
    let mut part = node.begin();
    assert!(!node.hub.queries.has_answered(None) && asked.waits());
    assert!(node.hub.queries.has_answered(Some(part.id())));
    assert!(!node.hub.queries.has_answered(Some(PartId::Query(7))));
    node.turn(&mut part);
    assert!(node.hub.queries.has_answered(None));
}
