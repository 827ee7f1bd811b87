//! The sockets on which the workers of a node serve clients by the native protocol, and on which it listens for other nodes.

use crate::open::{NativeOptions, Options};
use std::io;
use std::net::SocketAddr;
use stead_net::network::Tcp;

/// The sockets of all workers. They are made before a start changes anything, because the system may refuse them.
#[derive(Default)]
pub(crate) struct Sockets {
    /// The address, if clients are served by the native protocol.
    pub(crate) address: Option<SocketAddr>,
    /// One for each worker; none if they are not. The first one waits with `peers`, if that is there.
    pub(crate) of_workers: Vec<Tcp>,
    /// That for other nodes, if there are any.
    pub(crate) peers: Option<Tcp>,
}

impl Sockets {
    /// Makes those of the socket that listens, if there is one.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn new(options: &Options) -> io::Result<Self> {
        let peers = options.listen_peers.as_ref();
        let mut peers = peers.map(|listener| listener.try_clone().and_then(Tcp::accepting)).transpose()?;
        let Some(NativeOptions { listener, .. }) = &options.native else {
            return Ok(Self { peers, ..Self::default() });
        };
        let sockets = (0..options.threads).map(|worker| {
            let listener = listener.try_clone()?;
            match &mut peers {
                Some(peers) if worker == 0 => peers.beside(listener),
                _ => Tcp::accepting(listener),
            }
        });
        let of_workers = sockets.collect::<Result<_, _>>()?;
        Ok(Self { address: Some(listener.local_addr()?), of_workers, peers })
    }
}
