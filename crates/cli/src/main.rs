//! The `stead` binary: reads its arguments, runs one command, and turns its failure into an exit code.

#![forbid(unsafe_code)]

mod client;
mod commands;
mod failure;
mod output;
mod supervise;

use clap::Parser;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = commands::Cli::parse();
    let Err(failure) = cli.run() else { return ExitCode::SUCCESS };
    if cli.json {
        // Standard output may be closed by now: standard error and the exit code tell it all the same.
        let _ = output::json(&failure.to_json());
    }
    eprintln!("{failure}");
    ExitCode::from(failure.exit as u8)
}
