//! The requests of operators to a cluster, at any of its nodes.

use crate::enter::Membership;
use crate::status::ServiceDial;
use std::time::{Duration, Instant};
use stead_control::ProposeError;
use stead_core::control::dial::{Acks, Dial, Durability};
use stead_core::control::facts::Fact;
use stead_core::control::{Command, Outcome, Refusal};
use stead_core::ids::{Epoch, Micros, NodeId, ShardId};

/// A change of a service's dial: what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DialChange {
    /// The replicas of each shard: 1 to 32.
    pub replicas: Option<u8>,
    /// The replicas that store an entry before its client is answered: `Some(None)` for more than half of them.
    pub acks: Option<Option<u8>>,
    /// The time at which an entry is synced.
    pub durability: Option<Durability>,
    /// The greatest age of an answer that is read at a backup, and the greatest lag of an asynchronous service's backups.
    pub max_lag: Option<Duration>,
    /// The span of the leases of an asynchronous service's primaries.
    pub lease: Option<Duration>,
}

impl DialChange {
    fn apply(self, mut dial: Dial) -> Dial {
        dial.replicas = self.replicas.unwrap_or(dial.replicas);
        dial.acks = match self.acks {
            Some(acks) => acks.map_or(Acks::Majority, Acks::Count),
            None => dial.acks,
        };
        dial.durability = self.durability.unwrap_or(dial.durability);
        dial.max_lag = self.max_lag.map_or(dial.max_lag, Micros::from);
        dial.lease = self.lease.map_or(dial.lease, Micros::from);
        dial
    }
}

/// Reasons for which a request of an operator has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperateError {
    /// The control plane refuses it.
    #[error("the control plane refuses it: {0}")]
    Refused(#[from] Refusal),
    /// The control plane did not answer.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// There is no service of the name.
    #[error("there is no service {0:?}; list the services to see those that exist")]
    NoService(String),
    /// There is no such shard.
    #[error("there is no shard {0}; list the services to see those that exist")]
    NoShard(u32),
    /// The node has no replica of the shard that counts.
    #[error(
        "node {node} has no replica of shard {shard} that counts; it has members on nodes {members:?}: name one of these"
    )]
    NoMember {
        /// The node.
        node: u32,
        /// The shard.
        shard: u32,
        /// The nodes that have one.
        members: Vec<u32>,
    },
    /// No epoch has begun in time.
    #[error(
        "shard {shard} has not changed its primary within {} ms: too few of its members can be reached, or its nodes are \
         about to change; look at the status, and ask again",
        .waited.as_millis()
    )]
    NotYet {
        /// The shard.
        shard: u32,
        /// The time.
        waited: Duration,
    },
}

impl Membership {
    /// Changes the dial of a service, and returns the new one. Its shards follow, one epoch each, while they serve.
    ///
    /// # Errors
    /// [`OperateError`].
    pub fn set_dial(
        &self,
        service: &str,
        change: DialChange,
        wait: Duration,
    ) -> Result<ServiceDial, OperateError> {
        let until = Instant::now() + wait;
        loop {
            let newest = self.plane().newest();
            let state = &newest.state;
            let unknown = || OperateError::NoService(service.to_owned());
            let id = state.topology().service_id(service).ok_or_else(unknown)?;
            let expected = state.dials()[usize::from(id.0)];
            let dial = change.apply(expected);
            let proposal = self.plane().proposal(&Command::SetDial { service: id, expected, dial });
            let outcome = loop {
                let left = until.saturating_duration_since(Instant::now());
                match self.plane().propose(&proposal, left) {
                    Err(ProposeError::Unknown) if !left.is_zero() => {}
                    outcome => break outcome?,
                }
            };
            match outcome {
                Outcome::Refused(Refusal::Outdated) if Instant::now() < until => {}
                Outcome::Refused(refusal) => return Err(refusal.into()),
                Outcome::Done | Outcome::Shards(_) => {
                    let known = state.topology().service(id);
                    let shards = (known.first.0, known.shards);
                    return Ok(ServiceDial::new(known.name.clone(), shards, &dial));
                }
            }
        }
    }

    /// Begins a new epoch of a shard, on a certain node or the best one, and waits until it is active. Returns the node that leads then.
    /// With `is_forced` it goes on if too few members are left, and loses what these do not have.
    ///
    /// # Errors
    /// [`OperateError`].
    pub fn failover(
        &self,
        shard: u32,
        to: Option<u32>,
        is_forced: bool,
        wait: Duration,
    ) -> Result<u32, OperateError> {
        let (id, until) = (ShardId(shard), Instant::now() + wait);
        let before = self.newest_epoch(id).ok_or(OperateError::NoShard(shard))?;
        if let Some(node) = to {
            let members = self.members(id);
            if !members.contains(&node) {
                return Err(OperateError::NoMember { node, shard, members });
            }
        }
        loop {
            // It is dropped by a controller that has just begun, so it is repeated until an epoch begins.
            self.report(Fact::Failover { shard: id, to: to.map(NodeId), is_forced });
            let again = (Instant::now() + Duration::from_millis(500)).min(until);
            while Instant::now() < again {
                self.wait_changed(Duration::from_millis(50));
                if self.newest_epoch(id).is_some_and(|epoch| epoch > before) {
                    return self.await_active(id, until, wait);
                }
            }
            if Instant::now() >= until {
                return Err(OperateError::NotYet { shard, waited: wait });
            }
        }
    }

    fn await_active(&self, id: ShardId, until: Instant, wait: Duration) -> Result<u32, OperateError> {
        loop {
            let newest = self.plane().newest();
            let record = newest.state.shard(id).ok_or(OperateError::NoShard(id.0))?;
            if let Some(node) = record.primary_node().filter(|_| record.is_settled()) {
                return Ok(node.0);
            }
            if Instant::now() >= until {
                return Err(OperateError::NotYet { shard: id.0, waited: wait });
            }
            self.wait_changed(Duration::from_millis(50));
        }
    }

    fn newest_epoch(&self, shard: ShardId) -> Option<Epoch> {
        let newest = self.plane().newest();
        newest.state.shard(shard).map(|record| record.history().newest().config.epoch())
    }

    /// Returns the nodes with a member of a shard's newest epoch that may lead.
    fn members(&self, shard: ShardId) -> Vec<u32> {
        let newest = self.plane().newest();
        let nodes = newest.state.nodes().keys();
        nodes.filter(|node| newest.state.member_on(shard, **node).is_ok()).map(|node| node.0).collect()
    }

    /// Removes a node, once its replicas have moved to others.
    ///
    /// # Errors
    /// [`OperateError`].
    pub fn remove_node(&self, node: u32, wait: Duration) -> Result<(), OperateError> {
        let proposal = self.plane().proposal(&Command::Leave { node: NodeId(node) });
        match self.plane().propose(&proposal, wait)? {
            Outcome::Refused(refusal) => Err(refusal.into()),
            Outcome::Done | Outcome::Shards(_) => Ok(()),
        }
    }
}
