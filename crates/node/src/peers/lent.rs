//! The connections to other nodes, lent to a worker: it gives them their turns between its own, and sleeps in the wait for them, so that
//! a message for one of its shards, or from one, passes through no other thread. A thread of theirs gives the turns while a handler holds
//! the worker for long, because the other nodes must not take this one for dead, and once the worker has ended.

use super::PeerPart;
use crate::bell::Bell;
use crate::clock::Clock;
use crate::env::Env;
use crate::part::{Part, Turned};
use crate::shared::Shared;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use stead_core::ids::{Micros, Time};
use stead_net::network::Wake;

/// The time between two looks whether the worker is held. Two of them are less than the time after which a node counts as silent.
const LOOK: Micros = Micros::from_millis(50);
/// Longest wait of the relief, after which the worker may have the connections again.
const WAIT: Micros = Micros::from_millis(2);

/// State that the worker and the relief share.
struct Lent {
    part: Mutex<PeerPart>,
    /// The number of turns that the worker has given.
    turns: AtomicU64,
    /// Whether the worker has ended.
    is_over: AtomicBool,
}

impl Lent {
    fn part(&self) -> MutexGuard<'_, PeerPart> {
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the part, unless the worker has it: in a turn of it, or asleep at it.
    fn free_part(&self) -> Option<MutexGuard<'_, PeerPart>> {
        match self.part.try_lock() {
            Ok(part) => Some(part),
            Err(TryLockError::Poisoned(part)) => Some(part.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// The connections as their worker has them.
pub(crate) struct Borrowed {
    lent: Arc<Lent>,
    wake: Wake,
}

/// Gives the turns when the worker does not.
pub(crate) struct Relief {
    lent: Arc<Lent>,
    /// The turns of the worker at the last look.
    seen: u64,
    /// Whether it gave the last turn.
    drives: bool,
}

/// Lends the connections to a worker; the relief is for a thread of its own.
pub(crate) fn lend(part: PeerPart) -> (Borrowed, Relief) {
    let wake = part.wake();
    let lent = Arc::new(Lent { part: Mutex::new(part), turns: AtomicU64::new(0), is_over: false.into() });
    (Borrowed { lent: Arc::clone(&lent), wake }, Relief { lent, seen: u64::MAX, drives: false })
}

impl Borrowed {
    /// Makes both bells end the wait: that of the worker, and that for the messages of others.
    pub(crate) fn attach<E: Env>(&self, hub: &Shared<E>, worker: &Bell) {
        worker.attach_to(self.wake.clone());
        hub.peers.bell.attach_to(self.wake.clone());
    }

    /// Takes what has arrived, and sends what waits. Returns the time of the next turn.
    ///
    /// # Errors
    /// Those of the system, after which it cannot go on.
    pub(crate) fn turn<E: Env>(&self, hub: &Shared<E>, now: Time, wall: Time) -> std::io::Result<Time> {
        self.lent.turns.fetch_add(1, Ordering::Relaxed);
        hub.peers.bell.take_ring();
        self.lent.part().step(hub, now, wall)
    }

    /// Sends the messages that wait, before the next turn does. Returns whether the bell was rung: a turn is due, which looks at what else
    /// that may have been for.
    pub(crate) fn send<E: Env>(&self, hub: &Shared<E>, now: Time) -> bool {
        let is_rung = hub.peers.bell.take_ring();
        if is_rung {
            self.lent.part().send_waiting(hub, now);
        }
        is_rung
    }

    /// Waits until something arrives, a bell is rung, or the time is over.
    pub(crate) fn wait<E: Env>(&self, hub: &Shared<E>, worker: &Bell, now: Time, until: Option<Time>) {
        let mut part = self.lent.part();
        hub.peers.bell.sleep(now, until, 0, |time| {
            // A ring that came before this had the connections may have ended a wait of the relief.
            if !worker.is_rung() {
                part.wait(time);
            }
        });
    }
}

impl Drop for Borrowed {
    /// Also of a worker that has panicked.
    fn drop(&mut self) {
        self.lent.is_over.store(true, Ordering::SeqCst);
    }
}

impl Relief {
    /// Whether the worker has ended, or has not moved since the last look.
    fn is_needed(&mut self) -> bool {
        let turns = self.lent.turns.load(Ordering::Relaxed);
        std::mem::replace(&mut self.seen, turns) == turns || self.lent.is_over.load(Ordering::SeqCst)
    }
}

impl<E: Env> Part<Shared<E>> for Relief {
    type Error = String;

    fn bell<'h>(&'h self, hub: &'h Shared<E>) -> &'h Bell {
        &hub.peers.relief
    }

    fn sleep(&mut self, hub: &Shared<E>, now: Time, until: Option<Time>) {
        if self.drives
            && let Some(mut part) = self.lent.free_part()
        {
            return hub.peers.bell.sleep(now, until, 0, |time| part.wait(time));
        }
        hub.peers.relief.park(now, until, 0);
    }

    fn turn(&mut self, hub: &Shared<E>, now: Time) -> Result<Turned, String> {
        if hub.is_ended() {
            // Workers may have left something in their last turns, after that of the one that had the connections.
            if !hub.is_over()
                && let Some(mut part) = self.lent.free_part()
            {
                // The node has ended: there is nothing more to lose.
                let _ = part.step(hub, now, hub.clock.wall());
            }
            return Ok(Turned::Ended);
        }
        self.drives = false;
        if !self.is_needed() {
            return Ok(Turned::Until(Some(now.plus(LOOK))));
        }
        let Some(mut part) = self.lent.free_part() else {
            return Ok(Turned::Until(Some(now.plus(LOOK))));
        };
        self.drives = true;
        hub.peers.bell.take_ring();
        let due = part.step(hub, now, hub.clock.wall());
        let due = due.map_err(|error| format!("the connections to other nodes cannot be served: {error}"))?;
        Ok(if due <= now { Turned::Again } else { Turned::Until(Some(due.min(now.plus(WAIT)))) })
    }
}
