//! Closed-loop callers: each has one open call at a time.

use super::failed;
use crate::failure::Failure;
use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

/// Results of the callers.
pub(super) struct Calls {
    pub(super) seconds: f64,
    /// Latency of each call, sorted.
    pub(super) micros: Vec<u32>,
}

impl Calls {
    pub(super) fn rate(&self) -> f64 {
        self.micros.len() as f64 / self.seconds
    }
}

/// Returns a runtime that runs on the current thread.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread().enable_all().build().map_err(|error| failed("make a runtime")(&error))
}

/// Lets async callers call for `time`, all on this thread.
pub(super) fn drive<C, F, E>(callers: u32, time: Duration, call: C) -> Result<Calls, Failure>
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), E>> + Send,
    E: Display + Send + 'static,
{
    let runtime = runtime()?;
    let start = Instant::now();
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let call = call.clone();
            runtime.spawn(async move {
                let mut micros = Vec::new();
                let mut begun = Instant::now();
                while begun - start < time {
                    call().await?;
                    let ended = Instant::now();
                    micros.push((ended - begun).as_micros() as u32);
                    begun = ended;
                }
                Ok::<_, E>(micros)
            })
        })
        .collect();
    let mut all = Vec::new();
    runtime.block_on(async {
        for caller in callers {
            let micros = caller.await.map_err(|error| failed("call")(&error))?;
            all.extend(micros.map_err(|error| failed("call a process")(&error))?);
        }
        Ok::<(), Failure>(())
    })?;
    let seconds = start.elapsed().as_secs_f64();
    all.sort_unstable();
    Ok(Calls { seconds, micros: all })
}
