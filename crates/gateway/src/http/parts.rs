//! Extractors that several routes share: segments of paths, headers and pages.

use super::problem::{Kind, Problem};
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::str::FromStr;
use stead::NoCursor;
use utoipa::IntoParams;

/// The segments of a path; a problem if they cannot be read.
pub(super) struct Segments<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(segments)| Self(segments))
            .map_err(|rejection| Problem::new(Kind::BadRequest, rejection.body_text()))
    }
}

/// A service.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OfService {
    /// The service.
    pub(super) service: String,
}

/// A process.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OfProcess {
    /// The service, `kv` for example.
    pub(super) service: String,
    /// The key of the process: 1 to 512 bytes, percent-encoded.
    #[param(min_length = 1, max_length = 512)]
    pub(super) key: String,
}

/// A shard.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OfShard {
    /// The shard's number, as in the status.
    pub(super) shard: u32,
}

/// A node of a cluster.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OfNode {
    /// The node's number.
    pub(super) node: u32,
}

/// A dead letter.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OfDeadLetter {
    /// The shard that holds it.
    pub(super) shard: u32,
    /// Its index in that shard.
    pub(super) index: u64,
}

/// A checkpoint.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OfCheckpoint {
    /// The checkpoint's number.
    pub(super) number: u64,
}

/// The header [`STEAD_DEADLINE_MS`](super::STEAD_DEADLINE_MS), for the description.
#[expect(dead_code, reason = "only its description is used: Gateway::deadline reads the header")]
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(super) struct DeadlineHeader {
    /// Time that the client waits, in milliseconds.
    #[param(rename = "Stead-Deadline-Ms", minimum = 1)]
    deadline: Option<u64>,
}

/// The headers [`STEAD_READ`](super::STEAD_READ) and [`STEAD_MAX_LAG_MS`](super::STEAD_MAX_LAG_MS), for the description.
#[expect(dead_code, reason = "only its description is used: Gateway::query reads the headers")]
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(super) struct ReadHeaders {
    /// The promise that the answer has to keep: `linearizable`, `primary` (under the primary's lease) or `stale` (at any replica).
    /// Default: that of the service.
    #[param(rename = "Stead-Read", pattern = r"^(linearizable|primary|stale)$")]
    read: Option<String>,
    /// With `stale`, the greatest age that is allowed, in milliseconds; the service may allow less.
    #[param(rename = "Stead-Max-Lag-Ms", minimum = 1)]
    max_lag: Option<u64>,
}

/// The header [`STEAD_TOKEN`](super::STEAD_TOKEN), for the description.
#[expect(dead_code, reason = "only its description is used: Gateway::heed_tokens reads the header")]
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(super) struct TokenHeader {
    /// The token of the newest answer that the client has, or the newest token of each shard, separated by commas: a request to a
    /// shard that has lost what the client has seen of it is answered 409, `lost`.
    #[param(rename = "Stead-Token")]
    token: Option<String>,
}

/// Refuses parameters of routes that have none, so that a misspelt request is not answered as if they had an effect.
pub(super) struct NoParameters;

impl<S: Send + Sync> FromRequestParts<S> for NoParameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match parts.uri.query() {
            None | Some("") => Ok(Self),
            Some(query) => {
                let query: String = query.chars().take(64).collect();
                let detail = format!("the request takes no parameters, but has {query:?}");
                Err(Problem::new(Kind::BadRequest, detail))
            }
        }
    }
}

/// Maximum number of items of a page.
const LIMIT_MAX: usize = 1000;
/// Default number of items of a page.
const LIMIT: usize = 100;

/// Returns the number of items of a page, as requested or by default.
pub(super) fn limit_of(limit: Option<usize>) -> Result<usize, Problem> {
    let limit = limit.unwrap_or(LIMIT);
    if (1..=LIMIT_MAX).contains(&limit) {
        Ok(limit)
    } else {
        Err(Problem::new(Kind::BadRequest, format!("limit is {limit}; it must be 1 to {LIMIT_MAX}")))
    }
}

/// Returns the position after which a page begins.
pub(super) fn cursor_of<C: FromStr<Err = NoCursor>>(after: Option<String>) -> Result<Option<C>, Problem> {
    let after = after.map(|after| after.parse()).transpose();
    after.map_err(|error: NoCursor| Problem::new(Kind::BadRequest, error.to_string()))
}

/// Returns the problem for parameters that cannot be read.
pub(super) fn unreadable(rejection: QueryRejection) -> Problem {
    Problem::new(Kind::BadRequest, rejection.body_text())
}
