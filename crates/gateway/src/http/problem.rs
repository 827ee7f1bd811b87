//! Errors as problem documents (RFC 9457): one table of all kinds, each with a hint on what to do next.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stead::Lost;
use utoipa::ToSchema;

/// A kind of problem. Its name is the end of the problem's `type`, `urn:stead:problem:NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is no service of this name.
    UnknownService,
    /// There is no route of this path.
    UnknownRoute,
    /// The route exists, but not with this method.
    Method,
    /// The requested host is not this server.
    WrongHost,
    /// A web page of another site requests a change.
    CrossSite,
    /// The body's type is not JSON.
    MediaType,
    /// A path, header or parameter is invalid.
    BadRequest,
    /// The body is not JSON.
    BadJson,
    /// The service cannot read the request.
    UnreadableRequest,
    /// The service takes the request from other processes only.
    InternalRequest,
    /// The head is over the limit.
    HeadTooLarge,
    /// The body is over the limit.
    BodyTooLarge,
    /// The body did not arrive in time.
    BodyTooSlow,
    /// The call changes more than a log entry can hold.
    EntryTooLarge,
    /// The request took too long.
    TimedOut,
    /// There are too many connections.
    TooManyConnections,
    /// The token is not of this incarnation, or was changed.
    BadToken,
    /// Entries that the client's token refers to are lost.
    Lost,
    /// The service answered with an error of its own.
    HandlerError,
    /// The idempotency key was used with another request.
    IdempotencyConflict,
    /// A read that is not stale has a bound for its age.
    BoundWithoutStale,
    /// The handler panicked.
    HandlerPanicked,
    /// The stored state cannot be read.
    UnreadableState,
    /// The answer cannot be written as JSON.
    UnwritableAnswer,
    /// The query ran for longer than a handler may.
    QueryGivenUp,
    /// The service has the maximum number of queries that were given up and still run.
    QueriesStuck,
    /// The shard has too much to do.
    Overloaded,
    /// The shard does not serve yet, or no longer.
    NotReady,
    /// The replica's state is older than a stale read allows.
    TooStale,
    /// The disk is full.
    Full,
    /// The node had a fatal error.
    NodeFailed,
    /// There is no checkpoint of this number.
    UnknownCheckpoint,
    /// The checkpoint could not be taken, read or deleted.
    CheckpointFailed,
    /// The checkpoint is the newest one.
    CheckpointNeeded,
    /// The checkpoint is being read, and cannot be deleted now.
    CheckpointInUse,
    /// There is no shard of this number.
    UnknownShard,
    /// The shard is not on this node.
    ShardNotHere,
    /// The node is alone.
    NotInCluster,
    /// The control plane of the cluster refused an operator's request, or did not answer in time.
    ClusterRefused,
    /// The log could not be read.
    LogUnreadable,
    /// The position of a page is from before the node's last start.
    StalePage,
    /// The process does not exist.
    UnknownProcess,
    /// There is no dead letter of this index.
    UnknownDeadLetter,
    /// The dead letter cannot be retried.
    DeadLetterFinal,
    /// The dead letter was retried and failed again.
    DeadLetterFailed,
}

impl Kind {
    /// Returns the name, status, title and hint.
    const fn describe(self) -> (&'static str, StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::UnknownService => (
                "unknown-service",
                S::NOT_FOUND,
                "No service of this name",
                "GET /v1/services lists the services of this node",
            ),
            Self::UnknownRoute => (
                "unknown-route",
                S::NOT_FOUND,
                "This path does not exist",
                "GET /openapi.json lists the paths",
            ),
            Self::Method => (
                "method-not-allowed",
                S::METHOD_NOT_ALLOWED,
                "The method does not fit the path",
                "the Allow header and GET /openapi.json list the methods",
            ),
            Self::WrongHost => (
                "wrong-host",
                S::MISDIRECTED_REQUEST,
                "This server has another name",
                "use the host localhost, 127.0.0.1 or [::1]; a proxy in front of this server must set the Host to one of them",
            ),
            Self::CrossSite => (
                "cross-site",
                S::FORBIDDEN,
                "Web pages of other sites may not change anything here",
                "send the request from a program; a proxy in front of this server must check access itself and drop Origin and Sec-Fetch-Site",
            ),
            Self::MediaType => (
                "unsupported-media-type",
                S::UNSUPPORTED_MEDIA_TYPE,
                "The body's type is not JSON",
                "send the header Content-Type: application/json",
            ),
            Self::BadRequest => (
                "bad-request",
                S::BAD_REQUEST,
                "The request is invalid",
                "correct the part that the detail names",
            ),
            Self::BadJson => (
                "bad-json",
                S::BAD_REQUEST,
                "The body is not valid JSON, or not accepted",
                "send one JSON document of at most 128 levels, with no field twice and integers of at most 64 bits",
            ),
            Self::UnreadableRequest => (
                "unreadable-request",
                S::BAD_REQUEST,
                "The request does not match the service's type",
                "send a request of the service's type; the detail names the difference",
            ),
            Self::InternalRequest => (
                "internal-request",
                S::FORBIDDEN,
                "The request is internal to the system",
                "only processes, timers and tasks send it; send one of the requests that the service offers to clients",
            ),
            Self::HeadTooLarge => (
                "head-too-large",
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "The request's head is over the limit",
                "send fewer or shorter headers and a shorter path",
            ),
            Self::BodyTooLarge => (
                "body-too-large",
                S::PAYLOAD_TOO_LARGE,
                "The body is over the limit",
                "split the request, or start the server with a higher limit",
            ),
            Self::BodyTooSlow => (
                "body-too-slow",
                S::REQUEST_TIMEOUT,
                "The body did not arrive in time",
                "nothing was changed; send the whole body at once, or allow more time",
            ),
            Self::EntryTooLarge => (
                "entry-too-large",
                S::PAYLOAD_TOO_LARGE,
                "The call changes more than a log entry can hold",
                "spread it over several calls, or raise log.segment_bytes",
            ),
            Self::TimedOut => (
                "timed-out",
                S::GATEWAY_TIMEOUT,
                "No answer came in time",
                "the request may or may not have been applied: repeat it with the same Idempotency-Key to find out",
            ),
            Self::TooManyConnections => (
                "too-many-connections",
                S::SERVICE_UNAVAILABLE,
                "The server has reached its limit of connections",
                "reuse connections, or retry later",
            ),
            Self::BadToken => (
                "bad-token",
                S::CONFLICT,
                "The Stead-Token is not of this server's incarnation",
                "the system was restored, or the token changed: read the data again without the token",
            ),
            Self::Lost => (
                "lost",
                S::CONFLICT,
                "What the Stead-Token refers to is lost",
                "the request was not handled: read again what it builds on, repeat what is missing, and then repeat it with the \
                 Stead-Token of this answer",
            ),
            Self::HandlerError => (
                "handler-error",
                S::CONFLICT,
                "The service answered with an error",
                "the member `error` is the service's own; nothing was changed",
            ),
            Self::IdempotencyConflict => (
                "idempotency-conflict",
                S::UNPROCESSABLE_ENTITY,
                "The Idempotency-Key was used with another body",
                "use a new key for a new request",
            ),
            Self::BoundWithoutStale => (
                "bound-without-stale",
                S::UNPROCESSABLE_ENTITY,
                "Only a stale read has a greatest age",
                "send Stead-Read: stale, or no Stead-Max-Lag-Ms",
            ),
            Self::HandlerPanicked => (
                "handler-panicked",
                S::INTERNAL_SERVER_ERROR,
                "The service's handler panicked",
                "nothing was changed; correct the service's code",
            ),
            Self::UnreadableState => (
                "unreadable-state",
                S::INTERNAL_SERVER_ERROR,
                "The stored state of the process is unreadable",
                "run a version of the service that reads or migrates this state",
            ),
            Self::UnwritableAnswer => (
                "unwritable-answer",
                S::INTERNAL_SERVER_ERROR,
                "The answer cannot be written as JSON",
                "the request was applied; call this service from Rust, or change its reply type",
            ),
            Self::QueryGivenUp => (
                "query-given-up",
                S::GATEWAY_TIMEOUT,
                "The query ran for too long",
                "a query changes nothing: ask for less at once, or raise handler_timeout",
            ),
            Self::QueriesStuck => (
                "queries-stuck",
                S::SERVICE_UNAVAILABLE,
                "Queries of the service do not end",
                "correct the service's code and restart the server; GET /v1/status lists the queries",
            ),
            Self::Overloaded => (
                "overloaded",
                S::SERVICE_UNAVAILABLE,
                "The shard is overloaded",
                "retry after the time in Retry-After",
            ),
            Self::NotReady => (
                "not-ready",
                S::SERVICE_UNAVAILABLE,
                "The node is not serving",
                "retry; GET /readyz reports when it serves again",
            ),
            Self::TooStale => (
                "too-stale",
                S::SERVICE_UNAVAILABLE,
                "The state of this replica is older than the read allows",
                "ask another node, allow a greater age by Stead-Max-Lag-Ms up to the service's max_lag, or read without Stead-Read: stale",
            ),
            Self::Full => (
                "disk-full",
                S::INSUFFICIENT_STORAGE,
                "The disk of the data directory is full",
                "free disk space: writes then resume; queries are answered meanwhile",
            ),
            Self::NodeFailed => (
                "node-failed",
                S::SERVICE_UNAVAILABLE,
                "The node had a fatal error",
                "the server's standard error names the cause; it recovers on its next start",
            ),
            Self::UnknownCheckpoint => (
                "unknown-checkpoint",
                S::NOT_FOUND,
                "No checkpoint of this number",
                "GET /v1/checkpoints lists the complete ones",
            ),
            Self::CheckpointFailed => (
                "checkpoint-failed",
                S::INTERNAL_SERVER_ERROR,
                "The checkpoint operation failed",
                "the node keeps running; correct the cause in the detail and try again",
            ),
            Self::CheckpointNeeded => (
                "checkpoint-needed",
                S::CONFLICT,
                "The newest checkpoint is needed to recover the node",
                "take another checkpoint first: POST /v1/checkpoints",
            ),
            Self::CheckpointInUse => (
                "checkpoint-in-use",
                S::CONFLICT,
                "The checkpoint is being read",
                "try again once its verification, its check or its copy has ended",
            ),
            Self::UnknownShard => {
                ("unknown-shard", S::NOT_FOUND, "No shard of this number", "GET /v1/status lists the shards")
            }
            Self::NotInCluster => (
                "not-in-cluster",
                S::CONFLICT,
                "The node is not part of a cluster",
                "start it with --listen-cluster, or ask a node of the cluster",
            ),
            Self::ClusterRefused => (
                "cluster-refused",
                S::CONFLICT,
                "The cluster has not done it",
                "look at the cluster, and ask again",
            ),
            Self::ShardNotHere => (
                "shard-not-here",
                S::MISDIRECTED_REQUEST,
                "The shard is not on this node",
                "nothing was changed; GET /v1/status lists the shards that are not here: send the request to their node",
            ),
            Self::StalePage => (
                "stale-page",
                S::CONFLICT,
                "The position of the page no longer exists",
                "begin again with the first page",
            ),
            Self::UnknownProcess => (
                "unknown-process",
                S::NOT_FOUND,
                "No such process",
                "GET /v1/processes/SERVICE lists those of a service",
            ),
            Self::UnknownDeadLetter => (
                "unknown-dead-letter",
                S::NOT_FOUND,
                "No dead letter of this index",
                "GET /v1/dead-letters/SERVICE lists those of a service",
            ),
            Self::DeadLetterFinal => (
                "dead-letter-final",
                S::CONFLICT,
                "The dead letter cannot be retried",
                "delete it: DELETE /v1/dead-letters/SHARD/INDEX",
            ),
            Self::DeadLetterFailed => (
                "dead-letter-failed",
                S::CONFLICT,
                "The dead letter failed again",
                "correct the cause in the detail and retry it, or delete it",
            ),
            Self::LogUnreadable => (
                "log-unreadable",
                S::INTERNAL_SERVER_ERROR,
                "The log cannot be read",
                "the detail names the file and the reason",
            ),
        }
    }

    /// Returns the HTTP status of this kind.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        self.describe().1
    }
}

/// A problem document (RFC 9457).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The kind of problem: `urn:stead:problem:NAME`.
    #[serde(rename = "type")]
    #[schema(example = "urn:stead:problem:unknown-service")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The event, and the affected object.
    pub detail: String,
    /// The next step for the client.
    pub hint: String,
    /// The service's own error, if it answered with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value, required = false)]
    pub error: Option<Value>,
    /// The time after which to retry, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// What was lost of that which answers to the client included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<LostEntries>,
}

/// Entries that a failover of an asynchronous service, or an operator's, went on without, and that answers to a client included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LostEntries {
    /// The service.
    pub service: String,
    /// The shard.
    pub shard: u32,
    /// The epoch of the entries.
    pub epoch: u64,
    /// The last entry of the epoch that survived; 0 if none did.
    pub kept: u64,
    /// The newest entry that an answer to the client included.
    pub seen: u64,
}

impl LostEntries {
    pub(super) fn of(lost: &Lost) -> Self {
        let Lost { shard, service, seen, kept, .. } = lost;
        let (service, shard) = (service.clone(), shard.0);
        Self { service, shard, epoch: seen.epoch.0, kept: kept.0, seen: seen.index.0 }
    }
}

impl Problem {
    /// Creates a problem of a kind, with what happened and to what.
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let (name, status, title, hint) = kind.describe();
        Self {
            kind: format!("urn:stead:problem:{name}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            hint: hint.to_owned(),
            error: None,
            retry_after_ms: None,
            lost: None,
        }
    }

    /// Adds the service's own error.
    #[must_use]
    pub fn with_error(mut self, error: Value) -> Self {
        self.error = Some(error);
        self
    }

    /// Adds a time after which to retry.
    #[must_use]
    pub fn retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// Returns a whole HTTP/1.1 answer with this document, after which the connection is closed.
    pub(super) fn to_last_answer(&self) -> Vec<u8> {
        let status = StatusCode::from_u16(self.status).expect("the status came from Kind::describe");
        let (body, reason) = (self.to_json(), status.canonical_reason().unwrap_or_default());
        let retry = self
            .retry_after_ms
            .map_or_else(String::new, |ms| format!("retry-after: {}\r\n", retry_after_seconds(ms)));
        let mut answer = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n{retry}connection: \
             close\r\n\r\n",
            self.status,
            body.len()
        )
        .into_bytes();
        answer.extend_from_slice(&body);
        answer
    }

    /// Returns the bytes of the document.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, numbers and a JSON value: always JSON")
    }
}

/// Rounds up to whole seconds, the unit of the header.
fn retry_after_seconds(ms: u64) -> u64 {
    ms.div_ceil(1000).max(1)
}

/// The media type of a problem document.
pub const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() =
            StatusCode::from_u16(self.status).expect("the status came from Kind::describe");
        response.headers_mut().insert(CONTENT_TYPE, PROBLEM_JSON);
        if let Some(ms) = self.retry_after_ms {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_after_seconds(ms)));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_its_members_and_media_type() {
        let problem = Problem::new(Kind::Overloaded, "shard 3 has 100 messages").retry_after_ms(1500);
        let json: Value = serde_json::from_slice(&problem.to_json()).unwrap();
        assert_eq!(json["type"], "urn:stead:problem:overloaded");
        assert_eq!(json["status"], 503);
        assert_eq!(json["detail"], "shard 3 has 100 messages");
        assert!(json.get("error").is_none());
        let response = problem.into_response();
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.status(), Kind::Overloaded.status());
    }
}
