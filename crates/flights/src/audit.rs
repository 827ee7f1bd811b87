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
    /// By process, what it ran in its last life: its next one shows how much of that was kept.
    unresolved: HashMap<ProcessName, Vec<u64>>,
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
            let first = *recovered.entry(run.process).or_insert_with(|| {
                self.resolve(run.process, run.handled);
                run.handled
            });
            let committed = log.contains(&(run.process, run.place));
            self.take(run, base, committed);
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

    fn take(&mut self, run: &Run, base: u64, committed: bool) {
        self.again.runs += 1;
        self.unresolved.entry(run.process).or_default().push(run.cause);
        let known = Known { handled: run.handled, line: self.line, life: self.life, committed };
        let Some(before) = self.latest.insert((run.process, run.cause), known) else { return };
        if before.life == self.life {
            self.again.recomputed += 1;
        } else if !before.committed {
            self.again.unkept += 1;
        } else if before.line == self.line || before.handled < base {
            self.again.recomputed += 1;
        } else {
            self.again.replayed += 1;
        }
    }

    /// A process runs for the first time in this life and has handled so much by its state. What it ran in its last life
    /// below that count is in the state: for what it handled since then, nobody but that life counted.
    fn resolve(&mut self, process: ProcessName, handled: u64) {
        for cause in self.unresolved.remove(&process).unwrap_or_default() {
            if let Some(known) = self.latest.get_mut(&(process, cause)) {
                known.committed |= known.handled < handled;
            }
        }
    }
}
