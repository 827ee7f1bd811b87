//! The server's parent: it holds the listening socket and restarts the server after a crash.
//!
//! The socket is the child's standard input, so that it outlives the child: while a new one recovers, clients wait in
//! the socket's queue and are not refused. A child that exits is not restarted, unless it had a fatal error; one that
//! dies of a signal is. So a handler that kills the process runs again until the shard gives its cause up.

use super::{CHILD_OF, Serve, ServerError, system};
use crate::program;
use crate::signals::Signals;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use stead::stderr;
use tokio::process::{Child, Command};
use tokio::runtime::Builder;

/// The wait before a restart.
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

/// Variables of the child, unless they are set already.
type Variables = [(&'static str, &'static str)];

/// Runs the server as a child until it ends by itself or this process is signalled to end.
pub(super) fn run(listener: &TcpListener, variables: &Variables) -> Result<(), ServerError> {
    // On the main thread: the child dies with the thread that started it.
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(system("start the supervisor"))?.block_on(supervise(listener, variables))
}

async fn supervise(listener: &TcpListener, variables: &Variables) -> Result<(), ServerError> {
    let mut signals = Signals::take().map_err(system("take signals"))?;
    let mut backoff = Backoff::new();
    let mut lives = 0;
    loop {
        let started = Instant::now();
        let (wait, what) = match spawn(listener, variables) {
            Ok(mut child) => {
                lives += 1;
                let status = tokio::select! {
                    status = child.wait() => status.map_err(system("wait for the server's process"))?,
                    () = signals.next() => return stop(child, signals).await,
                };
                if !has_died(status) {
                    return ended(status);
                }
                (backoff.after(started.elapsed()), format!("the server died ({status}); starting it again"))
            }
            // Its file is being replaced, or the system has no process to give: both are temporary.
            Err(error) if lives > 0 => {
                (backoff.after(Duration::ZERO), format!("cannot start the server: {error}; trying again"))
            }
            Err(error) => return Err(system("start the server's process")(error)),
        };
        stderr::line(format_args!("stead: {what} in {} ms", wait.as_millis()));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = signals.next() => return Ok(()),
        }
    }
}

fn spawn(listener: &TcpListener, variables: &Variables) -> io::Result<Child> {
    let socket: OwnedFd = listener.as_fd().try_clone_to_owned()?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let unset = variables.iter().filter(|(name, _)| std::env::var_os(name).is_none());
    Command::new(program::path())
        .args(arguments)
        .envs(unset.copied())
        .env(CHILD_OF, std::process::id().to_string())
        .stdin(Stdio::from(socket))
        .kill_on_drop(true)
        .spawn()
}

/// Shuts a child down, or kills it at the next signal. A child that the first signal killed had not opened the node: it
/// handles signals before that.
async fn stop(mut child: Child, mut signals: Signals) -> Result<(), ServerError> {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()))
        && let Err(error) = kill_process(pid, Signal::TERM)
    {
        stderr::line(format_args!("stead: cannot signal the server's process: {error}"));
    }
    tokio::select! {
        status = child.wait() => match status.map_err(system("wait for the server's process"))? {
            status if status.signal() == Some(Signal::TERM.as_raw()) => Ok(()),
            status => ended(status),
        },
        () = signals.next() => {
            child.kill().await.map_err(system("kill the server's process"))?;
            Err(ServerError::Killed)
        }
    }
}

fn has_died(status: ExitStatus) -> bool {
    status.signal().is_some() || status.code() == Some(Serve::EXIT_MAY_PASS)
}

fn ended(status: ExitStatus) -> Result<(), ServerError> {
    if status.success() { Ok(()) } else { Err(ServerError::Ended(status)) }
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

    #[test]
    fn a_child_that_is_stopped_before_it_takes_signals_has_stopped_in_order() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let child = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
            stop(child, Signals::take().unwrap()).await.unwrap();
        });
    }
}
