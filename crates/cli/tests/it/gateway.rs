//! The HTTP API as a client sees it.

use crate::patience::{PATIENCE, await_until};
use crate::server::Server;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;

#[test]
fn a_process_is_called_and_queried() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    assert_eq!(server.get("/v1/query/kv/a").json(), Value::Null);
    assert_eq!(server.put("a", 1).json(), json!({"applied": true, "previous": null}));
    let second = server.post("/v1/call/kv/a", r#" {"put": {"value": {"x": [1.5, "é", null]}}} "#);
    assert_eq!(second.json(), json!({"applied": true, "previous": 1}));
    assert_eq!(second.content_type, "application/json");
    for read in [
        server.get("/v1/query/kv/a"),
        server.get("/v1/query/kv/a?query=%22get%22"),
        server.post("/v1/query/kv/a", "\"get\""),
    ] {
        assert_eq!((read.status, read.json()), (200, json!({"x": [1.5, "é", null]})), "{}", read.text);
        assert!(read.token.is_some());
    }
    let changed = server.post("/v1/call/kv/a", r#"{"compare_and_set":{"expected":7,"value":8}}"#);
    assert_eq!(changed.json()["applied"], false);
    assert_eq!(server.post("/v1/call/kv/a", "\"delete\"").json()["applied"], true);
    assert_eq!(server.get("/v1/query/kv/a").json(), Value::Null);
    // A key with a slash and a space is one segment.
    server.put("b%2F%20c", 3);
    assert_eq!(server.get("/v1/query/kv/b%2F%20c").json(), 3);
}

#[test]
fn a_token_is_taken_back_and_a_forged_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let token = server.put("a", 1).token.unwrap();
    let put = r#"{"put":{"value":2}}"#;
    assert_eq!(server.post_with("/v1/call/kv/a", put, &[("Stead-Token", &token)]).status, 200);
    let mut parts: Vec<_> = token.split('.').collect();
    parts[5] = "999";
    let forged = parts.join(".");
    for bad in [forged.as_str(), "x"] {
        server.post_with("/v1/call/kv/a", put, &[("Stead-Token", bad)]).assert_problem(409, "bad-token");
    }
    server.kill();
    // It is still there after a restart of the server.
    let server = Server::start(dir.path(), &[]);
    assert_eq!(server.post_with("/v1/call/kv/a", put, &[("Stead-Token", &token)]).status, 200);
}

#[test]
fn a_repeated_idempotency_key_is_applied_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let call = |server: &Server, key: &str, body: &str| {
        server.post_with("/v1/call/kv/a", body, &[("Idempotency-Key", key)])
    };
    let first = call(&server, "k1", r#"{"compare_and_set":{"expected":null,"value":1}}"#);
    assert_eq!(first.json(), json!({"applied": true, "previous": null}));
    // The same document, formatted differently.
    let again = call(&server, "k1", r#" {"compare_and_set": {"value": 1, "expected": null}} "#);
    assert_eq!((again.status, again.json()), (200, first.json()), "{}", again.text);
    call(&server, "k1", r#"{"put":{"value":2}}"#).assert_problem(422, "idempotency-conflict");
    call(&server, "", r#"{"put":{"value":2}}"#).assert_problem(400, "bad-request");
    call(&server, &"k".repeat(10_000), r#"{"put":{"value":2}}"#).assert_problem(400, "bad-request");
    let other = call(&server, "k2", r#"{"compare_and_set":{"expected":null,"value":1}}"#);
    assert_eq!(other.json()["applied"], false);
    // The key is scoped to the process.
    let elsewhere = server.post_with("/v1/call/kv/b", r#"{"put":{"value":2}}"#, &[("Idempotency-Key", "k1")]);
    assert_eq!(elsewhere.status, 200);
    server.kill();
    let server = Server::start(dir.path(), &[]);
    assert_eq!(
        call(&server, "k1", r#"{"compare_and_set":{"expected":null,"value":1}}"#).json(),
        first.json()
    );
}

#[test]
fn bad_requests_are_refused_with_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--body-bytes-max", "1000"]);
    let large = format!(r#"{{"put":{{"value":"{}"}}}}"#, "x".repeat(1000));
    for (path, body, status, kind) in [
        ("/v1/call/kv/a", "{", 400, "bad-json"),
        ("/v1/call/kv/a", "{} {}", 400, "bad-json"),
        ("/v1/call/kv/a", &"[".repeat(900), 400, "bad-json"),
        ("/v1/call/kv/a", r#"{"pus":{"value":1}}"#, 400, "unreadable-request"),
        ("/v1/call/kv/a", "", 400, "unreadable-request"),
        ("/v1/query/kv/a", "\"got\"", 400, "unreadable-request"),
        ("/v1/call/kv/a", &large, 413, "body-too-large"),
        ("/v1/query/kv/a", &large, 413, "body-too-large"),
        ("/v1/call/nothing/a", "1", 404, "unknown-service"),
        ("/v1/query/nothing/a", "1", 404, "unknown-service"),
        (&format!("/v1/call/kv/{}", "k".repeat(513)), r#"{"put":{"value":1}}"#, 400, "bad-request"),
        ("/v1/call/kv/%FF", r#"{"put":{"value":1}}"#, 400, "bad-request"),
        ("/v1/call/kv", "1", 404, "unknown-route"),
        ("/v1/status", "1", 405, "method-not-allowed"),
    ] {
        server.post(path, body).assert_problem(status, kind);
    }
    // Unknown parts of a request are refused, never ignored.
    server.put("strict", 1);
    let twice = r#"{"compare_and_set":{"expected":1,"value":2,"value":3}}"#;
    for (body, kind) in [
        (r#"{"compare_and_set":{"expected":1,"vaule":2}}"#, "unreadable-request"),
        (r#"{"compare_and_set":{"expected":1}}"#, "unreadable-request"),
        (r#"{"put":{"value":1,"ttl":5}}"#, "unreadable-request"),
        (r#"{"put":{"value":[{"a":1,"a":2}]}}"#, "bad-json"),
        (r#"{"put":{"value":18446744073709551616}}"#, "bad-json"),
        (twice, "bad-json"),
    ] {
        server.post("/v1/call/kv/strict", body).assert_problem(400, kind);
        server.post_with("/v1/call/kv/strict", body, &[("Idempotency-Key", "k")]).assert_problem(400, kind);
    }
    let put = r#"{"put":{"value":2}}"#;
    for header in [("Idempotency-Key", "k"), ("Stead-Deadline-Ms", "1000"), ("Stead-Token", "x")] {
        server.post_with("/v1/call/kv/strict", put, &[header, header]).assert_problem(400, "bad-request");
    }
    for path in ["/v1/query/kv/strict?form=2", "/v1/query/kv/strict?query=1&query=2", "/v1/log/0?form=2"] {
        server.get(path).assert_problem(400, "bad-request");
    }
    assert_eq!(server.get("/v1/query/kv/strict").json(), 1);
    let same = server.post("/v1/call/kv/strict", r#"{"compare_and_set":{"expected":1.0,"value":10.0}}"#);
    assert_eq!(same.json()["applied"], true, "{}", same.text);
    let same = server.post("/v1/call/kv/strict", r#"{"compare_and_set":{"expected":10,"value":null}}"#);
    assert_eq!(same.json()["applied"], true, "{}", same.text);
    for deadline in ["0", "-1", "soon"] {
        let reply = server.post_with("/v1/call/kv/a", "\"delete\"", &[("Stead-Deadline-Ms", deadline)]);
        reply.assert_problem(400, "bad-request");
    }
    server.get("/v1/dead-letters/nothing").assert_problem(404, "unknown-service");
    server.get("/v1/log/100000").assert_problem(404, "unknown-shard");
    server.get("/v1/log/x").assert_problem(400, "bad-request");
    server.get("/v1/log/0?limit=0").assert_problem(400, "bad-request");
    server.get("/v1/checkpoints/999").assert_problem(404, "unknown-checkpoint");
    server.delete("/v1/checkpoints/999").assert_problem(404, "unknown-checkpoint");
    // A body of unknown length is measured as it arrives.
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = "POST /v1/call/kv/a HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", 2000, " ".repeat(2000));
    stream.write_all(format!("{head}{chunk}").as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    // The server still works after all of this.
    server.put("a", 1);
}

#[test]
fn one_connection_too_many_is_answered_503() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--connections-max", "2"]);
    let connect = || {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (stream, String::from_utf8(status[9..].to_vec()).unwrap())
    };
    let (first, status) = connect();
    assert_eq!(status, "200");
    let (_second, status) = connect();
    assert_eq!(status, "200");
    let (mut third, status) = connect();
    assert_eq!(status, "503");
    let mut rest = String::new();
    third.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("urn:stead:problem:too-many-connections"), "{rest}");
    drop(first);
    await_until("the slot of the closed connection is released", || connect().1 == "200");
}

#[test]
fn an_operator_sees_how_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    server.put("a", 1);
    assert_eq!(server.get("/healthz").json()["status"], "ok");
    assert_eq!(server.get("/readyz").json()["status"], "ok");
    assert_eq!(server.get("/v1/services").json()[0]["name"], "kv");
    let status = server.get("/v1/status").json();
    assert_eq!(status["services"][0]["name"], "kv", "{status}");
    assert_eq!(server.get("/v1/dead-letters/kv").json(), json!({"dead_letters": [], "next": null}));
    let shard = server.put("a", 2).token.unwrap().split('.').nth(2).unwrap().to_owned();
    let log = server.get(&format!("/v1/log/{shard}")).json();
    let causes: Vec<_> = log.as_array().unwrap().iter().map(|entry| entry.to_string()).collect();
    assert!(causes.len() >= 3, "a start and two calls: {causes:?}");
    let one = server.get(&format!("/v1/log/{shard}?from=2&limit=1")).json();
    assert_eq!(one.as_array().unwrap().len(), 1);
    assert_eq!(one[0]["index"], 2, "{one}");
}

#[test]
fn metrics_are_in_the_text_format() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    server.put("a", 1);
    server.get("/v1/query/kv/a");
    server.post("/v1/call/kv/a", "{").assert_problem(400, "bad-json");
    server.post("/v1/call/kv/a", "\"nonsense\"").assert_problem(400, "unreadable-request");
    for unknown in ["some", "other"] {
        server.post(&format!("/v1/call/{unknown}/a"), "1").assert_problem(404, "unknown-service");
    }
    let metrics = server.get("/metrics");
    assert!(metrics.content_type.starts_with("application/openmetrics-text"));
    assert!(metrics.text.ends_with("# EOF\n"));
    for line in metrics.text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("stead_"), "{line}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert_eq!(name.contains('{'), name.ends_with('}'), "{line}");
    }
    let figure = |name: &str| {
        let line = metrics.text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name} is missing: {}", metrics.text));
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    assert_eq!(figure("stead_http_requests_total{service=\"kv\",operation=\"Call\",status=\"200\"}"), 1.0);
    assert_eq!(figure("stead_http_requests_total{service=\"kv\",operation=\"Call\",status=\"400\"}"), 2.0);
    assert_eq!(figure("stead_http_query_seconds_count"), 1.0);
    assert!(figure("stead_log_syncs_total") >= 1.0);
    assert_eq!(figure("stead_http_requests_total{service=\"\",operation=\"Call\",status=\"404\"}"), 2.0);
    let of_kv = |name: &str| figure(&format!("stead_{name}{{service=\"kv\"}}"));
    assert_eq!((of_kv("requests_total"), of_kv("queries_total"), of_kv("refusals_total")), (2.0, 1.0, 1.0));
    assert_eq!(
        (of_kv("answers_total"), of_kv("service_dead_letters"), of_kv("messages_total")),
        (3.0, 0.0, 0.0)
    );
    assert!(of_kv("entries_total") >= 17.0 && of_kv("entry_bytes_total") > 0.0, "a start of each shard");
    assert!(of_kv("service_records") >= 1.0 && of_kv("service_records_bytes") > 0.0);
    assert!(figure("stead_shard_entries_total{service=\"kv\",shard=\"0\"}") >= 1.0);
}

#[test]
fn the_description_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let document = server.get("/openapi.json").json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let paths = document["paths"].as_object().unwrap();
    // The paths of a service replace those of any service.
    for path in [
        "/v1/call/kv/{key}",
        "/v1/query/kv/{key}",
        "/healthz",
        "/readyz",
        "/v1/status",
        "/v1/services",
        "/v1/checkpoints",
        "/v1/checkpoints/{number}",
        "/v1/checkpoints/{number}/verify",
        "/v1/checkpoints/{number}/copy",
        "/v1/log/{shard}",
        "/v1/dead-letters/{service}",
        "/v1/dead-letters/{shard}/{index}",
        "/v1/dead-letters/{shard}/{index}/retry",
        "/metrics",
        "/openapi.json",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    for path in ["/v1/call/{service}/{key}", "/v1/query/{service}/{key}"] {
        assert!(!paths.contains_key(path), "{path}");
    }
}
