//! A service under the simulator: many runs with crashes, power cuts, lost and duplicated requests, slow and full
//! disks, each determined by its seed.
//!
//!     cargo run --release -p stead-testkit --example simulated -- [--seed FIRST] [--seeds N] [--strict]
//!
//! A seed that fails is printed with the command that repeats it. With `--strict` the runs require something false,
//! that no message is ever in flight, to show what a failure looks like.

use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use stead::{Context, Cut, DeadLetterCause, Never, Process, QueryContext};
use stead_testkit::{Call, Failed, Report, Rng, Sim};

const COMMAND: &str = "cargo run --release -p stead-testkit --example simulated";

#[derive(Default, Serialize, Deserialize)]
struct Account {
    balance: i64,
}

#[derive(Serialize, Deserialize)]
enum Request {
    Pay { to: u8, amount: i64 },
    PayLater { to: u8, amount: i64 },
    Receive(i64),
}

impl Process for Account {
    const SERVICE: &'static str = "account";
    type Key = u8;
    type Request = Request;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = i64;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<(), Never> {
        match request {
            Request::Pay { to, amount } => {
                self.balance -= amount;
                ctx.send::<Self>(&to, Request::Receive(amount));
            }
            Request::PayLater { to, amount } => {
                self.balance -= amount;
                ctx.send_after::<Self>(Duration::from_secs(1), &to, Request::Receive(amount));
            }
            Request::Receive(amount) => self.balance += amount,
        }
        Ok(())
    }

    fn internal(request: &Request) -> bool {
        matches!(request, Request::Receive(_))
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<i64, Never> {
        Ok(self.balance)
    }

    /// Money that has left one account and not yet arrived in the other is in messages.
    fn check(cut: &Cut<'_>) -> Result<(), String> {
        let mut sum = 0;
        for account in cut.processes::<Self>() {
            sum += account?.1.balance;
        }
        for message in cut.in_flight::<Self>().chain(cut.delayed::<Self>()) {
            if let Request::Receive(amount) = message?.1 {
                sum += amount;
            }
        }
        for letter in cut.dead_letters::<Self>() {
            let letter = letter?;
            // A request that was given up moved no money.
            if letter.cause == DeadLetterCause::Message
                && let Some(Request::Receive(amount)) = letter.request
            {
                sum += amount;
            }
        }
        if sum == 0 { Ok(()) } else { Err(format!("{sum} too much")) }
    }
}

/// Runs one seed; every second one crashes often and gives causes up early.
fn simulate(seed: u64, strict: bool) -> Result<Report, Failed> {
    let mut sim = Sim::new(seed).service::<Account>(3).calls(|rng| {
        let (from, to, amount) = (rng.u8(..9), rng.u8(..9), rng.i64(1..50));
        match rng.u8(..5) {
            0 | 1 => Call::request::<Account>(&from, &Request::Pay { to, amount }),
            2 | 3 => Call::request::<Account>(&from, &Request::PayLater { to, amount }),
            _ => Call::query::<Account>(&from, &()),
        }
    });
    if seed % 2 == 1 {
        sim = sim.attempts_max(2).crash_every(50);
    }
    if strict {
        sim = sim.check(|cut| match cut.in_flight::<Account>().count() {
            0 => Ok(()),
            messages => Err(format!("{messages} messages are in flight")),
        });
    }
    sim.run()
}

/// Returns the number after an option.
fn number(option: &str) -> Option<u64> {
    std::env::args().skip_while(|arg| arg != option).nth(1)?.parse().ok()
}

/// Prints a line. Goes on if its reader has gone: the exit code still says whether a seed failed.
fn print(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn main() -> ExitCode {
    let first = number("--seed").unwrap_or_else(|| Rng::new().u64(..1 << 48));
    let seeds = number("--seeds").unwrap_or(10);
    let strict = std::env::args().any(|arg| arg == "--strict");
    let (next, failed, answered) = (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0));
    let run = |seed| match simulate(seed, strict) {
        Ok(report) => {
            answered.fetch_add(report.answered, Ordering::Relaxed);
        }
        Err(failure) => {
            failed.fetch_add(1, Ordering::Relaxed);
            let more = if strict { " --strict" } else { "" };
            print(&format!("{failure}\nrepeat it: {COMMAND} -- --seed {seed} --seeds 1{more}"));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                // Each thread takes the next seed until none is left.
                let taken = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
                taken.take_while(|seed| *seed < first + seeds).for_each(run);
            });
        }
    });
    let (failed, answered) = (failed.into_inner(), answered.into_inner());
    print(&format!("{seeds} seeds from {first}: {failed} failed, {answered} answers"));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
