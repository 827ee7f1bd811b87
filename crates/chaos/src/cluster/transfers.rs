//! Transfers between accounts: none is lost, none is made twice, and the money stays the same.

use super::clients::{Client, Reasons, TIME_MAX, some_time};
use crate::account::Account;
use crate::ledger::{AGAIN_ONE_IN, Ledger};
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use stead::BlockingClient;

const ACCOUNTS: u32 = 32;
/// One of this many is given up at once, and asked again later.
const SHORT_ONE_IN: u64 = 32;
const PAUSE_MAX_US: u64 = 8_000;
/// Longest time until all money has arrived, once all is healed.
const REST_MAX: Duration = Duration::from_secs(60);

/// Clients of a kind repeat their own requests only: the identity of a request belongs to the kind.
const KINDS: u64 = 2;

/// The requests of all clients, and their answers.
#[derive(Debug)]
pub(crate) struct Transfers(Mutex<Ledger>);

/// The outcome of the transfers.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) answered: usize,
    pub(crate) refused: usize,
    /// Repeated requests with another answer than the first.
    pub(crate) contradicted: u64,
    /// Accounts whose balance is not what the answers make.
    pub(crate) wrong: usize,
    pub(crate) balances: u64,
    pub(crate) paid_in: u64,
    /// The reason for which there are no balances.
    pub(crate) failure: Option<String>,
}

impl Report {
    pub(crate) fn holds(&self) -> bool {
        self.failure.is_none()
            && self.contradicted == 0
            && self.wrong == 0
            && self.balances == self.paid_in
            && self.answered > 0
    }
}

fn kind(client: &Client) -> u64 {
    match client {
        Client::Native(_) => 0,
        Client::Http(_) => 1,
    }
}

impl Transfers {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Ledger::new(ACCOUNTS)))
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes transfers until it is to stop.
    pub(crate) fn run(&self, client: &mut Client, seed: u64, stops: &AtomicBool, reasons: &Reasons) {
        let mut rng = fastrand::Rng::with_seed(seed);
        while !stops.load(Ordering::Relaxed) {
            let number = self.next(kind(client), &mut rng);
            let time = some_time(&mut rng, SHORT_ONE_IN);
            self.ask(client, number, time, reasons);
            thread::sleep(Duration::from_micros(rng.u64(..PAUSE_MAX_US)));
        }
    }

    /// Returns the number of a new request, of one without an answer, or of one that was answered already.
    fn next(&self, kind: u64, rng: &mut fastrand::Rng) -> u64 {
        let mut ledger = self.ledger();
        let of_kind = |number: &u64| number % KINDS == kind;
        let waiting: Vec<_> = ledger.waiting.iter().copied().filter(of_kind).collect();
        if !waiting.is_empty() && rng.u8(..4) == 0 {
            return waiting[rng.usize(..waiting.len())];
        }
        if rng.u64(..AGAIN_ONE_IN) == 0 {
            let some = rng.u64(..ledger.requests.len() as u64 / KINDS) * KINDS + kind;
            if ledger.answers.contains_key(&some) {
                return some;
            }
        }
        // A number of the other kind that is left out is asked by a client of that kind.
        loop {
            let number = ledger.transfer(rng);
            if number % KINDS == kind {
                return number;
            }
        }
    }

    fn ask(&self, client: &mut Client, number: u64, time: Duration, reasons: &Reasons) {
        let (account, request) = self.ledger().requests[number as usize].clone();
        let Some(answer) = client.account(account, &request, number, time, reasons) else { return };
        self.ledger().answered(number, answer);
    }

    /// Asks until all requests are answered. To be called first, so that there is money.
    pub(crate) fn finish(&self, clients: &mut [Client; 2], reasons: &Reasons) -> Result<(), String> {
        let until = Instant::now() + REST_MAX;
        loop {
            let waiting: Vec<_> = self.ledger().waiting.iter().copied().collect();
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!(
                    "{} transfers have no answer after {} s",
                    waiting.len(),
                    REST_MAX.as_secs()
                ));
            }
            for number in waiting {
                self.ask(&mut clients[(number % KINDS) as usize], number, TIME_MAX, reasons);
            }
        }
    }

    /// Compares the balances with the answers, once no client runs any more and all is healed.
    pub(crate) fn check(&self, clients: &mut [Client; 2], reasons: &Reasons) -> Report {
        let mut report = Report { paid_in: self.ledger().paid_in(), ..Report::default() };
        let balances = self.finish(clients, reasons).and_then(|()| {
            let Client::Native(client) = &clients[0] else { return Err("no native client".to_owned()) };
            balances(client, report.paid_in)
        });
        let ledger = self.ledger();
        report.answered = ledger.answers.len();
        report.refused = ledger.refused();
        report.contradicted = ledger.contradicted;
        match balances {
            Ok(balances) => {
                report.wrong = ledger.wrong(&balances);
                report.balances = balances.iter().sum();
            }
            Err(failure) => report.failure = Some(failure),
        }
        report
    }
}

/// Reads all balances, until they make the sum: then no money is on its way, as none is made.
fn balances(client: &BlockingClient, sum: u64) -> Result<Vec<u64>, String> {
    let until = Instant::now() + REST_MAX;
    loop {
        let all = (0..ACCOUNTS).map(|account| client.query::<Account>(&account, ()));
        let all: Result<Vec<u64>, _> = all.collect();
        match all {
            Ok(all) if all.iter().sum::<u64>() == sum || Instant::now() > until => return Ok(all),
            Err(error) if Instant::now() > until => return Err(format!("no balances: {error}")),
            _ => thread::sleep(Duration::from_millis(20)),
        }
    }
}
