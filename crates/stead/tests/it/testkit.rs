//! The test kit finds what is wrong with a user's service.

use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use stead::testkit::{Call, Failed, Report, Sim};
use stead::{Context, Cut, Never, NoQuery, Process};

thread_local! {
    /// Where the wrong account keeps its balance: crashes and restores know nothing of it.
    static BALANCES: RefCell<BTreeMap<u8, i64>> = const { RefCell::new(BTreeMap::new()) };
}

/// An account; with `OUTSIDE` it trusts its memory more than its state.
#[derive(Default, Serialize, Deserialize)]
struct Account<const OUTSIDE: bool> {
    balance: i64,
}

#[derive(Serialize, Deserialize)]
enum Request {
    Pay { to: u8, amount: i64 },
    Receive(i64),
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
            Request::Receive(amount) => amount,
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
        for message in cut.in_flight::<Self>() {
            if let Request::Receive(amount) = message?.1 {
                sum += amount;
            }
        }
        if sum == 0 { Ok(()) } else { Err(format!("{sum} coins were made from nothing")) }
    }
}

fn run<const OUTSIDE: bool>(seed: u64) -> Result<Report, Failed> {
    BALANCES.with_borrow_mut(BTreeMap::clear);
    let pay = |rng: &mut stead::testkit::Rng| {
        let request = Request::Pay { to: rng.u8(..9), amount: rng.i64(1..50) };
        Call::request::<Account<OUTSIDE>>(&rng.u8(..9), &request)
    };
    Sim::new(seed).service::<Account<OUTSIDE>>(3).calls(pay).run()
}

#[test]
fn state_outside_of_its_process_is_found_and_the_seed_repeats_it() {
    let failed: Vec<Failed> = (0..10).filter_map(|seed| run::<true>(seed).err()).collect();
    let first = failed.first().expect("ten runs with crashes find it");
    assert!(first.to_string().contains("coins were made from nothing"), "{first}");
    assert!(first.to_string().contains(&format!("Sim::new({})", first.seed)), "{first}");
    assert_eq!(run::<true>(first.seed), Err(first.clone()));
}

#[test]
fn the_same_service_with_its_state_inside_holds() {
    for seed in 0..10 {
        let report = run::<false>(seed).unwrap_or_else(|failed| panic!("{failed}"));
        assert!(report.answered > 0, "seed {seed}");
    }
}
