//! Answered requests of clients in another process, over the native protocol, every entry synced: each client on its own
//! connection, and many that share two.

use super::figures::Report;
use super::native_load::{Operation, load};
use super::room::Room;
use super::{BenchArgs, failed};
use crate::failure::Failure;
use stead::kv::Kv;
use stead::{Node, ServiceOptions};

const WORKLOAD: &str = "native";
const SHARDS: u32 = 64;
/// Connections that many clients share.
pub(super) const SHARED: u32 = 2;

pub(super) fn run(args: &BenchArgs, report: &mut Report) -> Result<(), Failure> {
    let room = Room::new(args)?;
    let node = Node::builder(room.path())
        .service::<Kv>(ServiceOptions::default().shards(SHARDS))
        .listen_native(([127, 0, 0, 1], 0).into())
        .open()
        .map_err(|error| failed("open a node")(&error))?;
    let address = node.native_address().map(|address| address.to_string()).unwrap_or_default();
    load(&address, Operation::Write, (64, SHARED), args.seconds.min(2))?;
    for (callers, connections) in [(1, 1), (64, 64), (256, 256), (64, SHARED), (256, SHARED)] {
        let (mut rates, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            let answers = load(&address, Operation::Write, (callers, connections), args.seconds)?;
            rates.push(answers.answered as f64 / answers.seconds);
            p50.push(answers.p50_ms);
            p99.push(answers.p99_ms);
        }
        let of = clients(callers, connections);
        report.add(WORKLOAD, format!("answered, {of}"), "1/s", &rates, None);
        report.add(WORKLOAD, format!("p50, {of}"), "ms", &p50, None);
        report.add(WORKLOAD, format!("p99, {of}"), "ms", &p99, None);
    }
    node.shutdown();
    Ok(())
}

/// Returns the name of a number of clients over a number of connections.
pub(super) fn clients(callers: u32, connections: u32) -> String {
    match (callers, connections) {
        (1, _) => "1 client".to_owned(),
        _ if callers == connections => format!("{callers} clients on their own connections"),
        _ => format!("{callers} clients over {connections} connections"),
    }
}
