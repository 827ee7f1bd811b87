//! The processes of a service, for an operator: which there are, what one holds and did, and how it is deleted.

use super::Gateway;
use super::admin::Segments;
use super::problem::{Kind, Problem};
use super::refusal;
use crate::Node;
use crate::offline::OfflineError;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

/// Most processes or entries of a page.
const LIMIT_MAX: usize = 1000;
/// Processes or entries of a page, unless another number is asked for.
const LIMIT: usize = 100;

/// Which processes.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichProcesses {
    /// What their keys begin with; all of the service without it.
    prefix: Option<String>,
    /// The member `next` of the page before; the first page without it.
    #[param(pattern = r"^[0-9]{1,9}\.[0-9]{1,18}$")]
    after: Option<String>,
    /// How many at most, 1 to 1000. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Which entries of a process's log.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichEntries {
    /// The index to begin with: the member `next` of the page before, or the oldest entry that is kept without it.
    from: Option<u64>,
    /// How many at most, 1 to 1000. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// What was deleted.
#[derive(Serialize, ToSchema)]
pub(super) struct Deleted {
    /// The service of the process.
    service: String,
    /// Its key.
    key: String,
    /// How many records it held: its state, cells, timers and tasks.
    records: u64,
}

/// The processes of a service, in pages.
///
/// They are not ordered by key. A page may be short or empty although there is a next one. Processes created or deleted meanwhile
/// may be missing or appear twice.
#[utoipa::path(
    get,
    path = "/v1/processes/{service}",
    tag = "processes",
    params(("service" = String, Path, description = "The service"), WhichProcesses),
    responses(
        (status = 200, description = "Some processes, and where the next page begins", body = crate::ProcessPage),
        (status = "4XX", description = "The service does not exist, or a parameter is invalid", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "A handler holds a shard, or the node is not serving", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn processes(
    State(gateway): State<Arc<Gateway>>,
    Segments(service): Segments<String>,
    which: Result<Query<WhichProcesses>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(WhichProcesses { prefix, after, limit }) = which.map_err(unreadable)?;
    let limit = limit_of(limit)?;
    let after = after.map(|after| after.parse()).transpose();
    let after = after.map_err(|error: crate::NoCursor| Problem::new(Kind::BadRequest, error.to_string()))?;
    let page = move |node: &Node| {
        let page = node.processes(&service, prefix.as_deref().unwrap_or_default(), after, limit);
        page.map_err(refusal::problem)
    };
    gateway.in_background(page).await
}

/// A process: its shard, and what it holds.
///
/// Every key has a shard; `exists` reports whether the process exists.
#[utoipa::path(
    get,
    path = "/v1/processes/{service}/{key}",
    tag = "processes",
    params(
        ("service" = String, Path, description = "The service"),
        ("key" = String, Path, min_length = 1, max_length = 512, description = "The key of the process: 1 to 512 bytes, percent-encoded"),
    ),
    responses(
        (status = 200, description = "The process", body = crate::ProcessDetail),
        (status = "4XX", description = "The service does not exist, or the key is invalid", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "A handler holds a shard, or the node is not serving", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn process(
    State(gateway): State<Arc<Gateway>>,
    Segments((service, key)): Segments<(String, String)>,
) -> Result<Response, Problem> {
    gateway.in_background(move |node| node.process(&service, &key).map_err(refusal::problem)).await
}

/// Deletes a process: its state, cells, timers and tasks.
///
/// Replies that are kept for retries stay. A message that comes later begins the process again.
#[utoipa::path(
    delete,
    path = "/v1/processes/{service}/{key}",
    tag = "processes",
    params(
        ("service" = String, Path, description = "The service"),
        ("key" = String, Path, min_length = 1, max_length = 512, description = "The key of the process: 1 to 512 bytes, percent-encoded"),
    ),
    responses(
        (status = 200, description = "It is deleted", body = Deleted),
        (status = "4XX", description = "The service or process does not exist, or the key is invalid", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "It could not be deleted, or not all of it: repeat it", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete_process(
    State(gateway): State<Arc<Gateway>>,
    Segments((service, key)): Segments<(String, String)>,
) -> Result<Response, Problem> {
    let delete = move |node: &Node| match node.delete_process(&service, &key).map_err(refusal::problem)? {
        0 => Err(Problem::new(Kind::UnknownProcess, format!("{service}/{key} holds nothing"))),
        records => Ok(Deleted { service, key, records }),
    };
    gateway.in_background(delete).await
}

/// The log entries of one process, readable.
#[utoipa::path(
    get,
    path = "/v1/processes/{service}/{key}/log",
    tag = "processes",
    params(
        ("service" = String, Path, description = "The service"),
        ("key" = String, Path, min_length = 1, max_length = 512, description = "The key of the process: 1 to 512 bytes, percent-encoded"),
        WhichEntries,
    ),
    responses(
        (status = 200, description = "Entries, the oldest first, and where to go on", body = crate::LogPage),
        (status = "4XX", description = "The service does not exist, or a parameter is invalid", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The log cannot be read, or the node is not serving", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn process_log(
    State(gateway): State<Arc<Gateway>>,
    Segments((service, key)): Segments<(String, String)>,
    which: Result<Query<WhichEntries>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(WhichEntries { from, limit }) = which.map_err(unreadable)?;
    let limit = limit_of(limit)?;
    let page = move |node: &Node| {
        node.process_log(&service, &key, from.unwrap_or(0), limit).map_err(|error| match error {
            OfflineError::Raw(error) => refusal::problem(error),
            error => Problem::new(Kind::LogUnreadable, error.to_string()),
        })
    };
    gateway.in_background(page).await
}

pub(super) fn limit_of(limit: Option<usize>) -> Result<usize, Problem> {
    let limit = limit.unwrap_or(LIMIT);
    if (1..=LIMIT_MAX).contains(&limit) {
        Ok(limit)
    } else {
        Err(Problem::new(Kind::BadRequest, format!("limit is {limit}; it is 1 to {LIMIT_MAX}")))
    }
}

pub(super) fn unreadable(rejection: QueryRejection) -> Problem {
    Problem::new(Kind::BadRequest, rejection.body_text())
}
