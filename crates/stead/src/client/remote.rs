//! Calls to nodes over the network: all clones of a client share its connections, and all clients of a process a thread.
//!
//! One thread at a time gives the connections their turns. A blocking caller lends its own while it waits, if no other one does, so
//! that its call passes through no other thread; the clients' thread does so for all others, and as soon as several call.

mod call;
mod link;
mod links;
mod routes;

use super::parking::Unpark;
use crate::error::{ConnectError, RawError};
use call::Call;
use link::LinkId;
use links::{Links, News};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};
use stead_core::ids::{Micros, Time};
use stead_core::topology::Topology;
use stead_net::native::{Answer, Ask};
use stead_net::network::{Tcp, check_loopback};
use stead_node::{Bell, Clock, SystemClock};
use tokio::sync::oneshot;

pub(super) use call::{Got, Within};

/// Number of times that the clients' thread checks for calls before it sleeps.
const SPINS: u32 = 50;
/// The time after which the clients' thread looks again whether it has something to do while another one gives the turns.
const LOOK: Micros = Micros::from_secs(1);

/// The number of times that a thread tries to take the turns over from the clients' one, and the pause between two of them.
const TAKE_TRIES: u32 = 50;
const TAKE_PAUSE: Duration = Duration::from_millis(1);

/// The nodes of a cluster, as a client calls them.
#[derive(Clone)]
pub(super) struct Remote {
    line: Arc<Line>,
    pub(super) topology: Arc<Topology>,
    /// Whether its callers wait in [`Remote::run`].
    lends: bool,
}

impl Remote {
    /// Connects to the first of these addresses at which a node answers.
    pub(super) async fn connect(addresses: &[String], timeout: Duration) -> Result<Self, ConnectError> {
        let line = Line::open(resolve(addresses)?).map_err(ConnectError::System)?;
        let within = line.within(timeout);
        let ask = Ask::Topology { without_services: None };
        match line.ask(&ask, within, false).await?.answer {
            Answer::Topology { topology, .. } => {
                Ok(Self { line: Arc::new(line), topology: Arc::new(topology), lends: false })
            }
            answer => Err(unexpected(answer).into()),
        }
    }

    /// Asks a node, and another one if the connection to it is lost before the answer of a request that
    /// [repeats](Ask::repeats).
    pub(super) async fn ask(&self, ask: &Ask<'_>, within: Within) -> Result<Got, RawError> {
        self.line.ask(ask, within, self.lends).await
    }

    /// Returns the same for callers that wait in [`Self::run`], or for others.
    pub(super) fn with_lending(self, lends: bool) -> Self {
        Self { lends, ..self }
    }

    /// Runs a call on this thread, which gives the connections their turns meanwhile if no other one does. Returns `None` if
    /// the call has not ended by a time.
    pub(super) fn run<F: Future>(&self, call: Pin<&mut F>, until: Option<Instant>) -> Option<F::Output> {
        self.line.shore.0.run(call, until, None)
    }

    /// Runs a future on this thread, which gives the connections their turns meanwhile, also those of callers on other threads, unless
    /// another one does so for a future of its own.
    pub(super) fn serve<F: Future>(&self, future: Pin<&mut F>) -> F::Output {
        let hub = &self.line.shore.0;
        hub.run(future, None, hub.take_over()).expect("without a limit it runs to its end")
    }

    /// Returns the time limit of a call that begins now.
    pub(super) fn within(&self, timeout: Duration) -> Within {
        self.line.within(timeout)
    }
}

/// The error of an answer that is not the one of a shard.
pub(super) fn unexpected(answer: Answer) -> RawError {
    match answer {
        Answer::Invalid(reason) => RawError::Invalid(reason),
        _ => misfit(),
    }
}

/// The error of an answer that does not fit what was asked for.
pub(crate) fn misfit() -> RawError {
    let reason =
        "the node's answer does not fit the request; run the same version of Stead at both ends".to_owned();
    RawError::Network { reason, sent: true }
}

fn resolve(addresses: &[String]) -> Result<Vec<SocketAddr>, ConnectError> {
    let mut resolved = Vec::new();
    for address in addresses {
        let found = address.to_socket_addrs();
        let found = found.map_err(|source| ConnectError::Resolve { address: address.clone(), source })?;
        for found in found {
            check_loopback(found).map_err(ConnectError::Address)?;
            if !resolved.contains(&found) {
                resolved.push(found);
            }
        }
    }
    if resolved.is_empty() { Err(ConnectError::NoAddress) } else { Ok(resolved) }
}

/// Wakes a blocking caller, parked or in the wait for the network.
struct Lender {
    caller: Unpark,
    drives: AtomicBool,
    hub: Arc<Hub>,
}

impl Wake for Lender {
    fn wake(self: Arc<Self>) {
        self.caller.unpark();
        if self.drives.load(Ordering::SeqCst) {
            self.hub.bell.ring();
        }
    }
}

/// The handle of a client's connections, which end when this is dropped.
struct Line {
    link: LinkId,
    shore: Arc<Shore>,
}

/// The handle of the connections of all clients, and of their thread, which ends when this is dropped.
struct Shore(Arc<Hub>);

/// The one of this process, while it has clients.
static SHORE: Mutex<Weak<Shore>> = Mutex::new(Weak::new());

/// The state that the clients' thread and their callers share.
struct Hub {
    waiting: Mutex<Waiting>,
    links: Mutex<Links<Tcp>>,
    /// Whether a thread gives the links their turns, and so hears the bell.
    is_driven: AtomicBool,
    /// Whether another thread is about to give the turns instead of the clients' one.
    is_wanted: AtomicBool,
    /// Ends that thread's wait for the network.
    bell: Bell,
    /// Requests the clients' thread.
    relief: Bell,
    clock: SystemClock,
    /// The number of clients so far.
    last: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    news: VecDeque<News>,
    /// Whether the thread is to end.
    is_closed: bool,
    /// The reason for which the connections can no longer be served.
    failed: Option<String>,
}

impl Hub {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the right to give the turns, unless another thread has it.
    fn drive(&self) -> Option<Driver<'_>> {
        let links = match self.links.try_lock() {
            Ok(links) => links,
            Err(TryLockError::Poisoned(links)) => links.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        // Before it looks for news: what comes later rings the bell.
        self.is_driven.store(true, Ordering::SeqCst);
        Some(Driver { hub: self, links: Some(links) })
    }

    /// Runs a future on this thread, which gives the connections their turns meanwhile if no other one does; it may have the right to
    /// already. Returns `None` if the future has not ended by a time.
    fn run<F: Future>(
        self: &Arc<Self>,
        mut call: Pin<&mut F>,
        until: Option<Instant>,
        mut driver: Option<Driver<'_>>,
    ) -> Option<F::Output> {
        let lender =
            Arc::new(Lender { caller: Unpark::new(), drives: AtomicBool::new(false), hub: Arc::clone(self) });
        let waker = Waker::from(Arc::clone(&lender));
        let mut context = Context::from_waker(&waker);
        lender.drives.store(driver.is_some(), Ordering::SeqCst);
        loop {
            if let Poll::Ready(output) = call.as_mut().poll(&mut context) {
                return Some(output);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return None;
            }
            let Some(mut driver) = driver.take().or_else(|| self.drive()) else {
                self.request_turn();
                match left {
                    Some(left) => thread::park_timeout(left),
                    None => thread::park(),
                }
                continue;
            };
            lender.drives.store(true, Ordering::SeqCst);
            while let Some((now, next)) = driver.turn() {
                if let Poll::Ready(output) = call.as_mut().poll(&mut context) {
                    return Some(output);
                }
                if until.is_some_and(|until| until <= Instant::now()) {
                    return None;
                }
                driver.sleep(now, next, 0);
            }
            lender.drives.store(false, Ordering::SeqCst);
        }
    }

    /// Takes the right to give the turns from the clients' thread. Returns `None` if another one keeps it.
    fn take_over(&self) -> Option<Driver<'_>> {
        self.is_wanted.store(true, Ordering::SeqCst);
        let mut tries = 0..TAKE_TRIES;
        let driver = loop {
            if let Some(driver) = self.drive() {
                break Some(driver);
            }
            if tries.next().is_none() {
                break None;
            }
            self.bell.ring();
            thread::park_timeout(TAKE_PAUSE);
        };
        self.is_wanted.store(false, Ordering::SeqCst);
        driver
    }

    /// Requests a turn for a call that was left.
    fn request_turn(&self) {
        if self.is_driven.load(Ordering::SeqCst) {
            self.bell.ring();
        } else {
            self.relief.ring();
        }
    }
}

/// The right of a thread to give the connections their turns.
struct Driver<'a> {
    hub: &'a Hub,
    /// `None` while it is dropped.
    links: Option<MutexGuard<'a, Links<Tcp>>>,
}

impl Driver<'_> {
    fn links(&mut self) -> &mut Links<Tcp> {
        self.links.as_mut().expect("they are there until the driver is dropped")
    }

    /// Gives a turn, and returns its time and that of the next one; `None` if the connections can no longer be served.
    fn turn(&mut self) -> Option<(Time, Time)> {
        let hub = self.hub;
        hub.bell.take_ring();
        let mut news = std::mem::take(&mut hub.waiting().news);
        let now = hub.clock.steady();
        match self.links().turn(now, hub.clock.wall(), &mut news) {
            Ok(next) => Some((now, next)),
            Err(error) => self.fail(news, &error),
        }
    }

    fn fail(&mut self, mut news: VecDeque<News>, error: &io::Error) -> Option<(Time, Time)> {
        let reason = format!("the client's connections cannot be served: {error}; connect again");
        {
            let mut waiting = self.hub.waiting();
            waiting.failed = Some(reason.clone());
            news.append(&mut waiting.news);
        }
        self.links().fail_all(news, &reason);
        None
    }

    /// Sleeps until something arrives, the bell is rung, or the time has come.
    fn sleep(&mut self, now: Time, until: Time, spins: u32) {
        if until > now {
            let hub = self.hub;
            hub.bell.sleep(now, Some(until), spins, |time| self.links().wait(time));
        }
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        let Some(links) = self.links.take() else { return };
        let is_busy = links.is_busy();
        // Before it looks for news: what comes later requests the clients' thread.
        self.hub.is_driven.store(false, Ordering::SeqCst);
        drop(links);
        if is_busy || !self.hub.waiting().news.is_empty() {
            self.hub.relief.ring();
        }
    }
}

impl Shore {
    fn open() -> io::Result<Self> {
        let tcp = Tcp::dialing()?;
        let bell = Bell::default();
        bell.attach_to(tcp.wake());
        let hub = Arc::new(Hub {
            waiting: Mutex::default(),
            links: Mutex::new(Links::new(tcp)),
            is_driven: AtomicBool::new(false),
            is_wanted: AtomicBool::new(false),
            bell,
            relief: Bell::default(),
            clock: SystemClock::new(None),
            last: AtomicU64::new(0),
        });
        let own = Arc::clone(&hub);
        thread::Builder::new().name("stead-clients".to_owned()).spawn(move || relieve(&own))?;
        Ok(Self(hub))
    }

    /// Returns that of this process, which begins with the first client.
    fn of_process() -> io::Result<Arc<Self>> {
        let mut known = SHORE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shore) = known.upgrade().filter(|shore| shore.0.waiting().failed.is_none()) {
            return Ok(shore);
        }
        let shore = Arc::new(Self::open()?);
        *known = Arc::downgrade(&shore);
        Ok(shore)
    }
}

impl Drop for Shore {
    fn drop(&mut self) {
        self.0.waiting().is_closed = true;
        self.0.bell.ring();
        self.0.relief.ring();
    }
}

impl Line {
    fn open(addresses: Vec<SocketAddr>) -> io::Result<Self> {
        let shore = Shore::of_process()?;
        let link = LinkId(shore.0.last.fetch_add(1, Ordering::Relaxed));
        shore.0.waiting().news.push_back(News::Opened(link, addresses));
        Ok(Self { link, shore })
    }

    fn within(&self, timeout: Duration) -> Within {
        Within { deadline: self.shore.0.clock.steady().plus(timeout.into()), timeout }
    }

    /// `lends` is whether the caller waits in [`Remote::run`], which requests a turn if it needs one.
    async fn ask(&self, ask: &Ask<'_>, within: Within, lends: bool) -> Result<Got, RawError> {
        let (reply, answer) = oneshot::channel();
        let call = Call::new(ask, within, reply);
        {
            let mut waiting = self.shore.0.waiting();
            if let Some(reason) = waiting.failed.clone() {
                return Err(RawError::Network { reason, sent: false });
            }
            waiting.news.push_back(News::Call(self.link, call));
        }
        if !lends {
            self.shore.0.request_turn();
        }
        // Each call is answered, unless a thread panics.
        answer.await.unwrap_or_else(|_| {
            let reason = "the clients' thread has ended; connect again".to_owned();
            Err(RawError::Network { reason, sent: true })
        })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.shore.0.waiting().news.push_back(News::Closed(self.link));
        self.shore.0.request_turn();
    }
}

/// Ends all calls if the clients' thread panics: nothing else ends them at their time.
struct Ended<'a>(&'a Hub);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut waiting = self.0.waiting();
            waiting.failed =
                Some("the clients' thread panicked; this is a bug in Stead: connect again".to_owned());
            waiting.news.clear();
            drop(waiting);
            if let Some(mut driver) = self.0.drive() {
                driver
                    .links()
                    .fail_all(VecDeque::new(), "the clients' thread panicked; this is a bug in Stead");
            }
        }
    }
}

/// Gives turns while calls are under way that no caller's thread serves, and otherwise as often as connections need it.
fn relieve(hub: &Hub) {
    let _ended = Ended(hub);
    hub.relief.attach();
    loop {
        hub.relief.take_ring();
        let mut now = hub.clock.steady();
        let mut until = now.plus(LOOK);
        let is_wanted = || hub.is_wanted.load(Ordering::SeqCst);
        if is_wanted() {
            until = now.plus(TAKE_PAUSE.into());
        } else if let Some(mut driver) = hub.drive() {
            loop {
                let Some((turned, next)) = driver.turn() else { return };
                (now, until) = (turned, next);
                if hub.waiting().is_closed {
                    return;
                }
                if !driver.links().is_busy() || is_wanted() {
                    break;
                }
                driver.sleep(now, until, SPINS);
            }
        }
        if hub.waiting().is_closed {
            return;
        }
        hub.relief.park(now, Some(until), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_the_node_does_not_take_says_why_and_not_that_it_was_not_sent() {
        let error = unexpected(Answer::Invalid("shard 3 does not have the process".to_owned()));
        assert_eq!(
            error.to_string(),
            "the node does not take the request: shard 3 does not have the process"
        );
    }
}
