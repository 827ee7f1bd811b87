//! The calls of accounts, their states and their answers.

use minicbor::{Decode, Encode};
use stead_core::blob::Blob;

/// A request to an account, from clients, messages, timers and tasks alike.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum Op {
    /// Count the call, and nothing else.
    #[n(0)]
    Count,
    /// Pay another account, which passes part of it on `hops` times.
    #[n(1)]
    Pay {
        #[n(0)]
        to: u32,
        #[n(1)]
        amount: i64,
        #[n(2)]
        hops: u8,
    },
    /// Take the payment.
    #[n(2)]
    Credit {
        #[n(0)]
        amount: i64,
        #[n(1)]
        hops: u8,
    },
    /// Put a cell and delete another.
    #[n(3)]
    Cells {
        #[n(0)]
        put: u8,
        #[n(1)]
        delete: u8,
    },
    /// Put money aside until a timer brings it back.
    #[n(4)]
    Later {
        #[n(0)]
        micros: u64,
        #[n(1)]
        amount: i64,
    },
    /// Cancel the newest timer and take its money back.
    #[n(5)]
    Sooner,
    /// Give money to a task that brings it back after some steps.
    #[n(6)]
    Work {
        #[n(0)]
        steps: u32,
        #[n(1)]
        amount: i64,
        #[n(2)]
        fate: Fate,
    },
    /// A task with steps left; its result once there are none.
    #[n(7)]
    Working {
        #[n(0)]
        left: u32,
        #[n(1)]
        amount: i64,
        #[n(2)]
        trail: u64,
        #[n(3)]
        fate: Fate,
    },
    /// Cancel the newest task and take its money back.
    #[n(8)]
    Stop,
    /// Return an error after having written and sent.
    #[n(9)]
    Refuse,
    /// Panic after having written and sent.
    #[n(10)]
    Panic,
    /// Send money in a message that its receiver cannot handle.
    #[n(11)]
    SendPoison {
        #[n(0)]
        to: u32,
        #[n(1)]
        amount: i64,
        #[n(2)]
        fate: Fate,
    },
    /// The message that cannot be handled.
    #[n(12)]
    Poison {
        #[n(0)]
        amount: i64,
        #[n(1)]
        fate: Fate,
    },
    /// Many small payments at once.
    #[n(13)]
    Burst {
        #[n(0)]
        messages: u32,
    },
    /// Read the counter (a query).
    #[n(14)]
    Look,
    /// Set a timer that cannot be handled.
    #[n(16)]
    PoisonLater {
        #[n(0)]
        micros: u64,
        #[n(1)]
        amount: i64,
        #[n(2)]
        fate: Fate,
    },
    /// Put a cell of this many bytes, here or at another account; the payload is large too.
    #[n(17)]
    Fill {
        #[n(0)]
        bytes: u32,
        #[n(1)]
        pad: Blob,
        #[n(2)]
        to: Option<u32>,
    },
    /// Pay another account by a message that leaves later.
    #[n(15)]
    PayLater {
        #[n(0)]
        micros: u64,
        #[n(1)]
        to: u32,
        #[n(2)]
        amount: i64,
    },
}

/// The effect of a poisonous call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum Fate {
    /// It succeeds.
    #[n(0)]
    Good,
    /// The handler panics.
    #[n(1)]
    Panics,
    /// The whole process ends.
    #[n(2)]
    Kills,
    /// The last step of a task fails by chance, and asks to be tried again later.
    #[n(3)]
    Retries,
}

/// A client's call: the operation with a unique ticket.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Asked {
    #[n(0)]
    pub(super) ticket: u64,
    #[n(1)]
    pub(super) op: Op,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Account {
    #[n(0)]
    pub(super) balance: i64,
    /// Calls handled.
    #[n(1)]
    pub(super) count: u64,
    /// Hash of all random draws; a lost or repeated execution changes it forever.
    #[n(2)]
    pub(super) chain: u64,
    /// The ticket of the client's call that was handled last, or 0.
    #[n(3)]
    pub(super) ticket: u64,
    #[n(4)]
    pub(super) timers: Vec<(u64, i64)>,
    #[n(5)]
    pub(super) tasks: Vec<u64>,
}

impl Default for Account {
    fn default() -> Self {
        Self { balance: Self::INITIAL, count: 0, chain: 0, ticket: 0, timers: Vec::new(), tasks: Vec::new() }
    }
}

impl Account {
    pub(super) const INITIAL: i64 = 1000;
}

/// The answer of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Output {
    #[n(0)]
    pub(super) count: u64,
    #[n(1)]
    pub(super) chain: u64,
    #[n(2)]
    pub(super) ticket: u64,
}
