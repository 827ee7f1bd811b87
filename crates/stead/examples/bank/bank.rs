//! The bank's only service: accounts, which send each other money in messages.

use serde::{Deserialize, Serialize};
use stead::{Context, Cut, Process, QueryContext};

/// An account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Account {
    /// The money on the account.
    pub(crate) balance: u64,
    /// The total that was paid in from outside.
    pub(crate) paid_in: u64,
}

/// A request to an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Pay money in from outside.
    PayIn {
        /// The amount.
        amount: u64,
    },
    /// Transfer money to another account.
    Transfer {
        /// The other account.
        to: u32,
        /// The amount.
        amount: u64,
    },
    /// Receive money from another account. Clients that send this are refused.
    Credit {
        /// The amount.
        amount: u64,
    },
}

/// Reasons for which an account refuses a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refused {
    /// The balance is too low.
    Insufficient {
        /// The balance.
        balance: u64,
    },
    /// The balance would exceed the limit of an account.
    TooMuch,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Insufficient { balance } => write!(f, "the balance is only {balance}"),
            Self::TooMuch => write!(f, "more than an account can hold"),
        }
    }
}

impl Process for Account {
    const SERVICE: &'static str = "account";
    type Key = u32;
    type Request = Request;
    type Reply = u64;
    type Error = Refused;
    type Query = ();
    type Answer = u64;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<u64, Refused> {
        match request {
            Request::PayIn { amount } => {
                self.balance = self.balance.checked_add(amount).ok_or(Refused::TooMuch)?;
                self.paid_in = self.paid_in.checked_add(amount).ok_or(Refused::TooMuch)?;
            }
            Request::Transfer { to, amount } => {
                let left = self.balance.checked_sub(amount);
                self.balance = left.ok_or(Refused::Insufficient { balance: self.balance })?;
                // The message now carries the money: the deduction and the message take effect together, or not at all.
                ctx.send::<Account>(&to, Request::Credit { amount });
            }
            Request::Credit { amount } => {
                self.balance = self.balance.checked_add(amount).ok_or(Refused::TooMuch)?
            }
        }
        Ok(self.balance)
    }

    fn internal(request: &Request) -> bool {
        matches!(request, Request::Credit { .. })
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<u64, Refused> {
        Ok(self.balance)
    }

    /// Checks that the balances plus the money in flight equal what was paid in: none is created or lost.
    fn check(cut: &Cut<'_>) -> Result<(), String> {
        let (mut balances, mut paid_in, mut in_flight) = (0u128, 0u128, 0u128);
        for account in cut.processes::<Self>() {
            let (_, account) = account?;
            balances += u128::from(account.balance);
            paid_in += u128::from(account.paid_in);
        }
        for message in cut.in_flight::<Self>() {
            if let (_, Request::Credit { amount }) = message? {
                in_flight += u128::from(amount);
            }
        }
        if balances + in_flight == paid_in {
            Ok(())
        } else {
            Err(format!(
                "{paid_in} was paid in, but balances {balances} and in flight {in_flight} make another sum"
            ))
        }
    }
}
