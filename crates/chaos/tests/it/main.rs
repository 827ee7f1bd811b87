//! A few kills of each application, as a test of the tool and of the applications.

use std::process::{Command, Stdio};

/// Kills an application a few times and returns the output.
fn kill(app: &str, seed: u64) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_stead-chaos"))
        .args(["kills", "--kills", "3", "--life-max-ms", "150", "--app", app, "--seed", &seed.to_string()])
        .output()
        .expect("the program is built with this test");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{app} with --seed {seed}: {text}");
    text
}

#[test]
fn a_bank_that_is_killed_keeps_its_money() {
    let text = kill("bank", fastrand::u64(..));
    assert!(text.contains("accounts with a wrong balance 0, all balances 64000 of 64000"), "{text}");
}

#[test]
fn flights_that_are_killed_add_up() {
    let text = kill("flights", fastrand::u64(..));
    assert!(text.contains("lost 0, doubled 0, recomputed 0"), "{text}");
}

#[test]
fn what_stands_beside_a_poison_is_not_given_up() {
    let text = kill("innocents", fastrand::u64(..));
    assert!(text.contains("1 poison and 0 innocents given up"), "{text}");
}

#[test]
fn a_run_whose_reader_is_gone_comes_to_its_end() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_stead-chaos"))
        .args(["kills", "--kills", "0", "--app", "bank", "--seed", "1"])
        .stdout(Stdio::from(writer))
        .stderr(Stdio::piped())
        .output()
        .expect("the program is built with this test");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_cluster_under_faults_answers_as_one_node_does() {
    let seed = fastrand::u64(..).to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_stead-chaos"))
        .args(["cluster", "--seconds", "4", "--json", "--seed", &seed])
        .output()
        .expect("the program is built with this test");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "--seed {seed}: {text}{}", String::from_utf8_lossy(&output.stderr));
    let run: serde_json::Value = serde_json::from_str(&text).expect("one JSON document");
    let episode = &run["episodes"][0];
    assert!(run["holds"] == true && episode["registers"]["operations"].as_u64() > Some(10), "{text}");
    assert_eq!(episode["transfers"]["balances"], 32_000, "{text}");
}
