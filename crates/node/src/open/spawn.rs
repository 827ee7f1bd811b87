//! Puts the parts of a node on threads.

#![expect(clippy::disallowed_methods, reason = "it starts the threads, and times the start")]

use crate::checks::CheckPart;
use crate::drive::drive;
use crate::env::Env;
use crate::events;
use crate::life::Life;
use crate::open::{OpenError, Parts};
use crate::panics;
use crate::queries::{OwnThreads, QUERY_THREADS, QueryQueue, QueryWatch};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use stead_core::shutdown::Group;

impl<E: Env> Parts<E> {
    /// Starts the threads. Returns when all shards serve.
    ///
    /// # Errors
    /// [`OpenError::Thread`] or [`OpenError::Failed`]; then the started threads are ended.
    pub(super) fn spawn(self) -> Result<Life<E>, OpenError> {
        let Self {
            mut life,
            log,
            prepare,
            workers,
            probes,
            steps,
            query_limit,
            copies,
            checks,
            checkpoints,
            merges,
        } = self;
        life.is_spawned.store(true, Ordering::SeqCst);
        let spawned = spawn_all(&life, |life| {
            let shared = Arc::clone(&life.shared);
            life.spawn(Group::Log, "stead-log", move || drive(&shared, log))?;
            let shared = Arc::clone(&life.shared);
            life.spawn(Group::Log, "stead-segments", move || {
                let_others_first();
                drive(&shared, prepare)
            })?;
            for (number, worker) in workers.into_iter().enumerate() {
                let shared = Arc::clone(&life.shared);
                life.spawn(Group::Workers, &format!("stead-worker-{number}"), move || {
                    drive(&shared, worker)
                })?;
            }
            for _ in 0..QUERY_THREADS {
                QueryQueue::start_thread(&life.shared).map_err(OpenError::Thread)?;
            }
            let shared = Arc::clone(&life.shared);
            let threads = Box::new(OwnThreads(Arc::clone(&shared)));
            let watch = QueryWatch::new(&shared, query_limit, threads);
            life.spawn(Group::Queries, "stead-queries", move || drive(&shared, watch))?;
            for (number, part) in steps.into_iter().enumerate() {
                let shared = Arc::clone(&life.shared);
                life.spawn(Group::Tasks, &format!("stead-task-{number}"), move || drive(&shared, part))?;
            }
            let shared = Arc::clone(&life.shared);
            life.spawn(Group::Watchdog, "stead-watchdog", move || {
                shared.watchdog.run(&probes, &shared.topology);
                Ok(())
            })?;
            if let Some(copies) = copies {
                let shared = Arc::clone(&life.shared);
                life.spawn(Group::Checkpoints, "stead-stable", move || {
                    let_others_first();
                    drive(&shared, copies)
                })?;
            }
            if let Some(checks) = checks {
                spawn_checks(life, checks)?;
            }
            let shared = Arc::clone(&life.shared);
            life.spawn(Group::Checkpoints, "stead-checkpoint", move || {
                let_others_first();
                drive(&shared, checkpoints)
            })?;
            let shared = Arc::clone(&life.shared);
            life.spawn(Group::Checkpoints, "stead-merge", move || {
                let_others_first();
                drive(&shared, merges)
            })?;
            life.shared.await_active().map_err(OpenError::Failed)
        });
        spawned?;
        life.recovery.duration = life.opened.elapsed();
        Ok(life)
    }
}

/// Starts all threads. If one cannot be started, the life is ended as by a crash: a clean end would forgive the causes that
/// may have ended the last one.
pub(super) fn spawn_all<E: Env>(
    life: &Life<E>,
    start: impl FnOnce(&Life<E>) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    start(life).inspect_err(|_| life.kill())
}

/// Starts the thread of the services' checks. It belongs to no group: user code cannot be stopped, and the end of the
/// node waits for it only for a limited time.
fn spawn_checks<E: Env>(life: &Life<E>, part: CheckPart) -> Result<(), OpenError> {
    let shared = Arc::clone(&life.shared);
    shared.checks.part_begins();
    let spawned = thread::Builder::new().name("stead-checks".to_owned()).spawn(move || {
        let_others_first();
        let ended = panics::catch_own(|| drive(&shared, part));
        shared.checks.part_ended();
        match ended {
            Ok(Err(reason)) if !shared.is_ended() => shared.fail(reason),
            Ok(_) => {}
            Err(panic) => events::error(format_args!(
                "no checkpoint is checked any more: the thread panicked; this is a bug in Stead: {panic}"
            )),
        }
    });
    spawned.map(drop).map_err(OpenError::Thread)
}

/// Lowers this thread's priority: work for which callers wait comes first when there are fewer cores than threads.
fn let_others_first() {
    const NICE: i32 = 5;
    // If this is refused, the thread competes like all others.
    let _ = rustix::process::setpriority_process(None, NICE);
}

impl<E: Env> Life<E> {
    /// Starts a thread whose error or panic is fatal for the node.
    fn spawn(
        &self,
        group: Group,
        name: &str,
        body: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<(), OpenError> {
        let shared = Arc::clone(&self.shared);
        let thread_name = name.to_owned();
        let spawned =
            thread::Builder::new().name(name.to_owned()).spawn(move || match panics::catch_own(body) {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => shared.fail(reason),
                Err(panic) => {
                    shared.fail(format!("thread {thread_name} panicked; this is a bug in Stead: {panic}"));
                }
            });
        let thread = spawned.map_err(OpenError::Thread)?;
        self.own_threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread.thread().id());
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push((group, thread));
        Ok(())
    }
}
