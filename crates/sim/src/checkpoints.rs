//! Checkpoints of the simulated node: the parts that ship, stepped over the simulated disk, and in place of the workers what
//! drains snapshots for them. What they store, delete and let go is held against the model.

use crate::bug::Bug;
use crate::marks::Mark;
use crate::model::check_channels;
use crate::node::{CHECKPOINTS, wal_options};
use crate::violation::Violation;
use crate::world::{Inside, Outcomes, Stop, World};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;
use stead_core::checkpointing::driver::Action;
use stead_core::checkpointing::retention::Garbage;
use stead_core::ids::{Colour, Index, ShardId, Time};
use stead_core::records::{Piece, Records};
use stead_core::shard::Input;
use stead_core::state::{Header, State};
use stead_node::checkpoint::{
    CheckpointCommand, CheckpointFailure, CheckpointHub, CheckpointPart, CheckpointReport, Event, MergePart,
    SnapshotQueue, Trouble, Wanted,
};
use stead_node::{Part, Reply, SteppedCheckpoints, Turned};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{Manifest, decided_numbers, manifest_name, newest, read_manifest};
use stead_store::checkpoint::store::{BlobStore, DiskStore};
use stead_store::wal::{Record, Wal};

/// Those who want a checkpoint do not wait for it.
struct Unheard;

impl Reply<Result<CheckpointReport, CheckpointFailure>> for Unheard {
    fn send(self: Box<Self>, _: Result<CheckpointReport, CheckpointFailure>) {}

    fn is_gone(&self) -> bool {
        false
    }
}

/// The node as the parts of checkpoints see it.
struct Site {
    queue: SnapshotQueue,
    store: Arc<dyn BlobStore>,
    wall: Cell<Time>,
    is_log_spent: Cell<bool>,
    commands: RefCell<VecDeque<CheckpointCommand>>,
    /// The objects that the turn looked for or deleted.
    looked: Cell<bool>,
    deleted: RefCell<Vec<Garbage>>,
    /// By shard, the index of its last marker.
    marked: RefCell<BTreeMap<ShardId, Index>>,
    bug: Option<Bug>,
}

impl CheckpointHub for Site {
    fn queue(&self) -> &SnapshotQueue {
        &self.queue
    }

    fn wall(&self) -> Time {
        self.wall.get()
    }

    fn is_over(&self) -> bool {
        false
    }

    fn is_log_spent(&self) -> bool {
        self.is_log_spent.get()
    }

    fn watch(&self, action: &mut Action) {
        match (self.bug, &mut *action) {
            (Some(Bug::TrimOneTooFar), Action::Trim(tops)) => {
                for (_, top) in tops {
                    *top = top.next();
                }
            }
            (Some(Bug::TrimEarly), Action::Seal(_)) => {
                let tops = self.marked.borrow().iter().map(|(shard, index)| (*shard, *index)).collect();
                self.commands.borrow_mut().push_back(CheckpointCommand::Trim(tops));
            }
            (Some(Bug::CollectOneMore), Action::Delete(garbage)) => {
                let kept = newest(&*self.store).ok().and_then(|newest| newest.manifest);
                garbage.extend(kept.map(|kept| Garbage::Bundle(kept.bundles[0].name.clone())));
            }
            (Some(Bug::DropNextSnapshot), Action::Discard { number, .. }) => *number = number.next(),
            _ => {}
        }
        match action {
            Action::Look => self.looked.set(true),
            Action::Delete(garbage) => self.deleted.borrow_mut().extend(garbage.iter().cloned()),
            _ => {}
        }
    }

    fn perform(&self, command: CheckpointCommand) {
        self.commands.borrow_mut().push_back(command);
    }
}

/// The checkpoints of one life of the node.
pub(crate) struct Checkpoints {
    site: Site,
    part: CheckpointPart,
    merges: MergePart,
    /// When the next turns are due, in virtual time.
    turn_at: Option<u64>,
    merge_at: Option<u64>,
    part_ended: bool,
    merges_ended: bool,
    /// The last one that was begun, and when its colour left, in virtual time.
    begun: (Colour, u64),
    /// Result of the last one that was wanted in this life and has ended: its number, or why there is none.
    ended: Option<Result<Colour, String>>,
    /// A bundle that a merge has written, as long as the next checkpoint may refer to it.
    merged: Option<String>,
    /// A number of which it is not known how it was decided.
    undecided: Option<Colour>,
    /// For a planted bug: snapshots that are taken for those of a checkpoint that was given up.
    dropped: BTreeSet<(ShardId, Colour)>,
}

/// The trials at the end of a run, when all rests and nothing fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Rehearsal {
    /// Nothing yet.
    #[default]
    None,
    /// No marker is committed until the checkpoint is given up, all of whose parts are there.
    Uncommitted,
    /// A shard has a colour above the checkpoint's: it is given up at once.
    Overtaken,
    /// The colour arrives after the checkpoint was given up.
    LateColour,
    /// The next one is completed, in this life.
    Last(u64),
}

impl Checkpoints {
    pub(crate) fn new(made: SteppedCheckpoints, bug: Option<Bug>) -> Self {
        let SteppedCheckpoints { part, merges, store } = made;
        let queue = SnapshotQueue::new(0);
        // The threads begin with a turn.
        queue.bell.ring();
        Self {
            part,
            merges,
            site: Site {
                queue,
                store,
                wall: Cell::new(Time(0)),
                is_log_spent: Cell::new(false),
                commands: RefCell::default(),
                looked: Cell::new(false),
                deleted: RefCell::default(),
                marked: RefCell::default(),
                bug,
            },
            turn_at: None,
            merge_at: None,
            part_ended: false,
            merges_ended: false,
            begun: (Colour(0), 0),
            ended: None,
            merged: None,
            undecided: None,
            dropped: BTreeSet::new(),
        }
    }

    /// The checkpoint that is taken.
    pub(crate) fn running(&self) -> Option<Colour> {
        self.part.driver().running()
    }

    /// Whether nothing is taken, deleted or merged.
    pub(crate) fn rests(&self) -> bool {
        self.turn_at.is_none() && self.merge_at.is_none() && self.running().is_none()
    }

    /// Whether the node stops, and both parts have ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.part_ended && self.merges_ended
    }

    /// From the next one on a checkpoint may take so many microseconds.
    pub(crate) fn set_deadline(&mut self, deadline: u64) {
        self.part.set_timeout(Duration::from_micros(deadline));
    }
}

impl World {
    fn checkpoints(&mut self) -> &mut Checkpoints {
        &mut self.node.as_mut().expect("only a living node takes checkpoints").checkpoints
    }

    /// Wants a checkpoint, if the node lives.
    pub(crate) fn want_checkpoint(&mut self) {
        if self.node.is_some() {
            self.send_event(Event::Wanted(Wanted { reply: Box::new(Unheard), checked: false }));
        }
    }

    /// The node stops.
    pub(crate) fn stop_checkpoints(&mut self) {
        self.checkpoints().site.queue.stop();
        self.heed_checkpoint_bells();
    }

    fn send_event(&mut self, event: Event) {
        self.checkpoints().site.queue.send(event);
        self.heed_checkpoint_bells();
    }

    /// Wakes the parts whose bells were rung.
    pub(crate) fn heed_checkpoint_bells(&mut self) {
        let queue = &self.checkpoints().site.queue;
        let (turn, merge) = (queue.bell.take_ring(), queue.merges.bell.take_ring());
        if turn {
            let delay = self.random(self.profile.wake_delay);
            self.checkpoint_turn_in(delay);
        }
        if merge {
            // Its thread has a low priority.
            let delay = self.random(20_000);
            self.merge_turn_in(delay);
        }
    }

    fn checkpoint_turn_in(&mut self, delay: u64) {
        let at = self.now + delay;
        let turn_at = &mut self.checkpoints().turn_at;
        if turn_at.is_none_or(|due| at < due) {
            *turn_at = Some(at);
            self.inside(delay, Inside::Checkpoint);
        }
    }

    fn merge_turn_in(&mut self, delay: u64) {
        let at = self.now + delay;
        let turn_at = &mut self.checkpoints().merge_at;
        if turn_at.is_none_or(|due| at < due) {
            *turn_at = Some(at);
            self.inside(delay, Inside::Merge);
        }
    }

    /// The checkpoint part may be due.
    pub(crate) fn checkpoint_turn(&mut self) -> Outcomes {
        let (now, wall, before) = (self.now, self.time(), self.disk.micros());
        let node = self.node.as_mut().expect("checked by the caller");
        let spent = node.parts.shared.log().is_spent();
        let Checkpoints { site, part, turn_at, part_ended, .. } = &mut node.checkpoints;
        if turn_at.take_if(|at| *at <= now).is_none() || *part_ended {
            return Ok(());
        }
        site.wall.set(wall);
        site.is_log_spent.set(spent);
        let turned = part.turn(&*site, Time(now));
        let cost = self.disk.micros() - before;
        let Some(turned) = self.carry_orders(turned)? else { return Ok(()) };
        match turned {
            Turned::Again => self.checkpoint_turn_in(cost + 1),
            Turned::Until(Some(at)) => self.checkpoint_turn_in(at.0.saturating_sub(now).max(1)),
            Turned::Until(None) => {}
            Turned::Ended => self.checkpoints().part_ended = true,
        }
        Ok(())
    }

    /// The merge part may be due.
    pub(crate) fn merge_turn(&mut self) -> Outcomes {
        let (now, before) = (self.now, self.disk.micros());
        let Checkpoints { site, merges, merge_at, merges_ended, .. } = self.checkpoints();
        if merge_at.take_if(|at| *at <= now).is_none() || *merges_ended {
            return Ok(());
        }
        let turned = merges.turn(&*site, Time(now));
        let cost = self.disk.micros() - before;
        let pause = self.random(2_000);
        let Some(turned) = self.carry_orders(turned)? else { return Ok(()) };
        match turned {
            Turned::Again => self.merge_turn_in(cost + 1 + pause),
            Turned::Until(Some(at)) => self.merge_turn_in(at.0.saturating_sub(now).max(1)),
            Turned::Until(None) => {}
            Turned::Ended => self.checkpoints().merges_ended = true,
        }
        Ok(())
    }

    /// Carries out what a turn wants, and looks at what it did. `None` if the life has ended.
    fn carry_orders(&mut self, turned: Result<Turned, String>) -> Result<Option<Turned>, Stop> {
        if self.disk.is_crashed() {
            self.storage_failed("the power is gone")?;
            return Ok(None);
        }
        let commands = self.checkpoints().site.commands.take();
        for command in commands {
            self.carry_command(command)?;
        }
        self.check_collected()?;
        match turned {
            Ok(turned) => {
                self.heed_checkpoint_bells();
                Ok(Some(turned))
            }
            Err(failure) => {
                self.storage_failed(&failure)?;
                Ok(None)
            }
        }
    }

    fn carry_command(&mut self, command: CheckpointCommand) -> Outcomes {
        match command {
            CheckpointCommand::ForceFull(shards) => {
                let node = self.node.as_mut().expect("it lives");
                for shard in shards {
                    node.parts.force_full(shard);
                }
            }
            CheckpointCommand::Colour(number) => self.colour(number),
            CheckpointCommand::Discard { shard, number } => {
                self.marks.hit(Mark::LateMarker);
                if self.bug == Some(Bug::DropNextSnapshot) {
                    self.checkpoints().dropped.insert((shard, number));
                }
                let delay = self.random(self.profile.channel_delay);
                self.inside(delay, Inside::GivenUp(Some(shard), number));
            }
            CheckpointCommand::CaughtUp => {}
            CheckpointCommand::Completed { manifest, .. } => self.completed(&manifest)?,
            CheckpointCommand::GivenUp { number, reason, .. } => {
                self.checkpoints().ended = Some(Err(format!("checkpoint {number} was given up: {reason}")));
                self.given_up(number)?;
            }
            CheckpointCommand::Refused(_) => {
                self.checkpoints().ended = Some(Err("it was refused, because the log is spent".to_owned()));
                self.marks.hit(Mark::CheckpointRefused);
            }
            CheckpointCommand::Trim(tops) => {
                let mut all = vec![Index(0); self.topology.shard_count() as usize];
                for (shard, top) in tops {
                    all[shard.0 as usize] = top;
                }
                self.trim_log(all);
            }
            CheckpointCommand::Merge(job) => {
                let checkpoints = self.checkpoints();
                checkpoints.merged = Some(job.output.clone());
                checkpoints.site.queue.merges.put(job);
            }
            CheckpointCommand::Merged(_) => self.marks.hit(Mark::Compacted),
            CheckpointCommand::Trouble(trouble) => self.trouble_with_checkpoints(&trouble)?,
        }
        Ok(())
    }

    /// Gives all shards a colour.
    fn colour(&mut self, number: Colour) {
        let now = self.now;
        self.checkpoints().begun = (number, now);
        let late = match self.rehearsal {
            Rehearsal::LateColour => self.profile.checkpoint_deadline,
            _ => 0,
        };
        for shard in self.topology.shards() {
            let delay = late + self.random(self.profile.channel_delay);
            self.inside(delay, Inside::Input(shard, Input::Colour(number)));
        }
        if self.rehearsal == Rehearsal::Overtaken {
            self.marks.hit(Mark::HigherColour);
            self.inside(0, Inside::Input(ShardId(0), Input::Colour(number.next())));
        }
    }

    /// A checkpoint exists. Its shards learn of it, sometimes late, when they have begun the next one.
    fn completed(&mut self, manifest: &Manifest) -> Outcomes {
        let number = manifest.number;
        self.checkpoints().ended = Some(Ok(number));
        self.decided = self.decided.max(number);
        self.tell_completed(number);
        self.marks.hit(Mark::CheckpointDone);
        self.check_checkpoint(manifest)?;
        self.model.forget_cuts_below(number);
        // Those who come before the merge has ended cannot use it.
        let checkpoints = self.checkpoints();
        let is_used = |name: &String| manifest.bundles.iter().any(|bundle| bundle.name == *name);
        if checkpoints.merged.as_ref().is_some_and(is_used) {
            checkpoints.merged = None;
        }
        Ok(())
    }

    fn tell_completed(&mut self, number: Colour) {
        for shard in self.topology.shards() {
            let delay = if number.0.is_multiple_of(4) { self.random(self.profile.channel_delay) } else { 0 };
            self.inside(delay, Inside::Input(shard, Input::Completed(number)));
        }
    }

    fn given_up(&mut self, number: Colour) -> Outcomes {
        self.marks.hit(Mark::CheckpointGivenUp);
        let (now, deadline) = (self.now, self.profile.checkpoint_deadline);
        let checkpoints = self.checkpoints();
        if checkpoints.undecided.take() != Some(number) {
            self.decided = self.decided.max(number);
        }
        if self.bug == Some(Bug::BuildOnGivenUp) {
            self.tell_completed(number);
        }
        let (begun, since) = self.checkpoints().begun;
        if self.rehearsal == Rehearsal::Overtaken && begun == number && now >= since + deadline {
            let what = format!("checkpoint {number} waited until its time was up, and a shard had passed it");
            return Err(Violation::new(17, what).into());
        }
        let delay = self.random(self.profile.channel_delay);
        self.inside(delay, Inside::GivenUp(None, number));
        Ok(())
    }

    /// Snapshots for this number and those before it are drained to nowhere.
    pub(crate) fn snapshots_given_up(&mut self, only: Option<ShardId>, number: Colour) {
        let node = self.node.as_ref().expect("checked by the caller");
        node.parts.give_up(only, number);
        self.heed_bells();
    }

    fn trouble_with_checkpoints(&mut self, trouble: &Trouble) -> Outcomes {
        if let Trouble::Tombstone(number, _) = trouble {
            self.checkpoints().undecided = Some(*number);
        }
        if trouble.error().is_full() {
            self.marks.hit(Mark::CheckpointFull);
            return Ok(());
        }
        // The node has to bear the faults of the disk.
        if matches!(trouble.error(), CheckpointError::Store(_)) {
            return Ok(());
        }
        let invariant =
            if matches!(trouble, Trouble::Checkpoint(..) | Trouble::Tombstone(..)) { 10 } else { 13 };
        Err(Violation::new(invariant, trouble.to_string()).into())
    }

    /// Carries the events of workers' snapshots to the part that takes checkpoints.
    pub(crate) fn carry_snapshots(&mut self) {
        while let Some(node) = &self.node
            && let Some(event) = node.parts.next_event()
        {
            match event {
                Event::Begun { shard, header, all, .. } => self.marked(shard, *header, all),
                Event::Records { shard, number, piece, done } => self.records(shard, number, piece, done),
                Event::MarkerCommitted { shard, number } => self.marker_committed(shard, number),
                other => self.send_event(other),
            }
        }
    }

    /// A shard's marker is in its log, and its snapshot has begun.
    fn marked(&mut self, shard: ShardId, header: Header, all: bool) {
        let (number, index) = (header.position.colour, header.position.index);
        let bug = self.bug;
        let checkpoints = self.checkpoints();
        checkpoints.site.marked.borrow_mut().insert(shard, index);
        let is_above = checkpoints.running().is_some_and(|running| running < number);
        let all = all || bug == Some(Bug::BuildOnGivenUp);
        if !(is_above && bug == Some(Bug::HighColour)) {
            self.send_event(Event::Begun { shard, number, header: Box::new(header), all });
        }
    }

    fn marker_committed(&mut self, shard: ShardId, number: Colour) {
        if self.rehearsal != Rehearsal::Uncommitted {
            self.send_event(Event::MarkerCommitted { shard, number });
        }
    }

    /// A worker hands over a piece of a shard's snapshot.
    fn records(&mut self, shard: ShardId, number: Colour, mut piece: Piece, done: bool) {
        if self.checkpoints().dropped.contains(&(shard, number)) {
            return;
        }
        let node = self.node.as_ref().expect("its worker lives");
        if done && self.bug == Some(Bug::LateSnapshot) {
            add_present(node.shard(shard).state(), &mut piece);
        }
        let moved = self.model.appended(shard)
            > self.model.mark(number, shard).map_or(Index(u64::MAX), |mark| mark.position().index);
        if moved {
            self.marks.hit(Mark::SnapshotUnderWrites);
        }
        self.send_event(Event::Records { shard, number, piece, done });
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

    /// Invariant 13 for checkpoints, after something was deleted: each that exists can be loaded, and what a merge has
    /// written for the next one is there.
    fn check_collected(&mut self) -> Outcomes {
        let looked = self.checkpoints().site.looked.take();
        let deleted = self.checkpoints().site.deleted.take();
        if looked {
            match self.bug {
                Some(Bug::OverlookMerge) => self.overlook_merge(),
                Some(Bug::ForgetDecided) => self.forget_decided(),
                _ => {}
            }
            self.check_merged()?;
        }
        if deleted.iter().any(|garbage| matches!(garbage, Garbage::Tombstone(_))) {
            self.marks.hit(Mark::TombstoneCollected);
        }
        if !deleted.iter().any(|garbage| matches!(garbage, Garbage::Bundle(_))) {
            return Ok(());
        }
        self.marks.hit(Mark::Collected);
        if self.checkpoints().merge_at.is_some() {
            self.marks.hit(Mark::CollectedInMerge);
        }
        self.check_merged()?;
        self.check_all_checkpoints()
    }

    /// The output of a merge is there for as long as the next checkpoint is to refer to it.
    fn check_merged(&mut self) -> Outcomes {
        let checkpoints = self.checkpoints();
        let Some(merged) = checkpoints.merged.clone() else { return Ok(()) };
        let lineage = checkpoints.part.driver().lineage();
        if lineage.bundles().iter().all(|bundle| bundle.name != merged) {
            // It is not there yet, or what it was made from is of use no more.
            return Ok(());
        }
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        let is_there = self.quietly(|_| store.open(&merged).is_ok());
        if is_there {
            return Ok(());
        }
        Err(Violation::new(13, format!("{merged} was deleted, and the next checkpoint needs it")).into())
    }

    /// The planted bug: what a merge has written is taken for garbage.
    fn overlook_merge(&mut self) {
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        if let Some(merged) = self.checkpoints().merged.clone() {
            let _ = self.quietly(|_| store.delete(&merged));
        }
    }

    /// The planted bug: the tombstone of the greatest number goes, too.
    fn forget_decided(&mut self) {
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        self.quietly(|_| {
            let greatest = decided_numbers(&store).ok().and_then(|numbers| numbers.last().copied());
            let Some(number) = greatest else { return };
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

    /// Invariant 13 for the log: every entry that the newest checkpoint does not hold is there.
    pub(crate) fn check_log(&mut self) -> Outcomes {
        let options = wal_options(self.profile.segment_bytes, 0x1d, false);
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

    /// When all rests: the next thing that is to be tried. Whether all was.
    pub(crate) fn rehearse(&mut self) -> Result<bool, Stop> {
        let life = self.life;
        self.rehearsal = match self.rehearsal {
            Rehearsal::None => Rehearsal::Uncommitted,
            Rehearsal::Uncommitted => Rehearsal::Overtaken,
            Rehearsal::Overtaken => Rehearsal::LateColour,
            Rehearsal::LateColour => Rehearsal::Last(life),
            Rehearsal::Last(begun_in) if begun_in == life => {
                // Invariant 17 for checkpoints: whatever became of the one before.
                let reason = match &self.checkpoints().ended {
                    Some(Ok(_)) => return Ok(true),
                    Some(Err(reason)) => reason.clone(),
                    None => "it was never begun".to_owned(),
                };
                let what = format!("a checkpoint was wanted without faults and not completed: {reason}");
                return Err(Violation::new(17, what).into());
            }
            Rehearsal::Last(_) => Rehearsal::Last(life),
        };
        let deadline = self.profile.checkpoint_deadline;
        let checkpoints = self.checkpoints();
        checkpoints.set_deadline(deadline);
        checkpoints.ended = None;
        self.want_checkpoint();
        Ok(false)
    }
}

/// The planted bug: what the shard has now comes with what it had at its marker.
fn add_present(state: &State, piece: &mut Piece) {
    let mut present = Records::new();
    for (key, value) in state.records().iter() {
        present.put(key, value.clone());
    }
    present.begin_snapshot(true);
    while !present.drain_snapshot(usize::MAX, piece) {}
}
