//! Transfers between accounts: none is lost, none is made twice, and the money stays the same.

use super::clients::{Client, Reasons};
use crate::account::{Account, Refused, Request};
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use stead::BlockingClient;

const ACCOUNTS: u32 = 32;
const PAID_IN: u64 = 1_000;
const AMOUNT_MAX: u64 = 100;
/// One of this many requests repeats one that was answered already.
const AGAIN_ONE_IN: u64 = 8;
/// One of this many is given up at once, and asked again later.
const SHORT_ONE_IN: u64 = 32;
const TIME_MAX: Duration = Duration::from_secs(20);
const TIME_SHORT_MAX: Duration = Duration::from_millis(250);
const PAUSE_MAX_US: u64 = 8_000;
/// Longest time until all money has arrived, once all is healed.
const REST_MAX: Duration = Duration::from_secs(60);

/// Clients of a kind repeat their own requests only: the identity of a request belongs to the kind.
const KINDS: u64 = 2;

/// The requests and their answers. The number of a request is also its idempotency key.
#[derive(Debug, Default)]
pub(crate) struct Transfers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    requests: Vec<(u32, Request)>,
    waiting: BTreeSet<u64>,
    answers: HashMap<u64, Result<u64, Refused>>,
    contradicted: u64,
}

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
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pays money in. To be called first, with both kinds of clients.
    pub(crate) fn pay_in(&self, clients: &mut [Client; 2], reasons: &Reasons) -> Result<(), String> {
        let requests: Vec<_> =
            (0..ACCOUNTS).map(|account| (account, Request::PayIn { amount: PAID_IN })).collect();
        {
            let mut state = self.state();
            state.waiting = (0..u64::from(ACCOUNTS)).collect();
            state.requests = requests;
        }
        self.finish(clients, reasons)
    }

    /// Makes transfers until it is to stop.
    pub(crate) fn run(&self, client: &mut Client, seed: u64, stops: &AtomicBool, reasons: &Reasons) {
        let mut rng = fastrand::Rng::with_seed(seed);
        while !stops.load(Ordering::Relaxed) {
            let number = self.next(kind(client), &mut rng);
            let is_short = rng.u64(..SHORT_ONE_IN) == 0;
            let time = if is_short { TIME_SHORT_MAX.mul_f64(rng.f64()) } else { TIME_MAX };
            self.ask(client, number, time, reasons);
            thread::sleep(Duration::from_micros(rng.u64(..PAUSE_MAX_US)));
        }
    }

    /// Returns the number of a new request, of one without an answer, or of one that was answered already.
    fn next(&self, kind: u64, rng: &mut fastrand::Rng) -> u64 {
        let mut state = self.state();
        let of_kind = |number: &u64| number % KINDS == kind;
        let waiting: Vec<_> = state.waiting.iter().copied().filter(of_kind).collect();
        if !waiting.is_empty() && rng.u8(..4) == 0 {
            return waiting[rng.usize(..waiting.len())];
        }
        if rng.u64(..AGAIN_ONE_IN) == 0 {
            let some = rng.u64(..state.requests.len() as u64 / KINDS) * KINDS + kind;
            if state.answers.contains_key(&some) {
                return some;
            }
        }
        // A number of the other kind that is left out is asked by a client of that kind.
        loop {
            let (from, to) = (rng.u32(..ACCOUNTS), rng.u32(..ACCOUNTS));
            state.requests.push((from, Request::Transfer { to, amount: rng.u64(1..=AMOUNT_MAX) }));
            let number = state.requests.len() as u64 - 1;
            state.waiting.insert(number);
            if number % KINDS == kind {
                return number;
            }
        }
    }

    fn ask(&self, client: &mut Client, number: u64, time: Duration, reasons: &Reasons) {
        let (account, request) = self.state().requests[number as usize].clone();
        let Some(answer) = client.account(account, &request, number, time, reasons) else { return };
        let mut state = self.state();
        state.waiting.remove(&number);
        let first = state.answers.entry(number).or_insert_with(|| answer.clone());
        let is_other = *first != answer;
        state.contradicted += u64::from(is_other);
    }

    /// Asks until all requests are answered.
    fn finish(&self, clients: &mut [Client; 2], reasons: &Reasons) -> Result<(), String> {
        let until = Instant::now() + REST_MAX;
        loop {
            let waiting: Vec<_> = self.state().waiting.iter().copied().collect();
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
        let mut report = Report { paid_in: u64::from(ACCOUNTS) * PAID_IN, ..Report::default() };
        let balances = self.finish(clients, reasons).and_then(|()| {
            let Client::Native(client) = &clients[0] else { return Err("no native client".to_owned()) };
            balances(client, report.paid_in)
        });
        let state = self.state();
        report.answered = state.answers.len();
        report.refused = state.answers.values().filter(|answer| answer.is_err()).count();
        report.contradicted = state.contradicted;
        match balances {
            Ok(balances) => {
                let expected = state.balances();
                let pairs = expected.iter().zip(&balances);
                report.wrong = pairs.filter(|(expected, is)| **expected != is.cast_signed()).count();
                report.balances = balances.iter().sum();
            }
            Err(failure) => report.failure = Some(failure),
        }
        report
    }
}

impl State {
    /// Returns the balances according to the answers alone; a negative one shows that an answer is wrong.
    fn balances(&self) -> Vec<i64> {
        let mut balances = vec![0i64; ACCOUNTS as usize];
        for (number, answer) in &self.answers {
            let (account, request) = &self.requests[*number as usize];
            match (answer, request) {
                (Ok(_), Request::PayIn { amount } | Request::Credit { amount }) => {
                    balances[*account as usize] += amount.cast_signed();
                }
                (Ok(_), Request::Transfer { to, amount }) => {
                    balances[*account as usize] -= amount.cast_signed();
                    balances[*to as usize] += amount.cast_signed();
                }
                (Err(_), _) => {}
            }
        }
        balances
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
