//! The part of a process that a query can see.

use super::Fold;
use std::collections::BTreeSet;
use stead_core::capture::{Capture, View};
use stead_core::ids::TaskId;
use stead_core::key::Key;
use stead_core::record::{Kind, RecordKey, TaskRecord, TimerRecord, decode_value};
use stead_core::state::State;

/// Everything of a process that a query can see.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    state: Option<Vec<u8>>,
    cells: Vec<(Vec<u8>, Vec<u8>)>,
    tasks: Vec<(TaskId, TaskRecord)>,
}

/// Returns the keys of all records that belong to a process: its state, cells, timers and tasks.
pub(crate) fn records_of(fold: &Fold, process: &str) -> BTreeSet<RecordKey> {
    let mut keys = BTreeSet::new();
    for (key, value) in fold.records() {
        let is_own = match key.kind() {
            Kind::Process | Kind::Cell => key.process_key() == Some(process),
            Kind::Timer => decode_value::<TimerRecord>(value).is_ok_and(|timer| *timer.process == *process),
            Kind::Task => decode_value::<TaskRecord>(value).is_ok_and(|task| *task.process == *process),
            _ => false,
        };
        if is_own {
            keys.insert(key.clone());
        }
    }
    keys
}

/// Returns the same of a shard's own state, by its indexes.
pub(crate) fn records_in(state: &State, process: &Key) -> BTreeSet<RecordKey> {
    let Seen { state: present, cells, tasks } = Seen::of(Capture::new(state, process).view());
    let mut keys: BTreeSet<RecordKey> = present.map(|_| RecordKey::process(process)).into_iter().collect();
    keys.extend(cells.iter().map(|(cell, _)| RecordKey::cell(process, cell)));
    keys.extend(tasks.iter().map(|(id, _)| RecordKey::task(*id)));
    let timers = state.timers().iter().map(|(_, id)| RecordKey::timer(*id));
    keys.extend(
        timers
            .filter(|key| state.record::<TimerRecord>(key).is_some_and(|timer| *timer.process == **process)),
    );
    keys
}

impl Seen {
    pub(crate) fn of(view: View<'_>) -> Self {
        let cells = view.scan_cells(b"", b"", usize::MAX);
        Self {
            state: view.state().map(|state| state.to_vec()),
            cells: cells.into_iter().map(|(cell, value)| (cell, value.to_vec())).collect(),
            tasks: view.tasks(),
        }
    }

    /// Reads it from the model's records, not from the indexes of which a capture consists.
    pub(crate) fn in_fold(fold: &Fold, process: &str) -> Self {
        let records = fold.records();
        let mut seen = Self {
            state: records.get(&RecordKey::process(process)).map(|state| state.to_vec()),
            ..Self::default()
        };
        for (key, value) in records.range(RecordKey::cell(process, b"")..) {
            if key.kind() != Kind::Cell || key.process_key() != Some(process) {
                break;
            }
            seen.cells.push((key.cell_key().expect("checked with its kind").to_vec(), value.to_vec()));
        }
        for (key, value) in records.range(RecordKey::task(TaskId(0))..=RecordKey::task(TaskId(u64::MAX))) {
            let task: TaskRecord = decode_value(value).expect("the model's tasks can be read");
            if *task.process == *process {
                seen.tasks.push((TaskId(key.number().expect("a task's key is its id")), task));
            }
        }
        seen
    }
}
