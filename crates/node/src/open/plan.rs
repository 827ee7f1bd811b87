//! The questions of a start about the program and its options.

use crate::checks::CheckLimits;
use crate::env::Program;
use crate::open::options::Options;
use crate::open::recover::RecoverOptions;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::thread;
use std::time::Duration;
use stead_core::clock::Clock;
use stead_core::ids::{ClusterId, Incarnation, Micros, NodeId, Time};
use stead_core::records::SECRET_LEN;
use stead_core::shard::Settings;
use stead_core::start::{Code, Services};
use stead_store::checkpoint::load::Loaders;
use stead_store::data_dir::Meta;
use stead_store::wal::WalOptions;

/// The code of a program, with the services and tasks that may wait without: the answers to a start's questions.
pub struct Registered<'a, P> {
    /// The program.
    pub program: &'a P,
    /// Names of services and of tasks whose data may wait without code, as in [`Options::without_code`].
    pub without_code: &'a BTreeSet<String>,
}

impl<P: Program> Code for Registered<'_, P> {
    fn has_service(&self, name: &str) -> bool {
        self.program.has_service(name) || self.without_code.contains(name)
    }

    fn has_task(&self, name: &str, service: &str) -> bool {
        self.program.has_task(name) || self.without_code.contains(name) || self.without_code.contains(service)
    }
}

/// Number of log segments that are kept ready: at full speed one is used up in a fraction of a second.
const SEGMENTS_READY: usize = 2;
/// Number of trimmed log segments that are kept for reuse: enough for the entries between two checkpoints.
const SEGMENTS_FREE: usize = 16;

/// Returns the options of a recovery, from those of a node. As many threads load as the system has processors.
#[must_use]
pub fn recover_options(options: &Options) -> RecoverOptions<'_> {
    RecoverOptions {
        services: &options.services,
        clock_confirm: options.clock_confirm,
        wal: WalOptions {
            segment_bytes: options.segment_bytes,
            batch_bytes_max: (options.segment_bytes as usize).min(256 << 20),
            spares: SEGMENTS_READY,
            free_max: SEGMENTS_FREE,
            ..WalOptions::default()
        },
        loaders: Loaders::Threads(thread::available_parallelism().map_or(1, usize::from)),
        not_here: options.not_here.clone(),
        replicated: options.replicated.clone(),
        in_cluster: options.in_cluster,
    }
}

/// Returns the limits of a service's check, which are those of its causes.
pub(super) fn check_limits(name: String, services: &Services) -> (String, CheckLimits) {
    let standard = Settings::default();
    let settings = services.topology().service_id(&name).map_or(&standard, |id| services.settings(id));
    let suspect_for = settings.suspect_for.into();
    (name, CheckLimits { attempts_max: settings.attempts_max, suspect_for })
}

/// Warns if the wall clock is far from the last time in the log: this clock, or that of the last life, may be wrong.
pub(super) fn warn_of_clock(logged: Time, wall: Time, confirm: Duration) {
    let (ahead, behind) = (wall.since(logged), logged.since(wall));
    let hours = |span: Micros| span.0 as f64 / 3.6e9;
    if logged == Time(0) {
        // The log is empty.
    } else if ahead > Clock::FAR && !confirm.is_zero() {
        tracing::warn!(
            "the wall clock is {:.1} h ahead of the log: the node was down for that long, or the clock is wrong; timers follow it in {} s if it stays so",
            hours(ahead),
            confirm.as_secs()
        );
    } else if behind > Clock::FAR {
        tracing::warn!(
            "the wall clock is {:.1} h behind the log: it is wrong, or was; until it has caught up, the time of timers goes at half the speed",
            hours(behind)
        );
    }
}

/// Returns bytes that are unknown outside of this process. They come from the system's randomness, which seeds the
/// standard library's hash maps.
pub(super) fn fresh_secret() -> [u8; SECRET_LEN] {
    let mut secret = [0; SECRET_LEN];
    for (at, word) in secret.chunks_mut(8).enumerate() {
        word.copy_from_slice(&RandomState::new().hash_one(at).to_le_bytes());
    }
    secret
}

/// Returns the metadata of a new data directory.
pub(super) fn fresh_meta() -> Meta {
    let cluster = ClusterId(fastrand::u128(..));
    Meta::new(cluster, Incarnation(1), NodeId::FIRST, fastrand::u64(..))
}
