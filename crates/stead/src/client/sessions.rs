//! The sessions of a client, which make each of its requests exactly once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use stead_core::calls::Identity;
use stead_core::ids::{Colour, RequestNumber, SessionId, ShardId};
use stead_core::replication::table::LogPoint;

/// The sessions of a client, by shard.
pub(super) struct Sessions {
    pools: Vec<Mutex<Vec<Session>>>,
    /// Held while a session is opened whose requests wait for it.
    opening: Vec<tokio::sync::Mutex<()>>,
    /// The highest colour in any answer: a client is a channel too.
    colour: AtomicU64,
    /// By shard, the newest entry that an answer included.
    seen: Vec<Mutex<Option<LogPoint>>>,
}

struct Session {
    id: SessionId,
    /// Replies up to this number have come, or are no longer waited for.
    confirmed: u64,
    /// By number from `confirmed + 1` on: whether the reply has come.
    window: VecDeque<bool>,
}

impl Session {
    fn new(id: SessionId) -> Self {
        Self { id, confirmed: 0, window: VecDeque::new() }
    }

    fn has_room(&self) -> bool {
        self.window.len() < Sessions::WINDOW
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
        let opening = (0..shards).map(|_| tokio::sync::Mutex::new(())).collect();
        let seen = (0..shards).map(|_| Mutex::new(None)).collect();
        Self { pools, opening, colour: AtomicU64::new(0), seen }
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

    /// Returns the newest entry of a shard that an answer included.
    pub(super) fn seen(&self, shard: ShardId) -> Option<LogPoint> {
        *self.newest(shard)
    }

    /// Notes the last entry of a shard that an answer included.
    pub(super) fn saw_entry(&self, shard: ShardId, entry: LogPoint) {
        let mut newest = self.newest(shard);
        *newest = Some(entry).max(*newest);
    }

    fn newest(&self, shard: ShardId) -> MutexGuard<'_, Option<LogPoint>> {
        self.seen[shard.0 as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a session that its shard has opened.
    pub(super) fn add(&self, shard: ShardId, session: SessionId) {
        self.pool(shard).push(Session::new(session));
    }

    /// Waits until no other call opens a session of a shard, and is the one that does until the result is dropped.
    pub(super) async fn opening(&self, shard: ShardId) -> tokio::sync::MutexGuard<'_, ()> {
        self.opening[shard.0 as usize].lock().await
    }

    fn pool(&self, shard: ShardId) -> MutexGuard<'_, Vec<Session>> {
        self.pools[shard.0 as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the place of the next request in a session with free places; lets `open` open a session if there is none.
    pub(super) fn enter(&self, shard: ShardId, open: impl FnOnce(SessionId)) -> Place<'_> {
        let mut pool = self.pool(shard);
        self.place_in(shard, &mut pool).unwrap_or_else(|| {
            let id = SessionId(fastrand::u128(..));
            pool.push(Session::new(id));
            open(id);
            self.place_in(shard, &mut pool).expect("the new session is empty")
        })
    }

    /// Returns the place of the next request in a session with free places, if there is one.
    pub(super) fn enter_open(&self, shard: ShardId) -> Option<Place<'_>> {
        self.place_in(shard, &mut self.pool(shard))
    }

    /// Whether there is a session with free places.
    pub(super) fn has_room(&self, shard: ShardId) -> bool {
        self.pool(shard).iter().any(Session::has_room)
    }

    fn place_in(&self, shard: ShardId, pool: &mut [Session]) -> Option<Place<'_>> {
        let session = pool.iter_mut().find(|session| session.has_room())?;
        session.window.push_back(false);
        let number = session.confirmed + session.window.len() as u64;
        Some(Place { sessions: self, shard, session: session.id, number, confirmed: session.confirmed })
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
