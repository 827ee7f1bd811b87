//! `stead call`: one request to one process.

use crate::client::{ServerArgs, name, segment};
use crate::failure::{Exit, Failure};
use crate::output;
use clap::Args;
use std::borrow::Cow;

/// Call a process and print its reply
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stead call kv greeting '{\"put\": {\"value\": \"hello\"}}'\n  \
    stead call kv greeting '{\"compare_and_set\": {\"expected\": \"hello\", \"value\": \"bye\"}}'\n  \
    stead call kv greeting '\"delete\"'\n\n\
    A request with fields is an object, its name around its fields; one without fields, like delete, is its name as text.\n\
    The single quotes keep the shell from splitting the JSON.\n\n\
    JSON from a file:\n  stead call kv greeting - < request.json\n\n\
    A retry that must not be applied twice:\n  stead call kv greeting '{\"put\": {\"value\": \"hello\"}}' --idempotency-key order-17")]
pub(crate) struct CallArgs {
    /// Service of the process
    #[arg(value_parser = name)]
    service: String,
    /// Key of the process
    #[arg(value_parser = name)]
    key: String,
    /// The service's request as JSON; - reads it from standard input
    #[arg(value_name = "JSON")]
    request: String,
    /// Identifies the call: repeating it with the same key and request returns the first answer
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(args: &CallArgs, json: bool) -> Result<(), Failure> {
    let path = format!("/v1/call/{}/{}", segment(&args.service), segment(&args.key));
    let headers: Vec<_> = args.idempotency_key.iter().map(|key| ("Idempotency-Key", key.as_str())).collect();
    let answer = args.server.server().post(&path, &json_argument(&args.request)?, &headers)?;
    print(answer, json)
}

/// Returns the JSON argument, or standard input for `-`.
pub(super) fn json_argument(text: &str) -> Result<Cow<'_, str>, Failure> {
    if text != "-" {
        return Ok(Cow::Borrowed(text));
    }
    let read = std::io::read_to_string(std::io::stdin());
    read.map(Cow::Owned)
        .map_err(|error| Failure::new(Exit::Failed, "cannot read standard input").cause(error))
}

/// Prints a reply: its JSON, indented, for people; with `--json` the reply and its token.
pub(super) fn print(answer: crate::client::Answer, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&serde_json::json!({ "reply": answer.body, "token": answer.token }));
    }
    match &answer.body {
        serde_json::Value::Object(_) | serde_json::Value::Array(_) => {
            output::line(&format!("{:#}", answer.body))
        }
        plain => output::json(plain),
    }
}
