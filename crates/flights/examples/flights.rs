//! The flights application on a node of its own, without kills; `stead demo` runs it with kills.
//!
//!     cargo run --example flights [DATA_DIRECTORY]

use std::time::Duration;
use stead::Node;
use stead_flights::services::{Carrier, FEEDER, FeedRequest, Feeder, Source};
use stead_flights::{Flights, Totals, child};

const ROWS_A_SECOND: f64 = 5000.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir =
        std::env::args_os().nth(1).map_or_else(|| std::env::temp_dir().join("stead-flights"), Into::into);
    let flights = Flights::bundled();
    let expected = Totals::of(&flights.rows);
    let rows = flights.rows.len() as u64;
    Source::install(flights).map_err(|_| "a source is installed already")?;
    let fingerprint = Source::installed().expect("it was installed").fingerprint().to_owned();

    let node = child::register(Node::builder(&dir)).open()?;
    let client = node.blocking_client();
    let feeder = FEEDER.to_owned();
    // The feeder's position is part of its state: a second run continues with the row after the last one.
    client.call::<Feeder>(&feeder, FeedRequest::Start { fingerprint, rows, rate: ROWS_A_SECOND })?;
    loop {
        let position = client.query::<Feeder>(&feeder, ())?;
        println!("{} of {rows} rows fed", position.next_row);
        if position.next_row == rows {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let checkpoint = node.checkpoint_blocking()?;
    println!("checkpoint {}: {} messages in flight", checkpoint.number, checkpoint.in_flight);
    for (code, expected) in &expected.carriers {
        let carrier = client.query::<Carrier>(code, ())?;
        println!(
            "{code:3} {:>6} flights, {:>4} cancelled, {:>7} minutes late{}",
            carrier.flights,
            carrier.cancelled,
            carrier.dep_delay_minutes,
            if carrier == *expected { "" } else { "  (some messages are still in flight)" }
        );
    }
    node.shutdown();
    Ok(())
}
