//! Stale reads: any replica answers them from the state that is committed, and names its age.
//!
//! A backup knows that age by its primary's reports, in times of its own clock; a primary, which may be deposed without knowing
//! it, by the last round that was confirmed. So what no round has confirmed for long is refused, wherever it is.

use super::io::Watched;
use super::{Role, ShardReplica};
use crate::calls::{Answer, Query, Refusal};
use crate::capture::{Capture, Reading};
use crate::clock::Now;
use crate::handler::QueryPlace;
use crate::ids::{Index, Micros, Time};
use crate::record::RecordKey;
use crate::replication::freshness::TooStale;
use crate::shard;
use crate::state::State;

impl ShardReplica {
    /// Answers a stale query, or refuses it. At a primary, whose state may be ahead of the commit index, its answer waits until what it
    /// saw is committed.
    pub(super) fn read_stale(
        &mut self,
        now: Now,
        query: Query,
        max_lag: Option<Micros>,
        handler: &mut dyn Watched,
        out: &mut super::Effects,
    ) {
        let max_lag = max_lag.map_or(self.settings.max_lag, |asked| asked.min(self.settings.max_lag));
        let staleness = match self.staleness(now.steady, max_lag) {
            Ok(staleness) => staleness,
            Err(why) => {
                let answer = self.refusal(&query, why.into());
                return out.shard.push(shard::Effect::Answer(answer));
            }
        };
        if let Role::Leads(leading) = &mut self.role {
            leading.shard.note_read(false);
            leading.shard.note_staleness(staleness);
            return self.run_shard(now, shard::Input::Query(query), handler, out);
        }
        let effect = match self.capture(query, staleness, handler) {
            Err(answer) => shard::Effect::Answer(answer),
            Ok((reading, QueryPlace::Here)) => {
                shard::Effect::Answer(reading.answer(|call, view| handler.query(call, view)))
            }
            Ok((reading, QueryPlace::Apart)) => shard::Effect::Query(Box::new(reading)),
        };
        out.shard.push(effect);
    }

    /// Returns the age of the state that a stale read would see, if it is at most `max_lag`.
    fn staleness(&self, now: Time, max_lag: Micros) -> Result<Micros, TooStale> {
        match &self.role {
            Role::Leads(leading) => leading.staleness(now, max_lag),
            Role::Follows(_) | Role::Rebuilds => {
                self.readable_state().ok_or(TooStale::Unknown)?;
                self.replica.staleness(now, max_lag)
            }
        }
    }

    /// Returns the state of a replica that does not lead, if all of it is committed, and it holds what was applied when its age was
    /// reported: one that was folded anew may lack some of that.
    fn readable_state(&self) -> Option<&State> {
        self.committed_state().filter(|state| state.position().index >= self.applied)
    }

    fn capture(
        &self,
        query: Query,
        staleness: Micros,
        handler: &mut dyn Watched,
    ) -> Result<(Reading, QueryPlace), Answer> {
        let Some(state) = self.readable_state() else {
            return Err(self.refusal(&query, TooStale::Unknown.into()));
        };
        let (service, position) = (self.topology.service_of(self.id), state.position());
        let service = service.expect("a replica is made for its topology");
        let (time, epoch, index, colour) = (position.time, position.epoch, position.index, position.colour);
        let value = state.records().get(RecordKey::process(&query.process).as_bytes());
        let place = handler.place_query(&query.call(service, time, (epoch, index)), value);
        let place = place.map_err(|refusal| self.refusal(&query, refusal))?;
        let capture = Capture::with(state, &query.process, value);
        let staleness = Some(staleness);
        Ok((Reading { query, service, time, epoch, index, colour, staleness, capture }, place))
    }

    fn refusal(&self, query: &Query, refusal: Refusal) -> Answer {
        let position = self.committed_state().map(State::position);
        let (epoch, colour) = position.map(|position| (position.epoch, position.colour)).unwrap_or_default();
        let (token, index) = (query.token, Index(0));
        Answer { token, epoch, index, colour, result: Err(refusal), staleness: None }
    }
}
