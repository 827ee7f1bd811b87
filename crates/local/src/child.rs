//! One process of a node.

use crate::error::{LocalError, system};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Pause between two looks at a process that is to end.
const LOOK: Duration = Duration::from_millis(2);

/// The line that a node prints once it is ready, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Line {
    event: String,
    node: Option<u32>,
}

/// A process of a node. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct NodeProcess {
    child: Child,
    /// The process ends with it.
    _stdin: Option<ChildStdin>,
    lines: Receiver<Option<u32>>,
    reader: Option<JoinHandle<()>>,
    /// The number that the node reported when it was ready; `Some(None)` if it reported none.
    ready: Option<Option<u32>>,
}

impl NodeProcess {
    /// Starts a program; its standard error is appended to a file.
    pub(crate) fn start(program: &Path, arguments: &[OsString], log: &Path) -> Result<Self, LocalError> {
        let log = File::options().create(true).append(true).open(log);
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.map_err(system("create the log of a node"))?)
            // A Ctrl-C in the terminal reaches only the parent, which then ends the nodes. If the parent dies while a node is
            // stopped, the system continues such a group of processes, so that the node sees the end of its standard input.
            .process_group(0)
            .spawn()
            .map_err(|source| LocalError::Spawn { program: program.to_owned(), source })?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = channel();
        let read = move || {
            // All of it is read, so that the node never waits for room.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(line) = serde_json::from_str::<Line>(&line)
                    && line.event == "ready"
                {
                    // Without a receiver the process is being ended.
                    let _ = sender.send(line.node);
                }
            }
        };
        let reader = thread::Builder::new().name("stead-local".to_owned()).spawn(read);
        let reader = Some(reader.map_err(system("start a thread"))?);
        Ok(Self { child, _stdin: stdin, lines, reader, ready: None })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the node is ready, and returns its number if it reports one; `None` if it is not, or has ended.
    pub(crate) fn wait_ready(&mut self, until: Instant) -> Option<Option<u32>> {
        if self.ready.is_none() {
            let wait = until.saturating_duration_since(Instant::now());
            self.ready = self.lines.recv_timeout(wait).ok();
        }
        self.ready
    }

    /// Returns the exit status of a process that has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, LocalError> {
        self.child.try_wait().map_err(system("look at the process of a node"))
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), LocalError> {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("the number of a process is positive");
        kill_process(pid, signal).map_err(|error| system("signal the process of a node")(error.into()))
    }

    /// Waits until the process has ended; `None` if it has not after this time.
    pub(crate) fn wait(&mut self, at_most: Duration) -> Result<Option<ExitStatus>, LocalError> {
        let until = Instant::now() + at_most;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            // It only reads a pipe, whose other end is gone.
            let _ = reader.join();
        }
    }
}
