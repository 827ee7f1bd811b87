//! Finds repeated computation in the records of handler runs: the evidence is these records and the logs on the disk
//! after each kill, not the system's own reports.

use crate::runs::{ProcessName, Run, Service};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A log entry on the disk: its process, epoch and index.
pub type Place = (ProcessName, (u64, u64));

/// Repeated work, counted in handler runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Again {
    /// All handler runs.
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
    /// Causes that each process ran in its last life; its first run of the next life shows how many of them were kept.
    unresolved: HashMap<ProcessName, Vec<u64>>,
    /// Causes that each process had handled when this line began; unknown before its first run.
    base: HashMap<ProcessName, u64>,
    /// Number of restores so far.
    line: u32,
    /// Position of the feeder in the committed state before the last restore; taken at its next run.
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
    /// Returns an audit without runs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the repeated work so far.
    #[must_use]
    pub fn again(&self) -> Again {
        self.again
    }

    /// Returns the number of rows that were fed again after a restore.
    #[must_use]
    pub fn rows_replayed(&self) -> u64 {
        self.rows_replayed
    }

    /// Adds the runs of a life that has ended, in order, and the entries of its log at the end.
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
                // The state that the first run of a life finds was committed before it.
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

    /// Notes that the next life begins from a checkpoint.
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

    /// Handles the first run of a process in this life: `handled` causes are in its state. Runs of its last life below
    /// that count are therefore committed.
    fn resolve(&mut self, process: ProcessName, handled: u64) {
        for cause in self.unresolved.remove(&process).unwrap_or_default() {
            if let Some(known) = self.latest.get_mut(&(process, cause)) {
                known.committed |= known.handled < handled;
            }
        }
    }
}

/// The runs on several nodes, compared with the entries that their logs hold in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// All handler runs.
    pub runs: u64,
    /// Runs of a cause on top of a log that held its entry already.
    pub recomputed: u64,
    /// Further entries of causes that have one.
    pub doubled: u64,
    /// Runs whose entry was not stored by enough nodes before its node lost its place. An entry of a later epoch took theirs.
    pub unkept: u64,
    /// Causes that were run, and have no entry, nor has another one taken its place: nothing is proved about them.
    pub unproved: u64,
}

impl Compared {
    /// Compares runs, in any order, with the entries of all logs. Of a shard's log, a later place is on top of an earlier one.
    #[must_use]
    pub fn of(runs: &[Run], kept: &HashSet<Place>) -> Self {
        let mut causes: HashMap<(ProcessName, u64), Vec<(u64, u64)>> = HashMap::new();
        for run in runs {
            causes.entry((run.process, run.cause)).or_default().push(run.place);
        }
        let mut firsts: HashMap<ProcessName, BTreeMap<u64, u64>> = HashMap::new();
        for (process, (epoch, index)) in kept {
            let first = firsts.entry(*process).or_default().entry(*epoch).or_insert(*index);
            *first = (*first).min(*index);
        }
        // A later epoch began at or before this index of an earlier one, whose entry is therefore in no log that counts.
        let is_replaced = |process: &ProcessName, (epoch, index): (u64, u64)| {
            let mut later = firsts.get(process).into_iter().flat_map(|firsts| firsts.range(epoch + 1..));
            later.any(|(_, first)| *first <= index)
        };
        let mut compared = Self { runs: runs.len() as u64, ..Self::default() };
        for ((process, _), mut places) in causes {
            places.sort_unstable();
            let mut its = places.clone();
            its.dedup();
            its.retain(|place| kept.contains(&(process, *place)));
            let Some(&first) = its.first() else {
                // What a deposed node gave itself to do, such as a timer, may be gone with its entry.
                if places.iter().all(|place| is_replaced(&process, *place)) {
                    compared.unkept += places.len() as u64;
                } else {
                    compared.unproved += 1;
                }
                continue;
            };
            let before = places.iter().filter(|place| **place < first).count();
            compared.unkept += before as u64;
            compared.recomputed += (places.len() - before - 1) as u64;
            compared.doubled += (its.len() - 1) as u64;
        }
        compared
    }

    /// Whether no work was done twice, and that is proved.
    #[must_use]
    pub fn holds(&self) -> bool {
        (self.recomputed, self.doubled, self.unproved) == (0, 0, 0) && self.runs > 0
    }
}
