//! File descriptors: each connection, log segment and stored object that is open needs one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that connections leave to the log, to checkpoints and to the rest of a node, where the limit has room for
/// as many again: 256.
pub const RESERVE: u64 = 256;

/// Raises this process's limit of open files as far as it may itself, and returns what it is then; `None` is no limit.
/// Opening a node does so too.
pub fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // What is refused stays as it was.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    getrlimit(Resource::Nofile).current
}

/// Most connections that leave [`RESERVE`] descriptors to the rest of the process, or half of them where the limit is less
/// than twice that: `wanted` or fewer, which is logged.
#[must_use]
pub fn connections_max(wanted: usize) -> usize {
    let Some(limit) = raise_limit() else { return wanted };
    let left = left_by_reserve(limit);
    if wanted > left {
        tracing::warn!(
            "{left} connections at a time instead of {wanted}: this process may have {limit} files open (ulimit -n), and the \
             log and checkpoints need some; raise the hard limit for more"
        );
    }
    wanted.min(left)
}

fn left_by_reserve(limit: u64) -> usize {
    usize::try_from(limit - RESERVE.min(limit / 2)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_kept_and_small_limits_are_shared() {
        for (limit, left) in [(1 << 20, (1 << 20) - 256), (1024, 768), (512, 256), (64, 32), (1, 1), (0, 0)] {
            assert_eq!(left_by_reserve(limit), left, "{limit}");
        }
        assert_eq!(connections_max(1), 1);
    }
}
