//! The three clocks of a shard.
//!
//! - *Steady* time is the shell's: it never jumps, and is meaningful within one process life only. Acknowledgements,
//!   resends and the like use it.
//! - *Served* time is the time that the shard has served, over all lives. Sessions and idempotency keys expire by it.
//! - The shard's *time* follows the wall clock and never falls. Timers fire by it.
//!
//! Never reads a clock: both readings arrive in [`Now`].

use crate::ids::{Micros, Served, Time};

/// The readings of the shell's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Microseconds of a clock that never jumps or goes back within a process life; it may begin anywhere.
    pub steady: Time,
    /// The wall clock, as the system reports it: it may jump in both directions.
    pub wall: Time,
}

impl Now {
    /// Returns the readings of two clocks that agree.
    #[must_use]
    pub const fn at(time: Time) -> Self {
        Self { steady: time, wall: time }
    }
}

/// A shard's clocks.
///
/// While the shard's time is behind the wall clock, it runs at twice the speed; while it is ahead, at half the speed.
/// There are two exceptions:
/// - at a start, a wall clock that is ahead by at most [`Clock::FAR`] is adopted at once: that is the time of a restart;
/// - one that is ahead by more, at a start or later, may be wrong. It is adopted at once when it has stayed that far ahead
///   for `confirm`.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    steady: Time,
    served: Served,
    time: Time,
    wall: Time,
    /// The steady time since which the wall clock has been far ahead.
    far_since: Option<Time>,
    /// The time for which the wall clock has to stay far ahead before it is adopted.
    confirm: Micros,
    /// Half a microsecond that was not counted yet, while the clock runs at half the speed.
    odd: u64,
}

impl Clock {
    /// A wall clock that is ahead of a shard's time by more than this is far ahead: 1 h.
    pub const FAR: Micros = Micros::from_secs(60 * 60);

    /// Creates clocks that continue from the end of the log, once [`Clock::start`] is called. A wall
    /// clock that is far ahead must stay so for `confirm` before it is adopted.
    #[must_use]
    pub fn new(time: Time, served: Served, confirm: Micros) -> Self {
        let (steady, wall) = (Time(0), time);
        Self { steady, served, time, wall, far_since: None, confirm, odd: 0 }
    }

    /// Begins a process life. A shard without a past (`fresh`) adopts any wall clock at once.
    pub fn start(&mut self, now: Now, fresh: bool) {
        self.steady = now.steady;
        self.wall = now.wall;
        self.far_since = None;
        if fresh || self.confirm == Micros(0) || !self.wall_is_far() {
            self.time = self.time.max(now.wall);
        } else {
            self.far_since = Some(now.steady);
        }
    }

    /// Advances the clocks; `serves` says whether the shard has served since the last call.
    pub fn advance(&mut self, now: Now, serves: bool) {
        let passed = now.steady.since(self.steady).0;
        self.steady = self.steady.max(now.steady);
        self.wall = now.wall;
        if serves {
            self.served = self.served.plus(Micros(passed));
        }
        let even = self.time.plus_micros(passed);
        if even > now.wall {
            let halves = passed.saturating_add(self.odd);
            self.odd = halves % 2;
            self.time = Time(even.0 - (halves / 2).min(even.0 - now.wall.0).min(passed));
        } else {
            self.odd = 0;
            self.time = even.plus_micros(passed.min(now.wall.0 - even.0));
        }
        if !self.wall_is_far() {
            self.far_since = None;
        } else if self.steady.since(*self.far_since.get_or_insert(self.steady)) >= self.confirm {
            self.time = self.wall;
            self.far_since = None;
        }
    }

    fn wall_is_far(&self) -> bool {
        self.wall.since(self.time) > Self::FAR
    }

    /// Returns the shell's steady time.
    #[must_use]
    pub fn steady(&self) -> Time {
        self.steady
    }

    /// Returns the time that the shard has served.
    #[must_use]
    pub fn served(&self) -> Served {
        self.served
    }

    /// Returns the shard's time.
    #[must_use]
    pub fn time(&self) -> Time {
        self.time
    }

    /// Returns the lead of the wall clock over the shard's time in microseconds; negative if it is behind.
    #[must_use]
    pub fn wall_ahead(&self) -> i64 {
        let micros = i128::from(self.wall.0) - i128::from(self.time.0);
        micros.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    /// Whether the wall clock is so far ahead that timers do not follow it yet.
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        self.far_since.is_some()
    }

    /// Returns the steady time at which the shard will have served this long, if it continues to serve.
    #[must_use]
    pub fn steady_at_served(&self, at: Served) -> Time {
        self.steady.plus(at.since(self.served))
    }

    /// Returns the steady time at which the shard's time will have reached `at`, if the wall clock continues at its
    /// rate. Not later than the time at which a wall clock that is far ahead is adopted.
    #[must_use]
    pub fn steady_at(&self, at: Time) -> Time {
        let left = at.since(self.time).0;
        let ahead = self.wall.since(self.time).0;
        let behind = self.time.since(self.wall).0;
        let wait = match (ahead, behind) {
            (0, 0) => left,
            // Twice the speed until both are equal, which is after `ahead`.
            (_, 0) if left > ahead.saturating_mul(2) => left - ahead,
            (_, 0) => left.div_ceil(2),
            // Half the speed until both are equal, which is after twice `behind`.
            _ if left > behind => left.saturating_add(behind),
            _ => left.saturating_mul(2),
        };
        let wait = self.steady.plus_micros(wait);
        self.far_since.map_or(wait, |since| wait.min(since.plus(self.confirm)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const CONFIRM: u64 = 10 * MINUTE;

    /// A shell whose wall clock can be set.
    struct Shell {
        clock: Clock,
        now: Now,
    }

    impl Shell {
        /// Starts with the wall clock ahead of the log, or behind.
        fn start(wall_ahead: i64) -> Self {
            let logged = Time(1_000 * DAY);
            let mut clock = Clock::new(logged, Served(7), Micros(CONFIRM));
            let wall = Time(logged.0.saturating_add_signed(wall_ahead));
            let now = Now { steady: Time(5), wall };
            clock.start(now, false);
            Self { clock, now }
        }

        /// Advances both clocks in steps, and checks the invariants at each step.
        fn run(&mut self, micros: u64, step: u64) {
            let mut left = micros;
            while left > 0 {
                let passed = step.min(left);
                left -= passed;
                self.now = Now {
                    steady: self.now.steady.plus_micros(passed),
                    wall: self.now.wall.plus_micros(passed),
                };
                let before = self.clock;
                self.clock.advance(self.now, true);
                let moved = self.clock.time().0 - before.time().0;
                assert!(moved >= passed / 2, "{moved} of {passed}: slower than half the speed");
                let stepped = before.is_doubted() && !self.clock.is_doubted();
                assert!(moved <= 2 * passed || stepped, "{moved} of {passed}: faster than twice the speed");
                assert_eq!(self.clock.served().since(before.served()), Micros(passed));
            }
        }

        fn jump(&mut self, micros: i64) {
            self.now.wall = Time(self.now.wall.0.saturating_add_signed(micros));
            self.clock.advance(self.now, true);
        }
    }

    #[test]
    fn a_restart_takes_the_wall_clock_at_once() {
        let mut shell = Shell::start(HOUR as i64);
        assert_eq!((shell.clock.wall_ahead(), shell.clock.is_doubted()), (0, false));
        shell.run(DAY, 7 * MINUTE);
        assert_eq!(shell.clock.wall_ahead(), 0);
    }

    #[test]
    fn a_start_two_days_ahead_that_is_corrected_moves_nothing_but_by_slewing() {
        let mut shell = Shell::start(2 * DAY as i64);
        assert!(shell.clock.is_doubted());
        shell.run(5 * MINUTE, 3_001);
        assert_eq!(shell.clock.time(), Time(1_000 * DAY + 10 * MINUTE), "twice the speed, not more");
        shell.jump(-2 * DAY as i64);
        assert!(!shell.clock.is_doubted());
        assert_eq!(shell.clock.wall_ahead(), -(5 * MINUTE as i64));
        shell.run(10 * MINUTE, 3_001);
        assert_eq!(shell.clock.wall_ahead(), 0, "half the speed until the wall clock has caught up");
    }

    #[test]
    fn a_downtime_of_three_days_is_believed_after_the_time_of_confirmation() {
        let mut shell = Shell::start(3 * DAY as i64);
        shell.run(CONFIRM - 1, 10 * MINUTE);
        assert!(shell.clock.is_doubted());
        shell.run(1, 1);
        assert_eq!((shell.clock.wall_ahead(), shell.clock.is_doubted()), (0, false));
    }

    #[test]
    fn a_start_three_days_behind_that_is_corrected_catches_up() {
        let mut shell = Shell::start(-3 * DAY as i64);
        shell.run(HOUR, 1_000_000);
        assert_eq!(shell.clock.time(), Time(1_000 * DAY + HOUR / 2), "it continues at half the speed");
        shell.jump(3 * DAY as i64);
        shell.run(HOUR / 2, 1_000_000);
        assert_eq!(shell.clock.wall_ahead(), 0);
        // The log itself was three days behind: the correction has the same effect as a downtime.
        shell.jump(3 * DAY as i64);
        shell.run(CONFIRM, 1_000_000);
        assert_eq!(shell.clock.wall_ahead(), 0);
    }

    #[test]
    fn a_shard_that_believed_a_wrong_clock_is_back_after_twice_the_lead() {
        let mut shell = Shell::start(2 * DAY as i64);
        shell.run(CONFIRM, MINUTE);
        shell.jump(-2 * DAY as i64);
        assert_eq!(shell.clock.wall_ahead(), -2 * DAY as i64);
        shell.run(4 * DAY, MINUTE + 1);
        assert_eq!(shell.clock.wall_ahead(), 0);
    }

    #[test]
    fn half_the_speed_holds_for_looks_of_a_microsecond_too() {
        let mut shell = Shell::start(-(HOUR as i64));
        for _ in 0..10_001 {
            shell.run(1, 1);
        }
        assert_eq!(shell.clock.time(), Time(1_000 * DAY + 5_001));
    }

    #[test]
    fn a_time_comes_when_it_is_said_to() {
        let mut rng = fastrand::Rng::with_seed(4);
        for round in 0..2_000 {
            let span = [1_000, MINUTE, HOUR, 3 * DAY][rng.usize(..4)];
            let mut shell = Shell::start(rng.i64(-(span as i64)..=span as i64));
            shell.run(rng.u64(1..CONFIRM), CONFIRM);
            let at = shell.clock.time().plus_micros(rng.u64(0..2 * span));
            let wait = shell.clock.steady_at(at).0 - shell.now.steady.0;
            if wait > 1 {
                let mut early = Shell { ..shell };
                early.run(wait - 2, DAY);
                assert!(early.clock.time() < at, "round {round}: the deadline is late");
            }
            let doubted = shell.clock.is_doubted();
            shell.run(wait + 1, DAY);
            assert!(doubted || shell.clock.time() >= at, "round {round}: the deadline is early");
        }
    }

    #[test]
    fn time_that_is_not_served_is_not_counted() {
        let mut shell = Shell::start(0);
        let served = shell.clock.served();
        shell.now.steady = shell.now.steady.plus_micros(DAY);
        shell.clock.advance(shell.now, false);
        assert_eq!(shell.clock.served(), served);
    }
}
