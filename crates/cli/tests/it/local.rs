//! A local cluster of real processes, by the crate that `stead`'s commands and `stead-chaos` use.

use crate::patience::{PATIENCE, await_some};
use crate::server::{json_of, post_to, run, signal, stead};
use rustix::process::Signal;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use stead_local::{LocalCluster, LocalError, Options};

fn start(nodes: u16, data: &Path) -> LocalCluster {
    let program = Path::new(env!("CARGO_BIN_EXE_stead"));
    LocalCluster::start(program, nodes, data, Options::default()).unwrap()
}

fn put(cluster: &LocalCluster, node: usize, value: u64) {
    let address = cluster.addresses(node).http.to_string();
    json_of(&run(&[
        "call",
        "kv",
        "key",
        &format!(r#"{{"put":{{"value":{value}}}}}"#),
        "--addr",
        &address,
        "--json",
    ]));
}

fn get(cluster: &LocalCluster, node: usize) -> Option<Vec<u8>> {
    let output = run(&["get", "kv", "key", "--addr", &cluster.addresses(node).http.to_string()]);
    output.status.success().then_some(output.stdout)
}

#[test]
fn three_processes_replace_each_other_and_start_again_with_their_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = start(3, dir.path());
    let second = cluster.addresses(1).http.to_string();
    json_of(&run(&["service", "set", "kv", "--replicas", "3", "--addr", &second, "--json"]));
    await_three(&second);
    put(&cluster, 0, 7);

    cluster.kill(0).unwrap();
    assert_eq!(cluster.pid(0), None);
    assert_eq!(await_some("another node leads", || get(&cluster, 1)), b"7\n");
    let before = cluster.addresses(0);
    cluster.restart(0).unwrap();
    assert_eq!(cluster.addresses(0), before);
    assert_eq!(await_some("it serves again", || get(&cluster, 0)), b"7\n");

    cluster.pause(2).unwrap();
    assert!(cluster.is_paused(2));
    assert_eq!(await_some("it is not needed", || get(&cluster, 0)), b"7\n");
    cluster.resume(2).unwrap();
    assert_eq!(await_some("it goes on", || get(&cluster, 2)), b"7\n");
    cluster.check().unwrap();

    let ended = cluster.stop(1, PATIENCE).unwrap().unwrap();
    assert!(ended.success(), "{ended}");
    drop(cluster);

    // All of it starts again at once: none of the nodes is ready before most of them run.
    let cluster = start(3, dir.path());
    assert_eq!(await_some("the data are there", || get(&cluster, 1)), b"7\n");
}

/// Waits until each shard of `kv` has three members, all nodes vote, and no replica moves.
fn await_three(address: &str) {
    await_some("each shard has three members and three nodes vote", || {
        let status = json_of(&run(&["status", "--addr", address, "--json"]));
        let cluster = &status["cluster"];
        let whole = cluster["shards"].as_array()?.iter().all(|shard| {
            shard["members"].as_array().is_some_and(|members| members.len() == 3)
                && shard["is_active"] == true
        });
        let votes = cluster["nodes"].as_array()?.iter().all(|node| node["votes"] == true);
        (whole && votes && cluster["is_balancing"] == false).then_some(())
    });
}

/// Takes some seconds: the failover waits for the lease of a primary that is cut off.
#[test]
fn long_a_client_that_has_seen_what_a_failover_lost_gets_a_report_of_it_from_another_node() {
    let dir = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_stead"));
    let options = Options { links: true, ..Options::default() };
    let cluster = LocalCluster::start(program, 3, dir.path(), options).unwrap();
    let http = [0, 1, 2].map(|node| cluster.addresses(node).http.to_string());
    let dial = ["service", "set", "kv", "--replicas", "3", "--acks", "1", "--lease-ms", "2000"];
    json_of(&run(&[&dial[..], &["--addr", &http[0], "--json"]].concat()));
    await_three(&http[0]);
    let put = |node: usize, value: u64, token: &str| {
        let headers = [("Stead-Token", token)];
        let headers = if token.is_empty() { &[][..] } else { &headers[..] };
        post_to(&http[node], "/v1/call/kv/key", &format!(r#"{{"put":{{"value":{value}}}}}"#), headers)
    };
    // In the first minute of an epoch, a request waits until an attempt at it is committed, unless its like has survived in the epoch.
    assert_eq!(put(0, 8, "").status, 200);
    let token = put(0, 7, "").token.unwrap();
    let shard: usize = token.split('.').nth(2).unwrap().parse().unwrap();
    let shown = json_of(&run(&["service", "show", "kv", "--addr", &http[0], "--json"]));
    let primary = shown["shards"][shard]["primary"].as_u64().unwrap() as usize - 1;
    let other = (primary + 1) % 3;

    cluster.cut(primary);
    // It is stored by the primary alone, under whose lease it is answered.
    let lost = put(primary, 8, &token);
    assert_eq!(lost.status, 200, "{}", lost.text);
    let lost = lost.token.unwrap();
    // A call without an identity is not forwarded again once the primary is replaced.
    let report = await_some("another node leads", || {
        Some(put(other, 9, &format!("{token}, {lost}"))).filter(|reply| reply.status != 503)
    });
    report.assert_problem(409, "lost");
    let said = report.json()["lost"].clone();
    assert_eq!((&said["service"], said["shard"].as_u64()), (&"kv".into(), Some(shard as u64)), "{said}");
    assert!(said["kept"].as_u64() < said["seen"].as_u64(), "{said}");
    // The token of the report takes the place of the lost one.
    let again = put(other, 9, &report.token.unwrap());
    assert_eq!((again.status, &again.json()["previous"]), (200, &7.into()), "{}", again.text);
    assert_eq!(put(other, 10, &token).status, 200, "what this one refers to was kept");
    put(other, 11, &lost).assert_problem(409, "lost");
}

#[test]
fn a_node_that_cannot_start_is_reported_with_its_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { arguments: vec!["--no-such-option".into()], ..Options::default() };
    let failed = LocalCluster::start(Path::new(env!("CARGO_BIN_EXE_stead")), 1, dir.path(), options);
    let Err(LocalError::Ended { node: 1, said, .. }) = failed else { panic!("{failed:?}") };
    assert!(said.contains("--no-such-option"), "{said}");
}

#[test]
fn a_server_stops_once_its_standard_input_ends() {
    for supervised in ["--supervise=true", "--supervise=false"] {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().to_str().unwrap();
        let start =
            ["start", "--json", "--data", data, "--listen", "127.0.0.1:0", supervised, "--until-stdin-ends"];
        let mut server = stead(&start).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(server.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("ready"), "{line}");
        drop(server.stdin.take());
        assert!(server.wait().unwrap().success(), "{supervised}");
    }
}

/// `stead cluster up`, and the line that it prints once it is whole.
fn up(data: &Path) -> (Child, Value) {
    let data = data.to_str().unwrap();
    let up = ["cluster", "up", "--nodes", "3", "--json", "--listen", "127.0.0.1:0", "--data", data];
    let mut up = stead(&up).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(up.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert_eq!(ready["event"], "ready", "{ready}");
    (up, ready)
}

#[test]
fn long_a_cluster_that_is_up_ends_at_a_signal_with_its_nodes_and_keeps_its_data() {
    let dir = tempfile::tempdir().unwrap();
    for life in 0..2 {
        let (mut up, ready) = up(dir.path());
        let nodes = ready["nodes"].as_array().unwrap();
        assert_eq!(nodes.len(), 3);
        let (first, last) = (nodes[0]["http"].as_str().unwrap(), nodes[2]["http"].as_str().unwrap());
        if life == 0 {
            let put = ["call", "kv", "key", r#"{"put":{"value":7}}"#, "--addr", first, "--json"];
            json_of(&run(&put));
        }
        let got = json_of(&run(&["get", "kv", "key", "--addr", last, "--json"]));
        assert_eq!(got["reply"], 7, "life {life}");
        signal(i32::try_from(up.id()).unwrap(), Signal::TERM);
        assert!(up.wait().unwrap().success(), "life {life}");
        for node in nodes {
            let pid = node["pid"].as_i64().unwrap();
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the process of {node} has not ended");
        }
    }
}
