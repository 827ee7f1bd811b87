//! The directory of a measurement.

use super::BenchArgs;
use crate::failure::{Exit, Failure};
use std::path::Path;

/// A fresh directory on the disk to measure; removed when dropped.
pub(super) struct Room(tempfile::TempDir);

impl Room {
    pub(super) fn new(args: &BenchArgs) -> Result<Self, Failure> {
        let parent = args.parent();
        let made = tempfile::Builder::new().prefix("stead-bench-").tempdir_in(&parent);
        made.map(Self).map_err(|error| {
            Failure::new(Exit::Failed, format!("can't make a directory in {}", parent.display()))
                .cause(error)
                .hint("name another one with --data")
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}
