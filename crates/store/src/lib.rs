//! Stead's storage: what survives a crash.
//!
//! Everything goes through [`disk::Disk`], which the simulated disk implements too, so that crashes, torn writes and
//! full disks reach the code that production runs. Nothing here knows the protocol: records are bytes with a shard,
//! an epoch and an index.

#![forbid(unsafe_code)]

mod aligned;
pub mod checkpoint;
pub mod data_dir;
pub mod disk;
pub mod real_disk;
pub mod recovery;
pub mod sim_disk;
pub mod wal;
