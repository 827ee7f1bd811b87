//! One life of the application: an operating system process that the conductor starts, talks to and kills.

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

/// Most bytes of standard error that an error message repeats.
const STDERR_SHOWN: usize = 2000;

/// How often the wish to stop is looked for while the child is silent.
const STOP_EVERY: Duration = Duration::from_millis(50);

/// A child process that runs an application which says values `S`. Dropping it kills the process.
#[derive(Debug)]
pub struct Life<S> {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Receiver<S>,
    reader: Option<JoinHandle<()>>,
    stderr: PathBuf,
    stop: Arc<AtomicBool>,
    /// When the process was started.
    pub started: Instant,
}

/// Why a child can't be talked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LifeError {
    /// It can't be started.
    #[error("cannot start {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ended though nobody killed it.
    #[error("the application ended by itself ({status}): {stderr}")]
    Ended {
        /// How.
        status: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// It says nothing any more.
    #[error("the application has been silent for {seconds} s: {stderr}")]
    Silent {
        /// For how long.
        seconds: u64,
        /// The end of its standard error.
        stderr: String,
    },
    /// Whoever runs it wants to stop.
    #[error("stopped before the end")]
    Stopped,
    /// The operating system refuses something.
    #[error("{what} failed: {source}")]
    Io {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

impl<S: DeserializeOwned + Send + 'static> Life<S> {
    /// Starts a program and tells it how to open. Its standard error goes to the file.
    ///
    /// # Errors
    /// If it can't be started.
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
            // A Ctrl-C in the terminal is for whoever started it, who then ends it.
            .process_group(0)
            .spawn()
            .map_err(|source| LifeError::Spawn { program, source })?;
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (says, said) = channel();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                // A kill may cut the last line; what follows it in the pipe is nothing.
                let Ok(line) = line else { break };
                let Ok(value) = serde_json::from_str(&line) else { break };
                if says.send(value).is_err() {
                    break;
                }
            }
        });
        let (stderr, reader) = (stderr.to_owned(), Some(reader));
        let stop = Arc::default();
        let mut life = Self { child, stdin: Some(stdin), said, reader, stderr, stop, started };
        life.tell(open);
        Ok(life)
    }

    /// Lets what is waited for end with [`LifeError::Stopped`] when the flag is set.
    #[must_use]
    pub fn until(mut self, stop: &Arc<AtomicBool>) -> Self {
        self.stop = Arc::clone(stop);
        self
    }

    /// Tells the child something, as a line of JSON. A child that is dead does not hear it.
    pub fn tell(&mut self, value: &impl Serialize) {
        let mut line = serde_json::to_vec(value).expect("plain data has JSON");
        line.push(b'\n');
        // That the child is gone is told where it is heard.
        if let Some(stdin) = &mut self.stdin
            && stdin.write_all(&line).is_err()
        {
            self.stdin = None;
        }
    }

    /// What the child says next; `None` if it is silent until then.
    ///
    /// # Errors
    /// [`LifeError::Ended`] if the child is no more, [`LifeError::Stopped`] if that is wanted.
    pub fn hear(&mut self, until: Instant) -> Result<Option<S>, LifeError> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(LifeError::Stopped);
            }
            let now = Instant::now();
            match self.said.recv_timeout(until.saturating_duration_since(now).min(STOP_EVERY)) {
                Ok(said) => return Ok(Some(said)),
                Err(RecvTimeoutError::Timeout) if now + STOP_EVERY < until => {}
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.end()?;
                    return Err(LifeError::Ended { status: status.to_string(), stderr: self.stderr_tail() });
                }
            }
        }
    }

    /// What the child said before it died, in order.
    pub fn last_words(&mut self) -> Vec<S> {
        self.said.iter().collect()
    }

    /// Waits until the process has ended by itself, and returns what it said until then.
    ///
    /// # Errors
    /// [`LifeError::Ended`] if it failed, [`LifeError::Silent`] if it has not ended after that time.
    pub fn wait(&mut self, at_most: Duration) -> Result<Vec<S>, LifeError> {
        let until = Instant::now() + at_most;
        let mut last = Vec::new();
        loop {
            match self.said.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(said) => last.push(said),
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
    /// If the operating system can't.
    pub fn kill(&mut self) -> Result<(), LifeError> {
        self.child.kill().map_err(|source| LifeError::Io { what: "killing the application", source })?;
        self.end().map(drop)
    }

    /// The error for a child that says nothing.
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
            reader.join().expect("the reader of a pipe doesn't panic");
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
