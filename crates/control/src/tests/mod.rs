//! Tests of what this crate does not show: its files, and openraft's own suite over them.

mod fixtures;
#[allow(dead_code, reason = "shared with the tests of the face")]
mod ledger;
mod pace;
mod storage;
mod suite;

use crate::fault::StorageFault;
use crate::log::{Identity, Log};
use crate::types::{Entry, LogId};
use openraft::{CommittedLeaderId, EntryPayload};
use std::sync::Arc;
use stead_core::ids::{ClusterId, Incarnation, NodeId};
use stead_store::disk::Disk;

const DIR: &str = "control";

const IDENTITY: Identity =
    Identity { cluster: ClusterId(7 << 64 | 9), incarnation: Incarnation(3), node: NodeId(1) };

fn open_log(disk: Arc<dyn Disk>, may_create: bool) -> Result<Log, StorageFault> {
    Log::open(disk, DIR, IDENTITY, may_create)
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

fn blank(term: u64, index: u64) -> Entry {
    Entry { log_id: log_id(term, index), payload: EntryPayload::Blank }
}
