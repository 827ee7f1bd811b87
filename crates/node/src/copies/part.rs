//! The part that copies checkpoints.

use crate::bell::Bell;
use crate::checkpoint::{CheckpointFailure, Pin};
use crate::copies::desk::{Asked, interrupted};
use crate::copies::{CopyReport, CopyTarget, begin_copy};
use crate::env::Env;
use crate::events;
use crate::panics;
use crate::part::{Part, Turned};
use crate::shared::Shared;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use stead_core::checkpointing::pace::Meter;
use stead_core::checkpointing::retention::{Chooser, Garbage, Retention};
use stead_core::ids::{CheckpointNumber, Micros, ShardId, Time};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::cancel::Cancel;
use stead_store::checkpoint::collect::Stock;
use stead_store::checkpoint::copy::{Copied, CopyRun, Owner};
use stead_store::checkpoint::remote;
use stead_store::checkpoint::store::{BlobStore, StoreError};
use thiserror::Error;

/// The shortest time after which a failed copy is tried again; it doubles with each failure, up to the interval.
const RETRY: Duration = Duration::from_secs(1);
/// Maximum number of old objects at a target that a turn deletes.
const DELETED_MAX: usize = 64;

/// Opens the store behind an address, with calls that end once they are cancelled.
pub type Opener = Box<dyn FnMut(&str, Cancel) -> Result<Arc<dyn BlobStore>, StoreError> + Send>;

/// Reasons for which a copy failed.
#[derive(Debug, Error)]
pub enum CopyFailure {
    /// The target cannot be opened.
    #[error(transparent)]
    Open(StoreError),
    /// The checkpoint cannot be read, or not be written to the target.
    #[error(transparent)]
    Copy(CheckpointError),
    /// The checkpoint was copied, and old copies were not deleted.
    #[error("cannot collect old copies: {0}")]
    Collect(CheckpointError),
    /// The part's code panicked.
    #[error("the copy panicked; this is a bug in Stead: {0}")]
    Panic(String),
}

impl From<&CopyFailure> for CheckpointFailure {
    fn from(failure: &CopyFailure) -> Self {
        let text = failure.to_string();
        match failure {
            CopyFailure::Open(_) => Self::Address(text),
            CopyFailure::Copy(_) | CopyFailure::Collect(_) | CopyFailure::Panic(_) => Self::Store(text),
        }
    }
}

/// The part that makes all copies of checkpoints: of the newest one to the target in the options, if there is one, where it
/// also keeps the newest, and those that callers request. The first copy is made at once: a node that is started often
/// still copies.
pub struct CopyPart {
    local: Arc<dyn BlobStore>,
    open: Opener,
    piece_bytes: u64,
    automatic: Option<Automatic>,
    running: Option<Running>,
    /// Whether the last copy that began was automatic: then a requested one goes first, and otherwise the automatic one, so
    /// that neither keeps the other waiting for ever.
    was_automatic: bool,
    meter: Meter,
    failure: Option<CopyFailure>,
}

/// The copies to the target in the options.
struct Automatic {
    to: CopyTarget,
    /// Its store, from the first copy until one fails.
    target: Option<Arc<dyn BlobStore>>,
    stock: Stock,
    chooser: Chooser,
    /// The newest checkpoint that this life has copied; 0 for none.
    copied: u64,
    due: Time,
    /// Number of copies that failed since the last one that did not.
    failures: u32,
    has_failed: bool,
}

/// A running copy.
struct Running {
    number: CheckpointNumber,
    begun: Time,
    /// The request for it; `None` for an automatic one.
    asked: Option<Asked>,
    /// Keeps the checkpoint from being collected.
    pin: Option<Pin>,
    stage: Stage,
}

enum Stage {
    /// The target is opened, and the manifest read.
    Opening,
    Copying {
        target: Arc<dyn BlobStore>,
        run: Box<CopyRun>,
    },
    /// Old objects at the target are listed.
    Looking(Arc<dyn BlobStore>),
    /// They are deleted.
    Deleting {
        target: Arc<dyn BlobStore>,
        garbage: VecDeque<Garbage>,
    },
}

/// The result of a step.
enum Next {
    Stay,
    Go(Stage),
    /// The copy was made.
    Copied(Arc<dyn BlobStore>, Copied),
    /// Old copies were collected.
    Collected,
}

impl CopyPart {
    /// Copies from a store; automatically, too, if there is a target.
    pub(crate) fn new(local: Arc<dyn BlobStore>, to: Option<CopyTarget>) -> Self {
        let automatic = to.map(|to| Automatic {
            to,
            target: None,
            stock: Stock::new(),
            chooser: Chooser::new(),
            copied: 0,
            due: Time(0),
            failures: 0,
            has_failed: false,
        });
        Self {
            local,
            open: Box::new(|address, cancel| remote::open_until(address, &BTreeMap::new(), cancel)),
            piece_bytes: CopyRun::PIECE_BYTES,
            automatic,
            running: None,
            was_automatic: false,
            meter: Meter::default(),
            failure: None,
        }
    }

    /// Opens targets in this way from now on: by default as [`remote::open_until`].
    pub fn set_opener(&mut self, open: Opener) {
        self.open = open;
    }

    /// Sets the bytes that a turn copies, unless a block is longer: [`CopyRun::PIECE_BYTES`] by default.
    pub fn set_piece_bytes(&mut self, bytes: u64) {
        self.piece_bytes = bytes;
    }

    /// The newest checkpoint that this life has copied by itself; 0 for none.
    #[must_use]
    pub fn copied(&self) -> u64 {
        self.automatic.as_ref().map_or(0, |automatic| automatic.copied)
    }

    /// The checkpoint that is being read, which is pinned.
    #[must_use]
    pub fn reads(&self) -> Option<CheckpointNumber> {
        let running = self.running.as_ref()?;
        matches!(running.stage, Stage::Opening | Stage::Copying { .. }).then_some(running.number)
    }

    /// The checkpoint that it keeps from being deleted.
    pub(crate) fn pins(&self) -> Option<CheckpointNumber> {
        let running = self.running.as_ref()?;
        running.pin.is_some().then_some(running.number)
    }

    /// Takes the last failure since this was called.
    pub fn take_failure(&mut self) -> Option<CopyFailure> {
        self.failure.take()
    }

    /// Begins the next copy. If there is none, returns the time at which an automatic one is due.
    fn begin<E: Env>(&mut self, hub: &Shared<E>, now: Time) -> Result<Running, Option<Time>> {
        let newest = || hub.snapshots.newest.load(Ordering::Relaxed);
        let due = self.automatic.as_ref().filter(|automatic| newest() > automatic.copied).map(|it| it.due);
        let is_due = due.is_some_and(|due| due <= now);
        if is_due && !(self.was_automatic && hub.copies.is_asked()) {
            self.was_automatic = true;
            let mut number = newest();
            let mut pin = hub.pin(CheckpointNumber(number));
            // A collection that did not see the pin was preceded by a newer checkpoint.
            while newest() != number {
                number = newest();
                pin = hub.pin(CheckpointNumber(number));
            }
            let (number, asked) = (CheckpointNumber(number), None);
            return Ok(Running { number, begun: now, asked, pin, stage: Stage::Opening });
        }
        let Some(asked) = hub.copies.take() else { return Err(due) };
        self.was_automatic = false;
        let (number, pin) = (asked.number, hub.pin(asked.number));
        Ok(Running { number, begun: now, asked: Some(asked), pin, stage: Stage::Opening })
    }

    /// Performs one step of a copy.
    fn step<E: Env>(
        &mut self,
        hub: &Shared<E>,
        now: Time,
        running: &mut Running,
    ) -> Result<Next, CopyFailure> {
        let owner = hub.copies.owner;
        match &mut running.stage {
            Stage::Opening => {
                let target = self.open(running.asked.as_ref(), &hub.copies.cancel)?;
                let run = begin_copy(&*self.local, &*target, owner, running.number);
                let run = Box::new(run.map_err(CopyFailure::Copy)?);
                Ok(Next::Go(Stage::Copying { target, run }))
            }
            Stage::Copying { target, run } => {
                let before = run.copied().bytes;
                let is_done = run.step(&*self.local, &**target, self.piece_bytes);
                let is_done = is_done.map_err(CopyFailure::Copy)?;
                self.meter.spend(hub.copies.rate, now, run.copied().bytes - before);
                Ok(if is_done { Next::Copied(Arc::clone(target), run.copied()) } else { Next::Stay })
            }
            Stage::Looking(target) => {
                let Some(automatic) = &mut self.automatic else { return Ok(Next::Collected) };
                let elsewhere = hub.placement.elsewhere().collect();
                let garbage = automatic.look(&**target, owner, elsewhere, now);
                let garbage = garbage.map_err(CopyFailure::Collect)?;
                Ok(Next::Go(Stage::Deleting { target: Arc::clone(target), garbage: garbage.into() }))
            }
            Stage::Deleting { target, garbage } => {
                let Some(automatic) = &mut self.automatic else { return Ok(Next::Collected) };
                let count = garbage.len().min(DELETED_MAX);
                for garbage in garbage.drain(..count) {
                    automatic.stock.delete(&**target, &garbage).map_err(CopyFailure::Collect)?;
                }
                Ok(if garbage.is_empty() { Next::Collected } else { Next::Stay })
            }
        }
    }

    /// Opens the target of a requested copy, or of automatic ones.
    fn open(&mut self, asked: Option<&Asked>, cancel: &Cancel) -> Result<Arc<dyn BlobStore>, CopyFailure> {
        let mut open = |address: &str| (self.open)(address, cancel.clone()).map_err(CopyFailure::Open);
        match (asked, &mut self.automatic) {
            (Some(asked), _) => open(&asked.to),
            (None, Some(Automatic { target: Some(target), .. })) => Ok(Arc::clone(target)),
            (None, Some(Automatic { to, target, .. })) => Ok(Arc::clone(target.insert(open(&to.address)?))),
            (None, None) => unreachable!("only with a target is there an automatic copy"),
        }
    }

    /// Handles the result of a step.
    fn stepped<E: Env>(&mut self, hub: &Shared<E>, mut running: Running, stepped: Result<Next, CopyFailure>) {
        match (stepped, running.asked.take()) {
            (Ok(Next::Stay), asked) => self.running = Some(Running { asked, ..running }),
            (Ok(Next::Go(stage)), asked) => self.running = Some(Running { asked, stage, ..running }),
            (Ok(Next::Copied(target, copied)), asked) => {
                hub.counters.checkpoint_copies.add(1);
                hub.counters.checkpoint_copy_bytes.add(copied.bytes);
                let Running { number, begun, .. } = running;
                match (asked, &mut self.automatic) {
                    (Some(Asked { to, reply, .. }), _) => {
                        hub.copies.ended();
                        let duration = Duration::from(hub.now().since(begun));
                        reply.send(Ok(CopyReport::new(number, to, duration, copied)));
                    }
                    (None, Some(automatic)) => {
                        automatic.copied(hub, number, begun);
                        let stage = Stage::Looking(target);
                        self.running = Some(Running { number, begun, asked: None, pin: None, stage });
                    }
                    (None, None) => {}
                }
            }
            (Ok(Next::Collected), _) => {
                if let Some(automatic) = &mut self.automatic {
                    automatic.ended(hub, None);
                }
            }
            (Err(_), asked) if hub.copies.is_stopped() => end(hub, asked),
            (Err(failure), asked) => self.failed(hub, asked, failure),
        }
    }

    /// Handles that a copy, or the collection after it, has failed.
    fn failed<E: Env>(&mut self, hub: &Shared<E>, asked: Option<Asked>, failure: CopyFailure) {
        let is_of_address = asked.is_some() && matches!(failure, CopyFailure::Open(_));
        if !is_of_address && !matches!(failure, CopyFailure::Collect(_)) {
            hub.counters.checkpoint_copies_failed.add(1);
        }
        match (asked, &mut self.automatic) {
            (Some(asked), _) => {
                hub.copies.ended();
                asked.reply.send(Err(CheckpointFailure::from(&failure)));
            }
            (None, Some(automatic)) => {
                if !matches!(failure, CopyFailure::Collect(_)) {
                    automatic.retry_later(hub.now());
                }
                automatic.target = None;
                automatic.ended(hub, Some(failure.to_string()));
            }
            (None, None) => {}
        }
        self.failure = Some(failure);
    }
}

/// Answers the caller of a copy that the end of the node interrupts.
fn end<E: Env>(hub: &Shared<E>, asked: Option<Asked>) {
    hub.copies.ended();
    if let Some(asked) = asked {
        asked.reply.send(Err(interrupted()));
    }
}

impl Automatic {
    /// Notes that a checkpoint was copied.
    fn copied<E: Env>(&mut self, hub: &Shared<E>, number: CheckpointNumber, begun: Time) {
        let due = begun.plus(Micros::from(self.to.interval));
        (self.copied, self.due, self.failures) = (number.0, due, 0);
        hub.copies.note(|status| status.newest = Some(number.0));
    }

    /// Notes that a copy has failed: it is tried again later.
    fn retry_later(&mut self, now: Time) {
        let retry = Micros::from(RETRY).times(1 << self.failures.min(20));
        self.due = now.plus(retry.min(Micros::from(self.to.interval)));
        self.failures += 1;
    }

    /// Notes the end of a copy and of the collection after it, with the failure of either.
    fn ended<E: Env>(&mut self, hub: &Shared<E>, failure: Option<String>) {
        let address = &self.to.address;
        match (&failure, mem::replace(&mut self.has_failed, failure.is_some())) {
            (Some(reason), false) => events::warn(format_args!(
                "copying checkpoints to {address} fails: {reason}; the node keeps running and retries the copy"
            )),
            (None, true) => events::info(format_args!(
                "checkpoint {} was copied to {address}: copying works again",
                self.copied
            )),
            _ => {}
        }
        hub.copies.note(|status| status.failure = failure);
    }

    /// Returns the old objects at the target, in the order in which they may be deleted.
    fn look(
        &mut self,
        target: &dyn BlobStore,
        owner: Owner,
        elsewhere: BTreeSet<ShardId>,
        now: Time,
    ) -> Result<Vec<Garbage>, CheckpointError> {
        let retention = Retention { keep: self.to.keep, elsewhere, ..Retention::default() };
        let inventory = self.stock.inventory(target, owner)?;
        Ok(self.chooser.choose(inventory, now, &retention, &BTreeSet::new()).garbage)
    }
}

impl<E: Env> Part<Shared<E>> for CopyPart {
    type Error = Infallible;

    fn bell<'h>(&self, hub: &'h Shared<E>) -> &'h Bell {
        &hub.copies.bell
    }

    /// Begins a copy, or performs one step of the running one.
    fn turn(&mut self, hub: &Shared<E>, now: Time) -> Result<Turned, Infallible> {
        if hub.copies.is_stopped() {
            end(hub, self.running.take().and_then(|running| running.asked));
            return Ok(Turned::Ended);
        }
        let Some(mut running) = self.running.take() else {
            return Ok(match self.begin(hub, now) {
                Ok(running) => {
                    self.running = Some(running);
                    Turned::Again
                }
                Err(due) => Turned::Until(due),
            });
        };
        if let Some(due) = self.meter.held_until(hub.copies.rate, now) {
            self.running = Some(running);
            return Ok(Turned::Until(Some(due)));
        }
        // The part must continue, whatever the client of a service does.
        let stepped = panics::catch_own(|| self.step(hub, now, &mut running));
        let stepped = stepped.unwrap_or_else(|panic| Err(CopyFailure::Panic(panic)));
        self.stepped(hub, running, stepped);
        Ok(Turned::Again)
    }
}
