//! The user code of accounts.

use super::op::{Account, Asked, Fate, Op, Output};
use crate::bug::Bug;
use crate::workload::ENDED;
use fastrand::Rng;
use stead_core::blob::Blob;
use stead_core::calls::{Call, Caller, Misuse, Outcome};
use stead_core::capture::View;
use stead_core::handler::{Handler, Limit, Txn};
use stead_core::ids::{ServiceId, TaskId, TimerId};
use stead_core::key::Key;
use stead_core::record::{decode_value, encode_value};
use stead_core::reply::Reply;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The state of the user code in one life of the node.
pub(super) struct Code {
    pub(super) rng: Rng,
    pub(super) accounts: u32,
    pub(super) services: u32,
    /// The first of the accounts in the service that a later program has more, if there is one.
    pub(super) added_from: u32,
    pub(super) killed: bool,
    /// For the rest of this life, poisonous calls succeed.
    pub(super) mended: bool,
    pub(super) bug: Option<Bug>,
}

impl Code {
    pub(super) fn name(&self, account: u32) -> (ServiceId, Key) {
        let service = if account >= self.added_from { self.services } else { account % self.services };
        let service = ServiceId(service as u16);
        (service, Key::new(&format!("a{account}")).expect("a few characters"))
    }

    fn send(&self, txn: &mut Txn<'_>, to: u32, op: &Op) -> Result<(), Limit> {
        let (service, key) = self.name(to);
        txn.send_to(service, key, encode_value(op))
    }

    /// Runs one operation; an error is the handler's own.
    fn run(
        &mut self,
        op: Op,
        account: &mut Account,
        call: &Call<'_>,
        txn: &mut Txn<'_>,
    ) -> Result<Fate, Limit> {
        match op {
            Op::Count | Op::Look => {}
            Op::Pay { to, amount, hops } => {
                account.balance -= amount;
                if self.bug == Some(Bug::LoseSend) && self.rng.u8(..4) == 0 {
                    return Ok(Fate::Good);
                }
                self.send(txn, to, &Op::Credit { amount, hops })?;
            }
            Op::Credit { amount, hops } => {
                account.balance += amount;
                if hops > 0 {
                    let passed = self.rng.i64(0..=amount);
                    account.balance -= passed;
                    let to = self.rng.u32(..self.accounts);
                    self.send(txn, to, &Op::Credit { amount: passed, hops: hops - 1 })?;
                }
            }
            Op::Cells { put, delete } => {
                let value = self.rng.u64(..).to_le_bytes();
                txn.put_cell(&[put], Blob::from(&value[..]))?;
                txn.delete_cell(&[delete]);
                for (cell, value) in txn.scan_cells(&[], &[put], 4) {
                    account.chain = xxh3_64_with_seed(&value, account.chain ^ u64::from(cell[0]));
                }
            }
            Op::Fill { bytes, pad, to: Some(to) } => {
                self.send(txn, to, &Op::Fill { bytes, pad, to: None })?;
            }
            Op::Fill { bytes, .. } => {
                txn.put_cell(b"filled", Blob::from(vec![self.rng.u8(..); bytes as usize]))?;
            }
            Op::Later { micros, amount } => {
                account.balance -= amount;
                let at = call.time.plus_micros(micros);
                let id = txn.set_timer(at, encode_value(&Op::Credit { amount, hops: 0 }))?;
                account.timers.push((id.0, amount));
            }
            Op::PayLater { micros, to, amount } => {
                account.balance -= amount;
                let (service, key) = self.name(to);
                let at = call.time.plus_micros(micros);
                let id = txn.send_at(at, service, key, encode_value(&Op::Credit { amount, hops: 0 }))?;
                account.timers.push((id.0, amount));
            }
            Op::PoisonLater { micros, amount, fate } => {
                account.balance -= amount;
                let at = call.time.plus_micros(micros);
                let id = txn.set_timer(at, encode_value(&Op::Poison { amount, fate }))?;
                account.timers.push((id.0, amount));
            }
            Op::Sooner => {
                if let Some((id, amount)) = account.timers.pop()
                    && txn.cancel_timer(TimerId(id))
                {
                    account.balance += amount;
                }
            }
            Op::Work { steps, amount, fate } => {
                account.balance -= amount;
                let state = Op::Working { left: steps, amount, trail: 0, fate };
                let id = txn.start_task("work", encode_value(&state))?;
                account.tasks.push(id.0);
            }
            Op::Working { amount, trail, .. } => {
                account.balance += amount;
                account.chain = xxh3_64_with_seed(&trail.to_le_bytes(), account.chain);
            }
            Op::Stop => {
                if let Some(id) = account.tasks.pop() {
                    let state = txn.task(TaskId(id)).map(|task| task.state);
                    if let Some(state) = state
                        && txn.cancel_task(TaskId(id))
                        && let Ok(Op::Working { amount, .. }) = decode_value(&state)
                    {
                        account.balance += amount;
                    }
                }
            }
            Op::Refuse | Op::Panic => {
                let to = self.rng.u32(..self.accounts);
                self.send(txn, to, &Op::Credit { amount: 7, hops: 0 })?;
                txn.put_cell(b"refused", Blob::empty())?;
                return Ok(if op == Op::Panic { Fate::Panics } else { Fate::Good });
            }
            Op::SendPoison { to, amount, fate } => {
                account.balance -= amount;
                self.send(txn, to, &Op::Poison { amount, fate })?;
            }
            Op::Poison { amount, .. } if self.mended => account.balance += amount,
            Op::Poison { fate, .. } => return Ok(fate),
            Op::Burst { messages } => {
                for _ in 0..messages {
                    account.balance -= 1;
                    let to = self.rng.u32(..self.accounts);
                    self.send(txn, to, &Op::Credit { amount: 1, hops: 0 })?;
                }
            }
        }
        Ok(Fate::Good)
    }
}

fn account_of(state: Option<&[u8]>) -> Result<Account, Misuse> {
    match state {
        None => Ok(Account::default()),
        Some(bytes) => decode_value(bytes).map_err(|e| Misuse::State(e.to_string())),
    }
}

impl Handler for Code {
    fn handle(&mut self, call: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
        let asked = match call.caller {
            Caller::Client { .. } => decode_value::<Asked>(call.payload),
            _ => decode_value(call.payload).map(|op| Asked { ticket: 0, op }),
        };
        let Asked { ticket, op } = match asked {
            Ok(asked) => asked,
            Err(error) => return Outcome::Refused(Misuse::Request(error.to_string())),
        };
        let mut account = match account_of(txn.state()) {
            Ok(account) => account,
            Err(misuse) => return Outcome::Refused(misuse),
        };
        match call.caller {
            Caller::Timer { id } => account.timers.retain(|t| t.0 != id.0),
            Caller::Task { id } => account.tasks.retain(|&t| t != id.0),
            _ => {}
        }
        account.count += 1;
        account.ticket = ticket;
        account.chain = xxh3_64_with_seed(&self.rng.u64(..).to_le_bytes(), account.chain);
        let refuses = op == Op::Refuse;
        let fate = match self.run(op, &mut account, call, txn) {
            Ok(fate) => fate,
            Err(limit) => return Outcome::Panicked(limit.to_string()),
        };
        if let Err(limit) = txn.put_state(encode_value(&account)) {
            return Outcome::Panicked(limit.to_string());
        }
        match fate {
            Fate::Panics => return Outcome::Panicked("as the caller wished".to_owned()),
            Fate::Kills => {
                self.killed = true;
                return Outcome::Panicked(ENDED.to_owned());
            }
            Fate::Good | Fate::Retries => {}
        }
        if refuses {
            // Random, so that a second execution would answer differently.
            return Outcome::Replied(Reply::Err(Blob::from(&self.rng.u64(..).to_le_bytes()[..])));
        }
        Outcome::Replied(Reply::Ok(encode_value(&Output {
            count: account.count,
            chain: account.chain,
            ticket,
        })))
    }

    fn query(&mut self, call: &Call<'_>, view: View<'_>) -> Outcome {
        if let Err(error) = decode_value::<Asked>(call.payload) {
            return Outcome::Refused(Misuse::Request(error.to_string()));
        }
        match account_of(view.state().map(|b| &**b)) {
            Ok(account) => {
                let output = Output { count: account.count, chain: account.chain, ticket: account.ticket };
                Outcome::Replied(Reply::Ok(encode_value(&output)))
            }
            Err(misuse) => Outcome::Refused(misuse),
        }
    }
}
