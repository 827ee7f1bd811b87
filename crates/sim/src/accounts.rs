//! The simulator's own workload: accounts that pay each other through messages, timers and tasks, and count the calls
//! that they handled. All money is conserved at every cut; every handled call draws a number that no second execution
//! would draw again; some handlers return errors, some panic, and some end the whole process.

use crate::bug::Bug;
use crate::workload::{Answered, Call, CallId, ENDED, Workload};
use fastrand::Rng;
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::calls::{Call as HandlerCall, Caller, Misuse, Outcome};
use stead_core::capture::View;
use stead_core::entry::{Cause, Entry};
use stead_core::handler::{Handler, Limit, Txn};
use stead_core::ids::{Index, ServiceId, ShardId, TaskId, TimerId};
use stead_core::key::Key;
use stead_core::record::{
    DeadLetter, Kind, Pending, RecordKey, TaskRecord, TimerRecord, decode_value, encode_value,
};
use stead_core::reply::Reply;
use stead_core::shard::{DeadLetterAction, StepOutcome};
use stead_core::state::State;
use stead_core::topology::Topology;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A request to an account, from clients, messages, timers and tasks alike.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Op {
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
pub(crate) enum Fate {
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
struct Asked {
    #[n(0)]
    ticket: u64,
    #[n(1)]
    op: Op,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Account {
    #[n(0)]
    balance: i64,
    /// Calls handled.
    #[n(1)]
    count: u64,
    /// Hash of all random draws; a lost or repeated execution changes it forever.
    #[n(2)]
    chain: u64,
    /// The ticket of the client's call that was handled last, or 0.
    #[n(3)]
    ticket: u64,
    #[n(4)]
    timers: Vec<(u64, i64)>,
    #[n(5)]
    tasks: Vec<u64>,
}

impl Default for Account {
    fn default() -> Self {
        Self { balance: Self::INITIAL, count: 0, chain: 0, ticket: 0, timers: Vec::new(), tasks: Vec::new() }
    }
}

impl Account {
    const INITIAL: i64 = 1000;
}

/// The answer of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
struct Output {
    #[n(0)]
    count: u64,
    #[n(1)]
    chain: u64,
    #[n(2)]
    ticket: u64,
}

/// The frequency of each kind of call; drawn for each run, so that runs differ in character.
#[derive(Clone, Debug)]
struct Mix {
    weights: Vec<u32>,
    hops_max: u8,
    /// Number of large calls out of 64.
    large: u32,
}

struct Code {
    rng: Rng,
    accounts: u32,
    services: u32,
    killed: bool,
    /// For the rest of this life, poisonous calls succeed.
    mended: bool,
    bug: Option<Bug>,
}

/// The workload of this module.
pub struct Accounts {
    code: Code,
    shards: Vec<u32>,
    mix: Mix,
    calls_left: Option<u64>,
    history: History,
    purse: Purse,
}

/// The money that is not in the sum of accounts and messages (invariant 11).
#[derive(Default)]
struct Purse {
    /// The sum at the beginning of the cluster.
    base: i64,
    /// The money in each dead letter.
    letters: BTreeMap<(ShardId, Index), i64>,
    /// The money of dropped dead letters, with the entry that dropped each.
    dropped: Vec<(ShardId, Index, i64)>,
}

/// The checks on the answers of clients (invariants 6 and 7).
#[derive(Default)]
struct History {
    /// The highest count in any answer, by account.
    floor: BTreeMap<String, u64>,
    /// The chain at each committed count, by account.
    chains: BTreeMap<String, Chain>,
    /// The floor when a call was sent.
    invoked: BTreeMap<CallId, u64>,
    /// Tickets of committed calls.
    tickets: BTreeMap<u64, Output>,
}

/// The chain of an account, from the first known count on.
#[derive(Default)]
struct Chain {
    base: u64,
    first: u64,
    links: Vec<u64>,
}

impl Chain {
    fn at(&self, count: u64) -> Option<u64> {
        let at = count.checked_sub(self.first)?;
        match at.checked_sub(1) {
            None => Some(self.base),
            Some(at) => self.links.get(at as usize).copied(),
        }
    }

    fn last(&self) -> u64 {
        self.first + self.links.len() as u64
    }
}

impl Accounts {
    /// Draws a workload from a seed.
    #[must_use]
    pub fn new(rng: &mut Rng, bug: Option<Bug>) -> Self {
        let services = rng.u32(1..=3);
        let shards = (0..services).map(|_| rng.u32(1..=4)).collect();
        let accounts = rng.u32(2..=24);
        let weights = (0..13).map(|_| if rng.u8(..4) == 0 { 0 } else { rng.u32(1..20) }).collect::<Vec<_>>();
        let mut mix = Mix { weights, hops_max: rng.u8(0..=6), large: 0 };
        mix.weights[0] += 1;
        // Ends of the process are rare: each one costs a whole recovery.
        mix.weights[11] = if rng.u8(..3) == 0 { 1 } else { 0 };
        if bug == Some(Bug::CrowdTrials) {
            mix.weights[11] = 8;
        }
        // Drawn last, so that the other draws of a seed are unchanged.
        mix.large = if rng.u8(..4) == 0 { rng.u32(1..16) } else { 0 };
        Self {
            code: Code { rng: Rng::with_seed(0), accounts, services, killed: false, mended: false, bug },
            shards,
            mix,
            calls_left: None,
            history: History::default(),
            purse: Purse::default(),
        }
    }

    fn name(&self, account: u32) -> (ServiceId, Key) {
        self.code.name(account)
    }

    fn draw(&mut self, rng: &mut Rng) -> Op {
        if self.mix.large > 0 && rng.u32(..64) < self.mix.large {
            // Around the limits that profiles draw for an entry: 400 bytes, and half of the bytes that the log accepts
            // at once.
            let size = |rng: &mut Rng| match rng.u8(..4) {
                0 => rng.u32(..64),
                1 => rng.u32(250..450),
                2 => rng.u32(3_500..4_500),
                _ => rng.u32(..40_000),
            };
            let (bytes, pad) = (size(rng), size(rng));
            let pad = Blob::from(vec![0x5a; if rng.bool() { pad as usize } else { 0 }]);
            let to = if rng.bool() { Some(rng.u32(..self.code.accounts)) } else { None };
            return Op::Fill { bytes, pad, to };
        }
        let total: u32 = self.mix.weights.iter().sum();
        let mut at = rng.u32(..total);
        let mut kind = 0;
        while at >= self.mix.weights[kind] {
            at -= self.mix.weights[kind];
            kind += 1;
        }
        let to = rng.u32(..self.code.accounts);
        let amount = rng.i64(1..=50);
        match kind {
            0 => Op::Count,
            1 | 2 => Op::Pay { to, amount, hops: rng.u8(0..=self.mix.hops_max) },
            3 => Op::Cells { put: rng.u8(..16), delete: rng.u8(..16) },
            4 if rng.bool() => Op::PayLater { micros: rng.u64(0..2_000_000), to, amount },
            4 => Op::Later { micros: rng.u64(0..2_000_000), amount },
            5 => Op::Sooner,
            6 => {
                let fate = *pick(rng, &[Fate::Good, Fate::Good, Fate::Good, Fate::Retries, Fate::Panics]);
                Op::Work { steps: rng.u32(1..6), amount, fate }
            }
            7 => Op::Stop,
            8 => Op::Refuse,
            9 => Op::Panic,
            10 if rng.bool() => Op::PoisonLater { micros: rng.u64(0..2_000_000), amount, fate: Fate::Panics },
            10 => Op::SendPoison { to, amount, fate: Fate::Panics },
            11 if rng.bool() => Op::Work { steps: rng.u32(1..6), amount, fate: Fate::Kills },
            11 if rng.bool() => Op::Poison { amount: 0, fate: Fate::Kills },
            11 if rng.bool() => Op::PoisonLater { micros: rng.u64(0..2_000_000), amount, fate: Fate::Kills },
            11 => Op::SendPoison { to, amount, fate: Fate::Kills },
            _ => Op::Burst { messages: rng.u32(1..40) },
        }
    }
}

fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(..from.len())]
}

impl Workload for Accounts {
    fn services(&self) -> Vec<(String, u32)> {
        self.shards.iter().enumerate().map(|(i, &shards)| (format!("accounts-{i}"), shards)).collect()
    }

    fn restart(&mut self, _topology: &Arc<Topology>, seed: u64) {
        self.code.rng = Rng::with_seed(seed);
        (self.code.killed, self.code.mended) = (false, false);
    }

    fn handler(&mut self) -> &mut dyn Handler {
        &mut self.code
    }

    fn killed(&mut self) -> bool {
        std::mem::take(&mut self.code.killed)
    }

    fn next(&mut self, rng: &mut Rng, _topology: &Topology, _client: usize, id: CallId) -> Option<Call> {
        if let Some(left) = &mut self.calls_left {
            *left = left.checked_sub(1)?;
        }
        let (service, key) = self.name(rng.u32(..self.code.accounts));
        let query = rng.u8(..5) == 0;
        let op = if query { Op::Look } else { self.draw(rng) };
        let payload = encode_value(&Asked { ticket: id + 1, op });
        Some(Call { service, key, payload, query })
    }

    fn dead_letter_action(&mut self, rng: &mut Rng) -> Option<DeadLetterAction> {
        self.code.mended |= rng.bool();
        Some(if rng.u8(..4) == 0 { DeadLetterAction::Drop } else { DeadLetterAction::Retry })
    }

    fn step(&mut self, _id: TaskId, task: &TaskRecord) -> StepOutcome {
        let Ok(Op::Working { left, amount, trail, fate }) = decode_value::<Op>(&task.state) else {
            return StepOutcome::Failed("no state of this task".to_owned());
        };
        match fate {
            _ if self.code.mended => {}
            Fate::Panics if left == 1 => return StepOutcome::Failed("the step panicked".to_owned()),
            Fate::Kills if left == 1 => {
                self.code.killed = true;
                return StepOutcome::Failed(ENDED.to_owned());
            }
            Fate::Retries if left == 1 && self.code.rng.bool() => {
                let reason = "the carrier was closed".to_owned();
                return match self.code.rng.u8(..8) {
                    0 => StepOutcome::GivenUp(reason),
                    _ => StepOutcome::Retry { after: self.code.rng.u64(..1_000_000), reason },
                };
            }
            _ => {}
        }
        let trail = xxh3_64_with_seed(&self.code.rng.u64(..).to_le_bytes(), trail);
        let state = encode_value(&Op::Working { left: left - 1, amount, trail, fate });
        if left <= 1 {
            StepOutcome::Done(state)
        } else {
            StepOutcome::Continue { state, progress: 1_000_000 / left }
        }
    }

    fn invoked(&mut self, id: CallId, call: &Call) {
        let floor = self.history.floor.get(&*call.key).copied().unwrap_or(0);
        self.history.invoked.insert(id, floor);
    }

    fn answered(&mut self, id: CallId, call: &Call, answer: &Answered) -> Result<(), String> {
        let Ok(Reply::Ok(reply)) = answer else { return Ok(()) };
        let output: Output =
            decode_value(reply).map_err(|e| format!("7: cannot read the answer to call {id}: {e}"))?;
        let key = &*call.key;
        let floor = self.history.invoked.remove(&id).unwrap_or(0);
        let late = if call.query { output.count < floor } else { output.count <= floor };
        if late {
            return Err(format!(
                "6: {key}: call {id} saw count {} after {floor} had been answered before it",
                output.count
            ));
        }
        let seen = self.history.floor.entry(key.to_owned()).or_default();
        *seen = output.count.max(*seen);
        let chain = match self.history.chains.get(key) {
            Some(chain) => chain.at(output.count),
            None => Chain::default().at(output.count),
        };
        if chain != Some(output.chain) {
            let (count, found) = (output.count, output.chain);
            return Err(format!(
                "6: {key}: call {id} saw history {found:x} at count {count}, committed is {chain:x?}"
            ));
        }
        if !call.query && self.history.tickets.get(&(id + 1)) != Some(&output) {
            return Err(format!(
                "7: {key}: the answer to call {id} is not what its committed entry answered"
            ));
        }
        Ok(())
    }

    fn committed(&mut self, shard: ShardId, entry: &Entry) -> Result<(), String> {
        self.purse.committed(shard, entry)?;
        let key = RecordKey::process(&entry.process);
        let Some(value) = entry.writes.iter().find(|w| w.key == key).and_then(|w| w.value.as_ref()) else {
            return Ok(());
        };
        let (index, process) = (entry.index, &entry.process);
        let account: Account = decode_value(value)
            .map_err(|e| format!("16: shard {shard}: entry {index} holds no account for {process}: {e}"))?;
        let chains = self.history.chains.entry(process.to_string()).or_default();
        if account.count != chains.last() + 1 {
            let (found, last) = (account.count, chains.last());
            return Err(format!("6: shard {shard}: entry {index} counts {found} at {process} after {last}"));
        }
        chains.links.push(account.chain);
        let asked = matches!(
            entry.cause,
            Cause::Request { .. } | Cause::Idempotent { .. } | Cause::Anonymous | Cause::Suspected { .. }
        );
        let output = Output { count: account.count, chain: account.chain, ticket: account.ticket };
        if asked && self.history.tickets.insert(account.ticket, output).is_some() {
            let id = account.ticket - 1;
            return Err(format!(
                "7: shard {shard}: entry {index} applies call {id} at {process} a second time"
            ));
        }
        Ok(())
    }

    fn restored(&mut self, states: &[State]) {
        self.history = History::default();
        self.purse = Purse::of(states);
        for state in states {
            for (key, value) in state.records().iter().filter(|(key, _)| key[0] == Kind::Process as u8) {
                let key = RecordKey::from_bytes(key).and_then(|key| key.process_key().map(str::to_owned));
                if let (Some(key), Ok(account)) = (key, decode_value::<Account>(value)) {
                    let known = Chain { base: account.chain, first: account.count, links: Vec::new() };
                    self.history.chains.insert(key, known);
                }
            }
        }
    }

    fn check_cut(&mut self, _topology: &Topology, cut: &[State]) -> Result<(), String> {
        let missing = money_of_cut(cut)? + self.purse.dropped_before(cut) - self.purse.base;
        if missing == 0 {
            Ok(())
        } else {
            Err(format!("11: the accounts and what is in flight differ by {missing} from the start"))
        }
    }
}

impl Purse {
    fn of(states: &[State]) -> Self {
        let mut purse = Self { base: money_of_cut(states).unwrap_or_default(), ..Self::default() };
        for state in states {
            for (key, value) in state.records().iter().filter(|(key, _)| key[0] == Kind::DeadLetter as u8) {
                let number = RecordKey::from_bytes(key).and_then(|key| key.number());
                if let (Some(number), Ok(money)) = (number, money_of_letter(value)) {
                    purse.letters.insert((state.shard(), Index(number)), money);
                }
            }
        }
        purse
    }

    fn committed(&mut self, shard: ShardId, entry: &Entry) -> Result<(), String> {
        for write in entry.writes.iter().filter(|write| write.key.kind() == Kind::DeadLetter) {
            if let (Some(number), Some(value)) = (write.key.number(), &write.value) {
                self.letters.insert((shard, Index(number)), money_of_letter(value)?);
            }
        }
        if let Cause::Drop { letter } = entry.cause {
            let money = self.letters.remove(&(shard, letter));
            let money =
                money.ok_or_else(|| format!("7: shard {shard}: dead letter {letter} is deleted twice"))?;
            self.dropped.push((shard, entry.index, money));
        }
        Ok(())
    }

    fn dropped_before(&self, cut: &[State]) -> i64 {
        let of = |shard: &ShardId| cut.iter().find(|state| state.shard() == *shard);
        let before = self
            .dropped
            .iter()
            .filter(|(shard, index, _)| of(shard).is_some_and(|state| *index <= state.position().index));
        before.map(|(_, _, money)| money).sum()
    }
}

/// Returns the money in the shards and between them, as the difference from the beginning.
fn money_of_cut(cut: &[State]) -> Result<i64, String> {
    let mut sum = 0;
    for state in cut {
        sum += money_of_state(state)?;
        for (to, outbox) in state.outboxes().iter() {
            let receiver = cut.iter().find(|s| s.shard() == to);
            let received =
                receiver.and_then(|s| s.received().get(state.shard())).copied().unwrap_or_default();
            for message in outbox.messages.iter().filter(|m| m.seq > received) {
                sum += money_of(&message.payload)?;
            }
        }
    }
    Ok(sum)
}

/// Returns the money in a shard, as the difference from the beginning.
fn money_of_state(state: &State) -> Result<i64, String> {
    let mut sum = 0;
    for (key, value) in state.records().iter() {
        let bad =
            |e: minicbor::decode::Error| format!("16: shard {}: cannot read a record: {e}", state.shard());
        match Kind::from_number(key[0]) {
            Some(Kind::Process) => {
                sum += decode_value::<Account>(value).map_err(bad)?.balance - Account::INITIAL
            }
            Some(Kind::Timer) => sum += money_of(&decode_value::<TimerRecord>(value).map_err(bad)?.payload)?,
            Some(Kind::Task) => sum += money_of(&decode_value::<TaskRecord>(value).map_err(bad)?.state)?,
            Some(Kind::DeadLetter) => sum += money_of_letter(value)?,
            _ => {}
        }
    }
    Ok(sum)
}

fn money_of_letter(value: &[u8]) -> Result<i64, String> {
    let letter: DeadLetter =
        decode_value(value).map_err(|e| format!("16: cannot read a dead letter: {e}"))?;
    // A request that was given up moved no money.
    // Nor did a payload that was too large for its letter: no payment is.
    if matches!(letter.cause, Pending::Request { .. } | Pending::Call { .. }) || letter.payload.is_empty() {
        Ok(0)
    } else {
        money_of(&letter.payload)
    }
}

fn money_of(payload: &[u8]) -> Result<i64, String> {
    let op: Op = decode_value(payload).map_err(|e| format!("16: cannot read a payload: {e}"))?;
    Ok(match op {
        Op::Credit { amount, .. } | Op::Working { amount, .. } | Op::Poison { amount, .. } => amount,
        _ => 0,
    })
}

impl Code {
    fn name(&self, account: u32) -> (ServiceId, Key) {
        let service = ServiceId((account % self.services) as u16);
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
        call: &HandlerCall<'_>,
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
    fn handle(&mut self, call: &HandlerCall<'_>, txn: &mut Txn<'_>) -> Outcome {
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

    fn query(&mut self, call: &HandlerCall<'_>, view: View<'_>) -> Outcome {
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
