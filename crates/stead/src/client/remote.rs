//! Calls to nodes over the network: all clones of a client share its connections.
//!
//! One thread at a time gives these their turns. A blocking caller lends its own while it waits, if no other one does, so
//! that its call passes through no other thread; the client's thread does so for all others, and as soon as several call.

mod link;

use super::parking::Unpark;
use crate::error::{ConnectError, RawError};
use link::{Call, Link};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};
use stead_core::ids::{Micros, Time};
use stead_core::topology::Topology;
use stead_net::native::{Answer, Ask};
use stead_net::network::{Tcp, check_loopback};
use stead_node::{Bell, Clock, SystemClock};
use tokio::sync::oneshot;

/// Number of times that the client's thread checks for calls before it sleeps.
const SPINS: u32 = 50;
/// The time after which the client's thread looks again whether it has something to do while another one gives the turns.
const LOOK: Micros = Micros::from_secs(1);

/// The nodes of a cluster, as a client calls them.
#[derive(Clone)]
pub(super) struct Remote {
    line: Arc<Line>,
    pub(super) topology: Arc<Topology>,
    /// Whether its callers wait in [`Remote::run`].
    lends: bool,
}

/// The time limit of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Within {
    /// On the client's steady clock.
    deadline: Time,
    pub(super) timeout: Duration,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) answer: Answer,
    /// Whether the request was sent more than once.
    pub(super) is_repeated: bool,
}

impl Remote {
    /// Connects to the first of these addresses at which a node answers.
    pub(super) async fn connect(addresses: &[String], timeout: Duration) -> Result<Self, ConnectError> {
        let line = Line::open(resolve(addresses)?).map_err(ConnectError::System)?;
        let within = line.within(timeout);
        match line.ask(&Ask::Topology, within, false).await?.answer {
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

    /// Returns the same for callers that wait in [`Self::run`].
    pub(super) fn lending(self) -> Self {
        Self { lends: true, ..self }
    }

    /// Runs a call on this thread, which gives the connections their turns meanwhile if no other one does. Returns `None` if
    /// the call has not ended by a time.
    pub(super) fn run<F: Future>(&self, mut call: Pin<&mut F>, until: Option<Instant>) -> Option<F::Output> {
        let hub = &self.line.0;
        let lender =
            Arc::new(Lender { caller: Unpark::new(), drives: AtomicBool::new(false), hub: Arc::clone(hub) });
        let waker = Waker::from(Arc::clone(&lender));
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(output) = call.as_mut().poll(&mut context) {
                return Some(output);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return None;
            }
            let Some(mut driver) = hub.drive() else {
                hub.request_turn();
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

/// The handle of the connections and their thread, which ends when this is dropped.
struct Line(Arc<Hub>);

/// The state that the client's thread and its callers share.
struct Hub {
    waiting: Mutex<Waiting>,
    link: Mutex<Link<Tcp>>,
    /// Whether a thread gives the link its turns, and so hears the bell.
    is_driven: AtomicBool,
    /// Ends that thread's wait for the network.
    bell: Bell,
    /// Requests the client's thread.
    relief: Bell,
    clock: SystemClock,
}

#[derive(Default)]
struct Waiting {
    calls: VecDeque<Call>,
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
        let link = match self.link.try_lock() {
            Ok(link) => link,
            Err(TryLockError::Poisoned(link)) => link.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        // Before it looks for calls: one that comes later rings the bell.
        self.is_driven.store(true, Ordering::SeqCst);
        Some(Driver { hub: self, link: Some(link) })
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
    link: Option<MutexGuard<'a, Link<Tcp>>>,
}

impl Driver<'_> {
    fn link(&mut self) -> &mut Link<Tcp> {
        self.link.as_mut().expect("it is there until the driver is dropped")
    }

    /// Gives a turn, and returns its time and that of the next one; `None` if the connections can no longer be served.
    fn turn(&mut self) -> Option<(Time, Time)> {
        let hub = self.hub;
        hub.bell.take_ring();
        let mut calls = std::mem::take(&mut hub.waiting().calls);
        let now = hub.clock.steady();
        match self.link().turn(now, hub.clock.wall(), &mut calls) {
            Ok(next) => Some((now, next)),
            Err(error) => self.fail(calls, &error),
        }
    }

    fn fail(&mut self, mut calls: VecDeque<Call>, error: &io::Error) -> Option<(Time, Time)> {
        let reason = format!("the client's connections cannot be served: {error}; connect again");
        {
            let mut waiting = self.hub.waiting();
            waiting.failed = Some(reason.clone());
            calls.append(&mut waiting.calls);
        }
        self.link().fail_all(calls, &reason);
        None
    }

    /// Sleeps until something arrives, the bell is rung, or the time has come.
    fn sleep(&mut self, now: Time, until: Time, spins: u32) {
        if until > now {
            let hub = self.hub;
            hub.bell.sleep(now, Some(until), spins, |time| self.link().wait(time));
        }
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        let Some(link) = self.link.take() else { return };
        let is_busy = link.is_busy();
        // Before it looks for calls: one that comes later requests the client's thread.
        self.hub.is_driven.store(false, Ordering::SeqCst);
        drop(link);
        if is_busy || !self.hub.waiting().calls.is_empty() {
            self.hub.relief.ring();
        }
    }
}

impl Line {
    fn open(addresses: Vec<SocketAddr>) -> io::Result<Self> {
        let tcp = Tcp::dialing()?;
        let (bell, clock) = (Bell::default(), SystemClock::new(None));
        bell.attach_to(tcp.wake());
        let link = Mutex::new(Link::new(tcp, addresses, clock.steady()));
        let (is_driven, relief) = (AtomicBool::new(false), Bell::default());
        let hub = Arc::new(Hub { waiting: Mutex::default(), link, is_driven, bell, relief, clock });
        let own = Arc::clone(&hub);
        thread::Builder::new().name("stead-client".to_owned()).spawn(move || relieve(&own))?;
        Ok(Self(hub))
    }

    fn within(&self, timeout: Duration) -> Within {
        Within { deadline: self.0.clock.steady().plus(timeout.into()), timeout }
    }

    /// `lends` is whether the caller waits in [`Remote::run`], which requests a turn if it needs one.
    async fn ask(&self, ask: &Ask<'_>, within: Within, lends: bool) -> Result<Got, RawError> {
        let (reply, answer) = oneshot::channel();
        let call = Call::new(ask.encode(), ask.repeats(), within, reply);
        {
            let mut waiting = self.0.waiting();
            if let Some(reason) = waiting.failed.clone() {
                return Err(RawError::Network { reason, sent: false });
            }
            waiting.calls.push_back(call);
        }
        if !lends {
            self.0.request_turn();
        }
        // Each call is answered, unless a thread panics.
        answer.await.unwrap_or_else(|_| {
            let reason = "the client's thread has ended; connect again".to_owned();
            Err(RawError::Network { reason, sent: true })
        })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.0.waiting().is_closed = true;
        self.0.bell.ring();
        self.0.relief.ring();
    }
}

/// Ends all calls if the client's thread panics: nothing else ends them at their time.
struct Ended<'a>(&'a Hub);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut waiting = self.0.waiting();
            waiting.failed =
                Some("the client's thread panicked; this is a bug in Stead: connect again".to_owned());
            waiting.calls.clear();
            drop(waiting);
            if let Some(mut driver) = self.0.drive() {
                driver
                    .link()
                    .fail_all(VecDeque::new(), "the client's thread panicked; this is a bug in Stead");
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
        if let Some(mut driver) = hub.drive() {
            loop {
                let Some((turned, next)) = driver.turn() else { return };
                (now, until) = (turned, next);
                if hub.waiting().is_closed {
                    return;
                }
                if !driver.link().is_busy() {
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
