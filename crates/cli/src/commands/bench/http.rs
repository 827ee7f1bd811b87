//! Answered calls over HTTP: the gateway with the `kv` service, loaded by a child process over the loopback.

use super::figures::{Goal, Report};
use super::load::Answers;
use super::room::Room;
use super::{BenchArgs, failed};
use crate::failure::{Exit, Failure};
use serde::de::DeserializeOwned;
use std::process::{Child, Command, Stdio};
use stead::kv::Kv;
use stead::{Node, ServiceOptions};
use stead_gateway::http::{self, Limits};

const WORKLOAD: &str = "http";
/// Shards of `kv`, the same number as in `stead start`.
const SHARDS: u32 = 16;

pub(super) fn run(args: &BenchArgs, report: &mut Report) -> Result<(), Failure> {
    let room = Room::new(args)?;
    let node = Node::builder(room.path())
        .service::<Kv>(ServiceOptions::default().shards(SHARDS))
        .open()
        .map_err(|error| failed("open a node")(&error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| failed("make a runtime")(&error))?;
    let inside = runtime.enter();
    let any = "127.0.0.1:0".parse().map_err(|error| failed("read an address")(&error))?;
    let listener = http::listen(any).map_err(|error| failed("listen")(&error))?;
    let server = http::serve(&node, listener, room.path(), Limits::default());
    let server = server.map_err(|error| failed("serve")(&error))?;
    let address = server.address().to_string();
    let connections = args.connections.to_string();
    let load = |seconds: u64| -> Result<Answers, Failure> {
        let seconds = seconds.to_string();
        child(&["http-load", "--address", &address, "--connections", &connections, "--seconds", &seconds])
    };
    load(args.seconds.min(2))?;
    let (mut rates, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        let answers = load(args.seconds)?;
        if answers.refused > 0 {
            return Err(Failure::new(Exit::Failed, format!("{} calls were refused", answers.refused)));
        }
        rates.push(answers.answered as f64 / answers.seconds);
        p50.push(answers.p50_ms);
        p99.push(answers.p99_ms);
    }
    drop(inside);
    runtime.block_on(server.shutdown());
    node.shutdown();
    report.add(
        WORKLOAD,
        format!("answered, {connections} connections"),
        "1/s",
        &rates,
        Some(Goal::AtLeast(30_000.0)),
    );
    report.add(WORKLOAD, "p50", "ms", &p50, None);
    report.add(WORKLOAD, "p99", "ms", &p99, None);
    Ok(())
}

/// Runs this program as `stead bench` with arguments, and reads the JSON value that it prints.
pub(super) fn child<T: DeserializeOwned>(arguments: &[&str]) -> Result<T, Failure> {
    let child = Command::new(stead_gateway::program::path())
        .arg("bench")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .and_then(Child::wait_with_output)
        .map_err(|error| failed("run a child process")(&error))?;
    if !child.status.success() {
        return Err(Failure::new(
            Exit::Failed,
            format!("the child process {arguments:?} failed: {}", child.status),
        ));
    }
    serde_json::from_slice(&child.stdout).map_err(|error| failed("read a child's figures")(&error))
}
