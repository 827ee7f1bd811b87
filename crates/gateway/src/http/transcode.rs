//! Converts between the JSON of clients and the MessagePack of services without knowing the services' types.
//!
//! Types that serde writes differently for people and for machines (`IpAddr`, for example) have the machines' form
//! here.

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use thiserror::Error;

/// Maximum nesting depth of JSON.
const DEPTH_MAX: usize = 128;

/// Errors of converting between JSON and MessagePack.
#[derive(Debug, Error)]
pub enum TranscodeError {
    /// The client's body is not a JSON document, or has a field twice.
    #[error("cannot read the body as JSON: {0}")]
    Json(serde_json::Error),
    /// An integer has more than 64 bits. As a float it would be rounded.
    #[error(
        "the integer {digits} at line {line} column {column} has more than 64 bits; send it as a string, or with a \
         fraction (`.0`) if it may be rounded"
    )]
    Integer {
        /// The integer; its beginning, if it is longer than 40 characters.
        digits: String,
        /// The line on which it begins, counted from 1.
        line: usize,
        /// The byte of that line at which it begins, counted from 1.
        column: usize,
    },
    /// The service's answer has no form in JSON.
    #[error("cannot write the service's answer as JSON: {0}")]
    Answer(serde_json::Error),
}

/// Converts a JSON document to MessagePack; an empty one is `null`.
///
/// # Errors
/// [`TranscodeError::Json`] if it is not JSON, nests deeper than 128 levels, has a field twice in one object, or is
/// followed by other text. [`TranscodeError::Integer`] for an integer over 64 bits.
pub fn json_to_msgpack(json: &[u8]) -> Result<Vec<u8>, TranscodeError> {
    pack(&read(json)?, json.len())
}

/// As [`json_to_msgpack`], with the fields of every object sorted: documents of the same meaning get the same bytes,
/// independent of their spaces and the order of their fields.
///
/// # Errors
/// As [`json_to_msgpack`].
pub fn json_to_canonical_msgpack(json: &[u8]) -> Result<Vec<u8>, TranscodeError> {
    let mut document = read(json)?;
    document.sort();
    pack(&document, json.len())
}

fn read(json: &[u8]) -> Result<Json<'_>, TranscodeError> {
    let json = if json.is_empty() { b"null".as_slice() } else { json };
    let document = serde_json::from_slice(json).map_err(TranscodeError::Json)?;
    refuse_large_integers(json)?;
    Ok(document)
}

fn pack(document: &Json<'_>, len: usize) -> Result<Vec<u8>, TranscodeError> {
    let mut out = Vec::with_capacity(len);
    document
        .serialize(&mut rmp_serde::Serializer::new(&mut out))
        .map_err(|error| TranscodeError::Json(de::Error::custom(error)))?;
    Ok(out)
}

/// A JSON document as written: the fields of objects in their order, none of them twice.
enum Json<'a> {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(Cow<'a, str>),
    Array(Vec<Self>),
    Object(Vec<(Cow<'a, str>, Self)>),
}

impl Json<'_> {
    fn sort(&mut self) {
        match self {
            Self::Array(items) => items.iter_mut().for_each(Self::sort),
            Self::Object(fields) => {
                fields.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
                fields.iter_mut().for_each(|(_, value)| value.sort());
            }
            Self::Null
            | Self::Bool(_)
            | Self::Unsigned(_)
            | Self::Signed(_)
            | Self::Float(_)
            | Self::Text(_) => {}
        }
    }
}

/// Returns the name of a field that appears twice.
fn repeated<'a>(fields: &'a [(Cow<'_, str>, Json<'_>)]) -> Option<&'a str> {
    /// Up to this many fields are compared pairwise.
    const FEW: usize = 8;
    if fields.len() <= FEW {
        let twice = |(at, (name, _)): (usize, &'a (Cow<'_, str>, Json<'_>))| {
            fields[..at].iter().any(|(other, _)| other == name).then_some(&**name)
        };
        return fields.iter().enumerate().find_map(twice);
    }
    let mut names: Vec<&str> = fields.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl<'de> Visitor<'de> for Whole {
            type Value = Json<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Json<'de>, E> {
                Ok(Json::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Json<'de>, E> {
                Ok(Json::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Json<'de>, E> {
                Ok(Json::Unsigned(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Json<'de>, E> {
                Ok(Json::Signed(value))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Json<'de>, E> {
                Ok(Json::Float(value))
            }

            fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Json<'de>, E> {
                Ok(Json::Text(Cow::Borrowed(value)))
            }

            fn visit_str<E>(self, value: &str) -> Result<Json<'de>, E> {
                Ok(Json::Text(Cow::Owned(value.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json<'de>, A::Error> {
                let mut array = Vec::new();
                while let Some(item) = items.next_element()? {
                    array.push(item);
                }
                Ok(Json::Array(array))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some((Name(name), value)) = members.next_entry()? {
                    fields.push((name, value));
                }
                match repeated(&fields) {
                    Some(name) => Err(de::Error::custom(format_args!("the field {name:?} appears twice"))),
                    None => Ok(Json::Object(fields)),
                }
            }
        }
        deserializer.deserialize_any(Whole)
    }
}

/// The name of a field, copied only if it is written with escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a field")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Unsigned(value) => serializer.serialize_u64(*value),
            Self::Signed(value) => serializer.serialize_i64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::Array(items) => serializer.collect_seq(items),
            Self::Object(fields) => serializer.collect_map(fields.iter().map(|(name, value)| (name, value))),
        }
    }
}

/// Refuses integers over 64 bits, which the parser reads as floats of another value. The document has been parsed
/// before: a digit or minus outside of strings therefore begins a number.
fn refuse_large_integers(json: &[u8]) -> Result<(), TranscodeError> {
    /// Integers of this many digits always fit.
    const DIGITS_FIT: usize = 18;
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        match byte {
            b'"' => at = string_end(json, at + 1),
            b'-' | b'0'..=b'9' => {
                let len = json[at..].iter().take_while(|byte| is_of_number(**byte)).count();
                let number = &json[at..at + len];
                let is_integer = !number.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E'));
                if is_integer && len > DIGITS_FIT && !fits(number) {
                    let before = &json[..at];
                    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                    return Err(TranscodeError::Integer {
                        digits: String::from_utf8_lossy(&number[..len.min(40)]).into_owned(),
                        line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
                        column: 1 + at - line_start,
                    });
                }
                at += len;
            }
            _ => at += 1,
        }
    }
    Ok(())
}

/// Returns the position after a string's closing quote.
fn string_end(json: &[u8], mut at: usize) -> usize {
    loop {
        match json.get(at) {
            None => return at,
            Some(b'"') => return at + 1,
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
        }
    }
}

fn is_of_number(byte: u8) -> bool {
    matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')
}

fn fits(integer: &[u8]) -> bool {
    std::str::from_utf8(integer).is_ok_and(|text| text.parse::<u64>().is_ok() || text.parse::<i64>().is_ok())
}

/// Converts MessagePack to JSON.
///
/// # Errors
/// [`TranscodeError::Answer`] if the bytes are not MessagePack or have no form in JSON (an object's key that is a list,
/// for example).
pub fn msgpack_to_json(bytes: &[u8]) -> Result<Vec<u8>, TranscodeError> {
    let mut from = rmp_serde::Deserializer::from_read_ref(bytes);
    // As deep as JSON may be: an answer must not overflow the stack of the thread that writes it.
    from.set_max_depth(DEPTH_MAX);
    let mut out = Vec::with_capacity(bytes.len() + 16);
    serde_transcode::transcode(&mut from, &mut serde_json::Serializer::new(&mut out))
        .map_err(TranscodeError::Answer)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
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
    fn a_field_that_is_there_twice_is_refused_with_and_without_an_order() {
        let many: String = (0..20).map(|n| format!(r#""f{n}":0,"#)).collect();
        for twice in [
            r#"{"a":1,"a":1}"#.to_owned(),
            r#"{"a":1,"b":2,"\u0061":3}"#.to_owned(),
            r#"[{"x":{"deep":[{"k":1,"j":{},"k":2}]}}]"#.to_owned(),
            format!(r#"{{{many}"f7":1}}"#),
        ] {
            for read in [json_to_msgpack(twice.as_bytes()), json_to_canonical_msgpack(twice.as_bytes())] {
                let error = read.unwrap_err().to_string();
                assert!(error.contains("twice") && error.contains("column"), "{twice}: {error}");
            }
        }
        let once = format!(r#"{{{many}"a":{{"a":[{{"a":1}},{{"a":1}}]}}}}"#);
        assert!(json_to_msgpack(once.as_bytes()).is_ok(), "in other objects the name may come again");
    }

    #[test]
    fn an_integer_over_64_bits_is_refused_and_never_rounded() {
        for large in ["18446744073709551616", "-9223372036854775809", &"9".repeat(400)] {
            for json in [large.to_owned(), format!("{{\"a\\\\\": \"\\\"\",\n \"b\": [1, {large}]}}")] {
                for read in [json_to_msgpack(json.as_bytes()), json_to_canonical_msgpack(json.as_bytes())] {
                    match read.unwrap_err() {
                        TranscodeError::Integer { digits, line, column } => {
                            assert!(large.starts_with(&digits), "{digits}");
                            assert_eq!((line, column), if json == large { (1, 1) } else { (2, 11) });
                        }
                        // One with more digits than a float has.
                        TranscodeError::Json(error) => {
                            assert!(error.to_string().contains("range"), "{error}")
                        }
                        other => panic!("{other}"),
                    }
                }
            }
        }
        for fits in [
            "18446744073709551615",
            "-9223372036854775808",
            "1e30",
            "12345678901234567890123.0",
            "\"98765432109876543210987\"",
        ] {
            let back = msgpack_to_json(&json_to_msgpack(fits.as_bytes()).unwrap()).unwrap();
            let (back, fits): (Value, Value) =
                (serde_json::from_slice(&back).unwrap(), serde_json::from_str(fits).unwrap());
            assert_eq!(back, fits);
        }
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        let deep = [b"[".repeat(10_000), b"]".repeat(10_000)].concat();
        for bad in [b"{".as_slice(), b"{\"a\":}", b"1 2", b"\xff", b"nul", &deep] {
            let error = json_to_msgpack(bad).unwrap_err().to_string();
            assert!(error.contains("as JSON") && error.contains("column"), "{error}");
            assert!(json_to_canonical_msgpack(bad).is_err());
        }
        // The deepest accepted document can be converted back.
        let deepest = [b"[".repeat(127), b"]".repeat(127)].concat();
        assert_eq!(msgpack_to_json(&json_to_msgpack(&deepest).unwrap()).unwrap(), deepest);
        assert_eq!(json_to_msgpack(b"").unwrap(), json_to_msgpack(b"null").unwrap());
    }

    #[test]
    fn an_answer_without_a_form_in_json_is_reported() {
        let keys = std::collections::BTreeMap::from([(vec![1, 2], 3)]);
        assert!(msgpack_to_json(&rmp_serde::to_vec_named(&keys).unwrap()).is_err());
        assert!(msgpack_to_json(b"\xc1").is_err());
        assert!(msgpack_to_json(b"").is_err());
        assert!(msgpack_to_json(&[[0x91; 100_000].as_slice(), &[1]].concat()).is_err(), "too deep");
    }
}
