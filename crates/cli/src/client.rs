//! Blocking HTTP client that sends the commands' requests to a running server, one at a time.

use crate::failure::{Exit, Failure};
use clap::Args;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::time::Duration;
use ureq::http::Response;
use ureq::{Agent, Body};

/// Address of the server, and the timeout of a request.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServerArgs {
    /// Address of the server
    #[arg(long, env = "STEAD_ADDR", default_value = "127.0.0.1:7420", value_name = "HOST:PORT", value_parser = host_and_port)]
    pub(crate) addr: String,
    /// Give up after this many milliseconds
    #[arg(long, default_value_t = 30_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout_ms: u64,
}

/// Parses the address of a server, with or without `http://` before it.
fn host_and_port(text: &str) -> Result<String, String> {
    let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let is_host = |host: &str| {
        let is_ipv6 = host.starts_with('[') && host.ends_with(']');
        !host.is_empty() && !host.contains(['/', '@', ' ']) && (is_ipv6 || !host.contains(':'))
    };
    match address.rsplit_once(':') {
        Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok() => Ok(address.to_owned()),
        _ => Err("it must be HOST:PORT, as in 127.0.0.1:7420 or [::1]:7420".to_owned()),
    }
}

/// Parses the name of a service or the key of a process, which must not be empty.
pub(crate) fn name(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// Time that a command waits beyond its timeout, so that the server can still report that the time is over.
const LATE: Duration = Duration::from_millis(500);

/// Most bytes of an answer that are read: 1 GiB.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

/// A server and how to reach it.
pub(crate) struct Server {
    agent: Agent,
    base: String,
    timeout_ms: u64,
}

/// A successful answer of a server.
pub(crate) struct Answer {
    /// The body as JSON.
    pub(crate) body: Value,
    /// The `Stead-Token`.
    pub(crate) token: Option<String>,
}

impl ServerArgs {
    pub(crate) fn server(&self) -> Server {
        let config = Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(self.timeout_ms).saturating_add(LATE)))
            .http_status_as_error(false)
            .build();
        Server { agent: config.into(), base: format!("http://{}", self.addr), timeout_ms: self.timeout_ms }
    }
}

impl Server {
    pub(crate) fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.answer(self.agent.get(format!("{}{path}", self.base)).call())
    }

    pub(crate) fn delete(&self, path: &str) -> Result<Answer, Failure> {
        self.answer(self.agent.delete(format!("{}{path}", self.base)).call())
    }

    /// Posts JSON text unchanged: the server reports what is wrong with it.
    pub(crate) fn post(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> Result<Answer, Failure> {
        let mut request = self
            .agent
            .post(format!("{}{path}", self.base))
            .content_type("application/json")
            .header("Stead-Deadline-Ms", self.timeout_ms.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.answer(request.send(body));
        // Quotes for the shell are missing only if the text is not valid JSON.
        let is_json = serde_json::from_str::<IgnoredAny>(body).is_ok();
        answer
            .map_err(|failure| if failure.is("bad-json") && !is_json { failure.hint(QUOTE) } else { failure })
    }

    fn answer(&self, response: Result<Response<Body>, ureq::Error>) -> Result<Answer, Failure> {
        let mut response = response.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let token =
            response.headers().get("stead-token").and_then(|token| Some(token.to_str().ok()?.to_owned()));
        let text = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_string()
            .map_err(|error| self.unreachable(&error))?;
        let body = if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text) };
        match body {
            Ok(body) if status.is_success() => Ok(Answer { body, token }),
            Ok(problem) => Err(refused(problem)),
            Err(error) => Err(Failure::new(
                Exit::Failed,
                format!("{} answered {status} with something that is not JSON", self.base),
            )
            .cause(error)
            .hint("is this the address of a Stead server?")),
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        if matches!(error, ureq::Error::Timeout(_)) {
            let what = format!("no answer from {} within {} ms", self.base, self.timeout_ms);
            return Failure::new(Exit::Unreachable, what).hint(
                "raise --timeout-ms; a change that was asked for may still happen, so repeat a call with the same \
                 --idempotency-key",
            );
        }
        Failure::new(Exit::Unreachable, format!("no answer from {}", self.base))
            .cause(error)
            .hint("is `stead start` running? --addr or STEAD_ADDR names its address")
    }
}

/// Converts a problem document into a failure.
fn refused(problem: Value) -> Failure {
    let text = |member: &str| problem[member].as_str().unwrap_or_default().to_owned();
    let exit = if problem.get("error").is_some() { Exit::Service } else { Exit::Failed };
    let what = if text("title").is_empty() { problem.to_string() } else { text("title") };
    let hint = command_hint(&text("type")).map_or_else(|| text("hint"), str::to_owned);
    Failure::new(exit, what).cause(text("detail")).hint(hint).document(problem)
}

/// Returns the next command to run where the server's hint names a path of its HTTP API or one of its headers.
fn command_hint(kind: &str) -> Option<&'static str> {
    Some(match kind.strip_prefix("urn:stead:problem:")? {
        "unknown-service" | "unknown-shard" => "`stead status --shards` lists the services and their shards",
        "unknown-route" | "method-not-allowed" => {
            "the server has another version than this command, or is not a Stead server"
        }
        "wrong-host" => "name the server by localhost, 127.0.0.1 or [::1] in --addr",
        "unreadable-request" => {
            "a request with fields is an object, as in '{\"put\": {\"value\": 1}}'; one without fields is its name as text, \
             as in '\"delete\"', not '{\"delete\": {}}'"
        }
        "timed-out" => {
            "it may have been applied: repeat the call with the same --idempotency-key to find out, or raise --timeout-ms"
        }
        "idempotency-conflict" => "give a new request a new --idempotency-key",
        "overloaded" | "not-ready" => "try again in a moment; `stead status` shows the server's state",
        "unknown-checkpoint" => "`stead checkpoint list` lists the complete ones",
        "checkpoint-needed" => "take another one first: `stead checkpoint create`",
        "checkpoint-in-use" => "try again once its verification, its check or its copy has ended",
        "unknown-process" => "`stead process list SERVICE` lists those of a service",
        "unknown-dead-letter" => "`stead dead-letter list` lists them",
        "bad-request" => "correct the part that the cause names",
        "checkpoint-failed" => "the server keeps running; correct the cause and try again",
        "dead-letter-failed" => {
            "correct the cause and retry it, or delete it: `stead dead-letter delete SHARD INDEX`"
        }
        "log-unreadable" => "the cause names the file and the reason",
        "dead-letter-final" => "delete it: `stead dead-letter delete SHARD INDEX`",
        _ => return None,
    })
}

/// Hint for JSON whose quotes the shell has removed.
const QUOTE: &str = "quote the JSON for the shell, as in '{\"put\": {\"value\": \"hello\"}}', with text in double quotes inside; \
                     or give - and the JSON on standard input";

/// Percent-encodes all but letters, digits and `-._~` of a path segment.
pub(crate) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["127.0.0.1:7420", "localhost:1", "[::1]:7420", "http://localhost:7420/"] {
            let bare = good.trim_start_matches("http://").trim_end_matches('/');
            assert_eq!(host_and_port(good).as_deref(), Ok(bare));
        }
        for bad in
            ["", "localhost", ":7420", "::1:7420", "https://localhost:7420", "localhost:70000", "a b:1"]
        {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn segments_are_encoded() {
        assert_eq!(segment("a/b c~é"), "a%2Fb%20c~%C3%A9");
    }

    #[test]
    fn hints_name_commands_and_no_paths() {
        let kinds = [
            "unknown-service",
            "unknown-checkpoint",
            "checkpoint-needed",
            "dead-letter-final",
            "bad-request",
        ];
        for kind in kinds {
            let kind = format!("urn:stead:problem:{kind}");
            let failure =
                refused(serde_json::json!({"title": "T", "type": kind, "hint": "GET /v1/services"}));
            let text = failure.to_string();
            assert!(text.contains("hint: ") && !text.contains("/v1/"), "{text}");
        }
    }

    #[test]
    fn a_problem_keeps_its_parts() {
        let failure = refused(serde_json::json!({"title": "T", "detail": "D", "hint": "H", "error": 1}));
        assert_eq!(failure.exit, Exit::Service);
        assert_eq!(failure.to_string(), "error: T\ncause: D\nhint: H");
    }
}
