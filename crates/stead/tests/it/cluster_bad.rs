//! Bad input to a cluster: each is a clear error with the next step, and the nodes that do nothing wrong go on.

use crate::patience::{PATIENCE, await_some, await_until};
use crate::services::{Account, Ask, builder, key};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};
use stead::{DialChange, EnterError, Node, NodeBuilder, OpenError, ShardPlaces, Time};
use stead_core::control::node::StartId;
use stead_core::ids::{ClusterId, DiskNumber, Incarnation, Life, NodeId};
use stead_net::decoder::Decoder;
use stead_net::frame::Origin;
use stead_net::handshake::{
    CLOCK_DIFFERENCE_MAX, HELLO_BYTES_MAX, Handshake, HandshakeError, Limits, Local, RefusalKind, Role,
    VERSIONS, Versions,
};
use stead_net::outgoing::Outgoing;
use stead_store::data_dir::{DataDir, Meta};
use stead_store::real_disk::RealDisk;
use stead_store::sim_disk::SimDisk;

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn free() -> SocketAddr {
    TcpListener::bind(any()).unwrap().local_addr().unwrap()
}

fn member(dir: &Path) -> NodeBuilder {
    builder(dir).listen_cluster(any())
}

fn address(node: &Node) -> SocketAddr {
    node.cluster_address().unwrap()
}

fn dirs<const N: usize>() -> [tempfile::TempDir; N] {
    [(); N].map(|()| tempfile::tempdir().unwrap())
}

/// A node that does nothing wrong still serves.
fn serves(node: &Node) {
    let client = node.blocking_client();
    await_some("it serves", || client.call::<Account>(&key("a"), Ask::Deposit(1)).ok());
}

/// Opens a node that does not get into its cluster, until the reason has these words, and returns it.
fn refused(make: impl Fn() -> NodeBuilder, words: &str) -> String {
    await_some(words, || match make().join_timeout(Duration::from_millis(300)).open() {
        Err(OpenError::Enter(error)) => Some(error.to_string()).filter(|reason| reason.contains(words)),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it has entered"),
    })
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => match std::fs::copy(entry.path(), to) {
                // The node runs, and has removed it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            },
        }
    }
}

#[test]
fn nodes_of_two_clusters_refuse_each_other() {
    let [first, second, other] = dirs();
    let node = member(first.path()).open().unwrap();
    let at = address(&node);
    builder(second.path()).join([at]).open().unwrap().shutdown();
    node.shutdown();
    let other = builder(other.path()).listen_cluster(at).open().unwrap();
    let reason = refused(|| member(second.path()), "belongs to cluster");
    assert!(reason.contains("use the addresses of one cluster's nodes"), "{reason}");
    serves(&other);
}

#[test]
fn a_disk_from_earlier_is_refused_as_long_as_the_newer_one_is_known() {
    let [first, second, earlier] = dirs();
    let first = member(first.path()).open().unwrap();
    builder(second.path()).join([address(&first)]).open().unwrap().shutdown();
    copy(second.path(), earlier.path());
    for _ in 0..2 {
        member(second.path()).open().unwrap().shutdown();
    }
    let reason = refused(|| member(earlier.path()), "of node 2 is over: its life");
    assert!(reason.contains("let it join as a new node with an empty directory"), "{reason}");
    serves(&first);
    // The newer disk is welcome.
    serves(&member(second.path()).open().unwrap());
}

#[test]
fn of_two_processes_with_one_directory_the_first_one_ends_with_the_reason() {
    let [first, second, third, copied] = dirs();
    let first = member(first.path()).open().unwrap();
    let join = |dir: &tempfile::TempDir| builder(dir.path()).join([address(&first)]).open().unwrap();
    let [original, third] = [&second, &third].map(join);
    await_until("three nodes vote", || votes(&first) == [1, 2, 3]);
    copy(second.path(), copied.path());
    let copied = member(copied.path()).open().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let reason = runtime.block_on(original.failed());
    assert!(reason.contains("another process has started as this node; end one of them"), "{reason}");
    [first, third, copied].iter().for_each(serves);
}

#[test]
fn a_node_whose_disk_is_empty_joins_as_a_new_one_and_the_old_one_can_be_removed() {
    let [first, second, fresh] = dirs();
    let first = member(first.path()).open().unwrap();
    builder(second.path()).join([address(&first)]).open().unwrap().kill();
    let fresh = builder(fresh.path()).join([address(&first)]).open().unwrap();
    let cluster = first.cluster().unwrap();
    assert_eq!(fresh.cluster().unwrap().status().node, 3);
    cluster.remove_node(2, PATIENCE).unwrap();
    await_until("it is removed", || cluster.status().nodes.iter().all(|node| node.node != 2));
    // A fourth node votes only once the control plane has let go of the second one, which gets no news of it any more.
    let [fourth] = dirs();
    let fourth = builder(fourth.path()).join([address(&first)]).open().unwrap();
    await_until("the other nodes vote", || votes(&first) == [1, 3, 4]);
    refused(|| member(second.path()), "the cluster has removed node 2; join as a new one");
    [fresh, fourth].iter().for_each(serves);
}

#[test]
fn a_node_whose_clock_is_an_hour_ahead_learns_it() {
    let [first, second] = dirs();
    let first = member(first.path()).open().unwrap();
    let ahead = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Time(u64::try_from((since + Duration::from_secs(3600)).as_micros()).unwrap())
    };
    let make = || builder(second.path()).join([address(&first)]).wall_clock(ahead);
    let reason = refused(make, "and 60 s are allowed; set the clocks of both machines");
    assert!(reason.contains("the clock of node"), "{reason}");
    serves(&first);
    // Its directory is one of the cluster's already, but the leader has never reached it.
    serves(&builder(second.path()).join([address(&first)]).open().unwrap());
}

#[test]
fn dials_that_no_cluster_can_keep_are_refused() {
    let [dir] = dirs();
    let node = member(dir.path()).open().unwrap();
    let refused = |change| {
        let set = node.cluster().unwrap().set_dial("account", change, PATIENCE);
        set.map(drop).unwrap_err().to_string()
    };
    let acks = refused(DialChange { replicas: Some(1), acks: Some(Some(2)), ..DialChange::default() });
    assert!(acks.contains("2 acks of 1 replicas are out of range; ask for 1 to 1"), "{acks}");
    let replicas = refused(DialChange { replicas: Some(3), ..DialChange::default() });
    assert!(replicas.contains("3 replicas need 3 nodes, and there are 1; join more nodes"), "{replicas}");
    serves(&node);
}

#[test]
fn an_entry_ends_when_it_is_stopped() {
    let [first, second, third] = dirs();
    let node = member(first.path()).open().unwrap();
    builder(second.path()).join([address(&node)]).open().unwrap().shutdown();
    node.shutdown();
    let stops = Arc::new(AtomicBool::new(true));
    // Alone it has no majority; without a directory there is none to ask.
    for builder in [member(second.path()), builder(third.path()).join([free()])] {
        let opened = builder.stop_entry_at(&stops).open();
        assert!(matches!(opened, Err(OpenError::Enter(EnterError::Stopped))), "{:?}", opened.map(drop));
    }
}

#[test]
fn a_join_that_stops_halfway_keeps_no_other_node_from_voting() {
    let [first, halfway, third, fourth] = dirs();
    let first = member(first.path()).open().unwrap();
    // It has a number, and no directory that knows it.
    let disk = SimDisk::new(1);
    disk.fail_syncs(1);
    let opened = builder(halfway.path()).disk(Arc::new(disk)).join([address(&first)]).open();
    assert!(matches!(opened, Err(OpenError::Enter(EnterError::DataDir(_)))), "{:?}", opened.map(drop));
    let others = [&third, &fourth].map(|dir| builder(dir.path()).join([address(&first)]).open().unwrap());
    await_until("three nodes vote", || votes(&first) == [1, 3, 4]);
    others.iter().for_each(serves);
}

/// Starts nodes at the same time: none of them enters before there are enough of them.
fn open_all(builders: impl IntoIterator<Item = NodeBuilder>) -> Vec<Node> {
    let opens = builders.into_iter().map(|builder| std::thread::spawn(|| builder.open().unwrap()));
    let opens: Vec<_> = opens.collect();
    opens.into_iter().map(|open| open.join().unwrap()).collect()
}

#[test]
fn a_node_of_which_the_cluster_knows_the_number_only_enters_from_any_address() {
    let [first, second] = dirs();
    let node = member(first.path()).open().unwrap();
    // A join that ended behind its directory: the cluster knows an address at which there is no node.
    let disk = SimDisk::new(1);
    disk.fail_syncs(1);
    builder(second.path()).disk(Arc::new(disk)).join([address(&node)]).open().map(drop).unwrap_err();
    let cluster = DataDir::inspect(&RealDisk::open(first.path()).unwrap()).unwrap().cluster;
    let meta = || Meta::new(cluster, Incarnation(1), NodeId(2), 7);
    DataDir::open(Arc::new(RealDisk::open(second.path()).unwrap()), meta).unwrap();
    let second = builder(second.path()).join([address(&node)]).open().unwrap();
    assert_eq!(second.cluster().unwrap().status().node, 2);
    serves(&second);
}

#[test]
fn all_nodes_can_change_their_addresses_at_once() {
    let dirs: [_; 3] = dirs();
    let first = member(dirs[0].path()).open().unwrap();
    let join = |dir: &tempfile::TempDir| builder(dir.path()).join([address(&first)]).open().unwrap();
    let others = [&dirs[1], &dirs[2]].map(join);
    await_until("three nodes vote", || votes(&first) == [1, 2, 3]);
    let former: Vec<_> = [&first, &others[0], &others[1]].map(address).into();
    first.shutdown();
    others.iter().for_each(Node::shutdown);
    // The ports of today stay taken. Each node knows only that of the first one.
    let _taken: Vec<_> = former.iter().filter_map(|at| TcpListener::bind(at).ok()).collect();
    let at = free();
    let first = builder(dirs[0].path()).listen_cluster(at);
    let others = [&dirs[1], &dirs[2]].map(|dir| builder(dir.path()).join([at]));
    let nodes = open_all(std::iter::once(first).chain(others));
    nodes.iter().for_each(serves);
    await_until("all know the new addresses", || {
        let status = nodes[2].cluster().unwrap().status();
        let new: Vec<_> = status.nodes.iter().filter_map(|node| node.cluster).collect();
        new == nodes.iter().map(address).collect::<Vec<_>>()
    });
}

/// The nodes that vote, as one sees it.
fn votes(node: &Node) -> Vec<u32> {
    let status = node.cluster().unwrap().status();
    status.nodes.iter().filter(|node| node.votes).map(|node| node.node).collect()
}

#[test]
fn a_copy_of_a_running_node_s_directory_stops_no_other_node() {
    let dirs: [_; 3] = dirs();
    let copied = tempfile::tempdir().unwrap();
    let first = member(dirs[0].path()).open().unwrap();
    let join = |dir: &tempfile::TempDir| builder(dir.path()).join([address(&first)]).open().unwrap();
    let [second, third] = [&dirs[1], &dirs[2]].map(join);
    let cluster = first.cluster().unwrap();
    let three = DialChange { replicas: Some(3), ..DialChange::default() };
    cluster.set_dial("account", three, PATIENCE).unwrap();
    await_until("three nodes vote and have all", || {
        let status = cluster.status();
        let is_whole = status.shards.iter().all(|shard| shard.members.len() == 3 && shard.is_active);
        votes(&first) == [1, 2, 3] && is_whole && !status.is_balancing
    });
    let accounts: Vec<String> = (0..8).map(|at| format!("account-{at}")).collect();
    let deposit = |node: &Node| {
        let client = node.blocking_client().with_timeout(PATIENCE);
        accounts
            .iter()
            .map(|account| client.call::<Account>(account, Ask::Deposit(1)).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(deposit(&first), [1; 8]);
    copy(dirs[1].path(), copied.path());
    // What the copy lacks: entries of the control plane, and of each shard.
    for max_lag in 1..4 {
        let change = DialChange { max_lag: Some(Duration::from_secs(max_lag)), ..DialChange::default() };
        cluster.set_dial("account", change, PATIENCE).unwrap();
    }
    assert_eq!(deposit(&third), [2; 8]);
    let at = address(&second);
    second.kill();
    let second = builder(copied.path()).listen_cluster(at).open().unwrap();
    assert_eq!(deposit(&second), [3; 8]);
    await_until("it votes, and has all again", || {
        let status = cluster.status();
        let is_whole = |shard: &ShardPlaces| {
            shard.members.len() == 3 && shard.is_active && shard.lags.iter().all(|lag| lag.entries == 0)
        };
        votes(&first) == [1, 2, 3] && status.leader.is_some() && status.shards.iter().all(is_whole)
    });
    third.kill();
    assert_eq!(deposit(&first), [4; 8]);
    assert_eq!(deposit(&second), [5; 8]);
}

#[test]
fn an_older_disk_that_failed_starts_have_counted_up_is_taken_for_lost() {
    let [first, second, earlier] = dirs();
    let first = member(first.path()).open().unwrap();
    let second_at = |dir: &Path| builder(dir).join([address(&first)]);
    second_at(second.path()).open().unwrap().shutdown();
    copy(second.path(), earlier.path());
    // The node goes on, and has replicas.
    let node = second_at(second.path()).open().unwrap();
    let cluster = first.cluster().unwrap();
    let two = DialChange { replicas: Some(2), ..DialChange::default() };
    cluster.set_dial("account", two, PATIENCE).unwrap();
    let is_whole = || {
        let status = cluster.status();
        status.shards.iter().all(|shard| shard.members.len() == 2 && shard.is_active)
    };
    let disk = || cluster.plane().newest().state.nodes()[&NodeId(2)].disk;
    await_until("both have all", is_whole);
    let deposit = |node: &Node| {
        let client = node.blocking_client();
        await_some("it serves", || client.call::<Account>(&key("a"), Ask::Deposit(1)).ok())
    };
    let answered = deposit(&node);
    node.shutdown();
    assert_eq!(disk(), DiskNumber(1));
    // Starts on the copy that fail before the cluster knows of them.
    let real = Arc::new(RealDisk::open(earlier.path()).unwrap());
    for start in 0..5 {
        let (mut dir, created) = DataDir::open(real.clone(), || panic!("it is there")).unwrap();
        dir.begin_start(StartId(start)).unwrap();
        assert!(!created);
    }
    let second = second_at(earlier.path()).open().unwrap();
    assert_eq!(disk(), DiskNumber(2), "its replicas are void");
    await_until("both have all again", is_whole);
    assert!(deposit(&second) > answered);
}

fn local(versions: Versions) -> Local {
    Local {
        versions,
        cluster: Some(ClusterId(7)),
        role: Role::Peer { node: NodeId(9), directory: 1, process: 2 },
        origin: Origin { incarnation: Incarnation(1), life: Life(1) },
        limits: Limits::default(),
        client_limits: Limits::of_clients(),
        clock_difference_max: CLOCK_DIFFERENCE_MAX,
    }
}

/// Returns the bytes of a first frame.
fn hello(versions: Versions) -> Vec<u8> {
    let (head, payload) = Handshake::dial(local(versions), 1, None).hello(Time(1), None);
    let mut outgoing = Outgoing::default();
    outgoing.push(head, &payload);
    let mut slices = [std::io::IoSlice::new(&[]); 8];
    let count = outgoing.slices(&mut slices);
    slices[..count].iter().flat_map(|slice| slice.to_vec()).collect()
}

/// Sends bytes to an address, and their end if that is all, and returns what comes back until the other end closes.
fn send(to: SocketAddr, bytes: &[u8], is_all: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The other end may have closed already.
    let _ = stream.write_all(bytes);
    if is_all {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn bytes_that_no_node_sends_end_their_connection_alone() {
    let [first, second] = dirs();
    let peers = free();
    let first = member(first.path()).listen_peers(peers).open().unwrap();
    let second = builder(second.path()).join([address(&first)]).open().unwrap();
    let good = hello(VERSIONS);
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let mut long = good.clone();
    long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(9_000).collect();
    for to in [address(&first), peers] {
        let torn = &good[..good.len() / 2];
        let more = [&good[..], &noise].concat();
        let all: [&[u8]; 8] = [&good, &damaged, &long, &noise, torn, b"GET / HTTP/1.1\r\n\r\n", b"", &more];
        for bytes in all {
            send(to, bytes, true);
        }
        let newer = send(to, &hello(Versions { min: 98, max: 99 }), false);
        let mut decoder = Decoder::new(HELLO_BYTES_MAX);
        decoder.receive(&newer);
        let frame = decoder.next_frame().unwrap().expect("a refusal");
        let handshake = Handshake::dial(local(VERSIONS), 1, None);
        let Err(HandshakeError::RefusedByOther { kind: RefusalKind::Version, text }) =
            handshake.handle_frame(&frame, Time(1), |_| None)
        else {
            panic!("{frame:?}")
        };
        assert!(text.contains("upgrade the end whose newest version is 2"), "{text}");
    }
    serves(&first);
    serves(&second);
    let is_connected = || first.cluster().unwrap().status().nodes.iter().all(|node| node.is_connected);
    await_until("the nodes are connected", is_connected);
}
