//! Limits of the gateway.

use std::time::Duration;

/// Limits of the gateway. A problem document reports each limit that is exceeded. Only a connection that is too slow
/// with a request's head is closed without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of bytes of a request's body. Default: [`Limits::BODY_BYTES_MAX`].
    pub body_bytes_max: usize,
    /// Maximum number of connections; one more is answered 503 and closed. Default: [`Limits::CONNECTIONS_MAX`].
    pub connections_max: usize,
    /// Time that a client may take to send a request's head; an idle connection is closed after it, and so is one whose client
    /// reads nothing of an answer for this long. Default: [`Limits::HEADER_TIMEOUT`].
    pub header_timeout: Duration,
    /// Time that a request may take, its body included; a client's `Stead-Deadline-Ms` can only shorten it.
    /// Default: [`Limits::REQUEST_TIMEOUT`].
    pub request_timeout: Duration,
    /// Time that a shutdown waits for open requests. Default: [`Limits::SHUTDOWN_TIMEOUT`].
    pub shutdown_timeout: Duration,
}

impl Limits {
    /// Default of [`Limits::body_bytes_max`]: 1 MiB.
    pub const BODY_BYTES_MAX: usize = 1 << 20;
    /// Default of [`Limits::connections_max`]: 1024.
    pub const CONNECTIONS_MAX: usize = 1024;
    /// Default of [`Limits::header_timeout`]: 30 s.
    pub const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
    /// Default of [`Limits::request_timeout`]: 30 s.
    pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
    /// Default of [`Limits::shutdown_timeout`]: 10 s.
    pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
    /// Maximum number of bytes of a request's head: 64 KiB. It includes the key of the process.
    pub const HEAD_BYTES_MAX: usize = 64 << 10;
    /// Maximum number of header fields of a request: 100.
    pub const HEAD_FIELDS_MAX: usize = 100;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: Self::BODY_BYTES_MAX,
            connections_max: Self::CONNECTIONS_MAX,
            header_timeout: Self::HEADER_TIMEOUT,
            request_timeout: Self::REQUEST_TIMEOUT,
            shutdown_timeout: Self::SHUTDOWN_TIMEOUT,
        }
    }
}
