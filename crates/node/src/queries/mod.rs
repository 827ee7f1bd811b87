//! Clients' queries, and the parts that run them.
//!
//! A query reads what its shard captured, so that it holds no shard and may run for any time. Its client gets an answer by its
//! deadline or by `handler_timeout`, whatever the query does. A query that still runs then keeps its thread, which cannot be
//! taken from it: another thread replaces that one, up to a bound for each service.

mod parts;
mod queue;
#[cfg(test)]
mod tests;

pub(crate) use parts::{OwnThreads, QueryThreads};
pub use parts::{QueryPart, QueryWatch};
pub(crate) use queue::{Job, QUERY_THREADS, QueryQueue, QueryThread};
