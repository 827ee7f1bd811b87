//! The clients of a cluster: threads that check passengers in all the time, and one that reads. Each begins with a node of its own; the
//! library turns to another one when that does not answer, and repeats the request there with the same idempotency key.

use crate::passengers::Clientele;
use crate::services::{CheckIn, Desk, FEEDER, Feeder, Passengers, Position, desk_of};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use stead::{BlockingClient, Process, Queried, Read};

/// Clients that call at a time.
const CALLERS: usize = 6;

/// Pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(10);

/// Time after which a client connects anew, to its node, so that there are clients at each one whatever it suffered before.
const STAY: Duration = Duration::from_secs(1);

/// Time for a read of one node's replica.
const READ_MAX: Duration = Duration::from_millis(700);

/// Time in which a request has to be answered, by whichever node.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// One of this many check-ins repeats one that was answered.
const FORGETFUL_ONE_IN: u64 = 8;

/// Pause between two reads.
const READ_PAUSE: Duration = Duration::from_millis(10);

/// A client that knows nodes, and begins with one of them.
#[derive(Clone)]
pub struct Caller {
    nodes: Vec<SocketAddr>,
    client: Option<(BlockingClient, Instant)>,
}

impl Caller {
    /// Creates a client that begins with one of the nodes.
    #[must_use]
    pub fn new(nodes: &[SocketAddr], first: usize) -> Self {
        let mut nodes = nodes.to_vec();
        let first = first % nodes.len();
        nodes.rotate_left(first);
        Self { nodes, client: None }
    }

    /// Makes a call within a time, over a new connection if there is none or it is old. Connects anew after a failure.
    fn attempt<T, E: ToString>(
        &mut self,
        time: Duration,
        call: impl FnOnce(&BlockingClient) -> Result<T, E>,
    ) -> Result<T, String> {
        self.client.take_if(|(_, since)| since.elapsed() > STAY);
        let (client, _) = match &mut self.client {
            Some(client) => client,
            none => {
                let names = self.nodes.iter().map(SocketAddr::to_string);
                let client =
                    BlockingClient::connect_within(names, time).map_err(|error| error.to_string())?;
                none.insert((client, Instant::now()))
            }
        };
        let result = call(&client.with_timeout(time)).map_err(|error| error.to_string());
        if result.is_err() {
            self.client = None;
        }
        result
    }

    /// Makes attempts until one succeeds.
    ///
    /// # Errors
    /// The reason of the last failure, once the deadline is over.
    pub fn call<T, E: ToString>(
        &mut self,
        call: impl Fn(&BlockingClient) -> Result<T, E>,
    ) -> Result<T, String> {
        let until = Instant::now() + DEADLINE;
        loop {
            match self.attempt(until.saturating_duration_since(Instant::now()), &call) {
                Ok(answer) => return Ok(answer),
                Err(reason) if Instant::now() >= until => return Err(reason),
                // A node that refuses at once is not asked again at once.
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Reads a process.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn query<P: Process<Query = ()>>(&mut self, key: &P::Key) -> Result<P::Answer, String> {
        self.call(|client| client.query::<P>(key, ()))
    }
}

/// A request, from its first attempt to its answer.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// When it began.
    pub from: Instant,
    /// When it was answered, or given up.
    pub until: Instant,
}

/// The observations of the clients.
#[derive(Debug, Default)]
pub struct Book {
    /// The requests with their answers.
    pub clients: Clientele,
    /// The time that each of them took.
    pub waits: Vec<Wait>,
    /// Requests that were not answered in time.
    pub unanswered: u64,
    /// The reason of the last one of these.
    pub reason: Option<String>,
    /// The observations of the reader.
    pub reads: Reads,
}

/// The observations of the reader.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Reads {
    /// Current answers.
    pub current: u64,
    /// Current answers that showed less than an earlier one.
    pub went_back: u64,
    /// Stale answers.
    pub stale: u64,
    /// Stale answers without their age.
    pub untold: u64,
    /// Stale answers that were older than they said: they lacked what had been answered before.
    pub understated: u64,
    /// Stale reads that a node refused or did not answer.
    pub refused: u64,
    /// The greatest age of a stale answer, in milliseconds.
    pub age_max_ms: f64,
}

/// Current answers, by the time at which they came.
#[derive(Debug, Default)]
pub struct Known(Vec<(Instant, u64)>);

impl Reads {
    /// Handles a current answer that has just come.
    pub fn handle_current(&mut self, known: &mut Known, now: Instant, rows: u64) {
        self.current += 1;
        self.went_back += u64::from(known.0.last().is_some_and(|(_, before)| rows < *before));
        let most = known.0.last().map_or(rows, |(_, before)| rows.max(*before));
        known.0.push((now, most));
    }

    /// Handles a stale answer to a read that was sent at a time.
    pub fn handle_stale(&mut self, known: &Known, sent: Instant, rows: u64, age: Option<Duration>) {
        self.stale += 1;
        let Some(age) = age else {
            self.untold += 1;
            return;
        };
        self.age_max_ms = self.age_max_ms.max(age.as_secs_f64() * 1e3);
        // The answer includes all that was answered so long before the read came to the node, which was after it was sent.
        let includes = known.0.partition_point(|(at, _)| *at + age < sent);
        let least = includes.checked_sub(1).map_or(0, |last| known.0[last].1);
        self.understated += u64::from(rows < least);
    }

    /// Whether no answer was older than it said.
    #[must_use]
    pub fn hold(&self) -> bool {
        (self.went_back, self.untold, self.understated) == (0, 0, 0) && self.current > 0 && self.stale > 0
    }
}

/// The clients. Dropping them ends them.
pub struct Callers {
    stop: Arc<AtomicBool>,
    book: Arc<Mutex<Book>>,
    threads: Vec<JoinHandle<()>>,
}

impl Callers {
    /// Starts the clients.
    #[must_use]
    pub fn start(nodes: &[SocketAddr], seed: u64) -> Self {
        let mut callers = Self { stop: Arc::default(), book: Arc::default(), threads: Vec::new() };
        for number in 0..CALLERS {
            let (caller, rng) = (Caller::new(nodes, number), fastrand::Rng::with_seed(seed ^ number as u64));
            callers.spawn(move |stop, book| check_in(caller, rng, stop, book));
        }
        let nodes = nodes.to_vec();
        callers.spawn(move |stop, book| read(&nodes, stop, book));
        callers
    }

    fn spawn(&mut self, run: impl FnOnce(&AtomicBool, &Mutex<Book>) + Send + 'static) {
        let (stop, book) = (Arc::clone(&self.stop), Arc::clone(&self.book));
        self.threads.push(std::thread::spawn(move || run(&stop, &book)));
    }

    /// Returns the longest wait of a request that was under way between two times, in milliseconds. One that is not answered yet counts
    /// once it is.
    #[must_use]
    pub fn worst_wait_ms(&self, from: Instant, until: Instant) -> f64 {
        worst_wait_ms(&held(&self.book).waits, from, until)
    }

    /// Lets the clients end their requests, and returns what they saw.
    #[must_use]
    pub fn finish(mut self) -> Book {
        self.join();
        std::mem::take(&mut *held(&self.book))
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic was printed when it happened, and its requests are missing then.
            let _ = thread.join();
        }
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.join();
    }
}

/// Returns the longest wait of a request that was under way between two times, in milliseconds.
#[must_use]
pub fn worst_wait_ms(waits: &[Wait], from: Instant, until: Instant) -> f64 {
    let within = waits.iter().filter(|wait| wait.from <= until && wait.until >= from);
    within.map(|wait| wait.until.duration_since(wait.from).as_secs_f64() * 1e3).fold(0.0, f64::max)
}

fn held(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_in(mut caller: Caller, mut rng: fastrand::Rng, stop: &AtomicBool, book: &Mutex<Book>) {
    while !stop.load(Ordering::Relaxed) {
        let passenger = {
            let clients = &mut held(book).clients;
            let again = if rng.u64(..FORGETFUL_ONE_IN) == 0 { clients.forgetful(rng.u64(..)) } else { None };
            again.unwrap_or_else(|| clients.new_passenger())
        };
        let key = format!("passenger-{passenger}");
        let from = Instant::now();
        let answer = caller.call(|client| {
            client.call_idempotent::<Desk>(&desk_of(passenger), key.as_bytes(), CheckIn { passenger })
        });
        let mut held = held(book);
        held.waits.push(Wait { from, until: Instant::now() });
        match answer {
            Ok(booked) => held.clients.answered(passenger, booked.number, 0),
            Err(reason) => (held.unanswered, held.reason) = (held.unanswered + 1, Some(reason)),
        }
        drop(held);
        std::thread::sleep(PAUSE);
    }
}

/// Reads the feeder's position in turns: the current one by any node, and the state of one node's replica.
fn read(nodes: &[SocketAddr], stop: &AtomicBool, book: &Mutex<Book>) {
    let mut current = Caller::new(nodes, 0);
    let mut single: Vec<Caller> = nodes.iter().map(|node| Caller::new(&[*node], 0)).collect();
    let (mut known, mut reads, mut turn) = (Known::default(), Reads::default(), 0);
    let key = FEEDER.to_owned();
    while !stop.load(Ordering::Relaxed) {
        if let Ok(Position { next_row, .. }) = current.query::<Feeder>(&key) {
            reads.handle_current(&mut known, Instant::now(), next_row);
        }
        turn = (turn + 1) % single.len();
        let sent = Instant::now();
        let stale =
            |client: &BlockingClient| client.query_with::<Feeder>(&key, (), Read::Stale { max_lag: None });
        match single[turn].attempt(READ_MAX, stale) {
            Ok(Queried { answer, staleness, .. }) => {
                reads.handle_stale(&known, sent, answer.next_row, staleness);
            }
            Err(_) => reads.refused += 1,
        }
        std::thread::sleep(READ_PAUSE);
    }
    held(book).reads = reads;
}

/// Returns the boarding numbers that a desk gave to more than one passenger, or left out.
#[must_use]
pub fn misgiven(passengers: &Passengers) -> u64 {
    let mut desks: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (passenger, numbers) in passengers {
        desks.entry(desk_of(*passenger)).or_default().extend(numbers);
    }
    let wrong = desks.values().map(|numbers| {
        let different: BTreeSet<u64> = numbers.iter().copied().collect();
        let given_twice = (numbers.len() - different.len()) as u64;
        let most = different.last().copied().unwrap_or(0);
        given_twice + (most - different.len() as u64)
    });
    wrong.sum()
}
