//! Checkpoints through the command line: with a server, without one, and back from one.

use crate::server::{Server, json_of, run};
use serde_json::Value;

#[test]
fn a_checkpoint_is_taken_listed_shown_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    for key in 0..20 {
        server.put(&key.to_string(), key);
    }
    let report = json_of(&server.command(&["checkpoint", "create", "--json"]));
    let number = report["number"].as_u64().unwrap().to_string();
    let list = json_of(&server.command(&["checkpoint", "list", "--json"]));
    assert!(
        list.as_array().unwrap().iter().any(|checkpoint| checkpoint["number"] == report["number"]),
        "{list}"
    );
    assert_eq!(
        json_of(&server.command(&["checkpoint", "show", &number, "--json"]))["number"],
        report["number"]
    );
    let verified = json_of(&server.command(&["checkpoint", "verify", &number, "--json"]));
    assert_eq!(verified["consistent"], true, "{verified}");
    for text in [
        server.command(&["checkpoint", "list"]),
        server.command(&["checkpoint", "show", &number]),
        server.command(&["checkpoint", "verify", &number]),
    ] {
        assert!(text.status.success(), "{text:?}");
        assert!(String::from_utf8_lossy(&text.stdout).contains(&number), "{text:?}");
    }
    let unknown = server.command(&["checkpoint", "show", "4000000"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    server.terminate();

    let data = dir.path().to_str().unwrap();
    let offline = json_of(&run(&["checkpoint", "verify", &number, "--data", data, "--json"]));
    assert_eq!(offline["consistent"], true, "{offline}");
    let offline = json_of(&run(&["checkpoint", "list", "--data", data, "--json"]));
    assert!(offline.as_array().unwrap().len() >= list.as_array().unwrap().len());
}

#[test]
fn an_old_checkpoint_is_deleted_and_the_newest_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let create = || json_of(&server.command(&["checkpoint", "create", "--json"]))["number"].to_string();
    let (old, new) = (create(), create());
    assert!(server.command(&["checkpoint", "delete", &old]).status.success());
    assert_eq!(server.command(&["checkpoint", "show", &old]).status.code(), Some(1));
    let refused = server.command(&["checkpoint", "delete", &new]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
}

#[test]
fn a_checkpoint_is_restored_into_a_new_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (data, restored) = (dir.path().join("data"), dir.path().join("restored"));
    let server = Server::start(&data, &[]);
    server.put("a", 1);
    let token = server.put("b", 2).token.unwrap();
    let number = json_of(&server.command(&["checkpoint", "create", "--json"]))["number"].to_string();
    server.put("a", 10);
    server.terminate();

    let (from, into) = (data.to_str().unwrap(), restored.to_str().unwrap());
    let args = ["restore", "--from", from, "--checkpoint", &number, "--into", into, "--json"];
    let report = json_of(&run(&args));
    assert_eq!(report["number"].to_string(), number, "{report}");
    // All or nothing, and never over data.
    let again = run(&args);
    assert_eq!(again.status.code(), Some(5), "{again:?}");

    let server = Server::start(&restored, &[]);
    let read = |key: &str| server.get(&format!("/v1/query/kv/{key}")).json();
    assert_eq!((read("a"), read("b"), read("c")), (Value::from(1), Value::from(2), Value::Null));
    // A token of another incarnation is not taken.
    let foreign = server.post_with("/v1/call/kv/a", "\"delete\"", &[("Stead-Token", &token)]);
    foreign.assert_problem(409, "bad-token");
    server.put("a", 3);
}

#[test]
fn a_damaged_checkpoint_is_told_and_exits_with_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    for key in 0..20 {
        server.put(&key.to_string(), key);
    }
    let number = json_of(&server.command(&["checkpoint", "create", "--json"]))["number"].to_string();
    server.terminate();
    let bundles = dir.path().join("checkpoints/bundles");
    for file in std::fs::read_dir(&bundles).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let verified = run(&["checkpoint", "verify", &number, "--data", dir.path().to_str().unwrap()]);
    assert_eq!(verified.status.code(), Some(6), "{verified:?}");
}
