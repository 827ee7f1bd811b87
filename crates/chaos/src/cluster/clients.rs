//! The clients: by the native protocol, and over HTTP. Both know all nodes, and repeat a request with its identity until it is
//! answered or its time is over.

use super::linearizable::{Outcome, Request};
use crate::account::{Account, Refused, Request as Transfer};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use stead::kv::{self, Kv};
use stead::{BlockingClient, CallError, ConnectError, Read};
use ureq::Agent;

/// Time in which a request has to be answered.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(20);
/// The same for a request that is given up early.
const TIME_SHORT_MAX: Duration = Duration::from_millis(250);
/// Time after which a client over HTTP asks another node.
const ATTEMPT_MAX: Duration = Duration::from_millis(1_500);
/// Pause before that.
const PAUSE: Duration = Duration::from_millis(10);

/// Returns a time in which a request has to be answered; one of so many is given up early.
pub(crate) fn some_time(rng: &mut fastrand::Rng, short_one_in: u64) -> Duration {
    if rng.u64(..short_one_in) == 0 { TIME_SHORT_MAX.mul_f64(rng.f64()) } else { TIME_MAX }
}

/// The reasons for which requests had no answer, with the number of times.
#[derive(Debug, Default)]
pub(crate) struct Reasons(Mutex<BTreeMap<String, u64>>);

impl Reasons {
    fn note(&self, reason: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    pub(crate) fn take(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The identity of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Identity {
    /// The client's session; over HTTP a key with this number.
    Session(u64),
    /// An idempotency key with this number.
    Key(u64),
}

/// A client. `None` as an answer means that it is unknown whether the request was applied.
#[derive(Clone)]
pub(crate) enum Client {
    Native(BlockingClient),
    Http(Http),
}

impl Client {
    /// Connects by the native protocol.
    pub(crate) fn native(addresses: &[SocketAddr]) -> Result<Self, ConnectError> {
        BlockingClient::connect(addresses.iter().map(SocketAddr::to_string)).map(Self::Native)
    }

    /// Makes a client over HTTP, which begins with one of the nodes.
    pub(crate) fn http(addresses: &[SocketAddr], first: usize) -> Self {
        Self::Http(Http::new(addresses, first))
    }

    /// Asks a register.
    pub(crate) fn register(
        &mut self,
        key: &str,
        request: Request,
        identity: Identity,
        time: Duration,
        reasons: &Reasons,
    ) -> Option<Outcome> {
        let changed = match request {
            Request::Get => return self.get(key, identity, time, reasons),
            Request::Put(value) => kv::Request::Put { value: value.into() },
            Request::CompareAndSet { expected, value } => {
                kv::Request::CompareAndSet { expected: expected.map(Value::from), value: Some(value.into()) }
            }
        };
        let changed: kv::Changed = match self {
            Self::Native(client) => {
                let client = client.with_timeout(time);
                let key = key.to_owned();
                let answer = match identity {
                    Identity::Session(_) => client.call::<Kv>(&key, changed),
                    Identity::Key(number) => {
                        client.call_idempotent::<Kv>(&key, &number.to_be_bytes(), changed)
                    }
                };
                answer.map_err(|error| reasons.note(error.to_string())).ok()?
            }
            Self::Http(http) => {
                let (Identity::Session(number) | Identity::Key(number)) = identity;
                let path = format!("/v1/call/kv/{key}");
                let answer =
                    http.post(&path, &changed, &[("Idempotency-Key", &number.to_string())], time, reasons)?;
                serde_json::from_value(answer.ok()?).ok()?
            }
        };
        Some(Outcome {
            applied: changed.applied,
            previous: changed.previous.as_ref().and_then(Value::as_u64),
        })
    }

    fn get(&mut self, key: &str, identity: Identity, time: Duration, reasons: &Reasons) -> Option<Outcome> {
        // Both are linearizable.
        let is_explicit = matches!(identity, Identity::Key(_));
        let found = match self {
            Self::Native(client) => {
                let read = if is_explicit { Read::Linearizable } else { Read::Service };
                let client = client.with_timeout(time);
                let queried = client.query_with::<Kv>(&key.to_owned(), kv::Query::Get, read);
                queried.map_err(|error| reasons.note(error.to_string())).ok()?.answer
            }
            Self::Http(http) => {
                let path = format!("/v1/query/kv/{key}");
                let headers: &[_] = if is_explicit { &[("Stead-Read", "linearizable")] } else { &[] };
                let found = http.post(&path, &kv::Query::Get, headers, time, reasons)?.ok()?;
                Some(found).filter(|found| !found.is_null())
            }
        };
        Some(Outcome { applied: false, previous: found.as_ref().and_then(Value::as_u64) })
    }

    /// Asks an account.
    pub(crate) fn account(
        &mut self,
        account: u32,
        request: &Transfer,
        number: u64,
        time: Duration,
        reasons: &Reasons,
    ) -> Option<Result<u64, Refused>> {
        let key = format!("transfer-{number}");
        match self {
            Self::Native(client) => {
                let client = client.with_timeout(time);
                match client.call_idempotent::<Account>(&account, key.as_bytes(), request.clone()) {
                    Ok(balance) => Some(Ok(balance)),
                    Err(CallError::Process(refused)) => Some(Err(refused)),
                    Err(CallError::Raw(error)) => {
                        reasons.note(error.to_string());
                        None
                    }
                }
            }
            Self::Http(http) => {
                let path = format!("/v1/call/account/{account}");
                match http.post(&path, request, &[("Idempotency-Key", &key)], time, reasons)? {
                    Ok(balance) => balance.as_u64().map(Ok),
                    Err(error) => serde_json::from_value(error).ok().map(Err),
                }
            }
        }
    }
}

/// A client over HTTP.
#[derive(Clone)]
pub(crate) struct Http {
    agent: Agent,
    addresses: Vec<SocketAddr>,
    /// The node that is asked next.
    at: usize,
}

impl Http {
    pub(crate) fn new(addresses: &[SocketAddr], first: usize) -> Self {
        let agent = Agent::config_builder().http_status_as_error(false).build().into();
        Self { agent, addresses: addresses.to_vec(), at: first }
    }

    /// Returns what a node answers to one request.
    pub(crate) fn get(&self, path: &str) -> Result<Value, String> {
        let request = self.agent.get(format!("http://{}{path}", self.addresses[self.at]));
        let answer = request.config().timeout_global(Some(ATTEMPT_MAX)).build().call();
        read(answer).and_then(|(status, body)| if status == 200 { Ok(body) } else { Err(body.to_string()) })
    }

    /// Posts until there is an answer of the process, `Err` being its own error, or the time is over.
    pub(crate) fn post(
        &mut self,
        path: &str,
        body: &impl Serialize,
        headers: &[(&str, &str)],
        time: Duration,
        reasons: &Reasons,
    ) -> Option<Result<Value, Value>> {
        let body = serde_json::to_string(body).expect("plain data has JSON");
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let url = format!("http://{}{path}", self.addresses[self.at]);
            let mut request = self
                .agent
                .post(url)
                .content_type("application/json")
                .header("Stead-Deadline-Ms", left.as_millis().max(1).to_string());
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request.config().timeout_global(Some(left.min(ATTEMPT_MAX))).build();
            let reason = match read(request.send(&body)) {
                Ok((200, answer)) => return Some(Ok(answer)),
                Ok((409, mut problem)) if problem["type"] == "urn:stead:problem:handler-error" => {
                    return Some(Err(problem["error"].take()));
                }
                Ok((_, problem)) => problem["type"].as_str().unwrap_or("not a problem").to_owned(),
                Err(reason) => reason,
            };
            reasons.note(format!("HTTP: {reason}"));
            self.at = (self.at + 1) % self.addresses.len();
            thread::sleep(PAUSE.min(left));
        }
    }
}

fn read(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<(u16, Value), String> {
    let mut answer = answer.map_err(|error| error.to_string())?;
    let text = answer.body_mut().read_to_string().map_err(|error| error.to_string())?;
    let body = if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text) };
    Ok((answer.status().as_u16(), body.map_err(|error| error.to_string())?))
}
