//! Reasons for which a local cluster cannot go on.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Reasons for which a local cluster cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// The program of the nodes cannot be started.
    #[error("cannot start {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A node has ended without being asked to.
    #[error("node {node} has ended ({status}); its log {} ends with: {said}", log.display())]
    Ended {
        /// The node, from 1.
        node: u16,
        /// Its exit status.
        status: String,
        /// The file with its standard error.
        log: PathBuf,
        /// The end of that file.
        said: String,
    },
    /// A node is not ready in time.
    #[error("node {node} is not ready after {} ms; its log {} ends with: {said}", waited.as_millis(), log.display())]
    NotReady {
        /// The node, from 1.
        node: u16,
        /// The time.
        waited: Duration,
        /// The file with its standard error.
        log: PathBuf,
        /// The end of that file.
        said: String,
    },
    /// A node has another number than its place in the cluster.
    #[error(
        "node {found} runs in the directory {} of node {node}; give the cluster an empty directory of its own",
        data.display()
    )]
    OtherNumber {
        /// The node that was expected, from 1.
        node: u16,
        /// The number that it has.
        found: u32,
        /// Its data directory.
        data: PathBuf,
    },
    /// The system refused an operation.
    #[error("cannot {what}: {source}")]
    System {
        /// The attempted operation.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> LocalError {
    move |source| LocalError::System { what, source }
}
