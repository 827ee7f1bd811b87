//! Clients of a node in the same process: async under any executor, and blocking.

use crate::codec::{self, CodecError};
use crate::error::{CallError, RawError};
use crate::node::Embedded;
use crate::process::Process;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};
use stead_core::entry::Reply;
use stead_core::ids::{Blob, Colour, Epoch, Index, Key, RequestNumber, SessionId, ShardId};
use stead_core::record::RecordKey;
use stead_core::shard::{Answer, Identity, Order, Query, Refusal, Request};
use stead_node::{Caller, NoAnswer, Reception, Shared};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_128;

/// The time limit of a call by default: 10 s.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// A future that waits for an answer.
pub(crate) struct Sender(oneshot::Sender<Result<Answer, NoAnswer>>);

impl Caller for Sender {
    fn answer(self, result: Result<Answer, NoAnswer>) {
        // The future may have been dropped.
        let _ = self.0.send(result);
    }

    fn is_gone(&self) -> bool {
        self.0.is_closed()
    }
}

type Receiver = oneshot::Receiver<Result<Answer, NoAnswer>>;

/// Calls processes from async code, under any executor. Cheap to clone; clones share their sessions.
///
/// A call is applied exactly once if it is answered, and at most once if it is not: it timed out, the node failed, or the
/// future was dropped. While a shard starts or is overloaded, a call waits and is retried until its timeout, and then
/// fails with that reason; if more waits in the node than
/// [`memory_bytes_max`](crate::NodeBuilder::memory_bytes_max), it fails at once.
///
/// The timeout of a call is kept by the worker that has its shard: while a handler holds that, a call may end later, as
/// soon as the handler has. Where that matters, use a timer of the executor's, or [`BlockingClient`], which has its own.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared<Embedded>>,
    principal: Arc<str>,
    timeout: Duration,
    sessions: Arc<Sessions>,
}

/// An answer with its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawReply {
    /// MessagePack: the reply or, in `Err`, the error that the process answered.
    pub reply: Result<Vec<u8>, Vec<u8>>,
    /// The shard that answered.
    pub shard: ShardId,
    /// The epoch that answered.
    pub epoch: Epoch,
    /// The entry up to which the answer has seen its shard.
    pub index: Index,
    /// The shard's colour.
    pub colour: Colour,
}

/// A dead letter that was retried, and is none any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retried {
    /// The shard that held it.
    pub shard: u32,
    /// Its number there.
    pub index: u64,
    /// The error that the process answered, if it did: it was handled then, but had no effects.
    pub error: Option<serde_json::Value>,
}

/// A call without types, as gateways make it.
#[derive(Clone, Debug)]
pub struct RawCall<'a> {
    /// The service.
    pub service: &'a str,
    /// The key of the process.
    pub key: &'a str,
    /// The request or query in MessagePack; see [`codec::json_to_payload`].
    pub payload: Vec<u8>,
    /// Who asks: at most 256 bytes.
    pub principal: &'a str,
    /// Makes a retry known for [`idempotency_ttl`](crate::ServiceOptions::idempotency_ttl): at most 256 bytes. Queries
    /// pay no heed to it.
    pub idempotency_key: Option<&'a [u8]>,
    /// How long to wait for the answer.
    pub timeout: Duration,
}

impl Client {
    pub(crate) fn new(shared: Arc<Shared<Embedded>>) -> Self {
        let shards = shared.topology().shard_count() as usize;
        let pools = (0..shards).map(|_| Mutex::new(Vec::new())).collect();
        let sessions = Arc::new(Sessions { pools, colour: AtomicU64::new(0) });
        Self { shared, principal: Arc::from("local"), timeout: TIMEOUT_DEFAULT, sessions }
    }

    /// The same client under another name, which handlers see as [`Caller::Client`](crate::Caller::Client): at most 256
    /// bytes, `local` by default.
    #[must_use]
    pub fn with_principal(&self, principal: &str) -> Self {
        let fresh = Self::new(Arc::clone(&self.shared));
        Self { principal: Arc::from(principal), timeout: self.timeout, ..fresh }
    }

    /// The same client with another timeout of its calls: 10 s by default.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Calls a process and awaits its committed answer.
    ///
    /// # Errors
    /// [`CallError::Process`] is the process's own error; [`CallError::Raw`] says why there is no answer.
    pub async fn call<P: Process>(
        &self,
        key: &P::Key,
        request: P::Request,
    ) -> Result<P::Reply, CallError<P::Error>> {
        let (shard, process) = self.locate::<P>(key)?;
        let payload = codec::encode(&request, "a request", P::SERVICE).map_err(RawError::from)?;
        let answer = self.ask_in_session(shard, process, payload).await?;
        read_reply::<P, P::Reply>(answer)
    }

    /// Calls a process with a key that makes a retry known: for [`idempotency_ttl`], the same key with the same request
    /// gets the first answer, after restarts of this program too. The key is scoped to the principal and the process.
    ///
    /// # Errors
    /// As [`Self::call`]; [`Refusal::IdempotencyConflict`] if the key was used with another request.
    ///
    /// [`idempotency_ttl`]: crate::ServiceOptions::idempotency_ttl
    pub async fn call_idempotent<P: Process>(
        &self,
        key: &P::Key,
        idempotency_key: &[u8],
        request: P::Request,
    ) -> Result<P::Reply, CallError<P::Error>> {
        let (shard, process) = self.locate::<P>(key)?;
        let payload = codec::encode(&request, "a request", P::SERVICE).map_err(RawError::from)?;
        let identity = idempotency(idempotency_key, &payload);
        let answer =
            self.ask(shard, process, payload, Arc::clone(&self.principal), identity, self.timeout).await?;
        read_reply::<P, P::Reply>(answer)
    }

    /// Queries a process. The answer waits until what it saw is committed, so that it cannot be lost. The timeout is kept
    /// whatever the query does.
    ///
    /// # Errors
    /// As [`Self::call`]; [`Refusal::QueryGivenUp`], [`Refusal::QueriesStuck`].
    pub async fn query<P: Process>(
        &self,
        key: &P::Key,
        query: P::Query,
    ) -> Result<P::Answer, CallError<P::Error>> {
        let (shard, process) = self.locate::<P>(key)?;
        let payload = codec::encode(&query, "a query", P::SERVICE).map_err(RawError::from)?;
        let query = Query { token: 0, process, payload, principal: Arc::clone(&self.principal) };
        let answer = self.ask_query(shard, query, self.timeout).await?;
        read_reply::<P, P::Answer>(answer)
    }

    /// Calls a process without types.
    ///
    /// # Errors
    /// [`RawError`]. An error that the process answered is in [`RawReply::reply`].
    pub async fn call_raw(&self, call: RawCall<'_>) -> Result<RawReply, RawError> {
        let (shard, process) = self.locate_raw(call.service, call.key)?;
        let payload = Blob::from(call.payload);
        let identity = call.idempotency_key.map_or(Identity::None, |key| idempotency(key, &payload));
        let principal = self.principal_for(call.principal);
        raw_reply(shard, self.ask(shard, process, payload, principal, identity, call.timeout).await?)
    }

    /// Queries a process without types.
    ///
    /// # Errors
    /// As [`Self::call_raw`].
    pub async fn query_raw(&self, call: RawCall<'_>) -> Result<RawReply, RawError> {
        let (shard, process) = self.locate_raw(call.service, call.key)?;
        let principal = self.principal_for(call.principal);
        let query = Query { token: 0, process, payload: Blob::from(call.payload), principal };
        raw_reply(shard, self.ask_query(shard, query, call.timeout).await?)
    }

    /// Retries a dead letter, for an operator: what was given up is handled after all, by the entry that removes the dead
    /// letter, and so once. A message, timer or result of a task goes to its process, a failed step of a task runs again
    /// from the state before it. If it fails again it stays a dead letter, with the new reason. A call that gets no answer
    /// can be repeated. [`Node::dead_letters`](crate::Node::dead_letters) lists them.
    ///
    /// # Errors
    /// [`Refusal::FailedAgain`]; [`Refusal::NoDeadLetter`], after a retry that succeeded too; [`Refusal::NoRetry`], for a
    /// client's request above all: its client was informed that it was given up.
    pub async fn retry_dead_letter(&self, shard: u32, index: u64) -> Result<Retried, RawError> {
        let answer = self.order(shard, index, Order::Retry).await?;
        let error = match answer.result {
            Ok(Reply::Err(error)) => Some(codec::payload_to_json(&error)?),
            _ => None,
        };
        Ok(Retried { shard, index, error })
    }

    /// Drops a dead letter unhandled, for an operator. What it held is lost.
    ///
    /// # Errors
    /// [`Refusal::NoDeadLetter`], after it was dropped too.
    pub async fn drop_dead_letter(&self, shard: u32, index: u64) -> Result<(), RawError> {
        self.order(shard, index, Order::Drop).await.map(|_| ())
    }

    async fn order(&self, shard: u32, index: u64, order: Order) -> Result<Answer, RawError> {
        let shards = self.shared.topology().shard_count();
        if shard >= shards {
            return Err(RawError::UnknownShard { shard, shards });
        }
        let (shard, letter) = (ShardId(shard), Index(index));
        let (reception, answer) = self.receive(self.timeout);
        self.shared.dead_letter(shard, letter, order, reception)?;
        self.answered(answer.await)
    }

    pub(crate) async fn delete_records(
        &self,
        shard: ShardId,
        process: Key,
        records: Vec<RecordKey>,
    ) -> Result<Answer, RawError> {
        let (reception, answer) = self.receive(self.timeout);
        self.shared.delete(shard, process, records, reception)?;
        self.answered(answer.await)
    }

    fn principal_for(&self, name: &str) -> Arc<str> {
        if name == &*self.principal { Arc::clone(&self.principal) } else { Arc::from(name) }
    }

    fn locate<P: Process>(&self, key: &P::Key) -> Result<(ShardId, Key), RawError> {
        let process = codec::encode_key::<P>(key)?;
        let topology = self.shared.topology();
        let service = topology.service_id(P::SERVICE);
        let service = service.ok_or_else(|| RawError::UnknownService { service: P::SERVICE.to_owned() })?;
        Ok((topology.shard_of(service, &process), process))
    }

    fn locate_raw(&self, service: &str, key: &str) -> Result<(ShardId, Key), RawError> {
        let topology = self.shared.topology();
        let id = topology.service_id(service);
        let id = id.ok_or_else(|| RawError::UnknownService { service: service.to_owned() })?;
        let process = codec::check_key(service, key)?;
        Ok((topology.shard_of(id, &process), process))
    }

    /// A request of a session leaves this client once, so a shard that does not know the session has not seen it.
    async fn ask_in_session(&self, shard: ShardId, process: Key, payload: Blob) -> Result<Answer, RawError> {
        loop {
            let place = self.sessions.enter(&self.shared, shard, &self.principal);
            let principal = Arc::clone(&self.principal);
            let asked =
                self.ask(shard, process.clone(), payload.clone(), principal, place.identity(), self.timeout);
            match asked.await {
                Err(RawError::Refused(Refusal::UnknownSession(session))) => {
                    self.sessions.forget(shard, session);
                    // It may not have been opened at all; then this tells why.
                    self.open_session(shard).await?;
                }
                answered => return answered,
            }
        }
    }

    async fn open_session(&self, shard: ShardId) -> Result<(), RawError> {
        let session = SessionId(fastrand::u128(..));
        let (reception, opened) = self.receive(self.timeout);
        let principal = Arc::clone(&self.principal);
        self.shared.open_session(shard, session, principal, Some(reception))?;
        self.answered(opened.await)?;
        self.sessions.pool(shard).push(Session::new(session));
        Ok(())
    }

    async fn ask(
        &self,
        shard: ShardId,
        process: Key,
        payload: Blob,
        principal: Arc<str>,
        identity: Identity,
        timeout: Duration,
    ) -> Result<Answer, RawError> {
        let colour = Colour(self.sessions.colour.load(Ordering::Relaxed));
        let request = Request { token: 0, process, payload, principal, identity, colour };
        let (reception, answer) = self.receive(timeout);
        self.shared.request(shard, request, reception)?;
        self.answered(answer.await)
    }

    async fn ask_query(&self, shard: ShardId, query: Query, timeout: Duration) -> Result<Answer, RawError> {
        let (reception, answer) = self.receive(timeout);
        self.shared.query(shard, query, reception)?;
        self.answered(answer.await)
    }

    fn receive(&self, timeout: Duration) -> (Reception<Sender>, Receiver) {
        let (sender, receiver) = oneshot::channel();
        let micros = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        let deadline = self.shared.now().plus_micros(micros);
        (Reception { caller: Sender(sender), deadline, timeout }, receiver)
    }

    /// Records a checkpoint's colour that this client, or a caller that it speaks for, has seen elsewhere: its next requests
    /// carry it, so that no cut holds them without what they follow from.
    pub fn saw(&self, colour: Colour) {
        // Kept from falling, and written only when it rises: many threads read it.
        if colour.0 > self.sessions.colour.load(Ordering::Relaxed) {
            self.sessions.colour.fetch_max(colour.0, Ordering::Relaxed);
        }
    }

    fn answered(&self, received: <Receiver as Future>::Output) -> Result<Answer, RawError> {
        // A caller that is dropped unanswered belongs to a worker that has ended.
        let answer = received.unwrap_or_else(|_| Err(self.shared.end_reason()))?;
        self.saw(answer.colour);
        match answer.result {
            Ok(_) => Ok(answer),
            Err(refusal) => Err(RawError::Refused(refusal)),
        }
    }
}

fn idempotency(key: &[u8], payload: &[u8]) -> Identity {
    Identity::Idempotency { key: Blob::from(key), body_hash: xxh3_128(payload).to_be_bytes() }
}

fn read_reply<P: Process, R: DeserializeOwned>(answer: Answer) -> Result<R, CallError<P::Error>> {
    match answer.result {
        Ok(Reply::Ok(bytes)) => Ok(codec::decode(&bytes, "a reply", P::SERVICE).map_err(RawError::from)?),
        Ok(Reply::Err(bytes)) => {
            let error = codec::decode(&bytes, "an error", P::SERVICE).map_err(RawError::from)?;
            Err(CallError::Process(error))
        }
        Err(refusal) => Err(RawError::Refused(refusal).into()),
    }
}

fn raw_reply(shard: ShardId, answer: Answer) -> Result<RawReply, RawError> {
    let Answer { epoch, index, colour, result, .. } = answer;
    let reply = match result.map_err(RawError::Refused)? {
        Reply::Ok(bytes) => Ok(bytes.to_vec()),
        Reply::Err(bytes) => Err(bytes.to_vec()),
    };
    Ok(RawReply { reply, shard, epoch, index, colour })
}

/// The sessions of a client, by shard.
struct Sessions {
    pools: Vec<Mutex<Vec<Session>>>,
    /// The highest colour that an answer has shown: a client is a channel too.
    colour: AtomicU64,
}

struct Session {
    id: SessionId,
    /// Replies up to this number have come, or nobody waits for them.
    confirmed: u64,
    /// By number from `confirmed + 1` on: whether the reply has come.
    window: VecDeque<bool>,
}

impl Session {
    fn new(id: SessionId) -> Self {
        Self { id, confirmed: 0, window: VecDeque::new() }
    }
}

/// A request's place in a session; given back when dropped, answered or not.
struct Place<'a> {
    sessions: &'a Sessions,
    shard: ShardId,
    session: SessionId,
    number: u64,
    confirmed: u64,
}

impl Sessions {
    /// Requests of one session that may be under way at once: far below what a shard allows, to keep its window short.
    const WINDOW: usize = 4096;

    fn pool(&self, shard: ShardId) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.pools[shard.0 as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, shared: &Shared<Embedded>, shard: ShardId, principal: &Arc<str>) -> Place<'_> {
        let mut pool = self.pool(shard);
        let at = match pool.iter().position(|session| session.window.len() < Self::WINDOW) {
            Some(at) => at,
            None => {
                let id = SessionId(fastrand::u128(..));
                pool.push(Session::new(id));
                let principal = Arc::clone(principal);
                // Its requests go the same way behind it. If it is refused or lost, so are they.
                let _ = shared.open_session(shard, id, principal, None);
                pool.len() - 1
            }
        };
        let session = &mut pool[at];
        session.window.push_back(false);
        let number = session.confirmed + session.window.len() as u64;
        Place { sessions: self, shard, session: session.id, number, confirmed: session.confirmed }
    }

    fn leave(&self, shard: ShardId, session: SessionId, number: u64) {
        let mut pool = self.pool(shard);
        let Some(session) = pool.iter_mut().find(|open| open.id == session) else { return };
        session.window[(number - session.confirmed - 1) as usize] = true;
        while session.window.front() == Some(&true) {
            session.window.pop_front();
            session.confirmed += 1;
        }
    }

    fn forget(&self, shard: ShardId, session: SessionId) {
        self.pool(shard).retain(|open| open.id != session);
    }
}

impl Place<'_> {
    fn identity(&self) -> Identity {
        Identity::Session {
            session: self.session,
            number: RequestNumber(self.number),
            confirmed: RequestNumber(self.confirmed),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.sessions.leave(self.shard, self.session, self.number);
    }
}

/// Calls processes from code that may block. Not for async tasks: it holds their thread.
///
/// A call ends at its timeout, or within a tenth of a second after it.
#[derive(Clone)]
pub struct BlockingClient(Client);

impl BlockingClient {
    pub(crate) fn new(client: Client) -> Self {
        Self(client)
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
        wait(self.0.timeout, self.0.call::<P>(key, request))
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
        wait(self.0.timeout, self.0.call_idempotent::<P>(key, idempotency_key, request))
    }

    /// As [`Client::query`].
    ///
    /// # Errors
    /// As there.
    pub fn query<P: Process>(&self, key: &P::Key, query: P::Query) -> Result<P::Answer, CallError<P::Error>> {
        wait(self.0.timeout, self.0.query::<P>(key, query))
    }

    /// As [`Client::call_raw`].
    ///
    /// # Errors
    /// As there.
    pub fn call_raw(&self, call: RawCall<'_>) -> Result<RawReply, RawError> {
        wait(call.timeout, self.0.call_raw(call))
    }

    /// As [`Client::query_raw`].
    ///
    /// # Errors
    /// As there.
    pub fn query_raw(&self, call: RawCall<'_>) -> Result<RawReply, RawError> {
        wait(call.timeout, self.0.query_raw(call))
    }

    /// As [`Client::retry_dead_letter`].
    ///
    /// # Errors
    /// As there.
    pub fn retry_dead_letter(&self, shard: u32, index: u64) -> Result<Retried, RawError> {
        wait(self.0.timeout, self.0.retry_dead_letter(shard, index))
    }

    /// As [`Client::drop_dead_letter`].
    ///
    /// # Errors
    /// As there.
    pub fn drop_dead_letter(&self, shard: u32, index: u64) -> Result<(), RawError> {
        wait(self.0.timeout, self.0.drop_dead_letter(shard, index))
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// How long a call waits over its timeout for the worker's word: that knows more of why there is no answer.
const GRACE: Duration = Duration::from_millis(100);

/// Runs a call on this thread until its timeout, also if its worker is held.
fn wait<T, E: From<RawError>>(timeout: Duration, call: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let until = Instant::now().checked_add(timeout.saturating_add(GRACE));
    block_on_until(call, until).unwrap_or_else(|| Err(RawError::TimedOut { after: timeout }.into()))
}

/// Runs a future on this thread, which sleeps while it waits.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    block_on_until(future, None).expect("without a limit it runs to its end")
}

fn block_on_until<F: Future>(future: F, until: Option<Instant>) -> Option<F::Output> {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
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

/// The payload of a typed value, for [`RawCall::payload`].
///
/// # Errors
/// [`CodecError::Unwritable`].
pub fn payload<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    codec::encode(value, "a payload", "a raw call").map(|bytes| bytes.to_vec())
}
