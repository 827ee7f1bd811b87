//! Settings that the allocator reads at the start of a process: it returns free memory to the system soon, and in small
//! pages, because a single small record would otherwise keep a huge page of 2 MiB in use.

use crate::failure::{Exit, Failure};
use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use stead_gateway::program;

/// Environment variables and their values; one that is already set keeps its value.
pub(crate) const VARIABLES: [(&str, &str); 2] = [("MIMALLOC_PURGE_DELAY", "10"), ("MIMALLOC_ALLOW_THP", "0")];

/// Replaces this process by the same program, with the allocator's settings of a server.
pub(crate) fn set() -> Result<(), Failure> {
    let unset: Vec<_> = VARIABLES.into_iter().filter(|(name, _)| env::var_os(name).is_none()).collect();
    if unset.is_empty() {
        return Ok(());
    }
    let error = Command::new(program::path()).args(env::args_os().skip(1)).envs(unset).exec();
    Err(Failure::new(Exit::Failed, "cannot restart this program").cause(error))
}
