//! A store of checkpoints in S3 or a compatible service, through the `object_store` crate, with the usual `AWS_…`
//! environment variables.

use super::cancel::Cancel;
use crate::checkpoint::store::{BlobReader, BlobStore, BlobWriter, Put, StoreError, check_name};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    Error, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// Minimum size of a part of a large object; all but the last have the same size, as some services require.
const PART_BYTES: u64 = 16 << 20;
/// Maximum number of parts of an object in S3.
const PARTS_MAX: u64 = 10_000;
/// Longest wait for the end of a cancelled upload.
const ABORT_WAIT: Duration = Duration::from_secs(2);

/// Returns the size of the parts of an object of this size.
fn part_bytes(bytes: u64) -> usize {
    bytes.div_ceil(PARTS_MAX).max(PART_BYTES) as usize
}

/// A bucket, or a prefix of one.
pub(super) struct S3Store {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn ObjectStore>,
    /// The calls block: the futures run on the calling thread. Present until this is dropped.
    runtime: Option<Runtime>,
    address: String,
    cancel: Cancel,
}

impl S3Store {
    /// As [`super::remote::open_until`].
    ///
    /// # Errors
    /// A sentence about the invalid address, option or credentials.
    pub(super) fn open(
        address: &str,
        options: &BTreeMap<String, String>,
        cancel: Cancel,
    ) -> Result<Self, String> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot start a runtime: {error}"))?;
        let store = open_client(address, options)?;
        Ok(Self {
            inner: Arc::new(Inner { store, runtime: Some(runtime), address: address.to_owned(), cancel }),
        })
    }
}

fn open_client(address: &str, options: &BTreeMap<String, String>) -> Result<Arc<dyn ObjectStore>, String> {
    // Another part of the process may have installed a provider before: then that one is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let rest = &address["s3://".len()..];
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err("an address of S3 is s3://bucket/prefix".to_owned());
    }
    let mut builder = AmazonS3Builder::from_env();
    for (name, value) in options {
        let key: AmazonS3ConfigKey = name.parse().map_err(|_| format!("S3 has no option {name:?}"))?;
        builder = builder.with_config(key, value);
    }
    if !has_credentials(&builder) {
        return Err(NO_CREDENTIALS.to_owned());
    }
    let store = builder
        .with_bucket_name(bucket)
        // A checkpoint's number is decided by creating an object that does not exist.
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(RetryConfig { max_retries: RETRIES, ..RetryConfig::default() })
        .build()
        .map_err(|error| error.to_string())?;
    let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|error| error.to_string())?;
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}

/// Number of repetitions of one request to S3 before it fails: about 3 s. Copies are tried again later.
const RETRIES: usize = 5;

const NO_CREDENTIALS: &str = "there are no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
    AWS_SKIP_SIGNATURE=true for a bucket that needs none, or AWS_METADATA_ENDPOINT=http://169.254.169.254 for those of \
    the role of this machine";

/// Whether credentials, or a place to get them from, are configured. Otherwise the client would contact the address of
/// a cloud's metadata service, which may belong to anyone if the machine is in no cloud.
fn has_credentials(builder: &AmazonS3Builder) -> bool {
    use AmazonS3ConfigKey as Key;
    let has = |key| builder.get_config_value(&key).is_some_and(|value| !value.is_empty());
    // If one half of a pair is missing, the client itself reports it.
    has(Key::AccessKeyId)
        || has(Key::SecretAccessKey)
        || has(Key::WebIdentityTokenFile) && has(Key::RoleArn)
        || has(Key::ContainerCredentialsRelativeUri)
        || has(Key::ContainerCredentialsFullUri) && has(Key::ContainerAuthorizationTokenFile)
        || has(Key::MetadataEndpoint)
        || builder.get_config_value(&Key::SkipSignature).is_some_and(|value| value == "true")
}

impl Inner {
    /// Runs a call to its end, or until it is cancelled.
    fn wait<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let mut receiver = self.cancel.0.subscribe();
        let runtime = self.runtime.as_ref().expect("it is taken when this is dropped");
        runtime.block_on(async {
            let mut cancelled = pin!(receiver.wait_for(|cancelled| *cancelled));
            let mut call = pin!(call);
            poll_fn(|context| {
                if cancelled.as_mut().poll(context).is_ready() {
                    let source = Cancel::REASON.into();
                    return Poll::Ready(Err(Error::Generic { store: "stead", source }));
                }
                call.as_mut().poll(context)
            })
            .await
        })
    }

    fn error(&self, action: &'static str, name: &str, error: Error) -> StoreError {
        let (name, place) = (name.to_owned(), self.address.clone());
        if matches!(error, Error::NotFound { .. }) {
            return StoreError::NotFound { name, place };
        }
        // The system's error is a source of the crate's error: a full disk must be recognised.
        let mut kind = io::ErrorKind::Other;
        let mut below: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(cause) = below {
            if let Some(cause) = cause.downcast_ref::<io::Error>() {
                kind = cause.kind();
            }
            below = cause.source();
        }
        StoreError::Io { action, name, place, source: io::Error::new(kind, error) }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A cancelled operation (a name lookup, for example) may take long to end: it is not waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn path(name: &str) -> Result<Path, StoreError> {
    check_name(name)?;
    Ok(Path::from(name))
}

impl BlobStore for S3Store {
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        let (inner, path) = (&self.inner, path(name)?);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload = PutPayload::from(bytes.to_vec());
        match inner.wait(inner.store.put_opts(&path, payload, options)) {
            Ok(_) => Ok(Put::Created),
            Err(Error::AlreadyExists { .. }) => {
                // A request that was repeated after its answer was lost finds its own object. Objects that decide
                // anything name their writer, so equal bytes are one's own.
                match self.get(name, bytes.len() as u64) {
                    Ok(found) if found == bytes => Ok(Put::Created),
                    Ok(_) | Err(StoreError::TooLarge { .. }) => Ok(Put::Exists),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(inner.error("create", name, error)),
        }
    }

    fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.create_sized(name, 0)
    }

    fn create_sized(&self, name: &str, bytes: u64) -> Result<Box<dyn BlobWriter>, StoreError> {
        Ok(Box::new(S3Writer {
            inner: Arc::clone(&self.inner),
            name: name.to_owned(),
            path: path(name)?,
            buffer: Vec::new(),
            part_bytes: part_bytes(bytes),
            upload: None,
        }))
    }

    fn open(&self, name: &str) -> Result<Box<dyn BlobReader>, StoreError> {
        let path = path(name)?;
        let head = self.inner.wait(self.inner.store.head(&path));
        let size = head.map_err(|error| self.inner.error("open", name, error))?.size;
        Ok(Box::new(S3Reader { inner: Arc::clone(&self.inner), name: name.to_owned(), path, size }))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, StoreError> {
        let inner = &self.inner;
        let prefix = Path::from(dir);
        let listed = match inner.wait(inner.store.list_with_delimiter(Some(&prefix))) {
            Err(Error::NotFound { .. }) => return Ok(Vec::new()),
            listed => listed.map_err(|error| inner.error("list", dir, error))?,
        };
        let names = listed.objects.into_iter().map(|object| object.location.to_string());
        let mut names: Vec<String> = names.filter(|name| check_name(name).is_ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = path(name)?;
        match self.inner.wait(self.inner.store.delete(&path)) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.inner.error("delete", name, error)),
        }
    }
}

struct S3Writer {
    inner: Arc<Inner>,
    name: String,
    path: Path,
    buffer: Vec<u8>,
    part_bytes: usize,
    /// Begun with the second part: a small object is written at once.
    upload: Option<Box<dyn MultipartUpload>>,
}

impl S3Writer {
    fn put_part(&mut self) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.inner);
        let failed = |error| inner.error("write", &self.name, error);

        let part = PutPayload::from(std::mem::take(&mut self.buffer));
        if self.upload.is_none() {
            let upload = inner.wait(inner.store.put_multipart(&self.path));
            self.upload = Some(upload.map_err(failed)?);
        }
        let upload = self.upload.as_mut().expect("it was begun above");
        inner.wait(upload.put_part(part)).map_err(failed)
    }
}

impl BlobWriter for S3Writer {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            // A full buffer waits for more: the last part may have any size, and a single part needs no upload.
            if self.buffer.len() == self.part_bytes {
                self.put_part()?;
            }
            let (piece, rest) = bytes.split_at(bytes.len().min(self.part_bytes - self.buffer.len()));
            self.buffer.extend_from_slice(piece);
            bytes = rest;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.inner);
        if self.upload.is_some() {
            self.put_part()?;
        }
        let done = match self.upload.take() {
            Some(mut upload) => inner.wait(upload.complete()),
            None => {
                let payload = PutPayload::from(std::mem::take(&mut self.buffer));
                inner.wait(inner.store.put(&self.path, payload))
            }
        };
        done.map(drop).map_err(|error| inner.error("write", &self.name, error))
    }
}

impl Drop for S3Writer {
    fn drop(&mut self) {
        if let Some(mut upload) = self.upload.take() {
            // Also after a cancellation: the parts cost money until they are dropped. They are invisible, and a service
            // that does not answer now drops them by its own rules, or keeps them.
            let runtime = self.inner.runtime.as_ref().expect("it is taken when this is dropped");
            let _ = runtime.block_on(async { timeout(ABORT_WAIT, upload.abort()).await });
        }
    }
}

struct S3Reader {
    inner: Arc<Inner>,
    name: String,
    path: Path,
    size: u64,
}

impl BlobReader for S3Reader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), StoreError> {
        let end = offset.saturating_add(buf.len() as u64);
        let short = || StoreError::Io {
            action: "read",
            name: self.name.clone(),
            place: self.inner.address.clone(),
            source: io::ErrorKind::UnexpectedEof.into(),
        };
        if end > self.size {
            return Err(short());
        }
        if buf.is_empty() {
            return Ok(());
        }
        let read = self.inner.wait(self.inner.store.get_range(&self.path, offset..end));
        let read = read.map_err(|error| self.inner.error("read", &self.name, error))?;
        if read.len() != buf.len() {
            return Err(short());
        }
        buf.copy_from_slice(&read);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::{PutResult, UploadPart};
    use std::pin::Pin;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn the_parts_that_a_service_takes_are_enough_for_any_object() {
        assert_eq!([0, 1, 160_000 << 20].map(part_bytes), [16 << 20; 3]);
        // 5 TiB, the largest object of S3.
        for bytes in [(160_000 << 20) + 1, 1 << 40, 5 << 40] {
            let part = part_bytes(bytes) as u64;
            assert!(
                (PART_BYTES..1 << 30).contains(&part) && bytes.div_ceil(part) <= PARTS_MAX,
                "{bytes}: {part}"
            );
        }
    }

    #[test]
    fn credentials_must_be_named_or_the_place_where_they_are() {
        let given = |pairs: &[(&str, &str)]| {
            let mut builder = AmazonS3Builder::new();
            for (name, value) in pairs {
                builder = builder.with_config(name.parse().unwrap(), *value);
            }
            has_credentials(&builder)
        };
        assert!(!given(&[]));
        assert!(!given(&[("aws_region", "eu-central-1"), ("aws_endpoint", "http://127.0.0.1:1")]));
        assert!(!given(&[("aws_access_key_id", "")]));
        assert!(!given(&[("aws_role_arn", "arn")]));
        assert!(!given(&[("aws_skip_signature", "false")]));
        assert!(given(&[("aws_access_key_id", "a"), ("aws_secret_access_key", "b")]));
        assert!(given(&[("aws_web_identity_token_file", "/token"), ("aws_role_arn", "arn")]));
        assert!(given(&[("aws_container_credentials_relative_uri", "/v2/credentials")]));
        assert!(given(&[("aws_metadata_endpoint", "http://169.254.169.254")]));
        assert!(given(&[("aws_skip_signature", "true")]));
    }

    #[derive(Debug)]
    struct Upload(Arc<AtomicBool>);

    type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

    impl MultipartUpload for Upload {
        fn put_part(&mut self, _: PutPayload) -> UploadPart {
            Box::pin(async { Ok(()) })
        }

        fn complete<'a, 'b>(&'a mut self) -> Answer<'b, PutResult>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { unreachable!("it is broken off") })
        }

        fn abort<'a, 'b>(&'a mut self) -> Answer<'b, ()>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async {
                self.0.store(true, Ordering::Relaxed);
                Ok(())
            })
        }
    }

    #[test]
    fn an_upload_that_was_broken_off_is_aborted() {
        let cancel = Cancel::default();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let store = Arc::new(object_store::memory::InMemory::new());
        let address = "s3://bucket".to_owned();
        let inner = Arc::new(Inner { store, runtime: Some(runtime), address, cancel: cancel.clone() });
        let aborted = Arc::new(AtomicBool::new(false));
        let writer = S3Writer {
            inner,
            name: "bundles/x".to_owned(),
            path: path("bundles/x").unwrap(),
            buffer: Vec::new(),
            part_bytes: part_bytes(0),
            upload: Some(Box::new(Upload(Arc::clone(&aborted)))),
        };
        cancel.cancel();
        drop(writer);
        assert!(aborted.load(Ordering::Relaxed));
    }
}
