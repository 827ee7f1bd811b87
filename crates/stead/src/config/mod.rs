//! Configuration: from code, a TOML file, and environment variables `STEAD_CFG_*`; later sources override earlier ones.

mod error;
mod ranges;
mod similar;
#[cfg(test)]
mod tests;
mod variables;

pub use error::ConfigError;
pub(crate) use similar::nearest;

use ranges::{address, range, time};
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_core::commit_tracker::EpochConfig;
use stead_core::control::dial::{Acks, Dial, Durability};
use stead_core::ids::Micros;
use stead_core::shard::Settings;
use stead_core::topology::Topology;
use toml::Value;
use variables::{OTHERS, PREFIX, PREFIX_OLD, nearest_key, path_of, set, unknown_key, warn_of_unknown};

/// A node's configuration. In files and variables, times are text with a unit: `250ms`, `10s`, `5m`, `24h`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The data directory; none by default, because the builder names one.
    pub data_dir: Option<PathBuf>,
    /// Worker threads, which own the shards: 1 to 256. Default: one for each core.
    pub threads: Option<usize>,
    /// Threads that run the steps of tasks: 1 to 256. Default 16.
    pub task_threads: Option<usize>,
    /// Time that a handler may run before the process ends, and a query before it is given up: 10 ms to 1 h. Default 10 s.
    #[serde(deserialize_with = "duration")]
    pub handler_timeout: Option<Duration>,
    /// Time that a step of a task may run before the process ends: 10 ms to 24 h. Default 10 min.
    #[serde(deserialize_with = "duration")]
    pub task_step_timeout: Option<Duration>,
    /// Time that a shutdown waits for running steps of tasks, and for open HTTP requests before them: 0 s to 1 h. Those
    /// that have not ended by then are abandoned; a step is repeated after the next start. Default 10 s.
    #[serde(deserialize_with = "duration")]
    pub shutdown_timeout: Option<Duration>,
    /// Time for which a wall clock that is more than an hour ahead of the shards' time must stay so before timers follow it,
    /// because it may be wrong: 0 to 24 h. With 0 it is adopted at once. Default 10 min.
    #[serde(deserialize_with = "duration")]
    pub clock_confirm: Option<Duration>,
    /// Time after an unclean shutdown during which clients' requests are suspected to have caused it: each is then
    /// handled only once an attempt at it is on disk. Tasks that were running at that end wait until then. 0 s to 1 h.
    /// Default 60 s.
    #[serde(deserialize_with = "duration")]
    pub suspect_for: Option<Duration>,
    /// Limits of the bytes that wait in memory.
    pub memory: MemoryConfig,
    /// Clients over the network.
    pub native: NativeConfig,
    /// Other nodes.
    pub cluster: ClusterConfig,
    /// The log.
    pub log: LogConfig,
    /// Checkpoints.
    pub checkpoints: CheckpointConfig,
    /// Services, by name.
    pub services: BTreeMap<String, ServiceConfig>,
    /// Services that only variables name. One that the program does not have is ignored with a warning, while one in a
    /// file is refused. Empty by default.
    #[serde(skip)]
    pub services_of_variables: BTreeSet<String>,
}

/// Settings of the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// Limit of the bytes of uncommitted entries, of messages in outboxes and of clients' calls in all shards together,
    /// above which clients' calls are refused as overloaded: 1 MiB to 1 TiB. Default 1 GiB.
    pub bytes_max: Option<u64>,
    /// Limit of the bytes of uncommitted entries in all shards together, with the answers that wait for them, above
    /// which no handler begins until the log has caught up: 1 MiB to 1 TiB. Default 256 MiB.
    pub uncommitted_bytes_max: Option<u64>,
}

/// Settings of the native protocol, by which [`Client::connect`](crate::Client::connect) calls a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NativeConfig {
    /// Loopback address at which the node serves such clients, as in `127.0.0.1:7421`; port 0 picks a free one. Default: none.
    pub listen: Option<SocketAddr>,
}

/// Settings of a node of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Loopback address at which other nodes reach this one, as in `127.0.0.1:7430`; port 0 picks a free one. Default: none, and the
    /// node is alone.
    pub listen: Option<SocketAddr>,
    /// Addresses of nodes of the cluster, at which a node with an empty data directory asks to join, and one with data looks for
    /// its cluster, too; several are separated by commas in a variable. Default: none, and a node with an empty data directory founds a cluster.
    #[serde(deserialize_with = "addresses")]
    pub join: Vec<SocketAddr>,
    /// Loopback address for the messages of other nodes' shards; port 0 picks a free one at each start. Default: port 0 of the address
    /// of `listen`.
    pub listen_peers: Option<SocketAddr>,
    /// Loopback address at which other nodes reach what listens at `listen`, if it is another one, as behind a proxy. Default: the
    /// address of `listen`.
    pub advertise: Option<SocketAddr>,
    /// Loopback address at which other nodes reach what listens at `listen_peers`, if it is another one. Default: the address of
    /// `listen_peers`.
    pub advertise_peers: Option<SocketAddr>,
}

impl ClusterConfig {
    /// Returns the settings of `over`, and these where it has none.
    #[must_use]
    pub fn merged(&self, over: &Self) -> Self {
        Self {
            listen: over.listen.or(self.listen),
            join: if over.join.is_empty() { self.join.clone() } else { over.join.clone() },
            listen_peers: over.listen_peers.or(self.listen_peers),
            advertise: over.advertise.or(self.advertise),
            advertise_peers: over.advertise_peers.or(self.advertise_peers),
        }
    }

    /// Checks the settings of code and configuration together.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.listen.is_some() || !self.join.is_empty() {
            return Ok(());
        }
        let others = [
            ("cluster.listen_peers", self.listen_peers),
            ("cluster.advertise", self.advertise),
            ("cluster.advertise_peers", self.advertise_peers),
        ];
        match others.into_iter().find_map(|(key, address)| address.map(|_| key)) {
            Some(key) => Err(ConfigError::Alone { key }),
            None => Ok(()),
        }
    }
}

/// Settings of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Bytes of a segment: a multiple of 4096 from 16 KiB to 1 GiB. Default 64 MiB.
    pub segment_bytes: Option<u64>,
}

/// Settings of the checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Time from one checkpoint's beginning to the next: 10 ms to 7 days, or `off`: only on request. Default 10 s.
    #[serde(deserialize_with = "interval")]
    pub interval: Option<Interval>,
    /// Number of checkpoints to keep: 1 to 10,000. Default 3.
    pub keep: Option<usize>,
    /// Time after which a checkpoint is given up: 100 ms to 1 day. Default 10 min.
    #[serde(deserialize_with = "duration")]
    pub timeout: Option<Duration>,
    /// Maximum number of bytes that are written for checkpoints each second; 0 means no limit. Default 0.
    pub bytes_per_second: Option<u64>,
    /// Maximum size in bytes of a checkpoint of the interval over which the services' checks run in the background; 0
    /// for never. Default 1 GiB.
    pub check_bytes_max: Option<u64>,
    /// Target of copies of checkpoints, besides the local ones: `file:///directory` or `s3://bucket/prefix`.
    /// Default: none.
    pub copy_to: Option<String>,
    /// Time from one copy's beginning to the next: 10 ms to 7 days. Default 5 min.
    #[serde(deserialize_with = "duration")]
    pub copy_interval: Option<Duration>,
    /// Number of checkpoints to keep at `copy_to`: 1 to 10,000. Default 10.
    pub copy_keep: Option<usize>,
}

/// The interval of a repeated action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    /// Only on request; `off` in files and variables.
    Off,
    /// Repeated after this time.
    Every(Duration),
}

impl Interval {
    /// Returns the time, unless it is off.
    #[must_use]
    pub fn time(self) -> Option<Duration> {
        match self {
            Self::Off => None,
            Self::Every(time) => Some(time),
        }
    }
}

/// Settings of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceConfig {
    /// Shards of a new service: 1 to 4096. Default 8.
    pub shards: Option<u32>,
    /// Replicas of each shard of a service that is new in a cluster: 1 to 32. As long as there are fewer nodes, there are fewer
    /// replicas. This and the four that follow are the dial with which such a service begins; from then on `stead service set`
    /// changes it. A node without a cluster has one replica of each shard. Default 1.
    pub replicas: Option<u8>,
    /// Replicas that store an entry before its client is answered: a number up to `replicas`, or `majority`. Default `majority`.
    #[serde(deserialize_with = "acks")]
    pub acks: Option<Acks>,
    /// The time at which a replica syncs an entry to its disk: `always` before it acknowledges it, at an `interval` of 100 ms, or `never`
    /// by itself. Without `always`, a power cut of too many nodes at once may lose what clients were answered, and that is announced. A
    /// node without a cluster always syncs. Default `always`.
    #[serde(deserialize_with = "durability")]
    pub durability: Option<Durability>,
    /// The greatest age of an answer that is read at a backup, and the greatest lag of the backups of a service whose `acks` are less
    /// than a majority: 1 ms to 24 h. Default 10 s.
    #[serde(deserialize_with = "duration")]
    pub max_lag: Option<Duration>,
    /// The span of the leases of the primaries of such a service, by which its failovers take longer: 1 ms to 1 h. Default 500 ms.
    #[serde(deserialize_with = "duration")]
    pub lease: Option<Duration>,
    /// Time after which a session expires without a request: 1 s to 30 days. Default 1 h.
    #[serde(deserialize_with = "duration")]
    pub session_ttl: Option<Duration>,
    /// Time that the reply to an idempotency key is kept: 1 s to 365 days. Default 24 h.
    #[serde(deserialize_with = "duration")]
    pub idempotency_ttl: Option<Duration>,
    /// Number of attempts at a message, timer or task before it becomes a dead letter: 1 to 1000. Default 5.
    pub attempts_max: Option<u32>,
    /// Limit of the bytes of undelivered messages of a shard, above which clients' requests are refused as overloaded:
    /// 1 MiB to 64 GiB. Default 64 MiB.
    pub outbox_bytes_max: Option<usize>,
    /// Limit of the bytes of replies that a shard keeps for retries, above which requests with a new idempotency key,
    /// or in a session that confirms nothing, are refused; half of it for one principal: 1 MiB to 64 GiB. Default 64
    /// MiB.
    pub kept_bytes_max: Option<usize>,
    /// Maximum number of sessions of a shard; half of it for one principal: 2 to 16777216. Default 65536.
    pub sessions_max: Option<usize>,
    /// Limit of the bytes of timers and tasks of a shard, above which clients' requests are refused: 1 MiB to 64 GiB.
    /// Default 256 MiB.
    pub waiting_bytes_max: Option<usize>,
    /// Limit of the bytes of dead letters of a shard, above which clients' requests are refused until some are retried
    /// or deleted: 1 MiB to 64 GiB. Default 64 MiB.
    pub dead_letter_bytes_max: Option<usize>,
}

impl Config {
    /// Default of [`Config::shutdown_timeout`].
    pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

    /// Reads a TOML file.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read, has unknown keys, or values out of range.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let (table, place) = read_file(path.as_ref())?;
        Self::from_table(table, &place)
    }

    /// Reads TOML text; `place` names it in errors.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn from_toml(text: &str, place: &str) -> Result<Self, ConfigError> {
        Self::from_table(parse(text, place)?, place)
    }

    /// Reads a TOML file, if one is named, and the environment's variables, which override it: `STEAD_CFG_THREADS=4`,
    /// `STEAD_CFG_CHECKPOINTS_INTERVAL=1s`, `STEAD_CFG_SERVICES_BANK_SHARDS=16`. Variables without `CFG_` are read too,
    /// and overridden by those with it. Other variables that begin with `STEAD_` are ignored with a warning.
    ///
    /// # Errors
    /// As [`Self::from_file`], also for values of variables.
    pub fn from_file_and_env(path: Option<&Path>) -> Result<Self, ConfigError> {
        let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        let own = std::env::vars_os().filter_map(text).filter(|(name, _)| name.starts_with(PREFIX_OLD));
        // No setting accepts a value that is not UTF-8; the error shows it as far as it is.
        Self::from_file_and_vars(path, own.map(|(name, value)| (name, value.to_string_lossy().into_owned())))
    }

    /// As [`Self::from_file_and_env`], with the given variables.
    ///
    /// # Errors
    /// As [`Self::from_file_and_env`].
    pub fn from_file_and_vars(
        path: Option<&Path>,
        vars: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let (mut table, place) = match path {
            Some(path) => read_file(path)?,
            None => (toml::Table::new(), "the environment".to_owned()),
        };
        let mut config = Self::from_table(table.clone(), &place)?;
        let in_file: BTreeSet<String> = config.services.keys().cloned().collect();
        let mut settings = Vec::new();
        let mut unknown = Vec::new();
        for (name, value) in vars {
            let (rank, key) = match (name.strip_prefix(PREFIX), name.strip_prefix(PREFIX_OLD)) {
                (Some(key), _) => (1, key),
                (None, Some(key)) if !OTHERS.contains(&name.as_str()) => (0, key),
                _ => continue,
            };
            match path_of(key) {
                Some(path) => settings.push((rank, name, path, value)),
                None => unknown.push(name),
            }
        }
        settings.sort();
        for (_, name, path, value) in settings {
            set(&mut table, &path, &value);
            // One by one, so that an error names its variable.
            config = Self::from_table(table.clone(), &format!("variable {name}"))?;
        }
        unknown.sort();
        warn_of_unknown(&unknown);
        config.services_of_variables =
            config.services.keys().filter(|name| !in_file.contains(*name)).cloned().collect();
        Ok(config)
    }

    fn from_table(table: toml::Table, place: &str) -> Result<Self, ConfigError> {
        let config: Self = Value::Table(table).try_into().map_err(|error: toml::de::Error| {
            let reason = error.message().to_owned();
            ConfigError::Invalid {
                place: place.to_owned(),
                hint: unknown_key(&reason).and_then(nearest_key),
                reason,
            }
        })?;
        config.check()?;
        Ok(config)
    }

    /// Checks the ranges, whatever the source of the configuration.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let hour = Duration::from_secs(3600);
        let second = Duration::from_secs(1);
        range("threads", self.threads, 1..=256, "1 to 256")?;
        range("task_threads", self.task_threads, 1..=256, "1 to 256")?;
        time("handler_timeout", self.handler_timeout, Duration::from_millis(10), hour, "10ms to 1h")?;
        time(
            "task_step_timeout",
            self.task_step_timeout,
            Duration::from_millis(10),
            hour * 24,
            "10ms to 24h",
        )?;
        time("shutdown_timeout", self.shutdown_timeout, Duration::ZERO, hour, "0s to 1h")?;
        time("clock_confirm", self.clock_confirm, Duration::ZERO, hour * 24, "0s to 24h")?;
        time("suspect_for", self.suspect_for, Duration::ZERO, hour, "0s to 1h")?;
        for (key, value) in [
            ("memory.bytes_max", self.memory.bytes_max),
            ("memory.uncommitted_bytes_max", self.memory.uncommitted_bytes_max),
        ] {
            range(key, value, 1 << 20..=1 << 40, "1 MiB to 1 TiB")?;
        }
        range("log.segment_bytes", self.log.segment_bytes, 16 << 10..=1 << 30, "16 KiB to 1 GiB")?;
        let checkpoints = &self.checkpoints;
        time(
            "checkpoints.interval",
            checkpoints.interval.and_then(Interval::time),
            Duration::from_millis(10),
            hour * 168,
            "10ms to 168h, or off",
        )?;
        time(
            "checkpoints.timeout",
            checkpoints.timeout,
            Duration::from_millis(100),
            hour * 24,
            "100ms to 24h",
        )?;
        range("checkpoints.keep", checkpoints.keep, 1..=10_000, "1 to 10000")?;
        address("checkpoints.copy_to", checkpoints.copy_to.as_deref())?;
        let (min, max) = (Duration::from_millis(10), hour * 168);
        time("checkpoints.copy_interval", checkpoints.copy_interval, min, max, "10ms to 168h")?;
        range("checkpoints.copy_keep", checkpoints.copy_keep, 1..=10_000, "1 to 10000")?;
        for (name, service) in &self.services {
            let key = |field: &str| format!("services.{name}.{field}");
            range(&key("shards"), service.shards, 1..=Topology::SHARDS_MAX, "1 to 4096")?;
            let members = 1..=EpochConfig::MEMBERS_MAX as u8;
            range(&key("replicas"), service.replicas, members.clone(), "1 to 32")?;
            if let Some(Acks::Count(acks)) = service.acks {
                range(&key("acks"), Some(acks), members, "1 to 32, or majority")?;
            }
            let milli = Duration::from_millis(1);
            time(&key("max_lag"), service.max_lag, milli, hour * 24, "1ms to 24h")?;
            time(&key("lease"), service.lease, milli, hour, "1ms to 1h")?;
            time(&key("session_ttl"), service.session_ttl, second, hour * 720, "1s to 720h")?;
            time(&key("idempotency_ttl"), service.idempotency_ttl, second, hour * 8760, "1s to 8760h")?;
            range(&key("attempts_max"), service.attempts_max, 1..=1000, "1 to 1000")?;
            let bytes = [
                ("outbox_bytes_max", service.outbox_bytes_max),
                ("kept_bytes_max", service.kept_bytes_max),
                ("waiting_bytes_max", service.waiting_bytes_max),
                ("dead_letter_bytes_max", service.dead_letter_bytes_max),
            ];
            for (name, value) in bytes {
                range(&key(name), value, 1 << 20..=64 << 30, "1 MiB to 64 GiB")?;
            }
            range(&key("sessions_max"), service.sessions_max, 2..=1 << 24, "2 to 16777216")?;
        }
        Ok(())
    }
}

impl ServiceConfig {
    /// Returns the values of `over` where it has some, otherwise these.
    pub(crate) fn merged(&self, over: Option<&Self>) -> Self {
        let Some(over) = over else { return self.clone() };
        Self {
            shards: over.shards.or(self.shards),
            replicas: over.replicas.or(self.replicas),
            acks: over.acks.or(self.acks),
            durability: over.durability.or(self.durability),
            max_lag: over.max_lag.or(self.max_lag),
            lease: over.lease.or(self.lease),
            session_ttl: over.session_ttl.or(self.session_ttl),
            idempotency_ttl: over.idempotency_ttl.or(self.idempotency_ttl),
            attempts_max: over.attempts_max.or(self.attempts_max),
            outbox_bytes_max: over.outbox_bytes_max.or(self.outbox_bytes_max),
            kept_bytes_max: over.kept_bytes_max.or(self.kept_bytes_max),
            sessions_max: over.sessions_max.or(self.sessions_max),
            waiting_bytes_max: over.waiting_bytes_max.or(self.waiting_bytes_max),
            dead_letter_bytes_max: over.dead_letter_bytes_max.or(self.dead_letter_bytes_max),
        }
    }

    /// Returns the dial of a service.
    ///
    /// # Errors
    /// [`ConfigError::Dial`] for one that is impossible.
    pub(crate) fn dial(&self, service: &str) -> Result<Dial, ConfigError> {
        let standard = Dial::default();
        let dial = Dial {
            replicas: self.replicas.unwrap_or(standard.replicas),
            acks: self.acks.unwrap_or(standard.acks),
            max_lag: self.max_lag.map_or(standard.max_lag, Into::into),
            lease: self.lease.map_or(standard.lease, Into::into),
            durability: self.durability.unwrap_or(standard.durability),
        };
        let impossible = |reason| ConfigError::Dial { service: service.to_owned(), reason };
        dial.check().map_err(impossible)?;
        Ok(dial)
    }

    pub(crate) fn settings(&self) -> Settings {
        let standard = Settings::default();
        let span = |time: Option<Duration>, standard| time.map_or(standard, Micros::from);
        Settings {
            session_ttl: span(self.session_ttl, standard.session_ttl),
            idempotency_ttl: span(self.idempotency_ttl, standard.idempotency_ttl),
            attempts_max: self.attempts_max.unwrap_or(standard.attempts_max),
            outbox_bytes_max: self.outbox_bytes_max.unwrap_or(standard.outbox_bytes_max),
            kept_bytes_max: self.kept_bytes_max.unwrap_or(standard.kept_bytes_max),
            sessions_max: self.sessions_max.unwrap_or(standard.sessions_max),
            waiting_bytes_max: self.waiting_bytes_max.unwrap_or(standard.waiting_bytes_max),
            dead_letter_bytes_max: self.dead_letter_bytes_max.unwrap_or(standard.dead_letter_bytes_max),
            ..standard
        }
    }
}

fn read_file(path: &Path) -> Result<(toml::Table, String), ConfigError> {
    let place = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::File { path: place.clone(), reason: error.to_string() })?;
    Ok((parse(&text, &place)?, place))
}

fn parse(text: &str, place: &str) -> Result<toml::Table, ConfigError> {
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let place = line.map_or_else(|| place.to_owned(), |line| format!("{place}:{line}"));
        ConfigError::Invalid { place, reason: error.message().to_owned(), hint: None }
    })
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

/// Reads a list of addresses, or a text in which commas separate them.
fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Addresses {
        List(Vec<SocketAddr>),
        Text(String),
    }
    match Addresses::deserialize(deserializer)? {
        Addresses::List(list) => Ok(list),
        Addresses::Text(text) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            let parse = |part: &str| {
                let reason =
                    |_| serde::de::Error::custom(format!("{part:?} is no address, as 127.0.0.1:7430 is"));
                part.parse().map_err(reason)
            };
            parts.map(parse).collect()
        }
    }
}

/// Reads a number of replicas, or `majority`.
fn acks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Acks>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Count(u8),
        Text(String),
    }
    match Value::deserialize(deserializer) {
        Ok(Value::Count(count)) => Ok(Some(Acks::Count(count))),
        Ok(Value::Text(text)) if text == "majority" => Ok(Some(Acks::Majority)),
        Ok(Value::Text(_)) | Err(_) => {
            Err(serde::de::Error::custom("acks are a number of replicas, 1 to 32, or \"majority\""))
        }
    }
}

/// Reads the name of a durability.
fn durability<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Durability>, D::Error> {
    let name = String::deserialize(deserializer)?;
    let durability = Durability::of_name(&name);
    let wrong = || serde::de::Error::custom("a durability is \"always\", \"interval\" or \"never\"");
    durability.map(Some).ok_or_else(wrong)
}

fn interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Interval>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "off" {
        return Ok(Some(Interval::Off));
    }
    let wrong = |reason| serde::de::Error::custom(format!("{reason}, or off"));
    parse_duration(&text).map(|time| Some(Interval::Every(time))).map_err(wrong)
}

/// Parses a time: a whole number and its unit, `ms`, `s`, `m` or `h`.
///
/// # Errors
/// A sentence with the reason.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let refuse = || {
        format!("invalid duration {text:?}; write a whole number and its unit, as in 250ms, 10s, 5m or 24h")
    };
    let number: u64 = text[..digits].parse().map_err(|_| refuse())?;
    let millis = match text[digits..].trim() {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    millis.map(Duration::from_millis).ok_or_else(refuse)
}
