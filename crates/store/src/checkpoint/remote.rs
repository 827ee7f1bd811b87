//! Stores of checkpoints by address: `file:///path` is a directory, `s3://bucket/prefix` is S3 or a compatible service,
//! for which the cargo feature `s3` is needed.

use super::cancel::Cancel;
use super::directory::Directory;
use super::store::{BlobStore, StoreError};
use crate::real_disk::RealDisk;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Opens the store behind `file:///path` (the directory is created if it is missing) or `s3://bucket/prefix`. `options`
/// are those of S3, like `region`, `endpoint`, `access_key_id`, `secret_access_key` or `allow_http`; they override the
/// environment variables `AWS_…`.
///
/// # Errors
/// [`StoreError::Address`] if the address or an option is invalid, or credentials are missing. The service is not
/// contacted.
pub fn open(address: &str, options: &BTreeMap<String, String>) -> Result<Arc<dyn BlobStore>, StoreError> {
    open_until(address, options, Cancel::default())
}

/// Returns an address whose text before an `@` of its bucket is replaced by `...`, and whether there was any: in most
/// URLs it is a name and a password, and a bucket's name cannot contain an `@`.
#[must_use]
pub fn without_credentials(address: &str) -> (Cow<'_, str>, bool) {
    let bucket = address.strip_prefix("s3://").and_then(|rest| rest.split('/').next());
    match bucket.and_then(|bucket| bucket.rfind('@')) {
        Some(at) => (Cow::Owned(format!("s3://...{}", &address["s3://".len() + at..])), true),
        None => (Cow::Borrowed(address), false),
    }
}

/// As [`open`], with calls that can be cancelled.
///
/// # Errors
/// As [`open`].
pub fn open_until(
    address: &str,
    options: &BTreeMap<String, String>,
    cancel: Cancel,
) -> Result<Arc<dyn BlobStore>, StoreError> {
    let (shown, has_credentials) = without_credentials(address);
    let refuse = |reason: String| StoreError::Address { name: shown.into_owned(), reason };
    if has_credentials {
        return Err(refuse(
            "an address must not have credentials, because it is shown and logged; set AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY"
                .to_owned(),
        ));
    }
    if let Some(dir) = address.strip_prefix("file://") {
        if let Some(option) = options.keys().next() {
            return Err(refuse(format!("a directory has no option {option:?}")));
        }
        if !dir.starts_with('/') {
            return Err(refuse("the path after file:// must be absolute".to_owned()));
        }
        let opened = RealDisk::open(dir).and_then(|disk| {
            Directory::open(Arc::new(disk), "", address.to_owned(), cancel, fastrand::u64(..))
        });
        return Ok(Arc::new(opened.map_err(|error| refuse(error.to_string()))?));
    }
    if !address.starts_with("s3://") {
        return Err(refuse("an address begins with file:// or s3://".to_owned()));
    }
    open_s3(address, options, cancel).map_err(refuse)
}

#[cfg(feature = "s3")]
fn open_s3(
    address: &str,
    options: &BTreeMap<String, String>,
    cancel: Cancel,
) -> Result<Arc<dyn BlobStore>, String> {
    Ok(Arc::new(super::s3::S3Store::open(address, options, cancel)?))
}

#[cfg(not(feature = "s3"))]
fn open_s3(_: &str, _: &BTreeMap<String, String>, _: Cancel) -> Result<Arc<dyn BlobStore>, String> {
    Err("this program was built without S3; build it with the cargo feature s3, as released programs are"
        .to_owned())
}
