//! The listener and its connections: their number, their timeouts and their end.

use super::connection::Stream;
use super::limits::Limits;
use super::problem::{Kind, Problem};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use stead::events;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;

/// Reasons for which a server cannot start.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The address can be reached from other machines, and there is no TLS.
    #[error(
        "{address} can be reached from other machines, and this server speaks no TLS; listen on a loopback address \
         (127.0.0.1 or [::1]) and put a proxy that speaks TLS before it"
    )]
    NotLoopback {
        /// The refused address.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another address, or port 0 for any free one")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The listener or the token key cannot be used.
    #[error("cannot {what}: {source}")]
    Io {
        /// The attempted operation.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// Listens on a loopback address. Port 0 picks a free one.
///
/// # Errors
/// [`ServeError::NotLoopback`] for any other address, [`ServeError::Listen`] if the system refuses.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    refuse_non_loopback(address)?;
    TcpListener::bind(address).map_err(|source| ServeError::Listen { address, source })
}

fn refuse_non_loopback(address: SocketAddr) -> Result<(), ServeError> {
    if address.ip().is_loopback() { Ok(()) } else { Err(ServeError::NotLoopback { address }) }
}

/// A running server. Dropping it stops accepting connections at once; [`Server::shutdown`] lets open requests end
/// first.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    accepting: JoinHandle<()>,
}

impl Server {
    pub(super) fn start(listener: TcpListener, router: Router, limits: Limits) -> Result<Self, ServeError> {
        let io = |what| move |source| ServeError::Io { what, source };
        let address = listener.local_addr().map_err(io("read the listener's address"))?;
        refuse_non_loopback(address)?;
        listener.set_nonblocking(true).map_err(io("make the listener non-blocking"))?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(io("watch the listener"))?;
        let (stop, stopped) = oneshot::channel();
        let accepting = tokio::spawn(accept(listener, router, limits, stopped));
        Ok(Self { address, stop: Some(stop), accepting })
    }

    /// Returns the address that it listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more connections, lets open requests end, and returns when they have, or when
    /// [`Limits::shutdown_timeout`] is over.
    pub async fn shutdown(mut self) {
        drop(self.stop.take());
        if let Err(error) = (&mut self.accepting).await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    router: Router,
    limits: Limits,
    mut stopped: oneshot::Receiver<()>,
) {
    let connections = Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS)));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let graceful = GracefulShutdown::new();
    let (stop, stopping) = watch::channel(false);
    let mut http = http1::Builder::new();
    // Without `pipeline_flush`: with it, hyper's answer to a head that it refuses stays in its buffer.
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        // A client may close its sending side and wait for the answer.
        .half_close(true)
        .max_header_size(Limits::HEAD_BYTES_MAX)
        // Room for a head of maximum size and the bytes that follow it.
        .max_buf_size(2 * Limits::HEAD_BYTES_MAX);
    let mut is_short = false;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if std::mem::take(&mut is_short) {
                        events::info(format_args!("connections are accepted again"));
                    }
                    stream
                }
                Err(error) => {
                    // Usually, file descriptors have run out: connections that end release some.
                    if !std::mem::replace(&mut is_short, true) {
                        events::warn(format_args!("cannot accept connections: {error}"));
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            _ = &mut stopped => break,
        };
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
            if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                tokio::spawn(async move {
                    refuse(stream, limits.connections_max).await;
                    drop(permit);
                });
            }
            continue;
        };
        // Answers are small: waiting to fill a segment would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let service = TowerToHyperService::new(router.clone());
        let stream = Stream::new(stream, limits.header_timeout, permit, stopping.clone());
        let connection = graceful.watch(http.serve_connection(stream, service));
        tokio::spawn(async move {
            // An error here is the client's: it left, was too slow, or sent no HTTP, and hyper has answered that.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    drop(listener);
    stop.send_replace(true);
    if tokio::time::timeout(limits.shutdown_timeout, graceful.shutdown()).await.is_err() {
        events::warn("requests were still open when the shutdown timeout was over");
    }
}

/// Maximum number of clients being refused at a time; further connections are closed without an answer.
const REFUSALS_MAX: usize = 64;
/// Time that a refused client may take to read the answer.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

async fn refuse(mut stream: TcpStream, connections_max: usize) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let answer = Problem::new(
        Kind::TooManyConnections,
        format!("{connections_max} connections are open, which is the limit"),
    )
    .retry_after_ms(1000)
    .to_last_answer();
    let refusal = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection and could take the answer with it.
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    if let Ok(Err(error)) = tokio::time::timeout(REFUSAL_TIMEOUT, refusal).await {
        tracing::debug!(%error, "a refused client left early");
    }
}
