//! Routes for operators: health, status, checkpoints, metrics.

use super::Gateway;
use super::answers;
use super::call::within_time;
use super::guard::may_see_reasons;
use super::parts::{
    DeadlineHeader, NoParameters, OfCheckpoint, OfDeadLetter, OfService, Segments, cursor_of, limit_of,
    unreadable,
};
use super::problem::{Kind, Problem};
use super::refusal;
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use stead::{CheckStatus, CheckpointFailure, CheckpointInfo, Node, NotReady, Retried, VerifyReport};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa::{IntoParams, ToSchema};

/// The server's health.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`.
    status: &'static str,
}

/// A node that serves, and the failed checks of its services.
#[derive(Serialize, ToSchema)]
pub(super) struct Ready {
    /// `ok`.
    status: &'static str,
    /// The services' checks that failed at the last checkpoint whose checks ended. They do not take the server out of
    /// rotation: only requests that it answers can correct the state. Reported only to clients that use a name of this
    /// machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    failed_check: Option<CheckStatus>,
}

/// Reports that the process answers.
#[utoipa::path(get, path = "/healthz", tag = "node", responses((status = 200, description = "It lives", body = Health)))]
pub(super) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Reports whether the node serves requests now.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "node",
    responses(
        (status = 200, description = "Every shard serves. A failed check of a service is in the body and changes nothing else", body = Ready),
        (status = 503, description = "A shard does not serve, the log does not keep up, or the node stops or has failed", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn readyz(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
) -> Result<Json<Ready>, Problem> {
    let may_see = may_see_reasons(&headers);
    let detail = |reason: NotReady| {
        if may_see {
            reason.to_string()
        } else {
            "send the request to localhost to see the reason".to_owned()
        }
    };
    match gateway.node.readiness() {
        Ok(()) => {
            let failed_check = gateway.node.failed_check().filter(|_| may_see);
            Ok(Json(Ready { status: "ok", failed_check }))
        }
        Err(failed @ NotReady::Failed(_)) => Err(Problem::new(Kind::NodeFailed, detail(failed))),
        Err(not_ready) => Err(Problem::new(Kind::NotReady, detail(not_ready)).retry_after_ms(100)),
    }
}

/// The state of the node, its services and shards, its log and its tasks.
#[utoipa::path(get, path = "/v1/status", tag = "node", responses((status = 200, description = "The status", body = answers::Status)))]
pub(super) async fn status(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
) -> Result<Response, Problem> {
    gateway.in_background(|node| Ok(node.status())).await
}

/// A service.
#[derive(Serialize, ToSchema)]
pub(super) struct Service {
    /// Its name.
    name: String,
    /// The number of shards that hold its processes.
    shards: u32,
}

/// The services of this node.
#[utoipa::path(get, path = "/v1/services", tag = "node", responses((status = 200, description = "The services", body = [Service])))]
pub(super) async fn services(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
) -> Json<Vec<Service>> {
    let services = gateway.node.topology().services().iter();
    Json(services.map(|service| Service { name: service.name.clone(), shards: service.shards }).collect())
}

/// The dead letters of a service, in pages.
#[utoipa::path(
    get,
    path = "/v1/dead-letters/{service}",
    tag = "processes",
    params(OfService, WhichPage),
    responses((status = 200, description = "Some dead letters, and where the next page begins", body = answers::DeadLetterPage))
)]
pub(super) async fn dead_letters(
    State(gateway): State<Arc<Gateway>>,
    Segments(OfService { service }): Segments<OfService>,
    which: Result<Query<WhichPage>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(WhichPage { after, limit }) = which.map_err(unreadable)?;
    let limit = limit_of(limit)?;
    let after = cursor_of(after)?;
    let page = move |node: &Node| node.dead_letters(&service, after, limit).map_err(refusal::problem);
    gateway.in_background(page).await
}

/// Selects dead letters.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichPage {
    /// The field `next` of the previous page; omit it for the first page.
    #[param(pattern = r"^[0-9]{1,9}\.[0-9]{1,18}$")]
    after: Option<String>,
    /// Maximum number of dead letters, 1 to 1000; a page ends earlier after 1 MiB of payloads. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// A dead letter that was retried.
#[derive(Serialize, ToSchema)]
pub(super) struct RetriedLetter {
    /// The shard that held it.
    shard: u32,
    /// Its index in that shard.
    index: u64,
    /// The service's error, if it answered with one: the letter was handled then, but had no effects.
    #[schema(value_type = Option<Object>)]
    error: Option<serde_json::Value>,
}

/// Retries a dead letter, and answers once it was handled.
///
/// The log entry that handles the letter also removes it, so it is handled once. A failed step of a task runs again
/// from the state before it. If it fails again, it stays a dead letter, with the new reason. A client's request cannot
/// be retried, because its client was informed that it was given up. If no answer arrives, repeat the call: 404 means
/// that it was done.
#[utoipa::path(
    post,
    path = "/v1/dead-letters/{shard}/{index}/retry",
    tag = "processes",
    params(OfDeadLetter, DeadlineHeader),
    responses(
        (status = 200, description = "It was handled and is no longer a dead letter", body = RetriedLetter),
        (status = 404, description = "No such dead letter", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It failed again, or cannot be retried", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn retry_dead_letter(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
    Segments(OfDeadLetter { shard, index }): Segments<OfDeadLetter>,
    headers: HeaderMap,
) -> Result<Json<RetriedLetter>, Problem> {
    let within = gateway.deadline(&headers)?;
    let client = gateway.client.with_timeout(within);
    let Retried { shard, index, error } = within_time(within, client.retry_dead_letter(shard, index)).await?;
    Ok(Json(RetriedLetter { shard, index, error }))
}

/// Deletes a dead letter without handling it.
#[utoipa::path(
    delete,
    path = "/v1/dead-letters/{shard}/{index}",
    tag = "processes",
    params(OfDeadLetter, DeadlineHeader),
    responses(
        (status = 204, description = "It is deleted"),
        (status = 404, description = "No such dead letter", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn drop_dead_letter(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
    Segments(OfDeadLetter { shard, index }): Segments<OfDeadLetter>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let within = gateway.deadline(&headers)?;
    let client = gateway.client.with_timeout(within);
    within_time(within, client.drop_dead_letter(shard, index)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the complete checkpoints, the oldest first.
#[utoipa::path(get, path = "/v1/checkpoints", tag = "checkpoints", responses((status = 200, description = "The checkpoints", body = [Object])))]
pub(super) async fn checkpoints(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
) -> Result<Response, Problem> {
    gateway.in_background(|node| node.checkpoints().map_err(failed)).await
}

/// Takes a checkpoint, and answers once it is complete and the services' checks have run over it.
///
/// The field `check` is `hold`, `failed` or `not_checked`; `failed_checks` lists the checks that do not hold,
/// `skipped_checks` those that were not run. A failed check does not undo the checkpoint.
#[utoipa::path(
    post,
    path = "/v1/checkpoints",
    tag = "checkpoints",
    responses(
        (status = 201, description = "The checkpoint is complete", body = Object),
        (status = 500, description = "It failed; the node keeps running", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn create_checkpoint(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
) -> Result<Response, Problem> {
    let report = gateway.node.checkpoint().await.map_err(failed)?;
    let mut response = Json(report).into_response();
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

/// Shows one checkpoint.
#[utoipa::path(
    get,
    path = "/v1/checkpoints/{number}",
    tag = "checkpoints",
    params(OfCheckpoint),
    responses(
        (status = 200, description = "The checkpoint", body = Object),
        (status = 404, description = "No such checkpoint", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show_checkpoint(
    State(gateway): State<Arc<Gateway>>,
    Segments(OfCheckpoint { number }): Segments<OfCheckpoint>,
    NoParameters: NoParameters,
) -> Result<Response, Problem> {
    gateway.in_background(move |node| find(node, number)).await
}

/// The result of a verification.
#[derive(Serialize)]
struct Verified {
    /// Whether the cut is consistent and every check holds.
    consistent: bool,
    #[serde(flatten)]
    report: VerifyReport,
}

/// Recomputes a checkpoint's cut from its stored parts alone.
///
/// The field `consistent` is the result; `inconsistencies` and `checks` list what does not hold. `check` is
/// `not_checked` if a service's check was not run: then `consistent` does not include it. One verification runs at a
/// time; others wait.
#[utoipa::path(
    post,
    path = "/v1/checkpoints/{number}/verify",
    tag = "checkpoints",
    params(OfCheckpoint),
    responses(
        (status = 200, description = "What was found", body = Object),
        (status = 404, description = "No such checkpoint", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn verify_checkpoint(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
    Segments(OfCheckpoint { number }): Segments<OfCheckpoint>,
) -> Result<Response, Problem> {
    gateway.in_background(move |node| find(node, number)).await?;
    let turn = Arc::clone(&gateway.verifying).acquire_owned().await;
    let verify = move |node: &Node| {
        // Released only at its end: the verification continues if its client disconnects.
        let _turn = turn;
        let report = node.verify(number).map_err(failed)?;
        Ok(Verified { consistent: report.holds(), report })
    };
    gateway.in_background(verify).await
}

/// The target of a copy.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CopyRequest {
    /// `file:///directory` on the server's machine, or `s3://bucket/prefix`.
    #[schema(example = "s3://bucket/prefix")]
    to: String,
}

/// Copies a checkpoint to other storage, and answers when the copy is complete.
///
/// Bundles that exist there are not sent again. A copy continues if the client disconnects.
#[utoipa::path(
    post,
    path = "/v1/checkpoints/{number}/copy",
    tag = "checkpoints",
    params(OfCheckpoint),
    request_body(content = CopyRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The copy is complete", body = Object),
        (status = 400, description = "The request or the address is invalid", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such checkpoint", body = Problem, content_type = "application/problem+json"),
        (status = 500, description = "It failed; repeating it continues from there", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Too many copies wait for their turn", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn copy_checkpoint(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
    Segments(OfCheckpoint { number }): Segments<OfCheckpoint>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = gateway.body(&headers, body, gateway.limits.request_timeout).await?;
    let CopyRequest { to } = serde_json::from_slice(&body).map_err(|error| {
        let kind = if error.is_data() { Kind::BadRequest } else { Kind::BadJson };
        Problem::new(kind, format!("the body is not {{\"to\": ADDRESS}}: {error}"))
    })?;
    gateway.in_background(move |node| find(node, number)).await?;
    let report = gateway.node.copy_checkpoint(number, &to).await.map_err(failed)?;
    Ok(Json(report).into_response())
}

/// Deletes a checkpoint. The newest complete one cannot be deleted: recovery needs it. Neither can one that is being verified,
/// checked or copied.
#[utoipa::path(
    delete,
    path = "/v1/checkpoints/{number}",
    tag = "checkpoints",
    params(OfCheckpoint),
    responses(
        (status = 204, description = "It is deleted"),
        (status = 404, description = "No such checkpoint", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is the newest one, or it is being read", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete_checkpoint(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
    Segments(OfCheckpoint { number }): Segments<OfCheckpoint>,
) -> Result<Response, Problem> {
    let delete = move |node: &Node| {
        find(node, number)?;
        if node.status().checkpoint == Some(number) {
            let detail = format!("checkpoint {number} is the newest one, which a restart needs");
            return Err(Problem::new(Kind::CheckpointNeeded, detail));
        }
        node.delete_checkpoint(number).map_err(failed)
    };
    gateway.in_background(delete).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Returns metrics for Prometheus, in the text format of OpenMetrics.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "node",
    responses((status = 200, description = "The figures", body = String, content_type = "application/openmetrics-text"))
)]
pub(super) async fn metrics(State(gateway): State<Arc<Gateway>>) -> Result<Response, Problem> {
    let text = tokio::task::spawn_blocking(move || gateway.measure.exposition())
        .await
        .map_err(|error| Problem::new(Kind::NodeFailed, error.to_string()))?
        .map_err(|error| Problem::new(Kind::NodeFailed, error.to_string()))?;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
    );
    Ok(response)
}

/// Returns this description.
#[utoipa::path(get, path = "/openapi.json", tag = "node", responses((status = 200, description = "The OpenAPI document", body = Object)))]
pub(super) async fn openapi(State(gateway): State<Arc<Gateway>>) -> Response {
    let mut response = Response::new(Body::from(gateway.openapi.clone()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl Gateway {
    /// Runs a function that reads files or waits for the shards on a thread that answers no calls.
    pub(super) async fn in_background<T: Serialize + Send + 'static>(
        &self,
        work: impl FnOnce(&Node) -> Result<T, Problem> + Send + 'static,
    ) -> Result<Response, Problem> {
        let node = self.node.clone();
        // It continues if the client disconnects, so it keeps its place.
        let place = place(&self.background).await;
        let work = move || {
            let _place = place;
            work(&node)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(value)) => Ok(Json(value).into_response()),
            Ok(Err(problem)) => Err(problem),
            Err(panic) => Err(Problem::new(Kind::NodeFailed, panic.to_string())),
        }
    }
}

async fn place(places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(places).acquire_owned().await.expect("the places are never closed")
}

fn find(node: &Node, number: u64) -> Result<CheckpointInfo, Problem> {
    node.checkpoint_info(number).map_err(failed)?.ok_or_else(|| {
        Problem::new(
            Kind::UnknownCheckpoint,
            format!("checkpoint {number} does not exist or is not complete"),
        )
    })
}

fn failed(failure: CheckpointFailure) -> Problem {
    let kind = match failure {
        CheckpointFailure::GivenUp { .. } | CheckpointFailure::Store(_) => Kind::CheckpointFailed,
        CheckpointFailure::InUse(_) => Kind::CheckpointInUse,
        CheckpointFailure::Full => Kind::Full,
        CheckpointFailure::Busy(_) => Kind::Overloaded,
        CheckpointFailure::Address(_) => Kind::BadRequest,
        CheckpointFailure::Stopped(_) => Kind::NotReady,
    };
    Problem::new(kind, failure.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deletion_of_a_checkpoint_that_is_read_is_a_conflict() {
        let problem = failed(CheckpointFailure::InUse(3));
        let json: serde_json::Value = serde_json::from_slice(&problem.to_json()).unwrap();
        assert_eq!(
            (&json["type"], &json["status"]),
            (&"urn:stead:problem:checkpoint-in-use".into(), &409.into())
        );
    }
}
