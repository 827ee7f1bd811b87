//! A user's own program that serves its node: the example, with its supervisor.

use crate::example::example;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

fn post(address: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let len = body.len();
    let head = "host: localhost\r\nconnection: close\r\ncontent-type: application/json";
    write!(stream, "POST {path} HTTP/1.1\r\n{head}\r\ncontent-length: {len}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // Its child dies with it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_served_node_is_called_killed_started_again_and_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(example("serve", &[]));
    command.arg(dir.path().join("data")).env("STEAD_LISTEN", "127.0.0.1:0").stderr(Stdio::piped());
    let mut served = Served(command.spawn().unwrap());
    let mut lines = BufReader::new(served.0.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    let mut ready = || {
        let line = lines.find(|line| line.starts_with("stead: serving ")).expect("it reports that it serves");
        let word = |after: &str| line.split(after).nth(1).unwrap().split(',').next().unwrap().to_owned();
        (word("http://"), word("process ").parse::<i32>().unwrap())
    };
    let (address, child) = ready();
    assert_ne!(child, served.0.id() as i32, "the server is the supervisor's child");
    let added = post(&address, "/v1/call/counter/a", r#"{"Add":5}"#);
    assert!(added.starts_with("HTTP/1.1 200") && added.ends_with("\r\n\r\n5"), "{added}");
    kill_process(Pid::from_raw(child).unwrap(), Signal::KILL).unwrap();
    // The socket outlives the child: this request waits for the next one.
    let total = post(&address, "/v1/query/counter/a", "\"Total\"");
    assert!(total.ends_with("\r\n\r\n5"), "{total}");
    let (again, other) = ready();
    assert_eq!(again, address);
    assert_ne!(other, child);
    kill_process(Pid::from_raw(served.0.id() as i32).unwrap(), Signal::TERM).unwrap();
    assert!(served.0.wait().unwrap().success(), "SIGTERM shuts it down");
    assert!(lines.any(|line| line == "stead: stopped"));
}

#[test]
fn an_address_that_can_not_be_served_is_reported() {
    for (address, why) in
        [("nowhere", "Error: STEAD_LISTEN is"), ("0.0.0.0:0", "can be reached from other machines")]
    {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let refused =
            Command::new(example("serve", &[])).arg(&data).env("STEAD_LISTEN", address).output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(stderr.contains(why), "{stderr}");
        assert!(!data.exists(), "nothing is created for a server that cannot start");
    }
}

#[test]
fn a_server_whose_supervisor_is_gone_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(example("serve", &[]));
    // Its parent is this test.
    command.arg(&data).env("_STEAD_CHILD_OF", i32::MAX.to_string());
    let orphan = command.stdin(std::os::fd::OwnedFd::from(socket)).output().unwrap();
    assert_eq!(orphan.status.code(), Some(1), "{orphan:?}");
    assert!(String::from_utf8_lossy(&orphan.stderr).contains("Error: the supervisor died"), "{orphan:?}");
    assert!(!data.exists());
}
