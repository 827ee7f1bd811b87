//! The entries of a shard's log, for people.

use super::Gateway;
use super::admin::Segments;
use super::problem::{Kind, Problem};
use crate::Node;
use crate::offline::LogEntry;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;
use std::ops::ControlFlow;
use std::sync::Arc;
use utoipa::IntoParams;

/// Which entries of a log.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct LogRange {
    /// The first index; the oldest entry that is kept without it.
    from: Option<u64>,
    /// How many entries, 1 to 1000. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

impl LogRange {
    const LIMIT: usize = 100;
    const LIMIT_MAX: usize = 1000;
}

/// The entries of a shard's log, readable.
#[utoipa::path(
    get,
    path = "/v1/log/{shard}",
    tag = "node",
    params(("shard" = u32, Path, description = "The shard's number, as in the status"), LogRange),
    responses(
        (status = 200, description = "The entries, the oldest first", body = [Object]),
        (status = 404, description = "No such shard", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn log(
    State(gateway): State<Arc<Gateway>>,
    Segments(shard): Segments<u32>,
    range: Result<Query<LogRange>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(LogRange { from, limit }) =
        range.map_err(|rejection| Problem::new(Kind::BadRequest, rejection.body_text()))?;
    let limit = limit.unwrap_or(LogRange::LIMIT);
    if !(1..=LogRange::LIMIT_MAX).contains(&limit) {
        return Err(Problem::new(
            Kind::BadRequest,
            format!("limit is {limit}; it is 1 to {}", LogRange::LIMIT_MAX),
        ));
    }
    let shards = gateway.node.topology().shard_count();
    if shard >= shards {
        return Err(Problem::new(
            Kind::UnknownShard,
            format!("shard {shard} does not exist; the shards are 0 to {}", shards - 1),
        ));
    }
    let from = from.unwrap_or(0);
    let read = move |node: &Node| {
        let mut entries: Vec<LogEntry> = Vec::new();
        let visit = |entry| {
            entries.push(entry);
            if entries.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        node.read_log(shard, from, visit)
            .map_err(|error| Problem::new(Kind::LogUnreadable, error.to_string()))?;
        Ok(entries)
    };
    gateway.in_background(read).await
}
