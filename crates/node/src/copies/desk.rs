//! Where copies of checkpoints are requested, and the state of copies that others see.

use crate::bell::Bell;
use crate::checkpoint::CheckpointFailure;
use crate::copies::{CopyReport, CopyTarget};
use crate::reply::Reply;
use crate::status::CopyStatus;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use stead_core::ids::CheckpointNumber;
use stead_store::checkpoint::cancel::Cancel;
use stead_store::checkpoint::copy::Owner;

/// The receiver of the result of a copy that a caller requested.
pub type CopyReply = Box<dyn Reply<Result<CopyReport, CheckpointFailure>>>;

/// Maximum number of requested copies that run or wait at a time; more are refused.
pub(super) const ASKED_MAX: usize = 16;

/// A requested copy.
pub(super) struct Asked {
    pub(super) number: CheckpointNumber,
    /// The address of the target.
    pub(super) to: String,
    pub(super) reply: CopyReply,
}

/// The requests for copies, and the last results.
pub(crate) struct CopyDesk {
    /// The owner of the copies.
    pub(crate) owner: Owner,
    /// Most bytes that are written each second; 0 is unlimited.
    pub(super) rate: u64,
    /// Ends the calls of stores when the node stops.
    pub(super) cancel: Cancel,
    held: Mutex<Held>,
    /// Rung when a checkpoint is complete, a copy is requested, or the node stops.
    pub(super) bell: Bell,
}

struct Held {
    asked: VecDeque<Asked>,
    /// Whether a requested copy is running.
    runs: bool,
    status: Option<CopyStatus>,
}

impl CopyDesk {
    /// At most `bytes_per_second` are written; 0 is unlimited. `to` is the target of automatic copies, if there are any.
    pub(crate) fn new(owner: Owner, bytes_per_second: u64, to: Option<&CopyTarget>) -> Self {
        let status = to.map(|target| CopyStatus { to: target.address.clone(), ..CopyStatus::default() });
        Self {
            owner,
            rate: bytes_per_second,
            cancel: Cancel::default(),
            held: Mutex::new(Held { asked: VecDeque::new(), runs: false, status }),
            bell: Bell::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests a copy to an address.
    ///
    /// # Errors
    /// [`CheckpointFailure::Busy`] if the maximum number is running or waiting; [`CheckpointFailure::Stopped`]. Then `reply` is
    /// dropped.
    pub(crate) fn ask(
        &self,
        number: CheckpointNumber,
        to: String,
        reply: CopyReply,
    ) -> Result<(), CheckpointFailure> {
        let mut held = self.held();
        if self.is_stopped() {
            return Err(interrupted());
        }
        if held.asked.len() + usize::from(held.runs) >= ASKED_MAX {
            return Err(CheckpointFailure::Busy(ASKED_MAX));
        }
        held.asked.push_back(Asked { number, to, reply });
        drop(held);
        self.bell.ring();
        Ok(())
    }

    /// Returns the number of requested copies that run or wait, with its limit.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let held = self.held();
        (held.asked.len() + usize::from(held.runs), ASKED_MAX)
    }

    /// Whether a requested copy waits.
    pub(super) fn is_asked(&self) -> bool {
        !self.held().asked.is_empty()
    }

    /// Takes the next requested copy, which runs until [`Self::ended`].
    pub(super) fn take(&self) -> Option<Asked> {
        let mut held = self.held();
        let asked = held.asked.pop_front();
        held.runs = asked.is_some();
        asked
    }

    /// Notes that the requested copy that was running has ended.
    pub(super) fn ended(&self) {
        self.held().runs = false;
    }

    /// Returns the status; `None` if copies are made only on request.
    pub(crate) fn status(&self) -> Option<CopyStatus> {
        self.held().status.clone()
    }

    /// Changes the status, if there are automatic copies.
    pub(super) fn note(&self, note: impl FnOnce(&mut CopyStatus)) {
        self.held().status.as_mut().map(note);
    }

    /// Notes that there is a newer checkpoint.
    pub(crate) fn completed(&self) {
        self.bell.ring();
    }

    /// Cancels all copies; objects at the target are found and reused by the next attempt. Callers whose copies wait are
    /// answered.
    pub(crate) fn stop(&self) {
        self.cancel.cancel();
        let asked = std::mem::take(&mut self.held().asked);
        self.bell.ring();
        // After the lock, because a reply runs code of its caller.
        for asked in asked {
            asked.reply.send(Err(interrupted()));
        }
    }

    /// Whether copies are cancelled.
    pub(crate) fn is_stopped(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// The result of a copy that the end of the node interrupts.
pub(super) fn interrupted() -> CheckpointFailure {
    CheckpointFailure::Stopped("the copy was interrupted".to_owned())
}
