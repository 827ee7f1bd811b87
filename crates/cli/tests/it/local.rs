//! A local cluster of real processes, by the crate that `stead`'s commands and `stead-chaos` use.

use crate::patience::{PATIENCE, await_some};
use crate::server::{json_of, run, stead};
use std::path::Path;
use std::process::Stdio;
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
    await_some("each shard has three members and three nodes vote", || {
        let status = json_of(&run(&["service", "show", "kv", "--addr", &second, "--json"]));
        let whole = status["shards"].as_array()?.iter().all(|shard| {
            shard["members"].as_array().is_some_and(|members| members.len() == 3)
                && shard["is_active"] == true
        });
        let nodes = json_of(&run(&["node", "list", "--addr", &second, "--json"]));
        (whole && nodes.as_array()?.iter().all(|node| node["votes"] == true)).then_some(())
    });
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
        let mut stdout = std::io::BufReader::new(server.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        assert!(line.contains("ready"), "{line}");
        drop(server.stdin.take());
        assert!(server.wait().unwrap().success(), "{supervised}");
    }
}
