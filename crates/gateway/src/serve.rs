//! Serves a node as a program, in one line: HTTP, signals, and a supervisor that restarts it after a crash.
//!
//! The supervisor is the program as it was started. It holds the listening socket and runs the program once more as its
//! child, with the socket as standard input. So clients wait in the socket's queue while a child recovers, and are not
//! refused.

mod supervise;

use crate::http::{self, Limits, Server};
use crate::program;
use crate::signals::Signals;
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use stead::config::ConfigError;
use stead::{Config, EnterError, Node, NodeBuilder, OpenError, RecoveryReport, descriptors, stderr};
use thiserror::Error;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Set in a child; its value is the supervisor's process id. Not one of the variables `STEAD_…` for users.
const CHILD_OF: &str = "_STEAD_CHILD_OF";
/// The address to listen on.
const LISTEN: &str = "STEAD_LISTEN";
const LISTEN_DEFAULT: &str = "127.0.0.1:7420";
/// Time that a stop may take beyond its limit, for the log's last write among others, before the program ends anyway.
const LAST_RESORT: Duration = Duration::from_secs(5);
/// Time that the end of the program waits for standard error.
const LAST_LINES: Duration = Duration::from_millis(500);

/// Reasons for which a server ended or did not start. `Debug` prints the message, so that a `main` that returns this
/// error prints a sentence.
#[derive(Error)]
pub enum ServerError {
    /// The variable `STEAD_LISTEN` is not an address.
    #[error("STEAD_LISTEN is {text:?}; it must be an address, such as {LISTEN_DEFAULT}")]
    Address {
        /// The value.
        text: String,
    },
    /// The address or the token key cannot be used.
    #[error(transparent)]
    Http(#[from] http::ServeError),
    /// The configuration is invalid.
    #[error("the configuration is invalid: {0}")]
    Config(#[from] ConfigError),
    /// The node cannot be opened.
    #[error("cannot open the data directory {}: {source}", data_dir.display())]
    Open {
        /// The data directory.
        data_dir: PathBuf,
        /// The reason.
        source: OpenError,
    },
    /// The system refused an operation that a server needs.
    #[error("cannot {what}: {source}")]
    System {
        /// The attempted operation.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The supervisor of this process died before the server started.
    #[error("the supervisor died before the server started; start the program again")]
    Orphaned,
    /// The node had a fatal error. Without a supervisor: start the program again.
    #[error(
        "the node had a fatal error: {0}; correct the cause and start again: answered requests are on disk"
    )]
    Failed(String),
    /// The supervised server ended by itself with a failure, which it has reported.
    #[error("the server ended: {0}")]
    Ended(ExitStatus),
    /// A second signal ended the server before its shutdown was complete.
    #[error(
        "the server was killed before its shutdown was complete; its next start recovers all answered requests"
    )]
    Killed,
}

impl fmt::Debug for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl ServerError {
    /// Whether another start may succeed without a correction of the data or the configuration.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Failed(_) => true,
            Self::Open { source, .. } => source.may_pass(),
            _ => false,
        }
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServerError {
    move |source| ServerError::System { what, source }
}

/// Serves a node over HTTP until SIGTERM or Ctrl-C, like `stead start`: on the address of the variable `STEAD_LISTEN`,
/// 127.0.0.1:7420 by default, with a supervisor that restarts the server when it dies of a signal or a fatal error.
/// [`Serve`] has other choices.
///
/// Must be called first in `main`, outside of a tokio runtime: the supervisor runs the program again as its child, so
/// code before the call runs twice.
///
/// # Errors
/// [`ServerError`]; `Ok` means that the server has shut down.
///
/// # Panics
/// Inside a tokio runtime.
pub fn serve(node: NodeBuilder) -> Result<(), ServerError> {
    Serve::new(node).run()
}

type Make = Box<dyn FnOnce() -> Result<NodeBuilder, ConfigError>>;
type OnReady = Box<dyn FnOnce(Ready) + Send>;

/// Settings for serving a node: [`serve`] with other choices.
///
/// The serving process sends its panics to [`stderr`], and the node's events too, unless the program has already set a
/// subscriber for them.
#[must_use = "it serves only once it runs"]
pub struct Serve {
    make: Make,
    address: Option<SocketAddr>,
    limits: Limits,
    is_supervised: bool,
    until_stdin_ends: bool,
    log_level: Level,
    variables: Vec<(&'static str, &'static str)>,
    on_ready: Option<OnReady>,
    last_resort: Duration,
    /// That of the node, once it is open.
    shutdown_timeout: Arc<OnceLock<Duration>>,
}

/// A server that is ready.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// The address at which the node serves native clients, if it does.
    pub native: Option<SocketAddr>,
    /// The address at which other nodes of its cluster reach it, if it is part of one.
    pub cluster: Option<SocketAddr>,
    /// Its number in that cluster.
    pub node: Option<u32>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// The recovery of the node at its start.
    pub recovery: RecoveryReport,
}

impl Serve {
    /// The exit code of a process whose failure may be temporary ([`ServerError::may_pass`]): the supervisor restarts
    /// it.
    pub const EXIT_MAY_PASS: i32 = 70;
    /// The exit code of a process that was ended before its shutdown was complete, by a second signal or because the
    /// shutdown took too long. After a fatal error of the node, the latter gives [`Self::EXIT_MAY_PASS`].
    pub const EXIT_STOPPED: i32 = 130;

    /// Creates the settings of [`serve`].
    pub fn new(node: NodeBuilder) -> Self {
        Self::with(|| Ok(node))
    }

    /// As [`Self::new`], but `make` describes the node only in the process that serves it, once its logged events are
    /// written.
    pub fn with(make: impl FnOnce() -> Result<NodeBuilder, ConfigError> + 'static) -> Self {
        program::note();
        Self {
            make: Box::new(make),
            address: None,
            limits: Limits::default(),
            is_supervised: true,
            until_stdin_ends: false,
            log_level: Level::INFO,
            variables: Vec::new(),
            on_ready: None,
            last_resort: LAST_RESORT,
            shutdown_timeout: Arc::default(),
        }
    }

    /// Sets the loopback address, which overrides `STEAD_LISTEN`. Port 0 picks a free one.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Sets other limits of the gateway. Two of them are upper bounds only: fewer connections are accepted if the limit
    /// of open files is low, and a stop takes at most the node's `shutdown_timeout` in all.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets whether to use a supervisor. Default: `true`.
    pub fn supervised(mut self, supervised: bool) -> Self {
        self.is_supervised = supervised;
        self
    }

    /// Sets whether to stop, as at a signal, once standard input ends: for a program that runs the server as its child, and holds
    /// the other end of a pipe, so that the server ends with it. Default: `false`.
    pub fn until_stdin_ends(mut self, until: bool) -> Self {
        self.until_stdin_ends = until;
        self
    }

    /// Sets the level from which on the node's events go to standard error; [`Level::INFO`] by default. Without effect
    /// in a program that has set a subscriber.
    pub fn log_level(mut self, level: Level) -> Self {
        self.log_level = level;
        self
    }

    /// Sets an environment variable of a supervised server's process, unless it is set already: for settings that are
    /// read before `main`, such as an allocator's.
    pub fn variable(mut self, name: &'static str, value: &'static str) -> Self {
        self.variables.push((name, value));
        self
    }

    /// Sets a function that is called, on a thread of its own, once the server is ready.
    pub fn on_ready(mut self, call: impl FnOnce(Ready) + Send + 'static) -> Self {
        self.on_ready = Some(Box::new(call));
        self
    }

    /// Serves until it is stopped. Ends a supervised process whose failure may be temporary with
    /// [`Self::EXIT_MAY_PASS`].
    ///
    /// # Errors
    /// As [`serve`].
    ///
    /// # Panics
    /// As [`serve`].
    pub fn run(self) -> Result<(), ServerError> {
        let ended = self.try_run();
        match &ended {
            Err(error) if is_child() && error.may_pass() => {
                stderr::line(format_args!("stead: {error}"));
                exit(Self::EXIT_MAY_PASS)
            }
            _ => ended,
        }
    }

    /// As [`Self::run`], for a program that reports failures itself: it must end with [`Self::EXIT_MAY_PASS`] after a
    /// failure that may be temporary, because the supervisor restarts it only after that code.
    ///
    /// # Errors
    /// As [`serve`].
    ///
    /// # Panics
    /// As [`serve`].
    pub fn try_run(self) -> Result<(), ServerError> {
        if is_child() {
            set_parent_process_death_signal(Some(Signal::TERM))
                .map_err(|error| system("watch the supervisor")(error.into()))?;
            // It may have died before this process asked to be notified.
            if !is_child() {
                return Err(ServerError::Orphaned);
            }
            return self.run_node(socket_of_supervisor()?, true);
        }
        if is_orphan() {
            return Err(ServerError::Orphaned);
        }
        if self.until_stdin_ends {
            let limit = (!self.is_supervised).then(|| Arc::clone(&self.shutdown_timeout));
            stop_once_stdin_ends(limit).map_err(system("start the thread that watches standard input"))?;
        }
        let listener = http::listen(self.address.map_or_else(address_of_environment, Ok)?)?;
        if self.is_supervised {
            supervise::run(&listener, &self.variables)
        } else {
            self.run_node(listener, false)
        }
    }

    fn run_node(self, listener: TcpListener, has_supervisor: bool) -> Result<(), ServerError> {
        stderr::take_panics();
        log_events(self.log_level);
        let runtime = Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(system("start the server's threads"))?;
        // Signals are handled from here on, so that an early one shuts the server down.
        let _inside = runtime.enter();
        let stops = Arc::default();
        let signalled = first_signal(&runtime, has_supervisor, &stops)?;
        let builder = (self.make)()?;
        let data_dir = builder.data_dir().to_owned();
        let open = |source| ServerError::Open { data_dir: data_dir.clone(), source };
        let builder = match listener.local_addr() {
            Ok(address) => builder.http_address(address),
            Err(_) => builder,
        };
        let node = match builder.stop_entry_at(&stops).open() {
            Err(OpenError::Enter(EnterError::Stopped)) => {
                stderr::line("stead: stopped before the node had entered its cluster");
                stderr::flush(LAST_LINES);
                return Ok(());
            }
            opened => opened.map_err(open)?,
        };
        let shutdown_timeout = *self.shutdown_timeout.get_or_init(|| node.shutdown_timeout());
        let native = node.native_address().map_or(0, |_| descriptors::native_connections_max());
        let connections_max = descriptors::connections_max(self.limits.connections_max + native) - native;
        let limits = Limits { connections_max, shutdown_timeout, ..self.limits };
        let server = http::serve(&node, listener, &data_dir, limits)?;
        report_ready(&data_dir, &server, &node, self.on_ready);
        let (failure, deadline) = runtime.block_on(async {
            let failure = tokio::select! {
                reason = node.failed() => Some(reason),
                _ = signalled => None,
            };
            let deadline = Instant::now() + shutdown_timeout;
            // A failed node is restarted even if its threads do not end: the cause of the failure may block them, as a
            // disk does.
            let code = if failure.is_some() { Self::EXIT_MAY_PASS } else { Self::EXIT_STOPPED };
            exit_after(shutdown_timeout + self.last_resort, code);
            server.shutdown().await;
            (failure, deadline)
        });
        if let Some(reason) = failure {
            return Err(ServerError::Failed(reason));
        }
        node.shutdown_within(deadline.saturating_duration_since(Instant::now()));
        stderr::line("stead: stopped");
        stderr::flush(LAST_LINES);
        Ok(())
    }
}

impl fmt::Debug for Serve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").field("address", &self.address).finish_non_exhaustive()
    }
}

fn address_of_environment() -> Result<SocketAddr, ServerError> {
    let text = std::env::var_os(LISTEN)
        .map_or_else(|| LISTEN_DEFAULT.into(), |text| text.to_string_lossy().into_owned());
    text.parse().map_err(|_| ServerError::Address { text })
}

/// Returns the supervisor's process id from the environment; children inherit it, so it may belong to an ancestor's
/// supervisor.
fn supervisor() -> Option<Pid> {
    std::env::var(CHILD_OF).ok().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw)
}

/// Whether the supervisor started this process.
fn is_child() -> bool {
    supervisor().is_some_and(|supervisor| Some(supervisor) == getppid())
}

/// Whether a supervisor that has died started this process: its socket is still standard input. Processes that a server
/// starts have another standard input.
fn is_orphan() -> bool {
    supervisor().is_some() && socket_of_supervisor().is_ok_and(|socket| socket.local_addr().is_ok())
}

fn socket_of_supervisor() -> Result<TcpListener, ServerError> {
    let socket = io::stdin().as_fd().try_clone_to_owned();
    Ok(TcpListener::from(socket.map_err(system("take over the supervisor's socket"))?))
}

/// Writes events of at least this level to [`stderr`], unless the program has already set a subscriber for them. A
/// server does so itself.
///
/// Libraries report each repetition of a request, the node reports its outcome once: events of libraries are written
/// from `debug` on.
pub fn log_events(level: Level) {
    let of_libraries = if level >= Level::DEBUG { level } else { Level::ERROR };
    let libraries = ["hyper", "hyper_util", "object_store", "reqwest", "rustls"];
    let targets = Targets::new().with_default(level).with_targets(libraries.map(|name| (name, of_libraries)));
    let subscriber = tracing_subscriber::fmt()
        .with_writer(stderr::stderr)
        .log_internal_errors(false)
        .with_max_level(level)
        .finish();
    // A subscriber of the program itself stays.
    let _ = subscriber.with(targets).try_init();
}

/// Completes at the first signal, and sets the flag. The second one ends the program, unless there is a supervisor to do so: a terminal
/// sends its signal to both.
fn first_signal(
    runtime: &Runtime,
    has_supervisor: bool,
    stops: &Arc<AtomicBool>,
) -> Result<oneshot::Receiver<()>, ServerError> {
    let mut signals = Signals::take().map_err(system("take signals"))?;
    let (signal, signalled) = oneshot::channel();
    let stops = Arc::clone(stops);
    runtime.spawn(async move {
        signals.next().await;
        stops.store(true, Ordering::Relaxed);
        // The server may have ended by itself.
        let _ = signal.send(());
        if !has_supervisor {
            signals.next().await;
            stderr::line(
                "stead: shutdown was cut short; answered requests are on disk, and the next start recovers them",
            );
            exit(Serve::EXIT_STOPPED);
        }
    });
    Ok(signalled)
}

/// Ends the program if it has not ended after this time, because it would otherwise hang forever.
fn exit_after(time: Duration, code: i32) {
    let wait = move || {
        thread::sleep(time);
        stderr::line(format_args!(
            "stead: shutdown was cut short after {time:?}; answered requests are on disk, and the next start recovers them"
        ));
        exit(code);
    };
    // If there is no thread, a second signal still ends the program.
    let _ = thread::Builder::new().name("stead-last-resort".to_owned()).spawn(wait);
}

/// Signals this process to stop once standard input ends, and ends it anyway if that takes longer than a limit, which the node sets once
/// it is open: its parent is gone. A supervisor has none: it ends with its server, which has one.
fn stop_once_stdin_ends(limit: Option<Arc<OnceLock<Duration>>>) -> io::Result<()> {
    let watch = move || {
        // An error is an end, too.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        if let Err(error) = kill_process(getpid(), Signal::TERM) {
            stderr::line(format_args!("stead: cannot stop: {error}"));
        }
        let Some(limit) = limit else { return };
        thread::sleep(limit.get().copied().unwrap_or(Config::SHUTDOWN_TIMEOUT) + LAST_RESORT);
        exit(Serve::EXIT_STOPPED);
    };
    thread::Builder::new().name("stead-stdin".to_owned()).spawn(watch).map(drop)
}

fn exit(code: i32) -> ! {
    stderr::flush(LAST_LINES);
    std::process::exit(code)
}

fn report_ready(data_dir: &Path, server: &Server, node: &Node, on_ready: Option<OnReady>) {
    let (address, native, recovery) = (server.address(), node.native_address(), *node.recovery());
    let clients = native.map_or_else(String::new, |native| format!(", native clients on {native}"));
    let clients = match node.cluster_address() {
        Some(cluster) => format!("{clients}, other nodes on {cluster}"),
        None => clients,
    };
    stderr::line(format_args!(
        "stead: serving {} on http://{address}{clients}, process {}, {} entries replayed in {} ms",
        data_dir.display(),
        std::process::id(),
        recovery.entries_replayed,
        recovery.duration.as_millis()
    ));
    let Some(on_ready) = on_ready else { return };
    let (cluster, number) = (node.cluster_address(), node.cluster().map(|cluster| cluster.node().0));
    let ready = Ready { address, native, cluster, node: number, data_dir: data_dir.to_owned(), recovery };
    // On a thread of its own: a server whose output is not read must serve, too.
    let spawned = thread::Builder::new().name("stead-ready".to_owned()).spawn(move || on_ready(ready));
    if let Err(error) = spawned {
        stderr::line(format_args!(
            "stead: cannot start a thread to report that the server is ready: {error}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::process::Command;
    use std::sync::mpsc;
    use stead::{Context, Never, Process, QueryContext, ServiceOptions};
    use stead_store::sim_disk::SimDisk;

    #[derive(Default, Serialize, Deserialize)]
    struct Trouble;

    #[derive(Serialize, Deserialize)]
    enum Ask {
        Nothing,
        Panic,
        Hold,
    }

    impl Process for Trouble {
        const SERVICE: &'static str = "trouble";
        type Key = String;
        type Request = Ask;
        type Reply = ();
        type Error = Never;
        type Query = ();
        type Answer = ();

        fn handle(&mut self, ctx: &mut Context<'_, Self>, ask: Ask) -> Result<(), Never> {
            match ask {
                Ask::Nothing => ctx.put_cell(b"cell", &1),
                Ask::Panic => panic!("as it was asked"),
                Ask::Hold => {
                    let holding = HOLDING.lock().unwrap().take();
                    holding.unwrap().send(()).unwrap();
                    loop {
                        thread::park();
                    }
                }
            }
            Ok(())
        }

        fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<(), Never> {
            Ok(())
        }
    }

    static HOLDING: std::sync::Mutex<Option<mpsc::Sender<()>>> = std::sync::Mutex::new(None);

    fn post(address: SocketAddr, key: &str, ask: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).unwrap();
        let len = ask.len();
        let head = "host: localhost\r\nconnection: close\r\ncontent-type: application/json";
        write!(
            stream,
            "POST /v1/call/trouble/{key} HTTP/1.1\r\n{head}\r\ncontent-length: {len}\r\n\r\n{ask}"
        )
        .unwrap();
        stream
    }

    /// Set in the life below.
    const LIFE: &str = "_STEAD_TEST_LIFE";

    /// Runs a server whose log fails while a handler holds a worker, so that the node cannot end.
    #[test]
    #[ignore = "run as a child process"]
    fn life() {
        let Some(data) = std::env::var_os(LIFE) else { return };
        let disk = SimDisk::new(1);
        let builder = Node::builder(data)
            .service::<Trouble>(ServiceOptions::default().shards(2))
            .threads(2)
            .segment_bytes(1 << 20)
            .shutdown_timeout(Duration::ZERO)
            .disk(Arc::new(disk.clone()));
        let (holding, held) = mpsc::channel();
        *HOLDING.lock().unwrap() = Some(holding);
        let trouble = move |ready: Ready| {
            let mut answer = String::new();
            post(ready.address, "a", "\"Panic\"").read_to_string(&mut answer).unwrap();
            stderr::line(answer);
            let _open = post(ready.address, "a", "\"Hold\"");
            held.recv().unwrap();
            disk.fail_syncs(1);
            // One of them is of the other worker.
            let _others: Vec<_> =
                (0..20).map(|n| post(ready.address, &n.to_string(), "\"Nothing\"")).collect();
            loop {
                thread::park();
            }
        };
        let mut serve =
            Serve::new(builder).supervised(false).listen(([127, 0, 0, 1], 0).into()).on_ready(trouble);
        serve.last_resort = Duration::from_millis(100);
        let ended = serve.run();
        panic!("{ended:?}");
    }

    #[test]
    fn a_failed_server_that_cannot_end_is_one_to_start_again_and_panics_keep_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let life = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "serve::tests::life", "--ignored", "--nocapture", "--test-threads=1"])
            .env(LIFE, dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&life.stderr);
        assert_eq!(life.status.code(), Some(Serve::EXIT_MAY_PASS), "{said}");
        assert!(said.contains("the node failed: "), "{said}");
        assert!(said.contains("as it was asked (at ") && !said.contains("' panicked at"), "{said}");
    }
}
