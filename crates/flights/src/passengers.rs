//! The outside client: it requests boarding numbers while the application is killed, retries unanswered requests, and
//! checks every answer that it got.

use crate::services::Passengers;
use std::collections::{BTreeMap, BTreeSet};

/// The requests and answers of the client.
#[derive(Debug, Default)]
pub struct Clientele {
    next: u64,
    waiting: BTreeSet<u64>,
    answered: BTreeMap<u64, Answered>,
    /// Answers to a retry that differ from the first answer.
    contradicted: u64,
    lost_at_restore: u64,
    replayed: u64,
    answers: u64,
}

#[derive(Clone, Copy, Debug)]
struct Answered {
    number: u64,
    /// Number of checkpoints that had begun when the answer came.
    checkpoint: u64,
}

/// The result of the client's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Requests that were answered, each counted once.
    pub answered: u64,
    /// All answers, including those to retries.
    pub answers: u64,
    /// Answered requests without their effect.
    pub lost: u64,
    /// Requests that were applied more than once.
    pub doubled: u64,
    /// Requests that a restore undid, and that were sent again.
    pub replayed: u64,
}

impl Clientele {
    /// Returns a client without requests.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a passenger.
    pub fn new_passenger(&mut self) -> u64 {
        let passenger = self.next;
        self.next += 1;
        self.waiting.insert(passenger);
        passenger
    }

    /// Returns the passengers that wait for an answer.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = u64> {
        self.waiting.iter().copied()
    }

    /// Returns a passenger to ask for again although it was answered, like a client that lost the answer.
    #[must_use]
    pub fn forgetful(&self, pick: u64) -> Option<u64> {
        let count = self.answered.len() as u64;
        let place = usize::try_from(pick.checked_rem(count)?).expect("below a length");
        self.answered.keys().nth(place).copied()
    }

    /// Handles an answer; `checkpoints_begun` is the number of checkpoints that had begun by then.
    pub fn answered(&mut self, passenger: u64, number: u64, checkpoints_begun: u64) {
        self.waiting.remove(&passenger);
        self.answers += 1;
        let first =
            self.answered.entry(passenger).or_insert(Answered { number, checkpoint: checkpoints_begun });
        if first.number != number {
            self.contradicted += 1;
        }
    }

    /// Handles a restore. Requests that were answered before the restored checkpoint began must be in the state; later
    /// ones that are not in it wait for an answer again.
    pub fn restored(&mut self, passengers: &Passengers, checkpoint_begun: u64) {
        let there: BTreeSet<u64> = passengers.iter().map(|(passenger, _)| *passenger).collect();
        let undone: Vec<u64> =
            self.answered.keys().filter(|passenger| !there.contains(passenger)).copied().collect();
        for passenger in undone {
            let answered = self.answered.remove(&passenger).expect("a key of this map");
            match answered.checkpoint < checkpoint_begun {
                true => self.lost_at_restore += 1,
                false => self.replayed += 1,
            }
            self.waiting.insert(passenger);
        }
    }

    /// Compares all answers with the final state of the desks.
    #[must_use]
    pub fn verdict(&self, passengers: &Passengers) -> Verdict {
        let there: BTreeMap<u64, &Vec<u64>> =
            passengers.iter().map(|(passenger, numbers)| (*passenger, numbers)).collect();
        let holds = |passenger: &u64, number: u64| {
            there.get(passenger).is_some_and(|numbers| numbers.contains(&number))
        };
        let unheld = self.answered.iter().filter(|(passenger, answered)| !holds(passenger, answered.number));
        let twice: u64 = there.values().map(|numbers| numbers.len().saturating_sub(1) as u64).sum();
        Verdict {
            answered: self.answered.len() as u64,
            answers: self.answers,
            lost: self.lost_at_restore + unheld.count() as u64,
            doubled: twice + self.contradicted,
            replayed: self.replayed,
        }
    }
}
