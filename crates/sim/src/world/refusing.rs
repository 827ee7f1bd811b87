//! Starts that are refused, for an operation that the disk refuses or a flipped bit: each has to name that cause, and changes nothing.

use super::node::{Lack, assemble, open};
use super::rot::Flip;
use super::{Event, Outcomes, World};
use crate::bug::Bug;
use crate::marks::Mark;
use crate::refusals::{Area, Refusals};
use crate::stage;
use crate::violation::Violation;
use std::io;
use std::sync::Arc;
use stead_node::OpenError;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::store::StoreError;
use stead_store::data_dir::{CHECKPOINTS, DataDir, DataDirError, META_FILE};
use stead_store::disk::{LockError, is_full};
use stead_store::recovery::RecoveryError;
use stead_store::sim_disk::SimDisk;
use stead_store::wal::WalError;

/// Number of operations of a start that are refused, one in each start.
const REFUSED: u64 = 12;

/// Returns the files of a disk, but for those of the log, whose unsynced tail a start may cut, and unfinished ones.
fn files(disk: &SimDisk) -> Vec<(String, Option<Vec<u8>>)> {
    let mut paths = disk.files();
    paths.retain(|path| !path.starts_with("wal/") && !path.ends_with(".tmp"));
    paths.into_iter().map(|path| (path.clone(), disk.bytes(&path))).collect()
}

/// Whether the system's error in a start is one that the disk gave on files of this area.
fn is_refusal(area: Area, source: &io::Error, refused: &Refusals) -> bool {
    if is_full(source) { refused.is_short(area) } else { refused.has_failed(area) }
}

/// Whether a start was refused for an operation that the disk refused.
fn names_refusal(error: &OpenError, refused: &Refusals) -> bool {
    let store = |error: &StoreError| match error {
        StoreError::Io { source, .. } => is_refusal(Area::Checkpoints, source, refused),
        _ => false,
    };
    match error {
        OpenError::DataDir(
            DataDirError::Io { source, .. } | DataDirError::Lock(LockError::Io { source, .. }),
        ) => is_refusal(Area::Data, source, refused),
        OpenError::Store(error) => store(error),
        OpenError::Recovery(RecoveryError::Checkpoint(CheckpointError::Store(error))) => store(error),
        OpenError::Recovery(RecoveryError::Log(
            WalError::Io { source, .. } | WalError::NoSpace { source, .. },
        )) => is_refusal(Area::Log, source, refused),
        _ => false,
    }
}

/// Returns the path of a segment without its ending, which a start changes when it takes a free segment for a new one.
fn segment(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(segment, _)| segment)
}

/// Whether a start was refused for a flipped bit.
fn names_flip(error: &OpenError, Flip { path, .. }: &Flip) -> bool {
    match error {
        // The version is read before the checksum.
        OpenError::DataDir(DataDirError::MetaDamaged { .. } | DataDirError::Version { .. }) => {
            path == META_FILE
        }
        OpenError::Recovery(RecoveryError::Checkpoint(
            CheckpointError::Damaged { name, .. } | CheckpointError::Version { name, .. },
        )) => path.strip_prefix(CHECKPOINTS).and_then(|path| path.strip_prefix('/')) == Some(name),
        OpenError::Recovery(RecoveryError::Log(
            WalError::Corrupt { path: found, .. } | WalError::Version { path: found, .. },
        )) => segment(path) == segment(found),
        // A damaged last batch looks like one that was never synced, unless a checkpoint shows that it was.
        OpenError::Recovery(RecoveryError::Replay(_)) => path.starts_with("wal/"),
        // A segment of another number or log.
        OpenError::Recovery(RecoveryError::Log(
            WalError::MissingSegment { .. } | WalError::Missing { .. } | WalError::WrongLog { .. },
        )) => path.starts_with("wal/"),
        _ => false,
    }
}

impl World {
    /// Handles a start that was refused. The metadata were these before.
    pub(super) fn start_refused(&mut self, error: OpenError, meta: &Option<Vec<u8>>) -> Outcomes {
        let error = match self.bug {
            Some(Bug::MisnameRefusal) => OpenError::DataDir(DataDirError::Empty),
            _ => error,
        };
        let (refused, is_damaged) = (self.refusals(), self.disk.is_flipped());
        if names_refusal(&error, &refused) {
            return self.refused(&error, meta);
        }
        if is_damaged && self.flipped.as_ref().is_some_and(|flip| names_flip(&error, flip)) {
            return self.heal();
        }
        if is_damaged || refused.any() {
            let path = self.flipped.as_ref().filter(|_| is_damaged).map(|flip| &flip.path);
            let what = format!("a start with a flipped bit in {path:?} and {refused:?} says: {error}");
            return Err(Violation::new(0, what).into());
        }
        Err(self.blame_crash(Violation::new(2, format!("the node does not come back: {error}"))).into())
    }

    /// Handles a refused operation: the node starts again. A start has changed the metadata only if the disk has failed under its last
    /// writes.
    fn refused(&mut self, error: &OpenError, meta: &Option<Vec<u8>>) -> Outcomes {
        let refused = self.refusals();
        let is_short = refused.all_short();
        let may_write = refused.has_failed(Area::Data) || refused.has_failed(Area::Log);
        if !may_write && self.recovered_once && *meta != self.disk.bytes(META_FILE) {
            let what = format!("a start that was refused has changed the metadata: {error}");
            return Err(Violation::new(0, what).into());
        }
        self.must_be_clean &= !may_write;
        self.marks.hit(match error {
            // An existing log needs room only for what a start promises.
            OpenError::Recovery(RecoveryError::Log(WalError::NoSpace { .. })) if self.recovered_once => {
                Mark::PromisesWithoutRoom
            }
            _ if is_short => Mark::StartShort,
            _ => Mark::StartFailed,
        });
        self.disk.kill_process();
        self.powered_off = false;
        let pause = if is_short { self.odd.u64(..500_000) } else { 0 };
        self.at(1 + pause, Event::Start);
        Ok(())
    }

    /// Refuses operations of a start, one in each, on copies of the disk. A start that is refused for it has changed nothing, unless it
    /// was one of the last, which write what begins a life.
    pub(super) fn refuse_everywhere(&mut self) -> Outcomes {
        let (wanted, operations) = self.undisturbed_start()?;
        let stride = (operations / REFUSED).max(1);
        let mut at = 1 + self.odd.u64(..stride);
        while at <= operations {
            let disk = self.sound_copy();
            let before = files(&disk);
            disk.refuse_after(at);
            let opened = open(Arc::new(disk.clone()), &self.topology, &self.profile);
            let refused = match opened {
                Ok(recovery) => {
                    let start =
                        || assemble(recovery, Lack::default(), &self.topology, &self.profile, self.life);
                    drop(stage::play(self.scene(), start));
                    None
                }
                Err(error) => Some(error),
            };
            if let (Some(Bug::EarlyLife), Some(_)) = (self.bug, &refused) {
                count_life(&disk);
            }
            let may_write = match &refused {
                None | Some(OpenError::DataDir(_) | OpenError::Recovery(RecoveryError::Log(_))) => true,
                Some(_) => false,
            };
            if refused.is_some() {
                self.marks.hit(if may_write { Mark::StartRefused } else { Mark::StartUnread });
            }
            let wrong = |what: String| {
                let what = format!(
                    "operation {at} of the {operations} of a start was refused, which gave {refused:?}, {what}"
                );
                Err(Violation::new(0, what).into())
            };
            if !may_write && files(&disk) != before {
                return wrong("and has changed the data".to_owned());
            }
            disk.restart();
            match self.begins(&disk) {
                Ok(found) if found.continues(&wanted, may_write) => {}
                Ok(found) => return wrong(format!("and the next one gives {found:?} instead of {wanted:?}")),
                Err(error) => return wrong(format!("and the next one is refused: {error}")),
            }
            at += stride;
        }
        Ok(())
    }
}

/// Plants the bug: a start counts its life before it has read all that it needs.
fn count_life(disk: &SimDisk) {
    let opened = DataDir::open(Arc::new(disk.clone()), || unreachable!("there are metadata"));
    if let Ok((mut data_dir, _)) = opened {
        let _ = data_dir.update(|meta| meta.lives += 1);
    }
}
