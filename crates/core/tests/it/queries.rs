//! A query reads the capture of its shard at its arrival, however late it runs.

use crate::world::{World, ok};
use std::collections::BTreeMap;
use std::time::Duration;
use stead_core::blob::Blob;
use stead_core::calls::{Identity, Refusal};
use stead_core::capture::{Capture, View};
use stead_core::key::Key;

fn text(value: &[u8]) -> String {
    String::from_utf8(value.to_vec()).unwrap()
}

fn cells(view: View<'_>) -> Vec<(String, String)> {
    let found = view.scan_cells(b"", b"", usize::MAX);
    found.into_iter().map(|(cell, value)| (text(&cell), text(&value))).collect()
}

#[test]
fn a_query_that_runs_late_sees_its_process_as_it_was() {
    let mut world = World::new();
    world.holds_queries = true;
    world.call("a", "add x\ncell k 1\ncell l 1\ntask 0").unwrap();
    // Neighbours in the order of keys, on any shards.
    for other in ["a0", "Z", "b"] {
        world.call(other, "cell k other\ntask 0").unwrap();
    }
    world.request("a", "add y\ncell k 2", Identity::None);
    let token = world.query("a");
    assert!(world.readings.is_empty(), "its capture is not committed: it may not run yet");
    assert!(world.shard("a").query_bytes() > 0);
    // More is written before the commit, and after it.
    world.request("a", "add z\ncell k 3\nuncell l", Identity::None);
    world.store(world.shard_of("a"));
    world.call("a", "add !\ncell m 1\ntask 1").unwrap();
    assert_eq!(world.shard("a").query_bytes(), 0);
    let reading = world.readings.pop().expect("its entry is committed");
    assert_eq!(reading.query.token, token);
    let view = reading.capture.view();
    assert_eq!(cells(view), [("k".to_owned(), "2".to_owned()), ("l".to_owned(), "1".to_owned())]);
    assert_eq!(view.cell(b"m"), None);
    let tasks = view.tasks();
    assert_eq!(tasks.len(), 1);
    assert_eq!(view.task(tasks[0].0).as_ref(), Some(&tasks[0].1));
    world.run_query(&reading);
    assert_eq!(world.answer(token).unwrap().result, Ok(ok("xy")));
    assert_eq!(world.state("a"), "xyz!");
}

#[test]
fn a_brief_query_runs_at_once_and_waits_for_the_commit_like_any_other() {
    let mut world = World::new();
    world.script.brief = true;
    world.holds_queries = true;
    world.request("a", "add x", Identity::None);
    let token = world.query("a");
    world.request("a", "add y", Identity::None);
    assert_eq!(world.answer(token), None);
    world.store(world.shard_of("a"));
    assert_eq!(world.answer(token).unwrap().result, Ok(ok("x")));
    assert!(world.readings.is_empty());
}

#[test]
fn a_query_that_is_refused_does_not_wait() {
    let mut world = World::new();
    world.script.refusal = Some(Refusal::Overloaded { retry_after: Duration::from_millis(7) });
    world.request("a", "add x", Identity::None);
    let token = world.query("a");
    let answer = world.answer(token).unwrap();
    assert_eq!(
        (answer.index.0, answer.result.clone()),
        (0, Err(Refusal::Overloaded { retry_after: Duration::from_millis(7) }))
    );
}

/// Captures of processes whose cells are written at random, each compared at the end with a model of its own moment.
#[test]
fn captures_keep_the_cells_of_their_process_and_of_no_other() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut world = World::new();
    let keys = ["p", "pp", "q", "p0", ""].map(|key| format!("k{key}"));
    let mut models: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    let mut captured = Vec::new();
    for _ in 0..300 {
        let key = keys[rng.usize(..keys.len())].as_str();
        let model = models.entry(key).or_default();
        let mut script = Vec::new();
        for _ in 0..rng.usize(1..30) {
            let cell = format!("c{}", rng.u8(..200));
            if rng.u8(..3) == 0 {
                script.push(format!("uncell {cell}"));
                model.remove(&cell);
            } else {
                let value = rng.u32(..).to_string();
                script.push(format!("cell {cell} {value}"));
                model.insert(cell, value);
            }
        }
        world.call(key, &script.join("\n")).unwrap();
        let capture = Capture::new(world.shard(key).state(), &Key::new(key).unwrap());
        captured.push((capture, model.clone()));
    }
    world.shards.iter().for_each(|shard| shard.state().records().check().unwrap());
    for (capture, model) in captured {
        let view = capture.view();
        assert_eq!(cells(view), model.clone().into_iter().collect::<Vec<_>>());
        let cell = format!("c{}", rng.u8(..200));
        let expected = model.get(&cell).map(|value| Blob::from(value.as_bytes()));
        assert_eq!(view.cell(cell.as_bytes()), expected.as_ref());
        let from = view.scan_cells(b"c1", cell.as_bytes(), 5);
        let expected =
            model.range(cell.max("c1".to_owned())..).take_while(|(cell, _)| cell.starts_with("c1"));
        let expected: Vec<_> = expected.take(5).map(|(cell, _)| cell.clone()).collect();
        assert_eq!(from.iter().map(|(cell, _)| text(cell)).collect::<Vec<_>>(), expected);
    }
}
