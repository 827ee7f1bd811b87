//! The limit of file descriptors: each open connection, log segment and stored object needs one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Number of descriptors that connections leave for the log, for checkpoints and for the rest of a node, if the limit
/// is at least twice as high: 256.
pub const RESERVE: u64 = 256;

/// Raises this process's limit of open files as far as possible, and returns the new limit; `None` means no limit.
/// Opening a node does so too.
pub fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // If this is refused, the limit stays unchanged.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    getrlimit(Resource::Nofile).current
}

/// Returns the maximum number of connections that leaves [`RESERVE`] descriptors to the rest of the process, or half of
/// them if the limit is less than twice that: `wanted`, or fewer, which is logged.
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

/// Returns the maximum number of connections to native clients of a node: 1,024, or a quarter of the descriptors that
/// [`RESERVE`] leaves.
#[must_use]
pub fn native_connections_max() -> usize {
    const WANTED: usize = 1024;
    raise_limit().map_or(WANTED, |limit| WANTED.min(left_by_reserve(limit) / 4))
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
