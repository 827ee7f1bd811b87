//! Decides the order of a start: which part begins next, when the start waits for the shards, and that an error ends the life.
//! Performs nothing itself: threads and the simulator perform the orders.

use crate::open::OpenError;
use crate::roster::PartId;
use std::collections::VecDeque;
use std::io;

/// The start of a life whose parts have yet to begin.
pub(crate) struct Starting {
    /// The parts that have yet to begin, in their order.
    waiting: VecDeque<PartId>,
    /// The system's error, if it has refused the thread of a part.
    refused: Option<io::Error>,
}

/// The next action of a start.
#[derive(Debug)]
pub(crate) enum StartOrder {
    /// Begin this part; report a refusal by [`Starting::refused`].
    Begin(PartId),
    /// Wait until all shards serve or a part has failed.
    Await,
    /// Nothing: all shards serve.
    Serve,
    /// End the life as a crash would, and refuse the start with this error. A clean end would forgive the causes that may have ended
    /// the last life.
    Kill(OpenError),
}

impl Starting {
    /// Creates the start of these parts, in their order.
    pub(crate) fn new(parts: impl IntoIterator<Item = PartId>) -> Self {
        Self { waiting: parts.into_iter().collect(), refused: None }
    }

    /// Returns the next order. `served` is that of [`Shared::started`](crate::Shared::started): `None` while shards have yet to
    /// serve, and the reason if a part has failed.
    pub(crate) fn next(&mut self, served: Option<Result<(), String>>) -> StartOrder {
        if let Some(error) = self.refused.take() {
            self.waiting.clear();
            return StartOrder::Kill(OpenError::Thread(error));
        }
        match (self.waiting.pop_front(), served) {
            (Some(part), _) => StartOrder::Begin(part),
            (None, None) => StartOrder::Await,
            (None, Some(Ok(()))) => StartOrder::Serve,
            (None, Some(Err(reason))) => StartOrder::Kill(OpenError::Failed(reason)),
        }
    }

    /// Notes that the system has refused the thread of the part that was to begin.
    pub(crate) fn refused(&mut self, error: io::Error) {
        self.refused = Some(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starting() -> Starting {
        Starting::new([PartId::Log, PartId::Worker(0), PartId::Checkpoints])
    }

    /// Returns the orders of a start up to its end, which is the last one. The part at `refused` gets no thread; `served` are the
    /// states of the shards once all parts have begun, in turn.
    fn orders(refused: Option<usize>, served: Vec<Option<Result<(), String>>>) -> Vec<String> {
        let (mut starting, mut served) = (starting(), served.into_iter());
        let (mut orders, mut begun) = (Vec::new(), 0);
        loop {
            let state = if begun < 3 { None } else { served.next().unwrap() };
            let order = starting.next(state);
            orders.push(match &order {
                StartOrder::Kill(error) => format!("kill: {error}"),
                order => format!("{order:?}"),
            });
            match order {
                StartOrder::Begin(_) => {
                    if refused == Some(begun) {
                        starting.refused(io::Error::other("no thread"));
                    }
                    begun += 1;
                }
                StartOrder::Await => {}
                StartOrder::Serve | StartOrder::Kill(_) => return orders,
            }
        }
    }

    #[test]
    fn parts_begin_in_their_order_and_then_the_start_waits_for_the_shards() {
        let orders = orders(None, vec![None, None, Some(Ok(()))]);
        assert_eq!(
            orders,
            ["Begin(Log)", "Begin(Worker(0))", "Begin(Checkpoints)", "Await", "Await", "Serve"]
        );
    }

    #[test]
    fn a_refused_thread_ends_the_life_and_no_other_part_begins() {
        assert_eq!(
            orders(Some(1), vec![]),
            ["Begin(Log)", "Begin(Worker(0))", "kill: cannot start a thread: no thread"]
        );
        // Also that of the last one: the shards may serve by then.
        let orders = orders(Some(2), vec![Some(Ok(()))]);
        assert_eq!(orders.last().unwrap(), "kill: cannot start a thread: no thread");
    }

    #[test]
    fn a_part_that_fails_before_all_shards_serve_ends_the_life() {
        let orders = orders(None, vec![None, Some(Err("the disk broke".to_owned()))]);
        assert_eq!(orders[3..], ["Await", "kill: the node failed while it started: the disk broke"]);
    }
}
