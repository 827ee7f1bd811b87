//! The part of a process that a query can see.

use super::Fold;
use stead_core::capture::View;
use stead_core::ids::TaskId;
use stead_core::record::{Kind, RecordKey, TaskRecord, decode_value};

/// Everything of a process that a query can see.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    state: Option<Vec<u8>>,
    cells: Vec<(Vec<u8>, Vec<u8>)>,
    tasks: Vec<(TaskId, TaskRecord)>,
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
