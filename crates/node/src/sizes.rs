//! The sizes at which the parts of a node divide and limit their work.

use stead_store::checkpoint::bundle::BLOCK_BYTES;

/// Sizes at which the parts of a node divide and limit their work. Production has the defaults; a simulator draws small ones, so
/// that its small states cross them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of a submission to the log over which a worker passes it on before the end of the turn, so that the log is never idle
    /// while there is work for it: 128 KiB.
    pub batch_bytes: usize,
    /// Bytes of snapshots that may wait to be written, above which workers hold back: 16 MiB.
    pub behind_bytes: usize,
    /// Bytes of a snapshot that are handed over at once, few enough to stay in a core's cache: 256 KiB.
    pub piece_bytes: usize,
    /// Records of a snapshot that are taken between two readings of the clock: 64.
    pub snapshot_records: usize,
    /// Bytes by which the log of a node with replicas of several grows at least between two snapshots of a replica: 64 MiB. If their
    /// states together are larger, it grows by as much as these.
    pub snapshot_log_bytes: u64,
    /// Bytes of a snapshot that are sent to another node at once: 256 KiB.
    pub chunk_bytes: usize,
    /// Approximate bytes of the blocks of bundles, as
    /// [`BundleWriter::set_block_bytes`](stead_store::checkpoint::bundle::BundleWriter::set_block_bytes): 1 MiB.
    pub block_bytes: usize,
    /// Queries that may wait for a thread; further ones are refused as overloaded: 16,384.
    pub queries_max: usize,
    /// Queries of one service among them: 8,192.
    pub service_queries_max: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            batch_bytes: 128 << 10,
            behind_bytes: 16 << 20,
            piece_bytes: 256 << 10,
            snapshot_records: 64,
            snapshot_log_bytes: 64 << 20,
            chunk_bytes: 256 << 10,
            block_bytes: BLOCK_BYTES,
            queries_max: 16_384,
            service_queries_max: 8_192,
        }
    }
}
