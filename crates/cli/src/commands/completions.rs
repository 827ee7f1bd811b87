//! `stead completions`: a shell's completion script.

use crate::failure::Failure;
use crate::output;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Print the completion script of a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  stead completions bash > ~/.local/share/bash-completion/completions/stead"
)]
pub(crate) struct CompletionsArgs {
    /// Shell to complete commands in
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs, json: bool) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "stead", &mut script);
    let script = String::from_utf8_lossy(&script);
    if json {
        return output::json(&serde_json::json!({ "shell": args.shell.to_string(), "script": script }));
    }
    output::line(script.trim_end())
}
