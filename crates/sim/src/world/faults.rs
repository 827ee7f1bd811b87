//! The faults that the profile draws between two events.

use super::{End, Inside};
use super::{Outcomes, World};
use crate::bug::Bug;
use crate::marks::Mark;
use crate::profile::{one_in, spread};
use crate::refusals::Refusals;
use stead_store::sim_disk::Faults;

/// Average number of events between changes of the interval of checkpoints.
const INTERVAL_EVERY: u32 = 1_000;

impl World {
    /// Applies the profile's faults between two events.
    pub(super) fn trouble(&mut self) -> Outcomes {
        if self.node.is_none() {
            return Ok(());
        }
        if one_in(&mut self.rng, self.profile.crash_every) {
            return match self.rng.u8(..3) {
                // The power ends within the next I/O operations.
                0 => {
                    self.plan_crash(12);
                    Ok(())
                }
                _ => {
                    let end =
                        if self.rng.u8(..4) < self.profile.kill_share { End::Process } else { End::Power };
                    // An operator may shut it down instead.
                    if end == End::Process && self.operator.bool() { self.stop() } else { self.end(end) }
                }
            };
        }
        if one_in(&mut self.rng, self.profile.fail_sync_every) {
            self.disk.fail_syncs(1);
            self.marks.hit(Mark::SyncFailed);
        }
        if one_in(&mut self.rng, self.profile.full_every) && self.room_at == 0 {
            // Space for nothing, or for a checkpoint that gives the log space.
            let most = spread(&mut self.rng, &[4 << 10, 64 << 10]);
            let room = self.rng.u64(..most);
            self.disk.set_capacity(Some(self.disk.used() + room));
            self.room_at = self.now + self.rng.u64(..2_000_000);
        }
        if self.room_at != 0 && self.room_at <= self.now {
            self.make_room();
        }
        if one_in(&mut self.odd, self.profile.files_every) && self.files_at == 0 {
            self.disk.set_open_files(Some(self.disk.open_files() + self.odd.u32(..3)));
            self.files_at = self.now + self.odd.u64(..2_000_000);
            self.marks.hit(Mark::FilesShort);
        }
        if self.files_at != 0 && self.files_at <= self.now {
            self.allow_files();
        }
        if one_in(&mut self.odd, self.profile.fault_every) {
            let mut faults = Faults::default();
            match self.odd.u8(..3) {
                0 => faults.reads = 1,
                1 => faults.writes = 1,
                _ => faults.changes = 1,
            }
            self.disk.set_faults(faults);
        }
        if one_in(&mut self.odd, self.profile.refuse_threads)
            && let Some(node) = &self.node
        {
            node.parts.refuse_threads(self.odd.bool());
        }
        if one_in(&mut self.odd, self.profile.flip_inside) && !self.disk.is_flipped() {
            match self.odd.u8(..2) {
                _ if self.bug == Some(Bug::SkipBlockCheck) => self.flip_unseen(),
                0 => self.flip_inside(),
                _ => self.flip_checkpoint(),
            }
            self.note_rot();
        }
        if !self.old.is_empty() && one_in(&mut self.rng, 20) {
            self.old_frame()?;
        }
        if one_in(&mut self.rng, self.profile.checkpoint_every) {
            self.inside(0, Inside::Want);
        }
        if self.profile.checkpoint_interval > 0 && one_in(&mut self.odd, INTERVAL_EVERY) {
            let interval = self.profile.checkpoint_interval;
            let next = [None, Some(interval), Some(interval), Some(interval / 2)][self.odd.usize(..4)];
            self.set_interval(next);
        }
        if one_in(&mut self.odd, self.profile.copy_requests) {
            self.want_copy()?;
        }
        self.operator_acts();
        self.operator_inspects()?;
        if self.node.is_none() {
            return Ok(());
        }
        if one_in(&mut self.clock, self.profile.jump_inside) {
            self.jump_inside();
        }
        if one_in(&mut self.rng, 64) {
            self.compare()?;
        }
        Ok(())
    }

    /// Sets the wall clock wrong while the node runs, or sets it right.
    pub(super) fn jump_inside(&mut self) {
        let jump = self.clock.u64(..self.profile.jump_max) as i64;
        self.jumped = true;
        match self.clock.u8(..3) {
            0 => self.offset = 0,
            1 => self.offset += jump,
            _ => self.offset -= jump,
        }
        self.marks.hit(Mark::ClockInside);
    }

    /// Whether the clocks were always right in this run, so that the shards' time must be the wall clock's.
    pub(crate) fn clock_is_right(&self) -> bool {
        !self.nested && !self.jumped
    }

    /// Cuts the power within this number of I/O operations.
    pub(crate) fn plan_crash(&mut self, operations: u64) {
        let operations = self.rng.u64(1..=operations);
        self.disk.crash_after(operations);
    }

    pub(crate) fn power_on(&mut self) {
        self.disk.restart();
    }

    /// Runs a function on the disk without its faults.
    pub(crate) fn quietly<T>(&mut self, look: impl FnOnce(&mut Self) -> T) -> T {
        assert!(!self.disk.is_crashed(), "a power cut that the node has not noticed must not be undone");
        let disk = self.disk.clone();
        disk.aside(|| look(self))
    }

    /// Whether the space of the disk is limited now.
    pub(crate) fn disk_is_limited(&self) -> bool {
        self.room_at != 0
    }

    /// Returns what the disk has refused in this life.
    pub(crate) fn refusals(&self) -> Refusals {
        self.refusals.get()
    }

    /// A life has ended. In half of the cases the next one starts under the limits of the disk, if it has some.
    pub(super) fn limits_outlive(&mut self) {
        if self.room_at != 0 && self.odd.bool() {
            let room = self.odd.u64(..16 << 10);
            self.disk.set_capacity(Some(self.disk.used() + room));
        } else {
            self.make_room();
        }
        if self.files_at != 0 && self.odd.bool() {
            // No file of the process is open any more.
            self.disk.set_open_files(Some(self.odd.u32(..12)));
        } else {
            self.allow_files();
        }
    }

    pub(crate) fn make_room(&mut self) {
        self.room_at = 0;
        self.disk.set_capacity(None);
    }

    pub(super) fn allow_files(&mut self) {
        self.files_at = 0;
        self.disk.set_open_files(None);
    }
}
