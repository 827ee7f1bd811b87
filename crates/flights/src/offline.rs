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
use stead_store::data_dir::DataDir;
use stead_store::real_disk::RealDisk;
use stead_store::wal::{Wal, WalError, WalOptions};

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
    let service_of = |shard: ShardId| {
        let of = |service: &&stead_store::data_dir::ServiceMeta| {
            (service.first.0..service.first.0 + service.shards).contains(&shard.0)
        };
        match meta.services.iter().find(of)?.name.as_str() {
            "feeder" => Some(Service::Feeder),
            "aircraft" => Some(Service::Aircraft),
            "airport" => Some(Service::Airport),
            "carrier" => Some(Service::Carrier),
            _ => None,
        }
    };
    let options = WalOptions { log_id: meta.log_id, ..WalOptions::default() };
    let read = Wal::read(&disk, &options, |record| {
        if let Some(service) = service_of(record.shard)
            && let Ok(entry) = Entry::decode(record.bytes)
            && !entry.process.is_empty()
        {
            found.insert((ProcessName::new(service, &entry.process), (entry.epoch.0, entry.index.0)));
        }
        Ok::<_, Infallible>(ControlFlow::Continue(()))
    });
    match read {
        Ok(_) | Err(WalError::Missing { .. }) => Ok(found),
        Err(error) => Err(fail(error.to_string())),
    }
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
