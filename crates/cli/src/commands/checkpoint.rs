//! `stead checkpoint`: take, list, show, verify, copy and delete checkpoints.

use crate::client::ServerArgs;
use crate::failure::{Exit, Failure};
use crate::output::{self, Table};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use stead::Registry;
use stead::kv::Kv;
use stead::offline::{self, OfflineError};
use stead_gateway::{Level, log_events};

/// Take, list, show, verify, copy and delete checkpoints
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stead checkpoint create\n  stead checkpoint verify 12 --data ./data")]
pub(crate) struct CheckpointArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Take a checkpoint and wait until it is complete
    #[command(after_help = "Example:\n  stead checkpoint create\n\n\
        Runs the checks that services declare over it. Exits with 6 if one of them fails; the checkpoint stays.")]
    Create {
        #[command(flatten)]
        server: ServerArgs,
    },
    /// List the complete checkpoints, the oldest first
    #[command(after_help = "Example:\n  stead checkpoint list\n  stead checkpoint list --data ./data")]
    List {
        #[command(flatten)]
        source: Source,
    },
    /// Show one checkpoint
    #[command(after_help = "Example:\n  stead checkpoint show 12\n  stead checkpoint show latest")]
    Show {
        /// Number of the checkpoint, or latest
        number: Which,
        #[command(flatten)]
        source: Source,
    },
    /// Recompute a checkpoint's cut from its stored parts alone
    #[command(after_help = "Example:\n  stead checkpoint verify 12\n\n\
        Every receive must have its send, in flight must be sent minus received, and hashes must match; the checks that\n\
        services declare run where their code is. `check` is `not checked` if one was not run, or if there is none.\n\
        Exits with 6 and names what is wrong if the cut is inconsistent.")]
    Verify {
        /// Number of the checkpoint, or latest
        number: Which,
        #[command(flatten)]
        source: Source,
    },
    /// Copy a checkpoint to another directory or to S3, where `restore` can read it
    #[command(after_help = "Example:\n  stead checkpoint copy 12 --to s3://bucket/prefix\n  \
        stead checkpoint copy 12 --to file:///mnt/backup --data ./data\n\n\
        Objects that exist there are not sent again. S3 takes its region, endpoint and credentials from AWS_REGION, AWS_ENDPOINT,\n\
        AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the like: the server's own, if one is asked. A copy continues on the server\n\
        after --timeout-ms. Each cluster needs an address of its own.\n\n\
        Restore it:\n  stead restore --from s3://bucket/prefix --into ./restored")]
    Copy {
        /// Number of the checkpoint, or latest
        number: Which,
        /// Target: file:///directory or s3://bucket/prefix
        #[arg(long, value_name = "ADDRESS")]
        to: String,
        #[command(flatten)]
        source: Source,
    },
    /// Delete a checkpoint; not the newest one, which recovery needs
    #[command(after_help = "Example:\n  stead checkpoint delete 11")]
    Delete {
        /// Number of the checkpoint, or latest
        number: Which,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// A checkpoint as a command names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// The newest complete one.
    Latest,
    /// The one of this number.
    Number(u64),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "latest" => Ok(Self::Latest),
            number => number
                .parse()
                .map(Self::Number)
                .map_err(|_| "it must be the number of a checkpoint, or latest".to_owned()),
        }
    }
}

impl Which {
    fn of(self, source: &Source) -> Result<u64, Failure> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Latest => newest(&checkpoints(source)?),
        }
    }
}

fn newest(checkpoints: &Value) -> Result<u64, Failure> {
    let numbers = checkpoints.as_array().into_iter().flatten().filter_map(|one| one["number"].as_u64());
    numbers.max().ok_or_else(|| {
        Failure::new(Exit::Failed, "no checkpoint is complete yet")
            .hint("take one: `stead checkpoint create`")
    })
}

/// A server, or a data directory that no server runs on.
#[derive(Debug, Args)]
struct Source {
    /// Read this data directory instead of asking a server
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(args: &CheckpointArgs, json: bool) -> Result<(), Failure> {
    match &args.action {
        Action::Create { server } => {
            let report = server.server().post("/v1/checkpoints", "", &[])?.body;
            if json {
                output::json(&report)?;
            } else {
                output::facts(&report)?;
            }
            if report["check"] != "failed" {
                return Ok(());
            }
            let wrong = report["failed_checks"].as_array().map_or(&[][..], Vec::as_slice).iter();
            let wrong = wrong.map(|check| {
                let text = |member: &str| check[member].as_str().unwrap_or_default().to_owned();
                format!("{}: {}", text("service"), text("reason"))
            });
            let what = format!("checkpoint {} is complete, and a check of it failed", report["number"]);
            Err(Failure::new(Exit::Inconsistent, what).cause(Vec::from_iter(wrong).join("; ")).reported())
        }
        Action::List { source } => list(&checkpoints(source)?, json),
        Action::Show { number, source } => {
            let checkpoint = show(number.of(source)?, source)?;
            if json { output::json(&checkpoint) } else { output::facts(&checkpoint) }
        }
        Action::Verify { number, source } => verify(number.of(source)?, source, json),
        Action::Copy { number, to, source } => {
            let report = copy(number.of(source)?, to, source)?;
            if json { output::json(&report) } else { output::facts(&report) }
        }
        Action::Delete { number, server } => {
            let number = match *number {
                Which::Number(number) => number,
                Which::Latest => newest(&server.server().get("/v1/checkpoints")?.body)?,
            };
            server.server().delete(&format!("/v1/checkpoints/{number}"))?;
            if json {
                return output::json(&serde_json::json!({ "deleted": number }));
            }
            output::line(&format!("checkpoint {number} is deleted"))
        }
    }
}

fn list(checkpoints: &Value, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(checkpoints);
    }
    let mut table = Table::new(["checkpoint", "taken", "records", "in flight", "written", "whole", "checks"]);
    for checkpoint in checkpoints.as_array().map_or(&[][..], Vec::as_slice) {
        let member = |name| output::fact(name, &checkpoint[name]);
        table.row([
            member("number"),
            member("created"),
            member("records"),
            member("in_flight"),
            member("bytes_written"),
            member("bytes_total"),
            checks(checkpoint),
        ]);
    }
    table.print()
}

fn checks(checkpoint: &Value) -> String {
    match checkpoint["check"].as_str() {
        Some("hold") => "hold".to_owned(),
        Some("failed") => {
            format!("{} failed", checkpoint["failed_checks"].as_array().map_or(0, Vec::len))
        }
        _ => "not checked".to_owned(),
    }
}

fn checkpoints(source: &Source) -> Result<Value, Failure> {
    match source.directory()? {
        Some(data) => as_json(&offline::checkpoints(data).map_err(offline_failure)?),
        None => Ok(source.server.server().get("/v1/checkpoints")?.body),
    }
}

fn show(number: u64, source: &Source) -> Result<Value, Failure> {
    let Some(data) = source.directory()? else {
        return Ok(source.server.server().get(&format!("/v1/checkpoints/{number}"))?.body);
    };
    let stored = offline::checkpoints(data).map_err(offline_failure)?;
    let found = stored.iter().find(|checkpoint| checkpoint.number == number);
    as_json(found.ok_or_else(|| {
        Failure::new(Exit::Failed, format!("checkpoint {number} does not exist in {data} or is not complete"))
            .hint(format!(
                "`stead checkpoint list --data {}` lists the complete ones",
                output::shell_word(data)
            ))
    })?)
}

fn verify(number: u64, source: &Source, json: bool) -> Result<(), Failure> {
    show(number, source)?;
    let report = match source.directory()? {
        Some(data) => {
            log_events(Level::WARN);
            let mut registry = Registry::new();
            registry.service::<Kv>().map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
            let report = offline::verify(data, number, &registry).map_err(|error| damaged(number, &error))?;
            let consistent = report.holds();
            let mut report = as_json(&report)?;
            report["consistent"] = consistent.into();
            report
        }
        None => {
            let answer = source.server.server().post(&format!("/v1/checkpoints/{number}/verify"), "", &[]);
            answer
                .map_err(
                    |failure| {
                        if failure.is("checkpoint-failed") { damaged(number, &failure) } else { failure }
                    },
                )?
                .body
        }
    };
    if json {
        output::json(&report)?
    } else {
        output::facts(&report)?
    }
    if report["consistent"] == Value::Bool(true) {
        return Ok(());
    }
    let texts = |member: &Value, text: fn(&Value) -> Option<&str>| -> Vec<String> {
        member.as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(text).map(str::to_owned).collect()
    };
    let mut wrong = texts(&report["inconsistencies"], Value::as_str);
    wrong.extend(texts(&report["checks"], |check| check["failure"].as_str()));
    Err(Failure::new(Exit::Inconsistent, format!("checkpoint {number} is inconsistent"))
        .cause(wrong.join("; "))
        .hint("do not restore it; `stead checkpoint list` shows the others")
        .reported())
}

fn copy(number: u64, to: &str, source: &Source) -> Result<Value, Failure> {
    match &source.data {
        Some(data) => as_json(&offline::copy_checkpoint(data, number, to).map_err(offline_failure)?),
        None => {
            let body = serde_json::json!({ "to": to }).to_string();
            Ok(source.server.server().post(&format!("/v1/checkpoints/{number}/copy"), &body, &[])?.body)
        }
    }
}

fn damaged(number: u64, cause: &dyn Display) -> Failure {
    Failure::new(Exit::Inconsistent, format!("checkpoint {number} cannot be verified")).cause(cause)
}

fn as_json(value: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value)
        .map_err(|error| Failure::new(Exit::Failed, "cannot write the result as JSON").cause(error))
}

/// Converts an error of the commands that work without a server.
pub(super) fn offline_failure(error: OfflineError) -> Failure {
    let exit = match error {
        OfflineError::Address(_) => {
            return Failure::new(Exit::Usage, "the address is invalid")
                .cause(error)
                .hint("an address is file:///directory or s3://bucket/prefix");
        }
        OfflineError::Directory { .. } | OfflineError::DataDir(_) | OfflineError::NotEmpty { .. } => {
            Exit::Data
        }
        _ => Exit::Failed,
    };
    Failure::new(exit, "the data cannot be used").cause(error)
}

impl Source {
    fn directory(&self) -> Result<Option<&str>, Failure> {
        let Some(data) = &self.data else { return Ok(None) };
        let text = data.to_str();
        text.map(Some).ok_or_else(|| Failure::new(Exit::Usage, format!("{} is not UTF-8", data.display())))
    }
}
