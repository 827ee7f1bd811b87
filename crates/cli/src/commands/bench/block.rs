//! The service of the workloads with a large state: processes of a chosen size.

use super::callers::runtime;
use super::failed;
use super::hop::{count, counted};
use super::messages::wait;
use crate::failure::Failure;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use stead::{CallError, Context, Never, NoQuery, Node, Process};

/// Processes that one request creates.
const SPREAD: u32 = 5000;

/// A process whose state is mostly bytes.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Block {
    touched: u32,
    body: Bytes,
}

/// The messages of a process.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) enum Request {
    /// Replace the body by this many random bytes.
    Touch { bytes: u32 },
    /// Send `Touch` to each process of a range of keys.
    Spread { from: u32, to: u32, bytes: u32 },
}

impl Process for Block {
    const SERVICE: &'static str = "block";
    type Key = u32;
    type Request = Request;
    type Reply = ();
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<(), Never> {
        match request {
            Request::Touch { bytes } => {
                self.touched += 1;
                self.body.0.resize(bytes as usize, 0);
                ctx.random().fill(&mut self.body.0);
                count();
            }
            Request::Spread { from, to, bytes } => {
                for key in from..to {
                    ctx.send::<Self>(&key, Request::Touch { bytes });
                }
            }
        }
        Ok(())
    }
}

/// Creates `processes` processes with `bytes` bytes of body, and waits until all have handled their message.
pub(super) fn populate(node: &Node, processes: u32, bytes: u32) -> Result<(), Failure> {
    const AT_A_TIME: u32 = 4;
    let runtime = runtime()?;
    let before = counted();
    let ranges: Vec<u32> = (0..processes).step_by(SPREAD as usize).collect();
    let callers: Vec<_> = (0..AT_A_TIME)
        .map(|caller| {
            let client = node.client();
            let mine: Vec<u32> =
                ranges.iter().copied().skip(caller as usize).step_by(AT_A_TIME as usize).collect();
            runtime.spawn(async move {
                for from in mine {
                    let to = processes.min(from + SPREAD);
                    client.call::<Block>(&(processes + caller), Request::Spread { from, to, bytes }).await?;
                }
                Ok::<(), CallError<Never>>(())
            })
        })
        .collect();
    runtime.block_on(async {
        for caller in callers {
            let ended = caller.await.map_err(|error| failed("fill the node")(&error))?;
            ended.map_err(|error| failed("fill a process")(&error))?;
        }
        Ok::<(), Failure>(())
    })?;
    wait("the filling of the processes", || counted() - before >= u64::from(processes))?;
    wait("the last acknowledgements", || node.status().shards.iter().all(|shard| shard.outbox_messages == 0))
}

/// Bytes that are encoded as such, not as an array of numbers.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Any)
    }
}
