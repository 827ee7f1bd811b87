//! The intervals and bounds of a group.

use crate::error::StartError;
use openraft::{Config, SnapshotPolicy};
use std::time::Duration;

/// Intervals and bounds of a group; all its nodes should have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Interval of the leader's heartbeats, and the time for one answer to it. At least 10 ms. Default: 50 ms.
    pub heartbeat: Duration,
    /// Shortest time without a leader before a voter asks for votes; each draws one up to twice as long. A voter grants
    /// none for twice this time after a heartbeat. More than twice the heartbeat. Default: 150 ms.
    pub election_min: Duration,
    /// Entries after which a snapshot is taken; an eighth of them stays in the log behind one. At least 8. Default: 1,024.
    pub snapshot_entries: u64,
    /// Bytes of entries after which a snapshot is taken. Default: 8 MiB.
    pub snapshot_bytes: usize,
    /// Bytes of entries over which a leader takes no commands. Default: 64 MiB.
    pub log_bytes_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(150),
            snapshot_entries: 1024,
            snapshot_bytes: 8 << 20,
            log_bytes_max: 64 << 20,
        }
    }
}

impl Settings {
    /// Returns them as openraft wants them.
    pub(crate) fn config(&self) -> Result<Config, StartError> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if self.heartbeat < Duration::from_millis(10) || self.snapshot_entries < 8 {
            return Err(StartError::Settings(
                "a heartbeat has at least 10 ms, and 8 entries at least make a snapshot".to_owned(),
            ));
        }
        let config = Config {
            cluster_name: "stead".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_min).saturating_mul(2),
            install_snapshot_timeout: 10_000,
            max_payload_entries: 256,
            replication_lag_threshold: self.snapshot_entries.saturating_mul(2),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.snapshot_entries / 8,
            purge_batch_size: 1,
            enable_tick: true,
            enable_heartbeat: true,
            enable_elect: true,
            ..Config::default()
        };
        config.validate().map_err(|error| StartError::Settings(error.to_string()))
    }
}
