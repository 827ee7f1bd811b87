//! Nodes that are one cluster, in one process, over loopback.

use crate::patience::{PATIENCE, await_some};
use crate::services::{Account, Ask, Look, builder, key};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use stead::kv::{Kv, Query, Request};
use stead::{
    Acks, BlockingClient, CallError, Config, DialChange, EnterError, Node, NodeBuilder, NodeState,
    NodeStatus, NotReady, OpenError, OperateError, RawError, Read, ServiceOptions, ShardPlaces,
};

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn member(dir: &Path) -> NodeBuilder {
    builder(dir).listen_cluster(any())
}

fn address(node: &Node) -> SocketAddr {
    node.cluster_address().unwrap()
}

/// Opens a node that joins the cluster of another one.
fn joined(dir: &Path, other: &Node) -> Node {
    builder(dir).join([address(other)]).open().unwrap()
}

#[test]
fn a_node_that_founded_a_cluster_serves_after_each_start_and_others_join_it() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let first = member(dirs[0].path()).open().unwrap();
    let client = first.blocking_client();
    await_some("its shards lead", || client.call::<Account>(&key("a"), Ask::Deposit(5)).ok());
    first.kill();
    let first = member(dirs[0].path()).open().unwrap();
    let client = first.blocking_client();
    let balance =
        await_some("its shards lead again", || client.query::<Account>(&key("a"), Look::Balance).ok());
    assert_eq!(balance, 5);

    let second = joined(dirs[1].path(), &first);
    assert_eq!(second.topology(), first.topology());
    // Its directory knows the cluster from now on.
    let known = address(&second);
    second.shutdown();
    let second = builder(dirs[1].path()).listen_cluster(known).open().unwrap();
    second.shutdown();
    first.shutdown();
}

#[test]
fn data_of_a_node_without_a_cluster_become_those_of_the_first_node_of_one() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [alone_dir, ..] = &dirs;
    let alone = builder(alone_dir.path()).open().unwrap();
    let client = alone.blocking_client();
    let accounts: Vec<String> = (0..16).map(|at| format!("account-{at}")).collect();
    for account in &accounts {
        client.call::<Account>(account, Ask::Deposit(7)).unwrap();
    }
    alone.checkpoint_blocking().unwrap();
    for account in &accounts {
        client.call::<Account>(account, Ask::Move { amount: 2, to: account.clone() }).unwrap();
        client.call::<Account>(account, Ask::Later { amount: 1, after_ms: 3_600_000 }).unwrap();
    }
    let once =
        |client: &BlockingClient| client.call_idempotent::<Account>(&accounts[0], b"once", Ask::Deposit(100));
    let first_answer = once(&client);
    assert!(first_answer.is_ok());
    alone.kill();

    let nowhere = std::net::TcpListener::bind(any()).unwrap().local_addr().unwrap();
    let refused = member(alone_dir.path()).join([nowhere]).open();
    assert!(matches!(refused, Err(OpenError::Enter(EnterError::NotOfCluster))), "it has data of its own");
    // A start that ends after the control plane has begun, and before it knows any of the data.
    let halfway = member(alone_dir.path()).join_timeout(Duration::ZERO).open();
    assert!(matches!(halfway, Err(OpenError::Enter(EnterError::NotRegistered { .. }))));
    assert!(matches!(builder(alone_dir.path()).open(), Err(OpenError::OfCluster)));

    let first = member(alone_dir.path()).open().unwrap();
    let has_all = |node: &Node| {
        let client = node.blocking_client().with_timeout(PATIENCE);
        for account in &accounts {
            let expected = if *account == accounts[0] { 107 } else { 7 };
            // A shard that it moves to itself may still be on its way.
            let balance = || client.query::<Account>(account, Look::Balance).ok();
            await_some(account, || balance().filter(|balance| *balance == expected));
        }
        assert_eq!(once(&client), first_answer, "it was answered before");
    };
    has_all(&first);
    assert_eq!(first.process("account", &accounts[1]).unwrap().info.timers, 1);
    let left = [&dirs[1], &dirs[2]].map(|dir| joined(dir.path(), &first));
    replicate(&first);
    first.kill();
    left.iter().for_each(has_all);
    assert!(matches!(builder(alone_dir.path()).open(), Err(OpenError::OfCluster)));
}

#[test]
fn a_service_of_a_newer_program_serves_at_the_nodes_that_have_it() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let first = member(dirs[0].path()).open().unwrap();
    let second = joined(dirs[1].path(), &first);
    second.shutdown();
    let newer = |dir: &Path| member(dir).service::<Kv>(ServiceOptions::default().shards(2));
    let second = newer(dirs[1].path()).open().unwrap();
    let put = |node: &Node| node.blocking_client().call::<Kv>(&key("a"), Request::Put { value: 5.into() });
    let get = |node: &Node| node.blocking_client().query::<Kv>(&key("a"), Query::Get);
    await_some("the new service serves", || put(&second).ok());
    // The other node goes on, with what it has.
    let deposit = |node: &Node| node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(5));
    assert_eq!((await_some("it serves", || deposit(&first).ok()), deposit(&second)), (5, Ok(10)));
    let unknown = RawError::UnknownService { service: "kv".to_owned() };
    assert_eq!(get(&first), Err(CallError::Raw(unknown)));
    first.shutdown();
    let opened = member(dirs[0].path()).open();
    assert!(matches!(opened, Err(OpenError::NoCode { what }) if what == "service kv"), "an older program");
    let first = newer(dirs[0].path()).open().unwrap();
    assert_eq!(await_some("it serves there, too", || get(&first).ok()), get(&second).unwrap());
}

#[test]
fn a_service_begins_with_the_dial_of_code_and_configuration() {
    let with = |dir: &Path, options, text: &str| {
        let config = Config::from_toml(text, "test").unwrap();
        let node = Node::builder(dir).service::<Account>(options).config(config);
        node.threads(1).listen_cluster(any())
    };
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let options = ServiceOptions::default().shards(2).replicas(2).acks(Acks::Count(3));
    let opened = with(dirs[0].path(), options.clone(), "").open();
    let Err(error) = opened else { panic!("its dial is impossible") };
    assert!(error.to_string().contains("3 acks of 2 replicas are out of range"), "{error}");
    let text = "[services.account]\nacks = 1\nmax_lag = \"7s\"";
    let first = with(dirs[0].path(), options, text).open().unwrap();
    let dial = |node: &Node| {
        let dial = node.cluster().unwrap().status().services.remove(0);
        (dial.replicas, dial.acks, dial.max_lag_ms)
    };
    assert_eq!(dial(&first), (2, Some(1), 7_000));
    // The dial of a service that exists is the cluster's.
    let join = with(dirs[1].path(), ServiceOptions::default().shards(2), "").join([address(&first)]);
    let second = join.open().unwrap();
    assert_eq!(dial(&second), dial(&first));
    await_some("each shard has two members", || {
        let status = first.cluster().unwrap().status();
        status.shards.iter().all(|shard| shard.members.len() == 2 && shard.is_active).then_some(())
    });
}

#[test]
fn a_node_that_finds_no_cluster_says_what_it_tried() {
    let dir = tempfile::tempdir().unwrap();
    // A port at which nothing listens.
    let free = std::net::TcpListener::bind(any()).unwrap().local_addr().unwrap();
    let open = builder(dir.path()).join([free]).join_timeout(Duration::from_millis(200)).open();
    let Err(error) = open else { panic!("it joined nothing") };
    assert!(error.to_string().contains(&format!("has not joined: {free}: ")), "{error}");
    assert_eq!(
        std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| { entry.as_ref().unwrap().file_name() == "stead.json" })
            .count(),
        0,
        "the directory is still empty"
    );
}

#[test]
fn operators_see_the_cluster_change_a_dial_and_begin_an_epoch() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let first = member(dirs[0].path()).open().unwrap();
    let second = joined(dirs[1].path(), &first);
    // Each node knows both, and asks the leader, which is the first one.
    let cluster = second.cluster().unwrap();
    await_some("the second node sees both", || {
        let status = cluster.status();
        let is_whole = status.nodes.len() == 2 && status.nodes.iter().all(|node| node.is_connected);
        let is_led = status.shards.iter().all(|shard| shard.is_active);
        // The balancing after the join is over.
        (is_whole && status.leader == Some(1) && is_led && !status.is_balancing).then_some(())
    });
    let status = cluster.status();
    let primaries: u32 = status.nodes.iter().map(|node| node.primaries).sum();
    assert_eq!((status.node, primaries), (2, status.shards.len() as u32));
    let (service, shard) = (status.services[0].service.clone(), &status.shards[0]);
    assert_eq!(status.services[0].replicas, 1);
    let (primary, other) = shard.primary.map(|primary| (primary, 3 - primary)).unwrap();
    // Figures that only the other node knows are there as well.
    assert!(status.nodes.iter().all(|node| node.state == NodeState::Up && node.since_ms.is_some()));
    assert!(shard.last.is_some(), "{shard:?}");
    let next: Vec<_> = status.problems.iter().map(|problem| problem.next.clone()).collect();
    assert_eq!(next, [format!("stead service set {service} --replicas 2")]);

    let change = DialChange { max_lag: Some(Duration::from_secs(3)), ..DialChange::default() };
    assert_eq!(cluster.set_dial(&service, change, PATIENCE).unwrap().max_lag_ms, 3_000);
    let change = DialChange { acks: Some(Some(7)), ..DialChange::default() };
    assert!(matches!(cluster.set_dial(&service, change, PATIENCE), Err(OperateError::Refused(_))));
    let unknown = cluster.set_dial("none", DialChange::default(), PATIENCE);
    assert_eq!(unknown, Err(OperateError::NoService("none".to_owned())));

    assert_eq!(cluster.failover(shard.shard, None, false, PATIENCE), Ok(primary));
    await_some("the second node sees the new epoch", || {
        let now = &cluster.status().shards[0];
        (now.epoch > shard.epoch && now.is_active).then_some(())
    });
    assert!(matches!(
        cluster.failover(shard.shard, Some(other), false, PATIENCE),
        Err(OperateError::NoMember { node, members, .. }) if node == other && members == [primary]
    ));
    assert_eq!(cluster.failover(99, None, false, PATIENCE), Err(OperateError::NoShard(99)));
}

/// Three nodes that replicate one service three times.
fn three(dirs: &[tempfile::TempDir; 3]) -> [Node; 3] {
    let first = member(dirs[0].path()).open().unwrap();
    let [second, third] = [&dirs[1], &dirs[2]].map(|dir| joined(dir.path(), &first));
    replicate(&first);
    [first, second, third]
}

/// Replicates the service of a cluster over its three nodes.
fn replicate(node: &Node) {
    let cluster = node.cluster().unwrap();
    let service = cluster.status().services[0].service.clone();
    let change = DialChange { replicas: Some(3), ..DialChange::default() };
    cluster.set_dial(&service, change, PATIENCE).unwrap();
    await_some("each shard has three members", || {
        let status = cluster.status();
        let is_whole = |shard: &ShardPlaces| shard.members.len() == 3 && shard.is_active;
        let votes = status.nodes.iter().filter(|node| node.votes).count();
        (status.shards.iter().all(is_whole) && votes == 3 && !status.is_balancing).then_some(())
    });
}

#[test]
fn any_node_answers_also_once_the_primary_is_killed() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let nodes = three(&dirs);
    let accounts: Vec<String> = (0..16).map(|at| format!("account-{at}")).collect();
    let client = |node: &Node| node.blocking_client().with_timeout(PATIENCE);
    let clients = nodes.each_ref().map(client);
    for account in &accounts {
        // At most one of them leads the shard.
        let balances = clients.each_ref().map(|client| client.call::<Account>(account, Ask::Deposit(7)));
        assert_eq!(balances, [Ok(7), Ok(14), Ok(21)], "{account}");
    }
    let whole = nodes[0].cluster().unwrap().status();
    assert_eq!(whole.problems, []);
    assert!(whole.shards.iter().all(|shard| shard.lags.len() == 2), "{whole:?}");
    nodes.iter().for_each(|node| assert_eq!(node.readiness(), Ok(())));
    let [killed, left @ ..] = nodes;
    killed.kill();
    for account in &accounts {
        let balances = left.each_ref().map(|node| client(node).call::<Account>(account, Ask::Deposit(7)));
        assert_eq!(balances, [Ok(28), Ok(35)], "{account}");
    }
    let failovers = left[0].cluster().unwrap().status().failovers;
    assert!(failovers.iter().any(|failover| failover.is_failure && !failover.may_have_lost), "{failovers:?}");
    for node in &left {
        await_some("the shards serve clients of both", || node.readiness().ok());
        let cluster = node.cluster().unwrap();
        let seen: u64 = cluster.failovers_seen().values().sum();
        assert_eq!(seen, failovers.len() as u64);
        await_some("both see the failed node, and the next step", || {
            let status = cluster.status();
            let is_failed = status.nodes[0].state == NodeState::Failed && status.nodes[0].cause.is_some();
            let next = status.problems.iter().any(|problem| problem.next.starts_with("start it again"));
            (is_failed && next).then_some(())
        });
    }
    let [last, second] = left;
    second.kill();
    // Its shards have no majority any more.
    await_some("the last node is not ready", || match last.readiness() {
        Err(NotReady::Shards { active, shards }) if active < shards => Some(()),
        _ => None,
    });
}

#[test]
fn any_node_lists_shows_and_deletes_processes_and_names_a_node_that_gives_no_answer() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let first = member(dirs[0].path()).open().unwrap();
    let second = joined(dirs[1].path(), &first);
    await_some("each node leads two shards", || {
        let status = second.cluster().unwrap().status();
        let is_led = status.shards.iter().all(|shard| shard.is_active);
        let share = |node: &NodeStatus| node.primaries == 2;
        (is_led && !status.is_balancing && status.nodes.iter().all(share)).then_some(())
    });
    let accounts: BTreeSet<String> = (10..26).map(|at| format!("account-{at}")).collect();
    let client = first.blocking_client().with_timeout(PATIENCE);
    for account in &accounts {
        client.call::<Account>(account, Ask::Deposit(7)).unwrap();
    }
    client.call::<Account>(&key("account-10"), Ask::Later { amount: 1, after_ms: 3_600_000 }).unwrap();
    // All keys, and the shards that gave no answer.
    let list = |node: &Node| {
        let (mut keys, mut unanswered, mut after) = (BTreeSet::new(), Vec::new(), None);
        loop {
            let page = node.processes("account", "account-", after, 3).unwrap();
            keys.extend(page.processes.into_iter().map(|process| process.key));
            unanswered.extend(page.unanswered);
            after = page.next;
            if after.is_none() {
                return (keys, unanswered);
            }
        }
    };
    for node in [&first, &second] {
        assert_eq!(list(node), (accounts.clone(), vec![]));
        for account in &accounts {
            let shown = node.process("account", account).unwrap();
            assert_eq!(shown.state.map(|state| state["balance"].clone()), Some(7.into()), "{account}");
            assert_eq!(shown.timer_list.len(), usize::from(account == "account-10"));
        }
        let page = node.dead_letters("account", None, 10).unwrap();
        assert_eq!((page.dead_letters.len(), page.next, page.unanswered), (0, None, vec![]));
    }
    let mut left = accounts;
    for node in [&first, &second] {
        for _ in 0..4 {
            let account = left.pop_last().unwrap();
            assert_eq!(node.delete_process("account", &account), Ok(1), "{account}");
        }
    }
    for node in [&first, &second] {
        assert_eq!(list(node), (left.clone(), vec![]));
    }
    second.kill();
    let (keys, unanswered) = list(&first);
    assert_eq!(unanswered.iter().map(|shard| shard.node).collect::<Vec<_>>(), [Some(2); 2], "{unanswered:?}");
    assert!(keys.is_subset(&left) && keys.len() < left.len(), "{keys:?}");
    let lacking = left.iter().find(|account| !keys.contains(*account)).unwrap();
    let shown = first.process("account", lacking);
    assert!(matches!(shown, Err(RawError::NoPrimary { .. } | RawError::TimedOut { .. })), "{shown:?}");
}

#[test]
fn addresses_that_no_other_node_can_use_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = SocketAddr::from(([127, 0, 0, 1], 7430));
    let refused = |cluster, peers| match member(dir.path()).advertise(cluster, peers).open() {
        Err(OpenError::Cluster(error)) => error.to_string(),
        other => panic!("{:?}", other.map(drop)),
    };
    assert!(refused(any(), good).contains("127.0.0.1:0 has no port to which others could connect"));
    let far = SocketAddr::from(([192, 0, 2, 1], 7430));
    assert!(refused(good, far).contains("192.0.2.1:7430 is not a loopback address"));
    let Err(OpenError::Cluster(error)) = member(dir.path()).listen_peers(far).open() else {
        panic!("it listens")
    };
    assert!(error.to_string().contains("192.0.2.1:7430 is not a loopback address"), "{error}");
}

#[test]
fn a_client_learns_the_nodes_and_reads_stale_answers_at_any() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let nodes = three(&dirs);
    let connect = |node: &Node| {
        let address = node.native_address().unwrap().to_string();
        BlockingClient::connect([address]).unwrap().with_timeout(PATIENCE)
    };
    let accounts: Vec<String> = (0..8).map(|at| format!("account-{at}")).collect();
    let client = connect(&nodes[0]);
    for account in &accounts {
        assert_eq!(client.call::<Account>(account, Ask::Deposit(7)), Ok(7));
    }
    let max_lag = Duration::from_secs(5);
    for client in nodes.each_ref().map(connect) {
        for account in &accounts {
            let read = Read::Stale { max_lag: Some(max_lag.into()) };
            // One that lags by an entry answers without it.
            await_some("a replica has the deposit", || {
                let queried = client.query_with::<Account>(account, Look::Balance, read).ok()?;
                assert!(queried.staleness.is_some_and(|age| age <= max_lag), "{queried:?}");
                (queried.answer == 7).then_some(())
            });
        }
    }
    // Its one address is that of this node.
    let [killed, left @ ..] = nodes;
    killed.kill();
    for account in &accounts {
        assert_eq!(client.call::<Account>(account, Ask::Deposit(7)), Ok(14), "{account}");
    }
    drop(left);
}
