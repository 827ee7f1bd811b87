//! The built-in service `kv`: each process is one key of a table, and holds a JSON value.

use super::context::{Context, QueryContext};
use super::process::{Never, Process};
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

/// One key of the table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kv {
    value: Option<Value>,
}

/// A request to a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Puts a value; `null` deletes the key.
    Put {
        /// The value.
        #[cfg_attr(feature = "schemars", schemars(with = "super::Json"))]
        value: Value,
    },
    /// Deletes the key.
    Delete,
    /// Puts a value, or deletes the key with `null`, only if it has the expected value. Numbers are compared by their
    /// value: 10 and 10.0 are equal. Both fields are required.
    CompareAndSet {
        /// The expected value; `None` for no value.
        #[serde(deserialize_with = "Option::deserialize")]
        #[cfg_attr(feature = "schemars", schemars(with = "super::Json"))]
        expected: Option<Value>,
        /// The new value; `None` for no value.
        #[serde(deserialize_with = "Option::deserialize")]
        #[cfg_attr(feature = "schemars", schemars(with = "super::Json"))]
        value: Option<Value>,
    },
}

/// The result of a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Changed {
    /// Whether the request was applied; a comparison may have failed.
    pub applied: bool,
    /// The previous value of the key.
    pub previous: Option<Value>,
}

/// A query of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Query {
    /// The value.
    Get,
}

impl Process for Kv {
    const SERVICE: &'static str = "kv";
    type Key = String;
    type Request = Request;
    type Reply = Changed;
    type Error = Never;
    type Query = Query;
    type Answer = Option<Value>;

    #[cfg(feature = "schemars")]
    fn schemas() -> Option<super::Schemas> {
        Some(super::Schemas::of::<Self>())
    }

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<Changed, Never> {
        let wanted = match request {
            Request::Put { value } => Some(value).filter(|value| !value.is_null()),
            Request::Delete => None,
            Request::CompareAndSet { expected, value } => {
                let expected = expected.filter(|value| !value.is_null());
                let holds = match (&self.value, &expected) {
                    (Some(value), Some(expected)) => same(value, expected),
                    (value, expected) => value.is_none() && expected.is_none(),
                };
                if !holds {
                    return Ok(Changed { applied: false, previous: self.value.clone() });
                }
                value.filter(|value| !value.is_null())
            }
        };
        let previous = std::mem::replace(&mut self.value, wanted);
        if self.value.is_none() {
            ctx.forget();
        }
        Ok(Changed { applied: true, previous })
    }

    fn query(&self, _: &QueryContext<'_, Self>, query: Query) -> Result<Option<Value>, Never> {
        match query {
            Query::Get => Ok(self.value.clone()),
        }
    }
}

/// Whether two values are equal for clients of JSON, which has one kind of number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => same_number(a, b),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

fn same_number(a: &Number, b: &Number) -> bool {
    match (a.as_i128(), b.as_i128()) {
        (Some(a), Some(b)) => a == b,
        (Some(integer), None) => is_integer(b, integer),
        (None, Some(integer)) => is_integer(a, integer),
        (None, None) => a.as_f64() == b.as_f64(),
    }
}

/// Whether a float has exactly this value; rounding the integer would make neighbours of 2^53 equal.
fn is_integer(float: &Number, integer: i128) -> bool {
    float.as_f64().is_some_and(|float| float.fract() == 0.0 && float.abs() < 1e30 && float as i128 == integer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::codec;
    use serde_json::json;

    #[test]
    fn numbers_are_compared_by_their_value() {
        for (a, b) in [
            (json!(10), json!(10.0)),
            (json!(0), json!(-0.0)),
            (json!({"a": [1, {"b": -2.0}]}), json!({"a": [1.0, {"b": -2}]})),
            (json!(u64::MAX), json!(u64::MAX)),
            (json!(1e300), json!(1e300)),
        ] {
            assert!(same(&a, &b) && same(&b, &a), "{a} {b}");
        }
        for (a, b) in [
            (json!(10), json!(10.5)),
            (json!(9_007_199_254_740_993_u64), json!(9_007_199_254_740_992.0)),
            (json!(u64::MAX), json!(18_446_744_073_709_551_616.0)),
            (json!(1), json!("1")),
            (json!(1), json!(true)),
            (json!([1, 2]), json!([1])),
            (json!({"a": 1}), json!({"b": 1})),
            (json!({"a": null}), json!({})),
        ] {
            assert!(!same(&a, &b) && !same(&b, &a), "{a} {b}");
        }
    }

    #[test]
    fn requests_with_other_fields_or_without_one_are_refused() {
        for refused in [
            json!({"compare_and_set": {"expected": "precious", "vaule": "new"}}),
            json!({"compare_and_set": {"expected": "precious", "value": "new", "ttl": 5}}),
            json!({"compare_and_set": {"expected": "precious"}}),
            json!({"compare_and_set": {"value": "new"}}),
            json!({"put": {"value": 1, "ttl": 5}}),
            json!({"put": {}}),
            json!({"put": {"value": 1}, "delete": null}),
            json!({"delete": {"if": 1}}),
            json!("put"),
        ] {
            let bytes = codec::json_to_payload(&refused).unwrap();
            let read = codec::decode::<Request>(&bytes, "a request", "kv");
            assert!(read.is_err(), "{refused}: {read:?}");
        }
        let request = Request::CompareAndSet { expected: None, value: Some(json!(1)) };
        let bytes = codec::encode(&request, "a request", "kv").unwrap();
        assert_eq!(codec::decode::<Request>(&bytes, "a request", "kv"), Ok(request));
    }
}
