//! Transfers between accounts: the money that one account sends is on another, or in flight, whatever happens.
//!
//!     cargo run --example bank [DATA_DIRECTORY]
//!
//! Kill it with SIGKILL while it runs, and run it again: it continues where it was.

mod bank;

use bank::{Account, Request};
use std::time::Duration;
use stead::{CallError, Node, ServiceOptions};

const ACCOUNTS: u32 = 1000;
const TRANSFERS: u32 = 20_000;
const PAID_IN: u64 = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).map_or_else(|| std::env::temp_dir().join("stead-bank"), Into::into);
    let node = Node::builder(&dir).service::<Account>(ServiceOptions::default().shards(8)).open()?;
    println!("the bank is in {}: {} log entries replayed", dir.display(), node.recovery().entries_replayed);

    let bank = node.blocking_client();
    for account in 0..ACCOUNTS {
        // With the key a repetition is recognised: however often this program starts, each account is paid in once.
        bank.call_idempotent::<Account>(&account, b"opening", Request::PayIn { amount: PAID_IN })?;
    }

    std::thread::scope(|scope| {
        let tellers: Vec<_> = (0..8).map(|_| scope.spawn(|| transfer(&node, TRANSFERS / 8))).collect();
        while !tellers.iter().all(|teller| teller.is_finished()) {
            // A checkpoint is a consistent cut of the running system; the account's own check runs over it.
            let checkpoint = node.checkpoint_blocking()?;
            let holds = node.verify(checkpoint.number)?.holds();
            println!(
                "checkpoint {}: {} transfers in flight, holds: {holds}",
                checkpoint.number, checkpoint.in_flight
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        let refused: u32 =
            tellers.into_iter().map(|teller| teller.join().expect("a teller does not panic")).sum();
        println!("{TRANSFERS} transfers, {refused} of them refused for lack of money");
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    node.shutdown();
    Ok(())
}

/// Returns the number of refused transfers. A call without an answer is not repeated: without an idempotency key the
/// repetition would be another transfer.
fn transfer(node: &Node, count: u32) -> u32 {
    let bank = node.blocking_client();
    let mut refused = 0;
    for _ in 0..count {
        let (from, to, amount) =
            (fastrand::u32(..ACCOUNTS), fastrand::u32(..ACCOUNTS), fastrand::u64(1..=50));
        match bank.call::<Account>(&from, Request::Transfer { to, amount }) {
            Ok(_) => {}
            Err(CallError::Process(_)) => refused += 1,
            Err(CallError::Raw(error)) => eprintln!("no answer: {error}"),
        }
    }
    refused
}
