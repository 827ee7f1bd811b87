//! A server whose standard error is broken: it serves, takes checkpoints, fails and ends like any other.

use crate::patience::await_until;
use crate::server::{Server, signal};
use rustix::process::Signal;
use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;

/// A full pipe without a reader.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

/// Runs a server that serves, takes checkpoints, is killed once under a supervisor, and ends at a signal.
fn serves(stderr: impl Fn() -> Stdio) {
    let dir = tempfile::tempdir().unwrap();
    for supervise in ["--supervise=false", "--supervise=true"] {
        let more = [supervise, "--log-level=trace"];
        let mut server = Server::start_with_stderr(dir.path(), &more, stderr());
        for value in 1..4 {
            server.put("a", value);
            assert_eq!(server.get("/v1/query/kv/a").json(), value);
            let taken = server.post("/v1/checkpoints", "{}");
            assert_eq!(taken.status, 201, "{}", taken.text);
        }
        // Each malformed request writes a line.
        for _ in 0..100 {
            assert_eq!(server.get("/nowhere").status, 404);
        }
        if supervise == "--supervise=true" {
            signal(server.pid, Signal::KILL);
            assert_eq!(server.get("/v1/query/kv/a").json(), 3);
            server.await_ready();
        }
        assert_eq!(server.get("/v1/status").json()["failure"], serde_json::Value::Null);
        let (status, _) = server.terminate();
        assert_eq!(status.code(), Some(0));
    }
}

#[test]
fn a_server_goes_on_when_standard_error_is_a_closed_pipe() {
    serves(|| Stdio::from(std::io::pipe().unwrap().1));
}

#[test]
fn a_server_goes_on_when_standard_error_is_a_full_disk() {
    serves(|| Stdio::from(File::options().write(true).open("/dev/full").unwrap()));
}

#[test]
fn a_server_goes_on_when_standard_error_is_a_full_pipe_that_is_not_read() {
    let (mut reader, writer) = full_pipe();
    serves(|| Stdio::from(writer.try_clone().unwrap()));
    drop(writer);
    let mut text = Vec::new();
    reader.read_to_end(&mut text).unwrap();
    assert!(text.iter().all(|byte| *byte == b'x'), "the pipe was full all the time");
}

#[test]
fn lines_that_standard_error_does_not_take_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let full = Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let server = Server::start_with_stderr(dir.path(), &["--supervise=false"], full);
    await_until("the line with its address is not written, and counted", || {
        let metrics = server.get("/metrics").text;
        let line =
            metrics.lines().find(|line| line.starts_with("stead_stderr_lines_dropped_total ")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap() > 0
    });
}
