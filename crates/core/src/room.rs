//! Queues that give back the memory of a rush once it is over.

use std::collections::VecDeque;

/// Elements for which a queue always keeps its room.
const KEPT: usize = 16;

/// Gives back most of a queue's room if it uses little of it. Called after elements were taken: then each call costs
/// no more than what was taken since the last one.
pub fn give_back<T>(queue: &mut VecDeque<T>) {
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
            give_back(&mut queue);
            assert!(queue.capacity() <= KEPT.max(queue.len() * 8 + 8));
        }
        assert!(queue.capacity() >= 1, "what comes next needs no allocation");
    }
}
