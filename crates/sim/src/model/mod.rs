//! The simulator's own knowledge of each shard: every entry that was ever given to the log, how far the log is known to
//! be synced, and the state that follows. It outlives the crashes of the node, which is compared with it.

mod cuts;
mod due;
mod entries;
mod fold;
mod leaving;
mod restored;
mod seen;

pub(crate) use cuts::{check_channels, copy, difference, with_header};
pub(crate) use due::LATE_MAX;
pub(crate) use fold::Fold;
pub(crate) use restored::Wanted;
pub(crate) use seen::{Seen, records_in, records_of};

use crate::violation::Violation;
use crate::workload::Workload;
use due::{Due, Sessions};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use stead_core::channel::Message;
use stead_core::entry::Entry;
use stead_core::ids::{
    CheckpointNumber, Colour, Epoch, Index, Micros, RequestNumber, SessionId, ShardId, Time,
};
use stead_core::key::Key;
use stead_core::shard::Settings;
use stead_core::state::{Header, State};
use stead_core::topology::Topology;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// All shards.
pub(crate) struct Model {
    topology: Arc<Topology>,
    shards: Vec<Shadow>,
    /// By channel, the messages, each at the position of its sequence number minus one.
    sent: BTreeMap<(ShardId, ShardId), Vec<Sent>>,
    /// The life of the node that led each epoch.
    leaders: BTreeMap<(ShardId, Epoch), u64>,
    /// By checkpoint, the shards' states at their markers.
    cuts: BTreeMap<CheckpointNumber, Vec<State>>,
    /// Number of consistent cuts that were checked.
    pub(crate) cuts_checked: u64,
    /// The greatest lead of any wall clock over virtual time. A shard whose clock was set back continues more slowly.
    lead: u64,
    pub(crate) entries: u64,
}

/// The model of a shard.
struct Shadow {
    /// The state after the entries that are known to be synced.
    fold: Fold,
    /// The later entries that were given to the log.
    tail: VecDeque<Entry>,
    /// Requests of sessions that were applied.
    requests: BTreeSet<(SessionId, RequestNumber)>,
    /// Requests that will never be applied, as their clients know, by the identity of their retries.
    refused: BTreeSet<[u8; 16]>,
    /// By index, a hash of the handler's call for an entry that is not folded yet.
    called: BTreeMap<Index, u64>,
    /// By index, the virtual time at which an entry was made that is not folded yet.
    made: BTreeMap<Index, u64>,
    /// By checkpoint, the header of the part that the shard began in this life, until its marker is folded.
    marked: BTreeMap<CheckpointNumber, Header>,
    /// By request that is in no checked cut yet, the entries that its client had seen before.
    causes: BTreeMap<Index, Vec<(ShardId, Index)>>,
    due: Due,
    sessions: Sessions,
    /// By the identity of its retries, the virtual time at which a request with an idempotency key was last applied.
    keyed: BTreeMap<[u8; 16], u64>,
    /// The sum of the served times in the entries.
    served: Micros,
    /// The time for which an idempotency key identifies one request.
    key_life: Micros,
    /// The time for which a session lives after its last use.
    session_life: Micros,
}

struct Sent {
    message: u64,
    payload: u64,
    process: Key,
    colour: Colour,
}

impl Sent {
    fn of(message: &Message) -> Self {
        Self {
            message: hash_message(message),
            payload: hash_call(&message.process, &message.payload),
            process: message.process.clone(),
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
    /// `settings` are those of a service, by its place.
    pub(crate) fn new<'a>(topology: Arc<Topology>, settings: impl Fn(usize) -> &'a Settings) -> Self {
        let mut model = Self {
            shards: Vec::new(),
            topology: Arc::clone(&topology),
            sent: BTreeMap::new(),
            leaders: BTreeMap::new(),
            cuts: BTreeMap::new(),
            cuts_checked: 0,
            lead: 0,
            entries: 0,
        };
        model.extend(topology, settings);
        model
    }

    /// Begins with further shards, which a topology has more.
    pub(crate) fn extend<'a>(&mut self, topology: Arc<Topology>, settings: impl Fn(usize) -> &'a Settings) {
        let of = |shard| settings(usize::from(topology.service_of(shard).expect("a shard of the run").0));
        let shadow = |shard| Shadow {
            fold: Fold::new(shard),
            tail: VecDeque::new(),
            requests: BTreeSet::new(),
            refused: BTreeSet::new(),
            called: BTreeMap::new(),
            made: BTreeMap::new(),
            marked: BTreeMap::new(),
            causes: BTreeMap::new(),
            due: Due::default(),
            sessions: Sessions::default(),
            keyed: BTreeMap::new(),
            served: Micros(0),
            key_life: of(shard).idempotency_ttl,
            session_life: of(shard).session_ttl,
        };
        self.shards.extend(topology.shards().skip(self.shards.len()).map(shadow));
        self.topology = topology;
    }

    /// Begins from the states that a restore had to make, and has stored as a checkpoint. The channels are new: all messages
    /// that were sent in them are still kept.
    pub(crate) fn adopt(&mut self, number: CheckpointNumber, shards: Vec<Fold>) {
        self.cuts.insert(number, shards.iter().map(Fold::to_state).collect());
        for fold in shards {
            let Header { shard: from, outboxes, position, .. } = fold.header();
            for (to, outbox) in outboxes {
                let log = outbox.messages.iter().map(Sent::of).collect();
                self.sent.insert((from, to), log);
            }
            self.shadow(from).fold = fold;
            self.looked(position.time, 0);
        }
    }

    /// Notes the wall clock at some virtual time.
    pub(crate) fn looked(&mut self, wall: Time, now: u64) {
        self.lead = self.lead.max(wall.0.saturating_sub(now));
    }

    fn shadow(&mut self, shard: ShardId) -> &mut Shadow {
        &mut self.shards[shard.0 as usize]
    }

    /// Returns the state after the entries that are known to be synced.
    pub(crate) fn state(&self, shard: ShardId) -> &Fold {
        &self.shards[shard.0 as usize].fold
    }

    pub(crate) fn durable(&self, shard: ShardId) -> Index {
        self.state(shard).position().index
    }

    /// Returns the last entry that was given to the log.
    pub(crate) fn appended(&self, shard: ShardId) -> Index {
        let shadow = &self.shards[shard.0 as usize];
        Index(shadow.fold.position().index.0 + shadow.tail.len() as u64)
    }

    /// Handles that a life of the node leads a shard in an epoch.
    pub(crate) fn led(&mut self, shard: ShardId, epoch: Epoch, life: u64) -> Result<(), Violation> {
        match self.leaders.insert((shard, epoch), life) {
            Some(other) if other != life => {
                let what = format!("shard {shard}: life {life} leads epoch {epoch}, which life {other} led");
                Err(Violation::new(1, what))
            }
            _ => Ok(()),
        }
    }

    /// Notes that a request was refused for good, as its client knows.
    pub(crate) fn refused(&mut self, shard: ShardId, identity: [u8; 16]) {
        self.shadow(shard).refused.insert(identity);
    }

    /// Notes that the handler is called for the entry with this index.
    pub(crate) fn called(&mut self, shard: ShardId, index: Index, call: u64) {
        self.shadow(shard).called.insert(index, call);
    }

    /// Returns the hash of the handler's call for an entry that is not folded yet.
    pub(crate) fn call_of(&self, shard: ShardId, index: Index) -> Option<u64> {
        self.shards[shard.0 as usize].called.get(&index).copied()
    }

    /// Checks the recovered state of a shard: no synced entry may be missing, and no other entry may exist.
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
        shadow.marked.clear();
        shadow.causes.retain(|&at, _| at <= index);
        self.same(found)?;
        self.same_records(found)
    }

    /// Checks that the shard has the state that its entries make.
    pub(crate) fn same(&self, found: &State) -> Result<(), Violation> {
        let shard = found.shard();
        let known = self.state(shard);
        if known.is_like(found) {
            return Ok(());
        }
        let index = found.position().index;
        let differs = difference(&known.to_state(), found).unwrap_or_else(|| "sums".to_owned());
        let what = format!("shard {shard}: at {index} its state is not that of its entries: {differs}");
        Err(Violation::new(2, what))
    }

    /// As [`Model::same`], comparing each record and each index over the records.
    pub(crate) fn same_records(&self, found: &State) -> Result<(), Violation> {
        let shard = found.shard();
        let index = found.position().index;
        let known = self.state(shard);
        if let Some(key) = known.other_record(found) {
            let what = format!("shard {shard}: at {index} its record {key:?} is not that of its entries");
            return Err(Violation::new(2, what));
        }
        if let Some(differs) = found.index_difference(&known.to_state()) {
            let what = format!("shard {shard}: at {index} its {differs} are not those of its loaded state");
            return Err(Violation::new(2, what));
        }
        Ok(())
    }

    /// Returns a hash over everything that is durable.
    pub(crate) fn hash(&self) -> u128 {
        self.shards.iter().fold(0, |sum: u128, s| sum.rotate_left(7) ^ s.fold.hash())
    }
}
