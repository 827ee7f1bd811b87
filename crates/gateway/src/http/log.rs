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

/// Which entries of a log.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct LogRange {
    /// The index to begin with. Default: that of the oldest entry that is kept.
    from: Option<u64>,
    /// Most entries, 1 to 1000; an answer ends earlier after 1 MiB of them. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// The entries of a shard's log, readable.
///
/// Continue with `from` one above the last index, until an answer has no entries.
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

/// The log entries of one process, readable.
#[utoipa::path(
    get,
    path = "/v1/processes/{service}/{key}/log",
    tag = "processes",
    params(OfProcess, LogRange),
    responses((status = 200, description = "Entries, the oldest first, and where to go on", body = answers::LogPage))
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
