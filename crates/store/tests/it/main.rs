//! The storage crate's tests.

#![expect(clippy::unwrap_used, reason = "what helpers of tests can't do fails the test")]

mod checkpoints;
mod data_dir;
mod disk;
mod faults_log;
mod fixtures;
mod wal_bounds;
mod wal_crashes;
mod wal_damage;
mod wal_entries;
mod wal_growth;
mod wal_live;
mod wal_log;
mod wal_peers;
mod wal_records;
mod wal_replicas;
mod wal_space;
