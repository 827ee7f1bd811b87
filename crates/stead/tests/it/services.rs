//! The services of these tests.

use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use stead::{Context, Node, NodeBuilder, Process, QueryContext, ServiceOptions};

/// An account that refuses to be overdrawn.
#[derive(Default, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub balance: i64,
    pub calls: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Ask {
    Deposit(i64),
    Move { amount: i64, to: String },
    Later { amount: i64, after_ms: u64 },
    Panic,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Overdrawn {
    pub missing: i64,
}

impl std::fmt::Display for Overdrawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} too little", self.missing)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Look {
    Balance,
    Calls,
}

impl Process for Account {
    const SERVICE: &'static str = "account";
    type Key = String;
    type Request = Ask;
    type Reply = i64;
    type Error = Overdrawn;
    type Query = Look;
    type Answer = i64;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Ask) -> Result<i64, Overdrawn> {
        self.calls += 1;
        match request {
            Ask::Deposit(amount) => self.balance += amount,
            Ask::Move { amount, to } => {
                self.balance -= amount;
                ctx.send::<Self>(&to, Ask::Deposit(amount));
                if self.balance < 0 {
                    return Err(Overdrawn { missing: -self.balance });
                }
            }
            Ask::Later { amount, after_ms } => {
                ctx.set_timer(Duration::from_millis(after_ms), Ask::Deposit(amount));
            }
            Ask::Panic => {
                self.balance = -1;
                ctx.send::<Self>(&"elsewhere".to_owned(), Ask::Deposit(1));
                panic!("as asked");
            }
        }
        Ok(self.balance)
    }

    fn query(&self, _: &QueryContext<'_, Self>, query: Look) -> Result<i64, Overdrawn> {
        Ok(match query {
            Look::Balance => self.balance,
            Look::Calls => self.calls as i64,
        })
    }

    fn check(cut: &stead::Cut<'_>) -> Result<(), String> {
        let mut sum = 0;
        for account in cut.processes::<Self>() {
            sum += account?.1.balance;
        }
        for message in cut.in_flight::<Self>() {
            if let Ask::Deposit(amount) = message?.1 {
                sum += amount;
            }
        }
        if sum % 100 == 0 { Ok(()) } else { Err(format!("the balances and what is in flight make {sum}")) }
    }
}

pub(crate) fn builder(dir: &Path) -> NodeBuilder {
    Node::builder(dir)
        .service::<Account>(ServiceOptions::default().shards(4))
        .threads(2)
        .segment_bytes(1 << 20)
        .checkpoints(stead::CheckpointOptions { interval: None, ..Default::default() })
}

pub(crate) fn key(name: &str) -> String {
    name.to_owned()
}

/// Queries until the expected answer comes.
pub(crate) fn await_answer(node: &Node, account: &str, wanted: i64) {
    let client = node.blocking_client();
    for _ in 0..100_000 {
        if client.query::<Account>(&key(account), Look::Balance).unwrap() == wanted {
            return;
        }
        std::thread::yield_now();
    }
    panic!("the balance of {account} never became {wanted}");
}
