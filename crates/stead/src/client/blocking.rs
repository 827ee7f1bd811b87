//! The client for code that may block.

use super::calls::{Client, Queried, RawCall, RawReply, Retried};
use super::parking::{block_on, block_on_until};
use crate::error::{CallError, ConnectError, RawError};
use crate::service::Process;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};
use stead_core::calls::Read;

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

    /// As [`Client::query_with`].
    ///
    /// # Errors
    /// As there.
    pub fn query_with<P: Process>(
        &self,
        key: &P::Key,
        query: P::Query,
        read: Read,
    ) -> Result<Queried<P::Answer>, CallError<P::Error>> {
        wait(&self.0, self.0.timeout, self.0.query_with::<P>(key, query, read))
    }

    /// Returns the same client for async code.
    #[must_use]
    pub fn client(&self) -> Client {
        self.0.clone().not_lending()
    }

    /// Runs a future on this thread. If this client calls over the network, the thread also serves the connections of all clients of
    /// the process meanwhile, unless another one does so for a future of its own: the calls of the future then pass through no other
    /// thread. The future must not block: all clients of the process would wait.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        match self.0.remote() {
            Some(remote) => remote.serve(pin!(future)),
            None => block_on(future),
        }
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

    /// As [`Client::query_raw_with`].
    ///
    /// # Errors
    /// As there.
    pub fn query_raw_with(&self, call: RawCall<'_>, read: Read) -> Result<RawReply, RawError> {
        wait(&self.0, call.timeout, self.0.query_raw_with(call, read))
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
