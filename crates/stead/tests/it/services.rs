//! The services of these tests.

use crate::patience::{await_some, await_until};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use stead::{
    BlockingClient, CheckOutcome, CheckpointFailure, CheckpointReport, Context, Node, NodeBuilder, Process,
    QueryContext, ServiceOptions,
};

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
        .listen_native(([127, 0, 0, 1], 0).into())
        .checkpoints(stead::CheckpointOptions { interval: None, ..Default::default() })
}

/// The ways to call a node: within its process, and over the network.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Here,
    Away,
}

impl Way {
    pub(crate) const ALL: [Self; 2] = [Self::Here, Self::Away];

    /// Returns a client of a node that listens.
    pub(crate) fn client(self, node: &Node) -> BlockingClient {
        match self {
            Self::Here => node.blocking_client(),
            Self::Away => BlockingClient::connect([node.native_address().unwrap().to_string()]).unwrap(),
        }
    }
}

pub(crate) fn key(name: &str) -> String {
    name.to_owned()
}

/// Takes a checkpoint with its checks, and another one if that is given up: of a short timeout a busy machine may leave
/// nothing.
pub(crate) fn take_checkpoint(node: &Node) -> CheckpointReport {
    await_some("a checkpoint", || match node.checkpoint_blocking() {
        Ok(report) => Some(report),
        Err(CheckpointFailure::GivenUp { .. }) => None,
        Err(failure) => panic!("{failure}"),
    })
}

/// Takes checkpoints until the check of one has failed.
pub(crate) fn await_failed_check(node: &Node) -> CheckpointReport {
    await_some("a check that fails", || {
        Some(take_checkpoint(node)).filter(|report| report.check == CheckOutcome::Failed)
    })
}

/// Queries until the expected answer comes.
pub(crate) fn await_answer(node: &Node, account: &str, wanted: i64) {
    let client = node.blocking_client();
    await_until(&format!("a balance of {wanted} in {account}"), || {
        client.query::<Account>(&key(account), Look::Balance).unwrap() == wanted
    });
}
