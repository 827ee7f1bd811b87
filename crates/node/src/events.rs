//! The events of a node on their way to the program's `tracing` subscriber: one thread hands them over, so that a
//! subscriber that blocks or panics holds up, or ends, no thread of a node.
//!
//! Only what the caller of a function logs for itself, before there is a node, goes to the subscriber at once.

use crate::outlet::{Delivered, Outlet};
use std::fmt::Display;
use std::time::Duration;
use tracing::dispatcher::{self, Dispatch};
use tracing::{Level, error, info, warn};

/// The end of a node waits at most so long for the delivery of its events.
pub const LAST_WORDS: Duration = Duration::from_millis(500);

static QUEUE: Outlet<Event> = Outlet::new();

struct Event {
    level: Level,
    text: String,
    /// The subscriber of the thread that reports, which may have one of its own.
    subscriber: Dispatch,
}

/// Reports news at the level of information.
pub fn info(text: impl Display) {
    push(Level::INFO, text.to_string());
}

/// Reports a warning.
pub fn warn(text: impl Display) {
    push(Level::WARN, text.to_string());
}

/// Reports an error.
pub fn error(text: impl Display) {
    push(Level::ERROR, text.to_string());
}

/// Waits until the subscriber has all that was reported, at most so long; whether it has.
pub fn flush(wait: Duration) -> bool {
    QUEUE.flush(wait)
}

fn push(level: Level, text: String) {
    let (bytes, subscriber) = (size_of::<Event>() + text.len(), dispatcher::get_default(Dispatch::clone));
    QUEUE.push(Event { level, text, subscriber }, bytes, "stead-events", deliver);
}

fn deliver(event: &Event, missing: u64) -> Delivered {
    dispatcher::with_default(&event.subscriber, || {
        if missing > 0 {
            warn!(target: "stead", "{missing} events before this one were dropped: the subscriber is too slow, or panics");
        }
        let text = &event.text;
        match event.level {
            Level::ERROR => error!(target: "stead", "{text}"),
            Level::WARN => warn!(target: "stead", "{text}"),
            _ => info!(target: "stead", "{text}"),
        }
    });
    Delivered { item: true, report: true }
}
