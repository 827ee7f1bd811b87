//! Fuzz targets: one for each decoder that reads bytes which a disk, a network, a client or a file may have damaged.
//!
//! Each target takes arbitrary bytes and asserts what must hold for all of them: no panic, no allocation that the
//! input's size does not justify, and that decoded values survive encoding. Checksums would stop a fuzzer at once, so
//! the targets behind one have a mode that corrects the checksums of their input.
//!
//! `fuzz_targets/each.rs` runs one of them under libFuzzer, `src/bin/mutate.rs` without it, and `tests/replay.rs` runs each committed
//! input again.

#![forbid(unsafe_code)]

mod checkpoints;
mod control;
mod edge;
mod edits;
mod log;
mod native;
mod network;
mod protocol;
pub mod seeds;

pub use checkpoints::{bundle, cut, manifest};
pub use control::{commands, control};
pub use edge::{config, flights_row, http_token, payload, stored_state, transcode};
pub use log::{data_dir, wal_damage, wal_segment};
pub use native::native;
pub use network::{frames, messages};
pub use protocol::{entry, header, record_key, record_value, records, state};

use cap::Cap;
use std::alloc::System;

/// Allocations above its limit fail, which ends the process: a finding.
#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// Bytes that a target may allocate for any input.
const ALLOWANCE: usize = 32 << 20;
/// Bytes that a target may also allocate for each byte of its input.
const ALLOWANCE_PER_BYTE: usize = 256;
/// Maximum length of an input; longer ones find nothing new.
pub const INPUT_MAX: usize = 64 << 10;

/// A target's function, which is run on each input.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 23] = [
    ("bundle", bundle),
    ("commands", commands),
    ("config", config),
    ("control", control),
    ("cut", cut),
    ("data_dir", data_dir),
    ("entry", entry),
    ("flights_row", flights_row),
    ("frames", frames),
    ("header", header),
    ("http_token", http_token),
    ("manifest", manifest),
    ("messages", messages),
    ("native", native),
    ("payload", payload),
    ("record_key", record_key),
    ("record_value", record_value),
    ("records", records),
    ("state", state),
    ("stored_state", stored_state),
    ("transcode", transcode),
    ("wal_damage", wal_damage),
    ("wal_segment", wal_segment),
];

/// Returns the target that the environment names, by `STEAD_FUZZ_TARGET`: one binary has all, for each one takes long to link.
///
/// # Panics
/// If it names none.
#[must_use]
pub fn named() -> Target {
    let name = std::env::var("STEAD_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    found.unwrap_or_else(|| panic!("STEAD_FUZZ_TARGET={name} names no target; see fuzz/seeds/")).1
}

/// Runs a target on an input under the limit on memory.
pub fn run(target: Target, data: &[u8]) {
    let data = &data[..data.len().min(INPUT_MAX)];
    let limit = MEMORY.allocated() + ALLOWANCE + data.len() * ALLOWANCE_PER_BYTE;
    // Fails only if another thread allocated more meanwhile; then there is nothing to limit.
    let _ = MEMORY.set_limit(limit);
    target(data);
    let _ = MEMORY.set_limit(usize::MAX);
}
