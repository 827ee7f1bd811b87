//! The help of every command.

use crate::server::run;

/// Checks the help of a command and of its subcommands; returns their number.
fn check(command: &[&str]) -> usize {
    let help = run(&[command, &["--help"]].concat());
    assert!(help.status.success(), "{help:?}");
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    let example = format!("Example:\n  stead {}", command.join(" "));
    assert!(text.contains(&example), "{command:?} shows no example: {text}");
    assert!(text.contains("--json"), "{command:?} has no --json");
    let listed =
        text.split("Commands:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap_or_default();
    let below = listed.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    1 + below
        .map(|line| check(&[command, &[line.split_whitespace().next().unwrap()]].concat()))
        .sum::<usize>()
}

#[test]
fn every_help_shows_an_example() {
    let commands = check(&[]);
    assert!(commands >= 14, "only {commands} commands were found");
}

#[test]
fn the_help_of_start_names_the_settings_of_the_node() {
    let help = String::from_utf8(run(&["start", "--help"]).stdout).unwrap();
    for word in ["task_threads", "STEAD_CFG_TASK_THREADS=32", "STEAD_CFG_SERVICES_KV_SHARDS=32"] {
        assert!(help.contains(word), "{help}");
    }
}

#[test]
fn completions_are_written_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]);
        assert!(
            script.status.success() && String::from_utf8_lossy(&script.stdout).contains("checkpoint"),
            "{shell}"
        );
    }
}

#[test]
fn a_completion_script_is_a_member_of_its_json() {
    let script = run(&["completions", "bash", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&script.stdout).unwrap();
    assert_eq!(json["shell"], "bash");
    assert_eq!(
        format!("{}\n", json["script"].as_str().unwrap().trim_end()).into_bytes(),
        run(&["completions", "bash"]).stdout
    );
}
