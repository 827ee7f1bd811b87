//! The last events of a run, for the text of its failure.

use std::collections::VecDeque;
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{Index, ShardId};
use stead_core::key::Key;
use stead_core::topology::Topology;

/// Number of lines that are kept.
const KEPT: usize = 40;

/// A ring of the last events. Its text is made only if the run fails.
#[derive(Default)]
pub(crate) struct Recent(VecDeque<Line>);

enum Line {
    Entry { shard: ShardId, index: Index, cause: Cause, process: Key, sends: usize },
    Note(String),
}

impl Recent {
    /// Adds an entry that a shard appended, which is not stored yet.
    pub(crate) fn entry(&mut self, shard: ShardId, entry: &Entry) {
        self.push(Line::Entry {
            shard,
            index: entry.index,
            cause: entry.cause.clone(),
            process: entry.process.clone(),
            sends: entry.sends.len(),
        });
    }

    pub(crate) fn note(&mut self, text: String) {
        self.push(Line::Note(text));
    }

    fn push(&mut self, line: Line) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    /// Returns the kept lines, oldest first.
    pub(crate) fn lines(&self, topology: &Topology) -> Vec<String> {
        self.0.iter().map(|line| line.text(topology)).collect()
    }
}

impl Line {
    fn text(&self, topology: &Topology) -> String {
        let (shard, index, cause, process, sends) = match self {
            Self::Note(text) => return text.clone(),
            Self::Entry { shard, index, cause, process, sends } => (shard, index, cause, process, sends),
        };
        let mut text = format!("shard {shard}, entry {index}: {}", describe(cause));
        if !process.is_empty() {
            let service = topology.service_of(*shard).map_or("?", |id| &topology.service(id).name);
            text += &format!(", process {service}/{process}");
        }
        match sends {
            0 => text,
            1 => text + ", 1 message sent",
            n => text + &format!(", {n} messages sent"),
        }
    }
}

fn describe(cause: &Cause) -> String {
    match cause {
        Cause::Start => "the epoch begins".to_owned(),
        Cause::OpenSession { principal, .. } => format!("{principal} opens a session"),
        Cause::Request { session, number, .. } => format!("request {number} of session {session}"),
        Cause::Idempotent { principal, .. } => format!("request of {principal} with an idempotency key"),
        Cause::Anonymous | Cause::Suspected { .. } => "anonymous request".to_owned(),
        Cause::Message { from, seq } => format!("message {seq} from shard {from}"),
        Cause::Timer { .. } => "a timer fires".to_owned(),
        Cause::Task { id, step } => format!("step {step} of task {id} ended"),
        Cause::Marker { colour } => format!("the shard's part of checkpoint {colour}"),
        Cause::Ack { .. } => "messages were received".to_owned(),
        Cause::Attempt => "attempts are logged".to_owned(),
        Cause::DeadLetter { cause } => format!("given up as a dead letter: {cause:?}"),
        Cause::Expire => "sessions and keys expire".to_owned(),
        Cause::Retry { letter } => format!("dead letter {letter} is retried"),
        Cause::Drop { letter } => format!("dead letter {letter} is dropped"),
        Cause::Delete => "an operator deletes a process".to_owned(),
    }
}
