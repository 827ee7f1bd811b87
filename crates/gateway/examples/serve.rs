//! A server for a service of your own: HTTP, signals, and a supervisor that restarts it after a crash.
//!
//!     cargo run -p stead-gateway --example serve [DATA_DIRECTORY]
//!     curl --json '{"Add": 5}' localhost:7420/v1/call/counter/a
//!     curl --json '"Total"' localhost:7420/v1/query/counter/a

use serde::{Deserialize, Serialize};
use stead::schemars::JsonSchema;
use stead::{Context, Never, Node, Process, QueryContext, Schemas, ServiceOptions};
use stead_gateway::ServerError;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Counter {
    total: i64,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "stead::schemars")]
enum Request {
    Add(i64),
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "stead::schemars")]
enum Query {
    Total,
}

impl Process for Counter {
    const SERVICE: &'static str = "counter";
    type Key = String;
    type Request = Request;
    type Reply = i64;
    type Error = Never;
    type Query = Query;
    type Answer = i64;

    fn handle(&mut self, _: &mut Context<'_, Self>, Request::Add(amount): Request) -> Result<i64, Never> {
        self.total += amount;
        Ok(self.total)
    }

    fn query(&self, _: &QueryContext<'_, Self>, Query::Total: Query) -> Result<i64, Never> {
        Ok(self.total)
    }

    /// The server's OpenAPI document shows these types.
    fn schemas() -> Option<Schemas> {
        Some(Schemas::of::<Self>())
    }
}

fn main() -> Result<(), ServerError> {
    let data = std::env::args_os().nth(1).unwrap_or_else(|| "counter-data".into());
    stead_gateway::serve(Node::builder(data).service::<Counter>(ServiceOptions::default()))
}
