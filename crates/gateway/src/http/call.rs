//! Calls and queries: each takes one JSON document for one process, and returns one.

use super::Gateway;
use super::measure::Operation;
use super::parts::{DeadlineHeader, NoParameters, OfProcess, ReadHeaders, Segments, TokenHeader, unreadable};
use super::problem::{Kind, Problem};
use super::refusal;
use super::token::Token;
use super::transcode::{self, TranscodeError};
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stead::{Colour, Epoch, Index, LogPoint, RawCall, RawError, RawReply, Read, Refusal};
use utoipa::IntoParams;

/// Identifies a call: repeating it with the same key and body returns the first answer, for 24 h by default.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Time that the client waits, in milliseconds; the server's own limit still holds.
pub const STEAD_DEADLINE_MS: HeaderName = HeaderName::from_static("stead-deadline-ms");
/// The position of the answering shard; a client sends the newest one, or that of each shard, with its next request.
pub const STEAD_TOKEN: HeaderName = HeaderName::from_static("stead-token");
/// The promise that the answer to a query has to keep: `linearizable`, `primary` or `stale`.
pub const STEAD_READ: HeaderName = HeaderName::from_static("stead-read");
/// The greatest age that a stale read allows, in milliseconds.
pub const STEAD_MAX_LAG_MS: HeaderName = HeaderName::from_static("stead-max-lag-ms");
/// The age of the state that a stale read saw, in milliseconds.
pub const STEAD_STALENESS_MS: HeaderName = HeaderName::from_static("stead-staleness-ms");
/// The principal of all clients while there is no authentication.
const PRINCIPAL: &str = "local";
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Calls a process.
///
/// The body is the service's request as JSON; the answer is its reply as JSON. An error that the service itself
/// returns is answered 409, with the error in the problem's member `error`.
#[utoipa::path(
    post,
    path = "/v1/call/{service}/{key}",
    tag = "processes",
    params(
        OfProcess,
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 256, description = "Identifies the call: repeating it with the same key and body returns the first answer, and it is applied once"),
        DeadlineHeader,
        TokenHeader,
    ),
    request_body(content = Value, content_type = "application/json", description = "The service's request"),
    responses(
        (status = 200, description = "The service's reply", body = Value, headers(("Stead-Token" = String, description = "The shard's position: send it with the next request"))),
        (status = "4XX", description = "The request was refused; 409 with `error`: the service's own error", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The request could not be handled; 504: it may have been applied", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn call(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
    path: Result<Segments<OfProcess>, Problem>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let started = Instant::now();
    let service = gateway.known_service(&path);
    let answered = gateway.call(path, &headers, body, started);
    gateway.measured(service, Operation::Call, started, answered).await
}

/// Queries a process.
///
/// The body is the service's query as JSON. A query changes nothing and sees committed state only. With `Stead-Read: stale` any
/// replica may answer, and the header `Stead-Staleness-Ms` of the answer says how old its state was.
#[utoipa::path(
    post,
    path = "/v1/query/{service}/{key}",
    tag = "processes",
    params(OfProcess, DeadlineHeader, TokenHeader, ReadHeaders),
    request_body(content = Value, content_type = "application/json", description = "The service's query"),
    responses(
        (status = 200, description = "The service's answer", body = Value, headers(
            ("Stead-Token" = String, description = "The shard's position: send it with the next request"),
            ("Stead-Staleness-Ms" = Option<u64>, description = "Of a stale read: the age of the state that it saw"),
        )),
        (status = "4XX", description = "The query was refused; 409 with `error`: the service's own error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn query(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
    path: Result<Segments<OfProcess>, Problem>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let started = Instant::now();
    let service = gateway.known_service(&path);
    let answered = async {
        let within = gateway.deadline(&headers)?;
        let body = gateway.body(&headers, body, within).await?;
        gateway.query(path, &headers, &body, started, within).await
    };
    gateway.measured(service, Operation::Query, started, answered).await
}

/// The parameters of a query by GET.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct GetQuery {
    /// The service's query as JSON. Default: `"get"`, which `kv` and similar services answer.
    #[param(example = "\"get\"")]
    query: Option<String>,
}

/// Queries a process by GET.
///
/// Same as POST, with the query as a parameter.
#[utoipa::path(
    get,
    path = "/v1/query/{service}/{key}",
    tag = "processes",
    params(OfProcess, GetQuery, DeadlineHeader, TokenHeader, ReadHeaders),
    responses(
        (status = 200, description = "The service's answer", body = Value, headers(
            ("Stead-Token" = String, description = "The shard's position: send it with the next request"),
            ("Stead-Staleness-Ms" = Option<u64>, description = "Of a stale read: the age of the state that it saw"),
        )),
        (status = "4XX", description = "The query was refused; 409 with `error`: the service's own error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn query_by_get(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Segments<OfProcess>, Problem>,
    parameters: Result<Query<GetQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let started = Instant::now();
    let service = gateway.known_service(&path);
    let answered = async {
        let within = gateway.deadline(&headers)?;
        let Query(GetQuery { query }) = parameters.map_err(unreadable)?;
        let body = query.as_deref().unwrap_or("\"get\"").as_bytes();
        gateway.query(path, &headers, body, started, within).await
    };
    gateway.measured(service, Operation::Query, started, answered).await
}

impl Gateway {
    /// The service in a path; empty if there is none of that name, because clients could invent any number of names.
    fn known_service(&self, path: &Result<Segments<OfProcess>, Problem>) -> String {
        let named = path.as_ref().map_or("", |Segments(OfProcess { service, .. })| service);
        self.node.topology().service_id(named).map_or_else(String::new, |_| named.to_owned())
    }

    /// Counts an answer and measures its time.
    async fn measured(
        &self,
        service: String,
        operation: Operation,
        started: Instant,
        answered: impl Future<Output = Result<Response, Problem>>,
    ) -> Response {
        let response = answered.await.unwrap_or_else(IntoResponse::into_response);
        self.measure.answered(service, operation, response.status(), started.elapsed());
        response
    }

    async fn call(
        &self,
        path: Result<Segments<OfProcess>, Problem>,
        headers: &HeaderMap,
        body: Body,
        started: Instant,
    ) -> Result<Response, Problem> {
        let Segments(OfProcess { service, key }) = path?;
        let within = self.deadline(headers)?;
        let seen = self.heed_tokens(headers, &service, &key)?;
        let body = self.body(headers, body, within).await?;
        let idempotency_key = single(headers, &IDEMPOTENCY_KEY)?.map(HeaderValue::as_bytes);
        if idempotency_key.is_some_and(<[u8]>::is_empty) {
            return Err(Problem::new(Kind::BadRequest, "the Idempotency-Key is empty"));
        }
        let payload = match idempotency_key {
            Some(_) => transcode::json_to_canonical_msgpack(&body),
            None => transcode::json_to_msgpack(&body),
        }
        .map_err(refused_json)?;
        let timeout = within.saturating_sub(started.elapsed());
        let call = RawCall {
            service: &service,
            key: &key,
            payload,
            principal: PRINCIPAL,
            idempotency_key,
            seen: seen.entry,
            timeout,
        };
        let asked = in_time(timeout, self.client.call_raw(call)).await;
        self.answer(&service, &key, asked, seen.colour)
    }

    async fn query(
        &self,
        path: Result<Segments<OfProcess>, Problem>,
        headers: &HeaderMap,
        body: &[u8],
        started: Instant,
        within: Duration,
    ) -> Result<Response, Problem> {
        let Segments(OfProcess { service, key }) = path?;
        let seen = self.heed_tokens(headers, &service, &key)?;
        let payload = transcode::json_to_msgpack(body).map_err(refused_json)?;
        let timeout = within.saturating_sub(started.elapsed());
        let call = RawCall {
            service: &service,
            key: &key,
            payload,
            principal: PRINCIPAL,
            idempotency_key: None,
            seen: seen.entry,
            timeout,
        };
        let read = read(headers)?;
        let asked = in_time(timeout, self.client.query_raw_with(call, read)).await;
        self.answer(&service, &key, asked, seen.colour)
    }

    /// Returns the timeout of this request.
    pub(super) fn deadline(&self, headers: &HeaderMap) -> Result<Duration, Problem> {
        let longest = self.limits.request_timeout;
        Ok(milliseconds(headers, &STEAD_DEADLINE_MS, "Stead-Deadline-Ms")?
            .map_or(longest, |ms| ms.min(longest)))
    }

    /// Clients are channels: the shard that handles this request must have reached the checkpoint that the client has seen, and
    /// reports if it has lost what the client has seen of it.
    fn heed_tokens(&self, headers: &HeaderMap, service: &str, key: &str) -> Result<Seen, Problem> {
        let mut seen = Seen::default();
        let Some(header) = single(headers, &STEAD_TOKEN)? else { return Ok(seen) };
        let topology = self.node.topology();
        let shard = topology.service_id(service).map(|service| topology.shard_of(service, key));
        for text in header.to_str().unwrap_or_default().split(',').map(str::trim) {
            let token = self.tokens.verify(text).map_err(|error| {
                Problem::new(Kind::BadToken, format!("invalid Stead-Token {text:?}: {error}"))
            })?;
            if token.incarnation != self.incarnation {
                return Err(Problem::new(
                    Kind::BadToken,
                    format!(
                        "the Stead-Token is of incarnation {}, this is {}",
                        token.incarnation, self.incarnation
                    ),
                ));
            }
            seen.colour = Colour(token.colour).max(seen.colour);
            // Index 0 is of an answer that included nothing.
            if shard.is_some_and(|shard| shard.0 == token.shard) && token.index > 0 {
                let entry = LogPoint { epoch: Epoch(token.epoch), index: Index(token.index) };
                seen.entry = Some(entry).max(seen.entry);
            }
        }
        self.client.saw(seen.colour);
        Ok(seen)
    }

    pub(super) async fn body(
        &self,
        headers: &HeaderMap,
        body: Body,
        within: Duration,
    ) -> Result<Bytes, Problem> {
        let max = self.limits.body_bytes_max;
        let too_large = || Problem::new(Kind::BodyTooLarge, format!("the body is over {max} bytes"));
        let announced = headers.get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|len| len > max as u64) {
            return Err(too_large());
        }
        match tokio::time::timeout(within, Limited::new(body, max).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => {
                Err(Problem::new(Kind::BadRequest, format!("the body could not be read: {error}")))
            }
            Err(_) => {
                let detail = format!(
                    "the body did not arrive within {} ms; the request was not applied",
                    within.as_millis()
                );
                Err(Problem::new(Kind::BodyTooSlow, detail))
            }
        }
    }

    /// Returns the token of a shard's position.
    fn token(&self, shard: u32, entry: LogPoint, colour: Colour) -> HeaderValue {
        let token = self.tokens.sign(&Token {
            incarnation: self.incarnation,
            shard,
            epoch: entry.epoch.0,
            index: entry.index.0,
            colour: colour.0,
        });
        HeaderValue::from_maybe_shared(Bytes::from(token)).expect("a token is digits, letters and dots")
    }

    /// Returns the answer to a client that had seen a colour.
    fn answer(
        &self,
        service: &str,
        key: &str,
        asked: Result<RawReply, RawError>,
        colour: Colour,
    ) -> Result<Response, Problem> {
        let raw = match asked {
            Ok(raw) => raw,
            Err(RawError::Refused(Refusal::Lost(lost))) => {
                // With it the client goes on: the loss is reported to it.
                let token = self.token(lost.shard.0, lost.now, colour);
                let mut response = refusal::problem(RawError::Refused(Refusal::Lost(lost))).into_response();
                response.headers_mut().insert(STEAD_TOKEN, token);
                return Ok(response);
            }
            Err(error) => return Err(refusal::problem(error)),
        };
        let token = self.token(raw.shard.0, LogPoint { epoch: raw.epoch, index: raw.index }, raw.colour);
        let mut response = match raw.reply {
            Ok(reply) => {
                let mut response =
                    Response::new(Body::from(transcode::msgpack_to_json(&reply).map_err(unwritable)?));
                response.headers_mut().insert(CONTENT_TYPE, JSON);
                response
            }
            Err(error) => {
                let error = transcode::msgpack_to_json(&error).map_err(unwritable)?;
                let detail =
                    format!("{service}/{key} answered with the error {}", String::from_utf8_lossy(&error));
                let error = serde_json::from_slice(&error).unwrap_or_default();
                Problem::new(Kind::HandlerError, detail).with_error(error).into_response()
            }
        };
        response.headers_mut().insert(STEAD_TOKEN, token);
        if let Some(staleness) = raw.staleness {
            let ms = u64::try_from(staleness.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
            response.headers_mut().insert(STEAD_STALENESS_MS, ms.into());
        }
        Ok(response)
    }
}

/// Returns the read that a query asks for.
fn read(headers: &HeaderMap) -> Result<Read, Problem> {
    let max_lag = milliseconds(headers, &STEAD_MAX_LAG_MS, "Stead-Max-Lag-Ms")?.map(Into::into);
    let named = single(headers, &STEAD_READ)?.map(HeaderValue::as_bytes);
    let read = match named {
        None => Read::Service,
        Some(b"linearizable") => Read::Linearizable,
        Some(b"primary") => Read::Primary,
        Some(b"stale") => return Ok(Read::Stale { max_lag }),
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            let detail = format!("Stead-Read is {other:?}; it must be linearizable, primary or stale");
            return Err(Problem::new(Kind::BadRequest, detail));
        }
    };
    if max_lag.is_some() {
        let detail = "Stead-Max-Lag-Ms bounds the age of a stale read".to_owned();
        return Err(Problem::new(Kind::BoundWithoutStale, detail));
    }
    Ok(read)
}

/// Returns the time in a header.
fn milliseconds(headers: &HeaderMap, header: &HeaderName, name: &str) -> Result<Option<Duration>, Problem> {
    let Some(value) = single(headers, header)? else { return Ok(None) };
    let ms = value.to_str().ok().and_then(|ms| ms.parse::<u64>().ok()).filter(|ms| *ms > 0);
    let ms = ms.ok_or_else(|| {
        let detail = format!("{name} is {value:?}; it must be a whole number of milliseconds, 1 or more");
        Problem::new(Kind::BadRequest, detail)
    })?;
    Ok(Some(Duration::from_millis(ms)))
}

/// Returns a header that may appear only once: otherwise one of two would be ignored silently.
pub(super) fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, Problem> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => {
            Err(Problem::new(Kind::BadRequest, format!("the header {name} appears twice; send it once")))
        }
    }
}

/// What a client has seen, as its tokens show it.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// The highest colour.
    colour: Colour,
    /// The newest entry of the shard that is called.
    entry: Option<LogPoint>,
}

/// Waits for an answer, up to the timeout: a shard that a handler holds cannot report in time that it is late.
async fn in_time<T>(
    timeout: Duration,
    answer: impl Future<Output = Result<T, RawError>>,
) -> Result<T, RawError> {
    let answer = tokio::time::timeout(timeout, answer).await;
    answer.unwrap_or(Err(RawError::TimedOut { after: timeout }))
}

/// Waits for an answer as [`in_time`] does, and returns the problem if there is none.
pub(super) async fn within_time<T>(
    timeout: Duration,
    answer: impl Future<Output = Result<T, RawError>>,
) -> Result<T, Problem> {
    in_time(timeout, answer).await.map_err(refusal::problem)
}

fn refused_json(error: TranscodeError) -> Problem {
    Problem::new(Kind::BadJson, error.to_string())
}

fn unwritable(error: TranscodeError) -> Problem {
    Problem::new(Kind::UnwritableAnswer, error.to_string())
}
