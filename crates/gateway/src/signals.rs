//! Ctrl-C and SIGTERM.

use std::io;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals within this time after a handled one count as the same: init systems and terminals send more than one.
const SAME: Duration = Duration::from_secs(1);

/// Receiver of SIGTERM and SIGINT, which no longer end the program at once.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    taken: Option<Instant>,
}

impl Signals {
    /// Takes over the signals for the rest of the process's life.
    ///
    /// # Errors
    /// The system's error.
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

    /// Waits for the next signal. Signals within a second after the previous one are ignored.
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
