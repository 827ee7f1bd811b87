//! What stands around user code on a worker: the watchdog's probe, the slice of the turn, the limits of memory, the
//! admission of queries, and the end.

use crate::env::Caller;
use crate::memory::Memory;
use crate::queries::QueryQueue;
use crate::slice::Slice;
use crate::watchdog::Probe;
use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;
use stead_core::handler::{Call, Handler, Outcome, QueryPlace, Txn, View};
use stead_core::ids::Blob;
use stead_core::shard::Refusal;
use stead_core::topology::Topology;

/// A program's handler, guarded.
pub struct Guarded<H, C> {
    handler: H,
    topology: Arc<Topology>,
    probe: Arc<Probe>,
    slice: Slice,
    is_over: Cell<bool>,
    is_stopped: bool,
    memory: Arc<Memory>,
    /// Where queries go that run apart.
    queries: Arc<QueryQueue<C>>,
}

impl<H, C> Guarded<H, C> {
    pub(crate) fn new(
        handler: H,
        topology: &Arc<Topology>,
        probe: Arc<Probe>,
        memory: &Arc<Memory>,
        queries: &Arc<QueryQueue<C>>,
    ) -> Self {
        Self {
            handler,
            topology: Arc::clone(topology),
            probe,
            slice: Slice::default(),
            is_over: Cell::new(false),
            is_stopped: false,
            memory: Arc::clone(memory),
            queries: Arc::clone(queries),
        }
    }

    /// Lets handlers begin until then, and no later.
    pub(crate) fn begin_slice(&mut self, now: Instant, until: Instant) {
        self.slice.begin(now, until);
        self.is_over.set(self.is_stopped);
    }

    /// Lets no handler begin any more, but for a client's request.
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

impl<H: Handler, C: Caller> Handler for Guarded<H, C> {
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
            self.queries.admit(call.service, &self.topology, &self.memory)?;
        }
        Ok(place)
    }

    fn is_spent(&self) -> bool {
        let is_over = self.is_over.get()
            || self.memory.is_pressed()
            || self.slice.is_over(Instant::now)
            || self.handler.is_spent();
        self.is_over.set(is_over);
        is_over
    }
}
