//! Leases: the spans of time in which a primary may answer although another epoch could already be begun without it
//! (rules 20 and 21).
//!
//! Both ends read a clock of their own that counts the time in which the machine was suspended. The primary counts from before
//! its request, a member from its answer, and each adds the drift of its clock on the safe side. So a member's grant ends after
//! the lease that it was counted for.
//!
//! Never reads a clock: time arrives with each call.

use crate::ids::{Micros, Time};

/// The rate by which a clock may be too fast or too slow, in parts per million: that of a quartz (100) and of an adjustment
/// by NTP (500), rounded up.
pub const DRIFT_PPM: u64 = 1_000;

const fn drift(lease: Micros) -> Micros {
    Micros(lease.0.saturating_mul(DRIFT_PPM).div_ceil(1_000_000))
}

/// Returns the time from which on a lease does not hold any more for the primary that began to ask for it at `asked`.
#[must_use]
pub const fn held_until(asked: Time, lease: Micros) -> Time {
    asked.plus(lease.minus(drift(lease)))
}

/// Returns the time from which on a lease that a member granted at `granted` is over.
#[must_use]
pub const fn granted_until(granted: Time, lease: Micros) -> Time {
    granted.plus(lease.plus(drift(lease)))
}

/// The leases that a replica has granted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grants {
    /// The start of this life, if an earlier one may have granted leases.
    restarted: Option<Time>,
    /// The time from which on all leases that this life granted are over.
    until: Option<Time>,
}

impl Grants {
    /// Creates the grants of a replica that is new: it has granted nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates the grants of a replica in a later life of its process, which began at `now`: it remembers none, so that it
    /// answers seals only after a whole lease (rule 21).
    #[must_use]
    pub fn after_restart(now: Time) -> Self {
        Self { restarted: Some(now), until: None }
    }

    /// Grants a lease; a span of 0 is none.
    pub fn grant(&mut self, now: Time, lease: Micros) {
        if lease > Micros(0) {
            self.until = self.until.max(Some(granted_until(now, lease)));
        }
    }

    /// Returns the time from which on a seal may be answered; `None` if no lease stands in its way. `lease` is the longest one
    /// that a primary of a lower epoch may hold, or 0 if none holds one or all are proven dead.
    #[must_use]
    pub fn free_at(&self, lease: Micros) -> Option<Time> {
        if lease == Micros(0) {
            return None;
        }
        self.until.max(self.restarted.map(|restarted| granted_until(restarted, lease)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Micros = Micros::from_millis(500);

    #[test]
    fn a_grant_outlives_the_lease_that_it_was_counted_for_however_both_clocks_drift() {
        for asked in [Time(0), Time(77), Time(1 << 40)] {
            for lease in [Micros(1), Micros(999), LEASE, Micros::from_secs(3_600)] {
                // By real time, the primary's clock is slow by the drift, and the member's is fast by it.
                let held = held_until(asked, lease).since(asked).0 as f64 * (1.0 + DRIFT_PPM as f64 / 1e6);
                let granted =
                    granted_until(asked, lease).since(asked).0 as f64 * (1.0 - DRIFT_PPM as f64 / 1e6);
                assert!(held <= granted, "{asked:?} {lease}: {held} {granted}");
            }
        }
    }

    #[test]
    fn a_seal_waits_for_the_last_grant() {
        let mut grants = Grants::new();
        assert_eq!(grants.free_at(LEASE), None, "nothing was granted");
        grants.grant(Time(1_000), Micros(0));
        assert_eq!(grants.free_at(LEASE), None, "a span of 0 is none");
        grants.grant(Time(1_000), LEASE);
        grants.grant(Time(2_000), Micros(1));
        assert_eq!(grants.free_at(LEASE), Some(Time(501_500)));
        assert_eq!(grants.free_at(Micros(0)), None, "the primary is proven dead");
    }

    #[test]
    fn a_restarted_member_waits_for_a_whole_lease() {
        let mut grants = Grants::after_restart(Time(100));
        assert_eq!(grants.free_at(LEASE), Some(Time(500_600)));
        grants.grant(Time(200), Micros(10));
        assert_eq!(grants.free_at(LEASE), Some(Time(500_600)));
        assert_eq!(grants.free_at(Micros(0)), None);
    }
}
