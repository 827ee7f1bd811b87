//! The client for code that may block, and an executor of one future for it.

use super::calls::{Client, RawCall, RawReply, Retried};
use crate::error::{CallError, ConnectError, RawError};
use crate::service::Process;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Calls processes from code that may block. Not for async tasks: it blocks their thread.
///
/// A call ends at its timeout, or within a tenth of a second after it.
#[derive(Clone)]
pub struct BlockingClient(Client);

impl BlockingClient {
    pub(crate) fn new(client: Client) -> Self {
        Self(client.lending())
    }

    /// As [`Client::connect`].
    ///
    /// # Errors
    /// As there.
    pub fn connect<A: AsRef<str>>(addresses: impl IntoIterator<Item = A>) -> Result<Self, ConnectError> {
        block_on(Client::connect(addresses)).map(Self::new)
    }

    /// As [`Client::connect_within`].
    ///
    /// # Errors
    /// As there.
    pub fn connect_within<A: AsRef<str>>(
        addresses: impl IntoIterator<Item = A>,
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
        block_on(Client::connect_within(addresses, timeout)).map(Self::new)
    }

    /// As [`Client::with_principal`].
    #[must_use]
    pub fn with_principal(&self, principal: &str) -> Self {
        Self(self.0.with_principal(principal))
    }

    /// As [`Client::with_timeout`].
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self(self.0.with_timeout(timeout))
    }

    /// As [`Client::call`].
    ///
    /// # Errors
    /// As there.
    pub fn call<P: Process>(
        &self,
        key: &P::Key,
        request: P::Request,
    ) -> Result<P::Reply, CallError<P::Error>> {
        wait(&self.0, self.0.timeout, self.0.call::<P>(key, request))
    }

    /// As [`Client::call_idempotent`].
    ///
    /// # Errors
    /// As there.
    pub fn call_idempotent<P: Process>(
        &self,
        key: &P::Key,
        idempotency_key: &[u8],
        request: P::Request,
    ) -> Result<P::Reply, CallError<P::Error>> {
        wait(&self.0, self.0.timeout, self.0.call_idempotent::<P>(key, idempotency_key, request))
    }

    /// As [`Client::query`].
    ///
    /// # Errors
    /// As there.
    pub fn query<P: Process>(&self, key: &P::Key, query: P::Query) -> Result<P::Answer, CallError<P::Error>> {
        wait(&self.0, self.0.timeout, self.0.query::<P>(key, query))
    }

    /// As [`Client::call_raw`].
    ///
    /// # Errors
    /// As there.
    pub fn call_raw(&self, call: RawCall<'_>) -> Result<RawReply, RawError> {
        wait(&self.0, call.timeout, self.0.call_raw(call))
    }

    /// As [`Client::query_raw`].
    ///
    /// # Errors
    /// As there.
    pub fn query_raw(&self, call: RawCall<'_>) -> Result<RawReply, RawError> {
        wait(&self.0, call.timeout, self.0.query_raw(call))
    }

    /// As [`Client::retry_dead_letter`].
    ///
    /// # Errors
    /// As there.
    pub fn retry_dead_letter(&self, shard: u32, index: u64) -> Result<Retried, RawError> {
        wait(&self.0, self.0.timeout, self.0.retry_dead_letter(shard, index))
    }

    /// As [`Client::drop_dead_letter`].
    ///
    /// # Errors
    /// As there.
    pub fn drop_dead_letter(&self, shard: u32, index: u64) -> Result<(), RawError> {
        wait(&self.0, self.0.timeout, self.0.drop_dead_letter(shard, index))
    }
}

/// Wakes a thread that is parked.
pub(super) struct Unpark(Thread);

impl Unpark {
    /// Wakes the current thread.
    pub(super) fn new() -> Self {
        Self(std::thread::current())
    }

    pub(super) fn unpark(&self) {
        self.0.unpark();
    }
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        Self::unpark(&self);
    }
}

/// Time beyond its timeout that a call waits for the worker, which knows better why there is no answer.
const GRACE: Duration = Duration::from_millis(100);
/// The same over the network: the client keeps the time itself.
const GRACE_OF_NETWORK: Duration = Duration::from_secs(5);

/// Runs a call on this thread until its timeout, even if its worker is held.
fn wait<T, E: From<RawError>>(
    client: &Client,
    timeout: Duration,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let until = |grace| Instant::now().checked_add(timeout.saturating_add(grace));
    let ended = match client.remote() {
        Some(remote) => remote.run(pin!(call), until(GRACE_OF_NETWORK)),
        None => block_on_until(call, until(GRACE)),
    };
    ended.unwrap_or_else(|| Err(RawError::TimedOut { after: timeout }.into()))
}

/// Runs a future on this thread, which sleeps while it waits.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    block_on_until(future, None).expect("without a limit it runs to its end")
}

fn block_on_until<F: Future>(future: F, until: Option<Instant>) -> Option<F::Output> {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark::new()));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return Some(output),
            Poll::Pending => match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => std::thread::park(),
                Some(Duration::ZERO) => return None,
                Some(left) => std::thread::park_timeout(left),
            },
        }
    }
}
