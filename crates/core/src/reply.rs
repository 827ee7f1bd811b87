//! The answer of a handler, as stored in entries and records.

use crate::blob::Blob;
use minicbor::{Decode, Encode};

/// A handler's answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// The handler succeeded.
    #[n(0)]
    Ok(#[n(0)] Blob),
    /// The handler returned an error, which is an answer too.
    #[n(1)]
    Err(#[n(0)] Blob),
}
