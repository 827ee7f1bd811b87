//! The node as its checkpoint parts see it: the state that all its parts share performs their commands.

use crate::bell::Bell;
use crate::checkpoint::{
    CheckpointCommand, CheckpointFailure, CheckpointHub, CheckpointPart, CheckpointReply, CheckpointReport,
    Event, MergePart, News, Pin, SnapshotQueue, Trouble, Wanted,
};
use crate::checks::CheckJob;
use crate::clock::Clock;
use crate::copies::CopyReply;
use crate::env::{Env, Watch};
use crate::events;
use crate::inbox::Command;
use crate::panics;
use crate::part::{Part, Turned};
use crate::shared::Shared;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use stead_core::checkpointing::driver::{Action, LogSpace};
use stead_core::ids::{CheckpointNumber, Time};
use stead_core::shard::Input;
use stead_store::checkpoint::checks::CheckOutcome;
use stead_store::checkpoint::manifest::Manifest;
use stead_store::checkpoint::store::BlobStore;

/// The checkpoint part of a node, which also gives up the checks of services that take too long: their own part is held by
/// them.
pub struct Checkpoints {
    /// The part.
    pub part: CheckpointPart,
    store: Arc<dyn BlobStore>,
    check_timeout: Duration,
}

impl Checkpoints {
    /// `check_timeout` is the maximum time of the checks of a checkpoint, whose marks are in `store`.
    #[must_use]
    pub fn new(part: CheckpointPart, store: Arc<dyn BlobStore>, check_timeout: Duration) -> Self {
        Self { part, store, check_timeout }
    }

    /// Sets the time after which a checkpoint is given up, from the next one on, and its checks.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.part.set_timeout(timeout);
        self.check_timeout = timeout;
    }
}

impl<E: Env> Part<Shared<E>> for Checkpoints {
    type Error = String;

    fn bell<'h>(&self, shared: &'h Shared<E>) -> &'h Bell {
        &shared.snapshots.bell
    }

    fn turn(&mut self, shared: &Shared<E>, now: Time) -> Result<Turned, String> {
        shared.give_up_overdue_checks(&*self.store, self.check_timeout);
        Ok(match self.part.turn(shared, now)? {
            Turned::Until(until) => {
                let overdue_at = shared.checks.overdue_at(self.check_timeout);
                Turned::Until(until.into_iter().chain(overdue_at).min())
            }
            turned => turned,
        })
    }
}

/// The merge part of a node, which survives its panics.
pub struct Merges {
    part: MergePart,
    panics: u64,
}

impl Merges {
    pub(crate) fn new(part: MergePart) -> Self {
        Self { part, panics: 0 }
    }

    /// Returns the number of its panics.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.panics
    }
}

impl<E: Env> Part<Shared<E>> for Merges {
    type Error = String;

    fn bell<'h>(&self, shared: &'h Shared<E>) -> &'h Bell {
        &shared.snapshots.merges.bell
    }

    fn turn(&mut self, shared: &Shared<E>, now: Time) -> Result<Turned, String> {
        panics::catch_own(|| self.part.turn(shared, now)).unwrap_or_else(|panic| {
            self.panics += 1;
            // Bundles that are not merged cost room, and the next life would meet the same ones.
            events::warn(format_args!(
                "cannot merge bundles: the merge panicked; this is a bug in Stead: {panic}; they stay unchanged"
            ));
            self.part.give_up(&shared.snapshots);
            Ok(Turned::Again)
        })
    }
}

impl<E: Env> CheckpointHub for Shared<E> {
    fn queue(&self) -> &SnapshotQueue {
        &self.snapshots
    }

    fn wall(&self) -> Time {
        self.clock.wall()
    }

    fn is_over(&self) -> bool {
        self.is_over()
    }

    fn log_space(&self) -> LogSpace {
        self.log.space()
    }

    fn watch(&self, action: &mut Action) {
        self.watch.action(action);
    }

    fn perform(&self, command: CheckpointCommand) {
        let Some(command) = self.watch.command(command) else { return };
        match command {
            CheckpointCommand::ForceFull(shards) => {
                for shard in shards {
                    self.inboxes[self.worker_of(shard)].push(Command::ForceFull(shard));
                }
            }
            CheckpointCommand::Colour(colour) => self.announce(News::Colour(colour)),
            CheckpointCommand::Discard { shard, number } => {
                self.leave_news(self.worker_of(shard), News::Discarded(shard, number));
            }
            // A worker without other work sleeps.
            CheckpointCommand::CaughtUp => self.inboxes.iter().for_each(|inbox| inbox.bell.ring()),
            CheckpointCommand::Completed { manifest, duration, wanted } => {
                self.announce(News::Completed(manifest.number));
                self.completed(*manifest, duration, wanted);
            }
            CheckpointCommand::GivenUp { number, reason, wanted } => {
                events::warn(format_args!("checkpoint {number} is given up: {reason}"));
                self.counters.checkpoints_failed.add(1);
                self.announce(News::GivenUp(number));
                let failure = CheckpointFailure::GivenUp { number: number.0, reason };
                answer_all(wanted, &failure);
            }
            CheckpointCommand::Refused(wanted) => {
                events::warn(CheckpointFailure::Full);
                answer_all(wanted, &CheckpointFailure::Full);
            }
            CheckpointCommand::Trim(tops) => self.log.trim(self.placement.trim_tops(&tops)),
            CheckpointCommand::Merge(job) => self.snapshots.merges.put(job),
            CheckpointCommand::Merged(bytes) => self.counters.checkpoint_bytes.add(bytes),
            // The give-up is reported with its reason.
            CheckpointCommand::Trouble(Trouble::Checkpoint(..)) => {}
            CheckpointCommand::Trouble(trouble) => events::warn(trouble),
        }
    }
}

impl<E: Env> Shared<E> {
    /// Leaves an event of a shard's snapshot for the checkpoint part.
    pub(crate) fn leave_snapshot(&self, event: Event) {
        if let Some(event) = self.watch.snapshot(event) {
            self.snapshots.send(event);
        }
    }

    /// Takes a checkpoint now, with the services' checks or without. The reply is dropped if the node has ended.
    pub fn checkpoint(&self, checked: bool, reply: CheckpointReply) {
        if let Err(failure) = self.check_takes_checkpoints() {
            return reply.send(Err(failure));
        }
        self.snapshots.send(Event::Wanted(Wanted { reply, checked }));
    }

    /// Checks that checkpoints are taken here: one has all shards of its node.
    pub(crate) fn check_takes_checkpoints(&self) -> Result<(), CheckpointFailure> {
        if self.replicated.is_empty() {
            return Ok(());
        }
        let reason =
            "shards with replicas on several nodes are not part of checkpoints yet: none is taken here";
        Err(CheckpointFailure::Store(reason.to_owned()))
    }

    /// Copies a checkpoint to an address, `file:///directory` or `s3://bucket/prefix`, after the copies that were requested
    /// before. The reply is dropped if the node fails.
    ///
    /// # Errors
    /// [`CheckpointFailure::Busy`] if as many copies run or wait as may; [`CheckpointFailure::Stopped`].
    pub fn copy_checkpoint(&self, number: u64, to: &str, reply: CopyReply) -> Result<(), CheckpointFailure> {
        self.copies.ask(CheckpointNumber(number), to.to_owned(), reply)
    }

    /// Keeps a checkpoint from being deleted while it is read.
    pub(crate) fn pin(&self, number: CheckpointNumber) -> Option<Pin> {
        self.watch.pin(number).then(|| self.snapshots.pin(number))
    }

    fn announce(&self, news: News) {
        (0..self.inboxes.len()).for_each(|worker| self.leave_news(worker, news));
    }

    fn leave_news(&self, worker: usize, news: News) {
        if let Some(news) = self.watch.news(worker, news) {
            self.pass_on(worker, news);
        }
    }

    /// Leaves news of checkpoints in the inbox of a worker.
    pub fn pass_on(&self, worker: usize, news: News) {
        self.inboxes[worker].push(match news {
            News::Colour(colour) => {
                self.colour.fetch_max(colour.0, Ordering::Relaxed);
                Command::every(Input::Colour(colour))
            }
            News::Completed(number) => Command::every(Input::Completed(number)),
            News::GivenUp(number) => Command::Discard { shard: None, number },
            News::Discarded(shard, number) => Command::Discard { shard: Some(shard), number },
        });
    }

    fn completed(&self, manifest: Manifest, duration: Duration, wanted: Vec<Wanted>) {
        let counters = &self.counters;
        counters.checkpoints.add(1);
        counters.checkpoint_bytes.add(manifest.totals.written_bytes);
        self.copies.completed();
        let report = CheckpointReport {
            number: manifest.number.0,
            duration,
            bytes_written: manifest.totals.written_bytes,
            bytes_total: manifest.totals.section_bytes,
            records: manifest.totals.records,
            in_flight: manifest.totals.messages,
            stall_max: Duration::from_micros(counters.checkpoint_stall_micros.get()),
            check: CheckOutcome::NotChecked,
            failed_checks: Vec::new(),
            skipped_checks: Vec::new(),
        };
        let of_interval = wanted.is_empty();
        let (checked, unchecked): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|wanted| wanted.checked);
        for wanted in unchecked {
            wanted.reply.send(Ok(report.clone()));
        }
        let replies: Vec<_> = checked.into_iter().map(|wanted| wanted.reply).collect();
        let fits = manifest.totals.section_bytes <= self.checks.bytes_max();
        if (of_interval && fits) || !replies.is_empty() {
            // Before the next collection.
            let pin = self.pin(manifest.number);
            let job = CheckJob { manifest, report, replies, pin };
            let is_taken = if of_interval { self.checks.offer(job) } else { self.checks.want(job) };
            if !is_taken {
                counters.checkpoints_unchecked.add(1);
            }
        } else {
            counters.checkpoints_unchecked.add(1);
        }
    }
}

fn answer_all(wanted: Vec<Wanted>, failure: &CheckpointFailure) {
    for wanted in wanted {
        wanted.reply.send(Err(failure.clone()));
    }
}
