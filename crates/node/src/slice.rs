//! Determines the end of a slice of a worker's turn without reading the clock before each run of a handler.
//!
//! Reading the clock costs about a thirtieth of handling a small message. So it is read only before each fourth run, as
//! long as runs are short: four of them then take less than a fifth of a slice. After a long run, it is read before
//! each run for a while.

use std::cell::Cell;
use stead_core::ids::{Micros, Time};

/// Runs between two readings of the clock while runs are short.
const UNLOOKED: u32 = 3;
/// Maximum time of the runs between two readings together to count as short.
const SHORT: Micros = Micros(200);
/// Readings after which long runs are forgotten.
const CAREFUL: u32 = 1_000;

/// A slice of a turn.
#[derive(Default)]
pub(crate) struct Slice {
    /// Time until which handlers may begin; `None`: at any time.
    until: Option<Time>,
    looked: Cell<Option<Time>>,
    unlooked: Cell<u32>,
    careful: Cell<u32>,
}

impl Slice {
    /// Begins a slice that lasts until `until`.
    pub(crate) fn begin(&mut self, now: Time, until: Time) {
        self.until = Some(until);
        self.looked.set(Some(now));
    }

    /// Whether it is over, as far as is known before a run of a handler.
    pub(crate) fn is_over(&self, now: impl FnOnce() -> Time) -> bool {
        let Some(until) = self.until else { return false };
        let unlooked = self.unlooked.get();
        if unlooked > 0 {
            self.unlooked.set(unlooked - 1);
            return false;
        }
        let now = now();
        let took = self.looked.replace(Some(now)).map_or(Micros(0), |looked| now.since(looked));
        let careful = if took > SHORT { CAREFUL } else { self.careful.get().saturating_sub(1) };
        self.careful.set(careful);
        self.unlooked.set(if careful == 0 { UNLOOKED } else { 0 });
        now >= until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs for `micros` each until the slice of 1 ms is over; returns the number of runs, the number of readings, and
    /// the total time.
    fn run(slice: &mut Slice, now: &mut Time, micros: impl Fn(usize) -> u64) -> (usize, usize, u64) {
        let begun = *now;
        slice.begin(begun, begun.plus_millis(1));
        let (mut runs, looks) = (0, Cell::new(0));
        while !slice.is_over(|| {
            looks.set(looks.get() + 1);
            *now
        }) {
            *now = now.plus_micros(micros(runs));
            runs += 1;
        }
        (runs, looks.get(), now.0 - begun.0)
    }

    #[test]
    fn short_runs_need_a_look_in_four_and_long_ones_each() {
        let (mut slice, mut now) = (Slice::default(), Time(0));
        let (runs, looks, took) = run(&mut slice, &mut now, |_| 2);
        assert!((500..504).contains(&runs) && looks <= runs / 4 + 2, "{looks} looks for {runs} runs");
        assert!(took < 1_010, "{took}");
        // These could not be foreseen: at most four of them begin before the end of the slice is known.
        let (runs, _, _) = run(&mut slice, &mut now, |_| 2_000);
        assert!((1..=4).contains(&runs), "{runs} runs");
        for _ in 0..10 {
            let (runs, looks, _) = run(&mut slice, &mut now, |_| 2_000);
            assert_eq!((runs, looks), (1, 2), "from then on each run is preceded by a look");
        }
        let (runs, looks, _) = run(&mut slice, &mut now, |run| if run % 50 == 49 { 300 } else { 1 });
        assert_eq!(looks, runs + 1, "one in fifty is enough for that");
        for _ in 0..5 {
            run(&mut slice, &mut now, |_| 2);
        }
        let (runs, looks, _) = run(&mut slice, &mut now, |_| 2);
        assert!(looks <= runs / 4 + 2, "{looks} looks for {runs} runs once all are short again");
    }

    #[test]
    fn without_a_slice_nothing_is_over() {
        assert!(!Slice::default().is_over(|| unreachable!("no look is needed")));
    }
}
