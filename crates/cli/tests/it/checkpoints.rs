//! Checkpoints on the command line: with a server, without one, and restored.

#[cfg(feature = "s3")]
use crate::patience::await_some;
#[cfg(feature = "s3")]
use crate::s3_server::S3Server;
use crate::server::{Server, json_of, run, stead};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use stead::{CheckpointOptions, Context, Cut, Never, NoQuery, Node, Process, ServiceOptions};
use stead_core::blob::Blob;
use stead_core::checkpointing::lineage::Lineage;
use stead_core::entry::{Cause, Entry, Send};
use stead_core::ids::{CheckpointNumber, ClusterId, Colour, Epoch, Incarnation, NodeId, Seq, ShardId, Time};
use stead_core::key::Key;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_gateway::http;
use stead_store::checkpoint::bundle::{Author, BundleNames};
use stead_store::checkpoint::manifest::CheckResult;
use stead_store::checkpoint::store::DiskStore;
use stead_store::checkpoint::write::{CheckpointWriter, Plan};
use stead_store::data_dir::DataDir;
use stead_store::real_disk::RealDisk;

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
    let text = String::from_utf8(server.command(&["checkpoint", "list"]).stdout).unwrap();
    assert!(text.contains("taken") && text.contains(" UTC"), "{text}");
    let latest = json_of(&server.command(&["checkpoint", "show", "latest", "--json"]));
    assert!(latest["number"].as_u64() >= report["number"].as_u64(), "{latest}");
    let word = server.command(&["checkpoint", "show", "last"]);
    assert_eq!(word.status.code(), Some(2), "{word:?}");
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
    let deleted = json_of(&server.command(&["checkpoint", "delete", &old, "--json"]));
    assert_eq!(deleted["deleted"].to_string(), old);
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
    // A token of another incarnation is refused.
    let foreign = server.post_with("/v1/call/kv/a", "\"delete\"", &[("Stead-Token", &token)]);
    foreign.assert_problem(409, "bad-token");
    server.put("a", 3);
}

/// Creates a directory with a checkpoint of some values.
fn with_checkpoint(data: &Path, vars: &[(&str, &str)]) {
    let server = Server::start_in(data, &["--supervise=false"], vars);
    for key in 0..20 {
        server.put(&key.to_string(), key);
    }
    json_of(&server.command(&["checkpoint", "create", "--json"]));
    server.terminate();
}

#[test]
fn a_number_of_shards_that_exists_wins_over_the_default_and_not_over_one_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (data, restored) = (dir.path().join("data"), dir.path().join("it's restored"));
    with_checkpoint(&data, &[("STEAD_CFG_SERVICES_KV_SHARDS", "3"), ("STEAD_PORT", "tcp://10.0.0.11:7420")]);
    let shards = |data: &Path| Server::start(data, &[]).get("/v1/services").json()[0]["shards"].clone();
    assert_eq!(shards(&data), 3);

    let (from, into) = (data.to_str().unwrap(), restored.to_str().unwrap());
    let report =
        run(&["restore", "--from", from, "--into", into, "--shards", "kv=8", "--checkpoint", "latest"]);
    assert!(report.status.success(), "{report:?}");
    // The log of a restore that no node has run on.
    let log = run(&["log", "0", "--data", into]);
    assert_eq!((log.status.code(), log.stdout.len()), (Some(0), 0), "{log:?}");
    let stderr = String::from_utf8(report.stderr).unwrap();
    let command = stderr.lines().find_map(|line| line.strip_prefix("start it with: stead ")).unwrap();
    // The shell splits the command as it would for a user.
    let words = std::process::Command::new("sh").args(["-c", &format!("printf '%s\\n' {command}")]).output();
    let words = String::from_utf8(words.unwrap().stdout).unwrap();
    assert_eq!(words.lines().collect::<Vec<_>>(), ["start", "--data", into]);
    assert_eq!(shards(&restored), 8);

    let mut asked = stead(&["start", "--data", into, "--listen", "127.0.0.1:0"]);
    let refused = asked.env("STEAD_CFG_SERVICES_KV_SHARDS", "16").output().unwrap();
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.contains("service kv has 8 shards, but 16 were requested"), "{stderr}");
}

#[test]
fn a_refused_restore_leaves_nothing_behind_and_one_that_broke_off_is_named_and_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (data, into) = (path("data"), path("restored"));
    with_checkpoint(data.as_ref(), &[]);
    let restore = |shards: &str| run(&["restore", "--from", &data, "--into", &into, "--shards", shards]);
    for shards in ["kw=8", "kv=0", "kv=5000"] {
        let refused = restore(shards);
        assert!(!refused.status.success(), "{refused:?}");
        assert!(!Path::new(&into).exists(), "{shards} left something");
    }
    std::fs::create_dir(&into).unwrap();
    assert!(!restore("kw=8").status.success());
    assert_eq!(std::fs::read_dir(&into).unwrap().count(), 0, "an empty directory is kept, and stays empty");

    // The state that a killed restore leaves.
    let meta = DataDir::inspect(&RealDisk::open(&data).unwrap()).unwrap();
    let disk = Arc::new(RealDisk::open(&into).unwrap());
    drop(DataDir::open_for_restore(disk, meta).unwrap().unwrap());
    std::fs::create_dir_all(Path::new(&into).join("checkpoints/bundles")).unwrap();
    std::fs::write(Path::new(&into).join("checkpoints/bundles/0-0.bundle"), "torn").unwrap();
    for command in [&["start", "--listen", "127.0.0.1:0", "--data"][..], &["log", "0", "--data"]] {
        let refused = run(&[command, &[&into]].concat());
        assert_eq!(refused.status.code(), Some(5), "{refused:?}");
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(stderr.contains("did not end") && stderr.contains("repeat the restore"), "{stderr}");
    }
    assert!(restore("kv=8").status.success());
    assert_eq!(Server::start(into.as_ref(), &[]).get("/v1/query/kv/7").json(), 7);
    let again = restore("kv=8");
    assert_eq!(again.status.code(), Some(5), "{again:?}");
    assert_eq!(Server::start(into.as_ref(), &[]).get("/v1/query/kv/7").json(), 7);
}

#[test]
fn a_damaged_checkpoint_is_reported_and_exits_with_its_code() {
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
    // Without a reader of its report the command still fails.
    let mut deaf =
        stead(&["checkpoint", "verify", &number, "--data", dir.path().to_str().unwrap(), "--json"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(deaf.stdout(writer).status().unwrap().code(), Some(6));
}

/// A service whose check holds as long as it was called an even number of times.
#[derive(Default, Serialize, Deserialize)]
struct Even(u64);

impl Process for Even {
    const SERVICE: &'static str = "even";
    type Key = String;
    type Request = ();
    type Reply = ();
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, _: &mut Context<'_, Self>, (): ()) -> Result<(), Never> {
        self.0 += 1;
        Ok(())
    }

    fn check(cut: &Cut<'_>) -> Result<(), String> {
        for even in cut.processes::<Self>() {
            let (key, Self(calls)) = even?;
            if calls % 2 != 0 {
                return Err(format!("{key} was called {calls} times"));
            }
        }
        Ok(())
    }
}

#[test]
fn a_failed_check_is_seen_in_every_place_and_create_exits_with_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = CheckpointOptions { interval: None, ..CheckpointOptions::default() };
    let node = Node::builder(dir.path()).service::<Even>(ServiceOptions::default()).checkpoints(checkpoints);
    let node = node.segment_bytes(1 << 20).open().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = http::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let _entered = runtime.enter();
    let _server = http::serve(&node, listener, dir.path(), http::Limits::default()).unwrap();
    let command = |args: &[&str]| stead(args).args(["--addr", &addr]).output().unwrap();
    let text = |args: &[&str]| String::from_utf8(command(args).stdout).unwrap();

    let held = json_of(&command(&["checkpoint", "create", "--json"]));
    assert_eq!((&held["check"], &held["failed_checks"]), (&"hold".into(), &Value::Array(Vec::new())));
    node.blocking_client().call::<Even>(&"odd".to_owned(), ()).unwrap();
    let created = command(&["checkpoint", "create", "--json"]);
    assert_eq!(created.status.code(), Some(6), "{created:?}");
    let report: Value = serde_json::from_slice(&created.stdout).expect("one object");
    assert_eq!(report["check"], "failed", "{report}");
    assert_eq!(report["failed_checks"][0]["reason"], "odd was called 1 times");
    let created = command(&["checkpoint", "create"]);
    assert_eq!(created.status.code(), Some(6), "{created:?}");
    assert!(String::from_utf8_lossy(&created.stderr).contains("odd was called 1 times"), "{created:?}");

    let list = json_of(&command(&["checkpoint", "list", "--json"]));
    let outcomes: Vec<&str> = list.as_array().unwrap().iter().map(|c| c["check"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["hold", "failed", "failed"]);
    let rows = text(&["checkpoint", "list"]);
    assert!(rows.contains("hold\n") && rows.contains("1 failed\n"), "{rows}");
    let status = text(&["status"]);
    assert!(status.contains("1 failed at checkpoint 3") && status.contains("odd was called"), "{status}");
    let get = |path: &str| {
        let mut response = ureq::get(format!("http://{addr}{path}")).call().unwrap();
        response.body_mut().read_to_string().unwrap()
    };
    let ready: Value = serde_json::from_str(&get("/readyz")).unwrap();
    assert_eq!((&ready["status"], &ready["failed_check"]["number"]), (&"ok".into(), &3.into()), "{ready}");
    let metrics = get("/metrics");
    for line in ["stead_checkpoint_checks_failed_total 2", "stead_checkpoint_check_failing 1"] {
        assert!(metrics.contains(line), "{metrics}");
    }
    node.shutdown();
    // The program `stead` has no code of this service.
    let data = dir.path().to_str().unwrap();
    let verified = run(&["checkpoint", "verify", "3", "--data", data, "--json"]);
    assert_eq!(verified.status.code(), Some(6), "{verified:?}");
    std::fs::remove_dir_all(dir.path().join("checkpoints/checks")).unwrap();
    let verified = json_of(&run(&["checkpoint", "verify", "3", "--data", data, "--json"]));
    assert_eq!((&verified["consistent"], &verified["check"]), (&true.into(), &"not_checked".into()));
    let rows = String::from_utf8(run(&["checkpoint", "list", "--data", data]).stdout).unwrap();
    assert!(rows.contains("not checked\n") && !rows.contains("hold"), "{rows}");
}

/// Three processes, each a shard of its own: j sends m1 to i and m2 to k.
struct Processes {
    topology: Topology,
    states: [State; 3],
}

const I: ShardId = ShardId(0);
const J: ShardId = ShardId(1);
const K: ShardId = ShardId(2);

impl Processes {
    fn new() -> Self {
        let mut topology = Topology::new(Incarnation(1));
        topology.ensure("process", 3).unwrap();
        Self { topology, states: [I, J, K].map(State::new) }
    }

    fn append(&mut self, shard: ShardId, cause: Cause, sends: &[ShardId]) {
        let state = &mut self.states[shard.0 as usize];
        let send = |to: &ShardId| Send { to: *to, process: Key::none(), payload: Blob::from(&b"m"[..]) };
        let entry = Entry {
            index: state.position().index.next(),
            epoch: Epoch(1),
            time: Time(1),
            cause,
            process: Key::none(),
            writes: Vec::new(),
            sends: sends.iter().map(send).collect(),
            reply: None,
            served: None,
        };
        state.apply(entry).unwrap();
    }

    /// Makes each process take its part of checkpoint 1, as its last action.
    fn mark_all(&mut self) {
        for shard in [I, J, K] {
            self.append(shard, Cause::Marker { colour: Colour(1) }, &[]);
        }
    }

    /// Stores the parts as checkpoint 1 of a data directory.
    fn store(self, data: &Path, checks: Vec<CheckResult>) {
        let store = DiskStore::open(Arc::new(RealDisk::open(data).unwrap()), "checkpoints").unwrap();
        let author = Author { cluster: ClusterId(1), node: NodeId::FIRST, writer: 1 };
        let (number, created) = (CheckpointNumber(1), Time(1));
        let bundle = BundleNames::new(author).draw(number);
        let parts = [I, J, K].map(|shard| (shard, Epoch(1))).into();
        let plan = Plan { number, created, topology: self.topology, parts, bundle, author };
        let mut writer = CheckpointWriter::create(&store, plan).unwrap();
        for state in &self.states {
            writer.begin_part(state.header(), true).unwrap();
            writer.end_part(state.shard()).unwrap();
        }
        let mut sealed = writer.seal(&Lineage::new()).unwrap();
        sealed.set_checks(checks);
        sealed.store(&store).unwrap();
    }
}

/// C1,j is taken before m1 is sent, and C1,i before it is received: the cut is consistent. m2 is sent before C1,j and received
/// after C1,k: it is in flight.
#[test]
fn the_textbook_case_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let mut processes = Processes::new();
    processes.append(J, Cause::Anonymous, &[K]);
    processes.mark_all();
    processes.store(dir.path(), Vec::new());
    let verified =
        json_of(&run(&["checkpoint", "verify", "1", "--data", dir.path().to_str().unwrap(), "--json"]));
    assert_eq!((&verified["consistent"], &verified["sent"]), (&true.into(), &1.into()), "{verified}");
    assert_eq!(verified["in_flight"][0]["messages"], 1, "{verified}");
}

/// The same with m1's reception recorded at i, but not its sending at j.
#[test]
fn the_textbook_case_with_an_orphan_exits_with_its_code_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut processes = Processes::new();
    processes.append(J, Cause::Anonymous, &[K]);
    processes.append(I, Cause::Message { from: J, seq: Seq(1) }, &[]);
    processes.mark_all();
    processes.store(dir.path(), Vec::new());
    let data = dir.path().to_str().unwrap();
    let orphan = "channel 1 -> 0: shard 0 has received message 1, but shard 1 has sent only 0";
    let output = run(&["checkpoint", "verify", "1", "--data", data]);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(orphan), "{output:?}");
    let output = run(&["checkpoint", "verify", "1", "--data", data, "--json"]);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!((&report["consistent"], &report["inconsistencies"][0]), (&false.into(), &orphan.into()));
}

#[test]
fn a_declared_check_that_fails_exits_with_its_code_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut processes = Processes::new();
    processes.mark_all();
    let failure = "1 coin was created from nothing".to_owned();
    let check = CheckResult { service: "process".to_owned(), failure: Some(failure.clone()), skipped: None };
    processes.store(dir.path(), vec![check]);
    let output = run(&["checkpoint", "verify", "1", "--data", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&failure), "{output:?}");
}

#[test]
fn a_checkpoint_is_copied_elsewhere_and_restored_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (data, restored, to) = (path("data"), path("restored"), format!("file://{}", path("copies")));
    let server = Server::start(data.as_ref(), &[]);
    server.put("a", 7);
    let number = json_of(&server.command(&["checkpoint", "create", "--json"]))["number"].to_string();
    let copy = ["checkpoint", "copy", &number, "--to", &to];
    let report = json_of(&server.command(&[&copy[..], &["--json"]].concat()));
    assert_eq!((report["number"].to_string(), report["to"].as_str()), (number.clone(), Some(to.as_str())));
    assert!(server.command(&copy).status.success());
    let path = format!("/v1/checkpoints/{number}/copy");
    server.post(&path, r#"{"to":"ftp://x"}"#).assert_problem(400, "bad-request");
    server.post(&path, r#"{"from":"x"}"#).assert_problem(400, "bad-request");
    server.post(&path, "{").assert_problem(400, "bad-json");
    let body = format!(r#"{{"to":"{to}"}}"#);
    let plain = server.post_with(&path, &body, &[("Content-Type", "text/plain")]);
    plain.assert_problem(415, "unsupported-media-type");
    let unknown = server.post("/v1/checkpoints/999/copy", &body);
    unknown.assert_problem(404, "unknown-checkpoint");
    server.terminate();

    let offline = json_of(&run(&[&copy[..], &["--data", &data, "--json"]].concat()));
    assert_eq!(offline["bundles_written"], 0, "{offline}");
    let bad = run(&["checkpoint", "copy", &number, "--to", "here", "--data", &data]);
    assert_eq!(bad.status.code(), Some(2), "{bad:?}");
    // The file that names the owner is only a check: without it there is a warning.
    std::fs::write(dir.path().join("copies/owner/owner.json"), "{").unwrap();
    for command in [
        &["checkpoint", "verify", &number, "--data", &to, "--json"][..],
        &["restore", "--from", &to, "--into", &restored, "--json"],
    ] {
        let output = run(command);
        json_of(&output);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("WARN") && said.contains("owner/owner.json is damaged"), "{said}");
    }
    let server = Server::start(restored.as_ref(), &[]);
    assert_eq!(server.get("/v1/query/kv/a").json(), 7);
}

#[cfg(not(feature = "s3"))]
#[test]
fn a_program_without_s3_says_so() {
    let dir = tempfile::tempdir().unwrap();
    with_checkpoint(dir.path(), &[]);
    let data = dir.path().to_str().unwrap();
    let refused = run(&["checkpoint", "copy", "1", "--to", "s3://stead/prefix", "--data", data]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cargo feature s3"), "{refused:?}");
}

/// Returns the failure of copies to S3 after some attempts, as status shows it, and the lines on standard error about
/// it.
#[cfg(feature = "s3")]
fn failing_copies(attempts: u64, vars: &[(&str, &str)]) -> (String, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let mut all = vec![
        ("STEAD_CFG_CHECKPOINTS_COPY_TO", "s3://stead/prefix"),
        ("STEAD_CFG_CHECKPOINTS_COPY_INTERVAL", "10ms"),
        ("STEAD_CFG_CHECKPOINTS_INTERVAL", "10ms"),
        ("AWS_REGION", "us-east-1"),
    ];
    all.extend(vars);
    let server = Server::start_in(dir.path(), &["--supervise=false"], &all);
    server.put("a", 1);
    let attempted = |text: &str| {
        let mut lines = text.lines();
        let count = lines.find_map(|line| line.strip_prefix("stead_checkpoint_copies_failed_total "));
        count.unwrap().parse::<u64>().unwrap()
    };
    let failure = await_some("copies fail", || {
        server.put("a", 2);
        let status = server.get("/v1/status").json();
        let failure = status["checkpoint_copies"]["failure"].as_str()?;
        (attempted(&server.get("/metrics").text) >= attempts).then(|| failure.to_owned())
    });
    let (_, stderr) = server.terminate();
    let of_s3 = |line: &&str| {
        let line = line.to_ascii_lowercase();
        ["s3", "retry", "backing off"].iter().any(|word| line.contains(word))
    };
    (failure, stderr.lines().filter(of_s3).map(str::to_owned).collect())
}

#[cfg(feature = "s3")]
#[test]
fn copies_that_fail_are_said_once_and_missing_credentials_by_their_name() {
    let (failure, lines) = failing_copies(5, &[]);
    assert!(failure.contains("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), "{failure}");
    assert_eq!(lines.len(), 1, "{lines:?}");
    // An address that refuses connections.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let (failure, lines) = failing_copies(
        1,
        &[
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
            ("AWS_ENDPOINT", &endpoint),
            ("AWS_ALLOW_HTTP", "true"),
        ],
    );
    assert!(failure.contains(&endpoint), "{failure}");
    assert_eq!(lines.len(), 1, "{lines:?}");
}

#[cfg(feature = "s3")]
#[test]
fn checkpoints_go_to_s3_and_come_back() {
    let Some(s3) = S3Server::start() else { return };
    s3.create_bucket("stead");
    let endpoint = format!("http://127.0.0.1:{}", s3.port);
    let vars = [
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("STEAD_CFG_CHECKPOINTS_COPY_TO", "s3://stead/by/itself"),
        ("STEAD_CFG_CHECKPOINTS_COPY_INTERVAL", "10ms"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(&dir.path().join("data"), &["--supervise=false"], &vars);
    server.put("a", 7);
    let number = json_of(&server.command(&["checkpoint", "create", "--json"]))["number"].as_u64().unwrap();
    let copy = ["checkpoint", "copy", &number.to_string(), "--to", "s3://stead/by/hand", "--json"];
    assert_eq!(json_of(&server.command(&copy))["number"], number);
    let copied = || json_of(&server.command(&["status", "--json"]))["checkpoint_copies"].clone();
    let status = await_some("the node's own copy", || {
        Some(copied()).filter(|status| status["newest"].as_u64() >= Some(number))
    });
    assert!(status["failure"].is_null(), "{status}");
    server.terminate();
    for prefix in ["hand", "itself"] {
        let (from, into) = (format!("s3://stead/by/{prefix}"), dir.path().join(prefix));
        let restore = ["restore", "--from", &from, "--into", into.to_str().unwrap(), "--json"];
        json_of(&stead(&restore).envs(vars[..5].iter().copied()).output().unwrap());
        let server = Server::start(&into, &[]);
        assert_eq!(server.get("/v1/query/kv/a").json(), 7);
    }
}
