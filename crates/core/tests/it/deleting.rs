//! An operator deletes processes.

use crate::world::World;
use stead_core::blob::Blob;
use stead_core::calls::{Identity, Refusal};
use stead_core::entry::Cause;
use stead_core::ids::{BodyHash, CallToken, ShardId, StepNumber, TaskId, TimerId};
use stead_core::key::Key;
use stead_core::record::{Kind, RecordKey};
use stead_core::reply::Reply;
use stead_core::shard::{Input, StepOutcome};

impl World {
    fn delete(&mut self, process: &str, records: Vec<RecordKey>) -> Result<u64, Refusal> {
        let (token, shard) = (CallToken(1 << 40), self.shard_of(process));
        let process = Key::new(process).unwrap();
        self.give(shard, Input::Delete { token, process, records });
        self.settle();
        let answer = self.answers.remove(&token).unwrap().result?;
        let Reply::Ok(count) = answer else { panic!("{answer:?}") };
        Ok(u64::from_be_bytes((*count).try_into().unwrap()))
    }

    fn keys(&self, process: &str, kind: Kind) -> Vec<RecordKey> {
        let records = self.shard(process).state().records();
        let keys = records.iter().filter_map(|(key, _)| RecordKey::from_bytes(key));
        keys.filter(|key| key.kind() == kind).collect()
    }
}

/// Returns two keys of one shard.
fn neighbours(world: &World) -> (String, String) {
    let other = (0..).map(|n| format!("a{n}")).find(|key| world.shard_of(key) == world.shard_of("a"));
    ("a".to_owned(), other.unwrap())
}

#[test]
fn a_process_goes_with_its_timers_and_tasks_and_no_other_does() {
    let mut world = World::new();
    let (a, b) = neighbours(&world);
    for key in [&a, &b] {
        world.call(key, "add x\ntimer 60000 add t\ntask 1").unwrap();
    }
    let shard: ShardId = world.shard_of(&a);
    let all = |world: &World| {
        let kinds = [Kind::Process, Kind::Timer, Kind::Task, Kind::Idempotency];
        kinds.iter().flat_map(|kind| world.keys("a", *kind)).collect::<Vec<_>>()
    };
    let before = all(&world);
    assert_eq!(before.len(), 6);
    // Named twice, of another process, or missing: only its own three records are deleted.
    let named = [before.clone(), before, vec![RecordKey::timer(TimerId(7)), RecordKey::cell(&a, b"none")]];
    assert_eq!(world.delete(&a, named.concat()), Ok(3));
    assert_eq!((world.state(&a).as_str(), world.state(&b).as_str()), ("", "x"));
    let entry = world.log[&shard].last().unwrap();
    assert_eq!((&entry.cause, &*entry.process, entry.writes.len()), (&Cause::Delete, "a", 3));
    assert_eq!(world.delete(&a, all(&world)), Ok(0), "there is nothing more");
    assert_eq!(world.log[&shard].last().unwrap().cause, Cause::Delete, "and no entry says so");
    // The step that ran no longer has an effect, and neither has the timer; the same holds after a restart.
    let (_, id, _) = world.tasks.iter().find(|(_, _, task)| *task.process == *a).unwrap().clone();
    world.end_step(shard, id, StepNumber(0), StepOutcome::Done(Blob::from(b"add late".as_slice())));
    for _ in 0..2 {
        world.settle();
        assert_eq!(all(&world).len(), 3);
        world.restart();
        world.settle();
    }
    world.pass(60_000);
    assert_eq!((world.state(&a).as_str(), world.state(&b).as_str()), ("", "xt"));
    // The process may be created again.
    world.call(&a, "add new").unwrap();
    assert_eq!(world.state(&a), "new");
}

#[test]
fn a_kept_reply_outlives_its_process() {
    let mut world = World::new();
    let identity =
        || Identity::Idempotency { key: Blob::from(b"k".as_slice()), body_hash: BodyHash([1; 16]) };
    let first = world.request("a", "add x", identity());
    world.settle();
    let mut named = world.keys("a", Kind::Idempotency);
    named.extend([RecordKey::process("a"), RecordKey::task(TaskId(3))]);
    assert_eq!(world.delete("a", named), Ok(1));
    let again = world.request("a", "add x", identity());
    world.settle();
    assert_eq!(world.answer(again).unwrap().result, world.answer(first).unwrap().result);
    assert_eq!(world.state("a"), "", "a retry is answered, not handled again");
}
