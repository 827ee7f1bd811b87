//! Waits of tests: for a condition, until a deadline that only a fault reaches. A count of tries is none: how long a try
//! takes depends on the machine's load.

use std::time::{Duration, Instant};

/// The longest wait for what must happen, also on a machine with other work.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the condition holds, and panics with what was awaited after [`PATIENCE`].
#[track_caller]
pub(crate) fn await_until(what: &str, mut holds: impl FnMut() -> bool) {
    await_some(what, || holds().then_some(()));
}

/// Waits until there is a value, and panics with what was awaited after [`PATIENCE`].
#[track_caller]
pub(crate) fn await_some<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = get() {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::yield_now();
    }
}
