//! Adoption: the data of a node that ran without a cluster become those of the first node of one.
//!
//! Nothing is converted. Such a node has written as the first replica of each of its shards, and nothing is trimmed from its log that its
//! newest checkpoint lacks: a replica begins from both. So the control plane needs to know only where each log ends, and creates the
//! services of the data with shards that go on there, in their order. A start that ends before all of them exist is repeated by the next
//! one, which reads the ends anew.

use crate::error::EnterError;
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_core::control::command::ShardStart;
use stead_core::ids::{Epoch, NodeId, ShardId};
use stead_core::placement::{Place, Placement};
use stead_core::replication::table::LogPoint;
use stead_core::topology::Topology;
use stead_store::checkpoint::load::Loaders;
use stead_store::checkpoint::store::DiskStore;
use stead_store::data_dir::{CHECKPOINTS, DataDir, ServiceMeta};
use stead_store::recovery::{Facts, recover};
use stead_store::wal::WalOptions;

/// The end of each shard's log, and the first epoch that no life of the node has used for it.
pub(crate) struct LogEnds(BTreeMap<ShardId, (LogPoint, Epoch)>);

impl LogEnds {
    /// Reads them from a data directory. Changes nothing, except that the log's unsynced tail is cut.
    pub(crate) fn read(dir: &DataDir, wal: WalOptions, loaders: Loaders) -> Result<Self, EnterError> {
        let meta = dir.meta();
        let mut topology = Topology::new(meta.incarnation);
        for service in &meta.services {
            topology.ensure(&service.name, service.shards)?;
        }
        let placement = Placement::new(&topology, |_| Place::Here);
        let (disk, replicated) = (Arc::clone(dir.disk()), BTreeMap::new());
        let store = DiskStore::open(Arc::clone(&disk), CHECKPOINTS)?;
        let facts = Facts {
            cluster: meta.cluster,
            topology: &topology,
            placement: &placement,
            replicated: &replicated,
            log_bytes_max: 0,
        };
        let wal = WalOptions { log_id: meta.log_id, create: !meta.log_created, ..wal };
        let recovered = recover(disk, &store, facts, wal, loaders)?;
        let ends = recovered.known_epochs().into_iter().zip(&recovered.states).map(|(known, state)| {
            let (position, used) = (state.position(), known.highest().max(meta.epoch_floor));
            let last = LogPoint { epoch: position.epoch, index: position.index };
            (known.shard, (last, used.next()))
        });
        Ok(Self(ends.collect()))
    }

    /// Returns the starts of a service's shards, which a node has led without a control plane.
    pub(crate) fn starts(&self, service: &ServiceMeta, node: NodeId) -> Vec<ShardStart> {
        let shards = service.first.0..service.first.0 + service.shards;
        let start = |shard| {
            let (last, epoch) = self.0[&ShardId(shard)];
            ShardStart::Adopted { node, last, epoch }
        };
        shards.map(start).collect()
    }
}
