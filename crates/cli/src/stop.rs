//! Ctrl-C and SIGTERM.

use crate::failure::{Exit, Failure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stead::stderr;
use stead_gateway::signals::Signals;

fn failure(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, "cannot listen for signals").cause(error)
}

/// Treats the end of the thread that started this program as SIGTERM from now on.
pub(crate) fn end_with_parent() -> Result<(), Failure> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| Failure::new(Exit::Failed, "cannot watch the parent process").cause(error))
}

/// Ends the program at once, after a second signal.
pub(crate) fn exit() -> ! {
    exit_with(Exit::Stopped as i32)
}

/// Time that the end waits for standard error to take the last messages.
pub(crate) const LAST_WORDS: Duration = Duration::from_millis(500);

/// Ends the program with a code.
pub(crate) fn exit_with(code: i32) -> ! {
    stderr::flush(LAST_WORDS);
    std::process::exit(code)
}

/// Makes the first signal set the returned flag, which the command reads; a second one, over a second later, ends the
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
        Signals::take().map_err(|error| failure(&error))?
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
