//! The network below an endpoint: TCP, or a simulator's.

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use std::io::{self, Read, Write};
use std::net::{self, SocketAddr};
use std::sync::Arc;
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
}

/// The network as an endpoint uses it. No call waits.
pub trait Network {
    /// A stream of bytes. Reads and writes return `WouldBlock` instead of waiting; then [`Network::ready`] reports the
    /// socket once it can be used again. Dropping it closes it, after what was written.
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
/// Sockets that one call of the system reports at most.
const EVENTS_MAX: usize = 1024;

/// TCP over loopback, without TLS.
#[derive(Debug)]
pub struct Tcp {
    poll: Poll,
    events: Events,
    /// Whether `events` has some that were not reported.
    gathered: bool,
    waker: Arc<Waker>,
    /// `None` for a client's.
    listener: Option<TcpListener>,
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
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        let mut tcp = Self::dialing()?;
        tcp.poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        tcp.listener = Some(listener);
        Ok(tcp)
    }

    /// Accepts no connections, as a client.
    ///
    /// # Errors
    /// Those of the system.
    pub fn dialing() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let events = Events::with_capacity(EVENTS_MAX);
        Ok(Self { poll, events, gathered: false, waker, listener: None })
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
    pub fn wait(&mut self, time: Option<Duration>) -> io::Result<()> {
        if self.gathered {
            return Ok(());
        }
        match self.poll.poll(&mut self.events, time) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            polled => {
                self.gathered = polled.is_ok();
                polled
            }
        }
    }

    fn register(&self, stream: &mut TcpStream, connection: ConnectionId) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let token = usize::try_from(connection.0).ok().map(Token).filter(|token| *token < WAKER);
        let token = token.ok_or_else(|| io::Error::other("the numbers of connections are used up"))?;
        self.poll.registry().register(stream, token, Interest::READABLE | Interest::WRITABLE)
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
        self.gathered = false;
        ready.extend(self.events.iter().filter(|event| event.token() != WAKER).map(|event| Ready {
            connection:
                (event.token() != LISTENER).then(|| {
                    ConnectionId(u64::try_from(event.token().0).expect("a number has at most 64 bits"))
                }),
            readable: event.is_readable() || event.is_read_closed() || event.is_error(),
            writable: event.is_writable() || event.is_error(),
        }));
        self.events.clear();
        Ok(())
    }
}
