//! Builds a node before it is opened.

use super::cluster::Entry;
use super::{CheckpointOptions, Node};
use crate::config::{
    CheckpointConfig, ClusterConfig, Config, ConfigError, Interval, MemoryConfig, ServiceConfig, nearest,
};
use crate::error::OpenError;
use crate::service::{Process, RegisteredTwice, Registry, Task};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use stead_cluster::NewService;
use stead_core::control::dial::{Acks, Durability};
use stead_core::ids::{ShardId, Time};
use stead_core::placement::Place;
use stead_core::shard::Settings;
use stead_net::network::{bind, check_loopback};
use stead_node::{CopyTarget, Life, MemoryLimits, NativeOptions, Options, ServiceLimits, SystemClock, Wall};
use stead_store::disk::Disk;
use stead_store::real_disk::RealDisk;

/// Options of a service. The configuration overrides them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceOptions {
    config: ServiceConfig,
    shards_when_new: Option<u32>,
}

impl ServiceOptions {
    /// Sets its number of shards: 1 to 4096. An existing service with another number is refused; only a restore changes
    /// it. To set a number for a new service only, use [`Self::shards_when_new`].
    #[must_use]
    pub fn shards(mut self, shards: u32) -> Self {
        self.config.shards = Some(shards);
        self
    }

    /// Sets its number of shards if it is new: 1 to 4096, 8 by default. An existing service keeps its number, for
    /// example that of a restore. [`Self::shards`] and the configuration override it.
    #[must_use]
    pub fn shards_when_new(mut self, shards: u32) -> Self {
        self.shards_when_new = Some(shards);
        self
    }

    /// Sets the number of replicas of each of its shards: 1 to 32, 1 by default. As long as the cluster has fewer nodes, there are fewer
    /// replicas.
    ///
    /// This, [`Self::acks`], [`Self::durability`], [`Self::max_lag`] and [`Self::lease`] are the dial with which a service begins that the
    /// cluster does not have yet; from then on [`Membership::set_dial`](crate::Membership::set_dial) and `stead service set` change it. A
    /// node without a cluster has one replica of each shard.
    #[must_use]
    pub fn replicas(mut self, replicas: u8) -> Self {
        self.config.replicas = Some(replicas);
        self
    }

    /// Sets the number of replicas that store an entry before its client is answered: at most [`Self::replicas`], a majority of them by
    /// default. With less than a majority the service is asynchronous: a failover may lose what it has answered, and announces that.
    #[must_use]
    pub fn acks(mut self, acks: Acks) -> Self {
        self.config.acks = Some(acks);
        self
    }

    /// Sets the time at which a replica syncs an entry to its disk: before it acknowledges it by default. Otherwise a power cut of too many
    /// nodes at once may lose what clients were answered, and that is announced. A node without a cluster always syncs.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.config.durability = Some(durability);
        self
    }

    /// Sets the greatest age of an answer that is read at a backup, and the greatest lag of the backups of an asynchronous service, above
    /// which it refuses writes: 1 ms to 24 h, 10 s by default.
    #[must_use]
    pub fn max_lag(mut self, lag: Duration) -> Self {
        self.config.max_lag = Some(lag);
        self
    }

    /// Sets the span of the leases of an asynchronous service's primaries, by which its failovers take longer: 1 ms to 1 h, 500 ms by
    /// default.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.config.lease = Some(lease);
        self
    }

    /// Sets the time after which a session expires without a request: 1 s to 30 days, 1 h by default.
    #[must_use]
    pub fn session_ttl(mut self, ttl: Duration) -> Self {
        self.config.session_ttl = Some(ttl);
        self
    }

    /// Sets the time that the reply to an idempotency key is kept: 1 s to 365 days, 24 h by default. A key that is used
    /// again later is a new request.
    #[must_use]
    pub fn idempotency_ttl(mut self, ttl: Duration) -> Self {
        self.config.idempotency_ttl = Some(ttl);
        self
    }

    /// Sets the number of attempts at a message, timer or task before it becomes a dead letter: 1 to 1000, 5 by
    /// default.
    #[must_use]
    pub fn attempts_max(mut self, attempts: u32) -> Self {
        self.config.attempts_max = Some(attempts);
        self
    }

    /// Sets the limit of the bytes of undelivered messages of a shard, above which clients' requests are refused as
    /// overloaded: 1 MiB to 64 GiB, 64 MiB by default.
    #[must_use]
    pub fn outbox_bytes_max(mut self, bytes: usize) -> Self {
        self.config.outbox_bytes_max = Some(bytes);
        self
    }

    /// Sets the limit of the bytes of replies that a shard keeps for retries, above which requests with a new
    /// idempotency key, or in a session that confirms nothing, are refused as
    /// [`Refusal::LimitReached`](crate::Refusal::LimitReached); half of it for one principal: 1 MiB to 64 GiB, 64 MiB
    /// by default.
    #[must_use]
    pub fn kept_bytes_max(mut self, bytes: usize) -> Self {
        self.config.kept_bytes_max = Some(bytes);
        self
    }

    /// Sets the maximum number of sessions of a shard; half of it for one principal: 2 to 16,777,216, 65,536 by
    /// default.
    #[must_use]
    pub fn sessions_max(mut self, sessions: usize) -> Self {
        self.config.sessions_max = Some(sessions);
        self
    }

    /// Sets the limit of the bytes of timers and tasks of a shard, above which clients' requests are refused: 1 MiB to
    /// 64 GiB, 256 MiB by default.
    #[must_use]
    pub fn waiting_bytes_max(mut self, bytes: usize) -> Self {
        self.config.waiting_bytes_max = Some(bytes);
        self
    }

    /// Sets the limit of the bytes of dead letters of a shard, above which clients' requests are refused until some are
    /// retried or deleted: 1 MiB to 64 GiB, 64 MiB by default.
    #[must_use]
    pub fn dead_letter_bytes_max(mut self, bytes: usize) -> Self {
        self.config.dead_letter_bytes_max = Some(bytes);
        self
    }
}

/// Builds a node; [`NodeBuilder::open`] starts it.
pub struct NodeBuilder {
    pub(crate) path: PathBuf,
    pub(crate) registry: Registry,
    pub(crate) services: BTreeMap<&'static str, ServiceOptions>,
    pub(crate) twice: Option<RegisteredTwice>,
    pub(crate) resting: BTreeSet<String>,
    pub(crate) config: Config,
    pub(crate) checkpoints: CheckpointOptions,
    pub(crate) threads: Option<usize>,
    pub(crate) task_threads: Option<usize>,
    pub(crate) handler_timeout: Option<Duration>,
    pub(crate) suspect_for: Option<Duration>,
    pub(crate) task_step_timeout: Option<Duration>,
    pub(crate) shutdown_timeout: Option<Duration>,
    pub(crate) memory: MemoryConfig,
    pub(crate) segment_bytes: Option<u64>,
    pub(crate) disk: Option<Arc<dyn Disk>>,
    pub(crate) wall: Option<Wall>,
    pub(crate) clock_confirm: Option<Duration>,
    pub(crate) native: Option<Listen>,
    pub(crate) cluster: ClusterConfig,
    pub(crate) join_timeout: Duration,
    pub(crate) stops: Arc<AtomicBool>,
    pub(crate) http: Option<SocketAddr>,
}

/// The place where a node listens for native clients.
pub(crate) enum Listen {
    At(SocketAddr),
    On(TcpListener),
}

/// Default number of threads that run the steps of tasks.
const TASK_THREADS_DEFAULT: usize = 16;

/// Default time in which a node has to enter its cluster.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Default number of shards of a new service.
const SHARDS_DEFAULT: u32 = 8;

impl NodeBuilder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            registry: Registry::new(),
            services: BTreeMap::new(),
            twice: None,
            resting: BTreeSet::new(),
            config: Config::default(),
            checkpoints: CheckpointOptions::default(),
            threads: None,
            task_threads: None,
            handler_timeout: None,
            suspect_for: None,
            task_step_timeout: None,
            shutdown_timeout: None,
            memory: MemoryConfig::default(),
            segment_bytes: None,
            disk: None,
            wall: None,
            clock_confirm: None,
            native: None,
            cluster: ClusterConfig::default(),
            join_timeout: JOIN_TIMEOUT,
            stops: Arc::default(),
            http: None,
        }
    }

    /// Adds a service.
    #[must_use]
    pub fn service<P: Process>(mut self, options: ServiceOptions) -> Self {
        if let Err(twice) = self.registry.service::<P>() {
            self.twice.get_or_insert(twice);
        }
        self.services.insert(P::SERVICE, options);
        self
    }

    /// Adds a task that processes may start.
    #[must_use]
    pub fn task<T: Task>(mut self) -> Self {
        if let Err(twice) = self.registry.task::<T>() {
            self.twice.get_or_insert(twice);
        }
        self
    }

    /// Allows the node to open data with a service or a waiting task of this name, for which it has no code. Clients of
    /// the service are refused, and its messages, timers and steps that come due become dead letters, which can be
    /// retried when the code is back: [`Client::retry_dead_letter`](crate::Client::retry_dead_letter).
    #[must_use]
    pub fn without_code(mut self, name: &str) -> Self {
        self.resting.insert(name.to_owned());
        self
    }

    /// Sets the interval and retention of checkpoints.
    #[must_use]
    pub fn checkpoints(mut self, options: CheckpointOptions) -> Self {
        self.checkpoints = options;
        self
    }

    /// Sets the number of worker threads, which own the shards: 1 to 256; by default one for each core.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Sets the number of threads that run the steps of tasks: 1 to 256, 16 by default, because most steps wait for
    /// other systems. Steps that compute share the cores with the workers: if all tasks compute, use half as many
    /// threads as cores.
    #[must_use]
    pub fn task_threads(mut self, threads: usize) -> Self {
        self.task_threads = Some(threads);
        self
    }

    /// Sets the time after an unclean shutdown during which clients' requests are suspected to have caused it: 0 s to 1
    /// h, 60 s by default. Each is then handled only once an attempt at it is on disk, and tasks that were running at
    /// that end wait until then.
    #[must_use]
    pub fn suspect_for(mut self, time: Duration) -> Self {
        self.suspect_for = Some(time);
        self
    }

    /// Sets the time limit of a handler, after which the process ends, and of a query, which is then given up: 10 ms to
    /// 1 h, 10 s by default.
    #[must_use]
    pub fn handler_timeout(mut self, limit: Duration) -> Self {
        self.handler_timeout = Some(limit);
        self
    }

    /// Sets the time limit of a step of a task, after which the process ends: 10 ms to 24 h, 10 min by default. After
    /// [`attempts_max`](ServiceOptions::attempts_max) such ends the task is given up.
    #[must_use]
    pub fn task_step_timeout(mut self, limit: Duration) -> Self {
        self.task_step_timeout = Some(limit);
        self
    }

    /// Sets the time that [`Node::shutdown`] waits for running steps of tasks: 0 s to 1 h, 10 s by default. A step that
    /// takes longer is repeated after the next start.
    #[must_use]
    pub fn shutdown_timeout(mut self, limit: Duration) -> Self {
        self.shutdown_timeout = Some(limit);
        self
    }

    /// Sets the limit of the bytes that wait in memory in all shards together, above which clients' calls are refused
    /// as overloaded: uncommitted entries, messages in outboxes, and clients' calls. 1 MiB to 1 TiB, 1 GiB by default.
    /// Messages, timers and steps continue, and a single call that exceeds the limit is accepted.
    #[must_use]
    pub fn memory_bytes_max(mut self, bytes: u64) -> Self {
        self.memory.bytes_max = Some(bytes);
        self
    }

    /// Sets the limit of the bytes of entries that wait for the log in all shards together, with the answers that wait
    /// for them, above which no handler begins until the log has caught up: 1 MiB to 1 TiB, 256 MiB by default. One
    /// shard has at most 64 MiB. The calls that reach the limit may exceed it.
    #[must_use]
    pub fn uncommitted_bytes_max(mut self, bytes: u64) -> Self {
        self.memory.uncommitted_bytes_max = Some(bytes);
        self
    }

    /// Sets the length of a log segment in bytes: a multiple of 4096 from 16 KiB to 1 GiB, 64 MiB by default.
    #[must_use]
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = Some(bytes);
        self
    }

    /// Serves clients in other processes by the native protocol, for [`Client::connect`](crate::Client::connect), at a
    /// loopback address; port 0 picks a free one, which [`Node::native_address`] returns. Off by default. The address is
    /// taken before the data are recovered: clients that connect meanwhile wait.
    #[must_use]
    pub fn listen_native(mut self, address: SocketAddr) -> Self {
        self.native = Some(Listen::At(address));
        self
    }

    /// As [`Self::listen_native`], on a socket that listens already, for example one that outlives the node.
    #[must_use]
    pub fn listen_native_on(mut self, listener: TcpListener) -> Self {
        self.native = Some(Listen::On(listener));
        self
    }

    /// Makes the node part of a cluster, whose other nodes reach it at a loopback address; port 0 picks a free one, which
    /// [`Node::cluster_address`] returns. A node with an empty data directory founds a cluster, unless [`Self::join`] names another
    /// node's address; from then on its data directory knows the cluster. So does one with the data of a node that was alone, which are
    /// those of the cluster then. Off by default: the node is alone.
    #[must_use]
    pub fn listen_cluster(mut self, address: SocketAddr) -> Self {
        self.cluster.listen = Some(address);
        self
    }

    /// Sets the loopback address for the messages of other nodes' shards; port 0 picks a free one at each start, which is the default.
    #[must_use]
    pub fn listen_peers(mut self, address: SocketAddr) -> Self {
        self.cluster.listen_peers = Some(address);
        self
    }

    /// Sets the loopback addresses at which other nodes reach this one, if they are others than those at which it listens, as behind
    /// a proxy: in the place of [`Self::listen_cluster`], and of [`Self::listen_peers`].
    #[must_use]
    pub fn advertise(mut self, cluster: SocketAddr, peers: SocketAddr) -> Self {
        (self.cluster.advertise, self.cluster.advertise_peers) = (Some(cluster), Some(peers));
        self
    }

    /// Names nodes of the cluster that a node with an empty data directory joins: their [`Node::cluster_address`]es, of which one that
    /// runs suffices. A node with data looks for its cluster there, too, as long as it knows no leader: addresses may have changed. Without [`Self::listen_cluster`] the node listens at a free port of 127.0.0.1.
    #[must_use]
    pub fn join(mut self, nodes: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.cluster.join = nodes.into_iter().collect();
        self
    }

    /// Sets the time in which [`Self::open`] has to enter the cluster, which needs more than half of the control plane's voters: 60 s
    /// by default.
    #[must_use]
    pub fn join_timeout(mut self, limit: Duration) -> Self {
        self.join_timeout = limit;
        self
    }

    /// Lets [`Self::open`] give up the entry into a cluster, with [`EnterError::Stopped`](crate::EnterError::Stopped), once this flag is
    /// set.
    #[must_use]
    pub fn stop_entry_at(mut self, stops: &Arc<AtomicBool>) -> Self {
        self.stops = Arc::clone(stops);
        self
    }

    /// Names the address at which this node's program serves clients over HTTP, so that other nodes can name it to clients.
    #[must_use]
    pub fn http_address(mut self, address: SocketAddr) -> Self {
        self.http = Some(address);
        self
    }

    /// Applies a configuration, which overrides the settings of the code.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        if let Some(path) = &config.data_dir {
            self.path.clone_from(path);
        }
        self.config = config;
        self
    }

    /// Returns the data directory: that of [`Self::config`] if it names one.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.path
    }

    /// Uses another disk than the data directory's: for tests.
    #[must_use]
    pub fn disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = Some(disk);
        self
    }

    /// Sets the time for which a wall clock that is more than an hour ahead of the shards' time must stay so before
    /// timers follow it, because it may be wrong: 0 to 24 h, 10 min by default. With 0 it is adopted at once.
    #[must_use]
    pub fn clock_confirm(mut self, time: Duration) -> Self {
        self.clock_confirm = Some(time);
        self
    }

    /// Uses another wall clock than the system's: for tests. It is read often, and may jump.
    #[must_use]
    pub fn wall_clock(mut self, clock: impl Fn() -> Time + Send + Sync + 'static) -> Self {
        self.wall = Some(Box::new(clock));
        self
    }

    /// Recovers the data directory, or creates it, and starts the node. Returns when all shards serve.
    ///
    /// # Errors
    /// [`OpenError`]; then no state, message or checkpoint has changed.
    pub fn open(self) -> Result<Node, OpenError> {
        self.open_without(BTreeMap::new())
    }

    /// As [`Self::open`], without the shards that are not on this node.
    pub(super) fn open_without(self, not_here: BTreeMap<ShardId, Place>) -> Result<Node, OpenError> {
        let config = self.merged()?;
        let options = self.options(&config);
        let new_service = |service: &ServiceLimits| {
            let (name, shards) = (service.name.clone(), service.shards.unwrap_or(service.when_new));
            let dial = config.services[&name].dial(&name)?;
            Ok::<_, ConfigError>(NewService { name, shards, dial })
        };
        let services = options.services.iter().map(new_service).collect::<Result<_, _>>()?;
        crate::descriptors::raise_limit();
        let Self { path, registry, disk, wall, native, join_timeout, stops, http, .. } = self;
        let native = match config.native.listen.map(Listen::At).or(native) {
            None => None,
            Some(Listen::At(address)) => Some(bind(address).map_err(OpenError::Address)?),
            Some(Listen::On(listener)) => {
                let address = listener.local_addr().map_err(OpenError::Native)?;
                check_loopback(address).map_err(OpenError::Address)?;
                Some(listener)
            }
        };
        let native = native.map(|listener| NativeOptions {
            listener: Arc::new(listener),
            connections_max: crate::descriptors::native_connections_max(),
        });
        let options = Options { not_here, native, ..options };
        let disk: Arc<dyn Disk> = match disk {
            Some(disk) => disk,
            None => {
                let failed = |source| OpenError::Directory { path: path.display().to_string(), source };
                Arc::new(RealDisk::open(&path).map_err(failed)?)
            }
        };
        let cluster = config.cluster;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listen = cluster.listen.or((!cluster.join.is_empty()).then_some(any));
        match listen {
            None => Ok(Node::new(Life::open(registry, disk, SystemClock::new(wall), options)?, None)),
            Some(listen) => {
                let entry = Entry { listen, cluster, http, services, wait: join_timeout, stops };
                super::cluster::open(registry, disk, wall, options, entry)
            }
        }
    }

    /// Returns the settings of code and configuration, and checks them.
    fn merged(&self) -> Result<Config, OpenError> {
        if let Some(twice) = &self.twice {
            return Err(twice.clone().into());
        }
        for name in self.config.services.keys() {
            if !self.services.contains_key(name.as_str()) {
                if self.config.services_of_variables.contains(name) {
                    tracing::warn!(
                        "a variable names service {name:?}, which this program does not have; it is ignored"
                    );
                    continue;
                }
                let hint = nearest(name, self.services.keys().copied());
                return Err(ConfigError::UnknownService { name: name.clone(), hint }.into());
            }
        }
        let config = &self.config;
        let set = &config.checkpoints;
        let merged = Config {
            data_dir: None,
            services_of_variables: BTreeSet::new(),
            threads: config.threads.or(self.threads),
            task_threads: config.task_threads.or(self.task_threads),
            handler_timeout: config.handler_timeout.or(self.handler_timeout),
            task_step_timeout: config.task_step_timeout.or(self.task_step_timeout),
            shutdown_timeout: config.shutdown_timeout.or(self.shutdown_timeout),
            clock_confirm: config.clock_confirm.or(self.clock_confirm),
            suspect_for: config.suspect_for.or(self.suspect_for),
            memory: MemoryConfig {
                bytes_max: config.memory.bytes_max.or(self.memory.bytes_max),
                uncommitted_bytes_max: config
                    .memory
                    .uncommitted_bytes_max
                    .or(self.memory.uncommitted_bytes_max),
            },
            native: config.native.clone(),
            cluster: self.cluster.merged(&config.cluster),
            log: crate::config::LogConfig { segment_bytes: config.log.segment_bytes.or(self.segment_bytes) },
            checkpoints: CheckpointConfig {
                interval: set.interval.or(self.checkpoints.interval.map(Interval::Every)),
                keep: Some(set.keep.unwrap_or(self.checkpoints.keep)),
                timeout: Some(set.timeout.unwrap_or(self.checkpoints.timeout)),
                bytes_per_second: Some(set.bytes_per_second.unwrap_or(self.checkpoints.bytes_per_second)),
                check_bytes_max: Some(set.check_bytes_max.unwrap_or(self.checkpoints.check_bytes_max)),
                copy_to: set.copy_to.clone().or_else(|| self.checkpoints.copy_to.clone()),
                copy_interval: Some(set.copy_interval.unwrap_or(self.checkpoints.copy_interval)),
                copy_keep: Some(set.copy_keep.unwrap_or(self.checkpoints.copy_keep)),
            },
            services: self
                .services
                .iter()
                .map(|(name, options)| {
                    ((*name).to_owned(), options.config.merged(config.services.get(*name)))
                })
                .collect(),
        };
        merged.check()?;
        merged.cluster.check()?;
        Ok(merged)
    }

    fn options(&self, merged: &Config) -> Options {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let standard = CheckpointOptions::default();
        let services = self.services.keys().map(|name| {
            let service = &merged.services[*name];
            let when_new = self.services[name].shards_when_new.unwrap_or(SHARDS_DEFAULT);
            let mut settings = service.settings();
            if let Some(time) = merged.suspect_for {
                settings.suspect_for = time.into();
            }
            ServiceLimits { name: (*name).to_owned(), shards: service.shards, when_new, settings }
        });
        let copies = merged.checkpoints.copy_to.clone().map(|address| CopyTarget {
            address,
            interval: merged.checkpoints.copy_interval.unwrap_or(standard.copy_interval),
            keep: merged.checkpoints.copy_keep.unwrap_or(standard.copy_keep),
        });
        let memory = MemoryLimits::default();
        Options {
            without_code: self.resting.clone(),
            not_here: BTreeMap::new(),
            replicated: BTreeMap::new(),
            in_cluster: false,
            native: None,
            listen_peers: None,
            copies,
            threads: merged.threads.unwrap_or(cores.min(256)),
            task_threads: merged.task_threads.unwrap_or(TASK_THREADS_DEFAULT),
            handler_timeout: merged.handler_timeout.unwrap_or(Duration::from_secs(10)),
            task_step_timeout: merged.task_step_timeout.unwrap_or(Duration::from_secs(600)),
            shutdown_timeout: merged.shutdown_timeout.unwrap_or(Config::SHUTDOWN_TIMEOUT),
            clock_confirm: merged.clock_confirm.unwrap_or(Settings::default().clock_confirm.into()),
            memory: MemoryLimits {
                bytes_max: merged.memory.bytes_max.unwrap_or(memory.bytes_max),
                uncommitted_bytes_max: merged
                    .memory
                    .uncommitted_bytes_max
                    .unwrap_or(memory.uncommitted_bytes_max),
            },
            segment_bytes: merged.log.segment_bytes.unwrap_or(64 << 20),
            checkpoints: CheckpointOptions {
                interval: merged.checkpoints.interval.and_then(Interval::time),
                keep: merged.checkpoints.keep.unwrap_or(standard.keep),
                timeout: merged.checkpoints.timeout.unwrap_or(standard.timeout),
                bytes_per_second: merged.checkpoints.bytes_per_second.unwrap_or(0),
                check_bytes_max: merged.checkpoints.check_bytes_max.unwrap_or(standard.check_bytes_max),
                ..standard
            },
            services: services.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_service_is_refused_in_a_file_and_ignored_in_a_variable() {
        let opened = |config| NodeBuilder::new(PathBuf::from("unused")).config(config).merged().map(drop);
        let variable = [("STEAD_CFG_SERVICES_BANK_SHARDS".to_owned(), "3".to_owned())];
        opened(Config::from_file_and_vars(None, variable).unwrap()).unwrap();
        let file = Config::from_toml("[services.bank]\nshards = 3", "test").unwrap();
        assert!(opened(file).unwrap_err().to_string().contains("bank"));
    }

    #[test]
    fn the_configuration_can_turn_off_the_interval_that_the_code_set() {
        let interval = |text: &str| {
            let config = Config::from_toml(text, "test").unwrap();
            let builder = NodeBuilder::new(PathBuf::from("unused")).config(config);
            builder.options(&builder.merged().unwrap()).checkpoints.interval
        };
        assert_eq!(interval(""), Some(Duration::from_secs(10)));
        assert_eq!(interval("[checkpoints]\ninterval = \"3s\""), Some(Duration::from_secs(3)));
        assert_eq!(interval("[checkpoints]\ninterval = \"off\""), None);
    }
}
