//! Checkpoints of the simulated node: compares what its parts store, delete and trim with the model, and delays the
//! news of checkpoints for workers as the seed draws.

use super::interval::{Interval, REHEARSED_INTERVAL};
use super::{Inside, Outcomes, Stop, World};
use crate::bug::Bug;
use crate::disk_log::LOG_ID;
use crate::marks::Mark;
use crate::model::{check_channels, difference};
use crate::profile::one_in;
use crate::refusals::Area;
use crate::stage::{Checked, Done, Drained, Wanting};
use crate::violation::Violation;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;
use stead_core::checkpointing::retention::Garbage;
use stead_core::ids::{CheckpointNumber, Index, ShardId};
use stead_core::shard::Input;
use stead_core::state::State;
use stead_node::PartId;
use stead_node::checkpoint::{CheckpointFailure, CheckpointReport, News, Trouble};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{Manifest, decided_numbers, manifest_name, newest, read_manifest};
use stead_store::checkpoint::store::{BlobStore, DiskStore};
use stead_store::data_dir::CHECKPOINTS;
use stead_store::wal::{Record, Wal, WalOptions};

/// The known state of checkpoints in one life of the node.
#[derive(Default)]
pub(crate) struct Checkpoints {
    /// Number of wanted checkpoints whose results have not come.
    pub(super) wanted: u64,
    /// The state of the interval.
    pub(super) interval: Interval,
    /// The last checkpoint that was begun, and the virtual time at which its colour left.
    begun: (CheckpointNumber, u64),
    /// Whether the last checkpoint that was decided is complete; `None` after a reset.
    is_complete: Option<bool>,
    /// The output of a merge, while the next checkpoint may refer to it.
    merged: Option<String>,
    /// A number whose decision is unknown.
    undecided: Option<CheckpointNumber>,
    /// By worker, the virtual time at which the last news arrive.
    news: BTreeMap<usize, u64>,
}

/// The rehearsals of checkpoints at the end of a run, when all rests and nothing fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Rehearsal {
    /// None yet.
    #[default]
    None,
    /// No marker is committed until the checkpoint is given up, with all its parts stored.
    Uncommitted,
    /// A shard has a greater colour than the checkpoint, which is given up at once.
    Overtaken,
    /// The colour arrives after the checkpoint was given up.
    LateColour,
    /// The next checkpoint is completed in this life.
    Last(u64),
    /// Nothing requests the next one: it is taken in this life because its interval is over, and then no more.
    Interval(u64),
}

impl Checkpoints {
    /// A life begins, with this interval; 0 for none.
    pub(crate) fn new(interval: u64) -> Self {
        Self { interval: Interval::new(interval), ..Self::default() }
    }

    /// Whether the last checkpoint that was decided is complete.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete == Some(true)
    }
}

/// A part that is due after this time, in microseconds, rests.
const REST_MAX: u64 = 1_000_000;

impl World {
    /// Whether the checks of a wanted checkpoint must run: those before it have ended, and it has time.
    pub(super) fn is_rehearsing_checks(&self) -> bool {
        matches!(self.rehearsal, Rehearsal::Last(_)) && self.runs_checks()
    }

    /// Whether the part that runs checks has not panicked in this life.
    pub(super) fn runs_checks(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.parts.runs(PartId::Checks))
    }

    pub(super) fn checkpoints(&mut self) -> &mut Checkpoints {
        &mut self.node.as_mut().expect("only a living node takes checkpoints").checkpoints
    }

    /// Requests a checkpoint, if the node lives.
    pub(crate) fn want_checkpoint(&mut self) {
        let checked = if one_in(&mut self.odd, self.profile.checked) { Checked::Yes } else { Checked::No };
        if let Some(node) = self.node.as_mut().filter(|node| node.serves) {
            node.checkpoints.wanted += 1;
            node.parts.shared.checkpoint(checked == Checked::Yes, Box::new(Wanting(checked)));
            self.heed_bells();
        }
    }

    /// Handles the results of wanted checkpoints.
    pub(crate) fn checkpoints_answered(
        &mut self,
        results: Vec<(Checked, Result<CheckpointReport, CheckpointFailure>)>,
    ) -> Outcomes {
        for (checked, result) in results {
            self.checkpoints().wanted -= 1;
            if let (Checked::Yes, Ok(report)) = (checked, result) {
                self.check_report(&report)?;
            }
        }
        Ok(())
    }

    /// Whether no checkpoint is taken, nothing is deleted or merged, and no result is outstanding.
    pub(crate) fn checkpoints_rest(&self) -> bool {
        let Some(node) = &self.node else { return false };
        // Checks rest for a multiple of the time that they took.
        let is_due = |part| node.due.get(&part).is_some_and(|at| *at <= self.now + REST_MAX);
        !is_due(PartId::Checkpoints)
            && !is_due(PartId::Merges)
            && !is_due(PartId::Checks)
            && self.copies_rest()
            && node.running_checkpoint().is_none()
            && node.checkpoints.wanted == 0
    }

    /// Handles what the parts of checkpoints did.
    pub(crate) fn checkpoint_went_on(&mut self, done: Done) -> Outcomes {
        match done {
            Done::Coloured(colour) => {
                let now = self.now;
                self.checkpoints().begun = (colour.number(), now);
                if self.rehearsal == Rehearsal::Overtaken {
                    self.marks.hit(Mark::HigherColour);
                    self.inside(0, Inside::Input(ShardId(0), Input::Colour(colour.next())));
                }
            }
            Done::CaughtUp => self.marks.hit(Mark::SnapshotWentOn),
            Done::Drained(Drained { shard, number, is_last, .. }) => {
                if !is_last {
                    self.marks.hit(Mark::SeveralPieces);
                }
                let marker = self.model.mark(number, shard).map(|mark| mark.position().index);
                if marker.is_some_and(|marker| self.model.appended(shard) > marker) {
                    self.marks.hit(Mark::SnapshotUnderWrites);
                }
            }
            Done::Discarded => self.marks.hit(Mark::LateMarker),
            Done::Completed(number, of_interval) => self.completed(number, of_interval)?,
            Done::GivenUp(number) => {
                self.given_up(number)?;
                if self.bug == Some(Bug::ForgetDecided) {
                    self.forget_decided();
                }
            }
            Done::Refused => {
                let now = self.now;
                self.checkpoints().interval.refused(now);
                self.checkpoints().is_complete = Some(false);
                self.marks.hit(Mark::CheckpointRefused);
            }
            Done::Trim => self.disk_log().wants_trim(),
            Done::HeldTrim(command) => {
                self.node.as_mut().expect("it had a turn").held_trim = Some(command);
            }
            Done::TrimEarly(marked) => self.trim_early(&marked),
            Done::Merge(output) => self.checkpoints().merged = Some(output),
            Done::Merged => self.marks.hit(Mark::Compacted),
            Done::Trouble(trouble) => self.trouble_with_checkpoints(&trouble)?,
            Done::Looked => {
                self.note_search();
                self.check_merged()?;
            }
            Done::Deleted(garbage) => {
                self.check_read()?;
                self.check_retained(&garbage)?;
                self.check_collected(&garbage)?;
            }
        }
        Ok(())
    }

    /// Carries the news of checkpoints to a worker, sometimes late.
    pub(crate) fn carry_news(&mut self, worker: usize, news: News) {
        let late = match (news, self.rehearsal) {
            (News::Colour(_), Rehearsal::LateColour) => self.profile.checkpoint_deadline,
            _ => 0,
        };
        let delay = match news {
            News::Completed(number) if !number.0.is_multiple_of(4) => 0,
            _ => self.random(self.profile.channel_delay),
        };
        let now = self.now;
        // In the order in which they left: they wait in one inbox.
        let last = self.checkpoints().news.entry(worker).or_default();
        *last = (*last).max(now + late + delay);
        let delay = *last - now;
        self.inside(delay, Inside::News(worker, news));
    }

    pub(crate) fn news_arrives(&mut self, worker: usize, news: News) {
        let node = self.node.as_ref().expect("checked by the caller");
        node.parts.shared.pass_on(worker, news);
        self.heed_bells();
    }

    /// Handles that a checkpoint exists.
    fn completed(&mut self, number: CheckpointNumber, of_interval: bool) -> Outcomes {
        self.checkpoints().is_complete = Some(true);
        if of_interval {
            self.checkpoints().interval.completed(number);
            if let Rehearsal::Interval(_) = self.rehearsal {
                self.set_interval(None);
            }
        }
        self.decided = self.decided.max(number);
        self.marks.hit(Mark::CheckpointDone);
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        let manifest = self.quietly(|_| read_manifest(&store, number));
        let manifest =
            manifest.map_err(|e| Violation::new(10, format!("checkpoint {number} is complete: {e}")))?;
        self.check_checkpoint(&manifest)?;
        if of_interval {
            self.note_size(&manifest);
        }
        self.note_blocks(&manifest);
        let decided = self.quietly(|_| decided_numbers(&store));
        let decided = decided.map_err(|e| Violation::new(10, format!("cannot list the checkpoints: {e}")))?;
        let copied = self.copied_numbers()?;
        self.model.forget_cuts_below(decided.first().copied().unwrap_or(number), &copied);
        // Checkpoints before the end of the merge cannot use its output.
        let checkpoints = self.checkpoints();
        let is_used = |name: &String| manifest.bundles.iter().any(|bundle| bundle.name == *name);
        if checkpoints.merged.as_ref().is_some_and(is_used) {
            checkpoints.merged = None;
        }
        Ok(())
    }

    fn given_up(&mut self, number: CheckpointNumber) -> Outcomes {
        self.marks.hit(Mark::CheckpointGivenUp);
        let (now, deadline) = (self.now, self.profile.checkpoint_deadline);
        let checkpoints = self.checkpoints();
        checkpoints.is_complete = Some(false);
        let (begun, since) = checkpoints.begun;
        if checkpoints.undecided.take() != Some(number) {
            self.decided = self.decided.max(number);
        }
        if self.bug == Some(Bug::BuildOnGivenUp) {
            for worker in 0..self.profile.workers {
                self.carry_news(worker, News::Completed(number));
            }
        }
        if self.rehearsal == Rehearsal::Overtaken && begun == number && now >= since + deadline {
            let what = format!("checkpoint {number} waited until its time was up, and a shard had passed it");
            return Err(Violation::new(17, what).into());
        }
        Ok(())
    }

    /// Plants the bug: the log is trimmed before the manifest is durable.
    fn trim_early(&mut self, marked: &BTreeMap<ShardId, Index>) {
        self.disk_log().wants_trim();
        let top = |shard| marked.get(&shard).copied().unwrap_or_default();
        let tops = self.topology.shards().map(top).collect();
        self.node.as_ref().expect("it had a turn").parts.shared.log().trim(tops);
    }

    fn trouble_with_checkpoints(&mut self, trouble: &Trouble) -> Outcomes {
        if let Trouble::Tombstone(number, _) = trouble {
            self.checkpoints().undecided = Some(*number);
        }
        if self.has_cause(Area::Checkpoints, trouble.error()) {
            match trouble.error() {
                error if error.is_full() => self.marks.hit(Mark::CheckpointFull),
                CheckpointError::Damaged { .. } | CheckpointError::Version { .. } => {
                    self.marks.hit(Mark::RotRefused);
                }
                // The node has to survive the faults of the disk.
                _ => {}
            }
            return Ok(());
        }
        let invariant = match (trouble.error(), trouble) {
            // No fault removes an object: it was deleted too early.
            (CheckpointError::Store(error), _) if error.is_not_found() => 13,
            (CheckpointError::Store(_), _) => 0,
            (_, Trouble::Checkpoint(..) | Trouble::Tombstone(..)) => 10,
            (_, Trouble::Collection(_) | Trouble::Merge(_)) => 13,
        };
        Err(Violation::new(invariant, trouble.to_string()).into())
    }

    /// Checks invariants 9, 10 and 11 on the stored checkpoint.
    pub(crate) fn check_checkpoint(&mut self, manifest: &Manifest) -> Outcomes {
        let number = manifest.number;
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        let loaded = self.quietly(|_| load_parts(&store, manifest, 1));
        let loaded =
            loaded.map_err(|e| Violation::new(10, format!("cannot load checkpoint {number}: {e}")))?;
        let mut states = Vec::new();
        for part in loaded {
            let state = part
                .into_state(manifest)
                .map_err(|e| Violation::new(10, format!("checkpoint {number}: {e}")))?;
            let shard = state.shard();
            let Some(mark) = self.model.mark(number, shard) else {
                return Err(Violation::new(
                    10,
                    format!("checkpoint {number}: the marker of shard {shard} is not committed"),
                )
                .into());
            };
            if let Some(what) = difference(mark, &state) {
                return Err(
                    Violation::new(10, format!("checkpoint {number}: shard {shard} has {what}")).into()
                );
            }
            states.push(state);
        }
        let cut: &[State] = &states;
        check_channels(cut)?;
        self.workload.borrow_mut().check_cut(&self.topology, cut).map_err(|s| Violation::parse(&s))?;
        let in_flight: u64 = cut
            .iter()
            .flat_map(|from| {
                from.outboxes().iter().map(move |(to, outbox)| (from.shard(), to, outbox.next.0 - 1))
            })
            .map(|(from, to, sent)| sent - cut[to.0 as usize].received().get(from).map_or(0, |seq| seq.0))
            .sum();
        if in_flight != manifest.totals.messages {
            let counted = manifest.totals.messages;
            let what = format!(
                "checkpoint {number}: {in_flight} messages are in flight, its manifest counts {counted}"
            );
            return Err(Violation::new(9, what).into());
        }
        if in_flight > 0 {
            self.marks.hit(Mark::CutInFlight);
        }
        Ok(())
    }

    /// Checks invariant 13 for checkpoints after a deletion: each existing checkpoint can be loaded, and the output of
    /// a merge for the next one exists.
    fn check_collected(&mut self, deleted: &[Garbage]) -> Outcomes {
        if deleted.iter().any(|garbage| matches!(garbage, Garbage::Tombstone(_))) {
            self.marks.hit(Mark::TombstoneCollected);
        }
        if !deleted.iter().any(|garbage| matches!(garbage, Garbage::Bundle(_))) {
            return Ok(());
        }
        self.marks.hit(Mark::Collected);
        if self.node.as_ref().is_some_and(|node| node.due.contains_key(&PartId::Merges)) {
            self.marks.hit(Mark::CollectedInMerge);
        }
        self.check_merged()?;
        self.check_all_checkpoints()
    }

    /// Checks that the output of a merge exists while the next checkpoint may refer to it.
    fn check_merged(&mut self) -> Outcomes {
        let node = self.node.as_ref().expect("only a living node merges");
        let Some(merged) = node.checkpoints.merged.clone() else { return Ok(()) };
        let Some(checkpoints) = node.parts.checkpoints() else { return Ok(()) };
        let lineage = checkpoints.part.driver().lineage();
        if lineage.bundles().iter().all(|bundle| bundle.name != merged) {
            // It is not written yet, or its inputs are not used any more.
            return Ok(());
        }
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        let is_there = self.quietly(|_| store.open(&merged).is_ok());
        if is_there {
            return Ok(());
        }
        Err(Violation::new(13, format!("{merged} was deleted, and the next checkpoint needs it")).into())
    }

    /// Plants the bug: the tombstone of the greatest number is deleted too.
    fn forget_decided(&mut self) {
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        let is_forgotten = self.quietly(|_| {
            let greatest = decided_numbers(&store).ok().and_then(|numbers| numbers.last().copied());
            greatest.is_some_and(|number| {
                matches!(read_manifest(&store, number), Err(CheckpointError::GivenUp { .. }))
                    && store.delete(&manifest_name(number)).is_ok()
            })
        });
        if is_forgotten && !self.calm {
            // The next number would hide it.
            self.plan_crash(12);
        }
    }

    /// Checks invariant 13 for checkpoints: each existing one can be loaded.
    pub(crate) fn check_all_checkpoints(&mut self) -> Outcomes {
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        let broken = self.quietly(|_| {
            decided_numbers(&store)?
                .into_iter()
                .find_map(|number| {
                    let manifest = match read_manifest(&store, number) {
                        Ok(manifest) => manifest,
                        Err(CheckpointError::GivenUp { .. }) => return None,
                        Err(error) => return Some((number, error)),
                    };
                    load_parts(&store, &manifest, 1).err().map(|error| (number, error))
                })
                .map_or(Ok(()), |(number, error)| {
                    Err(CheckpointError::Incomplete { number, reason: error.to_string() })
                })
        });
        broken.map_err(|error| Violation::new(13, format!("a checkpoint was broken: {error}")).into())
    }

    /// Checks invariant 13 for the log: it has every entry that the newest checkpoint lacks.
    pub(crate) fn check_log(&mut self) -> Outcomes {
        let options =
            WalOptions { segment_bytes: self.profile.segment_bytes, log_id: LOG_ID, ..WalOptions::default() };
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        let newest = self.quietly(|_| newest(&store));
        let newest =
            newest.map_err(|e| Violation::new(13, format!("cannot read the newest checkpoint: {e}")))?;
        let mut first: Vec<Option<Index>> = vec![None; self.topology.shard_count() as usize];
        let visit = |record: Record<'_>| {
            first[record.shard.0 as usize].get_or_insert(record.index);
            Ok::<_, std::io::Error>(ControlFlow::Continue(()))
        };
        let read = self.quietly(|world| Wal::read(&world.disk.clone(), &options, visit));
        read.map_err(|e| Violation::new(13, format!("cannot read the trimmed log: {e}")))?;
        for shard in self.topology.shards() {
            let held = newest.manifest.as_ref().and_then(|manifest| manifest.part(shard));
            let held = held.map_or(Index(0), |part| part.index);
            let needed = held.next();
            let there = match first[shard.0 as usize] {
                Some(first) => first <= needed,
                None => self.model.durable(shard) <= held,
            };
            if !there {
                let first = first[shard.0 as usize];
                let what = format!(
                    "shard {shard}: the log begins at {first:?}, but entry {needed} is in no checkpoint"
                );
                return Err(Violation::new(13, what).into());
            }
        }
        Ok(())
    }

    /// Begins the next rehearsal once all rests; returns whether all were done.
    pub(crate) fn rehearse(&mut self) -> Result<bool, Stop> {
        let life = self.life;
        self.rehearsal = match self.rehearsal {
            Rehearsal::None => Rehearsal::Uncommitted,
            Rehearsal::Uncommitted => Rehearsal::Overtaken,
            Rehearsal::Overtaken => Rehearsal::LateColour,
            Rehearsal::LateColour => Rehearsal::Last(life),
            // Invariant 17 for checkpoints, regardless of the previous one's outcome.
            Rehearsal::Last(begun_in) if begun_in == life => {
                if self.checkpoints().is_complete != Some(true) {
                    let what = "a checkpoint was wanted without faults and not completed";
                    return Err(Violation::new(17, what).into());
                }
                Rehearsal::Interval(life)
            }
            Rehearsal::Last(_) => Rehearsal::Last(life),
            // The checks rest before it for a multiple of the time that they took.
            Rehearsal::Interval(begun_in) if begun_in == life && self.waits_for_checks() => return Ok(false),
            Rehearsal::Interval(begun_in) if begun_in == life => {
                self.check_rehearsed_interval()?;
                return Ok(true);
            }
            Rehearsal::Interval(_) => Rehearsal::Interval(life),
        };
        let deadline = self.profile.checkpoint_deadline;
        let node = self.node.as_mut().expect("a node that rests lives");
        let checkpoints = node.parts.checkpoints_mut().expect("a node that rests has all its parts");
        checkpoints.set_timeout(Duration::from_micros(deadline));
        node.checkpoints.is_complete = None;
        match self.rehearsal {
            Rehearsal::Interval(_) => self.set_interval(Some(REHEARSED_INTERVAL)),
            _ => self.want_checkpoint(),
        }
        Ok(false)
    }
}
