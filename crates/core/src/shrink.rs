//! Queues that release the memory of a burst once it is over.

use std::collections::VecDeque;

/// Number of elements for which a queue always keeps its capacity.
const KEPT: usize = 16;

/// Releases most of a queue's capacity if it uses little of it. Called after elements were taken: then each call costs
/// no more than the elements taken since the last one.
pub fn release_spare<T>(queue: &mut VecDeque<T>) {
    if queue.capacity() > KEPT && queue.len() < queue.capacity() / 8 {
        queue.shrink_to((queue.capacity() / 4).max(KEPT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_queue_keeps_little() {
        let mut queue: VecDeque<u64> = (0..100_000).collect();
        while queue.pop_front().is_some() {
            release_spare(&mut queue);
            assert!(queue.capacity() <= KEPT.max(queue.len() * 8 + 8));
        }
        assert!(queue.capacity() >= 1, "the next element needs no allocation");
    }
}
