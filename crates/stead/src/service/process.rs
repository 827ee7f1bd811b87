//! What a user writes: a process, its key, and what it is asked.

use super::context::{Context, QueryContext};
use super::cut::Cut;
use super::schema::Schemas;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::str::FromStr;

/// An addressable stateful object, `service/key`, that handles one message at a time.
///
/// The value itself is the state. It is stored whole after each call that changed it; what is large belongs into cells
/// ([`Context::put_cell`]), of which only the touched ones are stored. A process exists from its first call on, and
/// begins as its `Default`.
///
/// State and requests are stored as MessagePack with field names, so that they may evolve: a new field needs
/// `#[serde(default)]`, a removed field is passed over, a renamed field or variant needs `#[serde(alias = "old")]`. For
/// anything else raise [`Self::VERSION`] and write [`Self::migrate`]. State that cannot be read is refused with the
/// process, the version and the reason; it is never replaced by a fresh start.
pub trait Process: Serialize + DeserializeOwned + Default + Send + 'static {
    /// The name of the service: 1 to 128 characters of `a-z A-Z 0-9 _ - .`
    const SERVICE: &'static str;
    /// The version of the stored state. State of a lower version goes through [`Self::migrate`].
    const VERSION: u32 = 1;
    /// The key of a process within its service.
    type Key: ProcessKey;
    /// What clients, other processes, timers and tasks ask of it.
    type Request: Serialize + DeserializeOwned + Send + 'static;
    /// What it answers.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// The error that it answers instead; [`Never`] if there is none.
    type Error: Serialize + DeserializeOwned + Send + Display + 'static;
    /// What can be asked without a change; [`NoQuery`] if there is nothing.
    type Query: Serialize + DeserializeOwned + Send + 'static;
    /// The answer to a query; `()` if there is none.
    type Answer: Serialize + DeserializeOwned + Send + 'static;

    /// Handles one request. All that it does, to `self` and through `ctx`, is kept together or not at all.
    ///
    /// It runs once for each cause and is never repeated for what it has answered, so it may use clocks, randomness and
    /// hash maps freely. It holds its shard: expensive work belongs into a [`Task`](crate::Task).
    ///
    /// # Errors
    /// An error is an answer: it is kept for a retry of the same request, and nothing else of the call is.
    ///
    /// # Panics
    /// A panic leaves no trace but the caller's refusal.
    fn handle(
        &mut self,
        ctx: &mut Context<'_, Self>,
        request: Self::Request,
    ) -> Result<Self::Reply, Self::Error>;

    /// The JSON schemas of this service's types, for the OpenAPI document of `http`: none by default, so that they are any JSON
    /// there.
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
    /// It sees its process as it was when the query came, and runs on a thread of its own: it holds up neither its process nor
    /// any other. Its caller gets no answer of it after [`handler_timeout`](crate::NodeBuilder::handler_timeout) or its own
    /// deadline. It cannot be stopped, so that one that does not end keeps a thread of the few there are for queries.
    ///
    /// # Errors
    /// As the process likes.
    ///
    /// # Panics
    /// Without an own implementation: the caller is refused.
    fn query(&self, ctx: &QueryContext<'_, Self>, query: Self::Query) -> Result<Self::Answer, Self::Error> {
        let _ = (ctx, query);
        panic!("service {} answers no queries", Self::SERVICE)
    }

    /// Reads state of an older version from its MessagePack bytes.
    ///
    /// # Errors
    /// The reason for which it cannot be read; the default reads no older version.
    fn migrate(version: u32, bytes: &[u8]) -> Result<Self, String> {
        let _ = bytes;
        Err(format!("no migration from version {version} to {} is written", Self::VERSION))
    }

    /// Checks what must hold at every consistent cut of the whole system, as money that is neither made nor lost. It must
    /// count what is given up ([`Cut::dead_letters`]), in flight or delayed as well.
    ///
    /// A node runs it in the background over the checkpoints of its interval, as far as it keeps up, and over those that are
    /// [asked for](crate::Node::checkpoint) or [verified](crate::Node::verify). A panic is a failure of the check. A failed
    /// check stops nothing: the checkpoint stays, and log, status, metrics and `/readyz` report it. One that ends the process
    /// [`attempts_max`](crate::ServiceOptions::attempts_max) times in a row is not run any more until a checkpoint is verified. It is
    /// also run once over a cut of nothing, whose result does not count.
    ///
    /// # Errors
    /// What does not hold.
    fn check(cut: &Cut<'_>) -> Result<(), String> {
        cut.undeclared();
        Ok(())
    }
}

/// The key of a process: whatever `Display` writes and `FromStr` reads back, as strings, integers and newtypes of them.
///
/// The text has 1 to 512 bytes; equal keys must give equal text.
pub trait ProcessKey: Display + Clone + Send + Sync + 'static {
    /// Reads the key's text.
    ///
    /// # Errors
    /// Why the text is no key of this service.
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
