//! Settings of a service's shards.

use crate::ids::Micros;

/// Limits and times of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Time after which a session expires without a request, in served time: 1 h by default.
    pub session_ttl: Micros,
    /// Time that the reply to an idempotency key is kept, in served time: 24 h by default.
    pub idempotency_ttl: Micros,
    /// Number of times that a waiting cause may fail, or end the process without another suspect, before it becomes a
    /// dead letter: 5 by default, at least 1.
    pub attempts_max: u32,
    /// Time after the start that follows an unclean shutdown during which clients' requests are suspected to have
    /// caused it: 60 s by default.
    pub suspect_for: Micros,
    /// Bytes of undelivered messages, or of requests that wait for their attempt, above which clients are asked to
    /// retry later: 64 MiB by default.
    pub outbox_bytes_max: usize,
    /// Bytes of replies that are kept for retries, in sessions and under idempotency keys, above which requests with a
    /// new key are refused; half of it for one principal: 64 MiB by default. Requests of a session are refused only if
    /// it keeps [`State::SESSION_KEPT`](crate::state::State::SESSION_KEPT) itself and confirms nothing.
    pub kept_bytes_max: usize,
    /// Maximum number of sessions; half of it for one principal: 65,536 by default.
    pub sessions_max: usize,
    /// Bytes of timers and tasks above which clients' requests are refused: 256 MiB by default.
    pub waiting_bytes_max: usize,
    /// Bytes of dead letters above which clients' requests are refused until some are retried or deleted: 64 MiB by
    /// default.
    pub dead_letter_bytes_max: usize,
    /// Maximum number of bytes that one call may write, send and answer together: 32 MiB by default. At least twice as
    /// much must fit into the log at once, because a dead letter has a payload and more.
    pub entry_bytes_max: usize,
    /// Maximum number of entries that may wait to be committed before the shard accepts no new work: 65,536 by default.
    pub uncommitted_max: u64,
    /// Maximum number of bytes of entries that may wait to be committed before the shard accepts no new work: 64 MiB by
    /// default. The one call that reaches the limit may exceed it. Queries, and retries of answered requests, are
    /// refused above the same number of bytes of answers that wait for the log.
    pub uncommitted_bytes_max: usize,
    /// Maximum work of one input, after which the rest waits for a tick, so that no shard delays the others of its
    /// thread: 2,048 by default, at least 1. Runs of handlers, records, messages, answers and 4 KiB of the log count one
    /// each; the one call that reaches the limit may exceed it.
    pub work_max: usize,
    /// Time for which acknowledgements and trims are gathered before they leave: 25 ms by default.
    pub ack_delay: Micros,
    /// Time without progress of a channel after which its messages are sent again: 2 s by default.
    pub resend_after: Micros,
    /// Time for which a wall clock that is ahead by more than [`Clock::FAR`](crate::clock::Clock::FAR) has to stay so
    /// before it is adopted; 0 adopts any clock at once: 10 min by default.
    pub clock_confirm: Micros,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            session_ttl: Micros::from_secs(60 * 60),
            idempotency_ttl: Micros::from_secs(24 * 60 * 60),
            attempts_max: 5,
            suspect_for: Micros::from_secs(60),
            outbox_bytes_max: 64 << 20,
            kept_bytes_max: 64 << 20,
            sessions_max: 65_536,
            waiting_bytes_max: 256 << 20,
            dead_letter_bytes_max: 64 << 20,
            entry_bytes_max: 32 << 20,
            uncommitted_max: 65_536,
            uncommitted_bytes_max: 64 << 20,
            work_max: 2_048,
            ack_delay: Micros::from_millis(25),
            resend_after: Micros::from_secs(2),
            clock_confirm: Micros::from_secs(600),
        }
    }
}
