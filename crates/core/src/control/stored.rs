//! The encoding of a state, for the snapshots of the consensus.

use super::command::{InvalidBytes, decode_version, encode_version};
use super::dial::Dial;
use super::failover::Failover;
use super::node::NodeRecord;
use super::shard::ShardRecord;
use super::{Cluster, ControlState, Secret};
use crate::ids::{ClusterId, Incarnation, NodeId};
use crate::topology::Topology;
use minicbor::decode::{Decoder, Error};
use minicbor::{Decode, Encode, Encoder, encode};
use std::collections::{BTreeMap, VecDeque};

/// The version of the encoding.
const VERSION: u8 = 1;

impl<C> Encode<C> for Cluster {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?.bytes(&self.id.0.to_be_bytes())?.encode_with(self.incarnation, context)?.ok()
    }
}

#[derive(Decode)]
struct RawCluster<'b> {
    #[cbor(b(0), with = "minicbor::bytes")]
    id: &'b [u8],
    #[n(1)]
    incarnation: Incarnation,
}

impl<'b, C> Decode<'b, C> for Cluster {
    fn decode(d: &mut Decoder<'b>, context: &mut C) -> Result<Self, Error> {
        let RawCluster { id, incarnation } = d.decode_with(context)?;
        let id = id.try_into().map_err(|_| Error::message("the id of a cluster has 16 bytes"))?;
        Ok(Self { id: ClusterId(u128::from_be_bytes(id)), incarnation })
    }
}

impl<C> Encode<C> for Secret {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Secret {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, Error> {
        let secret =
            d.bytes()?.try_into().map_err(|_| Error::message("the secret of a cluster has 32 bytes"))?;
        Ok(Self(secret))
    }
}

/// A service by its name, the number of its shards and its dial.
#[derive(Encode, Decode)]
struct Service<'a> {
    #[b(0)]
    name: &'a str,
    #[n(1)]
    shards: u32,
    #[n(2)]
    dial: Dial,
}

/// A state as its bytes have it.
#[derive(Decode)]
struct Stored<'b> {
    #[n(0)]
    cluster: Option<Cluster>,
    #[n(1)]
    nodes: BTreeMap<NodeId, NodeRecord>,
    #[n(2)]
    next_node: NodeId,
    #[b(3)]
    services: Vec<Service<'b>>,
    #[n(4)]
    shards: Vec<ShardRecord>,
    #[n(5)]
    failovers: VecDeque<Failover>,
    #[n(6)]
    is_balancing: bool,
    #[n(7)]
    secret: Option<Secret>,
}

impl<C> Encode<C> for ControlState {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        let services = self.topology.services().iter().zip(&self.dials);
        let services = services.map(|(service, dial)| Service {
            name: &service.name,
            shards: service.shards,
            dial: *dial,
        });
        e.array(8)?.encode_with(self.cluster, context)?.encode_with(&self.nodes, context)?;
        e.encode_with(self.next_node, context)?.encode_with(services.collect::<Vec<_>>(), context)?;
        e.encode_with(&self.shards, context)?.encode_with(&self.failovers, context)?;
        e.bool(self.is_balancing)?.encode_with(self.secret, context)?.ok()
    }
}

impl ControlState {
    /// Returns the state's bytes: equal states give equal ones.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode_version(VERSION, self)
    }

    /// Decodes a state that fills the bytes.
    ///
    /// # Errors
    /// [`InvalidBytes`] if they are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidBytes> {
        let stored: Stored<'_> = decode_version(VERSION, bytes)?;
        let incarnation = stored.cluster.map_or(Incarnation(0), |cluster| cluster.incarnation);
        let mut topology = Topology::new(incarnation);
        let mut dials = Vec::new();
        for Service { name, shards, dial } in stored.services {
            // A name that comes twice is found, and does not add up.
            topology.ensure(name, shards).map_err(|_| Error::message("a service is invalid"))?;
            dial.check().map_err(|_| Error::message("a dial is invalid"))?;
            dials.push(dial);
        }
        let Stored { cluster, nodes, next_node, shards, failovers, is_balancing, secret, .. } = stored;
        let state =
            Self { cluster, nodes, next_node, topology, dials, shards, failovers, is_balancing, secret };
        state.check()?;
        Ok(state)
    }
}
