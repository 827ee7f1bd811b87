//! The path of this program's file, for the processes that it starts: determined once, at the start.
//!
//! An upgrade replaces the file under a running program. From then on the system reports the path of the running file
//! with " (deleted)" appended. So the path is kept from the start, and a new file at the same path is preferred.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

static PATH: OnceLock<PathBuf> = OnceLock::new();

/// The running file, whatever its path has become.
const RUNNING: &str = "/proc/self/exe";

/// Determines the path. Must be called first in `main`, before the file can be replaced.
pub fn note() {
    let invoked = std::env::args_os().next().map(PathBuf::from);
    let found = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(RUNNING));
    PATH.get_or_init(|| choose(invoked.as_deref(), &found));
}

/// Returns the file to start: the one at the noted path, or the running one while there is none.
#[must_use]
pub fn path() -> PathBuf {
    note();
    let noted = PATH.get().expect("noted above");
    if noted.exists() { noted.clone() } else { PathBuf::from(RUNNING) }
}

/// Returns the path that the program was started by, if it leads to the running file, because it follows links that an
/// upgrade changes; otherwise the path that the system reports.
fn choose(invoked: Option<&Path>, found: &Path) -> PathBuf {
    let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let invoked = invoked.filter(|path| path.as_os_str().as_bytes().contains(&b'/'));
    match invoked.and_then(|path| std::path::absolute(path).ok()) {
        Some(path) if identity(&path).is_some() && identity(&path) == identity(Path::new(RUNNING)) => path,
        _ => without_mark(found),
    }
}

/// Returns the path without the mark of a replaced file, unless a file has that very name.
fn without_mark(path: &Path) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(plain) if !path.exists() => PathBuf::from(OsString::from_vec(plain.to_vec())),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_of_a_replaced_file_is_not_part_of_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, marked) = (dir.path().join("stead"), dir.path().join("stead (deleted)"));
        assert_eq!(without_mark(&plain), plain);
        assert_eq!(without_mark(&marked), plain);
        fs::write(&marked, "a file of this name").unwrap();
        assert_eq!(without_mark(&marked), marked);
    }

    #[test]
    fn the_path_of_the_start_is_taken_only_if_it_leads_here() {
        let found = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&found, &link).unwrap();
        assert_eq!(choose(Some(&link), &found), link);
        assert_eq!(choose(Some(Path::new("stead")), &found), found);
        assert_eq!(choose(Some(&dir.path().join("none")), &found), found);
        assert_eq!(choose(None, &found), found);
    }
}
