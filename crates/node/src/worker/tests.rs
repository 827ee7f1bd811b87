//! The sleep of a worker, and its end.

use super::*;
use crate::open::Registered;
use crate::reply::ReplyTo;
use crate::shared::tests::{NoCode, Nothing, shared_with};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use stead_core::ids::{Epoch, Life, SessionId};
use stead_core::replication::lease::Grants;
use stead_core::start::{KnownEpochs, Past, Services, StartPlan};
use stead_core::state::State;

const NOW: Time = Time(5_000_000);

/// A worker with one shard, which its first turn starts.
fn worker(shared: &Arc<Shared<Nothing>>) -> Worker<Nothing> {
    let without_code = BTreeSet::from(["service".to_owned()]);
    let code = Registered { program: shared.program(), without_code: &without_code };
    let services = Services::plan(shared.topology().clone(), &[], &code).unwrap();
    let (shard, none) = (ShardId(0), Epoch(0));
    let past = Past { epoch_floor: none, is_new: true, ended_cleanly: false };
    let plan = StartPlan::new(past, &[KnownEpochs { shard, promised: none, logged: none }]);
    let (replicas, _) = plan.replicas(Life(1), vec![(State::new(shard), None)], &Grants::new(), &services);
    let code = Guarded::new(NoCode, shared, Arc::default());
    Worker::new(shared, 0, replicas, code, 1 << 20)
}

/// Work that a worker cannot do now must not wake it: its turn would change nothing, and it would never sleep.
#[test]
fn a_worker_sleeps_until_the_first_thing_that_it_can_do() {
    let shared = shared_with(&[("service", 1)]);
    let sleep = |deadline: Option<Time>, is_left: bool, is_stopping: bool| {
        let mut worker = worker(&shared);
        worker.deadlines.set(0, deadline);
        worker.local.extend(is_left.then_some((ShardId(0), Input::Tick)));
        worker.stopping = is_stopping;
        let until = worker.idle_until(&shared, NOW, Micros(20_000)).unwrap();
        Micros(until.0 - NOW.0)
    };
    let due = Some(NOW);
    assert_eq!(sleep(None, false, false), CLOCK_LOOK, "it has nothing to do");
    assert_eq!(sleep(due, false, false), Micros(0));
    assert_eq!(sleep(due, false, true), CLOCK_LOOK, "a worker that stops ticks no shard");
    assert_eq!(sleep(None, true, false), PRESSED_LOOK, "inputs were left although the log has caught up");
    shared.memory.change([i64::MAX, 0, 0]);
    assert_eq!(sleep(due, false, false), PRESSED_LOOK, "while the log is behind no shard is ticked");
    assert_eq!(sleep(None, true, false), PRESSED_LOOK);
}

/// What they have not sent is not committed, and may be what the memory is short of.
#[test]
fn replicas_that_are_due_send_although_no_shard_is_ticked() {
    let shared = shared_with(&[("service", 1)]);
    let sends = |is_replicated, deadline| {
        let mut worker = worker(&shared);
        worker.shards[0].is_replicated = is_replicated;
        worker.deadlines.set(0, deadline);
        (0..2).for_each(|_| worker.touch_due(NOW));
        worker.replicated
    };
    assert_eq!(sends(true, Some(NOW)), [0], "once a turn");
    assert!(sends(true, Some(NOW.plus(Micros(1)))).is_empty());
    assert!(sends(true, None).is_empty());
    assert!(sends(false, Some(NOW)).is_empty(), "it has no peers");
}

#[test]
fn a_worker_that_stops_ends_once_its_shards_know_what_is_durable() {
    let shared = shared_with(&[("service", 1)]);
    for is_taken in [false, true] {
        let mut worker = worker(&shared);
        let turn = |worker: &mut Worker<Nothing>| worker.turn(&shared, NOW).unwrap();
        assert_eq!(turn(&mut worker), Turned::Again, "it starts its shard");
        assert_eq!(worker.submitted.len(), 1, "the start is an entry");
        worker.perform_command(&shared, NOW, Command::Stop);
        assert!(matches!(turn(&mut worker), Turned::Until(Some(_))), "the log has not stored the entry yet");
        if is_taken {
            // A turn has taken what is durable, and its slice ended before it reached this shard.
            let (_, reached) = worker.submitted.pop_front().unwrap();
            let (slot, records) = reached[0];
            worker.shards[slot as usize].durable = records;
            worker.shards[slot as usize].is_stored = true;
            worker.stored.push_back(slot);
        } else {
            shared.inboxes[0].set_durable(worker.ticket);
        }
        assert_eq!(turn(&mut worker), Turned::Again, "the shard gets to know it");
        assert_eq!(turn(&mut worker), Turned::Ended);
        shared.inboxes[0].set_durable(0);
    }
}

#[test]
fn a_call_that_came_too_early_goes_on_in_the_turn_in_which_its_shard_serves() {
    let shared = shared_with(&[("service", 1)]);
    let mut worker = worker(&shared);
    let turn = |worker: &mut Worker<Nothing>| worker.turn(&shared, NOW).unwrap();
    turn(&mut worker);
    let deadline = NOW.plus(Micros::from_secs(10));
    let reply_to = ReplyTo { caller: Recipient::Here(()), deadline, timeout: Duration::from_secs(10) };
    let (shard, session, principal) = (ShardId(0), SessionId(7), "alice".into());
    let open = Command::OpenSession { shard, session, principal, reply_to: Some(reply_to) };
    worker.perform_command(&shared, NOW, open);
    assert_eq!(worker.retries.len(), 1, "its shard does not serve yet");
    shared.inboxes[0].set_durable(worker.ticket);
    turn(&mut worker);
    assert!(worker.retries.is_empty() && worker.submitted.len() == 1, "the session is an entry");
}
