//! The measured figures and their goals.

use crate::failure::Failure;
use crate::output::{self, Table};
use serde::Serialize;
use serde_json::{Map, Value};

/// The goal of a figure.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

/// One measured quantity.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    workload: &'static str,
    name: String,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    rounds: usize,
    goal: Option<Goal>,
    met: Option<bool>,
}

/// A position of the dial of a service with three replicas: what an answer costs, and what may be lost.
#[derive(Debug, Serialize)]
pub(super) struct DialRow {
    pub(super) acks: &'static str,
    /// The medians of clients on their own connections.
    pub(super) p50_ms_1: f64,
    pub(super) rate_1: f64,
    pub(super) rate_64: f64,
    pub(super) rate_256: f64,
    pub(super) p99_ms_256: f64,
    /// The age of stale answers beside 64 clients that write.
    pub(super) staleness_ms_p50: f64,
    pub(super) staleness_ms_p99: f64,
    /// The answered writes that a failover may lose.
    pub(super) loss: &'static str,
}

/// All figures of a run.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    machine: Map<String, Value>,
    figures: Vec<Figure>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dial: Vec<DialRow>,
}

impl Report {
    /// Adds a property of the machine that is not a number.
    pub(super) fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.machine.insert(name.to_owned(), value.into());
    }

    /// Adds a position of the dial.
    pub(super) fn dial(&mut self, row: DialRow) {
        self.dial.push(row);
    }

    /// Adds a figure of one or more rounds.
    ///
    /// # Panics
    /// If there are no samples.
    pub(super) fn add(
        &mut self,
        workload: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        samples: &[f64],
        goal: Option<Goal>,
    ) {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = median(&sorted);
        let met = goal.map(|goal| match goal {
            Goal::AtLeast(least) => median >= least,
            Goal::AtMost(most) => median <= most,
        });
        self.figures.push(Figure {
            workload,
            name: name.into(),
            unit,
            median,
            min: sorted[0],
            max: sorted[sorted.len() - 1],
            rounds: sorted.len(),
            goal,
            met,
        });
    }

    pub(super) fn print(&self) -> Result<(), Failure> {
        for (name, value) in &self.machine {
            output::line(&format!("{name}: {}", output::fact(name, value)))?;
        }
        let mut table = Table::new(["workload", "figure", "median", "min", "max", "unit", "goal", ""]);
        for figure in &self.figures {
            let goal = match figure.goal {
                None => String::new(),
                Some(Goal::AtLeast(least)) => format!(">= {}", short(least)),
                Some(Goal::AtMost(most)) => format!("<= {}", short(most)),
            };
            let met = match figure.met {
                None => "",
                Some(true) => "met",
                Some(false) => "missed",
            };
            table.row([
                figure.workload.to_owned(),
                figure.name.clone(),
                short(figure.median),
                short(figure.min),
                short(figure.max),
                figure.unit.to_owned(),
                goal,
                met.to_owned(),
            ]);
        }
        table.print()?;
        if self.dial.is_empty() { Ok(()) } else { self.print_dial() }
    }

    fn print_dial(&self) -> Result<(), Failure> {
        let mut table = Table::new([
            "stored before the answer",
            "p50 ms, 1 client",
            "writes/s, 1",
            "writes/s, 64",
            "writes/s, 256",
            "p99 ms, 256",
            "stale ms, p50",
            "stale ms, p99",
            "window of loss",
        ]);
        for row in &self.dial {
            table.row([
                row.acks.to_owned(),
                short(row.p50_ms_1),
                short(row.rate_1),
                short(row.rate_64),
                short(row.rate_256),
                short(row.p99_ms_256),
                short(row.staleness_ms_p50),
                short(row.staleness_ms_p99),
                row.loss.to_owned(),
            ]);
        }
        output::line("")?;
        table.print()
    }
}

/// Returns the median of sorted samples.
pub(super) fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// Returns a quantile of sorted samples, 0.0 to 1.0; 0 without samples.
pub(super) fn quantile(sorted: &[u32], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |&sample| f64::from(sample))
}

/// Formats a number with as many digits as are significant.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => {
            let digits = format!("{value:.0}");
            let mut grouped = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at) % 3 == 0 && digit.is_ascii_digit() {
                    grouped.push(' ');
                }
                grouped.push(digit);
            }
            grouped
        }
        middle if middle >= 100.0 => format!("{value:.0}"),
        small if small >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles_are_of_the_samples() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
        let samples: Vec<u32> = (0..1000).collect();
        assert_eq!(quantile(&samples, 0.999), 999.0);
        assert_eq!(quantile(&samples, 0.5), 500.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(short(1_234_567.8), "1 234 568");
        assert_eq!(short(12.34), "12.3");
        assert_eq!(short(0.1234), "0.123");
    }

    #[test]
    fn a_goal_is_met_or_missed_by_the_median() {
        let mut report = Report::default();
        report.add("w", "rate", "1/s", &[3.0, 1.0, 2.0], Some(Goal::AtLeast(2.0)));
        report.add("w", "time", "ms", &[3.0, 1.0, 2.0], Some(Goal::AtMost(1.5)));
        assert_eq!((report.figures[0].met, report.figures[1].met), (Some(true), Some(false)));
        assert_eq!((report.figures[0].min, report.figures[0].max), (1.0, 3.0));
    }
}
