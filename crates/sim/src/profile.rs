//! The profile of a run, drawn from its seed, so that runs differ in character and rare events are common in some of
//! them.

use crate::bug::Bug;
use fastrand::Rng;
use stead_core::checkpointing::merging::Policy;
use stead_core::shard::Settings;

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
    pub(crate) disk_cost: u64,
    pub(crate) checkpoint_every: u32,
    pub(crate) checkpoint_deadline: u64,
    pub(crate) keep: usize,
    /// Time after which garbage is collected.
    pub(crate) grace: u64,
    pub(crate) merge: Policy,
    pub(crate) segment_bytes: u64,
    /// The time after which a running query is given up.
    pub(crate) query_limit: u64,
    /// Queries that run for up to 3 s.
    pub(crate) slow_queries: u32,
    /// Wanted checkpoints whose services' checks run, checks that end the process, and the longest pause before the next check.
    pub(crate) checked: u32,
    pub(crate) check_kills: u32,
    pub(crate) check_delay: u64,
    /// The time from one copy of a checkpoint to the next; 0 for no copies.
    pub(crate) copy_interval: u64,
    /// Maximum number of handler runs that the shell accepts for one input.
    pub(crate) runs_max: usize,
    pub(crate) settings: Settings,
}

fn chance(rng: &mut Rng, choices: &[u32]) -> u32 {
    choices[rng.usize(..choices.len())]
}

pub(crate) fn spread(rng: &mut Rng, choices: &[u64]) -> u64 {
    choices[rng.usize(..choices.len())]
}

/// Returns the maximum number of bytes of an entry in a log with segments of this length. As in a node, twice as much
/// fits into the log at once: into a segment without the blocks of its header and its reserve, the header of a batch,
/// and the space for the table.
fn entry_bytes_max(segment_bytes: u64) -> usize {
    (segment_bytes as usize - 2 * 4096 - 64 - 512) / 2
}

impl Profile {
    /// Draws a profile.
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let settings = Settings {
            session_ttl: spread(rng, &[3_600_000, 3_600_000, 20_000]),
            idempotency_ttl: spread(rng, &[86_400_000, 86_400_000, 30_000]),
            attempts_max: rng.u32(1..=3),
            suspect_for: 60_000,
            outbox_bytes_max: spread(rng, &[64 << 20, 64 << 20, 4096]) as usize,
            uncommitted_max: spread(rng, &[65_536, 65_536, 32, 4]),
            ack_delay: spread(rng, &[0, 1, 10, 100]),
            resend_after: spread(rng, &[50, 500, 2000]),
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
            disk_cost: spread(rng, &[0, 0, 50, 5_000]),
            checkpoint_every: chance(rng, &[0, 60, 150, 400]),
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
            query_limit: 0,
            slow_queries: 0,
            checked: 0,
            check_kills: 0,
            check_delay: 0,
            copy_interval: 0,
            runs_max: usize::MAX,
            settings,
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
        profile.settings.clock_confirm = spread(rng, &[600_000, 600_000, 500, 0]);
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
        profile.copy_interval = spread(rng, &[0, 0, 0, 0, 20_000, 2_000_000]);
        let settings = &mut profile.settings;
        settings.entry_bytes_max = settings.entry_bytes_max.min(entry_bytes_max(profile.segment_bytes));
        profile
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
            self.settings.attempts_max = attempts;
        }
        if let Some(bytes) = overrides.entry_bytes_max {
            self.settings.entry_bytes_max = bytes.min(entry_bytes_max(self.segment_bytes));
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
            // Many messages are in flight at a checkpoint.
            Some(Bug::SwapRestored) => {
                (self.channel_delay, self.checkpoint_every, self.workers) = (20_000, 60, 4);
            }
            // Checkpoints are given up, and lives are short.
            Some(Bug::ForgetDecided) => {
                (self.checkpoint_deadline, self.checkpoint_every, self.crash_every) = (1_000, 60, 80);
                // Its colour, of which a shard's log would know, comes later.
                self.channel_delay = 500_000;
            }
            // One end of the process is enough to give a cause up, and much waits at each.
            Some(Bug::CrowdTrials) => {
                self.settings.attempts_max = 1;
                (self.clients, self.think, self.workers) = (8, 100, 4);
                (self.channel_delay, self.wake_delay) = (20_000, 5_000);
            }
            Some(Bug::MixedCut) => {
                (self.checked, self.check_kills, self.checkpoint_every) = (1, 0, 60);
            }
            Some(Bug::ForgetCheckMark) => {
                (self.checked, self.check_kills, self.checkpoint_every) = (1, 1, 60);
            }
            Some(Bug::HastyCopy) => {
                (self.copy_interval, self.checkpoint_every) = (20_000, 60);
                (self.crash_every, self.kill_share) = (80, 0);
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
        self.jump = 0;
        self.jump_inside = 0;
        self.crash_in_recovery = 0;
        self.crash_everywhere = 0;
        self.slow_queries = 0;
        self.check_kills = 0;
        // Without faults nothing takes that long.
        self.checkpoint_deadline = 60_000_000;
    }
}

/// Draws true once in `of` times; 0 is never.
pub(crate) fn one_in(rng: &mut Rng, of: u32) -> bool {
    of > 0 && rng.u32(..of) == 0
}
