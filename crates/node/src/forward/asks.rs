//! Calls as they go over the network: the requests of the native protocol, and its answers.

use crate::inbox::Command;
use crate::reply::{NoAnswer, ReplyTo};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use stead_core::calls::{Answer, Misuse, Query, Read, Refusal, Request};
use stead_core::ids::{CallToken, ShardId};
use stead_core::key::Key;
use stead_core::shard::{DeadLetterAction, Input};
use stead_core::topology::Topology;
use stead_net::native::{self, Ask, Promised};

/// Returns the shard of a request, and the command for the shard's worker. `intern` returns the client's principal, which many requests
/// share.
///
/// # Errors
/// The answer, if there is one at once.
pub(crate) fn command_of<C>(
    topology: &Topology,
    ask: Ask<'_>,
    intern: impl FnOnce(&str) -> Arc<str>,
    reply_to: ReplyTo<C>,
) -> Result<(ShardId, Command<C>), native::Answer> {
    let token = CallToken(0);
    Ok(match ask {
        // Only clients ask for it, and their connections answer.
        Ask::Topology { .. } => {
            return Err(native::Answer::Invalid("no node asks another one for its topology".to_owned()));
        }
        Ask::OpenSession { shard, session, principal } => {
            let principal = intern(principal);
            (shard, Command::OpenSession { shard, session, principal, reply_to: Some(reply_to) })
        }
        Ask::Request { shard, process, payload, principal, identity, colour, seen, is_first } => {
            check_place(topology, shard, &process)?;
            let (principal, identity) = (intern(principal), identity.into());
            let is_first = is_first == Some(true);
            let request = Request { token, process, payload, principal, identity, colour, seen, is_first };
            (shard, Command::Request { shard, request, reply_to })
        }
        Ask::Query { shard, process, payload, principal, read, seen } => {
            check_place(topology, shard, &process)?;
            let read = read.map_or(Read::Service, Read::from);
            let query = Query { token, process, payload, principal: intern(principal), read, seen };
            (shard, Command::Query { shard, query, reply_to })
        }
        Ask::DeadLetter { shard, letter, retry } => {
            let action = if retry { DeadLetterAction::Retry } else { DeadLetterAction::Drop };
            (shard, Command::DeadLetter { shard, letter, action, reply_to })
        }
        Ask::Delete { shard, process, records } => {
            check_place(topology, shard, &process)?;
            (shard, Command::Delete { shard, process, records, reply_to })
        }
        Ask::Look { shard, look } => {
            let look = Box::new(look);
            (shard, Command::Show { shard, look, reply_to })
        }
    })
}

/// Checks that a shard is that of a process: a client does not decide it.
fn check_place(topology: &Topology, shard: ShardId, process: &Key) -> Result<(), native::Answer> {
    if process.is_empty() {
        return Err(native::Answer::Invalid("the key of a process has at least one byte".to_owned()));
    }
    let owner = topology.service_of(shard).map(|service| topology.shard_of(service, process));
    if owner == Some(shard) {
        return Ok(());
    }
    let reason = format!(
        "shard {shard} does not have the process {process}; connect again, for its shards have changed"
    );
    Err(native::Answer::Invalid(reason))
}

/// Returns the encoded request that passes an input on to another node, and whether it has the effect of one if it is sent twice; `None`
/// for an input that no other node takes.
pub(crate) fn ask_of(shard: ShardId, input: &Input) -> Option<(Bytes, bool)> {
    let ask = match input {
        Input::OpenSession { session, principal, .. } => {
            Ask::OpenSession { shard, session: *session, principal }
        }
        Input::Request(Request { process, payload, principal, identity, colour, seen, is_first, .. }) => {
            Ask::Request {
                shard,
                process: process.clone(),
                payload: payload.clone(),
                principal,
                identity: identity.clone().into(),
                colour: *colour,
                seen: *seen,
                is_first: is_first.then_some(true),
            }
        }
        Input::Query(Query { process, payload, principal, read, seen, .. }) => Ask::Query {
            shard,
            process: process.clone(),
            payload: payload.clone(),
            principal,
            read: Promised::of(*read),
            seen: *seen,
        },
        Input::DeadLetter { letter, action, .. } => {
            Ask::DeadLetter { shard, letter: *letter, retry: *action == DeadLetterAction::Retry }
        }
        Input::Delete { process, records, .. } => {
            Ask::Delete { shard, process: process.clone(), records: records.clone() }
        }
        Input::Look { look, .. } => Ask::Look { shard, look: (**look).clone() },
        _ => return None,
    };
    Some((ask.encode(), ask.repeats()))
}

/// Returns the result of a call from the answer of the node to which it was forwarded. `timeout` is the call's.
pub(crate) fn result_of(answer: &[u8], timeout: Duration) -> Result<Answer, NoAnswer> {
    let invalid = |reason| NoAnswer::Refused(Refusal::Misuse(Misuse::Request(reason)));
    match native::Answer::decode(answer).map_err(|error| NoAnswer::Failed(error.to_string()))? {
        native::Answer::Of(answer) => Ok(answer),
        native::Answer::Refused(refusal) => Err(NoAnswer::Refused(refusal)),
        native::Answer::NotHere { shard, place } => Err(NoAnswer::NotHere { shard, place }),
        native::Answer::NoPrimary { shard } => Err(NoAnswer::NoPrimary { shard, after: timeout }),
        native::Answer::TimedOut | native::Answer::NoRoom => Err(NoAnswer::TimedOut { after: timeout }),
        native::Answer::Deposed { shard } => Err(NoAnswer::Deposed { shard }),
        native::Answer::Failed(reason) => Err(NoAnswer::Failed(reason)),
        native::Answer::Stopped => Err(NoAnswer::Stopped),
        native::Answer::Topology { .. } => {
            Err(invalid("it asked for the topology of another node".to_owned()))
        }
        native::Answer::Invalid(reason) => Err(invalid(reason)),
    }
}
