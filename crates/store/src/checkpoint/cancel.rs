//! The cancellation of calls of stores.

use std::sync::Arc;
use tokio::sync::watch;

/// Cancels the calls of stores from any thread: running and later calls fail at once. Clones share the state.
#[derive(Clone, Debug)]
pub struct Cancel(pub(super) Arc<watch::Sender<bool>>);

impl Default for Cancel {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Cancel {
    pub(super) const REASON: &str = "it was interrupted: the node is stopping";

    /// Cancels all calls, permanently.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// Whether the calls were cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }
}
