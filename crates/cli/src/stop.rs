//! Ctrl-C and SIGTERM.

use crate::failure::{Exit, Failure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// From here on, signals that tell the program to end no longer end it at once.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Needs a runtime around it.
    pub(crate) fn take() -> Result<Self, Failure> {
        let take = |kind| signal(kind).map_err(|error| failure(&error));
        Ok(Self { terminate: take(SignalKind::terminate())?, interrupt: take(SignalKind::interrupt())? })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn failure(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, "can't listen for signals").cause(error)
}

/// From now on the end of the thread that started this program counts as SIGTERM.
pub(crate) fn end_with_parent() -> Result<(), Failure> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| Failure::new(Exit::Failed, "can't ask for the parent's death").cause(error))
}

/// Ends the program: somebody does not want to wait.
pub(crate) fn exit() -> ! {
    std::process::exit(Exit::Stopped as i32)
}

/// From now on the first signal sets the flag, which the command looks at; the second one ends the program at once.
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
