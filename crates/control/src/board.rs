//! The newest committed state and the status of a plane, for other threads.

use crate::machine::Committed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stead_core::ids::NodeId;
use tokio::sync::watch;

/// The part of a node in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It orders the commands.
    Leader,
    /// It votes and follows a leader.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It follows a leader and does not vote, or is no member.
    Learner,
}

/// The condition of a plane, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// Its part.
    pub role: Role,
    /// The leader, if it is known. A leader that is cut off takes itself for it for a while.
    pub leader: Option<NodeId>,
    /// The number of the newest election that this node knows of; it never falls.
    pub term: u64,
    /// The nodes that vote.
    pub voters: Vec<NodeId>,
    /// The nodes that only receive.
    pub learners: Vec<NodeId>,
    /// The addresses of all of these.
    pub addresses: Vec<(NodeId, String)>,
    /// Whether one set of voters is changing into another.
    pub is_changing: bool,
    /// The number of entries in the log, those in the snapshot included.
    pub entries: u64,
    /// The number of entries that are applied.
    pub applied: u64,
    /// The number of entries that the newest snapshot includes.
    pub snapshot: u64,
    /// At a leader: the number of entries that each other node stores, as far as it is known.
    pub stored: Vec<(NodeId, u64)>,
    /// The reason for which the plane has stopped, other than a shutdown.
    pub failure: Option<String>,
    /// Whether the plane has ended.
    pub is_stopped: bool,
}

impl Status {
    pub(crate) fn new(node: NodeId) -> Self {
        Self {
            node,
            role: Role::Learner,
            leader: None,
            term: 0,
            voters: Vec::new(),
            learners: Vec::new(),
            addresses: Vec::new(),
            is_changing: false,
            entries: 0,
            applied: 0,
            snapshot: 0,
            stored: Vec::new(),
            failure: None,
            is_stopped: false,
        }
    }
}

struct Shown<M> {
    committed: Committed<M>,
    status: Status,
}

/// The place at which a plane shows what it knows.
pub(crate) struct Board<M> {
    shown: Mutex<Shown<M>>,
    changed: Condvar,
    /// For those that wait on the plane's own thread: the number of entries that are applied.
    applied: watch::Sender<u64>,
    on_change: Box<dyn Fn() + Send + Sync>,
}

impl<M> Board<M> {
    pub(crate) fn new(node: NodeId, initial: M, on_change: Box<dyn Fn() + Send + Sync>) -> Self {
        let committed = Committed { applied: 0, state: Arc::new(initial) };
        let shown = Shown { committed, status: Status::new(node) };
        Self { shown: Mutex::new(shown), changed: Condvar::new(), applied: watch::Sender::new(0), on_change }
    }

    fn shown(&self) -> MutexGuard<'_, Shown<M>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn committed(&self) -> Committed<M> {
        self.shown().committed.clone()
    }

    pub(crate) fn status(&self) -> Status {
        self.shown().status.clone()
    }

    pub(crate) fn publish(&self, committed: Committed<M>) {
        let applied = committed.applied;
        self.shown().committed = committed;
        self.applied.send_replace(applied);
        self.notify();
    }

    pub(crate) fn update(&self, update: impl FnOnce(&mut Status)) {
        let mut shown = self.shown();
        let before = shown.status.clone();
        update(&mut shown.status);
        let is_changed = shown.status != before;
        drop(shown);
        if is_changed {
            self.notify();
        }
    }

    fn notify(&self) {
        self.changed.notify_all();
        (self.on_change)();
    }

    /// Returns once this number of entries is applied.
    pub(crate) async fn wait_applied(&self, count: u64) {
        // An error would mean that the sender is gone, which this has.
        let _ = self.applied.subscribe().wait_for(|applied| *applied >= count).await;
    }

    /// Waits until `look` returns something, until the deadline, or until the plane has ended.
    pub(crate) fn wait<T>(
        &self,
        wait: Duration,
        look: impl Fn(&Committed<M>, &Status) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + wait;
        let mut shown = self.shown();
        loop {
            let found = look(&shown.committed, &shown.status);
            let left = deadline.saturating_duration_since(Instant::now());
            if found.is_some() || left.is_zero() || shown.status.is_stopped {
                return found;
            }
            shown = self.changed.wait_timeout(shown, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A receiver of the committed states. It may skip states, but never the newest one.
pub struct Watch<M> {
    pub(crate) board: Arc<Board<M>>,
    /// The number of applied entries in the state that was seen last.
    pub(crate) seen: Option<u64>,
}

impl<M> Watch<M> {
    /// Returns the newest state, if it is not the one that this returned last.
    pub fn newer(&mut self) -> Option<Committed<M>> {
        let committed = self.board.committed();
        self.note(committed)
    }

    /// As [`Watch::newer`], and waits for it. Returns `None` after the time, or once the plane has ended.
    pub fn wait(&mut self, wait: Duration) -> Option<Committed<M>> {
        let seen = self.seen;
        let is_new = |committed: &Committed<M>| Some(committed.applied) != seen;
        let next = self.board.wait(wait, |committed, _| is_new(committed).then(|| committed.clone()))?;
        self.note(next)
    }

    fn note(&mut self, committed: Committed<M>) -> Option<Committed<M>> {
        let is_new = self.seen != Some(committed.applied);
        self.seen = Some(committed.applied);
        is_new.then_some(committed)
    }
}
