//! The merges of bundles.

use super::progress::Stage;
use super::{Action, Driver};
use crate::checkpointing::lineage::Merged;
use crate::checkpointing::merging::plan;
use std::collections::BTreeSet;

#[derive(Debug)]
pub(super) struct RunningMerge {
    pub(super) output: String,
    pub(super) inputs: BTreeSet<String>,
    /// It has ended, and waits until the sealed checkpoint's lineage is the current one.
    pub(super) held: Option<Merged>,
}

impl Driver {
    /// Begins a merge of bundles if it is worth its cost; the next checkpoint builds upon the result.
    pub(super) fn merge(&mut self) {
        if self.merge.is_some() {
            return;
        }
        let Some(merge) = plan(&self.lineage, &self.options.policy) else { return };
        let output = self.names.draw(self.last);
        let inputs = merge.inputs.iter().map(|bundle| bundle.name.clone()).collect();
        // Its output is in use from now on.
        self.merge = Some(RunningMerge { output: output.clone(), inputs, held: None });
        self.actions.push_back(Action::Merge { output, number: self.last, merge });
    }

    pub(super) fn handle_merged(&mut self, merged: Option<Merged>) {
        let Some(merge) = &mut self.merge else { return };
        match merged {
            Some(merged) => {
                assert_eq!(merged.bundle.name, merge.output, "a merge has written another bundle");
                merge.held = Some(merged);
                // A sealed checkpoint builds upon the lineage of that time: its own lineage takes over the merge.
                let is_sealed = self.running.as_ref().is_some_and(|running| match running.stage {
                    Stage::Creating | Stage::Waiting | Stage::Writing => false,
                    Stage::Sealing | Stage::Sealed(_) | Stage::Storing(_) | Stage::Burying { .. } => true,
                });
                if !is_sealed {
                    self.apply_held();
                }
            }
            None => {
                self.merge = None;
                self.collect();
            }
        }
    }

    /// Replaces the inputs of a completed merge by its output, if they are still there.
    pub(super) fn apply_held(&mut self) {
        if let Some(merge) = self.merge.take_if(|merge| merge.held.is_some()) {
            self.lineage.apply(&merge.held.expect("checked above"));
            self.collect();
        }
    }
}
