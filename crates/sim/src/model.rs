//! What the simulator knows of each shard, apart from the node: every entry that was ever given to the log, how much of
//! it is known to be synced, and the state that follows. It outlives the crashes of the node, which is held to it.

use crate::violation::Violation;
use crate::workload::Workload;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{Colour, Epoch, Index, RequestNumber, Seq, SessionId, ShardId, TaskId, Time};
use stead_core::record::{
    DeadLetter, Kind, RecordKey, Retry, SessionRecord, TaskRecord, TimerRecord, Waiting, decode_value,
};
use stead_core::records::Records;
use stead_core::shard::{Answer, Effect, Refusal};
use stead_core::state::{Message, State};
use stead_core::topology::Topology;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// All shards.
pub(crate) struct Model {
    topology: Arc<Topology>,
    shards: Vec<Shadow>,
    /// By channel, what each message was, at the place of its sequence number less one.
    sent: BTreeMap<(ShardId, ShardId), Vec<Sent>>,
    /// Which life of the node led an epoch.
    leaders: BTreeMap<Epoch, u64>,
    /// By colour, the shards' states at their markers.
    cuts: BTreeMap<Colour, Vec<State>>,
    /// Consistent cuts that were checked.
    pub(crate) cuts_checked: u64,
    /// The greatest lead of any wall clock over virtual time. A shard whose clock was set back goes on, slower.
    lead: u64,
    /// How long an idempotency key stands for one request, in microseconds.
    key_life: u64,
    pub(crate) entries: u64,
}

/// One shard.
struct Shadow {
    /// The fold of what is known to be synced.
    state: State,
    /// What was given to the log after that.
    tail: VecDeque<Entry>,
    /// Requests of sessions that were applied.
    requests: BTreeSet<(SessionId, RequestNumber)>,
    /// Requests whose clients know that they never will be, by what makes a retry of them known.
    refused: BTreeSet<[u8; 16]>,
    /// By index, a hash of what the handler was called with for an entry that is not folded yet.
    called: BTreeMap<Index, u64>,
    /// By index, when an entry that is not folded yet was made, in virtual time.
    made: BTreeMap<Index, u64>,
    /// By what makes a retry of it known, when a request with an idempotency key was applied last, in virtual time.
    keyed: BTreeMap<[u8; 16], u64>,
    /// The sum of what the entries say to have been served.
    served: u64,
}

struct Sent {
    message: u64,
    payload: u64,
    process: u64,
    colour: Colour,
}

impl Sent {
    fn of(message: &Message) -> Self {
        Self {
            message: hash_message(message),
            payload: hash_call(&message.process, &message.payload),
            process: xxh3_64(message.process.as_bytes()),
            colour: message.colour,
        }
    }
}

fn hash_message(message: &Message) -> u64 {
    xxh3_64(&minicbor::to_vec(message).expect("writing to a Vec never fails"))
}

pub(crate) fn hash_call(key: &str, payload: &[u8]) -> u64 {
    xxh3_64_with_seed(payload, xxh3_64(key.as_bytes()))
}

impl Model {
    pub(crate) fn new(topology: Arc<Topology>, idempotency_ttl: u64) -> Self {
        let shadow = |shard| Shadow {
            state: State::new(shard),
            tail: VecDeque::new(),
            requests: BTreeSet::new(),
            refused: BTreeSet::new(),
            called: BTreeMap::new(),
            made: BTreeMap::new(),
            keyed: BTreeMap::new(),
            served: 0,
        };
        Self {
            shards: topology.shards().map(shadow).collect(),
            topology,
            sent: BTreeMap::new(),
            leaders: BTreeMap::new(),
            cuts: BTreeMap::new(),
            cuts_checked: 0,
            lead: 0,
            key_life: idempotency_ttl * 1000,
            entries: 0,
        }
    }

    /// The cluster begins from restored states. Its channels are new: all that was sent in them is still kept.
    pub(crate) fn adopt(&mut self, states: &[State]) {
        for state in states {
            let from = state.shard();
            for (to, outbox) in state.outboxes().iter() {
                let log = outbox.messages.iter().map(Sent::of).collect();
                self.sent.insert((from, to), log);
            }
            self.shadow(from).state = copy(state);
            self.looked(state.position().time, 0);
        }
    }

    /// A wall clock shows this, at some virtual time.
    pub(crate) fn looked(&mut self, wall: Time, now: u64) {
        self.lead = self.lead.max(wall.0.saturating_sub(now));
    }

    fn shadow(&mut self, shard: ShardId) -> &mut Shadow {
        &mut self.shards[shard.0 as usize]
    }

    /// The state of what is known to be synced.
    pub(crate) fn state(&self, shard: ShardId) -> &State {
        &self.shards[shard.0 as usize].state
    }

    pub(crate) fn durable(&self, shard: ShardId) -> Index {
        self.state(shard).position().index
    }

    /// The last entry that was given to the log.
    pub(crate) fn appended(&self, shard: ShardId) -> Index {
        let shadow = &self.shards[shard.0 as usize];
        Index(shadow.state.position().index.0 + shadow.tail.len() as u64)
    }

    /// A life of the node leads an epoch.
    pub(crate) fn led(&mut self, epoch: Epoch, life: u64) -> Result<(), Violation> {
        match self.leaders.insert(epoch, life) {
            Some(other) if other != life => {
                Err(Violation::new(1, format!("life {life} leads epoch {epoch}, which life {other} led")))
            }
            _ => Ok(()),
        }
    }

    /// A request is refused for good, as its client knows.
    pub(crate) fn refused(&mut self, shard: ShardId, identity: [u8; 16]) {
        self.shadow(shard).refused.insert(identity);
    }

    /// The handler is called for the entry that will have this index.
    pub(crate) fn called(&mut self, shard: ShardId, index: Index, call: u64) {
        self.shadow(shard).called.insert(index, call);
    }

    /// A shard gives an entry to the log, at some virtual time; with what the wall clock shows, if it was never wrong.
    pub(crate) fn append(
        &mut self,
        shard: ShardId,
        life: u64,
        (now, right): (u64, Option<Time>),
        bytes: &[u8],
    ) -> Result<(), Violation> {
        let next = self.appended(shard).next();
        let entry = Entry::decode(bytes)
            .map_err(|e| Violation::new(16, format!("shard {shard}: appended bytes are {e}")))?;
        let mut again = Vec::with_capacity(bytes.len());
        entry.encode_into(&mut again);
        if again != bytes {
            return Err(Violation::new(
                16,
                format!("shard {shard}: entry {} reads as another one", entry.index),
            ));
        }
        if entry.index != next {
            return Err(Violation::new(
                2,
                format!("shard {shard}: appends {} where {next} should be", entry.index),
            ));
        }
        if self.leaders.get(&entry.epoch) != Some(&life) {
            let epoch = entry.epoch;
            return Err(Violation::new(
                1,
                format!("shard {shard}: life {life} appends in epoch {epoch} of another life"),
            ));
        }
        let latest = Time(self.lead + now);
        if entry.time > latest || right.is_some_and(|right| entry.time != right) {
            let time = entry.time;
            return Err(Violation::new(
                7,
                format!(
                    "shard {shard}: entry {next} is of {time:?}, where no clock is beyond {latest:?}, and a right one at {right:?}"
                ),
            ));
        }
        let shadow = self.shadow(shard);
        shadow.made.insert(next, now);
        shadow.tail.push_back(entry);
        Ok(())
    }

    /// The entry that was appended last.
    pub(crate) fn last_entry(&self, shard: ShardId) -> Option<&Entry> {
        self.shards[shard.0 as usize].tail.back()
    }

    /// Entries up to an index are synced.
    pub(crate) fn synced(
        &mut self,
        shard: ShardId,
        upto: Index,
        workload: &mut dyn Workload,
    ) -> Result<(), Violation> {
        while self.durable(shard) < upto {
            let Some(entry) = self.shadow(shard).tail.pop_front() else {
                let last = self.durable(shard);
                return Err(Violation::new(
                    2,
                    format!("shard {shard}: entry {upto} is synced, but the last is {last}"),
                ));
            };
            self.fold(shard, entry, workload)?;
        }
        Ok(())
    }

    fn fold(&mut self, shard: ShardId, entry: Entry, workload: &mut dyn Workload) -> Result<(), Violation> {
        self.entries += 1;
        self.check_time(shard, &entry)?;
        self.check_entry(shard, &entry)?;
        workload.committed(shard, &entry).map_err(|s| Violation::parse(&s))?;
        let marker = match entry.cause {
            Cause::Marker { colour } => Some(colour),
            _ => None,
        };
        let shadow = &mut self.shards[shard.0 as usize];
        let before: BTreeMap<ShardId, Seq> = entry
            .sends
            .iter()
            .map(|s| (s.to, shadow.state.outboxes().get(s.to).map_or(Seq(1), |o| o.next)))
            .collect();
        let index = entry.index;
        shadow.state.apply(entry).map_err(|misfit| Violation::new(8, misfit.to_string()))?;
        for (to, first) in before {
            let outbox = shadow.state.outboxes().get(to).expect("the entry sent to it");
            let log = self.sent.entry((shard, to)).or_default();
            if log.len() as u64 != first.0 - 1 {
                let (sent, next) = (log.len(), first.0);
                return Err(Violation::new(
                    8,
                    format!("channel {shard} to {to}: {sent} messages were sent, the next is {next}"),
                ));
            }
            let new = outbox.messages.iter().filter(|m| m.seq >= first);
            log.extend(new.map(Sent::of));
        }
        shadow.called.retain(|&at, _| at > index);
        shadow.made.retain(|&at, _| at > index);
        if let Some(colour) = marker {
            let state = copy(&shadow.state);
            self.cuts.entry(colour).or_default().push(state);
            self.check_cut(colour, workload)?;
        }
        Ok(())
    }

    /// Holds what an entry says of time against the clocks of the world.
    fn check_time(&mut self, shard: ShardId, entry: &Entry) -> Result<(), Violation> {
        let key_life = self.key_life;
        let shadow = self.shadow(shard);
        let bad =
            |what: String| Err(Violation::new(7, format!("shard {shard}: entry {} {what}", entry.index)));
        let Some(&now) = shadow.made.get(&entry.index) else { return bad("was never made".to_owned()) };
        let last = shadow.state.position().time;
        if entry.time < last {
            return bad(format!("is of {:?} after {last:?}", entry.time));
        }
        shadow.served += entry.served.unwrap_or(0);
        if shadow.served > now {
            return bad(format!("says that {} µs were served in {now}", shadow.served));
        }
        if let (Cause::Idempotent { .. }, Some(identity)) =
            (&entry.cause, entry.cause.identity(&entry.process))
            && let Some(first) = shadow.keyed.insert(identity, now)
            && now - first < key_life
        {
            let age = now - first;
            return bad(format!(
                "applies a request again after {age} of the {key_life} µs that its key lives"
            ));
        }
        Ok(())
    }

    /// Holds an entry against what was known before it.
    fn check_entry(&mut self, shard: ShardId, entry: &Entry) -> Result<(), Violation> {
        let index = entry.index;
        let shadow = &self.shards[shard.0 as usize];
        let bad = |invariant, what: String| {
            Err(Violation::new(invariant, format!("shard {shard}: entry {index} {what}")))
        };
        if entry.epoch < shadow.state.position().epoch {
            return bad(1, format!("is of epoch {} after {}", entry.epoch, shadow.state.position().epoch));
        }
        if entry.cause.identity(&entry.process).is_some_and(|identity| shadow.refused.contains(&identity)) {
            return bad(7, format!("applies {:?}, which was refused for good", entry.cause));
        }
        let served = shadow.state.position().served().plus_micros(entry.served.unwrap_or(0));
        match &entry.cause {
            Cause::Request { session, number, .. } => {
                let open = shadow.state.session(*session);
                if open.is_none_or(|open| open.expires <= served) {
                    return bad(7, format!("applies request {number} of session {session}, which ran out"));
                }
                if !self.shadow(shard).requests.insert((*session, *number)) {
                    return bad(7, format!("applies request {number} of session {session} a second time"));
                }
            }
            Cause::Idempotent { principal, key, .. } => {
                let record = RecordKey::idempotency(&entry.process, principal, key);
                if shadow.state.records().get(record.as_bytes()).is_some() {
                    return bad(7, format!("applies the request with idempotency key {key:?} a second time"));
                }
            }
            Cause::Message { from, seq } => self.check_receive(shard, entry, *from, *seq, true)?,
            Cause::DeadLetter { cause: Waiting::Message { from, seq } } => {
                self.check_receive(shard, entry, *from, *seq, false)?;
            }
            Cause::Timer { id } | Cause::DeadLetter { cause: Waiting::Timer { id } } => {
                let Some(timer) = shadow.state.record::<TimerRecord>(&RecordKey::timer(*id)) else {
                    return bad(7, format!("fires timer {id}, which is not set"));
                };
                if timer.at > entry.time {
                    return bad(7, format!("fires timer {id} at {:?}, before {:?}", entry.time, timer.at));
                }
            }
            Cause::Task { id, step } | Cause::DeadLetter { cause: Waiting::Task { id, step } } => {
                let task: Option<TaskRecord> = shadow.state.record(&RecordKey::task(*id));
                if task.as_ref().map(|t| t.step) != Some(*step) {
                    return bad(
                        7,
                        format!("ends step {step} of task {id}, which is at {:?}", task.map(|t| t.step)),
                    );
                }
            }
            Cause::DeadLetter { cause: Waiting::Request { .. } | Waiting::Call { .. } } => {}
            Cause::Retry { letter }
            | Cause::Drop { letter }
            | Cause::DeadLetter { cause: Waiting::DeadLetter { letter } } => {
                let Some(known) = shadow.state.record::<DeadLetter>(&RecordKey::dead_letter(*letter)) else {
                    return bad(7, format!("is about dead letter {letter}, which is not there"));
                };
                let is_it = match (&entry.cause, &known.retry) {
                    (Cause::Retry { .. }, Some(Retry::Step { .. })) => {
                        let mut tasks = entry.writes.iter().filter(|write| write.key.kind() == Kind::Task);
                        let task = tasks.next().and_then(|write| write.value.as_ref());
                        let task = task.and_then(|task| decode_value::<TaskRecord>(task).ok());
                        task.is_some_and(|task| task.state == known.payload)
                    }
                    (Cause::Retry { .. }, _) => {
                        let call = hash_call(&known.process, &known.payload);
                        shadow.called.get(&index).is_none_or(|&called| called == call)
                    }
                    _ => true,
                };
                if !is_it {
                    return bad(7, format!("handles something else than dead letter {letter}"));
                }
            }
            Cause::Expire => {
                // Or what its client holds goes.
                let sessions = entry.writes.iter().filter(|write| write.key.kind() == Kind::Session);
                let confirmed = |id| {
                    let session = sessions.clone().find(|write| write.key.session_id() == id)?;
                    let record: SessionRecord = decode_value(session.value.as_ref()?).ok()?;
                    Some(record.confirmed)
                };
                for key in entry.writes.iter().filter(|w| w.value.is_none()).map(|w| &w.key) {
                    // A reply lives as long as its session, which is refused from then on, whenever it goes itself.
                    let expires = match key.kind() {
                        Kind::Reply
                            if confirmed(key.session_id())
                                .is_some_and(|upto| key.request_number() <= Some(upto)) =>
                        {
                            None
                        }
                        Kind::Reply => {
                            key.session_id().and_then(|id| shadow.state.session(id)).map(|open| open.expires)
                        }
                        _ => shadow.state.expiries().iter().find(|(_, k)| k == key).map(|(at, _)| *at),
                    };
                    if let Some(at) = expires.filter(|at| *at > served) {
                        return bad(7, format!("forgets {key:?} at {served:?}, which lives until {at:?}"));
                    }
                }
            }
            Cause::Ack { trims } => {
                for trim in trims {
                    let received = self.state(trim.to).received().get(shard).copied().unwrap_or_default();
                    if trim.upto > received {
                        return bad(
                            9,
                            format!("trims {} to shard {}, which holds {received}", trim.upto, trim.to),
                        );
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_receive(
        &self,
        shard: ShardId,
        entry: &Entry,
        from: ShardId,
        seq: Seq,
        handled: bool,
    ) -> Result<(), Violation> {
        let index = entry.index;
        let bad = |invariant, what: String| {
            Err(Violation::new(invariant, format!("shard {shard}: entry {index} {what}")))
        };
        let shadow = &self.shards[shard.0 as usize];
        let last = shadow.state.received().get(from).copied().unwrap_or_default();
        if seq != last.next() {
            return bad(8, format!("receives message {seq} of shard {from} after {last}"));
        }
        let Some(sent) = self.sent.get(&(from, shard)).and_then(|log| log.get(seq.0 as usize - 1)) else {
            return bad(8, format!("receives message {seq} of shard {from}, which has not sent so many"));
        };
        if sent.process != xxh3_64(entry.process.as_bytes()) {
            return bad(
                8,
                format!(
                    "receives message {seq} of shard {from} at {}, which it was not sent to",
                    entry.process
                ),
            );
        }
        if handled && shadow.called.get(&index).is_some_and(|&call| call != sent.payload) {
            return bad(8, format!("handled another message than {seq} of shard {from}"));
        }
        if sent.colour > shadow.state.position().colour {
            let (colour, own) = (sent.colour, shadow.state.position().colour);
            return bad(
                9,
                format!("receives a message of colour {colour} before its own marker, at colour {own}"),
            );
        }
        Ok(())
    }

    /// Checks the cut of a colour once every shard has its marker in the log.
    fn check_cut(&mut self, colour: Colour, workload: &mut dyn Workload) -> Result<(), Violation> {
        let cut = self.cuts.get_mut(&colour).expect("one of its states was just added");
        if cut.len() < self.shards.len() {
            return Ok(());
        }
        cut.sort_by_key(State::shard);
        check_channels(cut)?;
        workload.check_cut(&self.topology, cut).map_err(|s| Violation::parse(&s))?;
        self.cuts_checked += 1;
        Ok(())
    }

    /// The shard's state at its marker.
    pub(crate) fn mark(&self, colour: Colour, shard: ShardId) -> Option<&State> {
        self.cuts.get(&colour)?.iter().find(|state| state.shard() == shard)
    }

    /// Checkpoints below this number will not be asked for again.
    pub(crate) fn forget_cuts_below(&mut self, colour: Colour) {
        self.cuts = self.cuts.split_off(&colour);
    }

    /// The node came back with a shard at this state. Nothing synced may be missing, nothing else may be there.
    pub(crate) fn recovered(&mut self, found: &State, workload: &mut dyn Workload) -> Result<(), Violation> {
        let shard = found.shard();
        let index = found.position().index;
        let (durable, appended) = (self.durable(shard), self.appended(shard));
        if index < durable {
            return Err(Violation::new(
                2,
                format!("shard {shard}: came back at {index}, but {durable} was committed"),
            ));
        }
        if index > appended {
            return Err(Violation::new(
                2,
                format!("shard {shard}: came back at {index}, but the last entry was {appended}"),
            ));
        }
        self.synced(shard, index, workload)?;
        let shadow = self.shadow(shard);
        shadow.tail.clear();
        shadow.called.clear();
        shadow.made.clear();
        self.same(found)
    }

    /// The shard has the state that its entries make.
    pub(crate) fn same(&self, found: &State) -> Result<(), Violation> {
        let shard = found.shard();
        let known = self.state(shard);
        let index = found.position().index;
        if known.hash() == found.hash() {
            for (other, how) in [(known, "replayed"), (&copy(found), "loaded")] {
                if let Some(differs) = found.index_difference(other) {
                    let what =
                        format!("shard {shard}: at {index} its {differs} are not those of its {how} state");
                    return Err(Violation::new(2, what));
                }
            }
            return Ok(());
        }
        Err(Violation::new(
            2,
            format!(
                "shard {shard}: at {index} its state is not that of its entries: {}",
                differ(known, found)
            ),
        ))
    }

    /// Holds what leaves a shard against what is synced.
    pub(crate) fn check_effect(&self, shard: ShardId, effect: &Effect) -> Result<(), Violation> {
        let state = self.state(shard);
        let early = |what: String| {
            Err(Violation::new(5, format!("shard {shard}: {what} before its entry is committed")))
        };
        match effect {
            Effect::Deliver { to, messages, .. } => {
                let log = self.sent.get(&(shard, *to)).map_or(&[][..], Vec::as_slice);
                let mut last = None;
                for message in messages {
                    let seq = message.seq;
                    match log.get(seq.0.wrapping_sub(1) as usize) {
                        None => return early(format!("message {seq} to shard {to} leaves")),
                        Some(sent) if sent.message != hash_message(message) => {
                            let what =
                                format!("shard {shard}: message {seq} to shard {to} is not what was sent");
                            return Err(Violation::new(8, what));
                        }
                        Some(_) => {}
                    }
                    if last.is_some_and(|last: Seq| seq != last.next()) {
                        return Err(Violation::new(
                            8,
                            format!("shard {shard}: message {seq} to shard {to} leaves out of turn"),
                        ));
                    }
                    last = Some(seq);
                }
            }
            Effect::Ack { to, upto, colour } => {
                if *upto > state.received().get(*to).copied().unwrap_or_default() {
                    return early(format!("the acknowledgement of message {upto} of shard {to} leaves"));
                }
                if *colour > state.position().colour {
                    return early(format!("an acknowledgement to shard {to} names marker {colour}"));
                }
            }
            Effect::Answer(Answer { token, index, colour, result, .. }) => {
                if *index > state.position().index {
                    return early(format!("answer {token}, which saw entry {index}, leaves"));
                }
                if *colour > state.position().colour {
                    return early(format!("answer {token} names marker {colour}"));
                }
                // An answer that names no entry would pass whatever it had seen.
                let saw_state = result.as_ref().err().is_none_or(Refusal::saw_state);
                if saw_state && *index == Index(0) {
                    return early(format!("answer {token}, which does not say what it saw, leaves"));
                }
            }
            Effect::Query(reading) => {
                if reading.index > state.position().index {
                    return early(format!("a query leaves, which saw entry {},", reading.index));
                }
            }
            Effect::RunTask { id, task, .. } => self.check_task(shard, *id, task)?,
            Effect::StepAllowed { .. } | Effect::WantsTurn(_) | Effect::EndsTurn(_) => {}
            Effect::MarkerCommitted(colour) => {
                if *colour > state.position().colour {
                    return early(format!("marker {colour} counts"));
                }
            }
            Effect::Active(epoch) => {
                if *epoch != state.position().epoch {
                    return early(format!("epoch {epoch} serves"));
                }
            }
            Effect::Append { .. } | Effect::Marked { .. } => {}
        }
        Ok(())
    }

    fn check_task(&self, shard: ShardId, id: TaskId, task: &TaskRecord) -> Result<(), Violation> {
        let known: Option<TaskRecord> = self.state(shard).record(&RecordKey::task(id));
        if known.as_ref() == Some(task) {
            return Ok(());
        }
        let what =
            format!("shard {shard}: step {} of task {id} runs, which is not what is committed", task.step);
        Err(Violation::new(5, what))
    }

    /// A hash over everything that is durable.
    pub(crate) fn hash(&self) -> u128 {
        self.shards.iter().fold(0, |sum: u128, s| sum.rotate_left(7) ^ s.state.hash())
    }
}

/// Invariants 8 and 9 over a cut: nothing is received that was not sent, and all that is in flight lies in an outbox.
pub(crate) fn check_channels(cut: &[State]) -> Result<(), Violation> {
    let by_shard: BTreeMap<ShardId, &State> = cut.iter().map(|s| (s.shard(), s)).collect();
    for to in cut {
        for (from, received) in to.received().iter() {
            let sent =
                by_shard.get(&from).and_then(|s| s.outboxes().get(to.shard())).map_or(0, |o| o.next.0 - 1);
            if received.0 > sent {
                let (to, colour) = (to.shard(), to.position().colour);
                let what = format!(
                    "cut {colour}: shard {to} received {received} messages of shard {from}, which sent {sent}"
                );
                return Err(Violation::new(9, what));
            }
        }
    }
    for from in cut {
        for (to, outbox) in from.outboxes().iter() {
            let received =
                by_shard.get(&to).and_then(|s| s.received().get(from.shard())).copied().unwrap_or_default();
            let in_flight = (outbox.next.0 - 1).saturating_sub(received.0);
            let held = outbox.messages.iter().filter(|m| m.seq > received).count() as u64;
            if held != in_flight {
                let (from, colour) = (from.shard(), from.position().colour);
                let what = format!(
                    "cut {colour}: {in_flight} messages from shard {from} to {to} are in flight, {held} are kept"
                );
                return Err(Violation::new(9, what));
            }
        }
    }
    Ok(())
}

pub(crate) fn copy(state: &State) -> State {
    let mut records = Records::new();
    records.reserve(state.records().len());
    for (key, value) in state.records().iter() {
        records.load(key, Some(value.clone()));
    }
    records.loaded();
    State::load(state.header(), records).expect("a copy of a sound state is sound")
}

/// Says where two states of a shard differ.
pub(crate) fn differ(wanted: &State, found: &State) -> String {
    let (a, b) = (wanted.header(), found.header());
    if a.position != b.position {
        return format!("position {:?} instead of {:?}", b.position, a.position);
    }
    if a.received != b.received {
        return format!("received {:?} instead of {:?}", b.received, a.received);
    }
    if a.outboxes != b.outboxes {
        let text = |h: &stead_core::state::Header| -> String {
            h.outboxes
                .iter()
                .map(|(to, o)| format!(" {to}: {} before {}", o.messages.len(), o.next))
                .collect()
        };
        return format!("outboxes{} instead of{}", text(&b), text(&a));
    }
    let keys: BTreeSet<&[u8]> =
        wanted.records().iter().chain(found.records().iter()).map(|(k, _)| k).collect();
    for key in keys {
        let (a, b) = (wanted.records().get(key), found.records().get(key));
        if a != b {
            return format!(
                "record {:?} is {:?} instead of {:?}",
                RecordKey::from_bytes(key),
                b.map(|v| v.escape_ascii().to_string()),
                a.map(|v| v.escape_ascii().to_string())
            );
        }
    }
    "sums of the records".to_owned()
}
