//! "Sometimes" marks: rare things that runs should reach, counted, so that a workload that no longer does is noticed.

use std::fmt;

macro_rules! marks {
    ($($name:ident: $text:literal,)*) => {
        /// Something rare that a run can reach.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mark {
            $(#[doc = $text] $name,)*
        }

        impl Mark {
            /// Every mark.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Returns the name of the event.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

marks! {
    ServiceAdded: "a life began whose program had one more service",
    PowerCut: "power cut",
    Stopped: "a stop in order",
    FailureEnded: "a node that had failed or was abandoned was ended",
    Abandoned: "a node was abandoned",
    AbandonedInEnd: "a node was abandoned while it stopped",
    OwnerStopped: "a node was stopped from outside",
    StoppedTwice: "a node was stopped while it stopped",
    StoppedByPart: "a part of a node stopped it",
    AskedByPart: "a part of a node asked for its end while it stopped",
    KilledByHandler: "a handler abandoned its node within its turn",
    CommandStopped: "an operator's command ended with the node",
    StepLeft: "the end of a node did not wait for a step any more",
    CopyPanicked: "a copy panicked",
    PartPanicked: "a part panicked",
    ChecksPanicked: "the part that runs checks panicked",
    ThreadRefused: "a thread of a node could not start",
    MergePanicked: "a merge panicked",
    CleanStart: "a life that suspected nothing, for the one before ended in order",
    ProcessKilled: "process killed",
    CrashInIo: "power cut in the middle of an I/O operation",
    CrashInRecovery: "crash during a recovery",
    RecoveryCrashedEverywhere: "a recovery crashed at each of its I/O operations",
    Held: "all was held until what a death had met was tried",
    HandlerKilled: "a handler ended the process",
    StepKilled: "a step of a task ended the process",
    UnsyncedKept: "entries that were not synced survived a crash",
    UnsyncedLost: "entries that were not synced were lost in a crash",
    SyncFailed: "a sync failed",
    StartFailed: "a start was refused after an I/O operation had failed",
    StartShort: "a start found no space or no descriptor, and was refused",
    PromisesWithoutRoom: "a start found no room in the log for its promises, and changed nothing",
    NoCode: "a start by a program that lacks code was refused",
    CodeWaits: "a start by a program that lacks code succeeded, for what lacks it may wait",
    IoFailed: "an I/O operation failed within a life",
    FilesShort: "files could not be opened for a while",
    FlippedInside: "a bit flipped within a life",
    CheckpointRots: "a bit of a checkpoint flipped within a life",
    RotRefused: "a merge or a collection refused a flipped bit",
    DiskFull: "the log had no room",
    RoomAgain: "room again after a full disk",
    RoomByTrim: "a checkpoint gave the log room while the disk was full",
    IdleMarked: "the log went to sleep, all marked as synced",
    CheckpointFull: "a checkpoint failed for want of room",
    SlowDisk: "a slow disk",
    ClockBack: "the clock jumped back",
    ClockForth: "the clock jumped forth",
    ClockInside: "the clock jumped within a life",
    ClockDoubted: "a clock was too far ahead to be believed at once",
    CheckpointDone: "a checkpoint was completed",
    LookedAt: "an operator looked at a process, and its shard was where the model is",
    ProcessDeleted: "an operator deleted a process",
    NothingDeleted: "an operator deleted a process that had nothing any more",
    StatusTaken: "the status of a shard was that of the model",
    Listed: "an operator listed the checkpoints",
    Verified: "an operator verified a checkpoint",
    DamageVerified: "a verification found a flipped bit",
    CheckpointDeleted: "an operator deleted a checkpoint",
    DeletionRefused: "the deletion of a checkpoint was refused",
    CommandInSteps: "the node's parts had turns between the steps of an operator's command",
    DeletionMetReader: "a deletion of a checkpoint was refused, for a reader had begun within it",
    CallerGone: "a call ended whose caller had gone",
    CheckpointByInterval: "a checkpoint began that nothing had requested",
    IntervalChecked: "a service's check ran over a checkpoint of the interval",
    CheckpointTooLarge: "a checkpoint of the interval was too large to be checked",
    SeveralBatches: "a worker passed several batches to the log in one turn",
    SnapshotHeldBack: "a worker held its snapshots back, for too much waited to be written",
    SnapshotWentOn: "workers that had held snapshots back went on",
    SeveralPieces: "a snapshot was handed over in several pieces",
    SeveralBlocks: "a piece of a snapshot was cut into several blocks",
    LoadedInGroups: "a recovery loaded the parts of a checkpoint in several groups",
    CheckpointGivenUp: "a checkpoint was given up",
    TombstoneCollected: "a collection deleted the tombstone of an older number",
    LateMarker: "a shard learnt of a checkpoint that was given up already",
    CheckpointRefused: "a checkpoint was refused, for the log had no room to spare",
    HigherColour: "a shard had a colour above that of the checkpoint that was taken",
    CheckpointLost: "a crash during a checkpoint",
    MarkerByMessage: "a shard learnt of a checkpoint from a message, an acknowledgement or a client",
    SnapshotUnderWrites: "records changed while a snapshot was drained",
    Checked: "a service's check ran over a checkpoint",
    CheckKilled: "a service's check ended the process",
    CheckSkipped: "a service's check was not run, for it had not ended before",
    CheckLate: "a service's check had begun, and had not ended in time",
    ChecksGivenUp: "the checks of a checkpoint were given up, for they took too long",
    Copied: "a checkpoint was copied",
    CopiedByHand: "a checkpoint was copied on request",
    CopyFailed: "a copy failed, for the disk did",
    CopyRefused: "a copy was refused, for as many ran or waited as may",
    CopyInterrupted: "a stop in order interrupted a copy",
    CutInFlight: "a cut with messages in flight",
    Trimmed: "the log was trimmed",
    Collected: "stored objects were collected",
    Compacted: "bundles were compacted",
    CollectedInMerge: "a collection while nothing referred to what a merge wrote",
    StartRefused: "a start was refused for its log or its metadata",
    StartUnread: "a start was refused for something else that it could not read",
    RecoveredFromCheckpoint: "a recovery from a checkpoint",
    RecoveredPastDamage: "damage was refused, and healed",
    DamageHarmless: "damage where nothing was needed",
    DamageUncovered: "damage to the last synced batch, which no mark covers",
    Restored: "a checkpoint was restored",
    RestoreBroken: "a restore broke off, and a start refused what it left",
    RestoreUndone: "a restore broke off, and nothing of it was left",
    RestoreWhole: "a restore broke off when nothing was missing any more",
    OldFilesRefused: "a start refused a checkpoint of the incarnation before a restore",
    Resharded: "a checkpoint was restored onto other numbers of shards",
    Renumbered: "a restore gave timers, tasks or dead letters other numbers",
    Reasked: "an answered request was asked again and got the same answer",
    Conflict: "a known idempotency key came with another body and was refused",
    TooLarge: "a call was too large for an entry",
    QueryUnderWrites: "a process changed while a query of it waited for its thread",
    QueryGivenUp: "a query ran for too long and was given up",
    QueriesFull: "a query was refused, for as many waited as may",
    QueryReplaced: "another part took the place of one whose query does not end",
    QueriesStuck: "a query was refused, for too many of its service do not end",
    SessionUnawaited: "a request was answered in a session whose opening no caller had waited for",
    SessionEnded: "a session ran out under its client",
    Confirmed: "a confirmed reply was asked for",
    ConfirmedRest: "confirmed replies were forgotten in several entries",
    TimedOut: "a call ran out of time at the node",
    NodeOverloaded: "the node refused a call for want of memory",
    Pressed: "handlers waited for the log, which was far behind",
    StepCrowded: "a step of a task waited for memory",
    Paced: "a checkpoint waited for its pace",
    Overloaded: "a client was asked to retry later",
    LimitReached: "a client was refused for what its shard keeps",
    RefusedFull: "a client was refused because the disk is full",
    AnsweredError: "a handler returned an error",
    Panicked: "a handler panicked under a client",
    RequestGivenUp: "a request that ended the process again and again was given up",
    DeadLetter: "a cause became a dead letter",
    DeadLetterRetried: "a dead letter was retried with success",
    DeadLetterFailed: "a dead letter was retried in vain",
    DeadLetterDropped: "a dead letter was dropped",
    Attempt: "attempts were logged",
    TimerFired: "a timer fired",
    DelayedSent: "a message with a delay left",
    StepRetried: "a step of a task was tried again later",
    TaskDone: "a task ended",
    FrameDropped: "a frame of a channel was lost",
    FrameAgain: "a frame of a channel came twice",
    HeldBack: "work was left for a tick",
    OldFrame: "a frame of an older life arrived",
}

/// The number of times that each mark was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks(Vec<u64>);

impl Default for Marks {
    fn default() -> Self {
        Self(vec![0; Mark::ALL.len()])
    }
}

impl Marks {
    pub(crate) fn hit(&mut self, mark: Mark) {
        self.0[mark as usize] += 1;
    }

    /// Returns the number of times that a mark was reached.
    #[must_use]
    pub fn count(&self, mark: Mark) -> u64 {
        self.0[mark as usize]
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(&other.0) {
            *sum += count;
        }
    }
}

impl fmt::Display for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mark in Mark::ALL {
            writeln!(f, "{:>10}  {}", self.count(*mark), mark.text())?;
        }
        Ok(())
    }
}
