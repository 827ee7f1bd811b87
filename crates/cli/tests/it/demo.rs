//! The demo: what it prints, and how it ends.

use crate::server::{PATIENCE, signal, stead};
use rustix::process::Signal;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stead_flights::Flights;
use stead_flights::conductor::{ConductError, Kills, Plan, Sigkill, conduct};

/// What the demo left in its temporary directory.
fn left_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("stead-demo-")).collect()
}

/// The processes that work in or were told of a directory.
fn processes_of(dir: &str) -> Vec<String> {
    let of = |entry: fs::DirEntry| {
        let open = fs::read_dir(entry.path().join("fd")).ok()?;
        let names = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        let uses = names.into_iter().any(|path| path.to_string_lossy().starts_with(dir));
        uses.then(|| entry.file_name().to_string_lossy().into_owned())
    };
    fs::read_dir("/proc").unwrap().filter_map(|entry| of(entry.unwrap())).collect()
}

#[test]
fn a_demo_that_is_stopped_ends_its_child_and_leaves_no_files() {
    for stop in [Signal::INT, Signal::TERM] {
        let dir = tempfile::tempdir().unwrap();
        let mut demo = stead(&["demo", "--json"])
            .env("TMPDIR", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(demo.stderr.take().unwrap());
        let mut told = String::new();
        stderr.read_line(&mut told).unwrap();
        let started = Instant::now();
        let data = dir.path().to_str().unwrap();
        // Its child has its files open once it runs.
        while processes_of(data).iter().all(|pid| *pid == demo.id().to_string()) {
            assert!(started.elapsed() < PATIENCE, "the demo starts no child");
            std::thread::yield_now();
        }
        assert_eq!(left_in(dir.path()).len(), 1);
        signal(demo.id() as i32, stop);
        let output = demo.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{output:?}");
        let failure: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(failure["exit"], 130, "{failure}");
        assert_eq!(left_in(dir.path()), [""; 0]);
        assert_eq!(processes_of(data), [""; 0]);
    }
}

#[test]
fn long_a_run_whose_checkpoints_never_complete_ends_with_that() {
    let dir = tempfile::tempdir().unwrap();
    // Long enough for a start on a busy machine.
    let patience = Duration::from_secs(3);
    let plan = Plan {
        command: vec![env!("CARGO_BIN_EXE_stead").into(), "demo-child".into()],
        dir: dir.path().to_owned(),
        data_dir: None,
        input: None,
        skip_malformed: false,
        rate: 1e6,
        seed: 1,
        kills: Kills::Timed { kills: 1, life_max: Duration::ZERO },
        restore: true,
        checkpoint_every: Duration::from_secs(3600),
        patience,
        stop: Arc::default(),
    };
    let ended = conduct(&plan, &Flights::bundled(), &mut Sigkill, &mut |_| {});
    match ended {
        Err(ConductError::NoCheckpoint { waited, .. }) => assert_eq!(waited, patience),
        other => panic!("{other:?}"),
    }
}
