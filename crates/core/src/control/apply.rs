//! The state machine: what each command changes, and on which conditions.

use super::attempt::has_base;
use super::command::{Command, Outcome, Refusal, ShardChange, ShardCommand, ShardStart};
use super::failover::{Cause, Failover};
use super::node::{DiskState, NodeRecord, StartId};
use super::shard::{ReplicaRecord, ShardRecord, Stage};
use super::{Cluster, ControlState, Secret};
use crate::commit_tracker::EpochConfig;
use crate::control::dial::Dial;
use crate::ids::{DiskNumber, Epoch, Life, NodeId, ReplicaId, ServiceId, ShardId, Time};
use crate::replication::epoch::EpochRecord;
use crate::replication::history::{History, Takeover};
use crate::topology::Topology;
use std::collections::{BTreeMap, BTreeSet};

impl ControlState {
    /// Applies a command. The same commands give the same state everywhere; a refused one changes nothing.
    pub fn apply(&mut self, command: Command) -> Outcome {
        let result = match command {
            Command::Found { cluster, secret } => self.found(cluster, secret),
            _ if self.cluster.is_none() => Err(Refusal::NotFounded),
            Command::Join { node, life, start, addresses } => self.join(node, life, start, addresses),
            Command::Start { node, expected, life, start, disk, addresses } => {
                self.start(node, expected, (life, start), disk, addresses)
            }
            Command::ProveDead { node, life } => self.prove_dead(node, life),
            Command::Leave { node } => self.node_mut(node).map(|node| node.is_leaving = true),
            Command::Remove { node } => self.remove(node),
            Command::CreateService { name, dial, shards } => self.create_service(&name, dial, &shards),
            Command::SetDial { service, expected, dial } => self.set_dial(service, expected, dial),
            Command::SetBalancing { is_balancing } => {
                self.is_balancing = is_balancing;
                Ok(())
            }
            Command::Shards(commands) => {
                let results = commands.into_iter().map(|command| self.change(command).err());
                return Outcome::Shards(results.collect());
            }
        };
        match result {
            Ok(()) => Outcome::Done,
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    fn found(&mut self, cluster: Cluster, secret: Option<Secret>) -> Result<(), Refusal> {
        match self.cluster {
            // The command came twice.
            Some(known) if known == cluster => Ok(()),
            Some(_) => Err(Refusal::Founded),
            None => {
                (self.cluster, self.topology.incarnation) = (Some(cluster), cluster.incarnation);
                self.secret = secret;
                Ok(())
            }
        }
    }

    fn node_mut(&mut self, node: NodeId) -> Result<&mut NodeRecord, Refusal> {
        self.nodes.get_mut(&node).ok_or(Refusal::NoNode { node })
    }

    fn join(
        &mut self,
        node: NodeId,
        life: Life,
        start: StartId,
        addresses: Vec<String>,
    ) -> Result<(), Refusal> {
        check_addresses(&addresses)?;
        if self.nodes.get(&node).is_some_and(|known| known.start == start) {
            return Ok(());
        }
        if node != self.next_node {
            return Err(Refusal::Outdated);
        }
        if self.nodes.len() >= Self::NODES_MAX {
            return Err(Refusal::TooManyNodes);
        }
        self.next_node = NodeId(node.0.checked_add(1).ok_or(Refusal::NoNumbers)?);
        let (dead, disk) = (Life(0), DiskNumber(1));
        self.nodes.insert(node, NodeRecord { addresses, life, start, dead, disk, is_leaving: false });
        // The first node has nothing to share.
        self.is_balancing |= self.nodes.len() > 1;
        Ok(())
    }

    fn start(
        &mut self,
        id: NodeId,
        expected: StartId,
        (life, start): (Life, StartId),
        disk: DiskState,
        addresses: Vec<String>,
    ) -> Result<(), Refusal> {
        check_addresses(&addresses)?;
        let node = self.node_mut(id)?;
        if node.start == start {
            return Ok(());
        }
        if node.start != expected {
            return Err(Refusal::Outdated);
        }
        // A disk image that was rolled back counts its lives anew (rule 3).
        let disk = if life <= node.life { DiskState::Lost } else { disk };
        let new = match disk {
            DiskState::Whole | DiskState::Doubtful => node.disk,
            DiskState::Lost => node.disk.0.checked_add(1).map(DiskNumber).ok_or(Refusal::NoNumbers)?,
        };
        // A successor on the same disk holds the lock of its directory.
        if disk != DiskState::Lost {
            node.dead = node.dead.max(Life(life.0.saturating_sub(1)));
        } else {
            node.dead = Life(0);
        }
        (node.life, node.start, node.addresses, node.disk) = (life, start, addresses, new);
        if disk == DiskState::Doubtful {
            for shard in &mut self.shards {
                shard.doubt(id, new, life);
            }
        }
        Ok(())
    }

    fn prove_dead(&mut self, node: NodeId, life: Life) -> Result<(), Refusal> {
        let node = self.node_mut(node)?;
        if life > node.life {
            return Err(Refusal::OtherLife);
        }
        node.dead = node.dead.max(life);
        Ok(())
    }

    fn remove(&mut self, node: NodeId) -> Result<(), Refusal> {
        self.node_mut(node)?;
        let placed = self.shards.iter().flat_map(|shard| shard.replicas.values());
        let replicas = placed.filter(|placed| placed.node == node && placed.stage != Stage::Released).count();
        if replicas > 0 {
            return Err(Refusal::HasReplicas { node, replicas: u32::try_from(replicas).unwrap_or(u32::MAX) });
        }
        self.nodes.remove(&node);
        for shard in &mut self.shards {
            shard.replicas.retain(|_, placed| placed.node != node);
        }
        Ok(())
    }

    /// Checks that there are nodes for more replicas.
    fn check_nodes(&self, dial: Dial) -> Result<(), Refusal> {
        let nodes = self.nodes.values().filter(|node| !node.is_leaving).count();
        if usize::from(dial.replicas) > nodes {
            let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
            return Err(Refusal::TooFewNodes { replicas: dial.replicas, nodes });
        }
        Ok(())
    }

    fn create_service(&mut self, name: &str, dial: Dial, starts: &[ShardStart]) -> Result<(), Refusal> {
        dial.check().map_err(Refusal::Dial)?;
        if self.topology.service_id(name).is_some() {
            let reason = format!("service {name} exists; change its dial instead");
            return Err(Refusal::Service { reason });
        }
        let mut topology: Topology = self.topology.clone();
        let count = u32::try_from(starts.len()).unwrap_or(u32::MAX);
        let service = |error: crate::topology::TopologyError| Refusal::Service { reason: error.to_string() };
        topology.ensure(name, count).map_err(service)?;
        let shards: Result<Vec<ShardRecord>, Refusal> =
            starts.iter().map(|start| self.start_shard(start, dial)).collect();
        self.shards.extend(shards?);
        self.topology = topology;
        self.dials.push(dial);
        Ok(())
    }

    fn start_shard(&self, start: &ShardStart, dial: Dial) -> Result<ShardRecord, Refusal> {
        let nodes = match start {
            ShardStart::New { nodes } => &nodes[..],
            ShardStart::Adopted { node, .. } => std::slice::from_ref(node),
        };
        if nodes.is_empty() || nodes.len() > EpochConfig::MEMBERS_MAX {
            return Err(Refusal::Start);
        }
        let mut replicas = BTreeMap::new();
        let mut next_replica = ReplicaId::FIRST;
        for (at, &node) in nodes.iter().enumerate() {
            let record = self.nodes.get(&node).ok_or(Refusal::NoNode { node })?;
            if nodes[..at].contains(&node) {
                return Err(Refusal::SameNode { node });
            }
            let placed = ReplicaRecord { node, disk: record.disk, stage: Stage::Member, is_void: false };
            replicas.insert(next_replica, placed);
            next_replica = next_replica.next();
        }
        let life = self.nodes[&nodes[0]].life;
        let history = match *start {
            ShardStart::New { .. } => {
                let (acks, lease) = dial.acks_and_lease(nodes.len());
                let members = replicas.keys().copied().collect();
                let config = EpochConfig::parse(Epoch(1), members, acks, ReplicaId::FIRST);
                let config = config.map_err(|_| Refusal::Start)?.with_durability(dial.durability);
                History::new(config, life, lease)
            }
            ShardStart::Adopted { last, epoch, .. } => {
                if epoch <= last.epoch || epoch > Epoch::MAX {
                    return Err(Refusal::Start);
                }
                History::adopt(ReplicaId::FIRST, life, epoch, last)
            }
        };
        Ok(ShardRecord { history, replicas, next_replica, active: Epoch(0), version: 0 })
    }

    fn set_dial(&mut self, service: ServiceId, expected: Dial, dial: Dial) -> Result<(), Refusal> {
        let at = usize::from(service.0);
        let current = *self.dials.get(at).ok_or(Refusal::NoService)?;
        if current == dial {
            return Ok(());
        }
        if current != expected {
            return Err(Refusal::Outdated);
        }
        dial.check().map_err(Refusal::Dial)?;
        if dial.replicas > current.replicas {
            self.check_nodes(dial)?;
        }
        self.dials[at] = dial;
        Ok(())
    }

    fn change(&mut self, ShardCommand { shard, change }: ShardCommand) -> Result<(), Refusal> {
        if self.shard(shard).is_none() {
            return Err(Refusal::NoShard { shard });
        }
        self.change_shard(shard, change)?;
        let changed = &mut self.shards[shard.0 as usize];
        changed.version = changed.version.wrapping_add(1);
        Ok(())
    }

    fn change_shard(&mut self, shard: ShardId, change: ShardChange) -> Result<(), Refusal> {
        match change {
            ShardChange::TakeOver { takeover, cause, noticed, is_forced } => {
                self.take_over(shard, &takeover, (cause, noticed), is_forced)
            }
            ShardChange::Active { epoch, at } => self.record_active(shard, epoch, at),
            ShardChange::Place { replica, node } => self.place(shard, replica, node),
            ShardChange::Release { replica } => {
                let shard = &mut self.shards[shard.0 as usize];
                if shard.is_named(replica) {
                    return Err(Refusal::Named { replica });
                }
                let placed = shard.replicas.get_mut(&replica).ok_or(Refusal::NoReplica { replica })?;
                placed.stage = Stage::Released;
                Ok(())
            }
            ShardChange::Void { replica } => {
                let shard = &mut self.shards[shard.0 as usize];
                let is_alone = shard.history.is_alone(replica);
                match shard.replicas.get_mut(&replica) {
                    Some(placed) if !is_alone => {
                        placed.is_void = true;
                        Ok(())
                    }
                    Some(_) => Err(Refusal::Named { replica }),
                    None => Err(Refusal::NoReplica { replica }),
                }
            }
            ShardChange::Deleted { replica } => {
                let replicas = &mut self.shards[shard.0 as usize].replicas;
                match replicas.get(&replica) {
                    Some(placed) if placed.stage != Stage::Released => Err(Refusal::Named { replica }),
                    _ => {
                        replicas.remove(&replica);
                        Ok(())
                    }
                }
            }
        }
    }

    fn take_over(
        &mut self,
        id: ShardId,
        takeover: &Takeover,
        (cause, noticed): (Cause, Time),
        is_forced: bool,
    ) -> Result<(), Refusal> {
        let shard = &self.shards[id.0 as usize];
        let config = &takeover.config;
        if config.epoch() >= Epoch::MAX {
            return Err(Refusal::NoNumbers);
        }
        // A lost disk keeps neither its promises nor its entries (rule 3); a released replica is being deleted.
        let usable = |replica: ReplicaId| {
            let placed = shard.replicas.get(&replica).filter(|placed| placed.stage != Stage::Released);
            placed.filter(|placed| !self.is_lost(placed)).ok_or(Refusal::NoReplica { replica })
        };
        let mut nodes = BTreeSet::new();
        for &member in config.members() {
            let node = usable(member)?.node;
            if !nodes.insert(node) {
                return Err(Refusal::SameNode { node });
            }
        }
        for seal in &takeover.seals {
            usable(seal.replica)?;
        }
        let to = usable(config.primary())?.node;
        if self.nodes.get(&to).is_none_or(|node| node.life != takeover.life) {
            return Err(Refusal::OtherLife);
        }
        let mut history = shard.history.clone();
        let old = history.newest().config.clone();
        let known: BTreeSet<_> = history.losses().iter().collect();
        let result = if is_forced { history.force(takeover) } else { history.begin(takeover) };
        result.map_err(Refusal::TakeOver)?;
        // The dial allows as much as an operator does.
        let goes_without = history.forced() == config.epoch();
        // From the last active epoch on, which the seals may have attested.
        let records = history.records();
        let active = &records[0].config;
        let is_settled = records.len() == 2;
        if !goes_without && !is_settled {
            let other = config.members().iter().find(|member| !active.members().contains(member));
            // Unless none of these can lead: then the members of one epoch since, over which the seals needed spread already.
            let since = &records[1..records.len() - 1];
            let named =
                |old: &EpochRecord| config.members().iter().all(|id| old.config.members().contains(id));
            let is_stuck = !has_base(active, &takeover.seals, history.newest().base);
            if let Some(&replica) = other.filter(|_| !is_stuck || !since.iter().any(named)) {
                return Err(Refusal::Unsettled { replica });
            }
        }
        let from = shard.replicas.get(&old.primary()).map(|placed| placed.node);
        let losses = history.losses().iter().filter(|loss| !known.contains(loss)).collect();
        let active = active.epoch();
        let shard = &mut self.shards[id.0 as usize];
        if active != shard.history.records()[0].config.epoch() {
            shard.active = shard.active.max(active);
        }
        shard.history = history;
        for member in config.members() {
            if let Some(placed) = shard.replicas.get_mut(member) {
                placed.stage = Stage::Member;
            }
        }
        if cause.is_failure() || from != Some(to) || is_forced || goes_without {
            if self.failovers.len() >= Self::FAILOVERS_MAX {
                self.failovers.pop_front();
            }
            let (epoch, duration) = (config.epoch(), None);
            let failover =
                Failover { shard: id, epoch, cause, from, to, noticed, duration, losses, is_forced };
            self.failovers.push_back(failover);
        }
        Ok(())
    }

    fn record_active(&mut self, id: ShardId, epoch: Epoch, at: Time) -> Result<(), Refusal> {
        let shard = &mut self.shards[id.0 as usize];
        if epoch > shard.history.newest().config.epoch() {
            return Err(Refusal::NoEpoch { epoch });
        }
        shard.history.handle_active(epoch);
        if shard.history.records()[0].config.epoch() == epoch && shard.active < epoch {
            shard.active = epoch;
            let is_it = |failover: &&mut Failover| failover.shard == id && failover.epoch == epoch;
            if let Some(failover) = self.failovers.iter_mut().rev().find(is_it) {
                failover.duration = Some(at.since(failover.noticed));
            }
        }
        Ok(())
    }

    fn place(&mut self, id: ShardId, replica: ReplicaId, node: NodeId) -> Result<(), Refusal> {
        let record = self.nodes.get(&node).ok_or(Refusal::NoNode { node })?;
        let shard = &self.shards[id.0 as usize];
        if shard.next_replica != replica {
            return Err(Refusal::Outdated);
        }
        let next = ReplicaId(replica.0.checked_add(1).ok_or(Refusal::NoNumbers)?);
        if shard.replicas.values().any(|placed| placed.node == node && !self.is_gone(placed)) {
            return Err(Refusal::HasReplica { node });
        }
        if shard.replicas.len() >= ShardRecord::REPLICAS_MAX {
            return Err(Refusal::TooManyReplicas);
        }
        let placed = ReplicaRecord { node, disk: record.disk, stage: Stage::Learner, is_void: false };
        let shard = &mut self.shards[id.0 as usize];
        shard.replicas.insert(replica, placed);
        shard.next_replica = next;
        Ok(())
    }
}

impl ShardRecord {
    /// Notes that the replica on a disk may have lost something before a life of its node.
    fn doubt(&mut self, node: NodeId, disk: DiskNumber, life: Life) {
        for (id, placed) in &self.replicas {
            if placed.node == node && placed.disk == disk {
                self.history.handle_doubt(*id, life);
            }
        }
    }
}

/// Checks the addresses of a node.
pub(super) fn check_addresses(addresses: &[String]) -> Result<(), Refusal> {
    let fits = |address: &String| (1..=NodeRecord::ADDRESS_BYTES_MAX).contains(&address.len());
    if (1..=NodeRecord::ADDRESSES_MAX).contains(&addresses.len()) && addresses.iter().all(fits) {
        Ok(())
    } else {
        Err(Refusal::Addresses)
    }
}
