//! Ctrl-C and SIGTERM.

use crate::failure::{Exit, Failure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use stead::stderr;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals within this time after one that was taken count as that one: init systems and terminals send more than one.
const SAME: Duration = Duration::from_secs(1);

/// From here on, signals that ask the program to end no longer end it at once.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    taken: Option<Instant>,
}

impl Signals {
    /// Needs a runtime around it.
    pub(crate) fn take() -> Result<Self, Failure> {
        let take = |kind| signal(kind).map_err(|error| failure(&error));
        Ok(Self {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
            taken: None,
        })
    }

    /// The next signal to end. Those within a second after the one before are passed over.
    pub(crate) async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            let now = Instant::now();
            if self.taken.is_none_or(|taken| now.duration_since(taken) >= SAME) {
                self.taken = Some(now);
                return;
            }
        }
    }
}

fn failure(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, "cannot listen for signals").cause(error)
}

/// From now on the end of the thread that started this program counts as SIGTERM.
pub(crate) fn end_with_parent() -> Result<(), Failure> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| Failure::new(Exit::Failed, "cannot watch the parent process").cause(error))
}

/// Ends the program: somebody does not want to wait.
pub(crate) fn exit() -> ! {
    exit_with(Exit::Stopped as i32)
}

/// How long the end waits for standard error to take what was said.
pub(crate) const LAST_WORDS: Duration = Duration::from_millis(500);

/// Ends the program with a code.
pub(crate) fn exit_with(code: i32) -> ! {
    stderr::flush(LAST_WORDS);
    std::process::exit(code)
}

/// From now on the first signal sets the flag, which the command looks at; a second one, over a second later, ends the
/// program at once.
pub(crate) fn listen() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let wanted = Arc::clone(&stop);
    on_signal(move || {
        if wanted.swap(true, Ordering::Relaxed) {
            exit();
        }
    })?;
    Ok(stop)
}

/// Calls a function on a thread of its own for each signal from now on.
pub(crate) fn on_signal(mut handle: impl FnMut() + Send + 'static) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.map_err(|error| failure(&error))?;
    let mut signals = {
        let _inside = runtime.enter();
        Signals::take()?
    };
    let wait = move || {
        loop {
            runtime.block_on(signals.next());
            handle();
        }
    };
    let spawned = std::thread::Builder::new().name("stead-signals".to_owned()).spawn(wait);
    spawned.map(drop).map_err(|error| failure(&error))
}

/// Ends the program if it has not ended after this time: what hangs then hangs for ever.
pub(crate) fn exit_after(time: Duration) {
    let wait = move || {
        std::thread::sleep(time);
        stderr::line(format_args!(
            "stead: shutdown was cut short after {time:?}; answered requests are on disk, and the next start recovers them"
        ));
        exit();
    };
    // Without a thread there is still the second signal.
    let _ = std::thread::Builder::new().name("stead-last-resort".to_owned()).spawn(wait);
}
