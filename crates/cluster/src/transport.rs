//! The network of the plane, which the thread of the cluster carries.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use stead_control::{Answer, Transport};
use stead_core::ids::NodeId;
use stead_node::Bell;

/// A request of this node's plane.
pub(crate) struct PlaneRequest {
    pub(crate) to: NodeId,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) request: Vec<u8>,
    pub(crate) answer: Answer,
}

/// The requests that wait to be sent. They are few: a plane has one in flight for each other node, and each call of an operator.
pub(crate) struct PlaneQueue {
    waiting: Mutex<Vec<PlaneRequest>>,
    bell: Arc<Bell>,
}

impl PlaneQueue {
    pub(crate) fn new(bell: Arc<Bell>) -> Self {
        Self { waiting: Mutex::default(), bell }
    }

    /// Takes all of them.
    pub(crate) fn take(&self) -> Vec<PlaneRequest> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Transport for PlaneQueue {
    fn request(&self, to: NodeId, address: &str, request: Vec<u8>, answer: Answer) {
        let request = PlaneRequest { to, address: address.parse().ok(), request, answer };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        self.bell.ring();
    }
}
