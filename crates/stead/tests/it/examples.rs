//! Tests of the examples, run as programs.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Returns the program of an example, built with this package's own features.
fn example(name: &str) -> PathBuf {
    let features = [("s3", cfg!(feature = "s3")), ("schemars", cfg!(feature = "schemars"))];
    let features: Vec<&str> =
        features.into_iter().filter_map(|(name, is_on)| is_on.then_some(name)).collect();
    crate::example::example(name, &features)
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
    let text = String::from_utf8(second.stdout).unwrap();
    assert!(text.contains("log entries replayed") && !text.contains(" 0 log entries replayed"), "{text}");
    assert!(text.contains("20000 transfers, "), "{text}");
    let held: Vec<&str> = text.lines().filter(|line| line.starts_with("checkpoint")).collect();
    assert!(!held.is_empty() && held.iter().all(|line| line.ends_with("holds: true")), "{text}");
    assert!(checkpoints.iter().all(|line| line.ends_with("holds: true")), "{checkpoints:?}");
}

#[test]
fn long_the_computation_is_killed_and_repeats_a_step_at_most_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let terms = "100000000";
    let output = Command::new(example("resume")).arg(dir.path().join("run")).arg(terms).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
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

/// Returns the public methods of a type that a source file implements.
fn methods(source: &str, implementation: &str) -> Vec<String> {
    let body = source.split(implementation).nth(1).unwrap_or_else(|| panic!("no {implementation}"));
    let body = body.split("\n}\n").next().unwrap();
    let names = body.lines().filter_map(|line| line.strip_prefix("    pub fn "));
    names.map(|line| line.split(['(', '<']).next().unwrap().to_owned()).collect()
}

fn sources(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(std::fs::read_to_string(path).unwrap());
        }
    }
}

/// Returns the methods of each kind of context that are called by functions with a parameter `ctx` of that kind.
fn called(dirs: &[PathBuf]) -> BTreeSet<(&'static str, String)> {
    let mut files = Vec::new();
    dirs.iter().for_each(|dir| sources(dir, &mut files));
    let mut called = BTreeSet::new();
    for line in files.iter().flat_map(|file| {
        let mut kind = None;
        file.lines().filter_map(move |line| {
            // A signature may take several lines.
            if line.trim_start().trim_start_matches("pub(crate) ").starts_with("fn ") {
                kind = None;
            }
            let kinds = ["&mut Context<", "&QueryContext<", "&StepContext<"];
            kind = kinds.into_iter().find(|kind| line.contains(&format!("ctx: {kind}"))).or(kind);
            kind.map(|kind| (kind, line))
        })
    }) {
        for call in line.1.split("ctx.").skip(1) {
            let name: String = call.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            called.insert((line.0, name));
        }
    }
    called
}

#[test]
fn every_method_of_a_context_is_in_an_example_and_in_a_test() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (context, task) =
        (include_str!("../../src/service/context.rs"), include_str!("../../src/service/task.rs"));
    let kinds = [
        ("&mut Context<", methods(context, "impl<'a, P: Process> Context<'a, P> {")),
        ("&QueryContext<", methods(context, "impl<'a, P: Process> QueryContext<'a, P> {")),
        ("&StepContext<", methods(task, "impl StepContext<'_> {")),
    ];
    let examples =
        ["examples", "../flights/src", "../flights/examples", "../gateway/examples", "../testkit/examples"];
    let examples = called(&examples.map(|dir| own.join(dir)));
    let tests = called(&[own.join("tests")]);
    for (place, called) in [("example", examples), ("test", tests)] {
        let mut missing = Vec::new();
        for (kind, methods) in &kinds {
            assert!(methods.len() >= 5, "{kind}: {methods:?}");
            let of_kind = methods.iter().filter(|method| !called.contains(&(*kind, (*method).clone())));
            missing.extend(of_kind.map(|method| format!("{kind}…>::{method}")));
        }
        assert!(missing.is_empty(), "no {place} uses {missing:?}");
    }
}

#[test]
fn the_shop_delivers_what_was_paid() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(example("shop")).arg(dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for line in ["placed: ", "provider: ", "thank you", "warehouse: 3 apples for order ", "it is packed"] {
        assert!(text.contains(line), "{line}: {text}");
    }
}
