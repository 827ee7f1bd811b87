//! The profile of a run, drawn from its seed, so that runs differ in character and rare events are common in some of
//! them.

use crate::bug::Bug;
use fastrand::Rng;
use stead_core::checkpointing::merging::Policy;
use stead_core::ids::Micros;
use stead_core::shard::Settings;
use stead_node::{MemoryLimits, Sizes};

/// Settings of a run's profile that its caller overrides. The seed draws the others, and its draws do not depend on
/// these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// No faults at all: nothing crashes, is lost, is duplicated or is slow.
    pub no_faults: bool,
    /// Number of attempts at one cause before it becomes a dead letter, at least 1. The seed draws 1 to 3.
    pub attempts_max: Option<u32>,
    /// Maximum number of bytes of an entry: at most half of the bytes that the log accepts at once, of which the seed
    /// draws 4 to 28 KiB. The seed draws this half, or 400 bytes in one of four runs.
    pub entry_bytes_max: Option<usize>,
    /// Average number of events between two crashes, 0 for no crashes; overrides `no_faults`. The seed draws 80 to
    /// 1,000 or none.
    pub crash_every: Option<u32>,
    /// Number of simulated clients, at least 1. The seed draws 1 to 8.
    pub clients: Option<usize>,
}

/// The faults and sizes of one run. Times are in microseconds of virtual time; chances are 1 in this number, or 0 for
/// never.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    pub(crate) clients: usize,
    pub(crate) think: u64,
    pub(crate) retry: u64,
    pub(crate) window: usize,
    /// Number of calls of a session after which its client confirms replies.
    pub(crate) confirm_every: u64,
    pub(crate) net_delay: u64,
    pub(crate) net_drop: u32,
    pub(crate) net_again: u32,
    pub(crate) channel_delay: u64,
    pub(crate) channel_drop: u32,
    pub(crate) channel_again: u32,
    /// Number of workers of the node, each with its own batches.
    pub(crate) workers: usize,
    pub(crate) wake_delay: u64,
    /// Number of parts that run steps of tasks.
    pub(crate) step_parts: usize,
    /// Microseconds that reading the clock takes: slices end sooner.
    pub(crate) look_cost: u64,
    /// The time for which a call waits at the node.
    pub(crate) call_timeout: u64,
    pub(crate) step_delay: u64,
    /// Average number of events between crashes.
    pub(crate) crash_every: u32,
    /// Share of the crashes that leave the machine on, in quarters.
    pub(crate) kill_share: u8,
    pub(crate) crash_in_recovery: u32,
    pub(crate) crash_everywhere: u32,
    pub(crate) jump: u32,
    pub(crate) jump_max: u64,
    /// Average number of events between jumps of the clock within a life.
    pub(crate) jump_inside: u32,
    pub(crate) full_every: u32,
    pub(crate) fail_sync_every: u32,
    pub(crate) flip: u32,
    /// Average number of events between failing operations of the disk, between times in which no files can be opened,
    /// and between bits that flip while the node runs.
    pub(crate) fault_every: u32,
    pub(crate) files_every: u32,
    pub(crate) flip_inside: u32,
    /// Threads that the system refuses to a node that starts, and events between changes of its mind about those of queries.
    pub(crate) refuse_threads: u32,
    /// Merges that panic, checks before which their part does, and turns of other parts.
    pub(crate) merge_panics: u32,
    pub(crate) check_panics: u32,
    pub(crate) part_panics: u32,
    /// Steps of tasks that run for long, and the longest time for which they do.
    pub(crate) slow_steps: u32,
    pub(crate) slow_step_max: u64,
    /// The time for which a node that is abandoned waits for users' code.
    pub(crate) shutdown_timeout: u64,
    pub(crate) disk_cost: u64,
    /// Average number of events between requests of checkpoints.
    pub(crate) checkpoint_every: u32,
    /// The time from the beginning of one checkpoint to the next one that nothing requests; 0 for only requested ones.
    pub(crate) checkpoint_interval: u64,
    pub(crate) checkpoint_deadline: u64,
    pub(crate) keep: usize,
    /// Time after which garbage is collected.
    pub(crate) grace: u64,
    pub(crate) merge: Policy,
    pub(crate) segment_bytes: u64,
    /// The node's limits of memory.
    pub(crate) memory: MemoryLimits,
    /// The sizes at which the node's parts divide and limit their work.
    pub(crate) sizes: Sizes,
    /// Groups in which the parts of a checkpoint are loaded.
    pub(crate) loaders: usize,
    /// Bytes of a checkpoint of the interval over which it is not checked.
    pub(crate) check_bytes_max: u64,
    /// Sessions that are opened without waiting for the answer.
    pub(crate) unawaited: u32,
    /// Bytes of checkpoints that are written in a second; 0 is unlimited.
    pub(crate) bytes_per_second: u64,
    /// Segments of the log that are kept ready, and trimmed ones that are kept for reuse; `None` for as many as in production.
    pub(crate) segments_ready: Option<usize>,
    pub(crate) segments_free: Option<usize>,
    /// The time after which a running query is given up.
    pub(crate) query_limit: u64,
    /// Queries that run for up to 3 s.
    pub(crate) slow_queries: u32,
    /// Lives whose program has one more service.
    pub(crate) add_service: u32,
    /// Calls whose caller goes before its answer.
    pub(crate) gone: u32,
    /// Average number of events between commands of an operator.
    pub(crate) inspect_every: u32,
    /// Wanted checkpoints whose services' checks run, checks that end the process, and the longest pause before the next check.
    pub(crate) checked: u32,
    pub(crate) check_kills: u32,
    pub(crate) check_delay: u64,
    /// The time from one copy of a checkpoint to the next; 0 for no copies.
    pub(crate) copy_interval: u64,
    /// Average number of events between requests of copies, the bytes of a piece, and the longest pause before the next one.
    pub(crate) copy_requests: u32,
    pub(crate) copy_piece: u64,
    pub(crate) copy_pause: u64,
    /// Maximum number of handler runs that the shell accepts for one input.
    pub(crate) runs_max: usize,
    /// The settings of services that have none of their own.
    pub(crate) settings: Settings,
    /// The settings of the first services, by their place.
    pub(crate) own_settings: Vec<Settings>,
}

fn chance(rng: &mut Rng, choices: &[u32]) -> u32 {
    choices[rng.usize(..choices.len())]
}

pub(crate) fn spread(rng: &mut Rng, choices: &[u64]) -> u64 {
    choices[rng.usize(..choices.len())]
}

fn millis(rng: &mut Rng, choices: &[u64]) -> Micros {
    Micros::from_millis(spread(rng, choices))
}

/// Returns the maximum number of bytes of an entry in a log with segments of this length. As in a node, twice as much
/// fits into the log at once: into a segment without the blocks of its header and its reserve, the header of a batch,
/// and the space for the table.
fn entry_bytes_max(segment_bytes: u64) -> usize {
    (segment_bytes as usize - 2 * 4096 - 64 - 512) / 2
}

/// Returns the settings of a service, drawn around those of the others.
fn vary(rng: &mut Rng, settings: &Settings) -> Settings {
    Settings {
        session_ttl: millis(rng, &[3_600_000, 20_000]),
        idempotency_ttl: millis(rng, &[86_400_000, 30_000]),
        attempts_max: rng.u32(1..=3),
        outbox_bytes_max: spread(rng, &[64 << 20, 4096]) as usize,
        uncommitted_max: spread(rng, &[65_536, 32, 4]),
        ack_delay: millis(rng, &[0, 1, 10, 100]),
        resend_after: millis(rng, &[50, 500, 2000]),
        work_max: spread(rng, &[2_048, 16, 1]) as usize,
        ..settings.clone()
    }
}

/// Draws the sizes of a node: those of production, or such that small states cross them.
fn sizes(rng: &mut Rng) -> Sizes {
    let standard = Sizes::default();
    let mut draw = |standard: usize, small: [usize; 2]| match rng.u8(..4) {
        2 => small[0],
        3 => small[1],
        _ => standard,
    };
    Sizes {
        batch_bytes: draw(standard.batch_bytes, [2_000, 1]),
        behind_bytes: draw(standard.behind_bytes, [3_000, 0]),
        piece_bytes: draw(standard.piece_bytes, [500, 1]),
        snapshot_records: draw(standard.snapshot_records, [7, 1]),
        block_bytes: draw(standard.block_bytes, [500, 1]),
        queries_max: draw(standard.queries_max, [3, 1]),
        service_queries_max: draw(standard.service_queries_max, [2, 1]),
        ..standard
    }
}

impl Profile {
    /// Draws a profile.
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let settings = Settings {
            session_ttl: millis(rng, &[3_600_000, 3_600_000, 20_000]),
            idempotency_ttl: millis(rng, &[86_400_000, 86_400_000, 30_000]),
            attempts_max: rng.u32(1..=3),
            suspect_for: Micros::from_secs(60),
            outbox_bytes_max: spread(rng, &[64 << 20, 64 << 20, 4096]) as usize,
            uncommitted_max: spread(rng, &[65_536, 65_536, 32, 4]),
            ack_delay: millis(rng, &[0, 1, 10, 100]),
            resend_after: millis(rng, &[50, 500, 2000]),
            ..Settings::default()
        };
        let mut profile = Self {
            clients: rng.usize(1..=8),
            think: spread(rng, &[100, 1_000, 10_000, 50_000]),
            retry: spread(rng, &[20_000, 100_000, 500_000]),
            window: rng.usize(1..=4),
            confirm_every: 1,
            net_delay: spread(rng, &[10, 500, 5_000, 50_000]),
            net_drop: chance(rng, &[0, 0, 100, 10]),
            net_again: chance(rng, &[0, 50, 5]),
            channel_delay: spread(rng, &[1, 500, 20_000]),
            channel_drop: chance(rng, &[0, 0, 0, 20]),
            channel_again: chance(rng, &[0, 20, 4]),
            workers: 1,
            wake_delay: 0,
            step_parts: 1,
            look_cost: 0,
            call_timeout: 5_000_000,
            step_delay: spread(rng, &[10, 5_000, 300_000]),
            crash_every: chance(rng, &[0, 80, 300, 300, 1000]),
            kill_share: rng.u8(0..=4),
            crash_in_recovery: chance(rng, &[0, 4, 2]),
            crash_everywhere: chance(rng, &[0, 12]),
            jump: chance(rng, &[0, 4]),
            jump_max: spread(rng, &[10_000, 5_000_000, 3_000_000_000]),
            jump_inside: 0,
            full_every: chance(rng, &[0, 0, 0, 500]),
            fail_sync_every: chance(rng, &[0, 0, 0, 600]),
            flip: chance(rng, &[0, 0, 0, 3]),
            fault_every: 0,
            files_every: 0,
            flip_inside: 0,
            refuse_threads: 0,
            merge_panics: 0,
            check_panics: 0,
            part_panics: 0,
            slow_steps: 0,
            slow_step_max: 0,
            shutdown_timeout: 0,
            disk_cost: spread(rng, &[0, 0, 50, 5_000]),
            checkpoint_every: chance(rng, &[0, 60, 150, 400]),
            checkpoint_interval: 0,
            checkpoint_deadline: spread(rng, &[200_000, 5_000_000, 60_000_000]),
            keep: rng.usize(1..=4),
            grace: spread(rng, &[0, 100_000, 5_000_000]),
            merge: Policy {
                fan_in: rng.usize(2..=5),
                growth: spread(rng, &[1, 100, 1_000_000]),
                renewal: spread(rng, &[1, 100, 1_000_000]),
                renewal_budget: spread(rng, &[1, 12, 100]),
                growth_bytes_min: 1,
            },
            segment_bytes: spread(rng, &[16 << 10, 16 << 10, 32 << 10, 64 << 10]),
            memory: MemoryLimits::default(),
            sizes: Sizes::default(),
            loaders: 1,
            check_bytes_max: 1 << 30,
            unawaited: 0,
            bytes_per_second: 0,
            segments_ready: None,
            segments_free: None,
            query_limit: 0,
            slow_queries: 0,
            add_service: 0,
            gone: 0,
            inspect_every: 0,
            checked: 0,
            check_kills: 0,
            check_delay: 0,
            copy_interval: 0,
            copy_requests: 0,
            copy_piece: 0,
            copy_pause: 0,
            runs_max: usize::MAX,
            settings,
            own_settings: Vec::new(),
        };
        // Sometimes so small that sessions end over several entries, and some calls do not fit into one. Drawn last, so
        // that the other draws of a seed are unchanged.
        profile.settings.entry_bytes_max = spread(rng, &[32 << 20, 32 << 20, 32 << 20, 400]) as usize;
        profile.jump_inside = chance(rng, &[0, 0, 200, 40]);
        if rng.bool() {
            // Three days: a clock that is this far ahead is never adopted at once.
            profile.jump_max = 3 * 24 * 3_600_000_000;
        }
        profile.settings.kept_bytes_max = spread(rng, &[64 << 20, 64 << 20, 64 << 20, 8_000]) as usize;
        profile.settings.clock_confirm = millis(rng, &[600_000, 600_000, 500, 0]);
        profile.settings.uncommitted_bytes_max = spread(rng, &[64 << 20, 64 << 20, 2_000, 1]) as usize;
        profile.settings.work_max = spread(rng, &[2_048, 2_048, 16, 1]) as usize;
        profile.runs_max = spread(rng, &[u64::MAX, u64::MAX, 3, 1]) as usize;
        profile.confirm_every = spread(rng, &[1, 1, 1, 40]);
        profile.workers = rng.usize(1..=4);
        profile.wake_delay = spread(rng, &[0, 10, 300, 5_000]);
        profile.step_parts = rng.usize(1..=4);
        profile.look_cost = spread(rng, &[0, 0, 1, 100]);
        profile.call_timeout = spread(rng, &[200_000, 5_000_000]);
        profile.fault_every = chance(rng, &[0, 0, 0, 600]);
        profile.files_every = chance(rng, &[0, 0, 0, 500]);
        profile.flip_inside = chance(rng, &[0, 0, 0, 600]);
        profile.query_limit = spread(rng, &[3_600_000_000, 1_000_000, 100_000]);
        profile.slow_queries = chance(rng, &[0, 0, 20, 4]);
        profile.checked = chance(rng, &[0, 0, 0, 8, 1]);
        profile.check_kills = if profile.crash_every > 0 { chance(rng, &[0, 20, 3]) } else { 0 };
        profile.check_delay = spread(rng, &[1_000, 20_000, 500_000]);
        profile.refuse_threads = chance(rng, &[0, 0, 0, 100]);
        // Fewer, so that the log lacks a segment more often.
        profile.segments_ready = rng.bool().then_some(1);
        profile.segments_free = rng.bool().then_some(2);
        profile.merge_panics = chance(rng, &[0, 0, 0, 4]);
        profile.copy_interval = spread(rng, &[0, 0, 0, 0, 20_000, 2_000_000]);
        profile.checkpoint_interval = spread(rng, &[0, 0, 50_000, 400_000, 3_000_000]);
        profile.gone = chance(rng, &[0, 0, 20, 4]);
        profile.add_service = chance(rng, &[0, 0, 4]);
        profile.inspect_every = chance(rng, &[0, 40, 200]);
        profile.copy_requests = chance(rng, &[0, 0, 0, 300, 60]);
        profile.copy_piece = spread(rng, &[1, 1, 2_000, 4 << 20]);
        profile.copy_pause = spread(rng, &[0, 1_000, 50_000]);
        profile.memory.bytes_max = spread(rng, &[1 << 30, 1 << 30, 30_000, 5_000]);
        profile.memory.uncommitted_bytes_max = spread(rng, &[256 << 20, 256 << 20, 4_000, 1]);
        profile.bytes_per_second = spread(rng, &[0, 0, 2_000_000, 100_000]);
        profile.sizes = sizes(rng);
        profile.loaders = rng.usize(1..=4);
        profile.check_bytes_max = spread(rng, &[1 << 30, 1 << 30, 4_000, 0]);
        profile.unawaited = chance(rng, &[0, 0, 2, 1]);
        profile.part_panics = chance(rng, &[0, 0, 0, 3_000, 300]);
        profile.slow_steps = chance(rng, &[0, 0, 20, 4]);
        profile.slow_step_max = spread(rng, &[100_000, 3_000_000]);
        profile.shutdown_timeout = spread(rng, &[0, 1_000, 300_000, 10_000_000]);
        let settings = &mut profile.settings;
        settings.entry_bytes_max = settings.entry_bytes_max.min(entry_bytes_max(profile.segment_bytes));
        if rng.bool() {
            profile.own_settings = (0..3).map(|_| vary(rng, &profile.settings)).collect();
        }
        profile.check_panics = chance(rng, &[0, 0, 0, 4]);
        profile
    }

    /// Returns the settings of a service, by its place in the topology.
    pub(crate) fn settings_of(&self, service: usize) -> &Settings {
        self.own_settings.get(service).unwrap_or(&self.settings)
    }

    /// Changes the settings of all services.
    pub(crate) fn change_settings(&mut self, change: impl FnMut(&mut Settings)) {
        std::iter::once(&mut self.settings).chain(&mut self.own_settings).for_each(change);
    }

    /// Returns the settings of all services.
    pub(crate) fn all_settings(&self) -> impl Iterator<Item = &Settings> {
        std::iter::once(&self.settings).chain(&self.own_settings)
    }

    /// Returns this profile with the caller's overrides.
    pub(crate) fn with(mut self, overrides: &Overrides) -> Self {
        if overrides.no_faults {
            self.calm();
            self.net_again = 0;
            self.channel_again = 0;
            self.disk_cost = 0;
        }
        if let Some(attempts) = overrides.attempts_max {
            self.change_settings(|settings| settings.attempts_max = attempts);
        }
        if let Some(bytes) = overrides.entry_bytes_max {
            let bytes = bytes.min(entry_bytes_max(self.segment_bytes));
            self.change_settings(|settings| settings.entry_bytes_max = bytes);
        }
        if let Some(every) = overrides.crash_every {
            self.crash_every = every;
            if every == 0 {
                self.crash_in_recovery = 0;
                self.crash_everywhere = 0;
                self.check_kills = 0;
            }
        }
        if let Some(clients) = overrides.clients {
            self.clients = clients;
        }
        self
    }

    /// Returns this profile, changed so that the events that a planted bug needs are common.
    pub(crate) fn with_bug(mut self, bug: Option<Bug>) -> Self {
        match bug {
            // Clients are fast; checkpoints are frequent, and their colours arrive late.
            Some(Bug::StripRequestColours) => {
                (self.net_delay, self.think, self.retry) = (10, 100, 20_000);
                (self.channel_delay, self.checkpoint_every) = (20_000, 60);
            }
            // Many timers wait, and many messages are in flight at a checkpoint that is kept until the end.
            Some(Bug::SwapRestored | Bug::StrayTimer) => {
                (self.channel_delay, self.checkpoint_every, self.workers) = (20_000, 60, 4);
                self.keep = 40;
            }
            // Collections are frequent, and merges too.
            Some(Bug::OverlookMerge) => {
                (self.checkpoint_every, self.keep, self.grace) = (60, 1, 0);
                self.merge.fan_in = 2;
            }
            // Keys run out soon, and sessions do not.
            Some(Bug::ShortSession) => self.change_settings(|settings| {
                settings.idempotency_ttl = Micros::from_secs(30);
                settings.session_ttl = Micros::from_secs(3_600);
            }),
            // The log gets its turns late, and checkpoints are short.
            Some(Bug::EarlyMarker) => {
                (self.checkpoint_every, self.wake_delay, self.bytes_per_second) = (60, 5_000, 0);
            }
            Some(Bug::KeepCheckMark) => {
                (self.checked, self.check_kills, self.checkpoint_every) = (1, 0, 60);
                self.crash_every = 300;
            }
            // The log is long at a start.
            Some(Bug::FoldOther) => (self.crash_every, self.checkpoint_every) = (300, 400),
            // Checkpoints are given up, and lives are short.
            Some(Bug::ForgetDecided) => {
                (self.checkpoint_deadline, self.checkpoint_every, self.crash_every) = (1_000, 60, 80);
                // Its colour, of which a shard's log would know, comes later.
                self.channel_delay = 500_000;
            }
            // One end of the process is enough to give a cause up, and much waits at each.
            Some(Bug::CrowdTrials) => {
                self.change_settings(|settings| settings.attempts_max = 1);
                (self.clients, self.think, self.workers) = (8, 100, 4);
                (self.channel_delay, self.wake_delay) = (20_000, 5_000);
                // An end from outside charges what is tried.
                (self.crash_every, self.crash_in_recovery) = (0, 0);
                // While the log is behind, what gets its turn all at once would wait.
                self.memory = MemoryLimits::default();
            }
            Some(Bug::MixedCut) => {
                (self.checked, self.check_kills, self.checkpoint_every) = (1, 0, 60);
            }
            Some(Bug::ForgetCheckMark) => {
                (self.checked, self.check_kills, self.checkpoint_every) = (1, 1, 60);
            }
            // Checks leave marks, and the power is cut while they are there.
            Some(Bug::HoldMarks) => {
                (self.checked, self.check_kills, self.checkpoint_every) = (1, 1, 60);
                (self.crash_every, self.kill_share, self.crash_everywhere) = (80, 0, 1);
            }
            Some(Bug::HastyCopy) => {
                (self.copy_interval, self.checkpoint_every) = (20_000, 60);
                (self.crash_every, self.kill_share) = (80, 0);
            }
            Some(Bug::GarbleCopy) => {
                (self.copy_interval, self.copy_piece, self.checkpoint_every) = (20_000, 1, 60);
            }
            // Checkpoints are frequent and short-lived, and copies take long.
            Some(Bug::ForgetPin) => {
                (self.copy_interval, self.copy_piece, self.copy_pause) = (20_000, 1, 50_000);
                (self.checkpoint_every, self.keep, self.grace, self.crash_every) = (60, 1, 0, 1_000);
            }
            Some(Bug::SkipInterval) => {
                (self.checkpoint_interval, self.checkpoint_every) = (400_000, 0);
            }
            // Parts fail, and the others have work.
            Some(Bug::IgnoreFailed | Bug::MarkFailed) => {
                (self.fault_every, self.clients, self.think) = (100, 8, 100);
            }
            Some(Bug::ForgetStop | Bug::WaitForSelf | Bug::EarlyRelease) => {
                (self.crash_every, self.kill_share) = (80, 4);
            }
            // Steps run for longer than the end of a node may take.
            Some(Bug::PatientKill) => {
                (self.crash_every, self.kill_share, self.shutdown_timeout) = (400, 4, 0);
                (self.slow_steps, self.slow_step_max, self.step_parts) = (1, 100_000_000, 4);
            }
            // Several messages arrive at once.
            Some(Bug::DeafSlice) => (self.runs_max, self.channel_delay) = (1, 500),
            Some(Bug::SkipBlockCheck) => {
                (self.flip_inside, self.checkpoint_every, self.keep) = (40, 60, 4);
                (self.merge.fan_in, self.copy_interval) = (2, 20_000);
            }
            // The part that takes checkpoints is slow, and snapshots come in many pieces.
            Some(Bug::NeverHoldBack) => {
                (self.sizes.behind_bytes, self.sizes.piece_bytes, self.sizes.snapshot_records) = (0, 1, 1);
                (self.checkpoint_every, self.checkpoint_deadline) = (60, 60_000_000);
            }
            // Several queries are released in one turn.
            Some(Bug::CrowdQueries) => {
                (self.sizes.queries_max, self.sizes.service_queries_max) = (1, 1);
                (self.clients, self.window, self.think, self.wake_delay) = (8, 4, 100, 5_000);
                self.memory = MemoryLimits::default();
            }
            Some(Bug::KeepDeleted) => self.inspect_every = 40,
            Some(Bug::DeleteNeeded) => {
                (self.inspect_every, self.keep, self.checkpoint_every) = (40, 4, 60);
            }
            Some(Bug::DeafWatch) => {
                (self.query_limit, self.slow_queries, self.call_timeout) = (100_000, 4, 200_000);
            }
            _ => {}
        }
        self
    }

    /// Returns this profile without faults: all running work must come to its end.
    pub(crate) fn calm(&mut self) {
        self.net_drop = 0;
        self.channel_drop = 0;
        self.crash_every = 0;
        self.full_every = 0;
        self.fail_sync_every = 0;
        self.flip = 0;
        self.fault_every = 0;
        self.files_every = 0;
        self.flip_inside = 0;
        self.refuse_threads = 0;
        self.merge_panics = 0;
        self.check_panics = 0;
        self.part_panics = 0;
        self.slow_steps = 0;
        self.jump = 0;
        self.jump_inside = 0;
        self.crash_in_recovery = 0;
        self.crash_everywhere = 0;
        self.slow_queries = 0;
        self.gone = 0;
        self.check_kills = 0;
        self.copy_requests = 0;
        self.checkpoint_interval = 0;
        // Without faults nothing takes that long.
        self.checkpoint_deadline = 60_000_000;
    }
}

/// Draws true once in `of` times; 0 is never.
pub(crate) fn one_in(rng: &mut Rng, of: u32) -> bool {
    of > 0 && rng.u32(..of) == 0
}
