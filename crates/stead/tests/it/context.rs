//! Uses every method of `Context` and `QueryContext` in a handler.

use crate::patience::await_until;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use stead::{
    BlockingClient, CallError, Caller, Context, EffectError, Limit, Never, NoQuery, Node, NodeBuilder,
    Process, Progress, QueryContext, RawError, Refusal, RetryPolicy, ServiceOptions, StepContext, Task,
    TaskId, TaskState, Time, TimerId,
};

/// An order that is paid, or cancelled by its timeout.
#[derive(Default, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    paid: bool,
    timeout: Option<TimerId>,
    packing: Option<TaskId>,
    opened: Option<Time>,
    heard: Vec<String>,
}

#[derive(Serialize, Deserialize)]
enum Ask {
    Open {
        timeout_ms: u64,
    },
    OpenUntil(Time),
    Pay,
    Expired,
    Pack {
        boxes: u32,
    },
    Packed,
    StopPacking,
    /// Starts a task that calls a carrier and fails this many times.
    Ship {
        failures: u32,
    },
    Shipped,
    Hear,
    TellLater {
        to: String,
        after_ms: u64,
    },
    TakeBack,
    TellOther(String),
    Draw,
    Put(String, u32),
    Delete(String),
    Sum(String),
    Forget,
    Wrong(Wrong),
}

/// Uses that the library refuses with a panic, which must point to this file.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Wrong {
    Send,
    SendAfter,
    SetTimer,
    SetTimerAt,
    StartTask,
    PutCell,
    Cell,
    ScanCells,
}

#[derive(Serialize, Deserialize)]
enum Look {
    State,
    Cells(String),
    WrongCell,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Seen {
    key: String,
    exists: bool,
    principal: String,
    time: Time,
    paid: bool,
    open: bool,
    heard: Vec<String>,
    tasks: Vec<(String, u32, Option<String>)>,
    cells: Vec<u32>,
}

/// Packs boxes until it is stopped, or one step for each box.
#[derive(Serialize, Deserialize)]
struct Packing {
    left: u32,
}

impl Task for Packing {
    const NAME: &'static str = "packing";
    type Owner = Order;

    fn step(&mut self, _: &StepContext<'_>) -> Progress {
        self.left -= 1;
        if self.left == 0 { Progress::Done } else { Progress::Continue(0.5) }
    }

    fn finish(self) -> Ask {
        Ask::Packed
    }
}

/// Calls a carrier, and fails this many times.
#[derive(Serialize, Deserialize)]
struct Shipping {
    failures: u32,
}

impl Task for Shipping {
    const NAME: &'static str = "shipping";
    type Owner = Order;

    fn step(&mut self, ctx: &StepContext<'_>) -> Progress {
        if ctx.retries() < self.failures {
            self.failures = 0;
            return Progress::Retry(format!("the carrier is closed ({})", ctx.retries()));
        }
        Progress::Done
    }

    fn retry() -> RetryPolicy {
        RetryPolicy { delay_min: Duration::from_millis(1), retries_max: 3, ..RetryPolicy::default() }
    }

    fn finish(self) -> Ask {
        Ask::Shipped
    }
}

/// A task that is registered with no node of these tests.
#[derive(Serialize, Deserialize)]
struct Unknown;

impl Task for Unknown {
    const NAME: &'static str = "unknown";
    type Owner = Order;

    fn step(&mut self, _: &StepContext<'_>) -> Progress {
        Progress::Done
    }

    fn finish(self) -> Ask {
        Ask::Hear
    }
}

/// A service that is registered with no node of these tests.
#[derive(Default, Serialize, Deserialize)]
struct Nowhere;

impl Process for Nowhere {
    const SERVICE: &'static str = "nowhere";
    type Key = String;
    type Request = Vec<u8>;
    type Reply = ();
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, _: &mut Context<'_, Self>, _: Vec<u8>) -> Result<(), Never> {
        Ok(())
    }
}

fn packing_state() -> TaskState {
    let name = "packing".to_owned();
    TaskState { id: TaskId(0), name, step: 0, progress: 0.0, retries: 0, failure: None, retry_at: None }
}

fn caller_name(caller: Caller<'_>) -> String {
    match caller {
        Caller::Client { principal } => format!("client {principal}"),
        Caller::Process { service, key } => format!("process {service}/{key}"),
        Caller::Timer { .. } => "timer".to_owned(),
        Caller::Task { .. } => "task".to_owned(),
    }
}

impl Process for Order {
    const SERVICE: &'static str = "order";
    type Key = String;
    type Request = Ask;
    type Reply = Vec<u64>;
    type Error = Never;
    type Query = Look;
    type Answer = Seen;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Ask) -> Result<Vec<u64>, Never> {
        let mut reply = Vec::new();
        match request {
            Ask::Open { timeout_ms } => {
                self.opened = Some(ctx.time());
                self.timeout = Some(ctx.set_timer(Duration::from_millis(timeout_ms), Ask::Expired));
            }
            Ask::OpenUntil(at) => self.timeout = Some(ctx.set_timer_at(at, Ask::Expired)),
            Ask::Pay => {
                let timeout = self.timeout.take().expect("an order is opened before it is paid");
                self.paid = ctx.cancel_timer(timeout);
                assert!(!ctx.cancel_timer(timeout), "it is cancelled already");
            }
            Ask::Ship { failures } => self.packing = Some(ctx.start_task(Shipping { failures })),
            Ask::Expired | Ask::Packed | Ask::Shipped => {
                self.heard.push(caller_name(ctx.caller()));
                self.timeout = None;
            }
            Ask::Pack { boxes } => {
                let id = ctx.start_task(Packing { left: boxes });
                let state = TaskState { id, name: "packing".to_owned(), step: 0, ..packing_state() };
                assert_eq!(ctx.task(id), Some(state.clone()));
                assert_eq!(ctx.tasks(), vec![state]);
                self.packing = Some(id);
            }
            Ask::StopPacking => {
                let id = self.packing.take().expect("it packs");
                reply.push(u64::from(ctx.cancel_task(id)));
                reply.push(u64::from(ctx.cancel_task(id)));
                assert_eq!(ctx.task(id), None);
            }
            Ask::TellLater { to, after_ms } => {
                self.timeout = Some(ctx.send_after::<Self>(Duration::from_millis(after_ms), &to, Ask::Hear));
            }
            Ask::TakeBack => {
                let message = self.timeout.take().expect("a message waits");
                reply.push(u64::from(ctx.cancel_timer(message)));
            }
            Ask::Hear => self.heard.push(caller_name(ctx.caller())),
            Ask::TellOther(other) => {
                assert_ne!(*ctx.key(), other);
                ctx.send::<Self>(&other, Ask::Hear);
                ctx.try_send::<Self>(&other, Ask::Hear).expect("the service is there");
                let error =
                    ctx.try_send::<Nowhere>(&other, Vec::new()).expect_err("the service is not there");
                assert_eq!(error, EffectError::Limit(Limit::UnknownService("nowhere".to_owned())));
            }
            Ask::Draw => {
                let (epoch, index) = ctx.place();
                reply.extend([ctx.random().u64(..), ctx.random().u64(..), epoch.0, index.0]);
            }
            Ask::Put(cell, value) => ctx.put_cell(cell.as_bytes(), &value),
            Ask::Delete(cell) => ctx.delete_cell(cell.as_bytes()),
            Ask::Sum(prefix) => {
                let cells = ctx.scan_cells::<u32>(prefix.as_bytes(), &[], usize::MAX);
                reply.extend(cells.iter().map(|(_, value)| u64::from(*value)));
                for (cell, value) in cells {
                    assert_eq!(ctx.cell::<u32>(&cell), Some(value));
                }
            }
            Ask::Forget => ctx.forget(),
            Ask::Wrong(wrong) => self.go_wrong(ctx, wrong),
        }
        Ok(reply)
    }

    fn query(&self, ctx: &QueryContext<'_, Self>, query: Look) -> Result<Seen, Never> {
        let Caller::Client { principal } = ctx.caller() else { panic!("only clients ask") };
        if matches!(query, Look::WrongCell) {
            let _: Option<String> = ctx.cell(b"a1");
        }
        let cells = match query {
            Look::Cells(prefix) => ctx.scan_cells::<u32>(prefix.as_bytes(), &[], 10),
            _ => ctx.cell::<u32>(b"a1").map(|value| (b"a1".to_vec(), value)).into_iter().collect(),
        };
        Ok(Seen {
            key: ctx.key().clone(),
            exists: ctx.exists(),
            principal: principal.to_owned(),
            time: ctx.time(),
            paid: self.paid,
            open: self.timeout.is_some(),
            heard: self.heard.clone(),
            tasks: ctx.tasks().into_iter().map(|task| (task.name, task.retries, task.failure)).collect(),
            cells: cells.into_iter().map(|(_, value)| value).collect(),
        })
    }
}

/// The lines of `go_wrong`; each of its panics must be reported at one of them.
const WRONG_LINES: std::ops::Range<u32> = line!()..line!() + 20;

impl Order {
    fn go_wrong(&self, ctx: &mut Context<'_, Self>, wrong: Wrong) {
        let large = || Ask::Put("x".repeat(17 << 20), 0);
        match wrong {
            Wrong::Send => ctx.send::<Nowhere>(&"a".to_owned(), Vec::new()),
            Wrong::SendAfter => drop(ctx.send_after::<Nowhere>(Duration::ZERO, &"a".to_owned(), Vec::new())),
            Wrong::SetTimer => drop(ctx.set_timer(Duration::ZERO, large())),
            Wrong::SetTimerAt => drop(ctx.set_timer_at(ctx.time(), large())),
            Wrong::StartTask => drop(ctx.start_task(Unknown)),
            Wrong::PutCell => ctx.put_cell(&[0; 1025], &0),
            Wrong::Cell => drop(ctx.cell::<String>(b"a1")),
            Wrong::ScanCells => drop(ctx.scan_cells::<String>(b"a", b"", 1)),
        }
    }
}

fn open(dir: &Path) -> Node {
    builder(dir).open().unwrap()
}

fn open_at(dir: &Path, now: Time) -> Node {
    builder(dir).wall_clock(move || now).open().unwrap()
}

fn builder(dir: &Path) -> NodeBuilder {
    Node::builder(dir)
        .service::<Order>(ServiceOptions::default().shards(2))
        .task::<Packing>()
        .task::<Shipping>()
        .segment_bytes(1 << 20)
}

fn key(name: &str) -> String {
    name.to_owned()
}

fn look(client: &BlockingClient, name: &str) -> Seen {
    client.query::<Order>(&key(name), Look::State).unwrap()
}

/// Looks until the condition holds.
fn await_seen(client: &BlockingClient, name: &str, is_so: impl Fn(&Seen) -> bool) -> Seen {
    let mut last = None;
    await_until(&format!("progress of {name}"), || is_so(last.insert(look(client, name))));
    last.unwrap()
}

#[test]
fn a_timeout_that_is_stored_is_cancelled_by_the_payment_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let client = node.blocking_client();
    client.call::<Order>(&key("paid"), Ask::Open { timeout_ms: 3_600_000 }).unwrap();
    client.call::<Order>(&key("due"), Ask::OpenUntil(Time(0))).unwrap();
    assert_eq!(await_seen(&client, "due", |seen| !seen.open).heard, ["timer"]);
    node.kill();
    let node = open(dir.path());
    let client = node.blocking_client();
    assert!(look(&client, "paid").open);
    client.call::<Order>(&key("paid"), Ask::Pay).unwrap();
    let seen = look(&client, "paid");
    assert!(seen.paid && !seen.open && seen.exists && seen.time > Time(0), "{seen:?}");
    assert_eq!((seen.key.as_str(), seen.principal.as_str()), ("paid", "local"));
}

#[test]
fn tasks_are_seen_cancelled_and_come_back_to_their_process() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let client = node.blocking_client();
    client.call::<Order>(&key("a"), Ask::Pack { boxes: 3 }).unwrap();
    let seen = await_seen(&client, "a", |seen| !seen.heard.is_empty());
    assert_eq!((seen.heard, seen.tasks), (vec![key("task")], Vec::new()));
    client.call::<Order>(&key("b"), Ask::Pack { boxes: u32::MAX }).unwrap();
    assert_eq!(look(&client, "b").tasks[0].0, "packing");
    assert_eq!(client.call::<Order>(&key("b"), Ask::StopPacking).unwrap(), [1, 0]);
    assert!(look(&client, "b").tasks.is_empty());
}

#[test]
fn a_step_is_tried_again_until_it_succeeds_and_given_up_after_its_last_retry() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let client = node.blocking_client();
    client.call::<Order>(&key("a"), Ask::Ship { failures: 3 }).unwrap();
    assert_eq!(await_seen(&client, "a", |seen| !seen.heard.is_empty()).heard, ["task"]);
    client.call::<Order>(&key("b"), Ask::Ship { failures: 4 }).unwrap();
    await_seen(&client, "b", |seen| seen.tasks.is_empty());
    let letters = node.dead_letters("order", None, 1000).unwrap().dead_letters;
    assert_eq!(letters.len(), 1, "{letters:?}");
    let reason = "step 0 of task shipping failed 4 times, the last time: the carrier is closed (3)";
    assert_eq!(letters[0].reason, reason);
}

#[test]
fn a_message_with_a_delay_arrives_after_a_restart_unless_it_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let noon = Time(1_700_000_000_000_000);
    let node = open_at(dir.path(), noon);
    let client = node.blocking_client();
    for (from, to) in [("a", "b"), ("c", "d")] {
        client.call::<Order>(&key(from), Ask::TellLater { to: key(to), after_ms: 3_600_000 }).unwrap();
    }
    node.kill();
    let node = open_at(dir.path(), noon);
    let client = node.blocking_client();
    assert_eq!(client.call::<Order>(&key("c"), Ask::TakeBack).unwrap(), [1]);
    assert!(look(&client, "b").heard.is_empty());
    node.kill();
    let node = open_at(dir.path(), Time(noon.0 + 3_600_000_000));
    let client = node.blocking_client();
    assert_eq!(await_seen(&client, "b", |seen| !seen.heard.is_empty()).heard, ["process order/a"]);
    assert!(look(&client, "d").heard.is_empty());
}

#[test]
fn messages_name_their_sender_and_cells_are_the_process_s_own() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let client = node.blocking_client();
    client.call::<Order>(&key("a"), Ask::TellOther(key("b"))).unwrap();
    let seen = await_seen(&client, "b", |seen| seen.heard.len() == 2);
    assert_eq!(seen.heard, ["process order/a", "process order/a"]);
    for (cell, value) in [("a2", 2), ("a1", 1), ("b1", 3), ("a3", 4)] {
        client.call::<Order>(&key("a"), Ask::Put(key(cell), value)).unwrap();
    }
    client.call::<Order>(&key("a"), Ask::Delete(key("a3"))).unwrap();
    assert_eq!(client.call::<Order>(&key("a"), Ask::Sum(key("a"))).unwrap(), [1, 2]);
    assert_eq!(client.query::<Order>(&key("a"), Look::Cells(key("b"))).unwrap().cells, [3]);
    assert!(look(&client, "b").cells.is_empty());
    client.call::<Order>(&key("a"), Ask::Forget).unwrap();
    let seen = look(&client, "a");
    assert!(!seen.exists, "its state is gone, its cells stay: {seen:?}");
    assert_eq!(seen.cells, [1]);
    let drawn = |name| client.call::<Order>(&key(name), Ask::Draw).unwrap();
    let (first, second) = (drawn("a"), drawn("a"));
    assert!(first[0] != second[0] && first[0] != first[1] && first[3] != second[3], "{first:?} {second:?}");
}

#[test]
fn a_panic_of_the_library_points_to_the_line_that_called_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let client = node.blocking_client();
    client.call::<Order>(&key("a"), Ask::Put(key("a1"), 1)).unwrap();
    let all = [
        Wrong::Send,
        Wrong::SendAfter,
        Wrong::SetTimer,
        Wrong::SetTimerAt,
        Wrong::StartTask,
        Wrong::PutCell,
        Wrong::Cell,
        Wrong::ScanCells,
    ];
    for wrong in all {
        let error = client.call::<Order>(&key("a"), Ask::Wrong(wrong)).unwrap_err();
        let CallError::Raw(RawError::Refused(Refusal::Panicked(reason))) = error else { panic!("{error:?}") };
        let place = reason.rsplit("tests/it/context.rs:").next().unwrap();
        let line: u32 = place.split(':').next().unwrap().parse().unwrap_or_else(|_| panic!("{reason}"));
        assert!(WRONG_LINES.contains(&line), "{reason}");
    }
    let error = client.query::<Order>(&key("a"), Look::WrongCell).unwrap_err();
    assert!(error.to_string().contains("tests/it/context.rs"), "{error}");
}
