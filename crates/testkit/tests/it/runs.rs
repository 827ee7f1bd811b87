//! The test kit finds faults of a user's service.

use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use stead::{Context, Cut, DeadLetterCause, Never, NoQuery, Process};
use stead_testkit::{Call, Failed, Report, Sim};

/// Seeds of the slow test: about 5 seconds in a debug build.
const SEEDS: u64 = 130;

thread_local! {
    /// The balances of the wrong account, outside of its state: crashes and restores do not change them.
    static BALANCES: RefCell<BTreeMap<u8, i64>> = const { RefCell::new(BTreeMap::new()) };
}

/// An account; with `OUTSIDE` it uses these balances instead of its state.
#[derive(Default, Serialize, Deserialize)]
struct Account<const OUTSIDE: bool> {
    balance: i64,
}

#[derive(Serialize, Deserialize)]
enum Request {
    Pay {
        to: u8,
        amount: i64,
    },
    PayLater {
        to: u8,
        amount: i64,
    },
    Receive(i64),
    /// Sends [`Request::Lose`], at which every account panics.
    PayLost {
        to: u8,
        amount: i64,
    },
    Lose(i64),
}

impl<const OUTSIDE: bool> Process for Account<OUTSIDE> {
    const SERVICE: &'static str = "account";
    type Key = u8;
    type Request = Request;
    type Reply = ();
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<(), Never> {
        let change = match request {
            Request::Pay { to, amount } => {
                ctx.send::<Self>(&to, Request::Receive(amount));
                -amount
            }
            Request::PayLater { to, amount } => {
                ctx.send_after::<Self>(Duration::from_secs(1), &to, Request::Receive(amount));
                -amount
            }
            Request::Receive(amount) => amount,
            Request::PayLost { to, amount } => {
                ctx.send::<Self>(&to, Request::Lose(amount));
                -amount
            }
            Request::Lose(_) => panic!("this account takes nothing"),
        };
        self.balance += change;
        if OUTSIDE {
            self.balance = BALANCES.with_borrow_mut(|balances| {
                let balance = balances.entry(*ctx.key()).or_default();
                *balance += change;
                *balance
            });
        }
        Ok(())
    }

    fn check(cut: &Cut<'_>) -> Result<(), String> {
        let mut sum = 0;
        for account in cut.processes::<Self>() {
            sum += account?.1.balance;
        }
        for message in cut.in_flight::<Self>().chain(cut.delayed::<Self>()) {
            if let Request::Receive(amount) | Request::Lose(amount) = message?.1 {
                sum += amount;
            }
        }
        for letter in cut.dead_letters::<Self>() {
            let letter = letter?;
            if letter.cause == DeadLetterCause::Message
                && let Some(Request::Receive(amount) | Request::Lose(amount)) = letter.request
            {
                sum += amount;
            }
        }
        if sum == 0 { Ok(()) } else { Err(format!("{sum} coins were made from nothing")) }
    }
}

fn sim<const OUTSIDE: bool>(seed: u64) -> Sim {
    BALANCES.with_borrow_mut(BTreeMap::clear);
    let pay = |rng: &mut stead_testkit::Rng| {
        let (from, to, amount) = (rng.u8(..9), rng.u8(..9), rng.i64(1..50));
        let request = if rng.bool() { Request::Pay { to, amount } } else { Request::PayLater { to, amount } };
        Call::request::<Account<OUTSIDE>>(&from, &request)
    };
    Sim::new(seed).service::<Account<OUTSIDE>>(3).calls(pay)
}

fn run<const OUTSIDE: bool>(seed: u64) -> Result<Report, Failed> {
    sim::<OUTSIDE>(seed).run()
}

#[test]
fn state_outside_of_its_process_is_found_and_the_seed_repeats_it() {
    // One run in four finds it.
    let first = (0..60).find_map(|seed| run::<true>(seed).err()).expect("sixty runs with crashes find it");
    assert!(first.to_string().contains("coins were made from nothing"), "{first}");
    assert!(first.to_string().contains(&format!("Sim::new({})", first.seed)), "{first}");
    assert!(first.to_string().contains("\n  shard "), "{first}");
    assert!(first.to_string().contains(", process account/"), "{first}");
    assert!((1..=40).contains(&first.recent.len()), "{first}");
    assert_eq!(run::<true>(first.seed).as_ref(), Err(&first));
}

#[test]
fn the_same_service_with_its_state_inside_holds() {
    // A single run may answer nothing: its limits of memory may be too small for any call.
    let answered =
        (0..10).map(|seed| run::<false>(seed).unwrap_or_else(|failed| panic!("{failed}")).answered);
    assert!(answered.sum::<u64>() > 0);
}

/// Slow: some seconds. The account of the documentation, over many seeds of short runs; every second one has many
/// crashes and few attempts.
#[test]
fn the_documented_service_holds_over_many_seeds() {
    let begun = std::time::Instant::now();
    let letters = Rc::new(Cell::new(0));
    for seed in 0..SEEDS {
        let seen = Rc::clone(&letters);
        let mut sim = sim::<false>(seed).events(300).check(move |cut| {
            seen.set(seen.get() + cut.dead_letters::<Account<false>>().count());
            Ok(())
        });
        if seed % 2 == 1 {
            sim = sim.attempts_max(1 + (seed / 2 % 3) as u32).crash_every(30);
        }
        sim.run().unwrap_or_else(|failed| panic!("{failed}"));
    }
    println!("{SEEDS} seeds, {} dead letters in their cuts, {:?}", letters.get(), begun.elapsed());
}

/// Slow: minutes. As above, with the kit's own options.
#[test]
#[ignore = "2,000 seeds of full length: minutes in a debug build"]
fn the_documented_service_holds_over_thousands_of_seeds() {
    for seed in 0..2_000 {
        run::<false>(seed).unwrap_or_else(|failed| panic!("{failed}"));
    }
}

#[test]
fn the_options_of_a_run_decide_its_faults() {
    for seed in 0..5 {
        let run = |sim: Sim| sim.events(300).run().unwrap_or_else(|failed| panic!("{failed}"));
        let quiet = run(sim::<false>(seed).faults(false).clients(2));
        assert_eq!(quiet.lives, 1, "seed {seed}");
        assert!(quiet.answered > 0, "seed {seed}");
        let crashing = run(sim::<false>(seed).faults(false).crash_every(20));
        assert!(crashing.lives > 1, "seed {seed}");
    }
}

#[test]
fn a_check_sees_what_was_given_up_as_a_dead_letter() {
    let letters = Rc::new(Cell::new(0));
    for seed in 0..5 {
        let seen = Rc::clone(&letters);
        let lose = |rng: &mut stead_testkit::Rng| {
            let request = Request::PayLost { to: rng.u8(..9), amount: rng.i64(1..50) };
            Call::request::<Account<false>>(&rng.u8(..9), &request)
        };
        let sim = sim::<false>(seed).calls(lose).calls_max(20).events(300).attempts_max(2);
        let sim = sim.check(move |cut| {
            seen.set(seen.get() + cut.dead_letters::<Account<false>>().count());
            Ok(())
        });
        sim.run().unwrap_or_else(|failed| panic!("{failed}"));
    }
    assert!(letters.get() > 0, "no dead letter in 5 seeds");
}
