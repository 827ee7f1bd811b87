//! The `stead` binary: reads its arguments, runs one command, and turns its failure into an exit code.

#![forbid(unsafe_code)]

mod allocator;
mod client;
mod commands;
mod failure;
mod output;
mod stop;
mod when;

use clap::Parser;
use clap::error::ErrorKind;
use failure::{Exit, Failure};
use std::process::ExitCode;
use std::sync::mpsc;
use stead::stderr;
use stead_gateway::program;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    program::note();
    let cli = match commands::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let ended = cli.run();
    let code = match &ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&cli, failure),
    };
    stderr::flush(stop::LAST_WORDS);
    code
}

fn failed(cli: &commands::Cli, failure: &Failure) -> ExitCode {
    if cli.json && !failure.is_reported() {
        let document = failure.to_json();
        let (done, is_done) = mpsc::channel();
        let print = move || {
            // Standard output may be closed: standard error and the exit code report the failure as well.
            let _ = output::json(&document);
            let _ = done.send(());
        };
        if !cli.is_server() {
            print();
        } else if std::thread::Builder::new().spawn(print).is_ok() {
            let _ = is_done.recv_timeout(stop::LAST_WORDS);
        }
    }
    stderr::line(failure);
    ExitCode::from(failure.exit as u8)
}

/// Reports wrong usage, as JSON too if that was requested; help and the version are not failures.
fn misused(error: &clap::Error) -> ExitCode {
    let json =
        std::env::args_os().take_while(|argument| argument != "--").any(|argument| argument == "--json");
    if json && error.use_stderr() {
        // As above.
        let _ = output::json(&usage(error).to_json());
    }
    error.exit()
}

fn usage(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let (what, hint) = match error.kind() {
        // The text of this error is the help.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => ("a command is missing", "stead --help"),
        _ => text.split_once("\n\n").unwrap_or((&text, "stead --help")),
    };
    Failure::new(Exit::Usage, what.trim_start_matches("error: ")).hint(hint.trim())
}
