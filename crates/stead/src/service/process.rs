//! The traits of a user's process and its key.

use super::context::{Context, QueryContext};
use super::cut::Cut;
use super::schema::Schemas;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::str::FromStr;

/// An addressable stateful object, `service/key`, that handles one message at a time.
///
/// The value itself is the state. It is stored whole after each call that changed it; large data belongs into cells
/// ([`Context::put_cell`]), of which only the changed ones are stored. A process exists from its first call on, and
/// begins as its `Default`.
///
/// State and requests are stored as MessagePack with field names, so that they may evolve: a new field needs
/// `#[serde(default)]`, a removed field is ignored, a renamed field or variant needs `#[serde(alias = "old")]`. For
/// anything else raise [`Self::VERSION`] and write [`Self::migrate`]. State that cannot be read is refused with the
/// process, the version and the reason; it is never replaced by a fresh start.
pub trait Process: Serialize + DeserializeOwned + Default + Send + 'static {
    /// The name of the service: 1 to 128 characters of `a-z A-Z 0-9 _ - .`
    const SERVICE: &'static str;
    /// The version of the stored state. State of a lower version goes through [`Self::migrate`].
    const VERSION: u32 = 1;
    /// The key of a process within its service.
    type Key: ProcessKey;
    /// A request of clients, other processes, timers and tasks.
    type Request: Serialize + DeserializeOwned + Send + 'static;
    /// The reply to a request.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// The error with which it may answer instead; [`Never`] if there is none.
    type Error: Serialize + DeserializeOwned + Send + Display + 'static;
    /// A query, which changes nothing; [`NoQuery`] if there is none.
    type Query: Serialize + DeserializeOwned + Send + 'static;
    /// The answer to a query; `()` if there is none.
    type Answer: Serialize + DeserializeOwned + Send + 'static;

    /// Handles one request. All of its effects, on `self` and through `ctx`, are kept together or not at all.
    ///
    /// It runs once for each cause and is never repeated once it has answered, so it may use clocks, randomness and
    /// hash maps freely. It holds its shard: expensive work belongs into a [`Task`](crate::Task).
    ///
    /// # Errors
    /// An error is an answer: it is kept for a retry of the same request, and all other effects of the call are
    /// dropped.
    ///
    /// # Panics
    /// A panic leaves no trace except the caller's refusal.
    fn handle(
        &mut self,
        ctx: &mut Context<'_, Self>,
        request: Self::Request,
    ) -> Result<Self::Reply, Self::Error>;

    /// Returns the JSON schemas of this service's types, for the OpenAPI document of `http`: none by default, so that
    /// any JSON is allowed there.
    fn schemas() -> Option<Schemas> {
        None
    }

    /// Whether a request is internal: sent by processes, timers and tasks only. Clients that send one, over HTTP or from
    /// [`Client`](crate::Client), are refused before [`Self::handle`] runs, and nothing is changed. By default no request is
    /// internal. A service for other processes alone returns `true` for all of them.
    ///
    /// ```
    /// # enum Request { Pay { amount: u64 }, Refund { amount: u64 } }
    /// fn internal(request: &Request) -> bool {
    ///     matches!(request, Request::Refund { .. })
    /// }
    /// ```
    fn internal(request: &Self::Request) -> bool {
        let _ = request;
        false
    }

    /// Answers a query from the state, which it cannot change.
    ///
    /// It sees its process as it was when the query arrived, and runs on a thread of its own: it delays neither its
    /// process nor any other. Its caller gets no answer after [`handler_timeout`](crate::NodeBuilder::handler_timeout)
    /// or its own deadline. It cannot be stopped, so one that does not end keeps one of the few threads for queries.
    ///
    /// # Errors
    /// Defined by the process.
    ///
    /// # Panics
    /// The default implementation panics: the caller is refused.
    fn query(&self, ctx: &QueryContext<'_, Self>, query: Self::Query) -> Result<Self::Answer, Self::Error> {
        let _ = (ctx, query);
        panic!("service {} answers no queries", Self::SERVICE)
    }

    /// Decodes state of an older version from its MessagePack bytes.
    ///
    /// # Errors
    /// The reason for which it cannot be read; the default reads no older version.
    fn migrate(version: u32, bytes: &[u8]) -> Result<Self, String> {
        let _ = bytes;
        Err(format!("no migration from version {version} to {} is written", Self::VERSION))
    }

    /// Checks an invariant of every consistent cut of the whole system, for example that money is neither created nor
    /// lost. It must include causes that were given up ([`Cut::dead_letters`]), are in flight or delayed.
    ///
    /// A node runs it in the background over the checkpoints of its interval, as far as it keeps up, and over those
    /// that are [requested](crate::Node::checkpoint) or [verified](crate::Node::verify). A panic is a failure of the
    /// check. A failed check stops nothing: the checkpoint stays, and log, status, metrics and `/readyz` report it. A
    /// check that ends the process [`attempts_max`](crate::ServiceOptions::attempts_max) times in a row does not run
    /// any more until a checkpoint is verified. It also runs once over an empty cut, whose result is ignored.
    ///
    /// # Errors
    /// The violation.
    fn check(cut: &Cut<'_>) -> Result<(), String> {
        cut.undeclared();
        Ok(())
    }
}

/// The key of a process: a type whose `Display` output `FromStr` parses, such as strings, integers and newtypes of
/// them.
///
/// The text has 1 to 512 bytes; equal keys must give equal text.
pub trait ProcessKey: Display + Clone + Send + Sync + 'static {
    /// Parses the key's text.
    ///
    /// # Errors
    /// The reason why the text is not a key of this service.
    fn parse_key(text: &str) -> Result<Self, String>;
}

impl<K> ProcessKey for K
where
    K: FromStr + Display + Clone + Send + Sync + 'static,
    K::Err: Display,
{
    fn parse_key(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: K::Err| error.to_string())
    }
}

/// A type without values: the error of a process that never fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Never {}

impl Display for Never {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {}
    }
}

impl std::error::Error for Never {}

/// The query of a process that answers none.
pub type NoQuery = Never;
