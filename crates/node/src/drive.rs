//! Gives a part its turns on a thread of its own, as production does.

#![expect(clippy::disallowed_methods, reason = "it starts the threads")]

use crate::clock::Clock;
use crate::env::Env;
use crate::panics;
use crate::part::{Part, Turned};
use crate::roster::PartId;
use crate::shared::Shared;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// Gives turns on this thread until the part has ended, and sleeps between them.
///
/// # Errors
/// The text of a turn's error, which is fatal for the node.
pub(crate) fn drive<E: Env>(shared: &Shared<E>, part: &mut impl Part<Shared<E>>) -> Result<(), String> {
    part.attach(shared);
    loop {
        // Before the turn: a ring during the turn leads to another one.
        part.bell(shared).take_ring();
        let begun = shared.clock.steady();
        match part.turn(shared, begun).map_err(|error| error.to_string())? {
            Turned::Again => {}
            Turned::Until(until) => part.sleep(shared, begun, until),
            Turned::Ended => return Ok(()),
        }
    }
}

/// Puts a part that begins on a thread, which drives it.
///
/// # Errors
/// The system's, if it refuses a thread; then the part is dropped.
pub(crate) fn put_on_thread<E: Env>(
    shared: &Arc<Shared<E>>,
    id: PartId,
    part: impl Part<Shared<E>> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let hub = Arc::clone(shared);
    run(shared, id, part, move |part| drive(&hub, part))
}

/// Starts the thread of a part that begins, which runs `body`.
///
/// # Errors
/// The system's, if it refuses a thread.
pub(crate) fn run<E: Env, P: Send + 'static>(
    shared: &Arc<Shared<E>>,
    id: PartId,
    mut part: P,
    body: impl FnOnce(&mut P) -> Result<(), String> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let hub = Arc::clone(shared);
    thread::Builder::new().name(id.thread_name()).spawn(move || {
        hub.roster.run_on(id, thread::current().id());
        if id.lets_others_first() {
            let_others_first();
        }
        let ended = panics::catch_own(|| body(&mut part));
        end_part(&hub, id, part, ended);
    })
}

/// Drops a part after its last turn, and performs the consequences of its end, of its error, or of the panic.
pub(crate) fn end_part<E: Env>(
    shared: &Shared<E>,
    id: PartId,
    part: impl Sized,
    ended: Result<Result<(), String>, String>,
) {
    // Before the end of the node learns of it: the part holds files, and calls whose callers wait.
    let dropped = panics::catch_own(|| drop(part));
    match dropped.and(ended) {
        Ok(ended) => shared.part_ended(id, ended),
        Err(panic) => shared.part_panicked(id, &panic),
    }
}

/// Lowers this thread's priority: work for which callers wait comes first when there are fewer cores than threads.
fn let_others_first() {
    const NICE: i32 = 5;
    // If this is refused, the thread competes like all others.
    let _ = rustix::process::setpriority_process(None, NICE);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::tests::shared;

    #[test]
    fn a_panic_of_a_part_is_fatal_except_for_that_of_the_checks() {
        for (part, is_fatal) in [(PartId::Checks, false), (PartId::Merges, true)] {
            let shared = shared();
            let spawned = shared.begin_part(part, || run(&shared, part, (), |()| panic!("a bug")));
            spawned.unwrap().join().unwrap();
            assert!(!shared.roster.runs(part));
            let failure = shared.failure().map(str::to_owned);
            assert_eq!(failure.is_some(), is_fatal, "{failure:?}");
            assert!(
                failure.is_none_or(
                    |failure| failure.contains("stead-merge panicked") && failure.contains("a bug")
                )
            );
        }
    }

    #[test]
    fn a_query_part_whose_thread_is_refused_does_not_count() {
        let shared = shared();
        let refused = shared.begin_part(PartId::Query(0), || {
            assert!(!shared.queries.has_no_idle_part());
            Err::<(), _>(io::ErrorKind::WouldBlock.into())
        });
        assert!(refused.is_err());
        assert!(shared.queries.has_no_idle_part() && !shared.roster.runs(PartId::Query(0)));
    }
}
