//! A few kills of each application, as a test of the tool and a first look at what it tests.

use std::process::Command;

/// Kills an application a few times in a row and returns what was told.
fn kill(app: &str, seed: u64) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_stead-chaos"))
        .args(["kills", "--kills", "3", "--life-max-ms", "150", "--app", app, "--seed", &seed.to_string()])
        .output()
        .expect("the program was built with this test");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{app} with --seed {seed}: {said}");
    said
}

#[test]
fn a_bank_that_is_killed_keeps_its_money() {
    let said = kill("bank", fastrand::u64(..));
    assert!(said.contains("accounts with a wrong balance 0, all balances 64000 of 64000"), "{said}");
}

#[test]
fn flights_that_are_killed_add_up() {
    let said = kill("flights", fastrand::u64(..));
    assert!(said.contains("lost 0, doubled 0, recomputed 0"), "{said}");
}

#[test]
fn what_stands_beside_a_poison_is_not_given_up() {
    let said = kill("innocents", fastrand::u64(..));
    assert!(said.contains("1 poison and 0 innocents given up"), "{said}");
}
