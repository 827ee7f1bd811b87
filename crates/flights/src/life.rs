//! One life of the application: an operating system process that the conductor starts, controls and kills.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of standard error that an error message repeats.
const STDERR_SHOWN: usize = 2000;

/// Interval at which the stop flag is read while the child is silent.
const STOP_EVERY: Duration = Duration::from_millis(50);

/// A child process of an application that prints values of type `S`. Dropping it kills the process.
#[derive(Debug)]
pub struct Life<S> {
    child: Child,
    stdin: Option<ChildStdin>,
    values: Receiver<S>,
    reader: Option<JoinHandle<()>>,
    stderr: PathBuf,
    stop: Arc<AtomicBool>,
    /// When the process was started.
    pub started: Instant,
}

/// Errors of running a child.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LifeError {
    /// It cannot be started.
    #[error("cannot start {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It ended without being killed.
    #[error("the application ended by itself ({status}): {stderr}")]
    Ended {
        /// The exit status.
        status: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// It prints nothing any more.
    #[error("the application has been silent for {seconds} s: {stderr}")]
    Silent {
        /// The length of the silence.
        seconds: u64,
        /// The end of its standard error.
        stderr: String,
    },
    /// The stop flag was set.
    #[error("stopped before the end")]
    Stopped,
    /// A call of the operating system failed.
    #[error("{what} failed: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The cause.
        source: std::io::Error,
    },
}

impl<S: DeserializeOwned + Send + 'static> Life<S> {
    /// Starts a program and sends it `open`. Its standard error goes to the file.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &[OsString], open: &impl Serialize, stderr: &Path) -> Result<Self, LifeError> {
        let started = Instant::now();
        let program = PathBuf::from(command.first().expect("a command names its program"));
        let log =
            File::create(stderr).map_err(|source| LifeError::Io { what: "creating a log file", source })?;
        let mut child = Command::new(&program)
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // A Ctrl-C in the terminal must reach only the parent, which then ends the child.
            .process_group(0)
            .spawn()
            .map_err(|source| LifeError::Spawn { program, source })?;
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, values) = channel();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                // A kill may cut off the last line; the rest of the pipe is ignored.
                let Ok(line) = line else { break };
                let Ok(value) = serde_json::from_str(&line) else { break };
                if sender.send(value).is_err() {
                    break;
                }
            }
        });
        let (stderr, reader) = (stderr.to_owned(), Some(reader));
        let stop = Arc::default();
        let mut life = Self { child, stdin: Some(stdin), values, reader, stderr, stop, started };
        life.send(open);
        Ok(life)
    }

    /// Makes waiting fail with [`LifeError::Stopped`] when the flag is set.
    #[must_use]
    pub fn until(mut self, stop: &Arc<AtomicBool>) -> Self {
        self.stop = Arc::clone(stop);
        self
    }

    /// Sends a value to the child as a line of JSON. A dead child does not receive it.
    pub fn send(&mut self, value: &impl Serialize) {
        let mut line = serde_json::to_vec(value).expect("plain data has JSON");
        line.push(b'\n');
        // `receive` reports that the child is gone.
        if let Some(stdin) = &mut self.stdin
            && stdin.write_all(&line).is_err()
        {
            self.stdin = None;
        }
    }

    /// Returns the next value of the child; `None` if there is none until then.
    ///
    /// # Errors
    /// [`LifeError::Ended`] if the child has ended, [`LifeError::Stopped`] if the stop flag is set.
    pub fn receive(&mut self, until: Instant) -> Result<Option<S>, LifeError> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(LifeError::Stopped);
            }
            let now = Instant::now();
            match self.values.recv_timeout(until.saturating_duration_since(now).min(STOP_EVERY)) {
                Ok(value) => return Ok(Some(value)),
                Err(RecvTimeoutError::Timeout) if now + STOP_EVERY < until => {}
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.end()?;
                    return Err(LifeError::Ended { status: status.to_string(), stderr: self.stderr_tail() });
                }
            }
        }
    }

    /// Returns the values that the child printed before it died, in order.
    pub fn remaining(&mut self) -> Vec<S> {
        self.values.iter().collect()
    }

    /// Waits until the process has ended by itself, and returns the values that it printed until then.
    ///
    /// # Errors
    /// [`LifeError::Ended`] if it failed, [`LifeError::Silent`] if it has not ended after that time.
    pub fn wait(&mut self, at_most: Duration) -> Result<Vec<S>, LifeError> {
        let until = Instant::now() + at_most;
        let mut last = Vec::new();
        loop {
            match self.values.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(value) => last.push(value),
                Err(RecvTimeoutError::Timeout) => return Err(self.silent(at_most)),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = self.end()?;
        match status.success() {
            true => Ok(last),
            false => Err(LifeError::Ended { status: status.to_string(), stderr: self.stderr_tail() }),
        }
    }
}

impl<S> Life<S> {
    /// Kills the process with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// If the operating system fails to.
    pub fn kill(&mut self) -> Result<(), LifeError> {
        self.child.kill().map_err(|source| LifeError::Io { what: "killing the application", source })?;
        self.end().map(drop)
    }

    /// Returns the error for a child that prints nothing.
    #[must_use]
    pub fn silent(&self, waited: Duration) -> LifeError {
        LifeError::Silent { seconds: waited.as_secs(), stderr: self.stderr_tail() }
    }

    fn end(&mut self) -> Result<ExitStatus, LifeError> {
        self.stdin = None;
        let status = self
            .child
            .wait()
            .map_err(|source| LifeError::Io { what: "waiting for the application", source })?;
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of a pipe does not panic");
        }
        Ok(status)
    }

    fn stderr_tail(&self) -> String {
        let text = std::fs::read(&self.stderr).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(STDERR_SHOWN)..];
        match String::from_utf8_lossy(tail).trim() {
            "" => "it wrote nothing to standard error".to_owned(),
            text => text.to_owned(),
        }
    }
}

impl<S> Drop for Life<S> {
    fn drop(&mut self) {
        // An error means that it is dead already.
        let _ = self.child.kill();
        let _ = self.end();
    }
}
