//! Surrounds user code on a worker with the watchdog's probe, the slice of the turn, the limits of memory, the
//! admission of queries, and the handling of its panics.

use crate::clock::Clock;
use crate::env::{Env, Program, Watch};
use crate::memory::Memory;
use crate::shared::Shared;
use crate::slice::Slice;
use crate::watchdog::Probe;
use std::cell::Cell;
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::calls::{Call, Outcome, Refusal};
use stead_core::capture::View;
use stead_core::handler::{Handler, QueryPlace, Txn};
use stead_core::ids::Time;
use stead_core::shard::{Effect, Input, Shard};
use stead_core::shard_replica::Watched;

/// A program's handler, guarded.
pub(crate) struct Guarded<E: Env> {
    handler: <E::Program as Program>::Handler,
    shared: Arc<Shared<E>>,
    memory: Arc<Memory>,
    probe: Arc<Probe>,
    slice: Slice,
    is_over: Cell<bool>,
    is_stopped: bool,
}

impl<E: Env> Guarded<E> {
    pub(crate) fn new(
        handler: <E::Program as Program>::Handler,
        shared: &Arc<Shared<E>>,
        probe: Arc<Probe>,
    ) -> Self {
        Self {
            handler,
            shared: Arc::clone(shared),
            memory: Arc::clone(&shared.memory),
            probe,
            slice: Slice::default(),
            is_over: Cell::new(false),
            is_stopped: false,
        }
    }

    /// Begins a slice: handlers may begin until its end.
    pub(crate) fn begin_slice(&mut self, now: Time, until: Time) {
        self.slice.begin(now, until);
        self.is_over.set(self.is_stopped);
    }

    /// Lets no further handler begin, except for a client's request.
    pub(crate) fn stop(&mut self) {
        self.is_stopped = true;
        self.is_over.set(true);
    }

    /// Whether a shard was held back since the slice began.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.get()
    }

    pub(crate) fn probe(&self) -> &Probe {
        &self.probe
    }
}

impl<E: Env> Handler for Guarded<E> {
    fn handle(&mut self, call: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
        self.probe.enter(call);
        let outcome = self.handler.handle(call, txn);
        self.probe.leave();
        outcome
    }

    fn query(&mut self, call: &Call<'_>, view: View<'_>) -> Outcome {
        self.probe.enter(call);
        let outcome = self.handler.query(call, view);
        self.probe.leave();
        outcome
    }

    fn place_query(&mut self, call: &Call<'_>, state: Option<&Blob>) -> Result<QueryPlace, Refusal> {
        let place = self.handler.place_query(call, state)?;
        if place == QueryPlace::Apart {
            self.shared
                .queries
                .admit(call.service, &self.shared.topology, &self.memory, || self.shared.now())?;
        }
        Ok(place)
    }

    fn is_spent(&self) -> bool {
        let is_over = self.is_over.get()
            // Perhaps by the handler that has just run.
            || self.shared.is_ended()
            || self.memory.is_pressed()
            || self.slice.is_over(|| self.shared.clock.steady())
            || self.handler.is_spent();
        self.is_over.set(is_over);
        is_over
    }
}

impl<E: Env> Watched for Guarded<E> {
    fn sees_input(&mut self, shard: &Shard, input: &Input) {
        self.shared.watch.input(shard, input);
    }

    fn sees_effects(&mut self, shard: &Shard, effects: &mut Vec<Effect>) {
        self.shared.watch.effects(shard, effects);
    }
}
