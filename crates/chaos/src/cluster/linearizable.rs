//! Whether the history of a register is linearizable: whether all that was answered could have happened one after the other, each
//! operation at a moment between its call and its answer.
//!
//! The search is that of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993), which tries the orders that the times allow,
//! with Lowe's memory of what was tried ("Testing for Linearizability", 2017). An operation without an answer may have happened at any
//! moment after its call, or never.

use serde::Serialize;
use std::collections::HashSet;

/// Most positions of a search: a history that needs more is undecided.
const POSITIONS_MAX: usize = 2_000_000;

/// An operation on a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    Get,
    Put(u64),
    CompareAndSet { expected: Option<u64>, value: u64 },
}

/// The answer of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Outcome {
    /// Whether the request has changed the register.
    pub(crate) applied: bool,
    /// The value before.
    pub(crate) previous: Option<u64>,
}

/// A request with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Operation {
    /// The time of the call, in nanoseconds.
    pub(crate) called: u64,
    /// The time of the answer, or after which none is expected any more.
    pub(crate) returned: u64,
    pub(crate) request: Request,
    /// `None` if it is unknown.
    pub(crate) outcome: Option<Outcome>,
}

/// The result of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Linearizable,
    NotLinearizable,
    Undecided,
}

/// Searches an order of the operations on one register, which was empty before them.
pub(crate) fn check(mut history: Vec<Operation>) -> Verdict {
    drop_unseen(&mut history);
    history.sort_by_key(|operation| operation.called);
    let words = history.len().div_ceil(64);
    let mut tried = HashSet::new();
    let mut waiting = vec![Position { done: vec![0; words], value: None }];
    while let Some(position) = waiting.pop() {
        let Some(nexts) = position.nexts(&history) else { return Verdict::Linearizable };
        for next in nexts.into_iter().rev() {
            if tried.len() == POSITIONS_MAX {
                return Verdict::Undecided;
            }
            if tried.insert(next.clone()) {
                waiting.push(next);
            }
        }
    }
    Verdict::NotLinearizable
}

/// Drops operations without an answer whose value nothing shows: each answer names the value before it, so that one that happened was
/// overwritten at once, by another one that does not depend on it.
fn drop_unseen(history: &mut Vec<Operation>) {
    let mut seen: HashSet<u64> = HashSet::new();
    for operation in &*history {
        seen.extend(operation.outcome.and_then(|outcome| outcome.previous));
        if let (Request::CompareAndSet { expected: Some(expected), .. }, None) =
            (operation.request, operation.outcome)
        {
            seen.insert(expected);
        }
    }
    history.retain(|operation| match operation.request {
        Request::Put(value) | Request::CompareAndSet { value, .. } => {
            operation.outcome.is_some() || seen.contains(&value)
        }
        Request::Get => operation.outcome.is_some(),
    });
}

/// The operations that have happened, and the value that they left.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Position {
    done: Vec<u64>,
    value: Option<u64>,
}

impl Position {
    fn is_done(&self, at: usize) -> bool {
        self.done[at / 64] >> (at % 64) & 1 == 1
    }

    /// Returns the positions after each operation that can be next; `None` if all that have an answer have happened.
    fn nexts(&self, history: &[Operation]) -> Option<Vec<Self>> {
        let left = || history.iter().enumerate().filter(|(at, _)| !self.is_done(*at));
        // An operation that is called after another one was answered happens after it.
        let answered = left().filter(|(_, operation)| operation.outcome.is_some());
        let first_answer = answered.map(|(_, operation)| operation.returned).min()?;
        let concurrent = left().take_while(|(_, operation)| operation.called <= first_answer);
        let next = |(at, operation): (usize, &Operation)| {
            let value = apply(self.value, operation)?;
            let mut done = self.done.clone();
            done[at / 64] |= 1 << (at % 64);
            Some(Self { done, value })
        };
        Some(concurrent.filter_map(next).collect())
    }
}

/// Returns the value after an operation on a register with this value; `None` if its answer does not fit. An unknown operation that
/// changes nothing counts as one that never happened.
fn apply(value: Option<u64>, operation: &Operation) -> Option<Option<u64>> {
    let (applied, after) = match operation.request {
        Request::Get => (false, value),
        Request::Put(new) => (true, Some(new)),
        Request::CompareAndSet { expected, value: new } if value == expected => (true, Some(new)),
        Request::CompareAndSet { .. } => (false, value),
    };
    let fits = operation.outcome.map_or(applied, |outcome| outcome == Outcome { applied, previous: value });
    fits.then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(
        (called, returned): (u64, u64),
        request: Request,
        outcome: Option<(bool, Option<u64>)>,
    ) -> Operation {
        let outcome = outcome.map(|(applied, previous)| Outcome { applied, previous });
        Operation { called, returned, request, outcome }
    }

    fn put(times: (u64, u64), value: u64, previous: Option<u64>) -> Operation {
        operation(times, Request::Put(value), Some((true, previous)))
    }

    fn get(times: (u64, u64), found: Option<u64>) -> Operation {
        operation(times, Request::Get, Some((false, found)))
    }

    #[test]
    fn what_no_order_explains_is_refused() {
        let unknown = |times, value| operation(times, Request::Put(value), None);
        let swap = |times, expected, value, outcome| {
            operation(times, Request::CompareAndSet { expected, value }, Some(outcome))
        };
        let refused = [
            ("a stale read", vec![put((0, 1), 1, None), put((2, 3), 2, Some(1)), get((4, 5), Some(1))]),
            ("a lost write", vec![put((0, 1), 1, None), get((2, 3), None)]),
            ("a value from nowhere", vec![put((0, 1), 1, None), get((2, 3), Some(9))]),
            (
                "a write that is applied twice",
                vec![put((0, 1), 1, None), put((2, 3), 2, Some(1)), put((4, 5), 3, Some(1))],
            ),
            (
                "two concurrent reads that go back",
                vec![
                    put((0, 1), 1, None),
                    put((2, 9), 2, Some(1)),
                    get((3, 4), Some(2)),
                    get((5, 6), Some(1)),
                ],
            ),
            (
                "two swaps of the same value",
                vec![swap((0, 3), None, 1, (true, None)), swap((1, 4), None, 2, (true, None))],
            ),
            (
                "a swap that fails for no reason",
                vec![put((0, 1), 1, None), swap((2, 3), Some(1), 2, (false, Some(1)))],
            ),
            (
                "an unknown write that comes and goes",
                vec![put((0, 1), 1, None), unknown((2, 3), 2), get((4, 5), Some(2)), get((6, 7), Some(1))],
            ),
            ("an unknown write that is seen before its call", vec![get((0, 1), Some(2)), unknown((2, 3), 2)]),
        ];
        for (what, history) in refused {
            assert_eq!(check(history), Verdict::NotLinearizable, "{what}");
        }
        let accepted = [
            ("nothing", vec![]),
            ("concurrent writes", vec![put((0, 5), 1, Some(2)), put((1, 4), 2, None), get((6, 7), Some(1))]),
            (
                "an unknown write that never happened",
                vec![put((0, 1), 1, None), unknown((2, 3), 2), get((4, 5), Some(1))],
            ),
            (
                "an unknown write that happens late",
                vec![put((0, 1), 1, None), unknown((2, 3), 2), get((4, 5), Some(1)), get((6, 7), Some(2))],
            ),
            (
                "swaps",
                vec![
                    swap((0, 1), None, 1, (true, None)),
                    swap((2, 3), None, 2, (false, Some(1))),
                    swap((2, 4), Some(1), 3, (true, Some(1))),
                ],
            ),
        ];
        for (what, history) in accepted {
            assert_eq!(check(history), Verdict::Linearizable, "{what}");
        }
    }

    /// Decides by trying all orders of all subsets that have the answered operations.
    fn decide(history: &[Operation], done: &mut Vec<usize>, value: Option<u64>) -> bool {
        let is_left = |at: &usize| !done.contains(at);
        let left: Vec<usize> = (0..history.len()).filter(is_left).collect();
        if left.iter().all(|at| history[*at].outcome.is_none()) {
            return true;
        }
        let is_allowed = |at: usize| {
            left.iter().all(|other| {
                history[*other].outcome.is_none() || history[*other].returned >= history[at].called
            })
        };
        left.iter().any(|at| {
            let Some(after) = apply(value, &history[*at]).filter(|_| is_allowed(*at)) else { return false };
            done.push(*at);
            let holds = decide(history, done, after);
            done.pop();
            holds
        })
    }

    #[test]
    fn the_search_agrees_with_one_that_tries_all_orders() {
        let seed = fastrand::u64(..);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut accepted = 0;
        for _ in 0..1_000 {
            let some = |rng: &mut fastrand::Rng| Some(rng.u64(1..=3)).filter(|_| rng.u8(..4) > 0);
            let mut times: Vec<u64> = (0..10).collect();
            rng.shuffle(&mut times);
            let mut history: Vec<_> = times
                .chunks(2)
                .take(rng.usize(1..=5))
                .map(|pair| {
                    let times = (pair[0].min(pair[1]), pair[0].max(pair[1]));
                    match rng.u8(..4) {
                        0 => get(times, some(&mut rng)),
                        1 => operation(times, Request::Put(rng.u64(1..=3)), None),
                        2 => put(times, rng.u64(1..=3), some(&mut rng)),
                        _ => {
                            let expected = some(&mut rng);
                            let request = Request::CompareAndSet { expected, value: rng.u64(1..=3) };
                            let applied = rng.bool();
                            let previous = if applied { expected } else { some(&mut rng) };
                            operation(times, request, Some((applied, previous)))
                        }
                    }
                })
                .collect();
            let expected = decide(&history, &mut Vec::new(), None);
            accepted += u32::from(expected);
            rng.shuffle(&mut history);
            let found = check(history.clone()) == Verdict::Linearizable;
            assert_eq!(found, expected, "seed {seed}: {history:?}");
        }
        assert!((50..950).contains(&accepted), "seed {seed}: {accepted} of 1000 are linearizable");
    }

    #[test]
    fn a_long_history_with_unknown_operations_is_decided() {
        let mut history = Vec::new();
        let mut value = None;
        for round in 0..100u64 {
            let at = round * 10;
            history.push(put((at, at + 5), round + 1, value));
            value = Some(round + 1);
            history.extend((1..4).map(|client| get((at + client, at + 6 + client), value)));
            if round % 10 == 0 {
                // One that nothing shows, and one that the next write does.
                history.push(operation((at + 1, at + 2), Request::Put(1_000 + round), None));
                history.push(operation((at + 1, at + 2), Request::Put(2_000 + round), None));
                value = Some(2_000 + round);
            }
        }
        assert_eq!(check(history.clone()), Verdict::Linearizable);
        history.push(get((2_000, 2_001), Some(99)));
        assert_eq!(check(history), Verdict::NotLinearizable);
    }
}
