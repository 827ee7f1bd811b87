//! Settings that the allocator reads at the start of a process: memory is given back soon, and in small pages, because one
//! small record would hold a huge page of 2 MiB.

use crate::failure::{Exit, Failure};
use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use stead_gateway::program;

/// Variables that hold unless they are set already.
pub(crate) const VARIABLES: [(&str, &str); 2] = [("MIMALLOC_PURGE_DELAY", "10"), ("MIMALLOC_ALLOW_THP", "0")];

/// Starts this program again in the same process, with the allocator's settings of a server.
pub(crate) fn set() -> Result<(), Failure> {
    let unset: Vec<_> = VARIABLES.into_iter().filter(|(name, _)| env::var_os(name).is_none()).collect();
    if unset.is_empty() {
        return Ok(());
    }
    let error = Command::new(program::path()).args(env::args_os().skip(1)).envs(unset).exec();
    Err(Failure::new(Exit::Failed, "cannot restart this program").cause(error))
}
