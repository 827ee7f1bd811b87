//! Records against a model, and their snapshots.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn model(records: &Records) -> Model {
    records.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
}

fn fold(stored: &mut Model, section: &[u8]) {
    for record in decode_records(section) {
        let (key, value) = record.unwrap();
        match value {
            Some(value) => drop(stored.insert(key.to_vec(), value.to_vec())),
            None => drop(stored.remove(key)),
        }
    }
}

/// Random writes while snapshots are drained in slices: the stored sections always fold to the state that the
/// records had when the snapshot began, and a fresh load of them has the same hash.
#[test]
fn snapshots_hold_the_state_at_their_begin() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut records = Records::new();
        let mut stored = Model::new();
        let mut at_begin: Option<(Model, u128, bool)> = None;
        let mut piece = Piece::default();
        for _ in 0..600 {
            let key = if rng.bool() {
                RecordKey::process(&rng.u8(0..24).to_string())
            } else {
                RecordKey::cell("p", &[rng.u8(0..12)])
            };
            match rng.u8(0..10) {
                0..5 => drop(records.put(key.as_bytes(), Blob::from(vec![rng.u8(..); rng.usize(0..9)]))),
                5..8 => drop(records.remove(key.as_bytes())),
                8 if at_begin.is_none() => {
                    let all = rng.u8(0..4) == 0;
                    records.begin_snapshot(all);
                    at_begin = Some((model(&records), records.hash(), all));
                }
                _ => {
                    if records.drain_snapshot(rng.usize(0..7), &mut piece)
                        && let Some((expected, hash, all)) = at_begin.take()
                    {
                        if all {
                            stored.clear();
                        }
                        let section = piece.to_vec();
                        assert_eq!(section.len(), piece.bytes(), "seed {seed}");
                        piece.clear();
                        fold(&mut stored, &section);
                        assert_eq!(stored, expected, "seed {seed}");
                        let mut loaded = Records::new();
                        for (key, value) in &stored {
                            loaded.load(key, Some(Blob::from(value.as_slice())));
                        }
                        loaded.loaded();
                        assert_eq!(loaded.hash(), hash, "seed {seed}");
                    }
                }
            }
            records.check().unwrap();
        }
    }
}

/// Keys that collide in the hash without a secret: where four bytes of a key equal those of the hash's own secret,
/// it multiplies by zero, and the terms that it adds beside that cancel out.
#[test]
fn keys_that_are_made_to_fall_together_do_not() {
    let key = |n: u32| {
        let mut key = vec![0; 299];
        key[0] = Kind::Idempotency as u8;
        key[8..12].copy_from_slice(&[0x7c, 0x01, 0x81, 0x2c]);
        key[12..16].copy_from_slice(&n.to_le_bytes());
        key[72..76].copy_from_slice(&[0xde, 0xd4, 0x6d, 0xe9]);
        key[76..80].copy_from_slice(&n.wrapping_neg().to_le_bytes());
        key
    };
    let mut records = Records::new();
    let (mut places, without) = (BTreeSet::new(), xxh3_64(&key(1)));
    for n in 1..=20_000 {
        let key = key(n);
        assert_eq!(xxh3_64(&key), without, "the attack works without a secret");
        places.insert(records.place(&key));
        records.put(&key, Blob::empty());
    }
    assert!(places.len() > 19_990, "{} places for 20,000 keys", places.len());
    assert_eq!(records.len(), 20_000);
    records.check().unwrap();
}

#[test]
fn deleted_records_that_no_snapshot_holds_leave_no_slot() {
    let mut records = Records::new();
    for i in 0..10_000u32 {
        let key = RecordKey::process(&i.to_string());
        records.put(key.as_bytes(), Blob::empty());
        records.remove(key.as_bytes());
    }
    assert_eq!(records.slots.len(), 1);
    assert_eq!(records.dirty_len(), 1);
    assert_eq!(records.hash(), 0);
}

#[test]
fn cells_are_scanned_in_order() {
    let mut records = Records::new();
    for cell in ["b", "a", "c"] {
        records.put(RecordKey::cell("p", cell.as_bytes()).as_bytes(), Blob::from(cell.as_bytes()));
    }
    records.put(RecordKey::cell("q", b"a").as_bytes(), Blob::empty());
    let prefix = RecordKey::cell("p", b"");
    let found: Vec<_> = records.scan_cells_from(prefix.as_bytes()).map(|(_, value)| value.to_vec()).collect();
    assert_eq!(found, [&b"a"[..], b"b", b"c", b""]);
}

#[test]
fn damaged_sections_are_refused() {
    let mut section = Vec::new();
    encode_record(RecordKey::process("p").as_bytes(), Some(b"value"), &mut section);
    for cut in 1..section.len() {
        assert!(decode_records(&section[..cut]).any(|record| record.is_err()), "cut at {cut}");
    }
    section[2..6].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(decode_records(&section).next().unwrap().is_err());
}
