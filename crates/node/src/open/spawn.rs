//! Puts the parts of a node on threads.

use crate::drive::{put_on_thread, run};
use crate::env::Env;
use crate::life::Life;
use crate::open::{AnyPart, OpenError, Parts};
use crate::queries::OwnThreads;
use crate::roster::PartId;
use crate::starting::{StartOrder, Starting};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError};

impl<E: Env> Parts<E> {
    /// Starts the threads. Returns when all shards serve.
    ///
    /// # Errors
    /// [`OpenError::Thread`] or [`OpenError::Failed`]; then the started threads are ended.
    #[expect(clippy::disallowed_methods, reason = "it times the start")]
    pub(super) fn spawn(self) -> Result<Life<E>, OpenError> {
        let threads = Box::new(OwnThreads(Arc::clone(&self.life.shared)));
        let (mut life, parts) = self.in_order(threads);
        let mut starting = Starting::new(parts.iter().map(|(id, _)| *id));
        let mut parts: BTreeMap<PartId, AnyPart<E>> = parts.into_iter().collect();
        loop {
            match starting.next(life.shared.started()) {
                StartOrder::Begin(id) => {
                    let part = parts.remove(&id).expect("each part begins once");
                    if let Err(error) = life.begin_part(id, || life.put_on_thread(id, part)) {
                        starting.refused(error);
                    }
                }
                StartOrder::Await => life.shared.await_start(),
                StartOrder::Serve => break,
                StartOrder::Kill(error) => {
                    life.kill();
                    return Err(error);
                }
            }
        }
        life.recovery.duration = life.opened.elapsed();
        Ok(life)
    }
}

impl<E: Env> Life<E> {
    /// Puts a part that begins on a thread of its own.
    fn put_on_thread(&self, id: PartId, part: AnyPart<E>) -> io::Result<()> {
        let shared = &self.shared;
        let thread = match part {
            AnyPart::Worker(part) => put_on_thread(shared, id, *part),
            AnyPart::Step(part) => put_on_thread(shared, id, part),
            AnyPart::Log(part) => put_on_thread(shared, id, *part),
            AnyPart::Peers(part) => put_on_thread(shared, id, part),
            AnyPart::Transfers(part) => put_on_thread(shared, id, *part),
            AnyPart::Preparer(part) => put_on_thread(shared, id, part),
            AnyPart::Checkpoints(part) => put_on_thread(shared, id, *part),
            AnyPart::Merges(part) => put_on_thread(shared, id, *part),
            AnyPart::Checks(part) => put_on_thread(shared, id, part),
            AnyPart::Copies(part) => put_on_thread(shared, id, *part),
            AnyPart::QueryWatch(part) => put_on_thread(shared, id, part),
            // Nothing waits for this thread: user code cannot be stopped.
            AnyPart::Query(part) => return put_on_thread(shared, id, part).map(drop),
            AnyPart::Watchdog(probes) => {
                let hub = Arc::clone(shared);
                run(shared, id, probes, move |probes| {
                    hub.watchdog.run(probes, &hub.topology);
                    Ok(())
                })
            }
        };
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push((id, thread?));
        Ok(())
    }
}
