//! The surroundings of a simulated cluster's nodes: a service of lists, clocks, and the ends of calls.

use super::bug::ClusterBug;
use std::cell::RefCell;
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Call, Caller as CalledBy, Misuse, Outcome, Refusal};
use stead_core::capture::View;
use stead_core::channel::Outbox;
use stead_core::handler::{Handler, QueryPlace, Txn};
use stead_core::ids::{Epoch, Index, ShardId, Time};
use stead_core::key::Key;
use stead_core::reply::Reply;
use stead_core::shard::{Effect, Shard, StepOutcome};
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_node::{Caller, Clock, Env, NoAnswer, Program, StepCall, Watch};

/// The only service.
pub(super) const SERVICE: &str = "lists";
/// Number of processes that clients call, and of those that get messages.
pub(super) const PROCESSES: u32 = 8;
/// One in this many requests sends a message.
const SENDS: u32 = 2;
/// One in this many numbers is refused as a message, and becomes a dead letter.
const REFUSED: u32 = 16;

thread_local! {
    static STAND: RefCell<Stand> = RefCell::default();
}

/// The world as the part sees it that has its turn.
#[derive(Default)]
struct Stand {
    steady: Time,
    wall: Time,
    bug: Option<ClusterBug>,
    seen: Seen,
}

/// The results of a turn besides what the node left for others.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) made: Vec<Made>,
    pub(super) answers: Vec<(u64, Result<Answer, NoAnswer>)>,
    /// Calls that were dropped.
    pub(super) unanswered: Vec<u64>,
}

/// An entry that a primary has made.
pub(super) struct Made {
    pub(super) shard: ShardId,
    pub(super) epoch: Epoch,
    pub(super) index: Index,
    pub(super) bytes: Vec<u8>,
}

/// Runs what a node does at a time of its clocks; returns what the world sees of it.
pub(super) fn play<T>(
    (steady, wall): (Time, Time),
    bug: Option<ClusterBug>,
    run: impl FnOnce() -> T,
) -> (T, Seen) {
    STAND.with_borrow_mut(|stand| (stand.steady, stand.wall, stand.bug) = (steady, wall, bug));
    let done = run();
    (done, STAND.with_borrow_mut(|stand| std::mem::take(&mut stand.seen)))
}

/// Forgets what was seen.
pub(super) fn clear() {
    STAND.take();
}

pub(super) struct ClusterEnv;

impl Env for ClusterEnv {
    type Program = Lists;
    type Caller = Line;
    type Clock = Clocks;
    type Watch = Witness;
}

pub(super) struct Clocks;

impl Clock for Clocks {
    fn steady(&self) -> Time {
        STAND.with_borrow(|stand| stand.steady)
    }

    fn wall(&self) -> Time {
        STAND.with_borrow(|stand| stand.wall)
    }
}

/// The node's end of a call, by the call's number.
pub(super) struct Line {
    pub(super) call: u64,
    pub(super) is_answered: bool,
}

impl Caller for Line {
    fn answer(mut self, result: Result<Answer, NoAnswer>) {
        self.is_answered = true;
        STAND.with_borrow_mut(|stand| stand.seen.answers.push((self.call, result)));
    }

    fn is_gone(&self) -> bool {
        false
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.is_answered {
            STAND.with_borrow_mut(|stand| stand.seen.unanswered.push(self.call));
        }
    }
}

/// Sees the entries that primaries make, and reports records as durable too early for a planted bug.
pub(super) struct Witness;

impl Watch for Witness {
    fn effects(&self, shard: &Shard, effects: &mut Vec<Effect>) {
        let (outboxes, shard) = (shard.state().outboxes(), shard.state().shard());
        STAND.with_borrow_mut(|stand| {
            let mut early = Vec::new();
            for effect in effects.iter() {
                let Effect::Append { epoch, index, bytes } = effect else { continue };
                if stand.bug == Some(ClusterBug::MessagesBeforeLog) {
                    let of_entry = |(to, outbox): (ShardId, &Outbox)| {
                        let messages =
                            outbox.messages.iter().filter(|message| message.index == *index).cloned();
                        Effect::Deliver { to, messages: messages.collect(), again: false }
                    };
                    early.extend(outboxes.iter().map(of_entry));
                }
                let (epoch, index, bytes) = (*epoch, *index, bytes.to_vec());
                stand.seen.made.push(Made { shard, epoch, index, bytes });
            }
            effects.extend(early);
        });
    }

    fn trims(&self, top: &mut Index) {
        STAND.with_borrow(|stand| {
            if stand.bug == Some(ClusterBug::TrimmedTooFar) {
                *top = Index(u64::MAX);
            }
        });
    }

    fn snapshot_counts(&self, counts: &mut bool) {
        STAND.with_borrow(|stand| *counts |= stand.bug == Some(ClusterBug::UncommittedSnapshot));
    }

    fn durable(&self, _: usize, ticket: &mut u64) {
        STAND.with_borrow(|stand| {
            if stand.bug == Some(ClusterBug::StoredBeforeSync) {
                *ticket = u64::MAX;
            }
        });
    }
}

/// Lists of numbers. A request appends its number, and is answered with the length; one in [`SENDS`] has another process append it
/// too, by a message, which refuses some numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lists;

/// Returns the process that clients call, by its number.
pub(super) fn called(process: u32) -> Key {
    Key::new(&format!("p{process}")).expect("a short key")
}

/// Returns the process that gets the message of a request.
fn messaged(number: u32) -> Key {
    Key::new(&format!("q{}", number % PROCESSES)).expect("a short key")
}

/// Returns the number in a request or a message.
pub(super) fn number_in(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_be_bytes)
}

/// Whether a number is refused as a message.
pub(super) fn is_refused(number: u32) -> bool {
    number.is_multiple_of(REFUSED)
}

impl Handler for Lists {
    fn handle(&mut self, call: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
        let number = number_in(call.payload).expect("the world sends numbers");
        let is_from_client = matches!(call.caller, CalledBy::Client { .. });
        if !is_from_client && is_refused(number) {
            return Outcome::Refused(Misuse::Request("it is one of those".to_owned()));
        }
        let mut list = txn.state().map_or_else(Vec::new, <[u8]>::to_vec);
        list.extend_from_slice(call.payload);
        let len = (list.len() / 4) as u32;
        txn.put_state(Blob::from(list)).expect("a short list");
        if is_from_client && number.is_multiple_of(SENDS) {
            let payload = Blob::from(call.payload);
            txn.send(SERVICE, messaged(number), payload).expect("a short message");
        }
        Outcome::Replied(Reply::Ok(Blob::from(len.to_be_bytes().as_slice())))
    }

    fn query(&mut self, _: &Call<'_>, view: View<'_>) -> Outcome {
        let len = view.state().map_or(0, |list| list.len() / 4) as u32;
        Outcome::Replied(Reply::Ok(Blob::from(len.to_be_bytes().as_slice())))
    }

    fn place_query(&mut self, _: &Call<'_>, _: Option<&Blob>) -> Result<QueryPlace, Refusal> {
        Ok(QueryPlace::Here)
    }
}

impl Program for Lists {
    type Handler = Self;

    fn handler(&self, _: &Arc<Topology>, _: u64) -> Self {
        *self
    }

    fn query(&self, call: &Call<'_>, view: View<'_>, _: &Topology) -> Outcome {
        Handler::query(&mut { *self }, call, view)
    }

    fn step(&self, _: &StepCall<'_>) -> StepOutcome {
        unreachable!("no process starts a task")
    }

    fn has_service(&self, name: &str) -> bool {
        name == SERVICE
    }

    fn has_task(&self, _: &str) -> bool {
        false
    }

    fn checked_services(&self) -> Vec<String> {
        Vec::new()
    }

    fn check(&self, _: &str, _: &Topology, _: &[State]) -> Result<(), String> {
        Ok(())
    }
}
