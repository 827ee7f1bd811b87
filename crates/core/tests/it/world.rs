//! A shell of one node in a few lines: effects are performed at once, except those that a test holds back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Call, Caller, Identity, Outcome, Query, Read, Refusal, Request};
use stead_core::capture::{Reading, View};
use stead_core::clock::Now;
use stead_core::commit_tracker::EpochConfig;
use stead_core::entry::Entry;
use stead_core::handler::{Handler, QueryPlace, Txn};
use stead_core::ids::{
    CallToken, Colour, Epoch, Incarnation, Index, Micros, ReplicaId, SessionId, ShardId, StepNumber, StepRun,
    TaskId, Time, TimerId,
};
use stead_core::key::Key;
use stead_core::record::{DeadLetter, Kind, RecordKey, TaskRecord, decode_value};
use stead_core::reply::Reply;
use stead_core::shard::{DeadLetterAction, Effect, Input, Settings, Shard, StepOutcome};
use stead_core::state::{Header, State};
use stead_core::topology::Topology;
use stead_core::trials::{Grant, Trials};

pub(crate) const SHARDS: u32 = 4;

/// The test service performs the commands of its payload: `word argument`, one a line.
#[derive(Default)]
pub(crate) struct Script {
    /// Runs of the handler, by process and payload.
    pub(crate) runs: Vec<(String, String)>,
    /// The handler panics at every command.
    pub(crate) broken: bool,
    /// The commands that end the process no longer do so.
    pub(crate) mended: bool,
    /// The handler has ended the process.
    killed: bool,
    /// Its queries are brief.
    pub(crate) brief: bool,
    /// Its next query is refused.
    pub(crate) refusal: Option<Refusal>,
    /// Number of runs after which the shell has other work.
    pub(crate) runs_max: Option<usize>,
}

impl Handler for Script {
    fn handle(&mut self, call: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
        let text = std::str::from_utf8(call.payload).unwrap();
        self.runs.push((call.key.to_string(), text.to_owned()));
        if self.broken {
            return Outcome::Panicked("broken".to_owned());
        }
        let mut state = txn.state().map_or_else(String::new, |s| String::from_utf8(s.to_vec()).unwrap());
        for line in text.lines() {
            let (word, argument) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "add" => state.push_str(argument),
                "send" => {
                    let (to, rest) = argument.split_once(' ').unwrap();
                    txn.send("script", Key::new(to).unwrap(), Blob::from(rest.as_bytes())).unwrap();
                }
                "timer" => {
                    let (millis, rest) = argument.split_once(' ').unwrap();
                    let at = call.time.plus_millis(millis.parse().unwrap());
                    txn.set_timer(at, Blob::from(rest.as_bytes())).unwrap();
                }
                "later" => {
                    let (millis, rest) = argument.split_once(' ').unwrap();
                    let (to, rest) = rest.split_once(' ').unwrap();
                    let at = call.time.plus_millis(millis.parse().unwrap());
                    let (to, rest) = (Key::new(to).unwrap(), Blob::from(rest.as_bytes()));
                    txn.send_at(at, call.service, to, rest).unwrap();
                }
                "timer-at" => {
                    let (micros, rest) = argument.split_once(' ').unwrap();
                    txn.set_timer(Time(micros.parse().unwrap()), Blob::from(rest.as_bytes())).unwrap();
                }
                "cancel" => {
                    // The number names either a timer or a task.
                    let id = argument.parse().unwrap();
                    assert!(txn.cancel_timer(TimerId(id)) || txn.cancel_task(TaskId(id)));
                }
                "cancel-caller" => {
                    let cancelled = match call.caller {
                        Caller::Timer { id } => txn.cancel_timer(id),
                        Caller::Task { id } => txn.cancel_task(id) || txn.tasks().iter().any(|t| t.0 == id),
                        other => panic!("{other:?} cannot be cancelled"),
                    };
                    state.push_str(if cancelled { "cancelled" } else { "over" });
                }
                "cell" => {
                    let (cell, value) = argument.split_once(' ').unwrap();
                    txn.put_cell(cell.as_bytes(), Blob::from(value.as_bytes())).unwrap();
                }
                "uncell" => txn.delete_cell(argument.as_bytes()),
                "task" => drop(txn.start_task("count", Blob::from(argument.as_bytes())).unwrap()),
                "fail" => {
                    txn.put_state(Blob::from(b"must not be kept".as_slice())).unwrap();
                    return Outcome::Replied(Reply::Err(Blob::from(argument.as_bytes())));
                }
                "die" if self.mended => {}
                "die" => {
                    self.killed = true;
                    return Outcome::Panicked("the process ended".to_owned());
                }
                "panic" => return Outcome::Panicked(argument.to_owned()),
                "caller" => state.push_str(match call.caller {
                    Caller::Client { principal } => principal,
                    Caller::Process { key, .. } => key,
                    Caller::Timer { .. } => "timer",
                    Caller::Task { .. } => "task",
                }),
                other => panic!("no command {other}"),
            }
        }
        txn.put_state(Blob::from(state.as_bytes())).unwrap();
        Outcome::Replied(Reply::Ok(Blob::from(state.as_bytes())))
    }

    fn query(&mut self, _: &Call<'_>, view: View<'_>) -> Outcome {
        Outcome::Replied(Reply::Ok(view.state().cloned().unwrap_or_default()))
    }

    fn place_query(&mut self, _: &Call<'_>, _: Option<&Blob>) -> Result<QueryPlace, Refusal> {
        if let Some(refusal) = self.refusal.take() {
            return Err(refusal);
        }
        Ok(if self.brief { QueryPlace::Here } else { QueryPlace::Apart })
    }

    fn is_spent(&self) -> bool {
        self.runs_max.is_some_and(|max| self.runs.len() >= max)
    }
}

pub(crate) struct World {
    pub(crate) topology: Arc<Topology>,
    pub(crate) settings: Settings,
    pub(crate) shards: Vec<Shard>,
    pub(crate) script: Script,
    /// The shell's steady time.
    pub(crate) now: Time,
    /// The lead of the wall clock over it in milliseconds.
    pub(crate) wall_ahead: i64,
    pub(crate) epoch: Epoch,
    /// Whether a restart is known to follow a clean shutdown.
    pub(crate) is_clean: bool,
    /// All entries, by shard.
    pub(crate) log: BTreeMap<ShardId, Vec<Entry>>,
    pub(crate) answers: BTreeMap<CallToken, Answer>,
    pub(crate) marked: Vec<(Header, bool)>,
    pub(crate) committed_markers: Vec<(ShardId, Colour)>,
    pub(crate) tasks: Vec<(ShardId, TaskId, TaskRecord)>,
    /// The last run of each task's step.
    task_runs: BTreeMap<(ShardId, TaskId), StepRun>,
    /// Queries that run apart are held back, in `readings`.
    pub(crate) holds_queries: bool,
    pub(crate) readings: Vec<Reading>,
    /// Messages and acknowledgements in flight.
    pub(crate) wire: VecDeque<(ShardId, Input)>,
    /// The principal of requests.
    pub(crate) principal: Arc<str>,
    next_token: CallToken,
    /// Number of times that a handler has ended the process.
    pub(crate) deaths: u32,
    /// By shard, the last stored entry.
    stored: BTreeMap<ShardId, Index>,
    trials: Trials,
    grants: VecDeque<Grant>,
    /// Runs of steps that were tried alone.
    pub(crate) alone: usize,
    /// Steps that ask before they run.
    asking: BTreeMap<(ShardId, TaskId), TaskRecord>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let mut topology = Topology::new(Incarnation(1));
        topology.ensure("script", SHARDS).unwrap();
        let mut world = Self {
            topology: Arc::new(topology),
            settings,
            shards: Vec::new(),
            script: Script::default(),
            now: Time(1_000 * 86_400 * 1_000_000),
            wall_ahead: 0,
            epoch: Epoch(0),
            // There was no life before.
            is_clean: true,
            log: BTreeMap::new(),
            answers: BTreeMap::new(),
            marked: Vec::new(),
            committed_markers: Vec::new(),
            tasks: Vec::new(),
            task_runs: BTreeMap::new(),
            holds_queries: false,
            readings: Vec::new(),
            wire: VecDeque::new(),
            principal: "alice".into(),
            next_token: CallToken(0),
            deaths: 0,
            stored: BTreeMap::new(),
            trials: Trials::default(),
            grants: VecDeque::new(),
            alone: 0,
            asking: BTreeMap::new(),
        };
        world.restart();
        world.settle();
        world.is_clean = false;
        world
    }

    /// Ends the process and starts it again: only the log survives.
    pub(crate) fn restart(&mut self) {
        self.wire.clear();
        self.tasks.clear();
        self.grants.clear();
        self.asking.clear();
        self.epoch = self.epoch.next();
        self.stored = self.log.iter().map(|(shard, log)| (*shard, Index(log.len() as u64))).collect();
        self.shards = self
            .topology
            .shards()
            .map(|id| {
                let mut state = State::new(id);
                for entry in self.log.get(&id).into_iter().flatten() {
                    state.apply(entry.clone()).unwrap();
                }
                let mut shard = Shard::new(state, self.topology.clone(), self.settings.clone());
                if self.is_clean {
                    shard.assume_clean();
                }
                shard
            })
            .collect();
        let met = self.shards.iter().filter(|shard| shard.has_met()).map(|shard| shard.state().shard());
        self.trials = Trials::new(met);
        if self.trials.is_held() {
            self.shards.iter_mut().for_each(Shard::hold);
        }
        for shard in self.topology.clone().shards() {
            self.give(shard, Input::Start(EpochConfig::single(self.epoch, ReplicaId(0))));
        }
        self.grants.extend(self.trials.begin());
        self.grant();
    }

    fn grant(&mut self) {
        while let Some(grant) = self.grants.pop_front() {
            match grant {
                Grant::Turn(shard, kind) => self.give(shard, Input::Turn(kind)),
                Grant::Yield(shard) => self.give(shard, Input::Yield),
                Grant::Open => {
                    for shard in self.topology.clone().shards() {
                        self.give(shard, Input::Open);
                    }
                }
            }
        }
    }

    /// Ends the process before anything that is not stored yet is.
    pub(crate) fn crash(&mut self) {
        for (shard, log) in &mut self.log {
            let stored = self.stored.get(shard).copied().unwrap_or_default();
            log.retain(|entry| entry.index <= stored);
        }
        self.restart();
    }

    /// Ends the process before the last entries of a shard are stored.
    pub(crate) fn crash_before(&mut self, shard: ShardId, lost: usize) {
        let log = self.log.get_mut(&shard).unwrap();
        log.truncate(log.len() - lost);
        self.restart();
    }

    pub(crate) fn shard_of(&self, key: &str) -> ShardId {
        self.topology.shard_of(stead_core::ids::ServiceId(0), key)
    }

    /// Returns a key on another shard than the given one.
    pub(crate) fn key_elsewhere(&self, key: &str) -> String {
        (0..).map(|i| format!("{key}{i}")).find(|k| self.shard_of(k) != self.shard_of(key)).unwrap()
    }

    pub(crate) fn shard(&self, key: &str) -> &Shard {
        &self.shards[self.shard_of(key).0 as usize]
    }

    pub(crate) fn state(&self, key: &str) -> String {
        let record = RecordKey::process(key);
        let value = self.shard(key).state().records().get(record.as_bytes());
        value.map_or_else(String::new, |v| String::from_utf8(v.to_vec()).unwrap())
    }

    pub(crate) fn give(&mut self, to: ShardId, input: Input) {
        let mut out = Vec::new();
        let wall = Time(self.now.0.saturating_add_signed(self.wall_ahead * 1000));
        let now = Now { steady: self.now, wall };
        self.shards[to.0 as usize].handle(now, input, &mut self.script, &mut out);
        if std::mem::take(&mut self.script.killed) {
            self.deaths += 1;
            self.crash();
            return;
        }
        for effect in out {
            match effect {
                Effect::Append { index, bytes, .. } => {
                    let entry = Entry::decode(&bytes).unwrap();
                    assert_eq!(entry.index, index);
                    self.log.entry(to).or_default().push(entry);
                }
                Effect::Deliver { to: receiver, messages, again } => {
                    self.wire.push_back((receiver, Input::Deliver { from: to, messages, again }));
                }
                Effect::Ack { to: sender, upto, colour } => {
                    self.wire.push_back((sender, Input::Ack { from: to, upto, colour }));
                }
                Effect::Answer(answer) => drop(self.answers.insert(answer.token, answer)),
                Effect::Query(reading) if self.holds_queries => self.readings.push(*reading),
                Effect::Query(reading) => self.run_query(&reading),
                Effect::RunStep { id, run, task, asks, alone } => {
                    self.alone += usize::from(alone);
                    self.task_runs.insert((to, id), run);
                    if asks {
                        self.asking.insert((to, id), task);
                        self.give(to, Input::StepBegins { id, run });
                    } else {
                        self.tasks.push((to, id, task));
                    }
                }
                Effect::StepAllowed { id, allowed, .. } => {
                    let task = self.asking.remove(&(to, id)).unwrap();
                    if allowed {
                        self.tasks.push((to, id, task));
                    }
                }
                Effect::WantsTurn(kind) => self.grants.extend(self.trials.wants(to, kind)),
                Effect::EndsTurn(kind) => self.grants.extend(self.trials.ends(to, kind)),
                Effect::Marked { header, all } => self.marked.push((*header, all)),
                Effect::MarkerCommitted(colour) => self.committed_markers.push((to, colour)),
                Effect::Active(epoch) => assert_eq!(epoch, self.epoch),
            }
        }
        self.shards[to.0 as usize].check().unwrap();
        self.grant();
    }

    /// Runs a query apart from its shard, and answers its client.
    pub(crate) fn run_query(&mut self, reading: &Reading) {
        let answer = reading.answer(|call, view| self.script.query(call, view));
        self.answers.insert(answer.token, answer);
    }

    /// Ends the last run of a task's step.
    pub(crate) fn end_step(&mut self, shard: ShardId, id: TaskId, step: StepNumber, outcome: StepOutcome) {
        let run = self.task_runs[&(shard, id)];
        self.give(shard, Input::TaskStep { id, step, run, outcome });
    }

    /// Commits the appended entries of one shard.
    pub(crate) fn store(&mut self, shard: ShardId) {
        let upto = self.shards[shard.0 as usize].state().position().index;
        self.stored.insert(shard, upto);
        self.give(shard, Input::Stored { member: ReplicaId(0), epoch: self.epoch, upto });
    }

    /// Commits the appended entries of every shard.
    pub(crate) fn store_all(&mut self) {
        for shard in self.topology.clone().shards() {
            self.store(shard);
        }
    }

    /// Starts another life, whose shards store their first entries; the first message that they send arrives.
    pub(crate) fn restart_to_first_message(&mut self) {
        self.restart();
        self.store_all();
        let (to, input) = self.wire.pop_front().expect("a message that is on its way");
        self.give(to, input);
    }

    /// Continues until nothing moves any more.
    pub(crate) fn settle(&mut self) {
        loop {
            self.store_all();
            if let Some((to, input)) = self.wire.pop_front() {
                self.give(to, input);
                continue;
            }
            let late = |shard: &Shard| shard.commit() < shard.state().position().index;
            if self.shards.iter().any(late) {
                continue;
            }
            // Time advances to the next acknowledgement, but not to timers and resends of the future.
            let soon = self.now.plus(self.settings.ack_delay);
            let due = |shard: &&Shard| shard.deadline().is_some_and(|at| at <= soon);
            let Some(shard) = self.shards.iter().find(due).map(|shard| shard.state().shard()) else { return };
            self.now = soon;
            self.give(shard, Input::Tick);
        }
    }

    /// Lets milliseconds pass.
    pub(crate) fn pass(&mut self, millis: u64) {
        self.pass_span(Micros::from_millis(millis));
    }

    /// Lets a span of time pass.
    pub(crate) fn pass_span(&mut self, span: Micros) {
        self.now = self.now.plus(span);
        for shard in self.topology.clone().shards() {
            self.give(shard, Input::Tick);
        }
        self.settle();
    }

    pub(crate) fn request(&mut self, key: &str, payload: &str, identity: Identity) -> CallToken {
        self.request_at(key, payload, identity, Colour(0))
    }

    pub(crate) fn request_at(
        &mut self,
        key: &str,
        payload: &str,
        identity: Identity,
        colour: Colour,
    ) -> CallToken {
        self.send(key, payload, identity, colour, false)
    }

    /// Sends a request that no shard can have had before.
    pub(crate) fn request_first(&mut self, key: &str, payload: &str, identity: Identity) -> CallToken {
        self.send(key, payload, identity, Colour(0), true)
    }

    fn send(
        &mut self,
        key: &str,
        payload: &str,
        identity: Identity,
        colour: Colour,
        is_first: bool,
    ) -> CallToken {
        self.next_token = self.next_token.next();
        let request = Request {
            token: self.next_token,
            process: Key::new(key).unwrap(),
            payload: Blob::from(payload.as_bytes()),
            principal: Arc::clone(&self.principal),
            identity,
            colour,
            seen: None,
            is_first,
        };
        self.give(self.shard_of(key), Input::Request(request));
        self.next_token
    }

    /// Sends a request and returns its answer.
    pub(crate) fn call(&mut self, key: &str, payload: &str) -> Result<Reply, Refusal> {
        let token = self.request(key, payload, Identity::None);
        self.settle();
        self.answers[&token].result.clone()
    }

    pub(crate) fn query(&mut self, key: &str) -> CallToken {
        self.next_token = self.next_token.next();
        let query = Query {
            token: self.next_token,
            process: Key::new(key).unwrap(),
            payload: Blob::empty(),
            principal: "alice".into(),
            read: Read::default(),
            seen: None,
        };
        self.give(self.shard_of(key), Input::Query(query));
        self.next_token
    }

    pub(crate) fn open(&mut self, key: &str, session: u128) -> SessionId {
        let session = SessionId(session);
        self.next_token = self.next_token.next();
        let token = self.next_token;
        self.give(self.shard_of(key), Input::OpenSession { token, session, principal: "alice".into() });
        self.settle();
        assert!(self.answers[&token].result.is_ok());
        session
    }

    /// Returns the dead letters of the shard of a process.
    pub(crate) fn letters(&self, key: &str) -> Vec<(Index, DeadLetter)> {
        let records = self.shard(key).state().records();
        let letters = records.iter().filter(|(key, _)| key[0] == Kind::DeadLetter as u8);
        let read = |(key, value): (&[u8], &Blob)| {
            let number = RecordKey::from_bytes(key).unwrap().number().unwrap();
            (Index(number), decode_value(value).unwrap())
        };
        letters.map(read).collect()
    }

    /// Passes an operator's decision on a dead letter of the shard of a process; the answer may have to wait.
    pub(crate) fn decide(&mut self, key: &str, letter: Index, action: DeadLetterAction) -> CallToken {
        self.next_token = self.next_token.next();
        let token = self.next_token;
        self.give(self.shard_of(key), Input::DeadLetter { token, letter, action });
        token
    }

    /// As [`World::decide`], but returns the answer.
    pub(crate) fn decided(
        &mut self,
        key: &str,
        letter: Index,
        action: DeadLetterAction,
    ) -> Result<Reply, Refusal> {
        let token = self.decide(key, letter, action);
        self.settle();
        self.answers[&token].result.clone()
    }

    pub(crate) fn answer(&self, token: CallToken) -> Option<&Answer> {
        self.answers.get(&token)
    }

    pub(crate) fn runs(&self, key: &str) -> usize {
        self.script.runs.iter().filter(|(process, _)| process == key).count()
    }
}

pub(crate) fn ok(text: &str) -> Reply {
    Reply::Ok(Blob::from(text.as_bytes()))
}
