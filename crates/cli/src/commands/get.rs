//! `stead get`: one query of one process.

use super::call;
use crate::client::{ServerArgs, name, segment};
use crate::failure::Failure;
use clap::Args;

/// Query a process and print the answer; nothing is changed
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  stead get kv greeting\n\nA service with queries of its own:\n  stead get bank alice '\"balance\"'"
)]
pub(crate) struct GetArgs {
    /// Service of the process
    #[arg(value_parser = name)]
    service: String,
    /// Key of the process
    #[arg(value_parser = name)]
    key: String,
    /// The service's query as JSON; - reads it from standard input
    #[arg(value_name = "JSON", default_value = "\"get\"")]
    query: String,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(args: &GetArgs, json: bool) -> Result<(), Failure> {
    let path = format!("/v1/query/{}/{}", segment(&args.service), segment(&args.key));
    call::print(args.server.server().post(&path, &call::json_argument(&args.query)?, &[])?, json)
}
