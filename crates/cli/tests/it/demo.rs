//! The demo's output, and its end.

use crate::patience::await_until;
use crate::server::{json_of, run, signal, stead};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;
use stead_flights::ConductError;
use stead_flights::Flights;
use stead_flights::conductor::{Kills, Plan, Sigkill, conduct};

/// Lists the files that the demo left in its temporary directory.
fn left_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("stead-demo-")).collect()
}

/// Lists the processes that work in a directory or have it among their arguments.
fn processes_of(dir: &str) -> Vec<String> {
    let of = |entry: fs::DirEntry| {
        let open = fs::read_dir(entry.path().join("fd")).ok()?;
        let names = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        let uses = names.into_iter().any(|path| path.to_string_lossy().starts_with(dir));
        uses.then(|| entry.file_name().to_string_lossy().into_owned())
    };
    fs::read_dir("/proc").unwrap().filter_map(|entry| of(entry.unwrap())).collect()
}

/// The bundled file as text.
fn bundled() -> String {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(stead_flights::reader::BUNDLED).read_to_string(&mut text).unwrap();
    text
}

/// Computes the totals of a flights file by the rules of the data's description, without the application's code.
fn count(csv: &str) -> Value {
    let mut lines = csv.lines();
    let names: Vec<&str> = lines.next().unwrap().split(',').collect();
    let column = |name: &str| names.iter().position(|found| *found == name).unwrap();
    let (carrier, tail) = (column("carrier"), column("tailnum"));
    let (delay, origin) = (column("dep_delay"), column("origin"));
    let (dest, distance) = (column("dest"), column("distance"));
    let mut carriers: BTreeMap<&str, [i64; 3]> = BTreeMap::new();
    let mut airports: BTreeMap<&str, [i64; 2]> = BTreeMap::new();
    let (mut tails, mut legs, mut miles) = (BTreeSet::new(), 0, 0);
    for line in lines {
        let row: Vec<&str> = line.split(',').collect();
        let of = carriers.entry(row[carrier]).or_default();
        of[0] += 1;
        match row[delay] {
            "NA" => of[1] += 1,
            minutes => of[2] += minutes.parse::<i64>().unwrap(),
        }
        airports.entry(row[origin]).or_default()[0] += 1;
        airports.entry(row[dest]).or_default()[1] += 1;
        if row[tail] != "NA" {
            tails.insert(row[tail]);
            legs += 1;
            miles += row[distance].parse::<i64>().unwrap();
        }
    }
    let carriers: BTreeMap<_, _> = carriers
        .into_iter()
        .map(|(code, [flights, cancelled, minutes])| {
            let of = json!({"flights": flights, "cancelled": cancelled, "dep_delay_minutes": minutes});
            (code, of)
        })
        .collect();
    let airports: BTreeMap<_, _> = airports
        .into_iter()
        .map(|(code, [departures, arrivals])| (code, json!({"departures": departures, "arrivals": arrivals})))
        .collect();
    let aircraft = json!({"count": tails.len(), "legs": legs, "distance_miles": miles});
    json!({"carriers": carriers, "airports": airports, "aircraft": aircraft})
}

/// Checks that every guarantee holds, and that the totals are those of the file.
fn assert_holds(output: &Output, rows: u64, kills: u64, expected: &Value) -> Value {
    let report = json_of(output);
    for (name, value) in [("rows", rows), ("kills", kills), ("lost", 0), ("doubled", 0), ("recomputed", 0)] {
        assert_eq!(report[name], value, "{name}");
    }
    assert_eq!(report["totals_match"], true);
    for name in ["carriers", "airports", "aircraft"] {
        assert_eq!(report[name], expected[name], "{name}");
    }
    // Each row sends one message to the carrier and two to airports; a row with a tail number comes from the aircraft.
    assert!(report["messages"].as_u64().unwrap() >= 3 * rows, "{report}");
    assert!(report["replayed"].as_u64().unwrap() <= rows, "{report}");
    assert!(!report["checkpoints"].as_array().unwrap().is_empty(), "one was restored");
    assert_eq!(report["recoveries"].as_array().unwrap().len() as u64, kills.max(1));
    report
}

#[test]
fn long_the_demo_holds_and_its_totals_are_those_of_the_file() {
    let demo = run(&["demo", "--nodes", "1", "--json", "--rate", "5000", "--kills", "2", "--seed", "7"]);
    let report = assert_holds(&demo, 27_004, 2, &count(&bundled()));
    for checkpoint in report["checkpoints"].as_array().unwrap() {
        assert!(
            checkpoint["number"].as_u64() > Some(0) && checkpoint["bytes"].as_u64() > Some(0),
            "{checkpoint}"
        );
    }
}

#[test]
fn long_the_demo_of_a_cluster_holds_and_says_how_long_clients_waited() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = bundled().lines().take(6_001).map(|line| format!("{line}\n")).collect();
    let path = dir.path().join("flights.csv");
    fs::write(&path, &rows).unwrap();
    let demo = ["demo", "--json", "--rate", "500", "--kills", "1", "--seed", "7", "--input"];
    let report = json_of(&run(&[&demo[..], &[path.to_str().unwrap()]].concat()));
    let expected = count(&rows);
    for (name, value) in [("rows", 6_000), ("nodes", 3), ("lost", 0), ("doubled", 0), ("recomputed", 0)] {
        assert_eq!(report[name], value, "{name}: {report}");
    }
    for name in ["carriers", "airports", "aircraft"] {
        assert_eq!(report[name], expected[name], "{name}");
    }
    let faults = report["faults"].as_array().unwrap();
    let kinds: Vec<&str> = faults.iter().map(|fault| fault["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["kill", "pause", "cut"]);
    for fault in faults {
        assert!(fault["worst_wait_ms"].as_f64() > Some(0.0), "{fault}");
        assert!(fault["led"].as_u64() > Some(0) && fault["moved"] == fault["led"], "{fault}");
    }
    assert_eq!((&report["accepted_share"], &report["right_share"]), (&json!(1.0), &json!(1.0)), "{report}");
    assert!(report["reads"]["stale"].as_u64() > Some(0), "{report}");
    assert_eq!(report["violations"], json!([]));
}

#[test]
fn a_file_of_the_users_own_is_taken_and_its_malformed_rows_are_refused_or_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let whole: String = bundled().lines().take(301).map(|line| format!("{line}\n")).collect();
    let mut lines: Vec<&str> = whole.lines().collect();
    lines.insert(100, "2013,1,1,what,is,this");
    let path = dir.path().join("flights.csv");
    fs::write(&path, lines.join("\n")).unwrap();
    let demo = ["demo", "--nodes", "1", "--json", "--rate", "1000000", "--kills", "0"];
    let demo = [&demo[..], &["--input", path.to_str().unwrap()]].concat();
    let refused = run(&demo);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let failure: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert!(failure["cause"].as_str().unwrap().contains("line 101"), "{failure}");
    assert!(failure["hint"].as_str().unwrap().contains("--malformed skip"), "{failure}");

    let skipped = run(&[&demo[..], &["--malformed", "skip"]].concat());
    assert!(String::from_utf8_lossy(&skipped.stderr).contains("skipped line 101"), "{skipped:?}");
    assert_holds(&skipped, 300, 0, &count(&whole));
}

#[test]
fn a_demo_that_is_stopped_ends_its_child_and_leaves_no_files() {
    for (stop, nodes) in [(Signal::INT, "1"), (Signal::TERM, "1"), (Signal::INT, "3")] {
        let dir = tempfile::tempdir().unwrap();
        let mut demo = stead(&["demo", "--nodes", nodes, "--json"])
            .env("TMPDIR", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(demo.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let data = dir.path().to_str().unwrap();
        // Its child has open files once it runs.
        await_until("the demo starts a child", || {
            processes_of(data).iter().any(|pid| *pid != demo.id().to_string())
        });
        assert_eq!(left_in(dir.path()).len(), 1);
        signal(demo.id() as i32, stop);
        let output = demo.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{output:?}");
        let failure: Value = serde_json::from_slice(&output.stdout).unwrap();
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
