//! A client in another process, over the network: its calls share a connection, survive the node's restarts, and fail with
//! the next step.

use crate::patience::PATIENCE;
use crate::services::{Account, Ask, Look, Way, builder, key};
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use stead::kv::{self, Kv};
use stead::{
    AddressError, BlockingClient, CallError, Client, ConnectError, LogPoint, Lost, Node, OpenError, Place,
    RawCall, RawError, Refusal, ServiceOptions,
};
use stead_core::blob::Blob;
use stead_core::ids::{CallToken, ClusterId, Colour, Epoch, Incarnation, Index, Life, NodeId, ShardId, Time};
use stead_core::reply::Reply;
use stead_core::topology::Topology;
use stead_net::connection::{Event, Settings};
use stead_net::endpoint::{Bounds, Endpoint, Happened};
use stead_net::frame::Origin;
use stead_net::handshake::{CLOCK_DIFFERENCE_MAX, Limits, Local, Role, VERSIONS};
use stead_net::native::{Answer, Ask as NativeAsk, Identified, Primary};
use stead_net::network::Tcp;
use stead_net::payload::Payload;

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn connect(listener: &TcpListener) -> BlockingClient {
    BlockingClient::connect([listener.local_addr().unwrap().to_string()]).unwrap()
}

#[test]
fn calls_of_many_threads_share_one_connection() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    let client = Way::Away.client(&node);
    let accounts: Vec<String> = (0..16).map(|at| format!("account-{at}")).collect();
    thread::scope(|scope| {
        for at in 0..32_usize {
            let (client, account) = (client.clone(), &accounts[at % 16]);
            scope.spawn(move || {
                for _ in 0..25 {
                    client.call::<Account>(account, Ask::Deposit(1)).unwrap();
                }
            });
        }
    });
    for account in &accounts {
        assert_eq!(client.query::<Account>(account, Look::Balance).unwrap(), 50);
    }
    // One for each shard.
    let sessions: u64 = node.status().shards.iter().map(|shard| shard.sessions).sum();
    assert_eq!(sessions, 4, "they share their sessions, too");
}

/// The socket outlives the node, as a supervisor's does: clients that connect meanwhile wait in its queue.
#[test]
fn calls_go_on_over_restarts_and_each_is_applied_once() {
    let dir = tempfile::tempdir().unwrap();
    let socket = listener();
    let open = || builder(dir.path()).listen_native_on(socket.try_clone().unwrap()).open().unwrap();
    let mut node = open();
    let client = connect(&socket).with_timeout(PATIENCE);
    let (is_over, paid) = (AtomicBool::new(false), AtomicI64::new(0));
    thread::scope(|scope| {
        for at in 0..4 {
            let (client, is_over, paid) = (client.clone(), &is_over, &paid);
            scope.spawn(move || {
                let account = key(&format!("account-{at}"));
                let mut own = 0;
                while !is_over.load(Ordering::Relaxed) {
                    own += 1;
                    // The balance shows whether a call before this one was lost or doubled.
                    assert_eq!(client.call::<Account>(&account, Ask::Deposit(1)).unwrap(), own);
                    paid.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for life in 0..4 {
            let before = paid.load(Ordering::Relaxed);
            let begun = Instant::now();
            while paid.load(Ordering::Relaxed) < before + 20 {
                assert!(begun.elapsed() < PATIENCE, "calls do not go on in life {life}");
                thread::yield_now();
            }
            if life % 2 == 0 {
                node.kill()
            } else {
                node.shutdown()
            }
            node = open();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let total: i64 = (0..4)
        .map(|at| client.query::<Account>(&key(&format!("account-{at}")), Look::Balance).unwrap())
        .sum();
    assert_eq!(total, paid.load(Ordering::Relaxed));
}

#[test]
fn a_client_uses_the_address_at_which_a_node_answers() {
    let dir = tempfile::tempdir().unwrap();
    let dead = listener().local_addr().unwrap().to_string();
    let node = builder(dir.path()).open().unwrap();
    let living = node.native_address().unwrap().to_string();
    let client = BlockingClient::connect([dead.clone(), living]).unwrap();
    assert_eq!(client.call::<Account>(&key("a"), Ask::Deposit(1)).unwrap(), 1);

    let error = BlockingClient::connect_within([&dead], Duration::from_millis(50)).err().unwrap();
    let text = error.to_string();
    assert!(text.contains(&dead) && text.contains("check that the node runs"), "{text}");
    let none: [&str; 0] = [];
    assert!(matches!(BlockingClient::connect(none), Err(ConnectError::NoAddress)));
    assert!(matches!(BlockingClient::connect(["nonsense"]), Err(ConnectError::Resolve { .. })));
    let far = BlockingClient::connect(["192.0.2.1:7421"]).err().unwrap();
    assert!(far.to_string().contains("not a loopback address"), "{far}");
}

#[test]
fn a_node_that_goes_away_leaves_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    let client = Way::Away.client(&node).with_timeout(Duration::from_millis(100));
    client.call::<Account>(&key("a"), Ask::Deposit(1)).unwrap();
    node.shutdown();
    let error = client.call::<Account>(&key("a"), Ask::Deposit(1)).unwrap_err();
    let CallError::Raw(RawError::Network { reason, .. }) = &error else { panic!("{error}") };
    assert!(reason.contains("within 100 ms"), "{reason}");
    let error = client.query::<Account>(&key("a"), Look::Balance).unwrap_err();
    let CallError::Raw(RawError::Network { sent: false, .. }) = &error else { panic!("{error}") };
    assert!(error.to_string().contains("check that the node runs"), "{error}");
}

#[test]
fn another_cluster_at_the_address_is_refused_at_once() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let socket = listener();
    let open = |dir: &tempfile::TempDir| {
        builder(dir.path()).listen_native_on(socket.try_clone().unwrap()).open().unwrap()
    };
    let node = open(&first);
    let client = connect(&socket).with_timeout(PATIENCE);
    client.call::<Account>(&key("a"), Ask::Deposit(1)).unwrap();
    node.shutdown();
    let other = open(&second);
    let begun = Instant::now();
    let error = client.call::<Account>(&key("a"), Ask::Deposit(1)).unwrap_err();
    assert!(begun.elapsed() < PATIENCE / 2, "it did not wait for its timeout");
    assert!(error.to_string().contains("use the addresses of one cluster's nodes"), "{error}");
    assert_eq!(connect(&socket).query::<Account>(&key("a"), Look::Balance).unwrap(), 0);
    drop(other);
}

/// A server of HTTP refuses a client of Stead in its own way.
#[test]
fn the_address_of_an_http_server_is_named_as_such() {
    let socket = listener();
    let address = socket.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = socket.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").unwrap();
        // Until the client closes.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let error = BlockingClient::connect([address.to_string()]).err().unwrap();
    assert!(error.to_string().contains("HTTP"), "{error}");
    server.join().unwrap();
}

/// Opens a node with the service `kv` that listens for clients.
fn listening(dir: &Path) -> Node {
    Node::builder(dir)
        .service::<Kv>(ServiceOptions::default().shards(2))
        .listen_native(([127, 0, 0, 1], 0).into())
        .open()
        .unwrap()
}

#[test]
fn what_is_too_long_or_no_frame_is_refused_and_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = listening(dir.path());
    let client = Way::Away.client(&node);
    let put = |bytes: usize| {
        let value = Value::String("x".repeat(bytes));
        client.call::<Kv>(&key("k"), kv::Request::Put { value })
    };
    put(1 << 20).unwrap();
    let error = put(3 << 20).unwrap_err();
    assert!(
        matches!(&error, CallError::Raw(RawError::Refused(Refusal::TooLong { len, .. })) if *len > 3 << 20),
        "{error}"
    );
    for garbage in [&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], &[0; 5000], b"SNF9", &[0xff; 1]] {
        let mut stream = TcpStream::connect(node.native_address().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(garbage).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // It is closed; what was not read may reset it.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(put(1000).unwrap().previous.is_some());
    assert!(node.is_ready());
}

/// All answers together are more than may wait for a client that does not read: each of them arrives all the same.
#[test]
fn many_large_answers_arrive_although_not_all_of_them_may_wait() {
    let dir = tempfile::tempdir().unwrap();
    let node = listening(dir.path());
    let client = Way::Away.client(&node).with_timeout(PATIENCE);
    let value = Value::String("x".repeat(1 << 20));
    client.call::<Kv>(&key("k"), kv::Request::Put { value: value.clone() }).unwrap();
    thread::scope(|scope| {
        for _ in 0..40 {
            let (client, value) = (client.clone(), &value);
            scope.spawn(move || {
                let found = client.query::<Kv>(&key("k"), kv::Query::Get).unwrap();
                assert_eq!(found.as_ref(), Some(value));
            });
        }
    });
}

#[test]
fn raw_calls_are_made_in_a_session_or_for_another_principal() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    let client = Way::Away.client(&node);
    let payload = stead::codec::json_to_payload(&serde_json::json!({"Deposit": 1})).unwrap();
    let call = |principal, idempotency_key| {
        let timeout = PATIENCE;
        let call = RawCall {
            service: "account",
            key: "a",
            payload: payload.clone(),
            principal,
            idempotency_key,
            seen: None,
            timeout,
        };
        client.call_raw(call).unwrap().reply.unwrap()
    };
    let first = call("local", None);
    let second = call("other", None);
    assert_ne!(first, second);
    assert_eq!(call("other", Some(b"key")), call("other", Some(b"key")));
    assert_eq!(client.query::<Account>(&key("a"), Look::Balance).unwrap(), 3);
}

#[test]
fn an_address_that_others_can_reach_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open =
        |address: &str| builder(dir.path()).listen_native(address.parse().unwrap()).open().err().unwrap();
    assert!(matches!(open("0.0.0.0:0"), OpenError::Address(AddressError::NotLoopback { .. })));
    let taken = listener();
    let error = open(&taken.local_addr().unwrap().to_string());
    assert!(matches!(error, OpenError::Address(AddressError::System { .. })), "{error}");
}

/// The thread that gives the connection its turns is now that of a blocking caller, now the client's own.
#[test]
fn blocking_callers_async_ones_and_those_that_give_up_share_a_connection() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let address = node.native_address().unwrap().to_string();
    let client = runtime.block_on(Client::connect([&address])).unwrap().with_timeout(PATIENCE);
    let alone = client.blocking();
    for round in 1..=200 {
        assert_eq!(alone.call::<Account>(&key("alone"), Ask::Deposit(1)).unwrap(), round);
    }
    let done = AtomicI64::new(0);
    thread::scope(|scope| {
        for at in 0..3 {
            let (alone, done) = (alone.clone(), &done);
            scope.spawn(move || {
                for _ in 0..100 {
                    alone.call::<Account>(&key(&format!("blocking-{at}")), Ask::Deposit(1)).unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        runtime.block_on(async {
            for round in 0..100 {
                let (first, second) = (key("first"), key("second"));
                let both = tokio::join!(
                    client.call::<Account>(&first, Ask::Deposit(1)),
                    client.call::<Account>(&second, Ask::Deposit(1)),
                );
                assert_eq!((both.0.unwrap(), both.1.unwrap()), (round + 1, round + 1));
                // Polled once, then dropped.
                tokio::select! {
                    biased;
                    _ = client.query::<Account>(&first, Look::Balance) => {}
                    () = async {} => {}
                }
            }
        });
    });
    assert_eq!(done.load(Ordering::Relaxed), 300);
    assert_eq!(alone.query::<Account>(&key("blocking-1"), Look::Balance).unwrap(), 100);
}

/// The identity of a request, and the entry that it brought along as seen.
type Asked = (Identified, Option<LogPoint>);

/// A node at an address: answers the topology of `kv` and openings of sessions, and requests with what is given.
fn serve(listener: &TcpListener, answers: VecDeque<Answer>) -> thread::JoinHandle<Vec<Asked>> {
    let served = serve_and_name(listener, answers, || (Vec::new(), Vec::new()));
    thread::spawn(|| served.join().unwrap().0)
}

/// The addresses of nodes, and the primary of each shard.
type Named = (Vec<SocketAddr>, Vec<Option<Primary>>);

/// The same for a node that names these nodes and primaries. Its connections, which nothing serves after its last answer, are returned.
fn serve_and_name(
    listener: &TcpListener,
    mut answers: VecDeque<Answer>,
    name: impl Fn() -> Named + Send + 'static,
) -> thread::JoinHandle<(Vec<Asked>, Endpoint<Tcp>)> {
    let tcp = Tcp::accepting(listener.try_clone().unwrap()).unwrap();
    thread::spawn(move || {
        let local = Local {
            versions: VERSIONS,
            cluster: Some(ClusterId(7)),
            role: Role::Peer { node: NodeId(1), directory: 1, process: 1 },
            origin: Origin { incarnation: Incarnation(1), life: Life(1) },
            limits: Limits::default(),
            client_limits: Limits::of_clients(),
            clock_difference_max: CLOCK_DIFFERENCE_MAX,
        };
        let mut endpoint = Endpoint::new(tcp, local, Settings::default(), Bounds::default());
        let (begun, mut asked) = (Instant::now(), Vec::new());
        let mut topology = Topology::new(Incarnation(1));
        topology.ensure("kv", 1).unwrap();
        while !answers.is_empty() {
            assert!(begun.elapsed() < PATIENCE, "{} answers are left", answers.len());
            let now = Time(u64::try_from(begun.elapsed().as_micros()).unwrap());
            endpoint.turn(now, Time(0)).unwrap();
            while let Some(happened) = endpoint.next_happened() {
                let Happened::Event(connection, Event::Request(request, bytes)) = happened else { continue };
                let answer = match NativeAsk::decode(&bytes).unwrap().1 {
                    NativeAsk::Topology { .. } => {
                        let (nodes, primaries) = name();
                        Answer::Topology { topology: topology.clone(), nodes, primaries }
                    }
                    NativeAsk::OpenSession { .. } => answered(&[]),
                    NativeAsk::Request { identity, seen, .. } => {
                        asked.push((identity, seen));
                        answers.pop_front().unwrap()
                    }
                    ask => panic!("{ask:?}"),
                };
                let payload = Payload::from(answer.encode());
                endpoint.send_answer(connection, request, &payload, now).unwrap();
                endpoint.flush(now);
            }
            endpoint.network_mut().wait(Some(Duration::from_millis(1))).unwrap();
        }
        (asked, endpoint)
    })
}

/// A call of the process at key `a` of a node of [`serve`], by its idempotency key.
fn raw_call() -> RawCall<'static> {
    RawCall {
        service: "kv",
        key: "a",
        payload: Vec::new(),
        principal: "someone",
        idempotency_key: Some(b"key"),
        seen: None,
        timeout: PATIENCE,
    }
}

fn addresses_of(listeners: [&TcpListener; 2]) -> [SocketAddr; 2] {
    listeners.map(|listener| listener.local_addr().unwrap())
}

#[test]
fn calls_go_to_the_primary_directly_once_the_client_knows_it() {
    let (one, two) = (listener(), listener());
    let nodes = addresses_of([&one, &two]);
    let name = move || (nodes.to_vec(), vec![Some(Primary { node: 1, epoch: Epoch(1) })]);
    // The first node forwards what comes before the connection to the second one is open.
    let forwarding = serve_and_name(&one, vec![answered(b"first"); 1000].into(), name);
    let primary = serve_and_name(&two, [answered(b"second")].into(), name);
    let client = BlockingClient::connect([nodes[0].to_string()]).unwrap();
    let mut forwarded = 0;
    while client.call_raw(raw_call()).unwrap().reply == Ok(b"first".to_vec()) {
        forwarded += 1;
        assert!(forwarded < 1000, "no call went to the primary");
    }
    assert_eq!(primary.join().unwrap().0.len(), 1);
    // The primary has gone: the first node forwards again.
    assert_eq!(client.call_raw(raw_call()).unwrap().reply, Ok(b"first".to_vec()));
    // It ends with its answers; a call that waits for long takes more than one.
    while !forwarding.is_finished() {
        drop(client.call_raw(RawCall { timeout: Duration::from_millis(100), ..raw_call() }));
    }
    forwarding.join().unwrap();
}

#[test]
fn a_call_that_a_stopped_primary_has_goes_on_to_the_next_one() {
    let (one, two) = (listener(), listener());
    let nodes = addresses_of([&one, &two]);
    let is_moved = Arc::new(AtomicBool::new(false));
    let moved = Arc::clone(&is_moved);
    let name = move || {
        let epoch = 1 + u64::from(moved.load(Ordering::Relaxed));
        let node = if epoch == 1 { 0 } else { 1 };
        (nodes.to_vec(), vec![Some(Primary { node, epoch: Epoch(epoch) })])
    };
    // It stands still after its answer: its connections stay open.
    let stopped = serve_and_name(&one, [answered(b"before")].into(), name.clone());
    let next = serve_and_name(&two, [answered(b"after")].into(), name);
    let client = BlockingClient::connect(nodes.map(|node| node.to_string())).unwrap();
    assert_eq!(client.call_raw(raw_call()).unwrap().reply, Ok(b"before".to_vec()));
    let (asked, connections) = stopped.join().unwrap();
    is_moved.store(true, Ordering::Relaxed);
    assert_eq!(client.call_raw(raw_call()).unwrap().reply, Ok(b"after".to_vec()));
    assert_eq!(next.join().unwrap().0, asked);
    drop(connections);
}

/// The answer of a shard.
fn answered(reply: &[u8]) -> Answer {
    answered_at(point(1, 1), Ok(Reply::Ok(Blob::from(reply))))
}

/// An answer that includes the entries up to this one.
fn answered_at(LogPoint { epoch, index }: LogPoint, result: Result<Reply, Refusal>) -> Answer {
    let (token, colour) = (CallToken(0), Colour(0));
    Answer::Of(stead_core::calls::Answer { token, epoch, index, colour, result, staleness: None })
}

fn point(epoch: u64, index: u64) -> LogPoint {
    LogPoint { epoch: Epoch(epoch), index: Index(index) }
}

#[test]
fn a_client_brings_along_what_its_answers_included_and_goes_on_after_the_report_of_a_loss() {
    let node = listener();
    let changed = serde_json::json!({ "applied": true, "previous": null });
    let deleted = || Ok(Reply::Ok(Blob::from(stead::codec::json_to_payload(&changed).unwrap())));
    let (seen, now) = (point(1, 9), point(3, 5));
    let lost = Lost { shard: ShardId(0), service: "kv".to_owned(), seen, kept: Index(4), now };
    let reported = Refusal::Lost(Box::new(lost));
    let answers = [
        answered_at(seen, deleted()),
        answered_at(point(1, 7), deleted()),
        answered_at(now, Err(reported.clone())),
        answered_at(point(3, 6), deleted()),
    ];
    let served = serve(&node, answers.into());
    let client = connect(&node);
    let delete = || client.call::<Kv>(&key("a"), kv::Request::Delete).map(drop);
    assert_eq!((delete(), delete()), (Ok(()), Ok(())));
    assert_eq!(delete(), Err(CallError::Raw(RawError::Refused(reported))));
    assert_eq!(delete(), Ok(()));
    let brought: Vec<_> = served.join().unwrap().into_iter().map(|(_, seen)| seen).collect();
    // The first call opened its session, and had no answer before that.
    assert_eq!(brought, [None, Some(seen), Some(seen), Some(now)]);
}

#[test]
fn a_call_whose_primary_is_deposed_goes_on_to_the_next_one_with_its_identity() {
    let (one, two) = (listener(), listener());
    let deposed = Answer::Deposed { shard: ShardId(0) };
    let not_here = Answer::NotHere { shard: ShardId(0), place: Place::Elsewhere };
    // The next primary is at the other address, and begins to lead a moment later.
    let no_primary = Answer::NoPrimary { shard: ShardId(0) };
    let first = serve(&one, [deposed, not_here].into());
    let second = serve(&two, [no_primary, answered(b"done")].into());
    let addresses = addresses_of([&one, &two]).map(|address| address.to_string());
    let client = BlockingClient::connect(addresses).unwrap();
    let reply = client.call_raw(raw_call()).unwrap();
    assert_eq!(reply.reply, Ok(b"done".to_vec()));
    let asked = [first.join().unwrap(), second.join().unwrap()].concat();
    let identities: Vec<_> = asked.into_iter().map(|(identity, _)| identity).collect();
    assert_eq!(identities.len(), 4);
    let Identified::Idempotency { key, .. } = &identities[0] else { panic!("{identities:?}") };
    assert_eq!(&key[..], b"key");
    assert!(identities.iter().all(|identity| *identity == identities[0]));
}
