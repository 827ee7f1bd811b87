//! The network below an endpoint: TCP, or a simulator's.

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{self, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The number of a connection at its endpoint, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A socket on which something can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The socket; `None` for the listening one.
    pub connection: Option<ConnectionId>,
    /// Whether bytes, the end of them, an error or a connection to accept may have arrived.
    pub readable: bool,
    /// Whether bytes can be written, or the attempt reports an error.
    pub writable: bool,
    /// Whether the other end may have closed it, or an error may have arrived, behind bytes that were not read yet: nothing more is
    /// reported then, so that reads have to go on until they find it.
    pub ends: bool,
}

/// The network as an endpoint uses it. No call waits.
pub trait Network {
    /// A stream of bytes. Reads and writes return `WouldBlock` instead of waiting; then [`Network::ready`] reports the
    /// socket once it can be used again. So it does after a read of fewer bytes than were asked for. Dropping it closes it, after what
    /// was written.
    type Socket: Read + Write;

    /// Begins a connection. It is established once it is reported as writable; if that fails, the socket's reads and
    /// writes return the error.
    ///
    /// # Errors
    /// Those of the system.
    fn dial(&mut self, address: SocketAddr, connection: ConnectionId) -> io::Result<Self::Socket>;

    /// Accepts a connection, which has this number from then on.
    ///
    /// # Errors
    /// Those of the system; `WouldBlock` if there is none.
    fn accept(&mut self, connection: ConnectionId) -> io::Result<(Self::Socket, SocketAddr)>;

    /// Appends the sockets that became readable or writable since the last call, each at least once. MUST NOT wait.
    ///
    /// # Errors
    /// Those of the system.
    fn ready(&mut self, ready: &mut Vec<Ready>) -> io::Result<()>;
}

/// Reasons for which an address is not used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Everyone on the network could read and change what is sent.
    #[error(
        "{address} is not a loopback address, and connections are not encrypted yet; use 127.0.0.1 or [::1], with all \
         nodes on one machine"
    )]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// No connection can be made to it.
    #[error(
        "{address} has no port to which others could connect; name the port at which they reach this node"
    )]
    NoPort {
        /// The address.
        address: SocketAddr,
    },
    /// The system refuses it.
    #[error("cannot use {address}: {source}; choose an address of this machine and a port that is free")]
    System {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Checks that an address needs no encryption.
///
/// # Errors
/// If it is not a loopback address.
pub fn check_loopback(address: SocketAddr) -> Result<(), AddressError> {
    if address.ip().to_canonical().is_loopback() {
        Ok(())
    } else {
        Err(AddressError::NotLoopback { address })
    }
}

/// Checks an address that others are to dial.
///
/// # Errors
/// If it is not a loopback address, or has no port.
pub fn check_dialed(address: SocketAddr) -> Result<(), AddressError> {
    check_loopback(address)?;
    if address.port() == 0 { Err(AddressError::NoPort { address }) } else { Ok(()) }
}

/// Listens at an address; with port 0, at one that is free.
///
/// # Errors
/// If it is not a loopback address, or the system refuses it.
pub fn bind(address: SocketAddr) -> Result<net::TcpListener, AddressError> {
    check_loopback(address)?;
    net::TcpListener::bind(address).map_err(|source| AddressError::System { address, source })
}

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
/// The listening socket of a [`Tcp::beside`].
const LISTENER_BESIDE: Token = Token(usize::MAX - 2);
/// Added to the number of each connection of a [`Tcp::beside`].
const BESIDE: usize = 1 << (usize::BITS - 2);
/// Sockets that one call of the system reports at most.
const EVENTS_MAX: usize = 1024;

/// TCP over loopback, without TLS.
#[derive(Debug)]
pub struct Tcp {
    source: Source,
    waker: Arc<Waker>,
    /// `None` for a client's.
    listener: Option<TcpListener>,
}

/// Where the events of sockets come from.
#[derive(Debug)]
enum Source {
    Own {
        poll: Poll,
        events: Events,
        /// Whether `events` has some that were not reported.
        gathered: bool,
        /// Those of a [`Tcp::beside`], if there is one.
        beside: Option<Arc<Found>>,
    },
    Beside(Registry, Arc<Found>),
}

/// Events that another one has gathered: one for each socket, however long they wait.
#[derive(Debug, Default)]
struct Found(Mutex<BTreeMap<Option<ConnectionId>, Ready>>);

impl Found {
    fn ready(&self) -> MutexGuard<'_, BTreeMap<Option<ConnectionId>, Ready>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, events: impl Iterator<Item = Ready>) {
        let mut found = self.ready();
        for Ready { connection, readable, writable, ends } in events {
            let known = Ready { connection, readable: false, writable: false, ends: false };
            let known = found.entry(connection).or_insert(known);
            known.readable |= readable;
            known.writable |= writable;
            known.ends |= ends;
        }
    }
}

/// Ends a [`Tcp::wait`] from another thread.
#[derive(Clone, Debug)]
pub struct Wake(Arc<Waker>);

impl Wake {
    /// Ends the wait that runs, or else the next one.
    ///
    /// # Errors
    /// Those of the system.
    pub fn wake(&self) -> io::Result<()> {
        self.0.wake()
    }
}

impl Tcp {
    /// Listens at an address; with port 0, at one that is free.
    ///
    /// # Errors
    /// If it is not a loopback address, or the system refuses it.
    pub fn listen(address: SocketAddr) -> Result<Self, AddressError> {
        let listener = bind(address)?;
        Self::accepting(listener).map_err(|source| AddressError::System { address, source })
    }

    /// Accepts connections of a socket that listens: see [`bind`]. Several may accept those of clones of one socket.
    ///
    /// # Errors
    /// Those of the system.
    pub fn accepting(listener: net::TcpListener) -> io::Result<Self> {
        let mut tcp = Self::dialing()?;
        tcp.listen_at(listener, LISTENER)?;
        Ok(tcp)
    }

    /// The same, for one whose sockets this one waits for along with its own: a thread can have two, and wait once. At most one can be
    /// beside another. Its own [`wait`](Self::wait) does nothing.
    ///
    /// # Errors
    /// Those of the system.
    ///
    /// # Panics
    /// If there is one already, or this is one itself.
    pub fn beside(&mut self, listener: net::TcpListener) -> io::Result<Self> {
        let Source::Own { poll, beside, .. } = &mut self.source else { panic!("it waits for none itself") };
        assert!(beside.is_none(), "one is beside another");
        let found = Arc::clone(beside.insert(Arc::default()));
        let source = Source::Beside(poll.registry().try_clone()?, found);
        let mut tcp = Self { source, waker: Arc::clone(&self.waker), listener: None };
        tcp.listen_at(listener, LISTENER_BESIDE)?;
        Ok(tcp)
    }

    fn listen_at(&mut self, listener: net::TcpListener, token: Token) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        self.registry().register(&mut listener, token, Interest::READABLE)?;
        self.listener = Some(listener);
        Ok(())
    }

    /// Accepts no connections, as a client.
    ///
    /// # Errors
    /// Those of the system.
    pub fn dialing() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let events = Events::with_capacity(EVENTS_MAX);
        Ok(Self {
            source: Source::Own { poll, events, gathered: false, beside: None },
            waker,
            listener: None,
        })
    }

    fn registry(&self) -> &Registry {
        match &self.source {
            Source::Own { poll, .. } => poll.registry(),
            Source::Beside(registry, _) => registry,
        }
    }

    /// Returns the address at which it listens.
    ///
    /// # Errors
    /// Those of the system; [`io::ErrorKind::NotConnected`] if it does not.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener
            .as_ref()
            .map_or_else(|| Err(io::ErrorKind::NotConnected.into()), TcpListener::local_addr)
    }

    /// Returns what ends a [`wait`](Self::wait).
    #[must_use]
    pub fn wake(&self) -> Wake {
        Wake(Arc::clone(&self.waker))
    }

    /// Waits until a socket can be used, a [`Wake`] is used, or the time is over; without a time, for as long as that
    /// takes. The thread that gives the turns calls it between two of them.
    ///
    /// # Errors
    /// Those of the system.
    pub fn wait(&mut self, mut time: Option<Duration>) -> io::Result<()> {
        let Source::Own { poll, events, gathered, beside } = &mut self.source else { return Ok(()) };
        if *gathered {
            return Ok(());
        }
        if beside.as_ref().is_some_and(|found| !found.ready().is_empty()) {
            time = Some(Duration::ZERO);
        }
        match poll.poll(events, time) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                *gathered = true;
                if let Some(found) = beside {
                    let of_beside = events.iter().filter(|event| is_beside(event.token()));
                    found.add(of_beside.map(ready_of));
                }
                Ok(())
            }
        }
    }

    fn register(&self, stream: &mut TcpStream, connection: ConnectionId) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let number = usize::try_from(connection.0).ok().filter(|number| *number < BESIDE);
        let number = number.ok_or_else(|| io::Error::other("the numbers of connections are used up"))?;
        let token = Token(if let Source::Beside(..) = self.source { number + BESIDE } else { number });
        self.registry().register(stream, token, Interest::READABLE | Interest::WRITABLE)
    }
}

/// Whether an event is of a [`Tcp::beside`].
fn is_beside(token: Token) -> bool {
    token == LISTENER_BESIDE || (BESIDE..2 * BESIDE).contains(&token.0)
}

fn ready_of(event: &Event) -> Ready {
    let token = event.token();
    let number = || u64::try_from(token.0 % BESIDE).expect("a number has at most 64 bits");
    Ready {
        connection: (token != LISTENER && token != LISTENER_BESIDE).then(|| ConnectionId(number())),
        readable: event.is_readable() || event.is_read_closed() || event.is_error(),
        writable: event.is_writable() || event.is_error(),
        ends: event.is_read_closed() || event.is_error(),
    }
}

impl Network for Tcp {
    type Socket = TcpStream;

    fn dial(&mut self, address: SocketAddr, connection: ConnectionId) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(address)?;
        self.register(&mut stream, connection)?;
        Ok(stream)
    }

    fn accept(&mut self, connection: ConnectionId) -> io::Result<(TcpStream, SocketAddr)> {
        let listener = self.listener.as_ref().ok_or(io::ErrorKind::WouldBlock)?;
        let (mut stream, address) = listener.accept()?;
        self.register(&mut stream, connection)?;
        Ok((stream, address))
    }

    fn ready(&mut self, ready: &mut Vec<Ready>) -> io::Result<()> {
        self.wait(Some(Duration::ZERO))?;
        match &mut self.source {
            Source::Own { events, gathered, .. } => {
                *gathered = false;
                let own = events.iter().filter(|event| event.token() != WAKER && !is_beside(event.token()));
                ready.extend(own.map(ready_of));
                events.clear();
            }
            Source::Beside(_, found) => ready.extend(std::mem::take(&mut *found.ready()).into_values()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_are_gathered_for_another_one_take_room_once_for_each_socket() {
        let event = |connection, readable, writable, ends| Ready { connection, readable, writable, ends };
        let (one, two) = (Some(ConnectionId(1)), Some(ConnectionId(2)));
        let found = Found::default();
        found.add([event(one, true, false, false), event(two, true, false, false)].into_iter());
        found.add([event(one, false, true, false), event(None, true, false, false)].into_iter());
        found.add([event(one, true, false, true)].into_iter());
        let found: Vec<Ready> = found.ready().values().copied().collect();
        let expected =
            [event(None, true, false, false), event(one, true, true, true), event(two, true, false, false)];
        assert_eq!(found, expected);
    }
}
