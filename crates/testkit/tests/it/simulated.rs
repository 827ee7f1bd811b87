//! The example `simulated`, run as a program.

use crate::example::example;
use std::process::Command;

#[test]
fn the_simulated_example_holds_and_shows_how_a_failure_is_repeated() {
    let run = |more: &[&str]| {
        let output = Command::new(example("simulated", &[])).args(more).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = run(&["--seed", "1", "--seeds", "6"]);
    assert!(code == Some(0) && text.contains("6 seeds from 1: 0 failed, "), "{text}");
    let (code, text) = run(&["--seed", "1", "--seeds", "60", "--strict"]);
    assert_eq!(code, Some(1), "{text}");
    let again = text.lines().find_map(|line| line.split("--example simulated -- ").nth(1)).unwrap();
    let again: Vec<&str> = again.split(' ').collect();
    let (code, one) = run(&again);
    assert_eq!(code, Some(1), "{one}");
    let found = one.lines().next().unwrap();
    assert!(found.starts_with("seed ") && found.contains("11: ") && text.contains(found), "{text}\n{one}");
    assert!(one.contains("\n  shard "), "it shows what happened before: {one}");
}
