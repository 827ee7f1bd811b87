//! Tests each reader that a cut offers to a check.

use crate::patience::await_until;
use crate::services::key;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::time::Duration;
use stead::{
    CheckpointOptions, Context, Cut, DeadLetterCause, Never, NoQuery, Node, Process, Progress, QueryContext,
    RetryPolicy, ServiceOptions, StepContext, Task,
};

const HOUR: Duration = Duration::from_secs(3600);

type Look = Box<dyn FnMut(&Cut<'_>)>;

thread_local! {
    /// The body of the check, on the thread that verifies.
    static LOOK: RefCell<Option<Look>> = const { RefCell::new(None) };
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Keeper {
    calls: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Ask {
    Cell(String, u32),
    /// Sends a message in an hour, to a keeper or to another service.
    Delay {
        to: String,
        other: bool,
    },
    /// Sets a timer for an hour.
    Remind,
    /// Starts a task that fails repeatedly.
    Work(u32),
    /// Starts a task whose step panics, or whose result does.
    Sicken {
        by_result: bool,
    },
    /// Sends itself a message or sets a timer at which it panics.
    Lose {
        by_timer: bool,
    },
    Panic(u32),
}

impl Process for Keeper {
    const SERVICE: &'static str = "keeper";
    type Key = String;
    type Request = Ask;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = Vec<u32>;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, ask: Ask) -> Result<(), Never> {
        self.calls += 1;
        let own = ctx.key().clone();
        match ask {
            Ask::Cell(cell, value) => ctx.put_cell(cell.as_bytes(), &value),
            Ask::Delay { to, other: false } => drop(ctx.send_after::<Self>(HOUR, &to, Ask::Panic(1))),
            Ask::Delay { to, other: true } => drop(ctx.send_after::<Other>(HOUR, &to, 2)),
            Ask::Remind => drop(ctx.set_timer(HOUR, Ask::Panic(3))),
            Ask::Work(left) => drop(ctx.start_task(Busy { left })),
            Ask::Sicken { by_result } => drop(ctx.start_task(Sick { by_result })),
            Ask::Lose { by_timer: true } => drop(ctx.set_timer(Duration::ZERO, Ask::Panic(4))),
            Ask::Lose { by_timer: false } => ctx.send::<Self>(&own, Ask::Panic(5)),
            Ask::Panic(_) => panic!("as asked"),
        }
        Ok(())
    }

    /// Returns the number of failures of each of its tasks.
    fn query(&self, ctx: &QueryContext<'_, Self>, (): ()) -> Result<Vec<u32>, Never> {
        Ok(ctx.tasks().iter().map(|task| task.retries).collect())
    }

    fn check(cut: &Cut<'_>) -> Result<(), String> {
        LOOK.with_borrow_mut(|look| look.iter_mut().for_each(|look| look(cut)));
        Ok(())
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Other;

impl Process for Other {
    const SERVICE: &'static str = "other";
    type Key = String;
    type Request = u32;
    type Reply = ();
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, _: &mut Context<'_, Self>, _: u32) -> Result<(), Never> {
        Ok(())
    }
}

/// Completes one step, and fails in the next.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Busy {
    left: u32,
}

impl Task for Busy {
    const NAME: &'static str = "busy";
    type Owner = Keeper;

    fn step(&mut self, ctx: &StepContext<'_>) -> Progress {
        if ctx.step() > 0 {
            return Progress::Retry(format!("task {} of {}", ctx.id().0, ctx.owner()));
        }
        self.left -= 1;
        Progress::Continue(0.25)
    }

    fn retry() -> RetryPolicy {
        RetryPolicy { delay_min: HOUR, delay_max: HOUR, retries_max: 9 }
    }

    fn finish(self) -> Ask {
        Ask::Remind
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Sick {
    by_result: bool,
}

impl Task for Sick {
    const NAME: &'static str = "sick";
    type Owner = Keeper;

    fn step(&mut self, _: &StepContext<'_>) -> Progress {
        assert!(self.by_result, "as asked");
        Progress::Done
    }

    fn finish(self) -> Ask {
        Ask::Panic(6)
    }
}

fn open(dir: &std::path::Path) -> Node {
    Node::builder(dir)
        .service::<Keeper>(ServiceOptions::default().shards(3).attempts_max(1))
        .service::<Other>(ServiceOptions::default().shards(2).attempts_max(1))
        .task::<Busy>()
        .task::<Sick>()
        .segment_bytes(256 << 10)
        .checkpoints(CheckpointOptions { interval: None, ..CheckpointOptions::default() })
        .open()
        .unwrap()
}

/// Makes these calls to a fresh node, waits until `settled`, and looks at a cut.
fn look_after(
    asks: impl IntoIterator<Item = (&'static str, Ask)>,
    settled: impl Fn(&Node) -> bool,
    look: impl FnMut(&Cut<'_>) + 'static,
) {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    for (process, ask) in asks {
        node.blocking_client().call::<Keeper>(&key(process), ask).unwrap();
    }
    await_until("the node is settled", || settled(&node));
    let number = node.checkpoint_blocking().unwrap().number;
    LOOK.set(Some(Box::new(look)));
    assert!(node.verify(number).unwrap().holds());
    LOOK.set(None);
}

fn at_once(_: &Node) -> bool {
    true
}

fn sorted<T: Ord>(found: impl Iterator<Item = T>) -> Vec<T> {
    let mut found: Vec<T> = found.collect();
    found.sort();
    found
}

#[test]
fn processes_and_process_are_the_states_of_one_service() {
    let asks = [("a", Ask::Remind), ("b", Ask::Remind), ("a", Ask::Remind)];
    look_after(asks, at_once, |cut| {
        let calls =
            cut.processes::<Keeper>().map(|found| found.map(|(key, keeper)| (key, keeper.calls)).unwrap());
        assert_eq!(sorted(calls), [(key("a"), 2), (key("b"), 1)]);
        assert_eq!(cut.process::<Keeper>(&key("a")).unwrap(), Some(Keeper { calls: 2 }));
        assert_eq!(cut.process::<Keeper>(&key("c")).unwrap(), None);
        assert!(cut.process::<Other>(&key("a")).unwrap().is_none());
        assert_eq!(cut.processes::<Other>().count(), 0);
    });
}

#[test]
fn cell_is_one_cell_of_one_process() {
    let asks = [("a", Ask::Cell(key("x"), 1)), ("a", Ask::Cell(key("x"), 2)), ("b", Ask::Cell(key("y"), 3))];
    look_after(asks, at_once, |cut| {
        assert_eq!(cut.cell::<Keeper, u32>(&key("a"), b"x").unwrap(), Some(2));
        assert_eq!(cut.cell::<Keeper, u32>(&key("a"), b"y").unwrap(), None);
        assert_eq!(cut.cell::<Keeper, u32>(&key("b"), b"y").unwrap(), Some(3));
        assert_eq!(cut.cell::<Other, u32>(&key("a"), b"x").unwrap(), None);
        // Bytes of another type are an error, not a panic.
        cut.cell::<Keeper, String>(&key("a"), b"x").unwrap_err();
    });
}

#[test]
fn cells_are_those_of_all_processes_of_one_service() {
    let asks = [("a", Ask::Cell(key("x"), 1)), ("a", Ask::Cell(key("y"), 2)), ("b", Ask::Cell(key("x"), 3))];
    look_after(asks, at_once, |cut| {
        let cells = sorted(cut.cells::<Keeper, u32>().map(Result::unwrap));
        let cell = |process, cell: &[u8], value| (key(process), cell.to_vec(), value);
        assert_eq!(cells, [cell("a", b"x", 1), cell("a", b"y", 2), cell("b", b"x", 3)]);
        assert_eq!(cut.cells::<Other, u32>().count(), 0);
        assert!(cut.cells::<Keeper, String>().all(|cell| cell.is_err()));
    });
}

#[test]
fn delayed_messages_are_apart_from_timers_and_by_their_receiver() {
    let to = |other| Ask::Delay { to: key("b"), other };
    look_after([("a", to(false)), ("a", to(true)), ("a", Ask::Remind)], at_once, |cut| {
        let delayed: Vec<_> = cut.delayed::<Keeper>().map(Result::unwrap).collect();
        assert_eq!(delayed, [(key("b"), Ask::Panic(1))]);
        let delayed: Vec<_> = cut.delayed::<Other>().map(Result::unwrap).collect();
        assert_eq!(delayed, [(key("b"), 2)]);
        let timers: Vec<_> = cut.timers::<Keeper>().map(Result::unwrap).collect();
        assert_eq!(timers, [(key("a"), Ask::Panic(3))]);
        assert_eq!((cut.timers::<Other>().count(), cut.in_flight::<Keeper>().count()), (0, 0));
    });
}

/// Whether all tasks of `a` have failed once.
fn have_failed(node: &Node) -> bool {
    let retries = node.blocking_client().query::<Keeper>(&key("a"), ()).unwrap();
    retries.iter().all(|retries| *retries == 1)
}

#[test]
fn tasks_are_those_that_are_not_finished_with_their_progress() {
    look_after([("a", Ask::Work(7)), ("a", Ask::Work(8))], have_failed, |cut| {
        let tasks: Vec<_> = cut.tasks::<Keeper>().map(Result::unwrap).collect();
        assert_eq!(tasks.len(), 2);
        for (process, task) in tasks {
            assert_eq!((process, task.name.as_str(), task.step), (key("a"), "busy", 1));
            let failure = format!("task {} of a", task.id.0);
            assert_eq!((task.progress, task.retries, task.failure), (0.25, 1, Some(failure)));
            assert!(task.retry_at.is_some());
        }
        assert_eq!(cut.tasks::<Other>().count(), 0);
    });
}

#[test]
fn task_states_are_the_states_of_one_kind() {
    look_after([("a", Ask::Work(7)), ("a", Ask::Work(8))], have_failed, |cut| {
        let mut left: Vec<_> = cut.task_states::<Busy>().map(|found| found.unwrap()).collect();
        left.sort_by_key(|(_, busy)| busy.left);
        assert_eq!(left, [(key("a"), Busy { left: 6 }), (key("a"), Busy { left: 7 })]);
        assert_eq!(cut.task_states::<Sick>().count(), 0);
    });
}

#[test]
fn dead_letters_say_what_they_were() {
    let asks = [
        ("message", Ask::Lose { by_timer: false }),
        ("timer", Ask::Lose { by_timer: true }),
        ("step", Ask::Sicken { by_result: false }),
        ("result", Ask::Sicken { by_result: true }),
    ];
    let all = |node: &Node| node.dead_letters("keeper", None, 1000).unwrap().dead_letters.len() == 4;
    look_after(asks, all, |cut| {
        let mut letters: Vec<_> = cut.dead_letters::<Keeper>().map(Result::unwrap).collect();
        letters.sort_by(|a, b| a.key.cmp(&b.key));
        let found: Vec<_> = letters
            .iter()
            .map(|letter| (letter.key.as_str(), &letter.cause, letter.request.as_ref()))
            .collect();
        let step = DeadLetterCause::Step { name: "sick".to_owned() };
        assert_eq!(
            found,
            [
                ("message", &DeadLetterCause::Message, Some(&Ask::Panic(5))),
                ("result", &DeadLetterCause::TaskResult, Some(&Ask::Panic(6))),
                ("step", &step, None),
                ("timer", &DeadLetterCause::Timer, Some(&Ask::Panic(4))),
            ]
        );
        assert!(letters.iter().all(|letter| letter.reason.contains("panicked: as asked")), "{letters:?}");
        // The state of a task whose step was given up can be read only as its own type.
        assert_eq!(letters[2].task::<Sick>(), Some(Sick { by_result: false }));
        assert_eq!((letters[2].task::<Busy>(), letters[0].task::<Sick>()), (None, None));
        assert_eq!((cut.dead_letters::<Other>().count(), cut.tasks::<Keeper>().count()), (0, 0));
    });
}
