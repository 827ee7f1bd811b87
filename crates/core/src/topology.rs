//! The services of a cluster, and the placement of processes on their shards.

use crate::ids::{Incarnation, ServiceId, ShardId};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

/// The services of a cluster and their shards. Each service owns a contiguous range of shard numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The incarnation of the cluster that this topology belongs to.
    pub incarnation: Incarnation,
    services: Vec<Service>,
}

/// A service as the core knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// 1 to 128 characters of `a-z A-Z 0-9 _ - .`
    pub name: String,
    /// The first of its shards.
    pub first: ShardId,
    /// The number of its shards: 1 to [`Topology::SHARDS_MAX`].
    pub shards: u32,
}

/// The reason that a topology is invalid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TopologyError {
    /// A name is empty, too long or has other characters.
    #[error("invalid service name {name:?}; use 1 to 128 of a-z, A-Z, 0-9, '_', '-' and '.'")]
    Name {
        /// The refused name.
        name: String,
    },
    /// A number of shards is out of range.
    #[error("service {name} has {shards} shards; it must have 1 to {max}", max = Topology::SHARDS_MAX)]
    Shards {
        /// The service.
        name: String,
        /// The refused number.
        shards: u32,
    },
    /// The topology has the maximum number of services.
    #[error("cannot add service {name}: there are {max} services already, which is the limit", max = Topology::SERVICES_MAX)]
    Services {
        /// The refused name.
        name: String,
    },
    /// A service exists with another number of shards.
    #[error(
        "service {name} has {existing} shards, but {wanted} were requested; request no number to keep them, or restore a checkpoint with the new number"
    )]
    Resharding {
        /// The service.
        name: String,
        /// Its shards now.
        existing: u32,
        /// The requested number of shards.
        wanted: u32,
    },
}

// Each service has an id, and each shard of all services a number.
const _: () = assert!(Topology::SERVICES_MAX - 1 <= u16::MAX as usize);
const _: () = assert!(Topology::SERVICES_MAX as u64 * Topology::SHARDS_MAX as u64 <= u32::MAX as u64);

impl Topology {
    /// Maximum number of shards of one service.
    pub const SHARDS_MAX: u32 = 4096;
    /// Maximum number of services of a topology, which is the number of ids.
    pub const SERVICES_MAX: usize = 1 << 16;

    /// Creates a topology without services.
    #[must_use]
    pub const fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, services: Vec::new() }
    }

    /// Adds a service after the existing ones, or finds it unchanged.
    ///
    /// # Errors
    /// [`TopologyError`] if the name or the number is out of range, or the service exists with another number of shards.
    pub fn ensure(&mut self, name: &str, shards: u32) -> Result<ServiceId, TopologyError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > 128 || !name.chars().all(fits) {
            return Err(TopologyError::Name { name: name.to_owned() });
        }
        if shards == 0 || shards > Self::SHARDS_MAX {
            return Err(TopologyError::Shards { name: name.to_owned(), shards });
        }
        if let Some(id) = self.service_id(name) {
            let existing = self.service(id).shards;
            if existing != shards {
                return Err(TopologyError::Resharding { name: name.to_owned(), existing, wanted: shards });
            }
            return Ok(id);
        }
        if self.services.len() >= Self::SERVICES_MAX {
            return Err(TopologyError::Services { name: name.to_owned() });
        }
        let first = ShardId(self.shard_count());
        self.services.push(Service { name: name.to_owned(), first, shards });
        Ok(ServiceId((self.services.len() - 1) as u16))
    }

    /// Returns all services, in the order of their ids.
    #[must_use]
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// Returns the number of shards of all services together.
    #[must_use]
    pub fn shard_count(&self) -> u32 {
        self.services.last().map_or(0, |s| s.first.0 + s.shards)
    }

    /// Returns all shards.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shard_count()).map(ShardId)
    }

    /// Returns the service of a name.
    #[must_use]
    pub fn service_id(&self, name: &str) -> Option<ServiceId> {
        self.services.iter().position(|s| s.name == name).map(|i| ServiceId(i as u16))
    }

    /// Returns the service of an id.
    ///
    /// # Panics
    /// If the id is of another topology.
    #[must_use]
    pub fn service(&self, id: ServiceId) -> &Service {
        &self.services[usize::from(id.0)]
    }

    /// Returns the service that a shard belongs to, if the shard exists.
    #[must_use]
    pub fn service_of(&self, shard: ShardId) -> Option<ServiceId> {
        let after = self.services.partition_point(|s| s.first <= shard);
        let service = after.checked_sub(1)?;
        let s = &self.services[service];
        (shard.0 - s.first.0 < s.shards).then_some(ServiceId(service as u16))
    }

    /// Returns the shard that holds a process.
    #[must_use]
    pub fn shard_of(&self, service: ServiceId, key: &str) -> ShardId {
        let s = self.service(service);
        // The high half of the product maps the hash to the range without a division.
        let slot = ((u128::from(xxh3_64(key.as_bytes())) * u128::from(s.shards)) >> 64) as u32;
        ShardId(s.first.0 + slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_belongs_to_its_service_and_keys_stay_inside() {
        let mut topology = Topology::new(Incarnation(1));
        let a = topology.ensure("a", 3).unwrap();
        let b = topology.ensure("b", 64).unwrap();
        assert_eq!(topology.shard_count(), 67);
        assert_eq!(topology.service_of(ShardId(2)), Some(a));
        assert_eq!(topology.service_of(ShardId(3)), Some(b));
        assert_eq!(topology.service_of(ShardId(67)), None);
        for i in 0..1000 {
            assert_eq!(topology.service_of(topology.shard_of(b, &i.to_string())), Some(b));
        }
        assert_eq!(topology.ensure("a", 3), Ok(a));
        assert!(matches!(topology.ensure("a", 4), Err(TopologyError::Resharding { .. })));
        assert!(matches!(topology.ensure("a b", 4), Err(TopologyError::Name { .. })));
        assert!(matches!(topology.ensure("c", 0), Err(TopologyError::Shards { .. })));
    }

    #[test]
    fn no_two_services_get_one_id() {
        let services = (0..Topology::SERVICES_MAX as u32).map(|at| Service {
            name: at.to_string(),
            first: ShardId(at),
            shards: 1,
        });
        let mut topology = Topology { incarnation: Incarnation(1), services: services.collect() };
        let name = "more".to_owned();
        assert_eq!(topology.ensure("more", 1), Err(TopologyError::Services { name }));
        assert_eq!(topology.ensure("65535", 1), Ok(ServiceId(u16::MAX)));
    }
}
