//! Bundles as manifests refer to them, and their names.

use crate::ids::{CheckpointNumber, ClusterId, NodeId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A hash of 128 bits; stored as a string of 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash(pub u128);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Hash {
    /// Parses the output of `Display`, and nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hash = u128::from_str_radix(text, 16).ok().map(Self)?;
        (hash.to_string() == text).then_some(hash)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a hash has 32 hexadecimal digits"))
    }
}

/// A bundle as a manifest refers to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleRef {
    /// Its name in the store.
    pub name: String,
    /// The node that wrote it; the first one is not written.
    #[serde(default = "first_node", skip_serializing_if = "is_first_node")]
    pub node: NodeId,
    /// Its size in bytes.
    pub bytes: u64,
    /// Number of times that its contents were merged; 0 for a checkpoint's own bundle.
    pub level: u32,
    /// The checksum of its index.
    pub index: Hash,
}

/// Returns the node of objects that name none.
#[must_use]
pub const fn first_node() -> NodeId {
    NodeId::FIRST
}

/// Whether a node is that of objects that name none.
#[must_use]
pub fn is_first_node(node: &NodeId) -> bool {
    *node == NodeId::FIRST
}

/// A section that a part uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SectionRef {
    /// The position of its bundle in the manifest's list.
    pub bundle: u32,
    /// Bytes of its records.
    pub bytes: u64,
}

/// The author of stored objects: a life of a process on a node of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Author {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The life of the process, drawn at random by the shell.
    pub writer: u64,
}

/// Draws unique names for bundles.
#[derive(Debug)]
pub struct BundleNames {
    author: Author,
    serial: AtomicU64,
}

impl BundleNames {
    /// Creates the names of one life of a process.
    #[must_use]
    pub fn new(author: Author) -> Self {
        Self { author, serial: AtomicU64::new(0) }
    }

    /// Returns the author of the bundles.
    #[must_use]
    pub fn author(&self) -> Author {
        self.author
    }

    /// Draws a name for a bundle that begins at a checkpoint.
    pub fn draw(&self, number: CheckpointNumber) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let Author { node, writer, .. } = self.author;
        format!("bundles/{:020}-{:04}-{writer:016x}-{serial:06}.bundle", number.0, node.0)
    }
}
