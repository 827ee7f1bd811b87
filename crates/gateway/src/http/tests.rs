//! Tests of the gateway over a node with a service that refuses, panics and waits.

use super::{Limits, Server, listen, serve};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use stead::kv::Kv;
use stead::{Context, Cut, Never, NoQuery, Node, Process, ServiceOptions};
use stead_store::sim_disk::SimDisk;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Default, Serialize, Deserialize)]
struct Purse {
    coins: u64,
}

#[derive(Serialize, Deserialize)]
enum Request {
    Fill(u64),
    Pay(u64),
    Panic,
    Wait,
    /// Sent to itself: panics unless the purse has this many coins.
    Remind(u64),
    Need(u64),
}

#[derive(Debug, Serialize, Deserialize)]
struct Missing {
    coins: u64,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} coins are missing", self.coins)
    }
}

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Number of handlers that have begun to wait, and number of those that may continue. Only one test uses it.
static GATE: (Mutex<(u32, u32)>, Condvar) = (Mutex::new((0, 0)), Condvar::new());

impl Process for Purse {
    const SERVICE: &'static str = "purse";
    type Key = String;
    type Request = Request;
    type Reply = u64;
    type Error = Missing;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<u64, Missing> {
        match request {
            Request::Fill(coins) => self.coins += coins,
            Request::Pay(coins) if coins > self.coins => return Err(Missing { coins: coins - self.coins }),
            Request::Pay(coins) => self.coins -= coins,
            Request::Panic => panic!("the purse is torn"),
            Request::Remind(coins) => ctx.send::<Self>(&ctx.key().clone(), Request::Need(coins)),
            Request::Need(coins) => assert!(self.coins >= coins, "the purse is too light"),
            Request::Wait => {
                let mut gate = GATE.0.lock().unwrap();
                gate.0 += 1;
                let place = gate.0;
                drop(GATE.1.wait_while(gate, |(_, open)| *open < place).unwrap());
            }
        }
        Ok(self.coins)
    }

    fn internal(request: &Request) -> bool {
        matches!(request, Request::Need(_))
    }
}

fn open_gate(to: u32) {
    GATE.0.lock().unwrap().1 = to;
    GATE.1.notify_all();
}

/// Starts a server; the directory must live as long as the server.
fn start(limits: Limits) -> (Server, Node, TempDir) {
    start_on(None, limits)
}

fn start_on(disk: Option<&SimDisk>, limits: Limits) -> (Server, Node, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let builder = Node::builder(dir.path()).service::<Purse>(ServiceOptions::default().shards(1)).threads(1);
    let builder = match disk {
        Some(disk) => builder.disk(Arc::new(disk.clone())),
        None => builder,
    };
    let node = builder.open().unwrap();
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = serve(&node, listener, dir.path(), limits).unwrap();
    (server, node, dir)
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

async fn read(mut stream: TcpStream) -> Answer {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Answer { status: head[9..12].parse().unwrap(), head: head.to_owned(), body: body.to_owned() }
}

async fn send(address: SocketAddr, headers: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let len = body.len();
    let head = format!(
        "POST /v1/call/purse/p HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n{headers}\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    stream
}

async fn call(address: SocketAddr, headers: &str, body: &str) -> Answer {
    read(send(address, headers, body).await).await
}

async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await
}

/// Sends a whole request unchanged.
async fn ask(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let written = stream.write_all(request.as_bytes()).await;
    written.unwrap_or_else(|error| panic!("{error}: {} bytes, {request:.90}", request.len()));
    read(stream).await
}

#[tokio::test]
async fn a_cluster_is_shown_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let builder = Node::builder(dir.path()).service::<Purse>(ServiceOptions::default().shards(2)).threads(1);
    let open = move || builder.listen_cluster(any).open().unwrap();
    let node = tokio::task::spawn_blocking(open).await.unwrap();
    let server = serve(&node, listen(any).unwrap(), dir.path(), Limits::default()).unwrap();
    let address = server.address();
    let ready = async {
        while get(address, "/readyz").await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.unwrap();
    // The node serves a little before the control plane knows that its epochs are active.
    let settled = async {
        loop {
            let cluster = get(address, "/v1/cluster").await.json();
            if cluster["problems"] == json!([]) {
                break cluster;
            }
            tokio::task::yield_now().await;
        }
    };
    let cluster = tokio::time::timeout(PATIENCE, settled).await.unwrap();
    assert_eq!(cluster["nodes"][0]["state"], "up", "{cluster}");
    assert!(cluster["nodes"][0]["since_ms"].as_u64().is_some_and(|since| since > 0), "{cluster}");
    // The primary answers, and has no other replica.
    let shard = &cluster["shards"][0];
    assert_eq!((&shard["primary"], &shard["lags"]), (&json!(1), &json!([])), "{cluster}");
    assert!(shard["last"].as_u64().is_some_and(|last| last > 0), "{cluster}");
    let metrics = get(address, "/metrics").await.body;
    for line in [
        "stead_cluster_control_leader 1",
        "stead_cluster_shards_without_primary 0",
        "stead_cluster_problems 0",
        "stead_cluster_nodes{state=\"up\"} 1",
        "stead_cluster_nodes{state=\"failed\"} 0",
    ] {
        assert!(metrics.lines().any(|metric| metric == line), "{line} is missing: {metrics}");
    }
}

#[tokio::test]
async fn the_error_of_a_service_is_embedded() {
    let (server, _node, _dir) = start(Limits::default());
    assert_eq!(call(server.address(), "", r#"{"Fill":3}"#).await.body, "3");
    let refused = call(server.address(), "idempotency-key: k\r\n", r#"{"Pay":5}"#).await;
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert!(refused.head.contains("application/problem+json") && refused.head.contains("stead-token: v1."));
    let problem = refused.json();
    assert_eq!(problem["type"], "urn:stead:problem:handler-error");
    assert_eq!(problem["error"], json!({"coins": 2}));
    // The error is the stored answer: a repetition returns it again, whatever was called in between.
    assert_eq!(call(server.address(), "", r#"{"Fill":3}"#).await.body, "6");
    let again = call(server.address(), "idempotency-key: k\r\n", r#"{"Pay":5}"#).await;
    assert_eq!(again.json(), problem);
    assert_eq!(call(server.address(), "", r#"{"Pay":5}"#).await.body, "1");
}

#[tokio::test]
async fn an_internal_request_is_refused_and_leaves_no_trace() {
    let (server, node, _dir) = start(Limits::default());
    let address = server.address();
    assert_eq!(call(address, "", r#"{"Fill":3}"#).await.body, "3");
    let entries = node.metrics().entries;
    for headers in ["", "idempotency-key: k\r\n"] {
        let refused = call(address, headers, r#"{"Need":1}"#).await;
        assert_eq!(refused.status, 403, "{}", refused.body);
        assert_eq!(refused.json()["type"], "urn:stead:problem:internal-request");
    }
    assert_eq!(node.metrics().entries, entries, "a refusal is no entry");
    // The key was not used up, and a process may send this request.
    assert_eq!(call(address, "idempotency-key: k\r\n", r#"{"Pay":1}"#).await.body, "2");
    assert_eq!(call(address, "", r#"{"Remind":2}"#).await.body, "2");
    assert_eq!(
        get(address, "/v1/dead-letters/purse").await.json(),
        json!({"dead_letters": [], "next": null})
    );
}

#[tokio::test]
async fn a_panic_is_reported_and_leaves_no_trace() {
    let (server, _node, _dir) = start(Limits::default());
    assert_eq!(call(server.address(), "", r#"{"Fill":3}"#).await.body, "3");
    let panicked = call(server.address(), "", "\"Panic\"").await;
    assert_eq!(panicked.status, 500, "{}", panicked.body);
    assert_eq!(panicked.json()["type"], "urn:stead:problem:handler-panicked");
    assert!(panicked.json()["detail"].as_str().unwrap().contains("the purse is torn"));
    assert_eq!(call(server.address(), "", r#"{"Pay":0}"#).await.body, "3");
}

#[tokio::test]
async fn a_dead_letter_is_listed_retried_and_dropped() {
    let (server, _node, _dir) = start(Limits::default());
    let address = server.address();
    for coins in [5, 9] {
        assert_eq!(call(address, "", &json!({"Remind": coins}).to_string()).await.status, 200);
    }
    let letters = get(address, "/v1/dead-letters/purse").await.json()["dead_letters"].clone();
    let [five, nine] = [0, 1].map(|at: usize| letters[at]["index"].as_u64().unwrap());
    assert!(letters[0]["reason"].as_str().unwrap().contains("the purse is too light"), "{letters}");
    let order = |method: &str, path: String| {
        let head = "host: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let request = format!("{method} /v1/dead-letters/0/{path} HTTP/1.1\r\n{head}");
        async move { ask(address, &request).await }
    };
    let retry = |index: u64| order("POST", format!("{index}/retry"));
    let again = retry(five).await;
    assert_eq!((again.status, &again.json()["type"]), (409, &json!("urn:stead:problem:dead-letter-failed")));
    assert_eq!(call(address, "", r#"{"Fill":6}"#).await.body, "6");
    let retried = retry(five).await;
    assert_eq!((retried.status, retried.json()), (200, json!({"shard": 0, "index": five, "error": null})));
    assert_eq!(retry(five).await.json()["type"], "urn:stead:problem:unknown-dead-letter");
    assert_eq!(order("DELETE", nine.to_string()).await.status, 204);
    assert_eq!(order("DELETE", nine.to_string()).await.status, 404);
    assert_eq!(order("DELETE", "nine".to_owned()).await.status, 400);
    assert_eq!(
        get(address, "/v1/dead-letters/purse").await.json(),
        json!({"dead_letters": [], "next": null})
    );
}

#[tokio::test]
async fn a_request_ends_at_its_deadline_and_an_open_one_is_answered_at_shutdown() {
    let (server, _node, _dir) = start(Limits::default());
    let address = server.address();
    // One whose deadline passes before its handler begins never runs.
    while GATE.0.lock().unwrap().0 == 0 {
        let late = call(address, "stead-deadline-ms: 20\r\n", "\"Wait\"").await;
        assert_eq!(late.status, 504, "{}", late.body);
        assert_eq!(late.json()["type"], "urn:stead:problem:timed-out");
    }
    open_gate(1);
    let open = send(address, "", "\"Wait\"").await;
    let entered = async {
        while GATE.0.lock().unwrap().0 < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, entered).await.unwrap();
    let shutdown = tokio::spawn(server.shutdown());
    tokio::task::yield_now().await;
    open_gate(2);
    assert_eq!(read(open).await.body, "0");
    shutdown.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "the server still listens");
}

#[tokio::test]
async fn a_node_that_ended_is_not_ready_and_takes_no_calls() {
    let (server, node, _dir) = start(Limits::default());
    assert_eq!(get(server.address(), "/readyz").await.status, 200);
    node.shutdown();
    let ended = get(server.address(), "/readyz").await;
    assert_eq!((ended.status, &ended.json()["type"]), (503, &json!("urn:stead:problem:not-ready")));
    assert!(ended.json()["detail"].as_str().unwrap().contains("stop"), "{}", ended.body);
    let strange = "GET /readyz HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    let strange = ask(server.address(), strange).await;
    assert!(strange.status == 503 && !strange.body.contains("stopped"), "{}", strange.body);
    let refused = call(server.address(), "", r#"{"Fill":3}"#).await;
    assert_eq!((refused.status, &refused.json()["type"]), (503, &json!("urn:stead:problem:not-ready")));
    assert_eq!(get(server.address(), "/healthz").await.status, 200, "the process lives");
}

#[tokio::test]
async fn a_node_that_failed_is_not_ready_and_takes_no_calls() {
    let disk = SimDisk::new(1);
    let (server, node, _dir) = start_on(Some(&disk), Limits::default());
    disk.fail_syncs(1);
    let mut refused = call(server.address(), "", r#"{"Fill":3}"#).await;
    // The first sync that fails may belong to another write than this call's.
    for _ in 0..1000 {
        if refused.status != 200 {
            break;
        }
        refused = call(server.address(), "", r#"{"Fill":3}"#).await;
    }
    assert_eq!((refused.status, &refused.json()["type"]), (503, &json!("urn:stead:problem:node-failed")));
    let failed = get(server.address(), "/readyz").await;
    assert_eq!((failed.status, &failed.json()["type"]), (503, &json!("urn:stead:problem:node-failed")));
    assert!(failed.json()["detail"].as_str().unwrap().contains("cannot sync"), "{}", failed.body);
    node.kill();
}

#[tokio::test]
async fn a_web_page_can_not_call_and_can_not_ask_by_a_name_of_its_own() {
    let (server, node, _dir) = start(Limits::default());
    let body = r#"{"Fill":3}"#;
    let rest = format!("connection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let json = "content-type: application/json\r\n";
    for (head, status, kind) in [
        ("host: localhost\r\ncontent-type: text/plain\r\n".to_owned(), 415, "unsupported-media-type"),
        (format!("host: localhost\r\norigin: http://evil.example\r\n{json}"), 403, "cross-site"),
        (format!("host: evil.example\r\n{json}"), 421, "wrong-host"),
    ] {
        let request = format!("POST /v1/call/purse/p HTTP/1.1\r\n{head}{rest}");
        let refused = ask(server.address(), &request).await;
        assert_eq!(refused.status, status, "{head}: {}", refused.body);
        assert!(refused.head.contains("application/problem+json"), "{}", refused.head);
        assert_eq!(refused.json()["type"], format!("urn:stead:problem:{kind}"));
    }
    for path in ["/v1/status", "/nowhere"] {
        let rebound = format!("GET {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n");
        assert_eq!(ask(server.address(), &rebound).await.status, 421, "{path}");
    }
    assert_eq!(node.metrics().requests, 0, "nothing came to the service");
}

#[tokio::test]
async fn the_log_is_shown_whole_while_it_is_written_and_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::builder(dir.path())
        .service::<Purse>(ServiceOptions::default().shards(1))
        .threads(1)
        .segment_bytes(16 << 10)
        .open()
        .unwrap();
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = serve(&node, listener, dir.path(), Limits::default()).unwrap();
    let shows = async {
        while node.metrics().checkpoints < 3 {
            let shown = get(server.address(), "/v1/log/0?limit=1000").await;
            assert_eq!(shown.status, 200, "{}", shown.body);
        }
    };
    let writes = async {
        loop {
            for _ in 0..20 {
                call(server.address(), "", r#"{"Fill":1}"#).await;
            }
            node.checkpoint().await.unwrap();
        }
    };
    tokio::select! {
        () = shows => {}
        () = writes => {}
    }
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused_at_it_with_a_problem() {
    let (server, _node, _dir) = start(Limits::default());
    let begun = "GET /v1/services HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-filler: ";
    let head = |len: usize| format!("{begun}{}\r\n\r\n", "k".repeat(len - begun.len() - 4));
    assert_eq!(ask(server.address(), &head(Limits::HEAD_BYTES_MAX)).await.status, 200);
    let fields = |count: usize| {
        let head = "GET /v1/services HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
        format!("{head}{}\r\n", "x-field: 1\r\n".repeat(count - 2))
    };
    assert_eq!(ask(server.address(), &fields(Limits::HEAD_FIELDS_MAX)).await.status, 200);
    let path = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "p".repeat(Limits::HEAD_BYTES_MAX));
    for large in [
        head(Limits::HEAD_BYTES_MAX + 1),
        head(Limits::HEAD_BYTES_MAX * 4),
        // Written whole before the answer is read.
        head(4 << 20),
        fields(Limits::HEAD_FIELDS_MAX + 1),
        path,
    ] {
        let refused = ask(server.address(), &large).await;
        assert_eq!(refused.status, 431, "{} bytes: {}", large.len(), refused.body);
        assert_eq!(refused.json()["type"], "urn:stead:problem:head-too-large");
    }
    for malformed in ["no request at all\r\n\r\n", "GET / HTTP/1.1\r\nhost localhost\r\n\r\n"] {
        let refused = ask(server.address(), malformed).await;
        assert_eq!((refused.status, &refused.json()["type"]), (400, &json!("urn:stead:problem:bad-request")));
    }
    assert_eq!(get(server.address(), "/healthz").await.status, 200);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_for_a_client_that_first_writes_it_all() {
    let (server, node, _dir) = start(Limits::default());
    let large = "x".repeat(3 << 20);
    let json = "host: localhost\r\ncontent-type: application/json\r\n";
    let chunks = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    for (request, status) in [
        (format!("{json}content-length: {}\r\n\r\n{large}", large.len()), 413),
        (format!("{json}transfer-encoding: chunked\r\n\r\n{chunks}"), 413),
        // Refused before the body is read.
        (format!("host: localhost\r\ncontent-length: {}\r\n\r\n{large}", large.len()), 415),
        (format!("host: evil.example\r\ncontent-length: {}\r\n\r\n{large}", large.len()), 421),
    ] {
        let request = format!("POST /v1/call/purse/p HTTP/1.1\r\n{request}");
        let refused = ask(server.address(), &request).await;
        assert_eq!(refused.status, status, "{}", refused.body);
        assert!(refused.head.contains("application/problem+json"), "{}", refused.head);
    }
    assert_eq!(node.metrics().requests, 0);
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_gets_its_answer() {
    let (server, _node, _dir) = start(Limits::default());
    let mut stream = send(server.address(), "", r#"{"Fill":3}"#).await;
    stream.shutdown().await.unwrap();
    assert_eq!(read(stream).await.body, "3");
}

#[tokio::test]
async fn old_clients_and_probes_are_answered() {
    let (server, _node, _dir) = start(Limits::default());
    let address = server.address();
    for (request, status) in [
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
        ("HEAD /readyz HTTP/1.0\r\n\r\n", 200),
        ("GET /healthz HTTP/1.1\r\nhost: 10.0.0.7:7420\r\nconnection: close\r\n\r\n", 200),
        ("GET /v1/services HTTP/1.0\r\n\r\n", 200),
        ("GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\nconnection: close\r\n\r\n", 400),
    ] {
        assert_eq!(ask(address, request).await.status, status, "{request}");
    }
}

#[tokio::test]
async fn a_slow_client_is_not_waited_for() {
    let short = Duration::from_millis(30);
    let (server, _node, _dir) =
        start(Limits { header_timeout: short, request_timeout: short, ..Limits::default() });
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(b"POST /v1/call/purse/p HTTP/1.1\r\nhost").await.unwrap();
    let mut rest = String::new();
    // Closed, with or without an answer.
    let _ = stream.read_to_string(&mut rest).await;
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 408"), "{rest}");
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let head =
        b"POST /v1/call/purse/p HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{";
    stream.write_all(head).await.unwrap();
    let slow = read(stream).await;
    assert_eq!((slow.status, &slow.json()["type"]), (408, &json!("urn:stead:problem:body-too-slow")));
    assert!(slow.body.contains("was not applied") && !slow.body.contains("may"), "{}", slow.body);
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_place() {
    let short = Duration::from_millis(30);
    let limits = Limits { header_timeout: short, connections_max: 1, ..Limits::default() };
    let (server, _node, _dir) = start(limits);
    let deaf = TcpStream::connect(server.address()).await.unwrap();
    let (reads, mut writes) = deaf.into_split();
    let request = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(10);
    // More than the sockets of both sides hold, so that it ends only when the server closes the connection.
    let asks = async { while writes.write_all(request.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, asks).await.expect("the connection is never closed");
    let freed = async {
        while get(server.address(), "/v1/services").await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.expect("its slot is never released");
    drop(reads);
}

#[tokio::test]
async fn parameters_are_refused_where_there_are_none() {
    let (server, _node, _dir) = start(Limits::default());
    for path in
        ["/v1/status", "/v1/services", "/v1/checkpoints", "/v1/checkpoints/1", "/v1/processes/purse/p"]
    {
        let refused = get(server.address(), &format!("{path}?form=1")).await;
        assert_eq!((refused.status, &refused.json()["type"]), (400, &json!("urn:stead:problem:bad-request")));
    }
    let head = "host: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    for (order, status) in [
        ("POST /v1/call/purse/p", 400),
        ("POST /v1/query/purse/p", 400),
        ("DELETE /v1/processes/purse/p", 400),
        ("POST /v1/dead-letters/0/1/retry", 400),
        ("DELETE /v1/dead-letters/0/1", 400),
        ("POST /v1/checkpoints", 400),
        ("POST /v1/checkpoints/1/verify", 400),
        ("POST /v1/checkpoints/1/copy", 400),
        ("DELETE /v1/checkpoints/1", 400),
        ("PUT /v1/log/0", 405),
    ] {
        let refused = ask(server.address(), &format!("{order}?form=1 HTTP/1.1\r\n{head}")).await;
        assert_eq!(refused.status, status, "{order}: {}", refused.body);
    }
    for path in ["/healthz?verbose", "/readyz?verbose", "/metrics?collect[]=x"] {
        assert_eq!(
            get(server.address(), path).await.status,
            200,
            "{path}: monitoring systems add parameters of their own"
        );
    }
}

#[tokio::test]
async fn an_answer_of_the_log_is_bounded_by_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Node::builder(dir.path()).service::<Kv>(ServiceOptions::default().shards(1));
    let node = builder.threads(1).open().unwrap();
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = serve(&node, listener, dir.path(), Limits::default()).unwrap();
    let body = json!({"put": {"value": "x".repeat(400_000)}}).to_string();
    let len = body.len();
    let head = "host: localhost\r\nconnection: close\r\ncontent-type: application/json";
    let put = format!("POST /v1/call/kv/a HTTP/1.1\r\n{head}\r\ncontent-length: {len}\r\n\r\n{body}");
    for _ in 0..6 {
        assert_eq!(ask(server.address(), &put).await.status, 200);
    }
    for path in ["/v1/log/0", "/v1/processes/kv/a/log"] {
        let (mut from, mut indexes) = (0, Vec::new());
        loop {
            let page = get(server.address(), &format!("{path}?limit=1000&from={from}")).await;
            assert!(page.body.len() < 2 << 20, "{path} answers {} bytes", page.body.len());
            let json = page.json();
            let entries = json.as_array().or(json["entries"].as_array()).unwrap().clone();
            let Some(last) = entries.last() else { break };
            indexes.extend(entries.iter().map(|entry| entry["index"].as_u64().unwrap()));
            from = json["next"].as_u64().unwrap_or(last["index"].as_u64().unwrap() + 1);
        }
        let puts = if path.contains("kv") { 6 } else { 7 };
        assert!(indexes.len() == puts && indexes.is_sorted_by(|a, b| a < b), "{path}: {indexes:?}");
    }
}

/// A process whose check waits briefly for another check at the same time, and notes whether there was one.
#[derive(Default, Serialize, Deserialize)]
struct Slow;

/// The number of running checks, and the maximum so far.
static CHECKS: (Mutex<(u32, u32)>, Condvar) = (Mutex::new((0, 0)), Condvar::new());

impl Process for Slow {
    const SERVICE: &'static str = "slow";
    type Key = String;
    type Request = ();
    type Reply = ();
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, _: &mut Context<'_, Self>, (): ()) -> Result<(), Never> {
        Ok(())
    }

    fn check(_: &Cut<'_>) -> Result<(), String> {
        let mut checks = CHECKS.0.lock().unwrap();
        checks.0 += 1;
        checks.1 = checks.1.max(checks.0);
        CHECKS.1.notify_all();
        let alone = |checks: &mut (u32, u32)| checks.0 < 2;
        checks = CHECKS.1.wait_timeout_while(checks, Duration::from_millis(100), alone).unwrap().0;
        checks.0 -= 1;
        Ok(())
    }
}

#[tokio::test]
async fn one_verification_runs_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Node::builder(dir.path()).service::<Slow>(ServiceOptions::default().shards(1)).threads(1);
    let node = builder.open().unwrap();
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = serve(&node, listener, dir.path(), Limits::default()).unwrap();
    let number = node.checkpoint().await.unwrap().number;
    let head = "host: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let verify = format!("POST /v1/checkpoints/{number}/verify HTTP/1.1\r\n{head}");
    let (one, other) = tokio::join!(ask(server.address(), &verify), ask(server.address(), &verify));
    assert_eq!((one.status, other.status), (200, 200), "{} {}", one.body, other.body);
    assert_eq!(CHECKS.0.lock().unwrap().1, 1);
}

#[tokio::test]
async fn a_page_of_processes_ends_with_the_life_that_gave_it() {
    let (server, node, dir) = start(Limits::default());
    for key in ["p", "q"] {
        let request =
            format!("POST /v1/call/purse/{key} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        let rest = "content-type: application/json\r\ncontent-length: 10\r\n\r\n{\"Fill\":3}";
        assert_eq!(ask(server.address(), &format!("{request}{rest}")).await.status, 200);
    }
    let page = get(server.address(), "/v1/processes/purse?limit=1").await.json();
    let next = format!("/v1/processes/purse?after={}", page["next"].as_str().unwrap());
    let rest = get(server.address(), &next).await.json();
    assert_eq!(rest["processes"].as_array().unwrap().len(), 1, "{rest}");
    server.shutdown().await;
    node.shutdown();
    let builder = Node::builder(dir.path()).service::<Purse>(ServiceOptions::default().shards(1)).threads(1);
    let node = builder.open().unwrap();
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = serve(&node, listener, dir.path(), Limits::default()).unwrap();
    let stale = get(server.address(), &next).await;
    assert_eq!((stale.status, &stale.json()["type"]), (409, &json!("urn:stead:problem:stale-page")));
}

#[tokio::test]
async fn a_query_asks_for_a_read_by_headers_and_a_stale_one_names_its_age() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::builder(dir.path()).service::<Kv>(ServiceOptions::default().shards(1)).open().unwrap();
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = serve(&node, listener, dir.path(), Limits::default()).unwrap();
    let query = async |headers: &str| {
        let head = "GET /v1/query/kv/k HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
        ask(server.address(), &format!("{head}{headers}\r\n")).await
    };
    for (headers, staleness) in [
        ("", None),
        ("stead-read: linearizable\r\n", None),
        ("stead-read: primary\r\n", None),
        // The only replica is never old.
        ("stead-read: stale\r\nstead-max-lag-ms: 5\r\n", Some("stead-staleness-ms: 0")),
    ] {
        let answer = query(headers).await;
        assert_eq!(answer.status, 200, "{headers}: {}", answer.body);
        let found = answer.head.lines().find(|line| line.starts_with("stead-staleness-ms"));
        assert_eq!(found, staleness, "{headers}");
    }
    for (headers, status, problem) in [
        ("stead-read: old\r\n", 400, "urn:stead:problem:bad-request"),
        ("stead-max-lag-ms: 5\r\n", 422, "urn:stead:problem:bound-without-stale"),
        ("stead-read: stale\r\nstead-max-lag-ms: 0\r\n", 400, "urn:stead:problem:bad-request"),
    ] {
        let refused = query(headers).await;
        assert_eq!((refused.status, &refused.json()["type"]), (status, &json!(problem)));
    }
}

#[test]
fn an_address_of_other_machines_is_refused() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let error = listen(address.parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains(address) && error.contains("TLS"), "{error}");
    }
    assert!(listen("[::1]:0".parse().unwrap()).is_ok() || listen("127.0.0.2:0".parse().unwrap()).is_ok());
}

#[test]
fn the_description_lists_the_routes() {
    let document: Value = serde_json::from_str(&super::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    for (path, method) in [
        ("/v1/call/{service}/{key}", "post"),
        ("/v1/query/{service}/{key}", "get"),
        ("/v1/query/{service}/{key}", "post"),
        ("/v1/checkpoints", "post"),
        ("/v1/checkpoints/{number}", "delete"),
        ("/v1/checkpoints/{number}/verify", "post"),
        ("/v1/checkpoints/{number}/copy", "post"),
        ("/v1/dead-letters/{service}", "get"),
        ("/v1/log/{shard}", "get"),
        ("/metrics", "get"),
    ] {
        assert!(paths[path].get(method).is_some(), "{method} {path}");
    }
    assert_eq!(document["components"]["schemas"]["Problem"]["type"], "object");
    let memory = &document["components"]["schemas"]["MemoryStatus"]["properties"];
    assert_eq!(memory["uncommitted_bytes_max"]["type"], "integer", "{memory}");
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let (name, place) = (parameter["name"].as_str().unwrap(), parameter["in"].as_str().unwrap());
                let in_path = path.contains(&format!("{{{name}}}"));
                let wanted = match name {
                    _ if in_path => "path",
                    "Idempotency-Key" | "Stead-Deadline-Ms" | "Stead-Token" | "Stead-Read"
                    | "Stead-Max-Lag-Ms" => "header",
                    _ => "query",
                };
                assert_eq!(place, wanted, "{method} {path}: {name}");
            }
            let refused = &operation["responses"]["4XX"]["content"]["application/problem+json"]["schema"];
            assert_eq!(refused["$ref"], "#/components/schemas/Problem", "{method} {path}");
        }
    }
    let body = &paths["/v1/call/{service}/{key}"]["post"]["requestBody"]["content"]["application/json"];
    assert!(body["schema"]["type"].is_null(), "any JSON: {body}");
}

#[tokio::test]
async fn the_description_of_a_node_has_its_services_with_and_without_schemas() {
    let dir = tempfile::tempdir().unwrap();
    let options = || ServiceOptions::default().shards(1);
    let builder = Node::builder(dir.path()).service::<Purse>(options());
    let node = builder.service::<Kv>(options()).open().unwrap();
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = serve(&node, listener, dir.path(), Limits::default()).unwrap();
    let document = get(server.address(), "/openapi.json").await.json();
    let body =
        |path: &str| &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(body("/v1/call/kv/{key}"), &json!({"$ref": "#/components/schemas/kv.Request"}));
    assert!(body("/v1/call/purse/{key}")["$ref"].is_null(), "it has no schemas");
    assert!(body("/v1/query/purse/{key}").is_object());
    assert!(document["paths"].get("/v1/call/{service}/{key}").is_none());
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let text = document.to_string();
    for part in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "nothing is called {name}");
    }
    let set = &schemas["kv.Request"]["oneOf"][2]["properties"]["compare_and_set"];
    assert_eq!(
        (&set["additionalProperties"], &set["required"]),
        (&json!(false), &json!(["expected", "value"]))
    );
    let services = &document["paths"]["/v1/processes/{service}"]["get"]["parameters"][0]["schema"]["enum"];
    assert_eq!(services, &json!(["kv", "purse"]));
}
