//! Copies of checkpoints: the part that ships copies them into directories of the node's own disk, so that its faults and power
//! cuts hit them too. One that is there is complete, and has the bytes of its checkpoint; one that was reported stays.

use super::{Outcomes, Stop, World};
use crate::marks::Mark;
use crate::model::difference;
use crate::refusals::{BY_HAND, COPIES};
use crate::stage::{self, CopyWanting};
use crate::violation::Violation;
use std::collections::BTreeSet;
use std::sync::Arc;
use stead_core::ids::CheckpointNumber;
use stead_node::{CheckpointFailure, CopyFailure, CopyReport, PartId};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::directory::Directory;
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{decided_numbers, newest, read_manifest};
use stead_store::checkpoint::store::{BlobStore, DiskStore, StoreError};
use stead_store::data_dir::CHECKPOINTS;

/// An address that cannot be opened.
const NOWHERE: &str = "nowhere";
/// Maximum number of requested copies that the node takes at a time.
const REQUESTS_MAX: usize = 16;

/// The known copies.
#[derive(Default)]
pub(crate) struct Copies {
    /// The newest checkpoint that was reported as copied automatically.
    newest: CheckpointNumber,
    /// Those that were reported as copied on request, to a directory in which nothing is collected.
    by_hand: BTreeSet<CheckpointNumber>,
    /// By directory, those that this life was seen to have made or found, and that were compared.
    compared: BTreeSet<(&'static str, CheckpointNumber)>,
}

/// The requests for copies in one life of the node.
#[derive(Default)]
pub(crate) struct CopyRequests {
    /// Number of those that are not answered.
    pub(super) open: usize,
    /// The checkpoint that is being copied, if it existed when that began.
    reads: Option<CheckpointNumber>,
}

fn store(world: &World, dir: &str) -> DiskStore {
    DiskStore::attach(Arc::new(world.disk.clone()), dir)
}

impl World {
    /// A life begins, and may copy.
    pub(crate) fn begin_copies(&mut self) -> Outcomes {
        let disk = Arc::clone(self.life_disk.as_ref().expect("it was opened"));
        let (mut seed, piece) = (self.life << 32, self.profile.copy_piece);
        let node = self.node.as_mut().expect("just started");
        let copies = node.parts.copies_mut().expect("it has had no turn");
        copies.set_piece_bytes(piece);
        copies.set_opener(Box::new(move |address, cancel| {
            seed += 1;
            if address == NOWHERE {
                let reason = "there is nothing".to_owned();
                return Err(StoreError::Address { name: address.to_owned(), reason });
            }
            match Directory::open(Arc::clone(&disk), address, address.to_owned(), cancel, seed) {
                Ok(target) => Ok(Arc::new(target)),
                Err(source) => {
                    let (name, place) = (address.to_owned(), address.to_owned());
                    Err(StoreError::Io { action: "open", name, place, source })
                }
            }
        }));
        // After a crash each is looked at again.
        self.copies.compared.clear();
        self.check_copies()
    }

    /// Requests a copy of a checkpoint, as an operator does. It may be gone, or not exist yet.
    pub(crate) fn want_copy(&mut self) -> Outcomes {
        let number = (self.decided.0 + 1).saturating_sub(self.odd.u64(..5));
        let to = [COPIES, BY_HAND, BY_HAND, NOWHERE][self.odd.usize(..4)];
        let (number, is_ending) = (CheckpointNumber(number), self.is_ending());
        let Some(node) = self.node.as_mut().filter(|node| node.serves) else { return Ok(()) };
        let asked = node.parts.life().copy_checkpoint(number.0, to, Box::new(CopyWanting { number, to }));
        let open = &mut node.copy_requests.open;
        match asked {
            Ok(()) => *open += 1,
            Err(CheckpointFailure::Busy(_)) if *open >= REQUESTS_MAX => self.marks.hit(Mark::CopyRefused),
            Err(CheckpointFailure::Stopped(_)) if is_ending => {}
            Err(failure) => {
                let what =
                    format!("a copy of checkpoint {number} is refused while {open} run or wait: {failure}");
                return Err(Violation::new(17, what).into());
            }
        }
        self.heed_bells();
        Ok(())
    }

    /// Handles the results of requested copies.
    pub(crate) fn copies_answered(
        &mut self,
        results: Vec<(CopyWanting, Result<CopyReport, CheckpointFailure>)>,
    ) -> Outcomes {
        for (CopyWanting { number, to }, result) in results {
            self.node.as_mut().expect("only a living node answers").copy_requests.open -= 1;
            match result {
                Ok(_) => {
                    self.marks.hit(Mark::CopiedByHand);
                    self.check_copied(number, to)?;
                    if to == BY_HAND {
                        self.copies.by_hand.insert(number);
                    }
                }
                // The part has reported it: see `copy_failed`.
                Err(CheckpointFailure::Store(_)) => {}
                Err(CheckpointFailure::Address(_)) if to == NOWHERE || self.has_no_way_to_copies() => {}
                Err(CheckpointFailure::Stopped(_)) if self.is_ending() => {
                    self.marks.hit(Mark::CopyInterrupted)
                }
                Err(failure) => {
                    let what = format!("the copy of checkpoint {number} to {to} is answered: {failure}");
                    return Err(Violation::new(17, what).into());
                }
            }
        }
        Ok(())
    }

    /// The part that copies had a turn.
    pub(crate) fn copies_had_turn(&mut self) -> Outcomes {
        let node = self.node.as_mut().expect("it had a turn");
        let Some(copies) = node.parts.copies_mut() else {
            // It has ended, and its pin with it.
            self.note_reading(None);
            return self.check_copies();
        };
        let (failure, copied, reads) =
            (copies.take_failure(), CheckpointNumber(copies.copied()), copies.reads());
        if let Some(failure) = failure {
            self.copy_failed(&failure)?;
        }
        if copied > self.copies.newest {
            self.copies.newest = copied;
            self.marks.hit(Mark::Copied);
        }
        self.note_reading(reads);
        self.check_copies()
    }

    /// Notes which checkpoint is being copied.
    fn note_reading(&mut self, reads: Option<CheckpointNumber>) {
        let local = store(self, CHECKPOINTS);
        let is_new = reads != self.node.as_ref().and_then(|node| node.copy_requests.reads);
        let found =
            is_new.then(|| reads.filter(|number| self.quietly(|_| read_manifest(&local, *number).is_ok())));
        let requests = &mut self.node.as_mut().expect("it had a turn").copy_requests;
        requests.reads = found.unwrap_or(requests.reads);
    }

    /// Handles a failed copy: it has a cause. A failed one is no harm, because it is tried again.
    fn copy_failed(&mut self, failure: &CopyFailure) -> Outcomes {
        let invariant = match failure {
            CopyFailure::Open(StoreError::Address { .. }) => return Ok(()),
            CopyFailure::Copy(CheckpointError::Unknown(number) | CheckpointError::GivenUp { number, .. }) => {
                let (local, number) = (store(self, CHECKPOINTS), *number);
                if self.quietly(|_| read_manifest(&local, number).is_err()) {
                    return Ok(());
                }
                0
            }
            // No fault removes an object: it was deleted too early.
            CopyFailure::Copy(CheckpointError::Store(StoreError::NotFound { .. })) => 13,
            // Nothing has flipped in a copy: see `flip_in`.
            CopyFailure::Copy(CheckpointError::Damaged { .. }) if !self.excuses_copy(failure) => 16,
            // The part goes on after it.
            CopyFailure::Panic(panic) if panic.starts_with(stage::SIMULATED) => {
                self.marks.hit(Mark::CopyPanicked);
                return Ok(());
            }
            CopyFailure::Panic(_) => 0,
            CopyFailure::Open(_) | CopyFailure::Copy(_) | CopyFailure::Collect(_) => {
                if self.excuses_copy(failure) {
                    self.marks.hit(Mark::CopyFailed);
                    return Ok(());
                }
                0
            }
        };
        let what = format!("a copy fails, and the disk did not: {failure}");
        Err(Violation::new(invariant, what).into())
    }

    /// Invariant 10 for copies: one that was reported is there.
    fn check_copied(&mut self, number: CheckpointNumber, dir: &'static str) -> Outcomes {
        let copies = store(self, dir);
        let found = self.quietly(|_| read_manifest(&copies, number).map(drop));
        let lost = |error| {
            Violation::new(10, format!("checkpoint {number} was copied to {dir}, and is not there: {error}"))
        };
        Ok(found.map_err(lost)?)
    }

    /// Invariant 10 for copies: those that were reported are there, the automatic one or a newer one. Invariants 10 and 16:
    /// each that is there is complete, and has the bytes of its checkpoint.
    fn check_copies(&mut self) -> Outcomes {
        for dir in [COPIES, BY_HAND] {
            let copies = store(self, dir);
            let decided = self.quietly(|_| decided_numbers(&copies));
            let decided = decided.map_err(|e| Violation::new(16, format!("cannot list {dir}: {e}")))?;
            let lost = match dir {
                COPIES => decided.last().is_none_or(|last| *last < self.copies.newest),
                _ => self.copies.by_hand.iter().any(|number| !decided.contains(number)),
            };
            if lost && !(dir == COPIES && self.copies.newest == CheckpointNumber(0)) {
                let Copies { newest, by_hand, .. } = &self.copies;
                let what = format!(
                    "{dir} has the checkpoints {decided:?}, and {newest} was copied automatically, {by_hand:?} on request"
                );
                return Err(Violation::new(10, what).into());
            }
            for number in decided {
                if self.copies.compared.insert((dir, number)) {
                    self.compare_copy(dir, number)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the numbers of all copies.
    pub(super) fn copied_numbers(&mut self) -> Result<BTreeSet<CheckpointNumber>, Stop> {
        let mut numbers = BTreeSet::new();
        for dir in [COPIES, BY_HAND] {
            let copies = store(self, dir);
            let decided = self.quietly(|_| decided_numbers(&copies));
            numbers.extend(decided.map_err(|e| Violation::new(16, format!("cannot list {dir}: {e}")))?);
        }
        Ok(numbers)
    }

    /// Compares a copy with its checkpoint, if that still exists, and with the states that the shards had at their markers.
    fn compare_copy(&mut self, dir: &'static str, number: CheckpointNumber) -> Outcomes {
        let copies = store(self, dir);
        let loaded = self.quietly(|world| {
            let manifest = read_manifest(&copies, number)?;
            let differs = manifest.bundles.iter().map(|bundle| &bundle.name).find(|name| {
                let bytes = |dir: &str| world.disk.bytes(&format!("{dir}/{name}"));
                bytes(CHECKPOINTS).is_some_and(|source| bytes(dir) != Some(source))
            });
            let states = load_parts(&copies, &manifest, 1)?;
            let states = states.into_iter().map(|part| part.into_state(&manifest));
            Ok((states.collect::<Result<Vec<_>, _>>()?, differs.cloned()))
        });
        let (states, differs) = loaded.map_err(|error: CheckpointError| {
            Violation::new(16, format!("{dir} has checkpoint {number}, which cannot be loaded: {error}"))
        })?;
        if let Some(name) = differs {
            return Err(Violation::new(16, format!("{name} in {dir} differs from what was copied")).into());
        }
        for state in states {
            let shard = state.shard();
            let differs = match self.model.mark(number, shard) {
                None => Some("a marker that is not committed".to_owned()),
                Some(mark) => difference(mark, &state),
            };
            if let Some(differs) = differs {
                let what = format!("shard {shard} has {differs} in the copy of checkpoint {number}");
                return Err(Violation::new(10, what).into());
            }
        }
        Ok(())
    }

    /// Invariant 13 for readers: what is being copied is not collected.
    pub(crate) fn check_read(&mut self) -> Outcomes {
        let reads = self.node.as_ref().and_then(|node| node.copy_requests.reads);
        let Some(number) = reads else { return Ok(()) };
        let local = store(self, CHECKPOINTS);
        let found = self.quietly(|_| {
            let manifest = read_manifest(&local, number)?;
            for bundle in &manifest.bundles {
                local.open(&bundle.name)?;
            }
            Ok(())
        });
        found.map_err(|error: CheckpointError| {
            Violation::new(13, format!("checkpoint {number} was collected while it was copied: {error}"))
                .into()
        })
    }

    /// Whether nothing is copied or waits for that.
    pub(crate) fn copies_rest(&self) -> bool {
        let Some(node) = &self.node else { return false };
        node.copy_requests.open == 0 && !node.due.contains_key(&PartId::Copies)
    }

    /// Invariant 17 for copies: without faults the newest checkpoint is copied.
    pub(crate) fn check_newest_copied(&mut self) -> Outcomes {
        if self.profile.copy_interval == 0 {
            return Ok(());
        }
        let local = store(self, CHECKPOINTS);
        let found = self.quietly(|_| newest(&local));
        let found =
            found.map_err(|e| Violation::new(10, format!("cannot find the newest checkpoint: {e}")))?;
        let wanted = found.manifest.map_or(CheckpointNumber(0), |manifest| manifest.number);
        if self.copies.newest >= wanted {
            return Ok(());
        }
        let what = format!("checkpoint {wanted} is not copied, and nothing fails; {} is", self.copies.newest);
        Err(Violation::new(17, what).into())
    }
}
