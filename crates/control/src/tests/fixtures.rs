//! Files of version 1, which every later version has to open.

use super::ledger::Ledger;
use super::{DIR, IDENTITY, blank, log_id, open_log};
use crate::machine::{Applied, Machine};
use crate::proposal::{Proposal, ProposalId, Reply};
use crate::snapshot;
use crate::store::{Ending, StateStore};
use crate::types::{Entry, Membership, Peer, Vote};
use openraft::EntryPayload;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use stead_store::sim_disk::SimDisk;

fn command(index: u64, text: &str) -> Entry {
    let id = ProposalId { high: 7, low: index };
    let command = Ledger::encode_command(&text.to_owned());
    let proposal = Proposal { id, seen: 1, command };
    Entry { log_id: log_id(2, index), payload: EntryPayload::Normal(proposal) }
}

fn nodes() -> Entry {
    let peers = [(1, "one:1"), (2, "two:2"), (3, "three:3")];
    let peers = peers.map(|(node, address)| (node, Peer { address: address.to_owned() }));
    let voters = vec![BTreeSet::from([1]), BTreeSet::from([1, 2])];
    let membership = Membership::new(voters, BTreeMap::from(peers));
    Entry { log_id: log_id(2, 4), payload: EntryPayload::Membership(membership) }
}

/// Writes the files as this version does, without the zeros at the end of the log.
fn written() -> [(&'static str, Vec<u8>); 2] {
    let disk = SimDisk::new(1);
    let mut log = open_log(Arc::new(disk.clone()), true).unwrap();
    log.save_vote(Vote::new_committed(2, 1)).unwrap();
    log.append(&[blank(2, 0), command(1, "one"), command(2, "two"), blank(2, 3)]).unwrap();
    log.truncate(3);
    log.purge(log_id(2, 1)).unwrap();
    log.note_committed(log_id(2, 2));
    log.append(&[command(3, "three"), nodes()]).unwrap();
    let mut applied = Applied::new(Ledger::default());
    for entry in [blank(2, 0), command(1, "one"), command(2, "two")] {
        applied.apply(entry).unwrap();
    }
    let (meta, state) = applied.snapshot();
    snapshot::write(&disk, DIR, &meta, &state).unwrap();
    let mut bytes = disk.bytes("control/log").unwrap();
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    [("log-1", bytes), ("snapshot-1", disk.bytes("control/snapshot").unwrap())]
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn this_version_writes_what_the_fixtures_hold() {
    for (name, bytes) in written() {
        let held = std::fs::read(fixture(name)).unwrap_or_default();
        if held != bytes {
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, bytes).unwrap();
            panic!("{name} would change: {} has what this version writes", path.display());
        }
    }
}

#[test]
fn files_of_version_1_are_read() {
    let disk = SimDisk::new(1);
    disk.put("control/log", &std::fs::read(fixture("log-1")).unwrap());
    disk.put("control/snapshot", &std::fs::read(fixture("snapshot-1")).unwrap());
    let log = open_log(Arc::new(disk.clone()), false).unwrap();
    assert_eq!(IDENTITY.node, log.node());
    assert_eq!(log.vote(), Some(Vote::new_committed(2, 1)));
    assert_eq!((log.purged(), log.committed()), (Some(log_id(2, 1)), Some(log_id(2, 2))));
    assert_eq!(log.entries(0, 9, usize::MAX), [command(2, "two"), command(3, "three"), nodes()]);
    let (meta, state) = snapshot::read(&disk, DIR).unwrap().unwrap();
    assert_eq!(meta.last_log_id, Some(log_id(2, 2)));
    let mut applied = Applied::<Ledger>::restore(&meta, &state).unwrap();
    assert_eq!(applied.committed().state.commands, ["one", "two"]);
    // It remembers what the proposals gave.
    let again = Entry { log_id: log_id(2, 3), ..command(1, "one") };
    assert_eq!(applied.apply(again), Ok(Reply::Outcome { outcome: Ledger::encode_outcome(&1) }));
    StateStore::open(Arc::new(disk), DIR, &log, Ledger::default(), Arc::new(drop), Ending::default())
        .unwrap();
}
