//! Errors of a plane. Each says what the caller can do next.

use crate::fault::StorageFault;
use std::io;
use stead_core::ids::NodeId;
use stead_store::data_dir::DataDirError;

/// Reasons for which a plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its files cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageFault),
    /// The data directory cannot note that the files are there.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Its settings contradict each other.
    #[error("the settings of the control plane are invalid: {0}; correct them")]
    Settings(String),
    /// The system gives it no thread.
    #[error("cannot start the control plane's thread: {0}; free memory or threads and start again")]
    Thread(#[source] io::Error),
    /// It ended while it began.
    #[error("the control plane ended while it began: {0}; start again")]
    Ended(String),
}

/// Reasons for which a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No leader was found in time, and the command went to no node: it is not applied, unless it was proposed before.
    #[error("the control plane has no leader: fewer than half of its voters can be reached; try again")]
    NoLeader,
    /// The command may be applied, now or later.
    #[error(
        "the control plane did not answer in time, so the command may be applied or not; propose the same proposal again"
    )]
    Unknown,
    /// So many proposals came after the first time that it was proposed that it is not known whether it was applied then.
    #[error("the proposal is too old to know whether it was applied; look at the state, and make a new one")]
    Expired,
    /// The leader cannot store it now.
    #[error(
        "the control plane's log is full, because no snapshot could be taken; make room on the leader's disk and try again"
    )]
    Full,
    /// The command is over the limit.
    #[error("a command has {bytes} bytes, over the limit of {}", crate::COMMAND_BYTES_MAX)]
    TooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// The leader refuses the command, or the answer to it does not decode: the nodes run different versions.
    #[error("the command or its outcome is invalid: {0}; run the same version on all nodes")]
    Invalid(String),
    /// This node's plane has ended.
    #[error("the control plane of this node has ended{}; restart the node", reason(.0))]
    Stopped(Option<String>),
}

/// Reasons for which a read has no state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader answered in time.
    #[error("the control plane did not answer: fewer than half of its voters can be reached; try again")]
    NoAnswer,
    /// This node's plane has ended.
    #[error("the control plane of this node has ended{}; restart the node", reason(.0))]
    Stopped(Option<String>),
}

/// Reasons for which a change of the nodes was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// No leader was found in time.
    #[error("the control plane has no leader: fewer than half of its voters can be reached; try again")]
    NoLeader,
    /// It may have been made, or will be.
    #[error(
        "the control plane did not answer in time, so the change may be made or not; make the same change again"
    )]
    Unknown,
    /// A node that is to vote did not catch up in time, so it does not vote.
    #[error(
        "node {node} cannot vote in the control plane yet: it is {entries} entries behind; see that it runs and can be \
         reached, and promote it again"
    )]
    Behind {
        /// The node.
        node: NodeId,
        /// The entries that it lacks.
        entries: u64,
    },
    /// It cannot be made.
    #[error("the nodes of the control plane cannot be changed: {0}")]
    Refused(String),
    /// This node's plane has ended.
    #[error("the control plane of this node has ended{}; restart the node", reason(.0))]
    Stopped(Option<String>),
}

fn reason(failure: &Option<String>) -> String {
    failure.as_ref().map(|failure| format!(": {failure}")).unwrap_or_default()
}
