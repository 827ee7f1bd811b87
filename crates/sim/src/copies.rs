//! Copies of checkpoints, to a directory of the node's own disk, so that its faults and power cuts hit them too: one that is
//! reported as made is there, and holds what its checkpoint does.

use crate::marks::Mark;
use crate::node::COPIES;
use crate::violation::Violation;
use crate::world::{Outcomes, World};
use std::sync::Arc;
use stead_core::ids::CheckpointNumber;
use stead_node::CopyPart;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{decided_numbers, read_manifest};
use stead_store::checkpoint::store::DiskStore;

impl World {
    /// A life begins, and may copy.
    pub(crate) fn begin_copies(&mut self) -> Outcomes {
        let disk = Arc::clone(self.life_disk.as_ref().expect("it was opened"));
        let node = self.node.as_mut().expect("just started");
        let Some(part) = &mut node.parts.copies else { return Ok(()) };
        // A store of copies has a directory that one of checkpoints has not.
        let owner = format!("{COPIES}/owner");
        let opened = DiskStore::open(Arc::clone(&disk), COPIES);
        let made =
            opened.ok().filter(|_| disk.create_dir(&owner).and_then(|()| disk.sync_dir(COPIES)).is_ok());
        match made {
            Some(target) => part.set_target(Arc::new(target)),
            None if self.disk.is_crashed() => return self.storage_failed("the power is gone"),
            // A fault of the disk: this life does not copy.
            None => node.parts.copies = None,
        }
        self.check_copy()
    }

    /// The part that copies had a turn.
    pub(crate) fn copies_had_turn(&mut self) -> Outcomes {
        let copies = self.node.as_ref().and_then(|node| node.parts.copies.as_ref());
        let copied = copies.map_or(0, CopyPart::copied);
        if copied <= self.copied {
            return Ok(());
        }
        self.copied = copied;
        self.marks.hit(Mark::Copied);
        self.check_copy()
    }

    /// Invariant 10 for copies: the newest that was reported is there, or a newer one, and is what its shards had at their
    /// markers.
    fn check_copy(&mut self) -> Outcomes {
        let wanted = CheckpointNumber(self.copied);
        if wanted == CheckpointNumber(0) {
            return Ok(());
        }
        let store = DiskStore::attach(Arc::new(self.disk.clone()), COPIES);
        let found = self.quietly(|_| {
            let newest = decided_numbers(&store)?.last().copied().unwrap_or(CheckpointNumber(0));
            let manifest = read_manifest(&store, newest.max(wanted))?;
            load_parts(&store, &manifest, 1)?
                .into_iter()
                .map(|part| part.into_state(&manifest))
                .collect::<Result<Vec<_>, CheckpointError>>()
        });
        let states = found.map_err(|error| {
            Violation::new(10, format!("checkpoint {wanted} was copied, and cannot be loaded: {error}"))
        })?;
        for state in states {
            let mark = self.model.mark(state.position().colour.number(), state.shard());
            if mark.is_some_and(|mark| mark.hash() != state.hash()) {
                let what = format!("shard {} differs in the copy of checkpoint {wanted}", state.shard());
                return Err(Violation::new(10, what).into());
            }
        }
        Ok(())
    }
}
