//! Delivers the events of a node to the program's `tracing` subscriber on a thread of its own, so that a subscriber
//! that blocks or panics delays or ends no thread of a node.
//!
//! Only events that the caller of a function logs itself, before there is a node, go to the subscriber at once.

use crate::outlet::{Delivered, Outlet};
use std::fmt::Display;
use std::time::Duration;
use tracing::dispatcher::{self, Dispatch};
use tracing::{Level, error, info, warn};

/// Longest wait for the delivery of events at the end of a node.
pub const LAST_WORDS: Duration = Duration::from_millis(500);

static QUEUE: Outlet<Event> = Outlet::new();

struct Event {
    level: Level,
    text: String,
    /// The subscriber of the reporting thread, which may have one of its own.
    subscriber: Dispatch,
}

/// Reports information.
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

/// Waits until the subscriber has all reported events, at most `wait`; returns whether it has.
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
