//! Opening a node, in five steps.
//!
//! `sockets` makes those for clients; `plan` answers the core's questions about the program; `recover` reads the data directory
//! and changes nothing until the core's plan of the start has accepted its contents; `assemble` creates all parts of the node,
//! without a thread; `spawn` puts them on threads.

mod assemble;
mod error;
mod options;
mod plan;
mod recover;
mod sockets;
mod spawn;
#[cfg(test)]
mod tests;

use crate::env::Env;
use crate::life::Life;
pub(crate) use assemble::{AnyPart, Parts, assemble};
pub use error::OpenError;
pub use options::{CheckpointOptions, Drawn, NativeOptions, Options};
pub use plan::{Registered, recover_options};
pub use recover::{RecoverOptions, Recovery, recover, recover_in};
pub(crate) use sockets::Sockets;
use std::sync::Arc;
use std::time::Instant;
use stead_core::records::set_secret;
use stead_store::data_dir::DataDir;
use stead_store::disk::Disk;

impl<E: Env> Life<E> {
    /// Recovers the data on a disk, or creates it, and starts the threads of a node. Returns when all shards serve.
    ///
    /// # Errors
    /// [`OpenError`]; stored data is then unchanged, except that the log's unsynced tail may be cut. With [`OpenError::Thread`] and
    /// [`OpenError::Failed`], and if the disk fails under the writes that begin the life, this counts as a life that was not ended in
    /// order; in that of the first two the node may have worked.
    pub fn open(
        program: E::Program,
        disk: Arc<dyn Disk>,
        clock: E::Clock,
        options: Options,
    ) -> Result<Self, OpenError>
    where
        E: Env<Watch = ()>,
    {
        Self::open_with(|| Ok(DataDir::open(disk, plan::fresh_meta)?), program, clock, options)
    }

    /// Opens a node as [`Self::open`] does, in a data directory that [`DataDir::open`] returned and whose life the caller may have
    /// [counted](DataDir::begin_life): so does a node that names its life to its cluster before it opens anything else. The life
    /// owns the directory until it has ended.
    ///
    /// # Errors
    /// As [`Self::open`]; a life that was counted before stays so.
    pub fn open_in(
        program: E::Program,
        opened: (DataDir, bool),
        clock: E::Clock,
        options: Options,
    ) -> Result<Self, OpenError>
    where
        E: Env<Watch = ()>,
    {
        Self::open_with(|| Ok(opened), program, clock, options)
    }

    #[expect(clippy::disallowed_methods, reason = "it times the start")]
    fn open_with(
        open: impl FnOnce() -> Result<(DataDir, bool), OpenError>,
        program: E::Program,
        clock: E::Clock,
        options: Options,
    ) -> Result<Self, OpenError>
    where
        E: Env<Watch = ()>,
    {
        let begun = Instant::now();
        set_secret(plan::fresh_secret());
        let code = Registered { program: &program, without_code: &options.without_code };
        let sockets = Sockets::new(&options).map_err(OpenError::Native)?;
        let recovery = recover_in(open()?, &code, recover_options(&options))?;
        assemble(program, (clock, ()), recovery, (options, sockets), Drawn::fresh(), begun).spawn()
    }
}
