//! Decides who ends a node, and who waits for whom. Waits for nothing itself: threads and the simulator perform the orders.
//!
//! | asked by | no part has begun | parts run | one ends the node | the node has ended |
//! | --- | --- | --- | --- | --- |
//! | a thread of the program | abandon | begin | wait | nothing |
//! | one of the node's parts | - | begin | nothing: the end waits for this part | nothing |

use crate::roster::PartId;

/// The next action of a caller that asks for the end of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOrder {
    /// Release the data directory as it is. No part has begun, so nothing may be marked as ended in order.
    Abandon,
    /// End the parts, one group after the other.
    Begin,
    /// Wait until the one that ends the node is done.
    Wait,
    /// Nothing.
    Nothing,
}

/// The stages of a life, as far as its end is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// No part has begun.
    #[default]
    Idle,
    Runs,
    Ending,
    Ended,
}

/// The life of a node, as far as its end is concerned.
#[derive(Debug, Default)]
pub(crate) struct Lifecycle {
    at: At,
}

impl Lifecycle {
    /// Notes that parts begin.
    pub(crate) fn begin(&mut self) {
        if self.at == At::Idle {
            self.at = At::Runs;
        }
    }

    /// Asks for the end of the node. `by` is the part that asks, `None` for a caller from outside.
    pub(crate) fn end(&mut self, by: Option<PartId>) -> EndOrder {
        match self.at {
            At::Idle => {
                self.at = At::Ended;
                EndOrder::Abandon
            }
            At::Runs => {
                self.at = At::Ending;
                EndOrder::Begin
            }
            // The end waits for that part, which must not wait for the end.
            At::Ending if by.is_some() => EndOrder::Nothing,
            At::Ending => EndOrder::Wait,
            At::Ended => EndOrder::Nothing,
        }
    }

    /// Whether one ends the node now.
    pub(crate) fn is_ending(&self) -> bool {
        self.at == At::Ending
    }

    /// Whether the node has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.at == At::Ended
    }

    /// Notes that the node has ended.
    pub(crate) fn note_ended(&mut self) {
        self.at = At::Ended;
    }

    /// Notes that the one that ends the node does not go on: the next caller ends it.
    pub(crate) fn note_broken_off(&mut self) {
        if self.at == At::Ending {
            self.at = At::Runs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ends_the_node_and_the_others_wait_but_for_its_parts() {
        let mut life = Lifecycle::default();
        life.begin();
        assert_eq!(life.end(Some(PartId::Worker(0))), EndOrder::Begin);
        assert_eq!(life.end(None), EndOrder::Wait);
        assert_eq!(life.end(Some(PartId::Step(1))), EndOrder::Nothing, "the end waits for it");
        assert!(life.is_ending() && !life.has_ended());
        life.note_ended();
        assert_eq!(
            (life.end(None), life.end(Some(PartId::Worker(0)))),
            (EndOrder::Nothing, EndOrder::Nothing)
        );
        life.begin();
        life.note_broken_off();
        assert!(life.has_ended(), "it does not come back");
    }

    #[test]
    fn a_life_without_parts_is_abandoned_once() {
        let mut life = Lifecycle::default();
        assert_eq!(life.end(None), EndOrder::Abandon);
        assert_eq!(life.end(None), EndOrder::Nothing);
    }

    #[test]
    fn when_the_end_breaks_off_the_next_caller_ends_the_node() {
        let mut life = Lifecycle::default();
        life.begin();
        assert_eq!((life.end(None), life.end(None)), (EndOrder::Begin, EndOrder::Wait));
        life.note_broken_off();
        assert_eq!(life.end(None), EndOrder::Begin);
    }
}
