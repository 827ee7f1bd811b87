//! Failure of a command: what happened, the cause, what to do next, and the exit code for scripts.

use std::fmt;

/// Exit codes. 0 is success, 2 is wrong usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command could not do its work.
    Failed = 1,
    /// The command's arguments are invalid.
    Usage = 2,
    /// The service answered with an error of its own.
    Service = 3,
    /// The server cannot be reached.
    Unreachable = 4,
    /// The data directory is in use, damaged or of another version.
    Data = 5,
    /// A checkpoint is inconsistent.
    Inconsistent = 6,
    /// A signal ended the command before its work was done; its temporary files are removed.
    Stopped = 130,
    /// The server had a fatal error; starting again may help.
    Fatal = 70,
}

/// The help's list of exit codes.
pub(crate) const EXIT_CODES: &str = "Exit codes: 0 success, 1 failed, 2 usage, 3 the service answered with an error, \
4 server unreachable, 5 data directory unusable, 6 checkpoint inconsistent, 70 fatal server error, 130 stopped by a signal.";

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    what: String,
    cause: Option<String>,
    hint: Option<String>,
    /// The problem document of the server, for `--json`.
    document: Option<serde_json::Value>,
    /// Whether the command has already printed it on standard output, as its result.
    is_reported: bool,
}

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), cause: None, hint: None, document: None, is_reported: false }
    }

    pub(crate) fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Returns the same failure under another title.
    pub(crate) fn titled(mut self, what: impl Into<String>) -> Self {
        self.what = what.into();
        self
    }

    pub(crate) fn document(mut self, document: serde_json::Value) -> Self {
        self.document = Some(document);
        self
    }

    /// Marks the failure as part of the printed result: with `--json`, standard output has only that one object.
    pub(crate) fn reported(mut self) -> Self {
        self.is_reported = true;
        self
    }

    pub(crate) fn is_reported(&self) -> bool {
        self.is_reported
    }

    /// Whether the server reported a problem of this kind.
    pub(crate) fn is(&self, kind: &str) -> bool {
        let named = self.document.as_ref().and_then(|problem| problem["type"].as_str());
        named.and_then(|name| name.strip_prefix("urn:stead:problem:")) == Some(kind)
    }

    /// Returns the failure as one JSON object.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "error": self.what,
            "cause": self.cause,
            "hint": self.hint,
            "exit": self.exit as i32,
            "problem": self.document,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if let Some(cause) = &self.cause {
            write!(f, "\ncause: {cause}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}
