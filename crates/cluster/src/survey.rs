//! The survey of a cluster from one of its nodes: what all agree on, and what each node knows besides.

use crate::address::Addresses;
use crate::enter::Membership;
use crate::look::{Judgement, Led, Look};
use crate::problems::problems;
use crate::status::{
    ClusterStatus, FailoverReport, Loss, NodeState, NodeStatus, ReplicaLag, ServiceDial, ShardPlaces,
};
use std::collections::BTreeMap;
use std::time::Duration;
use stead_control::Role;
use stead_core::control::ControlState;
use stead_core::control::failover::{Cause, Failover};
use stead_core::control::shard::{ShardRecord, Stage};
use stead_core::ids::{Index, NodeId, ReplicaId, ShardId, Time};
use stead_core::replication::table::LogPoint;
use stead_core::topology::Service;

/// The time for which a node waits for what the others know: longer than each of them waits for its workers.
const SURVEY_WAIT: Duration = Duration::from_millis(300);

/// The figures of the nodes that answer.
#[derive(Default)]
struct Known {
    /// The judgement of the control plane's leader.
    judgement: Option<Judgement>,
    /// The time at which each node began.
    begun: BTreeMap<NodeId, Time>,
    /// The number of the first shards that each node knows.
    shards: BTreeMap<NodeId, u32>,
    led: BTreeMap<ShardId, Led>,
}

impl Known {
    fn of(looks: Vec<Look>, leader: Option<NodeId>) -> Self {
        let mut known = Self::default();
        for look in looks {
            known.begun.insert(look.node, look.begun);
            known.shards.extend(look.shards.map(|shards| (look.node, shards)));
            if Some(look.node) == leader {
                known.judgement = look.judgement;
            }
            for led in look.led {
                let other = known.led.get(&led.shard);
                // One that does not know yet that it is deposed may answer, too.
                if other.is_none_or(|other| other.epoch < led.epoch) {
                    known.led.insert(led.shard, led);
                }
            }
        }
        known
    }

    fn failed(&self, node: NodeId) -> Option<(Cause, Time)> {
        let mut failed = self.judgement.iter().flat_map(|judgement| &judgement.failed);
        failed.find(|(other, ..)| *other == node).map(|(_, cause, since)| (*cause, *since))
    }
}

impl Membership {
    /// Returns the condition of the cluster, as this node sees it. Asks the other nodes, and waits for their answers: up to 300 ms if one
    /// of them hangs.
    #[must_use]
    pub fn status(&self) -> ClusterStatus {
        let looks = self.look(SURVEY_WAIT);
        let newest = self.plane().newest();
        let state = &*newest.state;
        let status = self.plane().status();
        let leader = if status.role == Role::Leader { Some(self.node()) } else { status.leader };
        let known = Known::of(looks, leader);
        let closed: Vec<_> = self.peers().into_iter().filter(|peer| peer.is_closed).collect();
        let nodes = state.nodes().iter().map(|(&node, record)| {
            let addresses = Addresses::of_texts(&record.addresses);
            let has = |(_, shard): &(ShardId, &ShardRecord)| {
                shard.replicas().values().any(|placed| placed.node == node && placed.stage != Stage::Released)
            };
            let leads = |(_, shard): &(ShardId, &ShardRecord)| shard.primary_node() == Some(node);
            let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
            let is_connected = closed.iter().all(|peer| peer.node != node);
            let failed = known.failed(node);
            let node_state = match failed {
                Some(_) => NodeState::Failed,
                None if known.judgement.is_none() && !is_connected => NodeState::Unknown,
                None if record.is_leaving => NodeState::Leaving,
                None => NodeState::Up,
            };
            let since = failed.map(|(_, since)| since).or_else(|| known.begun.get(&node).copied());
            NodeStatus {
                node: node.0,
                state: node_state,
                cause: failed.map(|(cause, _)| cause.name()),
                since_ms: since.map(|since| since.0 / 1_000),
                cluster: addresses.map(|addresses| addresses.cluster),
                clients: addresses.and_then(|addresses| addresses.clients),
                http: addresses.and_then(|addresses| addresses.http),
                lives: record.life.0,
                votes: status.voters.contains(&node),
                is_connected,
                is_leaving: record.is_leaving,
                primaries: count(state.shards().filter(leads).count()),
                replicas: count(state.shards().filter(has).count()),
                unknown_services: unknown_services(state, known.shards.get(&node)),
            }
        });
        let mut status = ClusterStatus {
            problems: Vec::new(),
            cluster: state.cluster().map(|cluster| format!("{:032x}", cluster.id.0)).unwrap_or_default(),
            node: self.node().0,
            leader: leader.map(|leader| leader.0),
            is_balancing: state.is_balancing(),
            nodes: nodes.collect(),
            services: services(state),
            shards: state.shards().map(|(id, shard)| places(state, &known, id, shard)).collect(),
            failovers: state.failovers().iter().map(report).collect(),
        };
        status.problems = problems(&status);
        status
    }
}

/// Returns the services of which a node that knows so many shards does not know all.
fn unknown_services(state: &ControlState, shards: Option<&u32>) -> Vec<String> {
    let is_unknown =
        |service: &&Service| shards.is_some_and(|known| service.first.0 + service.shards > *known);
    state.topology().services().iter().filter(is_unknown).map(|service| service.name.clone()).collect()
}

fn services(state: &ControlState) -> Vec<ServiceDial> {
    let services = state.topology().services().iter().zip(state.dials());
    let services = services.map(|(service, dial)| {
        ServiceDial::new(service.name.clone(), (service.first.0, service.shards), dial)
    });
    services.collect()
}

fn places(state: &ControlState, known: &Known, id: ShardId, shard: &ShardRecord) -> ShardPlaces {
    let config = &shard.history().newest().config;
    let service = state.topology().service_of(id).map(|service| state.topology().service(service));
    let node_of = |replica| shard.replicas().get(&replica).map(|placed| placed.node.0);
    let led = known.led.get(&id).filter(|led| led.epoch == config.epoch());
    let lag = |led: &Led, (replica, stored): &(ReplicaId, Index)| {
        Some(ReplicaLag { node: node_of(*replica)?, entries: led.last.0.saturating_sub(stored.0) })
    };
    let lags = led.map(|led| led.backups.iter().filter_map(|backup| lag(led, backup)).collect());
    let mut stuck = known.judgement.iter().flat_map(|judgement| &judgement.stuck);
    ShardPlaces {
        shard: id.0,
        service: service.map(|service| service.name.clone()).unwrap_or_default(),
        epoch: config.epoch().0,
        is_active: shard.is_settled(),
        primary: shard.primary_node().map(|node| node.0),
        members: config.members().iter().filter_map(|member| node_of(*member)).collect(),
        learners: shard.learners().filter_map(node_of).collect(),
        acks: config.acks(),
        last: led.map(|led| led.last.0),
        lags: lags.unwrap_or_default(),
        stuck: stuck.find(|(shard, _)| *shard == id).map(|(_, reason)| reason.clone()),
    }
}

fn report(failover: &Failover) -> FailoverReport {
    FailoverReport {
        shard: failover.shard.0,
        epoch: failover.epoch.0,
        cause: failover.cause.to_string(),
        cause_name: failover.cause.name(),
        is_failure: failover.cause.is_failure(),
        from: failover.from.map(|node| node.0),
        to: failover.to.0,
        noticed_ms: failover.noticed.0 / 1_000,
        duration_us: failover.duration.map(|duration| duration.0),
        may_have_lost: !failover.losses.is_empty(),
        losses: failover.losses.iter().map(loss).collect(),
        is_forced: failover.is_forced,
    }
}

fn loss(survived: &LogPoint) -> Loss {
    Loss { epoch: survived.epoch.0, survived: survived.index.0 }
}
