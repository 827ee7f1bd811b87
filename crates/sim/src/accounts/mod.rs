//! The simulator's own workload: accounts that pay each other through messages, timers and tasks, and count the calls
//! that they handled. All money is conserved at every cut; every handled call draws a number that no second execution
//! would draw again; some handlers return errors, some panic, and some end the whole process.

mod code;
mod history;
mod money;
mod op;

use self::code::Code;
use self::history::{Chain, History};
use self::money::{Purse, money_of_cut, money_of_record};
use self::op::{Account, Asked, Fate, Op, Output};
use crate::bug::Bug;
use crate::workload::{Answered, Call, CallId, ENDED, Workload};
use fastrand::Rng;
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::entry::{Cause, Entry};
use stead_core::handler::Handler;
use stead_core::ids::{Micros, ServiceId, ShardId, TaskId};
use stead_core::key::Key;
use stead_core::record::{Kind, RecordKey, TaskRecord, decode_value, encode_value};
use stead_core::reply::Reply;
use stead_core::shard::{DeadLetterAction, StepOutcome};
use stead_core::state::State;
use stead_core::topology::Topology;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The frequency of each kind of call; drawn for each run, so that runs differ in character.
#[derive(Clone, Debug)]
struct Mix {
    weights: Vec<u32>,
    hops_max: u8,
    /// Number of large calls out of 64.
    large: u32,
    /// Whether an operator deletes accounts.
    deletes: bool,
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

impl Accounts {
    /// Draws a workload from a seed.
    #[must_use]
    pub fn new(rng: &mut Rng, bug: Option<Bug>) -> Self {
        let services = rng.u32(1..=3);
        let shards = (0..services).map(|_| rng.u32(1..=4)).collect();
        let accounts = rng.u32(2..=24);
        let weights = (0..13).map(|_| if rng.u8(..4) == 0 { 0 } else { rng.u32(1..20) }).collect::<Vec<_>>();
        let mut mix = Mix { weights, hops_max: rng.u8(0..=6), large: 0, deletes: false };
        mix.weights[0] += 1;
        // Ends of the process are rare: each one costs a whole recovery.
        mix.weights[11] = if rng.u8(..3) == 0 { 1 } else { 0 };
        if bug == Some(Bug::CrowdTrials) {
            mix.weights[11] = 24;
        }
        // Drawn last, so that the other draws of a seed are unchanged.
        mix.large = if rng.u8(..4) == 0 { rng.u32(1..16) } else { 0 };
        mix.deletes = rng.bool() || bug == Some(Bug::KeepDeleted);
        Self {
            code: Code {
                rng: Rng::with_seed(0),
                accounts,
                services,
                added_from: u32::MAX,
                killed: false,
                mended: false,
                bug,
            },
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

    fn allows_deletion(&self) -> bool {
        self.mix.deletes
    }

    fn add_service(&mut self, rng: &mut Rng) -> Option<(String, u32)> {
        if self.code.added_from < u32::MAX {
            return None;
        }
        self.code.added_from = self.code.accounts;
        self.code.accounts += rng.u32(1..=4);
        self.shards.push(rng.u32(1..=3));
        self.services().pop()
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
                    _ => StepOutcome::Retry { after: Micros(self.code.rng.u64(..1_000_000)), reason },
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
        let floor = self.history.floor.get(&*call.key).copied().unwrap_or_default();
        self.history.invoked.insert(id, floor);
    }

    fn answered(&mut self, id: CallId, call: &Call, answer: &Answered) -> Result<(), String> {
        let Ok(Reply::Ok(reply)) = answer else { return Ok(()) };
        let output: Output =
            decode_value(reply).map_err(|e| format!("7: cannot read the answer to call {id}: {e}"))?;
        let key = &*call.key;
        let (since, floor) = self.history.invoked.remove(&id).unwrap_or_default();
        let Output { count, chain: found, .. } = output;
        let chains = self.history.chains_of(key);
        let Some(at) = chains.iter().rposition(|chain| chain.at(count) == Some(found)) else {
            let committed: Vec<_> = chains.iter().map(|chain| chain.at(count)).collect();
            return Err(format!(
                "6: {key}: call {id} saw history {found:x} at count {count}, committed is {committed:x?}"
            ));
        };
        let late = if call.query { count < floor } else { count <= floor };
        if at < since || at == since && late {
            return Err(format!(
                "6: {key}: call {id} saw count {count} after {floor} had been answered before it"
            ));
        }
        let seen = self.history.floor.entry(key.to_owned()).or_default();
        *seen = (at, count).max(*seen);
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
        let Some(write) = entry.writes.iter().find(|w| w.key == key) else { return Ok(()) };
        let Some(value) = &write.value else {
            // Deleted: the next call begins to count anew.
            self.history.chains_of(&entry.process).push(Chain::default());
            return Ok(());
        };
        let (index, process) = (entry.index, &entry.process);
        let account: Account = decode_value(value)
            .map_err(|e| format!("16: shard {shard}: entry {index} holds no account for {process}: {e}"))?;
        let chains = self.history.chains_of(process).last_mut().expect("there is one");
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

    fn deleted(
        &mut self,
        shard: ShardId,
        entry: &Entry,
        records: &[(RecordKey, Blob)],
    ) -> Result<(), String> {
        let mut money = 0;
        for (key, value) in records {
            money += money_of_record(key, value)?;
        }
        self.purse.dropped.push((shard, entry.index, money));
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
                    self.history.chains.insert(key, vec![known]);
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
