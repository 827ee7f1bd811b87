//! The watch's notes of a turn, and the planted bugs that it adds.

use super::{Done, Drained, Handled, Now, Shown, Stage, position};
use crate::blame::Killer;
use crate::bug::Bug;
use crate::model::copy;
use crate::profile::one_in;
use crate::violation::Violation;
use stead_core::blob::Blob;
use stead_core::calls::Answer;
use stead_core::channel::Message;
use stead_core::checkpointing::driver::Action;
use stead_core::checkpointing::retention::Garbage;
use stead_core::entry::{Cause, Entry, Write};
use stead_core::ids::{CheckpointNumber, Colour, Seq, ShardId};
use stead_core::record::{Kind, RecordKey};
use stead_core::records::{Piece, Records};
use stead_core::reply;
use stead_core::shard::{Effect, Shard};
use stead_core::state::{Position, State};
use stead_node::checkpoint::{CheckpointCommand, Event};

/// Returns the entry of a deletion changed so that it leaves one record.
fn without_last_delete(bytes: Vec<u8>) -> Vec<u8> {
    match Entry::decode(&bytes) {
        Ok(mut entry) if entry.cause == Cause::Delete && entry.writes.len() > 1 => {
            entry.writes.pop();
            let mut bent = Vec::new();
            entry.encode_into(&mut bent);
            bent
        }
        _ => bytes,
    }
}

impl Stage {
    /// The planted bug: a check reads the first state of an earlier cut with the others of this one.
    pub(super) fn mix(&mut self, service: &str, cut: &[State]) -> Option<Vec<State>> {
        if self.scene.bug != Some(Bug::MixedCut) {
            return None;
        }
        let mut mixed: Vec<State> = cut.iter().map(copy).collect();
        if let Some(before) = self.first.insert(service.to_owned(), copy(&cut[0])) {
            mixed[0] = before;
        }
        Some(mixed)
    }

    pub(super) fn done(&mut self, done: Done) {
        self.turn.shown.push(Shown::Checkpoint(done));
    }

    /// Handles an action that the driver of checkpoints has decided on.
    pub(super) fn act(&mut self, action: &mut Action) {
        match (self.scene.bug, &mut *action) {
            (Some(Bug::TrimOneTooFar), Action::Trim(tops)) => {
                for (_, top) in tops {
                    *top = top.next();
                }
            }
            (Some(Bug::TrimEarly), Action::Seal(_)) => {
                let marked = self.marked.clone();
                self.done(Done::TrimEarly(marked));
            }
            (Some(Bug::CollectOneMore), Action::Delete(garbage)) => {
                garbage.extend(self.bundle.clone().map(Garbage::Bundle));
            }
            (Some(Bug::OverlookMerge), Action::Delete(garbage)) => {
                garbage.extend(self.merged.clone().map(Garbage::Bundle));
            }
            (Some(Bug::KeepOneLess), Action::Delete(garbage)) => {
                let goes = |number: &CheckpointNumber| garbage.contains(&Garbage::Checkpoint(*number));
                let newest = self.completed.last().copied();
                let kept = self.completed.iter().copied().find(|number| !goes(number));
                garbage.extend(kept.filter(|kept| Some(*kept) != newest).map(Garbage::Checkpoint));
            }
            (Some(Bug::KeepOneMore), Action::Delete(garbage)) => {
                let numbers = garbage.iter().filter_map(|garbage| match garbage {
                    Garbage::Checkpoint(number) => Some(*number),
                    _ => None,
                });
                let newest = numbers.max();
                garbage.retain(|garbage| newest.is_none_or(|newest| *garbage != Garbage::Checkpoint(newest)));
            }
            (Some(Bug::KeepGarbage), Action::Delete(garbage)) => {
                garbage.retain(|garbage| !matches!(garbage, Garbage::Bundle(_)));
            }
            (Some(Bug::DropNextSnapshot), Action::Discard { shard, number }) => {
                *number = number.next();
                self.dropped.insert((*shard, *number));
            }
            _ => {}
        }
        match action {
            Action::Create { number, .. } => self.running = Some(*number),
            Action::Completed(_) | Action::GivenUp { .. } => self.running = None,
            Action::Discard { .. } => self.done(Done::Discarded),
            Action::Look => self.done(Done::Looked),
            Action::Delete(garbage) => self.done(Done::Deleted(garbage.clone())),
            _ => {}
        }
    }

    /// Handles a command of the parts of checkpoints to the rest of the node.
    pub(super) fn command(&mut self, command: CheckpointCommand) -> Option<CheckpointCommand> {
        match command {
            CheckpointCommand::Colour(colour) => self.done(Done::Coloured(colour)),
            CheckpointCommand::Completed { ref manifest, ref wanted, .. } => {
                self.bundle = manifest.bundles.first().map(|bundle| bundle.name.clone());
                self.completed.insert(manifest.number);
                let is_merged = |merged: &mut String| manifest.bundles.iter().any(|b| b.name == *merged);
                self.merged.take_if(is_merged);
                self.done(Done::Completed(manifest.number, wanted.is_empty()));
            }
            CheckpointCommand::GivenUp { number, .. } => self.done(Done::GivenUp(number)),
            CheckpointCommand::Refused(_) => self.done(Done::Refused),
            CheckpointCommand::Trim(_) => {
                self.done(Done::Trim);
                if self.scene.holds_trim {
                    self.done(Done::HeldTrim(command));
                    return None;
                }
            }
            CheckpointCommand::Merge(ref job) => {
                self.merged = Some(job.output.clone());
                self.done(Done::Merge(job.output.clone()));
            }
            CheckpointCommand::Merged(_) => self.done(Done::Merged),
            CheckpointCommand::Trouble(trouble) => {
                // The node only reports it.
                self.done(Done::Trouble(trouble));
                return None;
            }
            CheckpointCommand::CaughtUp => self.done(Done::CaughtUp),
            CheckpointCommand::ForceFull(_) | CheckpointCommand::Discard { .. } => {}
        }
        Some(command)
    }

    /// Handles an event of a snapshot that a worker leaves.
    pub(super) fn snapshot(&mut self, mut event: Event) -> Option<Event> {
        if self.is_dead {
            return None;
        }
        let bug = self.scene.bug;
        match &mut event {
            Event::Begun { number, all, .. } => {
                let is_above = self.running.is_some_and(|running| running < *number);
                if is_above && bug == Some(Bug::HighColour) {
                    return None;
                }
                *all |= bug == Some(Bug::BuildOnGivenUp);
            }
            Event::Records { shard, number, piece, done } => {
                if self.dropped.contains(&(*shard, *number)) {
                    return None;
                }
                if *done && let Some(writes) = self.late.remove(shard) {
                    add(&writes, piece);
                }
                let (bytes, is_last) = (piece.bytes(), *done);
                let drained = Drained { shard: *shard, number: *number, bytes, is_last };
                self.done(Done::Drained(drained));
            }
            Event::MarkerCommitted { .. } if self.scene.holds_markers => return None,
            _ => {}
        }
        Some(event)
    }

    /// Notes markers and the entries right after them, for planted bugs.
    fn note_markers(&mut self, id: ShardId, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Marked { header, .. } => {
                    self.marked.insert(id, header.position.index);
                    self.late.remove(&id);
                }
                Effect::Append { index, bytes, .. } if self.scene.bug == Some(Bug::LateSnapshot) => {
                    if self.marked.get(&id).is_some_and(|marked| marked.next() == *index) {
                        let writes = Entry::decode(bytes).map(|entry| entry.writes).unwrap_or_default();
                        let put = |write: Write| Some((write.key, write.value?));
                        self.late.insert(id, writes.into_iter().filter_map(put).collect());
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) fn see(&mut self, shard: &Shard, effects: &mut Vec<Effect>) {
        let id = shard.state().shard();
        let now = std::mem::take(&mut self.now);
        if let Some(killer) = now.killer {
            self.turn.shown.push(Shown::Died(Killer::handler(id, killer, effects)));
        }
        if self.is_dead {
            effects.clear();
            return;
        }
        if let Err(violation) = shard.check() {
            self.turn.shown.push(Shown::Wrong(violation.into()));
        }
        if let (Some((old, upto)), Some((_, found))) = (self.scene.old, now.stored)
            && (old, upto) == (id, found)
            && position(shard) != now.before
        {
            let (before, after) = (now.before, position(shard));
            let what = format!("shard {id}: a frame of an older epoch moved it from {before:?} to {after:?}");
            self.turn.shown.push(Shown::Wrong(Violation::new(15, what)));
        }
        self.bend(shard, &now, effects);
        self.note_markers(id, effects);
        let seen = effects.clone();
        self.bend_on_the_way(id, effects);
        self.turn.shown.push(Shown::Handled(Box::new(Handled {
            shard: id,
            effects: seen,
            calls: now.calls,
            stored: now
                .stored
                .filter(|(epoch, _)| *epoch == shard.state().position().epoch)
                .map(|(_, upto)| upto),
            is_colour: now.is_colour,
            work: shard.work(),
            unwanted: now.unwanted,
            is_doubted: shard.clock().is_doubted(),
            is_held_back: shard.deadline().is_some_and(|at| at <= self.scene.steady) && shard.waiting() > 0,
        })));
    }

    /// Plants the bugs in the effects of a shard.
    fn bend(&mut self, shard: &Shard, now: &Now, effects: &mut Vec<Effect>) {
        if let (Some(Bug::OpenedEarly), Some(token), true) = (self.scene.bug, now.opening, shard.is_active())
        {
            let Position { epoch, colour, .. } = shard.state().position();
            let (index, result) = (shard.commit(), Ok(reply::Reply::Ok(Blob::empty())));
            effects.push(Effect::Answer(Answer { token, epoch, index, colour, result, staleness: None }));
        }
        for effect in effects {
            match (self.scene.bug, effect) {
                (Some(Bug::KeepRetried), Effect::Append { bytes, .. }) => {
                    *bytes = without_retry(std::mem::take(bytes));
                }
                (Some(Bug::ShortSession), Effect::Append { bytes, .. }) => {
                    *bytes = with_session_forgotten(std::mem::take(bytes), shard.state());
                }
                (Some(Bug::KeepDeleted), Effect::Append { bytes, .. }) => {
                    *bytes = without_last_delete(std::mem::take(bytes));
                }
                _ => {}
            }
        }
    }

    /// Plants the bugs in the inputs that leave for other shards.
    fn bend_on_the_way(&mut self, id: ShardId, effects: &mut Vec<Effect>) {
        if self.scene.bug == Some(Bug::CrowdTrials) {
            // The world handles this.
            effects.retain(|effect| !matches!(effect, Effect::WantsTurn(_) | Effect::EndsTurn(_)));
        }
        if self.scene.bug == Some(Bug::EarlyMarker) {
            let early: Vec<Effect> = effects.iter().filter_map(committed_marker).collect();
            effects.extend(early);
        }
        for effect in effects {
            match (self.scene.bug, effect) {
                (Some(Bug::ShiftSequence), Effect::Deliver { messages, .. }) if one_in(&mut self.rng, 4) => {
                    for message in messages.iter_mut() {
                        message.seq = message.seq.next();
                    }
                    if let Some(first) = messages.first().filter(|m| m.seq == Seq(2)).cloned() {
                        messages.insert(0, Message { seq: Seq(1), ..first });
                    }
                }
                (Some(Bug::StripColours), Effect::Deliver { messages, .. }) => {
                    messages.iter_mut().for_each(|message| message.colour = Colour(0));
                }
                (Some(Bug::StripColours), Effect::Ack { colour, .. }) => *colour = Colour(0),
                (Some(Bug::LateQuery), Effect::Query(reading)) => {
                    let process = (id, reading.query.process.clone());
                    let now = reading.capture.clone();
                    if let Some(before) = self.captures.insert(process, now) {
                        reading.capture = before;
                    }
                }
                _ => {}
            }
        }
    }
}

/// Plants the bug: adds the writes of the entry after a marker to the shard's state at the marker.
fn add(writes: &[(RecordKey, Blob)], piece: &mut Piece) {
    let mut present = Records::new();
    for (key, value) in writes {
        present.put(key.as_bytes(), value.clone());
    }
    present.begin_snapshot(true);
    while !present.drain_snapshot(usize::MAX, piece) {}
}

/// Returns the report that a marker is committed, for the effect that announces it.
fn committed_marker(effect: &Effect) -> Option<Effect> {
    let Effect::Marked { header, .. } = effect else { return None };
    Some(Effect::MarkerCommitted(header.position.colour))
}

/// Returns the entry that forgets what has run out changed so that it forgets a session that has not.
fn with_session_forgotten(bytes: Vec<u8>, state: &State) -> Vec<u8> {
    match Entry::decode(&bytes) {
        Ok(mut entry) if entry.cause == Cause::Expire => {
            let keys = state.records().iter().filter_map(|(key, _)| RecordKey::from_bytes(key));
            let is_left = |key: &RecordKey| entry.writes.iter().all(|write| write.key != *key);
            let session = keys.filter(|key| key.kind() == Kind::Session).find(is_left);
            entry.writes.extend(session.map(|key| Write { key, value: None }));
            let mut bent = Vec::new();
            entry.encode_into(&mut bent);
            bent
        }
        _ => bytes,
    }
}

/// Returns the entry of a retry changed so that it leaves the dead letter.
fn without_retry(bytes: Vec<u8>) -> Vec<u8> {
    match Entry::decode(&bytes) {
        Ok(entry) if matches!(entry.cause, Cause::Retry { .. }) => {
            let mut bent = Vec::new();
            Entry { cause: Cause::Attempt, ..entry }.encode_into(&mut bent);
            bent
        }
        _ => bytes,
    }
}
