//! The environment of an embedded node: typed services, and futures that wait for its answers.

use crate::service::Registry;
use stead_core::calls::Answer;
use stead_node::{Caller, Env, NoAnswer, Reply, SystemClock};
use tokio::sync::oneshot;

/// The environment of an embedded node.
pub(crate) struct Embedded;

impl Env for Embedded {
    type Program = Registry;
    type Caller = Sender;
    type Clock = SystemClock;
    type Watch = ();
}

/// A future that waits for an answer.
pub(crate) struct Sender(pub(crate) oneshot::Sender<Result<Answer, NoAnswer>>);

impl Caller for Sender {
    fn answer(self, result: Result<Answer, NoAnswer>) {
        // The future may have been dropped.
        let _ = self.0.send(result);
    }

    fn is_gone(&self) -> bool {
        self.0.is_closed()
    }
}

pub(crate) type Receiver = oneshot::Receiver<Result<Answer, NoAnswer>>;

/// A future that waits for a result of the node.
pub(crate) struct Waiter<T>(pub(crate) oneshot::Sender<T>);

impl<T: Send> Reply<T> for Waiter<T> {
    fn send(self: Box<Self>, result: T) {
        // The future may have been dropped.
        let _ = self.0.send(result);
    }

    fn is_gone(&self) -> bool {
        self.0.is_closed()
    }
}
