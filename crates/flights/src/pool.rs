//! Threads of an application that is controlled over standard input and output: workers for requests, and a ticker.

use serde::Serialize;
use std::io::{self, Write};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Prints a value as a line of JSON in one write: lines of several threads do not mix, and a kill leaves whole ones.
pub fn report(value: &impl Serialize) {
    let mut line = serde_json::to_vec(value).expect("plain data has JSON");
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    // Without a reader, standard input ends too, and that ends the work.
    let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
}

/// Threads that run jobs. Dropping it waits until the jobs that were submitted are done.
#[derive(Debug)]
pub struct Clerks<J> {
    jobs: Option<Sender<J>>,
    threads: Vec<JoinHandle<()>>,
}

impl<J: Send + 'static> Clerks<J> {
    /// Starts `count` threads.
    pub fn start(count: usize, serve: impl Fn(J) + Send + Sync + 'static) -> Self {
        let (jobs, queue) = channel();
        let (queue, serve) = (Arc::new(Mutex::new(queue)), Arc::new(serve));
        let clerk = |_| {
            let (queue, serve) = (Arc::clone(&queue), Arc::clone(&serve));
            std::thread::spawn(move || {
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    serve(job);
                }
            })
        };
        Self { jobs: Some(jobs), threads: (0..count).map(clerk).collect() }
    }

    /// Submits a job.
    pub fn serve(&self, job: J) {
        let jobs = self.jobs.as_ref().expect("only drop() takes it");
        jobs.send(job).expect("a clerk ends only after drop()");
    }
}

impl<J> Drop for Clerks<J> {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic was printed when it happened.
            let _ = thread.join();
        }
    }
}

/// A thread that repeats a function. Dropping it waits until the running call has ended.
#[derive(Debug)]
pub struct Ticker {
    stopped: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts the thread; the first call comes after `every`.
    pub fn start(every: Duration, mut tick: impl FnMut() + Send + 'static) -> Self {
        let stopped = Arc::new((Mutex::new(false), Condvar::new()));
        let asked = Arc::clone(&stopped);
        let thread = std::thread::spawn(move || {
            let mut next = Instant::now() + every;
            loop {
                let wait = next.saturating_duration_since(Instant::now());
                let held = asked.0.lock().unwrap_or_else(PoisonError::into_inner);
                let waited = asked.1.wait_timeout_while(held, wait, |stopped| !*stopped);
                let stopped = *waited.unwrap_or_else(PoisonError::into_inner).0;
                if stopped {
                    return;
                }
                next = (next + every).max(Instant::now());
                tick();
            }
        });
        Self { stopped, thread: Some(thread) }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        *self.stopped.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stopped.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic was printed when it happened.
            let _ = thread.join();
        }
    }
}
