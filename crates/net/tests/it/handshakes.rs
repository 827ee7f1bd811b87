//! Transcripts of handshakes: `tests/testdata/handshakes.txt`.
//!
//! A case has a title, the two ends as `key=value`, and the frames and outcomes that follow from them.
//! `STEAD_WRITE_TRANSCRIPTS=1` writes the latter anew.

use bytes::Bytes;
use std::fmt::Write;
use std::path::Path;
use stead_core::ids::{ClusterId, Incarnation, Life, NodeId, Time};
use stead_net::decoder::Decoder;
use stead_net::frame::{Frame, FrameError, Head, Kind, Origin};
use stead_net::handshake::{
    CLOCK_DIFFERENCE_MAX, HELLO_BYTES_MAX, Handshake, HandshakeError, Known, Limits, Local, Refusal, Role,
    Side, Versions,
};
use stead_net::outgoing::Outgoing;
use stead_net::payload::Payload;

/// An end of a case.
struct End {
    name: &'static str,
    local: Local,
    /// Its wall clock.
    wall: Time,
    expected: Option<NodeId>,
    known: Option<(NodeId, Known)>,
    /// Its number of the connection.
    number: u64,
    /// The bytes that it sends instead of a hello.
    raw: Option<Vec<u8>>,
}

fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

impl End {
    fn parse(name: &'static str, line: &str) -> Self {
        let mut end = Self {
            name,
            local: Local {
                versions: Versions { min: 1, max: 1 },
                cluster: Some(ClusterId(0xa)),
                role: Role::Client,
                origin: Origin { incarnation: Incarnation(1), life: Life(1) },
                limits: Limits::default(),
                client_limits: Limits::of_clients(),
                clock_difference_max: CLOCK_DIFFERENCE_MAX,
            },
            wall: Time(2_000_000_000_000_000),
            expected: None,
            known: None,
            number: 1,
            raw: None,
        };
        for word in line.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap();
            match key {
                "node" => {
                    let (directory, process) = (number(value), number(value));
                    end.local.role = Role::Peer { node: NodeId(number(value)), directory, process };
                }
                "directory" => {
                    let Role::Peer { directory, .. } = &mut end.local.role else { panic!("a node first") };
                    *directory = number(value);
                }
                "process" => {
                    let Role::Peer { process, .. } = &mut end.local.role else { panic!("a node first") };
                    *process = number(value);
                }
                "cluster" => {
                    end.local.cluster =
                        (value != "any").then(|| ClusterId(u128::from_str_radix(value, 16).unwrap()));
                }
                "incarnation" => end.local.origin.incarnation = Incarnation(number(value)),
                "life" => end.local.origin.life = Life(number(value)),
                "versions" => {
                    let (min, max) = value.split_once("..").unwrap();
                    end.local.versions = Versions { min: number(min), max: number(max) };
                }
                "clock" => {
                    let seconds: i64 = number(value);
                    end.wall = Time(end.wall.0.checked_add_signed(seconds * 1_000_000).unwrap());
                }
                "payload" => end.local.limits.payload_bytes_max = number(value),
                "requests" => end.local.limits.requests_max = number(value),
                "expects" => end.expected = Some(NodeId(number(value))),
                "knows" => {
                    let words: Vec<&str> = value.split(',').collect();
                    let [node, directory, process, life, state] = words[..] else { panic!("{value}") };
                    let connected = (state != "closed").then(|| number(state));
                    let (directory, process, life) = (number(directory), number(process), Life(number(life)));
                    let known = Known { directory, process, life, connected };
                    end.known = Some((NodeId(number(node)), known));
                }
                "connection" => end.number = number(value),
                "raw" => end.raw = Some(value.replace("\\r", "\r").replace('_', " ").into_bytes()),
                _ => panic!("unknown key {key}"),
            }
        }
        end
    }

    fn handle(&self, handshake: &Handshake, bytes: &[u8], out: &mut String) -> Option<(Head, Payload)> {
        let mut decoder = Decoder::new(HELLO_BYTES_MAX);
        decoder.receive(bytes);
        let frame = match decoder.next_frame() {
            Ok(frame) => frame.expect("it is whole"),
            Err(error) => {
                writeln!(out, "{} fails: {error}", self.name).unwrap();
                return None;
            }
        };
        let known = |node| self.known.filter(|(known, _)| *known == node).map(|(_, known)| known);
        match handshake.handle_frame(&frame, self.wall, known) {
            Ok(agreed) => {
                let replaces = if agreed.replaces { ", in place of the older connection" } else { "" };
                let (role, origin, version) = (agreed.role, agreed.origin, agreed.version);
                writeln!(out, "{} connected: {role}, {origin}, version {version}{replaces}", self.name)
                    .unwrap();
                (handshake.side() == Side::Accepted).then(|| handshake.hello(self.wall, Some(agreed.role)))
            }
            Err(error) => {
                writeln!(out, "{} fails: {error}", self.name).unwrap();
                let HandshakeError::Refused(refusal) = error else { return None };
                Some(handshake.refusal(&refusal))
            }
        }
    }
}

fn bytes_of((head, payload): (Head, Payload)) -> Vec<u8> {
    let mut outgoing = Outgoing::default();
    outgoing.push(head, &payload);
    let mut slices = [std::io::IoSlice::new(&[]); 2];
    let filled = outgoing.slices(&mut slices);
    slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect()
}

fn run(dial: &End, accept: &End) -> String {
    let mut out = String::new();
    let ends = [
        (dial, Handshake::dial(dial.local.clone(), dial.number, dial.expected)),
        (accept, Handshake::accept(accept.local.clone(), accept.number)),
    ];
    let mut bytes = dial.raw.clone().unwrap_or_else(|| bytes_of(ends[0].1.hello(dial.wall, None)));
    for (from, to) in [(0, 1), (1, 0), (0, 1)] {
        let kind = match bytes.get(12) {
            Some(1) if bytes.starts_with(b"SNF1") => "hello",
            Some(2) if bytes.starts_with(b"SNF1") => "refusal",
            _ => "bytes",
        };
        writeln!(out, "{} -> {}: {kind}", ends[from].0.name, ends[to].0.name).unwrap();
        let (end, handshake) = &ends[to];
        let Some(frame) = end.handle(handshake, &bytes, &mut out) else { break };
        bytes = bytes_of(frame);
    }
    out
}

#[test]
fn transcripts_hold() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata/handshakes.txt");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut now = String::new();
    let mut cases = 0;
    for case in text.split("\n\n") {
        let mut lines = case.lines();
        let (title, dial, accept) = (lines.next().unwrap(), lines.next().unwrap(), lines.next().unwrap());
        let left = End::parse("dialer", dial.strip_prefix("dialer:").unwrap());
        let right = End::parse("acceptor", accept.strip_prefix("acceptor:").unwrap());
        let separator = if cases == 0 { "" } else { "\n" };
        writeln!(now, "{separator}{title}\n{dial}\n{accept}\n{}", run(&left, &right).trim_end()).unwrap();
        cases += 1;
    }
    assert!(cases > 15, "{cases} cases");
    if std::env::var_os("STEAD_WRITE_TRANSCRIPTS").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    assert!(now == text, "the transcripts changed; STEAD_WRITE_TRANSCRIPTS=1 writes them anew:\n{now}");
}

fn local(node: u32) -> Local {
    End::parse("", &format!("node={node}")).local
}

fn frame(kind: Kind, payload: &[u8]) -> Frame {
    let origin = Origin { incarnation: Incarnation(1), life: Life(1) };
    Frame { head: Head { kind, number: 0, origin }, payload: Bytes::copy_from_slice(payload) }
}

#[test]
fn a_first_frame_that_is_no_hello_is_refused() {
    let handshake = Handshake::accept(local(1), 1);
    let handle = |kind, payload: &[u8]| handshake.handle_frame(&frame(kind, payload), Time(0), |_| None);
    let kind = Kind::Shards;
    assert_eq!(handle(kind, b""), Err(HandshakeError::Refused(Refusal::Order { kind })));
    for payload in [&b""[..], b"\xa0", b"\xbf", b"\x82\x01\x01", b"\xa2\x00\x01\x01\x01"] {
        assert_eq!(handle(Kind::Hello, payload), Err(HandshakeError::Refused(Refusal::Malformed)));
    }
    let error = handle(Kind::Refusal, b"\xa2\x00\x02\x01\x66a\x1b[2Jb").unwrap_err();
    assert_eq!(error.to_string(), "the other end refused the connection: a\u{fffd}[2Jb");
    // A text of 40,000 bytes.
    let mut long = b"\xa2\x00\x02\x01\x79\x9c\x40".to_vec();
    long.resize(long.len() + 40_000, b'x');
    let Err(HandshakeError::RefusedByOther { text, .. }) = handle(Kind::Refusal, &long) else {
        panic!("refused")
    };
    assert_eq!(text, "x".repeat(1024));
    let error = handle(Kind::Refusal, b"\xff").unwrap_err();
    assert_eq!(error.to_string(), "the other end refused the connection: it gave no reason that can be read");
}

#[test]
fn each_damaged_byte_of_a_hello_is_refused_or_read() {
    let handshake = Handshake::dial(local(2), 1, None);
    let (head, payload) = handshake.hello(Time(5), None);
    let whole = bytes_of((head, payload.clone()));
    let hello = &whole[whole.len() - payload.len()..];
    let acceptor = Handshake::accept(local(1), 1);
    for at in 0..hello.len() {
        for byte in 0..=u8::MAX {
            let mut damaged = hello.to_vec();
            damaged[at] = byte;
            // Neither panics nor takes memory: the outcome depends on the byte.
            let _ = acceptor.handle_frame(&frame(Kind::Hello, &damaged), Time(5), |_| None);
        }
    }
    assert!(acceptor.handle_frame(&frame(Kind::Hello, hello), Time(5), |_| None).is_ok());
}

#[test]
fn a_long_first_frame_is_not_awaited() {
    let head = Head { kind: Kind::Hello, number: 0, origin: Origin::default() };
    let bytes = bytes_of((head, Payload::from(&vec![0; HELLO_BYTES_MAX as usize + 1][..])));
    let mut decoder = Decoder::new(HELLO_BYTES_MAX);
    decoder.receive(&bytes[..44]);
    let (len, max) = (HELLO_BYTES_MAX + 1, HELLO_BYTES_MAX);
    assert_eq!(decoder.next_frame(), Err(FrameError::TooLong { kind: Kind::Hello, len, max }));
}

#[test]
fn the_fields_of_a_later_version_are_skipped() {
    let (_, payload) = Handshake::dial(local(2), 1, None).hello(Time(5), None);
    let whole = bytes_of((frame(Kind::Hello, b"").head, payload.clone()));
    let mut hello = whole[whole.len() - payload.len()..].to_vec();
    // Another field of the map: 23 is "new".
    assert_eq!(hello[0] >> 5, 5, "a map of fewer than 24 fields");
    hello[0] += 1;
    hello.extend_from_slice(b"\x17\x63new");
    let agreed = Handshake::accept(local(1), 1).handle_frame(&frame(Kind::Hello, &hello), Time(5), |_| None);
    assert_eq!(agreed.unwrap().role, Role::Peer { node: NodeId(2), directory: 2, process: 2 });
}
