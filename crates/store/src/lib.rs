//! Stead's storage: all state that survives a crash.
//!
//! Everything goes through [`disk::Disk`], which the simulated disk also implements, so that crashes, torn writes and
//! full disks test the code that production runs. Nothing here knows the protocol: records are bytes with a shard,
//! an epoch and an index.

#![forbid(unsafe_code)]

mod aligned;
pub mod checkpoint;
pub mod data_dir;
pub mod disk;
pub mod real_disk;
pub mod rebuild;
pub mod recovery;
pub mod restoring;
pub mod sim_disk;
pub mod snapshots;
pub mod wal;
