//! Logs and data directories that version 1 wrote. Every later version must open them.
//!
//! Written by `STEAD_WRITE_FIXTURES=1 cargo test -p stead-store --test it -- fixtures`, once for each format version.

use crate::wal_log::{Rec, open, put, rec, small};
use std::path::{Path, PathBuf};
use stead_core::ids::{Epoch, Incarnation, Index, ShardId};
use stead_store::data_dir::{DataDir, Meta, ServiceMeta};
use stead_store::sim_disk::SimDisk;
use stead_store::wal::WalOptions;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn load(disk: &SimDisk, from: &Path, to: &str) {
    let mut names: Vec<_> = std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(!names.is_empty());
    for path in names {
        let name = path.file_name().unwrap().to_str().unwrap();
        disk.put(&format!("{to}{name}"), &std::fs::read(&path).unwrap());
    }
}

fn save(disk: &SimDisk, prefix: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for path in disk.files() {
        if let Some(name) = path.strip_prefix(prefix) {
            std::fs::write(to.join(name), disk.bytes(&path).unwrap()).unwrap();
        }
    }
}

fn records() -> Vec<Rec> {
    let rec = |n: u64| Rec { epoch: 1 + n / 10, ..rec(n as u32 % 3, n, &vec![n as u8; 50 * n as usize]) };
    (1..=24).map(rec).collect()
}

fn options() -> WalOptions {
    WalOptions { segment_bytes: 16 << 10, log_id: 0x5eed, ..small() }
}

fn meta() -> Meta {
    let services = [("kv", 0, 64), ("bank", 64, 8)];
    let services = services.map(|(name, first, shards)| ServiceMeta {
        name: name.to_owned(),
        first: ShardId(first),
        shards,
    });
    Meta {
        cluster: 0xfeed_0000_0000_0000_0000_0000_0000_beef,
        incarnation: Incarnation(3),
        epoch: Epoch(12),
        log_id: 0x5eed,
        log_created: true,
        clean: false,
        restoring: false,
        services: services.into(),
    }
}

/// Trimmed, recycled, and with a torn tail.
fn write_wal() -> SimDisk {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &options()).unwrap();
    for rec in records() {
        put(&mut wal, &rec);
        if rec.index == 9 {
            wal.trim(|_| Index(9)).unwrap();
        }
    }
    let at = put(&mut wal, &rec(1, 25, b"torn"));
    disk.flip_bit(&format!("wal/{:016x}.log", at.segment), at.offset + 80, 3).unwrap();
    disk
}

#[test]
fn a_log_of_version_1_opens() {
    if std::env::var_os("STEAD_WRITE_FIXTURES").is_some() {
        save(&write_wal(), "wal/", &fixture("wal-v1"));
    }
    let disk = SimDisk::new(1);
    load(&disk, &fixture("wal-v1"), "wal/");
    let (_, opened, seen) = open(&disk, &WalOptions { create: false, ..options() }).unwrap();
    let first = seen[0].index as usize;
    assert!((2..=10).contains(&first), "trimmed up to 9 at most");
    assert_eq!(seen, records()[first - 1..]);
    assert!(opened.cut.is_some());
}

#[test]
fn a_data_directory_of_version_1_opens() {
    if std::env::var_os("STEAD_WRITE_FIXTURES").is_some() {
        let disk = SimDisk::new(1);
        DataDir::open(std::sync::Arc::new(disk.clone()), meta).unwrap();
        save(&disk, "", &fixture("data-dir-v1"));
    }
    let disk = SimDisk::new(1);
    load(&disk, &fixture("data-dir-v1"), "");
    assert_eq!(DataDir::inspect(&disk).unwrap(), meta());
}
