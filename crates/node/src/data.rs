//! The data of a node's life, as its end leaves them.

use crate::checks::CheckMarks;
use crate::events;
use crate::log::Unsynced;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stead_store::checkpoint::store::BlobStore;
use stead_store::data_dir::DataDir;

/// The data of a life.
pub(crate) struct Data {
    /// Owned until the last part has ended.
    pub(crate) dir: Mutex<Option<DataDir>>,
    pub(crate) store: Arc<dyn BlobStore>,
}

impl Data {
    fn dir(&self) -> MutexGuard<'_, Option<DataDir>> {
        self.dir.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the data directory: another life may own it from now on.
    pub(crate) fn release(&self) {
        let dir = self.dir().take();
        // After the lock: this closes files.
        drop(dir);
    }

    /// Calls `act` while this life owns the data directory: an end releases it afterwards. Returns `None` without the call if it
    /// has been released.
    pub(crate) fn while_owned<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let dir = self.dir();
        dir.is_some().then(act)
    }

    /// Notes durably what the log may lack at the next start; false if that is not possible.
    pub(crate) fn note_unsynced(&self, unsynced: Unsynced) -> bool {
        let note = |dir: &mut DataDir| match unsynced {
            Unsynced::WithPower => dir.note_unsynced(),
            Unsynced::InAnyCase => dir.note_lost(),
        };
        let noted = self.dir().as_mut().map(note);
        match noted {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                match unsynced {
                    Unsynced::WithPower => {
                        events::warn(format_args!("each entry is synced, whatever the dial says: {error}"));
                    }
                    Unsynced::InAnyCase => events::warn(format_args!(
                        "the log may lack its end, and the next start cannot know it; replace this node: {error}"
                    )),
                }
                false
            }
            None => false,
        }
    }

    /// Marks the data as those of a life that ended in order, so that the next one suspects nothing.
    pub(crate) fn mark_clean(&self, marks: &CheckMarks) {
        let Some(dir) = &mut *self.dir() else { return };
        marks.forgive();
        let marked = match self.store.failure() {
            Some(failure) => Err(failure),
            None => dir
                .update(|meta| (meta.clean, meta.unsynced) = (true, None))
                .map_err(|error| error.to_string()),
        };
        if let Err(error) = marked {
            // The next start then suspects what waits, which costs a little time and nothing else.
            events::warn(format_args!("cannot record the clean shutdown: {error}"));
        }
    }
}
