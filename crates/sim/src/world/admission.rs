//! The node's calls as its clients see them: which were accepted, the memory that they take, and which were applied.

use super::{Outcomes, World};
use crate::marks::Mark;
use crate::model::hash_call;
use crate::stage::{self, Answered, OpenCall};
use crate::violation::Violation;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::calls::Refusal;
use stead_core::entry::Cause;
use stead_core::ids::{ShardId, Time};
use stead_core::shard::{Input, Shard};
use stead_node::{NoAnswer, PartId};

/// The calls of one life of the node.
#[derive(Default)]
pub(crate) struct Admission {
    /// The workers that have had a turn: the first one begins to account for their shards.
    begun: BTreeSet<usize>,
    /// Calls without an answer.
    open: BTreeMap<u64, Open>,
    /// By shard and call, the number of requests that were accepted and not refused later, less that of entries that applied
    /// them. A request may have several attempts.
    unapplied: BTreeMap<(ShardId, u64), i64>,
}

struct Open {
    asked: Asked,
    /// Its bytes in the account of the node's memory.
    bytes: i64,
}

/// The contents of a call.
pub(crate) struct Asked {
    /// Shard and hash of a request that may be applied.
    request: Option<(ShardId, u64)>,
    is_query: bool,
    /// Bytes that came with it.
    bytes: i64,
}

impl Asked {
    pub(crate) fn of(shard: ShardId, input: &Input) -> Self {
        let (request, is_query, bytes) = match input {
            Input::Request(request) => {
                let hash = hash_call(&request.process, &request.payload);
                (Some((shard, hash)), false, request.payload.len() + request.process.len())
            }
            Input::Query(query) => (None, true, query.payload.len() + query.process.len()),
            _ => (None, false, 0),
        };
        Self { request, is_query, bytes: bytes as i64 }
    }
}

/// Returns what the limit of memory counts for a call.
fn limited(account: [i64; 5], asked: &Asked) -> i64 {
    let [uncommitted, outboxes, requests, queries, _] = account;
    // A query adds nothing to messages that wait.
    uncommitted + requests + queries + if asked.is_query { 0 } else { outboxes }
}

fn wrong(invariant: u8, what: String) -> Outcomes {
    Err(Violation::new(invariant, what).into())
}

impl Admission {
    pub(crate) fn worker_had_turn(&mut self, worker: usize) {
        self.begun.insert(worker);
    }

    /// Handles that a call is dropped, for its caller has gone.
    pub(crate) fn caller_left(&mut self, call: OpenCall) {
        self.open.remove(&call.number);
    }
}

impl World {
    /// Handles a call that the node has accepted; `before` is the account of its memory before that.
    pub(crate) fn accepted(&mut self, call: OpenCall, asked: Asked, before: [i64; 5]) -> Outcomes {
        let limit = self.profile.memory.bytes_max;
        let node = self.node.as_mut().expect("it has accepted the call");
        let bytes = node.parts.memory_account()[2] - before[2];
        if bytes <= asked.bytes {
            return wrong(17, format!("a call of {} bytes takes {bytes} bytes of memory", asked.bytes));
        }
        let waiting = limited(before, &asked);
        if waiting >= limit as i64 {
            return wrong(
                17,
                format!("a call was accepted when {waiting} bytes waited, which is over {limit}"),
            );
        }
        if let Some(request) = asked.request {
            *node.admission.unapplied.entry(request).or_default() += 1;
        }
        node.admission.open.insert(call.number, Open { asked, bytes });
        Ok(())
    }

    /// Checks that a call which the node itself refuses as overloaded found no memory.
    pub(crate) fn refused_at_once(&mut self, asked: &Asked, error: &NoAnswer) -> Outcomes {
        if !matches!(error, NoAnswer::Refused(Refusal::Overloaded { .. })) {
            return Ok(());
        }
        self.marks.hit(Mark::NodeOverloaded);
        self.check_memory()?;
        let Some(node) = &self.node else { return Ok(()) };
        let waiting = limited(node.parts.memory_account(), asked);
        let limit = self.profile.memory.bytes_max;
        if waiting < limit as i64 {
            return wrong(17, format!("a call was refused when {waiting} bytes of {limit} waited"));
        }
        Ok(())
    }

    /// Handles the end of a call. A refused request must not be applied.
    pub(crate) fn call_ended(&mut self, answered: &Answered) -> Outcomes {
        let Some(node) = &mut self.node else { return Ok(()) };
        let Some(Open { asked, .. }) = node.admission.open.remove(&answered.call.number) else {
            return wrong(7, format!("a call without a caller is answered {:?}", answered.result));
        };
        let is_refused = match &answered.result {
            Ok(answer) => answer.result.is_err(),
            Err(error) => matches!(error, NoAnswer::Refused(_)),
        };
        if let (true, Some(request)) = (is_refused, asked.request) {
            let unapplied = node.admission.unapplied.entry(request).or_default();
            *unapplied -= 1;
            if *unapplied < 0 {
                let (shard, result) = (answered.shard, &answered.result);
                return wrong(7, format!("shard {shard}: a request is applied, and is refused: {result:?}"));
            }
        }
        Ok(())
    }

    /// Checks that the last entry of a shard, if it applies a client's request, applies one that was accepted in this life.
    pub(crate) fn check_applied(&mut self, shard: ShardId) -> Outcomes {
        let Some(entry) = self.model.last_entry(shard) else { return Ok(()) };
        let is_request = matches!(
            entry.cause,
            Cause::Request { .. } | Cause::Idempotent { .. } | Cause::Anonymous | Cause::Suspected { .. }
        );
        let index = entry.index;
        let (true, Some(call)) = (is_request, self.model.call_of(shard, index)) else { return Ok(()) };
        let node = self.node.as_mut().expect("it has appended the entry");
        let unapplied = node.admission.unapplied.entry((shard, call)).or_default();
        *unapplied -= 1;
        if *unapplied < 0 {
            let what =
                format!("shard {shard}: entry {index} applies a request that was refused or never came");
            return wrong(7, what);
        }
        Ok(())
    }

    /// Whether the log is so far behind that no handler may begin.
    pub(crate) fn is_pressed(&self) -> bool {
        let limit = self.profile.memory.uncommitted_bytes_max as i64;
        self.node.as_ref().is_some_and(|node| node.parts.memory_account()[0] >= limit)
    }

    /// Notes the reason for which a part waits.
    pub(crate) fn note_wait(&mut self, part: PartId, until: Time) {
        let Some(node) = &self.node else { return };
        match part {
            // A part without a step sleeps until it is rung.
            PartId::Step(_) => self.marks.hit(Mark::StepCrowded),
            PartId::Checkpoints => {
                let deadline = node.parts.checkpoints().and_then(|part| part.part.driver().deadline());
                if deadline.is_none_or(|deadline| until < deadline) {
                    self.marks.hit(Mark::Paced);
                }
            }
            _ => {}
        }
    }

    /// Invariant 17 for memory: between two turns the account of the node's memory is what its shards and calls hold.
    pub(crate) fn check_memory(&self) -> Outcomes {
        let Some(node) = self.node.as_ref().filter(|_| !self.is_ending()) else { return Ok(()) };
        let account = node.parts.memory_account();
        let [uncommitted, outboxes, requests, queries, stuck] = account;
        let mut held = [0, stage::outcome_bytes(), 0];
        let has_begun =
            |shard: &&Shard| node.admission.begun.contains(&node.parts.worker_of(shard.state().shard()));
        for shard in node.shards().filter(has_begun) {
            held[0] += (shard.uncommitted_bytes() + shard.answer_bytes()) as i64;
            held[1] += (shard.state().outbox_bytes() + shard.outcome_bytes()) as i64;
            held[2] += shard.query_bytes() as i64;
        }
        let open = &node.admission.open;
        let bytes = |is_query: bool| -> i64 {
            open.values().filter(|open| open.asked.is_query == is_query).map(|open| open.bytes).sum()
        };
        let (calls, asking) = (bytes(false), bytes(true));
        // A query's bytes go from one account to another when its shard releases it.
        let runs = |part: &PartId| matches!(part, PartId::Query(_)) && node.parts.has_begun(*part);
        let no_query = asking == 0 && !node.parts.bells().any(|(part, _)| runs(&part));
        let is_sound = uncommitted == held[0]
            && outboxes == held[1]
            && (calls..=calls + asking).contains(&requests)
            && queries >= held[2]
            && stuck >= 0
            && (!no_query || (queries, stuck) == (held[2], 0));
        if is_sound {
            return Ok(());
        }
        let what = format!(
            "the account of memory is {account:?}, and shards hold {held:?}, calls {calls} and queries {asking} bytes"
        );
        wrong(17, what)
    }

    /// As [`World::check_memory`] for a node at rest: its account is empty, but for queries that do not end.
    pub(crate) fn check_memory_at_rest(&self) -> Outcomes {
        self.check_memory()?;
        let node = self.node.as_ref().expect("a node at rest lives");
        match node.parts.memory_account() {
            [0, 0, 0, ..] => Ok(()),
            account => wrong(17, format!("the node rests, and the account of its memory is {account:?}")),
        }
    }
}
