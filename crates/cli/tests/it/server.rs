//! A server under test: the real binary on a free port, and requests to it.

use crate::patience::{PATIENCE, await_some};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The `stead` binary with some arguments, in an environment without variables of Stead.
pub(crate) fn stead(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stead"));
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("STEAD_") || name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command
}

/// As [`stead`], with another file as the binary.
fn stead_at(program: &Path, args: &[&str]) -> Command {
    let usual = stead(args);
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    for (name, value) in usual.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Runs the binary to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    stead(args).output().unwrap()
}

/// Parses the JSON document that a successful command printed.
pub(crate) fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

pub(crate) struct Server {
    child: Child,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
    pub(crate) address: String,
    /// The server's own process: the child's child under a supervisor.
    pub(crate) pid: i32,
}

impl Server {
    /// Starts a server without a supervisor.
    pub(crate) fn start(data: &Path, more: &[&str]) -> Self {
        Self::start_with(data, &[&["--supervise=false"], more].concat())
    }

    pub(crate) fn start_with(data: &Path, more: &[&str]) -> Self {
        Self::start_in(data, more, &[])
    }

    /// Starts a server with environment variables.
    pub(crate) fn start_in(data: &Path, more: &[&str], vars: &[(&str, &str)]) -> Self {
        Self::spawn(stead(&Self::arguments(data, more)).envs(vars.iter().copied()), Stdio::piped())
    }

    /// Starts a server from another binary.
    pub(crate) fn start_at(program: &Path, data: &Path) -> Self {
        Self::spawn(&mut stead_at(program, &Self::arguments(data, &[])), Stdio::piped())
    }

    /// Starts a server whose standard error is not a pipe that the test reads.
    pub(crate) fn start_with_stderr(data: &Path, more: &[&str], stderr: Stdio) -> Self {
        Self::spawn(&mut stead(&Self::arguments(data, more)), stderr)
    }

    /// Starts a server by a shell that first runs a command, such as `ulimit`.
    pub(crate) fn start_by_shell(before: &str, data: &Path, more: &[&str]) -> Self {
        let server = stead(&Self::arguments(data, more));
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{before} && exec \"$0\" \"$@\"")]).arg(server.get_program());
        shell.args(server.get_args()).stdin(Stdio::null());
        for (name, _) in server.get_envs() {
            shell.env_remove(name);
        }
        Self::spawn(&mut shell, Stdio::piped())
    }

    fn arguments<'a>(data: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        let data = data.to_str().unwrap();
        [&["start", "--json", "--data", data, "--listen", "127.0.0.1:0"], more].concat()
    }

    fn spawn(command: &mut Command, stderr: Stdio) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        let stderr = child.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut text = String::new();
                stderr.read_to_string(&mut text).unwrap();
                text
            })
        });
        let mut server = Self { child, lines, stderr, address: String::new(), pid: 0 };
        server.await_ready();
        server
    }

    /// Waits until a server reports that it is ready, and notes its address and process.
    pub(crate) fn await_ready(&mut self) -> Value {
        let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
            let _ = self.child.kill();
            panic!("the server did not get ready: {}", self.stderr());
        };
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["event"], "ready", "{line}");
        self.address = ready["address"].as_str().unwrap().to_owned();
        self.pid = ready["pid"].as_i64().unwrap() as i32;
        ready
    }

    /// Kills the server without a warning, as a power failure would.
    pub(crate) fn kill(mut self) {
        signal(self.pid, Signal::KILL);
        self.wait();
    }

    /// The process that this test started: the supervisor, if there is one.
    pub(crate) fn own_pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn terminate(mut self) -> (ExitStatus, String) {
        signal(self.own_pid(), Signal::TERM);
        let status = self.wait();
        (status, self.stderr())
    }

    /// Sends signals until the server has ended: only signals over a second apart count as two.
    pub(crate) fn terminate_impatiently(mut self) -> (ExitStatus, String) {
        let pid = self.own_pid();
        let status = await_some("the server ends", || {
            let ended = self.child.try_wait().unwrap();
            if ended.is_none() {
                signal(pid, Signal::TERM);
                std::thread::sleep(Duration::from_millis(20));
            }
            ended
        });
        (status, self.stderr())
    }

    /// Waits for the end, which closes standard output.
    fn wait(&mut self) -> ExitStatus {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().unwrap(),
                Err(RecvTimeoutError::Timeout) => {
                    let _ = self.child.kill();
                    panic!("the server did not end: {}", self.stderr());
                }
            }
        }
    }

    fn stderr(&mut self) -> String {
        self.stderr.take().map(|thread| thread.join().unwrap()).unwrap_or_default()
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        Reply::read(agent().get(format!("http://{}{path}", self.address)).call())
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Reply {
        self.post_with(path, body, &[])
    }

    pub(crate) fn post_with(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> Reply {
        post_to(&self.address, path, body, headers)
    }

    pub(crate) fn delete(&self, path: &str) -> Reply {
        Reply::read(agent().delete(format!("http://{}{path}", self.address)).call())
    }

    /// Puts a value, which must succeed.
    pub(crate) fn put(&self, key: &str, value: u64) -> Reply {
        let reply = self.post(&format!("/v1/call/kv/{key}"), &format!(r#"{{"put":{{"value":{value}}}}}"#));
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply
    }

    /// Runs a command against this server.
    pub(crate) fn command(&self, args: &[&str]) -> Output {
        run(&[args, &["--addr", &self.address]].concat())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A failed test must not leave a server behind; killing one that has ended does nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

pub(crate) fn post_to(address: &str, path: &str, body: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = agent().post(format!("http://{address}{path}"));
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        request = request.content_type("application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Reply::read(request.send(body))
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build().into()
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) token: Option<String>,
    pub(crate) text: String,
}

impl Reply {
    fn read(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Self {
        let mut response = response.unwrap();
        let header = |name: &str| Some(response.headers().get(name)?.to_str().unwrap().to_owned());
        let (content_type, token) = (header("content-type").unwrap_or_default(), header("stead-token"));
        Self {
            status: response.status().as_u16(),
            content_type,
            token,
            text: response.body_mut().read_to_string().unwrap(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Checks that this is a problem document of a kind.
    pub(crate) fn assert_problem(&self, status: u16, kind: &str) {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.content_type, "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["type"], format!("urn:stead:problem:{kind}"), "{problem}");
        assert_eq!(problem["status"], status);
        for member in ["title", "detail", "hint"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member} of {problem}");
        }
    }
}
