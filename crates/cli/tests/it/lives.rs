//! Starts, crashes, restarts and ends of a server.

use crate::patience::await_until;
use crate::server::{Server, json_of, run, signal};
use rustix::process::Signal;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;

#[test]
fn answered_writes_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    for life in 0..3 {
        let server = Server::start(dir.path(), &[]);
        for key in 0..50 {
            if life > 0 {
                assert_eq!(server.get(&format!("/v1/query/kv/{key}")).json(), life * 1000 + key - 1000);
            }
            server.put(&key.to_string(), life * 1000 + key);
        }
        server.kill();
    }
}

#[test]
fn a_supervised_server_comes_back_at_the_same_address() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start_with(dir.path(), &[]);
    let address = server.address.clone();
    for life in 1..3 {
        server.put("a", life);
        signal(server.pid, Signal::KILL);
        // The socket outlives the server: this request waits for the next life instead of being refused.
        assert_eq!(server.get("/v1/query/kv/a").json(), life);
        let ready = server.await_ready();
        assert_eq!(server.address, address);
        assert!(ready["recovery"]["entries_replayed"].as_u64().unwrap() > 0, "{ready}");
    }
    let (status, stderr) = server.terminate();
    assert!(status.success(), "{status}: {stderr}");
    assert!(stderr.contains("starting it again"), "{stderr}");
}

#[test]
fn a_supervised_server_comes_back_after_its_binary_was_replaced_and_removed() {
    // Next to the binary, so that links to it can be made.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (program, new) = (dir.path().join("stead"), dir.path().join("new"));
    let usual = env!("CARGO_BIN_EXE_stead");
    std::fs::copy(usual, &program).unwrap();
    let mut server = Server::start_at(&program, &dir.path().join("data"));
    server.put("a", 1);
    std::fs::hard_link(usual, &new).unwrap();
    std::fs::rename(&new, &program).unwrap();
    let runs = |pid: i32| std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert!(runs(server.pid).to_str().unwrap().ends_with("(deleted)"));
    signal(server.pid, Signal::KILL);
    server.await_ready();
    assert_eq!(runs(server.pid), program, "the new file is preferred");
    std::fs::remove_file(&program).unwrap();
    signal(server.pid, Signal::KILL);
    server.await_ready();
    assert_eq!(server.get("/v1/query/kv/a").json(), 1);
    let (status, stderr) = server.terminate();
    assert!(status.success(), "{status}: {stderr}");
}

#[test]
fn a_server_shuts_down_at_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    for supervise in ["--supervise=false", "--supervise=true"] {
        let server = Server::start_with(dir.path(), &[supervise]);
        server.put("a", 1);
        let (status, stderr) = server.terminate();
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert!(stderr.contains("stopped"), "{stderr}");
    }
}

#[test]
fn a_server_that_does_not_end_is_killed_by_a_second_signal() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), &[]);
    server.put("a", 1);
    // A stopped process handles no signal.
    signal(server.pid, Signal::STOP);
    signal(server.own_pid(), Signal::INT);
    let (status, stderr) = server.terminate_impatiently();
    assert_eq!(status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("killed before its shutdown was complete"), "{stderr}");
    let server = Server::start(dir.path(), &[]);
    assert_eq!(server.get("/v1/query/kv/a").json(), 1);
}

#[test]
fn a_server_without_a_supervisor_ends_at_once_at_a_second_signal() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    server.put("a", 1);
    // An open request: the server asks for its body and waits for the rest of it, which delays its end.
    let mut open = TcpStream::connect(&server.address).unwrap();
    let head = "POST /v1/call/kv/a HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 9\r\nexpect: 100-continue";
    write!(open, "{head}\r\nhost: {}\r\n\r\n", server.address).unwrap();
    let mut asked = [0; 12];
    open.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100");
    signal(server.own_pid(), Signal::INT);
    await_until("the server takes no connection", || TcpStream::connect(&server.address).is_err());
    let (status, stderr) = server.terminate_impatiently();
    assert_eq!(status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("shutdown was cut short"), "{stderr}");
    let server = Server::start(dir.path(), &[]);
    assert_eq!(server.get("/v1/query/kv/a").json(), 1);
}

#[test]
fn signals_within_a_second_count_as_one_and_a_stop_ends_at_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    for supervise in ["--supervise=false", "--supervise=true"] {
        let server = Server::start_with(dir.path(), &[supervise, "--shutdown-timeout", "300ms"]);
        server.put("a", 1);
        // A request that never ends delays the stop.
        let mut open = TcpStream::connect(&server.address).unwrap();
        let head = "POST /v1/call/kv/a HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 9\r\nexpect: 100-continue";
        write!(open, "{head}\r\nhost: {}\r\n\r\n", server.address).unwrap();
        let mut asked = [0; 12];
        open.read_exact(&mut asked).unwrap();
        signal(server.own_pid(), Signal::TERM);
        signal(server.own_pid(), Signal::INT);
        let (status, stderr) = server.terminate();
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert!(stderr.contains("stopped"), "{stderr}");
    }
}

#[test]
fn a_second_server_on_the_same_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let data = dir.path().to_str().unwrap();
    for supervise in ["--supervise=false", "--supervise=true"] {
        let second = run(&["start", "--json", "--data", data, "--listen", "127.0.0.1:0", supervise]);
        assert_eq!(second.status.code(), Some(5), "{second:?}");
        let failure: serde_json::Value = serde_json::from_slice(&second.stdout).unwrap();
        assert_eq!(failure["exit"], 5);
        assert!(String::from_utf8_lossy(&second.stderr).contains("cause: "), "{second:?}");
    }
    server.put("a", 1);
}

#[test]
fn an_address_of_other_machines_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let refused = run(&["start", "--data", data.to_str().unwrap(), "--listen", "0.0.0.0:0"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.contains("TLS") && stderr.contains("127.0.0.1"), "{stderr}");
    assert!(!data.exists(), "nothing is created for a server that cannot start");
}

#[test]
fn an_address_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = run(&["start", "--data", dir.path().to_str().unwrap(), "--listen", &address]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains(&address));
}

#[test]
fn a_directory_that_is_not_steads_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    let refused = run(&["start", "--data", dir.path().to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    assert_eq!(std::fs::read_to_string(dir.path().join("thesis.tex")).unwrap(), "years of work");
}

#[test]
fn a_variable_that_an_orchestrator_sets_is_named_and_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let vars = [("STEAD_PORT", "tcp://10.0.0.11:7420"), ("STEAD_CFG_SERVICES_KW_SHARDS", "3")];
    let server = Server::start_in(dir.path(), &["--supervise=false"], &vars);
    server.put("a", 1);
    let (status, stderr) = server.terminate();
    assert!(status.success(), "{status}: {stderr}");
    assert!(
        stderr.contains("unknown variables: STEAD_PORT") && stderr.contains("service \"kw\""),
        "{stderr}"
    );
}

#[test]
fn a_configuration_that_means_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("stead.toml");
    std::fs::write(&config, "thread = 2").unwrap();
    let data = dir.path().join("data");
    let args = [
        "start",
        "--data",
        data.to_str().unwrap(),
        "--config",
        config.to_str().unwrap(),
        "--supervise=false",
    ];
    let refused = run(&[&args[..], &["--listen", "127.0.0.1:0"]].concat());
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("did you mean"), "{refused:?}");
}

#[test]
fn a_configuration_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("stead.toml");
    std::fs::write(&config, "[services.kv]\nshards = 3\n").unwrap();
    let server = Server::start(&dir.path().join("data"), &["--config", config.to_str().unwrap()]);
    assert_eq!(json_of(&server.command(&["status", "--json"]))["services"][0]["shards"], json!(3));
}
