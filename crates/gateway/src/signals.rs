//! Ctrl-C and SIGTERM.

use std::io;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals within this time after one that was taken count as that one: init systems and terminals send more than one.
const SAME: Duration = Duration::from_secs(1);

/// SIGTERM and SIGINT, which from here on no longer end the program at once.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    taken: Option<Instant>,
}

impl Signals {
    /// Takes them, for the rest of the process's life.
    ///
    /// # Errors
    /// The system's reason.
    ///
    /// # Panics
    /// Outside a tokio runtime whose I/O is enabled.
    pub fn take() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            taken: None,
        })
    }

    /// Waits for the next one. Those within a second after the one before are passed over.
    pub async fn next(&mut self) {
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
