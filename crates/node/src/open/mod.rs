//! Opening a node, in four steps.
//!
//! `plan` answers the core's questions about the program; `recover` reads the data directory and changes nothing until
//! the core's plan of the start has accepted its contents; `assemble` creates all parts of the node, without a thread;
//! `spawn` puts them on threads.

mod assemble;
mod error;
mod options;
mod plan;
mod recover;
mod spawn;
#[cfg(test)]
mod tests;

use crate::env::Env;
use crate::life::Life;
pub(crate) use assemble::{Parts, assemble};
pub use error::OpenError;
pub use options::{CheckpointOptions, CopyTarget, Drawn, Options};
use plan::Registered;
pub use recover::{RecoverOptions, Recovery, recover};
use std::sync::Arc;
use std::time::Instant;
use stead_core::records::set_secret;
use stead_store::disk::Disk;

impl<E: Env> Life<E> {
    /// Recovers the data on a disk, or creates it, and starts the threads of a node. Returns when all shards serve.
    ///
    /// # Errors
    /// [`OpenError`]; then stored data is unchanged.
    #[expect(clippy::disallowed_methods, reason = "it times the start")]
    pub fn open(
        program: E::Program,
        disk: Arc<dyn Disk>,
        clock: E::Clock,
        options: Options,
    ) -> Result<Self, OpenError>
    where
        E: Env<Watch = ()>,
    {
        let begun = Instant::now();
        set_secret(plan::fresh_secret());
        let code = Registered { program: &program, without_code: &options.without_code };
        let recovery = recover(disk, &code, plan::recover_options(&options), plan::fresh_meta)?;
        assemble(program, (clock, ()), recovery, options, Drawn::fresh(), begun)?.spawn()
    }
}
