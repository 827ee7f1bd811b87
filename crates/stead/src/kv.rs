//! The built-in service `kv`: each process is one key of a table, and holds a JSON value.

use crate::context::{Context, QueryContext};
use crate::process::{Never, Process};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One key of the table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kv {
    value: Option<Value>,
}

/// What a key can be asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Puts a value; `null` deletes the key.
    Put {
        /// The value.
        value: Value,
    },
    /// Deletes the key.
    Delete,
    /// Puts a value, or deletes the key with none, only if it now holds what is expected.
    CompareAndSet {
        /// What the key must hold; `None`: nothing.
        expected: Option<Value>,
        /// What it shall hold then.
        value: Option<Value>,
    },
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// Whether the request was carried out; a comparison may have failed.
    pub applied: bool,
    /// What the key held before.
    pub previous: Option<Value>,
}

/// What can be read of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<Changed, Never> {
        let wanted = match request {
            Request::Put { value } => Some(value).filter(|value| !value.is_null()),
            Request::Delete => None,
            Request::CompareAndSet { expected, value } => {
                if self.value != expected {
                    return Ok(Changed { applied: false, previous: self.value.clone() });
                }
                value
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
