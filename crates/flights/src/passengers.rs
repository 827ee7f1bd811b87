//! The outside client: it asks for boarding numbers while the application is killed, retries what was not answered, and
//! holds the system to every answer that it got.

use crate::services::Passengers;
use std::collections::{BTreeMap, BTreeSet};

/// What the client asked and was answered.
#[derive(Debug, Default)]
pub struct Clientele {
    next: u64,
    waiting: BTreeSet<u64>,
    answered: BTreeMap<u64, Answered>,
    /// Answers to a retry that differ from the first one.
    contradicted: u64,
    lost_at_restore: u64,
    replayed: u64,
    answers: u64,
}

#[derive(Clone, Copy, Debug)]
struct Answered {
    number: u64,
    /// The checkpoints that had begun when the answer came.
    checkpoint: u64,
}

/// What became of the answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Requests that were answered, each counted once.
    pub answered: u64,
    /// Answers in all, those to retries included.
    pub answers: u64,
    /// Answered requests without their effect.
    pub lost: u64,
    /// Requests that were applied more than once.
    pub doubled: u64,
    /// Requests that a restore undid, and that were asked again.
    pub replayed: u64,
}

impl Clientele {
    /// A client that has asked nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A passenger who has not asked yet.
    pub fn new_passenger(&mut self) -> u64 {
        let passenger = self.next;
        self.next += 1;
        self.waiting.insert(passenger);
        passenger
    }

    /// Those who wait for an answer.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = u64> {
        self.waiting.iter().copied()
    }

    /// A passenger to ask for a second time though the answer is there, as a client does that lost it.
    #[must_use]
    pub fn forgetful(&self, pick: u64) -> Option<u64> {
        let count = self.answered.len() as u64;
        let place = usize::try_from(pick.checked_rem(count)?).expect("below a length");
        self.answered.keys().nth(place).copied()
    }

    /// An answer came, after so many checkpoints had begun.
    pub fn answered(&mut self, passenger: u64, number: u64, checkpoints_begun: u64) {
        self.waiting.remove(&passenger);
        self.answers += 1;
        let first =
            self.answered.entry(passenger).or_insert(Answered { number, checkpoint: checkpoints_begun });
        if first.number != number {
            self.contradicted += 1;
        }
    }

    /// The system was put back to a checkpoint. What was answered before it began must be there; what was answered later
    /// and is not there waits again.
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

    /// Compares all answers with what the desks hold at the end.
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
