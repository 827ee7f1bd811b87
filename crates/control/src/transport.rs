//! The trait of the network between planes.

use stead_core::ids::NodeId;
use tokio::sync::oneshot;

/// Carries requests to the planes of other nodes.
///
/// It may lose, delay and repeat requests and answers. It has to deliver a request only to the node that it is for, of
/// the same cluster and incarnation, and to say truly which node it is from: see [`crate::Plane::receive`].
pub trait Transport: Send + Sync + 'static {
    /// Sends a request to a node at an address, and returns at once. The answer is completed later, from any thread.
    fn request(&self, to: NodeId, address: &str, request: Vec<u8>, answer: Answer);
}

/// The place for the answer to a request. Dropping it means that there will be none.
#[derive(Debug)]
pub struct Answer(oneshot::Sender<Vec<u8>>);

impl Answer {
    pub(crate) fn new() -> (Self, oneshot::Receiver<Vec<u8>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }

    /// Completes the request.
    pub fn complete(self, answer: Vec<u8>) {
        // Without a receiver the request was given up.
        let _ = self.0.send(answer);
    }

    /// Whether the request was given up, so that no answer is needed any more.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.0.is_closed()
    }
}
