//! Prepares log segments beside the log's owner, so that filling one with zeros delays nothing.

use crate::log::LogHub;
use crate::part::Turned;
use std::fmt;
use stead_core::ids::Time;
use stead_core::log_room::LogRoom;
use stead_store::wal::{SegmentPreparer, WalError};

/// The part that prepares segments. Its bell is [`LogDesk::preparer_bell`](crate::LogDesk::preparer_bell).
pub struct PreparePart(SegmentPreparer);

impl PreparePart {
    /// Creates the part that prepares the segments of a log.
    #[must_use]
    pub fn new(preparer: SegmentPreparer) -> Self {
        Self(preparer)
    }

    /// Prepares one segment, if more are needed.
    ///
    /// # Errors
    /// [`WalError`], which is fatal for the node: the part must not be given another turn.
    pub fn turn<H: LogHub>(&mut self, hub: &H, now: Time) -> Result<Turned, WalError> {
        if hub.is_ended() {
            return Ok(Turned::Ended);
        }
        let desk = hub.desk();
        match self.0.prepare_next() {
            Ok(is_made) => {
                desk.note_prepared(false, is_made);
                Ok(if is_made { Turned::Again } else { Turned::Until(None) })
            }
            Err(error @ WalError::NoSpace { .. }) => {
                *desk.shortage() = error.to_string();
                desk.note_prepared(true, false);
                Ok(Turned::Until(Some(now.plus(LogRoom::RETRY))))
            }
            Err(error) => Err(error),
        }
    }
}

impl fmt::Debug for PreparePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparePart").finish_non_exhaustive()
    }
}
