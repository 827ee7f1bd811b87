//! Inputs to begin with: what the real encoders write.

use crate::checkpoints;
use crate::control;
use crate::edge::Shape;
use crate::native;
use crate::network::{sample_frames, sample_messages};
use crate::protocol::sample_entries;
use serde_json::json;
use stead_core::control::{Command, ControlState};
use stead_core::ids::NodeId;
use stead_core::record::encode_value;
use stead_core::records::encode_record;

fn framed(parts: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(&(part.len() as u16).to_le_bytes());
        out.extend_from_slice(&part);
    }
    out
}

fn prefixed(prefix: &[u8], bytes: &[u8]) -> Vec<u8> {
    [prefix, bytes].concat()
}

/// The seeds of all targets: target, name, bytes.
#[must_use]
pub fn all() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds: Vec<(&'static str, String, Vec<u8>)> = Vec::new();
    let mut add = |target, name: &str, bytes: Vec<u8>| seeds.push((target, name.to_owned(), bytes));
    let entries = sample_entries();
    let encoded = |entry: &stead_core::entry::Entry| {
        let mut bytes = Vec::new();
        entry.encode_into(&mut bytes);
        bytes
    };
    for (at, entry) in entries.iter().enumerate() {
        add("entry", &format!("cause-{at:02}"), encoded(entry));
    }
    add("state", "log", framed(entries.iter().map(encoded)));
    let mut section = Vec::new();
    for (at, write) in entries.iter().flat_map(|entry| &entry.writes).enumerate() {
        add("record_key", &format!("write-{at:02}"), write.key.as_bytes().to_vec());
        encode_record(write.key.as_bytes(), write.value.as_deref(), &mut section);
        if let Some(value) = &write.value {
            let kind = (write.key.kind() as u8).wrapping_sub(3) % 8;
            add("record_value", &format!("write-{at:02}"), prefixed(&[kind], value));
        }
    }
    add("records", "section", section);

    let template = checkpoints::template();
    for (at, header) in template.headers.iter().enumerate() {
        add("header", &format!("part-{at}"), encode_value(header).to_vec());
    }
    add("cut", "two-parts", framed(template.headers.iter().map(|header| encode_value(header).to_vec())));
    let manifest = template.manifest.encode();
    let body = serde_json::to_vec(&template.manifest).expect("a manifest is JSON");
    add("manifest", "whole", prefixed(&[0], &manifest));
    add("manifest", "body-2", prefixed(&[5], &body));
    let mut older = template.manifest.clone();
    older.cluster = None;
    older.bundles.iter_mut().for_each(|bundle| bundle.node = NodeId::FIRST);
    older.parts.iter_mut().for_each(|part| part.node = NodeId::FIRST);
    let body = serde_json::to_vec(&older).expect("a manifest is JSON");
    add("manifest", "body", prefixed(&[1], &body));
    let mut tombstone = json!({"incarnation": 9, "number": 3, "created": 5, "writer": 4, "reason": "full"});
    add("manifest", "tombstone", prefixed(&[3], tombstone.to_string().as_bytes()));
    tombstone["cluster"] = format!("{:032x}", 6).into();
    add("manifest", "tombstone-2", prefixed(&[7], tombstone.to_string().as_bytes()));
    add("bundle", "flip", vec![0, 0, 40, 0, 3]);
    add("bundle", "index", vec![1, 1, 0, 2, 0, 5]);
    add("wal_damage", "flip", vec![0, 1, 0, 0, 3, 1]);
    add("wal_damage", "zero", vec![0, 2, 2, 0, 4, 0, 16]);
    add("wal_damage", "mended", vec![1, 0, 1, 80, 2, 4, 9, 9, 9, 9]);
    let record = prefixed(&[3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], b"abc");
    let one = prefixed(&[0, 27, 0], &record);
    add("wal_segment", "three-batches", [&[1, 1, 0, 0, 0][..], &one, &one].concat());
    add("wal_segment", "strange", [&[1, 1, 0, 0, 0][..], &[1, 27, 0], &record, &[9, 0, 0], &one].concat());

    let frames = sample_frames();
    add("frames", "whole", prefixed(&[0, 44, 1, 30, 0, 200, 3, 1, 9], &frames));
    add("frames", "mended", prefixed(&[1, 0, 0, 0, 0, 0, 0, 0, 0], &frames));

    add("messages", "each-kind", sample_messages());
    for (at, bytes) in native::samples().into_iter().enumerate() {
        add("native", &format!("content-{at:02}"), bytes);
    }
    let commands = control::sample_commands();
    add("commands", "cluster", framed(commands.iter().map(Command::encode)));
    let mut state = ControlState::default();
    for (at, command) in commands.into_iter().enumerate() {
        add("control", &format!("command-{at:02}"), prefixed(&[0], &command.encode()));
        let outcome = state.apply(command);
        add("control", &format!("outcome-{at:02}"), prefixed(&[1], &outcome.encode()));
    }
    add("control", "state", prefixed(&[4], &state.encode()));
    let (facts, requests) = control::sample_messages();
    for (at, fact) in facts.iter().enumerate() {
        add("control", &format!("fact-{at}"), prefixed(&[2], &fact.encode()));
    }
    for (at, request) in requests.iter().enumerate() {
        add("control", &format!("request-{at}"), prefixed(&[3], &request.encode()));
    }

    let table = [0x84, 4, 0, 0, 0, 0, 2, 1, 3];
    let promise = [0x82, 3, 0, 0, 0, 1, 1, 4];
    let cut = [0x83, 3, 0, 0, 0, 1, 4, 7];
    let entry = [0x81, 6, 0, 0, 0, 1, 4, 8, b'a', b'b', b'c'];
    let numbers = [0x01, 1, 0, 0, 0, 9];
    let payload = [&table[..], &promise, &cut, &entry, &numbers].concat();
    let second = prefixed(&[0, payload.len() as u8, 0], &payload);
    add("wal_segment", "version-2", prefixed(&[0x81, 0], &second));
    let (first, after) = (prefixed(&[0, table.len() as u8, 0], &table), prefixed(&[0, 11, 0], &entry));
    add("wal_segment", "version-2-two-batches", [&[0x81, 1][..], &first, &after].concat());

    let facts = json!({"cluster": "0f", "incarnation": 1, "node": 1, "lives": 3, "epoch_floor": 2, "log_id": "ff",
        "log_created": true, "services": [{"name": "kv", "first_shard": 0, "shards": 8}]});
    add("data_dir", "facts-2", facts.to_string().into_bytes());
    let facts = json!({"cluster": "0f", "incarnation": 1, "epoch": 2, "log_id": "ff", "log_created": true,
        "services": [{"name": "kv", "first_shard": 0, "shards": 8}]});
    add("data_dir", "facts", facts.to_string().into_bytes());
    let file = json!({"format": 1, "checksum": "00000000", "meta": facts});
    add("data_dir", "file", file.to_string().into_bytes());
    let toml = "threads = 2\nhandler_timeout = \"3s\"\n[checkpoints]\ninterval = \"1s\"\nkeep = 3\n[services.a]\nshards = 4\n";
    let vars =
        "THREADS=4\nCHECKPOINTS_KEEP=9\nSERVICES_A_SESSION_TTL=1m\nDATA_DIR=/x\nLOG_SEGMENT_BYTES=65536\n";
    add("config", "both", format!("{toml}\0{vars}").into_bytes());
    let document =
        json!({"put": {"value": [1, -2, 2.5, "é", null, true, {"y": {}}, 18_446_744_073_709_551_615u64]}});
    add("transcode", "json", document.to_string().into_bytes());
    let packed = rmp_serde::to_vec_named(&document).expect("plain JSON");
    add("transcode", "msgpack", packed.clone());
    add("payload", "json", packed);
    let shape = Shape::sample();
    add("payload", "shape", rmp_serde::to_vec_named(&shape).expect("a plain struct"));
    let state = stead::codec::encode_state(&shape).expect("a plain struct");
    add("stored_state", "now", state.to_vec());
    add("stored_state", "older", prefixed(&[7], &state[3..]));
    let key = stead_gateway::http::TokenKey::new([7; 32]);
    let token = stead_gateway::http::Token { incarnation: 1, shard: 2, epoch: 3, index: 4, colour: 5 };
    add("http_token", "good", key.sign(&token).into_bytes());
    let row = "2013,1,1,517,515,2,830,819,11,UA,1545,N14228,EWR,IAH,227,1400,5,15,2013-01-01 05:00:00";
    add("flights_row", "row", row.as_bytes().to_vec());
    let header = stead_flights::row::COLUMNS.join(",");
    add("flights_row", "header", format!("{header}\n{}", row.replace("N14228", "NA")).into_bytes());
    seeds
}
