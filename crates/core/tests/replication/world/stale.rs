//! The judgement on stale reads: what one shows is the state at a commit index, and holds all that was answered before its age.

use super::early::Floor;
use super::service::Lister;
use super::{SETTINGS, World, fold};
use crate::bugs::Bug;
use std::collections::BTreeMap;
use stead_core::calls::{Answer, Call, Caller, Outcome, Query, Read, Refusal};
use stead_core::capture::Capture;
use stead_core::handler::Handler;
use stead_core::ids::{CallToken, Micros, ServiceId, Time};
use stead_core::reply::Reply;
use stead_core::shard::Shard;

/// The stale reads, and what they are judged by.
#[derive(Default)]
pub(super) struct StaleReads {
    /// Those that replicas have, with the times at which they got them and the ages that are allowed.
    asked: BTreeMap<CallToken, (Time, Micros)>,
    /// The answers by a time, ascending.
    floors: Vec<(Time, Floor)>,
    /// By index, the number of committed positions.
    pub(super) counts: Vec<u32>,
}

impl StaleReads {
    pub(super) fn is_asked(&self, token: CallToken) -> bool {
        self.asked.contains_key(&token)
    }
}

impl World {
    /// Notes what clients have got by now.
    pub(super) fn note_floor(&mut self) {
        self.stale.floors.push((self.now, self.floor()));
    }

    /// A replica gets a stale read. Returns true if a planted bug has answered it.
    pub(super) fn begin_stale(&mut self, at: usize, query: &Query) -> Result<bool, String> {
        let Read::Stale { max_lag } = query.read else { return Ok(false) };
        let max_lag = max_lag.unwrap_or(SETTINGS.max_lag);
        self.stale.asked.insert(query.token, (self.now, max_lag));
        let Some(replica) = &self.nodes[at].replica else { return Ok(false) };
        let state = match self.bug {
            Some(Bug::StaleAtPaused) if replica.shard().is_some_and(Shard::is_active) => {
                &fold(&self.committed, replica.replica().commit())
            }
            Some(Bug::SpeculativeRead) if let Some(state) = replica.state() => state,
            _ => return Ok(false),
        };
        let position = state.position();
        let view = Capture::new(state, &query.process);
        let call = Call {
            service: ServiceId(0),
            key: &query.process,
            caller: Caller::Client { principal: &query.principal },
            payload: &query.payload,
            time: position.time,
            place: (position.epoch, position.index),
        };
        let Outcome::Replied(reply) = Lister.query(&call, view.view()) else {
            return Err("the query failed".to_owned());
        };
        // A read of what is not committed is caught whatever its age.
        let staleness = if self.bug == Some(Bug::StaleAtPaused) { Micros(0) } else { max_lag };
        let answer = Answer {
            token: query.token,
            epoch: position.epoch,
            index: position.index,
            colour: position.colour,
            result: Ok(reply),
            staleness: Some(staleness),
        };
        self.handle_answer(at, &answer)?;
        Ok(true)
    }

    pub(super) fn check_stale(&mut self, at: usize, answer: &Answer) -> Result<(), String> {
        let (given, max_lag) = self.stale.asked.remove(&answer.token).expect("it was looked for");
        let id = self.nodes[at].id;
        let reply = match &answer.result {
            Ok(Reply::Ok(reply)) => reply,
            Ok(Reply::Err(_)) => return Err("the handler failed".to_owned()),
            Err(refusal) => {
                self.marks.stale[2] += u64::from(matches!(refusal, Refusal::TooStale(_)));
                return Ok(());
            }
        };
        let leads = self.nodes[at].replica.as_ref().is_some_and(|replica| replica.shard().is_some());
        self.marks.stale[usize::from(leads)] += 1;
        let shown = u32::from_be_bytes(reply[..].try_into().unwrap());
        let Some(staleness) = answer.staleness.filter(|staleness| *staleness <= max_lag) else {
            return Err(format!("[17] {id} allows {max_lag}, and answers with {:?}", answer.staleness));
        };
        let (index, last) = (answer.index.0 as usize, self.committed.len());
        let committed = if index == 0 { Some(&0) } else { self.stale.counts.get(index - 1) };
        if committed != Some(&shown) {
            return Err(format!(
                "[5] {id} shows {shown} at entry {index} of {last}, and committed is {committed:?}"
            ));
        }
        let as_of = Time(given.0.saturating_sub(staleness.0));
        let floors = &self.stale.floors;
        let before = floors.partition_point(|(at, _)| *at < as_of);
        let least = before.checked_sub(1).map_or(0, |at| self.least(&floors[at].1));
        if shown < least {
            return Err(format!("[6] {id} shows {shown}, {staleness} old, and {least} were answered before"));
        }
        Ok(())
    }
}
