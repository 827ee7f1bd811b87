//! The dead letters of a service, in pages: there may be too many to copy all of them at once.

use super::looks::ShardUnanswered;
use super::processes::{NoCursor, PAGE_TIME};
use super::{Node, ShardNotHere};
use crate::client::misfit;
use crate::error::RawError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Instant;
use stead_core::ids::{Index, ShardId};
use stead_core::look::{Found, Look};
use stead_core::record::{DeadLetter, Pending};

/// Bytes of payloads after which a page ends.
const PAGE_BYTES: usize = 1 << 20;

/// A cause that was given up after too many attempts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterInfo {
    /// The shard that holds it.
    pub shard: u32,
    /// The index of the entry that made it a dead letter.
    pub index: u64,
    /// The process for which the cause was.
    pub process: String,
    /// The process that sent it, for a message.
    pub sender: String,
    /// The cause that was given up.
    pub cause: String,
    /// The payload for the handler, as JSON where that is possible.
    pub payload: Option<serde_json::Value>,
    /// The reason for which it was given up.
    pub reason: String,
    /// The time at which it was given up, in microseconds since the Unix epoch.
    pub time: u64,
}

/// Some dead letters of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeadLetterPage {
    /// The dead letters, by shard and index.
    pub dead_letters: Vec<DeadLetterInfo>,
    /// The position of the next page; `None` after the last one. A page may be short although there is a next one.
    pub next: Option<DeadLetterCursor>,
    /// The shards of the service that are not on this node: no page has their dead letters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards_not_here: Vec<ShardNotHere>,
    /// The shards that this page had come to and whose primaries gave no answer: their dead letters are missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<ShardUnanswered>,
}

/// The position of a page of dead letters: text that only [`Node::dead_letters`] returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterCursor {
    shard: u32,
    index: u64,
}

impl fmt::Display for DeadLetterCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.shard, self.index)
    }
}

impl FromStr for DeadLetterCursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        let read = |(shard, index): (&str, &str)| Some((shard.parse().ok()?, index.parse().ok()?));
        let (shard, index) = text
            .split_once('.')
            .and_then(read)
            .ok_or_else(|| NoCursor { text: text.chars().take(64).collect() })?;
        Ok(Self { shard, index })
    }
}

impl Serialize for DeadLetterCursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeadLetterCursor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Node {
    /// Returns some dead letters of a service: `limit` at most, from 1 to 1000, the first ones without `after`. A page
    /// ends earlier after 1 MiB of payloads, or after a second. In a cluster, the nodes that lead the shards are asked:
    /// [`DeadLetterPage::unanswered`] names those that give no answer. Blocks.
    ///
    /// # Errors
    /// [`RawError::UnknownService`]; [`Refusal::Overloaded`](crate::Refusal::Overloaded) if a handler holds a shard for
    /// longer than half a second, on a node without a cluster.
    pub fn dead_letters(
        &self,
        service: &str,
        after: Option<DeadLetterCursor>,
        limit: usize,
    ) -> Result<DeadLetterPage, RawError> {
        let (first, shards) = self.shards_of(service)?;
        let limit = limit.clamp(1, 1000);
        let mut at = after.unwrap_or_default();
        let until = Instant::now() + PAGE_TIME;
        let lister = self.lister();
        let shards_not_here = self.not_here_of(service);
        let (mut page, mut bytes) = (DeadLetterPage { shards_not_here, ..DeadLetterPage::default() }, 0);
        while at.shard < shards {
            let shard = ShardId(first + at.shard);
            let behind = DeadLetterCursor { shard: at.shard + 1, index: 0 };
            if page.shards_not_here.iter().any(|other| other.shard == shard.0) {
                at = behind;
                continue;
            }
            let left = (limit - page.dead_letters.len()) as u32;
            let look =
                Look::DeadLetters { from: Index(at.index), limit: left, room: (PAGE_BYTES - bytes) as u64 };
            at = match lister.look(shard, look) {
                Ok((_, Found::DeadLetters { found, next })) => {
                    bytes += found.iter().map(|(_, letter)| letter.payload.len()).sum::<usize>();
                    page.dead_letters
                        .extend(found.into_iter().map(|(index, letter)| info(shard, index, letter)));
                    next.map_or(behind, |index| DeadLetterCursor { index: index.0, ..at })
                }
                Ok(_) => return Err(misfit()),
                Err(error) => {
                    page.unanswered.push(lister.unanswered(service, shard, error)?);
                    behind
                }
            };
            if page.dead_letters.len() >= limit || bytes >= PAGE_BYTES || Instant::now() >= until {
                break;
            }
        }
        page.next = (at.shard < shards).then_some(at);
        Ok(page)
    }
}

fn info(shard: ShardId, index: Index, letter: DeadLetter) -> DeadLetterInfo {
    let cause = match letter.cause {
        Pending::Message { from, seq } => format!("message {seq} of shard {from}"),
        Pending::Timer { id } => format!("timer {id}"),
        Pending::Task { id, step } => format!("step {step} of task {id}"),
        Pending::Request { .. } => "a client's request".to_owned(),
        Pending::Call { .. } => "a client's request without a session".to_owned(),
        Pending::DeadLetter { letter } => format!("dead letter {letter}"),
    };
    DeadLetterInfo {
        shard: shard.0,
        index: index.0,
        process: letter.process.to_string(),
        sender: letter.sender.to_string(),
        cause,
        payload: crate::service::codec::payload_to_json(&letter.payload).ok(),
        reason: letter.reason,
        time: letter.time.0,
    }
}
