//! The commands against a running server.

use crate::patience::await_until;
use crate::server::{Server, json_of, run, signal, stead};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::process::Stdio;

#[test]
fn a_process_is_called_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let put = ["call", "kv", "a b/c", r#"{"put":{"value":"hello"}}"#];
    let called = server.command(&put);
    assert!(called.status.success(), "{called:?}");
    assert_eq!(serde_json::from_slice::<Value>(&called.stdout).unwrap()["applied"], true);
    let got = server.command(&["get", "kv", "a b/c"]);
    assert_eq!(String::from_utf8_lossy(&got.stdout), "\"hello\"\n");
    let got = json_of(&server.command(&["get", "kv", "a b/c", "\"get\"", "--json"]));
    assert_eq!(got["reply"], "hello");
    assert!(got["token"].as_str().unwrap().starts_with("v1."));
    let once =
        ["call", "kv", "n", r#"{"compare_and_set":{"expected":null,"value":1}}"#, "--idempotency-key", "k"];
    assert_eq!(server.command(&once).stdout, server.command(&once).stdout);
}

#[test]
fn json_comes_from_standard_input_and_what_cannot_be_read_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let from_input = |args: &[&str], input: &str| {
        let mut command = stead(&[args, &["-", "--addr", &server.address]].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let put = from_input(&["call", "kv", "a"], r#"{"put":{"value":"from a file"}}"#);
    assert!(put.status.success(), "{put:?}");
    assert_eq!(from_input(&["get", "kv", "a"], "\"get\"").stdout, b"\"from a file\"\n");
    // JSON that has lost its quotes to the shell, and JSON of a user who knows only the other requests.
    for (request, hint) in [
        ("{put:", "quote the JSON for the shell"),
        (r#"{"delete":{}}"#, r#"'"delete"'"#),
        (r#"{"put":{"value":1,"value":2}}"#, "no field twice"),
        (r#"{"put":{"value":123456789012345678901}}"#, "64 bits"),
    ] {
        let refused = server.command(&["call", "kv", "a", request]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let stderr = String::from_utf8_lossy(&refused.stderr);
        let shown = stderr.lines().find(|line| line.starts_with("hint: ")).unwrap();
        assert!(shown.contains(hint) && !shown.contains("/v1/"), "{stderr}");
    }
    assert!(server.command(&["call", "kv", "a", "\"delete\""]).status.success());
    assert_eq!(server.command(&["get", "kv", "a"]).stdout, b"null\n");
}

#[test]
fn failures_have_their_code_cause_and_hint() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let unknown = server.command(&["call", "nothing", "a", "1", "--json"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    let failure: Value = serde_json::from_slice(&unknown.stdout).unwrap();
    assert_eq!(failure["problem"]["type"], "urn:stead:problem:unknown-service");
    let stderr = String::from_utf8_lossy(&unknown.stderr);
    assert!(
        stderr.contains("error: ") && stderr.contains("cause: ") && stderr.contains("hint: "),
        "{stderr}"
    );
    let malformed = server.command(&["call", "kv", "a", "{"]);
    assert_eq!(malformed.status.code(), Some(1));
    assert!(malformed.stdout.is_empty(), "only data goes to standard output");
    assert_eq!(run(&["call", "kv"]).status.code(), Some(2));
    // No process listens on a port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let unreachable = run(&["get", "kv", "a", "--addr", &free]);
    assert_eq!(unreachable.status.code(), Some(4), "{unreachable:?}");
    // A server that accepts connections and never answers gets another exit code.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let late = run(&["get", "kv", "a", "--addr", &address, "--timeout-ms", "1"]);
    let stderr = String::from_utf8_lossy(&late.stderr);
    assert_eq!(late.status.code(), Some(4), "{late:?}");
    assert!(stderr.contains("within 1 ms") && stderr.contains("--timeout-ms"), "{stderr}");
    for wrong in [["get", "kv", ""], ["get", "", "a"]] {
        assert_eq!(server.command(&wrong).status.code(), Some(2), "{wrong:?}");
    }
    for address in ["nowhere", "https://localhost:7420"] {
        let wrong = run(&["status", "--addr", address]);
        let stderr = String::from_utf8_lossy(&wrong.stderr);
        assert!(wrong.status.code() == Some(2) && stderr.contains("HOST:PORT"), "{wrong:?}");
    }
}

/// Starts a server that answers by the request line, for answers that `kv` never gives; returns its address and the
/// request lines.
fn answers_by(
    answer: impl Fn(&str) -> (u16, Value) + Send + 'static,
) -> (String, std::sync::mpsc::Receiver<String>) {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (asks, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let line = lines.next().unwrap_or_default().replace(" HTTP/1.1", "");
            lines.find(String::is_empty);
            let (status, body) = answer(&line);
            let body = body.to_string();
            let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}", body.len());
            // Before the answer: who has that may look for the request.
            if asks.send(line).is_err() {
                return;
            }
            let _ = write!(stream, "{head}\r\ncontent-type: application/json\r\n\r\n{body}");
        }
    });
    (address, asked)
}

#[test]
fn all_dead_letters_that_fit_are_retried_or_deleted_page_by_page() {
    let letter = |index: u64, reason: &str| json!({"shard": 3, "index": index, "reason": reason});
    let problem = |status, kind: &str| (status, json!({"type": format!("urn:stead:problem:{kind}")}));
    let (address, asked) = answers_by(move |line| match line {
        "GET /v1/services" => (200, json!([{"name": "kv", "shards": 4}])),
        "GET /v1/dead-letters/kv?limit=1000" => {
            let letters = [letter(1, "no stock"), letter(2, "panicked"), letter(3, "no stock left")];
            (200, json!({"dead_letters": letters, "next": "3 4"}))
        }
        "GET /v1/dead-letters/kv?limit=1000&after=3%204" => {
            // One failed again meanwhile, and one is listed a second time.
            let letters = [letter(3, "no stock"), letter(5, "no stock"), letter(6, "no stock")];
            (200, json!({"dead_letters": letters, "next": null}))
        }
        "POST /v1/dead-letters/3/3/retry" => problem(409, "dead-letter-failed"),
        "POST /v1/dead-letters/3/5/retry" => problem(409, "dead-letter-final"),
        "POST /v1/dead-letters/3/6/retry" => problem(404, "unknown-dead-letter"),
        _ => (200, json!({})),
    });
    let retry = ["dead-letter", "retry", "--all", "--reason", "no stock", "--addr", &address, "--json"];
    let counts = json_of(&run(&retry));
    assert_eq!(counts, json!({"matched": 4, "done": 1, "failed": 1, "final": 1, "gone": 1}));
    let posts: Vec<String> = asked.try_iter().filter(|line| line.starts_with("POST")).collect();
    assert_eq!(posts.len(), 4, "{posts:?}");

    let delete = run(&["dead-letter", "delete", "--all", "--service", "kv", "--addr", &address]);
    assert!(delete.status.success(), "{delete:?}");
    assert_eq!(String::from_utf8_lossy(&delete.stdout), "5 of 5 dead letters deleted\n");
    assert!(asked.try_iter().all(|line| line != "GET /v1/services"), "only the named service is looked at");
    // A failure on the way is part of the same object, beside the counts.
    let (address, _asked) = answers_by(move |line| match line {
        "DELETE /v1/dead-letters/3/2" => problem(503, "not-ready"),
        line if line.starts_with("DELETE") => (204, json!({})),
        _ => (200, json!({"dead_letters": [letter(1, "x"), letter(2, "x")], "next": null})),
    });
    let delete = ["dead-letter", "delete", "--all", "--service", "kv", "--addr", &address, "--json"];
    let broken = run(&delete);
    assert_eq!(broken.status.code(), Some(1), "{broken:?}");
    let report: Value = serde_json::from_slice(&broken.stdout).unwrap();
    assert_eq!((&report["done"], &report["matched"], &report["exit"]), (&json!(1), &json!(2), &json!(1)));
    assert_eq!(report["problem"]["type"], "urn:stead:problem:not-ready");
    // 0 lists all of them.
    let all = run(&["dead-letter", "list", "kv", "--limit", "0", "--addr", &address, "--json"]);
    assert_eq!(json_of(&all).as_array().unwrap().len(), 2);
    // One or all: not both, and not neither.
    for args in [&["3", "1", "--all"][..], &[], &["3"], &["3", "1", "--reason", "x"]] {
        let wrong = run(&[&["dead-letter", "retry"], args].concat());
        assert_eq!(wrong.status.code(), Some(2), "{args:?}: {wrong:?}");
    }
}

#[test]
fn dead_letters_are_listed_and_a_missing_one_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    for args in [&["dead-letter", "list", "--json"][..], &["dead-letter", "list", "kv", "--json"]] {
        assert_eq!(json_of(&server.command(args)), json!([]));
    }
    assert!(server.command(&["dead-letter", "list"]).status.success());
    for (args, problem) in [
        (["dead-letter", "retry", "0", "1", "--json"], "unknown-dead-letter"),
        (["dead-letter", "delete", "0", "1", "--json"], "unknown-dead-letter"),
        (["dead-letter", "retry", "16", "1", "--json"], "unknown-shard"),
    ] {
        let refused = server.command(&args);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let failure: Value = serde_json::from_slice(&refused.stdout).unwrap();
        assert_eq!(failure["problem"]["type"], format!("urn:stead:problem:{problem}"));
    }
}

#[test]
fn the_status_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    server.put("a", 1);
    let shown = server.command(&["status", "--shards"]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success() && text.contains("kv") && text.contains("colour"), "{shown:?}");
    let status = json_of(&server.command(&["status", "--json"]));
    assert_eq!(status["services"][0]["name"], "kv");
    assert_eq!(
        (&status["memory"]["bytes_max"], &status["memory"]["request_bytes"]),
        (&(1 << 30).into(), &0.into())
    );
}

#[test]
fn the_log_is_readable_with_and_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let shard = server.put("customer", 1234).token.unwrap().split('.').nth(2).unwrap().to_owned();
    let shown = server.command(&["log", &shard]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success() && text.contains("customer"), "{shown:?}");
    let lines = |output: &std::process::Output| -> Vec<Value> {
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let online = lines(&server.command(&["log", &shard, "--json"]));
    assert_eq!(online[0]["index"], json!(1));
    let data = dir.path().to_str().unwrap();
    let owned = run(&["log", &shard, "--data", data]);
    assert_eq!(owned.status.code(), Some(5), "a log that a server is writing to looks damaged: {owned:?}");
    server.kill();
    let offline = lines(&run(&["log", &shard, "--data", data, "--json"]));
    assert_eq!(offline, online);
    assert_eq!(run(&["log", "99999", "--data", data]).status.code(), Some(1));
}

#[test]
fn wrong_usage_is_reported_as_json_too() {
    for (args, names) in [
        (&["call", "kv", "--json"][..], "<KEY>"),
        (&["--json", "call", "kv", "a", "1", "--nothing"], "--nothing"),
        (&["--json", "nothing"], "nothing"),
        (&["--json", "checkpoint", "show", "x"], "'x'"),
        (&["--json"], "command"),
        (&["--json", "checkpoint"], "command"),
    ] {
        let misused = run(args);
        assert_eq!(misused.status.code(), Some(2), "{misused:?}");
        let failure: Value = serde_json::from_slice(&misused.stdout).unwrap();
        assert_eq!(failure["exit"], 2);
        assert!(failure["error"].as_str().unwrap().contains(names), "{failure}");
        assert!(!failure["hint"].as_str().unwrap().is_empty(), "{failure}");
        assert!(!misused.stderr.is_empty(), "standard error has it, too");
    }
    let plain = run(&["call", "kv", "a", "1", "--nothing", "--", "--json"]);
    assert!(plain.status.code() == Some(2) && plain.stdout.is_empty(), "{plain:?}");
    let help = run(&["--json", "--help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("Usage"), "{help:?}");
}

#[test]
fn an_interrupted_benchmark_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let count = || std::fs::read_dir(dir.path()).unwrap().count();
    let arguments = ["bench", "requests", "--data", dir.path().to_str().unwrap()];
    let mut bench = stead(&arguments).stderr(Stdio::null()).spawn().unwrap();
    await_until("its measurement begins", || {
        assert!(bench.try_wait().unwrap().is_none(), "it ended before its measurement began");
        count() > 0
    });
    signal(bench.id() as i32, Signal::TERM);
    assert_eq!(bench.wait().unwrap().code(), Some(130));
    assert_eq!(count(), 0);
}

/// Slow: the figures of the machine, which accompany all others, take ten seconds.
#[test]
fn long_a_benchmark_prints_its_figures_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let tiny = ["--rounds", "1", "--seconds", "1", "--callers", "2", "--data", data, "--json"];
    let report = json_of(&run(&[&["bench", "requests"][..], &tiny].concat()));
    assert!(report["machine"]["cores"].as_u64() > Some(0), "{report}");
    let figures = report["figures"].as_array().unwrap();
    for workload in ["machine", "requests"] {
        let of: Vec<_> = figures.iter().filter(|figure| figure["workload"] == workload).collect();
        assert!(!of.is_empty(), "no figure of {workload}: {report}");
        for figure in of {
            let value = |name: &str| figure[name].as_f64().unwrap();
            assert!(value("min") <= value("median") && value("median") <= value("max"), "{figure}");
            assert!(!figure["unit"].as_str().unwrap().is_empty() && value("rounds") >= 1.0, "{figure}");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn processes_are_listed_shown_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    for n in 0..25 {
        server.put(&format!("user%2F{n}"), n);
    }
    server.put("other", 7);
    let lines = |args: &[&str]| -> Vec<Value> {
        let output = server.command(args);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let keys = |processes: &[Value]| -> Vec<String> {
        let mut keys: Vec<_> =
            processes.iter().map(|process| process["key"].as_str().unwrap().to_owned()).collect();
        keys.sort();
        keys
    };
    let all = lines(&["process", "list", "kv", "--json"]);
    assert_eq!(all.len(), 26);
    let users = lines(&["process", "list", "kv", "--prefix", "user/", "--limit", "0", "--json"]);
    assert!(users.len() == 25 && keys(&users).iter().all(|key| key.starts_with("user/")), "{users:?}");
    assert!(users.iter().all(|process| process["bytes"].as_u64() > Some(0)), "{users:?}");
    assert_eq!(lines(&["process", "list", "kv", "--limit", "3", "--json"]).len(), 3);
    let cut = server.command(&["process", "list", "kv", "--limit", "3"]);
    assert!(String::from_utf8_lossy(&cut.stderr).contains("more than 3"), "{cut:?}");

    let shown = json_of(&server.command(&["process", "show", "kv", "user/7", "--json"]));
    assert_eq!(
        (&shown["exists"], &shown["version"], &shown["state"]["value"]),
        (&json!(true), &json!(1), &json!(7))
    );
    let shard = server.put("user%2F7", 8).token.unwrap().split('.').nth(2).unwrap().to_owned();
    assert_eq!(shown["shard"].to_string(), shard);
    let text = server.command(&["process", "show", "kv", "user/7"]);
    assert!(String::from_utf8_lossy(&text.stdout).contains(&format!("shard    {shard}")), "{text:?}");
    let none = json_of(&server.command(&["process", "show", "kv", "missing", "--json"]));
    assert!(none["exists"] == false && none["shard"].is_u64(), "{none}");

    let log = lines(&["log", "--process", "kv/user/7", "--json"]);
    assert!(log.len() == 2 && log.iter().all(|entry| entry["process"] == "user/7"), "{log:?}");
    let rest = lines(&["log", "--process", "kv/user/7", "--json", "--from", &log[1]["index"].to_string()]);
    assert_eq!(rest, log[1..]);

    let list = server.command(&["process", "list", "kv", "--prefix", "user/1"]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let rows: Vec<&str> = list.lines().skip(1).collect();
    assert!(rows.len() == 11 && rows.is_sorted(), "{list}");
    let deleted = json_of(&server.command(&["process", "delete", "kv", "user/7", "--json"]));
    assert_eq!(deleted["deleted"]["records"], 1);
    assert_eq!(server.get("/v1/query/kv/user%2F7").json(), Value::Null);
    let again = server.command(&["process", "delete", "kv", "user/7", "--json"]);
    let failure: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(failure["problem"]["type"], "urn:stead:problem:unknown-process");
    let deleted = json_of(&server.command(&["process", "delete", "kv", "--prefix", "user/", "--json"]));
    assert_eq!(deleted["deleted"]["processes"], 24);
    assert_eq!(keys(&lines(&["process", "list", "kv", "--json"])), ["other"]);
    for misused in [
        &["process", "delete", "kv"][..],
        &["log", "--process", "kv"],
        &["log"],
        &["log", "1", "--process", "kv/a"],
    ] {
        assert_eq!(server.command(misused).status.code(), Some(2), "{misused:?}");
    }
    server.get("/v1/processes/nothing").assert_problem(404, "unknown-service");
    for bad in ["after=x", "after=1.x", "limit=0", "limit=1001", "form=1"] {
        server.get(&format!("/v1/processes/kv?{bad}")).assert_problem(400, "bad-request");
    }
    // The result is the same without a server.
    server.kill();
    let data = dir.path().to_str().unwrap();
    let offline = run(&["log", "--process", "kv/user/7", "--data", data, "--json"]);
    let text = String::from_utf8(offline.stdout).unwrap();
    assert_eq!(text.lines().count(), 3, "two calls and a deletion: {text}");
    assert!(text.contains("deleted by an operator"), "{text}");
    assert_eq!(run(&["log", "--process", "nothing/a", "--data", data]).status.code(), Some(1));
}

#[test]
fn a_followed_log_shows_entries_as_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    server.put("a", 1);
    let mut follow = stead(&["log", "--process", "kv/a", "--follow", "--json", "--addr", &server.address])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().unwrap()));
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    let first = next();
    server.put("b", 9);
    server.put("a", 2);
    let second = next();
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert!(second["index"].as_u64() > first["index"].as_u64(), "{first} {second}");
    assert_eq!((&first["process"], &second["process"]), (&json!("a"), &json!("a")));
}

#[test]
fn a_followed_log_ends_when_its_reader_does() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    server.put("a", 1);
    for of in [&["0"][..], &["--process", "kv/a"]] {
        let args = [&["log"], of, &["--follow", "--json", "--addr", &server.address]].concat();
        let mut follow = stead(&args).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = std::io::BufReader::new(follow.stdout.take().unwrap());
        let mut first = String::new();
        std::io::BufRead::read_line(&mut stdout, &mut first).unwrap();
        serde_json::from_str::<Value>(&first).unwrap();
        drop(stdout);
        // No new entry comes whose write would fail.
        assert_eq!(follow.wait().unwrap().code(), Some(0), "{of:?}");
    }
}
