//! The requests to a bank, and the answers: no money is lost or made, whatever happens to the bank meanwhile.

use crate::account::{Refused, Request};
use std::collections::{BTreeSet, HashMap};

const PAID_IN: u64 = 1_000;
const AMOUNT_MAX: u64 = 100;
/// One of this many requests repeats one that was answered already.
pub(crate) const AGAIN_ONE_IN: u64 = 8;

/// Requests to accounts, with their answers. The number of a request is its position, and its idempotency key.
#[derive(Debug)]
pub(crate) struct Ledger {
    accounts: u32,
    pub(crate) requests: Vec<(u32, Request)>,
    /// The requests without an answer.
    pub(crate) waiting: BTreeSet<u64>,
    /// The first answer to each request.
    pub(crate) answers: HashMap<u64, Result<u64, Refused>>,
    /// Answers that differ from the first.
    pub(crate) contradicted: u64,
}

impl Ledger {
    /// Makes one that begins with a payment into each account.
    pub(crate) fn new(accounts: u32) -> Self {
        Self {
            accounts,
            requests: (0..accounts).map(|account| (account, Request::PayIn { amount: PAID_IN })).collect(),
            waiting: (0..u64::from(accounts)).collect(),
            answers: HashMap::new(),
            contradicted: 0,
        }
    }

    /// Returns the sum of all balances.
    pub(crate) fn paid_in(&self) -> u64 {
        u64::from(self.accounts) * PAID_IN
    }

    /// Adds a transfer between two accounts, and returns its number.
    pub(crate) fn transfer(&mut self, rng: &mut fastrand::Rng) -> u64 {
        let (from, to) = (rng.u32(..self.accounts), rng.u32(..self.accounts));
        self.requests.push((from, Request::Transfer { to, amount: rng.u64(1..=AMOUNT_MAX) }));
        let number = self.requests.len() as u64 - 1;
        self.waiting.insert(number);
        number
    }

    /// Notes an answer.
    pub(crate) fn answered(&mut self, number: u64, answer: Result<u64, Refused>) {
        self.waiting.remove(&number);
        let first = self.answers.entry(number).or_insert_with(|| answer.clone());
        self.contradicted += u64::from(*first != answer);
    }

    /// Returns the number of requests that were refused.
    pub(crate) fn refused(&self) -> usize {
        self.answers.values().filter(|answer| answer.is_err()).count()
    }

    /// Returns the number of accounts whose balance is not what the answers make.
    pub(crate) fn wrong(&self, balances: &[u64]) -> usize {
        let expected = self.balances();
        expected.iter().zip(balances).filter(|(expected, is)| **expected != is.cast_signed()).count()
    }

    /// Returns the balances according to the answers alone; a negative one shows that an answer is wrong.
    fn balances(&self) -> Vec<i64> {
        let mut balances = vec![0i64; self.accounts as usize];
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
