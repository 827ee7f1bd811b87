//! The HTTP/JSON gateway: calls and queries of processes, and operator requests about a node.
//!
//! It converts JSON to the services' MessagePack without knowing their types. Every error is a problem document
//! (RFC 9457) that says what to do next. The OpenAPI document is generated from the code of the routes.
//!
//! There is no TLS and no authentication: addresses that other machines can reach are refused, and so are requests of
//! web pages on this machine.

#[allow(unused_qualifications, reason = "utoipa's macros write paths in full")]
mod admin;
#[allow(unused_qualifications, reason = "utoipa's macros write paths in full")]
mod answers;
#[allow(unused_qualifications, reason = "utoipa's macros write paths in full")]
mod answers_cluster;
#[allow(unused_qualifications, reason = "utoipa's macros write paths in full")]
mod call;
#[allow(unused_qualifications, reason = "utoipa's macros write paths in full")]
mod cluster;
mod connection;
mod description;
mod guard;
mod limits;
#[allow(unused_qualifications, reason = "utoipa's macros write paths in full")]
mod log;
mod measure;
mod measure_cluster;
mod parts;
mod problem;
#[allow(unused_qualifications, reason = "utoipa's macros write paths in full")]
mod processes;
mod refusal;
mod server;
#[cfg(test)]
mod tests;
mod token;
pub mod transcode;

pub use call::{
    IDEMPOTENCY_KEY, STEAD_DEADLINE_MS, STEAD_MAX_LAG_MS, STEAD_READ, STEAD_STALENESS_MS, STEAD_TOKEN,
};
pub use limits::Limits;
pub use problem::{Kind, PROBLEM_JSON, Problem};
pub use server::{ServeError, Server, listen};
pub use token::{Token, TokenError, TokenKey};

use axum::body::Bytes;
use axum::http::{Method, Uri};
use measure::Measure;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use stead::{Client, Node};
use tokio::sync::Semaphore;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// State shared by the routes.
struct Gateway {
    node: Node,
    client: Client,
    tokens: TokenKey,
    incarnation: u64,
    limits: Limits,
    measure: Measure,
    openapi: Bytes,
    /// Slots for requests that block a thread: status, pages, lists.
    background: Arc<Semaphore>,
    /// One verification at a time, because each may hold the whole state.
    verifying: Arc<Semaphore>,
}

/// Maximum number of requests that block a thread at a time; others wait, as long as their clients do.
const BACKGROUND_MAX: usize = 64;

#[derive(OpenApi)]
#[openapi(info(
    title = "Stead",
    description = "Stateful services that outlive the machines they run on. Errors are problem documents (RFC 9457).",
    license(name = "MIT OR Apache-2.0")
))]
struct Description;

fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(call::call))
        .routes(routes!(call::query, call::query_by_get))
        .routes(routes!(processes::processes))
        .routes(routes!(processes::process, processes::delete_process))
        .routes(routes!(log::process_log))
        .routes(routes!(admin::healthz))
        .routes(routes!(admin::readyz))
        .routes(routes!(admin::status))
        .routes(routes!(admin::services))
        .routes(routes!(admin::dead_letters))
        .routes(routes!(admin::retry_dead_letter))
        .routes(routes!(admin::drop_dead_letter))
        .routes(routes!(admin::checkpoints, admin::create_checkpoint))
        .routes(routes!(admin::show_checkpoint, admin::delete_checkpoint))
        .routes(routes!(admin::verify_checkpoint))
        .routes(routes!(admin::copy_checkpoint))
        .routes(routes!(cluster::cluster))
        .routes(routes!(cluster::set_dial))
        .routes(routes!(cluster::failover))
        .routes(routes!(cluster::remove_node))
        .routes(routes!(log::log))
        .routes(routes!(admin::metrics))
        .routes(routes!(admin::openapi))
}

/// Returns the OpenAPI document of any gateway, as JSON. `/openapi.json` of a node also has a path for each of its
/// services.
#[must_use]
pub fn openapi() -> String {
    description::describe(routes().to_openapi()).to_string()
}

/// Serves a node over HTTP on a listener made by [`listen`], until [`Server::shutdown`]. Runs on the calling task's
/// tokio runtime, whose I/O and time must be enabled. `data_dir` is the node's data directory, which has the key of the
/// tokens; that of a cluster is a secret of its nodes.
///
/// # Errors
/// [`ServeError`] if the listener is not on a loopback address, or it or the key cannot be used.
///
/// # Panics
/// Outside a tokio runtime.
pub fn serve(
    node: &Node,
    listener: TcpListener,
    data_dir: &Path,
    limits: Limits,
) -> Result<Server, ServeError> {
    // A client takes its token to any node of a cluster.
    let tokens = match node.cluster().and_then(|cluster| cluster.secret()) {
        Some(secret) => TokenKey::new(secret),
        None => {
            TokenKey::open(data_dir).map_err(|source| ServeError::Io { what: "use the token key", source })?
        }
    };
    let (router, description) = routes().split_for_parts();
    let mut description = description::describe(description);
    description::add_services(&mut description, node.topology(), node.registry());
    let gateway = Arc::new(Gateway {
        node: node.clone(),
        client: node.client(),
        tokens,
        incarnation: node.topology().incarnation.0,
        limits,
        measure: Measure::new(node.clone()),
        openapi: Bytes::from(description.to_string()),
        background: Arc::new(Semaphore::new(BACKGROUND_MAX)),
        verifying: Arc::new(Semaphore::new(1)),
    });
    let router = router.fallback(unknown_route).method_not_allowed_fallback(wrong_method);
    let router = router.layer(axum::middleware::from_fn(guard::guard)).with_state(gateway);
    Server::start(listener, router, limits)
}

async fn unknown_route(uri: Uri) -> Problem {
    Problem::new(Kind::UnknownRoute, format!("{} does not exist", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    Problem::new(Kind::Method, format!("{} takes no {method}", uri.path()))
}
