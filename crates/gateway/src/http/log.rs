//! The entries of a shard's log or of one process, for people.

use super::Gateway;
use super::answers;
use super::parts::{OfProcess, OfShard, Segments, limit_of, unreadable};
use super::problem::Problem;
use super::refusal;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;
use std::sync::Arc;
use stead::Node;
use utoipa::IntoParams;

/// Selects entries of a log.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct LogRange {
    /// The first index. Default: that of the oldest entry in the log.
    from: Option<u64>,
    /// Maximum number of entries, 1 to 1000; an answer ends earlier after 1 MiB of them. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Returns the entries of a shard's log in readable form.
///
/// To continue, set `from` to the last index plus 1, until an answer has no entries.
#[utoipa::path(
    get,
    path = "/v1/log/{shard}",
    tag = "node",
    params(OfShard, LogRange),
    responses((status = 200, description = "The entries, the oldest first", body = [Object]))
)]
pub(super) async fn log(
    State(gateway): State<Arc<Gateway>>,
    Segments(OfShard { shard }): Segments<OfShard>,
    range: Result<Query<LogRange>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(LogRange { from, limit }) = range.map_err(unreadable)?;
    let limit = limit_of(limit)?;
    let page = move |node: &Node| {
        let page = node.log_page(shard, from.unwrap_or(0), limit).map_err(refusal::of_log)?;
        Ok(page.entries)
    };
    gateway.in_background(page).await
}

/// Returns the log entries of one process in readable form.
#[utoipa::path(
    get,
    path = "/v1/processes/{service}/{key}/log",
    tag = "processes",
    params(OfProcess, LogRange),
    responses((status = 200, description = "Entries, the oldest first, and the position to continue from", body = answers::LogPage))
)]
pub(super) async fn process_log(
    State(gateway): State<Arc<Gateway>>,
    Segments(OfProcess { service, key }): Segments<OfProcess>,
    which: Result<Query<LogRange>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(LogRange { from, limit }) = which.map_err(unreadable)?;
    let limit = limit_of(limit)?;
    let page = move |node: &Node| {
        node.process_log(&service, &key, from.unwrap_or(0), limit).map_err(refusal::of_log)
    };
    gateway.in_background(page).await
}
