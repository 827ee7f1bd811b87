//! The directory of a measurement.

use super::BenchArgs;
use crate::failure::{Exit, Failure};
use crate::{output, stop};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The directories in use.
static ROOMS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// Attempts to remove a directory in which other threads still create files.
const ATTEMPTS: u32 = 100;

fn lock() -> MutexGuard<'static, Vec<PathBuf>> {
    ROOMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A fresh directory on the disk to measure; removed when dropped.
pub(super) struct Room(tempfile::TempDir);

impl Room {
    pub(super) fn new(args: &BenchArgs) -> Result<Self, Failure> {
        let parent = args.parent();
        // Held throughout: a directory that is not listed yet would be left behind.
        let mut rooms = lock();
        let made = tempfile::Builder::new().prefix("stead-bench-").tempdir_in(&parent);
        let made = made.map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot create a directory in {}", parent.display()))
                .cause(error)
                .hint("choose another one with --data")
        })?;
        rooms.push(made.path().to_owned());
        Ok(Self(made))
    }

    /// Removes all directories although they are in use, and ends the program.
    pub(super) fn remove_all() -> ! {
        let rooms = lock();
        for room in &*rooms {
            let removed = |_| std::fs::remove_dir_all(room).is_ok() || !room.exists();
            if !(0..ATTEMPTS).any(removed) {
                output::note(format_args!("stead: cannot remove {}", room.display()));
            }
        }
        stop::exit()
    }

    /// Blocks forever once [`Room::remove_all`] has begun: errors after that are its consequence.
    pub(super) fn await_end() {
        drop(lock());
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}
