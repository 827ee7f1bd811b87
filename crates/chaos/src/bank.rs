//! The bank under kills: the application, and a client that checks it against its answers.

use crate::Run;
use crate::account::{Account, Refused, Request};
use crate::ledger::{AGAIN_ONE_IN, Ledger};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, BufRead};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use stead::{BlockingClient, CallError, CheckpointOptions, Node, ServiceOptions};
use stead_flights::conductor::Executioner;
use stead_flights::life::Life;
use stead_flights::pool::{Clerks, Ticker, report};

const ACCOUNTS: u32 = 64;
/// Transfers that are in flight at a time.
const WINDOW: usize = 32;
const CLERKS: usize = 16;
const CHECKPOINT_EVERY: Duration = Duration::from_millis(150);
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The first line that the bank reads.
#[derive(Debug, Serialize, Deserialize)]
struct Open {
    data: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Perform a request, whose number is also its idempotency key.
    Do {
        number: u64,
        account: u32,
        request: Request,
    },
    /// Report all balances once no message is in flight.
    Balances,
    Stop,
}

#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Ready,
    Done { number: u64, answer: Result<u64, Refused> },
    Undone { number: u64, reason: String },
    Balances(Vec<u64>),
    Checkpoint { failed_checks: Vec<String> },
    CheckpointFailed { reason: String },
    Trouble { reason: String },
}

/// Runs the bank, which reads its commands from standard input.
pub(crate) fn serve() -> Result<(), String> {
    let mut lines = io::stdin().lock().lines();
    let Some(Ok(open)) = lines.next() else { return Ok(()) };
    let open: Open = serde_json::from_str(&open).map_err(|error| error.to_string())?;
    let node = Node::builder(&open.data)
        .service::<Account>(ServiceOptions::default().shards(8))
        .segment_bytes(4 << 20)
        .checkpoints(CheckpointOptions { interval: None, ..CheckpointOptions::default() })
        .open()
        .map_err(|error| error.to_string())?;
    report(&Report::Ready);
    let client = node.blocking_client();
    let clerks =
        Clerks::start(CLERKS, move |(number, account, request)| answer(&client, number, account, request));
    let checkpoints = {
        let node = node.clone();
        Ticker::start(CHECKPOINT_EVERY, move || take_checkpoint(&node))
    };
    for line in lines {
        let line = line.map_err(|error| error.to_string())?;
        match serde_json::from_str(&line).map_err(|error| error.to_string())? {
            Ask::Do { number, account, request } => clerks.serve((number, account, request)),
            Ask::Balances => report(&match balances(&node) {
                Ok(balances) => Report::Balances(balances),
                Err(reason) => Report::Trouble { reason },
            }),
            Ask::Stop => break,
        }
    }
    drop((clerks, checkpoints));
    node.shutdown();
    Ok(())
}

fn answer(client: &BlockingClient, number: u64, account: u32, request: Request) {
    report(&match client.call_idempotent::<Account>(&account, &number.to_be_bytes(), request) {
        Ok(balance) => Report::Done { number, answer: Ok(balance) },
        Err(CallError::Process(refused)) => Report::Done { number, answer: Err(refused) },
        Err(CallError::Raw(error)) => Report::Undone { number, reason: error.to_string() },
    });
}

fn take_checkpoint(node: &Node) {
    report(&match node.checkpoint_blocking() {
        Ok(report) => Report::Checkpoint {
            failed_checks: report.failed_checks.into_iter().map(|check| check.reason).collect(),
        },
        Err(error) => Report::CheckpointFailed { reason: error.to_string() },
    });
}

fn balances(node: &Node) -> Result<Vec<u64>, String> {
    let until = Instant::now() + SILENCE_MAX / 2;
    let mut quiet = 0;
    // Shards are looked at one after the other: only several quiet looks in a row show that no message is in flight.
    while quiet < 3 {
        let on_the_way: u64 =
            node.status().shards.iter().map(|shard| shard.outbox_messages + shard.waiting).sum();
        quiet = if on_the_way == 0 { quiet + 1 } else { 0 };
        if Instant::now() > until {
            return Err(format!("{on_the_way} messages are still in flight"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let client = node.blocking_client();
    (0..ACCOUNTS)
        .map(|account| client.query::<Account>(&account, ()).map_err(|error| error.to_string()))
        .collect()
}

/// The client: its requests, and the answers so far.
struct Client {
    rng: fastrand::Rng,
    ledger: Ledger,
    answered: u64,
    checks: u64,
    failed_checks: Vec<String>,
    checkpoints_failed: BTreeMap<String, u64>,
}

impl Client {
    fn new(seed: u64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            ledger: Ledger::new(ACCOUNTS),
            answered: 0,
            checks: 0,
            failed_checks: Vec::new(),
            checkpoints_failed: BTreeMap::new(),
        }
    }

    /// Returns a new request, or occasionally one that was answered already.
    fn next(&mut self) -> u64 {
        if self.rng.u64(..AGAIN_ONE_IN) == 0 {
            return self.rng.u64(..self.ledger.requests.len() as u64);
        }
        self.ledger.transfer(&mut self.rng)
    }

    fn ask(&self, bank: &mut Life<Report>, number: u64) {
        let (account, request) = self.ledger.requests[number as usize].clone();
        bank.send(&Ask::Do { number, account, request });
    }

    /// Handles a report of the bank; returns true if it was an answer.
    fn take(&mut self, report: Report) -> Result<bool, String> {
        match report {
            Report::Done { number, answer } => {
                self.answered += 1;
                self.ledger.answered(number, answer);
                return Ok(true);
            }
            Report::Checkpoint { failed_checks } => {
                self.checks += 1;
                self.failed_checks.extend(failed_checks);
            }
            Report::CheckpointFailed { reason } => *self.checkpoints_failed.entry(reason).or_default() += 1,
            // It is asked again in the next life.
            Report::Undone { .. } => return Ok(true),
            Report::Trouble { reason } => return Err(reason),
            Report::Ready | Report::Balances(_) => {}
        }
        Ok(false)
    }
}

/// Kills the bank repeatedly, compares, and returns whether every guarantee holds.
pub(crate) fn run(run: &Run<'_>, executioner: &mut dyn Executioner) -> Result<bool, Box<dyn Error>> {
    let mut client = Client::new(run.seed);
    let mut ready = 0;
    for kill in 1..=run.kills {
        let mut bank = start(run, kill)?;
        let wait = run.life_max.mul_f64(client.rng.f64());
        // One in four is killed at a time from its start, which may be during its recovery.
        let until = if client.rng.u8(..4) == 0 { Ok(bank.started + wait) } else { Err(wait) };
        ready += u32::from(live(&mut client, &mut bank, until)?);
        executioner.end(&mut || bank.kill())?;
        for report in bank.remaining() {
            client.take(report)?;
        }
        if kill % 50 == 0 {
            print_line!("{kill} kills");
        }
    }
    let mut bank = start(run, run.kills + 1)?;
    let balances = finish(&mut client, &mut bank)?;
    Ok(print_result(&client, run.kills, ready, &balances))
}

fn start(run: &Run<'_>, life: u32) -> Result<Life<Report>, Box<dyn Error>> {
    let open = Open { data: run.data_dir.join("bank") };
    Ok(Life::start(&run.command("bank-child"), &open, &run.dir.join(format!("stderr-{life}")))?)
}

/// Lets the bank run until a moment, or for a time from when it is ready. Returns whether it became ready.
fn live(
    client: &mut Client,
    bank: &mut Life<Report>,
    until: Result<Instant, Duration>,
) -> Result<bool, Box<dyn Error>> {
    let mut ready = false;
    let mut end = until.unwrap_or(bank.started + SILENCE_MAX);
    while let Some(report) = bank.receive(end)? {
        let asks = match report {
            Report::Ready => {
                ready = true;
                end = until.unwrap_or_else(|wait| Instant::now() + wait);
                for number in &client.ledger.waiting {
                    client.ask(bank, *number);
                }
                WINDOW.saturating_sub(client.ledger.waiting.len())
            }
            report => usize::from(client.take(report)?),
        };
        for _ in 0..asks {
            let number = client.next();
            client.ask(bank, number);
        }
    }
    match until {
        Err(_) if !ready => Err(bank.silent(SILENCE_MAX).into()),
        _ => Ok(ready),
    }
}

fn finish(client: &mut Client, bank: &mut Life<Report>) -> Result<Vec<u64>, Box<dyn Error>> {
    loop {
        let report = bank.receive(Instant::now() + SILENCE_MAX)?.ok_or_else(|| bank.silent(SILENCE_MAX))?;
        match report {
            Report::Ready if client.ledger.waiting.is_empty() => bank.send(&Ask::Balances),
            Report::Ready => {
                for number in &client.ledger.waiting {
                    client.ask(bank, *number);
                }
            }
            Report::Undone { number, .. } => client.ask(bank, number),
            Report::Balances(balances) => {
                bank.send(&Ask::Stop);
                for report in bank.wait(SILENCE_MAX)? {
                    client.take(report)?;
                }
                return Ok(balances);
            }
            report => {
                if client.take(report)? && client.ledger.waiting.is_empty() {
                    bank.send(&Ask::Balances);
                }
            }
        }
    }
}

fn print_result(client: &Client, kills: u32, ready: u32, balances: &[u64]) -> bool {
    let ledger = &client.ledger;
    let (wrong, refused, paid_in) = (ledger.wrong(balances), ledger.refused(), ledger.paid_in());
    let sum: u64 = balances.iter().sum();
    print_line!(
        "{kills} kills ({} while it recovered), {} requests ({refused} refused for lack of money), {} answers, {} checkpoints",
        kills - ready,
        ledger.answers.len(),
        client.answered,
        client.checks
    );
    print_line!(
        "contradicted answers {}, accounts with a wrong balance {wrong}, all balances {sum} of {paid_in}",
        ledger.contradicted
    );
    for check in &client.failed_checks {
        print_line!("a check did not hold: {check}");
    }
    for (reason, times) in &client.checkpoints_failed {
        print_line!("a checkpoint failed {times} times: {reason}");
    }
    wrong == 0
        && sum == paid_in
        && ledger.contradicted == 0
        && client.failed_checks.is_empty()
        && client.answered > 0
}
