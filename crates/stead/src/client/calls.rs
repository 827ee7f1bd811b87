//! The client for async code, under any executor.

use super::remote::{self, Got, Remote, Within};
use super::sessions::Sessions;
use super::{BlockingClient, TIMEOUT_DEFAULT};
use crate::embedded::{Embedded, Receiver, Sender};
use crate::error::{CallError, ConnectError, RawError};
use crate::service::Process;
use crate::service::codec::{self, CodecError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Identity, Query, Read, Refusal, Request};
use stead_core::ids::{BodyHash, CallToken, Colour, Epoch, Index, SessionId, ShardId};
use stead_core::key::Key;
use stead_core::look::{Found, Look};
use stead_core::record::RecordKey;
use stead_core::replication::table::LogPoint;
use stead_core::reply::Reply;
use stead_core::shard::DeadLetterAction;
use stead_core::topology::Topology;
use stead_net::native::{self, Ask, Promised};
use stead_node::{ReplyTo, Shared};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_128;

/// Calls processes from async code, under any executor. Cheap to clone; clones share their sessions and connections.
///
/// [`Node::client`](crate::Node::client) gives a client of a node in the same process, [`Client::connect`] one of a node in
/// another process, which serves it by the native protocol. Both have the same calls, answers and errors.
///
/// A call is applied exactly once if it is answered, and at most once if it is not: it timed out, the node failed, or the
/// future was dropped. While a shard starts or is overloaded, a call waits and is retried until its timeout, and then
/// fails with that reason; if more waits in the node than
/// [`memory_bytes_max`](crate::NodeBuilder::memory_bytes_max), it fails at once.
///
/// In the same process, the worker of its shard enforces the timeout of a call: while a handler holds the worker, a call may
/// end later, as soon as the handler has. If that matters, use a timer of the executor, or
/// [`BlockingClient`](super::BlockingClient), which has its own. Over the network the client enforces it.
///
/// Over the network, a call whose connection is lost before its answer, or whose node stops or has failed, is sent again over
/// the next connection, to the same node or to another one, within its timeout and with its identity, so that it is not
/// applied twice. A request of more than 2 MiB is refused ([`Refusal::TooLong`]). A call without an
/// identity ([`Client::call_raw`] for another principal without an idempotency key, [`Client::retry_dead_letter`],
/// [`Client::drop_dead_letter`]) then ends with [`RawError::Network`].
///
/// A failover of an asynchronous service may lose answered requests. If an answer to this client included some that are lost, its
/// next call of that shard is refused with what is lost ([`Refusal::Lost`]); calls after that go on.
#[derive(Clone)]
pub struct Client {
    route: Route,
    principal: Arc<str>,
    pub(super) timeout: Duration,
    sessions: Arc<Sessions>,
}

/// An answer with its position in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawReply {
    /// MessagePack: the reply or, in `Err`, the error of the process.
    pub reply: Result<Vec<u8>, Vec<u8>>,
    /// The shard of the answer.
    pub shard: ShardId,
    /// The epoch of the answer.
    pub epoch: Epoch,
    /// The last entry that the answer includes.
    pub index: Index,
    /// The shard's colour.
    pub colour: Colour,
    /// The age of the state that a stale read saw, when the read came to it; `None` of all other answers.
    pub staleness: Option<Duration>,
}

/// The answer to a query, and what it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queried<A> {
    /// The answer.
    pub answer: A,
    /// The last entry of the process's shard that it includes.
    pub index: Index,
    /// The age of the state that a [stale read](Read::Stale) saw, when the read came to it: it includes all that was answered so
    /// long before. `None` of all other reads.
    pub staleness: Option<Duration>,
}

/// A dead letter that was retried, and is removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retried {
    /// The shard that held it.
    pub shard: u32,
    /// Its index in that shard.
    pub index: u64,
    /// The error of the process, if it answered with one: the letter was handled then, but had no effects.
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
    /// The client's principal: at most 256 bytes.
    pub principal: &'a str,
    /// Identifies a retry for [`idempotency_ttl`](crate::ServiceOptions::idempotency_ttl): at most 256 bytes. Queries
    /// ignore it.
    pub idempotency_key: Option<&'a [u8]>,
    /// The newest entry of the process's shard that an answer to the caller included: [`RawReply::epoch`] and [`RawReply::index`].
    /// If it is lost, the call is refused ([`Refusal::Lost`]). A client's calls with types bring along what its own answers included.
    pub seen: Option<LogPoint>,
    /// Time to wait for the answer.
    pub timeout: Duration,
}

/// The way of a client to its node.
#[derive(Clone)]
enum Route {
    /// Within the process.
    Here(Arc<Shared<Embedded>>),
    /// Over the network.
    Away(Remote),
}

impl Client {
    pub(crate) fn new(shared: Arc<Shared<Embedded>>) -> Self {
        Self::over(Route::Here(shared))
    }

    fn over(route: Route) -> Self {
        let shards = match &route {
            Route::Here(shared) => shared.topology().shard_count(),
            Route::Away(remote) => remote.topology.shard_count(),
        };
        let sessions = Arc::new(Sessions::new(shards));
        Self { route, principal: Arc::from("local"), timeout: TIMEOUT_DEFAULT, sessions }
    }

    /// Connects to a cluster by the native protocol, by the first of these addresses, `host:port`, at which one of its nodes
    /// answers: see [`NodeBuilder::listen_native`](crate::NodeBuilder::listen_native). The other addresses are for the time
    /// when it does not, and so are those of the cluster's other nodes, which the client learns. Resolves names at once, which may
    /// block for a moment, and waits for a node for at most 10 s.
    ///
    /// The client has a connection to each node whose shards it calls, which all its clones share. All clients of a process have one
    /// thread, which ends with the last of them; a lone blocking caller serves the connections itself. The client knows the services that the node has now: connect again to call those that are added later.
    ///
    /// ```no_run
    /// # use stead::{BlockingClient, kv::{Kv, Query}};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = BlockingClient::connect(["127.0.0.1:7421"])?;
    /// client.query::<Kv>(&"key".to_string(), Query::Get)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect<A: AsRef<str>>(
        addresses: impl IntoIterator<Item = A>,
    ) -> Result<Self, ConnectError> {
        Self::connect_within(addresses, TIMEOUT_DEFAULT).await
    }

    /// As [`Self::connect`], and waits for a node for at most this time.
    ///
    /// # Errors
    /// As there.
    pub async fn connect_within<A: AsRef<str>>(
        addresses: impl IntoIterator<Item = A>,
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
        let addresses: Vec<String> =
            addresses.into_iter().map(|address| address.as_ref().to_owned()).collect();
        let remote = Remote::connect(&addresses, timeout).await?;
        Ok(Self::over(Route::Away(remote)))
    }

    /// Returns the same client for code that may block.
    #[must_use]
    pub fn blocking(&self) -> BlockingClient {
        BlockingClient::new(self.clone())
    }

    /// Returns the timeout of its calls.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns the way over the network, if that is how its node is called.
    pub(super) fn remote(&self) -> Option<&Remote> {
        match &self.route {
            Route::Here(_) => None,
            Route::Away(remote) => Some(remote),
        }
    }

    /// Returns the same client for callers that wait in [`Remote::run`] if it calls over the network.
    pub(super) fn lending(self) -> Self {
        self.with_lending(true)
    }

    /// Returns the same client for other callers.
    pub(super) fn not_lending(self) -> Self {
        self.with_lending(false)
    }

    fn with_lending(self, lends: bool) -> Self {
        let route = match self.route {
            Route::Away(remote) => Route::Away(remote.with_lending(lends)),
            here @ Route::Here(_) => here,
        };
        Self { route, ..self }
    }

    fn topology(&self) -> &Topology {
        match &self.route {
            Route::Here(shared) => shared.topology(),
            Route::Away(remote) => &remote.topology,
        }
    }

    /// Returns the same client with another principal, which handlers see as [`Caller::Client`](crate::Caller::Client):
    /// at most 256 bytes, `local` by default.
    #[must_use]
    pub fn with_principal(&self, principal: &str) -> Self {
        let fresh = Self::over(self.route.clone());
        Self { principal: Arc::from(principal), timeout: self.timeout, ..fresh }
    }

    /// Returns the same client with another timeout of its calls: 10 s by default.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Calls a process and awaits its committed answer.
    ///
    /// # Errors
    /// [`CallError::Process`] is the process's own error; [`CallError::Raw`] has the reason why there is no answer.
    pub async fn call<P: Process>(
        &self,
        key: &P::Key,
        request: P::Request,
    ) -> Result<P::Reply, CallError<P::Error>> {
        let (shard, process) = self.locate::<P>(key)?;
        let payload = codec::encode(&request, "a request", P::SERVICE).map_err(RawError::from)?;
        let seen = self.sessions.seen(shard);
        let answer = self.ask_in_session(shard, process, payload, seen, self.timeout).await?;
        read_reply::<P, P::Reply>(answer)
    }

    /// Calls a process with a key that identifies a retry: for [`idempotency_ttl`], the same key with the same request
    /// gets the first answer, also after restarts of this program. The key is scoped to the principal and the process.
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
        let (principal, seen) = (Arc::clone(&self.principal), self.sessions.seen(shard));
        let request = self.request(process, payload, principal, identity, seen);
        let answer = self.ask(shard, request, self.timeout).await?;
        read_reply::<P, P::Reply>(answer)
    }

    /// Queries a process. The answer waits until the state that it has read is committed, so that it cannot be lost.
    /// The timeout holds whatever the query does.
    ///
    /// # Errors
    /// As [`Self::call`]; [`Refusal::QueryGivenUp`], [`Refusal::QueriesStuck`].
    pub async fn query<P: Process>(
        &self,
        key: &P::Key,
        query: P::Query,
    ) -> Result<P::Answer, CallError<P::Error>> {
        Ok(self.query_with::<P>(key, query, Read::Service).await?.answer)
    }

    /// Queries a process, whose answer keeps this promise. A stale read is answered by the node to which this client is connected, if
    /// that has a replica of the process, and is refused if its state is older than the read or the service allows.
    ///
    /// # Errors
    /// As [`Self::query`]; [`Refusal::TooStale`].
    pub async fn query_with<P: Process>(
        &self,
        key: &P::Key,
        query: P::Query,
        read: Read,
    ) -> Result<Queried<P::Answer>, CallError<P::Error>> {
        let (shard, process) = self.locate::<P>(key)?;
        let payload = codec::encode(&query, "a query", P::SERVICE).map_err(RawError::from)?;
        let principal = Arc::clone(&self.principal);
        let seen = self.sessions.seen(shard);
        let query = Query { token: CallToken(0), process, payload, principal, read, seen };
        let answer = self.ask_query(shard, query, self.timeout).await?;
        let (index, staleness) = (answer.index, answer.staleness.map(Duration::from));
        Ok(Queried { answer: read_reply::<P, P::Answer>(answer)?, index, staleness })
    }

    /// Calls a process without types. A call without an idempotency key is made at most once; over the network, one for this
    /// client's principal is made in a session, and so exactly once.
    ///
    /// # Errors
    /// [`RawError`]. An error that the process answered is in [`RawReply::reply`].
    pub async fn call_raw(&self, call: RawCall<'_>) -> Result<RawReply, RawError> {
        let (shard, process) = self.locate_raw(call.service, call.key)?;
        let payload = Blob::from(call.payload);
        if let (Route::Away(_), None) = (&self.route, call.idempotency_key)
            && call.principal == &*self.principal
        {
            let asked = self.ask_in_session(shard, process, payload, call.seen, call.timeout);
            return raw_reply(shard, asked.await?);
        }
        let identity = call.idempotency_key.map_or(Identity::None, |key| idempotency(key, &payload));
        let principal = self.principal_for(call.principal);
        let request = self.request(process, payload, principal, identity, call.seen);
        raw_reply(shard, self.ask(shard, request, call.timeout).await?)
    }

    /// Queries a process without types.
    ///
    /// # Errors
    /// As [`Self::call_raw`].
    pub async fn query_raw(&self, call: RawCall<'_>) -> Result<RawReply, RawError> {
        self.query_raw_with(call, Read::Service).await
    }

    /// Queries a process without types, as [`Self::query_with`] does.
    ///
    /// # Errors
    /// As [`Self::call_raw`]; [`Refusal::TooStale`].
    pub async fn query_raw_with(&self, call: RawCall<'_>, read: Read) -> Result<RawReply, RawError> {
        let (shard, process) = self.locate_raw(call.service, call.key)?;
        let principal = self.principal_for(call.principal);
        let (token, payload, seen) = (CallToken(0), Blob::from(call.payload), call.seen);
        let query = Query { token, process, payload, principal, read, seen };
        raw_reply(shard, self.ask_query(shard, query, call.timeout).await?)
    }

    /// Retries a dead letter, for an operator: it is handled by the entry that removes it, and so once. A message,
    /// timer or result of a task goes to its process, a failed step of a task runs again from the state before it. If
    /// it fails again, it stays a dead letter, with the new reason. A call without an answer can be repeated.
    /// [`Node::dead_letters`](crate::Node::dead_letters) lists them.
    ///
    /// # Errors
    /// [`Refusal::FailedAgain`]; [`Refusal::NoDeadLetter`], also after a retry that succeeded; [`Refusal::NoRetry`], in
    /// particular for a client's request: its client was informed that it was given up.
    pub async fn retry_dead_letter(&self, shard: u32, index: u64) -> Result<Retried, RawError> {
        let answer = self.decide(shard, index, DeadLetterAction::Retry).await?;
        let error = match answer.result {
            Ok(Reply::Err(error)) => Some(codec::payload_to_json(&error)?),
            _ => None,
        };
        Ok(Retried { shard, index, error })
    }

    /// Deletes a dead letter unhandled, for an operator. Its payload is lost.
    ///
    /// # Errors
    /// [`Refusal::NoDeadLetter`], also after it was deleted.
    pub async fn drop_dead_letter(&self, shard: u32, index: u64) -> Result<(), RawError> {
        self.decide(shard, index, DeadLetterAction::Drop).await.map(|_| ())
    }

    async fn decide(&self, shard: u32, index: u64, action: DeadLetterAction) -> Result<Answer, RawError> {
        let shards = self.topology().shard_count();
        if shard >= shards {
            return Err(RawError::UnknownShard { shard, shards });
        }
        let (shard, letter) = (ShardId(shard), Index(index));
        match &self.route {
            Route::Here(shared) => {
                let (reply_to, answer) = receive(shared, self.timeout);
                shared.dead_letter(shard, letter, action, reply_to)?;
                self.answered(shared, shard, answer.await)
            }
            Route::Away(remote) => {
                let ask = Ask::DeadLetter { shard, letter, retry: action == DeadLetterAction::Retry };
                self.answer_of(shard, remote.ask(&ask, remote.within(self.timeout)).await?, self.timeout)
            }
        }
    }

    /// Deletes records of a process at a node in this process, for an operator.
    pub(crate) async fn delete_records(
        &self,
        shared: &Shared<Embedded>,
        shard: ShardId,
        process: Key,
        records: Vec<RecordKey>,
    ) -> Result<Answer, RawError> {
        let (reply_to, answer) = receive(shared, self.timeout);
        shared.delete(shard, process, records, reply_to)?;
        self.answered(shared, shard, answer.await)
    }

    /// Looks at the state of a shard by a node in this process, for an operator. Returns the epoch of the primary that showed it, too.
    pub(crate) async fn look(
        &self,
        shared: &Shared<Embedded>,
        shard: ShardId,
        look: Look,
    ) -> Result<(Epoch, Found), RawError> {
        let (reply_to, answer) = receive(shared, self.timeout);
        shared.show(shard, look, reply_to)?;
        let Answer { epoch, result, .. } = self.answered(shared, shard, answer.await)?;
        // No handler runs that could return an error.
        let (Reply::Ok(found) | Reply::Err(found)) = result.map_err(RawError::Refused)?;
        let found = Found::decode(&found).map_err(|_| remote::misfit())?;
        Ok((epoch, found))
    }

    fn principal_for(&self, name: &str) -> Arc<str> {
        if name == &*self.principal { Arc::clone(&self.principal) } else { Arc::from(name) }
    }

    fn locate<P: Process>(&self, key: &P::Key) -> Result<(ShardId, Key), RawError> {
        let process = codec::encode_key::<P>(key)?;
        let topology = self.topology();
        let service = topology.service_id(P::SERVICE);
        let service = service.ok_or_else(|| RawError::UnknownService { service: P::SERVICE.to_owned() })?;
        Ok((topology.shard_of(service, &process), process))
    }

    fn locate_raw(&self, service: &str, key: &str) -> Result<(ShardId, Key), RawError> {
        let topology = self.topology();
        let id = topology.service_id(service);
        let id = id.ok_or_else(|| RawError::UnknownService { service: service.to_owned() })?;
        let process = codec::check_key(service, key)?;
        Ok((topology.shard_of(id, &process), process))
    }

    fn request(
        &self,
        process: Key,
        payload: Blob,
        principal: Arc<str>,
        identity: Identity,
        seen: Option<LogPoint>,
    ) -> Request {
        let colour = self.sessions.colour();
        // A caller may have made the same call before, unless the call has a place of its own in a session.
        let (token, is_first) = (CallToken(0), false);
        Request { token, process, payload, principal, identity, colour, seen, is_first }
    }

    /// Sends a request in a session.
    async fn ask_in_session(
        &self,
        shard: ShardId,
        process: Key,
        payload: Blob,
        seen: Option<LogPoint>,
        timeout: Duration,
    ) -> Result<Answer, RawError> {
        // It gets its identity with its place in a session.
        let request = self.request(process, payload, Arc::clone(&self.principal), Identity::None, seen);
        match &self.route {
            Route::Here(shared) => self.ask_in_session_here(shared, shard, request, timeout).await,
            Route::Away(remote) => self.ask_in_session_of(remote, shard, request, timeout).await,
        }
    }

    /// Sends a request in a session within this process. It leaves this client once, so a shard that does not know the
    /// session has not handled it.
    async fn ask_in_session_here(
        &self,
        shared: &Shared<Embedded>,
        shard: ShardId,
        request: Request,
        timeout: Duration,
    ) -> Result<Answer, RawError> {
        loop {
            let place = self.sessions.enter(shard, |session| {
                // Its requests take the same way after it. If it is refused or lost, so are they.
                let _ = shared.open_session(shard, session, Arc::clone(&self.principal), None);
            });
            let request = Request { identity: place.identity(), is_first: true, ..request.clone() };
            match self.ask(shard, request, timeout).await {
                Err(RawError::Refused(Refusal::UnknownSession(session))) => {
                    self.sessions.forget(shard, session);
                    // It may not have been opened at all; then this returns the reason.
                    let session = SessionId(fastrand::u128(..));
                    let (reply_to, opened) = receive(shared, timeout);
                    shared.open_session(shard, session, Arc::clone(&self.principal), Some(reply_to))?;
                    self.answered(shared, shard, opened.await)?;
                    self.sessions.add(shard, session);
                }
                answered => return answered,
            }
        }
    }

    /// Sends a request in a session over the network, where it may be sent more than once.
    async fn ask_in_session_of(
        &self,
        remote: &Remote,
        shard: ShardId,
        request: Request,
        timeout: Duration,
    ) -> Result<Answer, RawError> {
        let within = remote.within(timeout);
        loop {
            let Some(place) = self.sessions.enter_open(shard) else {
                self.open_session_at(remote, shard, within).await?;
                continue;
            };
            let request = Request { identity: place.identity(), is_first: true, ..request.clone() };
            let got = remote.ask(&ask_of(shard, &request), within).await?;
            let is_repeated = got.is_repeated;
            match self.answer_of(shard, got, timeout) {
                Err(RawError::Refused(Refusal::UnknownSession(session))) => {
                    self.sessions.forget(shard, session);
                    // The session was open, and has expired. If the request was sent before, it may have been applied then.
                    if is_repeated {
                        return Err(RawError::Refused(Refusal::UnknownSession(session)));
                    }
                }
                answered => return answered,
            }
        }
    }

    /// Opens a session of a shard, unless another call has done so meanwhile. Its requests may overtake it on another
    /// connection, and so wait until it is open.
    async fn open_session_at(&self, remote: &Remote, shard: ShardId, within: Within) -> Result<(), RawError> {
        let _opening = self.sessions.opening(shard).await;
        if self.sessions.has_room(shard) {
            return Ok(());
        }
        let session = SessionId(fastrand::u128(..));
        let ask = Ask::OpenSession { shard, session, principal: &self.principal };
        let got = remote.ask(&ask, within).await?;
        self.answer_of(shard, got, within.timeout)?;
        self.sessions.add(shard, session);
        Ok(())
    }

    async fn ask(&self, shard: ShardId, request: Request, timeout: Duration) -> Result<Answer, RawError> {
        match &self.route {
            Route::Here(shared) => {
                let (reply_to, answer) = receive(shared, timeout);
                shared.request(shard, request, reply_to)?;
                self.answered(shared, shard, answer.await)
            }
            Route::Away(remote) => {
                let got = remote.ask(&ask_of(shard, &request), remote.within(timeout)).await?;
                self.answer_of(shard, got, timeout)
            }
        }
    }

    async fn ask_query(&self, shard: ShardId, query: Query, timeout: Duration) -> Result<Answer, RawError> {
        match &self.route {
            Route::Here(shared) => {
                let (reply_to, answer) = receive(shared, timeout);
                shared.query(shard, query, reply_to)?;
                self.answered(shared, shard, answer.await)
            }
            Route::Away(remote) => {
                let Query { process, payload, principal, read, seen, .. } = query;
                let read = Promised::of(read);
                let ask = Ask::Query { shard, process, payload, principal: &principal, read, seen };
                self.answer_of(shard, remote.ask(&ask, remote.within(timeout)).await?, timeout)
            }
        }
    }

    /// Records a checkpoint's colour that this client, or a caller for which it acts, has seen elsewhere: its next
    /// requests carry it, so that no cut has them without the requests on which they depend.
    pub fn saw(&self, colour: Colour) {
        self.sessions.saw(colour);
    }

    fn answered(
        &self,
        shared: &Shared<Embedded>,
        shard: ShardId,
        received: <Receiver as Future>::Output,
    ) -> Result<Answer, RawError> {
        // A caller that is dropped unanswered belongs to a worker that has ended.
        self.noted(shard, received.unwrap_or_else(|_| Err(shared.end_reason()))?)
    }

    /// Returns the answer of a shard, or the reason for which a node gave none.
    fn answer_of(&self, shard: ShardId, got: Got, after: Duration) -> Result<Answer, RawError> {
        match got.answer {
            native::Answer::Of(answer) => self.noted(shard, answer),
            native::Answer::Refused(refusal) => Err(RawError::Refused(refusal)),
            native::Answer::NotHere { shard, place } => Err(RawError::NotHere { shard: shard.0, place }),
            native::Answer::NoPrimary { shard } => Err(RawError::NoPrimary { shard: shard.0, after }),
            native::Answer::TimedOut => Err(RawError::TimedOut { after }),
            // The link ends or repeats calls with the others, and no topology was asked for.
            answer => Err(remote::unexpected(answer)),
        }
    }

    fn noted(&self, shard: ShardId, answer: Answer) -> Result<Answer, RawError> {
        self.saw(answer.colour);
        // One with index 0 includes no entry. That of a loss includes the entry from which on the client has seen all.
        if answer.index > Index(0) {
            self.sessions.saw_entry(shard, LogPoint { epoch: answer.epoch, index: answer.index });
        }
        match answer.result {
            Ok(_) => Ok(answer),
            Err(refusal) => Err(RawError::Refused(refusal)),
        }
    }
}

fn ask_of(shard: ShardId, request: &Request) -> Ask<'_> {
    Ask::Request {
        shard,
        process: request.process.clone(),
        payload: request.payload.clone(),
        principal: &request.principal,
        identity: request.identity.clone().into(),
        colour: request.colour,
        seen: request.seen,
        is_first: request.is_first.then_some(true),
    }
}

fn receive(shared: &Shared<Embedded>, timeout: Duration) -> (ReplyTo<Sender>, Receiver) {
    let (sender, receiver) = oneshot::channel();
    let deadline = shared.now().plus(timeout.into());
    (ReplyTo { caller: Sender(sender), deadline, timeout }, receiver)
}

fn idempotency(key: &[u8], payload: &[u8]) -> Identity {
    Identity::Idempotency { key: Blob::from(key), body_hash: BodyHash(xxh3_128(payload).to_be_bytes()) }
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
    let Answer { epoch, index, colour, result, staleness, .. } = answer;
    let reply = match result.map_err(RawError::Refused)? {
        Reply::Ok(bytes) => Ok(bytes.to_vec()),
        Reply::Err(bytes) => Err(bytes.to_vec()),
    };
    Ok(RawReply { reply, shard, epoch, index, colour, staleness: staleness.map(Duration::from) })
}

/// Encodes a typed value as [`RawCall::payload`].
///
/// # Errors
/// [`CodecError::Unwritable`].
pub fn payload<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    codec::encode(value, "a payload", "a raw call").map(|bytes| bytes.to_vec())
}
