//! The sessions of a client, which make each of its requests exactly once.

use crate::embedded::Embedded;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stead_core::calls::Identity;
use stead_core::ids::{Colour, RequestNumber, SessionId, ShardId};
use stead_node::Shared;

/// The sessions of a client, by shard.
pub(super) struct Sessions {
    pools: Vec<Mutex<Vec<Session>>>,
    /// The highest colour in any answer: a client is a channel too.
    colour: AtomicU64,
}

pub(super) struct Session {
    id: SessionId,
    /// Replies up to this number have come, or are no longer waited for.
    confirmed: u64,
    /// By number from `confirmed + 1` on: whether the reply has come.
    window: VecDeque<bool>,
}

impl Session {
    pub(super) fn new(id: SessionId) -> Self {
        Self { id, confirmed: 0, window: VecDeque::new() }
    }
}

/// A request's place in a session; released when dropped, answered or not.
pub(super) struct Place<'a> {
    sessions: &'a Sessions,
    shard: ShardId,
    session: SessionId,
    number: u64,
    confirmed: u64,
}

impl Sessions {
    /// Maximum number of open requests of one session: far below the limit of a shard, to keep its window short.
    const WINDOW: usize = 4096;

    pub(super) fn new(shards: u32) -> Self {
        let pools = (0..shards).map(|_| Mutex::new(Vec::new())).collect();
        Self { pools, colour: AtomicU64::new(0) }
    }

    /// Returns the highest colour in any answer.
    pub(super) fn colour(&self) -> Colour {
        Colour(self.colour.load(Ordering::Relaxed))
    }

    pub(super) fn saw(&self, colour: Colour) {
        // Never decreased, and written only when it rises: many threads read it.
        if colour > self.colour() {
            self.colour.fetch_max(colour.0, Ordering::Relaxed);
        }
    }

    /// Adds a session that its shard has opened.
    pub(super) fn add(&self, shard: ShardId, session: Session) {
        self.pool(shard).push(session);
    }

    fn pool(&self, shard: ShardId) -> MutexGuard<'_, Vec<Session>> {
        self.pools[shard.0 as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the place of the next request in a session with free places; opens a session if there is none.
    pub(super) fn enter(&self, shared: &Shared<Embedded>, shard: ShardId, principal: &Arc<str>) -> Place<'_> {
        let mut pool = self.pool(shard);
        let at = match pool.iter().position(|session| session.window.len() < Self::WINDOW) {
            Some(at) => at,
            None => {
                let id = SessionId(fastrand::u128(..));
                pool.push(Session::new(id));
                let principal = Arc::clone(principal);
                // Its requests take the same way after it. If it is refused or lost, so are they.
                let _ = shared.open_session(shard, id, principal, None);
                pool.len() - 1
            }
        };
        let session = &mut pool[at];
        session.window.push_back(false);
        let number = session.confirmed + session.window.len() as u64;
        Place { sessions: self, shard, session: session.id, number, confirmed: session.confirmed }
    }

    fn leave(&self, shard: ShardId, session: SessionId, number: u64) {
        let mut pool = self.pool(shard);
        let Some(session) = pool.iter_mut().find(|open| open.id == session) else { return };
        session.window[(number - session.confirmed - 1) as usize] = true;
        while session.window.front() == Some(&true) {
            session.window.pop_front();
            session.confirmed += 1;
        }
    }

    /// Drops a session that its shard does not know.
    pub(super) fn forget(&self, shard: ShardId, session: SessionId) {
        self.pool(shard).retain(|open| open.id != session);
    }
}

impl Place<'_> {
    pub(super) fn identity(&self) -> Identity {
        Identity::Session {
            session: self.session,
            number: RequestNumber(self.number),
            confirmed: RequestNumber(self.confirmed),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.sessions.leave(self.shard, self.session, self.number);
    }
}
