//! Targets for the input of users and clients: configuration, JSON, tokens, stored state, rows of a file.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use stead::{Config, Context, Never, NoQuery, Process, codec};
use stead_flights::row::{COLUMNS, Layout, parse_row};
use stead_gateway::http::transcode::{json_to_canonical_msgpack, json_to_msgpack, msgpack_to_json};
use stead_gateway::http::{Token, TokenKey};

/// A configuration: TOML, and after a zero byte lines of `NAME=VALUE` as environment variables.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (toml, vars) = text.split_once('\0').unwrap_or((&text, ""));
    let _ = Config::from_toml(toml, "input");
    let vars = vars.lines().filter_map(|line| line.split_once('='));
    let vars: Vec<_> = vars.map(|(name, value)| (format!("STEAD_{name}"), value.to_owned())).collect();
    if let Err(error) = Config::from_file_and_vars(None, vars) {
        assert!(!error.to_string().is_empty());
    }
}

/// JSON and MessagePack, as the gateway converts them into each other.
pub fn transcode(data: &[u8]) {
    if let Ok(packed) = json_to_msgpack(data) {
        let given: Value =
            if data.is_empty() { Value::Null } else { serde_json::from_slice(data).expect("it was JSON") };
        let back = msgpack_to_json(&packed).expect("what was JSON can be JSON again");
        let back: Value = serde_json::from_slice(&back).expect("the gateway writes JSON");
        assert_eq!(back, given);
        let canonical = json_to_canonical_msgpack(data).expect("it is JSON either way");
        let once = msgpack_to_json(&canonical).expect("JSON");
        assert_eq!(serde_json::from_slice::<Value>(&once).expect("JSON"), given);
        let again = json_to_canonical_msgpack(&once).expect("JSON");
        assert_eq!(again, canonical, "the canonical form of a canonical document is itself");
        assert_eq!(codec::payload_to_json(&packed).expect("the library reads it too"), given);
    }
    if let Ok(json) = msgpack_to_json(data) {
        serde_json::from_slice::<Value>(&json).expect("the gateway writes JSON");
    }
}

/// Payloads as the library reads them.
pub fn payload(data: &[u8]) {
    if let Ok(value) = codec::payload_to_json(data) {
        let bytes = codec::json_to_payload(&value).expect("JSON can be MessagePack");
        assert_eq!(codec::payload_to_json(&bytes).expect("what was encoded is read"), value);
    }
    let _ = codec::state_to_json(data);
    let _ = codec::decode::<stead::kv::Request>(data, "a request", "kv");
    let _ = codec::decode::<Shape>(data, "a request", "shape");
}

/// A token of a client; the key is fixed, so that the fuzzer may find a valid one.
pub fn http_token(data: &[u8]) {
    let key = TokenKey::new([7; 32]);
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(token) = key.verify(text)
    {
        assert_eq!(key.verify(&key.sign(&token)), Ok(token));
    }
    let mut numbers =
        data.chunks(8).map(|chunk| chunk.iter().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte)));
    let mut number = || numbers.next().unwrap_or_default();
    let (incarnation, epoch, index, colour) = (number(), number(), number(), number());
    let token = Token { incarnation, shard: number() as u32, epoch, index, colour };
    let mut text = key.sign(&token);
    assert_eq!(key.verify(&text), Ok(token));
    let at = number() as usize % text.len();
    let flipped = char::from(text.as_bytes()[at] ^ 1);
    text.replace_range(at..=at, &flipped.to_string());
    assert!(key.verify(&text).is_err(), "{text} was never signed");
}

/// A process whose state has fields of many types.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    name: String,
    numbers: Vec<i64>,
    nested: BTreeMap<String, Option<Box<Shape>>>,
    #[serde(default)]
    sort: Sort,
    bytes: (u8, Option<bool>, u64),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
enum Sort {
    #[default]
    Plain,
    Of(u32),
    With {
        left: Vec<String>,
        right: char,
    },
}

impl Shape {
    /// Returns a value with content in each field.
    #[must_use]
    pub fn sample() -> Self {
        let inner = Self { numbers: vec![1, -1, i64::MAX], sort: Sort::Of(7), ..Self::default() };
        Self {
            name: "sample".to_owned(),
            nested: BTreeMap::from([("a".to_owned(), Some(Box::new(inner))), ("b".to_owned(), None)]),
            sort: Sort::With { left: vec!["x".to_owned()], right: 'é' },
            bytes: (1, Some(true), u64::MAX),
            ..Self::default()
        }
    }
}

impl Process for Shape {
    const SERVICE: &'static str = "shape";
    const VERSION: u32 = 300;
    type Key = String;
    type Request = ();
    type Reply = ();
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, _: &mut Context<'_, Self>, (): ()) -> Result<(), Never> {
        Ok(())
    }

    fn migrate(_: u32, bytes: &[u8]) -> Result<Self, String> {
        codec::decode(bytes, "the state", Self::SERVICE).map_err(|error| error.to_string())
    }
}

/// The stored state of a process, with its version before it.
pub fn stored_state(data: &[u8]) {
    match codec::decode_state::<Shape>("key", data) {
        Ok(shape) => {
            let bytes = codec::encode_state(&shape).expect("a plain state can be written");
            assert_eq!(codec::decode_state::<Shape>("key", &bytes).expect("what was encoded is read"), shape);
        }
        Err(error) => assert!(error.to_string().starts_with("shape/key: ")),
    }
    let _ = codec::decode_state::<stead::kv::Kv>("key", data);
}

/// A line of a flights file under its header; without a line end, the data is the line.
pub fn flights_row(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let standard = COLUMNS.join(",");
    let (header, line) = text.split_once('\n').unwrap_or((&standard, &text));
    let Ok(layout) = Layout::parse(header) else { return };
    let Ok(row) = parse_row(line, &layout) else { return };
    // Written in the standard order, with the columns that a row keeps, it is the same row.
    let field = |column: &str| match column {
        // In quotes, because a code may contain quotes.
        "carrier" => format!("\"{}\"", row.carrier),
        "origin" => format!("\"{}\"", row.origin),
        "dest" => format!("\"{}\"", row.dest),
        "tailnum" => row.tail.map_or_else(|| "NA".to_owned(), |tail| format!("\"{tail}\"")),
        "dep_delay" => row.dep_delay.map_or_else(|| "NA".to_owned(), |delay| delay.to_string()),
        "distance" => row.distance.to_string(),
        _ => "1".to_owned(),
    };
    let written: Vec<String> = COLUMNS.iter().map(|column| field(column)).collect();
    let layout = Layout::parse(&standard).expect("it has all columns");
    assert_eq!(parse_row(&written.join(","), &layout), Ok(row));
    let bytes = format!("{standard}\n{line}\n");
    let _ = stead_flights::Flights::read(bytes.as_bytes(), stead_flights::OnMalformed::Skip);
}
