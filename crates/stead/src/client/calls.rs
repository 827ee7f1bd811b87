//! The client for async code, under any executor.

use super::TIMEOUT_DEFAULT;
use super::sessions::{Session, Sessions};
use crate::embedded::{Embedded, Receiver, Sender};
use crate::error::{CallError, RawError};
use crate::service::Process;
use crate::service::codec::{self, CodecError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Identity, Query, Refusal, Request};
use stead_core::ids::{BodyHash, CallToken, Colour, Epoch, Index, SessionId, ShardId};
use stead_core::key::Key;
use stead_core::record::RecordKey;
use stead_core::reply::Reply;
use stead_core::shard::DeadLetterAction;
use stead_node::{ReplyTo, Shared};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_128;

/// Calls processes from async code, under any executor. Cheap to clone; clones share their sessions.
///
/// A call is applied exactly once if it is answered, and at most once if it is not: it timed out, the node failed, or the
/// future was dropped. While a shard starts or is overloaded, a call waits and is retried until its timeout, and then
/// fails with that reason; if more waits in the node than
/// [`memory_bytes_max`](crate::NodeBuilder::memory_bytes_max), it fails at once.
///
/// The worker of its shard enforces the timeout of a call: while a handler holds the worker, a call may end later, as
/// soon as the handler has. If that matters, use a timer of the executor, or
/// [`BlockingClient`](super::BlockingClient), which has its own.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared<Embedded>>,
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
    /// Time to wait for the answer.
    pub timeout: Duration,
}

impl Client {
    pub(crate) fn new(shared: Arc<Shared<Embedded>>) -> Self {
        let sessions = Arc::new(Sessions::new(shared.topology().shard_count()));
        Self { shared, principal: Arc::from("local"), timeout: TIMEOUT_DEFAULT, sessions }
    }

    /// Returns the same client with another principal, which handlers see as [`Caller::Client`](crate::Caller::Client):
    /// at most 256 bytes, `local` by default.
    #[must_use]
    pub fn with_principal(&self, principal: &str) -> Self {
        let fresh = Self::new(Arc::clone(&self.shared));
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
        let answer = self.ask_in_session(shard, process, payload).await?;
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
        let answer =
            self.ask(shard, process, payload, Arc::clone(&self.principal), identity, self.timeout).await?;
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
        let (shard, process) = self.locate::<P>(key)?;
        let payload = codec::encode(&query, "a query", P::SERVICE).map_err(RawError::from)?;
        let query = Query { token: CallToken(0), process, payload, principal: Arc::clone(&self.principal) };
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
        let query = Query { token: CallToken(0), process, payload: Blob::from(call.payload), principal };
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
        let shards = self.shared.topology().shard_count();
        if shard >= shards {
            return Err(RawError::UnknownShard { shard, shards });
        }
        let (shard, letter) = (ShardId(shard), Index(index));
        let (reply_to, answer) = self.receive(self.timeout);
        self.shared.dead_letter(shard, letter, action, reply_to)?;
        self.answered(answer.await)
    }

    pub(crate) async fn delete_records(
        &self,
        shard: ShardId,
        process: Key,
        records: Vec<RecordKey>,
    ) -> Result<Answer, RawError> {
        let (reply_to, answer) = self.receive(self.timeout);
        self.shared.delete(shard, process, records, reply_to)?;
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

    /// Sends a request in a session. It leaves this client once, so a shard that does not know the session has not
    /// handled it.
    async fn ask_in_session(&self, shard: ShardId, process: Key, payload: Blob) -> Result<Answer, RawError> {
        loop {
            let place = self.sessions.enter(&self.shared, shard, &self.principal);
            let principal = Arc::clone(&self.principal);
            let asked =
                self.ask(shard, process.clone(), payload.clone(), principal, place.identity(), self.timeout);
            match asked.await {
                Err(RawError::Refused(Refusal::UnknownSession(session))) => {
                    self.sessions.forget(shard, session);
                    // It may not have been opened at all; then this returns the reason.
                    self.open_session(shard).await?;
                }
                answered => return answered,
            }
        }
    }

    async fn open_session(&self, shard: ShardId) -> Result<(), RawError> {
        let session = SessionId(fastrand::u128(..));
        let (reply_to, opened) = self.receive(self.timeout);
        let principal = Arc::clone(&self.principal);
        self.shared.open_session(shard, session, principal, Some(reply_to))?;
        self.answered(opened.await)?;
        self.sessions.add(shard, Session::new(session));
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
        let colour = self.sessions.colour();
        let request = Request { token: CallToken(0), process, payload, principal, identity, colour };
        let (reply_to, answer) = self.receive(timeout);
        self.shared.request(shard, request, reply_to)?;
        self.answered(answer.await)
    }

    async fn ask_query(&self, shard: ShardId, query: Query, timeout: Duration) -> Result<Answer, RawError> {
        let (reply_to, answer) = self.receive(timeout);
        self.shared.query(shard, query, reply_to)?;
        self.answered(answer.await)
    }

    fn receive(&self, timeout: Duration) -> (ReplyTo<Sender>, Receiver) {
        let (sender, receiver) = oneshot::channel();
        let micros = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        let deadline = self.shared.now().plus_micros(micros);
        (ReplyTo { caller: Sender(sender), deadline, timeout }, receiver)
    }

    /// Records a checkpoint's colour that this client, or a caller for which it acts, has seen elsewhere: its next
    /// requests carry it, so that no cut has them without the requests on which they depend.
    pub fn saw(&self, colour: Colour) {
        self.sessions.saw(colour);
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
    let Answer { epoch, index, colour, result, .. } = answer;
    let reply = match result.map_err(RawError::Refused)? {
        Reply::Ok(bytes) => Ok(bytes.to_vec()),
        Reply::Err(bytes) => Err(bytes.to_vec()),
    };
    Ok(RawReply { reply, shard, epoch, index, colour })
}

/// Encodes a typed value as [`RawCall::payload`].
///
/// # Errors
/// [`CodecError::Unwritable`].
pub fn payload<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    codec::encode(value, "a payload", "a raw call").map(|bytes| bytes.to_vec())
}
