//! Standard output: data, as lines for people or as JSON for programs.

use crate::failure::{Exit, Failure};
use crate::when;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;
use stead::stderr;

/// Prints one line.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    // The reader may have seen enough (`stead log | head`); the exit code still reports how the command ended.
    line_is_read(text).map(|_| ())
}

/// Prints one line; returns false if the reader has closed standard output.
pub(crate) fn line_is_read(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(Exit::Failed, "cannot write to standard output").cause(error)),
    }
}

/// Waits for at most `wait` while standard output has a reader; returns false if the reader is gone.
pub(crate) fn wait_while_read(wait: Duration) -> Result<bool, Failure> {
    let out = io::stdout();
    let wait = Timespec::try_from(wait).ok();
    // No event is requested: poll always reports that the reader of a pipe is gone.
    let mut watched = [PollFd::new(&out, PollFlags::empty())];
    match poll(&mut watched, wait.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => {
            let error = io::Error::from(error);
            return Err(Failure::new(Exit::Failed, "cannot watch standard output").cause(error));
        }
    }
    Ok(!watched[0].revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL))
}

/// Prints one line on standard error, for people; errors are ignored.
pub(crate) fn note(text: impl std::fmt::Display) {
    stderr::line(text);
    // The next output on the terminal must come after it.
    stderr::flush(NOTE_WAIT);
}

/// Returns the shards that an answer's member `shards_not_here` names, each with its place; `None` if there are none.
pub(crate) fn shards_not_here(answer: &Value) -> Option<String> {
    let shards = answer["shards_not_here"].as_array().filter(|shards| !shards.is_empty())?;
    let named = shards.iter().map(|shard| {
        let place = if shard["place"] == "elsewhere" { "on another node" } else { "on no known node" };
        format!("shard {} of {} ({place})", shard["shard"], shard["service"].as_str().unwrap_or_default())
    });
    Some(named.collect::<Vec<_>>().join(", "))
}

/// Returns the shards that a page's member `unanswered` names, each with its node and the reason; `None` if there are none.
fn unanswered(page: &Value) -> Option<String> {
    let shards = page["unanswered"].as_array().filter(|shards| !shards.is_empty())?;
    let named = shards.iter().map(|shard| {
        let node = shard["node"].as_u64().map_or("no known node".to_owned(), |node| format!("node {node}"));
        let (service, reason) = (shard["service"].as_str(), shard["reason"].as_str());
        let (service, reason) = (service.unwrap_or_default(), reason.unwrap_or_default());
        format!("shard {} of {service} ({node}: {reason})", shard["shard"])
    });
    Some(named.collect::<Vec<_>>().join(", "))
}

/// Notes the shards of which a page lacks the contents, because their primaries gave no answer.
pub(crate) fn note_unanswered(page: &Value) {
    if let Some(shards) = unanswered(page) {
        note(format_args!("stead: the list is not complete: {shards}; `stead status` says more"));
    }
}

/// Notes the shards that a list of their contents leaves out.
pub(crate) fn note_not_here(page: &Value) {
    if let Some(shards) = shards_not_here(page) {
        note(format_args!("stead: the list leaves out what is not on this node: {shards}"));
    }
}

/// Time that a command waits for standard error before it continues.
const NOTE_WAIT: Duration = Duration::from_millis(200);

/// Prints a value as one line of JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    line(&json_text(value)?)
}

/// Returns a value as one line of JSON.
pub(crate) fn json_text<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value)
        .map_err(|error| Failure::new(Exit::Failed, "cannot write the result as JSON").cause(error))
}

/// A table for people: the first row is the heading, numbers are aligned to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.rows[0].len());
        self.rows.push(cells.to_vec());
    }

    pub(crate) fn print(&self) -> Result<(), Failure> {
        line(&self.text())
    }

    fn text(&self) -> String {
        let columns = self.rows[0].len();
        let widths: Vec<usize> = (0..columns)
            .map(|c| self.rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0))
            .collect();
        let right: Vec<bool> = (0..columns)
            .map(|c| {
                self.rows[1..].iter().all(|row| row[c].starts_with(|d: char| d.is_ascii_digit() || d == '-'))
            })
            .collect();
        let mut lines = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let mut text = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&right) {
                let pad = width - cell.chars().count();
                let (before, after) = if *right { (pad, 0) } else { (0, pad) };
                // Writing to a string cannot fail.
                let _ = write!(text, "{:before$}{cell}{:after$}  ", "", "");
            }
            lines.push(text.trim_end().to_owned());
        }
        lines.join("\n")
    }
}

/// Prints the fields of an object, one a line, for people.
pub(crate) fn facts(value: &Value) -> Result<(), Failure> {
    let Value::Object(members) = value else { return json(value) };
    let width = members.keys().map(String::len).max().unwrap_or(0);
    for (name, value) in members {
        let facts = match value {
            Value::Array(items) if !items.is_empty() => items.iter().map(|item| fact(name, item)).collect(),
            value => vec![fact(name, value)],
        };
        let mut name = name.replace('_', " ");
        for fact in facts {
            line(&format!("{name:width$}  {fact}"))?;
            name.clear();
        }
    }
    Ok(())
}

/// Fields that are times in microseconds since the Unix epoch.
const DATES: [&str; 3] = ["at", "created", "time"];

/// Formats the value of a field, whose name implies the unit.
pub(crate) fn fact(name: &str, value: &Value) -> String {
    match value {
        Value::Number(number) if name.contains("bytes") => {
            number.as_u64().map_or_else(|| number.to_string(), bytes)
        }
        Value::Number(number) if DATES.contains(&name) => {
            number.as_u64().map_or_else(|| number.to_string(), when::date)
        }
        // A duration, in serde's representation.
        Value::Object(parts)
            if parts.len() == 2 && parts.contains_key("secs") && parts.contains_key("nanos") =>
        {
            let (secs, nanos) = (value["secs"].as_u64(), value["nanos"].as_u64());
            let nanos = nanos.and_then(|nanos| u32::try_from(nanos).ok());
            when::duration(Duration::new(secs.unwrap_or(0), nanos.unwrap_or(0)))
        }
        // `not_checked` is a word of the JSON.
        Value::String(text) if name == "check" => text.replace('_', " "),
        Value::String(text) => text.clone(),
        Value::Object(members) => {
            let members = members
                .iter()
                .map(|(name, value)| format!("{} {}", name.replace('_', " "), fact(name, value)));
            Vec::from_iter(members).join(", ")
        }
        Value::Null => "-".to_owned(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Bool(value) => if *value { "yes" } else { "no" }.to_owned(),
        other => other.to_string(),
    }
}

/// Quotes a word for a shell if it needs quotes.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Formats a number of things: `1 record`, `2 records`.
pub(crate) fn count(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Formats bytes for people: `1.5 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_that_are_not_here_are_named_with_their_places() {
        let answer = serde_json::json!({ "shards_not_here": [
            { "shard": 1, "service": "bank", "place": "elsewhere" },
            { "shard": 4, "service": "kv", "place": "unplaced" },
        ] });
        let named = "shard 1 of bank (on another node), shard 4 of kv (on no known node)";
        assert_eq!(shards_not_here(&answer).as_deref(), Some(named));
        assert_eq!(shards_not_here(&serde_json::json!({ "shards_not_here": [] })), None);
        let page = serde_json::json!({ "unanswered": [
            { "shard": 3, "service": "kv", "node": 2, "reason": "late" },
            { "shard": 4, "service": "kv", "node": null, "reason": "none" },
        ] });
        let named = "shard 3 of kv (node 2: late), shard 4 of kv (no known node: none)";
        assert_eq!(unanswered(&page).as_deref(), Some(named));
        assert_eq!(unanswered(&serde_json::json!({})), None);
    }

    #[test]
    fn columns_stand_under_their_heading() {
        let mut table = Table::new(["name", "count"]);
        table.row(["a".into(), "7".into()]);
        table.row(["longer".into(), "1234567".into()]);
        assert_eq!(table.text(), "name      count\na             7\nlonger  1234567");
    }

    #[test]
    fn facts_are_formatted_by_their_name() {
        assert_eq!(fact("bytes_written", &Value::from(2048)), "2.0 KiB");
        assert_eq!(fact("records", &Value::from(2048)), "2048");
        assert_eq!(fact("duration", &serde_json::json!({"secs": 1, "nanos": 500_000})), "1.0 s");
        assert_eq!(fact("created", &Value::from(951_782_400_000_000_u64)), "2000-02-29 00:00:00 UTC");
        assert_eq!(fact("checkpoint", &Value::Null), "-");
        assert_eq!(fact("check", &Value::from("not_checked")), "not checked");
        assert_eq!(fact("failed_checks", &serde_json::json!([])), "none");
        assert_eq!(
            fact("in_flight", &serde_json::json!({"from": 1, "message_bytes": 30})),
            "from 1, message bytes 30 B"
        );
        assert_eq!(fact("consistent", &Value::from(true)), "yes");
        assert_eq!(
            (&*count(1, "record", "records"), &*count(0, "record", "records")),
            ("1 record", "0 records")
        );
    }

    #[test]
    fn words_for_a_shell_are_quoted_when_they_need_it() {
        assert_eq!(shell_word("./data-1"), "./data-1");
        assert_eq!(shell_word("my data"), "'my data'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn bytes_have_their_unit() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }
}
