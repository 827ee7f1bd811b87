//! The request of a node without a number to join a cluster.

use crate::error::EnterError;
use crate::links::{BOUNDS, SETTINGS};
use crate::message::{Ask, Joined, decode_answer};
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;
use stead_core::control::facts::Hello;
use stead_core::ids::{Micros, Time};
use stead_net::connection::Event;
use stead_net::endpoint::{Endpoint, Happened};
use stead_net::handshake::Local;
use stead_net::network::{ConnectionId, Tcp};
use stead_net::payload::Payload;
use stead_node::Clock;

/// The time between two requests.
const PAUSE: Micros = Micros::from_millis(100);
/// The time for which one node is asked before the next one is.
const ASK_MAX: Micros = Micros::from_secs(2);

/// Asks the nodes at these addresses, one after the other, until one of them has registered the start, or `wait` is over.
pub(crate) fn join(
    addresses: &[SocketAddr],
    hello: &Hello,
    clock: &dyn Clock,
    wait: Micros,
    goes_on: &dyn Fn() -> bool,
) -> Result<Joined, EnterError> {
    let tcp = Tcp::dialing().map_err(EnterError::System)?;
    let mut endpoint = Endpoint::new(tcp, Local::stranger(), SETTINGS, BOUNDS);
    let until = clock.steady().plus(wait);
    let mut last = "none of them answered".to_owned();
    for &address in addresses.iter().cycle() {
        let now = clock.steady();
        let connection = endpoint.dial(address, None, now, clock.wall())?;
        let mut asking = Asking { connection, next: now, is_open: false, failure: None, joined: None };
        let asked_until = now.plus(ASK_MAX).min(until);
        while clock.steady() < asked_until {
            if !goes_on() {
                return Err(EnterError::Stopped);
            }
            asking.turn(&mut endpoint, hello, clock)?;
            match asking.joined.take() {
                Some(Joined::NotYet) => "the cluster has no leader now".clone_into(&mut last),
                Some(Joined::Removed) => "it took this node for one that was removed".clone_into(&mut last),
                Some(Joined::Refused(reason)) => return Err(EnterError::Refused { reason }),
                Some(done @ Joined::Done { .. }) => return Ok(done),
                None => {}
            }
            if let Some(failure) = asking.failure.take() {
                last = format!("{address}: {failure}");
                break;
            }
        }
        endpoint.close(asking.connection);
        if clock.steady() >= until {
            return Err(EnterError::NotJoined { last });
        }
        std::thread::sleep(Duration::from(PAUSE));
    }
    Err(EnterError::NoAddress)
}

struct Asking {
    connection: ConnectionId,
    /// The time of the next request.
    next: Time,
    is_open: bool,
    failure: Option<String>,
    joined: Option<Joined>,
}

impl Asking {
    fn turn(
        &mut self,
        endpoint: &mut Endpoint<Tcp>,
        hello: &Hello,
        clock: &dyn Clock,
    ) -> Result<(), EnterError> {
        let now = clock.steady();
        if self.is_open && now >= self.next {
            let payload = Payload::from(Bytes::from(Ask::Join(hello.clone()).encode()));
            if let Err(error) = endpoint.send_request(self.connection, &payload, now) {
                self.failure = Some(error.to_string());
            }
            self.next = now.plus(PAUSE);
        }
        let due = endpoint.turn(now, clock.wall()).map_err(EnterError::System)?;
        while let Some(happened) = endpoint.next_happened() {
            match happened {
                Happened::Event(connection, event) if connection == self.connection => match event {
                    Event::Opened(_) => self.is_open = true,
                    Event::Answer(_, bytes) => match decode_answer(&bytes) {
                        Ok(joined) => self.joined = Some(joined),
                        Err(error) => self.failure = Some(error.to_string()),
                    },
                    Event::Shards(_) | Event::Request(..) => {}
                },
                Happened::Ended { connection, ended, .. } if connection == self.connection => {
                    self.failure = Some(ended.to_string());
                }
                _ => {}
            }
        }
        let due = if self.is_open { due.min(self.next) } else { due };
        if self.failure.is_none() && self.joined.is_none() && due > now {
            let pause = due.since(now).min(PAUSE);
            endpoint.network_mut().wait(Some(pause.into())).map_err(EnterError::System)?;
        }
        Ok(())
    }
}
