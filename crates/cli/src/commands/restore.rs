//! `stead restore`: restores a checkpoint into a new data directory.

use super::checkpoint::{Which, offline_failure};
use crate::failure::Failure;
use crate::output;
use clap::Args;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stderr};
use std::path::PathBuf;
use stead::offline::RestoreProgress;
use stead::{RestoreOptions, restore};
use stead_gateway::{Level, log_events};

/// Restore a checkpoint into a new data directory, as a new incarnation
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stead restore --from ./data --checkpoint 12 --into ./restored\n\n\
    One that was copied to S3 or to a directory elsewhere:\n  stead restore --from s3://bucket/prefix --into ./restored\n\n\
    The newest checkpoint, with another number of shards:\n  stead restore --from ./data --into ./restored --shards kv=32\n\n\
    It restores all or nothing. Sessions and tokens from before the restore are refused afterwards.")]
pub(crate) struct RestoreArgs {
    /// Data directory to restore from, or address of copied checkpoints: file:///directory, s3://bucket/prefix
    #[arg(long, value_name = "DIR|ADDRESS")]
    from: String,
    /// Number of the checkpoint, or latest
    #[arg(long, value_name = "NUMBER", default_value = "latest")]
    checkpoint: Which,
    /// Data directory to create; it must not exist, or must be empty
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// Another number of shards for a service; can be repeated
    #[arg(long, value_name = "SERVICE=N", value_parser = service_shards)]
    shards: Vec<(String, u32)>,
}

fn service_shards(text: &str) -> Result<(String, u32), String> {
    let parsed =
        text.split_once('=').and_then(|(service, shards)| Some((service.to_owned(), shards.parse().ok()?)));
    parsed.ok_or_else(|| format!("{text:?} is not SERVICE=N, as in kv=32"))
}

pub(crate) fn run(args: &RestoreArgs, json: bool) -> Result<(), Failure> {
    let options = RestoreOptions {
        from: args.from.clone(),
        number: match args.checkpoint {
            Which::Latest => None,
            Which::Number(number) => Some(number),
        },
        into: args.into.clone(),
        shards: args.shards.iter().cloned().collect::<BTreeMap<_, _>>(),
    };
    log_events(Level::WARN);
    let on_terminal = stderr().is_terminal();
    let progress = |progress: RestoreProgress| {
        if on_terminal {
            let RestoreProgress { shards, shards_all, records, bytes } = progress;
            // A closed terminal does not stop a restore.
            let _ = write!(
                stderr(),
                "\r{shards} of {shards_all} shards, {records} records, {}  ",
                output::bytes(bytes)
            );
        }
    };
    let report = restore(&options, progress);
    if on_terminal {
        output::note("");
    }
    let report =
        report.map_err(|error| offline_failure(error).titled("the checkpoint cannot be restored"))?;
    let report = serde_json::to_value(&report).unwrap_or_default();
    if json {
        return output::json(&report);
    }
    output::facts(&report)?;
    let into = output::shell_word(&args.into.to_string_lossy());
    output::note(format_args!("start it with: stead start --data {into}"));
    Ok(())
}
