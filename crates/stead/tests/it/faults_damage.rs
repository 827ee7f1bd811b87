//! Damages each file of a data directory in each way: the start is refused with the file's name and a hint, nothing is
//! changed, and once the file is put back all answered requests are there.

use crate::services::{Account, Ask, Look, builder, key};
use std::fs;
use std::path::{Path, PathBuf};

const DEPOSITS: i64 = 20;

/// A data directory with two checkpoints and entries after them.
fn data() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).segment_bytes(64 << 10).open().unwrap();
    let client = node.blocking_client();
    for at in 0..DEPOSITS {
        client.call::<Account>(&key("a"), Ask::Deposit(1)).unwrap();
        if at == 5 || at == 10 {
            node.checkpoint_blocking().unwrap();
        }
    }
    node.shutdown();
    dir
}

fn opens(dir: &Path) {
    let node = builder(dir).segment_bytes(64 << 10).open().unwrap();
    let balance = node.blocking_client().query::<Account>(&key("a"), Look::Balance).unwrap();
    assert_eq!(balance, DEPOSITS);
    node.shutdown();
}

fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().unwrap() != "LOCK" {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// Opens damaged data: it must be refused, with these words, and left unchanged.
fn refused(dir: &Path, words: &[&str]) {
    let before = files(dir);
    let error = builder(dir).segment_bytes(64 << 10).open().err().expect("damaged data was opened");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
    assert!(files(dir) == before, "refused data was changed: {text}");
}

/// Returns the files that matter: the metadata, the log's first segment, the newest manifest and its bundle.
fn targets(dir: &Path) -> Vec<(PathBuf, &'static [&'static str])> {
    let newest = |sub: &str| {
        let mut names: Vec<_> =
            fs::read_dir(dir.join(sub)).unwrap().map(|entry| entry.unwrap().path()).collect();
        // The contents of a trimmed segment do not matter.
        names.retain(|path| path.extension().is_none_or(|end| end != "free"));
        names.sort();
        names
    };
    let facts: &[&str] = &["stead.json", "put it back from a backup, or restore a checkpoint"];
    let log: &[&str] = &[".log", "get the data from another replica or a checkpoint"];
    let checkpoint: &[&str] = &["checkpoint", "repair that file from a copy, or restore an older checkpoint"];
    vec![
        (dir.join("stead.json"), facts),
        (newest("wal").remove(0), log),
        (newest("checkpoints/manifests").pop().unwrap(), checkpoint),
        (newest("checkpoints/bundles").pop().unwrap(), checkpoint),
    ]
}

/// Damages each file in turn, and puts it back.
fn each(damage: impl Fn(&Path, &mut Vec<u8>)) {
    let dir = data();
    for (path, words) in targets(dir.path()) {
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        damage(&path, &mut bytes);
        assert!(bytes != whole);
        fs::write(&path, &bytes).unwrap();
        refused(dir.path(), words);
        fs::write(&path, &whole).unwrap();
    }
    opens(dir.path());
}

#[test]
fn a_truncated_file_is_refused() {
    each(|_, bytes| bytes.truncate(bytes.len() / 2));
    each(|_, bytes| bytes.clear());
}

#[test]
fn a_flipped_bit_is_refused() {
    // Within the part of a segment that was written; its end is unused zeros.
    let used = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).unwrap();
    each(|_, bytes| {
        let at = used(bytes) / 2;
        bytes[at] ^= 4;
    });
    each(|_, bytes| bytes[20] ^= 1);
}

#[test]
fn an_older_or_another_file_in_its_place_is_refused() {
    // Two directories, each of them undamaged.
    let (dir, other) = (data(), data());
    for ((path, words), (strange, _)) in targets(dir.path()).into_iter().zip(targets(other.path())) {
        if path.ends_with("stead.json") {
            continue;
        }
        let whole = fs::read(&path).unwrap();
        fs::copy(&strange, &path).unwrap();
        // A log of another node is recognised as such.
        refused(
            dir.path(),
            if path.extension().is_some_and(|end| end == "log") {
                &[".log", "belongs to log"]
            } else {
                words
            },
        );
        fs::write(&path, &whole).unwrap();
    }
    // The older manifest under the newer one's name.
    let (newest, words) = targets(dir.path()).swap_remove(2);
    let older = newest.with_file_name("00000000000000000001.json");
    let whole = fs::read(&newest).unwrap();
    fs::copy(&older, &newest).unwrap();
    refused(dir.path(), words);
    fs::write(&newest, &whole).unwrap();
    opens(dir.path());
}

#[test]
fn the_facts_of_another_node_do_not_open_this_ones_log() {
    let (dir, other) = (data(), data());
    let path = dir.path().join("stead.json");
    let whole = fs::read(&path).unwrap();
    fs::copy(other.path().join("stead.json"), &path).unwrap();
    refused(dir.path(), &["files of two clusters were mixed"]);
    // The log knows its own as well.
    let (checkpoints, aside) = (dir.path().join("checkpoints"), other.path().join("aside"));
    fs::rename(&checkpoints, &aside).unwrap();
    refused(dir.path(), &["belongs to log"]);
    fs::remove_dir_all(&checkpoints).unwrap();
    fs::rename(&aside, &checkpoints).unwrap();
    fs::write(&path, whole).unwrap();
    opens(dir.path());
}

#[test]
fn a_missing_file_is_refused() {
    let dir = data();
    for (path, _) in targets(dir.path()) {
        let whole = fs::read(&path).unwrap();
        let named = path.file_name().unwrap().to_str().unwrap().to_owned();
        // Without its newest manifest, a data directory has either a log that was trimmed too far, or no missing data:
        // then all of it must be there.
        if named.ends_with(".json") && named != "stead.json" {
            continue;
        }
        fs::remove_file(&path).unwrap();
        refused(dir.path(), &[&named]);
        fs::write(&path, &whole).unwrap();
    }
    opens(dir.path());
}

#[test]
fn a_data_directory_without_its_newest_manifest_has_all_or_is_refused() {
    let dir = data();
    let (newest, _) = targets(dir.path()).swap_remove(2);
    fs::remove_file(newest).unwrap();
    match builder(dir.path()).segment_bytes(64 << 10).open() {
        Ok(node) => {
            let balance = node.blocking_client().query::<Account>(&key("a"), Look::Balance).unwrap();
            assert_eq!(balance, DEPOSITS);
        }
        Err(error) => assert!(error.to_string().contains("log"), "{error}"),
    }
}

#[test]
fn an_unknown_version_is_distinguished_from_damage() {
    let dir = data();
    for (path, _) in targets(dir.path()) {
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".bundle") || name.ends_with(".log") {
            bytes[8] = 9;
        } else {
            let text = String::from_utf8(bytes).unwrap();
            let later = text
                .replace("\"format\": 2", "\"format\": 9")
                .replace("\"format\":1", "\"format\":9")
                .replace("\"format\":2", "\"format\":9");
            bytes = later.into_bytes();
        }
        assert!(bytes != whole, "{name}");
        fs::write(&path, &bytes).unwrap();
        refused(dir.path(), &["format version 9", "this program reads version", "; use "]);
        fs::write(&path, &whole).unwrap();
    }
    opens(dir.path());
}
