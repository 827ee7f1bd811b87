//! Checks values against their ranges.

use crate::config::error::ConfigError;
use std::time::Duration;
use stead_store::checkpoint::remote::without_credentials;

/// Checks a number.
pub(super) fn range<T: PartialOrd + ToString>(
    key: &str,
    value: Option<T>,
    allowed: std::ops::RangeInclusive<T>,
    must: &'static str,
) -> Result<(), ConfigError> {
    match value {
        Some(value) if !allowed.contains(&value) => {
            Err(ConfigError::Range { key: key.to_owned(), value: value.to_string(), must })
        }
        _ => Ok(()),
    }
}

/// Checks a time.
pub(super) fn time(
    key: &str,
    value: Option<Duration>,
    min: Duration,
    max: Duration,
    must: &'static str,
) -> Result<(), ConfigError> {
    match value {
        Some(value) if value < min || value > max => {
            Err(ConfigError::Range { key: key.to_owned(), value: format!("{value:?}"), must })
        }
        _ => Ok(()),
    }
}

/// Checks an address without contacting its target, which may not always be reachable.
pub(super) fn address(key: &str, value: Option<&str>) -> Result<(), ConfigError> {
    let good = |value: &str| {
        let bucket = value.strip_prefix("s3://");
        bucket.is_some_and(|bucket| !bucket.is_empty() && !bucket.starts_with('/'))
            || value.starts_with("file:///")
    };
    let Some(value) = value else { return Ok(()) };
    let (shown, has_credentials) = without_credentials(value);
    if good(value) && !has_credentials {
        return Ok(());
    }
    let must = "file:///directory or s3://bucket/prefix, without credentials";
    Err(ConfigError::Range { key: key.to_owned(), value: format!("{shown:?}"), must })
}
