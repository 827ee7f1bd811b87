//! The names of the simulated disk's files, and the changes of them that are not durable yet.

use crate::disk::parent;
use std::collections::BTreeMap;

/// The object of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Dir,
    File(u64),
}

#[derive(Clone)]
pub(super) enum DirChange {
    Link { path: String, entry: Entry },
    Unlink { path: String },
    Rename { from: String, to: String },
}

impl DirChange {
    pub(super) fn dir(&self) -> &str {
        match self {
            Self::Link { path, .. } | Self::Unlink { path } => parent(path),
            Self::Rename { from, .. } => parent(from),
        }
    }

    pub(super) fn apply(self, names: &mut BTreeMap<String, Entry>) {
        match self {
            Self::Link { path, entry } => {
                names.insert(path, entry);
            }
            Self::Unlink { path } => {
                if names.remove(&path) == Some(Entry::Dir) {
                    // Another directory of this name begins empty.
                    names.retain(|other, _| !is_within(other, &path));
                }
            }
            Self::Rename { from, to } => {
                if let Some(entry) = names.remove(&from) {
                    names.insert(to, entry);
                }
            }
        }
    }
}

/// Whether a path is below a directory.
pub(super) fn is_within(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}
