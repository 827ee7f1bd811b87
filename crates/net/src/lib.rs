//! Frames and connections between nodes, and from clients to nodes.
//!
//! Does not know: the meaning of a message between replicas, which shards a node has, threads, clocks (time arrives with each
//! call), and what to do when a connection ends: the caller dials again. Clients and nodes use it.
//!
//! - [`frame`] is the format of a frame; [`decoder::Decoder`] reads frames from bytes as they arrive.
//! - [`payload::Payload`] is the content of a frame, which many frames share; [`outgoing::Outgoing`] is the queue of
//!   encoded frames.
//! - [`handshake::Handshake`] is the first frame in each direction: who is at each end, and whether they may talk.
//! - [`connection::Connection`] is a connection without its socket: requests, flow control, keep-alives.
//! - [`endpoint::Endpoint`] is all connections of a node over a [`network::Network`], which is [`network::Tcp`] or a
//!   simulator's. TCP is for loopback addresses alone: there is no TLS yet.
//! - [`native`] is what a client asks of a node, and the answers.
//! - [`section`] puts the messages of many shards into one payload; [`replica`] is the format of those between replicas, and
//!   [`channel`] of those between shards, and [`forward`] of calls that a node passes on to another one.

#![forbid(unsafe_code)]

pub mod channel;
pub mod connection;
pub mod decoder;
pub mod endpoint;
pub mod forward;
pub mod frame;
pub mod handshake;
pub mod native;
pub mod network;
pub mod outgoing;
pub mod payload;
pub mod replica;
pub mod section;
