//! Operator requests about processes: listing them, showing one and its log, deleting one.

use super::Gateway;
use super::answers;
use super::parts::{NoParameters, OfProcess, OfService, Segments, cursor_of, limit_of, unreadable};
use super::problem::{Kind, Problem};
use super::refusal;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use stead::Node;
use utoipa::{IntoParams, ToSchema};

/// Selects processes.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichProcesses {
    /// The prefix of their keys; all processes of the service by default.
    prefix: Option<String>,
    /// The field `next` of the previous page; omit it for the first page.
    #[param(pattern = r"^[0-9]{1,9}\.[0-9]{1,18}\.[0-9]{1,18}$")]
    after: Option<String>,
    /// Maximum number of processes, 1 to 1000. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// A deleted process.
#[derive(Serialize, ToSchema)]
pub(super) struct Deleted {
    /// The service of the process.
    service: String,
    /// Its key.
    key: String,
    /// The number of records that it had: its state, cells, timers and tasks.
    records: u64,
}

/// Lists the processes of a service, in pages.
///
/// They are not ordered by key. A page may be short or empty although there is a next one. Processes that are created
/// or deleted meanwhile may be missing or appear twice.
#[utoipa::path(
    get,
    path = "/v1/processes/{service}",
    tag = "processes",
    params(OfService, WhichProcesses),
    responses((status = 200, description = "Some processes, and where the next page begins", body = answers::ProcessPage))
)]
pub(super) async fn processes(
    State(gateway): State<Arc<Gateway>>,
    Segments(OfService { service }): Segments<OfService>,
    which: Result<Query<WhichProcesses>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(WhichProcesses { prefix, after, limit }) = which.map_err(unreadable)?;
    let limit = limit_of(limit)?;
    let after = cursor_of(after)?;
    let page = move |node: &Node| {
        let page = node.processes(&service, prefix.as_deref().unwrap_or_default(), after, limit);
        page.map_err(refusal::problem)
    };
    gateway.in_background(page).await
}

/// Shows a process: its shard and its state.
///
/// Every key has a shard; `exists` reports whether the process exists.
#[utoipa::path(
    get,
    path = "/v1/processes/{service}/{key}",
    tag = "processes",
    params(OfProcess),
    responses((status = 200, description = "The process", body = answers::ProcessDetail))
)]
pub(super) async fn process(
    State(gateway): State<Arc<Gateway>>,
    Segments(OfProcess { service, key }): Segments<OfProcess>,
    NoParameters: NoParameters,
) -> Result<Response, Problem> {
    gateway.in_background(move |node| node.process(&service, &key).map_err(refusal::problem)).await
}

/// Deletes a process: its state, cells, timers and tasks.
///
/// Replies that are kept for retries remain. A later message creates the process again.
#[utoipa::path(
    delete,
    path = "/v1/processes/{service}/{key}",
    tag = "processes",
    params(OfProcess),
    responses((status = 200, description = "It is deleted", body = Deleted))
)]
pub(super) async fn delete_process(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
    Segments(OfProcess { service, key }): Segments<OfProcess>,
) -> Result<Response, Problem> {
    let delete = move |node: &Node| match node.delete_process(&service, &key).map_err(refusal::problem)? {
        0 => Err(Problem::new(Kind::UnknownProcess, format!("{service}/{key} does not exist"))),
        records => Ok(Deleted { service, key, records }),
    };
    gateway.in_background(delete).await
}
