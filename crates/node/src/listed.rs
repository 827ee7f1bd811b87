//! The list of a store's checkpoints: decided numbers never change, so each manifest is read once.

use crate::checkpoint::CheckpointInfo;
use crate::env::Program;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use stead_core::ids::{CheckpointNumber, ClusterId, Incarnation};
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::checks::{CheckOutcome, checks_beside};
use stead_store::checkpoint::load::Loaders;
use stead_store::checkpoint::manifest::{Decision, decided_numbers, read_decision, read_manifest};
use stead_store::checkpoint::store::BlobStore;
use stead_store::checkpoint::verify::{Found, Report, verify_checkpoint};

/// The checkpoints of a store that were read and still exist.
#[derive(Default)]
pub(crate) struct Listed(BTreeMap<CheckpointNumber, Known>);

enum Known {
    Complete {
        incarnation: Incarnation,
        info: CheckpointInfo,
        /// Whether it has the results of the checks, which do not change any more.
        is_checked: bool,
    },
    GivenUp,
}

impl Listed {
    /// Returns the complete checkpoints, the oldest first.
    pub(crate) fn all(&mut self, store: &dyn BlobStore) -> Result<Vec<CheckpointInfo>, CheckpointError> {
        let numbers = decided_numbers(store)?;
        self.0.retain(|number, _| numbers.binary_search(number).is_ok());
        let found = numbers.into_iter().filter_map(|number| self.look(store, number).transpose());
        found.collect()
    }

    /// Returns one complete checkpoint.
    pub(crate) fn one(
        &mut self,
        store: &dyn BlobStore,
        number: CheckpointNumber,
    ) -> Result<Option<CheckpointInfo>, CheckpointError> {
        if decided_numbers(store)?.binary_search(&number).is_err() {
            return Ok(None);
        }
        self.look(store, number)
    }

    fn look(
        &mut self,
        store: &dyn BlobStore,
        number: CheckpointNumber,
    ) -> Result<Option<CheckpointInfo>, CheckpointError> {
        let known = match self.0.entry(number) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => {
                let known = match read_decision(store, number) {
                    // A collection deleted it after it was listed.
                    Err(CheckpointError::Unknown(_)) => return Ok(None),
                    Err(error) => return Err(error),
                    Ok(Decision::GivenUp(_)) => Known::GivenUp,
                    Ok(Decision::Complete(manifest)) => Known::Complete {
                        incarnation: manifest.incarnation,
                        info: CheckpointInfo::of(&manifest, &manifest.checks),
                        is_checked: false,
                    },
                };
                vacant.insert(known)
            }
        };
        let Known::Complete { incarnation, info, is_checked } = known else { return Ok(None) };
        if !*is_checked {
            match checks_beside(store, *incarnation, number) {
                Ok(Some(checks)) => {
                    info.note_checks(&checks);
                    // The result of a skipped check may still come.
                    *is_checked = info.check != CheckOutcome::NotChecked;
                }
                Ok(None) => {}
                // Unreadable results are treated as missing.
                Err(error) => {
                    tracing::warn!("cannot read the check results of checkpoint {number}: {error}");
                }
            }
        }
        Ok(Some(info.clone()))
    }
}

/// Returns the complete checkpoints of a store, the oldest first.
///
/// # Errors
/// [`CheckpointError`] if they cannot be read.
pub fn list_checkpoints(store: &dyn BlobStore) -> Result<Vec<CheckpointInfo>, CheckpointError> {
    Listed::default().all(store)
}

/// Verifies a stored checkpoint, which must be of `cluster` if one is given, with the checks of the services of a program;
/// `check` runs the one of a service over the states of all shards.
///
/// # Errors
/// [`CheckpointError`] if the checkpoint is damaged or of another cluster. An undamaged but inconsistent one is in the report.
pub fn verify_stored(
    store: &dyn BlobStore,
    number: u64,
    cluster: Option<ClusterId>,
    loaders: impl Into<Loaders>,
    program: &impl Program,
    check: &mut dyn FnMut(&str, &Topology, &[State]) -> Result<(), String>,
) -> Result<Report, CheckpointError> {
    let manifest = read_manifest(store, CheckpointNumber(number))?;
    cluster.map_or(Ok(()), |cluster| manifest.check_cluster(cluster))?;
    let mut check = |topology: &Topology, states: &[State]| check_states(topology, states, program, check);
    verify_checkpoint(store, &manifest, loaders, &mut check)
}

/// Checks the states of a checkpoint with the services whose code is here; `check` runs the check of one of them. No check
/// runs without the states of all shards.
fn check_states(
    topology: &Topology,
    states: &[State],
    program: &impl Program,
    check: &mut dyn FnMut(&str, &Topology, &[State]) -> Result<(), String>,
) -> BTreeMap<String, Found> {
    let checked = program.checked_services();
    let is_whole = states.len() == topology.shard_count() as usize;
    let mut found = BTreeMap::new();
    let services = topology.services().iter().map(|service| &service.name);
    for service in services.filter(|name| program.has_service(name)) {
        if !checked.contains(service) {
            found.insert(service.clone(), Found::Undeclared);
        } else if is_whole {
            let says = check(service, topology, states).map_or_else(Found::Failed, |()| Found::Hold);
            found.insert(service.clone(), says);
        }
    }
    found
}
