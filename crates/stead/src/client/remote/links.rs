//! The connections of all clients of a process over one network: stepped, and without threads.

use super::call::Call;
use super::link::{Link, LinkId, Net};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use stead_core::ids::Time;
use stead_net::connection::Settings;
use stead_net::endpoint::{Bounds, Endpoint, Happened};
use stead_net::handshake::Local;
use stead_net::network::{ConnectionId, Network, Tcp};

/// News of a client.
pub(super) enum News {
    /// It is there, with the addresses of its nodes.
    Opened(LinkId, Vec<SocketAddr>),
    /// It calls.
    Call(LinkId, Call),
    /// It has gone.
    Closed(LinkId),
}

/// The connections of all clients.
pub(super) struct Links<N: Network> {
    endpoint: Endpoint<N>,
    links: BTreeMap<LinkId, Link>,
    /// The client of each connection.
    owners: BTreeMap<ConnectionId, LinkId>,
    /// The time of each client's next step.
    due: BTreeSet<(Time, LinkId)>,
    due_of: BTreeMap<LinkId, Time>,
    /// The clients with calls under way.
    busy: BTreeSet<LinkId>,
    /// The error of a wait.
    failed: Option<io::Error>,
}

impl<N: Network> Links<N> {
    pub(super) fn new(network: N) -> Self {
        Self {
            endpoint: Endpoint::new(network, Local::stranger(), Settings::default(), Bounds::default()),
            links: BTreeMap::new(),
            owners: BTreeMap::new(),
            due: BTreeSet::new(),
            due_of: BTreeMap::new(),
            busy: BTreeSet::new(),
            failed: None,
        }
    }

    /// Whether calls are under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// Takes news of clients, sends what can be sent, and ends the calls that have answers or are overdue. Returns the time of the next
    /// turn, unless something arrives before.
    ///
    /// # Errors
    /// Those of the system, after which it cannot go on.
    pub(super) fn turn(&mut self, now: Time, wall: Time, news: &mut VecDeque<News>) -> io::Result<Time> {
        self.failed.take().map_or(Ok(()), Err)?;
        let mut touched = BTreeSet::new();
        for news in news.drain(..) {
            self.take(news, now, &mut touched);
        }
        let until = self.endpoint.turn(now, wall)?;
        while let Some(happened) = self.endpoint.next_happened() {
            self.handle(happened, now, wall, &mut touched);
        }
        while let Some((_, link)) = self.due.first().copied().filter(|(due, _)| *due <= now) {
            self.due.pop_first();
            self.due_of.remove(&link);
            touched.insert(link);
        }
        for id in touched {
            let Some(link) = self.links.get_mut(&id) else { continue };
            let (endpoint, owners) = (&mut self.endpoint, &mut self.owners);
            let due = link.step(&mut Net { endpoint, owners, link: id, now, wall });
            let is_busy = link.is_busy();
            if is_busy {
                self.busy.insert(id);
            } else {
                self.busy.remove(&id);
            }
            self.note_due(id, due);
        }
        self.endpoint.flush(now);
        let next = self.due.first().map_or(Time(u64::MAX), |(due, _)| *due);
        Ok(until.min(next))
    }

    fn take(&mut self, news: News, now: Time, touched: &mut BTreeSet<LinkId>) {
        match news {
            News::Opened(id, addresses) => {
                self.links.insert(id, Link::new(addresses, now));
            }
            News::Call(id, call) => match self.links.get_mut(&id) {
                Some(link) => {
                    link.push(call);
                    touched.insert(id);
                }
                None => call.fail("its client has gone; connect again"),
            },
            News::Closed(id) => {
                if let Some(mut link) = self.links.remove(&id) {
                    link.fail_all("its client has gone; connect again");
                }
                self.busy.remove(&id);
                self.forget_due(id);
                for (connection, _) in self.owners.extract_if(.., |_, owner| *owner == id) {
                    self.endpoint.close(connection);
                }
            }
        }
    }

    fn handle(&mut self, happened: Happened, now: Time, wall: Time, touched: &mut BTreeSet<LinkId>) {
        let connection = match &happened {
            Happened::Event(connection, _) | Happened::Ended { connection, .. } => *connection,
            Happened::AcceptFailed(_) => return,
        };
        let Some(id) = self.owners.get(&connection).copied() else { return };
        let Some(link) = self.links.get_mut(&id) else { return };
        touched.insert(id);
        let (endpoint, owners) = (&mut self.endpoint, &mut self.owners);
        let mut net = Net { endpoint, owners, link: id, now, wall };
        match happened {
            Happened::Event(_, event) => link.handle(&mut net, connection, event),
            Happened::Ended { address, ended, .. } => {
                net.owners.remove(&connection);
                link.handle_end(&net, connection, address, &ended);
            }
            Happened::AcceptFailed(_) => {}
        }
    }

    fn note_due(&mut self, id: LinkId, due: Time) {
        if self.due_of.get(&id) == Some(&due) {
            return;
        }
        self.forget_due(id);
        if due < Time(u64::MAX) {
            self.due.insert((due, id));
            self.due_of.insert(id, due);
        }
    }

    fn forget_due(&mut self, id: LinkId) {
        if let Some(due) = self.due_of.remove(&id) {
            self.due.remove(&(due, id));
        }
    }

    /// Ends all calls, also those in these news.
    pub(super) fn fail_all(&mut self, news: VecDeque<News>, reason: &str) {
        for link in self.links.values_mut() {
            link.fail_all(reason);
        }
        for news in news {
            if let News::Call(_, call) = news {
                call.fail(reason);
            }
        }
    }
}

impl Links<Tcp> {
    /// Waits until something arrives, it is woken, or the time is over.
    pub(super) fn wait(&mut self, time: Option<Duration>) {
        self.failed = self.endpoint.network_mut().wait(time).err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::remote::call::{Got, Within};
    use crate::error::RawError;
    use std::net::TcpListener;
    use stead_core::ids::{ClusterId, Epoch, Incarnation, Life, Micros, NodeId, SessionId, ShardId};
    use stead_core::topology::Topology;
    use stead_net::connection::Event;
    use stead_net::frame::Origin;
    use stead_net::handshake::Role;
    use stead_net::native::{Answer, Ask, Primary};
    use stead_net::payload::Payload;
    use tokio::sync::oneshot;

    const CLIENT: LinkId = LinkId(1);

    /// Two sockets that listen, and of which none is accepted but by [`node`].
    fn listeners() -> [TcpListener; 2] {
        [(); 2].map(|()| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        })
    }

    fn node(listener: &TcpListener) -> Endpoint<Tcp> {
        let local = Local {
            cluster: Some(ClusterId(7)),
            role: Role::Peer { node: NodeId(1), directory: 1, process: 1 },
            origin: Origin { incarnation: Incarnation(1), life: Life(1) },
            ..Local::stranger()
        };
        let tcp = Tcp::accepting(listener.try_clone().unwrap()).unwrap();
        Endpoint::new(tcp, local, Settings::default(), Bounds::default())
    }

    /// The caller, which waits for its answer as long as this is there.
    type Answered = oneshot::Receiver<Result<Got, RawError>>;

    /// A client of these addresses that calls, with the first turn at 0.
    fn client(addresses: Vec<SocketAddr>) -> (Links<Tcp>, Answered) {
        client_that_asks(&Ask::Topology { without_services: None }, addresses)
    }

    fn client_that_asks(ask: &Ask<'_>, addresses: Vec<SocketAddr>) -> (Links<Tcp>, Answered) {
        let mut links = Links::new(Tcp::dialing().unwrap());
        let (reply, answered) = oneshot::channel();
        let within = Within { deadline: Time(u64::MAX), timeout: Duration::MAX };
        let call = Call::new(ask, within, reply);
        let news = [News::Opened(CLIENT, addresses), News::Call(CLIENT, call)];
        links.turn(Time(0), Time(0), &mut news.into()).unwrap();
        (links, answered)
    }

    fn turn(links: &mut Links<Tcp>, now: Micros) {
        links.turn(Time(0).plus(now), Time(0), &mut VecDeque::new()).unwrap();
    }

    #[test]
    fn a_node_that_says_no_hello_is_given_up_sooner_by_a_client_that_knows_another() {
        let [one, two] = listeners();
        let addresses = [&one, &two].map(|listener| listener.local_addr().unwrap());
        let (mut links, _caller) = client(addresses.to_vec());
        turn(&mut links, Micros::from_millis(199));
        assert!(two.accept().is_err());
        turn(&mut links, Micros::from_millis(201));
        let _two = two.accept().expect("the client has dialed it");
        let _one = one.accept().expect("the client had dialed it");
        // In the next round, each has more time.
        turn(&mut links, Micros::from_millis(402));
        turn(&mut links, Micros::from_millis(402).plus(PAUSE));
        let _one = one.accept().expect("the client has dialed it again");
        turn(&mut links, Micros::from_millis(1_421));
        assert!(two.accept().is_err());
        turn(&mut links, Micros::from_millis(1_423));
        two.accept().expect("the client has dialed it again");

        let (mut alone, _caller) = client(vec![addresses[0]]);
        one.accept().expect("the client has dialed it");
        turn(&mut alone, Micros::from_millis(4_999));
        assert!(one.accept().is_err());
        turn(&mut alone, Micros::from_millis(5_001));
        turn(&mut alone, Micros::from_millis(5_001).plus(PAUSE));
        one.accept().expect("the client has dialed it again");
    }

    /// Longer than the pause before an address is dialed after a connection that gave no answer.
    const PAUSE: Micros = Micros::from_millis(20);

    #[test]
    fn a_call_at_a_node_that_is_cut_off_goes_to_the_primary_that_another_node_names() {
        let sockets = listeners();
        let addresses = [&sockets[0], &sockets[1]].map(|listener| listener.local_addr().unwrap());
        let mut nodes = [node(&sockets[0]), node(&sockets[1])];
        let (shard, session) = (ShardId(0), SessionId(5));
        let ask = Ask::OpenSession { shard, session, principal: "" };
        let (mut links, _caller) = client_that_asks(&ask, addresses.to_vec());
        for step in 0.. {
            let now = Micros::from_millis(10 * step);
            assert!(now < Micros::from_millis(500), "the call stays at the node that is cut off");
            links.wait(Some(Duration::from_millis(1)));
            turn(&mut links, now);
            let mut got = None;
            for (at, node) in nodes.iter_mut().enumerate() {
                node.turn(Time(0), Time(0)).unwrap();
                while let Some(happened) = node.next_happened() {
                    let Happened::Event(connection, Event::Request(request, bytes)) = happened else {
                        continue;
                    };
                    if matches!(Ask::decode(&bytes).unwrap().1, Ask::Topology { .. }) {
                        // The first one does not know that there is another primary.
                        let primary = Primary { node: at as u32, epoch: Epoch(1 + at as u64) };
                        let (nodes, primaries) = (addresses.to_vec(), vec![Some(primary)]);
                        let answer =
                            Answer::Topology { topology: Topology::new(Incarnation(1)), nodes, primaries };
                        let answer = Payload::from(answer.encode());
                        node.send_answer(connection, request, &answer, Time(0)).unwrap();
                    } else {
                        got = Some(at);
                    }
                }
                node.turn(Time(0), Time(0)).unwrap();
            }
            match got {
                Some(0) => assert!(now < Micros::from_millis(200), "it is at the first one"),
                Some(_) => return,
                None => {}
            }
        }
    }

    #[test]
    fn a_call_that_no_node_answers_is_sent_again_less_and_less_often() {
        let sockets = listeners();
        let addresses = [&sockets[0], &sockets[1]].map(|listener| listener.local_addr().unwrap());
        let mut nodes = [node(&sockets[0]), node(&sockets[1])];
        let ask = Ask::OpenSession { shard: ShardId(0), session: SessionId(5), principal: "" };
        let (mut links, _caller) = client_that_asks(&ask, addresses.to_vec());
        let mut sent = 0;
        // Ends before the client gives up a silent node.
        for step in 0..190 {
            links.wait(Some(Duration::from_millis(1)));
            turn(&mut links, Micros::from_millis(10 * step));
            for node in &mut nodes {
                node.turn(Time(0), Time(0)).unwrap();
                while let Some(happened) = node.next_happened() {
                    if let Happened::Event(_, Event::Request(_, bytes)) = happened {
                        let is_news = matches!(Ask::decode(&bytes).unwrap().1, Ask::Topology { .. });
                        sent += u32::from(!is_news);
                    }
                }
                node.turn(Time(0), Time(0)).unwrap();
            }
        }
        // At once, and not before 0.2, 0.6 and 1.4 seconds.
        assert!((2..=4).contains(&sent), "it was sent {sent} times");
    }

    #[test]
    fn a_node_that_does_not_answer_is_left_sooner_by_a_client_that_knows_another() {
        for knows_another in [true, false] {
            let [one, two] = listeners();
            let mut addresses = [&one, &two].map(|listener| listener.local_addr().unwrap()).to_vec();
            addresses.truncate(if knows_another { 2 } else { 1 });
            let (mut node, (mut links, _caller)) = (node(&one), client(addresses));
            loop {
                node.turn(Time(0), Time(0)).unwrap();
                turn(&mut links, Micros(0));
                let mut happened = std::iter::from_fn(|| node.next_happened());
                let is_request = |happened| matches!(happened, Happened::Event(_, Event::Request(..)));
                if happened.any(is_request) {
                    break;
                }
                links.wait(Some(Duration::from_millis(1)));
            }
            turn(&mut links, Micros::from_millis(199));
            assert!(two.accept().is_err());
            // It is asked beside the first one, whose connection stays.
            turn(&mut links, Micros::from_millis(221));
            assert_eq!(two.accept().is_ok(), knows_another);
        }
    }
}
