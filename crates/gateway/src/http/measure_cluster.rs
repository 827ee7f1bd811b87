//! The figures of a cluster in `/metrics`, as the node that is asked sees it.

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::collections::BTreeMap;
use std::fmt;
use stead::{ClusterStatus, NodeState};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCause {
    cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReplica {
    service: String,
    shard: u32,
    node: u32,
}

/// Encodes the figures. `failovers` are counted by cause.
pub(super) fn encode(
    status: &ClusterStatus,
    failovers: &BTreeMap<&'static str, u64>,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let count = |number: usize| number as u64;
    let without = status.shards.iter().filter(|shard| !shard.is_led());
    let mut failures = status.failovers.iter().rev().filter(|failover| failover.is_failure);
    let gauges = [
        (
            "cluster_control_leader",
            "Number of the node that leads the control plane; 0 if this node knows none",
            u64::from(status.leader.unwrap_or(0)),
        ),
        (
            "cluster_shards_without_primary",
            "Shards of all services that no primary leads in an epoch that is known to be active",
            count(without.count()),
        ),
        (
            "cluster_problems",
            "What is wrong with the cluster: see stead status",
            count(status.problems.len()),
        ),
        (
            "cluster_failover_last_microseconds",
            "Time of the last failover, from the notice of the failure until another epoch was active; 0 before the first",
            failures.find_map(|failover| failover.duration_us).unwrap_or(0),
        ),
    ];
    for (name, help, value) in gauges {
        let gauge = ConstGauge::new(value);
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
    }
    let mut metric = encoder.encode_descriptor("cluster_nodes", "Nodes by state", None, MetricType::Gauge)?;
    for state in NodeState::ALL {
        let nodes = status.nodes.iter().filter(|node| node.state == state).count();
        ConstGauge::new(count(nodes)).encode(metric.encode_family(&InState { state: state.name() })?)?;
    }
    let mut metric = encoder.encode_descriptor(
        "cluster_failovers",
        "Failovers and other changes of a primary by cause, since the node started and in the history that it found",
        None,
        MetricType::Counter,
    )?;
    for (&cause, &count) in failovers {
        ConstCounter::new(count).encode(metric.encode_family(&ByCause { cause })?)?;
    }
    let mut metric = encoder.encode_descriptor(
        "shard_replica_lag_entries",
        "Entries that a replica on another node is not known to have stored, of a shard that this node leads",
        None,
        MetricType::Gauge,
    )?;
    for shard in status.shards.iter().filter(|shard| shard.primary == Some(status.node)) {
        for lag in &shard.lags {
            let of = OfReplica { service: shard.service.clone(), shard: shard.shard, node: lag.node };
            ConstGauge::new(lag.entries).encode(metric.encode_family(&of)?)?;
        }
    }
    Ok(())
}
