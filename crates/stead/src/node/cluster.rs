//! A node that is part of a cluster: it enters before its data are recovered.

use super::Node;
use crate::config::ClusterConfig;
use crate::error::OpenError;
use crate::service::Registry;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stead_cluster::{Addresses, ClusterOptions, Entered, NewService, enter};
use stead_net::network::{bind, check_dialed};
use stead_node::{Clock, Life, Options, SystemClock, Wall, recover_options};
use stead_store::disk::Disk;

/// The arguments of an entry.
pub(super) struct Entry {
    /// The address for the other nodes' control plane.
    pub(super) listen: SocketAddr,
    /// The other addresses.
    pub(super) cluster: ClusterConfig,
    /// The program's services.
    pub(super) services: Vec<NewService>,
    /// The address of the program's HTTP server.
    pub(super) http: Option<SocketAddr>,
    /// The time for the entry.
    pub(super) wait: Duration,
    /// Ends it.
    pub(super) stops: Arc<AtomicBool>,
}

/// Enters the cluster, and opens the node with the replicas that are placed on it.
pub(super) fn open(
    registry: Registry,
    disk: Arc<dyn Disk>,
    wall: Option<Wall>,
    options: Options,
    entry: Entry,
) -> Result<Node, OpenError> {
    let ClusterConfig { join, listen_peers, advertise, advertise_peers, .. } = entry.cluster;
    let listener = bind(entry.listen).map_err(OpenError::Cluster)?;
    let listen_peers = listen_peers.unwrap_or_else(|| SocketAddr::new(entry.listen.ip(), 0));
    let peers = bind(listen_peers).map_err(OpenError::Cluster)?;
    let address = |listener: &TcpListener| listener.local_addr().map_err(OpenError::ClusterSystem);
    let known = |listener: &TcpListener, advertised: Option<SocketAddr>| match advertised {
        Some(advertised) => check_dialed(advertised).map(|()| advertised).map_err(OpenError::Cluster),
        None => address(listener),
    };
    let addresses = Addresses {
        cluster: known(&listener, advertise)?,
        peers: known(&peers, advertise_peers)?,
        clients: match &options.native {
            Some(native) => Some(native.listener.local_addr().map_err(OpenError::Native)?),
            None => None,
        },
        http: entry.http,
    };
    let recovery = recover_options(&options);
    let cluster = ClusterOptions {
        listener,
        addresses,
        join,
        services: entry.services,
        wait: entry.wait,
        recovery: (recovery.wal, recovery.loaders),
    };
    let wall = wall.map(Arc::new);
    let clock = |wall: &Option<Arc<Wall>>| {
        let wall = wall.clone();
        SystemClock::new(wall.map(|wall| -> Wall { Box::new(move || wall()) }))
    };
    let entry_clock: Arc<dyn Clock> = Arc::new(clock(&wall));
    let goes_on = || !entry.stops.load(Ordering::Relaxed);
    let Entered { dir, created, replicas, membership } = enter(disk, &entry_clock, cluster, &goes_on)?;
    let listen_peers = Some(Arc::new(peers));
    let options = Options { replicated: replicas, in_cluster: true, listen_peers, ..options };
    let life = Life::open_in(registry, (dir, created), clock(&wall), options)?;
    Ok(Node::new(life, Some(membership)))
}
