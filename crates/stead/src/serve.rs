//! A node as a server program, in one line: HTTP, signals, and a supervisor that starts it again when it dies.
//!
//! The supervisor is the program as it was started. It holds the listening socket and runs the program once more as its
//! child, with the socket as standard input: so clients wait in the socket's queue while a child recovers, and are not refused.

use crate::error::OpenError;
use crate::http::{self, Limits, Server};
use crate::node::{Node, NodeBuilder};
use crate::stderr;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::process::{Child, Command};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// Set in a child; its value is the supervisor's process id. Not one of the variables `STEAD_…` that set something.
const CHILD_OF: &str = "_STEAD_CHILD_OF";
/// The address to listen on.
const LISTEN: &str = "STEAD_LISTEN";
const LISTEN_DEFAULT: &str = "127.0.0.1:7420";
/// The exit code of a child that a new start may help.
const FATAL: i32 = 70;
/// The exit code of a program that did not end in order.
const STOPPED: i32 = 130;
/// Signals within this time after one that was taken count as that one.
const SAME: Duration = Duration::from_secs(1);
/// How much longer than its limits a stop may take before the program ends anyway.
const LAST_RESORT: Duration = Duration::from_secs(15);

/// Why a server ended, or did not start.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The variable `STEAD_LISTEN` is no address.
    #[error("STEAD_LISTEN is {text:?}; it must be an address, such as {LISTEN_DEFAULT}")]
    Address {
        /// The value.
        text: String,
    },
    /// The address or the token key cannot be used.
    #[error(transparent)]
    Http(#[from] http::ServeError),
    /// The node cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The system refuses what a server needs.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The node had a fatal error. Without a supervisor: start the program again.
    #[error(
        "the node had a fatal error: {0}; correct the cause and start again: answered requests are on disk"
    )]
    Failed(String),
    /// The supervised server ended by itself with a failure, which it has reported.
    #[error("the server ended: {0}")]
    Ended(ExitStatus),
    /// A second signal ended the server before it had stopped in order.
    #[error(
        "the server was killed before its shutdown was complete; its next start recovers all answered requests"
    )]
    Killed,
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServerError {
    move |source| ServerError::System { what, source }
}

/// Serves a node over HTTP until SIGTERM or Ctrl-C, as `stead start` does: the address is that of the variable `STEAD_LISTEN`,
/// 127.0.0.1:7420 without it, and a supervisor starts the server again when it dies of a signal or a fatal error. For other
/// choices: [`Serve`].
///
/// To be called first in `main`, outside of a tokio runtime: the supervisor runs the program again as its child, so that what stands
/// before is done twice.
///
/// # Errors
/// [`ServerError`]; without one the server has stopped in order.
///
/// # Panics
/// Inside a tokio runtime.
pub fn serve(node: NodeBuilder) -> Result<(), ServerError> {
    Serve::new(node).run()
}

/// How a node is served: [`serve`] with other choices.
pub struct Serve {
    node: NodeBuilder,
    address: Option<SocketAddr>,
    limits: Limits,
    is_supervised: bool,
}

impl Serve {
    /// As [`serve`].
    #[must_use]
    pub fn new(node: NodeBuilder) -> Self {
        Self { node, address: None, limits: Limits::default(), is_supervised: true }
    }

    /// Listens on this loopback address, whatever `STEAD_LISTEN` is. Port 0 takes any free one.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// With other limits of the gateway.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// With or without a supervisor; with one by default.
    #[must_use]
    pub fn supervised(mut self, supervised: bool) -> Self {
        self.is_supervised = supervised;
        self
    }

    /// Serves until it is stopped.
    ///
    /// # Errors
    /// As [`serve`].
    ///
    /// # Panics
    /// As [`serve`].
    pub fn run(self) -> Result<(), ServerError> {
        if is_child() {
            set_parent_process_death_signal(Some(Signal::TERM))
                .map_err(|error| system("watch the supervisor")(error.into()))?;
            let socket = io::stdin().as_fd().try_clone_to_owned();
            let socket = socket.map_err(system("take over the supervisor's socket"))?;
            return end_child(self.run_node(TcpListener::from(socket), true));
        }
        let listener = http::listen(self.address.map_or_else(address_of_environment, Ok)?)?;
        if self.is_supervised { supervise(&listener) } else { self.run_node(listener, false) }
    }

    fn run_node(self, listener: TcpListener, has_supervisor: bool) -> Result<(), ServerError> {
        let runtime = Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(system("start the server's threads"))?;
        // Signals are taken from here on, so that an early one stops the server in order.
        let _inside = runtime.enter();
        let mut signals = Signals::take()?;
        let data_dir = self.node.path.clone();
        let node = self.node.open()?;
        let server = http::serve(&node, listener, &data_dir, self.limits)?;
        say_ready(&data_dir, &server, &node);
        let failure = runtime.block_on(async {
            tokio::select! {
                reason = node.failed() => Some(reason),
                () = signals.next() => None,
            }
        });
        end_in_time(&runtime, signals, has_supervisor, self.limits.shutdown_timeout * 2 + LAST_RESORT);
        runtime.block_on(server.shutdown());
        if let Some(reason) = failure {
            return Err(ServerError::Failed(reason));
        }
        node.shutdown();
        stderr::line("stead: stopped");
        Ok(())
    }
}

fn address_of_environment() -> Result<SocketAddr, ServerError> {
    let text = std::env::var_os(LISTEN)
        .map_or_else(|| LISTEN_DEFAULT.into(), |text| text.to_string_lossy().into_owned());
    text.parse().map_err(|_| ServerError::Address { text })
}

/// Whether the supervisor started this process; a child of this one may have inherited the variable.
fn is_child() -> bool {
    let named = std::env::var(CHILD_OF).ok().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    named.is_some() && named == getppid()
}

fn say_ready(data: &Path, server: &Server, node: &Node) {
    let recovery = node.recovery();
    stderr::line(format_args!(
        "stead: serving {} on http://{}, process {}, {} entries replayed in {} ms",
        data.display(),
        server.address(),
        std::process::id(),
        recovery.entries_replayed,
        recovery.duration.as_millis()
    ));
}

/// Ends the program if a second signal says so or the stop takes too long. The supervisor looks after signals itself.
fn end_in_time(runtime: &Runtime, mut signals: Signals, has_supervisor: bool, limit: Duration) {
    runtime.spawn(async move {
        let second = async {
            if has_supervisor {
                std::future::pending::<()>().await;
            }
            signals.next().await;
        };
        let _ = tokio::time::timeout(limit, second).await;
        stderr::line(
            "stead: shutdown was cut short; answered requests are on disk, and the next start recovers them",
        );
        exit(STOPPED);
    });
}

/// What a new start may help ends the child with the code that the supervisor knows.
fn end_child(ended: Result<(), ServerError>) -> Result<(), ServerError> {
    let may_pass = match &ended {
        Err(ServerError::Failed(_)) => true,
        Err(ServerError::Open(error)) => error.may_pass(),
        _ => false,
    };
    if let (true, Err(error)) = (may_pass, &ended) {
        stderr::line(format_args!("stead: {error}"));
        exit(FATAL);
    }
    ended
}

fn exit(code: i32) -> ! {
    stderr::flush(Duration::from_millis(500));
    std::process::exit(code)
}

/// SIGTERM and SIGINT, which do not end the program at once any more.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    taken: Option<Instant>,
}

impl Signals {
    /// Needs a runtime around it.
    fn take() -> Result<Self, ServerError> {
        let take = |kind| signal(kind).map_err(system("take signals"));
        let (terminate, interrupt) = (take(SignalKind::terminate())?, take(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, taken: None })
    }

    async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            let now = Instant::now();
            if self.taken.is_none_or(|taken| now.duration_since(taken) >= SAME) {
                self.taken = Some(now);
                return;
            }
        }
    }
}

/// Waits before a start that follows a death: longer with each, and short again after a healthy life.
const WAITS: [u64; 8] = [100, 200, 400, 800, 1600, 3200, 6400, 10_000];
/// A server that has lived this long had no trouble at its start.
const HEALTHY: Duration = Duration::from_secs(60);

/// Runs the server as a child until it ends by itself or this process is signalled to end.
fn supervise(listener: &TcpListener) -> Result<(), ServerError> {
    // On this thread: the child asks to die with the thread that made it.
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(system("start the supervisor"))?.block_on(supervise_children(listener))
}

async fn supervise_children(listener: &TcpListener) -> Result<(), ServerError> {
    let mut signals = Signals::take()?;
    // Found before an upgrade replaces the file.
    let program = std::env::current_exe().map_err(system("find this program's file"))?;
    let mut deaths = 0;
    loop {
        let started = Instant::now();
        let mut child = start_child(&program, listener).map_err(system("start the server's process"))?;
        let status = tokio::select! {
            status = child.wait() => status.map_err(system("wait for the server's process"))?,
            () = signals.next() => return stop_child(child, signals).await,
        };
        if status.signal().is_none() && status.code() != Some(FATAL) {
            return ended(status);
        }
        deaths = if started.elapsed() >= HEALTHY { 0 } else { deaths };
        let wait = WAITS[deaths.min(WAITS.len() - 1)];
        deaths += 1;
        stderr::line(format_args!("stead: the server died ({status}); starting it again in {wait} ms"));
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(wait)) => {}
            () = signals.next() => return Ok(()),
        }
    }
}

fn start_child(program: &Path, listener: &TcpListener) -> io::Result<Child> {
    let socket: OwnedFd = listener.as_fd().try_clone_to_owned()?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let running = PathBuf::from("/proc/self/exe");
    Command::new(if program.exists() { program } else { &running })
        .args(arguments)
        .env(CHILD_OF, std::process::id().to_string())
        .stdin(Stdio::from(socket))
        .kill_on_drop(true)
        .spawn()
}

async fn stop_child(mut child: Child, mut signals: Signals) -> Result<(), ServerError> {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()))
        && let Err(error) = kill_process(pid, Signal::TERM)
    {
        stderr::line(format_args!("stead: cannot signal the server's process: {error}"));
    }
    tokio::select! {
        status = child.wait() => ended(status.map_err(system("wait for the server's process"))?),
        () = signals.next() => {
            child.kill().await.map_err(system("kill the server's process"))?;
            Err(ServerError::Killed)
        }
    }
}

fn ended(status: ExitStatus) -> Result<(), ServerError> {
    if status.success() { Ok(()) } else { Err(ServerError::Ended(status)) }
}
