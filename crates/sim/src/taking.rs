//! Checkpoints in the simulated node: begun, drained slice by slice, sealed, decided, checked, and what they make
//! unnecessary given up.

use crate::bug::Bug;
use crate::marks::Mark;
use crate::model::check_channels;
use crate::node::{CHECKPOINTS, wal_options};
use crate::violation::Violation;
use crate::world::{Inside, Outcomes, World};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use stead_core::coordinator::{News, Step};
use stead_core::ids::{Colour, Index, ShardId};
use stead_core::records::{Piece, encode_record};
use stead_core::shard::Input;
use stead_core::state::{Header, State};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::collect::Retention;
use stead_store::checkpoint::compact::{self, MergeRun};
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{Manifest, decided_numbers, manifest_name, newest, read_manifest};
use stead_store::checkpoint::store::{BlobStore, DiskStore};
use stead_store::checkpoint::write::{CheckpointWriter, Plan, Sealed, give_up};
use stead_store::wal::{Record, Wal};

/// A checkpoint that is being taken.
pub(crate) struct Taking {
    number: Colour,
    bundle: String,
    writer: Option<CheckpointWriter>,
    sealed: Option<Sealed>,
}

impl World<'_> {
    pub(crate) fn begin_checkpoint(&mut self) -> Outcomes {
        let time = self.time();
        let Some(node) = &mut self.node else { return Ok(()) };
        if node.taking.is_some() || node.log.is_spent() || node.shards.iter().any(|shard| !shard.is_active())
        {
            return Ok(());
        }
        let deadline = time.plus_micros(self.profile.checkpoint_deadline);
        let number = node.coordinator.begin(deadline).expect("none is being taken");
        let (bundle, writer) = (node.names.draw(number), node.names.writer());
        let topology = (*self.topology).clone();
        let plan = Plan { number, created: time, topology, bundle: bundle.clone(), writer };
        let writer = CheckpointWriter::create(&node.store, plan);
        let (writer, failed) = match writer {
            Ok(writer) => (Some(writer), None),
            Err(error) => (None, Some(error)),
        };
        node.taking = Some(Taking { number, bundle, writer, sealed: None });
        if let Some(error) = failed {
            return self.checkpoint_failed(number, &error);
        }
        let node = self.node.as_mut().expect("checked above");
        for shard in compact::renewals(&node.lineage, &self.profile.merge) {
            node.shards[shard.0 as usize].force_full_snapshot();
        }
        for shard in self.topology.shards() {
            let delay = self.random(self.profile.channel_delay);
            self.inside(delay, Inside::Input(shard, Input::Colour(number)));
        }
        self.inside(self.profile.checkpoint_deadline, Inside::GiveUp(number));
        Ok(())
    }

    /// The checkpoint of this number, if it is still being taken.
    fn taking(&mut self, number: Colour) -> Option<&mut Taking> {
        self.node.as_mut()?.taking.as_mut().filter(|taking| taking.number == number)
    }

    /// A shard's marker is in its log, and its snapshot has begun.
    pub(crate) fn marked(&mut self, shard: ShardId, header: Header, all: bool) -> Outcomes {
        let number = header.position.colour;
        // As the shell does: a client or a message may bring a colour that no shard here had when the node started.
        let node = self.node.as_mut().expect("only a living node has markers");
        node.coordinator.handle_seen(number);
        let writer = self.taking(number).and_then(|taking| taking.writer.as_mut());
        let Some(writer) = writer else {
            // It was given up: nobody drains its snapshot.
            self.marks.hit(Mark::LateMarker);
            if self.bug == Some(Bug::DropNextSnapshot) {
                self.node.as_mut().expect("only a living node has markers").undrained.insert(shard);
            }
            return Ok(());
        };
        match writer.begin_part(header, all) {
            Ok(()) => {
                self.inside(1, Inside::Drain(shard, number));
                Ok(())
            }
            Err(error) => self.checkpoint_failed(number, &error),
        }
    }

    pub(crate) fn drain(&mut self, shard: ShardId, number: Colour) -> Outcomes {
        let slice = self.profile.drain;
        let late = self.bug == Some(Bug::LateSnapshot);
        let node = self.node.as_mut().expect("checked by the caller");
        let Some(taking) = node.taking.as_mut().filter(|taking| taking.number == number) else {
            return Ok(());
        };
        let Some(writer) = taking.writer.as_mut() else { return Ok(()) };
        if node.undrained.remove(&shard) {
            return Ok(());
        }
        let it = &mut node.shards[shard.0 as usize];
        let mut piece = Piece::default();
        let done = it.drain_snapshot(slice, &mut piece);
        if piece.len() > slice {
            let what = format!("shard {shard}: a slice of {slice} of a snapshot has {}", piece.len());
            return Err(Violation::new(17, what).into());
        }
        let mut out = piece.to_vec();
        if late && done {
            for (key, value) in it.state().records().iter() {
                encode_record(key, Some(value), &mut out);
            }
        }
        let moved = self.model.appended(shard)
            > self.model.mark(number, shard).map_or(Index(u64::MAX), |mark| mark.position().index);
        let written = writer
            .piece(shard, &out)
            .and_then(|()| writer.messages(shard, piece.messages()))
            .and_then(|()| if done { writer.end_part(shard) } else { Ok(false) });
        if moved && !done {
            self.marks.hit(Mark::SnapshotUnderWrites);
        }
        match written {
            Ok(true) => self.inside(1, Inside::Seal(number)),
            Ok(false) if !done => {
                let delay = self.random(1000);
                self.inside(delay, Inside::Drain(shard, number));
            }
            Ok(false) => {}
            Err(error) => return self.checkpoint_failed(number, &error),
        }
        Ok(())
    }

    pub(crate) fn seal(&mut self, number: Colour) -> Outcomes {
        if self.spoilt == Some(number) {
            return self.give_up(number, "the operator does not want it");
        }
        let node = self.node.as_mut().expect("checked by the caller");
        let Some(taking) = node.taking.as_mut().filter(|taking| taking.number == number) else {
            return Ok(());
        };
        let Some(writer) = taking.writer.take() else { return Ok(()) };
        match writer.seal(&node.lineage) {
            Ok(sealed) => taking.sealed = Some(sealed),
            Err(error) => return self.checkpoint_failed(number, &error),
        }
        for shard in self.topology.shards() {
            self.news(number, News::PartStored(shard));
        }
        Ok(())
    }

    pub(crate) fn marker_committed(&mut self, shard: ShardId, number: Colour) -> Outcomes {
        self.news(number, News::MarkerCommitted(shard));
        Ok(())
    }

    fn news(&mut self, number: Colour, news: News) {
        let node = self.node.as_mut().expect("only a living node has news");
        if let Step::WriteManifest(number) = node.coordinator.handle_news(number, news) {
            self.inside(1, Inside::Decide(number));
        }
    }

    pub(crate) fn decide(&mut self, number: Colour) -> Outcomes {
        let node = self.node.as_mut().expect("checked by the caller");
        let Some(taking) = node.taking.as_mut().filter(|taking| taking.number == number) else {
            return Ok(());
        };
        let Some(sealed) = taking.sealed.take() else { return Ok(()) };
        match sealed.store(&node.store) {
            Ok((manifest, lineage)) => {
                node.lineage = lineage;
                node.coordinator.handle_decided(number);
                node.taking = None;
                node.completed = Some(number);
                self.decided = self.decided.max(number);
                self.completed(number);
                self.marks.hit(Mark::CheckpointDone);
                self.check_checkpoint(&manifest)?;
                self.model.forget_cuts_below(number);
                self.inside(1, Inside::Housekeep);
                Ok(())
            }
            Err(error) => self.checkpoint_failed(number, &error),
        }
    }

    /// The checkpoint's number that is being taken.
    pub(crate) fn number_taken(&self) -> Option<Colour> {
        self.node.as_ref()?.taking.as_ref().map(|taking| taking.number)
    }

    /// Tells the shards that a checkpoint exists; sometimes late, when they have begun the next one.
    fn completed(&mut self, number: Colour) {
        for shard in self.topology.shards() {
            let delay = if number.0.is_multiple_of(4) { self.random(self.profile.channel_delay) } else { 0 };
            self.inside(delay, Inside::Input(shard, Input::Completed(number)));
        }
    }

    fn checkpoint_failed(&mut self, number: Colour, error: &CheckpointError) -> Outcomes {
        if error.is_full() {
            self.marks.hit(Mark::CheckpointFull);
            return self.give_up(number, "the disk is full");
        }
        if matches!(error, CheckpointError::Store(_)) {
            return self.storage_failed(&error.to_string());
        }
        Err(Violation::new(10, format!("cannot take checkpoint {number}: {error}")).into())
    }

    pub(crate) fn give_up(&mut self, number: Colour, reason: &str) -> Outcomes {
        let time = self.time();
        let node = self.node.as_mut().expect("checked by the caller");
        let Some(taking) = node.taking.as_mut().filter(|taking| taking.number == number) else {
            return Ok(());
        };
        taking.writer = None;
        taking.sealed = None;
        match give_up(&node.store, &self.topology, number, time, node.names.writer(), reason) {
            Ok(()) | Err(CheckpointError::Decided(_)) => {
                node.coordinator.handle_decided(number);
                node.taking = None;
                if self.bug == Some(Bug::BuildOnGivenUp) {
                    self.completed(number);
                }
                self.marks.hit(Mark::CheckpointGivenUp);
                self.decided = self.decided.max(number);
                self.collect()
            }
            Err(error) if error.is_full() => {
                self.inside(50_000, Inside::GiveUp(number));
                Ok(())
            }
            Err(error) => self.storage_failed(&error.to_string()),
        }
    }

    /// Invariants 9, 10 and 11 on what is stored.
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
            if mark.hash() != state.hash() {
                let what = crate::model::differ(mark, &state);
                return Err(
                    Violation::new(10, format!("checkpoint {number}: shard {shard} has {what}")).into()
                );
            }
            states.push(state);
        }
        let cut: &[State] = &states;
        check_channels(cut)?;
        self.workload.check_cut(&self.topology, cut).map_err(|s| Violation::parse(&s))?;
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

    /// Gives up what the newest checkpoint makes unnecessary.
    pub(crate) fn housekeep(&mut self) -> Outcomes {
        let newest = self.quietly(|world| {
            let store = DiskStore::attach(Arc::new(world.disk.clone()), CHECKPOINTS);
            newest(&store)
        });
        let newest =
            newest.map_err(|e| Violation::new(13, format!("cannot read the newest checkpoint: {e}")))?;
        let Some(manifest) = newest.manifest else { return Ok(()) };
        self.trim(&manifest)?;
        if self.node.is_some() {
            self.collect()?;
        }
        if self.node.is_some() {
            let delay = self.random(20_000);
            self.inside(delay, Inside::Merge);
        }
        Ok(())
    }

    /// Deletes what no checkpoint needs, as the shell does after each checkpoint, completed or given up.
    pub(crate) fn collect(&mut self) -> Outcomes {
        let time = self.time();
        let retention =
            Retention { keep: self.profile.keep, grace: self.profile.grace, ..Retention::default() };
        let node = self.node.as_mut().expect("checked by the caller");
        let mut in_use: BTreeSet<String> =
            node.lineage.bundles().iter().map(|bundle| bundle.name.clone()).collect();
        if !node.merged.is_empty() {
            self.marks.hit(Mark::CollectedInMerge);
        }
        in_use.extend(node.merged.iter().map(|merged| merged.bundle().name.clone()));
        if let Some(taking) = &node.taking {
            in_use.insert(taking.bundle.clone());
            let sealed = taking.sealed.iter().flat_map(|sealed| &sealed.manifest().bundles);
            in_use.extend(sealed.map(|bundle| bundle.name.clone()));
        }
        let collected =
            node.collector.collect(&node.store, self.topology.incarnation, time, &retention, &in_use);
        let collected = match collected {
            Ok(collected) => collected,
            Err(CheckpointError::Store(error)) => return self.storage_failed(&error.to_string()),
            Err(error) => {
                return Err(Violation::new(13, format!("cannot collect garbage: {error}")).into());
            }
        };
        if self.bug == Some(Bug::OverlookManifests) {
            self.overlook();
        }
        if self.bug == Some(Bug::ForgetDecided) {
            self.forget_decided();
        }
        if !collected.tombstones.is_empty() {
            self.marks.hit(Mark::TombstoneCollected);
        }
        if collected.bundles.is_empty() && self.bug != Some(Bug::OverlookManifests) {
            return Ok(());
        }
        self.marks.hit(Mark::Collected);
        self.check_all_checkpoints()
    }

    /// The planted bug: what only older manifests refer to goes.
    fn overlook(&mut self) {
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        self.quietly(|_| {
            let Some(kept) = newest(&store).ok().and_then(|newest| newest.manifest) else { return };
            for number in decided_numbers(&store).unwrap_or_default() {
                let Ok(manifest) = read_manifest(&store, number) else { continue };
                let needless =
                    manifest.bundles.iter().find(|bundle| kept.bundles.iter().all(|b| b.name != bundle.name));
                if let Some(bundle) = needless {
                    let _ = store.delete(&bundle.name);
                    return;
                }
            }
        });
    }

    /// The planted bug: the tombstone of the greatest number goes, too.
    fn forget_decided(&mut self) {
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        self.quietly(|_| {
            let Some(number) = decided_numbers(&store).ok().and_then(|numbers| numbers.last().copied())
            else {
                return;
            };
            if let Err(CheckpointError::GivenUp { .. }) = read_manifest(&store, number) {
                let _ = store.delete(&manifest_name(number));
            }
        });
    }

    /// Invariant 13 for checkpoints: each that exists can be loaded.
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

    pub(crate) fn merge(&mut self) -> Outcomes {
        let node = self.node.as_mut().expect("checked by the caller");
        let Some(merge) = compact::plan(&node.lineage, &self.profile.merge) else { return Ok(()) };
        let number = node.coordinator.last();
        let id = (self.topology.incarnation, number, node.names.writer());
        let begun = MergeRun::begin(&node.store, node.names.draw(number), id, &node.lineage, &merge);
        let merged = begun.and_then(|mut run| {
            while !run.step()? {}
            run.finish()
        });
        match merged {
            Ok(merged) => {
                node.merged.push(merged);
                let delay = self.random(50_000);
                self.inside(delay, Inside::ApplyMerged);
                Ok(())
            }
            Err(error) if error.is_full() => Ok(()),
            Err(CheckpointError::Store(error)) => self.storage_failed(&error.to_string()),
            Err(error) => {
                Err(Violation::new(13, format!("a merge cannot read what a checkpoint needs: {error}"))
                    .into())
            }
        }
    }

    pub(crate) fn apply_merged(&mut self) -> Outcomes {
        let node = self.node.as_mut().expect("checked by the caller");
        if let Some(merged) = node.merged.pop()
            && node.lineage.apply(&merged)
        {
            self.marks.hit(Mark::Compacted);
        }
        Ok(())
    }

    fn trim(&mut self, manifest: &Manifest) -> Outcomes {
        let too_far = if self.bug == Some(Bug::TrimTooFar) { 1_000_000 } else { 0 };
        let top =
            |shard: ShardId| manifest.part(shard).map_or(Index(0), |part| Index(part.index.0 + too_far));
        self.trim_log(manifest, self.topology.shards().map(top).collect());
        Ok(())
    }

    /// Invariant 13 for the log: every entry that the newest checkpoint does not hold is there.
    pub(crate) fn check_log(&mut self, manifest: &Manifest) -> Outcomes {
        let options = wal_options(self.profile.segment_bytes, 0x1d, false);
        let mut first: Vec<Option<Index>> = vec![None; manifest.parts.len()];
        let visit = |record: Record<'_>| {
            first[record.shard.0 as usize].get_or_insert(record.index);
            Ok::<_, std::io::Error>(ControlFlow::Continue(()))
        };
        let read = self.quietly(|world| Wal::read(&world.disk.clone(), &options, visit));
        read.map_err(|e| Violation::new(13, format!("cannot read the trimmed log: {e}")))?;
        for part in &manifest.parts {
            let shard = part.shard;
            let needed = part.index.next();
            let there = match first[shard.0 as usize] {
                Some(first) => first <= needed,
                None => self.model.durable(shard) <= part.index,
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
}
