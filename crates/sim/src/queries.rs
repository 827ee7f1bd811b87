//! Queries: each runs some time after its shard has captured what it reads, while the process changes underneath.

use crate::bug::Bug;
use crate::marks::Mark;
use crate::violation::Violation;
use crate::world::{Inside, Outcomes, World};
use stead_core::capture::{Capture, Reading};
use stead_core::handler::View;
use stead_core::ids::{ShardId, TaskId};
use stead_core::record::{Kind, RecordKey, TaskRecord, decode_value};
use stead_core::state::State;

/// All of a process that a query can see.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    state: Option<Vec<u8>>,
    cells: Vec<(Vec<u8>, Vec<u8>)>,
    tasks: Vec<(TaskId, TaskRecord)>,
}

impl Seen {
    fn of(view: View<'_>) -> Self {
        let cells = view.scan_cells(b"", b"", usize::MAX);
        Self {
            state: view.state().map(|state| state.to_vec()),
            cells: cells.into_iter().map(|(cell, value)| (cell, value.to_vec())).collect(),
            tasks: view.tasks(),
        }
    }

    /// From the records themselves: not by the indexes that a capture is made of.
    fn in_records(state: &State, process: &str) -> Self {
        let mut seen = Self::default();
        for (bytes, value) in state.records().iter() {
            let key = RecordKey::from_bytes(bytes).expect("the model's records have keys");
            match key.kind() {
                Kind::Process if key.process_key() == Some(process) => seen.state = Some(value.to_vec()),
                Kind::Cell if key.process_key() == Some(process) => {
                    let cell = key.cell_key().expect("checked with its kind");
                    seen.cells.push((cell.to_vec(), value.to_vec()));
                }
                Kind::Task => {
                    let task: TaskRecord = decode_value(value).expect("the model's tasks can be read");
                    if *task.process == *process {
                        seen.tasks.push((TaskId(key.number().expect("a task's key is its id")), task));
                    }
                }
                _ => {}
            }
        }
        seen.cells.sort_unstable();
        seen.tasks.sort_unstable_by_key(|(id, _)| *id);
        seen
    }
}

impl World<'_> {
    /// A shard lets a query go, with what it may read: it runs later.
    pub(crate) fn query_leaves(&mut self, shard: ShardId, reading: Box<Reading>) -> Outcomes {
        // The model knows the process as it was at its own last entry, and that only.
        let known = (reading.index == self.model.durable(shard))
            .then(|| Seen::in_records(self.model.state(shard), &reading.query.process));
        let delay = self.reads.u64(..=self.profile.step_delay);
        self.inside(delay, Inside::Query { shard, reading, known });
        Ok(())
    }

    /// A query runs, on a thread of its own.
    pub(crate) fn query_runs(
        &mut self,
        shard: ShardId,
        mut reading: Reading,
        known: Option<Seen>,
    ) -> Outcomes {
        let node = self.node.as_ref().expect("checked by the caller");
        let now = Capture::new(node.shards[shard.0 as usize].state(), &reading.query.process);
        if self.bug == Some(Bug::LateQuery) {
            reading.capture = now.clone();
        }
        let seen = Seen::of(reading.capture.view());
        if known.is_some() && seen != Seen::of(now.view()) {
            self.marks.hit(Mark::QueryUnderWrites);
        }
        if let Some(known) = known.filter(|known| *known != seen) {
            let (process, index) = (&reading.query.process, reading.index);
            let what = format!(
                "shard {shard}: a query of {process} read {seen:?}, where entry {index} had left {known:?}"
            );
            return Err(Violation::new(6, what).into());
        }
        let handler = self.workload.handler();
        let answer = reading.answer(|call, view| handler.query(call, view));
        self.note_refusal(shard, &answer);
        self.carry_answer(answer);
        Ok(())
    }
}
