//! The figures of `/metrics`: the gateway's own, and the node's at the time of the request.

use super::measure_cluster;
use axum::http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt;
use std::time::Duration;
use stead::{CheckOutcome, Node, ServiceMetrics, ShardStatus, stderr};

/// The kind of an HTTP request to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Operation {
    Call,
    Query,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    /// Empty if there is no such service.
    service: String,
    operation: Operation,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfService {
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfShard {
    service: String,
    shard: u32,
}

/// Upper bounds of the buckets of a request's time, in seconds: from a query in memory to the longest timeout.
const SECONDS: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// The figures of a gateway.
pub(super) struct Measure {
    registry: Registry,
    answered: Family<Answered, Counter>,
    calls: Histogram,
    queries: Histogram,
}

impl Measure {
    pub(super) fn new(node: Node) -> Self {
        let mut registry = Registry::with_prefix("stead");
        let answered = Family::default();
        registry.register(
            "http_requests",
            "Calls and queries answered over HTTP, by service and status",
            answered.clone(),
        );
        let (calls, queries) = (Histogram::new(SECONDS), Histogram::new(SECONDS));
        registry.register("http_call_seconds", "Time from a call's head to its answer", calls.clone());
        registry.register("http_query_seconds", "Time from a query's head to its answer", queries.clone());
        registry.register_collector(Box::new(OfNode(node)));
        Self { registry, answered, calls, queries }
    }

    pub(super) fn answered(
        &self,
        service: String,
        operation: Operation,
        status: StatusCode,
        after: Duration,
    ) {
        self.answered.get_or_create(&Answered { service, operation, status: status.as_u16() }).inc();
        match operation {
            Operation::Call => &self.calls,
            Operation::Query => &self.queries,
        }
        .observe(after.as_secs_f64());
    }

    /// Returns the figures in the text format of OpenMetrics, which Prometheus reads.
    pub(super) fn exposition(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(16 << 10);
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The node's figures, read when they are requested.
struct OfNode(Node);

impl fmt::Debug for OfNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OfNode")
    }
}

impl Collector for OfNode {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counts = self.0.metrics();
        let counters = [
            ("log_writes", "Writes to the log", counts.log_writes),
            ("log_syncs", "Syncs of the log", counts.log_syncs),
            ("log_sync_microseconds", "Time of these writes and syncs together", counts.log_sync_micros),
            ("checkpoints", "Checkpoints completed", counts.checkpoints),
            ("checkpoints_failed", "Checkpoints given up", counts.checkpoints_failed),
            ("checkpoint_bytes", "Bytes written for checkpoints", counts.checkpoint_bytes),
            ("checkpoint_checks", "Checkpoints whose services' checks ended", counts.checkpoint_checks),
            (
                "checkpoint_checks_failed",
                "Those of them with a failed check",
                counts.checkpoint_checks_failed,
            ),
            ("checkpoints_unchecked", "Checkpoints that were not checked", counts.checkpoints_unchecked),
            (
                "queries_given_up",
                "Queries answered by the time limit or their deadline, not by the process",
                counts.queries_given_up,
            ),
            ("checkpoint_copies", "Checkpoints copied to other stores", counts.checkpoint_copies),
            ("checkpoint_copies_failed", "Copies that failed", counts.checkpoint_copies_failed),
            ("checkpoint_copy_bytes", "Bytes written for copies", counts.checkpoint_copy_bytes),
            (
                "stderr_lines_dropped",
                "Lines dropped because standard error could not be written",
                stderr::dropped(),
            ),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let status = self.0.status();
        let gauges = [
            (
                "checkpoint_stall_max_microseconds",
                "Longest time that a slice of a checkpoint held its worker",
                counts.checkpoint_stall_micros,
            ),
            (
                "worker_hold_max_microseconds",
                "Longest time that a worker did not look at its inbox",
                counts.worker_hold_micros,
            ),
            (
                "uncommitted_bytes",
                "Bytes of uncommitted entries, and of answers that wait for them",
                counts.uncommitted_bytes,
            ),
            ("outbox_bytes", "Bytes of messages in outboxes", counts.outbox_bytes),
            ("request_bytes", "Bytes of clients' calls that wait for their answer", counts.request_bytes),
            (
                "query_bytes",
                "Bytes of queries under way, and of the states that they read",
                counts.query_bytes,
            ),
            (
                "stuck_query_bytes",
                "Bytes of queries that were given up and still run, and of the states that they read",
                counts.stuck_query_bytes,
            ),
            ("queries_waiting", "Queries that wait for a thread", counts.queries_waiting),
            ("queries_stuck", "Queries that were given up and still run", counts.queries_stuck),
            ("uptime_seconds", "Time since the node was opened", status.uptime.as_secs()),
            ("disk_full", "1 if writes are refused because the disk is full", u64::from(status.full)),
            ("failed", "1 after a fatal error", u64::from(status.failure.is_some())),
            (
                "clock_doubted",
                "1 while the wall clock is so far ahead of the shards' time that timers do not follow it",
                u64::from(status.clock.doubted),
            ),
            ("log_bytes", "Bytes of the log's files", status.log.bytes),
            ("log_segments", "Segments of the log that are still needed", status.log.segments),
            ("log_reserve_bytes", "Bytes that can be appended before another segment", status.log.reserve),
            (
                "checkpoint_newest",
                "Number of the newest checkpoint; 0 before the first",
                status.checkpoint.unwrap_or(0),
            ),
            (
                "checkpoint_check_failing",
                "1 if a service's check failed at the last checkpoint that was checked, or is not run any more because it did not end",
                u64::from(
                    status.checkpoint_check.as_ref().is_some_and(|last| last.check == CheckOutcome::Failed),
                ),
            ),
            (
                "checkpoint_copied_newest",
                "Number of the newest checkpoint at checkpoints.copy_to; 0 if none was copied in this life",
                status.checkpoint_copies.as_ref().and_then(|copies| copies.newest).unwrap_or(0),
            ),
            (
                "checkpoint_copy_failing",
                "1 if the last attempt to copy to checkpoints.copy_to failed",
                u64::from(status.checkpoint_copies.as_ref().is_some_and(|copies| copies.failure.is_some())),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        encode_services(&self.0.service_metrics(), &status.shards, &mut encoder)?;
        encode_shards(&status.shards, &mut encoder)?;
        match self.0.cluster() {
            Some(cluster) => {
                measure_cluster::encode(&cluster.status(), &cluster.failovers_seen(), &mut encoder)
            }
            None => Ok(()),
        }
    }
}

type Figure<T> = (&'static str, &'static str, fn(&T) -> u64);

const SERVICE_COUNTERS: [Figure<ServiceMetrics>; 8] = [
    ("requests", "Clients' requests accepted", |service| service.requests),
    ("queries", "Clients' queries accepted", |service| service.queries),
    ("answers", "Answers given, refusals included", |service| service.answers),
    ("refusals", "Refusals given", |service| service.refusals),
    ("messages", "Messages sent to shards of any service, resends included", |service| service.messages),
    ("entries", "Entries appended to the log", |service| service.entries),
    ("entry_bytes", "Bytes of these entries", |service| service.entry_bytes),
    ("task_steps", "Steps of tasks that were run", |service| service.task_steps),
];

fn encode_services(
    services: &[ServiceMetrics],
    shards: &[ShardStatus],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let of = |service: &ServiceMetrics| OfService { service: service.service.clone() };
    for (name, help, figure) in SERVICE_COUNTERS {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for service in services {
            ConstCounter::new(figure(service)).encode(metric.encode_family(&of(service))?)?;
        }
    }
    for (name, help, figure) in SHARD_GAUGES {
        let name = name.replacen("shard_", "service_", 1);
        let help = format!("{help}, of all shards of a service");
        let mut metric = encoder.encode_descriptor(&name, &help, None, MetricType::Gauge)?;
        for service in services {
            let own = shards.iter().filter(|shard| shard.service == service.service);
            ConstGauge::new(own.map(figure).sum::<u64>()).encode(metric.encode_family(&of(service))?)?;
        }
    }
    Ok(())
}

/// A sum of these over the shards of a service would be meaningless.
const SHARD_CLOCKS: [Figure<ShardStatus>; 2] = [
    ("shard_clock_ahead_microseconds", "The wall clock's lead over the shard's time", |shard| {
        shard.clock_ahead_micros.max(0).unsigned_abs()
    }),
    ("shard_clock_behind_microseconds", "The shard's lead over the wall clock", |shard| {
        shard.clock_ahead_micros.min(0).unsigned_abs()
    }),
];

const SHARD_GAUGES: [Figure<ShardStatus>; 13] = [
    ("shard_records", "Records of all kinds", |shard| shard.records),
    ("shard_records_bytes", "Bytes of the records, keys included", |shard| shard.records_bytes),
    ("shard_outbox_messages", "Messages sent and not yet acknowledged", |shard| shard.outbox_messages),
    ("shard_outbox_bytes", "Bytes of these messages", |shard| shard.outbox_bytes),
    ("shard_waiting", "Messages, timers and steps that wait to be handled", |shard| shard.waiting),
    ("shard_dead_letters", "Causes that were given up", |shard| shard.dead_letters),
    ("shard_tasks", "Tasks that are not finished", |shard| shard.tasks_all),
    ("shard_dead_letters_bytes", "Bytes of the dead letters", |shard| shard.dead_letters_bytes),
    ("shard_sessions", "Open sessions", |shard| shard.sessions),
    ("shard_kept_bytes", "Bytes of replies that are kept for retries", |shard| shard.kept_bytes),
    ("shard_timers", "Timers that have not fired", |shard| shard.timers),
    ("shard_waiting_bytes", "Bytes of timers and tasks", |shard| shard.waiting_bytes),
    ("shard_slow_replicas", "Replicas on other nodes that lag far, or store nothing more", |shard| {
        shard.backups.iter().filter(|backup| backup.is_slow).count() as u64
    }),
];

fn encode_shards(shards: &[ShardStatus], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let of = |shard: &ShardStatus| OfShard { service: shard.service.clone(), shard: shard.shard };
    for (name, help, figure) in SHARD_GAUGES.into_iter().chain(SHARD_CLOCKS) {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for shard in shards {
            ConstGauge::new(figure(shard)).encode(metric.encode_family(&of(shard))?)?;
        }
    }
    let mut metric =
        encoder.encode_descriptor("shard_entries", "Committed entries", None, MetricType::Counter)?;
    for shard in shards {
        ConstCounter::new(shard.commit).encode(metric.encode_family(&of(shard))?)?;
    }
    Ok(())
}
