//! Messages and tasks beside one message that ends the process, under kills: nothing but that message may be given up.

use crate::Run;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::io::{self, BufRead};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};
use stead::{Context, Never, Node, Process, Progress, QueryContext, ServiceOptions, StepContext, Task};
use stead_flights::conductor::Executioner;
use stead_flights::life::{Life, LifeError};
use stead_flights::pool::report;

const PROCESSES: u32 = 50;
const MESSAGES: u64 = 1000;
const TASKS: u64 = 100;
/// Position among the other messages of the one that ends the process.
const POISON_AT: u64 = 500;
/// Longest time to wait for a life that is not killed.
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The first line that the application reads.
#[derive(Debug, Serialize, Deserialize)]
struct Open {
    data: PathBuf,
    suspect_for: Duration,
    step: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Ready,
    /// No work is left.
    Over {
        messages: u64,
        tasks: u64,
        /// Reasons of the dead letters other than the poison.
        innocents: Vec<String>,
        poisons: usize,
    },
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Counter {
    messages: u64,
    tasks: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Send the messages and start the tasks.
    Begin {
        step: Duration,
    },
    Message,
    Poison,
    TaskDone,
}

impl Process for Counter {
    const SERVICE: &'static str = "counter";
    type Key = u32;
    type Request = Request;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = (u64, u64);

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<(), Never> {
        match request {
            Request::Begin { step } => {
                for message in 0..MESSAGES {
                    if message == POISON_AT {
                        ctx.send::<Self>(&7, Request::Poison);
                    }
                    ctx.send::<Self>(&((message % u64::from(PROCESSES)) as u32), Request::Message);
                }
                for _ in 0..TASKS {
                    ctx.start_task(Work { step });
                }
            }
            Request::Message => self.messages += 1,
            Request::Poison => std::process::abort(),
            Request::TaskDone => self.tasks += 1,
        }
        Ok(())
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<(u64, u64), Never> {
        Ok((self.messages, self.tasks))
    }
}

/// A task of one step.
#[derive(Debug, Serialize, Deserialize)]
struct Work {
    step: Duration,
}

impl Task for Work {
    const NAME: &'static str = "work";
    type Owner = Counter;

    fn step(&mut self, _: &StepContext<'_>) -> Progress {
        sleep(self.step);
        Progress::Done
    }

    fn finish(self) -> Request {
        Request::TaskDone
    }
}

/// Runs the application: it begins once, and then lives until no work is left.
pub(crate) fn serve() -> Result<(), String> {
    let Some(Ok(open)) = io::stdin().lock().lines().next() else { return Ok(()) };
    let open: Open = serde_json::from_str(&open).map_err(|error| error.to_string())?;
    let node = Node::builder(&open.data)
        .service::<Counter>(ServiceOptions::default().shards(8))
        .task::<Work>()
        .task_threads(1)
        .suspect_for(open.suspect_for)
        .open()
        .map_err(|error| error.to_string())?;
    let client = node.blocking_client();
    report(&Report::Ready);
    let begin = Request::Begin { step: open.step };
    client.call_idempotent::<Counter>(&0, b"begin", begin).map_err(|error| error.to_string())?;
    loop {
        let (mut messages, mut tasks) = (0, 0);
        for key in 0..PROCESSES {
            let counts = client.query::<Counter>(&key, ()).map_err(|error| error.to_string())?;
            (messages, tasks) = (messages + counts.0, tasks + counts.1);
        }
        let letters =
            node.dead_letters("counter", None, 1000).map_err(|error| error.to_string())?.dead_letters;
        if messages + tasks + letters.len() as u64 == MESSAGES + TASKS + 1 {
            let poison = serde_json::json!("Poison");
            let innocents = letters.iter().filter(|letter| letter.payload.as_ref() != Some(&poison));
            let innocents: Vec<String> = innocents.map(|letter| letter.reason.clone()).collect();
            let poisons = letters.len() - innocents.len();
            report(&Report::Over { messages, tasks, innocents, poisons });
            node.shutdown();
            return Ok(());
        }
        sleep(LOOK_EVERY);
    }
}

/// Kills the application repeatedly, and returns whether only the poison was given up.
pub(crate) fn run(run: &Run<'_>, executioner: &mut dyn Executioner) -> Result<bool, Box<dyn Error>> {
    let mut rng = fastrand::Rng::with_seed(run.seed);
    let open =
        Open { data: run.data_dir.join("innocents"), suspect_for: run.life_max * 2, step: run.life_max / 6 };
    let (mut kills, mut deaths, mut life) = (0, 0, 0);
    loop {
        life += 1;
        let command = run.command("innocents-child");
        let mut child: Life<Report> = Life::start(&command, &open, &run.dir.join(format!("stderr-{life}")))?;
        // It is killed only until it has been killed often enough.
        let until = match kills < run.kills {
            true => child.started + run.life_max.mul_f64(0.2 + 0.8 * rng.f64()),
            false => Instant::now() + PATIENCE,
        };
        match receive_end(&mut child, until) {
            Ok(Some(Report::Over { messages, tasks, innocents, poisons })) => {
                child.wait(PATIENCE)?;
                print_line!(
                    "{kills} kills, {deaths} ends by the poison, {messages} of {MESSAGES} messages and {tasks} of {TASKS} tasks handled, {poisons} poison and {} innocents given up",
                    innocents.len()
                );
                for reason in &innocents {
                    print_line!("an innocent was given up: {reason}");
                }
                return Ok((messages, tasks, poisons) == (MESSAGES, TASKS, 1) && innocents.is_empty());
            }
            Ok(_) if kills < run.kills => {
                kills += 1;
                executioner.end(&mut || child.kill())?;
            }
            Ok(_) => return Err(child.silent(PATIENCE).into()),
            Err(LifeError::Ended { .. }) if deaths < 20 => deaths += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

fn receive_end(child: &mut Life<Report>, until: Instant) -> Result<Option<Report>, LifeError> {
    while let Some(report) = child.receive(until)? {
        if let Report::Over { .. } = report {
            return Ok(Some(report));
        }
    }
    Ok(None)
}
