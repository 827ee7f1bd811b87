//! JSON in and out, MessagePack inside: the gateway turns one into the other without knowing the types of a service.
//!
//! Types that serde writes differently for people and for machines (`IpAddr`, say) have their machine's form here.

use serde_json::Value;
use thiserror::Error;

/// Levels that JSON may have here.
const DEPTH_MAX: usize = 128;

/// Why JSON and MessagePack could not be turned into each other.
#[derive(Debug, Error)]
pub enum TranscodeError {
    /// What the client sent is no JSON document.
    #[error("the body is not JSON: {0}")]
    Json(serde_json::Error),
    /// What the service answered has no form in JSON.
    #[error("the service's answer can't be written as JSON: {0}")]
    Answer(serde_json::Error),
}

/// The MessagePack of a JSON document; an empty one is `null`.
///
/// # Errors
/// [`TranscodeError::Json`] if it is none, goes deeper than 128 levels, or something follows it.
pub fn json_to_msgpack(json: &[u8]) -> Result<Vec<u8>, TranscodeError> {
    let json = if json.is_empty() { b"null".as_slice() } else { json };
    let mut from = serde_json::Deserializer::from_slice(json);
    let mut out = Vec::with_capacity(json.len());
    serde_transcode::transcode(&mut from, &mut rmp_serde::Serializer::new(&mut out))
        .map_err(|error| TranscodeError::Json(json_error(error, json)))?;
    from.end().map_err(TranscodeError::Json)?;
    Ok(out)
}

/// As [`json_to_msgpack`], with the keys of every object in one order and the last of equal ones: documents that
/// say the same get the same bytes, whatever their spaces and the order of their fields.
///
/// # Errors
/// As [`json_to_msgpack`].
pub fn json_to_canonical_msgpack(json: &[u8]) -> Result<Vec<u8>, TranscodeError> {
    let json = if json.is_empty() { b"null".as_slice() } else { json };
    let value: Value = serde_json::from_slice(json).map_err(TranscodeError::Json)?;
    let mut out = Vec::with_capacity(json.len());
    serde_transcode::transcode(value, &mut rmp_serde::Serializer::new(&mut out))
        .map_err(|error| TranscodeError::Json(json_error(error, json)))?;
    Ok(out)
}

/// The JSON of MessagePack.
///
/// # Errors
/// [`TranscodeError::Answer`] if the bytes are no MessagePack or have no form in JSON (an object's key that is a list, say).
pub fn msgpack_to_json(bytes: &[u8]) -> Result<Vec<u8>, TranscodeError> {
    let mut from = rmp_serde::Deserializer::from_read_ref(bytes);
    // As deep as JSON may be: an answer must not fill the stack of the thread that writes it.
    from.set_max_depth(DEPTH_MAX);
    let mut out = Vec::with_capacity(bytes.len() + 16);
    serde_transcode::transcode(&mut from, &mut serde_json::Serializer::new(&mut out))
        .map_err(TranscodeError::Answer)?;
    Ok(out)
}

/// The writing end fails only because the reading end did: read again for the error that names the place.
fn json_error(error: rmp_serde::encode::Error, json: &[u8]) -> serde_json::Error {
    match serde_json::from_slice::<Value>(json) {
        Err(named) => named,
        Ok(_) => serde::ser::Error::custom(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Request {
        Get,
        Put { value: Value, ttl: Option<f64> },
        Add(u64, i8),
        Named(String),
    }

    #[test]
    fn typed_requests_arrive_as_they_were_written() {
        for (json, request) in [
            (r#""Get""#, Request::Get),
            (
                r#" {"Put": {"value": {"b": [1, -2, 1.5, null, true], "a": "é"}, "ttl": 3}} "#,
                Request::Put {
                    value: serde_json::json!({"b": [1, -2, 1.5, null, true], "a": "é"}),
                    ttl: Some(3.0),
                },
            ),
            (r#"{"Add":[18446744073709551615,-1]}"#, Request::Add(u64::MAX, -1)),
            (r#"{"Named":"x"}"#, Request::Named("x".into())),
        ] {
            for bytes in [json_to_msgpack(json.as_bytes()), json_to_canonical_msgpack(json.as_bytes())] {
                let bytes = bytes.unwrap();
                assert_eq!(rmp_serde::from_slice::<Request>(&bytes).unwrap(), request, "{json}");
            }
            let back = msgpack_to_json(&rmp_serde::to_vec_named(&request).unwrap()).unwrap();
            assert_eq!(serde_json::from_slice::<Request>(&back).unwrap(), request, "{json}");
        }
    }

    #[test]
    fn canonical_bytes_do_not_depend_on_order_and_spaces() {
        let a = json_to_canonical_msgpack(br#"{"a":1,"b":{"x":[],"y":2}}"#).unwrap();
        let b = json_to_canonical_msgpack(br#" { "b" : {"y":2,"x":[]}, "a":1 }"#).unwrap();
        assert_eq!(a, b);
        assert_ne!(a, json_to_canonical_msgpack(br#"{"a":1,"b":{"x":[],"y":3}}"#).unwrap());
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        let deep = [b"[".repeat(10_000), b"]".repeat(10_000)].concat();
        for bad in [b"{".as_slice(), b"{\"a\":}", b"1 2", b"\xff", b"nul", &deep] {
            let error = json_to_msgpack(bad).unwrap_err().to_string();
            assert!(error.contains("not JSON") && error.contains("column"), "{error}");
            assert!(json_to_canonical_msgpack(bad).is_err());
        }
        // What is let in can be told again.
        let deepest = [b"[".repeat(127), b"]".repeat(127)].concat();
        assert_eq!(msgpack_to_json(&json_to_msgpack(&deepest).unwrap()).unwrap(), deepest);
        assert_eq!(json_to_msgpack(b"").unwrap(), json_to_msgpack(b"null").unwrap());
    }

    #[test]
    fn an_answer_without_a_form_in_json_is_told() {
        let keys = std::collections::BTreeMap::from([(vec![1, 2], 3)]);
        assert!(msgpack_to_json(&rmp_serde::to_vec_named(&keys).unwrap()).is_err());
        assert!(msgpack_to_json(b"\xc1").is_err());
        assert!(msgpack_to_json(b"").is_err());
        assert!(msgpack_to_json(&[[0x91; 100_000].as_slice(), &[1]].concat()).is_err(), "too deep");
    }
}
