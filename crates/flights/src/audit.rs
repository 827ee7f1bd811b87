//! Tells from the records of handler runs what was computed again: the evidence is the runs themselves and the logs as
//! they lay on the disk after each kill, not what the system says of itself.

use crate::runs::{ProcessName, Run, Service};
use std::collections::{HashMap, HashSet};

/// An entry of a log on the disk: which process, and at which epoch and index.
pub type Place = (ProcessName, (u64, u64));

/// What was done again, counted in handler runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Again {
    /// Handler runs in all.
    pub runs: u64,
    /// Runs of a cause whose entry was committed: recomputed work.
    pub recomputed: u64,
    /// Runs of a cause whose entry was after the checkpoint that was restored.
    pub replayed: u64,
    /// Runs of a cause whose entry had not been committed when the process was killed.
    pub unkept: u64,
}

/// Follows the runs over several lives of the application.
#[derive(Debug, Default)]
pub struct Audit {
    again: Again,
    rows_replayed: u64,
    /// The last run of each cause.
    latest: HashMap<(ProcessName, u64), Known>,
    /// By process, what it had handled when this line began: it is not known before its first run.
    base: HashMap<ProcessName, u64>,
    /// Grows with each restore.
    line: u32,
    /// Where the feeder stood in what was committed before the last restore; taken when it next runs.
    fed_before_restore: Option<u64>,
    fed_committed: u64,
    life: u32,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    handled: u64,
    line: u32,
    life: u32,
    committed: bool,
    place: (u64,u64),
}

impl Audit {
    /// Nothing has run.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What was done again so far.
    #[must_use]
    pub fn again(&self) -> Again {
        self.again
    }

    /// Rows that were fed again after a restore.
    #[must_use]
    pub fn rows_replayed(&self) -> u64 {
        self.rows_replayed
    }

    /// Takes in the runs of a life that has ended, in order, with the entries that its log then held.
    pub fn end_life(&mut self, runs: &[Run], log: &HashSet<Place>) {
        let mut recovered = HashMap::new();
        for run in runs {
            let base = *self.base.entry(run.process).or_insert(run.handled);
            let first = *recovered.entry(run.process).or_insert(run.handled);
            let committed = log.contains(&(run.process, run.place));
            self.take(run, first, base, committed);
            if run.process.service == Service::Feeder {
                if let Some(fed) = self.fed_before_restore.take() {
                    self.rows_replayed += fed.saturating_sub(run.rows.0);
                }
                // What the first run of a life finds was committed before it.
                let fed = if committed {
                    run.rows.1
                } else if run.handled == first {
                    run.rows.0
                } else {
                    0
                };
                self.fed_committed = self.fed_committed.max(fed);
            }
        }
        self.life += 1;
    }

    /// The next life begins from a checkpoint.
    pub fn restore(&mut self) {
        self.line += 1;
        self.base.clear();
        self.fed_before_restore = Some(self.fed_committed);
        self.fed_committed = 0;
    }

    fn take(&mut self, run: &Run, recovered: u64, base: u64, committed: bool) {
        self.again.runs += 1;
        let known = Known { handled: run.handled, line: self.line, life: self.life, committed, place: run.place };
        if let Some(before) = self.latest.insert((run.process, run.cause), known) {
            // A process's state counts what it handled: a run below that count is in the state.
            let kept = if before.line == self.line {
                before.life == self.life || before.committed || before.handled < recovered
            } else {
                before.handled < base
            };
            if kept { eprintln!("DBG {:?} cause {} before handled {} life {} committed {} place {:?}; now life {} handled {} recovered {} place {:?}", run.process, run.cause, before.handled, before.life, before.committed, before.place, self.life, run.handled, recovered, run.place); }
            match kept {
                true => self.again.recomputed += 1,
                false if before.line == self.line => self.again.unkept += 1,
                false => self.again.replayed += 1,
            }
        }
    }
}
