//! Reads and restores the data of the application while it does not run: its log and its checkpoints.

use crate::audit::Place;
use crate::error::ConductError;
use crate::runs::{ProcessName, Service};
use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::Path;
use stead::RestoreOptions;
use stead_core::entry::Entry;
use stead_core::ids::ShardId;
use stead_store::data_dir::{DataDir, Meta, ServiceMeta};
use stead_store::real_disk::RealDisk;
use stead_store::wal::{Item, Record, Wal, WalError, WalOptions};

/// Returns the log entries of the audited services; empty if the node was killed before it created a log.
pub(crate) fn committed(dir: &Path) -> Result<HashSet<Place>, ConductError> {
    let fail = |reason: String| ConductError::Log { dir: dir.to_owned(), reason };
    let mut found = HashSet::new();
    let disk = RealDisk::open(dir).map_err(|error| fail(error.to_string()))?;
    // A kill can come before the directory has its metadata.
    let Ok(meta) = DataDir::inspect(&disk) else { return Ok(found) };
    if !meta.log_created {
        return Ok(found);
    }
    let options = WalOptions { log_id: meta.log_id, ..WalOptions::default() };
    let read = Wal::read(&disk, &options, |record| {
        found.extend(place_of(&meta, &record));
        Ok::<_, Infallible>(ControlFlow::Continue(()))
    });
    match read {
        Ok(_) | Err(WalError::Missing { .. }) => Ok(found),
        Err(error) => Err(fail(error.to_string())),
    }
}

/// Returns the log entries of the audited services that count at the end of a node's log: those that were not cut off, and that no
/// snapshot replaced. The node must not run.
pub(crate) fn kept(dir: &Path) -> Result<HashSet<Place>, ConductError> {
    let fail = |reason: String| ConductError::Log { dir: dir.to_owned(), reason };
    let disk = RealDisk::open(dir).map_err(|error| fail(error.to_string()))?;
    let meta = DataDir::inspect(&disk).map_err(|error| fail(error.to_string()))?;
    let mut shards: BTreeMap<ShardId, BTreeMap<u64, Option<Place>>> = BTreeMap::new();
    let options = WalOptions { log_id: meta.log_id, ..WalOptions::default() };
    let read = Wal::read_items(&disk, &options, |item| {
        match item {
            Item::Entry(record) => {
                // One that comes again takes the place of those from its index on, as at a start.
                let kept = shards.entry(record.shard).or_default();
                drop(kept.split_off(&record.index.0));
                kept.insert(record.index.0, place_of(&meta, &record));
            }
            Item::Cut(cut) => {
                drop(shards.entry(cut.shard).or_default().split_off(&cut.index.next().0));
            }
            Item::Install(install) => drop(shards.remove(&install.shard)),
            Item::Promise(_) => {}
        }
        Ok::<_, Infallible>(ControlFlow::Continue(()))
    });
    read.map_err(|error| fail(error.to_string()))?;
    Ok(shards.into_values().flat_map(BTreeMap::into_values).flatten().collect())
}

/// Returns the place of an entry of an audited service.
fn place_of(meta: &Meta, record: &Record<'_>) -> Option<Place> {
    let is_of = |service: &&ServiceMeta| {
        (service.first.0..service.first.0 + service.shards).contains(&record.shard.0)
    };
    let service = match meta.services.iter().find(is_of)?.name.as_str() {
        "feeder" => Service::Feeder,
        "aircraft" => Service::Aircraft,
        "airport" => Service::Airport,
        "carrier" => Service::Carrier,
        _ => return None,
    };
    let entry = Entry::decode(record.bytes).ok().filter(|entry| !entry.process.is_empty())?;
    Some((ProcessName::new(service, &entry.process), (entry.epoch.0, entry.index.0)))
}

/// Restores a checkpoint of a data directory into a new one.
pub(crate) fn restore(from: &Path, number: u64, into: &Path) -> Result<(), ConductError> {
    let options = RestoreOptions {
        from: from.display().to_string(),
        number: Some(number),
        into: into.to_owned(),
        shards: BTreeMap::new(),
    };
    let restored = stead::restore(&options, |_| {});
    restored.map(drop).map_err(|error| ConductError::Restore { number, reason: error.to_string() })
}
