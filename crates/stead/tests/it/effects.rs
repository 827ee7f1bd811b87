//! Timers, tasks, cells, dead letters, idempotency keys: effects of handlers and clients beyond a plain call.

use crate::patience::{await_some, await_until};
use crate::services::{Account, Ask, Look, Way, await_answer, builder, key};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use stead::{
    CallError, Caller, Context, Never, Node, Process, Progress, QueryContext, RawCall, RawError, Refusal,
    ServiceOptions, StepContext, Task, Time,
};

#[test]
fn a_timer_fires_once_over_a_kill_even_when_the_clock_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let noon = Time(1_700_000_000_000_000);
    let node = builder(dir.path()).wall_clock(move || noon).open().unwrap();
    let client = node.blocking_client();
    client.call::<Account>(&key("a"), Ask::Later { amount: 100, after_ms: 1 }).unwrap();
    client.call::<Account>(&key("b"), Ask::Later { amount: 100, after_ms: 3_600_000 }).unwrap();
    await_answer(&node, "a", 100);
    node.kill();
    let morning = Time(noon.0 - 3_600_000_000);
    let node = builder(dir.path()).wall_clock(move || morning).open().unwrap();
    let client = node.blocking_client();
    client.call::<Account>(&key("a"), Ask::Later { amount: 100, after_ms: 1 }).unwrap();
    await_answer(&node, "a", 200);
    assert_eq!(client.query::<Account>(&key("b"), Look::Balance).unwrap(), 0);
    node.shutdown();
    let evening = Time(noon.0 + 7_200_000_000);
    let node = builder(dir.path()).wall_clock(move || evening).clock_confirm(Duration::ZERO).open().unwrap();
    await_answer(&node, "b", 100);
}

#[test]
fn an_idempotency_key_gets_the_first_answer_after_a_restart_too() {
    for way in Way::ALL {
        let dir = tempfile::tempdir().unwrap();
        let node = builder(dir.path()).open().unwrap();
        let client = way.client(&node);
        assert_eq!(client.call_idempotent::<Account>(&key("a"), b"k1", Ask::Deposit(5)).unwrap(), 5);
        assert_eq!(client.call_idempotent::<Account>(&key("a"), b"k2", Ask::Deposit(5)).unwrap(), 10);
        node.kill();
        let node = builder(dir.path()).open().unwrap();
        let client = way.client(&node);
        assert_eq!(client.call_idempotent::<Account>(&key("a"), b"k1", Ask::Deposit(5)).unwrap(), 5);
        let error = client.call_idempotent::<Account>(&key("a"), b"k1", Ask::Deposit(6)).unwrap_err();
        assert_eq!(error, CallError::Raw(RawError::Refused(Refusal::IdempotencyConflict)));
        // The key of another principal is another key.
        let other = client.with_principal("other");
        assert_eq!(other.call_idempotent::<Account>(&key("a"), b"k1", Ask::Deposit(6)).unwrap(), 16);
    }
}

#[test]
fn a_message_whose_handler_panics_becomes_a_dead_letter_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::builder(dir.path())
        .service::<Account>(ServiceOptions::default().shards(2))
        .service::<Courier>(ServiceOptions::default().shards(1).attempts_max(2))
        .segment_bytes(1 << 20)
        .open()
        .unwrap();
    let client = node.blocking_client();
    client.call::<Courier>(&1, Deliver { to: key("a"), ask: Ask::Panic }).unwrap();
    client.call::<Courier>(&1, Deliver { to: key("a"), ask: Ask::Deposit(7) }).unwrap();
    await_answer(&node, "a", 7);
    let letters = node.dead_letters("account", None, 1000).unwrap().dead_letters;
    assert_eq!(letters.len(), 1);
    assert!(letters[0].reason.contains("as asked"), "{}", letters[0].reason);
    assert_eq!((letters[0].process.as_str(), letters[0].sender.as_str()), ("a", "1"));
    assert!(matches!(node.dead_letters("unknown", None, 1), Err(RawError::UnknownService { .. })));
}

#[test]
fn what_came_for_a_service_without_code_is_retried_once_the_code_is_back() {
    for way in Way::ALL {
        let dir = tempfile::tempdir().unwrap();
        let with_code = || builder(dir.path()).service::<Courier>(ServiceOptions::default().shards(1));
        with_code().open().unwrap().shutdown();
        let without = Node::builder(dir.path()).service::<Courier>(ServiceOptions::default());
        let node = without.segment_bytes(1 << 20).without_code("account").open().unwrap();
        let deliver =
            |ask| node.blocking_client().call::<Courier>(&1, Deliver { to: key("a"), ask }).unwrap();
        deliver(Ask::Deposit(7));
        deliver(Ask::Panic);
        deliver(Ask::Move { amount: 100, to: key("b") });
        let letters = await_letters(&node, 3);
        assert!(letters.iter().all(|letter| letter.reason == "no code is registered for service account"));
        let shard = letters[0].shard;
        node.shutdown();

        let node = with_code().open().unwrap();
        let client = way.client(&node);
        let retry = |at: usize| client.retry_dead_letter(shard, letters[at].index);
        assert_eq!(retry(0).unwrap().error, None);
        assert_eq!(client.query::<Account>(&key("a"), Look::Balance).unwrap(), 7);
        let error = retry(0).unwrap_err();
        assert!(matches!(error, RawError::Refused(Refusal::NoDeadLetter(_))), "{error}");
        let error = retry(1).unwrap_err();
        assert!(
            matches!(&error, RawError::Refused(Refusal::FailedAgain { reason, .. }) if reason.contains("as asked"))
        );
        assert_eq!(
            retry(2).unwrap().error,
            Some(serde_json::json!({"missing": 93})),
            "an error is an answer"
        );
        assert!(await_letters(&node, 1)[0].reason.contains("as asked"), "the new reason");
        client.drop_dead_letter(shard, letters[1].index).unwrap();
        let error = client.drop_dead_letter(99, 1).unwrap_err();
        assert_eq!(error, RawError::UnknownShard { shard: 99, shards: 5 });
        node.kill();
        let node = with_code().open().unwrap();
        assert_eq!(node.dead_letters("account", None, 1), Ok(stead::DeadLetterPage::default()));
        assert_eq!(node.blocking_client().query::<Account>(&key("a"), Look::Balance).unwrap(), 7);
    }
}

fn await_letters(node: &Node, wanted: usize) -> Vec<stead::DeadLetterInfo> {
    await_some(&format!("{wanted} dead letters"), || {
        let letters = node.dead_letters("account", None, 1000).unwrap().dead_letters;
        (letters.len() == wanted).then_some(letters)
    })
}

/// Sends the messages of its requests.
#[derive(Default, Serialize, Deserialize)]
struct Courier;

#[derive(Serialize, Deserialize)]
struct Deliver {
    to: String,
    ask: Ask,
}

impl Process for Courier {
    const SERVICE: &'static str = "courier";
    type Key = u64;
    type Request = Deliver;
    type Reply = String;
    type Error = Never;
    type Query = stead::NoQuery;
    type Answer = ();

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Deliver) -> Result<String, Never> {
        ctx.send::<Account>(&request.to, request.ask);
        let Caller::Client { principal } = ctx.caller() else { panic!("only clients call") };
        Ok(format!("{principal} at {}", ctx.key()))
    }
}

#[test]
fn raw_calls_get_what_typed_ones_get_and_misuse_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    let client = node.blocking_client();
    let call = |service: &'static str, key: &'static str, json: serde_json::Value| RawCall {
        service,
        key,
        payload: stead::codec::json_to_payload(&json).unwrap(),
        principal: "raw",
        idempotency_key: None,
        seen: None,
        timeout: Duration::from_secs(10),
    };
    let reply = client.call_raw(call("account", "a", serde_json::json!({"Deposit": 5}))).unwrap();
    assert_eq!(stead::codec::payload_to_json(&reply.reply.unwrap()).unwrap(), 5);
    let answer = client.query_raw(call("account", "a", serde_json::json!("Balance"))).unwrap();
    assert_eq!(stead::codec::payload_to_json(&answer.reply.unwrap()).unwrap(), 5);
    let error = client.call_raw(call("unknown", "a", serde_json::json!(1))).unwrap_err();
    assert!(matches!(error, RawError::UnknownService { .. }), "{error}");
    for key in ["", "x".repeat(513).leak()] {
        let error = client.call_raw(call("account", key, serde_json::json!(1))).unwrap_err();
        assert!(matches!(error, RawError::Codec(_)), "{error}");
    }
    let error = client.call_raw(call("account", "a", serde_json::json!({"Deposit": "x"}))).unwrap_err();
    assert!(matches!(&error, RawError::Refused(Refusal::Misuse(_))), "{error}");
}

/// Adds up in steps.
#[derive(Serialize, Deserialize)]
struct Sum {
    next: u64,
    to: u64,
    sum: u64,
}

impl Task for Sum {
    const NAME: &'static str = "sum";
    type Owner = Summer;

    fn step(&mut self, _: &StepContext<'_>) -> Progress {
        self.sum += self.next;
        self.next += 1;
        if self.next > self.to {
            Progress::Done
        } else {
            Progress::Continue(self.next as f64 / self.to as f64)
        }
    }

    fn finish(self) -> Summing {
        Summing::Finished(self.sum)
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Summer {
    results: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
enum Summing {
    Start(u64),
    Finished(u64),
    Note(String, u64),
}

#[derive(Serialize, Deserialize)]
enum SummerQuery {
    Results,
    Tasks,
    Notes(String),
}

impl Process for Summer {
    const SERVICE: &'static str = "summer";
    type Key = String;
    type Request = Summing;
    type Reply = ();
    type Error = Never;
    type Query = SummerQuery;
    type Answer = Vec<u64>;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Summing) -> Result<(), Never> {
        match request {
            Summing::Start(to) => {
                ctx.start_task(Sum { next: 1, to, sum: 0 });
            }
            Summing::Finished(sum) => self.results.push(sum),
            Summing::Note(name, value) => {
                let before: u64 = ctx.cell(name.as_bytes()).unwrap_or(0);
                ctx.put_cell(name.as_bytes(), &(before + value));
            }
        }
        Ok(())
    }

    fn query(&self, ctx: &QueryContext<'_, Self>, query: SummerQuery) -> Result<Vec<u64>, Never> {
        Ok(match query {
            SummerQuery::Results => self.results.clone(),
            SummerQuery::Tasks => ctx.tasks().into_iter().map(|task| task.step).collect(),
            SummerQuery::Notes(prefix) => ctx
                .scan_cells::<u64>(prefix.as_bytes(), b"", 100)
                .into_iter()
                .map(|(_, value)| value)
                .collect(),
        })
    }
}

fn summers(dir: &std::path::Path) -> Node {
    let builder = Node::builder(dir).service::<Summer>(ServiceOptions::default().shards(2)).task::<Sum>();
    builder.segment_bytes(1 << 20).open().unwrap()
}

#[test]
fn a_task_goes_on_where_it_was_after_each_kill() {
    let dir = tempfile::tempdir().unwrap();
    let node = summers(dir.path());
    node.blocking_client().call::<Summer>(&key("a"), Summing::Start(300)).unwrap();
    let mut node = node;
    let mut steps = 0;
    await_until("the task ends", || {
        let client = node.blocking_client();
        let left = client.query::<Summer>(&key("a"), SummerQuery::Tasks).unwrap();
        if let Some(&step) = left.first() {
            assert!(step >= steps, "step {step} comes after {steps}");
            if step >= steps + 100 {
                steps = step;
                node.kill();
                node = summers(dir.path());
            }
        }
        left.is_empty()
    });
    let results = node.blocking_client().query::<Summer>(&key("a"), SummerQuery::Results).unwrap();
    assert_eq!(results, vec![300 * 301 / 2]);
}

#[test]
fn data_without_its_code_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let node = summers(dir.path());
    node.blocking_client().call::<Summer>(&key("a"), Summing::Start(u64::MAX)).unwrap();
    node.kill();
    let before = files(dir.path());
    let refused = |builder: stead::NodeBuilder| builder.open().map(|_| ()).unwrap_err().to_string();
    let text = refused(builder(dir.path()));
    assert!(text.contains("the data holds service summer, for which no code is registered"), "{text}");
    let without_task = || Node::builder(dir.path()).service::<Summer>(ServiceOptions::default());
    let text = refused(without_task());
    assert!(text.contains("the data holds task sum of service summer, for which no code"), "{text}");
    assert!(files(dir.path()) == before, "nothing was changed");

    let node = without_task().segment_bytes(1 << 20).without_code("sum").open().unwrap();
    node.blocking_client().call::<Summer>(&key("a"), Summing::Note("n".to_owned(), 1)).unwrap();
    node.shutdown();
    builder(dir.path()).segment_bytes(1 << 20).without_code("summer").open().unwrap();
}

fn files(dir: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

#[test]
fn cells_are_scanned_by_prefix_in_order_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    let node = summers(dir.path());
    let client = node.blocking_client();
    for (name, value) in [("b2", 2), ("a1", 1), ("b1", 3), ("b2", 5), ("c", 9)] {
        client.call::<Summer>(&key("a"), Summing::Note(name.to_owned(), value)).unwrap();
    }
    node.kill();
    let client = summers(dir.path()).blocking_client();
    let error = client.query::<Summer>(&key("a"), SummerQuery::Notes("b".to_owned())).unwrap_err();
    assert_eq!(error, CallError::Raw(RawError::Stopped), "the node was dropped");
    let node = summers(dir.path());
    let notes = |prefix: &str| {
        node.blocking_client().query::<Summer>(&key("a"), SummerQuery::Notes(prefix.to_owned()))
    };
    assert_eq!(notes("b").unwrap(), vec![3, 7]);
    assert_eq!(notes("").unwrap(), vec![1, 3, 7, 9]);
}
