//! The answer of a handler, as entries and records hold it.

use crate::blob::Blob;
use minicbor::{Decode, Encode};

/// A handler's answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// It worked.
    #[n(0)]
    Ok(#[n(0)] Blob),
    /// The handler returned an error, which is an answer too.
    #[n(1)]
    Err(#[n(0)] Blob),
}
