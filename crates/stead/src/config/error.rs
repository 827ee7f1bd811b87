//! The errors of a configuration.

use stead_core::control::dial::DialError;
use thiserror::Error;

/// Reasons for which a configuration is invalid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// The cause.
        reason: String,
    },
    /// The text is not a valid configuration.
    #[error("{place}: {reason}{}", hint.as_ref().map_or_else(String::new, |hint| format!("; did you mean {hint:?}?")))]
    Invalid {
        /// The file or variable.
        place: String,
        /// The reason.
        reason: String,
        /// A similar key that exists.
        hint: Option<String>,
    },
    /// A value is out of its range.
    #[error("{key} is {value}; it must be {must}")]
    Range {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// The allowed values.
        must: &'static str,
    },
    /// The dial of a service is impossible.
    #[error("the dial of service {service:?} is impossible: {reason}")]
    Dial {
        /// The service.
        service: String,
        /// The reason.
        reason: DialError,
    },
    /// An address of a node of a cluster, for a node that is part of none.
    #[error(
        "{key} is the address of a node of a cluster, and this node is part of none; set cluster.listen or cluster.join, too"
    )]
    Alone {
        /// The key.
        key: &'static str,
    },
    /// A service in the configuration that the program does not have.
    #[error("the configuration names service {name:?}, which this program does not have{}",
        hint.as_ref().map_or_else(String::new, |hint| format!("; did you mean {hint:?}?")))]
    UnknownService {
        /// The name.
        name: String,
        /// A similar service that the program has.
        hint: Option<String>,
    },
}
