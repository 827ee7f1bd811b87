//! Ctrl-C and SIGTERM for a command that has something to put away before it ends.

use crate::failure::{Exit, Failure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{SignalKind, signal};

/// From now on the first signal sets the flag, which the command looks at; the second one ends the program at once.
pub(crate) fn listen() -> Result<Arc<AtomicBool>, Failure> {
    let cant = |error| Failure::new(Exit::Failed, "can't listen for signals").cause(error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(cant)?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate()).map_err(cant)?, signal(SignalKind::interrupt()).map_err(cant)?)
    };
    let stop = Arc::new(AtomicBool::new(false));
    let wanted = Arc::clone(&stop);
    let wait = move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if wanted.swap(true, Ordering::Relaxed) {
                    std::process::exit(Exit::Stopped as i32);
                }
            }
        });
    };
    std::thread::Builder::new().name("stead-signals".to_owned()).spawn(wait).map_err(cant)?;
    Ok(stop)
}
