//! The flights application under kills.

use crate::Run;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use stead_flights::Flights;
use stead_flights::conductor::{Event, Executioner, Kills, Plan, conduct};

const ROWS_A_SECOND: f64 = 2000.0;

/// Kills the application repeatedly, compares, and returns whether every guarantee holds.
pub(crate) fn run(run: &Run<'_>, executioner: &mut dyn Executioner) -> Result<bool, Box<dyn Error>> {
    let flights = Flights::bundled();
    let plan = Plan {
        command: run.command("flights-child"),
        dir: run.dir.to_owned(),
        data_dir: Some(run.data_dir.to_owned()),
        input: None,
        skip_malformed: false,
        rate: ROWS_A_SECOND,
        seed: run.seed,
        kills: Kills::Timed { kills: run.kills, life_max: run.life_max },
        restore: false,
        checkpoint_every: Duration::from_millis(150),
        patience: Plan::PATIENCE,
        stop: Arc::default(),
    };
    let outcome = conduct(&plan, &flights, executioner, &mut |event| match event {
        Event::Killed(kill) if kill % 50 == 0 => print_line!("{kill} kills"),
        Event::CheckpointFailed(reason) => print_line!("a checkpoint failed: {reason}"),
        _ => {}
    })?;
    let (requests, again) = (outcome.requests, outcome.again);
    print_line!(
        "{} kills, {} recoveries, {} rows, {} messages, {} handler runs, {} answers to {} requests, {} checkpoints",
        outcome.kills,
        outcome.recoveries.len(),
        outcome.rows,
        outcome.totals.messages(),
        again.runs,
        requests.answers,
        requests.answered,
        outcome.checkpoints.len()
    );
    print_line!(
        "lost {}, doubled {}, recomputed {} (run again because not committed: {}), totals {}",
        outcome.lost(),
        outcome.doubled(),
        again.recomputed,
        again.unkept,
        if outcome.totals_match() { "match" } else { "differ" }
    );
    for check in outcome.checkpoints.iter().flat_map(|checkpoint| &checkpoint.failed_checks) {
        print_line!("a check did not hold: {check}");
    }
    Ok(outcome.holds())
}
