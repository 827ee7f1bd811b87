//! The links between the nodes of a local cluster, which can be cut and delayed.
//!
//! Each node advertises the addresses of *doors* in the place of its own. A door accepts the connections of other nodes, and passes
//! their bytes on, both ways; the first frame of a connection names the node that dialed. A link that is cut passes nothing, and
//! closes nothing: what was sent waits, as do the ends of connections.

use crate::error::{LocalError, system};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use stead_net::decoder::Decoder;
use stead_net::handshake::{HELLO_BYTES_MAX, Role, claimed_role};

/// Time in which a node has to say who it is.
const HELLO_TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes that are read at a time.
const CHUNK: usize = 256 << 10;
/// Pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// A direction between two nodes: from one, to the other.
type Link = (u32, u32);

#[derive(Debug, Default)]
struct State {
    cut: BTreeSet<Link>,
    delays: BTreeMap<Link, Duration>,
    /// The nodes of each open connection, and its two sockets.
    open: BTreeMap<u64, (Link, [TcpStream; 2])>,
    next: u64,
    is_over: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The links between all nodes. Dropping it closes them.
#[derive(Debug, Default)]
pub(crate) struct Links(Arc<Shared>);

impl Links {
    /// Cuts or heals a link, in one direction.
    pub(crate) fn set_cut(&self, from: u32, to: u32, is_cut: bool) {
        let mut state = self.0.state();
        if is_cut {
            state.cut.insert((from, to));
        } else {
            state.cut.remove(&(from, to));
        }
        self.0.changed.notify_all();
    }

    /// Sets the time by which a link delays what passes, in one direction.
    pub(crate) fn set_delay(&self, from: u32, to: u32, delay: Duration) {
        self.0.state().delays.insert((from, to), delay);
    }

    /// Closes the connections of a node. It and others may connect again at once.
    pub(crate) fn close(&self, node: u32) {
        for ((from, to), sockets) in self.0.state().open.values() {
            if *from == node || *to == node {
                shut(sockets);
            }
        }
    }

    /// Opens a door at an address, through which other nodes reach an address of this one.
    pub(crate) fn open_door(
        &self,
        at: SocketAddr,
        node: u32,
        target: SocketAddr,
    ) -> Result<Door, LocalError> {
        let listener = TcpListener::bind(at).map_err(system("listen for a node's connections"))?;
        let address = listener.local_addr().map_err(system("listen for a node's connections"))?;
        let door = Arc::new(Mutex::new(false));
        let (shared, is_closed) = (Arc::clone(&self.0), Arc::clone(&door));
        let accept = move || {
            for accepted in listener.incoming() {
                if *is_closed.lock().unwrap_or_else(PoisonError::into_inner) {
                    return;
                }
                match accepted {
                    Ok(stream) => {
                        let shared = Arc::clone(&shared);
                        // Without a thread the connection closes.
                        let _ = spawn(move || drop(carry(&shared, stream, node, target)));
                    }
                    Err(_) => thread::sleep(PAUSE),
                }
            }
        };
        let thread = spawn(accept).map_err(system("start a thread"))?;
        Ok(Door { address, is_closed: door, thread: Some(thread) })
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_over = true;
        for (_, sockets) in state.open.values() {
            shut(sockets);
        }
        self.0.changed.notify_all();
    }
}

/// The place at which a node is reached. Dropping it refuses connections from then on.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    is_closed: Arc<Mutex<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Door {
    fn drop(&mut self) {
        *self.is_closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        // Wakes the thread. If the system refuses it, the thread ends at the next connection.
        if TcpStream::connect(self.address).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn spawn(run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("stead-link".to_owned()).stack_size(512 << 10).spawn(run)
}

fn shut(sockets: &[TcpStream; 2]) {
    for socket in sockets {
        // An error means that it is closed.
        let _ = socket.shutdown(Shutdown::Both);
    }
}

/// Carries one connection until it ends.
fn carry(shared: &Arc<Shared>, mut dialer: TcpStream, node: u32, target: SocketAddr) -> io::Result<()> {
    dialer.set_nodelay(true)?;
    dialer.set_read_timeout(Some(HELLO_TIME_MAX))?;
    let (hello, from) = read_hello(&mut dialer)?;
    dialer.set_read_timeout(None)?;
    let link = (from, node);
    shared.pass(link)?;
    // One that was given up while the link was cut never reaches the other node.
    dialer.set_nonblocking(true)?;
    if matches!(dialer.peek(&mut [0]), Ok(0)) {
        return Ok(());
    }
    dialer.set_nonblocking(false)?;
    let mut accepter = TcpStream::connect(target)?;
    accepter.set_nodelay(true)?;
    let sockets = || Ok::<_, io::Error>([dialer.try_clone()?, accepter.try_clone()?]);
    let number = shared.enter(link, sockets()?)?;
    let [back_to, back_from] = sockets()?;
    let other = Arc::clone(shared);
    let carried = spawn(move || pump(&other, back_from, back_to, (node, from))).and_then(|back| {
        let sent = accepter.write_all(&hello);
        if sent.is_ok() {
            pump(shared, dialer, accepter, link);
        }
        let _ = back.join();
        sent
    });
    shared.state().open.remove(&number);
    carried
}

/// Reads the first frame of a connection. Returns the bytes that have arrived, and the number of the node that sent them: 0 if it has
/// none yet.
fn read_hello(dialer: &mut TcpStream) -> io::Result<(Vec<u8>, u32)> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let mut decoder = Decoder::new(HELLO_BYTES_MAX);
    let mut read = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        let count = dialer.read(&mut bytes)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read.extend_from_slice(&bytes[..count]);
        decoder.receive(&bytes[..count]);
        if let Some(frame) = decoder.next_frame().map_err(|error| invalid(error.to_string()))? {
            return match claimed_role(&frame) {
                Some(Role::Peer { node, .. }) => Ok((read, node.0)),
                Some(Role::Client) => Ok((read, 0)),
                None => Err(invalid("the first frame is no hello".to_owned())),
            };
        }
    }
}

/// Passes the bytes of one direction on, then their end.
fn pump(shared: &Shared, mut from: TcpStream, mut to: TcpStream, link: Link) {
    let mut bytes = vec![0; CHUNK];
    loop {
        let read = from.read(&mut bytes);
        if shared.pass(link).is_err() {
            return;
        }
        match read {
            Ok(0) => {
                // An error means that it is closed.
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(count) if to.write_all(&bytes[..count]).is_ok() => {}
            Ok(_) | Err(_) => return shut(&[from, to]),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while a link is cut, then for as long as it delays. Fails once all is over.
    fn pass(&self, link: Link) -> io::Result<()> {
        let mut state = self.state();
        while state.cut.contains(&link) && !state.is_over {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_over {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let delay = state.delays.get(&link).copied().unwrap_or_default();
        drop(state);
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        Ok(())
    }

    fn enter(&self, link: Link, sockets: [TcpStream; 2]) -> io::Result<u64> {
        let mut state = self.state();
        if state.is_over {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let number = state.next;
        state.next += 1;
        state.open.insert(number, (link, sockets));
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use stead_core::ids::{ClusterId, Incarnation, Life, NodeId, Time};
    use stead_net::frame::Origin;
    use stead_net::handshake::{CLOCK_DIFFERENCE_MAX, Handshake, Limits, Local, VERSIONS};
    use stead_net::outgoing::Outgoing;

    const PATIENCE: Duration = Duration::from_secs(30);
    /// Time for which nothing arrives over a link that is cut.
    const SILENCE: Duration = Duration::from_millis(30);

    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    /// Returns the bytes of a node's first frame.
    fn hello(node: u32) -> Vec<u8> {
        let local = Local {
            versions: VERSIONS,
            cluster: Some(ClusterId(7)),
            role: Role::Peer { node: NodeId(node), directory: 1, process: 2 },
            origin: Origin { incarnation: Incarnation(1), life: Life(1) },
            limits: Limits::default(),
            client_limits: Limits::of_clients(),
            clock_difference_max: CLOCK_DIFFERENCE_MAX,
        };
        let (head, payload) = Handshake::dial(local, 1, None).hello(Time(1), None);
        let mut outgoing = Outgoing::default();
        outgoing.push(head, &payload);
        let mut slices = [io::IoSlice::new(&[]); 8];
        let count = outgoing.slices(&mut slices);
        slices[..count].iter().flat_map(|slice| slice.to_vec()).collect()
    }

    /// A connection of node 1 to node 2 through a door.
    struct Pair {
        dialer: TcpStream,
        accepter: TcpStream,
    }

    impl Pair {
        fn open(door: &Door, listener: &TcpListener) -> Self {
            let mut dialer = TcpStream::connect(door.address).unwrap();
            dialer.write_all(&hello(1)).unwrap();
            let (mut accepter, _) = listener.accept().unwrap();
            for stream in [&dialer, &accepter] {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
            }
            let mut read = vec![0; hello(1).len()];
            accepter.read_exact(&mut read).unwrap();
            assert_eq!(read, hello(1), "the first frame is passed on whole");
            Self { dialer, accepter }
        }

        /// Sends a byte each way.
        fn send(&mut self, byte: u8) {
            self.dialer.write_all(&[byte]).unwrap();
            self.accepter.write_all(&[byte]).unwrap();
        }

        fn expect(&mut self, byte: u8) {
            for stream in [&mut self.dialer, &mut self.accepter] {
                let mut read = [0];
                stream.read_exact(&mut read).unwrap();
                assert_eq!(read, [byte]);
            }
        }
    }

    fn is_silent(stream: &mut TcpStream) -> bool {
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        let read = stream.read(&mut [0]);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        read.is_err_and(|error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }

    #[test]
    fn a_cut_link_is_silent_until_it_is_healed_and_a_slow_one_delays() {
        let listener = TcpListener::bind(any()).unwrap();
        let links = Links::default();
        let door = links.open_door(any(), 2, listener.local_addr().unwrap()).unwrap();
        let mut pair = Pair::open(&door, &listener);
        pair.send(1);
        pair.expect(1);

        links.set_cut(1, 2, true);
        pair.send(2);
        let mut read = [0];
        pair.dialer.read_exact(&mut read).unwrap();
        assert_eq!(read, [2], "the other direction is not cut");
        assert!(is_silent(&mut pair.accepter));
        // A connection that is begun and given up meanwhile never arrives; one that lasts does.
        let mut given_up = TcpStream::connect(door.address).unwrap();
        given_up.write_all(&hello(1)).unwrap();
        drop(given_up);
        let mut lasts = TcpStream::connect(door.address).unwrap();
        lasts.write_all(&hello(1)).unwrap();
        links.set_cut(1, 2, false);
        pair.accepter.read_exact(&mut read).unwrap();
        assert_eq!(read, [2]);
        let (arrived, _) = listener.accept().unwrap();
        drop(lasts);
        drop(arrived);

        links.set_delay(2, 1, Duration::from_millis(20));
        let begun = Instant::now();
        pair.send(3);
        pair.expect(3);
        assert!(begun.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn connections_close_on_request_with_a_cut_and_with_their_door() {
        let listener = TcpListener::bind(any()).unwrap();
        let links = Links::default();
        let door = links.open_door(any(), 2, listener.local_addr().unwrap()).unwrap();
        let mut pair = Pair::open(&door, &listener);
        links.set_cut(1, 2, true);
        links.set_cut(2, 1, true);
        links.close(1);
        for stream in [&mut pair.dialer, &mut pair.accepter] {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
        let address = door.address;
        drop(door);
        let refused = TcpStream::connect(address).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        // The same address serves again.
        links.set_cut(1, 2, false);
        links.set_cut(2, 1, false);
        let door = links.open_door(address, 2, listener.local_addr().unwrap()).unwrap();
        let mut pair = Pair::open(&door, &listener);
        pair.send(4);
        pair.expect(4);
    }
}
