//! The server's parent: it holds the listening socket and starts the server again when it dies.
//!
//! The socket is the child's standard input, so that it outlives the child: while a new one recovers, clients wait in
//! the socket's queue and are not refused. A child that ends by itself is not started again; one that dies of a signal
//! or a fatal error is. So a handler that kills the process is met again until the shard gives its cause up.

use crate::failure::{Exit, Failure};
use crate::program;
use crate::stop::{self, Signals};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use stead::stderr;
use tokio::process::{Child, Command};

/// The hidden option of a server that has a parent; its value is the parent's process id.
pub(crate) const CHILD_OPTION: &str = "--supervised-child";

/// How long to wait before another start.
#[derive(Debug)]
struct Backoff {
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(10);
    /// A server that has lived this long had no trouble at its start.
    const HEALTHY: Duration = Duration::from_secs(60);

    const fn new() -> Self {
        Self { next: Self::FIRST }
    }

    fn after(&mut self, life: Duration) -> Duration {
        if life >= Self::HEALTHY {
            self.next = Self::FIRST;
        }
        let now = self.next;
        self.next = (now * 2).min(Self::LONGEST);
        now
    }
}

/// Runs the server as a child until it ends by itself or this process is told to end.
pub(crate) fn run(listener: TcpListener) -> Result<(), Failure> {
    // On one thread, the main one: the child asks to die with the thread that made it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, "cannot start the supervisor").cause(error))?;
    runtime.block_on(supervise(listener))
}

async fn supervise(listener: TcpListener) -> Result<(), Failure> {
    let cant = |what: &str| {
        let what = format!("cannot {what}");
        move |error: std::io::Error| Failure::new(Exit::Failed, what.clone()).cause(error)
    };
    let mut signals = Signals::take()?;
    let mut backoff = Backoff::new();
    let mut lives = 0;
    loop {
        let started = Instant::now();
        let mut child = match spawn(&listener) {
            Ok(child) => child,
            // Its file is being replaced, or the system has no process to give: both pass.
            Err(error) if lives > 0 => {
                let wait = backoff.after(Duration::ZERO);
                let wait_ms = wait.as_millis();
                stderr::line(format_args!(
                    "stead: cannot start the server: {error}; trying again in {wait_ms} ms"
                ));
                tokio::select! {
                    () = tokio::time::sleep(wait) => continue,
                    () = signals.next() => return Ok(()),
                }
            }
            Err(error) => return Err(cant("start the server's process")(error)),
        };
        lives += 1;
        let status = tokio::select! {
            status = child.wait() => Ok(status.map_err(cant("wait for the server's process"))?),
            () = signals.next() => Err(()),
        };
        let Ok(status) = status else {
            tell_to_end(&child);
            return tokio::select! {
                status = child.wait() => ended(status.map_err(cant("wait for the server's process"))?),
                () = signals.next() => Err(kill(child).await),
            };
        };
        if !died(status) {
            return ended(status);
        }
        let wait = backoff.after(started.elapsed());
        let wait_ms = wait.as_millis();
        stderr::line(format_args!("stead: the server died ({status}); starting it again in {wait_ms} ms"));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = signals.next() => return Ok(()),
        }
    }
}

/// What the allocator is told at the start of a process, unless it is set already: to give memory back soon, and to take
/// no huge pages, of which one small record holds 2 MiB.
const ALLOCATOR: [(&str, &str); 2] = [("MIMALLOC_PURGE_DELAY", "10"), ("MIMALLOC_ALLOW_THP", "0")];

fn allocator() -> impl Iterator<Item = (&'static str, OsString)> {
    ALLOCATOR.iter().map(|(name, value)| (*name, std::env::var_os(name).unwrap_or_else(|| value.into())))
}

/// Starts this program again in the same process, with the allocator as the server's process has it.
pub(crate) fn set_allocator() -> Result<(), Failure> {
    if ALLOCATOR.iter().all(|(name, _)| std::env::var_os(name).is_some()) {
        return Ok(());
    }
    let failed =
        |error: std::io::Error| Failure::new(Exit::Failed, "cannot restart this program").cause(error);
    let mut again = std::process::Command::new(program::path());
    again.args(std::env::args_os().skip(1)).envs(allocator());
    Err(failed(CommandExt::exec(&mut again)))
}

fn spawn(listener: &TcpListener) -> std::io::Result<Child> {
    let socket: OwnedFd = listener.as_fd().try_clone_to_owned()?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    Command::new(program::path())
        .args(arguments)
        .arg(CHILD_OPTION)
        .arg(std::process::id().to_string())
        .envs(allocator())
        .stdin(Stdio::from(socket))
        .kill_on_drop(true)
        .spawn()
}

fn tell_to_end(child: &Child) {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()))
        && let Err(error) = kill_process(pid, Signal::TERM)
    {
        stderr::line(format_args!("stead: cannot signal the server's process: {error}"));
    }
}

/// Ends a child that was told to end and has not: whoever tells it a second time does not want to wait.
async fn kill(mut child: Child) -> Failure {
    match child.kill().await {
        Ok(()) => Failure::new(Exit::Stopped, "the server was killed before its shutdown was complete")
            .hint("answered requests are on disk, and the next start recovers them"),
        Err(error) => Failure::new(Exit::Failed, "cannot kill the server's process").cause(error),
    }
}

fn died(status: ExitStatus) -> bool {
    status.signal().is_some() || status.code() == Some(Exit::Fatal as i32)
}

/// The child has told its reason on standard error: only the code is passed on.
fn ended(status: ExitStatus) -> Result<(), Failure> {
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => stop::exit_with(code),
        None => Err(Failure::new(Exit::Fatal, format!("the server died: {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_to_its_end_and_a_healthy_life_shortens_it() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..9).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.after(Backoff::HEALTHY), Backoff::FIRST);
    }
}
