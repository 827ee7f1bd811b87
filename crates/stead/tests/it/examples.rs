//! The examples, run as programs of their own.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// An example's program. `cargo test` builds it with the tests, unless it is told to build one of them only.
pub(crate) fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let built = tests.ancestors().nth(2).unwrap();
    let program = built.join("examples").join(name);
    if !program.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--offline", "--quiet", "--package", "stead", "--example", name]);
        if name == "serve" {
            cargo.args(["--features", "http"]);
        }
        cargo.arg("--target-dir").arg(built.parent().unwrap());
        assert!(cargo.status().unwrap().success(), "the example {name} can't be built");
    }
    program
}

#[test]
fn long_the_bank_is_killed_and_goes_on_with_all_its_money() {
    let dir = tempfile::tempdir().unwrap();
    let start = || Command::new(example("bank")).arg(dir.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = start();
    let lines = BufReader::new(first.stdout.take().unwrap()).lines().map_while(Result::ok);
    // Transfers run while checkpoints are taken.
    let checkpoints: Vec<String> = lines.filter(|line| line.starts_with("checkpoint")).take(2).collect();
    first.kill().unwrap();
    assert!(!first.wait().unwrap().success(), "it was killed before its end");
    assert_eq!(checkpoints.len(), 2);

    let second = start().wait_with_output().unwrap();
    assert!(second.status.success(), "{second:?}");
    let told = String::from_utf8(second.stdout).unwrap();
    assert!(told.contains("log entries replayed") && !told.contains(" 0 log entries replayed"), "{told}");
    assert!(told.contains("20000 transfers, "), "{told}");
    let held: Vec<&str> = told.lines().filter(|line| line.starts_with("checkpoint")).collect();
    assert!(!held.is_empty() && held.iter().all(|line| line.ends_with("holds: true")), "{told}");
    assert!(checkpoints.iter().all(|line| line.ends_with("holds: true")), "{checkpoints:?}");
}

#[test]
fn long_the_computation_is_killed_and_repeats_a_step_at_most_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let terms = "100000000";
    let told = Command::new(example("resume")).arg(dir.path().join("run")).arg(terms).output().unwrap();
    let text = String::from_utf8_lossy(&told.stdout);
    assert!(told.status.success(), "{told:?}");
    assert!(text.contains("so π is about 3.14159"), "{text}");
    let kills: Vec<f64> = text
        .lines()
        .filter(|line| line.starts_with("kill "))
        .filter_map(|line| line.split(" at ").nth(1)?.split(' ').next()?.parse().ok())
        .collect();
    assert!(
        kills.iter().any(|done| *done > 0.0 && *done < 100.0),
        "none of the kills was on the way: {text}"
    );
    let summary = text.lines().find(|line| line.starts_with("50 steps")).unwrap();
    let repeated: u32 = summary.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(repeated <= 5, "{summary}");
}
