//! The pace at which large objects are written, so that the log's sync is not starved.

use crate::ids::Time;

/// Spends bytes at a rate: knows, after each written piece, when the next one is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    rate: u64,
    due: Time,
}

impl Meter {
    /// Notes that `bytes` are written, at `rate` bytes each second; a rate of 0 is unlimited.
    pub fn spend(&mut self, rate: u64, now: Time, bytes: u64) {
        let micros = u128::from(bytes) * 1_000_000 / u128::from(rate.max(1));
        let from = if rate == self.rate { self.due.max(now) } else { now };
        self.due = if rate == 0 { now } else { from.plus_micros(u64::try_from(micros).unwrap_or(u64::MAX)) };
        self.rate = rate;
    }

    /// Returns the time until which nothing may be written; `None` if the next piece is due, or the rate has changed
    /// since.
    #[must_use]
    pub fn held_until(&self, rate: u64, now: Time) -> Option<Time> {
        (rate == self.rate && self.due > now).then_some(self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_due_when_the_ones_before_it_are_paid() {
        let mut meter = Meter::default();
        assert_eq!(meter.held_until(100, Time(5)), None);
        meter.spend(100, Time(1_000_000), 50);
        assert_eq!(meter.held_until(100, Time(1_000_000)), Some(Time(1_500_000)));
        meter.spend(100, Time(1_200_000), 10);
        assert_eq!(meter.held_until(100, Time(1_200_000)), Some(Time(1_600_000)));
        // Time without writing is not saved up.
        meter.spend(100, Time(9_000_000), 100);
        assert_eq!(meter.held_until(100, Time(9_000_000)), Some(Time(10_000_000)));
        assert_eq!(meter.held_until(100, Time(10_000_000)), None);
        // A change of the rate takes effect at once.
        assert_eq!(meter.held_until(0, Time(9_000_000)), None);
        meter.spend(0, Time(9_000_000), u64::MAX);
        assert_eq!(meter.held_until(0, Time(9_000_000)), None);
    }
}
