//! A server whose disk is full, damaged or out of reach.

use crate::patience::{PATIENCE, await_until};
use crate::server::{Server, run, stead};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of its own; only the superuser can mount one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, kib: u32) -> Option<Self> {
        let size = format!("size={kib}k");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_writes_answers_reads_and_resumes_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(dir.path(), 3 << 10) else {
        eprintln!(
            "skipped: only the superuser can mount a small disk; stead's faults_disk tests a simulated one"
        );
        return;
    };
    let config = dir.path().join("stead.toml");
    std::fs::write(&config, "[log]\nsegment_bytes = 262144\n[checkpoints]\ninterval = \"1h\"\n").unwrap();
    let data = dir.path().join("data");
    let more = ["--config", config.to_str().unwrap()];
    // There is no space for the server's messages either.
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let more = [&more[..], &["--supervise=false", "--log-level=trace"]].concat();
    let server = Server::start_with_stderr(&data, &more, log.into());
    let ballast = dir.path().join("ballast");
    let mut last = 0;
    for round in 0..2 {
        // All space that becomes free is taken.
        let mut room = vec![0u8; 4 << 20];
        while std::fs::write(&ballast, &room).is_err() {
            room.truncate(room.len() - (16 << 10));
        }
        let refused = loop {
            let reply = server.post("/v1/call/kv/a", &format!(r#"{{"put":{{"value":{}}}}}"#, last + 1));
            if reply.status != 200 {
                break reply;
            }
            last += 1;
        };
        refused.assert_problem(507, "disk-full");
        assert_eq!(server.get("/v1/query/kv/a").json(), last, "reads go on");
        assert_eq!(server.get("/v1/status").json()["full"], true);
        assert!(server.get("/metrics").text.contains("stead_disk_full 1"), "round {round}");

        std::fs::remove_file(&ballast).unwrap();
        last += 1;
        let put = format!(r#"{{"put":{{"value":{last}}}}}"#);
        await_until("writes resume", || server.post("/v1/call/kv/a", &put).status == 200);
    }
    server.kill();
    let server = Server::start_with(&data, &more);
    assert_eq!(server.get("/v1/query/kv/a").json(), last);
    assert_eq!(server.terminate().0.code(), Some(0));
}

#[test]
fn an_unreadable_data_directory_is_refused_and_left_alone() {
    const UNPRIVILEGED: u32 = 65_534;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &[]);
    server.put("a", 1);
    server.kill();
    let start =
        ["start", "--json", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "--supervise=false"];
    let mut command = stead(&start);
    let own = std::fs::metadata(dir.path()).is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    if own {
        // The superuser can read everything: another user starts it, from a directory that this user can read.
        let binary = dir.path().join("stead");
        if std::fs::hard_link(command.get_program(), &binary).is_err() {
            std::fs::copy(command.get_program(), &binary).unwrap();
        }
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        command = Command::new(binary);
        command.args(start).env_clear().uid(UNPRIVILEGED).gid(UNPRIVILEGED);
    }
    let change = |mode| std::fs::set_permissions(&data, PermissionsExt::from_mode(mode)).unwrap();
    change(0o000);
    let refused = command.output().unwrap();
    change(0o755);
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.contains("ermission denied") && stderr.contains("data"), "{stderr}");
    assert_eq!(Server::start(&data, &[]).get("/v1/query/kv/a").json(), 1);
}

#[test]
fn a_damaged_log_is_refused_with_its_place_and_is_whole_again_when_it_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    server.put("a", 1);
    server.put("a", 2);
    let (status, _) = server.terminate();
    assert!(status.success());
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path().join("wal")).unwrap().map(|file| file.unwrap().path()).collect();
    names.sort();
    let whole = std::fs::read(&names[0]).unwrap();
    let mut damaged = whole.clone();
    damaged[4096 + 100] ^= 1;
    std::fs::write(&names[0], &damaged).unwrap();
    let data = dir.path().to_str().unwrap();
    // A supervisor does not start it again: that would not help.
    for supervise in ["--supervise=false", "--supervise=true"] {
        let refused = run(&["start", "--json", "--data", data, "--listen", "127.0.0.1:0", supervise]);
        assert_eq!(refused.status.code(), Some(5), "{refused:?}");
        let stderr = String::from_utf8_lossy(&refused.stderr);
        for word in ["0000000000000001.log is corrupt at byte 4096", "another replica or a checkpoint"] {
            assert!(stderr.contains(word), "{stderr}");
        }
    }
    assert!(std::fs::read(&names[0]).unwrap() == damaged, "a refused log was changed");
    std::fs::write(&names[0], &whole).unwrap();
    assert_eq!(Server::start(dir.path(), &[]).get("/v1/query/kv/a").json(), 2);
}

/// Starts a server from a shell that sets limits first.
fn limited(data: &Path, limits: &str, more: &[&str]) -> Server {
    Server::start_by_shell(limits, data, &[&["--supervise=false"], more].concat())
}

#[test]
fn connections_leave_descriptors_to_the_log_and_to_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("stead.toml");
    std::fs::write(&config, "[log]\nsegment_bytes = 65536\n[checkpoints]\ninterval = \"1h\"\n").unwrap();
    let server = limited(&dir.path().join("data"), "ulimit -n 128", &["--config", config.to_str().unwrap()]);
    let mut kept: Vec<_> = (0..200).map(|_| std::net::TcpStream::connect(&server.address).unwrap()).collect();
    // Connections are accepted in their order: once the last one is refused and closed, none waits for a place any more.
    let last = kept.last_mut().unwrap();
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    if let Err(error) = last.read_to_end(&mut Vec::new()) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "the last connection is not closed");
    }
    // Some of the others make room for the requests below.
    drop(kept.drain(..8));
    let put = |value: u64| {
        let body = format!(r#"{{"put":{{"value":"{}"}}}}"#, "x".repeat(4000 + value as usize));
        server.post("/v1/call/kv/a", &body).status
    };
    await_until("a connection is free", || put(0) == 200);
    // Fills several segments.
    for value in 1..80 {
        assert_eq!(put(value), 200);
    }
    let taken = server.post("/v1/checkpoints", "{}");
    assert_eq!(taken.status, 201, "{}", taken.text);
    let (status, stderr) = server.terminate();
    assert!(status.success(), "{stderr}");
    assert!(stderr.contains("64 connections at a time instead of 1024"), "{stderr}");
}

#[test]
fn the_soft_limit_of_open_files_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    let server = limited(dir.path(), "ulimit -Sn 64", &[]);
    let kept: Vec<_> = (0..150).map(|_| std::net::TcpStream::connect(&server.address).unwrap()).collect();
    server.put("a", 1);
    assert_eq!(server.post("/v1/checkpoints", "{}").status, 201);
    drop(kept);
}

#[test]
fn a_directory_that_can_only_be_read_is_listed_verified_shown_and_restored() {
    const UNPRIVILEGED: u32 = 65_534;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &[]);
    server.put("a", 1);
    assert_eq!(server.post("/v1/checkpoints", "{}").status, 201);
    server.put("a", 2);
    assert!(server.terminate().0.success());
    let own = std::fs::metadata(dir.path()).is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    let into = dir.path().join("into");
    std::fs::create_dir(&into).unwrap();
    let change = |mode: u32, files: u32| {
        let mut paths = vec![data.clone()];
        while let Some(path) = paths.pop() {
            let is_dir = path.is_dir();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(if is_dir { mode } else { files }))
                .unwrap();
            if is_dir {
                paths.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
    };
    let binary = dir.path().join("stead");
    if own {
        // The superuser may write everywhere: another user restores, from a directory that this user can read.
        if std::fs::hard_link(stead(&[]).get_program(), &binary).is_err() {
            std::fs::copy(stead(&[]).get_program(), &binary).unwrap();
        }
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&into, PermissionsExt::from_mode(0o777)).unwrap();
    }
    change(0o555, 0o444);
    let data = data.to_str().unwrap();
    let file = format!("file://{data}/checkpoints");
    let (into_path, again) = (into.join("restored"), into.join("again"));
    let commands: [&[&str]; 5] = [
        &["checkpoint", "list", "--data", data],
        &["checkpoint", "verify", "1", "--data", data],
        &["log", "3", "--data", data],
        &["restore", "--from", &file, "--into", again.to_str().unwrap()],
        &["restore", "--from", data, "--into", into_path.to_str().unwrap()],
    ];
    let mut failed = Vec::new();
    for args in commands {
        let mut command = stead(args);
        if own {
            command = Command::new(&binary);
            command.args(args).env_clear().uid(UNPRIVILEGED).gid(UNPRIVILEGED);
        }
        let output = command.output().unwrap();
        if !output.status.success() {
            failed.push(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    change(0o755, 0o644);
    assert!(failed.is_empty(), "{failed:#?}");
}
