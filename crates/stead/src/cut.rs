//! A consistent cut of the whole system, to look at: typed processes and what is in flight between them.

use crate::codec::{self, CodecError, UnreadableState};
use crate::process::Process;
use stead_core::ids::{Seq, ShardId};
use stead_core::record::{Kind, RecordKey, TimerRecord, decode_value};
use stead_core::state::State;
use stead_core::topology::Topology;
use thiserror::Error;

/// A consistent cut: the state of each shard at its marker of one checkpoint.
#[derive(Clone, Copy)]
pub struct Cut<'a> {
    topology: &'a Topology,
    /// In the order of their shards.
    states: &'a [State],
}

/// Something in a cut that can't be read. Turns into a `String`, so that `?` works in [`Process::check`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CutError {
    /// A process's state.
    #[error(transparent)]
    State(#[from] UnreadableState),
    /// A key, a message or a timer.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl From<CutError> for String {
    fn from(error: CutError) -> Self {
        error.to_string()
    }
}

impl<'a> Cut<'a> {
    /// A cut from the states of all shards of a topology, in the order of their ids.
    #[must_use]
    pub fn new(topology: &'a Topology, states: &'a [State]) -> Self {
        Self { topology, states }
    }

    /// The processes of a service that have state, in no order.
    pub fn processes<P: Process>(&self) -> impl Iterator<Item = Result<(P::Key, P), CutError>> + use<'a, P> {
        self.shards(P::SERVICE)
            .flat_map(|state| state.records().iter())
            .filter(|(key, _)| key[0] == Kind::Process as u8)
            .filter_map(|(key, value)| Some((RecordKey::from_bytes(key)?, value)))
            .map(|(key, value)| {
                let key = key.process_key().expect("the key of a process names it");
                Ok((codec::decode_key::<P>(key)?, codec::decode_state(key, value)?))
            })
    }

    /// The state of one process; `None` if it has none.
    ///
    /// # Errors
    /// [`CutError`] if its state can't be read.
    pub fn process<P: Process>(&self, key: &P::Key) -> Result<Option<P>, CutError> {
        let Some(service) = self.topology.service_id(P::SERVICE) else { return Ok(None) };
        let key = codec::encode_key::<P>(key)?;
        let state = find(self.states, self.topology.shard_of(service, &key));
        let stored = state.and_then(|state| state.records().get(RecordKey::process(&key).as_bytes()));
        Ok(stored.map(|bytes| codec::decode_state(&key, bytes)).transpose()?)
    }

    /// The messages to processes of a service that were sent before the cut and not received before it.
    pub fn in_flight<P: Process>(
        &self,
    ) -> impl Iterator<Item = Result<(P::Key, P::Request), CutError>> + use<'a, P> {
        let (topology, states) = (self.topology, self.states);
        let service = topology.service_id(P::SERVICE);
        states
            .iter()
            .flat_map(|from| from.outboxes().iter().map(move |(to, outbox)| (from.shard(), to, outbox)))
            .filter(move |(_, to, _)| topology.service_of(*to) == service)
            .flat_map(move |(from, to, outbox)| {
                let received = find(states, to).and_then(|state| state.received().get(from).copied());
                let received = received.unwrap_or(Seq(0));
                outbox.messages.iter().filter(move |message| message.seq > received)
            })
            .map(|message| {
                let request = codec::decode(&message.payload, "a message", P::SERVICE)?;
                Ok((codec::decode_key::<P>(&message.process)?, request))
            })
    }

    /// The requests of timers of a service's processes that have not fired.
    pub fn timers<P: Process>(
        &self,
    ) -> impl Iterator<Item = Result<(P::Key, P::Request), CutError>> + use<'a, P> {
        self.shards(P::SERVICE)
            .flat_map(|state| state.records().iter())
            .filter(|(key, _)| key[0] == Kind::Timer as u8)
            .filter_map(|(_, value)| decode_value::<TimerRecord>(value).ok())
            .map(|timer| {
                let request = codec::decode(&timer.payload, "a timer's request", P::SERVICE)?;
                Ok((codec::decode_key::<P>(&timer.process)?, request))
            })
    }

    fn shards(&self, service: &str) -> impl Iterator<Item = &'a State> + use<'a> {
        let (topology, states) = (self.topology, self.states);
        let service = topology.service_id(service);
        states.iter().filter(move |state| service.is_some() && topology.service_of(state.shard()) == service)
    }
}

fn find(states: &[State], shard: ShardId) -> Option<&State> {
    states.binary_search_by_key(&shard, State::shard).ok().map(|at| &states[at])
}
